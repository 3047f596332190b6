//! What the engine answers: one [`Decision`] per command, accepted or refused with a reason.
//!
//! Refusals come in a fixed precedence, the order of [`RefusalCode`]'s variants: the first that applies is the
//! answer. Some are no decisions: what time or an operator will lift ([`Refusal::is_deferral`]) records nothing
//! and leaves the key free.

use super::{CommandKind, Field, Line, PaymentRef, ReservationId, SkuId, Timestamp, UserId};
use std::fmt;

/// A hold was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reservation {
    /// Names it from now on.
    pub id: ReservationId,
    /// When its units go back, unless it is paid or released before.
    pub expires_at: Timestamp,
}

/// A payment was begun.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PaymentAttempt {
    /// Its number within the reservation, from 1: confirm and `payment_failed` name it.
    pub attempt: u32,
    /// When the hold lapses now: the payment's grace included.
    pub expires_at: Timestamp,
}

/// What a failed payment left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// The hold lives until then.
    Until(Timestamp),
    /// The units went back.
    Released,
}

/// What a confirm led to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[must_use = "a captured payment may have to be refunded"]
pub enum Confirmation {
    /// The units are sold. A payment that came after the hold had lapsed bought them through a new
    /// reservation, whose id differs from the one asked for.
    Sold {
        /// The reservation that is confirmed now.
        reservation: ReservationId,
    },
    /// The captured payment bought nothing: pay it back.
    RefundDue {
        /// Which.
        payment_ref: PaymentRef,
    },
}

/// The one answer to a command.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Decision {
    /// To reserve.
    Reserved(Reservation),
    /// To `begin_payment`.
    PaymentBegun(PaymentAttempt),
    /// To `payment_failed`.
    PaymentFailed(Kept),
    /// To confirm.
    Confirmed(Confirmation),
    /// To release.
    Released,
    /// To expire.
    Expired,
    /// To return: how many units came back.
    Returned {
        /// The sum over the lines.
        units: u64,
    },
    /// To adjust.
    Adjusted {
        /// The SKU's total after it.
        total: u64,
    },
    /// To define.
    Defined {
        /// The SKU's index from now on.
        sku: SkuId,
    },
    /// To open, close, pause, resume, end.
    GateSet {
        /// The number of the SKU's sale, from 1; 0 before the first.
        sale: u32,
    },
    /// To any of them.
    Refused(Refusal),
}

/// Which bound of the engine is exhausted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Bound {
    /// Live and not yet retired reservations.
    Reservations,
    /// Keys of accepted commands.
    AcceptedKeys,
    /// Counters of units per user and SKU.
    Counters,
    /// Outcomes of payments.
    Payments,
    /// SKUs.
    Skus,
    /// Different hold durations.
    HoldDurations,
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
        }
    }
}

/// Where a reservation stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
#[expect(missing_docs, reason = "each is what it names")]
pub enum HoldStatus {
    Held = 1,
    InPayment = 2,
    Confirmed = 3,
    Released = 4,
    Expired = 5,
}

impl HoldStatus {
    /// True while its units are reserved.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Held | Self::InPayment)
    }

    /// The word for it in JSON and SQL.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Held => "RESERVED",
            Self::InPayment => "IN_PAYMENT",
            Self::Confirmed => "CONFIRMED",
            Self::Released => "RELEASED",
            Self::Expired => "EXPIRED",
        }
    }

    pub(super) fn from_u8(number: u8) -> Option<Self> {
        [
            Self::Held,
            Self::InPayment,
            Self::Confirmed,
            Self::Released,
            Self::Expired,
        ]
        .into_iter()
        .find(|&status| status as u8 == number)
    }
}

/// A reservation, as a query shows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReservationView {
    /// Its id.
    pub id: ReservationId,
    /// Whose.
    pub user: UserId,
    /// Where it stands: an overdue hold is shown as expired, swept or not.
    pub status: HoldStatus,
    /// While live, when it lapses.
    pub expires_at: Timestamp,
    /// The current payment attempt, 0 for none.
    pub attempt: u32,
    /// Its lines; after returns, what is left of them.
    pub lines: Vec<Line>,
}

/// What a query found.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum QueryAnswer {
    /// To [`Query::Reservation`](super::Query::Reservation).
    Reservation(Option<ReservationView>),
    /// To [`Query::ReservationsOf`](super::Query::ReservationsOf).
    Reservations(Vec<ReservationView>),
    /// To [`Query::Status`](super::Query::Status).
    Status(Option<Decision>),
}

