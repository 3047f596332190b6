//! A request message: what an API node asks of the writer of a partition. Version 1, JSON.
//!
//! ```json
//! {"v":1, "kind":"reserve", "user":"0000..2a", "key":"6b1f..09", "asked_at_us":1736937000250999,
//!  "lines":[{"sku_id":"SNEAKER-42","quantity":1}], "reply":{"node":"9f3c..e1","partition":3,"id":17}}
//! ```
//!
//! JSON, because a message is read by people and by services in other languages, above all when it lies in the dead-letter topic;
//! reading one costs some microseconds of the 40 that a writer has for each at 25,000 a second. Ids are 32 hexadecimal digits,
//! times microseconds since 1970: both as exact as in the log.
//!
//! | kind | fields besides `v`, `kind`, `user`, `key`, and where wanted `asked_at_us`, `decide_by_us`, `reply` |
//! |---|---|
//! | `reserve` | `lines` |
//! | `begin_payment` | `reservation`, `payment_ref` |
//! | `payment_failed` | `reservation`, `attempt`, `disposition`: `keep` or `release` |
//! | `confirm` | `reservation`; after a payment `attempt` and `payment_ref` |
//! | `release` | `reservation` |
//! | `expire` | `reservation`; a hint: neither `user` nor `key` |
//! | `return` | `reservation` or `lines` or both; `reason` where wanted |
//! | `adjust` | `sku_id`, `delta`; `reason` where wanted |
//! | `define_sku` | `sku_id`, `total`; `rules` where wanted |
//! | `set_gate` | `sku_id`, `change`: `open`, `close`, `pause_reservations`, ..; `reason` where wanted |
//! | `withdraw`, `deposit` | `sku_id`, `from_shard`, `to_shard`, `number`, `units`: see [`Transfer`] |
//! | `pool` | `sku_id`: how it stands in this shard, and what has moved; decides nothing: neither `user` nor `key` |
//!
//! A key is required, so that a message that is delivered twice is decided once. An unknown version, kind or field, and one that
//! its kind doesn't have, is refused: whoever wrote it meant something. So a release that brings a new kind, as this one does with
//! the last two rows, changes writers before it changes those who ask. Without `asked_at_us` the record's own time counts. Both
//! times are by the clock of who asks; the writer makes the log's time of them.

mod wire;

pub(super) use wire::{decode, encode, encode_pool};

use crate::types::{
    Adjust, BeginPayment, Command, Confirm, DefineSku, Deposit, Disposition, Expire, Gate,
    IdempotencyKey, Line, Lines, PaymentFailed, PaymentRef, Query, Reason, Release, ReservationId,
    Reserve, Return, Rules, SetGate, SkuId, SkuName, Timestamp, Transfer, UserId, Withdraw,
};
use serde::{Deserialize, Serialize};

/// The longest message in bytes: a cart of 4,096 lines with long names fits twice.
pub(super) const MESSAGE_SIZE_MAX: usize = 1 << 20;

/// What is asked, with SKUs by their names.
#[derive(Debug, Clone, PartialEq, Eq)]
#[expect(missing_docs, reason = "fields are those of the command of that name")]
pub enum Body {
    Reserve {
        lines: Vec<(SkuName, u32)>,
    },
    BeginPayment {
        reservation: ReservationId,
        payment_ref: PaymentRef,
    },
    PaymentFailed {
        reservation: ReservationId,
        attempt: u32,
        disposition: Disposition,
    },
    Confirm {
        reservation: ReservationId,
        payment: Option<(u32, PaymentRef)>,
    },
    Release {
        reservation: ReservationId,
    },
    Expire {
        reservation: ReservationId,
    },
    Return {
        reservation: Option<ReservationId>,
        lines: Option<Vec<(SkuName, u32)>>,
        reason: Reason,
    },
    Adjust {
        sku: SkuName,
        delta: i64,
        reason: Reason,
    },
    DefineSku {
        sku: SkuName,
        total: u64,
        rules: Rules,
    },
    SetGate {
        sku: SkuName,
        change: Gate,
        reason: Reason,
    },
    Withdraw(NamedTransfer),
    Deposit(NamedTransfer),
}

