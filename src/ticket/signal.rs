//! [`Signal`]: the meeting point of one completing and one waiting side.
//!
//! Leaves out the value, which lies beside it, and the memory, which is the pool's. Invariants and
//! pairs are those of the module's header.
//!
//! ```text
//!   state   generation (32 bits) | flags
//!
//!   0 --register--> WAITING --complete--> WAKING --> WAKING|DONE
//!   |  <-unregister--'                      the waiter is taken out first: after DONE the
//!   |                                       node may be recycled at any moment
//!   +--complete--> DONE
//!   +--drop of the ticket--> DROPPED: the completing side recycles
//! ```
#![expect(unsafe_code, reason = "the waiter's slot has one owner at a time")]

use std::mem::MaybeUninit;
use std::task::{Context, Waker};
use std::time::Duration;

use super::waiter::Waiter;
use crate::sync::{
    AtomicU64, Deadline, Ordering, UnsafeCell, current_thread, spin_loop, yield_now,
};

const WAITING: u64 = 1;
const WAKING: u64 = 2;
const DONE: u64 = 4;
const DROPPED: u64 = 8;

const GENERATION_SHIFT: u32 = 32;

/// How often a waiting thread looks before it parks: about a microsecond. More would take the core
/// from the very thread that is to complete.
const SPINS: u32 = 20;

pub(super) struct Signal {
    state: AtomicU64,
    waiter: UnsafeCell<MaybeUninit<Waiter>>,
}

/// What the completing side has to do after it said that it is done.
pub(super) enum Finished {
    /// Nothing: nobody waits yet, who looks will see.
    Quiet,
    /// Wake this one.
    Wake(Waiter),
    /// Nobody will ever look: the node is the completing side's, to be emptied and recycled.
    Orphan,
}

enum Registered {
    Waiting,
    Done,
    /// The completing side has taken the waiter of an earlier registration and is about to say DONE.
    Waking,
}

impl Signal {
    pub(super) fn new() -> Self {
        Self {
            state: AtomicU64::new(0),
            waiter: UnsafeCell::new(MaybeUninit::uninit()),
        }
    }

    /// The generation of a node that this thread alone holds.
    pub(super) fn generation(&self) -> u32 {
        (self.state.load(Ordering::Relaxed) >> GENERATION_SHIFT) as u32
    }

    /// Readies a node that is recycled. The pool's free list publishes it (P4).
    pub(super) fn renew(&self) {
        let next = self.generation().wrapping_add(1);
        self.state
            .store(u64::from(next) << GENERATION_SHIFT, Ordering::Relaxed);
    }

    #[inline]
    pub(super) fn is_done(&self) -> bool {
        self.state.load(Ordering::Acquire) & DONE != 0 // P1
    }

    /// For assertions: it synchronises nothing, so no model passes by its grace.
    pub(super) fn seems_done(&self) -> bool {
        self.state.load(Ordering::Relaxed) & DONE != 0
    }

    /// Says that the value is written, or never will be. For the completing side, once.
    ///
    /// # Panics
    ///
    /// If the node is of another generation: a completer outlived its node, which breaks I1.
    #[inline]
    pub(super) fn finish(&self, generation: u32) -> Finished {
        let fresh = u64::from(generation) << GENERATION_SHIFT;
        let mut expected = fresh;
        loop {
            let next = if expected == fresh {
                fresh | DONE
            } else {
                fresh | WAKING
            };
            match self.state.compare_exchange(
                expected,
                next,
                Ordering::AcqRel,  // P1, P2
                Ordering::Acquire, // P3
            ) {
                Ok(_) if next & DONE != 0 => return Finished::Quiet,
                Ok(_) => return self.finish_waking(),
                Err(state) => {
                    assert_eq!(
                        state >> GENERATION_SHIFT,
                        fresh >> GENERATION_SHIFT,
                        "stale completer"
                    );
                    assert_eq!(state & (DONE | WAKING), 0, "a node is completed once");
                    if state & DROPPED != 0 {
                        return Finished::Orphan;
                    }
                    expected = state;
                }
            }
        }
    }

