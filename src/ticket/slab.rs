//! [`Slab`]: nodes that are made in chunks, kept, and handed out again through a free list.
//!
//! Leaves out what a node is, and its constructor. The list is a stack, so that the node used last,
//! which is still in a cache, is the next one.
//!
//! ```text
//!   free  tag (40 bits) | index (24) --> node --next--> node --next--> NIL
//!   chunks [ * ][ * ][ 0 ]...            index / chunk_len, index % chunk_len
//! ```
//!
//! The tag changes with every push and pop, so a stale head is never mistaken for a present one: it
//! comes round after 2^40 operations, which take a day at 10 million a second, within one attempt.
//! Pair P4 is in the module's header.
#![expect(
    unsafe_code,
    reason = "nodes are shared by pointer and freed with the slab"
)]

use std::ptr::{self, NonNull};

use crate::sync::{AtomicPtr, AtomicU32, AtomicU64, CachePadded, Mutex, Ordering};

const INDEX_BITS: u32 = 24;
const INDEX_MASK: u64 = (1 << INDEX_BITS) - 1;
/// The end of the list.
const NIL: u32 = (1 << INDEX_BITS) - 1;
/// Instead of an index in `free`: nothing is pushed or popped any more.
const CLOSED: u32 = NIL - 1;

/// The most nodes a slab can have; half of what an index could say, to keep clear of the markers.
pub(super) const NODES_MAX: usize = 1 << (INDEX_BITS - 1);

/// A node's place in the slab and in its free list.
pub(super) struct Link {
    index: u32,
    next: AtomicU32,
}

impl Link {
    pub(super) fn new(index: u32) -> Self {
        Self {
            index,
            next: AtomicU32::new(NIL),
        }
    }
}

pub(super) trait Node {
    fn link(&self) -> &Link;
}

pub(super) struct Slab<N> {
    free: CachePadded<AtomicU64>,
    chunks: Box<[AtomicPtr<N>]>,
    chunk_len: u32,
    nodes_max: u32,
    /// How many nodes were made.
    made: Mutex<u32>,
}

impl<N: Node> Slab<N> {
    /// A slab of at most `nodes_max` nodes, made `chunk_len` at a time.
    pub(super) fn new(nodes_max: usize, chunk_len: u32) -> Self {
        assert!(
            nodes_max <= NODES_MAX,
            "a slab of {nodes_max} nodes is over the limit"
        );
        let nodes_max = u32::try_from(nodes_max).unwrap_or(u32::MAX);
        let chunks = nodes_max.div_ceil(chunk_len);
        Self {
            free: CachePadded::new(AtomicU64::new(u64::from(NIL))),
            chunks: (0..chunks)
                .map(|_| AtomicPtr::new(ptr::null_mut()))
                .collect(),
            chunk_len,
            nodes_max,
            made: Mutex::new(0),
        }
    }

    /// A node for the caller alone; none if `nodes_max` are in use. `make` is given the index for
    /// the node's [`Link`], and is called only while the slab grows.
    #[inline]
    pub(super) fn pop(&self, make: impl Fn(u32) -> N) -> Option<NonNull<N>> {
        self.pop_free().or_else(|| self.grow(make))
    }

    #[inline]
    fn pop_free(&self) -> Option<NonNull<N>> {
        let mut head = self.free.load(Ordering::Acquire); // P4
        loop {
            let index = index_of(head);
            debug_assert_ne!(index, CLOSED, "a closed slab is popped");
            if index == NIL {
                return None;
            }
            let node = self.node(index);
            // SAFETY: nodes live as long as the slab. Another thread may have popped this one
            // already; then `next` is stale, and the tag lets the exchange fail.
            let next = unsafe { node.as_ref() }.link().next.load(Ordering::Relaxed);
            match self.free.compare_exchange_weak(
                head,
                with_index(head, next),
                Ordering::AcqRel,  // P4
                Ordering::Acquire, // P4
            ) {
                Ok(_) => return Some(node),
                Err(moved) => head = moved,
            }
        }
    }

