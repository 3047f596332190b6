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

impl<T> Slot<T> {
    /// # Safety
    ///
    /// This thread has claimed the slot's position and not yet stamped it.
    #[inline]
    unsafe fn write(&self, value: T) {
        self.0.with_mut(|slot| {
            // SAFETY: the claim makes this thread the slot's owner (I2), and what it held was moved
            // out before the claim was possible (P2, P3).
            unsafe { slot.write(MaybeUninit::new(value)) };
        });
    }

    /// # Safety
    ///
    /// This thread is the consumer, has seen the slot's stamp, and takes the value once.
    #[inline]
    unsafe fn take(&self) -> T {
        self.0.with(|slot| {
            // SAFETY: the stamp says that the value was written (I3, P1) and made the consumer the
            // slot's owner (I2).
            let value = unsafe { slot.read() };
            // SAFETY: initialised, as above, and moved out once.
            unsafe { value.assume_init() }
        })
    }
}

/// The slots and stamps of a ring.
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
        // SAFETY: the caller's promise.
        unsafe { self.values[position & self.mask].write(value) };
    }

    /// Moves `values` into the slots from `first` on, across the wrap if need be.
    ///
    /// # Safety
    ///
    /// The caller has claimed as many positions from `first` on, and stamped none yet.
    pub(super) unsafe fn write_run(&self, first: usize, values: &mut Vec<T>) {
        debug_assert!(
            values.len() <= self.capacity(),
            "a claim is not longer than the ring"
        );
        let (front, back) = self.values.split_at(first & self.mask);
        let mut values = values.drain(..);
        for (slot, value) in back.iter().zip(values.by_ref()) {
            // SAFETY: the caller's promise.
            unsafe { slot.write(value) };
        }
        for (slot, value) in front.iter().zip(values) {
            // SAFETY: the caller's promise.
            unsafe { slot.write(value) };
        }
    }

    /// Publishes the value of `position`. It only marks memory: an unfounded call makes a later
    /// `take_run` unsound, which is why that one is unsafe.
    #[inline]
    pub(super) fn stamp(&self, position: usize) {
        self.stamps[position & self.mask].store(self.stamp_of(position), Ordering::Release); // P1
    }

    /// Whether `position` is in the first slot, where a run that ended before it may go on.
    #[inline]
    pub(super) fn is_wrap(&self, position: usize) -> bool {
        position & self.mask == 0
    }

    /// How many positions from `head` on are published, at most `len_max` and not beyond the wrap.
    /// Only of use to the consumer (I3).
    #[inline]
    pub(super) fn run_len(&self, head: usize, len_max: usize) -> usize {
        let stamp = self.stamp_of(head);
        let stamps = &self.stamps[head & self.mask..];
        let stamps = &stamps[..len_max.min(stamps.len())];
        stamps
            .iter()
            .take_while(|slot| slot.load(Ordering::Acquire) == stamp)
            .count() // P1
    }

    /// Moves the values of the `len` positions from `head` on out.
    ///
    /// # Safety
    ///
    /// The caller is the consumer, `len` is what `run_len` gave for `head`, and every value is
    /// taken once, before `head` moves past it.
    #[inline]
    pub(super) unsafe fn take_run(&self, head: usize, len: usize) -> impl Iterator<Item = T> {
        self.values[head & self.mask..][..len].iter().map(|slot| {
            // SAFETY: the caller's promise.
            unsafe { slot.take() }
        })
    }

    /// Lap plus one, so that a fresh slot counts as unpublished; modulo 256 (I3).
    #[inline]
    #[expect(clippy::cast_possible_truncation, reason = "modulo 256 is meant")]
    fn stamp_of(&self, position: usize) -> u8 {
        (position >> self.lap_shift).wrapping_add(1) as u8
    }
}
