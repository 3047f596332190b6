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
//!
//! A key is required, so that a message that is delivered twice is decided once. An unknown version, kind or field, and one that
//! its kind doesn't have, is refused: whoever wrote it meant something. Without `asked_at_us` the record's own time counts.

use crate::types::{
    Adjust, BeginPayment, Command, Confirm, DefineSku, Disposition, Expire, Gate, IdempotencyKey,
    Line, Lines, PaymentFailed, PaymentRef, Reason, Release, ReservationId, Reserve, Return, Rules,
    SetGate, SkuId, SkuName, Timestamp, UserId,
};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

const VERSION: u8 = 1;
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
}

/// A command on its way through a topic.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Request {
    /// Who asks: a buyer, or the actor of an admin command.
    pub user: UserId,
    /// Recognises the request when it comes again.
    pub key: IdempotencyKey,
    /// When it was asked, if not when the message was made.
    pub asked_at: Option<Timestamp>,
    /// Past this time the answer is `TooLate`. For reservations.
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
            Body::Adjust { sku, .. } | Body::DefineSku { sku, .. } | Body::SetGate { sku, .. } => {
                (&[][..], Some(sku))
            }
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
            | Body::SetGate { .. } => None,
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
        })
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
}

/// The message that asks for `request` to be decided and answered to `reply`.
pub(super) fn encode(request: &Request, reply: Option<ReplyTo>) -> Vec<u8> {
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
    });
    serde_json::to_vec(&wire).unwrap_or_else(|error| unreachable!("plain fields: {error}"))
}

/// The request of a message, and where its answer goes.
///
/// # Errors
/// What is wrong with the message, for its dead letter.
pub(super) fn decode(message: &[u8]) -> Result<(Request, Option<ReplyTo>), String> {
    if message.len() > MESSAGE_SIZE_MAX {
        let len = message.len();
        return Err(format!("{len} bytes, at most {MESSAGE_SIZE_MAX} are read"));
    }
    let mut wire: Wire<'_> = serde_json::from_slice(message).map_err(|error| error.to_string())?;
    if wire.v != VERSION {
        return Err(format!("version {}, not {VERSION}", wire.v));
    }
    let kind = std::mem::take(&mut wire.kind);
    let body = wire.take_body(&kind)?;
    let is_hint = matches!(body, Body::Expire { .. });
    let request = Request {
        user: match wire.user.take() {
            None if is_hint => UserId::default(),
            user => UserId(hex("user", user)?),
        },
        key: match wire.key.take() {
            None if is_hint => IdempotencyKey::new(1),
            key => IdempotencyKey::new(hex("key", key)?),
        }
        .ok_or("key is zero")?,
        asked_at: wire.asked_at_us.take().map(Timestamp::from_micros),
        decide_by: wire.decide_by_us.take().map(Timestamp::from_micros),
        body,
    };
    let reply = wire.reply.take();
    wire.v = 0;
    if wire != Wire::default() {
        return Err(format!("a field that {kind} doesn't have"));
    }
    Ok((request, reply))
}

impl<'a> Wire<'a> {
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
    super::hex::parse(&text).ok_or_else(|| format!("{what} is not 32 hexadecimal digits"))
}
