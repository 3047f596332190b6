//! Commands made of bytes: any bytes are a script, so property tests and the fuzzer share one generator.
//!
//! Few users, keys, payments and SKUs, so that everything is met again; identifiers mostly come from earlier
//! answers; times are near deadlines and retentions.

use stockade::allocator::Limits;
use stockade::types::{
    Adjust, BeginPayment, Command, CommandKind, Confirm, DefineSku, Deposit, Disposition, Expire,
    Gate, IdempotencyKey, Line, Lines, PaymentFailed, PaymentRef, Policy, Query, Release,
    ReservationId, Reserve, Return, Rules, SetGate, SkuId, SkuName, TOTAL_MAX, Timestamp, Transfer,
    UserId, Withdraw,
};

const GATES: [Gate; 7] = [
    Gate::Open,
    Gate::Close,
    Gate::PauseReservations,
    Gate::ResumeReservations,
    Gate::PauseConfirms,
    Gate::ResumeConfirms,
    Gate::EndSale,
];

const KINDS: [CommandKind; 7] = [
    CommandKind::Reserve,
    CommandKind::Confirm,
    CommandKind::BeginPayment,
    CommandKind::Adjust,
    CommandKind::SetGate,
    CommandKind::Withdraw,
    CommandKind::Deposit,
];

/// Bytes that are taken one by one; zeros when they are used up.
pub(crate) struct Script<'a> {
    bytes: &'a [u8],
    /// Reservations, with what was last said of their payment.
    pub(crate) reservations: Vec<(ReservationId, UserId, u32)>,
    pub(crate) now: Timestamp,
    /// The next numbers of transfers, as far as the answers have told: out, in.
    pub(crate) numbers: [std::collections::BTreeMap<(SkuId, u16), u64>; 2],
}

