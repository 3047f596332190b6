//! Units that move between shards: what leaves was available, what comes comes once, and the number is known for ever.

use crate::{ADMIN, ANN, B, BOB, HOLD_MS, Sale, deposit, key, moving, withdraw};
use stockade::allocator::Allocator;
use stockade::types::{
    Adjust, Answer, Batch, Decision, Deposit, Field, Moved, PoolView, Query, QueryAnswer, Refusal,
    StateRecord, TOTAL_MAX, TransferError, Withdraw,
};

const OUT: (u16, u16) = (0, 1);
const IN: (u16, u16) = (1, 0);

fn pool(sale: &mut Sale) -> PoolView {
    let query = Query::Pool(B).into();
    match sale.batch(|allocator, batch| allocator.decide(&query, batch)) {
        Answer::Found(found) => match *found {
            QueryAnswer::Pool(Some(view)) => view,
            found => panic!("not a pool: {found:?}"),
        },
        answer => panic!("not found: {answer:?}"),
    }
}

#[test]
fn l1_a_withdraw_takes_what_is_available_and_no_more() {
    let mut sale = Sale::new();
    sale.held(ANN, B, 1);
    sale.sold(BOB, B, 2);
    let all = sale.ask(withdraw(1, B, OUT, 1, 1_000));
    assert_eq!(all, Decision::Withdrawn { units: 2 });
    assert_eq!(sale.counts(B), [0, 1, 2, 3]);
    let none = sale.ask(withdraw(2, B, OUT, 2, 1));
    let sku = B;
    assert_eq!(none, Decision::Refused(Refusal::NothingToMove { sku }));
    assert!(sale.log.last().is_some_and(Batch::is_empty), "a deferral");
    sale.wait_ms(HOLD_MS);
    sale.batch(|allocator, batch| allocator.sweep(0, batch));
    let lapsed = sale.ask(withdraw(2, B, OUT, 2, 1));
    assert_eq!(lapsed, Decision::Withdrawn { units: 1 });
}

#[test]
fn l2_a_total_is_its_opening_and_all_that_came_and_went() {
    let mut sale = Sale::new();
    sale.ask(withdraw(1, B, OUT, 1, 2));
    sale.ask(deposit(2, B, IN, 1, 7));
    sale.ask(Adjust::new(ADMIN, key(3), B, -4));
    sale.ask(deposit(4, B, (9, 0), 1, 1));
    sale.ask(Adjust::new(ADMIN, key(5), B, -6));
    let view = pool(&mut sale);
    assert_eq!((view.opening, view.deltas, view.total), (5, -10, 1));
    let sent: u64 = view.accounts.iter().map(|of| of.sent.units).sum();
    let received: u64 = view.accounts.iter().map(|of| of.received.units).sum();
    assert_eq!((sent, received, view.accounts.len()), (2, 8, 2));
    assert_eq!(sale.counts(B), [1, 0, 0, 1]);
    assert_eq!(pool(&mut sale.replayed()), view, "L7");
}

#[test]
fn l5_the_last_transfer_again_gives_its_answer_under_any_key_and_for_ever() {
    let mut sale = Sale::new();
    let first = sale.ask(withdraw(1, B, OUT, 1, 3));
    let came = sale.ask(deposit(1, B, IN, 1, 4));
    let before = sale.counts(B);
    for (ms, id) in [(0, 1), (0, 2), (5_000, 1), (5_000, 3)] {
        sale.wait_ms(ms);
        assert_eq!(sale.ask(withdraw(id, B, OUT, 1, 3)), first);
        assert_eq!(sale.ask(deposit(id, B, IN, 1, 4)), came);
        assert_eq!(sale.replayed().ask(withdraw(id, B, OUT, 1, 3)), first);
    }
    assert_eq!(
        sale.ask(withdraw(9, B, OUT, 1, 1)),
        first,
        "what it moved, whatever is asked for"
    );
    assert_eq!(sale.counts(B), before);
}

