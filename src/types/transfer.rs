//! Units that move between the shards of one SKU: a withdraw at one, a deposit at the other, under one number.
//!
//! ```text
//! sender    withdraw n: last sent = n, units      withdraw n + 1: n has arrived
//!               `-- in flight --.
//! receiver                   deposit n: last received = n        deposit n again: the same answer
//! ```
//!
//! Both shards keep an [`Account`] of the other for ever. In flight is what the sender counts as sent and the receiver
//! not yet as received: nothing, or the sender's last transfer.

use super::key::{fingerprint, halves};
use super::{IdempotencyKey, SkuId, TOTAL_MAX, UserId};

/// Units of a SKU that move from one shard to another.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Transfer {
    /// What, by the index that the shard knows to which the command goes: shards may count differently.
    pub sku: SkuId,
    /// The shard that the units leave.
    pub from: u16,
    /// The shard that they come to.
    pub to: u16,
    /// Of this SKU and from the one to the other: dense, from 1.
    pub number: u64,
    /// How many: `1..=TOTAL_MAX`.
    pub units: u64,
}

/// A transfer can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// From a shard to itself.
    #[error("units of shard {0} stay there: name two shards")]
    SameShard(u16),
    /// Numbers begin at 1.
    #[error("a transfer has no number 0: the first is 1")]
    Number,
    /// No units, or more than a SKU can have.
    #[error("a transfer moves {0} units: give 1 to 2^48")]
    Units(u64),
}

impl Transfer {
    /// # Errors
    /// What can't be.
    pub fn check(&self) -> Result<(), TransferError> {
        if self.from == self.to {
            return Err(TransferError::SameShard(self.from));
        }
        if self.number == 0 {
            return Err(TransferError::Number);
        }
        if self.units == 0 || self.units > TOTAL_MAX {
            return Err(TransferError::Units(self.units));
        }
        Ok(())
    }

    pub(super) fn fingerprints(&self) -> (u32, u32, u32) {
        let shards = u64::from(self.from) << 16 | u64::from(self.to);
        (
            fingerprint([self.sku.0.into()]),
            fingerprint([self.units]),
            fingerprint([shards, self.number]),
        )
    }
}

/// Takes available units out of a shard, on their way to another: at most the transfer's, and fewer if fewer are
/// available. A key is required, and the number recognises the transfer for ever: the last one again gives what it
/// moved, whatever was asked for.
///
/// Withdraw `n + 1` only when the other shard has taken `n` ([`Query::Pool`](super::Query::Pool) at it says so): the number says
/// that `n` has arrived, and the shard forgets what it moved.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Withdraw {
    pub actor: UserId,
    pub key: IdempotencyKey,
    pub(super) transfer: Transfer,
}

impl Withdraw {
    /// To be sent to the shard that the units leave.
    ///
    /// # Errors
    /// A transfer that can't be.
    pub fn new(
        actor: UserId,
        key: IdempotencyKey,
        transfer: Transfer,
    ) -> Result<Self, TransferError> {
        transfer.check()?;
        Ok(Self {
            actor,
            key,
            transfer,
        })
    }

    /// What moves.
    pub fn transfer(&self) -> Transfer {
        self.transfer
    }
}

/// Adds units that a [`Withdraw`] took out of another shard: exactly what its answer said. A key is required, and the
/// number recognises the transfer for ever: the last one again changes nothing, one beyond the next is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Deposit {
    pub actor: UserId,
    pub key: IdempotencyKey,
    pub(super) transfer: Transfer,
}

impl Deposit {
    /// To be sent to the shard that the units come to.
    ///
    /// # Errors
    /// A transfer that can't be.
    pub fn new(
        actor: UserId,
        key: IdempotencyKey,
        transfer: Transfer,
    ) -> Result<Self, TransferError> {
        transfer.check()?;
        Ok(Self {
            actor,
            key,
            transfer,
        })
    }

    /// What moves.
    pub fn transfer(&self) -> Transfer {
        self.transfer
    }
}

/// What has moved one way between two shards.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Hash)]
pub struct Moved {
    /// The number of the last transfer, 0 for none.
    pub last: u64,
    /// Its units.
    pub last_units: u64,
    /// The units of all of them.
    pub units: u64,
}