impl<'a> Script<'a> {
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self {
            bytes,
            reservations: Vec::new(),
            now: Timestamp::MIN,
            numbers: Default::default(),
        }
    }

    pub(crate) fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    pub(crate) fn byte(&mut self) -> u8 {
        let Some((&first, rest)) = self.bytes.split_first() else {
            return 0;
        };
        self.bytes = rest;
        first
    }

    /// A number below `n`.
    pub(crate) fn below(&mut self, n: u8) -> u8 {
        self.byte() % n
    }

    fn one_in(&mut self, n: u8) -> bool {
        self.below(n) == n - 1
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::from(self.byte()) % from.len()]
    }

    pub(crate) fn limits(&mut self) -> Limits {
        let roomy = Limits {
            lines_max: 20,
            holds_per_user_max: 4,
            expiries_per_batch_max: 100,
            presize: 0,
            ..Limits::default()
        };
        match self.below(6) {
            0 => Limits {
                reservations_max: 6,
                ..roomy
            },
            1 => Limits {
                accepted_keys_max: 8,
                expiries_per_batch_max: 1,
                ..roomy
            },
            2 => Limits {
                counters_max: 4,
                skus_max: 3,
                ..roomy
            },
            3 => Limits {
                payments_max: 3,
                expiries_per_batch_max: 2,
                lines_max: 2,
                ..roomy
            },
            4 => Limits {
                holds_per_user_max: 2,
                transfers_max: 2,
                ..roomy
            },
            _ => roomy,
        }
    }

    pub(crate) fn policy(&mut self) -> Policy {
        Policy {
            key_retention_ms: self.pick(&[40, 90, 300]),
            ended_retention_ms: self.pick(&[30, 100, 300]),
            payment_grace_ms: self.pick(&[5, 10, 30]),
            refused_keys_max: self.pick(&[1, 3, 8]),
        }
    }

    /// The next stamp: soon, or just around the time at which something ends.
    pub(crate) fn step(&mut self, next_deadline: Option<Timestamp>, policy: &Policy) -> Timestamp {
        let retention = policy.key_retention_ms.min(policy.ended_retention_ms);
        let to = match self.below(10) {
            0..=2 => self.now,
            3 => self.now.plus_micros(1),
            4 => self.now.plus_ms(1),
            5 => self.now.plus_ms(self.byte().into()),
            6 => self.now.plus_micros(retention * 1_000 - 1),
            7 => self.now.plus_ms(retention),
            8 => next_deadline.unwrap_or(self.now),
            _ => {
                let at = next_deadline.map_or(0, Timestamp::as_micros);
                Timestamp::from_micros(at.saturating_sub(1))
            }
        };
        self.now = self.now.max(to);
        self.now
    }

    fn user(&mut self) -> UserId {
        UserId::from(u64::from(self.below(4)))
    }

    fn key(&mut self) -> Option<IdempotencyKey> {
        let number = self.below(12);
        IdempotencyKey::new(number.into()).filter(|_| number < 9)
    }

    fn required_key(&mut self) -> IdempotencyKey {
        let number = u128::from(self.below(30)) + 1;
        IdempotencyKey::new(number).expect("not zero")
    }

    fn payment(&mut self) -> PaymentRef {
        let number = u128::from(self.below(16)) + 1;
        PaymentRef::new(number).expect("not zero")
    }

    fn sku(&mut self) -> SkuId {
        SkuId((self.below(17) / 4).into())
    }

    fn lines(&mut self) -> Lines {
        let quantity = |script: &mut Self| match script.below(12) {
            11 => 40,
            n => u32::from(n) / 4 + 1,
        };
        let len = match self.below(16) {
            0..=9 => 1,
            10..=14 => 2,
            _ => 1 + usize::from(self.below(24)),
        };
        // A long cart needs as many SKUs, which only exist after `define` has met as many names.
        let first = self.sku().0;
        let lines: Vec<Line> = (0..len)
            .map(|at| Line {
                sku: SkuId(first + u32::try_from(at).expect("short")),
                quantity: quantity(self),
            })
            .collect();
        Lines::new(lines).expect("every SKU once, small quantities")
    }

    /// A reservation, mostly a recent one, with its user and payment attempt, mostly the right ones.
    fn reservation(&mut self) -> (ReservationId, UserId, u32) {
        if self.reservations.is_empty() || self.one_in(24) {
            let id = ReservationId::new(self.below(2).into(), u64::from(self.byte()) + 1);
            return (id, self.user(), 0);
        }
        let back = usize::from(self.byte() % 8).min(self.reservations.len() - 1);
        let (id, mut user, mut attempt) = self.reservations[self.reservations.len() - 1 - back];
        if self.one_in(16) {
            user = self.user();
        }
        if self.one_in(8) {
            attempt = self.below(3).into();
        }
        (id, user, attempt)
    }

    pub(crate) fn command(&mut self) -> Command {
        match self.below(36) {
            0..=9 => self.reserve(),
            10..=12 => {
                let (id, user, _) = self.reservation();
                let mut c = BeginPayment::new(user, id, self.payment());
                c.key = self.key();
                c.into()
            }
            13..=14 => {
                let (id, user, attempt) = self.reservation();
                let disposition = self.pick(&[Disposition::Keep, Disposition::Release]);
                let mut c = PaymentFailed::new(user, id, attempt, disposition);
                c.key = self.key();
                c.into()
            }
            15..=19 => {
                let (id, user, attempt) = self.reservation();
                let mut c = if self.one_in(3) {
                    Confirm::unpaid(user, id)
                } else {
                    Confirm::paid(user, id, attempt, self.payment())
                };
                c.key = self.key();
                c.into()
            }
            20 => {
                let (id, user, _) = self.reservation();
                let mut c = Release::new(user, id);
                c.key = self.key();
                c.into()
            }
            21 => {
                let (reservation, ..) = self.reservation();
                Expire { reservation }.into()
            }
            22..=23 => self.returns(),
            24 => {
                let delta = match self.below(8) {
                    0 => i64::MAX,
                    1 => i64::MIN,
                    n => i64::from(n) - 4,
                };
                Adjust::new(self.user(), self.required_key(), self.sku(), delta).into()
            }
            25..=26 => self.define(),
            27..=29 => {
                let sku = self.sku();
                // Mostly open, or nothing is ever sold.
                let change = if self.below(3) > 0 {
                    Gate::Open
                } else {
                    self.pick(&GATES)
                };
                let mut c = SetGate::new(self.user(), sku, change);
                c.key = self.key();
                c.into()
            }
            30..=33 => self.transfer(),
            _ => self.query(),
        }
    }

    /// Mostly the next one of its kind between this shard and one of two others, or the last one again.
    fn transfer(&mut self) -> Command {
        let (sku, peer) = (self.sku(), 1 + u16::from(self.below(2)));
        let is_deposit = self.below(2) == 1;
        let known = &self.numbers[usize::from(is_deposit)];
        let last = known.get(&(sku, peer)).copied().unwrap_or(0);
        let number = match self.below(8) {
            0..=4 => last + 1,
            5..=6 => last.max(1),
            _ => u64::from(self.below(4)) + 1,
        };
        let here = match self.below(24) {
            23 => 3,
            _ => 0,
        };
        let units = match self.below(24) {
            23 => TOTAL_MAX,
            n => u64::from(n) / 8 + 1,
        };
        let (from, to) = if is_deposit {
            (peer, here)
        } else {
            (here, peer)
        };
        let (user, key) = (self.user(), self.required_key());
        let transfer = Transfer {
            sku,
            from,
            to,
            number,
            units,
        };
        if is_deposit {
            Deposit::new(user, key, transfer).expect("can be").into()
        } else {
            Withdraw::new(user, key, transfer).expect("can be").into()
        }
    }

    fn reserve(&mut self) -> Command {
        let user = self.user();
        let mut c = Reserve::cart(user, self.lines());
        c.key = self.key();
        let ms = u64::from(self.byte());
        match self.below(16) {
            0 => c.decide_by = Timestamp::from_micros(self.now.as_micros().saturating_sub(1)),
            1 => c.decide_by = self.now,
            2 => {
                let micros = self.now.as_micros().saturating_sub(ms * 1_000);
                c.asked_at = Timestamp::from_micros(micros);
            }
            _ => {}
        }
        c.into()
    }

    fn returns(&mut self) -> Command {
        let (id, ..) = self.reservation();
        let (user, key) = (self.user(), self.required_key());
        match self.below(4) {
            0 => Return::of_skus(user, key, self.lines()),
            1 => Return::of_reservation(user, key, id, Some(self.lines())),
            _ => Return::of_reservation(user, key, id, None),
        }
        .into()
    }

    fn define(&mut self) -> Command {
        let name = format!("SKU-{}", self.below(22));
        let name = SkuName::new(&name).expect("a plain name");
        let total = match self.below(16) {
            15 => TOTAL_MAX + 1,
            n => u64::from(n),
        };
        let mut rules = Rules {
            hold_ms: self.pick(&[10, 10, 20, 50]),
            per_user: self.pick(&[None, Some(1), Some(2), Some(6)]),
            per_request: self.pick(&[None, None, Some(2)]),
            ..Rules::default()
        };
        match self.below(12) {
            0 => rules.opens_at = self.now.plus_ms(30),
            1 => rules.closes_at = self.now.plus_ms(100),
            _ => {}
        }
        let c = DefineSku::new(self.user(), name, total).rules(rules);
        let mut c = c.expect("rules that can be");
        c.key = self.key();
        c.into()
    }

    fn query(&mut self) -> Command {
        let (id, ..) = self.reservation();
        let user = self.user();
        match self.below(5) {
            0 => Query::Reservation(id),
            1 => Query::ReservationsOf(user),
            2 => Query::Sku(self.sku()),
            3 => Query::Pool(self.sku()),
            _ => Query::Status {
                user,
                kind: self.pick(&KINDS),
                key: self.required_key(),
            },
        }
        .into()
    }
}
