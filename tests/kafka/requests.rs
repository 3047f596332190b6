//! Requests and replies: a broker that is killed under load, messages that nobody can read, offsets that are gone, and what a full
//! engine and a node say to too many.

use crate::servers::Server;
use crate::{
    Topics, WITHIN, ask, events, halted, key, name, open_sku, raised, reserve, shared, until,
};
use rdkafka::admin::{AdminClient, AdminOptions};
use rdkafka::message::{Headers, Message};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stockade::engine::Engine;
use stockade::kafka::{
    AskError, Body, KafkaClient, KafkaSource, Placement, Request, SourceState, SourceStatus,
};
use stockade::store::{MemoryLog, MemoryStore};
use stockade::types::{
    Clock, Decision, EventKind, Expire, ManualClock, Refusal, ReservationId, Rules, SourcePosition,
    Sourced, Submit, SystemClock, Timestamp, UserId,
};

/// Every reservation that the log ever made, by user.
fn reservations(log: &MemoryLog) -> BTreeMap<UserId, Vec<ReservationId>> {
    let mut made: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for event in events(log.clone()) {
        if let EventKind::Reserved { origin, .. } = event.kind {
            let id = ReservationId::new(event.shard, event.sequence);
            made.entry(origin.user).or_default().push(id);
        }
    }
    made
}

#[test]
fn the_same_message_twice_is_one_reservation_and_one_refusal() {
    let server = shared();
    let topics = Topics::new(&server, "twice");
    let log = MemoryLog::default();
    let start = || {
        Engine::builder()
            .store(MemoryStore::on(&log))
            .start()
            .expect("it recovers")
    };
    let client = topics.client();
    let engine = start();
    let source = topics.source(engine.handle());
    open_sku(&client, "SKU-0", 1);
    let sold = ask(&client, &reserve(1, "SKU-0"));
    let refused = ask(&client, &reserve(2, "SKU-0"));
    assert!(matches!(sold.decision, Decision::Reserved(_)));
    assert!(matches!(
        refused.decision,
        Decision::Refused(Refusal::SoldOut { .. })
    ));
    assert_eq!(
        refused.sku,
        Some(name("SKU-0")),
        "by name, for whoever has no engine"
    );
    for _ in 0..2 {
        assert_eq!(ask(&client, &reserve(1, "SKU-0")), sold);
        assert_eq!(
            ask(&client, &reserve(2, "SKU-0")).decision,
            refused.decision
        );
    }
    // And by the next writer.
    drop((source, engine));
    let engine = start();
    let _source = topics.source(engine.handle());
    assert_eq!(ask(&client, &reserve(1, "SKU-0")), sold);
    assert_eq!(
        ask(&client, &reserve(2, "SKU-0")).decision,
        refused.decision
    );
    let conflict = {
        let mut other = reserve(1, "SKU-0");
        let lines = vec![(name("SKU-0"), 2)];
        other.body = Body::Reserve { lines };
        ask(&client, &other).decision
    };
    assert!(
        matches!(conflict, Decision::Refused(Refusal::KeyConflict { .. })),
        "{conflict:?}"
    );
    drop(engine);
    let made = reservations(&log);
    assert_eq!(made.into_values().map(|ids| ids.len()).sum::<usize>(), 1);
}

#[test]
fn a_broker_killed_under_load_comes_back_and_nothing_is_lost_or_decided_twice() {
    let mut server = Server::start("kafka.sh", &[]);
    let topics = Topics::new(&server, "away");
    sell_across(&topics, |_, is_there| {
        if is_there {
            server.restart();
        } else {
            server.kill();
        }
    });
}

