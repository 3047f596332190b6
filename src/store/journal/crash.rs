//! The journal on a disk that fails: power lost at every step, operations that fail at every step, and bytes that
//! change under it.
//!
//! What must hold after each: everything that was acknowledged is there, byte for byte; what comes back is a prefix of
//! what was offered; a crash alone is never taken for damage; damage is refused or, in the last unvouched batch, dropped.
//! A failure prints its step, survival and seed.

use super::appender::Appender;
use super::frame::{FrameHeader, FrameKind};
use super::replay::replay;
use super::segment::SegmentHeader;
use super::sim::{Random, SECTOR, SimDisk, Stop, Survival};
use super::{Disk, JournalOptions, JournalStore, Retention};
use crate::store::conformance::Tally;
use crate::store::{OpenRequest, Recovered, Replica, Store, StoreError};
use crate::types::{Batch, BatchHash, Event, EventKind, SourcePosition, Timestamp, Token};
use std::io;
use std::sync::Arc;

/// What was offered to a journal, and how much of it was acknowledged.
struct History {
    /// The state after each batch, from none.
    states: Vec<Tally>,
    /// Batches that were acknowledged.
    acknowledged: usize,
    /// One that was offered last and not acknowledged.
    offered: Option<Tally>,
    last: Recovered,
}

impl History {
    fn new() -> Self {
        Self {
            states: vec![Tally::default()],
            acknowledged: 0,
            offered: None,
            last: Recovered::default(),
        }
    }

    fn state(&self) -> &Tally {
        &self.states[self.acknowledged]
    }

    /// Opens, and checks what comes back.
    fn open(&mut self, store: &mut JournalStore) -> Result<(), StoreError> {
        let mut tally = Tally::default();
        let recovered = store.open(&request(), &mut tally, &mut |_| {})?;
        tally.settle();
        self.check(&recovered, &tally);
        self.last = recovered;
        Ok(())
    }

    fn check(&mut self, recovered: &Recovered, tally: &Tally) {
        assert_eq!(
            (recovered.last_batch, recovered.last_hash),
            (tally.batches, tally.last_hash),
            "what it reports is what it gave"
        );
        if self.offered.as_ref() == Some(tally) {
            self.states.push(tally.clone());
            self.acknowledged += 1;
        }
        self.offered = None;
        assert_eq!(tally, self.state(), "what was acknowledged is there");
    }

    fn next(&self, events: u64) -> Batch {
        let state = self.state();
        let mut batch = Batch::default();
        batch.header.number = state.batches + 1;
        batch.header.token = self.last.token;
        batch.header.first_sequence = state.events + 1;
        batch.header.stamp = Timestamp::from_micros(state.batches);
        batch.header.sources = vec![SourcePosition {
            source: 1,
            position: state.batches,
        }];
        for sequence in (state.events + 1..).take(usize::try_from(events).expect("few")) {
            batch.push_event(&Event {
                sequence,
                at: batch.header.stamp,
                shard: 0,
                epoch: 1,
                kind: EventKind::DeadlinesCredited { micros: sequence },
            });
        }
        batch.seal(state.last_hash);
        batch
    }

    fn commit(&mut self, store: &mut JournalStore, events: u64) -> Result<(), StoreError> {
        let batch = self.next(events);
        let mut tally = self.state().clone();
        tally.apply(&batch).expect("the batch follows");
        self.offered = Some(tally);
        store.commit(&batch)?;
        self.states.extend(self.offered.take());
        self.acknowledged += 1;
        Ok(())
    }
}

fn request() -> OpenRequest {
    OpenRequest {
        shard: 0,
        writer: 5,
        replicas: Arc::new(|| Box::new(Tally::default())),
    }
}

fn options(retention: Retention) -> JournalOptions {
    JournalOptions {
        segment_size: 32 << 10,
        first_segment_size: 8 << 10,
        snapshot_every_bytes: Some(24 << 10),
        retention,
        ..JournalOptions::new("sim")
    }
}

