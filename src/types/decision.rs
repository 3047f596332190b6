//! What the engine answers: one [`Decision`] per command, accepted or refused with a reason.
//!
//! Refusals come in a fixed precedence, the order of [`RefusalCode`]'s variants: the first that applies is the
//! answer. Some are no decisions: what time or an operator will lift ([`Refusal::is_deferral`]) records nothing
//! and leaves the key free.

use super::words::words;
use super::{
    Line, PaymentRef, PoolView, Refusal, ReservationId, SkuId, SkuView, Timestamp, UserId,
};

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
    /// To withdraw.
    Withdrawn {
        /// What the transfer moves: what was asked for, or as many as were available.
        units: u64,
    },
    /// To deposit.
    Deposited {
        /// What came.
        units: u64,
    },
    /// To any of them.
    Refused(Refusal),
}

words! {
    /// Where a reservation stands.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    #[repr(u8)]
    #[expect(missing_docs, reason = "each is what it names")]
    pub enum HoldStatus {
        Held = 1 => "RESERVED",
        InPayment = 2 => "IN_PAYMENT",
        Confirmed = 3 => "CONFIRMED",
        Released = 4 => "RELEASED",
        Expired = 5 => "EXPIRED",
    }
}

impl HoldStatus {
    /// True while its units are reserved.
    pub const fn is_live(self) -> bool {
        matches!(self, Self::Held | Self::InPayment)
    }

    pub(super) fn from_u8(number: u8) -> Option<Self> {
        let mut all = Self::ALL.iter().copied();
        all.find(|&status| status as u8 == number)
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
    /// To [`Query::Sku`](super::Query::Sku); `None` if it is not defined.
    Sku(Option<SkuView>),
    /// To [`Query::Pool`](super::Query::Pool); `None` if the SKU is not defined.
    Pool(Option<PoolView>),
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
            Self::Withdrawn { units } => (13, units, 0),
            Self::Deposited { units } => (14, units, 0),
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
            13 => Self::Withdrawn { units: a },
            14 => Self::Deposited { units: a },
            _ => return None,
        })
    }
}
