//! A reply message: what the writer decided, for the API node that asked. Version 1, JSON.
//!
//! ```json
//! {"v":1, "node":"9f3c..e1", "id":17, "decision":"reserved", "reservation":"res-0000000000042", "expires_at_us":1736937120250999}
//! {"v":1, "node":"9f3c..e1", "id":18, "decision":"sold_out", "line":0, "sku":0, "sku_id":"SNEAKER-42", "available":0, ..,
//!  "text":"SKU 0 is sold out: 0 available"}
//! ```
//!
//! `decision` is what was done, or a refusal's [code](RefusalCode::name) with the fields of that [`Refusal`], `sku_id` being the
//! name of the SKU that it speaks of. Every reply is of a durable decision. A request without an answer (the writer ended before it
//! was durable) has no reply from this writer: whoever asks again with the same key hears the truth from the next one.
//!
//! A `pool` request is answered with what the writer knows, if the SKU is defined there, and nothing is decided:
//!
//! ```json
//! {"v":1, "node":"9f3c..e1", "id":19, "decision":"pool", "pool":{"shard":2, "sku":0, "opening":2500, "deltas":0, "total":2497,
//!  "available":7, "reserved":90, "sold":2400, "accounts":[{"peer":0, "sent":{"last":1, "last_units":3, "units":3}, ..}]}}
//! ```

use super::hex;
use super::view::WireView;
use crate::types::{
    Bound, Confirmation, Decision, Field, HoldStatus, Kept, PaymentAttempt, PaymentRef, PoolView,
    Refusal, RefusalCode, Reservation, ReservationId, SkuId, SkuName, Timestamp,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

const VERSION: u8 = 1;

/// What a request was answered with.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    /// The decision. Indexes of SKUs in it are those of the writer's engine.
    pub decision: Decision,
    /// The name of the SKU that a refusal speaks of.
    pub sku: Option<SkuName>,
}

/// What a reply message brings.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answered {
    /// To a request.
    Decided(Reply),
    /// To the question how a SKU stands as a pool; `None` if it is not defined there.
    Pool(Option<PoolView>),
}

/// The word of a reply that decides nothing.
const POOL: &str = "pool";

/// The message as it lies in the topic; each decision and each refusal uses some of its fields.
#[derive(Default, Serialize, Deserialize)]
#[serde(default)]
struct Wire<'a> {
    v: u8,
    #[serde(with = "hex::u64")]
    node: u64,
    id: u64,
    #[serde(borrow)]
    decision: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    reservation: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    payment_ref: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    sku_id: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    status: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    field: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    bound: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expires_at_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    opens_at_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    not_before_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sale: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    units: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sku: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    line: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    max: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    has: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    available: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    lapsing: Option<u32>,
    #[serde(skip_serializing_if = "Option::is_none")]
    sold: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    min: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shard: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    expected: Option<u64>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    text: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pool: Option<WireView>,
}

/// The message that answers request `id` of a node.
pub(super) fn encode(node: u64, id: u64, reply: &Reply) -> Vec<u8> {
    let mut wire = Wire {
        v: VERSION,
        node,
        id,
        ..Wire::default()
    };
    let decision = match &reply.decision {
        Decision::Refused(refusal) => {
            wire.refused(refusal);
            wire.sku_id = reply.sku.as_ref().map(|name| Cow::Borrowed(name.as_str()));
            wire.text = Some(Cow::Owned(refusal.to_string()));
            refusal.code().name()
        }
        decision => wire.accepted(decision),
    };
    wire.decision = Cow::Borrowed(decision);
    serde_json::to_vec(&wire).unwrap_or_else(|error| unreachable!("plain fields: {error}"))
}

/// The message that tells request `id` of a node how a SKU stands as a pool.
pub(super) fn encode_pool(node: u64, id: u64, view: Option<&PoolView>) -> Vec<u8> {
    let wire = Wire {
        v: VERSION,
        node,
        id,
        decision: Cow::Borrowed(POOL),
        pool: view.map(WireView::from),
        ..Wire::default()
    };
    serde_json::to_vec(&wire).unwrap_or_else(|error| unreachable!("plain fields: {error}"))
}

/// The node and request that a message answers, and the answer.
///
/// # Errors
/// What is wrong with the message.
pub(super) fn decode(message: &[u8]) -> Result<(u64, u64, Answered), String> {
    let wire: Wire<'_> = serde_json::from_slice(message).map_err(|error| error.to_string())?;
    if wire.v != VERSION {
        return Err(format!("version {}, not {VERSION}", wire.v));
    }
    if wire.decision == POOL {
        let view = wire.pool.map(PoolView::from);
        return Ok((wire.node, wire.id, Answered::Pool(view)));
    }
    let decision = match RefusalCode::from_name(&wire.decision) {
        Some(code) => wire.refusal(code).map(Decision::Refused),
        None => wire.decided(&wire.decision),
    };
    let missing = || format!("a field of {} is missing or can't be", wire.decision);
    let sku = wire.sku_id.as_deref().map(SkuName::new).transpose();
    let reply = Reply {
        decision: decision.ok_or_else(missing)?,
        sku: sku.map_err(|error| error.to_string())?,
    };
    Ok((wire.node, wire.id, Answered::Decided(reply)))
}

