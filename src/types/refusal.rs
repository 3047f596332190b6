//! Why a command is refused: the codes in order of precedence, and what each says.

use super::words::words;
use super::{Field, HoldStatus, ReservationId, SkuId, Timestamp};
use std::fmt;

words! {
    /// Which bound of the engine is exhausted.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[non_exhaustive]
    pub enum Bound {
        /// Live and not yet retired reservations.
        Reservations => "reservations",
        /// Keys of accepted commands.
        AcceptedKeys => "accepted_keys",
        /// Counters of units per user and SKU.
        Counters => "counters",
        /// Outcomes of payments.
        Payments => "payments",
        /// SKUs.
        Skus => "skus",
        /// Different hold durations.
        HoldDurations => "hold_durations",
        /// Pairs of a SKU and another shard that units moved to or from, or the sum of what moved between them.
        Transfers => "transfers",
    }
}

macro_rules! refusals {
    ($($(#[$docs:meta])* $name:ident = $code:literal, $text:literal),* $(,)?) => {
        /// A refusal's stable code, in order of precedence.
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        #[non_exhaustive]
        #[repr(u8)]
        pub enum RefusalCode {
            $($(#[$docs])* $name = $code),*
        }

        impl RefusalCode {
            /// All of them.
            pub const ALL: &[Self] = &[$(Self::$name),*];

            /// The code as text, for metrics and JSON.
            pub const fn name(self) -> &'static str {
                match self {
                    $(Self::$name => $text),*
                }
            }

            /// The one that a text stands for.
            pub fn from_name(name: &str) -> Option<Self> {
                let mut all = Self::ALL.iter().copied();
                all.find(|code| code.name() == name)
            }

            pub(super) fn from_u8(code: u8) -> Option<Self> {
                match code {
                    $($code => Some(Self::$name),)*
                    _ => None,
                }
            }
        }
    };
}

refusals! {
    /// See [`Refusal::KeyConflict`].
    KeyConflict = 1, "key_conflict",
    /// See [`Refusal::TooOld`].
    TooOld = 2, "too_old",
    /// See [`Refusal::TooLate`].
    TooLate = 3, "too_late",
    /// See [`Refusal::Busy`].
    Busy = 4, "busy",
    /// See [`Refusal::UnknownSku`].
    UnknownSku = 5, "unknown_sku",
    /// See [`Refusal::NotOpen`].
    NotOpen = 6, "not_open",
    /// See [`Refusal::Paused`].
    Paused = 7, "paused",
    /// See [`Refusal::TooManyLines`].
    TooManyLines = 8, "too_many_lines",
    /// See [`Refusal::RequestLimit`].
    RequestLimit = 9, "request_limit",
    /// See [`Refusal::UserLimit`].
    UserLimit = 10, "user_limit",
    /// See [`Refusal::HoldLimit`].
    HoldLimit = 11, "hold_limit",
    /// See [`Refusal::SoldOut`].
    SoldOut = 12, "sold_out",
    /// See [`Refusal::UnknownReservation`].
    UnknownReservation = 13, "unknown_reservation",
    /// See [`Refusal::NotOwner`].
    NotOwner = 14, "not_owner",
    /// See [`Refusal::PaymentUsed`].
    PaymentUsed = 15, "payment_used",
    /// See [`Refusal::Ended`].
    Ended = 16, "ended",
    /// See [`Refusal::NotConfirmed`].
    NotConfirmed = 17, "not_confirmed",
    /// See [`Refusal::NotDue`].
    NotDue = 18, "not_due",
    /// See [`Refusal::InPayment`].
    InPayment = 19, "in_payment",
    /// See [`Refusal::StaleAttempt`].
    StaleAttempt = 20, "stale_attempt",
    /// See [`Refusal::ExceedsSold`].
    ExceedsSold = 21, "exceeds_sold",
    /// See [`Refusal::TotalOutOfRange`].
    TotalOutOfRange = 22, "total_out_of_range",
    /// See [`Refusal::SkuDiffers`].
    SkuDiffers = 23, "sku_differs",
    /// See [`Refusal::OtherShard`].
    OtherShard = 24, "other_shard",
    /// See [`Refusal::OutOfOrder`].
    OutOfOrder = 25, "out_of_order",
    /// See [`Refusal::NothingToMove`].
    NothingToMove = 26, "nothing_to_move",
}

/// Why not. Each says what would have to change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Refusal {
    /// The key was used before with another payload.
    KeyConflict {
        /// The first field that differs.
        field: Field,
    },
    /// The command is older than keys are kept, so nobody could tell whether it was decided already.
    TooOld,
    /// The caller's `decide_by` has passed.
    TooLate,
    /// A table is full. Nothing was decided; try again later.
    Busy {
        /// Which.
        bound: Bound,
    },
    /// No such SKU. Define it first.
    UnknownSku {
        /// The line's index in the cart.
        line: u16,
    },
    /// The SKU's sale is not open.
    NotOpen {
        /// Which SKU.
        sku: SkuId,
        /// When its window begins, if that is ahead.
        opens_at: Option<Timestamp>,
    },
    /// An operator paused it.
    Paused {
        /// Which SKU.
        sku: SkuId,
    },
    /// More lines than the engine is configured for.
    TooManyLines {
        /// The most it takes.
        max: u16,
    },
    /// More units than one request may take.
    RequestLimit {
        /// The line's index in the cart.
        line: u16,
        /// Its SKU.
        sku: SkuId,
        /// The most units.
        max: u32,
    },
    /// More units than one user may have of this sale.
    UserLimit {
        /// The line's index in the cart.
        line: u16,
        /// Its SKU.
        sku: SkuId,
        /// The most units.
        max: u32,
        /// How many the user holds or has bought.
        has: u32,
    },
    /// The user has too many live holds.
    HoldLimit {
        /// The most holds.
        max: u32,
    },
    /// Not enough units.
    SoldOut {
        /// The index of the first line, in the cart's order, that can't be served.
        line: u16,
        /// Its SKU.
        sku: SkuId,
        /// Units that are available (fewer than were asked for).
        available: u32,
        /// Held units that may yet come back (at most `u32::MAX` is said).
        lapsing: u32,
        /// No held unit lapses before this time: a lower bound, to the millisecond, unless a user or payment
        /// gives one back. `None` where nothing is held.
        not_before: Option<Timestamp>,
    },
    /// No such reservation, or one that ended so long ago that it has retired.
    UnknownReservation,
    /// The reservation is another user's.
    NotOwner,
    /// The payment has bought another reservation.
    PaymentUsed {
        /// Which.
        reservation: ReservationId,
    },
    /// The reservation has ended.
    Ended {
        /// How.
        status: HoldStatus,
    },
    /// Nothing of the reservation is sold.
    NotConfirmed,
    /// Its deadline is ahead.
    NotDue {
        /// When.
        expires_at: Timestamp,
    },
    /// A payment is under way: say first how it ended.
    InPayment {
        /// Its attempt.
        attempt: u32,
    },
    /// A later attempt has begun, or none.
    StaleAttempt {
        /// The current one; 0 for none.
        current: u32,
    },
    /// More units than were sold.
    ExceedsSold {
        /// The line's index.
        line: u16,
        /// Its SKU.
        sku: SkuId,
        /// How many are sold and not returned.
        sold: u64,
    },
    /// The total would fall below what is reserved and sold, or exceed the largest.
    TotalOutOfRange {
        /// The smallest total that is possible now.
        min: u64,
    },
    /// The SKU is defined otherwise. Its total changes by `adjust`; its rules don't change.
    SkuDiffers {
        /// What differs.
        field: Field,
    },
    /// A withdraw goes to the shard that the units leave, a deposit to the one that they come to.
    OtherShard {
        /// The shard that it came to instead.
        shard: u16,
    },
    /// A transfer is neither the next between its shards nor the last one again. Below the expected number: it
    /// was made already. Above: one is missing, bring that first.
    OutOfOrder {
        /// The next number.
        expected: u64,
    },
    /// No unit is available to be withdrawn just now.
    NothingToMove {
        /// Of which SKU.
        sku: SkuId,
    },
}

impl Refusal {
    /// Its stable code.
    pub const fn code(&self) -> RefusalCode {
        match self {
            Self::KeyConflict { .. } => RefusalCode::KeyConflict,
            Self::TooOld => RefusalCode::TooOld,
            Self::TooLate => RefusalCode::TooLate,
            Self::Busy { .. } => RefusalCode::Busy,
            Self::UnknownSku { .. } => RefusalCode::UnknownSku,
            Self::NotOpen { .. } => RefusalCode::NotOpen,
            Self::Paused { .. } => RefusalCode::Paused,
            Self::TooManyLines { .. } => RefusalCode::TooManyLines,
            Self::RequestLimit { .. } => RefusalCode::RequestLimit,
            Self::UserLimit { .. } => RefusalCode::UserLimit,
            Self::HoldLimit { .. } => RefusalCode::HoldLimit,
            Self::SoldOut { .. } => RefusalCode::SoldOut,
            Self::UnknownReservation => RefusalCode::UnknownReservation,
            Self::NotOwner => RefusalCode::NotOwner,
            Self::PaymentUsed { .. } => RefusalCode::PaymentUsed,
            Self::Ended { .. } => RefusalCode::Ended,
            Self::NotConfirmed => RefusalCode::NotConfirmed,
            Self::NotDue { .. } => RefusalCode::NotDue,
            Self::InPayment { .. } => RefusalCode::InPayment,
            Self::StaleAttempt { .. } => RefusalCode::StaleAttempt,
            Self::ExceedsSold { .. } => RefusalCode::ExceedsSold,
            Self::TotalOutOfRange { .. } => RefusalCode::TotalOutOfRange,
            Self::SkuDiffers { .. } => RefusalCode::SkuDiffers,
            Self::OtherShard { .. } => RefusalCode::OtherShard,
            Self::OutOfOrder { .. } => RefusalCode::OutOfOrder,
            Self::NothingToMove { .. } => RefusalCode::NothingToMove,
        }
    }

    /// True for what time or an operator will lift: no decision, nothing recorded, the key stays free.
    pub const fn is_deferral(&self) -> bool {
        matches!(
            self.code(),
            RefusalCode::TooLate
                | RefusalCode::Busy
                | RefusalCode::UnknownSku
                | RefusalCode::NotOpen
                | RefusalCode::Paused
                | RefusalCode::OutOfOrder
                | RefusalCode::NothingToMove
        )
    }

    /// True where the refusal becomes its key's answer. A conflict and an outdated message are recorded, but the
    /// key keeps the answer that it has, or none.
    pub const fn takes_key(&self) -> bool {
        !self.is_deferral() && !matches!(self, Self::KeyConflict { .. } | Self::TooOld)
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::KeyConflict { field } => {
                write!(
                    f,
                    "the key was used before with another {field}: use a new key"
                )
            }
            Self::TooOld => f.write_str("the command is older than keys are kept: ask anew"),
            Self::TooLate => f.write_str("the time to decide by has passed: ask again"),
            Self::Busy { bound } => write!(f, "the bound of {bound:?} is reached: try again later"),
            Self::UnknownSku { line } => write!(f, "line {line} names no known SKU"),
            Self::NotOpen {
                sku,
                opens_at: Some(at),
            } => write!(f, "SKU {sku} is not on sale before {at}"),
            Self::NotOpen {
                sku,
                opens_at: None,
            } => write!(f, "SKU {sku} is not on sale"),
            Self::Paused { sku } => write!(f, "SKU {sku} is paused: try again later"),
            Self::TooManyLines { max } => write!(f, "the cart has more than {max} lines: split it"),
            Self::RequestLimit { sku, max, .. } => {
                write!(f, "one request takes at most {max} of SKU {sku}")
            }
            Self::UserLimit { sku, max, has, .. } => {
                write!(f, "a user gets at most {max} of SKU {sku} and has {has}")
            }
            Self::HoldLimit { max } => write!(f, "a user has at most {max} live holds"),
            Self::SoldOut {
                sku,
                available,
                lapsing: 0,
                ..
            } => {
                write!(f, "SKU {sku} is sold out: {available} available")
            }
            Self::SoldOut {
                sku,
                available,
                lapsing,
                not_before,
                ..
            } => {
                write!(
                    f,
                    "SKU {sku}: {available} available, {lapsing} held units may yet come back"
                )?;
                not_before.map_or(Ok(()), |at| write!(f, ", not before {at}"))
            }
            Self::UnknownReservation => f.write_str("no such reservation, or it has retired"),
            Self::NotOwner => f.write_str("the reservation is another user's"),
            Self::PaymentUsed { reservation } => write!(f, "the payment has bought {reservation}"),
            Self::Ended { status } => write!(f, "the reservation has ended: {}", status.name()),
            Self::NotConfirmed => f.write_str("nothing of the reservation is sold"),
            Self::NotDue { expires_at } => write!(f, "the hold does not lapse before {expires_at}"),
            Self::InPayment { attempt } => {
                write!(
                    f,
                    "payment attempt {attempt} is under way: say first how it ended"
                )
            }
            Self::StaleAttempt { current: 0 } => f.write_str("no payment is under way"),
            Self::StaleAttempt { current } => write!(f, "the current payment attempt is {current}"),
            Self::ExceedsSold { sku, sold, .. } => write!(f, "only {sold} of SKU {sku} are sold"),
            Self::TotalOutOfRange { min } => {
                write!(f, "the total can't be below {min} now, nor above 2^48")
            }
            Self::SkuDiffers { field } => {
                write!(
                    f,
                    "the SKU is defined with another {field}: change its total by adjust"
                )
            }
            Self::OtherShard { shard } => {
                write!(
                    f,
                    "this is shard {shard}: send a withdraw where units leave, a deposit where they come"
                )
            }
            Self::OutOfOrder { expected } => {
                write!(
                    f,
                    "the next transfer is {expected}: earlier ones are made, bring what is missing first"
                )
            }
            Self::NothingToMove { sku } => {
                write!(f, "no unit of SKU {sku} is available: try again later")
            }
        }
    }
}