fn store(disk: &SimDisk, options: &JournalOptions) -> JournalStore {
    JournalStore::simulated(options.clone(), Arc::new(disk.clone()))
}

/// Three runs: one that ends well, one that is killed, one that ends well. Batches of many sizes, one larger than a segment.
fn workload(
    disk: &SimDisk,
    options: &JournalOptions,
    history: &mut History,
) -> Result<(), StoreError> {
    for (run, sizes) in [
        [3, 0, 20, 60, 1, 90, 2, 40, 0].as_slice(),
        &[1, 30, 300, 4, 50],
        &[7, 100, 0, 80, 31],
    ]
    .iter()
    .enumerate()
    {
        let mut store = store(disk, options);
        history.open(&mut store)?;
        for &events in *sizes {
            history.commit(&mut store, events)?;
        }
        if run != 1 {
            store.close()?;
        }
    }
    Ok(())
}

/// The whole workload on a disk that does what it is told.
fn undisturbed(options: &JournalOptions) -> (SimDisk, History) {
    let (disk, mut history) = (SimDisk::default(), History::new());
    let done = workload(&disk, options, &mut history);
    done.expect("nothing stands in its way");
    (disk, history)
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_step() {
    // Keeping all is the smaller half of deleting; two survivals do for it.
    let some = [Survival::Everything, Survival::Sectors];
    for (retention, survivals) in [
        (Retention::Keep, some.as_slice()),
        (Retention::Delete, &Survival::ALL),
    ] {
        let options = options(retention.clone());
        let steps = undisturbed(&options).0.steps();
        assert!(steps > 80, "the workload has {steps} steps");
        for step in 1..=steps {
            for &survival in survivals {
                eprintln!("crash at step {step} of {retention:?}, {survival:?}, seed {step}");
                crash_at(&options, step, survival, step);
            }
        }
    }
}

fn crash_at(options: &JournalOptions, step: u64, survival: Survival, seed: u64) {
    let (disk, mut history) = (SimDisk::default(), History::new());
    disk.stop_at(step, Stop::Crash);
    // The crash may fall on a helper's step, which fails no commit; then the next commit does, or closing does.
    let _ = workload(&disk, options, &mut history);
    // Where everything survives, it was the process that was killed; power is lost later.
    let (mut disk, survival) = match survival {
        Survival::Everything => (disk.after_kill(), Survival::Nothing),
        survival => (disk.after_crash(survival, seed), survival),
    };

    // A second crash, while it recovers or goes on.
    let mut random = Random(seed);
    disk.stop_at(1 + random.below(40) as u64, Stop::Crash);
    let _ = go_on(&disk, options, &mut history);
    disk = disk.after_crash(survival, seed + 1);

    go_on(&disk, options, &mut history).expect("a crash is no damage");
    let mut tally = Tally::default();
    let replayed = replay(&disk, Some(0), true, &mut tally, &mut |_| {}).expect("it reads");
    tally.settle();
    let recovered = replayed.scanned.into_recovered();
    history.check(&recovered, &tally);
    assert_eq!(recovered.dropped_tail, None, "it was closed");
}

fn go_on(
    disk: &SimDisk,
    options: &JournalOptions,
    history: &mut History,
) -> Result<(), StoreError> {
    let mut store = store(disk, options);
    history.open(&mut store)?;
    for events in [2, 70, 0, 9] {
        history.commit(&mut store, events)?;
    }
    store.close()
}

#[test]
fn an_operation_that_fails_loses_nothing_and_ends_the_writer() {
    let options = options(Retention::Delete);
    let steps = undisturbed(&options).0.steps();
    for step in 1..=steps {
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::Other] {
            eprintln!("{kind:?} at step {step}");
            let (disk, mut history) = (SimDisk::default(), History::new());
            disk.stop_at(step, Stop::Fail(kind));
            // Helpers may fail without harm.
            let _ = workload(&disk, &options, &mut history);
            let history = &mut history;
            go_on(&disk, &options, history).expect("it opens when the disk works again");
        }
    }
}