/// The SKU that a refusal speaks of.
pub(super) fn sku_of(refusal: &Refusal) -> Option<SkuId> {
    match *refusal {
        Refusal::NotOpen { sku, .. }
        | Refusal::Paused { sku }
        | Refusal::RequestLimit { sku, .. }
        | Refusal::UserLimit { sku, .. }
        | Refusal::SoldOut { sku, .. }
        | Refusal::NothingToMove { sku }
        | Refusal::ExceedsSold { sku, .. } => Some(sku),
        _ => None,
    }
}

impl Wire<'_> {
    fn accepted(&mut self, decision: &Decision) -> &'static str {
        let micros = |at: &Timestamp| Some(at.as_micros());
        let text = |id: &dyn std::fmt::Display| Some(Cow::Owned(id.to_string()));
        match decision {
            Decision::Reserved(held) => {
                self.reservation = text(&held.id);
                self.expires_at_us = micros(&held.expires_at);
                "reserved"
            }
            Decision::PaymentBegun(payment) => {
                self.attempt = Some(payment.attempt);
                self.expires_at_us = micros(&payment.expires_at);
                "payment_begun"
            }
            Decision::PaymentFailed(Kept::Until(at)) => {
                self.expires_at_us = micros(at);
                "payment_failed"
            }
            Decision::PaymentFailed(Kept::Released) => "payment_failed",
            Decision::Confirmed(Confirmation::Sold { reservation }) => {
                self.reservation = text(reservation);
                "confirmed"
            }
            Decision::Confirmed(Confirmation::RefundDue { payment_ref }) => {
                self.payment_ref = text(payment_ref);
                "refund_due"
            }
            Decision::Released => "released",
            Decision::Expired => "expired",
            Decision::Returned { units } => {
                self.units = Some(*units);
                "returned"
            }
            Decision::Adjusted { total } => {
                self.total = Some(*total);
                "adjusted"
            }
            Decision::Defined { sku } => {
                self.sku = Some(sku.0);
                "defined"
            }
            Decision::GateSet { sale } => {
                self.sale = Some(*sale);
                "gate_set"
            }
            Decision::Withdrawn { units } => {
                self.units = Some(*units);
                "withdrawn"
            }
            Decision::Deposited { units } => {
                self.units = Some(*units);
                "deposited"
            }
            Decision::Refused(_) => unreachable!("a refusal has its own fields"),
        }
    }

    fn decided(&self, name: &str) -> Option<Decision> {
        Some(match name {
            "reserved" => Decision::Reserved(Reservation {
                id: self.reservation()?,
                expires_at: self.expires_at()?,
            }),
            "payment_begun" => Decision::PaymentBegun(PaymentAttempt {
                attempt: self.attempt?,
                expires_at: self.expires_at()?,
            }),
            "payment_failed" => {
                Decision::PaymentFailed(self.expires_at().map_or(Kept::Released, Kept::Until))
            }
            "confirmed" => Decision::Confirmed(Confirmation::Sold {
                reservation: self.reservation()?,
            }),
            "refund_due" => Decision::Confirmed(Confirmation::RefundDue {
                payment_ref: PaymentRef::new(hex::parse(self.payment_ref.as_deref()?)?)?,
            }),
            "released" => Decision::Released,
            "expired" => Decision::Expired,
            "returned" => Decision::Returned { units: self.units? },
            "adjusted" => Decision::Adjusted { total: self.total? },
            "defined" => Decision::Defined {
                sku: SkuId(self.sku?),
            },
            "gate_set" => Decision::GateSet { sale: self.sale? },
            "withdrawn" => Decision::Withdrawn { units: self.units? },
            "deposited" => Decision::Deposited { units: self.units? },
            _ => return None,
        })
    }

    fn refused(&mut self, refusal: &Refusal) {
        let micros = |at: Timestamp| at.as_micros();
        self.sku = sku_of(refusal).map(|sku| sku.0);
        match *refusal {
            Refusal::KeyConflict { field } | Refusal::SkuDiffers { field } => {
                self.field = Some(Cow::Borrowed(field.name()));
            }
            Refusal::TooOld
            | Refusal::TooLate
            | Refusal::UnknownReservation
            | Refusal::NotOwner
            | Refusal::NotConfirmed
            | Refusal::Paused { .. }
            | Refusal::NothingToMove { .. } => {}
            Refusal::Busy { bound } => {
                self.bound = Some(Cow::Borrowed(bound.name()));
            }
            Refusal::UnknownSku { line } => self.line = Some(line),
            Refusal::NotOpen { opens_at, .. } => self.opens_at_us = opens_at.map(micros),
            Refusal::TooManyLines { max } => self.max = Some(max.into()),
            Refusal::RequestLimit { line, max, .. } => {
                (self.line, self.max) = (Some(line), Some(max));
            }
            Refusal::UserLimit { line, max, has, .. } => {
                (self.line, self.max, self.has) = (Some(line), Some(max), Some(has));
            }
            Refusal::HoldLimit { max } => self.max = Some(max),
            Refusal::SoldOut {
                line,
                available,
                lapsing,
                not_before,
                ..
            } => {
                (self.line, self.available) = (Some(line), Some(available));
                (self.lapsing, self.not_before_us) = (Some(lapsing), not_before.map(micros));
            }
            Refusal::PaymentUsed { reservation } => {
                self.reservation = Some(Cow::Owned(reservation.to_string()));
            }
            Refusal::Ended { status } => self.status = Some(Cow::Borrowed(status.name())),
            Refusal::NotDue { expires_at } => self.expires_at_us = Some(micros(expires_at)),
            Refusal::InPayment { attempt } | Refusal::StaleAttempt { current: attempt } => {
                self.attempt = Some(attempt);
            }
            Refusal::ExceedsSold { line, sold, .. } => {
                (self.line, self.sold) = (Some(line), Some(sold));
            }
            Refusal::TotalOutOfRange { min } => self.min = Some(min),
            Refusal::OtherShard { shard } => self.shard = Some(shard),
            Refusal::OutOfOrder { expected } => self.expected = Some(expected),
        }
    }

    fn refusal(&self, code: RefusalCode) -> Option<Refusal> {
        let (sku, line) = (self.sku.map(SkuId), self.line);
        Some(match code {
            RefusalCode::KeyConflict => Refusal::KeyConflict {
                field: Field::from_name(self.field.as_deref()?)?,
            },
            RefusalCode::TooOld => Refusal::TooOld,
            RefusalCode::TooLate => Refusal::TooLate,
            RefusalCode::Busy => Refusal::Busy {
                bound: Bound::from_name(self.bound.as_deref()?)?,
            },
            RefusalCode::UnknownSku => Refusal::UnknownSku { line: line? },
            RefusalCode::NotOpen => Refusal::NotOpen {
                sku: sku?,
                opens_at: self.opens_at_us.map(Timestamp::from_micros),
            },
            RefusalCode::Paused => Refusal::Paused { sku: sku? },
            RefusalCode::TooManyLines => Refusal::TooManyLines {
                max: self.max?.try_into().ok()?,
            },
            RefusalCode::RequestLimit => Refusal::RequestLimit {
                line: line?,
                sku: sku?,
                max: self.max?,
            },
            RefusalCode::UserLimit => Refusal::UserLimit {
                line: line?,
                sku: sku?,
                max: self.max?,
                has: self.has?,
            },
            RefusalCode::HoldLimit => Refusal::HoldLimit { max: self.max? },
            RefusalCode::SoldOut => Refusal::SoldOut {
                line: line?,
                sku: sku?,
                available: self.available?,
                lapsing: self.lapsing?,
                not_before: self.not_before_us.map(Timestamp::from_micros),
            },
            RefusalCode::UnknownReservation => Refusal::UnknownReservation,
            RefusalCode::NotOwner => Refusal::NotOwner,
            RefusalCode::PaymentUsed => Refusal::PaymentUsed {
                reservation: self.reservation()?,
            },
            RefusalCode::Ended => Refusal::Ended {
                status: HoldStatus::from_name(self.status.as_deref()?)?,
            },
            RefusalCode::NotConfirmed => Refusal::NotConfirmed,
            RefusalCode::NotDue => Refusal::NotDue {
                expires_at: self.expires_at()?,
            },
            RefusalCode::InPayment => Refusal::InPayment {
                attempt: self.attempt?,
            },
            RefusalCode::StaleAttempt => Refusal::StaleAttempt {
                current: self.attempt?,
            },
            RefusalCode::ExceedsSold => Refusal::ExceedsSold {
                line: line?,
                sku: sku?,
                sold: self.sold?,
            },
            RefusalCode::TotalOutOfRange => Refusal::TotalOutOfRange { min: self.min? },
            RefusalCode::OtherShard => Refusal::OtherShard { shard: self.shard? },
            RefusalCode::OutOfOrder => Refusal::OutOfOrder {
                expected: self.expected?,
            },
            RefusalCode::NothingToMove => Refusal::NothingToMove { sku: sku? },
            RefusalCode::SkuDiffers => Refusal::SkuDiffers {
                field: Field::from_name(self.field.as_deref()?)?,
            },
        })
    }

    fn reservation(&self) -> Option<ReservationId> {
        self.reservation.as_deref()?.parse().ok()
    }

    fn expires_at(&self) -> Option<Timestamp> {
        self.expires_at_us.map(Timestamp::from_micros)
    }
}