/// Four threads reserve while `turn` takes the broker away and brings it back, twice: it is told which time, and whether the
/// broker is there now. The node says so, and everything goes on by itself; in the end what was told is in the log, once.
pub(super) fn sell_across(topics: &Topics, mut turn: impl FnMut(usize, bool)) {
    let log = MemoryLog::default();
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 1_000_000);
    let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let replies = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        let stopping = raised(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let user = next.fetch_add(1, Ordering::Relaxed);
                    let reply = ask(&client, &reserve(user, "SKU-0"));
                    let mut replies = replies.lock().expect("nobody panicked");
                    replies.insert(UserId::from(user), reply.decision);
                }
            });
        }
        let replied = || replies.lock().expect("nobody panicked").len();
        for round in 0..2 {
            let before = replied();
            until("it goes on", || replied() > before + 200);
            turn(round, false);
            until("the node says so", || client.trouble().is_some());
            let refused = client.send(&reserve(9_999_999, "SKU-0")).err();
            assert!(
                matches!(refused, Some(AskError::Unavailable(_))),
                "{refused:?}"
            );
            assert!(matches!(source.status().state, SourceState::Running(_)));
            turn(round, true);
        }
        let before = replied();
        until("it resumes by itself", || replied() > before + 200);
        drop(stopping);
    });
    until("the source is well again", || {
        source.status().state == SourceState::Running(None)
    });
    drop((source, engine));
    let made = reservations(&log);
    assert!(
        made.values().all(|ids| ids.len() == 1),
        "one reservation a user"
    );
    for (user, decision) in replies.into_inner().expect("nobody panicked") {
        let Decision::Reserved(held) = decision else {
            panic!("{user}: {decision:?}");
        };
        assert_eq!(
            made.get(&user),
            Some(&vec![held.id]),
            "what was told is in the log"
        );
    }
}

#[test]
fn what_nobody_can_read_goes_to_the_dead_letters_and_the_next_one_is_decided() {
    let server = shared();
    let topics = Topics::new(&server, "dead");
    let log = MemoryLog::default();
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it starts");
    let bad: [&[u8]; 4] = [
        b"not json",
        br#"{"v":9}"#,
        b"",
        br#"{"v":1,"kind":"reserve","user":"0000000000000000000000000000002a","key":"00000000000000000000000000000001","lines":[]}"#,
    ];
    topics.write(&bad[..2]);
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 5);
    topics.write(&bad[2..]);
    let after = ask(&client, &reserve(1, "SKU-0"));
    assert!(matches!(after.decision, Decision::Reserved(_)));
    let letters = topics.read("dead", bad.len());
    let told: BTreeSet<(Vec<u8>, String)> = letters
        .iter()
        .map(|letter| {
            let headers = letter.headers().expect("a reason");
            let header = |key: &str| {
                let found = headers.iter().find(|header| header.key == key);
                let value = found.and_then(|header| header.value).unwrap_or_default();
                String::from_utf8_lossy(value).into_owned()
            };
            assert_eq!(header("topic"), topics.topic("requests"));
            assert_eq!(header("partition"), "0");
            assert_eq!(letter.key(), Some(&b"k"[..]));
            let payload = letter.payload().unwrap_or_default().to_vec();
            (payload, header("offset") + ": " + &header("reason"))
        })
        .collect();
    let reason = |payload: &[u8]| {
        let found = told.iter().find(|(letter, _)| letter == payload);
        found.map(|(_, reason)| reason.clone()).unwrap_or_default()
    };
    assert_eq!(reason(bad[0]), "0: expected ident at line 1 column 2");
    assert_eq!(reason(bad[1]), "1: version 9, not 1");
    assert!(reason(bad[2]).contains("EOF"), "{told:?}");
    assert!(reason(bad[3]).contains("the cart is empty"), "{told:?}");
    let status = source.status();
    assert_eq!((status.dead_letters, status.dead_letters_lost), (4, 0));
    // What can't be read moves the position too, so that its successor doesn't read it again.
    let end = engine
        .handle()
        .position(topics.source_options().source_id());
    topics.write(&bad[..1]);
    until("it is dealt with", || {
        source.status().position > end.unwrap_or_default()
    });
    drop((source, engine));
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it recovers");
    let source = topics.source(engine.handle());
    ask(&client, &reserve(1, "SKU-0"));
    assert_eq!(source.status().dead_letters, 0);
}

