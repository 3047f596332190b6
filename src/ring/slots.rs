//! [`Slots`]: the memory of a ring, values and stamps, addressed by position.
//!
//! Leaves out who may touch a position when: that is [`Shared`](super::shared::Shared)'s business,
//! and the contract of the unsafe functions here. Values and stamps lie apart: a value of 64 or 128
//! bytes then fills its cache lines exactly, and the consumer finds 64 stamps in one line.
#![expect(
    unsafe_code,
    reason = "a slot is uninitialised memory with one owner at a time"
)]

use std::mem::MaybeUninit;

use crate::sync::{AtomicU8, Ordering, UnsafeCell};

const _: () = assert!(usize::BITS == 64, "positions are 63 bits and never wrap");

/// A value rounded up to whole cache lines.
#[repr(C, align(64))]
struct Slot<T>(UnsafeCell<MaybeUninit<T>>);

pub(super) struct Slots<T> {
    values: Box<[Slot<T>]>,
    stamps: Box<[AtomicU8]>,
    mask: usize,
    lap_shift: u32,
}

// SAFETY: a slot is touched by one thread at a time (I2), handed on by P1 and P2; with that, sharing
// the memory only moves values between threads, which `T: Send` allows.
unsafe impl<T: Send> Sync for Slots<T> {}

impl<T> Slots<T> {
    /// `capacity` empty slots, a power of two.
    pub(super) fn new(capacity: usize) -> Self {
        assert!(capacity.is_power_of_two(), "positions are masked");
        let empty = |_| Slot(UnsafeCell::new(MaybeUninit::uninit()));
        Self {
            values: (0..capacity).map(empty).collect(),
            stamps: (0..capacity).map(|_| AtomicU8::new(0)).collect(),
            mask: capacity - 1,
            lap_shift: capacity.trailing_zeros(),
        }
    }

    #[inline]
    pub(super) fn capacity(&self) -> usize {
        self.mask + 1
    }

    /// Moves `value` into the slot of `position`.
    ///
    /// # Safety
    ///
    /// The caller has claimed `position` and not yet stamped it.
    #[inline]
    pub(super) unsafe fn write(&self, position: usize, value: T) {
        self.values[position & self.mask].0.with_mut(|slot| {
            // SAFETY: the claim makes this thread the slot's owner (I2), and what it held was moved
            // out before the claim was possible (P2, P3).
            unsafe { slot.write(MaybeUninit::new(value)) };
        });
    }

    /// Publishes the value of `position`. It only marks memory: an unfounded call makes a later
    /// `take` unsound, which is why that one is unsafe.
    #[inline]
    pub(super) fn stamp(&self, position: usize) {
        self.stamps[position & self.mask].store(self.stamp_of(position), Ordering::Release); // P1
    }

    /// How many positions from `head` on are published, at most `len_max`.
    #[inline]
    pub(super) fn run_len(&self, head: usize, len_max: usize) -> usize {
        (0..len_max.min(self.capacity()))
            .take_while(|&offset| self.is_stamped(head + offset))
            .count()
    }

    /// Whether the value of `position` is published. Only of use to the consumer, for positions
    /// not over `head + capacity` (I3).
    #[inline]
    pub(super) fn is_stamped(&self, position: usize) -> bool {
        let stamp = self.stamps[position & self.mask].load(Ordering::Acquire); // P1
        stamp == self.stamp_of(position)
    }

    /// Moves the value of `position` out.
    ///
    /// # Safety
    ///
    /// The caller is the consumer, has seen the stamp of `position`, takes it only once, and moves
    /// `head` past it only afterwards.
    #[inline]
    pub(super) unsafe fn take(&self, position: usize) -> T {
        self.values[position & self.mask].0.with(|slot| {
            // SAFETY: the stamp says that the value was written (I3, P1) and made the consumer the
            // slot's owner (I2).
            let value = unsafe { slot.read() };
            // SAFETY: initialised, as above, and moved out once.
            unsafe { value.assume_init() }
        })
    }

    /// Lap plus one, so that a fresh slot counts as unpublished; modulo 256 (I3).
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "modulo 256 is meant")]
    fn stamp_of(&self, position: usize) -> u8 {
        (position >> self.lap_shift).wrapping_add(1) as u8
    }
}
