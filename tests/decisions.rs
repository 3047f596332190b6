//! One row per refusal, one per pair of refusals that both apply, and examples for the laws that the allocator upholds:
//! what is valid, what is not, and what stops being valid.

#[path = "decisions/log.rs"]
mod log;
#[path = "decisions/retention.rs"]
mod retention;
#[path = "decisions/transfers.rs"]
mod transfers;

use stockade::allocator::{Allocator, Limits, Violation};
use stockade::types::{
    Adjust, Answer, Availability, Batch, BatchHeader, BeginPayment, Command, Confirm, Confirmation,
    Decision, DefineSku, Deposit, Disposition, Event, EventKind, Expire, Gate, IdempotencyKey,
    Line, Lines, PaymentFailed, PaymentRef, Policy, Query, QueryAnswer, Refusal, RefusalCode,
    Release, ReservationId, Reserve, Return, Rules, SaleStatus, SetGate, SkuId, SkuName, SkuView,
    TOTAL_MAX, Timestamp, Transfer, UserId, Withdraw,
};

const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);
const ADMIN: UserId = UserId(9);
/// 2 units, 1 per user.
const A: SkuId = SkuId(0);
/// 5 units, no limit per user, 3 per request.
const B: SkuId = SkuId(1);
/// Defined, never opened.
const CLOSED: SkuId = SkuId(2);
/// Open, reservations paused.
const PAUSED: SkuId = SkuId(3);
const UNKNOWN: SkuId = SkuId(99);
const HOLD_MS: u64 = 100;

/// An allocator with four SKUs; every command is a batch of its own, at the time `now`.
struct Sale {
    allocator: Allocator,
    limits: Limits,
    now: Timestamp,
    log: Vec<Batch>,
}

impl Sale {
    fn with(limits: Limits) -> Self {
        let mut sale = Self {
            allocator: Allocator::new(limits, 3),
            limits,
            now: Timestamp::from_micros(1_000_000_000),
            log: Vec::new(),
        };
        let policy = Policy {
            key_retention_ms: 1_000,
            ended_retention_ms: 1_000,
            payment_grace_ms: 60,
            refused_keys_max: 3,
        };
        sale.batch(|allocator, batch| allocator.set_policy(policy, batch));
        let skus = [
            (2, Some(1), None),
            (5, None, Some(3)),
            (5, None, None),
            (5, None, None),
        ];
        for (number, (total, per_user, per_request)) in skus.into_iter().enumerate() {
            let rules = Rules {
                hold_ms: u32::try_from(HOLD_MS).expect("short"),
                per_user,
                per_request,
                ..Rules::default()
            };
            let name = SkuName::new(&format!("SKU-{number}")).expect("a plain name");
            let define = DefineSku::new(ADMIN, name, total).rules(rules);
            sale.ask(define.expect("rules that can be"));
        }
        for sku in [A, B, PAUSED] {
            sale.gate(sku, Gate::Open);
        }
        sale.gate(PAUSED, Gate::PauseReservations);
        sale
    }

    fn new() -> Self {
        Self::with(Limits {
            lines_max: 2,
            holds_per_user_max: 2,
            ..Limits::default()
        })
    }

    fn batch<T>(
        &mut self,
        work: impl FnOnce(&mut Allocator, &mut Batch) -> Result<T, Violation>,
    ) -> T {
        let mut batch = Batch::default();
        batch.header = BatchHeader {
            number: self.log.len() as u64 + 1,
            stamp: self.now,
            first_sequence: self.allocator.sequence() + 1,
            ..BatchHeader::default()
        };
        self.allocator
            .begin(&batch.header)
            .expect("batches follow each other");
        let result = work(&mut self.allocator, &mut batch).expect("no law breaks");
        self.allocator
            .finish(&mut Vec::new())
            .expect("no law is broken");
        assert!(self.allocator.audit().is_ok());
        self.log.push(batch);
        result
    }

    fn ask(&mut self, command: impl Into<Command>) -> Decision {
        let command = command.into();
        match self.batch(|allocator, batch| allocator.decide(&command, batch)) {
            Answer::Decided(decision) => decision,
            answer => panic!("not a decision: {answer:?}"),
        }
    }

    fn gate(&mut self, sku: SkuId, change: Gate) -> Decision {
        self.ask(SetGate::new(ADMIN, sku, change))
    }