    /// Takes a node back. Returns whether the slab is still open: if not, the node is not listed.
    ///
    /// By pointer, because from the moment the node is listed both may be freed by another thread,
    /// which no argument that is a reference would survive.
    ///
    /// # Safety
    ///
    /// Both live, and `node` is one of `slab`'s, in use, and the caller's alone.
    #[inline]
    pub(super) unsafe fn push(slab: *const Self, node: NonNull<N>) -> bool {
        // SAFETY: it lives until the exchange below, the last access.
        let free: &AtomicU64 = unsafe { &(*slab).free };
        // SAFETY: it lives until the exchange below.
        let link = unsafe { node.as_ref() }.link();
        let mut head = free.load(Ordering::Relaxed);
        loop {
            if index_of(head) == CLOSED {
                return false;
            }
            link.next.store(index_of(head), Ordering::Relaxed);
            match free.compare_exchange_weak(
                head,
                with_index(head, link.index),
                Ordering::AcqRel, // P4
                Ordering::Relaxed,
            ) {
                Ok(_) => return true,
                Err(moved) => head = moved,
            }
        }
    }

    /// Closes the list; returns how many nodes are in use. No one may pop any more.
    pub(super) fn close(&self) -> usize {
        let made = self.made.lock();
        let head = self.free.swap(u64::from(CLOSED), Ordering::AcqRel); // P4
        let mut in_use = *made as usize;
        let mut index = index_of(head);
        while index != NIL {
            in_use -= 1;
            // SAFETY: nodes live as long as the slab; those of a closed list belong to nobody else.
            index = unsafe { self.node(index).as_ref() }
                .link()
                .next
                .load(Ordering::Relaxed);
        }
        in_use
    }

    #[cold]
    fn grow(&self, make: impl Fn(u32) -> N) -> Option<NonNull<N>> {
        let mut nodes = self.made.lock();
        if let Some(node) = self.pop_free() {
            return Some(node); // somebody else has grown it meanwhile, or given one back
        }
        let first = *nodes;
        let end = self.nodes_max.min(first + self.chunk_len);
        if first == end {
            return None;
        }
        let chunk: Box<[N]> = (first..end).map(make).collect();
        let chunk = Box::into_raw(chunk).cast::<N>();
        self.chunks[(first / self.chunk_len) as usize].store(chunk, Ordering::Release); // P4
        *nodes = end;
        for index in first + 1..end {
            // SAFETY: just made, and nobody else's yet.
            unsafe { Self::push(self, self.node(index)) };
        }
        Some(self.node(first))
    }

    #[inline]
    fn node(&self, index: u32) -> NonNull<N> {
        let chunk = self.chunks[(index / self.chunk_len) as usize].load(Ordering::Acquire); // P4
        debug_assert!(!chunk.is_null(), "node {index} was never made");
        // SAFETY: an index that is in the list lies in a chunk that was made, at this offset.
        let node = unsafe { chunk.add((index % self.chunk_len) as usize) };
        // SAFETY: a chunk that was made is not null.
        unsafe { NonNull::new_unchecked(node) }
    }
}

impl<N> Drop for Slab<N> {
    fn drop(&mut self) {
        let mut made = *self.made.lock();
        for chunk in &self.chunks {
            let len = made.min(self.chunk_len);
            if len == 0 {
                return;
            }
            made -= len;
            let nodes = ptr::slice_from_raw_parts_mut(chunk.load(Ordering::Relaxed), len as usize);
            // SAFETY: made by `grow` as a boxed slice of `len` nodes; no node is in use (I4).
            drop(unsafe { Box::from_raw(nodes) });
        }
    }
}

#[inline]
fn index_of(head: u64) -> u32 {
    (head & INDEX_MASK) as u32
}

/// The head after this one, at `index`.
#[inline]
fn with_index(head: u64, index: u32) -> u64 {
    ((head >> INDEX_BITS).wrapping_add(1) << INDEX_BITS) | u64::from(index)
}
