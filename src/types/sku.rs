//! What is known of a SKU: the rules it is sold under, its stock at one moment, and where its sale stands.

use super::{SkuId, SkuName, Timestamp};

/// The default hold: 120 seconds.
pub const HOLD_DEFAULT_MS: u32 = 120_000;
/// The longest hold: 24 hours, the retention of ended reservations.
pub const HOLD_MAX_MS: u32 = 86_400_000;
/// The largest total of a SKU, 2^48: exact in JSON and Lua numbers, and sums of them don't overflow.
pub const TOTAL_MAX: u64 = 1 << 48;

/// Under which conditions a SKU is sold; fixed when it is defined.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rules {
    /// How long a reservation holds its units, in milliseconds: `1..=HOLD_MAX_MS`.
    pub hold_ms: u32,
    /// Units per user within one sale, reserved and sold together. `None`: no limit.
    pub per_user: Option<u32>,
    /// Units in one request. `None`: no limit.
    pub per_request: Option<u32>,
    /// No reservation before this time.
    pub opens_at: Timestamp,
    /// No reservation from this time on.
    pub closes_at: Timestamp,
}

/// Rules contradict themselves.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum RulesError {
    /// The hold is zero or longer than [`HOLD_MAX_MS`].
    #[error("a hold of {hold_ms} ms: give 1 to {HOLD_MAX_MS}")]
    Hold {
        /// As given.
        hold_ms: u32,
    },
    /// A limit of zero units.
    #[error("a limit of 0 units sells nothing: give 1 or more, or none for no limit")]
    ZeroLimit,
    /// The window closes before it opens.
    #[error("the sale closes before it opens: give closes_at after opens_at")]
    Window,
}

impl Default for Rules {
    /// A hold of 120 s, one unit per user, always open.
    fn default() -> Self {
        Self {
            hold_ms: HOLD_DEFAULT_MS,
            per_user: Some(1),
            per_request: None,
            opens_at: Timestamp::MIN,
            closes_at: Timestamp::MAX,
        }
    }
}

impl Rules {
    /// # Errors
    /// Which rule can't be.
    pub fn check(&self) -> Result<(), RulesError> {
        if self.hold_ms == 0 || self.hold_ms > HOLD_MAX_MS {
            return Err(RulesError::Hold {
                hold_ms: self.hold_ms,
            });
        }
        if self.per_user == Some(0) || self.per_request == Some(0) {
            return Err(RulesError::ZeroLimit);
        }
        if self.closes_at <= self.opens_at {
            return Err(RulesError::Window);
        }
        Ok(())
    }

    /// Whether one request may ask for so many units.
    #[inline]
    pub(crate) fn takes(&self, quantity: u32) -> bool {
        self.per_request.is_none_or(|max| quantity <= max)
    }
}

/// A SKU's stock at one moment: one snapshot, `available + reserved + sold == total`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Availability {
    /// Whose.
    pub sku: SkuId,
    /// Units a reservation may take.
    pub available: u64,
    /// Units held for users.
    pub reserved: u64,
    /// Units confirmed and not returned.
    pub sold: u64,
    /// All of them.
    pub total: u64,
    /// The last event that this snapshot counts.
    pub sequence: u64,
    /// The stamp of the batch that it was published with.
    pub as_of: Timestamp,
    /// Where nothing is available but something is held: no held unit lapses before this time.
    pub not_before: Option<Timestamp>,
}

/// Where the sale of a SKU stands, as operators have set its [`Gate`](super::Gate)s.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum SaleStatus {
    /// Defined, and no sale has ever begun.
    NeverOpened,
    /// Reservations may begin, unless they are paused or the [`Rules`]' times keep them out.
    Open,
    /// No new reservations; opened again, the same sale goes on.
    Closed,
    /// Over; opened again, the next sale begins.
    Ended,
}

impl SaleStatus {
    /// The word for it in JSON and SQL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::NeverOpened => "NEVER_OPENED",
            Self::Open => "OPEN",
            Self::Closed => "CLOSED",
            Self::Ended => "ENDED",
        }
    }
}

/// A SKU, as a query shows it: `available + reserved + sold == total`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SkuView {
    /// Its index.
    pub sku: SkuId,
    /// What it is called.
    pub name: SkuName,
    /// Under which conditions it is sold.
    pub rules: Rules,
    /// The units that it was defined with.
    pub defined_total: u64,
    /// All units now, adjustments included.
    pub total: u64,
    /// Units a reservation may take.
    pub available: u64,
    /// Units held for users.
    pub reserved: u64,
    /// Units confirmed and not returned.
    pub sold: u64,
    /// The number of its current or last sale, from 1; 0 before the first.
    pub sale: u32,
    /// Where that sale stands.
    pub status: SaleStatus,
    /// An operator has paused new reservations.
    pub reservations_paused: bool,
    /// An operator has paused confirms.
    pub confirms_paused: bool,
}
