//! Sinks that know where they stand get every batch, in order: after a restart, after errors, and when they fall behind. Without a
//! way to read the log, and before it begins, they are told of the gap.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use stockade::engine::{Engine, EngineBuilder, Handle};
use stockade::events::{EventSink, SinkError};
use stockade::store::journal::Retention;
use stockade::store::{
    JournalOptions, JournalReader, JournalStore, MemoryLog, MemoryStore, ReadLog, StoreError,
};
use stockade::types::{Batch, DefineSku, Gate, Reserve, SetGate, SkuId, SkuName, UserId};

const ADMIN: UserId = UserId(1 << 100);
const WITHIN: Duration = Duration::from_secs(30);

/// What a sink has: sequences in order of arrival, gaps, and where it would go on.
#[derive(Default)]
struct Has {
    sequences: Vec<u64>,
    gaps: Vec<(u64, u64)>,
    last_batch: u64,
    /// It fails so often before it takes the next batch.
    failures: u32,
}

/// A sink whose memory outlives it.
#[derive(Clone, Default)]
struct Lasting {
    has: Arc<Mutex<Has>>,
    knows: bool,
}

impl Lasting {
    fn with<R>(&self, look: impl FnOnce(&mut Has) -> R) -> R {
        look(&mut self.has.lock().expect("nobody panicked"))
    }
}

impl EventSink for Lasting {
    fn resume(&mut self) -> Result<Option<u64>, SinkError> {
        let next = self.with(|has| has.last_batch + 1);
        Ok(self.knows.then_some(next))
    }

    fn publish(&mut self, batch: &Batch) -> Result<(), SinkError> {
        self.with(|has| {
            if has.failures > 0 {
                has.failures -= 1;
                return Err(SinkError("not yet".into()));
            }
            has.last_batch = batch.header.number;
            let events = batch
                .events()
                .map(|event| event.map(|event| event.sequence));
            let events: Result<Vec<u64>, _> = events.collect();
            has.sequences
                .extend(events.map_err(|error| SinkError(error.to_string()))?);
            Ok(())
        })
    }

    fn gap(&mut self, from: u64, to: u64) {
        self.with(|has| has.gaps.push((from, to)));
    }
}

fn open(handle: &Handle) {
    let define = DefineSku::new(ADMIN, SkuName::new("A").expect("a name"), 1_000_000);
    handle
        .define_sku(define)
        .expect("room")
        .wait()
        .expect("defined");
    let open = SetGate::new(ADMIN, SkuId(0), Gate::Open);
    handle.set_gate(open).expect("room").wait().expect("opened");
}

fn sell(handle: &Handle, users: std::ops::Range<u64>) {
    for user in users {
        let reserve = Reserve::one(UserId::from(user), SkuId(0), 1).expect("a cart");
        handle
            .reserve(reserve)
            .expect("room")
            .wait()
            .expect("a unit");
    }
}

fn shut_down(engine: Engine) {
    let handle = engine.handle();
    let report = engine.shutdown(WITHIN);
    let is_whole = report.is_clean && report.is_announced;
    assert!(is_whole, "{report:?}, {:?}", handle.health());
}

fn last_sequence(mut log: impl ReadLog) -> u64 {
    let mut last = 0;
    let read = log.read(1, &mut |batch| {
        last = batch.last_sequence();
        true
    });
    read.expect("the log is whole");
    last
}

#[test]
fn a_sink_that_was_not_there_or_failed_or_fell_behind_gets_all_of_it_from_the_log() {
    let log = MemoryLog::default();
    let builder = || Engine::builder().store(MemoryStore::on(&log));
    let engine = builder().start().expect("it starts");
    open(&engine.handle());
    sell(&engine.handle(), 0..10);
    drop(engine);
    let sink = Lasting {
        knows: true,
        ..Lasting::default()
    };
    sink.with(|has| has.failures = 8);
    // While it fails, more batches come than wait for it.
    let engine = builder()
        .log(log.clone())
        .sink(sink.clone())
        .start()
        .expect("it recovers");
    sell(&engine.handle(), 100..1_500);
    drop(engine);
    let engine = builder()
        .log(log.clone())
        .sink(sink.clone())
        .start()
        .expect("it recovers");
    sell(&engine.handle(), 2_000..2_010);
    shut_down(engine);
    let (sequences, gaps) = sink.with(|has| (has.sequences.clone(), has.gaps.clone()));
    let wanted: Vec<u64> = (1..=last_sequence(log)).collect();
    assert!(
        sequences == wanted,
        "{} of {} events",
        sequences.len(),
        wanted.len()
    );
    assert_eq!(gaps, []);
}

