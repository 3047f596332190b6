//! The shim over std: what every build but the models uses.

use std::time::{Duration, Instant};

pub(crate) use std::hint::spin_loop;
pub(crate) use std::sync::Arc;
pub(crate) use std::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use std::thread::{Thread, ThreadId, current as current_thread, yield_now};

pub(crate) use parking_lot::Mutex;

/// Makes `SeqCst` accesses before and after it totally ordered under loom; nothing here, where
/// they are so by themselves.
#[inline]
pub(crate) fn seq_cst_in_model() {}

/// `std::cell::UnsafeCell` with loom's interface: a pointer is lent to a closure, so that the
/// model sees where each access begins and ends.
#[repr(transparent)]
pub(crate) struct UnsafeCell<T>(std::cell::UnsafeCell<T>);

impl<T> UnsafeCell<T> {
    pub(crate) const fn new(value: T) -> Self {
        Self(std::cell::UnsafeCell::new(value))
    }

    /// Lends the pointer for reading.
    #[inline]
    pub(crate) fn with<R>(&self, read: impl FnOnce(*const T) -> R) -> R {
        read(self.0.get())
    }

    /// Lends the pointer for writing.
    #[inline]
    pub(crate) fn with_mut<R>(&self, write: impl FnOnce(*mut T) -> R) -> R {
        write(self.0.get())
    }
}

/// The moment at which a wait gives up; without one it never does.
pub(crate) struct Deadline(Option<Instant>);

#[expect(
    clippy::disallowed_methods,
    reason = "time-outs of waits are in real time"
)]
impl Deadline {
    /// `timeout` from now. One too long for the clock to hold never comes.
    pub(crate) fn after(timeout: Option<Duration>) -> Self {
        Self(timeout.and_then(|timeout| Instant::now().checked_add(timeout)))
    }

    /// Whether it has passed.
    pub(crate) fn is_over(&self) -> bool {
        self.0.is_some_and(|end| Instant::now() >= end)
    }

    /// Parks this thread until it is unparked, the deadline passes, or for no reason. Returns
    /// whether the deadline still lies ahead; when it doesn't, nothing was waited for.
    pub(crate) fn park(&self) -> bool {
        let Some(end) = self.0 else {
            std::thread::park();
            return true;
        };
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        std::thread::park_timeout(left);
        true
    }
}

/// Gives the core to a thread that has been preempted for longer than a few yields.
pub(crate) fn nap() {
    const NAP: Duration = Duration::from_micros(50);
    std::thread::park_timeout(NAP);
}
