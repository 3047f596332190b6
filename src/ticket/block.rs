//! [`Block`] and the [`BlockNode`] behind it: the values of one bulk submission, one waiter.
//!
//! ```text
//!   BlockNode  signal | remaining | entries [ v0 ][ v1 ][ v2 ] ...   side by side, in order
//!                           |          ^     ^     ^
//!                           |      one completer each, on any thread
//!                           +-- counted down; who reaches 0 finishes the signal
//! ```
#![expect(
    unsafe_code,
    reason = "a block is shared by pointer until both sides are through"
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
use crate::sync::{AtomicU32, Ordering, UnsafeCell};

#[repr(C, align(128))]
pub(super) struct BlockNode<V> {
    signal: Signal,
    core: *const Core<V>,
    link: Link,
    class: usize,
    /// How many entries are not yet completed or abandoned.
    remaining: AtomicU32,
    /// How many entries are issued: written before the block is, read when it is emptied.
    len: AtomicU32,
    entries: Box<[UnsafeCell<Option<V>>]>,
}

impl<V> Node for BlockNode<V> {
    fn link(&self) -> &Link {
        &self.link
    }
}

impl<V> BlockNode<V> {
    pub(super) fn new(core: *const Core<V>, index: u32, class: usize, room: usize) -> Self {
        Self {
            signal: Signal::new(),
            core,
            link: Link::new(index),
            class,
            remaining: AtomicU32::new(0),
            len: AtomicU32::new(0),
            entries: (0..room).map(|_| UnsafeCell::new(None)).collect(),
        }
    }

    /// Readies a block of `len` entries, which nobody else holds yet; returns its generation.
    pub(super) fn begin(&self, len: u32) -> u32 {
        assert!(
            len as usize <= self.entries.len(),
            "a block has room for its class"
        );
        self.len.store(len, Ordering::Relaxed);
        self.remaining.store(len, Ordering::Relaxed);
        let generation = self.signal.generation();
        if len == 0 {
            let finished = self.signal.finish(generation);
            assert!(
                matches!(finished, Finished::Quiet),
                "nobody waits for a block not yet issued"
            );
        }
        generation
    }

    /// Writes the value of one entry.
    ///
    /// # Safety
    ///
    /// The caller holds the entry's completer, and has yet to count it off.
    #[inline]
    pub(super) unsafe fn put(block: NonNull<Self>, entry: u32, value: V) {
        // SAFETY: `remaining` still counts this entry, so the block lives (I1, I4).
        let this = unsafe { block.as_ref() };
        this.entries[entry as usize].with_mut(|slot| {
            // SAFETY: until it is counted off, the entry is its completer's (I2).
            unsafe { *slot = Some(value) };
        });
    }

    /// Counts `count` entries off, completed or abandoned. Returns whom to wake.
    ///
    /// # Safety
    ///
    /// The caller held the completers of as many entries, and is through with them.
    #[inline]
    pub(super) unsafe fn count_off(
        block: NonNull<Self>,
        generation: u32,
        count: u32,
    ) -> Option<Waiter> {
        // SAFETY: `remaining` still counts these entries, so the block lives (I1, I4).
        let this = unsafe { block.as_ref() };
        let before = this.remaining.fetch_sub(count, Ordering::AcqRel); // P5
        debug_assert!(before >= count, "an entry is counted off once");
        if before > count {
            return None;
        }
        match this.signal.finish(generation) {
            Finished::Quiet => None,
            Finished::Wake(waiter) => Some(waiter),
            Finished::Orphan => {
                // SAFETY: the waiting side is gone, so both sides are through (I1).
                unsafe { Self::empty_and_recycle(block, 0) };
                None
            }
        }
    }

    /// Drops the values from `first` on and returns the block to the pool.
    ///
    /// # Safety
    ///
    /// Both sides are through with the block, and it is not touched afterwards (I1).
    unsafe fn empty_and_recycle(block: NonNull<Self>, first: u32) {
        /// Recycles also while a value's `Drop` panics; what that leaves is dropped when the entry
        /// is next written.
        struct Recycle<V>(NonNull<BlockNode<V>>);
        impl<V> Drop for Recycle<V> {
            fn drop(&mut self) {
                // SAFETY: not yet recycled, so it lives (I4).
                let this = unsafe { self.0.as_ref() };
                this.signal.renew();
                let core = this.core;
                // SAFETY: the core lives while a node is in use (I4).
                let blocks: *const Slab<BlockNode<V>> = unsafe { &*core }.blocks(this.class);
                // SAFETY: the block is this thread's alone, and not touched afterwards.
                if !unsafe { Slab::push(blocks, self.0) } {
                    // SAFETY: not listed any more, and not touched afterwards.
                    unsafe { Core::returned_late(core) };
                }
            }
        }
        let recycle = Recycle(block);
        // SAFETY: not yet recycled, so it lives (I4).
        let this = unsafe { recycle.0.as_ref() };
        for entry in first..this.len.load(Ordering::Relaxed) {
            // SAFETY: both sides are through: the entries are this thread's.
            drop(unsafe { this.take(entry) });
        }
    }

