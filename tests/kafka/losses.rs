//! What a source does when something is lost beside it: the dead letters' topic, or messages that it has not read yet.

use crate::requests::delete_before;
use crate::{Topics, WITHIN, ask, events, halted, open_sku, reserve, shared, until};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use std::time::{Duration, Instant};
use stockade::engine::Engine;
use stockade::kafka::{KafkaSource, Reply, SourceState, SourceStatus, TopicSettings};
use stockade::store::{MemoryLog, MemoryStore};
use stockade::types::{Decision, EventKind, Submit};

/// The partition goes on, the loss is counted, and what the letter held is where it was: in the partition.
#[test]
fn a_dead_letter_that_can_not_be_delivered_is_counted_and_stops_nothing() {
    let server = shared();
    let topics = Topics::new(&server, "undelivered");
    let small = topics.topic("small");
    let properties = [("max.message.bytes", "300")];
    let settings = TopicSettings {
        name: &small,
        partitions: 1,
        replicas: 1,
        properties: &properties,
    };
    let made = topics.cluster().create_topics(&[settings], WITHIN);
    made.expect("a broker that runs");
    let missing = topics.topic("missing");
    let log = MemoryLog::default();
    let client = topics.client();
    let bad = vec![b'x'; 1_000];
    topics.write(&[&bad]);
    for (life, dead_letters) in [&small, &missing].into_iter().enumerate() {
        let engine = Engine::builder().store(MemoryStore::on(&log)).start();
        let engine = engine.expect("it recovers");
        let mut options = topics.source_options();
        options.dead_letters.clone_from(dead_letters);
        let source = KafkaSource::start(&topics.cluster(), options, engine.handle());
        let source = source.expect("it starts");
        if life == 0 {
            open_sku(&client, "SKU-0", 50);
        } else {
            topics.write(&[&bad]);
        }
        let next: Reply = ask(&client, &reserve(life as u64, "SKU-0"));
        assert!(matches!(next.decision, Decision::Reserved(_)), "{next:?}");
        until("its loss is known", || {
            source.status().dead_letters_lost == 1
        });
        let status = source.status();
        assert_eq!(status.dead_letters, 1, "{dead_letters}");
        assert_eq!(status.state, SourceState::Running(None));
        // One was waited for, and that is enough.
        let paces = (0..4).map(|round| {
            topics.write(&[&bad]);
            let begun = Instant::now();
            ask(&client, &reserve(100 * (1 + life as u64) + round, "SKU-0"));
            begun.elapsed()
        });
        let slow = paces.filter(|pace| *pace > Duration::from_secs(4)).count();
        assert!(slow <= 1, "{dead_letters}: {slow} of 4 waited");
    }
    let kept = topics.read("requests", 1);
    let payload = kept.first().and_then(rdkafka::Message::payload);
    assert_eq!(payload, Some(&bad[..]));
}

/// Retention takes what a writer that is far behind has not read. What it has read is decided, and it stops.
#[test]
fn messages_that_are_gone_while_a_source_reads_halt_it_before_the_gap() {
    const MESSAGES: usize = 500;
    let server = shared();
    let topics = Topics::new(&server, "overtaken");
    // Nobody turns the crank yet, and little is read ahead.
    let (handle, mut runner) = Engine::builder()
        .ring_capacity(16)
        .build()
        .expect("it opens");
    let cluster = topics.cluster();
    let cluster = ["queued.min.messages", "max.partition.fetch.bytes"]
        .into_iter()
        .fold(cluster, |cluster, name| cluster.property(name, "1"));
    let mut options = topics.source_options();
    options.run_max = 8;
    let source = KafkaSource::start(&cluster, options, handle.clone());
    let source = source.expect("it starts");
    // Each in a batch of its own, which is what a broker gives at least.
    let mut config = topics.config();
    let producer: BaseProducer = config
        .set("batch.num.messages", "1")
        .create()
        .expect("settings");
    let requests = topics.topic("requests");
    for _ in 0..MESSAGES {
        let record = BaseRecord::<str, [u8]>::to(&requests).partition(0);
        let sent = producer.send(record.payload(b"not json"));
        sent.map_err(|(error, _)| error).expect("room");
    }
    producer.flush(WITHIN).expect("they arrive");
    until("the ring is full", || handle.queue_depth() == 16);
    delete_before(&topics, 400);
    until("it halts, or reads on", || {
        runner.step().expect("it commits");
        runner.wait(Duration::from_millis(1));
        source.status().state != SourceState::Running(None)
    });
    let why = halted(&source);
    let id = topics.source_options().source_id();
    let stands = handle.position(id).expect("some were read");
    assert!((16..400).contains(&stands), "{stands}");
    assert!(
        why.contains(&format!("stands at offset {stands}")) && why.contains("holds 400 to 500"),
        "{why}"
    );
    assert!(
        why.contains("Nothing was reset") && why.contains("--begin-at"),
        "{why}"
    );
    until("what it has read is decided", || {
        runner.step().expect("it commits");
        source.status().position == stands
    });
    // A successor without an operator's word halts where it begins.
    drop(source);
    let again = topics.source(handle.clone());
    let why = halted(&again);
    assert!(why.contains(&format!("stands at offset {stands}")), "{why}");
}