    /// A hold that must succeed.
    fn held(&mut self, user: UserId, sku: SkuId, units: u32) -> ReservationId {
        match self.ask(reserve(user, sku, units)) {
            Decision::Reserved(reservation) => reservation.id,
            decision => panic!("not reserved: {decision:?}"),
        }
    }

    fn sold(&mut self, user: UserId, sku: SkuId, units: u32) -> ReservationId {
        let id = self.held(user, sku, units);
        assert_eq!(self.ask(Confirm::unpaid(user, id)), confirmed(id));
        id
    }

    fn view(&mut self, sku: SkuId) -> Option<SkuView> {
        let query = Query::Sku(sku).into();
        match self.batch(|allocator, batch| allocator.decide(&query, batch)) {
            Answer::Found(found) => match *found {
                QueryAnswer::Sku(view) => view,
                found => panic!("not a SKU: {found:?}"),
            },
            answer => panic!("not found: {answer:?}"),
        }
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    fn counts(&self, sku: SkuId) -> [u64; 4] {
        let Availability {
            available,
            reserved,
            sold,
            total,
            ..
        } = self.allocator.availability(sku).expect("a known SKU");
        [available, reserved, sold, total]
    }

    /// What a replay of the log gives.
    fn replayed(&self) -> Self {
        let mut allocator = Allocator::new(self.limits, 77);
        for batch in &self.log {
            allocator.apply_batch(batch).expect("the log replays");
        }
        Self {
            allocator,
            limits: self.limits,
            now: self.now,
            log: self.log.clone(),
        }
    }

    /// Replays the log and one more event, which nobody decided.
    fn forge(&self, kind: EventKind) -> Result<(), Violation> {
        let mut allocator = self.replayed().allocator;
        let header = BatchHeader {
            stamp: self.now,
            first_sequence: allocator.sequence() + 1,
            ..BatchHeader::default()
        };
        allocator.begin(&header)?;
        let event = Event {
            sequence: header.first_sequence,
            at: self.now,
            shard: 0,
            epoch: 0,
            kind,
        };
        allocator.apply(&event)
    }
}

fn reserve(user: UserId, sku: SkuId, units: u32) -> Reserve {
    Reserve::one(user, sku, units).expect("a quantity")
}

fn cart(user: UserId, lines: &[(SkuId, u32)]) -> Reserve {
    let lines = lines.iter().map(|&(sku, quantity)| Line { sku, quantity });
    Reserve::cart(user, Lines::new(lines).expect("a cart"))
}

fn key(number: u128) -> IdempotencyKey {
    IdempotencyKey::new(number).expect("not zero")
}

fn paid(number: u128) -> PaymentRef {
    PaymentRef::new(number).expect("not zero")
}

fn confirmed(reservation: ReservationId) -> Decision {
    Decision::Confirmed(Confirmation::Sold { reservation })
}

fn nobodys() -> ReservationId {
    ReservationId::new(0, 4_000)
}

fn units(sku: SkuId, quantity: u32) -> Lines {
    Lines::one(sku, quantity).expect("a quantity")
}

fn moving(sku: SkuId, (from, to): (u16, u16), number: u64, units: u64) -> Transfer {
    Transfer {
        sku,
        from,
        to,
        number,
        units,
    }
}

fn withdraw(id: u128, sku: SkuId, way: (u16, u16), number: u64, units: u64) -> Withdraw {
    Withdraw::new(ADMIN, key(id), moving(sku, way, number, units)).expect("a transfer")
}

fn deposit(id: u128, sku: SkuId, way: (u16, u16), number: u64, units: u64) -> Deposit {
    Deposit::new(ADMIN, key(id), moving(sku, way, number, units)).expect("a transfer")
}

fn sneaker(total: u64) -> DefineSku {
    DefineSku::new(ADMIN, SkuName::new("SKU-NEW").expect("a plain name"), total)
}

fn full() -> Sale {
    let mut sale = Sale::with(Limits {
        reservations_max: 1,
        ..Limits::default()
    });
    sale.held(BOB, B, 1);
    sale
}

fn in_payment(sale: &mut Sale) -> ReservationId {
    let id = sale.held(ANN, B, 1);
    let begun = sale.ask(BeginPayment::new(ANN, id, paid(7)));
    assert!(matches!(begun, Decision::PaymentBegun(_)), "{begun:?}");
    id
}

type Row = (RefusalCode, fn() -> Decision);

const ROWS: &[Row] = &[
    (RefusalCode::KeyConflict, || {
        let mut sale = Sale::new();
        sale.ask(reserve(ANN, B, 1).key(key(1)));
        sale.ask(reserve(ANN, B, 2).key(key(1)))
    }),
    (RefusalCode::TooOld, || {
        let mut sale = Sale::new();
        let asked = Timestamp::from_micros(sale.now.as_micros() - 1_000_000);
        sale.ask(reserve(ANN, B, 1).asked_at(asked))
    }),
    (RefusalCode::TooLate, || {
        let mut sale = Sale::new();
        let by = Timestamp::from_micros(sale.now.as_micros() - 1);
        sale.ask(reserve(ANN, B, 1).decide_by(by))
    }),
    (RefusalCode::Busy, || full().ask(reserve(ANN, B, 1))),
    (RefusalCode::UnknownSku, || {
        Sale::new().ask(reserve(ANN, UNKNOWN, 1))
    }),
    (RefusalCode::NotOpen, || {
        Sale::new().ask(reserve(ANN, CLOSED, 1))
    }),
    (RefusalCode::Paused, || {
        Sale::new().ask(reserve(ANN, PAUSED, 1))
    }),
    (RefusalCode::TooManyLines, || {
        let mut sale = Sale::new();
        sale.gate(CLOSED, Gate::Open);
        sale.ask(cart(ANN, &[(A, 1), (B, 1), (CLOSED, 1)]))
    }),
    (RefusalCode::RequestLimit, || {
        Sale::new().ask(reserve(ANN, B, 4))
    }),
    (RefusalCode::UserLimit, || {
        Sale::new().ask(reserve(ANN, A, 2))
    }),
    (RefusalCode::HoldLimit, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 1);
        sale.held(ANN, B, 1);
        sale.ask(reserve(ANN, B, 1))
    }),
    (RefusalCode::SoldOut, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 3);
        sale.ask(reserve(BOB, B, 3))
    }),
    (RefusalCode::UnknownReservation, || {
        Sale::new().ask(Release::new(ANN, nobodys()))
    }),
    (RefusalCode::NotOwner, || {
        let mut sale = Sale::new();
        let id = sale.held(ANN, B, 1);
        sale.ask(Release::new(BOB, id))
    }),
    (RefusalCode::PaymentUsed, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(Confirm::paid(ANN, id, 1, paid(7)));
        let other = sale.held(ANN, B, 1);
        sale.ask(BeginPayment::new(ANN, other, paid(7)))
    }),
    (RefusalCode::Ended, || {
        let mut sale = Sale::new();
        let id = sale.held(ANN, B, 1);
        sale.wait_ms(HOLD_MS);
        sale.ask(Release::new(ANN, id))
    }),
    (RefusalCode::NotConfirmed, || {
        let mut sale = Sale::new();
        let id = sale.held(ANN, B, 1);
        sale.ask(Return::of_reservation(ADMIN, key(1), id, None))
    }),
    (RefusalCode::NotDue, || {
        let mut sale = Sale::new();
        let reservation = sale.held(ANN, B, 1);
        sale.wait_ms(HOLD_MS - 1);
        sale.ask(Expire { reservation })
    }),
    (RefusalCode::InPayment, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(Release::new(ANN, id))
    }),
    (RefusalCode::StaleAttempt, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(PaymentFailed::new(ANN, id, 2, Disposition::Keep))
    }),
    (RefusalCode::ExceedsSold, || {
        let mut sale = Sale::new();
        sale.sold(ANN, B, 1);
        sale.ask(Return::of_skus(ADMIN, key(1), units(B, 2)))
    }),
    (RefusalCode::TotalOutOfRange, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 2);
        sale.ask(Adjust::new(ADMIN, key(1), B, -4))
    }),
    (RefusalCode::SkuDiffers, || {
        let mut sale = Sale::new();
        sale.ask(sneaker(1));
        sale.ask(sneaker(2))
    }),
    (RefusalCode::OtherShard, || {
        Sale::new().ask(withdraw(1, B, (7, 1), 1, 1))
    }),
    (RefusalCode::OutOfOrder, || {
        Sale::new().ask(deposit(1, B, (1, 0), 2, 1))
    }),
    (RefusalCode::NothingToMove, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 3);
        sale.held(ANN, B, 2);
        sale.ask(withdraw(1, B, (0, 1), 1, 1))
    }),
];

