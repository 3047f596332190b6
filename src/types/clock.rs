//! Where time comes from. The engine asks a [`Clock`]; pure code is told.

use super::Timestamp;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// Two readings: the wall, to start from, and a monotonic one, to advance by.
///
/// A wall clock that steps while the engine runs changes nothing: after the start only `monotonic` is asked.
pub trait Clock: Send + Sync {
    /// What the wall clock says.
    fn wall(&self) -> Timestamp;
    /// Time since some fixed point, never going back.
    fn monotonic(&self) -> Duration;
    /// True where waiting in real time makes this clock advance. A thread that sleeps until a deadline of a
    /// clock that is moved by hand would never wake; it polls instead.
    fn advances_by_itself(&self) -> bool {
        true
    }
}

/// The operating system's clocks.
#[derive(Debug)]
pub struct SystemClock {
    start: Instant,
}

impl SystemClock {
    /// Monotonic time counts from here.
    #[expect(clippy::disallowed_methods, reason = "the home of the real clock")]
    pub fn new() -> Self {
        Self {
            start: Instant::now(),
        }
    }
}

impl Default for SystemClock {
    fn default() -> Self {
        Self::new()
    }
}

impl Clock for SystemClock {
    #[expect(clippy::disallowed_methods, reason = "the home of the real clock")]
    fn wall(&self) -> Timestamp {
        let since = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .unwrap_or_default();
        Timestamp::MIN.plus(since)
    }

    fn monotonic(&self) -> Duration {
        self.start.elapsed()
    }
}

/// A clock that stands still until it is moved: for tests of code that waits for holds to lapse.
///
/// ```
/// # use stockade::types::{Clock, ManualClock, Timestamp};
/// # use std::time::Duration;
/// let clock = ManualClock::at(Timestamp::from_micros(1_000_000));
/// clock.advance(Duration::from_secs(120));
/// assert_eq!(clock.wall(), Timestamp::from_micros(121_000_000));
/// ```
#[derive(Debug, Default)]
pub struct ManualClock {
    wall_micros: AtomicU64,
    monotonic_micros: AtomicU64,
}

impl ManualClock {
    /// A clock whose wall reading is `wall`.
    pub fn at(wall: Timestamp) -> Self {
        Self {
            wall_micros: AtomicU64::new(wall.as_micros()),
            monotonic_micros: AtomicU64::new(0),
        }
    }

    /// Moves both readings.
    pub fn advance(&self, by: Duration) {
        let micros = u64::try_from(by.as_micros()).unwrap_or(u64::MAX);
        self.wall_micros.fetch_add(micros, Ordering::SeqCst);
        self.monotonic_micros.fetch_add(micros, Ordering::SeqCst);
    }

    /// Steps the wall alone, as an administrator or a time server may.
    pub fn set_wall(&self, wall: Timestamp) {
        self.wall_micros.store(wall.as_micros(), Ordering::SeqCst);
    }
}

impl Clock for ManualClock {
    fn wall(&self) -> Timestamp {
        Timestamp::from_micros(self.wall_micros.load(Ordering::SeqCst))
    }

    fn monotonic(&self) -> Duration {
        Duration::from_micros(self.monotonic_micros.load(Ordering::SeqCst))
    }

    fn advances_by_itself(&self) -> bool {
        false
    }
}