    /// # Safety
    ///
    /// The block is done, and the caller its waiting side (I2), or both sides are through.
    unsafe fn take(&self, entry: u32) -> Option<V> {
        self.entries[entry as usize].with_mut(|slot| {
            // SAFETY: the caller's promise: the entry is this thread's.
            unsafe { slot.replace(None) }
        })
    }
}

/// What a caller holds until all values of a bulk submission are there.
///
/// Dropping it cancels nothing and leaks nothing.
#[must_use = "the values come through the block; dropping it cancels nothing"]
pub struct Block<V: Send> {
    /// `None` once the values were handed over, or the block given up.
    node: Option<NonNull<BlockNode<V>>>,
    len: u32,
}

// SAFETY: as for `Ticket`: values move to the thread that waits.
unsafe impl<V: Send> Send for Block<V> {}
// SAFETY: `&Block` gives nothing but `is_done`, an atomic load, and a constant.
unsafe impl<V: Send> Sync for Block<V> {}

impl<V: Send> Block<V> {
    pub(super) fn new(node: NonNull<BlockNode<V>>, len: u32) -> Self {
        Self {
            node: Some(node),
            len,
        }
    }

    /// How many values there will be.
    pub fn len(&self) -> usize {
        self.len as usize
    }

    /// Whether there will be none.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Blocks until all values are there.
    pub fn wait(mut self) -> Decisions<V> {
        let done = self.signal().wait(None);
        debug_assert!(done, "a wait without time-out ends with the values");
        self.take()
    }

    /// Blocks until all values are there, at most for `timeout`.
    ///
    /// # Errors
    ///
    /// The block, if the time passed; it is as good as before.
    pub fn wait_timeout(mut self, timeout: Duration) -> Result<Decisions<V>, Self> {
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
        let node = self
            .node
            .as_ref()
            .expect("a block is not used after it gave its values");
        // SAFETY: the waiting side isn't through, so the block lives (I1, I4).
        &unsafe { node.as_ref() }.signal
    }

    /// For a block that is done.
    fn take(&mut self) -> Decisions<V> {
        debug_assert!(
            self.signal().seems_done(),
            "the values belong to the completing side"
        );
        let node = self.node.take().expect("a block gives its values once");
        Decisions {
            node,
            next: 0,
            len: self.len,
        }
    }
}

/// # Panics
///
/// If it is polled again after it was ready.
impl<V: Send> Future for Block<V> {
    type Output = Decisions<V>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Decisions<V>> {
        if self.signal().poll(context) {
            Poll::Ready(self.take())
        } else {
            Poll::Pending
        }
    }
}

impl<V: Send> Drop for Block<V> {
    fn drop(&mut self) {
        if self.node.is_some() && self.signal().detach() {
            drop(self.take());
        }
    }
}

impl<V: Send> fmt::Debug for Block<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Block")
            .field("len", &self.len)
            .finish_non_exhaustive()
    }
}

/// The values of a block, in the order of its completers: an iterator that moves them out, or
/// [`get`](Self::get) to look. `None` stands for a completer that was dropped. The memory goes back
/// to the pool when this is dropped.
pub struct Decisions<V: Send> {
    node: NonNull<BlockNode<V>>,
    /// Entries before it were moved out.
    next: u32,
    len: u32,
}

// SAFETY: it owns values, which `V: Send` allows to move; the block's other side is through.
unsafe impl<V: Send> Send for Decisions<V> {}
// SAFETY: `&Decisions` gives `&V`, which `V: Sync` allows to share.
unsafe impl<V: Send + Sync> Sync for Decisions<V> {}

impl<V: Send> Decisions<V> {
    /// The value at `index` of the block, unless it is missing or was moved out.
    pub fn get(&self, index: usize) -> Option<&V> {
        if index >= self.len as usize {
            return None;
        }
        // SAFETY: not yet recycled, so it lives (I4).
        let node = unsafe { self.node.as_ref() };
        node.entries[index].with(|slot| {
            // SAFETY: the entries are this thread's (I2), and `next` needs `&mut self`.
            unsafe { &*slot }.as_ref()
        })
    }
}

impl<V: Send> Iterator for Decisions<V> {
    type Item = Option<V>;

    fn next(&mut self) -> Option<Option<V>> {
        if self.next == self.len {
            return None;
        }
        let entry = self.next;
        self.next += 1;
        // SAFETY: not yet recycled, so it lives (I4).
        let node = unsafe { self.node.as_ref() };
        // SAFETY: the block is done and we are its waiting side.
        Some(unsafe { node.take(entry) })
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.len - self.next) as usize;
        (left, Some(left))
    }
}

impl<V: Send> ExactSizeIterator for Decisions<V> {}

impl<V: Send> Drop for Decisions<V> {
    fn drop(&mut self) {
        // SAFETY: the completing side is through, and so are we.
        unsafe { BlockNode::empty_and_recycle(self.node, self.next) };
    }
}

impl<V: Send> fmt::Debug for Decisions<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Decisions")
            .field("len", &self.len)
            .field("next", &self.next)
            .finish_non_exhaustive()
    }
}
