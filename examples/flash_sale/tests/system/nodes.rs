//! API nodes and writers apart, with Kafka between them, on real servers.

use crate::backends::{System, decides_within, lag};
use crate::common::crowd::{Crowd, all_are_explained, all_are_repeated, tokens};
use crate::common::{ONE, Server, ask, becomes, flash_sale, signal, token};
use crate::whole_sale::{is_counted, shed_by};
use std::net::SocketAddr;
use std::time::{Duration, Instant};

/// A standby decides so soon after its writer was killed.
const KILLED: Duration = Duration::from_millis(1_500);
/// And so soon after it was asked to end.
const HANDED_OVER: Duration = Duration::from_millis(500);

#[test]
fn a_sale_over_two_nodes_goes_on_when_its_writer_is_killed_or_asked_to_end() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let (one, two) = (system.node(0), system.node(1));

    // A key is one, whichever node is asked; and what one node has decided, the other shows.
    let ann = token("ann");
    let held = one.reserve(&ann, "k", ONE).is(201).text("reservation_id");
    let again = two.reserve(&ann, "k", ONE).is(201);
    assert_eq!(again.text("reservation_id"), held);
    let two_units = ONE.replace('1', "2");
    let other = one.reserve(&ann, "k", &two_units);
    other.is_problem(409, "key_conflict");
    let shown = two.reservation("GET", &ann, &held).is(200);
    assert_eq!(shown.text("status"), "RESERVED");
    assert_eq!(shown.json()["lines"][0]["sku_id"], "SNEAKER");
    let bob = token("bob");
    one.reservation("GET", &bob, &held)
        .is_problem(403, "not_owner");
    one.reservation("DELETE", &bob, &held)
        .is_problem(403, "not_owner");
    two.checkout(&ann, &held, "tok_decline")
        .is_problem(402, "payment_declined");
    let paid = two.checkout(&ann, &held, "card").is(200);
    assert_eq!(paid.text("status"), "CONFIRMED");
    let repeated = one.checkout(&ann, &held, "card").is(200);
    assert_eq!(repeated.body, paid.body);
    becomes("sold at the other node", "1", || {
        let stock = one.get("/api/products/SNEAKER/availability").is(200);
        stock.json()["sold"].to_string()
    });

    // Operators use any node; what only the writer knows, it says.
    let defines = r#"{"sku_id":"LACES","units":5}"#;
    one.admin("skus", "d", defines).is(201);
    one.admin("products/LACES/open", "o", "{}").is(200);
    let laces = r#"{"sku_id":"LACES","quantity":1}"#;
    becomes("the new SKU at the other node", "201", || {
        two.reserve(&ann, "l", laces).status.to_string()
    });
    one.sku("LACES").is_problem(421, "ask_writer");
    assert_eq!(writer.sku("LACES").is(200).json()["available"], 4);
    writer
        .reserve(&ann, "m", ONE)
        .is_problem(421, "ask_api_node");
    two.reserve(&ann, "n", r#"{"sku_id":"HAT","quantity":1}"#)
        .is_problem(404, "unknown_sku");

    // Killed in mid-sale, twice; then asked to end.
    let tokens = tokens(12);
    let crowd = Crowd::start(&[one.address, two.address], "c", &tokens);
    crowd.hears(100);
    let mut writer = writer;
    for node in [&one, &two] {
        let standby = system.standby();
        let killed = Instant::now();
        writer.kill();
        decides_within(node, KILLED, killed, &bob);
        writer = standby.listens();
        crowd.hears(100);
    }
    let standby = system.standby();
    let epoch = system.places.sql("SELECT max(epoch) FROM stockade.batches");
    let asked_at = system.places.sql("SELECT clock_timestamp()");
    let asked = Instant::now();
    signal(&writer.child, "TERM");
    decides_within(&one, HANDED_OVER, asked, &bob);
    assert!(writer.ends().0, "in good order");
    let writer = standby.listens();
    crowd.hears(100);
    // That one may have been the last of the old writer.
    let first = format!(
        "SELECT extract(epoch FROM min(at) - '{asked_at}') FROM stockade.events e
         JOIN stockade.batches b ON (b.shard, b.number) = (e.shard, e.batch)
         WHERE epoch > {epoch} AND kind = 'reserved'"
    );
    let took: f64 = system.places.sql(&first).parse().expect("seconds");
    println!("the standby's first decision after {took:.3} s");
    assert!(took < HANDED_OVER.as_secs_f64(), "only after {took} s");
    let all = crowd.stop();
    // What nodes show of a reservation is as old as the cache.
    system.places.agrees();
    all_are_explained(&one, &all);
    all_are_explained(&two, &all);
    assert!(one.terminate() && two.terminate() && writer.terminate());
    system.places.agrees();
}

