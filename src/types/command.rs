//! What can be asked of an engine.
//!
//! A command is built by its own type and handed over as a [`Command`]. Whatever is wrong with it in itself is
//! refused when it is built, as a value; what the stock says to it is a [`Decision`](super::Decision).
//!
//! ```text
//! reserve -> begin_payment -> confirm            return           adjust, define, gate    (admin)
//!    |             |-> payment_failed            (sold units)
//!    |-> release   |-> (expire: by time)                   withdraw -> deposit      (between pools)
//! ```

use super::key::{fingerprint, halves};
use super::words::words;
use super::{
    CommandKind, Deposit, IdempotencyKey, Lines, LinesError, Origin, PaymentRef, Reason,
    ReservationId, Rules, RulesError, SkuId, SkuName, Timestamp, UserId, Withdraw,
};

/// Asks for units: all lines or none.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reserve {
    /// For whom.
    pub user: UserId,
    /// Recognises the command when it comes again.
    pub key: Option<IdempotencyKey>,
    /// What.
    pub lines: Lines,
    /// Past this time the answer is `TooLate`: the caller has left.
    pub decide_by: Timestamp,
    /// When the caller asked, if known: older than the retention of keys is refused as `TooOld`.
    pub asked_at: Timestamp,
}

impl Reserve {
    /// Units of one SKU.
    ///
    /// # Errors
    /// If the quantity is 0 or too large.
    pub fn one(user: UserId, sku: SkuId, quantity: u32) -> Result<Self, LinesError> {
        Lines::one(sku, quantity).map(|lines| Self::cart(user, lines))
    }

    /// A whole cart.
    pub fn cart(user: UserId, lines: Lines) -> Self {
        Self {
            user,
            key: None,
            lines,
            decide_by: Timestamp::MAX,
            asked_at: Timestamp::MAX,
        }
    }

    /// Under this key the same command gives the same answer (law L5).
    #[must_use]
    pub fn key(mut self, key: IdempotencyKey) -> Self {
        self.key = Some(key);
        self
    }

    /// Not decided after this time.
    #[must_use]
    pub fn decide_by(mut self, at: Timestamp) -> Self {
        self.decide_by = at;
        self
    }

    /// When the caller asked.
    #[must_use]
    pub fn asked_at(mut self, at: Timestamp) -> Self {
        self.asked_at = at;
        self
    }
}

macro_rules! with_key {
    ($($name:ident),*) => {
        $(impl $name {
            /// Under this key the same command gives the same answer (law L5).
            #[must_use]
            pub fn key(mut self, key: IdempotencyKey) -> Self {
                self.key = Some(key);
                self
            }
        })*
    };
}
with_key!(
    BeginPayment,
    PaymentFailed,
    Confirm,
    Release,
    DefineSku,
    SetGate
);

/// Says that the payment gateway is about to be called; the hold may not lapse under the payer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct BeginPayment {
    pub user: UserId,
    pub key: Option<IdempotencyKey>,
    pub reservation: ReservationId,
    pub payment_ref: PaymentRef,
}

impl BeginPayment {
    /// The user must be the reservation's own.
    pub fn new(user: UserId, reservation: ReservationId, payment_ref: PaymentRef) -> Self {
        Self {
            user,
            key: None,
            reservation,
            payment_ref,
        }
    }
}

/// What becomes of a hold whose payment failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Disposition {
    /// The user may try again until the deadline.
    Keep,
    /// The units go back at once.
    Release,
}

/// Says that the payment attempt captured nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct PaymentFailed {
    pub user: UserId,
    pub key: Option<IdempotencyKey>,
    pub reservation: ReservationId,
    pub attempt: u32,
    pub disposition: Disposition,
}

impl PaymentFailed {
    /// `attempt` is the number that [`BeginPayment`] was answered with.
    pub fn new(
        user: UserId,
        reservation: ReservationId,
        attempt: u32,
        disposition: Disposition,
    ) -> Self {
        Self {
            user,
            key: None,
            reservation,
            attempt,
            disposition,
        }
    }
}