#[test]
fn a_failed_write_poisons_the_store() {
    let options = options(Retention::Keep);
    let (disk, mut history) = (SimDisk::default(), History::new());
    let mut store = store(&disk, &options);
    history.open(&mut store).expect("it opens");
    history.commit(&mut store, 3).expect("it commits");
    disk.stop_at(disk.steps() + 1, Stop::Fail(io::ErrorKind::StorageFull));
    let failed = history.commit(&mut store, 3).expect_err("the disk is full");
    assert!(
        failed.to_string().contains("free space on the disk"),
        "{failed}"
    );
    let again = history.commit(&mut store, 3).expect_err("it is poisoned");
    assert_eq!(again.to_string(), failed.to_string());
    assert!(store.close().is_err(), "it can't be sealed");
    go_on(&disk, &options, &mut history).expect("what was acknowledged is there");
}

/// What a damaged directory gives: the whole log, a refusal, or a log without its last batch.
fn reads(disk: &SimDisk, from_snapshot: bool, history: &History, droppable: usize, what: &str) {
    let mut tally = Tally::default();
    match replay(disk, Some(0), from_snapshot, &mut tally, &mut |_| {}) {
        Ok(_) => {
            tally.settle();
            let kept = usize::try_from(tally.batches).expect("few");
            let missing = history.acknowledged - kept;
            assert!(missing <= droppable, "{what}: {missing} batches are gone");
            assert_eq!(tally, history.states[kept], "{what}: an altered log");
        }
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.contains("sim/") && text.contains("byte"),
                "{what}: names no place: {text}"
            );
        }
    }
}

fn files(disk: &SimDisk) -> Vec<String> {
    disk.list().expect("it lists")
}

fn damage_everywhere(disk: &SimDisk, history: &History, droppable: usize) {
    let mut random = Random(77);
    for name in files(disk) {
        let len = disk.edit(&name, |bytes| bytes.len());
        let used = disk.edit(&name, |bytes| {
            bytes.iter().rposition(|&b| b != 0).map_or(0, |at| at + 1)
        });
        // Every byte of the header's fields, then a dense sample.
        let mut at = 0;
        while at < len {
            let bit = random.below(8);
            disk.edit(&name, |bytes| bytes[at] ^= 1 << bit);
            for from_snapshot in [false, true] {
                let what = format!("{name}, byte {at}, bit {bit}");
                reads(disk, from_snapshot, history, droppable, &what);
            }
            disk.edit(&name, |bytes| bytes[at] ^= 1 << bit);
            at += match at {
                0..120 => 1,
                _ if at < used => 1 + random.below(127),
                _ => 1 + random.below(4_000),
            };
        }
        for at in (0..len).step_by(SECTOR) {
            let old = disk.edit(&name, |bytes| {
                let sector = at..(at + SECTOR).min(bytes.len());
                let old = bytes[sector.clone()].to_vec();
                bytes[sector].fill(0);
                old
            });
            let what = format!("{name}, zeroed sector at {at}");
            reads(disk, false, history, droppable, &what);
            disk.edit(&name, |bytes| {
                bytes[at..at + old.len()].copy_from_slice(&old);
            });
        }
    }
}

#[test]
fn damage_in_a_closed_log_is_refused() {
    let (disk, history) = undisturbed(&options(Retention::Keep));
    damage_everywhere(&disk, &history, 0);
}

#[test]
fn damage_in_a_log_that_was_cut_short_takes_the_last_batch_at_most() {
    let (disk, mut history) = undisturbed(&options(Retention::Keep));
    let mut store = store(&disk, &options(Retention::Keep));
    history.open(&mut store).expect("it opens");
    for events in [5, 8, 3] {
        history.commit(&mut store, events).expect("it commits");
    }
    drop(store);
    damage_everywhere(&disk, &history, 1);
}

