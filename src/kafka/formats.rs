//! What is written is read again: every request, every decision and every refusal.

use super::reply::{self, Answered, Reply};
use super::request::{self, Asked, Body, NamedTransfer, ReplyTo, Request};
use crate::types::{
    Account, Bound, Confirmation, Decision, Disposition, Field, Gate, HoldStatus, IdempotencyKey,
    Kept, Moved, PaymentAttempt, PaymentRef, PoolView, Reason, Refusal, RefusalCode, Reservation,
    ReservationId, Rules, SkuId, SkuName, TOTAL_MAX, Timestamp, UserId,
};

const AT: Timestamp = Timestamp::from_micros(1_736_937_000_250_999);

fn sku(name: &str) -> SkuName {
    SkuName::new(name).expect("a name")
}

fn bodies() -> Vec<Body> {
    let reservation = ReservationId::new(3, 42);
    let payment_ref = PaymentRef::new(u128::MAX).expect("not zero");
    let lines = vec![(sku("SNEAKER-42"), 2), (sku("quote \" and \u{fc}"), 1)];
    let (reason, attempt) = (Reason::new("damaged"), 7);
    let mut bodies = vec![
        Body::Reserve {
            lines: lines.clone(),
        },
        Body::BeginPayment {
            reservation,
            payment_ref,
        },
        Body::Confirm {
            reservation,
            payment: None,
        },
        Body::Confirm {
            reservation,
            payment: Some((attempt, payment_ref)),
        },
        Body::Release { reservation },
        Body::Adjust {
            sku: sku("A"),
            delta: -5,
            reason,
        },
    ];
    for disposition in [Disposition::Keep, Disposition::Release] {
        bodies.push(Body::PaymentFailed {
            reservation,
            attempt,
            disposition,
        });
    }
    for (reservation, lines) in [
        (Some(reservation), None),
        (None, Some(lines.clone())),
        (Some(reservation), Some(lines)),
    ] {
        bodies.push(Body::Return {
            reservation,
            lines,
            reason,
        });
    }
    let strict = Rules {
        per_request: Some(2),
        opens_at: AT,
        closes_at: AT.plus_ms(1),
        ..Rules::default()
    };
    for rules in [Rules::default(), strict] {
        let (sku, total) = (sku("A"), 10_000);
        bodies.push(Body::DefineSku { sku, total, rules });
    }
    for &change in Gate::ALL {
        let sku = sku("A");
        bodies.push(Body::SetGate {
            sku,
            change,
            reason: Reason::default(),
        });
    }
    let transfer = NamedTransfer {
        sku: sku("A"),
        from: 0,
        to: u16::MAX,
        number: u64::MAX,
        units: TOTAL_MAX,
    };
    bodies.extend([Body::Withdraw(transfer.clone()), Body::Deposit(transfer)]);
    bodies
}

#[test]
fn every_request_is_read_as_it_was_written() {
    let key = IdempotencyKey::new(9).expect("not zero");
    let reply = ReplyTo {
        node: u64::MAX - 1,
        partition: 3,
        id: 17,
    };
    for body in bodies() {
        let mut request = Request::new(UserId(1 << 120), key, body);
        for (asked_at, to) in [(None, None), (Some(AT), Some(reply))] {
            (request.asked_at, request.decide_by) = (asked_at, asked_at);
            let message = request::encode(&request, to);
            assert_eq!(
                request::decode(&message),
                Ok((Asked::Decide(request.clone()), to))
            );
            let names = ["A", "SNEAKER-42", "quote \" and \u{fc}"];
            let known = |name: &SkuName| {
                let at = names.iter().position(|known| *known == name.as_str());
                at.and_then(|at| at.try_into().ok()).map(SkuId)
            };
            let command = request.command(known, AT).expect("a command");
            let named = |id: SkuId| names.get(id.0 as usize).map(|name| sku(name));
            let again = Request::from_command(command, key, named).expect("it has a request");
            assert_eq!((again.key, again.body), (key, request.body.clone()));
        }
    }
    let hint = Body::Expire {
        reservation: ReservationId::new(0, 1),
    };
    let message = br#"{"v":1,"kind":"expire","reservation":"res-0000000000001"}"#;
    let (read, to) = request::decode(message).expect("a hint needs no more");
    let Asked::Decide(read) = read else {
        panic!("{read:?}");
    };
    assert_eq!((read.body, to), (hint, None));
    let message = request::encode_pool(&sku("A"), reply);
    let asked = Asked::Pool(sku("A"));
    assert_eq!(request::decode(&message), Ok((asked, Some(reply))));
}

