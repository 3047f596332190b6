//! One load per key at a time: who asks for a key that somebody is loading gets what he loads.
//!
//! ```text
//! get ──► landed less than `keep` ago ──────────────────────────────► the value
//!     ──► in flight ──► wait, at most until the deadline ───────────► the value, or Late
//!     ──► else fly: load ──► land: wake all who wait for the key ───► the value
//! ```
//!
//! I1: of one key at most one load runs, however it ends: a load that panics lands as a failure. I2: a value is given only
//! to who asked before it landed, or less than `keep` after. Limit: [`KEYS_MAX`] keys; one beyond that is loaded for each who
//! asks.

use super::reader::ReadError;
use crate::types::{Clock, SystemClock};
use parking_lot::{Condvar, Mutex};
use std::collections::HashMap;
use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hash};
use std::time::Duration;

const PARTS: usize = 16;
/// Keys that are remembered, landed or in flight.
pub(super) const KEYS_MAX: usize = 65_536;

pub(super) struct Flights<K, V> {
    parts: [Part<K, V>; PARTS],
    hasher: RandomState,
    clock: SystemClock,
}

struct Part<K, V> {
    slots: Mutex<HashMap<K, Slot<V>>>,
    landed: Condvar,
}

struct Slot<V> {
    /// One more with each that lands.
    flights: u64,
    is_flying: bool,
    last: Option<Landed<V>>,
}

struct Landed<V> {
    result: Result<V, ReadError>,
    at: Duration,
}

impl<K: Eq + Hash + Clone, V: Clone> Flights<K, V> {
    pub(super) fn new() -> Self {
        let part = |_| Part {
            slots: Mutex::default(),
            landed: Condvar::new(),
        };
        Self {
            parts: std::array::from_fn(part),
            hasher: RandomState::new(),
            clock: SystemClock::new(),
        }
    }

    /// The value of a key; `load` is given the one before, if it is remembered.
    pub(super) fn get(
        &self,
        key: &K,
        keep: Duration,
        deadline: Duration,
        load: impl FnOnce(Option<V>) -> Result<V, ReadError>,
    ) -> Result<V, ReadError> {
        let begun = self.clock.monotonic();
        let hash = self.hasher.hash_one(key);
        let part = &self.parts[(hash >> 32) as usize % PARTS];
        let mut slots = part.slots.lock();
        if !slots.contains_key(key) && !Self::make_room(&mut slots, begun, keep) {
            drop(slots);
            return load(None);
        }
        let slot = slots.entry(key.clone()).or_insert(Slot {
            flights: 0,
            is_flying: false,
            last: None,
        });
        if let Some(landed) = &slot.last
            && landed.result.is_ok()
            && begun.saturating_sub(landed.at) < keep
        {
            return landed.result.clone();
        }
        if !slot.is_flying {
            slot.is_flying = true;
            let last = slot
                .last
                .as_ref()
                .and_then(|landed| landed.result.clone().ok());
            drop(slots);
            let flight = Flight {
                part,
                key,
                clock: &self.clock,
            };
            let result = load(last);
            flight.land(result.clone());
            return result;
        }
        let awaited = slot.flights + 1;
        loop {
            let Some(slot) = slots.get(key) else {
                // It landed and was forgotten since.
                return Err(ReadError::Late);
            };
            if slot.flights >= awaited
                && let Some(landed) = &slot.last
            {
                return landed.result.clone();
            }
            let waited = self.clock.monotonic().saturating_sub(begun);
            let Some(left) = deadline.checked_sub(waited).filter(|left| !left.is_zero()) else {
                return Err(ReadError::Late);
            };
            part.landed.wait_for(&mut slots, left);
        }
    }