#[test]
fn every_refusal_has_a_row_that_is_refused_so() {
    let codes: Vec<RefusalCode> = ROWS.iter().map(|&(code, _)| code).collect();
    assert_eq!(codes, RefusalCode::ALL, "a row for each code, in order");
    for &(code, decide) in ROWS {
        let decision = decide();
        let Decision::Refused(refusal) = decision else {
            panic!("{code:?}: {decision:?}");
        };
        assert_eq!(refusal.code(), code);
    }
}

/// Both apply; the first must be the answer.
#[expect(clippy::type_complexity, reason = "a table of rows")]
const PAIRS: &[(RefusalCode, RefusalCode, fn() -> Decision)] = &[
    (RefusalCode::KeyConflict, RefusalCode::TooOld, || {
        let mut sale = Sale::new();
        sale.ask(reserve(ANN, B, 1).key(key(1)));
        let again = reserve(ANN, B, 2).key(key(1));
        sale.ask(again.asked_at(Timestamp::MIN))
    }),
    (RefusalCode::TooOld, RefusalCode::TooLate, || {
        let late = reserve(ANN, B, 1).decide_by(Timestamp::MIN);
        Sale::new().ask(late.asked_at(Timestamp::MIN))
    }),
    (RefusalCode::TooOld, RefusalCode::Busy, || {
        let mut sale = Sale::with(Limits {
            accepted_keys_max: 0,
            ..Limits::default()
        });
        sale.ask(reserve(ANN, B, 1).key(key(1)).asked_at(Timestamp::MIN))
    }),
    (RefusalCode::TooLate, RefusalCode::Busy, || {
        full().ask(reserve(ANN, B, 1).decide_by(Timestamp::MIN))
    }),
    (RefusalCode::Busy, RefusalCode::UnknownSku, || {
        full().ask(reserve(ANN, UNKNOWN, 1))
    }),
    (RefusalCode::Busy, RefusalCode::TotalOutOfRange, || {
        let mut sale = Sale::with(Limits {
            skus_max: 4,
            ..Limits::default()
        });
        sale.ask(sneaker(TOTAL_MAX + 1))
    }),
    (RefusalCode::UnknownSku, RefusalCode::NotOpen, || {
        Sale::new().ask(cart(ANN, &[(CLOSED, 1), (UNKNOWN, 1)]))
    }),
    (
        RefusalCode::UnknownSku,
        RefusalCode::UnknownReservation,
        || {
            let lines = Some(units(UNKNOWN, 1));
            Sale::new().ask(Return::of_reservation(ADMIN, key(1), nobodys(), lines))
        },
    ),
    (RefusalCode::UnknownSku, RefusalCode::ExceedsSold, || {
        let lines = [A, UNKNOWN].map(|sku| Line { sku, quantity: 1 });
        let lines = Lines::new(lines).expect("a cart");
        Sale::new().ask(Return::of_skus(ADMIN, key(1), lines))
    }),
    (RefusalCode::NotOpen, RefusalCode::Paused, || {
        Sale::new().ask(cart(ANN, &[(PAUSED, 1), (CLOSED, 1)]))
    }),
    (RefusalCode::Paused, RefusalCode::TooManyLines, || {
        Sale::new().ask(cart(ANN, &[(A, 1), (B, 1), (PAUSED, 1)]))
    }),
    (RefusalCode::Paused, RefusalCode::NotOwner, || {
        let mut sale = Sale::new();
        let id = sale.held(ANN, B, 1);
        sale.gate(B, Gate::PauseConfirms);
        sale.ask(BeginPayment::new(BOB, id, paid(1)))
    }),
    (RefusalCode::Paused, RefusalCode::PaymentUsed, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(Confirm::paid(ANN, id, 1, paid(7)));
        let other = sale.held(ANN, B, 1);
        sale.gate(B, Gate::PauseConfirms);
        sale.ask(Confirm::paid(ANN, other, 0, paid(7)))
    }),
    (RefusalCode::TooManyLines, RefusalCode::RequestLimit, || {
        let mut sale = Sale::new();
        sale.gate(CLOSED, Gate::Open);
        sale.ask(cart(ANN, &[(A, 1), (B, 4), (CLOSED, 1)]))
    }),
    (RefusalCode::RequestLimit, RefusalCode::UserLimit, || {
        Sale::new().ask(cart(ANN, &[(A, 2), (B, 4)]))
    }),
    (RefusalCode::UserLimit, RefusalCode::HoldLimit, || {
        let mut sale = Sale::new();
        sale.held(ANN, A, 1);
        sale.held(ANN, B, 1);
        sale.ask(reserve(ANN, A, 1))
    }),
    (RefusalCode::HoldLimit, RefusalCode::SoldOut, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 3);
        sale.held(ANN, B, 2);
        sale.ask(reserve(ANN, B, 1))
    }),
    (RefusalCode::NotOwner, RefusalCode::PaymentUsed, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(Confirm::paid(ANN, id, 1, paid(7)));
        sale.ask(BeginPayment::new(BOB, id, paid(7)))
    }),
    (RefusalCode::NotOwner, RefusalCode::Ended, || {
        let mut sale = Sale::new();
        let id = sale.sold(ANN, B, 1);
        sale.ask(Release::new(BOB, id))
    }),
    (RefusalCode::PaymentUsed, RefusalCode::Ended, || {
        let mut sale = Sale::new();
        let id = in_payment(&mut sale);
        sale.ask(Confirm::paid(ANN, id, 1, paid(7)));
        sale.ask(BeginPayment::new(ANN, id, paid(7)))
    }),
    (RefusalCode::Ended, RefusalCode::StaleAttempt, || {
        let mut sale = Sale::new();
        let id = sale.sold(ANN, B, 1);
        sale.ask(PaymentFailed::new(ANN, id, 5, Disposition::Keep))
    }),
    (RefusalCode::NotConfirmed, RefusalCode::ExceedsSold, || {
        let mut sale = Sale::new();
        let id = sale.held(ANN, B, 1);
        sale.ask(Return::of_reservation(ADMIN, key(1), id, Some(units(B, 3))))
    }),
    (RefusalCode::Busy, RefusalCode::UnknownSku, || {
        let mut sale = Sale::with(Limits {
            transfers_max: 0,
            ..Limits::default()
        });
        sale.ask(withdraw(1, UNKNOWN, (0, 1), 1, 1))
    }),
    (RefusalCode::UnknownSku, RefusalCode::OtherShard, || {
        Sale::new().ask(withdraw(1, UNKNOWN, (7, 1), 1, 1))
    }),
    (
        RefusalCode::TotalOutOfRange,
        RefusalCode::OtherShard,
        || Sale::new().ask(deposit(1, B, (1, 7), 1, TOTAL_MAX)),
    ),
    (RefusalCode::OtherShard, RefusalCode::OutOfOrder, || {
        Sale::new().ask(deposit(1, B, (1, 7), 2, 1))
    }),
    (RefusalCode::OutOfOrder, RefusalCode::NothingToMove, || {
        let mut sale = Sale::new();
        sale.held(ANN, B, 3);
        sale.held(ANN, B, 2);
        sale.ask(withdraw(1, B, (0, 1), 2, 1))
    }),
];