/// Its offsets begin anew, and mean other messages.
#[test]
fn a_topic_that_is_made_anew_under_a_running_source_halts_it() {
    let server = shared();
    let topics = Topics::new(&server, "anew");
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 5);
    ask(&client, &reserve(1, "SKU-0"));
    make_anew(&topics, "requests");
    let why = halted(&source);
    assert!(
        why.contains("Nothing was reset") && why.contains("--begin-at"),
        "{why}"
    );
    assert!(engine.handle().health().is_running(), "holds still lapse");
}

fn make_anew(topics: &Topics, kind: &str) {
    let admin: AdminClient<_> = topics.config().create().expect("settings");
    let runtime = tokio::runtime::Builder::new_current_thread().build();
    let runtime = runtime.expect("a runtime");
    let name = topics.topic(kind);
    let deleted = runtime.block_on(admin.delete_topics(&[&name], &AdminOptions::new()));
    for result in deleted.expect("the broker answers") {
        result.expect("it is deleted");
    }
    let settings = TopicSettings {
        name: &name,
        partitions: 2,
        replicas: 1,
        properties: &[],
    };
    let made = topics.cluster().create_topics(&[settings], WITHIN);
    made.expect("a broker that runs");
}

/// Replies on their way are gone with it; whoever waits for one asks again.
#[test]
fn a_node_hears_replies_though_their_topic_was_made_anew() {
    let server = shared();
    let topics = Topics::new(&server, "deaf");
    let engine = Engine::builder().start().expect("it starts");
    let _source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 50);
    for user in 0..9 {
        ask(&client, &reserve(user, "SKU-0"));
    }
    make_anew(&topics, "replies");
    let next: Reply = ask(&client, &reserve(9, "SKU-0"));
    assert!(matches!(next.decision, Decision::Reserved(_)), "{next:?}");
}

/// A writer that decides, and whose replies nobody hears, is to a node what one is that was killed before it sent them.
#[test]
fn a_node_asks_once_more_for_what_was_decided_before_its_writer_died() {
    const USERS: u64 = 40;
    let server = shared();
    let topics = Topics::new(&server, "unsaid");
    let log = MemoryLog::default();
    let start = || Engine::builder().store(MemoryStore::on(&log)).start();
    let client = topics.client();
    let engine = start().expect("it starts");
    let source = topics.source(engine.handle());
    open_sku(&client, "SKU-0", USERS);
    drop((source, engine));

    let engine = start().expect("it recovers");
    let mut options = topics.source_options();
    options.replies = topics.topic("dead");
    // Nor does it say how far it is.
    options.group = "mute".into();
    let mute = KafkaSource::start(&topics.cluster(), options, engine.handle());
    let mute = mute.expect("it starts");
    let requests = (0..USERS).map(|user| reserve(user, "SKU-0"));
    let waiting: Vec<_> = requests
        .map(|request| client.send(&request).expect("room"))
        .collect();
    let handle = engine.handle();
    let sku = handle.sku("SKU-0").expect("it is defined");
    let is_sold_out = || handle.availability(sku).map(|stock| stock.available) == Some(0);
    until("all are decided", is_sold_out);
    drop((mute, engine));

    let engine = start().expect("it recovers");
    let source = topics.source(engine.handle());
    for reply in waiting {
        let decision = reply.wait(WITHIN).expect("a reply").decision;
        assert!(matches!(decision, Decision::Reserved(_)), "{decision:?}");
    }
    assert_eq!(client.asked_again(), USERS);
    until("nothing is left in the topic", || {
        let SourceStatus { position, lag, .. } = source.status();
        lag == 0 && position >= 2 + 2 * USERS
    });
    let made = events(log.clone()).into_iter();
    let made = made.filter(|event| matches!(event.kind, EventKind::Reserved { .. }));
    assert_eq!(made.count() as u64, USERS, "each decided once");
}

/// Who is not told yet may be told any moment: asking again would be another question, if the answer was no decision.
#[test]
fn a_node_does_not_ask_again_while_the_reply_is_on_its_way() {
    let server = shared();
    let topics = Topics::new(&server, "slowly");
    let engine = Engine::builder().start().expect("it starts");
    let mut options = topics.source_options();
    // It might be there in a moment; a reply is tried for some seconds.
    options.replies = topics.topic("missing");
    let source = KafkaSource::start(&topics.cluster(), options, engine.handle());
    let source = source.expect("it starts");
    let client = topics.client();
    let _waiting = client.send(&reserve(1, "SKU-0")).expect("room");
    until("it is asked again", || client.asked_again() == 1);
    assert!(source.status().replies_lost > 0, "it was on its way still");
}
