//! Events as others read them: over restarts, over a broker that was killed, and over a log that lost its tail, none is
//! skipped and a fork is told.

use crate::servers::Server;
use crate::{ADMIN, Topics, WITHIN, events, name, shared};
use rdkafka::message::{Headers, Message};
use std::ops::Range;
use std::path::Path;
use stockade::engine::{Engine, Handle};
use stockade::kafka::{EventCursor, KafkaEvents, KafkaSink, Published};
use stockade::store::{JournalOptions, JournalReader, JournalStore, MemoryLog, MemoryStore};
use stockade::types::{DefineSku, Event, Gate, Reserve, SetGate, SkuId, UserId};

/// Every record of the events, with its cursor, and what a reader makes of them.
fn published(topics: &Topics, wanted: &[Event]) -> (Vec<EventCursor>, Vec<Published>) {
    let last = wanted.last().expect("some events");
    let until = EventCursor {
        epoch: last.epoch.into(),
        sequence: last.sequence,
    };
    let events = topics.topic("events");
    let begin = EventCursor::default();
    let mut reader = KafkaEvents::start(&topics.cluster(), &events, 0, 0, begin).expect("a topic");
    let mut read = Vec::new();
    while reader.cursor() < until {
        let next = reader.next(WITHIN).expect("a broker that runs");
        read.push(next.expect("the last event comes"));
    }
    let count = usize::try_from(reader.offset()).expect("a few");
    let raw = topics.read("events", count).into_iter().map(|record| {
        let headers = record.headers().expect("a place");
        let number = |key: &str| {
            let found = headers.iter().find(|header| header.key == key);
            let value = found.and_then(|header| header.value).unwrap_or_default();
            String::from_utf8_lossy(value).parse().expect("a number")
        };
        EventCursor {
            epoch: number("epoch"),
            sequence: number("sequence"),
        }
    });
    (raw.collect(), read)
}

fn sell(handle: &Handle, users: Range<u64>) {
    let tickets = users.map(|user| {
        let reserve = Reserve::one(UserId::from(user), SkuId(0), 1);
        handle.reserve(reserve.expect("a cart")).expect("room")
    });
    for ticket in tickets.collect::<Vec<_>>() {
        ticket.wait().expect("units for all");
    }
}

fn define(handle: &Handle) {
    let define = DefineSku::new(ADMIN, name("SKU-0"), 1_000_000);
    handle
        .define_sku(define)
        .expect("room")
        .wait()
        .expect("defined");
    let open = SetGate::new(ADMIN, SkuId(0), Gate::Open);
    handle.set_gate(open).expect("room").wait().expect("opened");
}

