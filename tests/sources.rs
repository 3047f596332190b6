//! Commands from a source that is read again after a crash are decided exactly once, keys or no keys: their positions are in the
//! batch of their answers, whenever the engine dies.

mod dying;

use dying::Dying;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Duration;
use stockade::engine::{Engine, Handle};
use stockade::store::{
    JournalOptions, JournalStore, MemoryLog, MemoryStore, OpenRequest, Replica, ReplicaError,
    Store, journal,
};
use stockade::types::{
    Answer, Answers, Batch, Decision, DefineSku, EventKind, Gate, RefusalCode, Reserve,
    SOURCES_MAX, SetGate, SkuId, SkuName, SourcePosition, Sourced, StateRecord, Submit,
    SubmitError, UserId,
};

const SOURCE: u64 = 7;
const MESSAGES: u64 = 60;
const ADMIN: UserId = UserId(1 << 100);
/// SKUs by index: units for all, none, not open, not defined.
const SKUS: u32 = 4;

/// A log that outlives its writers.
enum Log {
    Memory(MemoryLog),
    Journal(tempfile::TempDir),
}

impl Log {
    fn open(&self) -> Box<dyn Store> {
        match self {
            Self::Memory(log) => Box::new(MemoryStore::on(log)),
            Self::Journal(dir) => Box::new(JournalStore::new(JournalOptions::new(dir.path()))),
        }
    }

    /// Every batch of it.
    fn batches(&self) -> Vec<Batch> {
        let mut collected = Collect(Vec::new());
        match self {
            Self::Memory(log) => {
                let request = OpenRequest {
                    shard: 0,
                    writer: 1,
                    replicas: std::sync::Arc::new(|| Box::new(Collect(Vec::new()))),
                };
                let opened = MemoryStore::on(log).open(&request, &mut collected, &mut |_| {});
                opened.expect("the log is whole");
            }
            Self::Journal(dir) => {
                let path = PathBuf::from(dir.path());
                journal::read(&path, false, &mut collected, &mut |_| {}).expect("a whole log");
            }
        }
        collected.0
    }
}

struct Collect(Vec<Batch>);

impl Replica for Collect {
    fn restore(&mut self, _: &StateRecord) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        self.0.push(batch.clone());
        Ok(())
    }

    fn export(&self, _: &mut dyn FnMut(&StateRecord)) {}
}

fn sku_of(message: u64) -> SkuId {
    let index = u32::try_from(message).expect("a few messages") % SKUS;
    SkuId(if index == 3 { u32::MAX } else { index })
}

/// The message at a position, without a key: nothing but the position tells that it was decided.
fn message(at: u64) -> Sourced {
    let reserve = Reserve::one(UserId::from(at), sku_of(at), 1).expect("a cart");
    Sourced {
        command: reserve.into(),
        from: Some(SourcePosition {
            source: SOURCE,
            position: at + 1,
        }),
    }
}

fn define_skus(log: &Log) {
    let (handle, runner) = Engine::builder()
        .store(Dying {
            inner: log.open(),
            commits_left: usize::MAX,
            writes: true,
        })
        .build()
        .expect("it opens");
    let mut tickets = Vec::new();
    for (index, total) in [(0, 1_000), (1, 0), (2, 1_000)] {
        let name = SkuName::new(&format!("SKU-{index}")).expect("a name");
        tickets.push(handle.define_sku(DefineSku::new(ADMIN, name, total)));
    }
    let open = |sku| handle.set_gate(SetGate::new(ADMIN, SkuId(sku), Gate::Open));
    let opened = [open(0), open(1)];
    runner.shutdown().expect("it commits");
    for ticket in tickets {
        ticket.expect("room").wait().expect("defined");
    }
    for ticket in opened {
        ticket.expect("room").wait().expect("opened");
    }
}