    /// Forgets what has landed where there are too many; false if all are in flight.
    fn make_room(slots: &mut HashMap<K, Slot<V>>, now: Duration, keep: Duration) -> bool {
        if slots.len() < KEYS_MAX / PARTS {
            return true;
        }
        let is_fresh = |landed: &Landed<V>| now.saturating_sub(landed.at) < keep;
        slots.retain(|_, slot| slot.is_flying || slot.last.as_ref().is_some_and(is_fresh));
        slots.len() < KEYS_MAX / PARTS
    }
}

/// A load that runs. Dropped before it has landed, it lands as a failure.
struct Flight<'a, K: Eq + Hash, V> {
    part: &'a Part<K, V>,
    key: &'a K,
    clock: &'a SystemClock,
}

impl<K: Eq + Hash, V> Flight<'_, K, V> {
    fn land(self, result: Result<V, ReadError>) {
        self.settle(result);
        std::mem::forget(self);
    }

    fn settle(&self, result: Result<V, ReadError>) {
        let at = self.clock.monotonic();
        if let Some(slot) = self.part.slots.lock().get_mut(self.key) {
            slot.flights += 1;
            slot.is_flying = false;
            slot.last = Some(Landed { result, at });
        }
        self.part.landed.notify_all();
    }
}

impl<K: Eq + Hash, V> Drop for Flight<'_, K, V> {
    fn drop(&mut self) {
        self.settle(Err(ReadError::Load("the load panicked".to_owned())));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicU32, Ordering};

    const LONG: Duration = Duration::from_secs(60);

    #[test]
    fn many_who_ask_at_once_are_answered_by_one_load() {
        let flights = Flights::<u32, u32>::new();
        let (begun, asked) = (Barrier::new(2), AtomicU32::new(0));
        let waiting = |flights: &Flights<u32, u32>| {
            let slots = flights.parts.iter().map(|part| part.slots.lock().len());
            slots.sum::<usize>()
        };
        std::thread::scope(|scope| {
            let leader = scope.spawn(|| {
                flights.get(&1, Duration::ZERO, LONG, |_| {
                    begun.wait();
                    // The others come while it runs; the last of them lets it land.
                    begun.wait();
                    Ok(7)
                })
            });
            begun.wait();
            assert_eq!(waiting(&flights), 1);
            let others: Vec<_> = (0..8)
                .map(|_| {
                    scope.spawn(|| {
                        let own = |_| Ok(asked.fetch_add(1, Ordering::SeqCst));
                        flights.get(&1, LONG, LONG, own)
                    })
                })
                .collect();
            let late = flights.get(&1, Duration::ZERO, Duration::from_millis(5), |_| Ok(0));
            assert_eq!(late, Err(ReadError::Late), "a deadline passes");
            begun.wait();
            assert_eq!(leader.join().expect("no panic"), Ok(7));
            for other in others {
                assert_eq!(other.join().expect("no panic"), Ok(7));
            }
        });
        assert_eq!(asked.load(Ordering::SeqCst), 0);
        let again = flights.get(&1, Duration::ZERO, LONG, |last| {
            Ok(last.expect("remembered") + 1)
        });
        assert_eq!(again, Ok(8), "nothing is kept beyond `keep`");
    }

    #[test]
    fn a_load_that_panics_lets_the_next_one_in() {
        let flights = Flights::<u32, u32>::new();
        let load = |flights: &Flights<u32, u32>| {
            flights.get(&1, Duration::ZERO, LONG, |_| panic!("told to"))
        };
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| load(&flights)));
        assert!(panicked.is_err());
        assert_eq!(
            flights.get(&1, LONG, LONG, |_| Ok(2)),
            Ok(2),
            "a failure isn't kept"
        );
    }

    #[test]
    fn keys_are_bounded() {
        let flights = Flights::<usize, usize>::new();
        for key in 0..3 * KEYS_MAX {
            assert_eq!(
                flights.get(&key, Duration::ZERO, LONG, |_| Ok(key)),
                Ok(key)
            );
        }
        let known = flights.parts.iter().map(|part| part.slots.lock().len());
        assert!(known.sum::<usize>() <= KEYS_MAX);
    }
}