/// Says that the payment is captured, or that none is due: held units become sold.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Confirm {
    pub user: UserId,
    pub key: Option<IdempotencyKey>,
    pub reservation: ReservationId,
    /// The attempt that captured it; 0 where no payment was begun.
    pub attempt: u32,
    pub payment_ref: Option<PaymentRef>,
}

impl Confirm {
    /// After a payment.
    pub fn paid(
        user: UserId,
        reservation: ReservationId,
        attempt: u32,
        payment_ref: PaymentRef,
    ) -> Self {
        Self {
            user,
            key: None,
            reservation,
            attempt,
            payment_ref: Some(payment_ref),
        }
    }

    /// Without a payment: paid elsewhere, or free.
    pub fn unpaid(user: UserId, reservation: ReservationId) -> Self {
        Self {
            user,
            key: None,
            reservation,
            attempt: 0,
            payment_ref: None,
        }
    }
}

/// Gives a hold back.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Release {
    pub user: UserId,
    pub key: Option<IdempotencyKey>,
    pub reservation: ReservationId,
}

impl Release {
    /// The user must be the reservation's own.
    pub fn new(user: UserId, reservation: ReservationId) -> Self {
        Self {
            user,
            key: None,
            reservation,
        }
    }
}

/// Asks for an overdue hold to end; refused before its deadline, whoever asks. The engine does this by itself:
/// the command is for sources outside, such as a cache's expiry notifications.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expire {
    /// Which.
    pub reservation: ReservationId,
}

/// Sold units come back. A key is required.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Return {
    /// Who did it.
    pub actor: UserId,
    pub key: IdempotencyKey,
    pub reason: Reason,
    /// By this reservation: at most what it sold, and the user gets his allowance back. Without one: at most what the
    /// SKUs sold, and nobody does.
    pub reservation: Option<ReservationId>,
    /// What, all or nothing. `None`: everything the reservation still has.
    pub lines: Option<Lines>,
}

impl Return {
    /// Units of a reservation; `None` for all that it still has.
    pub fn of_reservation(
        actor: UserId,
        key: IdempotencyKey,
        reservation: ReservationId,
        lines: Option<Lines>,
    ) -> Self {
        Self {
            actor,
            key,
            reason: Reason::default(),
            reservation: Some(reservation),
            lines,
        }
    }

    /// Units of SKUs, without naming the sale.
    pub fn of_skus(actor: UserId, key: IdempotencyKey, lines: Lines) -> Self {
        Self {
            actor,
            key,
            reason: Reason::default(),
            reservation: None,
            lines: Some(lines),
        }
    }

    /// Why.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

/// Changes a SKU's total by a delta. A key is required.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct Adjust {
    pub actor: UserId,
    pub key: IdempotencyKey,
    pub reason: Reason,
    pub sku: SkuId,
    /// More (restock) or fewer (withdraw) units.
    pub delta: i64,
}

impl Adjust {
    /// `delta` units more, or fewer if negative.
    pub fn new(actor: UserId, key: IdempotencyKey, sku: SkuId, delta: i64) -> Self {
        Self {
            actor,
            key,
            reason: Reason::default(),
            sku,
            delta,
        }
    }

    /// Why.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

/// Makes a SKU known. The same again changes nothing; a differing one is refused.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct DefineSku {
    pub actor: UserId,
    pub key: Option<IdempotencyKey>,
    pub name: SkuName,
    /// The opening units, at most [`TOTAL_MAX`](super::TOTAL_MAX).
    pub total: u64,
    pub(crate) rules: Rules,
}

impl DefineSku {
    /// With the default rules.
    pub fn new(actor: UserId, name: SkuName, total: u64) -> Self {
        Self {
            actor,
            key: None,
            name,
            total,
            rules: Rules::default(),
        }
    }

    /// With these rules.
    ///
    /// # Errors
    /// Which rule can't be.
    pub fn rules(mut self, rules: Rules) -> Result<Self, RulesError> {
        rules.check()?;
        self.rules = rules;
        Ok(self)
    }

    /// The rules that it defines.
    pub fn rules_given(&self) -> Rules {
        self.rules
    }
}