impl Moved {
    /// After one more transfer; `None` if the sum can't be counted.
    pub(crate) fn and(&self, transfer: &Transfer) -> Option<Self> {
        Some(Self {
            last: transfer.number,
            last_units: transfer.units,
            units: self.units.checked_add(transfer.units)?,
        })
    }

    /// The number of the next transfer.
    pub fn next(&self) -> u64 {
        self.last.saturating_add(1)
    }

    /// Every transfer moves at least one unit, and the last is one of them.
    pub(crate) fn is_possible(&self) -> bool {
        let before = self.units.checked_sub(self.last_units);
        if self.last == 0 {
            return *self == Self::default();
        }
        self.last_units > 0 && before.is_some_and(|units| units >= self.last - 1)
    }
}

/// What a shard keeps of another one and a SKU, for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Account {
    /// The SKU.
    pub sku: SkuId,
    /// The other shard.
    pub peer: u16,
    /// What left this shard for it.
    pub sent: Moved,
    /// What came from it.
    pub received: Moved,
}

impl Account {
    /// Before the first transfer.
    pub fn new(sku: SkuId, peer: u16) -> Self {
        Self {
            sku,
            peer,
            sent: Moved::default(),
            received: Moved::default(),
        }
    }
}

/// A SKU in one shard, as [`Query::Pool`](super::Query::Pool) shows it:
/// `available + reserved + sold == total == opening + deltas + received - sent`, the last two summed over the accounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PoolView {
    /// The shard.
    pub shard: u16,
    /// The SKU's index there.
    pub sku: SkuId,
    /// The units that it was defined with.
    pub opening: u64,
    /// The sum of all adjustments.
    pub deltas: i64,
    /// All units here.
    pub total: u64,
    /// Units a reservation may take.
    pub available: u64,
    /// Units held for users.
    pub reserved: u64,
    /// Units confirmed and not returned.
    pub sold: u64,
    /// What moved, in the order of the peers.
    pub accounts: Vec<Account>,
}

impl PoolView {
    /// What moved between it and another shard.
    pub fn account(&self, peer: u16) -> Account {
        let known = self.accounts.iter().find(|account| account.peer == peer);
        known
            .copied()
            .unwrap_or_else(|| Account::new(self.sku, peer))
    }
}

/// The index of a user's pool among so many. Stable for ever: his limits and keys are there.
///
/// ```
/// # use stockade::{types::{UserId, pool_of}};
/// let ann = UserId::from_text("ann@example.com");
/// assert_eq!(pool_of(ann, 4), pool_of(ann, 4));
/// assert_eq!(pool_of(ann, 1), 0);
/// ```
///
/// # Panics
/// If there are no pools.
pub fn pool_of(user: UserId, pools: usize) -> usize {
    assert!(pools > 0, "a SKU has at least one pool");
    // SplitMix64's finalizer (Steele, Lea, Flood 2014) over both halves; the upper bits choose, without a bias that
    // could be seen.
    let [low, high] = halves(user.0);
    let mut z = low ^ high.rotate_left(32).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^= z >> 31;
    let scaled = (u128::from(z) * pools as u128) >> 64;
    usize::try_from(scaled).unwrap_or(0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn users_are_spread_evenly_and_stay_where_they_are() {
        let mut counts = [0_u32; 5];
        for number in 0..50_000_u64 {
            let user = UserId::from(number);
            counts[pool_of(user, 5)] += 1;
        }
        // 10,000 expected; 5 standard deviations are 450.
        assert!(
            counts.iter().all(|n| n.abs_diff(10_000) < 450),
            "{counts:?}"
        );
        let of_text = (0..10_000).map(|n| pool_of(UserId::from_text(&format!("user {n}")), 4));
        let first = of_text.filter(|&pool| pool == 0).count();
        assert!(first.abs_diff(2_500) < 220, "{first}");
        // For ever: these users' limits and keys are there.
        let known: Vec<usize> = (0..16_u64).map(|n| pool_of(UserId::from(n), 4)).collect();
        assert_eq!(known, KNOWN);
    }

    const KNOWN: [usize; 16] = [0, 1, 3, 0, 2, 2, 3, 0, 3, 2, 0, 0, 0, 3, 0, 0];
}
