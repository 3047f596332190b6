//! Real logs, small and the same in every run, that damage is done to.

use super::TempDir;
use super::edits::check_layout;
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, LazyLock};
use std::thread;
use stockade::store::conformance::Tally;
use stockade::store::journal::Retention;
use stockade::store::{JournalOptions, JournalStore, OpenRequest, Recovered, Replica, Store};
use stockade::types::{Batch, Event, EventKind, SourcePosition, Timestamp};

/// Names and contents of a directory.
pub(crate) type Files = BTreeMap<String, Vec<u8>>;

/// Every segment begins so large in bytes. A batch either fits into what is left of it, or has [`LARGE`] events: the
/// writer waits for the next segment then, so that nothing depends on how fast its helper is.
const SEGMENT_SIZE: u64 = 8 << 10;
const LARGE: u64 = 110;

/// A log, and what was written to it.
pub(crate) struct Log {
    pub(crate) files: Files,
    pub(crate) retention: Retention,
    /// The state after each batch, from none.
    pub(crate) states: Vec<Tally>,
}

/// How a run ends.
#[derive(Clone, Copy, PartialEq, Eq)]
enum End {
    Closed,
    Killed,
}

/// All logs.
pub(crate) static LOGS: LazyLock<Vec<Log>> = LazyLock::new(|| {
    vec![
        build(
            1,
            Retention::Keep,
            None,
            &[
                (&[3, 0, 12, 1], End::Closed),
                (&[LARGE, LARGE + 9, 2, 4], End::Killed),
                (&[], End::Killed),
                (&[5, 2], End::Closed),
            ],
        ),
        build(
            2,
            Retention::Keep,
            None,
            &[
                (&[3, 1], End::Closed),
                (&[2, 9, LARGE, 0, LARGE, 1, 1], End::Killed),
            ],
        ),
        build(
            3,
            Retention::Keep,
            Some("snapshot-00000000000000000006.state"),
            &[(
                &[LARGE, 2, 9, LARGE, LARGE, LARGE, LARGE, 3, 1],
                End::Closed,
            )],
        ),
        build(
            4,
            Retention::Delete,
            Some("snapshot-00000000000000000006.state"),
            &[(
                &[LARGE, 2, 9, LARGE, LARGE, LARGE, LARGE, 3, 1],
                End::Killed,
            )],
        ),
    ]
});

/// Writes one log. `newest` is the last snapshot that its only run makes.
fn build(writer: u128, retention: Retention, newest: Option<&str>, runs: &[(&[u64], End)]) -> Log {
    let dir = TempDir::new("pristine");
    let mut log = Log {
        files: Files::new(),
        retention,
        states: vec![Tally::default()],
    };
    for (sizes, end) in runs {
        let mut store = JournalStore::new(log.options(&dir.0, newest.is_some()));
        let mut tally = Tally::default();
        let recovered = store
            .open(&request(writer), &mut tally, &mut |_| {})
            .expect("it opens");
        for &events in *sizes {
            append(&mut store, &recovered, &mut tally, events);
            log.states.push(tally.clone());
        }
        settle(&dir.0, sizes, newest);
        if *end == End::Closed {
            store.close().expect("it closes");
        }
    }
    log.files = read_all(&dir.0);
    // Every run of a program meets the same bytes.
    log.files.remove("lock");
    check_layout(&log.files);
    log
}

impl Log {
    pub(crate) fn options(&self, dir: &Path, with_snapshots: bool) -> JournalOptions {
        let mut options = JournalOptions::new(dir);
        options.first_segment_size = SEGMENT_SIZE;
        options.segment_size = SEGMENT_SIZE;
        options.snapshot_every_bytes = with_snapshots.then_some(3 * SEGMENT_SIZE);
        options.retention = self.retention.clone();
        options
    }
}

/// Commits the next batch.
pub(crate) fn append(
    store: &mut JournalStore,
    recovered: &Recovered,
    tally: &mut Tally,
    events: u64,
) {
    let mut batch = Batch::default();
    let header = &mut batch.header;
    header.number = tally.batches + 1;
    header.token = recovered.token;
    header.first_sequence = tally.events + 1;
    header.stamp = Timestamp::from_micros(tally.stamp.as_micros() + 7);
    header.sources = (0..header.number % 3)
        .map(|source| SourcePosition {
            source,
            position: tally.events,
        })
        .collect();
    for sequence in tally.events + 1..=tally.events + events {
        batch.push_event(&Event {
            sequence,
            at: batch.header.stamp,
            shard: 0,
            epoch: 1,
            kind: EventKind::DeadlinesCredited { micros: sequence },
        });
    }
    batch.seal(tally.last_hash);
    store.commit(&batch).expect("it commits");
    tally.apply(&batch).expect("the batch follows");
}

pub(crate) fn request(writer: u128) -> OpenRequest {
    OpenRequest {
        shard: 0,
        writer,
        replicas: Arc::new(|| Box::new(Tally::default())),
    }
}

/// Waits until the helpers of a run have done what they will do.
fn settle(dir: &Path, sizes: &[u64], newest: Option<&str>) {
    for _ in 0..1_000_000 {
        let files = read_all(dir);
        let is_unfinished = files.keys().any(|name| name.strip_suffix(".new").is_some());
        let last = files.iter().rfind(|(name, _)| name.starts_with("segment"));
        // Every run ends with two batches in one segment: the second asks for the next one, which has no frame yet.
        let is_next = |bytes: &[u8]| bytes.iter().skip(BLOCK).all(|&byte| byte == 0);
        let is_prepared = sizes.is_empty() || last.is_some_and(|(_, bytes)| is_next(bytes));
        let is_snapped = newest.is_none_or(|newest| files.contains_key(newest));
        if is_prepared && is_snapped && !is_unfinished {
            return;
        }
        thread::yield_now();
    }
    panic!("the helpers don't end: {:?}", read_all(dir).keys());
}

/// A segment's header in bytes.
pub(crate) const BLOCK: usize = 4096;

pub(crate) fn read_all(dir: &Path) -> Files {
    let entries = std::fs::read_dir(dir).expect("it lists").flatten();
    entries
        .filter_map(|entry| {
            let name = entry.file_name().to_string_lossy().into_owned();
            // A helper may rename one just now.
            Some((name, std::fs::read(entry.path()).ok()?))
        })
        .collect()
}