#[test]
fn of_two_refusals_that_apply_the_earlier_is_the_answer() {
    for &(first, second, decide) in PAIRS {
        assert!(first < second, "{first:?} and {second:?} are in order");
        let decision = decide();
        let Decision::Refused(refusal) = decision else {
            panic!("{first:?} before {second:?}: {decision:?}");
        };
        assert_eq!(refusal.code(), first, "before {second:?}");
    }
}

#[test]
fn l1_the_last_unit_is_sold_once() {
    let mut sale = Sale::new();
    sale.held(ANN, A, 1);
    assert_eq!(sale.counts(A), [1, 1, 0, 2]);
    sale.held(BOB, A, 1);
    let third = sale.ask(reserve(UserId(3), A, 1));
    let not_before = Some(sale.now.plus_ms(HOLD_MS));
    let sold_out = Refusal::SoldOut {
        line: 0,
        sku: A,
        available: 0,
        lapsing: 2,
        not_before,
    };
    assert_eq!(third, Decision::Refused(sold_out));
    assert_eq!(sale.counts(A), [0, 2, 0, 2]);
}

#[test]
fn l1_a_total_never_falls_below_what_is_held_and_sold() {
    let mut sale = Sale::new();
    sale.held(ANN, B, 1);
    sale.sold(BOB, B, 2);
    let withdrawn = sale.ask(Adjust::new(ADMIN, key(1), B, -2));
    assert_eq!(withdrawn, Decision::Adjusted { total: 3 });
    let refused = sale.ask(Adjust::new(ADMIN, key(2), B, -1));
    assert_eq!(
        refused,
        Decision::Refused(Refusal::TotalOutOfRange { min: 3 })
    );
    assert_eq!(sale.counts(B), [0, 1, 2, 3]);
}

