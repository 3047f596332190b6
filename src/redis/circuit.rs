//! Whether a node is worth asking: after a failure nobody waits for it, except one from time to time who tries.

use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

const PAUSE_MIN: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(1);

/// All orderings are relaxed: the words guard nothing but themselves.
#[derive(Debug, Default)]
pub(super) struct Circuit {
    /// Closed (asks) at 0; else open until this monotonic time in microseconds.
    open_until: AtomicU64,
    failures: AtomicU32,
}

impl Circuit {
    /// Whether to ask now. Of those who come after a pause one may; the others as after the next.
    pub(super) fn admits(&self, now: Duration) -> bool {
        let open_until = self.open_until.load(Ordering::Relaxed);
        if open_until == 0 {
            return true;
        }
        let next = micros(now.saturating_add(self.pause()));
        micros(now) >= open_until
            && self
                .open_until
                .compare_exchange(open_until, next, Ordering::Relaxed, Ordering::Relaxed)
                .is_ok()
    }

    pub(super) fn failed(&self, now: Duration) {
        let pause = self.pause();
        self.failures.fetch_add(1, Ordering::Relaxed);
        self.open_until
            .store(micros(now.saturating_add(pause)), Ordering::Relaxed);
    }

    pub(super) fn succeeded(&self) {
        if self.open_until.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
            self.open_until.store(0, Ordering::Relaxed);
        }
    }

    fn pause(&self) -> Duration {
        let failures = self.failures.load(Ordering::Relaxed).min(8);
        (PAUSE_MIN * (1 << failures)).min(PAUSE_MAX)
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_tries_after_each_pause_and_a_success_lets_all_in() {
        let circuit = Circuit::default();
        let at = Duration::from_millis;
        assert!(circuit.admits(at(0)) && circuit.admits(at(0)));
        circuit.failed(at(10));
        assert!(!circuit.admits(at(59)));
        assert!(circuit.admits(at(60)), "one tries");
        assert!(!circuit.admits(at(60)), "and only one");
        circuit.failed(at(70));
        assert!(
            !circuit.admits(at(169)) && circuit.admits(at(170)),
            "pauses double"
        );
        for n in 0..20 {
            circuit.failed(at(n));
        }
        assert!(circuit.admits(at(1_019)), "up to a second");
        circuit.succeeded();
        assert!(circuit.admits(at(1_019)) && circuit.admits(at(1_019)));
    }
}
