//! The message of a request as it lies in the topic, both ways.

use super::{Asked, Body, MESSAGE_SIZE_MAX, NamedTransfer, ReplyTo, Request};
use crate::types::{
    Disposition, Gate, IdempotencyKey, PaymentRef, Reason, ReservationId, Rules, SkuName,
    Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

const VERSION: u8 = 1;
/// The one kind that decides nothing.
const POOL: &str = "pool";

#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireLine<'a> {
    #[serde(borrow)]
    sku_id: Cow<'a, str>,
    quantity: u32,
}

#[derive(PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct WireRules {
    hold_ms: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    per_user: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    per_request: Option<u32>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    opens_at_us: Option<u64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    closes_at_us: Option<u64>,
}

/// The message as it lies in the topic: what its kind doesn't have is left out.
#[derive(Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Wire<'a> {
    v: u8,
    #[serde(borrow)]
    kind: Cow<'a, str>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    user: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    key: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    asked_at_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    decide_by_us: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reply: Option<ReplyTo>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    lines: Option<Vec<WireLine<'a>>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    reservation: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    payment_ref: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    attempt: Option<u32>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    disposition: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    reason: Option<Cow<'a, str>>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    sku_id: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    delta: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    total: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    rules: Option<WireRules>,
    #[serde(borrow, skip_serializing_if = "Option::is_none")]
    change: Option<Cow<'a, str>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    from_shard: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    to_shard: Option<u16>,
    #[serde(skip_serializing_if = "Option::is_none")]
    number: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    units: Option<u64>,
}

/// The message that asks for `request` to be decided and answered to `reply`.
pub(in super::super) fn encode(request: &Request, reply: Option<ReplyTo>) -> Vec<u8> {
    let text = |id: &dyn std::fmt::Display| Some(Cow::Owned(id.to_string()));
    let wire_lines = |lines: &'_ [(SkuName, u32)]| {
        let lines = lines.iter().map(|(sku, quantity)| WireLine {
            sku_id: Cow::Owned(sku.as_str().to_owned()),
            quantity: *quantity,
        });
        Some(lines.collect())
    };
    let because = |reason: &Reason| {
        let text = reason.as_str();
        (!text.is_empty()).then(|| Cow::Owned(text.to_owned()))
    };
    let mut wire = Wire {
        v: VERSION,
        user: text(&request.user),
        key: text(&request.key),
        asked_at_us: request.asked_at.map(Timestamp::as_micros),
        decide_by_us: request.decide_by.map(Timestamp::as_micros),
        reply,
        reservation: request.reservation().and_then(|id| text(&id)),
        ..Wire::default()
    };
    wire.kind = Cow::Borrowed(match &request.body {
        Body::Reserve { lines } => {
            wire.lines = wire_lines(lines);
            "reserve"
        }
        Body::BeginPayment { payment_ref, .. } => {
            wire.payment_ref = text(payment_ref);
            "begin_payment"
        }
        Body::PaymentFailed {
            attempt,
            disposition,
            ..
        } => {
            wire.attempt = Some(*attempt);
            wire.disposition = Some(Cow::Borrowed(match disposition {
                Disposition::Keep => "keep",
                Disposition::Release => "release",
            }));
            "payment_failed"
        }
        Body::Confirm { payment, .. } => {
            wire.attempt = payment.map(|(attempt, _)| attempt);
            wire.payment_ref = payment.and_then(|(_, payment)| text(&payment));
            "confirm"
        }
        Body::Release { .. } => "release",
        Body::Expire { .. } => {
            (wire.user, wire.key) = (None, None);
            "expire"
        }
        Body::Return { lines, reason, .. } => {
            wire.lines = lines.as_deref().and_then(wire_lines);
            wire.reason = because(reason);
            "return"
        }
        Body::Adjust { sku, delta, reason } => {
            wire.sku_id = text(sku);
            wire.delta = Some(*delta);
            wire.reason = because(reason);
            "adjust"
        }
        Body::DefineSku { sku, total, rules } => {
            wire.sku_id = text(sku);
            wire.total = Some(*total);
            let bound = |at: Timestamp, none| (at != none).then(|| at.as_micros());
            wire.rules = Some(WireRules {
                hold_ms: rules.hold_ms,
                per_user: rules.per_user,
                per_request: rules.per_request,
                opens_at_us: bound(rules.opens_at, Timestamp::MIN),
                closes_at_us: bound(rules.closes_at, Timestamp::MAX),
            });
            "define_sku"
        }
        Body::SetGate {
            sku,
            change,
            reason,
        } => {
            wire.sku_id = text(sku);
            wire.change = Some(Cow::Borrowed(change.name()));
            wire.reason = because(reason);
            "set_gate"
        }
        Body::Withdraw(transfer) => {
            wire.put_transfer(transfer);
            "withdraw"
        }
        Body::Deposit(transfer) => {
            wire.put_transfer(transfer);
            "deposit"
        }
    });
    wire.bytes()
}