#[test]
fn l5_a_key_with_another_transfer_is_refused_naming_the_field() {
    let mut sale = Sale::new();
    sale.ask(withdraw(1, B, OUT, 1, 3));
    sale.ask(deposit(1, B, IN, 1, 3));
    let conflict = |field| Decision::Refused(Refusal::KeyConflict { field });
    for (again, field) in [
        (withdraw(1, crate::A, OUT, 1, 3), Field::Sku),
        (withdraw(1, B, OUT, 1, 2), Field::Units),
        (withdraw(1, B, (0, 2), 1, 3), Field::Transfer),
        (withdraw(1, B, (2, 1), 1, 3), Field::Transfer),
        (withdraw(1, B, OUT, 2, 3), Field::Transfer),
    ] {
        assert_eq!(sale.ask(again), conflict(field), "{again:?}");
    }
    let again = sale.ask(deposit(1, B, IN, 2, 3));
    assert_eq!(again, conflict(Field::Transfer));
}

#[test]
fn l2_a_deposit_that_skips_is_older_or_differs_is_refused_and_leaves_its_key_free() {
    let mut sale = Sale::new();
    let refused = |expected| Decision::Refused(Refusal::OutOfOrder { expected });
    assert_eq!(sale.ask(deposit(2, B, IN, 2, 1)), refused(1), "a gap");
    sale.ask(deposit(1, B, IN, 1, 2));
    let late = sale.ask(deposit(2, B, IN, 2, 1));
    assert_eq!(late, Decision::Deposited { units: 1 }, "the gap is closed");
    assert_eq!(
        sale.ask(deposit(3, B, IN, 1, 2)),
        refused(3),
        "an older one"
    );
    assert_eq!(sale.ask(deposit(4, B, IN, 2, 5)), refused(3), "other units");
    assert_eq!(sale.counts(B), [8, 0, 0, 8]);
}

/// Also below the numbers of keys: a state that was restored from records knows its peers.
#[test]
fn l7_accounts_survive_a_snapshot() {
    let mut sale = Sale::new();
    sale.ask(withdraw(1, B, OUT, 1, 3));
    sale.ask(deposit(2, B, IN, 1, 4));
    sale.ask(Adjust::new(ADMIN, key(3), B, 2));
    let mut restored = Allocator::new(sale.limits, 5);
    sale.allocator.export(&mut |record| {
        let record = StateRecord::decode(&record.encode()).expect("just encoded");
        restored.restore(&record).expect("an exported state");
    });
    assert_eq!(restored.digest(), sale.allocator.digest());
    assert!(restored.audit().is_ok(), "{:?}", restored.audit());
    let view = pool(&mut sale);
    sale.allocator = restored;
    assert_eq!(pool(&mut sale), view);
    let again = sale.ask(withdraw(8, B, OUT, 1, 1));
    assert_eq!(again, Decision::Withdrawn { units: 3 });
}

#[test]
fn a_transfer_that_cannot_be_is_refused_when_it_is_made() {
    let make = |transfer| {
        let withdraw = Withdraw::new(ADMIN, key(1), transfer).map(|made| made.transfer());
        let deposit = Deposit::new(ADMIN, key(1), transfer).map(|made| made.transfer());
        assert_eq!(withdraw, deposit);
        withdraw
    };
    let same = make(moving(B, (3, 3), 1, 1));
    assert_eq!(same, Err(TransferError::SameShard(3)));
    assert_eq!(make(moving(B, OUT, 0, 1)), Err(TransferError::Number));
    for units in [0, TOTAL_MAX + 1] {
        let made = make(moving(B, OUT, 1, units));
        assert_eq!(made, Err(TransferError::Units(units)));
    }
    let largest = moving(B, OUT, 1, TOTAL_MAX);
    assert_eq!(make(largest), Ok(largest));
}

#[test]
fn an_account_counts_both_ways_apart() {
    let mut sale = Sale::new();
    for number in 1..=3 {
        sale.ask(withdraw(number.into(), B, OUT, number, 1));
        sale.ask(deposit(number.into(), B, IN, number, number));
    }
    let account = pool(&mut sale).account(1);
    let moved = |last, last_units, units| Moved {
        last,
        last_units,
        units,
    };
    assert_eq!(account.sent, moved(3, 1, 3));
    assert_eq!(account.received, moved(3, 3, 6));
    let stranger = pool(&mut sale).account(7);
    assert_eq!(stranger.sent, Moved::default());
}