/// What a ticket brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    /// Decided and, where there was something to record, durable.
    Decided(Decision),
    /// What a query found.
    Found(Box<QueryAnswer>),
    /// The engine stopped before it looked at the command: safe to send again.
    NotDecided,
}

/// A decision as a key's table and the log keep it: a code and two words.
pub(crate) type DecisionWords = (u8, u64, u64);

impl Decision {
    /// # Panics
    /// For a refusal: it has a record of its own.
    pub(crate) fn to_words(self) -> DecisionWords {
        match self {
            Self::Reserved(r) => (1, r.id.get(), r.expires_at.as_micros()),
            Self::PaymentBegun(p) => (2, u64::from(p.attempt), p.expires_at.as_micros()),
            Self::PaymentFailed(Kept::Until(at)) => (3, at.as_micros(), 0),
            Self::PaymentFailed(Kept::Released) => (4, 0, 0),
            Self::Confirmed(Confirmation::Sold { reservation }) => (5, reservation.get(), 0),
            Self::Confirmed(Confirmation::RefundDue { payment_ref }) => {
                let [low, high] = super::key::halves(payment_ref.get());
                (6, low, high)
            }
            Self::Released => (7, 0, 0),
            Self::Expired => (8, 0, 0),
            Self::Returned { units } => (9, units, 0),
            Self::Adjusted { total } => (10, total, 0),
            Self::Defined { sku } => (11, u64::from(sku.0), 0),
            Self::GateSet { sale } => (12, u64::from(sale), 0),
            Self::Refused(_) => unreachable!("a refusal is recorded as one"),
        }
    }

    /// The inverse; `None` for words that no decision has.
    pub(crate) fn from_words((code, a, b): DecisionWords) -> Option<Self> {
        let small = || u32::try_from(a).ok();
        Some(match code {
            1 => Self::Reserved(Reservation {
                id: ReservationId::from_u64(a),
                expires_at: Timestamp::from_micros(b),
            }),
            2 => Self::PaymentBegun(PaymentAttempt {
                attempt: small()?,
                expires_at: Timestamp::from_micros(b),
            }),
            3 => Self::PaymentFailed(Kept::Until(Timestamp::from_micros(a))),
            4 => Self::PaymentFailed(Kept::Released),
            5 => Self::Confirmed(Confirmation::Sold {
                reservation: ReservationId::from_u64(a),
            }),
            6 => {
                let payment_ref = PaymentRef::new(u128::from(a) | (u128::from(b) << 64))?;
                Self::Confirmed(Confirmation::RefundDue { payment_ref })
            }
            7 => Self::Released,
            8 => Self::Expired,
            9 => Self::Returned { units: a },
            10 => Self::Adjusted { total: a },
            11 => Self::Defined {
                sku: SkuId(small()?),
            },
            12 => Self::GateSet { sale: small()? },
            _ => return None,
        })
    }
}

/// The refusal's part of its packed record: code, line, SKU and 12 bytes of detail, which are two numbers.
pub(super) struct RefusalWords {
    pub(super) code: u8,
    pub(super) line: u16,
    pub(super) sku: u32,
    pub(super) long: u64,
    pub(super) short: u32,
}

const NOT_BEFORE_NONE: u32 = u32::MAX;