    fn finish_waking(&self) -> Finished {
        // SAFETY: this thread turned WAITING into WAKING, so what the slot holds is its own (I3, P2).
        let waiter = unsafe { self.take_waiter() };
        if self.state.fetch_or(DONE, Ordering::AcqRel) & DROPPED != 0 {
            // P1, P3
            return Finished::Orphan;
        }
        Finished::Wake(waiter)
    }

    /// Blocks until done, or for `timeout`; returns whether it is done. For the waiting side.
    pub(super) fn wait(&self, timeout: Option<Duration>) -> bool {
        for _ in 0..SPINS {
            if self.is_done() {
                return true;
            }
            spin_loop();
        }
        let deadline = Deadline::after(timeout);
        match self.register(|| Waiter::Thread(current_thread())) {
            Registered::Done => return true,
            Registered::Waking => {}
            Registered::Waiting => {
                while !self.is_done() {
                    if !deadline.park() && self.unregister() {
                        return false;
                    }
                }
                return true;
            }
        }
        while !self.is_done() {
            yield_now(); // between two instructions of the completing side
        }
        true
    }

    /// Whether it is done; if not, the task will be woken. For the waiting side.
    pub(super) fn poll(&self, context: &Context<'_>) -> bool {
        match self.register(|| Waiter::Task(context.waker().clone())) {
            Registered::Done => true,
            Registered::Waiting => false,
            Registered::Waking => {
                // An earlier waker is about to be called, which may be another task's.
                Waker::wake_by_ref(context.waker());
                false
            }
        }
    }

    /// Gives the node up. Returns whether the completing side is through: then the caller empties
    /// and recycles it, otherwise the completing side will.
    pub(super) fn detach(&self) -> bool {
        self.unregister();
        self.state.fetch_or(DROPPED, Ordering::AcqRel) & DONE != 0 // P1, P3
    }

    /// Puts a waiter down, in place of an earlier one.
    fn register(&self, waiter: impl FnOnce() -> Waiter) -> Registered {
        if self.is_done() {
            return Registered::Done;
        }
        let waiter = waiter();
        if !self.unregister() {
            return if self.is_done() {
                Registered::Done
            } else {
                Registered::Waking
            };
        }
        self.waiter.with_mut(|slot| {
            // SAFETY: not WAITING, so the slot is the waiting side's, and empty (I3).
            unsafe { slot.write(MaybeUninit::new(waiter)) };
        });
        let state = self.state.load(Ordering::Relaxed);
        let fresh = state & !DONE;
        let registered = self.state.compare_exchange(
            fresh,
            fresh | WAITING,
            Ordering::Release, // P2
            Ordering::Acquire, // P1
        );
        if registered.is_ok() {
            return Registered::Waiting;
        }
        // SAFETY: it was never WAITING, so the slot still is ours (I3), just filled.
        drop(unsafe { self.take_waiter() });
        Registered::Done
    }

    /// Takes a waiter back. Returns whether the state is clear: neither DONE nor WAKING.
    fn unregister(&self) -> bool {
        let state = self.state.load(Ordering::Acquire); // P1
        if state & WAITING == 0 {
            return state & (DONE | WAKING) == 0;
        }
        let cleared = self.state.compare_exchange(
            state,
            state & !WAITING,
            Ordering::Acquire,
            Ordering::Acquire, // P1
        );
        if cleared.is_err() {
            return false;
        }
        // SAFETY: this thread cleared WAITING, so what the slot holds is its own (I3).
        drop(unsafe { self.take_waiter() });
        true
    }

    /// # Safety
    ///
    /// The slot is filled, and this thread's by I3; it counts as empty afterwards.
    unsafe fn take_waiter(&self) -> Waiter {
        self.waiter.with(|slot| {
            // SAFETY: the caller's promise: nobody else touches the slot now.
            let waiter = unsafe { slot.read() };
            // SAFETY: the caller's promise: the slot is filled.
            unsafe { waiter.assume_init() }
        })
    }
}