/// A [`Transfer`] with its SKU by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NamedTransfer {
    /// What.
    pub sku: SkuName,
    /// The shard that the units leave.
    pub from: u16,
    /// The shard that they come to.
    pub to: u16,
    /// Of this SKU and from the one to the other: dense, from 1.
    pub number: u64,
    /// How many.
    pub units: u64,
}

impl NamedTransfer {
    /// With the SKU's index in the shard that it is sent to.
    fn transfer(&self, find: impl Fn(&SkuName) -> SkuId) -> Transfer {
        Transfer {
            sku: find(&self.sku),
            from: self.from,
            to: self.to,
            number: self.number,
            units: self.units,
        }
    }
}

/// A command on its way through a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks: a buyer, or the actor of an admin command.
    pub user: UserId,
    /// Recognises the request when it comes again.
    pub key: IdempotencyKey,
    /// When it was asked, if not when the message was made; by the clock of who asks.
    pub asked_at: Option<Timestamp>,
    /// Past this time the answer is `TooLate`. For reservations; by the clock of who asks, which should agree with the writers'
    /// machines. The log's own time may be another one.
    pub decide_by: Option<Timestamp>,
    /// What.
    pub body: Body,
}

impl Request {
    /// Asked when its message is made, and decided however late.
    pub fn new(user: UserId, key: IdempotencyKey, body: Body) -> Self {
        Self {
            user,
            key,
            asked_at: None,
            decide_by: None,
            body,
        }
    }

    /// The SKUs that it names.
    pub(super) fn skus(&self) -> impl Iterator<Item = &SkuName> {
        let (lines, one) = match &self.body {
            Body::Reserve { lines } => (lines.as_slice(), None),
            Body::Return { lines, .. } => (lines.as_deref().unwrap_or_default(), None),
            Body::Adjust { sku, .. }
            | Body::DefineSku { sku, .. }
            | Body::SetGate { sku, .. }
            | Body::Withdraw(NamedTransfer { sku, .. })
            | Body::Deposit(NamedTransfer { sku, .. }) => (&[][..], Some(sku)),
            Body::BeginPayment { .. }
            | Body::PaymentFailed { .. }
            | Body::Confirm { .. }
            | Body::Release { .. }
            | Body::Expire { .. } => (&[][..], None),
        };
        lines.iter().map(|(sku, _)| sku).chain(one)
    }

    /// The reservation that it names.
    pub(super) fn reservation(&self) -> Option<ReservationId> {
        match self.body {
            Body::BeginPayment { reservation, .. }
            | Body::PaymentFailed { reservation, .. }
            | Body::Confirm { reservation, .. }
            | Body::Release { reservation }
            | Body::Expire { reservation } => Some(reservation),
            Body::Return { reservation, .. } => reservation,
            Body::Reserve { .. }
            | Body::Adjust { .. }
            | Body::DefineSku { .. }
            | Body::SetGate { .. }
            | Body::Withdraw(_)
            | Body::Deposit(_) => None,
        }
    }

