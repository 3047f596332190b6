//! Sinks that know where they stand get every batch, in order: after a restart, after errors, and when they fall behind. Without a way
//! to read the log, and before it begins, they are told of the gap.

use std::sync::{Arc, Mutex};
use std::time::Duration;
use stockade::engine::{Engine, EngineBuilder, Handle};
use stockade::events::{EventSink, SinkError};
use stockade::store::journal::Retention;
use stockade::store::{
    JournalOptions, JournalReader, JournalStore, MemoryLog, MemoryStore, ReadLog,
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
    let report = engine.shutdown(WITHIN);
    assert!(report.is_clean && report.is_announced, "{report:?}");
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
    (options.snapshot_every_bytes, options.retention) = (Some(32 << 10), Retention::Delete);
    let builder = || {
        let store = JournalStore::new(options.clone());
        Engine::builder()
            .store(store)
            .log(JournalReader::new(dir.path()))
    };
    let follower = Lasting {
        knows: true,
        ..Lasting::default()
    };
    let begins_at = || {
        let mut first = None;
        let read = JournalReader::new(dir.path()).read(1, &mut |batch| {
            first = Some(batch.header.number);
            false
        });
        read.expect("the log is whole");
        first
    };
    let mut life = 0;
    // Snapshots are made beside the writer: until the second covers the first batches.
    while begins_at() <= Some(1) {
        assert!(life < 20, "the log's beginning stays");
        let engine = builder()
            .sink(follower.clone())
            .start()
            .expect("it recovers");
        if life == 0 {
            open(&engine.handle());
        }
        sell(&engine.handle(), life * 10_000..life * 10_000 + 2_000);
        shut_down(engine);
        life += 1;
    }
    let (sequences, gaps) = follower.with(|has| (has.sequences.clone(), has.gaps.clone()));
    let last = last_sequence(JournalReader::new(dir.path()));
    assert_eq!(gaps, [], "it was never further back than the log");
    assert!(sequences.is_sorted_by(|a, b| a + 1 == *b) && sequences.last() == Some(&last));
    // The log's beginning is deleted: a new sink is told, and gets the rest.
    let late = Lasting {
        knows: true,
        ..Lasting::default()
    };
    shut_down(builder().sink(late.clone()).start().expect("it recovers"));
    let (sequences, gaps) = late.with(|has| (has.sequences.clone(), has.gaps.clone()));
    let [(1, to)] = gaps[..] else {
        panic!("one gap from the beginning: {gaps:?}");
    };
    assert!(to > 1 && sequences.is_sorted_by(|a, b| a + 1 == *b));
    assert_eq!(sequences.last(), Some(&last));
}