/// Runs an engine that dies at its `commits`-th commit, and feeds it from where the log says. Returns what was answered by then.
fn live(log: &Log, commits: usize, writes: bool) -> Vec<(u64, Answer)> {
    let store = Dying {
        inner: log.open(),
        commits_left: commits,
        writes,
    };
    // So few that runs are cut in the middle, and that some batches have nothing to record.
    let builder = Engine::builder().store(store).batch_max(1 + commits % 4);
    let (handle, mut runner) = builder.build().expect("it opens");
    let begin = handle.position(SOURCE).unwrap_or(0);
    let mut next = begin;
    let mut runs = Vec::new();
    let mut len = 1;
    while next < MESSAGES {
        len = len % 7 + 1;
        let end = (next + len).min(MESSAGES);
        let mut run = (next..end).map(message).collect();
        let answers = handle.submit_run(&mut run).expect("room");
        runs.push((next, answers));
        next = end;
    }
    assert_eq!(
        handle.position(SOURCE),
        Some(next),
        "what is on its way counts"
    );
    while handle.queue_depth() > 0 && runner.step().is_ok() {}
    drop(runner);
    let mut told = Vec::new();
    for (first, answers) in runs {
        let answers = wait(answers);
        let known = answers.into_iter().zip(first..).filter_map(|(answer, at)| {
            let answer = answer.filter(|answer| *answer != Answer::NotDecided);
            answer.map(|answer| (at, answer))
        });
        told.extend(known);
    }
    told
}

fn wait(answers: Box<dyn Answers>) -> Vec<Option<Answer>> {
    let answers = answers.wait(Duration::ZERO).ok();
    answers.expect("whoever submitted has an answer once the engine has ended")
}

/// Every batch holds what lies between the positions of its predecessor and its own, and nothing else.
fn check(log: &Log) -> u64 {
    let mut stands = 0;
    for batch in log.batches() {
        let mut decided = BTreeSet::new();
        let mut decides = |user: UserId| {
            if user != ADMIN {
                let at = u64::try_from(user.0).expect("a message's number");
                assert!(decided.insert(at), "message {at} was decided twice");
            }
        };
        for event in batch.events() {
            if let EventKind::Reserved { origin, .. } = event.expect("an event").kind {
                decides(origin.user);
            }
        }
        for refusal in batch.refusals() {
            decides(refusal.expect("a refusal").origin.user);
        }
        let from = stands;
        for source in &batch.header.sources {
            assert_eq!(source.source, SOURCE);
            assert!(source.position >= stands, "positions don't go back");
            stands = source.position;
        }
        // SKUs 2 and 3 defer, which records nothing but the position.
        let records = |at: &u64| at % u64::from(SKUS) < 2;
        let wanted: BTreeSet<u64> = (from..stands).filter(records).collect();
        assert_eq!(decided, wanted, "batch {}", batch.header.number);
    }
    stands
}

fn every_message_is_decided_exactly_once(new_log: impl Fn() -> Log, kills: usize) {
    for kill in 0..kills {
        for writes in [false, true] {
            let log = new_log();
            define_skus(&log);
            let mut told = Vec::new();
            // It dies again and again, ever a few commits later.
            for life in 0.. {
                assert!(life < 1_000, "it goes on");
                told.extend(live(&log, kill + life, writes));
                let stands = check(&log);
                for (at, answer) in &told {
                    assert!(
                        *at < stands,
                        "{answer:?} to message {at} was told before {stands}"
                    );
                }
                if stands == MESSAGES {
                    break;
                }
            }
            let heard: BTreeSet<u64> = told.iter().map(|&(at, _)| at).collect();
            assert_eq!(heard.len(), told.len(), "no message was answered twice");
            for (at, answer) in told {
                let code = match answer {
                    Answer::Decided(Decision::Refused(refusal)) => Some(refusal.code()),
                    _ => None,
                };
                let wanted = [
                    None,
                    Some(RefusalCode::SoldOut),
                    Some(RefusalCode::NotOpen),
                    Some(RefusalCode::UnknownSku),
                ];
                assert_eq!(code, wanted[usize::try_from(at).expect("few") % 4]);
            }
        }
    }
}