#[test]
fn a_missing_segment_is_refused() {
    let (disk, history) = undisturbed(&options(Retention::Keep));
    let names: Vec<_> = files(&disk)
        .into_iter()
        .filter(|name| name.starts_with("segment"))
        .collect();
    // The very last ones could as well never have been written: nothing inside the directory tells.
    for name in &names[..names.len() - 2] {
        let disk = disk.after_crash(Survival::Nothing, 0);
        disk.remove(name).expect("it is there");
        let mut tally = Tally::default();
        let read = replay(&disk, Some(0), false, &mut tally, &mut |_| {});
        assert!(
            read.is_err(),
            "{name} is missing: {:?}",
            history.acknowledged
        );
    }
}

#[test]
fn snapshots_are_used_and_spare_old_segments() {
    let (disk, history) = undisturbed(&options(Retention::Delete));
    let mut tally = Tally::default();
    let replayed = replay(&disk, Some(0), true, &mut tally, &mut |_| {}).expect("it reads");
    tally.settle();
    assert_eq!(&tally, history.state());
    assert!(replayed.snapshot.is_some(), "a snapshot was used");
    assert!(
        replayed.scanned.batches_read < tally.batches,
        "it spared batches"
    );
    assert!(
        !files(&disk).contains(&super::segment::segment_name(1)),
        "what it covers is gone"
    );

    let all = replay(&disk, Some(0), false, &mut Tally::default(), &mut |_| {});
    assert!(all.is_err(), "without snapshots the log has no beginning");
}

#[test]
fn a_damaged_snapshot_is_passed_over_for_an_older_one() {
    let options = options(Retention::Delete);
    let (disk, mut history) = undisturbed(&options);
    let newest = super::snapshot::snapshots(&disk).expect("it lists");
    assert_eq!(newest.len(), 2, "two snapshots stay");
    let name = super::snapshot::snapshot_name(newest[0]);
    disk.edit(&name, |bytes| bytes[4096 + 20] ^= 1);
    let mut store = store(&disk, &options);
    history.open(&mut store).expect("the older one serves");
    let warnings = store.warnings();
    assert!(
        warnings.iter().any(|warning| warning.contains(&name)),
        "it is told: {warnings:?}"
    );
}