/// The message that asks how a SKU stands as a pool.
pub(in super::super) fn encode_pool(sku: &SkuName, reply: ReplyTo) -> Vec<u8> {
    let wire = Wire {
        v: VERSION,
        kind: Cow::Borrowed(POOL),
        sku_id: Some(Cow::Borrowed(sku.as_str())),
        reply: Some(reply),
        ..Wire::default()
    };
    wire.bytes()
}

/// The request of a message, and where its answer goes.
///
/// # Errors
/// What is wrong with the message, for its dead letter.
pub(in super::super) fn decode(message: &[u8]) -> Result<(Asked, Option<ReplyTo>), String> {
    if message.len() > MESSAGE_SIZE_MAX {
        let len = message.len();
        return Err(format!("{len} bytes, at most {MESSAGE_SIZE_MAX} are read"));
    }
    let mut wire: Wire<'_> = serde_json::from_slice(message).map_err(|error| error.to_string())?;
    if wire.v != VERSION {
        return Err(format!("version {}, not {VERSION}", wire.v));
    }
    let kind = std::mem::take(&mut wire.kind);
    let asked = if kind == POOL {
        Asked::Pool(wire.take_sku()?)
    } else {
        Asked::Decide(wire.take_request(&kind)?)
    };
    let reply = wire.reply.take();
    wire.v = 0;
    if wire != Wire::default() {
        return Err(format!("a field that {kind} doesn't have"));
    }
    Ok((asked, reply))
}

impl<'a> Wire<'a> {
    fn bytes(&self) -> Vec<u8> {
        serde_json::to_vec(self).unwrap_or_else(|error| unreachable!("plain fields: {error}"))
    }

    fn put_transfer(&mut self, transfer: &NamedTransfer) {
        self.sku_id = Some(Cow::Owned(transfer.sku.as_str().to_owned()));
        (self.from_shard, self.to_shard) = (Some(transfer.from), Some(transfer.to));
        (self.number, self.units) = (Some(transfer.number), Some(transfer.units));
    }

    fn take_transfer(&mut self) -> Result<NamedTransfer, String> {
        Ok(NamedTransfer {
            sku: self.take_sku()?,
            from: self.from_shard.take().ok_or("from_shard is missing")?,
            to: self.to_shard.take().ok_or("to_shard is missing")?,
            number: self.number.take().ok_or("number is missing")?,
            units: self.units.take().ok_or("units is missing")?,
        })
    }

    fn take_request(&mut self, kind: &str) -> Result<Request, String> {
        let body = self.take_body(kind)?;
        let is_hint = matches!(body, Body::Expire { .. });
        Ok(Request {
            user: match self.user.take() {
                None if is_hint => UserId::default(),
                user => UserId(hex("user", user)?),
            },
            key: match self.key.take() {
                None if is_hint => IdempotencyKey::new(1),
                key => IdempotencyKey::new(hex("key", key)?),
            }
            .ok_or("key is zero")?,
            asked_at: self.asked_at_us.take().map(Timestamp::from_micros),
            decide_by: self.decide_by_us.take().map(Timestamp::from_micros),
            body,
        })
    }

