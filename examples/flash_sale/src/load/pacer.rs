//! When requests are due. Open loop: what is due does not depend on what has been answered, so a slow server gets no
//! fewer requests, and a late start counts as latency.
//!
//! One thread looks every [`TICK`] what has become due and puts it in line; the latency of a request counts from its
//! intended start, whenever it was really sent.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

const TICK: Duration = Duration::from_micros(250);

/// What the crowd wants.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Rates {
    pub(crate) reads_per_s: f64,
    pub(crate) reserves_per_s: f64,
}

/// A write that is due.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Write {
    /// The n-th user wants a unit.
    Reserve(u64),
    /// The n-th user pays for his reservation.
    Checkout {
        user: u64,
        reservation: String,
        /// From 1.
        attempt: u32,
    },
}

/// A line of due things, and who waits for them.
pub(crate) struct Line<T> {
    due: Mutex<VecDeque<(Instant, T)>>,
    ready: Semaphore,
}

impl<T> Line<T> {
    fn new() -> Self {
        Self {
            due: Mutex::new(VecDeque::new()),
            ready: Semaphore::new(0),
        }
    }

    fn push(&self, items: impl Iterator<Item = (Instant, T)>) {
        let mut due = lock(&self.due);
        let before = due.len();
        due.extend(items);
        let added = due.len() - before;
        drop(due);
        if added > 0 {
            self.ready.add_permits(added);
        }
    }

    /// Waits for at least one, and takes at most `max`. Empty once the line is closed.
    pub(crate) async fn take(&self, max: usize, out: &mut Vec<(Instant, T)>) {
        out.clear();
        let Ok(first) = self.ready.acquire().await else {
            return;
        };
        first.forget();
        let mut count = 1;
        while count < max
            && let Ok(next) = self.ready.try_acquire()
        {
            next.forget();
            count += 1;
        }
        let mut due = lock(&self.due);
        let count = count.min(due.len());
        out.extend(due.drain(..count));
    }

    /// How many are due and not taken.
    pub(crate) fn len(&self) -> usize {
        lock(&self.due).len()
    }

    fn close(&self) {
        self.ready.close();
    }

    /// What nobody has taken: when each was due.
    pub(crate) fn left(&self) -> Vec<Instant> {
        let left = std::mem::take(&mut *lock(&self.due));
        left.into_iter().map(|(at, _)| at).collect()
    }
}

/// Everything that is due or will be.
pub(crate) struct Agenda {
    pub(crate) reads: Line<()>,
    pub(crate) reserves: Line<Write>,
    /// A line of its own: who pays doesn't stand behind those who come.
    pub(crate) checkouts: Line<Write>,
    later: Mutex<BinaryHeap<Reverse<(Instant, Write)>>>,
    stop: AtomicBool,
}

impl Agenda {
    pub(crate) fn new() -> Self {
        Self {
            reads: Line::new(),
            reserves: Line::new(),
            checkouts: Line::new(),
            later: Mutex::new(BinaryHeap::new()),
            stop: AtomicBool::new(false),
        }
    }

    /// Due at `at`.
    pub(crate) fn later(&self, at: Instant, write: Write) {
        lock(&self.later).push(Reverse((at, write)));
    }

    /// No more reads and reserves from now on; what was promised for later is still paced until `run` ends.
    pub(crate) fn stop(&self) {
        self.stop.store(true, Ordering::Release);
    }

    /// Paces from `start` until it is stopped or `duration` is over, then lets the rest be worked off for at most
    /// `linger`, and closes the lines.
    pub(crate) fn run(&self, start: Instant, rates: Rates, duration: Duration, linger: Duration) {
        let (mut reads, mut reserves) = (0_u64, 0_u64);
        loop {
            let now = start.elapsed();
            if now >= duration || self.stop.load(Ordering::Acquire) {
                break;
            }
            reads = due_until(&self.reads, start, now, rates.reads_per_s, reads, |_| ());
            reserves = due_until(
                &self.reserves,
                start,
                now,
                rates.reserves_per_s,
                reserves,
                Write::Reserve,
            );
            self.promote();
            // The pacing itself: requests become due with time.
            std::thread::sleep(TICK);
        }
        let end = Instant::now() + linger;
        let is_due = || self.reserves.len() + self.checkouts.len() > 0;
        while Instant::now() < end && (is_due() || !lock(&self.later).is_empty()) {
            self.promote();
            // The pacing itself: requests become due with time.
            std::thread::sleep(TICK);
        }
        self.reads.close();
        self.reserves.close();
        self.checkouts.close();
    }

    fn promote(&self) {
        let now = Instant::now();
        let mut due = Vec::new();
        let mut later = lock(&self.later);
        while let Some(Reverse((at, _))) = later.peek()
            && *at <= now
            && let Some(Reverse(next)) = later.pop()
        {
            due.push(next);
        }
        drop(later);
        let (reserves, checkouts): (Vec<_>, Vec<_>) = due
            .into_iter()
            .partition(|(_, write)| matches!(write, Write::Reserve(_)));
        self.reserves.push(reserves.into_iter());
        self.checkouts.push(checkouts.into_iter());
    }
}

/// Puts the `from`-th and all that follow up to `now` in line; gives the number of the next.
#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of one run are far below 2^52"
)]
fn due_until<T>(
    line: &Line<T>,
    start: Instant,
    now: Duration,
    per_s: f64,
    from: u64,
    make: impl Fn(u64) -> T,
) -> u64 {
    let until = (now.as_secs_f64() * per_s) as u64;
    if until > from {
        let at = |number: u64| start + Duration::from_secs_f64(number as f64 / per_s);
        line.push((from..until).map(|number| (at(number), make(number))));
    }
    until.max(from)
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A line is whole at every step, whatever panicked elsewhere.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_is_due_keeps_its_intended_start() {
        let agenda = Agenda::new();
        let start = Instant::now();
        let rates = Rates {
            reads_per_s: 1_000.0,
            reserves_per_s: 100.0,
        };
        agenda.run(start, rates, Duration::from_millis(100), Duration::ZERO);
        let reads = agenda.reads.len();
        assert!((90..=110).contains(&reads), "{reads} reads in 100 ms");
        let mut taken = Vec::new();
        agenda.reserves.take(100, &mut taken).await;
        assert!(taken.is_empty(), "a closed line gives nothing");
        let left = agenda.reserves.left();
        assert!(
            (9..=11).contains(&left.len()),
            "{} not asked for",
            left.len()
        );
    }

    #[tokio::test]
    async fn a_taker_gets_at_most_what_it_asked_for_in_order() {
        let line = Line::new();
        let now = Instant::now();
        line.push((0..5).map(|number| (now, number)));
        let mut taken = Vec::new();
        line.take(3, &mut taken).await;
        assert_eq!(
            taken.iter().map(|item| item.1).collect::<Vec<_>>(),
            [0, 1, 2]
        );
        line.take(3, &mut taken).await;
        assert_eq!(taken.len(), 2);
    }
}
