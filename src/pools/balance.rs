//! Which units move when: a plan over the pools' stock, and the step that carries it out.
//!
//! Two rules. *Wanted*: a pool that could not serve a request gets what is missing, or half of the difference if that is
//! more, from the pool with the most to spare. *Water*: a pool below a quarter of the mean gets half of the difference to
//! the fullest one, before anybody misses it; not with the last few units, which wait for who wants them. Both end:
//! every move makes two pools more equal or serves a request that is waiting.

use super::carry::{TransferError, carry, finish, view};
use super::{NOTHING, Pool, Pools};
use crate::types::{Clock, PoolView};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a pool keeps units that were brought for a request, so that two pools don't take them from each other before
/// anybody has come back for them.
pub const SETTLE: Duration = Duration::from_millis(100);

/// The smallest difference for which units move although nobody wants them.
const WATER_MIN: u64 = 16;

/// What a balancer remembers from step to step; nothing that must survive it.
pub(super) struct Balance {
    /// Per pool: units kept for who wanted them, and until when.
    kept: Vec<(u64, Duration)>,
    /// From and to: between these units may be in flight, for all that this process knows.
    open: BTreeSet<(usize, usize)>,
}

impl Balance {
    /// Nobody knows yet what a predecessor left.
    pub(super) fn of(pools: usize) -> Self {
        let pairs = (0..pools).flat_map(|from| (0..pools).map(move |to| (from, to)));
        Self {
            kept: vec![(0, Duration::ZERO); pools],
            open: pairs.filter(|(from, to)| from != to).collect(),
        }
    }

