//! A log that lost its end, under a sale whose requests come through Kafka.

use crate::backends::System;
use crate::common::crowd::{Crowd, tokens};
use crate::common::{ONE, flash_sale};

#[test]
fn what_a_log_has_lost_is_void_to_readers_of_events_and_asked_for_again() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let node = system.node(0);
    let crowd = |name: &str| {
        let crowd = Crowd::start(&[node.address], name, &tokens(6));
        crowd.hears(50);
        crowd.stop()
    };
    crowd("a");
    let last = "SELECT max(number) FROM stockade.batches WHERE events <> ''";
    let last = system.places.sql(last);
    let ann = node.reserves("ann");
    crowd("b");
    assert!(writer.terminate());
    assert_eq!(system.places.agrees(), 0);

    // A writer says what is missing, and which command goes on without it.
    let loses = format!("DELETE FROM stockade.batches WHERE number > {last}");
    assert!(system.places.sql(&loses).starts_with("DELETE"));
    let why = system.writer().refuses();
    let command = format!("--shard 0 --after-batch {last}");
    assert!(
        why.contains("flash-sale resume") && why.contains(&command),
        "{why}"
    );
    let resume = flash_sale()
        .args([
            "resume",
            "--store",
            &system.places.store,
            "--after-batch",
            &last,
        ])
        .output();
    let resume = resume.expect("the program starts");
    assert!(resume.status.success(), "{resume:?}");

    // The requests after it are in Kafka still, and are read again: who has left meanwhile gets no units, who asks again does.
    let writer = system.writer().listens();
    node.reserve(&ann.0, "ann", ONE).is(201);
    crowd("c");
    assert_eq!(system.places.agrees(), 1, "the events tell of the loss");
    assert!(writer.terminate());
}
