//! Examples for the laws that the allocator upholds: what is valid, what is not, and what stops being valid.

use crate::{
    A, ADMIN, ANN, B, BOB, HOLD_MS, PAUSED, Sale, cart, confirmed, full, in_payment, key, nobodys,
    paid, reserve, sneaker, units,
};
use stockade::allocator::{Allocator, Limits};
use stockade::types::{
    Adjust, Batch, BatchHeader, Command, Confirm, Confirmation, Decision, EventKind, Gate, Origin,
    Policy, Refusal, Release, Return, SetGate, Timestamp, UserId,
};

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
    let origin = Origin::default();
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
