//! [`Producer`]: the end that pushes, one value or a contiguous block.
//!
//! Between claim and publish there is only a copy of the value: no closure, `Clone`, `Drop` or
//! allocation of the caller's. Pairs are those of the module's header.
#![expect(unsafe_code, reason = "a claimed slot is written before it is stamped")]

use std::fmt;

use super::shared::{Refusal, Shared};
use crate::sync::Arc;

/// Pushes into the ring. Clones share it; one may also be used by several threads at once.
pub struct Producer<T: Send> {
    shared: Arc<Shared<T>>,
}

/// Why a value was not pushed; it is handed back.
#[derive(Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PushError<T> {
    /// Every slot is taken: let the consumer catch up, or shed the load.
    #[error("the ring is full")]
    Full(T),
    /// The consumer is gone or closed the ring: nothing will be taken any more.
    #[error("the ring is closed")]
    Closed(T),
}

impl<T> PushError<T> {
    /// The value that was not pushed.
    pub fn into_inner(self) -> T {
        match self {
            Self::Full(value) | Self::Closed(value) => value,
        }
    }
}

impl<T> fmt::Debug for PushError<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Full(_) => "Full(..)",
            Self::Closed(_) => "Closed(..)",
        })
    }
}

/// Why a block was not pushed; the `Vec` still holds it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BulkError {
    /// There is no room for the whole block now: let the consumer catch up, or shed the load.
    #[error("the ring has no room for the block")]
    Full,
    /// The consumer is gone or closed the ring: nothing will be taken any more.
    #[error("the ring is closed")]
    Closed,
    /// The block is longer than the ring: split it.
    #[error("a block of {len} is longer than the ring, which has {capacity} slots")]
    TooLong {
        /// The length of the block.
        len: usize,
        /// The capacity of the ring.
        capacity: usize,
    },
}

impl<T: Send> Producer<T> {
    pub(super) fn new(shared: Arc<Shared<T>>) -> Self {
        Self { shared }
    }

    /// Pushes `value`, without waiting for anybody.
    ///
    /// # Errors
    ///
    /// [`PushError::Full`] or [`PushError::Closed`], with the value.
    #[inline]
    pub fn try_push(&self, value: T) -> Result<(), PushError<T>> {
        let shared = &*self.shared;
        let position = match shared.claim(1) {
            Ok(position) => position,
            Err(Refusal::Full) => return Err(PushError::Full(value)),
            Err(Refusal::Closed) => return Err(PushError::Closed(value)),
        };
        // SAFETY: just claimed, stamped below (I2).
        unsafe { shared.slots.write(position, value) };
        shared.slots.stamp(position);
        shared.bell.ring();
        Ok(())
    }

    /// Pushes all of `values` at positions in a row, or none. On success the `Vec` is left empty,
    /// with its capacity; otherwise it is untouched.
    ///
    /// # Errors
    ///
    /// [`BulkError::Full`], [`BulkError::Closed`], or [`BulkError::TooLong`] for a block that could
    /// never fit.
    pub fn try_push_bulk(&self, values: &mut Vec<T>) -> Result<(), BulkError> {
        let shared = &*self.shared;
        let (len, capacity) = (values.len(), self.capacity());
        if len == 0 {
            return if self.is_closed() {
                Err(BulkError::Closed)
            } else {
                Ok(())
            };
        }
        if len > capacity {
            return Err(BulkError::TooLong { len, capacity });
        }
        let first = match shared.claim(len) {
            Ok(first) => first,
            Err(Refusal::Full) => return Err(BulkError::Full),
            Err(Refusal::Closed) => return Err(BulkError::Closed),
        };
        // SAFETY: just claimed, stamped below (I2).
        unsafe { shared.slots.write_run(first, values) };
        // Backwards: a consumer that sees the first stamp sees them all, and is not drawn into
        // taking the block piece by piece.
        for position in (first..first + len).rev() {
            shared.slots.stamp(position);
        }
        shared.bell.ring();
        Ok(())
    }

    /// How many values are claimed or waiting: approximate, as both ends move meanwhile.
    pub fn len(&self) -> usize {
        self.shared.len()
    }

    /// Whether nothing is claimed or waiting; as approximate as [`len`](Self::len).
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How many values the ring can hold.
    pub fn capacity(&self) -> usize {
        self.shared.slots.capacity()
    }

    /// Whether the consumer has closed the ring, or is gone.
    pub fn is_closed(&self) -> bool {
        self.shared.is_closed()
    }
}

impl<T: Send> Clone for Producer<T> {
    fn clone(&self) -> Self {
        self.shared.producer_added();
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<T: Send> Drop for Producer<T> {
    fn drop(&mut self) {
        self.shared.producer_gone();
    }
}

impl<T: Send> fmt::Debug for Producer<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Producer")
            .field("len", &self.len())
            .field("capacity", &self.capacity())
            .field("is_closed", &self.is_closed())
            .finish()
    }
}
