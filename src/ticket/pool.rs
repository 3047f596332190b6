//! [`Pool`]: issues tickets and blocks, and keeps their memory.
//!
//! Leaves out the nodes themselves (`cell.rs`, `block.rs`) and their free lists (`slab.rs`).
//!
//! ```text
//!   Pool --Arc--> Handles --Arc--> Core <--one count-- all issued nodes together
//! ```
//!
//! A node that is issued keeps the core alive (I4) without counting anything on the way: only when
//! the last handle goes, the free lists are closed, the nodes in use are counted into `left`, and
//! whoever returns the last of them gives up the nodes' count of the core.
#![expect(
    unsafe_code,
    reason = "the core outlives its handles while nodes are in use"
)]

use std::fmt;

use super::block::{Block, BlockNode};
use super::cell::{Cell, Ticket};
use super::completer::{BlockCompleters, Completer};
use super::slab::{NODES_MAX, Slab};
use crate::sync::{Arc, AtomicUsize, Ordering};

/// The most tickets a pool can have outstanding.
pub const CELLS_MAX: usize = NODES_MAX;

/// Cells made at once: 32 KiB of the smallest cells. Two in the models, so that they see growth.
const CHUNK_LEN: u32 = if cfg!(stockade_loom) { 2 } else { 256 };

/// Room of the smallest block, in entries. Blocks come in powers of two from here on.
const BLOCK_LEN_MIN: usize = if cfg!(stockade_loom) { 2 } else { 64 };

/// Issues pairs of [`Completer`] and [`Ticket`], and blocks of them. Clones share the memory, which
/// is kept until pool, tickets and completers are all gone, in whatever order they go.
pub struct Pool<V: Send> {
    handles: Arc<Handles<V>>,
}

/// What the clones of a pool share; dropped with the last of them.
struct Handles<V: Send> {
    core: Arc<Core<V>>,
}

pub(super) struct Core<V> {
    pub(super) cells: Slab<Cell<V>>,
    /// Blocks with room for `BLOCK_LEN_MIN << class` entries, by class.
    blocks: Box<[Slab<BlockNode<V>>]>,
    cells_max: usize,
    /// Once closed: how many nodes are still in use; while closing it may be below zero.
    left: AtomicUsize,
}

impl<V: Send> Pool<V> {
    /// A pool of at most `cells_max` outstanding tickets. Memory is taken as it is needed.
    ///
    /// # Panics
    ///
    /// If `cells_max` is 0 or over [`CELLS_MAX`].
    pub fn new(cells_max: usize) -> Self {
        assert!(cells_max > 0, "a pool without cells");
        assert!(
            cells_max <= CELLS_MAX,
            "a pool of {cells_max} cells is over the limit"
        );
        let classes = class_of(cells_max) + 1;
        let core = Arc::new(Core {
            cells: Slab::new(cells_max, CHUNK_LEN),
            blocks: (0..classes)
                .map(|class| Slab::new((cells_max / block_len(class)).max(1), 1))
                .collect(),
            cells_max,
            left: AtomicUsize::new(0),
        });
        // The count that all issued nodes hold together; given up in `release`.
        let _ = Arc::into_raw(Arc::clone(&core));
        Self {
            handles: Arc::new(Handles { core }),
        }
    }

    /// A completer and its ticket; `None` if `cells_max` tickets are outstanding: a ticket is until
    /// both it and its completer are gone.
    #[inline]
    pub fn issue(&self) -> Option<(Completer<V>, Ticket<V>)> {
        let core = &self.handles.core;
        let cell = core
            .cells
            .pop(|index| Cell::new(Arc::as_ptr(core), index))?;
        // SAFETY: just popped, so it lives (I4) and is nobody else's.
        let generation = unsafe { cell.as_ref() }.generation();
        Some((Completer::for_cell(cell, generation), Ticket::new(cell)))
    }

    /// A block for `len` values, with their completers in order; `None` if too many blocks of its
    /// size are outstanding. Sizes are powers of two from 64 on; the blocks of one size hold at
    /// most `cells_max` values together (but there is always one), and none holds more.
    pub fn issue_block(&self, len: usize) -> Option<(BlockCompleters<V>, Block<V>)> {
        let core = &self.handles.core;
        if len > core.cells_max {
            return None;
        }
        let class = class_of(len);
        let block = core
            .blocks(class)
            .pop(|index| BlockNode::new(Arc::as_ptr(core), index, class, block_len(class)))?;
        let len = u32::try_from(len).ok()?;
        // SAFETY: just popped, so it lives (I4) and is nobody else's.
        let generation = unsafe { block.as_ref() }.begin(len);
        Some((
            BlockCompleters::new(block, generation, len),
            Block::new(block, len),
        ))
    }
}

impl<V: Send> Clone for Pool<V> {
    fn clone(&self) -> Self {
        Self {
            handles: Arc::clone(&self.handles),
        }
    }
}

impl<V: Send> fmt::Debug for Pool<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Pool").finish_non_exhaustive()
    }
}

impl<V: Send> Drop for Handles<V> {
    fn drop(&mut self) {
        let blocks: usize = self.core.blocks.iter().map(Slab::close).sum();
        let in_use = self.core.cells.close() + blocks;
        let before = self.core.left.fetch_add(in_use, Ordering::AcqRel); // P6
        if before.wrapping_add(in_use) == 0 {
            // SAFETY: the count of `Pool::new`; no node is in use, so nobody else gives it up.
            unsafe { release(Arc::as_ptr(&self.core)) };
        }
    }
}

impl<V> Core<V> {
    pub(super) fn blocks(&self, class: usize) -> &Slab<BlockNode<V>> {
        &self.blocks[class]
    }

    /// Notes that a node came back after the pool was closed.
    ///
    /// # Safety
    ///
    /// Called once for each node that its slab no longer takes; neither the node nor `core` is
    /// touched afterwards.
    #[cold]
    pub(super) unsafe fn returned_late(core: *const Self) {
        // SAFETY: the node was in use until now, which kept the core alive (I4).
        let before = unsafe { &*core }.left.fetch_sub(1, Ordering::AcqRel); // P6
        if before == 1 {
            // SAFETY: the last node is back after all were counted: the count is ours to give up.
            unsafe { release(core) };
        }
    }
}

/// Gives up the count of the core that all nodes hold together.
///
/// # Safety
///
/// Called once, when the pool is closed and no node is in use.
unsafe fn release<V>(core: *const Core<V>) {
    // SAFETY: `Pool::new` made this count with `Arc::into_raw`.
    unsafe { Arc::decrement_strong_count(core) };
}

/// The class of the blocks that have room for `len` entries.
fn class_of(len: usize) -> usize {
    let room = len.max(BLOCK_LEN_MIN).next_power_of_two();
    (room.trailing_zeros() - BLOCK_LEN_MIN.trailing_zeros()) as usize
}

fn block_len(class: usize) -> usize {
    BLOCK_LEN_MIN << class
}
