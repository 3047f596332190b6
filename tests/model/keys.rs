//! Keys: whose answer is given again, what a key's payload differs in, and which answers are kept.

use super::{Key, Model};
use stockade::types::{
    Command, CommandKind, Decision, Field, IdempotencyKey, Refusal, SkuId, Transfer, UserId,
};

impl Model {
    pub(super) fn known(
        &self,
        kind: CommandKind,
        user: UserId,
        key: Option<IdempotencyKey>,
    ) -> Option<&Key> {
        let key = key?;
        self.keys.iter().rev().find(|known| {
            known.command.kind() == kind
                && known.command.origin().user == user
                && key_of(&known.command) == Some(key)
                && known
                    .scope
                    .is_none_or(|(sku, sale)| self.sale_goes_on(sku, sale))
        })
    }

    pub(super) fn sale_goes_on(&self, sku: SkuId, sale: u32) -> bool {
        let stock = &self.skus[sku.0 as usize];
        stock.sale == sale && !stock.has_ended
    }

    pub(super) fn keys_are_full(&self, command: &Command) -> bool {
        let accepted = self.keys.iter().filter(|key| key.ordinal.is_none()).count();
        key_of(command).is_some() && accepted >= self.limits.accepted_keys_max as usize
    }

    pub(super) fn remember(&mut self, command: &Command, decision: Decision) {
        let scope = |sku: SkuId| Some((sku, self.skus[sku.0 as usize].sale));
        let (scope, ordinal) = match (decision, command) {
            (Decision::Refused(refusal), _) => {
                let scope = match refusal {
                    Refusal::KeyConflict { .. }
                    | Refusal::TooOld
                    | Refusal::TooLate
                    | Refusal::Busy { .. }
                    | Refusal::UnknownSku { .. }
                    | Refusal::NotOpen { .. }
                    | Refusal::Paused { .. }
                    | Refusal::OutOfOrder { .. }
                    | Refusal::NothingToMove { .. } => return,
                    Refusal::RequestLimit { sku, .. }
                    | Refusal::UserLimit { sku, .. }
                    | Refusal::SoldOut { sku, .. } => scope(sku),
                    _ => None,
                };
                self.refusals += 1;
                (scope, Some(self.refusals))
            }
            (_, Command::Reserve(c)) => (scope(c.lines.first().sku), None),
            _ => (None, None),
        };
        self.keys.push(Key {
            command: command.clone(),
            decision,
            decided_at: self.now,
            scope,
            ordinal,
        });
        self.forget();
    }
}

pub(super) fn key_of(command: &Command) -> Option<IdempotencyKey> {
    command.origin().key
}

fn differing(a: Transfer, b: Transfer) -> Vec<(Field, bool)> {
    let way = |of: Transfer| (of.from, of.to, of.number);
    vec![
        (Field::Sku, a.sku != b.sku),
        (Field::Units, a.units != b.units),
        (Field::Transfer, way(a) != way(b)),
    ]
}

/// The first field of a payload that differs between two commands of one kind.
pub(super) fn difference(first: &Command, now: &Command) -> Option<Field> {
    let fields = match (first, now) {
        (Command::Reserve(a), Command::Reserve(b)) => vec![(Field::Lines, a.lines != b.lines)],
        (Command::BeginPayment(a), Command::BeginPayment(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::PaymentRef, a.payment_ref != b.payment_ref),
        ],
        (Command::PaymentFailed(a), Command::PaymentFailed(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Attempt, a.attempt != b.attempt),
            (Field::Disposition, a.disposition != b.disposition),
        ],
        (Command::Confirm(a), Command::Confirm(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Attempt, a.attempt != b.attempt),
            (Field::PaymentRef, a.payment_ref != b.payment_ref),
        ],
        (Command::Release(a), Command::Release(b)) => {
            vec![(Field::Reservation, a.reservation != b.reservation)]
        }
        (Command::Return(a), Command::Return(b)) => vec![
            (Field::Reservation, a.reservation != b.reservation),
            (Field::Lines, a.lines != b.lines),
        ],
        (Command::Adjust(a), Command::Adjust(b)) => vec![
            (Field::Sku, a.sku != b.sku),
            (Field::Delta, a.delta != b.delta),
        ],
        (Command::DefineSku(a), Command::DefineSku(b)) => vec![
            (Field::Sku, a.name != b.name),
            (Field::Total, a.total != b.total),
            (Field::Rules, a.rules_given() != b.rules_given()),
        ],
        (Command::SetGate(a), Command::SetGate(b)) => vec![
            (Field::Sku, a.sku != b.sku),
            (Field::Change, a.change != b.change),
        ],
        (Command::Withdraw(a), Command::Withdraw(b)) => differing(a.transfer(), b.transfer()),
        (Command::Deposit(a), Command::Deposit(b)) => differing(a.transfer(), b.transfer()),
        _ => Vec::new(),
    };
    let differs = fields.into_iter().find(|&(_, differs)| differs);
    differs.map(|(field, _)| field)
}
