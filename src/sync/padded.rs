//! [`CachePadded`]: a value with cache lines of its own.

use std::ops::{Deref, DerefMut};

/// Aligns a value to 128 bytes, so that writes to its neighbours never take its line away.
///
/// 128 and not 64: the adjacent-line prefetcher of x86 fetches lines in pairs, and some ARM cores
/// have lines of 128 bytes.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct CachePadded<T>(T);

impl<T> CachePadded<T> {
    /// Wraps `value`.
    pub const fn new(value: T) -> Self {
        Self(value)
    }
}

impl<T> Deref for CachePadded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for CachePadded<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}