#[test]
fn without_a_log_the_gap_is_told_before_what_follows() {
    let log = MemoryLog::default();
    let builder = || -> EngineBuilder { Engine::builder().store(MemoryStore::on(&log)) };
    let engine = builder().start().expect("it starts");
    open(&engine.handle());
    shut_down(engine);
    let missed = last_sequence(log.clone());
    for knows in [true, false] {
        let sink = Lasting {
            knows,
            ..Lasting::default()
        };
        let before = last_sequence(log.clone());
        let mut first = 0;
        log.clone()
            .read(1, &mut |batch| {
                first = batch.header.number + 1;
                true
            })
            .expect("the log is whole");
        let engine = builder().sink(sink.clone()).start().expect("it recovers");
        let user = before * 10;
        sell(&engine.handle(), user..user + 2);
        shut_down(engine);
        let (sequences, gaps) = sink.with(|has| (has.sequences.clone(), has.gaps.clone()));
        assert_eq!(sequences, [before + 1, before + 2]);
        let told = if knows { vec![(1, first)] } else { Vec::new() };
        assert_eq!(gaps, told);
    }
    assert!(missed > 0);
}

#[test]
fn a_journal_gives_what_it_has_and_says_what_it_has_not() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let mut options = JournalOptions::new(dir.path());
    (options.segment_size, options.first_segment_size) = (16 << 10, 16 << 10);
    options.snapshot_every_bytes = Some(32 << 10);
    let log = || JournalReader::new(dir.path());
    let builder = |options: &JournalOptions| {
        let store = JournalStore::new(options.clone());
        Engine::builder().store(store).log(log())
    };
    let sink = || Lasting {
        knows: true,
        ..Lasting::default()
    };
    let told = |sink: &Lasting| sink.with(|has| (has.sequences.clone(), has.gaps.clone()));
    let follower = sink();
    for life in 0..3 {
        let engine = builder(&options)
            .sink(follower.clone())
            .start()
            .expect("it recovers");
        if life == 0 {
            open(&engine.handle());
        }
        sell(&engine.handle(), life * 10_000..life * 10_000 + 1_000);
        shut_down(engine);
    }
    let (sequences, gaps) = told(&follower);
    let wanted: Vec<u64> = (1..=last_sequence(log())).collect();
    assert_eq!(gaps, [], "all of it is there, before the snapshots too");
    assert!(
        sequences == wanted,
        "{} of {} events",
        sequences.len(),
        wanted.len()
    );
    // The log's beginning is deleted, once the second newest snapshot covers it.
    options.retention = Retention::Delete;
    let begins_at = || {
        let mut first = None;
        let read = log().read(1, &mut |batch| {
            first = Some(batch.header.number);
            false
        });
        read.expect("the log is whole");
        first
    };
    let stood_at = follower.with(|has| has.last_batch);
    let mut life = 10;
    while begins_at() <= Some(stood_at + 1) {
        assert!(life < 30, "the log's beginning stays");
        let engine = builder(&options).start().expect("it recovers");
        sell(&engine.handle(), life * 10_000..life * 10_000 + 2_000);
        shut_down(engine);
        life += 1;
    }
    let late = sink();
    for (sink, from) in [(&follower, stood_at + 1), (&late, 1)] {
        sink.with(|has| has.sequences.clear());
        let engine = builder(&options)
            .sink(sink.clone())
            .start()
            .expect("it recovers");
        shut_down(engine);
        let (sequences, gaps) = told(sink);
        let [(begins, to)] = gaps[..] else {
            panic!("one gap, before all that is there: {gaps:?}");
        };
        assert!(begins == from && to > from, "{gaps:?}");
        assert!(
            sequences.is_sorted_by(|a, b| a + 1 == *b),
            "nothing else is missing"
        );
        assert_eq!(sequences.last(), Some(&last_sequence(log())));
    }
}

/// A log whose batches before this one are gone.
struct Cut(MemoryLog, u64);

impl ReadLog for Cut {
    fn read(&mut self, from: u64, take: &mut dyn FnMut(&Batch) -> bool) -> Result<(), StoreError> {
        self.0.read(from.max(self.1), take)
    }
}

#[test]
fn a_log_that_begins_after_all_that_was_missed_is_a_gap_and_not_waited_for() {
    let log = MemoryLog::default();
    let builder = || Engine::builder().store(MemoryStore::on(&log));
    let engine = builder().start().expect("it starts");
    open(&engine.handle());
    shut_down(engine);
    let (mut batches, events) = (0, last_sequence(log.clone()));
    let read = log.clone().read(1, &mut |batch| {
        batches = batch.header.number;
        true
    });
    read.expect("the log is whole");
    let sink = Lasting {
        knows: true,
        ..Lasting::default()
    };
    let cut = Cut(log.clone(), batches + 1);
    let engine = builder()
        .log(cut)
        .sink(sink.clone())
        .start()
        .expect("it recovers");
    sell(&engine.handle(), 0..2);
    shut_down(engine);
    let (sequences, gaps) = sink.with(|has| (has.sequences.clone(), has.gaps.clone()));
    assert_eq!(gaps, [(1, batches + 1)]);
    assert_eq!(sequences, [events + 1, events + 2]);
}