#[test]
fn events_may_repeat_over_restarts_but_none_is_skipped() {
    let server = shared();
    let topics = Topics::new(&server, "outbox");
    let log = MemoryLog::default();
    let start = || {
        let sink = KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
        let store = MemoryStore::on(&log);
        let builder = Engine::builder().store(store).log(log.clone()).sink(sink);
        builder.start().expect("it recovers")
    };
    for life in 0..20 {
        let engine = start();
        if life == 0 {
            define(&engine.handle());
        }
        // Some lives have more batches than wait for a slow sink, others few large ones.
        let (batches, len) = if life % 5 == 0 {
            (1_200, 1)
        } else {
            (life, 3_000)
        };
        for batch in 0..batches {
            let first = life * 100_000 + batch * len;
            sell(&engine.handle(), first..first + len);
        }
        // It is dropped without waiting for the sink, which has sent nothing, or all, or some of a batch.
    }
    let report = start().shutdown(WITHIN);
    assert!(report.is_announced, "{report:?}");
    let wanted = events(log.clone());
    let (raw, read) = published(&topics, &wanted);
    let read: Vec<Event> = read
        .into_iter()
        .map(|published| match published {
            Published::Event(event) => event,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, wanted);
    // What a producer that died had under way may come late, so a repetition may break off.
    let mut last = 0;
    for at in raw {
        assert!(at.sequence <= last + 1, "{at:?} skips what follows {last}");
        last = last.max(at.sequence);
    }
}

#[test]
fn a_broker_killed_while_events_leave_gets_all_of_them_in_order() {
    let mut server = Server::start("kafka.sh", &[]);
    let topics = Topics::new(&server, "leave");
    let log = MemoryLog::default();
    let sink = KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
    let store = MemoryStore::on(&log);
    let builder = Engine::builder().store(store).log(log.clone()).sink(sink);
    let engine = builder.start().expect("it starts");
    define(&engine.handle());
    for part in 0..30 {
        match part {
            10 => server.kill(),
            20 => server.restart(),
            _ => {}
        }
        for block in 0..100 {
            let first = (part * 100 + block) * 5;
            sell(&engine.handle(), first..first + 5);
        }
    }
    assert!(engine.handle().health().is_running());
    let report = engine.shutdown(2 * WITHIN);
    assert!(report.is_announced, "{report:?}");
    let wanted = events(log.clone());
    let (_, read) = published(&topics, &wanted);
    let wanted: Vec<Published> = wanted.into_iter().map(Published::Event).collect();
    assert!(read == wanted, "{} of {} events", read.len(), wanted.len());
}

#[test]
fn a_log_that_lost_its_tail_publishes_a_fork_before_it_goes_on() {
    let server = shared();
    // The copy's sink begins before the number of the topic's last batch, and after it.
    loses_its_tail(&Topics::new(&server, "fork-short"), 20, 3);
    loses_its_tail(&Topics::new(&server, "fork-long"), 3, 20);
}

fn loses_its_tail(topics: &Topics, lost_batches: u64, new_batches: u64) {
    let sell_singly = |engine: &Engine, first: u64, count: u64| {
        for user in first..first + count {
            sell(&engine.handle(), user..user + 1);
        }
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, lost) = (folder.path().join("whole"), folder.path().join("lost"));
    let builder = |dir: &Path| {
        let store = JournalStore::new(JournalOptions::new(dir));
        Engine::builder().store(store).log(JournalReader::new(dir))
    };
    let sink = || KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
    let ends = |engine: Engine| {
        let report = engine.shutdown(WITHIN);
        assert!(report.is_clean && report.is_announced, "{report:?}");
    };
    let engine = builder(&whole).sink(sink()).start().expect("it starts");
    define(&engine.handle());
    sell(&engine.handle(), 0..5);
    ends(engine);
    let common = events(JournalReader::new(&whole)).len();
    std::fs::create_dir(&lost).expect("an empty folder");
    for file in std::fs::read_dir(&whole).expect("a journal").flatten() {
        std::fs::copy(file.path(), lost.join(file.file_name())).expect("room");
    }
    let engine = builder(&whole).sink(sink()).start().expect("it recovers");
    sell_singly(&engine, 100, lost_batches);
    ends(engine);
    let told = events(JournalReader::new(&whole));
    // The copy has lost those. Its writer's first life has no sink: what it did there is not to be missed.
    ends(builder(&lost).start().expect("it recovers"));
    let engine = builder(&lost).start().expect("it recovers");
    sell_singly(&engine, 200, new_batches);
    ends(engine);
    let engine = builder(&lost).sink(sink()).start().expect("it recovers");
    sell(&engine.handle(), 300..310);
    ends(engine);
    let wanted = events(JournalReader::new(&lost));
    let (_, read) = published(topics, &wanted);
    let (before, after) = read.split_at(told.len());
    let as_published = |events: &[Event]| -> Vec<Published> {
        events.iter().cloned().map(Published::Event).collect()
    };
    assert_eq!(before, as_published(&told));
    let sequence = common as u64;
    assert_eq!(after[0], Published::Fork { sequence });
    assert_eq!(after[1..], as_published(&wanted[common..]));
}
