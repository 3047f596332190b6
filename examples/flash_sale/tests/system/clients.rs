//! What buyers meet at an API node when they leave, or pay twice.

use crate::backends::System;
use crate::common::becomes;
use std::thread;
use std::time::{Duration, Instant};

/// Everybody has noticed by then that a server is back.
const NOTICED: Duration = Duration::from_secs(20);

#[test]
fn who_pays_at_a_node_is_told_what_became_of_it_and_who_leaves_has_bought() {
    let _alone = crate::alone();
    let mut system = System::start();
    let writer = system.writer().listens();
    let node = system.node(0);

    let (ann, hers) = node.reserves("ann");
    node.checkout(&ann, &hers, "card-1").is(200);
    node.checkout(&ann, &hers, "card-2")
        .is_problem(409, "confirmed");

    let (bob, his) = node.reserves("bob");
    node.leaves_checkout(&bob, &his, "slow card");
    becomes("his order", "CONFIRMED", || node.status_of(&bob, &his));

    // Kafka is away when the money is taken: he is told so and goes, and the confirm comes once it is back.
    let (cem, held) = node.reserves("cem");
    let answer = thread::scope(|scope| {
        let pays = scope.spawn(|| node.checkout(&cem, &held, "slow card"));
        becomes("the reservation", "IN_PAYMENT", || {
            node.status_of(&cem, &held)
        });
        system.kafka.kill();
        pays.join().expect("an answer")
    });
    answer.is(503);
    system.kafka.restart();
    let begun = Instant::now();
    while node.status_of(&cem, &held) != "CONFIRMED" {
        assert!(begun.elapsed() < NOTICED, "the payment is forgotten");
    }
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}