#[test]
fn what_a_killed_node_was_asked_another_one_answers_and_its_successor_hears_nothing_of_it() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let (mut one, two) = (system.node(0), system.node(1));

    // It dies with requests in line; others ask its successor before the writer comes to any.
    signal(&writer.child, "STOP");
    let lost = ["ann", "bob", "cem", "dan"].map(|user| (token(user), user));
    std::thread::scope(|scope| {
        for (token, user) in &lost {
            let address = one.address;
            scope.spawn(move || is_cut_off(address, token, user));
        }
        becomes("requests in Kafka", &lost.len().to_string(), || {
            lag(&two).to_string()
        });
        signal(&one.child, "KILL");
    });
    one.kill();
    one = system.node(0);
    let new = ["eve", "fay", "gus", "hal"].map(|user| (token(user), user));
    std::thread::scope(|scope| {
        let held = new.each_ref().map(|(token, user)| {
            let one = &one;
            scope.spawn(move || one.reserve(token, user, ONE).is(201).text("reservation_id"))
        });
        are_in_line(&one, new.len());
        signal(&writer.child, "CONT");
        for (held, (token, user)) in held.into_iter().zip(&new) {
            let held = held.join().expect("an answer");
            // Anybody else's would be refused.
            one.reservation("GET", token, &held).is(200);
            let again = two.reserve(token, user, ONE).is(201);
            assert_eq!(again.text("reservation_id"), held, "{user}");
        }
    });
    // What was in line then is decided too, once, whoever asks.
    for (token, user) in &lost {
        let held = two.reserve(token, user, ONE).is(201).text("reservation_id");
        let again = one.reserve(token, user, ONE).is(201);
        assert_eq!(again.text("reservation_id"), held, "{user}");
    }

    // In mid-sale.
    let crowd = Crowd::start(&[one.address, two.address], "c", &tokens(12));
    crowd.hears(100);
    one.kill();
    crowd.hears(100);
    let all = crowd.stop();
    all_are_repeated(&two, &all);
    let one = system.node(0);
    all_are_repeated(&one, &all);
    system.places.agrees();
    all_are_explained(&one, &all);
    assert!(one.terminate() && two.terminate() && writer.terminate());
    system.places.agrees();
}

/// Asks a node that dies before it answers.
fn is_cut_off(address: SocketAddr, token: &str, key: &str) {
    let bearer = format!("Bearer {token}");
    let headers = [("authorization", &*bearer), ("idempotency-key", key)];
    let answer = ask(address, "POST", "/api/reserve", &headers, ONE.as_bytes());
    assert!(answer.is_err(), "{answer:?}");
}

#[track_caller]
fn are_in_line(node: &Server, count: usize) {
    becomes("requests in line", &count.to_string(), || {
        node.get("/readyz").json()["queue_depth"].to_string()
    });
}

#[test]
fn a_node_without_room_refuses_who_comes_and_lets_who_has_units_pay() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let node = system.node_with(0, &["--queue", "4"]);
    let (ann, held) = node.reserves("ann");
    signal(&writer.child, "STOP");
    std::thread::scope(|scope| {
        let waiting = ["bob", "cem", "dan"].map(|user| {
            let node = &node;
            scope.spawn(move || node.reserve(&token(user), user, ONE))
        });
        are_in_line(&node, 3);
        let shed = node.reserve(&token("eve"), "eve", ONE);
        shed.is_problem(429, "queue_full");
        let pays = scope.spawn(|| node.checkout(&ann, &held, "card"));
        are_in_line(&node, 4);
        signal(&writer.child, "CONT");
        for waiting in waiting {
            waiting.join().expect("an answer").is(201);
        }
        pays.join().expect("an answer").is(200);
    });

    // A load counts as many of them as the node.
    let before = shed_by(node.address);
    let load = flash_sale()
        .args(["load", "--target", &format!("http://{}", node.address)])
        .args(["--reserves", "2000", "--reads", "10", "--duration", "1s"])
        .arg("--json")
        .output();
    let load = load.expect("the program starts");
    let outcome = serde_json::from_slice(&load.stdout).expect("JSON");
    let counted = is_counted(shed_by(node.address) - before, &outcome);
    assert!(counted > 0, "there was room: {outcome}");
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}