#[test]
fn l2_all_lines_are_held_or_none() {
    let mut sale = Sale::new();
    sale.held(BOB, B, 3);
    let refused = sale.ask(cart(ANN, &[(A, 1), (B, 3)]));
    assert!(
        matches!(refused, Decision::Refused(Refusal::SoldOut { line: 1, .. })),
        "{refused:?}"
    );
    assert_eq!(
        sale.counts(A),
        [2, 0, 0, 2],
        "nothing of the first line is held"
    );
}

#[test]
fn l2_a_return_gives_back_at_most_what_was_sold() {
    let mut sale = Sale::new();
    let id = sale.sold(ANN, B, 2);
    let first = Return::of_reservation(ADMIN, key(1), id, Some(units(B, 1)));
    assert_eq!(sale.ask(first), Decision::Returned { units: 1 });
    let rest = Return::of_reservation(ADMIN, key(2), id, None);
    assert_eq!(sale.ask(rest), Decision::Returned { units: 1 });
    let more = Return::of_reservation(ADMIN, key(3), id, None);
    assert_eq!(sale.ask(more), Decision::Refused(Refusal::NotConfirmed));
    assert_eq!(sale.counts(B), [5, 0, 0, 5]);
}

#[test]
fn l2_units_of_a_lapsed_hold_are_sold_again_unswept() {
    let mut sale = Sale::new();
    sale.held(ANN, B, 3);
    sale.held(ANN, B, 2);
    sale.wait_ms(HOLD_MS - 1);
    let early = sale.ask(reserve(BOB, B, 3));
    assert!(
        matches!(early, Decision::Refused(Refusal::SoldOut { .. })),
        "{early:?}"
    );
    sale.wait_ms(1);
    sale.held(BOB, B, 3);
    assert_eq!(
        sale.counts(B),
        [0, 5, 0, 5],
        "only what was needed has lapsed"
    );
}

