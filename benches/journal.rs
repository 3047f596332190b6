//! The journal on a real disk: commits of several batch sizes, and recovery.
//!
//! ```text
//! cargo bench --bench journal                      all rows
//! cargo bench --bench journal -- --test            a quick check of everything
//! STOCKADE_BENCH_DIR=/mnt/disk cargo bench ..      on another disk (default: the target directory)
//! STOCKADE_BENCH_EVENTS=1000000 cargo bench ..     events to recover (default: 10,000,000)
//! ```
//!
//! Rows `commit/N` are one thread that commits batches of N 128-byte events as fast as it can, zero-filling of segments
//! included; `base/N` seals (hashes) the same batches and commits nothing, which is what the harness itself costs.
//! `recover` reads the log with a replica that looks at every event and keeps nothing; drop the page cache before it
//! to see the disk (the journal reads past the cache anyway).

#![expect(clippy::print_stdout, reason = "a report")]

use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade::store::{
    JournalOptions, JournalStore, OpenRequest, Recovered, Replica, ReplicaError, Store,
};
use stockade::types::{
    Batch, BatchHash, Event, EventKind, IdempotencyKey, Line, Origin, SkuId, StateRecord,
    Timestamp, Token, UserId,
};

/// Looks at every event, keeps a count.
#[derive(Default)]
struct Count {
    events: u64,
    seen: u64,
}

impl Replica for Count {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        if let StateRecord::Meta { sequence, .. } = record {
            self.events = *sequence;
        }
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        for event in batch.events() {
            self.seen ^= event?.sequence;
            self.events += 1;
        }
        Ok(())
    }

    fn export(&self, _: &mut dyn FnMut(&StateRecord)) {}
}

/// A count in millions.
fn millions(count: u64) -> f64 {
    f64::from(u32::try_from(count).expect("fewer than 2^32 records")) / 1e6
}

struct Rows {
    dir: PathBuf,
    quick: bool,
}

#[expect(clippy::disallowed_methods, reason = "a benchmark measures")]
fn now() -> Instant {
    Instant::now()
}

fn open(options: &JournalOptions) -> (JournalStore, Recovered, Count) {
    let mut store = JournalStore::new(options.clone());
    let mut count = Count::default();
    let request = OpenRequest {
        shard: 0,
        writer: 7,
        replicas: Arc::new(|| Box::new(Count::default())),
    };
    let recovered = store
        .open(&request, &mut count, &mut |_| {})
        .expect("the journal opens");
    (store, recovered, count)
}

/// The next batch of `events` reservations.
fn fill(batch: &mut Batch, token: Token, number: u64, first_sequence: u64, events: u64) {
    batch.clear();
    batch.header.number = number;
    batch.header.token = token;
    batch.header.stamp = Timestamp::from_micros(number);
    batch.header.first_sequence = first_sequence;
    for sequence in first_sequence..first_sequence + events {
        batch.push_event(&Event {
            sequence,
            at: batch.header.stamp,
            shard: 0,
            epoch: 1,
            kind: EventKind::Reserved {
                origin: Origin {
                    user: UserId(u128::from(sequence) * 0x9e37_79b9_7f4a_7c15),
                    key: IdempotencyKey::new(u128::from(sequence)),
                    fingerprints: [1, 2, 3],
                },
                first: Line {
                    sku: SkuId(0),
                    quantity: 1,
                },
                lines: 1,
                sale: 1,
                hold_ms: 120_000,
                expires_at: Timestamp::from_micros(number + 120_000_000),
                replaces: None,
            },
        });
    }
}

impl Rows {
    fn options(&self, name: &str) -> JournalOptions {
        let dir = self.dir.join(name);
        let _ = std::fs::remove_dir_all(&dir);
        let mut options = JournalOptions::new(dir);
        // Snapshots are the replica's cost, not the log's.
        options.snapshot_every_bytes = None;
        options
    }

    /// Commits batches of so many events for a while.
    fn commits(&self, events: u64, total: u64, durable: bool) {
        let options = self.options("commit");
        let (mut store, recovered, _) = open(&options);
        let (mut number, mut sequence, mut hash) = (1, 1, BatchHash::default());
        let mut batch = Batch::default();
        let mut times = Vec::new();
        let start = now();
        while sequence <= total {
            fill(&mut batch, recovered.token, number, sequence, events);
            let begin = now();
            batch.seal(hash);
            if durable {
                store.commit(&batch).expect("the batch is committed");
            }
            times.push(begin.elapsed());
            (number, sequence, hash) = (number + 1, sequence + events, batch.hash());
        }
        let elapsed = start.elapsed();
        let seconds = times.iter().sum::<Duration>().as_secs_f64();
        store.close().expect("the journal closes");
        times.sort_unstable();
        let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_micros();
        let name = format!("{}/{events}", if durable { "commit" } else { "base" });
        println!(
            "journal/{name:<14} {:>7.3} M records/s ({:>6.3} with making them)   p50 {:>5} us   p99 {:>5} us   worst {:>6} us",
            millions(sequence - 1) / seconds,
            millions(sequence - 1) / elapsed.as_secs_f64(),
            at(50),
            at(99),
            at(100),
        );
        let _ = std::fs::remove_dir_all(&options.dir);
    }

    fn recovery(&self, total: u64, batch_events: u64) {
        let options = self.options("recover");
        let (mut store, recovered, _) = open(&options);
        let (mut number, mut sequence, mut hash) = (1, 1, BatchHash::default());
        let mut batch = Batch::default();
        while sequence <= total {
            fill(&mut batch, recovered.token, number, sequence, batch_events);
            batch.seal(hash);
            store.commit(&batch).expect("the batch is committed");
            (number, sequence, hash) = (number + 1, sequence + batch_events, batch.hash());
        }
        store.close().expect("the journal closes");
        for _ in 0..3 {
            let start = now();
            let (mut store, recovered, count) = open(&options);
            let seconds = start.elapsed().as_secs_f64();
            assert_eq!(recovered.last_hash, hash, "the log is whole");
            assert_eq!(count.events, sequence - 1, "every event was applied");
            let events = millions(sequence - 1);
            println!(
                "journal/recover/{batch_events:<5} {seconds:>6.2} s for {events:.1} M events ({:.2} M events/s)",
                events / seconds
            );
            store.close().expect("the journal closes");
        }
        let _ = std::fs::remove_dir_all(&options.dir);
    }
}

fn main() {
    let quick = std::env::args().any(|argument| argument == "--test");
    let dir = std::env::var_os("STOCKADE_BENCH_DIR").map_or_else(
        || PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("bench-journal"),
        PathBuf::from,
    );
    let rows = Rows { dir, quick };
    let events = std::env::var("STOCKADE_BENCH_EVENTS")
        .ok()
        .and_then(|text| text.parse().ok())
        .unwrap_or(10_000_000);
    for (events, total) in [(250, 1_000_000), (1_000, 3_000_000), (8_000, 10_000_000)] {
        let total = if rows.quick { 8_000 } else { total };
        rows.commits(events, total, false);
        rows.commits(events, total, true);
    }
    let total = if rows.quick { 16_000 } else { events };
    rows.recovery(total, 8_000);
}
