//! Who asked, under which key, with what payload: the part of a command that idempotency needs (law L5).

use super::words::words;
use super::{IdempotencyKey, UserId};
use std::fmt;

/// One short hash per field of a payload, in the order of the command's [`Field`]s; 0 where it has fewer.
///
/// Two different values of one field share a fingerprint with a probability of 2^-32; then the first answer is
/// given although the payload differs. Nobody but the key's own user can bring that about.
pub type Fingerprints = [u32; 3];

/// Who asked and how the command is recognised when it comes again.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Origin {
    /// The user, or the actor of an admin command.
    pub user: UserId,
    /// The command's key, if it has one.
    pub key: Option<IdempotencyKey>,
    /// What the key was first used with.
    pub fingerprints: Fingerprints,
}

words! {
    /// A field of a command's payload, as a key conflict names it.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    #[expect(missing_docs, reason = "each is the command's field of that name")]
    pub enum Field {
        Lines => "lines",
        Reservation => "reservation",
        PaymentRef => "payment_ref",
        Attempt => "attempt",
        Disposition => "disposition",
        Sku => "sku",
        Delta => "delta",
        Total => "total",
        Rules => "rules",
        Change => "change",
        Units => "units",
        /// Between which shards, and which number.
        Transfer => "transfer",
    }
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A fingerprint over words: a multiply-xorshift chain, stable for ever since it is in the log.
#[expect(
    clippy::cast_possible_truncation,
    reason = "the upper half is folded in first"
)]
pub(super) fn fingerprint(words: impl IntoIterator<Item = u64>) -> u32 {
    const MULTIPLIER: u64 = 0x9E37_79B9_7F4A_7C15; // 2^64 / golden ratio, odd
    let mut hash = MULTIPLIER;
    for word in words {
        hash = (hash ^ word).wrapping_mul(MULTIPLIER);
        hash ^= hash >> 29;
    }
    (hash ^ (hash >> 32)) as u32
}

/// Both halves of a 128-bit value.
#[expect(clippy::cast_possible_truncation, reason = "taken apart on purpose")]
pub(crate) const fn halves(value: u128) -> [u64; 2] {
    [value as u64, (value >> 64) as u64]
}

/// The inverse of [`halves`].
pub(crate) const fn joined([low, high]: [u64; 2]) -> u128 {
    low as u128 | (high as u128) << 64
}
