//! [`Completer`]: the completing side of a ticket, or of one entry of a block.
//!
//! [`CompletionBatch`] answers many at once: whoever waits is woken at the end, once, and entries
//! of one block that follow each other are counted off together.
#![expect(
    unsafe_code,
    reason = "nodes are shared by pointer until both sides are through"
)]

use std::fmt;
use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr::NonNull;

use super::block::BlockNode;
use super::cell::Cell;
use super::waiter::{Waiter, Wakes};

/// Instead of the index of an entry: the node is a cell.
const CELL: u32 = u32::MAX;

/// Completes one ticket, or one entry of a block. Dropped without that it abandons it: the value
/// is then `None`.
pub struct Completer<V: Send> {
    node: NonNull<()>,
    generation: u32,
    entry: u32,
    value: PhantomData<V>,
}

const _: () = assert!(
    size_of::<Completer<[u64; 8]>>() == 16,
    "it rides in the slot of a command"
);

// SAFETY: a completer moves a `V` towards the thread that waits, which `V: Send` allows; the rest of
// the node is synchronised (I1 to I3).
unsafe impl<V: Send> Send for Completer<V> {}
// SAFETY: `&Completer` gives nothing.
unsafe impl<V: Send> Sync for Completer<V> {}

impl<V: Send> Completer<V> {
    pub(super) fn for_cell(cell: NonNull<Cell<V>>, generation: u32) -> Self {
        Self {
            node: cell.cast(),
            generation,
            entry: CELL,
            value: PhantomData,
        }
    }

    fn for_entry(block: NonNull<BlockNode<V>>, generation: u32, entry: u32) -> Self {
        Self {
            node: block.cast(),
            generation,
            entry,
            value: PhantomData,
        }
    }

    /// Hands `value` over, and wakes whoever waits; for a block, once its last entry is complete.
    #[inline]
    pub fn complete(self, value: V) {
        if let Some(waiter) = self.settle(Some(value)) {
            waiter.wake();
        }
    }

    #[cfg(all(test, stockade_loom))]
    pub(super) fn generation(&self) -> u32 {
        self.generation
    }

    /// Completes or abandons, by itself. Returns whom to wake.
    #[inline]
    fn settle(self, value: Option<V>) -> Option<Waiter> {
        let this = ManuallyDrop::new(self);
        let generation = this.generation;
        if this.entry == CELL {
            // SAFETY: made by `for_cell`; forgotten, so we are through.
            return unsafe { Cell::complete(this.node.cast(), generation, value) };
        }
        let block = this.node.cast::<BlockNode<V>>();
        if let Some(value) = value {
            // SAFETY: made by `for_entry`, counted off below.
            unsafe { BlockNode::put(block, this.entry, value) };
        }
        // SAFETY: one completer, forgotten, so we are through.
        unsafe { BlockNode::count_off(block, generation, 1) }
    }
}

impl<V: Send> Drop for Completer<V> {
    fn drop(&mut self) {
        let this = Self {
            node: self.node,
            generation: self.generation,
            entry: self.entry,
            value: PhantomData,
        };
        if let Some(waiter) = this.settle(None) {
            waiter.wake();
        }
    }
}

impl<V: Send> fmt::Debug for Completer<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Completer").finish_non_exhaustive()
    }
}

/// The completers of a block, in order. Those not taken out are abandoned when it is dropped.
pub struct BlockCompleters<V: Send> {
    block: NonNull<BlockNode<V>>,
    generation: u32,
    next: u32,
    len: u32,
}

// SAFETY: it is a run of `Completer`s.
unsafe impl<V: Send> Send for BlockCompleters<V> {}
// SAFETY: `&BlockCompleters` gives nothing but a count.
unsafe impl<V: Send> Sync for BlockCompleters<V> {}

impl<V: Send> BlockCompleters<V> {
    pub(super) fn new(block: NonNull<BlockNode<V>>, generation: u32, len: u32) -> Self {
        Self {
            block,
            generation,
            next: 0,
            len,
        }
    }
}

impl<V: Send> Iterator for BlockCompleters<V> {
    type Item = Completer<V>;

    #[inline]
    fn next(&mut self) -> Option<Completer<V>> {
        if self.next == self.len {
            return None;
        }
        let entry = self.next;
        self.next += 1;
        Some(Completer::for_entry(self.block, self.generation, entry))
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        let left = (self.len - self.next) as usize;
        (left, Some(left))
    }
}

impl<V: Send> ExactSizeIterator for BlockCompleters<V> {}

impl<V: Send> Drop for BlockCompleters<V> {
    fn drop(&mut self) {
        let left = self.len - self.next;
        if left > 0 {
            // SAFETY: the completers of these entries were never made, and never will be.
            let waiter = unsafe { BlockNode::count_off(self.block, self.generation, left) };
            if let Some(waiter) = waiter {
                waiter.wake();
            }
        }
    }
}

impl<V: Send> fmt::Debug for BlockCompleters<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("BlockCompleters")
            .field("left", &self.len())
            .finish_non_exhaustive()
    }
}

/// Answers many completers with at most one wake for each thread or task that waits.
///
/// Values of single tickets can be seen at once by who looks; waking, and the end of a block, come
/// with [`flush`](Self::flush) or the drop. Its memory is kept from batch to batch.
pub struct CompletionBatch<V: Send> {
    run: Option<Run<V>>,
    wakes: Wakes,
}

/// Entries of one block that were written and not yet counted off.
struct Run<V> {
    block: NonNull<BlockNode<V>>,
    generation: u32,
    count: u32,
}

// SAFETY: a run stands for completers, which are `Send`; waiters are.
unsafe impl<V: Send> Send for CompletionBatch<V> {}

impl<V: Send> CompletionBatch<V> {
    /// An empty batch.
    pub fn new() -> Self {
        Self {
            run: None,
            wakes: Wakes::default(),
        }
    }

    /// Hands `value` over; who waits is woken later.
    #[inline]
    pub fn complete(&mut self, completer: Completer<V>, value: V) {
        if completer.entry == CELL {
            if let Some(waiter) = completer.settle(Some(value)) {
                self.wakes.add(waiter);
            }
            return;
        }
        let completer = ManuallyDrop::new(completer);
        let block = completer.node.cast::<BlockNode<V>>();
        // SAFETY: made by `for_entry`; the run counts it off.
        unsafe { BlockNode::put(block, completer.entry, value) };
        match &mut self.run {
            Some(run) if run.block == block => run.count += 1,
            _ => {
                self.end_run();
                self.run = Some(Run {
                    block,
                    generation: completer.generation,
                    count: 1,
                });
            }
        }
    }

    /// Ends the blocks that are complete, and wakes everybody.
    pub fn flush(&mut self) {
        self.end_run();
        self.wakes.wake_all();
    }

    fn end_run(&mut self) {
        if let Some(Run {
            block,
            generation,
            count,
        }) = self.run.take()
        {
            // SAFETY: as many completers were forgotten in `complete`.
            if let Some(waiter) = unsafe { BlockNode::count_off(block, generation, count) } {
                self.wakes.add(waiter);
            }
        }
    }
}

impl<V: Send> Default for CompletionBatch<V> {
    fn default() -> Self {
        Self::new()
    }
}

impl<V: Send> Drop for CompletionBatch<V> {
    fn drop(&mut self) {
        self.flush();
    }
}

impl<V: Send> fmt::Debug for CompletionBatch<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("CompletionBatch").finish_non_exhaustive()
    }
}
