//! [`Ticket`] and the [`Cell`] behind it: one value, one waiter.
#![expect(
    unsafe_code,
    reason = "a cell is shared by pointer until both sides are through"
)]

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::ptr::NonNull;
use std::task::{Context, Poll};
use std::time::Duration;

use super::pool::Core;
use super::signal::{Finished, Signal};
use super::slab::{Link, Node, Slab};
use super::waiter::Waiter;
use crate::sync::UnsafeCell;

/// 128 bytes if the value has at most 64 (72 with its `Option`): no two cells share a line.
#[repr(C, align(128))]
pub(super) struct Cell<V> {
    signal: Signal,
    core: *const Core<V>,
    link: Link,
    value: UnsafeCell<Option<V>>,
}

#[cfg(not(stockade_loom))]
const _: () = assert!(
    size_of::<Cell<[u64; 8]>>() == 128,
    "a decision fills one cell"
);

impl<V> Node for Cell<V> {
    fn link(&self) -> &Link {
        &self.link
    }
}

impl<V> Cell<V> {
    pub(super) fn new(core: *const Core<V>, index: u32) -> Self {
        Self {
            signal: Signal::new(),
            core,
            link: Link::new(index),
            value: UnsafeCell::new(None),
        }
    }

    pub(super) fn generation(&self) -> u32 {
        self.signal.generation()
    }

    /// Completes the cell, or abandons it. Returns whom to wake.
    ///
    /// # Safety
    ///
    /// The caller is the completing side of an issued cell, and is through with it.
    #[inline]
    pub(super) unsafe fn complete(
        cell: NonNull<Self>,
        generation: u32,
        value: Option<V>,
    ) -> Option<Waiter> {
        // SAFETY: issued and not yet completed, so it lives (I1, I4).
        let this = unsafe { cell.as_ref() };
        if let Some(value) = value {
            this.value.with_mut(|slot| {
                // SAFETY: before DONE the value is the completing side's (I2); it is None.
                unsafe { slot.write(Some(value)) };
            });
        }
        match this.signal.finish(generation) {
            Finished::Quiet => None,
            Finished::Wake(waiter) => Some(waiter),
            Finished::Orphan => {
                // SAFETY: the waiting side is gone, so both sides are through (I1).
                drop(unsafe { Self::take_and_recycle(cell) });
                None
            }
        }
    }

    /// Takes the value out and returns the cell to the pool.
    ///
    /// # Safety
    ///
    /// Both sides are through with the cell, and it is not touched afterwards (I1).
    unsafe fn take_and_recycle(cell: NonNull<Self>) -> Option<V> {
        // SAFETY: not yet recycled, so it lives (I4).
        let this = unsafe { cell.as_ref() };
        let value = this.value.with_mut(|slot| {
            // SAFETY: both sides are through: the value is this thread's (I2).
            unsafe { slot.replace(None) }
        });
        this.signal.renew();
        let core = this.core;
        // SAFETY: the core lives while a node is in use (I4).
        let cells: *const Slab<Self> = unsafe { &raw const (*core).cells };
        // SAFETY: the cell is this thread's alone, and not touched afterwards.
        if !unsafe { Slab::push(cells, cell) } {
            // SAFETY: not listed any more, and not touched afterwards.
            unsafe { Core::returned_late(core) };
        }
        value
    }
}

/// What a caller holds until its value is there: wait for it, or `.await` it.
///
/// The value is `None` if the completer was dropped without completing. Dropping the ticket cancels
/// nothing and leaks nothing.
#[must_use = "the value comes through the ticket; dropping it cancels nothing"]
pub struct Ticket<V: Send> {
    /// `None` once the value was taken, or the cell given up.
    cell: Option<NonNull<Cell<V>>>,
}

// SAFETY: a ticket moves a `V` to the thread that waits, which `V: Send` allows; the rest of the
// cell is synchronised by `Signal` (I1 to I3).
unsafe impl<V: Send> Send for Ticket<V> {}
// SAFETY: `&Ticket` gives nothing but `is_done`, an atomic load.
unsafe impl<V: Send> Sync for Ticket<V> {}

impl<V: Send> Ticket<V> {
    pub(super) fn new(cell: NonNull<Cell<V>>) -> Self {
        Self { cell: Some(cell) }
    }

    /// Blocks until the value is there.
    pub fn wait(mut self) -> Option<V> {
        let done = self.signal().wait(None);
        debug_assert!(done, "a wait without time-out ends with the value");
        self.take()
    }

    /// Blocks until the value is there, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// The ticket, if the time passed; it is as good as before.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Option<V>, Self> {
        if self.signal().wait(Some(timeout)) {
            Ok(self.take())
        } else {
            Err(self)
        }
    }

    /// Whether a wait would return at once.
    pub fn is_done(&self) -> bool {
        self.signal().is_done()
    }

    fn signal(&self) -> &Signal {
        let cell = self
            .cell
            .as_ref()
            .expect("a ticket is not used after it gave its value");
        // SAFETY: the waiting side isn't through, so the cell lives (I1, I4).
        &unsafe { cell.as_ref() }.signal
    }

    /// For a ticket that is done.
    fn take(&mut self) -> Option<V> {
        debug_assert!(
            self.signal().seems_done(),
            "the value belongs to the completing side"
        );
        let cell = self.cell.take()?;
        // SAFETY: the completing side is through, and so are we.
        unsafe { Cell::take_and_recycle(cell) }
    }
}

/// # Panics
///
/// If it is polled again after it was ready.
impl<V: Send> Future for Ticket<V> {
    type Output = Option<V>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<V>> {
        if self.signal().poll(context) {
            Poll::Ready(self.take())
        } else {
            Poll::Pending
        }
    }
}

impl<V: Send> Drop for Ticket<V> {
    fn drop(&mut self) {
        if self.cell.is_some() && self.signal().detach() {
            drop(self.take());
        }
    }
}

impl<V: Send> fmt::Debug for Ticket<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let is_done = self.cell.is_none() || self.is_done();
        f.debug_struct("Ticket")
            .field("is_done", &is_done)
            .finish_non_exhaustive()
    }
}
