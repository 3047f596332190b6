//! API nodes and writers apart, with Kafka between them, on real servers.

use crate::backends::System;
use crate::common::crowd::{Crowd, all_are_explained, tokens};
use crate::common::{ONE, becomes, signal, token};

#[test]
fn a_sale_over_two_nodes_goes_on_when_its_writer_is_killed() {
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

    // Killed in mid-sale, twice.
    let tokens = tokens(12);
    let crowd = Crowd::start(&[one.address, two.address], "c", &tokens);
    crowd.hears(100);
    let standby = system.standby();
    writer.kill();
    let writer = standby.listens();
    crowd.hears(100);
    let standby = system.standby();
    writer.kill();
    let writer = standby.listens();
    crowd.hears(100);
    let all = crowd.stop();
    // What nodes show of a reservation is as old as the cache.
    system.places.agrees();
    all_are_explained(&one, &all);
    all_are_explained(&two, &all);
    assert!(one.terminate() && two.terminate() && writer.terminate());
    system.places.agrees();
}

#[test]
fn a_node_without_room_refuses_who_comes_and_lets_who_has_units_pay() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let node = system.node_with(0, &["--queue", "4"]);
    let (ann, held) = node.reserves("ann");
    signal(&writer.child, "STOP");
    let in_line = |count: &str| {
        becomes("requests in line", count, || {
            node.get("/readyz").json()["queue_depth"].to_string()
        });
    };
    std::thread::scope(|scope| {
        let waiting = ["bob", "cem", "dan"].map(|user| {
            let node = &node;
            scope.spawn(move || node.reserve(&token(user), user, ONE))
        });
        in_line("3");
        let shed = node.reserve(&token("eve"), "eve", ONE);
        shed.is_problem(429, "queue_full");
        let pays = scope.spawn(|| node.checkout(&ann, &held, "card"));
        in_line("4");
        signal(&writer.child, "CONT");
        for waiting in waiting {
            waiting.join().expect("an answer").is(201);
        }
        pays.join().expect("an answer").is(200);
    });
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}
