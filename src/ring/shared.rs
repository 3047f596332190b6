//! [`Shared`]: what both ends of a ring hold: positions, slots, the bell.
//!
//! Claims are made here; publishing is [`Slots::stamp`]. Invariants and pairs are in the module's
//! header. The fields are laid out by who writes them:
//!
//! ```text
//!   line 0   tail, head_seen          every claim
//!   line 1   head                     the consumer, once per run
//!   line 2   slots, signal, ...       hardly ever written, read by every push
//! ```
#![expect(
    unsafe_code,
    reason = "values left by a consumer that panicked are moved out at the end"
)]

use super::bell::Bell;
use super::slots::Slots;
use crate::sync::{Arc, AtomicUsize, CachePadded, Ordering};

/// Set in `tail` by close: claims fail from then on (I4). The other 63 bits are the position.
const CLOSED: usize = 1 << (usize::BITS - 1);

pub(super) struct Shared<T> {
    claims: CachePadded<Claims>,
    head: CachePadded<AtomicUsize>,
    pub(super) slots: Slots<T>,
    pub(super) bell: Arc<Bell>,
    producers: AtomicUsize,
}

struct Claims {
    tail: AtomicUsize,
    /// A `head` that some producer has seen: only ever too low, which costs a look at the real one.
    head_seen: AtomicUsize,
}

/// Why nothing was claimed.
pub(super) enum Refusal {
    Full,
    Closed,
}

/// What the consumer finds when nothing is published at `head`.
pub(super) enum Tail {
    /// Somebody has claimed and will publish.
    Claimed,
    /// Nothing is claimed, and producers are left.
    Idle,
    /// Nothing is claimed, nor will be.
    Closed,
    /// Nothing is claimed, and no producer is left.
    Abandoned,
}

impl<T> Shared<T> {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            claims: CachePadded::new(Claims {
                tail: AtomicUsize::new(0),
                head_seen: AtomicUsize::new(0),
            }),
            head: CachePadded::new(AtomicUsize::new(0)),
            slots: Slots::new(capacity),
            bell: Arc::new(Bell::new()),
            producers: AtomicUsize::new(1),
        }
    }

    /// Claims `len` positions in a row, `1..=capacity`, and returns the first.
    #[inline]
    pub(super) fn claim(&self, len: usize) -> Result<usize, Refusal> {
        debug_assert!(len > 0 && len <= self.slots.capacity(), "a claim of {len}");
        let mut tail = self.claims.tail.load(Ordering::Relaxed);
        loop {
            if tail & CLOSED != 0 {
                return Err(Refusal::Closed);
            }
            let head_min = (tail + len).saturating_sub(self.slots.capacity());
            if self.claims.head_seen.load(Ordering::Acquire) < head_min // P3
                && self.refresh_head() < head_min
            {
                return Err(Refusal::Full);
            }
            match self.claims.tail.compare_exchange_weak(
                tail,
                tail + len,
                Ordering::SeqCst, // P4
                Ordering::Relaxed,
            ) {
                Ok(_) => return Ok(tail),
                Err(moved) => tail = moved,
            }
        }
    }

    /// Reads the consumer's line, which every other claim avoids.
    #[cold]
    fn refresh_head(&self) -> usize {
        let head = self.head.load(Ordering::Acquire); // P2
        self.claims.head_seen.store(head, Ordering::Release); // P3
        head
    }

    /// Frees everything before `head`. Only the consumer calls it.
    #[inline]
    pub(super) fn free_to(&self, head: usize) {
        self.head.store(head, Ordering::Release); // P2
    }

    /// Whether nothing lies between `head` and `tail`, asked by a consumer about to sleep.
    pub(super) fn may_sleep(&self, head: usize) -> bool {
        self.claims.tail.load(Ordering::SeqCst) == head // P4
            && self.producers.load(Ordering::SeqCst) > 0 // P4
    }

    pub(super) fn tail(&self, head: usize) -> Tail {
        // Before `tail`: what the last producer pushed must show there.
        let producers = self.producers.load(Ordering::Acquire); // P5
        let tail = self.claims.tail.load(Ordering::Acquire);
        if tail & !CLOSED != head {
            Tail::Claimed
        } else if tail & CLOSED != 0 {
            Tail::Closed
        } else if producers == 0 {
            Tail::Abandoned
        } else {
            Tail::Idle
        }
    }

    pub(super) fn close(&self) {
        self.claims.tail.fetch_or(CLOSED, Ordering::AcqRel);
    }

    pub(super) fn is_closed(&self) -> bool {
        self.claims.tail.load(Ordering::Relaxed) & CLOSED != 0
    }

    /// Claimed and not yet freed; approximate, since both ends move meanwhile.
    pub(super) fn len(&self) -> usize {
        let head = self.head.load(Ordering::Relaxed);
        let tail = self.claims.tail.load(Ordering::Relaxed) & !CLOSED;
        tail.saturating_sub(head).min(self.slots.capacity())
    }

    pub(super) fn producer_added(&self) {
        self.producers.fetch_add(1, Ordering::Relaxed);
    }

    pub(super) fn producer_gone(&self) {
        let before = self.producers.fetch_sub(1, Ordering::SeqCst); // P4, P5
        assert!(before > 0, "more producers dropped than made");
        if before == 1 {
            self.bell.ring();
        }
    }
}

impl<T> Drop for Shared<T> {
    fn drop(&mut self) {
        // Usually empty: the consumer takes everything before it goes, unless a value's `Drop`
        // panicked there.
        let head = self.head.load(Ordering::Relaxed);
        let tail = self.claims.tail.load(Ordering::Relaxed) & !CLOSED;
        for position in head..tail {
            debug_assert_eq!(
                self.slots.run_len(position, 1),
                1,
                "a claim is always published"
            );
            // SAFETY: `&mut self` makes this thread the consumer; every claim was published before
            // its producer gave up its share of `self` (I2), and `head` bounds what was taken.
            drop(unsafe { self.slots.take_run(position, 1) }.next());
        }
    }
}