    /// The command, with SKUs by the engine's index, or by one that no engine gives. `written_at` is the time of the record.
    ///
    /// # Errors
    /// What can't be, in words.
    pub(super) fn command(
        &self,
        find: impl Fn(&SkuName) -> Option<SkuId>,
        written_at: Timestamp,
    ) -> Result<Command, String> {
        let cart = |lines: &[(SkuName, u32)]| {
            let lines = (0_u32..).zip(lines).map(|(index, (name, quantity))| Line {
                sku: find(name).unwrap_or(SkuId(u32::MAX - index)),
                quantity: *quantity,
            });
            Lines::new(lines).map_err(|error| error.to_string())
        };
        let sku = |name: &SkuName| find(name).unwrap_or(SkuId(u32::MAX));
        let (user, key) = (self.user, self.key);
        Ok(match &self.body {
            Body::Reserve { lines } => Reserve::cart(user, cart(lines)?)
                .key(key)
                .asked_at(self.asked_at.unwrap_or(written_at))
                .decide_by(self.decide_by.unwrap_or(Timestamp::MAX))
                .into(),
            Body::BeginPayment {
                reservation,
                payment_ref,
            } => BeginPayment::new(user, *reservation, *payment_ref)
                .key(key)
                .into(),
            Body::PaymentFailed {
                reservation,
                attempt,
                disposition,
            } => PaymentFailed::new(user, *reservation, *attempt, *disposition)
                .key(key)
                .into(),
            Body::Confirm {
                reservation,
                payment,
            } => match payment {
                Some((attempt, payment)) => Confirm::paid(user, *reservation, *attempt, *payment),
                None => Confirm::unpaid(user, *reservation),
            }
            .key(key)
            .into(),
            Body::Release { reservation } => Release::new(user, *reservation).key(key).into(),
            Body::Expire { reservation } => Expire {
                reservation: *reservation,
            }
            .into(),
            Body::Return {
                reservation,
                lines,
                reason,
            } => {
                let lines = lines.as_deref().map(cart).transpose()?;
                let what = match (reservation, lines) {
                    (Some(reservation), lines) => {
                        Return::of_reservation(user, key, *reservation, lines)
                    }
                    (None, Some(lines)) => Return::of_skus(user, key, lines),
                    (None, None) => return Err("a return names a reservation or lines".into()),
                };
                what.reason(*reason).into()
            }
            Body::Adjust {
                sku: name,
                delta,
                reason,
            } => Adjust::new(user, key, sku(name), *delta)
                .reason(*reason)
                .into(),
            Body::DefineSku {
                sku: name,
                total,
                rules,
            } => DefineSku::new(user, name.clone(), *total)
                .key(key)
                .rules(*rules)
                .map_err(|error| error.to_string())?
                .into(),
            Body::SetGate {
                sku: name,
                change,
                reason,
            } => SetGate::new(user, sku(name), *change)
                .key(key)
                .reason(*reason)
                .into(),
            Body::Withdraw(named) => Withdraw::new(user, key, named.transfer(sku))
                .map_err(|error| error.to_string())?
                .into(),
            Body::Deposit(named) => Deposit::new(user, key, named.transfer(sku))
                .map_err(|error| error.to_string())?
                .into(),
        })
    }
}

/// What a message asks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Asked {
    /// To decide this.
    Decide(Request),
    /// How a SKU stands as a pool.
    Pool(SkuName),
}

impl Asked {
    /// The SKUs that it names.
    pub(super) fn skus(&self) -> impl Iterator<Item = &SkuName> {
        let (request, pool) = match self {
            Self::Decide(request) => (Some(request), None),
            Self::Pool(sku) => (None, Some(sku)),
        };
        request.into_iter().flat_map(Request::skus).chain(pool)
    }

    /// Whether the SKU that it names may be new.
    pub(super) fn defines(&self) -> bool {
        matches!(self, Self::Decide(request) if matches!(request.body, Body::DefineSku { .. }))
    }

    /// The command: see [`Request::command`].
    ///
    /// # Errors
    /// What can't be, in words.
    pub(super) fn command(
        &self,
        find: impl Fn(&SkuName) -> Option<SkuId>,
        written_at: Timestamp,
    ) -> Result<Command, String> {
        match self {
            Self::Decide(request) => request.command(find, written_at),
            Self::Pool(sku) => Ok(Query::Pool(find(sku).unwrap_or(SkuId(u32::MAX))).into()),
        }
    }
}

/// Where an answer goes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct ReplyTo {
    /// The API node's life: a node that has been started anew takes no answers for the one before.
    #[serde(with = "super::hex::u64")]
    pub(super) node: u64,
    /// The partition of the reply topic that the node reads.
    pub(super) partition: i32,
    /// The node's own number of the request.
    pub(super) id: u64,
}