#[test]
fn l3_a_reservation_ends_once() {
    let mut sale = Sale::new();
    let id = sale.sold(ANN, B, 1);
    assert!(matches!(
        sale.ask(Release::new(ANN, id)),
        Decision::Refused(Refusal::Ended { .. })
    ));
    assert_eq!(
        sale.ask(Confirm::unpaid(ANN, id)),
        confirmed(id),
        "again is no second end"
    );
    let origin = stockade::types::Origin::default();
    let forged = EventKind::Released {
        origin,
        reservation: id,
    };
    let violation = sale.forge(forged).expect_err("a second end");
    assert!(violation.what.starts_with("L3"), "{violation}");
}

#[test]
fn l3_a_late_payment_buys_through_a_new_reservation_or_falls_due() {
    let mut sale = Sale::new();
    let id = in_payment(&mut sale);
    sale.wait_ms(HOLD_MS);
    let late = sale.ask(Confirm::paid(ANN, id, 1, paid(7)));
    let Decision::Confirmed(Confirmation::Sold { reservation }) = late else {
        panic!("not sold: {late:?}");
    };
    assert_ne!(reservation, id);
    assert_eq!(
        sale.ask(Confirm::paid(ANN, id, 1, paid(7))),
        late,
        "the same payment again"
    );
    let payment_ref = paid(8);
    let refund = Decision::Confirmed(Confirmation::RefundDue { payment_ref });
    assert_eq!(
        sale.ask(Confirm::paid(ANN, reservation, 1, payment_ref)),
        refund,
        "a second one"
    );
    assert_eq!(
        sale.ask(Confirm::paid(ANN, nobodys(), 1, payment_ref)),
        refund,
        "once"
    );
    assert_eq!(sale.counts(B), [4, 0, 1, 5]);
}

#[test]
fn l5_a_key_gives_its_first_answer_until_its_retention_has_passed() {
    let mut sale = Sale::new();
    let command = reserve(ANN, B, 1).key(key(1));
    let first = sale.ask(command.clone());
    sale.wait_ms(999);
    assert_eq!(sale.ask(command.clone()), first);
    assert_eq!(
        sale.replayed().ask(command.clone()),
        first,
        "across a restart"
    );
    let other = sale.ask(reserve(BOB, B, 1).key(key(1)));
    assert_ne!(other, first, "a key belongs to its user");
    sale.wait_ms(1);
    assert_ne!(sale.ask(command), first);
}