#[test]
fn a_message_that_means_something_else_is_refused_saying_what() {
    let whole = r#"{"v":1,"kind":"reserve","user":"0000000000000000000000000000002a","key":"0000000000000000000000000000000f","lines":[{"sku_id":"A","quantity":1}]}"#;
    assert!(request::decode(whole.as_bytes()).is_ok());
    for (from, to, says) in [
        ("{", "", "expected"),
        (r#""v":1"#, r#""v":2"#, "version 2, not 1"),
        ("reserve", "resrve", "unknown kind \"resrve\""),
        (
            r#""user":"00"#,
            r#""user":"0"#,
            "user is not 32 hexadecimal digits",
        ),
        (
            r#""key":"0000000000000000000000000000000f","#,
            "",
            "key is missing",
        ),
        ("000f", "0000", "key is zero"),
        ("quantity", "quantty", "unknown field `quantty`"),
        (r#""sku_id":"A""#, r#""sku_id":"""#, "empty"),
        (
            r#""kind""#,
            r#""delta":3,"kind""#,
            "a field that reserve doesn't have",
        ),
        (
            r#""kind""#,
            r#""reply":{"node":"1","partition":0,"id":1},"kind""#,
            "16 hexadecimal",
        ),
        (
            r#""lines":[{"sku_id":"A","quantity":1}]"#,
            r#""total":1"#,
            "lines are missing",
        ),
    ] {
        let message = whole.replacen(from, to, 1);
        let refused = request::decode(message.as_bytes()).expect_err(&message);
        assert!(refused.contains(says), "{message}: {refused}");
    }
    let long = vec![b' '; request::MESSAGE_SIZE_MAX + 1];
    assert!(request::decode(&long).is_err_and(|why| why.contains("at most")));
}

#[test]
fn a_cart_that_can_not_be_is_no_command_whoever_knows_its_skus() {
    let key = IdempotencyKey::new(9).expect("not zero");
    let cart = |lines| Request::new(UserId(1), key, Body::Reserve { lines });
    let unknown = |_: &SkuName| None;
    assert!(cart(Vec::new()).command(unknown, AT).is_err());
    assert!(cart(vec![(sku("A"), 0)]).command(unknown, AT).is_err());
    let most = i32::MAX.unsigned_abs();
    let large = cart(vec![(sku("A"), most), (sku("B"), most)]);
    assert!(
        large.command(unknown, AT).is_ok(),
        "unknown SKUs stay apart"
    );
}

fn decisions() -> Vec<Decision> {
    let id = ReservationId::new(1, 99);
    let payment_ref = PaymentRef::new(5).expect("not zero");
    let accepted = [
        Decision::Reserved(Reservation { id, expires_at: AT }),
        Decision::PaymentBegun(PaymentAttempt {
            attempt: 2,
            expires_at: AT,
        }),
        Decision::PaymentFailed(Kept::Until(AT)),
        Decision::PaymentFailed(Kept::Released),
        Decision::Confirmed(Confirmation::Sold { reservation: id }),
        Decision::Confirmed(Confirmation::RefundDue { payment_ref }),
        Decision::Released,
        Decision::Expired,
        Decision::Returned { units: u64::MAX },
        Decision::Adjusted { total: 0 },
        Decision::Defined { sku: SkuId(3) },
        Decision::GateSet { sale: 1 },
        Decision::Withdrawn { units: 1 << 48 },
        Decision::Deposited { units: 1 },
    ];
    let (sku, line, max) = (SkuId(4), 3, 2);
    let mut refusals = vec![
        Refusal::TooOld,
        Refusal::TooLate,
        Refusal::UnknownSku { line },
        Refusal::Paused { sku },
        Refusal::TooManyLines { max: 9 },
        Refusal::RequestLimit { line, sku, max },
        Refusal::UserLimit {
            line,
            sku,
            max,
            has: 1,
        },
        Refusal::HoldLimit { max },
        Refusal::UnknownReservation,
        Refusal::NotOwner,
        Refusal::PaymentUsed { reservation: id },
        Refusal::NotConfirmed,
        Refusal::NotDue { expires_at: AT },
        Refusal::InPayment { attempt: 1 },
        Refusal::StaleAttempt { current: 0 },
        Refusal::ExceedsSold { line, sku, sold: 7 },
        Refusal::TotalOutOfRange { min: 8 },
        Refusal::OtherShard { shard: 3 },
        Refusal::OutOfOrder { expected: u64::MAX },
        Refusal::NothingToMove { sku },
    ];
    for at in [None, Some(AT)] {
        refusals.push(Refusal::NotOpen { sku, opens_at: at });
        refusals.push(Refusal::SoldOut {
            line,
            sku,
            available: 1,
            lapsing: u32::MAX,
            not_before: at,
        });
    }
    for &bound in Bound::ALL {
        refusals.push(Refusal::Busy { bound });
    }
    for &status in HoldStatus::ALL {
        refusals.push(Refusal::Ended { status });
    }
    for &field in Field::ALL {
        refusals.push(Refusal::KeyConflict { field });
        refusals.push(Refusal::SkuDiffers { field });
    }
    for code in RefusalCode::ALL {
        let told = refusals.iter().any(|refusal| refusal.code() == *code);
        assert!(told, "{} has no example", code.name());
    }
    let refused = refusals.into_iter().map(Decision::Refused);
    accepted.into_iter().chain(refused).collect()
}

#[test]
fn every_reply_is_read_as_it_was_written() {
    for decision in decisions() {
        let named = matches!(decision, Decision::Refused(Refusal::SoldOut { .. }));
        let reply = Reply {
            decision,
            sku: named.then(|| sku("SNEAKER-42")),
        };
        let message = reply::encode(7, 8, &reply);
        assert_eq!(
            reply::decode(&message),
            Ok((7, 8, Answered::Decided(reply)))
        );
    }
    assert!(
        reply::decode(br#"{"v":2,"node":"0000000000000001","id":1,"decision":"released"}"#)
            .is_err()
    );
    assert!(
        reply::decode(br#"{"v":1,"node":"0000000000000001","id":1,"decision":"reserved"}"#)
            .is_err()
    );
}

#[test]
fn how_a_pool_stands_is_read_as_it_was_written() {
    let moved = |last| Moved {
        last,
        last_units: 1,
        units: u64::MAX,
    };
    let accounts = [0, u16::MAX].map(|peer| Account {
        sku: SkuId(3),
        peer,
        sent: moved(u64::MAX),
        received: moved(2),
    });
    let view = PoolView {
        shard: 7,
        sku: SkuId(3),
        opening: 1,
        deltas: i64::MIN,
        total: 2,
        available: 3,
        reserved: 4,
        sold: 5,
        accounts: accounts.to_vec(),
    };
    for view in [Some(view), None] {
        let message = reply::encode_pool(7, 8, view.as_ref());
        assert_eq!(reply::decode(&message), Ok((7, 8, Answered::Pool(view))));
    }
}

#[test]
fn a_transfer_that_can_not_be_is_no_command() {
    let key = IdempotencyKey::new(9).expect("not zero");
    let whole = NamedTransfer {
        sku: sku("A"),
        from: 0,
        to: 1,
        number: 1,
        units: 1,
    };
    let damages: [fn(&mut NamedTransfer); 3] =
        [|it| it.to = 0, |it| it.number = 0, |it| it.units = 0];
    for damage in damages {
        let mut transfer = whole.clone();
        damage(&mut transfer);
        for body in [Body::Withdraw(transfer.clone()), Body::Deposit(transfer)] {
            let request = Request::new(UserId(1), key, body);
            assert!(request.command(|_| Some(SkuId(0)), AT).is_err());
        }
    }
}
