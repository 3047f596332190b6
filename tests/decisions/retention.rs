//! What time ends, it ends at once: also where more of it comes due than a batch frees, and for good.

use crate::{A, ADMIN, ANN, B, HOLD_MS, Sale, key, paid, reserve, sneaker};
use stockade::allocator::Limits;
use stockade::types::{
    Answer, Command, Confirm, Confirmation, Decision, Gate, Policy, Refusal, Release,
    ReservationId, Rules, SetGate, SkuId, UserId,
};

/// More than a batch frees of each table (16,384).
const MANY: u32 = 16_500;
/// The SKU of so many units.
const MASS: SkuId = SkuId(4);

/// A sale whose tables hold `MANY` entries, with the units for all of them.
fn crowded() -> Sale {
    let mut sale = Sale::with(Limits {
        reservations_max: MANY,
        accepted_keys_max: MANY,
        payments_max: MANY,
        ..Limits::default()
    });
    let rules = Rules {
        per_user: None,
        ..Rules::default()
    };
    let mass = sneaker(1_000_000).rules(rules);
    sale.ask(mass.expect("rules that can be"));
    sale.gate(MASS, Gate::Open);
    sale
}

/// The n-th user buys a unit under the same key and with the same payment as ever, all in one batch.
fn sell_to_all(sale: &mut Sale) -> Vec<ReservationId> {
    sale.batch(|allocator, batch| {
        let mut bought = Vec::new();
        for n in 0..u128::from(MANY) {
            let user = UserId(100 + n);
            let command: Command = reserve(user, MASS, 1).key(key(1)).into();
            let id = match allocator.decide(&command, batch)? {
                Answer::Decided(Decision::Reserved(reservation)) => reservation.id,
                answer => panic!("user {n}: {answer:?}"),
            };
            let command: Command = Confirm::paid(user, id, 0, paid(1 + n)).into();
            let sold = Confirmation::Sold { reservation: id };
            let answer = allocator.decide(&command, batch)?;
            assert_eq!(answer, Answer::Decided(Decision::Confirmed(sold)), "{n}");
            bought.push(id);
        }
        Ok(bought)
    })
}

#[test]
fn l5_l8_what_has_passed_its_time_neither_answers_nor_takes_room_freed_or_not() {
    let mut sale = crowded();
    let first = sell_to_all(&mut sale);
    for command in [
        reserve(ANN, MASS, 1),
        reserve(UserId(100), MASS, 1).key(key(2)),
    ] {
        let busy = sale.ask(command);
        assert!(
            matches!(busy, Decision::Refused(Refusal::Busy { .. })),
            "the tables are full: {busy:?}"
        );
    }

    sale.wait_ms(1_000);
    let second = sell_to_all(&mut sale);
    let last = MANY as usize - 1;
    assert!(second[0] > first[last], "everybody bought anew");

    let mut sale = crowded();
    let id = sell_to_all(&mut sale)[last];
    sale.wait_ms(1_000);
    let release = Release::new(UserId(100 + u128::from(MANY) - 1), id);
    assert_eq!(
        sale.ask(release),
        Decision::Refused(Refusal::UnknownReservation)
    );
}

#[test]
fn l5_what_is_forgotten_stays_so_when_the_retention_grows() {
    let mut sale = crowded();
    let last = sell_to_all(&mut sale)[MANY as usize - 1];
    sale.wait_ms(1_000);
    let longer = Policy::default();
    sale.batch(|allocator, batch| allocator.set_policy(longer, batch));
    let user = UserId(100 + u128::from(MANY) - 1);
    match sale.ask(reserve(user, MASS, 1).key(key(1))) {
        Decision::Reserved(again) => assert_ne!(again.id, last, "the key was free"),
        decision => panic!("not reserved: {decision:?}"),
    }
    assert_eq!(
        sale.ask(Release::new(user, last)),
        Decision::Refused(Refusal::UnknownReservation)
    );
}

#[test]
fn l5_a_key_that_the_sales_end_freed_gives_its_second_answer_from_then_on() {
    let mut sale = Sale::new();
    let command = reserve(ANN, A, 1).key(key(1));
    let first = sale.ask(command.clone());
    for gate in [Gate::EndSale, Gate::Open] {
        sale.ask(SetGate::new(ADMIN, A, gate));
    }
    let second = sale.ask(command.clone());
    assert!(matches!(second, Decision::Reserved(_)), "{second:?}");
    assert_ne!(second, first, "the key was free");
    assert_eq!(sale.ask(command.clone()), second);
    assert_eq!(sale.replayed().ask(command), second, "across a restart");
    assert_eq!(sale.counts(A), [0, 2, 0, 2], "nothing was held twice");
}

/// All in one batch, so that no counter of the first sale was freed.
#[test]
fn limits_count_anew_in_the_next_sale_at_once() {
    let mut sale = Sale::new();
    sale.sold(ANN, A, 1);
    let commands: [Command; 3] = [
        SetGate::new(ADMIN, A, Gate::EndSale).into(),
        SetGate::new(ADMIN, A, Gate::Open).into(),
        reserve(ANN, A, 1).into(),
    ];
    let answers: Vec<Answer> = sale.batch(|allocator, batch| {
        let decided = commands
            .iter()
            .map(|command| allocator.decide(command, batch));
        decided.collect()
    });
    assert!(
        matches!(answers[2], Answer::Decided(Decision::Reserved(_))),
        "{answers:?}"
    );
}

#[test]
fn a_credit_spares_the_holds_that_were_live_when_the_stall_began() {
    let mut sale = Sale::new();
    let over = sale.held(ANN, B, 1);
    sale.now = sale.now.plus_micros(1);
    let live = sale.held(ANN, B, 1);
    // The stall begins when the first hold's deadline is reached.
    let stall_ms = 5_000;
    sale.now = sale.now.plus_ms(HOLD_MS + stall_ms);
    let micros = stall_ms * 1_000 + 1;
    sale.batch(|allocator, batch| allocator.credit(micros, batch));
    assert_eq!(sale.counts(B), [4, 1, 0, 5], "one was over, one was not");
    assert_eq!(sale.ask(Release::new(ANN, live)), Decision::Released);
    assert!(matches!(
        sale.ask(Release::new(ANN, over)),
        Decision::Refused(Refusal::Ended { .. })
    ));
}