#[test]
fn l5_a_key_outlives_the_clocks_first_second() {
    let mut allocator = Allocator::new(Limits::default(), 1);
    let define: Command = sneaker(1).key(key(1)).into();
    let mut answers = Vec::new();
    for stamp in [0, 1] {
        let mut batch = Batch::default();
        batch.header.stamp = Timestamp::from_micros(stamp);
        batch.header.first_sequence = allocator.sequence() + 1;
        allocator
            .begin(&batch.header)
            .expect("batches follow each other");
        answers.push(
            allocator
                .decide(&define, &mut batch)
                .expect("no law breaks"),
        );
    }
    assert_eq!(answers[0], answers[1]);
    assert_eq!(allocator.sequence(), 2, "defined once, not repeated");
}

#[test]
fn l5_a_storm_of_refusals_evicts_only_refusals() {
    let mut sale = Sale::new();
    let accepted = sale.ask(reserve(ANN, B, 1).key(key(1)));
    let refused = sale.ask(reserve(BOB, A, 2).key(key(1)));
    for number in 2..=4 {
        sale.ask(reserve(BOB, A, 2).key(key(number)));
    }
    assert_eq!(sale.ask(reserve(ANN, B, 1).key(key(1))), accepted);
    assert!(matches!(
        refused,
        Decision::Refused(Refusal::UserLimit { .. })
    ));
    let again = sale.ask(reserve(BOB, A, 1).key(key(1)));
    assert!(
        matches!(again, Decision::Reserved(_)),
        "evicted, so the key is free: {again:?}"
    );
}

#[test]
fn l5_what_an_operator_will_lift_leaves_the_key_free() {
    let mut sale = Sale::new();
    let command = reserve(ANN, PAUSED, 1).key(key(1));
    let deferred = sale.ask(command.clone());
    assert_eq!(deferred, Decision::Refused(Refusal::Paused { sku: PAUSED }));
    assert!(
        sale.log.last().is_some_and(Batch::is_empty),
        "nothing is recorded"
    );
    sale.gate(PAUSED, Gate::ResumeReservations);
    assert!(matches!(sale.ask(command), Decision::Reserved(_)));
}

#[test]
fn l5_a_key_that_the_sales_end_freed_answers_anew_also_after_a_replay() {
    let mut sale = Sale::new();
    let command: Command = reserve(ANN, A, 2).key(key(1)).into();
    let (end, open) = (
        SetGate::new(ADMIN, A, Gate::EndSale).into(),
        SetGate::new(ADMIN, A, Gate::Open).into(),
    );
    // Refused, freed and refused anew, all in one batch: replay must keep the order of refusals and events.
    let commands: [Command; 4] = [command.clone(), end, open, command.clone()];
    sale.batch(|allocator, batch| {
        for command in &commands {
            allocator.decide(command, batch)?;
        }
        Ok(())
    });
    assert_eq!(sale.replayed().allocator.digest(), sale.allocator.digest());
}

#[test]
fn l6_batches_follow_each_other_in_sequence_and_time() {
    let mut sale = Sale::new();
    let next = sale.allocator.sequence() + 1;
    let header = |stamp, first_sequence| BatchHeader {
        stamp,
        first_sequence,
        ..BatchHeader::default()
    };
    let earlier = Timestamp::from_micros(sale.now.as_micros() - 1);
    assert!(sale.allocator.begin(&header(earlier, next)).is_err());
    assert!(sale.allocator.begin(&header(sale.now, next + 1)).is_err());
    assert!(sale.allocator.begin(&header(sale.now, next)).is_ok());
}

#[test]
fn l7_events_that_do_not_follow_are_refused() {
    let mut sale = Sale::new();
    let reservation = sale.held(ANN, B, 1);
    let expired = EventKind::Expired { reservation };
    sale.wait_ms(HOLD_MS - 1);
    assert!(sale.forge(expired.clone()).is_err(), "before its deadline");
    sale.wait_ms(1);
    assert_eq!(sale.forge(expired), Ok(()));
    let unknown = EventKind::Expired {
        reservation: nobodys(),
    };
    assert!(sale.forge(unknown).is_err());
    let policy = Policy {
        refused_keys_max: 0,
        ..Policy::default()
    };
    assert!(
        sale.forge(EventKind::PolicySet { policy }).is_err(),
        "it could not be read again"
    );
}