#[test]
fn an_offset_outside_the_topic_halts_and_is_never_reset() {
    let server = shared();
    let topics = Topics::new(&server, "outside");
    let options = topics.source_options();
    let log_at = |position: u64| {
        let log = MemoryLog::default();
        let (handle, mut runner) = Engine::builder()
            .store(MemoryStore::on(&log))
            .build()
            .expect("it opens");
        let expire = Expire {
            reservation: ReservationId::new(0, 1),
        };
        let source = options.source_id();
        let from = Some(SourcePosition { source, position });
        let command = expire.into();
        handle
            .submit_run(&mut vec![Sourced { command, from }])
            .expect("room");
        runner.step().expect("it commits");
        drop(runner);
        Engine::builder()
            .store(MemoryStore::on(&log))
            .start()
            .expect("it recovers")
    };
    // Beyond its end: it is another topic, or its tail is lost.
    let engine = log_at(1_000);
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(why.contains("stands at offset 1000"), "{why}");
    assert!(
        why.contains("holds 0 to 0") && why.contains("resume --begin-at 0 --shard 0"),
        "{why}"
    );
    // An operator who knows what became of them says where to go on, also before where the log stands.
    let begins = |engine: &Engine, offset| {
        let handle = engine.handle();
        KafkaSource::begin_at(&topics.cluster(), &options, offset, &handle, WITHIN)
    };
    let refused = begins(&engine, 1).expect_err("it isn't there");
    assert!(refused.to_string().contains("and not 1"), "{refused}");
    begins(&engine, 0).expect("it is there");
    // Before its beginning: retention has taken messages that nobody has decided.
    topics.write(&[&b"x"[..]; 10]);
    let source = topics.source(engine.handle());
    until("all is dealt with", || source.status().position == 10);
    let refused = begins(&engine, 3).expect_err("nothing is amiss");
    assert!(refused.to_string().contains("stands at 10"), "{refused}");
    delete_before(&topics, 6);
    let engine = log_at(3);
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(
        why.contains("stands at offset 3") && why.contains("holds 6 to 10"),
        "{why}"
    );
    assert!(engine.handle().health().is_running(), "holds still lapse");
    begins(&engine, 6).expect("it is there");
    let source = topics.source(engine.handle());
    until("the rest is dealt with", || source.status().position == 10);
    assert_eq!(source.status().dead_letters, 4);
    // A new log that begins with a topic whose beginning is gone.
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(why.contains("has no position"), "{why}");
}

pub(super) fn delete_before(topics: &Topics, offset: i64) {
    let admin: AdminClient<_> = topics.config().create().expect("settings");
    let mut list = TopicPartitionList::new();
    let added = list.add_partition_offset(&topics.topic("requests"), 0, Offset::Offset(offset));
    added.expect("an offset");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let deleted = runtime.block_on(admin.delete_records(&list, &AdminOptions::new()));
    deleted.expect("the broker deletes them");
}

/// After a definition that came alone: a name might be known in a moment, and then it isn't.
#[test]
fn a_sku_that_nobody_has_defined_is_refused_and_stops_nothing() {
    let server = shared();
    let topics = Topics::new(&server, "nobody");
    let engine = Engine::builder().start().expect("it starts");
    let _source = topics.source(engine.handle());
    let client = topics.client();
    let placement = topics.client_options().placement;
    let here = |sku: &String| placement.partition_of(&name(sku)) == 0;
    let mut others = (0..).map(|n| format!("OTHER-{n}")).filter(here);
    let mut other = || others.next().expect("half of them are");
    let define = Body::DefineSku {
        sku: name(&other()),
        total: 5,
        rules: Rules::default(),
    };
    let define = Request::new(UserId(1), key("define"), define);
    let defined = ask(&client, &define).decision;
    assert!(matches!(defined, Decision::Defined { .. }), "{defined:?}");
    let unknown = ask(&client, &reserve(1, &other())).decision;
    assert!(
        matches!(unknown, Decision::Refused(Refusal::UnknownSku { .. })),
        "{unknown:?}"
    );
    open_sku(&client, "SKU-0", 5);
    let next = ask(&client, &reserve(1, "SKU-0")).decision;
    assert!(matches!(next, Decision::Reserved(_)), "{next:?}");
}

