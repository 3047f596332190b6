//! The shim over loom: every access is a branching point of the model, and time stands still.

use std::time::Duration;

pub(crate) use loom::cell::UnsafeCell;
pub(crate) use loom::hint::spin_loop;
pub(crate) use loom::sync::Arc;
pub(crate) use loom::sync::atomic::{
    AtomicPtr, AtomicU8, AtomicU32, AtomicU64, AtomicUsize, Ordering, fence,
};
pub(crate) use loom::thread::{Thread, ThreadId, current as current_thread, yield_now};

/// Gives the model the total order that `SeqCst` accesses have outside it.
pub(crate) fn seq_cst_in_model() {
    fence(Ordering::SeqCst);
}

/// `loom::sync::Mutex` with parking_lot's interface.
pub(crate) struct Mutex<T>(loom::sync::Mutex<T>);

impl<T> Mutex<T> {
    pub(crate) fn new(value: T) -> Self {
        Self(loom::sync::Mutex::new(value))
    }

    pub(crate) fn lock(&self) -> loom::sync::MutexGuard<'_, T> {
        self.0
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner)
    }
}

/// A deadline that never passes: loom has no clock.
pub(crate) struct Deadline;

impl Deadline {
    pub(crate) fn after(_timeout: Option<Duration>) -> Self {
        Self
    }

    pub(crate) fn is_over(&self) -> bool {
        false
    }

    pub(crate) fn park(&self) -> bool {
        loom::thread::park();
        true
    }
}

/// Lets the other threads of the model go on.
pub(crate) fn nap() {
    yield_now();
}