#[test]
fn l7_carts_with_their_further_lines_swapped_are_another_state() {
    let digest = |of_ann: u32, of_bob: u32| {
        let mut sale = Sale::new();
        sale.ask(cart(ANN, &[(A, 1), (B, of_ann)]));
        sale.ask(cart(BOB, &[(A, 1), (B, of_bob)]));
        sale.allocator.digest()
    };
    assert_ne!(digest(1, 2), digest(2, 1));
}

#[test]
fn l8_a_full_table_is_an_answer_and_passes() {
    let mut sale = full();
    let command = reserve(ANN, B, 1).key(key(1));
    let busy = sale.ask(command.clone());
    assert!(
        matches!(busy, Decision::Refused(Refusal::Busy { .. })),
        "{busy:?}"
    );
    sale.wait_ms(HOLD_MS);
    sale.batch(|allocator, batch| allocator.sweep(0, batch));
    sale.wait_ms(1_000);
    assert!(
        matches!(sale.ask(command), Decision::Reserved(_)),
        "retired by now"
    );
}

#[test]
fn l8_a_user_who_is_counted_already_needs_no_new_counter() {
    let mut sale = Sale::with(Limits {
        counters_max: 1,
        ..Limits::default()
    });
    sale.held(ANN, A, 1);
    let busy = sale.ask(reserve(BOB, A, 1));
    assert!(
        matches!(busy, Decision::Refused(Refusal::Busy { .. })),
        "{busy:?}"
    );
    sale.held(BOB, B, 1);
    let limit = sale.ask(reserve(ANN, A, 1));
    assert!(
        matches!(limit, Decision::Refused(Refusal::UserLimit { .. })),
        "{limit:?}"
    );
    sale.gate(A, Gate::EndSale);
    sale.gate(A, Gate::Open);
    sale.held(BOB, A, 1);
}

#[test]
fn a_query_shows_a_sku_with_its_rules_and_counts_and_records_nothing() {
    let mut sale = Sale::new();
    sale.sold(ANN, B, 2);
    sale.held(BOB, B, 1);
    sale.ask(Adjust::new(ADMIN, key(1), B, 4));
    let rules = Rules {
        hold_ms: u32::try_from(HOLD_MS).expect("short"),
        per_user: None,
        per_request: Some(3),
        ..Rules::default()
    };
    let shown = SkuView {
        sku: B,
        name: SkuName::new("SKU-1").expect("a plain name"),
        rules,
        defined_total: 5,
        total: 9,
        available: 6,
        reserved: 1,
        sold: 2,
        sale: 1,
        status: SaleStatus::Open,
        reservations_paused: false,
        confirms_paused: false,
    };
    assert_eq!(sale.view(B), Some(shown.clone()));
    assert!(sale.log.last().is_some_and(Batch::is_empty));
    assert_eq!(sale.replayed().view(B), Some(shown), "L7");
    assert_eq!(sale.view(UNKNOWN), None);
}

#[test]
fn a_query_shows_where_a_sale_stands_after_every_gate() {
    let mut sale = Sale::new();
    for (change, number, status, paused) in [
        // Before the first sale pauses count and nothing can close or end.
        (Gate::Close, 0, SaleStatus::NeverOpened, [false, false]),
        (Gate::EndSale, 0, SaleStatus::NeverOpened, [false, false]),
        (
            Gate::PauseConfirms,
            0,
            SaleStatus::NeverOpened,
            [false, true],
        ),
        (Gate::Open, 1, SaleStatus::Open, [false, true]),
        (Gate::PauseReservations, 1, SaleStatus::Open, [true, true]),
        (Gate::ResumeConfirms, 1, SaleStatus::Open, [true, false]),
        (Gate::Close, 1, SaleStatus::Closed, [true, false]),
        (
            Gate::ResumeReservations,
            1,
            SaleStatus::Closed,
            [false, false],
        ),
        (Gate::Open, 1, SaleStatus::Open, [false, false]),
        (Gate::EndSale, 1, SaleStatus::Ended, [false, false]),
        (Gate::Close, 1, SaleStatus::Ended, [false, false]),
        (Gate::Open, 2, SaleStatus::Open, [false, false]),
    ] {
        sale.gate(CLOSED, change);
        for view in [sale.view(CLOSED), sale.replayed().view(CLOSED)] {
            let view = view.expect("defined");
            let gates = [view.reservations_paused, view.confirms_paused];
            assert_eq!(
                (view.sale, view.status, gates),
                (number, status, paused),
                "after {change:?}"
            );
        }
    }
}