    /// What the accounts say is in flight, whoever sent it; between pools that did not answer, what was known before.
    fn look(&mut self, views: &[Option<PoolView>]) {
        for (from, sender) in views.iter().enumerate() {
            for (to, receiver) in views.iter().enumerate().filter(|(to, _)| *to != from) {
                let (Some(sender), Some(receiver)) = (sender, receiver) else {
                    continue;
                };
                let sent = sender.account(receiver.shard).sent.last;
                if sent == receiver.account(sender.shard).received.last {
                    self.open.remove(&(from, to));
                } else {
                    self.open.insert((from, to));
                }
            }
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Move {
    from: usize,
    to: usize,
    units: u64,
}

/// What a pool has, wants and keeps.
#[derive(Debug, Clone, Copy, Default)]
struct Level {
    available: u64,
    /// The smallest request that it could not serve; 0 for none.
    wanted: u64,
    kept: u64,
}

impl Level {
    fn missing(&self) -> u64 {
        self.wanted.saturating_sub(self.available)
    }

    /// What others may have: a pool that can't serve its own request anyway keeps nothing for it.
    fn spare(&self) -> u64 {
        let own = if self.missing() > 0 { 0 } else { self.wanted };
        self.available.saturating_sub(self.kept.max(own))
    }
}

/// The next move, if any is due.
fn plan(levels: &[Level]) -> Option<Move> {
    wanted(levels).or_else(|| water(levels))
}

fn wanted(levels: &[Level]) -> Option<Move> {
    let needy = (0..levels.len()).filter(|&at| levels[at].missing() > 0);
    let others = |to: usize| (0..levels.len()).filter(move |&at| at != to);
    let can_be_served = |to: &usize| {
        let spare: u64 = others(*to).map(|at| levels[at].spare()).sum();
        spare >= levels[*to].missing()
    };
    let to = needy
        .filter(can_be_served)
        .min_by_key(|&at| levels[at].missing())?;
    let from = others(to).max_by_key(|&at| levels[at].spare())?;
    let spare = levels[from].spare();
    let half = spare.saturating_sub(levels[to].available) / 2;
    let units = levels[to].missing().max(half).min(spare);
    Some(Move { from, to, units })
}

fn water(levels: &[Level]) -> Option<Move> {
    let sum: u64 = levels.iter().map(|level| level.available).sum();
    let to = (0..levels.len()).min_by_key(|&at| levels[at].available)?;
    let from = (0..levels.len()).max_by_key(|&at| levels[at].available)?;
    let (low, high) = (levels[to].available, levels[from].available);
    let is_low = low.saturating_mul(4 * levels.len() as u64) < sum;
    let units = (high - low) / 2;
    (is_low && high - low >= WATER_MIN).then_some(Move { from, to, units })
}

impl<P: Pool> Pools<P> {
    /// Asks every pool how it stands, and moves what should move, at `now` of any monotonic clock; returns how many units came.
    /// Begins with what is in flight, whoever left it. A pool that does not answer is left out until the next step; the others
    /// go on.
    ///
    /// # Errors
    /// The first that went wrong, after everything else was done. No unit is lost: the next step goes on with it.
    pub fn step(&self, now: Duration) -> Result<u64, TransferError> {
        let mut balance = self.balance.lock();
        *self.is_wanted.lock() = false;
        let mut step = Step {
            pools: &self.pools,
            out: vec![false; self.pools.len()],
            failed: None,
            came: 0,
        };
        let views = step.look();
        balance.look(&views);
        self.tell_whether_moving(&balance);
        let mut levels = self.levels(&views, &balance, now);
        for (from, to) in balance.open.clone() {
            if let Some(came) = step.tries(from, to, finish) {
                balance.open.remove(&(from, to));
                levels[to].available += came;
            }
        }
        self.tell_whether_moving(&balance);
        // Each move serves one pool or evens out two.
        for _ in 0..2 * self.pools.len() {
            for (level, _) in levels.iter_mut().zip(&step.out).filter(|(_, out)| **out) {
                *level = Level::default();
            }
            let Some(Move { from, to, units }) = plan(&levels) else {
                break;
            };
            balance.open.insert((from, to));
            self.tell_whether_moving(&balance);
            let moved = step.tries(from, to, |from, to| carry(from, to, units));
            if let Some(moved) = moved {
                balance.open.remove(&(from, to));
                levels[to].available += moved;
                // Nothing came: what was known of the sender is outdated.
                let left = levels[from].available.saturating_sub(moved);
                levels[from].available = if moved == 0 { 0 } else { left };
                if moved > 0 && levels[to].wanted > 0 {
                    levels[to].kept = levels[to].wanted;
                    balance.kept[to] = (levels[to].kept, now + SETTLE);
                }
            }
            self.tell_whether_moving(&balance);
        }
        step.failed.map_or(Ok(step.came), Err)
    }

    /// An odd number while units may be on their way.
    fn tell_whether_moving(&self, balance: &Balance) {
        let is_told = self.moves.load(Ordering::Acquire) % 2 == 1;
        if is_told == balance.open.is_empty() {
            self.moves.fetch_add(1, Ordering::AcqRel);
        }
    }

    fn levels(&self, views: &[Option<PoolView>], balance: &Balance, now: Duration) -> Vec<Level> {
        let of_pool = |at: usize| {
            let wanted = self.wanted[at].swap(NOTHING, Ordering::AcqRel);
            let (kept, until) = balance.kept[at];
            Level {
                available: views[at].as_ref().map_or(0, |view| view.available),
                wanted: if wanted == NOTHING { 0 } else { wanted },
                kept: if now < until { kept } else { 0 },
            }
        };
        (0..self.pools.len()).map(of_pool).collect()
    }

    /// Waits until units are wanted somewhere, at most for so long.
    pub fn wait(&self, timeout: Duration) {
        let mut is_wanted = self.is_wanted.lock();
        if !*is_wanted {
            self.woken.wait_for(&mut is_wanted, timeout);
        }
    }
}

/// One step: which pools are left out of it, and what came of it.
struct Step<'a, P> {
    pools: &'a [P],
    out: Vec<bool>,
    failed: Option<TransferError>,
    came: u64,
}

impl<P: Pool> Step<'_, P> {
    /// Asks every pool; `None` for those that don't answer, which are left out.
    fn look(&mut self) -> Vec<Option<PoolView>> {
        let pools = self.pools.iter().zip(&mut self.out);
        let looks = pools.map(|(pool, out)| match view(pool) {
            Ok(view) => Some(view),
            Err(error) => {
                *out = true;
                self.failed.get_or_insert(error);
                None
            }
        });
        looks.collect()
    }

    /// Tries to bring units from one pool to another; `None` if that failed or one of them is left out.
    fn tries(
        &mut self,
        from: usize,
        to: usize,
        bring: impl FnOnce(&P, &P) -> Result<u64, TransferError>,
    ) -> Option<u64> {
        if self.out[from] || self.out[to] {
            return None;
        }
        match bring(&self.pools[from], &self.pools[to]) {
            Ok(units) => {
                self.came += units;
                Some(units)
            }
            Err(error) => {
                let TransferError::Pool { shard, .. } = error else {
                    // Between these two alone.
                    self.out[from] = true;
                    self.failed.get_or_insert(error);
                    return None;
                };
                let out = if self.pools[to].shard() == shard {
                    to
                } else {
                    from
                };
                self.out[out] = true;
                self.failed.get_or_insert(error);
                None
            }
        }
    }
}

/// A thread that balances, until it is dropped.
pub struct Balancing {
    shared: Arc<Stage>,
    wake: Box<dyn Fn() + Send + Sync>,
    thread: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Stage {
    is_stopped: Mutex<bool>,
    stopped: Condvar,
    failing: Mutex<Option<TransferError>>,
}

impl<P: Pool + 'static> Pools<P> {
    /// Starts a thread that steps whenever units are wanted, and at least `every` so often; after a failure only so often.
    /// A step asks every pool, and a pool on PostgreSQL or behind Kafka commits what it says: 50 ms is often enough, since whoever
    /// wants units wakes it.
    ///
    /// # Errors
    /// If the thread can't be started.
    pub fn balance(
        self: &Arc<Self>,
        clock: Arc<dyn Clock>,
        every: Duration,
    ) -> std::io::Result<Balancing> {
        let shared = Arc::new(Stage::default());
        let (pools, stage) = (Arc::clone(self), Arc::clone(&shared));
        let run = move || {
            while !*stage.is_stopped.lock() {
                let failed = pools.step(clock.monotonic()).err();
                *stage.failing.lock() = failed;
                if failed.is_none() {
                    pools.wait(every);
                    continue;
                }
                let mut is_stopped = stage.is_stopped.lock();
                if !*is_stopped {
                    stage.stopped.wait_for(&mut is_stopped, every);
                }
            }
        };
        let thread = std::thread::Builder::new()
            .name("pools-balancer".into())
            .spawn(run)?;
        let pools = Arc::clone(self);
        Ok(Balancing {
            shared,
            wake: Box::new(move || pools.wake()),
            thread: Some(thread),
        })
    }
}

impl Balancing {
    /// What the last step met; `None` while all goes well.
    pub fn failing(&self) -> Option<TransferError> {
        *self.shared.failing.lock()
    }
}

impl Drop for Balancing {
    /// Waits for the step under way, so that in good order nothing is left in flight.
    fn drop(&mut self) {
        *self.shared.is_stopped.lock() = true;
        self.shared.stopped.notify_one();
        (self.wake)();
        if let Some(thread) = self.thread.take() {
            // A panic of the balancer has been reported by its thread; its units are where the pools say.
            let _ = thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn levels<const N: usize>(of: [(u64, u64, u64); N]) -> [Level; N] {
        of.map(|(available, wanted, kept)| Level {
            available,
            wanted,
            kept,
        })
    }

    fn planned(from: usize, to: usize, units: u64) -> Move {
        Move { from, to, units }
    }

    #[test]
    fn the_last_unit_goes_where_it_is_wanted_and_nowhere_else() {
        assert_eq!(
            plan(&levels([(0, 0, 0), (1, 0, 0), (0, 1, 0)])),
            Some(planned(1, 2, 1))
        );
        assert_eq!(plan(&levels([(0, 0, 0), (1, 0, 0), (0, 0, 0)])), None);
        assert_eq!(
            plan(&levels([(0, 1, 0), (1, 0, 1)])),
            None,
            "kept for another"
        );
        assert_eq!(
            plan(&levels([(0, 1, 0), (1, 1, 0)])),
            None,
            "about to be sold"
        );
    }

    #[test]
    fn scraps_are_gathered_for_who_can_be_served() {
        let scraps = levels([(1, 3, 0), (1, 2, 0), (0, 0, 0)]);
        assert_eq!(
            plan(&scraps),
            Some(planned(0, 1, 1)),
            "2 can be served, 3 can't"
        );
        assert_eq!(plan(&levels([(1, 3, 0), (1, 0, 0)])), None);
    }

    #[test]
    fn a_pool_that_runs_low_is_filled_before_it_is_short() {
        assert_eq!(
            plan(&levels([(10, 0, 0), (100, 0, 0), (90, 0, 0)])),
            Some(planned(1, 0, 45))
        );
        assert_eq!(plan(&levels([(40, 0, 0), (100, 0, 0), (90, 0, 0)])), None);
        assert_eq!(
            plan(&levels([(0, 0, 0), (15, 0, 0)])),
            None,
            "the last few wait"
        );
        assert_eq!(
            plan(&levels([(0, 1, 0), (100, 0, 0)])),
            Some(planned(1, 0, 50))
        );
    }

    /// From any start, without sales: moves end, and nobody who can be served still waits.
    #[test]
    fn plans_end() {
        let mut seed = 7_u64;
        let mut next = |below: u64| {
            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (seed >> 33) % below
        };
        for _ in 0..2_000 {
            let mut levels: Vec<Level> = (0..4)
                .map(|_| Level {
                    available: next(3) * next(50),
                    wanted: next(4),
                    kept: 0,
                })
                .collect();
            let sum: u64 = levels.iter().map(|level| level.available).sum();
            let mut moves = 0;
            while let Some(Move { from, to, units }) = plan(&levels) {
                assert!(units > 0 && units <= levels[from].available, "{levels:?}");
                levels[from].available -= units;
                levels[to].available += units;
                let wanted = levels[to].wanted;
                levels[to].kept = if wanted > 0 { wanted } else { levels[to].kept };
                moves += 1;
                assert!(moves < 64, "{levels:?}");
            }
            let served = levels
                .iter()
                .any(|level| level.missing() == 0 && level.wanted > 0);
            let smallest = levels
                .iter()
                .map(|level| level.wanted)
                .filter(|&n| n > 0)
                .min();
            assert!(
                served || smallest.is_none_or(|smallest| sum < smallest),
                "{levels:?}"
            );
        }
    }
}