#[test]
fn a_backlog_that_is_longer_than_the_queue_is_decided() {
    let server = shared();
    let topics = Topics::new(&server, "backlog");
    topics.write(&[&b"x"[..]; 100]);
    let engine = Engine::builder().ring_capacity(16).start();
    let engine = engine.expect("it starts");
    let source = topics.source(engine.handle());
    until("all are dealt with", || source.status().position == 100);
}

#[test]
fn a_full_engine_pauses_the_source_and_refuses_nothing() {
    const USERS: u64 = 500;
    let server = shared();
    let topics = Topics::new(&server, "full");
    // Nobody turns the crank yet.
    let (handle, mut runner) = Engine::builder()
        .ring_capacity(16)
        .build()
        .expect("it opens");
    let mut options = topics.source_options();
    options.run_max = 8;
    let source = KafkaSource::start(&topics.cluster(), options, handle.clone());
    let source = source.expect("it starts");
    let client = topics.client();
    let asked: Vec<_> = (0..USERS)
        .map(|user| client.send(&reserve(user, "SKU-0")).expect("room"))
        .collect();
    until("the ring is full", || handle.queue_depth() == 16);
    assert_eq!(source.status().state, SourceState::Running(None));
    let id = topics.source_options().source_id();
    assert_eq!(handle.position(id), Some(16), "the rest waits in the topic");
    until("the lag is seen", || source.status().lag == USERS);
    until("it is seen from the node too", || {
        client.lags() == [USERS, 0]
    });
    while source.status().position < USERS {
        runner.step().expect("it commits");
        runner.wait(Duration::from_millis(1));
    }
    for pending in asked {
        let reply = pending.wait(WITHIN).expect("a reply");
        let refused = Decision::Refused(Refusal::UnknownSku { line: 0 });
        assert_eq!(reply.decision, refused, "in its turn, by the engine");
    }
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn a_node_refuses_what_it_can_not_send_or_would_wait_too_long_for() {
    let server = shared();
    let topics = Topics::new(&server, "node");
    let mut options = topics.client_options();
    (options.in_flight_max, options.lag_max) = (10, 5);
    let client = KafkaClient::start(&topics.cluster(), options, WITHIN).expect("it starts");
    let mut cart = reserve(1, "SKU-0");
    let placement = topics.client_options().placement;
    let elsewhere = (0..).map(|n| name(&format!("OTHER-{n}")));
    let elsewhere = elsewhere
        .into_iter()
        .find(|sku| placement.partition_of(sku) == 1);
    let elsewhere = elsewhere.expect("half of them are");
    let lines = vec![(name("SKU-0"), 1), (elsewhere.clone(), 1)];
    cart.body = Body::Reserve { lines };
    let crossed = AskError::CrossGroup {
        first: name("SKU-0"),
        other: elsewhere,
    };
    assert_eq!(client.send(&cart).err(), Some(crossed));
    let reservation = ReservationId::new(2, 1);
    let release = Request::new(UserId(1), key("r"), Body::Release { reservation });
    let unknown = AskError::UnknownShard {
        shard: 2,
        partitions: 2,
    };
    assert_eq!(client.send(&release).err(), Some(unknown));
    // Nobody decides: eight reservations are in flight, and no ninth is sent. There is room for two releases, and for no third.
    // A time-out makes room.
    let mut asked: Vec<_> = (0..8)
        .map(|user| client.send(&reserve(user, "SKU-0")).expect("room"))
        .collect();
    let busy = client.send(&reserve(11, "SKU-0")).err();
    assert_eq!(busy, Some(AskError::Busy { max: 10 }));
    let reservation = ReservationId::new(0, 1);
    let release = |n: &str| Request::new(UserId(1), key(n), Body::Release { reservation });
    for n in ["first", "second"] {
        asked.push(client.send(&release(n)).expect("room"));
    }
    let busy = client.send(&release("third")).err();
    assert_eq!(busy, Some(AskError::Busy { max: 10 }));
    let late = asked.pop().expect("ten").wait(Duration::from_millis(1));
    assert_eq!(late, Err(AskError::Unknown));
    assert_eq!(client.in_flight(), 9);
    until("the lag is seen", || client.lags()[0] == 10);
    let lagging = client.send(&reserve(12, "SKU-0")).err();
    assert_eq!(lagging, Some(AskError::Lagging { lag: 10 }));
    let reservation = ReservationId::new(0, 1);
    let release = Request::new(UserId(1), key("r"), Body::Release { reservation });
    let ends = client
        .send(&release)
        .expect("what ends something is sent all the same");
    drop((ends, asked));
    assert_eq!(client.in_flight(), 0);
    let mut other = topics.client_options();
    other.placement = Placement::new(3);
    let refused = KafkaClient::start(&topics.cluster(), other, WITHIN).err();
    assert!(refused.is_some_and(|error| error.to_string().contains("has 2 partitions")));
}

#[test]
fn a_request_that_was_asked_too_late_is_not_decided() {
    let server = shared();
    let topics = Topics::new(&server, "late");
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 5);
    let mut late = reserve(1, "SKU-0");
    late.decide_by = Some(Timestamp::from_micros(1));
    assert_eq!(
        ask(&client, &late).decision,
        Decision::Refused(Refusal::TooLate)
    );
    let mut old = reserve(2, "SKU-0");
    old.asked_at = Some(Timestamp::from_micros(1));
    assert_eq!(
        ask(&client, &old).decision,
        Decision::Refused(Refusal::TooOld)
    );
    let SourceStatus { replies_lost, .. } = source.stop();
    assert_eq!(replies_lost, 0);
}

