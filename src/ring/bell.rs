//! [`Bell`]: how a sleeping consumer is woken, once, by whoever has news.
//!
//! Leaves out what the news is: a producer's claim is in `tail` (pair P4 of the module's header),
//! a notice is a bit here.
//!
//! ```text
//!   signal   PARKED  the consumer sleeps, or is about to; who clears it unparks
//!            NOTIFIED  a notice that the consumer has not seen
//! ```
//!
//! - I5: a consumer that sleeps while something is claimed or notified will be unparked. Claims:
//!   P4. Notices: both sides change `signal` itself, so one sees the other.
//! - P6: `signal` is changed with `AcqRel`: who clears PARKED sees the sleeper that was put down.
//!
//! A waker that clears PARKED and is then preempted may unpark a consumer that has long gone on:
//! parking loops until PARKED is cleared, so that costs a turn and nothing else.

use std::fmt;

use crate::sync::{
    Arc, AtomicU32, Deadline, Mutex, Ordering, Thread, ThreadId, current_thread, seq_cst_in_model,
};

const PARKED: u32 = 1;
const NOTIFIED: u32 = 2;

pub(super) struct Bell {
    signal: AtomicU32,
    /// The thread that sleeps while PARKED is set. Locked when the consumer has changed threads,
    /// and by the one waker per sleep.
    sleeper: Mutex<Option<Thread>>,
}

impl Bell {
    pub(super) fn new() -> Self {
        Self {
            signal: AtomicU32::new(0),
            sleeper: Mutex::new(None),
        }
    }

    /// Wakes the consumer if it sleeps. For producers, some time after a claim.
    #[inline]
    pub(super) fn ring(&self) {
        // Not right after the claim: there it would also be the Acquire of P2 and P3, and models
        // could not miss that.
        seq_cst_in_model();
        let signal = self.signal.load(Ordering::SeqCst); // P4
        if signal & PARKED != 0 {
            self.wake();
        }
    }

    /// Leaves a notice, and wakes the consumer if it sleeps.
    pub(super) fn notify(&self) {
        if self.signal.fetch_or(NOTIFIED, Ordering::AcqRel) & PARKED != 0 {
            // P6
            self.wake();
        }
    }

    #[cold]
    fn wake(&self) {
        // P6: of several wakers, one.
        if self.signal.fetch_and(!PARKED, Ordering::AcqRel) & PARKED != 0
            && let Some(sleeper) = &*self.sleeper.lock()
        {
            sleeper.unpark();
        }
    }

    /// Takes the notice, if there is one.
    #[inline]
    pub(super) fn take_notice(&self) -> bool {
        self.signal.load(Ordering::Relaxed) & NOTIFIED != 0
            && self.signal.fetch_and(!NOTIFIED, Ordering::AcqRel) & NOTIFIED != 0 // P6
    }

    /// Puts this thread, the consumer's, down as the one to unpark.
    pub(super) fn set_sleeper(&self) -> ThreadId {
        let thread = current_thread();
        let id = thread.id();
        *self.sleeper.lock() = Some(thread);
        id
    }

    /// Sleeps until woken, or the deadline; not at all if there is a notice or `may_sleep`, asked
    /// after the sleep was announced, says no. Returns whether the deadline still lies ahead.
    pub(super) fn sleep(&self, deadline: &Deadline, may_sleep: impl FnOnce() -> bool) -> bool {
        let before = self.signal.fetch_or(PARKED, Ordering::SeqCst); // P4
        seq_cst_in_model();
        debug_assert!(before & PARKED == 0, "there is one consumer");
        let mut in_time = true;
        if before & NOTIFIED == 0 && may_sleep() {
            while in_time && self.signal.load(Ordering::Acquire) & PARKED != 0 {
                in_time = deadline.park();
            }
        }
        self.signal.fetch_and(!PARKED, Ordering::AcqRel); // P6
        in_time
    }
}

/// Wakes the consumer without pushing anything. Cheap to clone, and works after the ring is gone.
#[derive(Clone)]
pub struct Notifier(Arc<Bell>);

impl Notifier {
    pub(super) fn new(bell: Arc<Bell>) -> Self {
        Self(bell)
    }

    /// Makes the consumer's present or next [`wait`](super::Consumer::wait) return. Notices are
    /// not counted: several before that wait are one.
    pub fn notify(&self) {
        self.0.notify();
    }
}

impl fmt::Debug for Notifier {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Notifier").finish_non_exhaustive()
    }
}
