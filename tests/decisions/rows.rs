//! One row per refusal, and one per pair of refusals that both apply.

use crate::{
    A, ADMIN, ANN, B, BOB, CLOSED, HOLD_MS, PAUSED, Sale, UNKNOWN, cart, deposit, full, in_payment,
    key, nobodys, paid, reserve, sneaker, units, withdraw,
};
use stockade::allocator::Limits;
use stockade::types::{
    Adjust, BeginPayment, Confirm, Decision, Disposition, Expire, Gate, Line, Lines, PaymentFailed,
    RefusalCode, Release, Return, TOTAL_MAX, Timestamp,
};

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