impl Refusal {
    /// Times become whole milliseconds from `stamp`, so the allocator makes them so in the first place.
    pub(super) fn to_words(self, stamp: Timestamp) -> RefusalWords {
        let (line, sku, long, short) = match self {
            Self::KeyConflict { field } | Self::SkuDiffers { field } => {
                (0, 0, 0, field_number(field))
            }
            Self::TooOld | Self::UnknownReservation | Self::NotOwner | Self::NotConfirmed => {
                (0, 0, 0, 0)
            }
            Self::TooManyLines { max } => (0, 0, 0, u32::from(max)),
            Self::RequestLimit { line, sku, max } => (line, sku.0, 0, max),
            Self::UserLimit {
                line,
                sku,
                max,
                has,
            } => (line, sku.0, u64::from(has), max),
            Self::HoldLimit { max } => (0, 0, 0, max),
            Self::SoldOut {
                line,
                sku,
                available,
                lapsing,
                not_before,
            } => {
                let ms = not_before.map_or(NOT_BEFORE_NONE, |at| ms_until(stamp, at));
                (
                    line,
                    sku.0,
                    (u64::from(available) << 32) | u64::from(lapsing),
                    ms,
                )
            }
            Self::PaymentUsed { reservation } => (0, 0, reservation.get(), 0),
            Self::Ended { status } => (0, 0, 0, status as u32),
            Self::NotDue { expires_at } => (0, 0, expires_at.as_micros(), 0),
            Self::InPayment { attempt } => (0, 0, 0, attempt),
            Self::StaleAttempt { current } => (0, 0, 0, current),
            Self::ExceedsSold { line, sku, sold } => (line, sku.0, sold, 0),
            Self::TotalOutOfRange { min } => (0, 0, min, 0),
            Self::TooLate
            | Self::Busy { .. }
            | Self::UnknownSku { .. }
            | Self::NotOpen { .. }
            | Self::Paused { .. } => unreachable!("a deferral is not recorded"),
        };
        RefusalWords {
            code: self.code() as u8,
            line,
            sku,
            long,
            short,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub(super) fn from_words(words: &RefusalWords, stamp: Timestamp) -> Option<Self> {
        let &RefusalWords {
            code,
            line,
            sku,
            long,
            short,
        } = words;
        let sku = SkuId(sku);
        Some(match RefusalCode::from_u8(code)? {
            RefusalCode::KeyConflict => Self::KeyConflict {
                field: field_of(short)?,
            },
            RefusalCode::TooOld => Self::TooOld,
            RefusalCode::TooManyLines => Self::TooManyLines {
                max: u16::try_from(short).ok()?,
            },
            RefusalCode::RequestLimit => Self::RequestLimit {
                line,
                sku,
                max: short,
            },
            RefusalCode::UserLimit => Self::UserLimit {
                line,
                sku,
                max: short,
                has: u32::try_from(long).ok()?,
            },
            RefusalCode::HoldLimit => Self::HoldLimit { max: short },
            RefusalCode::SoldOut => Self::SoldOut {
                line,
                sku,
                available: (long >> 32) as u32,
                lapsing: long as u32,
                not_before: (short != NOT_BEFORE_NONE).then(|| stamp.plus_ms(short.into())),
            },
            RefusalCode::UnknownReservation => Self::UnknownReservation,
            RefusalCode::NotOwner => Self::NotOwner,
            RefusalCode::PaymentUsed => Self::PaymentUsed {
                reservation: ReservationId::from_u64(long),
            },
            RefusalCode::Ended => Self::Ended {
                status: HoldStatus::from_u8(u8::try_from(short).ok()?)?,
            },
            RefusalCode::NotConfirmed => Self::NotConfirmed,
            RefusalCode::NotDue => Self::NotDue {
                expires_at: Timestamp::from_micros(long),
            },
            RefusalCode::InPayment => Self::InPayment { attempt: short },
            RefusalCode::StaleAttempt => Self::StaleAttempt { current: short },
            RefusalCode::ExceedsSold => Self::ExceedsSold {
                line,
                sku,
                sold: long,
            },
            RefusalCode::TotalOutOfRange => Self::TotalOutOfRange { min: long },
            RefusalCode::SkuDiffers => Self::SkuDiffers {
                field: field_of(short)?,
            },
            RefusalCode::TooLate
            | RefusalCode::Busy
            | RefusalCode::UnknownSku
            | RefusalCode::NotOpen
            | RefusalCode::Paused => return None,
        })
    }
}

/// Whole milliseconds from `stamp` to `at`, cut; at most what fits.
pub(crate) fn ms_until(stamp: Timestamp, at: Timestamp) -> u32 {
    u32::try_from(at.micros_since(stamp) / 1_000)
        .unwrap_or(NOT_BEFORE_NONE - 1)
        .min(NOT_BEFORE_NONE - 1)
}

const FIELDS: [Field; 10] = [
    Field::Lines,
    Field::Reservation,
    Field::PaymentRef,
    Field::Attempt,
    Field::Disposition,
    Field::Sku,
    Field::Delta,
    Field::Total,
    Field::Rules,
    Field::Change,
];

fn field_number(field: Field) -> u32 {
    FIELDS
        .iter()
        .zip(0..)
        .find(|&(&known, _)| known == field)
        .map_or(u32::MAX, |(_, number)| number)
}

fn field_of(number: u32) -> Option<Field> {
    FIELDS.get(number as usize).copied()
}

impl CommandKind {
    /// The word for it in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::BeginPayment => "begin_payment",
            Self::PaymentFailed => "payment_failed",
            Self::Confirm => "confirm",
            Self::Release => "release",
            Self::Expire => "expire",
            Self::Return => "return",
            Self::Adjust => "adjust",
            Self::DefineSku => "define_sku",
            Self::SetGate => "set_gate",
            Self::Query => "query",
        }
    }
}