#[test]
fn killed_at_any_commit_a_memory_log_holds_every_message_once() {
    every_message_is_decided_exactly_once(|| Log::Memory(MemoryLog::default()), 20);
}

#[test]
fn killed_at_any_commit_a_journal_holds_every_message_once() {
    let log = || Log::Journal(tempfile::tempdir().expect("a temporary folder"));
    every_message_is_decided_exactly_once(log, 6);
}

#[test]
fn a_source_that_is_read_again_while_the_engine_runs_is_refused() {
    let (handle, mut runner) = Engine::builder().build().expect("it opens");
    let first = handle
        .submit_run(&mut vec![message(0), message(1)])
        .expect("room");
    let mut again = vec![message(2), message(1)];
    let refused = SubmitError::Repeated {
        source_id: SOURCE,
        position: 2,
        stands: 3,
    };
    assert_eq!(handle.submit_run(&mut again).err(), Some(refused));
    assert_eq!(again, [message(2), message(1)], "handed back whole");
    assert_eq!(handle.position(SOURCE), Some(2));
    again.truncate(1);
    let second = handle.submit_run(&mut again).expect("what is new is taken");
    runner.step().expect("it commits");
    assert_eq!((wait(first).len(), wait(second).len()), (2, 1));
}

#[test]
fn an_operator_moves_a_source_back_and_the_log_has_it_before_it_is_told() {
    let log = MemoryLog::default();
    let open = || Engine::builder().store(MemoryStore::on(&log)).build();
    let (handle, mut runner) = open().expect("it opens");
    handle.submit_run(&mut vec![message(8)]).expect("room");
    let to = |position| SourcePosition {
        source: SOURCE,
        position,
    };
    let moved = handle.move_source(to(3)).expect("room");
    assert_eq!(handle.position(SOURCE), Some(3));
    runner.step().expect("it commits");
    assert_eq!(wait(moved).len(), 1);
    drop(runner);
    let (handle, mut runner) = open().expect("it recovers");
    assert_eq!(handle.position(SOURCE), Some(3));
    let taken = handle.submit_run(&mut vec![message(3)]);
    runner.step().expect("it commits");
    assert_eq!(wait(taken.expect("it is new")).len(), 1);
}

#[test]
fn a_full_queue_hands_the_run_back_and_leaves_the_position() {
    let (handle, mut runner) = Engine::builder()
        .ring_capacity(4)
        .build()
        .expect("it opens");
    let submit = |handle: &Handle, range: std::ops::Range<u64>| {
        let mut run: Vec<Sourced> = range.map(message).collect();
        let taken = handle.submit_run(&mut run);
        (taken.map(|_| ()), run.len())
    };
    assert_eq!(submit(&handle, 0..5), (Err(SubmitError::TooLong), 5));
    assert_eq!(submit(&handle, 0..3), (Ok(()), 0));
    assert_eq!(submit(&handle, 3..6), (Err(SubmitError::Full), 3));
    assert_eq!(handle.position(SOURCE), Some(3));
    runner.step().expect("it commits");
    assert_eq!(submit(&handle, 3..6), (Ok(()), 0));
    drop(runner);
    assert_eq!(submit(&handle, 6..7), (Err(SubmitError::Ended), 1));
}

#[test]
fn one_source_more_than_a_batch_carries_is_refused() {
    let (handle, _runner) = Engine::builder().build().expect("it opens");
    let from = |source: u64| {
        let position = 1;
        let from = Some(SourcePosition { source, position });
        let sourced = Sourced { from, ..message(0) };
        handle.submit_run(&mut vec![sourced]).map(|_| ())
    };
    for source in 0..SOURCES_MAX as u64 {
        assert_eq!(from(source), Ok(()));
    }
    let refused = SubmitError::TooManySources {
        source_id: 99,
        max: SOURCES_MAX,
    };
    assert_eq!(from(99), Err(refused));
}