words! {
    /// What an operator lets pass for a SKU.
    #[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
    pub enum Gate {
        /// Reservations may begin; the first after a definition or an end begins the next sale.
        Open => "open",
        /// No new reservations; holds can still be paid and confirmed.
        Close => "close",
        /// As close, but meant to pass.
        PauseReservations => "pause_reservations",
        /// Lifts it.
        ResumeReservations => "resume_reservations",
        /// No confirms; holds in payment don't lapse meanwhile.
        PauseConfirms => "pause_confirms",
        /// Lifts it.
        ResumeConfirms => "resume_confirms",
        /// The sale is over: closed, and its counters and keys are dropped.
        EndSale => "end_sale",
    }
}

/// Opens, closes, pauses or ends a SKU's sale.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[expect(missing_docs, reason = "each field is what it names")]
pub struct SetGate {
    pub actor: UserId,
    pub key: Option<IdempotencyKey>,
    pub reason: Reason,
    pub sku: SkuId,
    pub change: Gate,
}

impl SetGate {
    /// Without a key.
    pub fn new(actor: UserId, sku: SkuId, change: Gate) -> Self {
        Self {
            actor,
            key: None,
            reason: Reason::default(),
            sku,
            change,
        }
    }

    /// Why.
    #[must_use]
    pub fn reason(mut self, reason: Reason) -> Self {
        self.reason = reason;
        self
    }
}

/// Asks what is; changes nothing. Answered with the batch it rides in, so that a caller reads his own writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Query {
    /// One reservation, live or ended and not yet retired.
    Reservation(ReservationId),
    /// All of a user's that have not retired, the newest first.
    ReservationsOf(UserId),
    /// What the key's first decision was.
    Status {
        /// Whose key.
        user: UserId,
        /// For which kind of command.
        kind: CommandKind,
        /// The key.
        key: IdempotencyKey,
    },
    /// One SKU: its name, rules, stock and gates.
    Sku(SkuId),
    /// One SKU as a pool: its stock here, and what has moved between this shard and others.
    Pool(SkuId),
}

/// Any of them, as it rides the ring. Admin commands are boxed: they are rare, and a slot stays small.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum Command {
    Reserve(Reserve),
    BeginPayment(BeginPayment),
    PaymentFailed(PaymentFailed),
    Confirm(Confirm),
    Release(Release),
    Expire(Expire),
    Return(Box<Return>),
    Adjust(Box<Adjust>),
    DefineSku(Box<DefineSku>),
    SetGate(Box<SetGate>),
    Query(Query),
    Withdraw(Box<Withdraw>),
    Deposit(Box<Deposit>),
}

// A ring slot of 128 bytes holds a command and the 16 bytes of where its answer goes.
const _: () = assert!(
    size_of::<Command>() <= 112,
    "a command outgrew its ring slot"
);

impl Command {
    /// Its kind.
    pub const fn kind(&self) -> CommandKind {
        match self {
            Self::Reserve(_) => CommandKind::Reserve,
            Self::BeginPayment(_) => CommandKind::BeginPayment,
            Self::PaymentFailed(_) => CommandKind::PaymentFailed,
            Self::Confirm(_) => CommandKind::Confirm,
            Self::Release(_) => CommandKind::Release,
            Self::Expire(_) => CommandKind::Expire,
            Self::Return(_) => CommandKind::Return,
            Self::Adjust(_) => CommandKind::Adjust,
            Self::DefineSku(_) => CommandKind::DefineSku,
            Self::SetGate(_) => CommandKind::SetGate,
            Self::Query(_) => CommandKind::Query,
            Self::Withdraw(_) => CommandKind::Withdraw,
            Self::Deposit(_) => CommandKind::Deposit,
        }
    }