    fn take_body(&mut self, kind: &str) -> Result<Body, String> {
        Ok(match kind {
            "reserve" => Body::Reserve {
                lines: self.take_lines()?.ok_or("lines are missing")?,
            },
            "begin_payment" => Body::BeginPayment {
                reservation: self.take_reservation()?,
                payment_ref: self.take_payment()?.ok_or("payment_ref is missing")?,
            },
            "payment_failed" => Body::PaymentFailed {
                reservation: self.take_reservation()?,
                attempt: self.attempt.take().ok_or("attempt is missing")?,
                disposition: match self.disposition.take().as_deref() {
                    Some("keep") => Disposition::Keep,
                    Some("release") => Disposition::Release,
                    _ => return Err("disposition is neither keep nor release".into()),
                },
            },
            "confirm" => Body::Confirm {
                reservation: self.take_reservation()?,
                payment: match (self.attempt.take(), self.take_payment()?) {
                    (None, None) => None,
                    (Some(attempt), Some(payment)) => Some((attempt, payment)),
                    _ => return Err("attempt and payment_ref come together".into()),
                },
            },
            "release" => Body::Release {
                reservation: self.take_reservation()?,
            },
            "expire" => Body::Expire {
                reservation: self.take_reservation()?,
            },
            "return" => Body::Return {
                reservation: match self.reservation {
                    Some(_) => Some(self.take_reservation()?),
                    None => None,
                },
                lines: self.take_lines()?,
                reason: self.take_reason(),
            },
            "adjust" => Body::Adjust {
                sku: self.take_sku()?,
                delta: self.delta.take().ok_or("delta is missing")?,
                reason: self.take_reason(),
            },
            "define_sku" => Body::DefineSku {
                sku: self.take_sku()?,
                total: self.total.take().ok_or("total is missing")?,
                rules: self.take_rules(),
            },
            "set_gate" => Body::SetGate {
                sku: self.take_sku()?,
                change: self
                    .change
                    .take()
                    .and_then(|word| Gate::from_name(&word))
                    .ok_or("change is no gate's change")?,
                reason: self.take_reason(),
            },
            "withdraw" => Body::Withdraw(self.take_transfer()?),
            "deposit" => Body::Deposit(self.take_transfer()?),
            kind => return Err(format!("unknown kind {kind:?}")),
        })
    }

    fn take_lines(&mut self) -> Result<Option<Vec<(SkuName, u32)>>, String> {
        let named = |line: WireLine<'a>| {
            let name = SkuName::new(&line.sku_id).map_err(|error| error.to_string())?;
            Ok((name, line.quantity))
        };
        let lines = self.lines.take();
        lines
            .map(|lines| lines.into_iter().map(named).collect())
            .transpose()
    }

    fn take_sku(&mut self) -> Result<SkuName, String> {
        let name = self.sku_id.take().ok_or("sku_id is missing")?;
        SkuName::new(&name).map_err(|error| error.to_string())
    }

    fn take_reservation(&mut self) -> Result<ReservationId, String> {
        let id = self.reservation.take().ok_or("reservation is missing")?;
        id.parse().map_err(|error| format!("{error}: {id:?}"))
    }

    fn take_payment(&mut self) -> Result<Option<PaymentRef>, String> {
        let Some(text) = self.payment_ref.take() else {
            return Ok(None);
        };
        let payment = PaymentRef::new(hex("payment_ref", Some(text))?);
        payment
            .map(Some)
            .ok_or_else(|| "payment_ref is zero".into())
    }

    fn take_reason(&mut self) -> Reason {
        Reason::new(self.reason.take().as_deref().unwrap_or_default())
    }

    fn take_rules(&mut self) -> Rules {
        let Some(rules) = self.rules.take() else {
            return Rules::default();
        };
        let bound = |at: Option<u64>, none| at.map_or(none, Timestamp::from_micros);
        Rules {
            hold_ms: rules.hold_ms,
            per_user: rules.per_user,
            per_request: rules.per_request,
            opens_at: bound(rules.opens_at_us, Timestamp::MIN),
            closes_at: bound(rules.closes_at_us, Timestamp::MAX),
        }
    }
}

fn hex(what: &str, text: Option<Cow<'_, str>>) -> Result<u128, String> {
    let text = text.ok_or_else(|| format!("{what} is missing"))?;
    super::super::hex::parse(&text).ok_or_else(|| format!("{what} is not 32 hexadecimal digits"))
}
