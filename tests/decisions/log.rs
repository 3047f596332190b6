//! Events that nobody decided, as in a damaged or foreign log: each is refused, by the law that it would break.

use crate::{
    A, ANN, B, BOB, HOLD_MS, Sale, UNKNOWN, cart, confirmed, deposit, in_payment, moving, paid,
    withdraw,
};
use stockade::types::{
    Batch, BatchHeader, CommandKind, Confirm, Disposition, Event, EventKind, Gate, LINES_PER_EVENT,
    Line, Origin, Reason, Release, ReservationId, Rules, SkuId, TOTAL_MAX, Timestamp,
};

/// What was there, the event that doesn't follow from it, and what its refusal says.
type Forgery = (&'static str, fn(&mut Sale) -> EventKind);

fn origin() -> Origin {
    Origin {
        user: ANN,
        ..Origin::default()
    }
}

fn held(sale: &Sale, sku: SkuId, quantity: u32, lines: u16) -> EventKind {
    EventKind::Reserved {
        origin: origin(),
        first: Line { sku, quantity },
        lines,
        sale: 1,
        hold_ms: u32::try_from(HOLD_MS).expect("short"),
        expires_at: sale.now.plus_ms(HOLD_MS),
        replaces: None,
    }
}

fn sold(reservation: ReservationId) -> EventKind {
    EventKind::Confirmed {
        origin: origin(),
        reservation,
        asked: reservation,
        attempt: 0,
        payment_ref: None,
    }
}

fn released(reservation: ReservationId) -> EventKind {
    EventKind::Released {
        origin: origin(),
        reservation,
    }
}

fn begun(sale: &Sale, reservation: ReservationId, attempt: u32) -> EventKind {
    EventKind::PaymentBegun {
        origin: origin(),
        reservation,
        payment_ref: paid(8),
        attempt,
        expires_at: sale.now.plus_ms(HOLD_MS),
    }
}

fn failed(sale: &Sale, reservation: ReservationId, attempt: u32) -> EventKind {
    EventKind::PaymentFailed {
        origin: origin(),
        reservation,
        attempt,
        disposition: Disposition::Keep,
        expires_at: sale.now.plus_ms(HOLD_MS),
    }
}

fn adjusted(delta: i64, total: u64) -> EventKind {
    EventKind::TotalAdjusted {
        origin: origin(),
        reason: Reason::default(),
        sku: B,
        delta,
        total,
    }
}

fn gate_set(change: Gate, sale: u32) -> EventKind {
    EventKind::GateSet {
        origin: origin(),
        reason: Reason::default(),
        sku: B,
        change,
        sale,
    }
}

fn returned(reservation: Option<ReservationId>, sku: SkuId, quantity: u32) -> EventKind {
    EventKind::Returned {
        origin: origin(),
        reason: Reason::default(),
        reservation,
        line: Line { sku, quantity },
        units: quantity.into(),
    }
}

fn withdrawn(sku: SkuId, way: (u16, u16), number: u64, units: u64, total: u64) -> EventKind {
    EventKind::Withdrawn {
        origin: origin(),
        transfer: moving(sku, way, number, units),
        total,
    }
}

fn deposited(sku: SkuId, way: (u16, u16), number: u64, units: u64, total: u64) -> EventKind {
    EventKind::Deposited {
        origin: origin(),
        transfer: moving(sku, way, number, units),
        total,
    }
}

const FORGERIES: &[Forgery] = &[
    ("L1: more reserved than available", |sale| {
        held(sale, B, 6, 1)
    }),
    ("L1: the total falls below", |sale| {
        sale.held(ANN, B, 2);
        sale.sold(ANN, B, 1);
        adjusted(-3, 2)
    }),
    ("an adjusted total is 6, recorded 7", |_| adjusted(1, 7)),
    ("L2: more returned than sold", |sale| {
        sale.sold(ANN, B, 1);
        returned(None, B, 2)
    }),
    ("returned than it sold", |sale| {
        sale.sold(BOB, B, 1);
        let id = sale.sold(ANN, B, 1);
        returned(Some(id), B, 2)
    }),
    ("has no line of SKU", |sale| {
        sale.sold(BOB, A, 1);
        let id = sale.sold(ANN, B, 1);
        returned(Some(id), A, 1)
    }),
    (
        "L3: res-000000000000E has ended already, RELEASED",
        |sale| {
            let id = sale.held(ANN, B, 1);
            sale.ask(Release::new(ANN, id));
            sold(id)
        },
    ),
    (
        "L3: res-000000000000E has ended already, CONFIRMED",
        |sale| released(sale.sold(ANN, B, 1)),
    ),
    ("has ended already, EXPIRED", |sale| {
        let id = sale.held(ANN, B, 1);
        sale.wait_ms(HOLD_MS);
        sale.batch(|allocator, batch| allocator.sweep(0, batch));
        EventKind::DeadlineMoved {
            reservation: id,
            expires_at: sale.now.plus_ms(HOLD_MS),
        }
    }),
    ("payment attempt 2 follows 0", |sale| {
        let id = sale.held(ANN, B, 1);
        begun(sale, id, 2)
    }),
    ("no payment was begun", |sale| {
        let id = sale.held(ANN, B, 1);
        failed(sale, id, 1)
    }),
    ("payment attempt 2 is not under way", |sale| {
        let id = in_payment(sale);
        failed(sale, id, 2)
    }),
    ("has 2 lines, 1 are recorded", |sale| held(sale, B, 1, 2)),
    ("SKU #99 is not defined", |sale| held(sale, UNKNOWN, 1, 1)),
    ("SKU #99 is not defined", |_| {
        let sku = UNKNOWN;
        let mut lines = [Line::default(); LINES_PER_EVENT];
        lines[0] = Line { sku, quantity: 1 };
        EventKind::CartLines { len: 1, lines }
    }),
    ("defined without its name", |_| EventKind::SkuDefined {
        origin: origin(),
        sku: SkuId(4),
        total: 1,
        rules: Rules::default(),
    }),
    ("a sale's number is 2, recorded 1", |sale| {
        sale.gate(B, Gate::EndSale);
        gate_set(Gate::Open, 1)
    }),
    ("a deadline lies before all credits", |sale| {
        sale.batch(|allocator, batch| allocator.credit(1_000, batch));
        let mut event = held(sale, B, 1, 1);
        if let EventKind::Reserved { expires_at, .. } = &mut event {
            *expires_at = Timestamp::from_micros(999);
        }
        event
    }),
    ("L1: more withdrawn than available", |sale| {
        sale.held(ANN, B, 2);
        withdrawn(B, (0, 1), 1, 4, 1)
    }),
    ("an adjusted total is 3, recorded 4", |_| {
        withdrawn(B, (0, 1), 1, 2, 4)
    }),
    ("withdraws transfer 2 of shard 0, after 0", |_| {
        withdrawn(B, (0, 1), 2, 1, 4)
    }),
    ("shard 0 withdraws transfer 1 of shard 1, after 0", |_| {
        withdrawn(B, (1, 2), 1, 1, 4)
    }),
    ("withdraws transfer 1 of shard 0, after 1", |sale| {
        sale.ask(withdraw(1, B, (0, 1), 1, 1));
        withdrawn(B, (0, 1), 1, 1, 3)
    }),
    ("SKU #99 is not defined", |_| {
        withdrawn(UNKNOWN, (0, 1), 1, 1, 0)
    }),
    ("L8: a deposit exceeds the largest total", |_| {
        deposited(B, (1, 0), 1, TOTAL_MAX, TOTAL_MAX + 5)
    }),
    ("an adjusted total is 7, recorded 6", |_| {
        deposited(B, (1, 0), 1, 2, 6)
    }),
    ("deposits transfer 2 to shard 0, after 0", |_| {
        deposited(B, (1, 0), 2, 1, 6)
    }),
    ("shard 0 deposits transfer 1 to shard 2, after 0", |_| {
        deposited(B, (1, 2), 1, 1, 6)
    }),
    ("deposits transfer 1 to shard 0, after 1", |sale| {
        sale.ask(deposit(1, B, (1, 0), 1, 1));
        deposited(B, (1, 0), 1, 1, 7)
    }),
    ("SKU #99 is not defined", |_| {
        deposited(UNKNOWN, (1, 0), 1, 1, 1)
    }),
    ("an unknown decision", |_| EventKind::Repeated {
        origin: origin(),
        kind: CommandKind::Confirm,
        decision: (255, 0, 0),
    }),
];

#[test]
fn l7_what_does_not_follow_from_the_state_is_refused_by_its_law() {
    for &(law, forgery) in FORGERIES {
        let mut sale = Sale::new();
        let kind = forgery(&mut sale);
        let violation = sale.forge(kind).expect_err(law);
        assert!(violation.what.contains(law), "{violation}, expected {law}");
        assert_eq!(violation.sequence, sale.allocator.sequence() + 1);
    }
}

#[test]
fn l7_what_follows_from_the_state_is_taken() {
    let mut sale = Sale::new();
    let id = sale.held(ANN, B, 2);
    assert_eq!(sale.forge(held(&sale, B, 3, 1)), Ok(()));
    assert_eq!(sale.forge(sold(id)), Ok(()));
    assert_eq!(sale.forge(released(id)), Ok(()));
    assert_eq!(sale.forge(begun(&sale, id, 1)), Ok(()));
    assert_eq!(sale.forge(adjusted(-3, 2)), Ok(()));
    assert_eq!(sale.forge(gate_set(Gate::Close, 1)), Ok(()));
    assert_eq!(sale.forge(withdrawn(B, (0, 1), 1, 3, 2)), Ok(()));
    assert_eq!(sale.forge(deposited(B, (1, 0), 1, 3, 8)), Ok(()));
    assert_eq!(sale.ask(Confirm::unpaid(ANN, id)), confirmed(id));
    assert_eq!(sale.forge(returned(Some(id), B, 2)), Ok(()));
}

#[test]
fn l7_an_event_has_the_next_sequence_and_the_stamp_of_its_batch() {
    let sale = Sale::new();
    let next = sale.allocator.sequence() + 1;
    let apply = |sequence, at| {
        let mut allocator = sale.replayed().allocator;
        let header = BatchHeader {
            stamp: sale.now,
            first_sequence: next,
            ..BatchHeader::default()
        };
        allocator.begin(&header)?;
        allocator.apply(&Event {
            sequence,
            at,
            shard: 0,
            epoch: 0,
            kind: held(&sale, B, 1, 1),
        })
    };
    assert_eq!(apply(next, sale.now), Ok(()));
    for sequence in [next - 1, next + 1] {
        assert!(apply(sequence, sale.now).is_err(), "sequence {sequence}");
    }
    let earlier = Timestamp::from_micros(sale.now.as_micros() - 1);
    for at in [earlier, sale.now.plus_micros(1)] {
        assert!(apply(next, at).is_err(), "at {at}");
    }
}

/// A cart's continuation alone: the event that takes effect would be in the next batch.
#[test]
fn l7_a_commands_records_never_straddle_two_batches() {
    let mut sale = Sale::new();
    let before = sale.replayed();
    sale.ask(cart(ANN, &[(A, 1), (B, 1)]));
    let whole = sale.log.last().expect("its batch");
    assert_eq!(before.replayed().allocator.apply_batch(whole), Ok(()));

    let mut torn = Batch::default();
    torn.header = whole.header.clone();
    let continuation = Event::decode(&whole.event_records()[0]);
    torn.push_event(&continuation.expect("it was written"));
    let torn = before.replayed().allocator.apply_batch(&torn);
    let violation = torn.expect_err("half a cart");
    assert!(violation.what.contains("straddle"), "{violation}");
}
