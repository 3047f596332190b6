//! A sale whose requests come through Kafka, when the log has lost its end, or Kafka all it held.

use crate::backends::System;
use crate::common::crowd::{Crowd, all_are_explained, tokens};
use crate::common::{ONE, SERVE, Server, becomes, flash_sale};

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

/// The broker comes back with nothing, and `init` makes its topics anew.
fn loses_its_disk(system: &mut System) {
    system.kafka.kill();
    let data = system.kafka.dir().join("server/data");
    std::fs::remove_dir_all(data).expect("it is ours");
    system.kafka.restart();
    let (is_done, said) = system.init(&[]);
    assert!(is_done, "{said}");
}

/// Runs the command that a writer has named, which says where its log is too.
fn resume(system: &System, why: &str, kept: [&str; 2]) -> (bool, String) {
    let (_, command) = why.split_once("`flash-sale ").expect("a command is named");
    let (command, _) = command.split_once('`').expect("the command ends");
    let command = command.replace("URL", &system.places.ingest);
    let resume = flash_sale().args(command.split(' ')).args(kept).output();
    let resume = resume.expect("the program starts");
    let said = [resume.stdout, resume.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (resume.status.success(), said)
}

#[test]
fn a_log_whose_requests_are_gone_from_kafka_halts_its_writer_until_resume_says_where_they_go_on() {
    let _alone = crate::alone();
    let mut system = System::start();
    let crowd = |node: &Server, name: &str| {
        let crowd = Crowd::start(&[node.address], name, &tokens(6));
        crowd.hears(50);
        crowd.stop()
    };
    let position = |server: &Server| {
        let page = server.get("/metrics").body;
        let mut lines = page.lines();
        let position = lines.find_map(|line| line.strip_prefix("kafka_position "));
        position.expect("it is told").to_owned()
    };
    let writer = system.writer().listens();
    let node = system.node(0);
    let mut told = crowd(&node, "a");
    drop(node);
    loses_its_disk(&mut system);
    let (is_fine, why) = writer.ends();
    assert!(
        !is_fine && why.contains("and the topic holds 0 to 0"),
        "{why}"
    );
    // Started again it can't go on either.
    let (is_fine, again) = system.writer().listens().ends();
    assert!(!is_fine && again.contains("--begin-at 0"), "{again}");

    let store = system.places.store.clone();
    let kept = ["--store", store.as_str()];
    let (is_done, said) = resume(&system, &why, kept);
    assert!(is_done && said.contains("goes on at offset 0"), "{said}");
    let (is_done, said) = resume(&system, &why, kept);
    assert!(
        !is_done && said.contains("goes on there by itself"),
        "{said}"
    );
    let writer = system.writer().listens();
    let node = system.node(0);
    told.extend(crowd(&node, "b"));
    all_are_explained(&node, &told);
    system.places.agrees();

    // One with a journal ends as well, though nobody follows it.
    let all = position(&writer);
    assert!(writer.terminate());
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let ingest = system.places.ingest.clone();
    let serves = || {
        let mut command = flash_sale();
        command.args(SERVE).arg("--data").arg(&journal);
        command.args(["--sku", "SNEAKER=1000000", "--ingest", &ingest]);
        Server::of(command)
    };
    let server = serves();
    becomes("what it has read", &all, || position(&server));
    loses_its_disk(&mut system);
    let (is_fine, why) = server.ends();
    assert!(
        !is_fine && why.contains("and the topic holds 0 to 0"),
        "{why}"
    );
    let kept = ["--data", journal.to_str().expect("it is text")];
    let (is_done, said) = resume(&system, &why, kept);
    assert!(is_done && said.contains("goes on at offset 0"), "{said}");
    let server = serves();
    server.reserves("ann");
    becomes("readiness", "200", || {
        server.get("/readyz").status.to_string()
    });
    assert_eq!(position(&server), "0");
    assert!(server.terminate());
}