    #[inline]
    pub(crate) fn user_and_key(&self) -> (UserId, Option<IdempotencyKey>) {
        match self {
            Self::Reserve(c) => (c.user, c.key),
            Self::BeginPayment(c) => (c.user, c.key),
            Self::PaymentFailed(c) => (c.user, c.key),
            Self::Confirm(c) => (c.user, c.key),
            Self::Release(c) => (c.user, c.key),
            Self::Return(c) => (c.actor, Some(c.key)),
            Self::Adjust(c) => (c.actor, Some(c.key)),
            Self::DefineSku(c) => (c.actor, c.key),
            Self::SetGate(c) => (c.actor, c.key),
            Self::Withdraw(c) => (c.actor, Some(c.key)),
            Self::Deposit(c) => (c.actor, Some(c.key)),
            Self::Expire(_) | Self::Query(_) => (UserId::default(), None),
        }
    }

    /// Who asked, under which key, with what payload.
    #[inline]
    pub fn origin(&self) -> Origin {
        let (user, key) = self.user_and_key();
        let (first, second, third) = if key.is_some() {
            self.fingerprints()
        } else {
            (0, 0, 0)
        };
        Origin {
            user,
            key,
            fingerprints: [first, second, third],
        }
    }

    /// As a tuple, which stays in registers: an array is written by parts and read as a whole, and waits for that.
    #[inline]
    fn fingerprints(&self) -> (u32, u32, u32) {
        let of = |word: u64| fingerprint([word]);
        let of_lines = |lines: &Lines| {
            let words = lines.as_slice().iter();
            fingerprint(words.map(|line| (u64::from(line.sku.0) << 32) | u64::from(line.quantity)))
        };
        let of_payment =
            |payment: Option<PaymentRef>| fingerprint(halves(payment.map_or(0, PaymentRef::get)));
        match self {
            Self::Reserve(c) => (of_lines(&c.lines), 0, 0),
            Self::BeginPayment(c) => (of(c.reservation.get()), of_payment(Some(c.payment_ref)), 0),
            Self::PaymentFailed(c) => (
                of(c.reservation.get()),
                of(c.attempt.into()),
                of(c.disposition as u64),
            ),
            Self::Confirm(c) => (
                of(c.reservation.get()),
                of(c.attempt.into()),
                of_payment(c.payment_ref),
            ),
            Self::Release(c) => (of(c.reservation.get()), 0, 0),
            Self::Return(c) => (
                of(c.reservation.map_or(0, ReservationId::get)),
                c.lines.as_ref().map_or(0, of_lines),
                0,
            ),
            Self::Adjust(c) => (of(c.sku.0.into()), of(c.delta.cast_unsigned()), 0),
            Self::DefineSku(c) => (
                fingerprint(c.name.as_str().bytes().map(u64::from)),
                of(c.total),
                fingerprint([
                    c.rules.hold_ms.into(),
                    c.rules.per_user.map_or(0, u64::from),
                    c.rules.per_request.map_or(0, u64::from),
                    c.rules.opens_at.as_micros(),
                    c.rules.closes_at.as_micros(),
                ]),
            ),
            Self::SetGate(c) => (of(c.sku.0.into()), of(c.change as u64), 0),
            Self::Withdraw(c) => c.transfer.fingerprints(),
            Self::Deposit(c) => c.transfer.fingerprints(),
            Self::Expire(_) | Self::Query(_) => (0, 0, 0),
        }
    }
}

macro_rules! into_command {
    ($($name:ident $value:ident => $variant:expr),* $(,)?) => {
        $(impl From<$name> for Command {
            fn from($value: $name) -> Self {
                $variant
            }
        })*
    };
}

into_command! {
    Reserve c => Self::Reserve(c),
    BeginPayment c => Self::BeginPayment(c),
    PaymentFailed c => Self::PaymentFailed(c),
    Confirm c => Self::Confirm(c),
    Release c => Self::Release(c),
    Expire c => Self::Expire(c),
    Return c => Self::Return(Box::new(c)),
    Adjust c => Self::Adjust(Box::new(c)),
    DefineSku c => Self::DefineSku(Box::new(c)),
    SetGate c => Self::SetGate(Box::new(c)),
    Query c => Self::Query(c),
    Withdraw c => Self::Withdraw(Box::new(c)),
    Deposit c => Self::Deposit(Box::new(c)),
}