#[test]
fn numbers_that_nothing_can_follow_are_refused_even_under_a_right_checksum() {
    let (disk, history) = undisturbed(&options(Retention::Keep));
    let newest = super::snapshot::snapshots(&disk).expect("it lists")[0];
    let name = super::snapshot::snapshot_name(newest);
    // Its batch, its sequence, and the segment that goes on; its name says the batch, too.
    for (field, batch) in [(16, u64::MAX), (64, newest), (72, newest)] {
        let disk = disk.after_kill();
        disk.edit(&name, |bytes| {
            bytes[field..field + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            let check = *blake3::hash(&bytes[..4096 - 32]).as_bytes();
            bytes[4096 - 32..4096].copy_from_slice(&check);
        });
        let forged = super::snapshot::snapshot_name(batch);
        disk.rename(&name, &forged).expect("it is there");
        let mut tally = Tally::default();
        let replayed = replay(&disk, Some(0), true, &mut tally, &mut |_| {});
        let warnings = replayed.expect("it is passed over").warnings;
        assert!(warnings[0].contains(&forged), "field {field}: {warnings:?}");
        tally.settle();
        assert_eq!(&tally, history.state(), "field {field}");
    }
    for field in [16, 24] {
        let disk = disk.after_kill();
        disk.edit("segment-0000000001.log", |bytes| {
            bytes[field..field + 8].copy_from_slice(&u64::MAX.to_le_bytes());
            let check = *blake3::hash(&bytes[..88]).as_bytes();
            bytes[88..120].copy_from_slice(&check);
        });
        let read = replay(&disk, None, false, &mut Tally::default(), &mut |_| {});
        let text = read.err().expect("it is refused").to_string();
        assert!(text.contains("segment-0000000001.log, byte 0"), "{text}");
    }
}

#[test]
fn opening_vouches_for_everything_before_it() {
    let options = options(Retention::Keep);
    let (disk, mut history) = (SimDisk::default(), History::new());
    let mut first = store(&disk, &options);
    history.open(&mut first).expect("it opens");
    history.commit(&mut first, 3).expect("it commits");
    drop(first);
    history
        .open(&mut store(&disk, &options))
        .expect("it opens again");
    disk.edit("segment-0000000001.log", |bytes| bytes[4096 + 100] ^= 1);
    let read = replay(&disk, None, false, &mut Tally::default(), &mut |_| {});
    let text = read.err().expect("it is refused").to_string();
    assert!(text.contains("segment-0000000001.log, byte 4096"), "{text}");
}

#[test]
fn what_a_zombie_appends_after_a_takeover_is_refused() {
    let options = options(Retention::Keep);
    let (old, mut history) = (SimDisk::default(), History::new());
    let mut zombie = store(&old, &options);
    history.open(&mut zombie).expect("it opens");
    history.commit(&mut zombie, 3).expect("it commits");
    // A lock that doesn't hold, as on some network file systems.
    let disk = old.after_kill();
    let mut tally = Tally::default();
    store(&disk, &options)
        .open(&request(), &mut tally, &mut |_| {})
        .expect("it opens");
    history.commit(&mut zombie, 3).expect("it commits");
    let name = "segment-0000000001.log";
    let appended = old.edit(name, |bytes| bytes.clone());
    disk.edit(name, |bytes| *bytes = appended);
    let read = replay(&disk, None, false, &mut Tally::default(), &mut |_| {});
    let text = read.err().expect("it is refused").to_string();
    assert!(text.contains("the writer found batch 1 last"), "{text}");
}

const TOKEN: Token = Token {
    epoch: 1,
    writer: 5,
};

/// A segment without batches, as its writer would begin it.
fn segment(disk: &SimDisk, index: u64, token: Token) -> Appender {
    let header = SegmentHeader {
        shard: 0,
        takeover: true,
        index,
        token,
        base_number: 0,
        base_hash: BatchHash::default(),
    };
    let segment = header.create(disk, 8 << 10, &|| false);
    Appender::new(disk, segment.expect("it is made")).expect("it opens")
}

/// What makes a batch one that its writer did not write.
type Forgery = fn(&mut Batch);

/// What reading a log says whose third batch, as its frame proves, was written so.
fn reads_forged(change: Forgery) -> Result<(), String> {
    let (disk, mut history) = (SimDisk::default(), History::new());
    let mut appender = segment(&disk, 1, TOKEN);
    history.last.token = TOKEN;
    for number in 1..=3 {
        let mut batch = history.next(2);
        if number == 3 {
            let prev_hash = batch.header.prev_hash;
            change(&mut batch);
            if batch.header.prev_hash == prev_hash {
                batch.seal(prev_hash);
            }
        }
        let frame = FrameHeader {
            kind: FrameKind::Batch,
            body_len: batch.encoded_len() as u64,
            number: batch.header.number,
            hash: batch.hash(),
        };
        let frame = frame.encode(&appender.segment().key);
        let (head, events, refusals) = batch.encoded_parts();
        let written = appender.append(&[&frame, &head, events, refusals]);
        written.expect("there is room");
        if number < 3 {
            let mut tally = history.state().clone();
            tally.apply(&batch).expect("the batch follows");
            history.states.push(tally);
            history.acknowledged += 1;
        }
    }
    let read = replay(&disk, Some(0), false, &mut Tally::default(), &mut |_| {});
    read.map(drop).map_err(|error| error.to_string())
}

#[test]
fn a_batch_that_does_not_follow_is_refused_however_whole_its_frame_is() {
    assert_eq!(reads_forged(|_| {}), Ok(()));
    let forgeries: [(&str, Forgery); 7] = [
        ("its predecessor's hash differs", |batch| {
            batch.seal(BatchHash([7; 32]));
        }),
        ("batch 3 is missing, batch 4 is there", |batch| {
            batch.header.number = 4;
        }),
        ("doesn't go on with the sequence", |batch| {
            batch.header.first_sequence += 1;
        }),
        ("is older than its predecessor", |batch| {
            batch.header.stamp = Timestamp::from_micros(0);
        }),
        ("has another writer's token", |batch| {
            batch.header.token.epoch = 2;
        }),
        ("has another writer's token", |batch| {
            batch.header.token.writer = 6;
        }),
        ("has another writer's token", |batch| batch.header.shard = 1),
    ];
    for (what, change) in forgeries {
        let refused = reads_forged(change).expect_err(what);
        assert!(refused.contains(what), "{refused}, expected: {what}");
        assert!(
            refused.contains("sim/segment-0000000001.log, byte "),
            "names no place: {refused}"
        );
    }
}

#[test]
fn a_segment_of_a_writer_who_does_not_follow_is_refused() {
    for (epoch, follows) in [(1, false), (2, true), (3, false)] {
        let disk = SimDisk::default();
        segment(&disk, 1, TOKEN);
        segment(&disk, 2, Token { epoch, ..TOKEN });
        let read = replay(&disk, Some(0), false, &mut Tally::default(), &mut |_| {});
        assert_eq!(read.is_ok(), follows, "epoch {epoch} after 1");
    }
}

#[test]
fn segments_that_only_a_damaged_snapshot_covers_stay() {
    let options = options(Retention::Delete);
    let (disk, mut history) = undisturbed(&options);
    let mut store = store(&disk, &options);
    history.open(&mut store).expect("it opens");
    let oldest = |disk: &SimDisk| {
        let names = files(disk).into_iter();
        names.filter(|name| name.starts_with("segment")).min()
    };
    let newest = |disk: &SimDisk| super::snapshot::snapshots(disk).expect("it lists")[0];
    // It will be the second newest when the next one is made.
    let (kept, damaged) = (oldest(&disk), newest(&disk));
    let name = super::snapshot::snapshot_name(damaged);
    disk.edit(&name, |bytes| bytes[4096 + 20] ^= 1);
    while newest(&disk) == damaged {
        history.commit(&mut store, 60).expect("it commits");
    }
    assert_eq!(oldest(&disk), kept, "nothing was removed");
}

#[test]
fn a_torn_tail_stays_in_its_file() {
    let options = JournalOptions {
        first_segment_size: 16 << 10,
        ..options(Retention::Keep)
    };
    let (disk, mut history) = (SimDisk::default(), History::new());
    let mut first = store(&disk, &options);
    history.open(&mut first).expect("it opens");
    history.commit(&mut first, 3).expect("it commits");
    drop(first);
    let name = "segment-0000000001.log";
    let torn = disk.edit(name, |bytes| {
        let end = bytes.iter().rposition(|&byte| byte != 0).expect("a frame");
        // A block of its own, which the frame before it doesn't need.
        bytes[end.next_multiple_of(4096) + 100] = 1;
        bytes.clone()
    });
    let mut tally = Tally::default();
    let opened = store(&disk, &options).open(&request(), &mut tally, &mut |_| {});
    let recovered = opened.expect("it opens again");
    assert!(recovered.dropped_tail.is_some(), "it is reported");
    assert_eq!(tally.batches, 1, "the batch before it is there");
    disk.edit(name, |bytes| assert_eq!(*bytes, torn, "to be looked at"));
}
