//! Logical time: where it starts, and that it never goes back.
//!
//! It starts at the later of the log's last stamp and the wall clock, and from then on advances by the monotonic
//! clock alone. It is in the log, and deadlines compare with it.

use super::EngineError;
use crate::types::{Clock, Timestamp};
use std::sync::Arc;
use std::time::Duration;

/// A wall clock this much behind the log is worth a warning; less is within what clocks drift.
const BEHIND_WARN: Duration = Duration::from_secs(1);

#[derive(Clone)]
pub(super) struct LogicalClock {
    clock: Arc<dyn Clock>,
    start: Timestamp,
    start_monotonic: Duration,
}

/// What was found when logical time started.
pub(super) struct ClockStart {
    pub(super) clock: LogicalClock,
    pub(super) warning: Option<String>,
}

impl LogicalClock {
    /// Whether logical time may start.
    ///
    /// # Errors
    /// If the wall clock is more than `jump_max` ahead of a log with live holds: they would all lapse at once.
    pub(super) fn check(
        clock: &dyn Clock,
        last_stamp: Timestamp,
        has_live_holds: bool,
        jump_max: Duration,
    ) -> Result<(), EngineError> {
        let wall = clock.wall();
        if has_live_holds && wall.since(last_stamp) > jump_max {
            return Err(EngineError::ClockAhead {
                wall,
                last_stamp,
                jump_max,
            });
        }
        Ok(())
    }

    pub(super) fn start(clock: Arc<dyn Clock>, last_stamp: Timestamp) -> ClockStart {
        let wall = clock.wall();
        let behind = last_stamp.since(wall);
        let warning = (behind > BEHIND_WARN).then(|| {
            format!(
                "the wall clock ({wall}) is {} s behind the log: time goes on from the log",
                behind.as_secs()
            )
        });
        let start_monotonic = clock.monotonic();
        let clock = Self {
            clock,
            start: wall.max(last_stamp),
            start_monotonic,
        };
        ClockStart { clock, warning }
    }

    pub(super) fn now(&self) -> Timestamp {
        self.start
            .plus(self.clock.monotonic().saturating_sub(self.start_monotonic))
    }

    /// How long a thread may sleep for `wanted` of logical time to pass.
    pub(super) fn sleep_for(&self, wanted: Duration) -> Duration {
        if self.clock.advances_by_itself() {
            wanted
        } else {
            Duration::from_millis(1).min(wanted)
        }
    }

    pub(super) fn advances_by_itself(&self) -> bool {
        self.clock.advances_by_itself()
    }
}