/// Whoever asks knows the time, not what the log makes of it.
#[test]
fn what_comes_in_time_is_decided_wherever_the_log_stands() {
    const MINUTE: Duration = Duration::from_secs(60);
    let server = shared();
    let topics = Topics::new(&server, "ahead");
    let client = topics.client();
    let wall = || SystemClock::new().wall();
    let start = |log: &MemoryLog, clock: Option<Timestamp>| {
        let builder = Engine::builder().store(MemoryStore::on(log));
        let builder = match clock {
            Some(at) => builder.clock(Arc::new(ManualClock::at(at))),
            None => builder,
        };
        let engine = builder.start().expect("it starts");
        let source = topics.source(engine.handle());
        (engine, source)
    };
    let decides = |user, decide_by| {
        let mut request = reserve(user, "SKU-0");
        request.decide_by = Some(decide_by);
        ask(&client, &request).decision
    };
    let late = Decision::Refused(Refusal::TooLate);

    // A machine whose clock was a minute ahead has left its stamps.
    let log = MemoryLog::default();
    let (engine, source) = start(&log, Some(wall().plus(MINUTE)));
    open_sku(&client, "SKU-0", 5);
    drop((source, engine));
    let (engine, source) = start(&log, None);
    assert!(engine.handle().now().since(wall()) > MINUTE / 2);
    let found = decides(1, wall().plus(Duration::from_secs(10)));
    assert!(matches!(found, Decision::Reserved(_)), "{found:?}");
    assert_eq!(decides(2, Timestamp::from_micros(1)), late);
    drop((source, engine));

    // Another log, whose machine's clock was a minute behind.
    let before = |seconds: u64| Timestamp::from_micros(wall().as_micros() - seconds * 1_000_000);
    let (engine, source) = start(&MemoryLog::default(), Some(before(60)));
    assert_eq!(decides(3, before(1)), late);
    drop((source, engine));
}
