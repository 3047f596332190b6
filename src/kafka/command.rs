//! A typed command as a request: what an API node that builds commands by their types sends.

use super::request::{Body, NamedTransfer, Request};
use crate::types::{Command, IdempotencyKey, Line, Lines, SkuId, SkuName, Timestamp, Transfer};

impl Request {
    /// The request for `command`. Its SKUs become names by `name_of`; `key` is used if it has none of its own. `None` for a
    /// query, which doesn't travel through a topic as a request, or a SKU without a name.
    pub fn from_command(
        command: Command,
        key: IdempotencyKey,
        name_of: impl Fn(SkuId) -> Option<SkuName>,
    ) -> Option<Self> {
        let carts = |lines: &Lines| -> Option<Vec<(SkuName, u32)>> {
            let named = |line: &Line| Some((name_of(line.sku)?, line.quantity));
            lines.as_slice().iter().map(named).collect()
        };
        let transfer = |of: Transfer| {
            Some(NamedTransfer {
                sku: name_of(of.sku)?,
                from: of.from,
                to: of.to,
                number: of.number,
                units: of.units,
            })
        };
        let origin = command.origin();
        let (mut asked_at, mut decide_by) = (None, None);
        let body = match command {
            Command::Reserve(c) => {
                let given = |at: Timestamp| (at != Timestamp::MAX).then_some(at);
                (asked_at, decide_by) = (given(c.asked_at), given(c.decide_by));
                Body::Reserve {
                    lines: carts(&c.lines)?,
                }
            }
            Command::BeginPayment(c) => Body::BeginPayment {
                reservation: c.reservation,
                payment_ref: c.payment_ref,
            },
            Command::PaymentFailed(c) => Body::PaymentFailed {
                reservation: c.reservation,
                attempt: c.attempt,
                disposition: c.disposition,
            },
            Command::Confirm(c) => Body::Confirm {
                reservation: c.reservation,
                payment: c.payment_ref.map(|payment| (c.attempt, payment)),
            },
            Command::Release(c) => Body::Release {
                reservation: c.reservation,
            },
            Command::Expire(c) => Body::Expire {
                reservation: c.reservation,
            },
            Command::Return(c) => Body::Return {
                reservation: c.reservation,
                lines: match &c.lines {
                    Some(lines) => Some(carts(lines)?),
                    None => None,
                },
                reason: c.reason,
            },
            Command::Adjust(c) => Body::Adjust {
                sku: name_of(c.sku)?,
                delta: c.delta,
                reason: c.reason,
            },
            Command::DefineSku(c) => Body::DefineSku {
                sku: c.name,
                total: c.total,
                rules: c.rules,
            },
            Command::SetGate(c) => Body::SetGate {
                sku: name_of(c.sku)?,
                change: c.change,
                reason: c.reason,
            },
            Command::Withdraw(c) => Body::Withdraw(transfer(c.transfer())?),
            Command::Deposit(c) => Body::Deposit(transfer(c.transfer())?),
            Command::Query(_) => return None,
        };
        Some(Self {
            user: origin.user,
            key: origin.key.unwrap_or(key),
            asked_at,
            decide_by,
            body,
        })
    }
}
