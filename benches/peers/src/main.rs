//! stockade's journal beside other embedded stores: the same job, the same directory, the same run.
//!
//! ```text
//! cargo run --release -p peers                      all rows, 5 rounds (some 10 minutes)
//! cargo run --release -p peers -- --test            every row once and small, as a check
//! cargo run --release -p peers -- --dir /mnt/disk   on another disk (default: the working directory)
//! cargo run --release -p peers -- --rounds 3 --count 200000 --only fjall
//! ```
//!
//! The job is a reservation of one unit of one hot SKU for a new user under a new key, and it is four things in one
//! durable commit: the stock decremented, the user's limit checked, the key kept with its answer, a row for the hold. Each
//! peer first proves on a small stock that it does all of it: limits, keys that come again, the end of stock.
//!
//! | row | what a batch is | what it does besides |
//! |---|---|---|
//! | stockade | a block, submitted to the engine's threads and waited for | deadlines, refusals on record, a chain of hashes |
//! | stockade bulk | what has arrived: 64 blocks of 1,024 are on their way | the same; made commands are timed, too |
//! | redb, fjall, SQLite | one transaction in the caller's own thread | nothing: holds don't expire, refusals keep no reason |
//!
//! Everybody is embedded: all rows are function calls, and only stockade's go through other threads. Each peer has the settings
//! that its own documentation gives for durable commits, a cache larger than its data, and statements prepared once; its
//! file says which. Rounds alternate between the rows, so a slow minute of the disk slows all of them. A batch's time is from
//! the call to its durable return; rates are of the sum of these times, and all figures are medians over
//! the rounds. stockade bulk gives the engine's own commits and is compared with the best peer at any size.

#![expect(clippy::print_stdout, reason = "a report")]

mod disk;
mod fjall;
mod job;
mod redb;
mod sqlite;
mod stockade;

use anyhow::{Context, Result, ensure};
use job::{Make, requests};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

const PEERS: [(&str, Make); 4] = [
    (STOCKADE, stockade::make),
    ("redb", redb::make),
    ("fjall", fjall::make),
    ("SQLite", sqlite::make),
];
const STOCKADE: &str = "stockade";
/// Reservations of one commit.
const BATCHES: [usize; 3] = [250, 1_000, 8_000];
/// The bulk row's reservations, in those of the other rows.
const BULK_TIMES: usize = 10;

struct Options {
    dir: PathBuf,
    rounds: usize,
    count: usize,
    warm_up: usize,
    /// The rows of one name, if set.
    only: Option<String>,
}

impl Options {
    fn parse() -> Result<Self> {
        let mut options = Self {
            dir: std::env::current_dir()?,
            rounds: 5,
            count: 400_000,
            warm_up: 80_000,
            only: None,
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            if argument == "--test" {
                (options.rounds, options.count, options.warm_up) = (1, 16_000, 8_000);
                continue;
            }
            let value = arguments
                .next()
                .with_context(|| format!("{argument} needs a value"))?;
            match argument.as_str() {
                "--dir" => options.dir = value.into(),
                "--rounds" => options.rounds = value.parse().context("--rounds")?,
                "--count" => options.count = value.parse().context("--count")?,
                "--only" => options.only = Some(value),
                _ => anyhow::bail!("{argument}: give --test, --dir, --rounds, --count or --only"),
            }
        }
        ensure!(options.rounds > 0, "--rounds 0 measures nothing");
        ensure!(
            options.count >= BATCHES[2],
            "--count is at least one batch of {}",
            BATCHES[2]
        );
        Ok(options)
    }
}

/// A line of the table.
struct Row {
    name: &'static str,
    /// Reservations per commit; `None` in bulk.
    batch: Option<usize>,
    /// Reservations per second, one a round.
    rates: Vec<f64>,
    /// Percentiles of what commits took, one a round.
    p50: Vec<Duration>,
    p99: Vec<Duration>,
}

fn median<T: Copy>(values: &[T], order: impl FnMut(&T, &T) -> std::cmp::Ordering) -> T {
    let mut values = values.to_vec();
    values.sort_unstable_by(order);
    values[values.len() / 2]
}

fn main() -> Result<()> {
    let options = Options::parse()?;
    let file_system = disk::file_system(&options.dir)?;
    for (name, make) in PEERS {
        let dir = tempfile::tempdir_in(&options.dir)?;
        job::prove(make, dir.path()).with_context(|| format!("{name} does another job"))?;
    }
    let mut rows: Vec<Row> = Vec::new();
    for batch in BATCHES {
        rows.extend(PEERS.map(|(name, _)| Row::new(name, Some(batch))));
    }
    rows.push(Row::new("stockade bulk", None));
    if let Some(only) = &options.only {
        rows.retain(|row| row.name == only);
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for row in &mut rows {
            let dir = tempfile::tempdir_in(&options.dir)?;
            row.measure(dir.path(), &options)
                .with_context(|| format!("{}: a row", row.name))?;
        }
    }
    println!(
        "one hot SKU, new users, new keys, every commit durable on {file_system}; medians of {} rounds",
        options.rounds
    );
    report(&rows);
    Ok(())
}

impl Row {
    fn new(name: &'static str, batch: Option<usize>) -> Self {
        Self {
            name,
            batch,
            rates: Vec::new(),
            p50: Vec::new(),
            p99: Vec::new(),
        }
    }

    fn rate(&self) -> f64 {
        median(&self.rates, f64::total_cmp)
    }

    /// One round.
    fn measure(&mut self, dir: &Path, options: &Options) -> Result<()> {
        let Some(batch) = self.batch else {
            let count = BULK_TIMES * options.count;
            let bulk = stockade::bulk(dir, BULK_TIMES * options.warm_up, count)?;
            self.rates.push(rate(count, bulk.elapsed));
            self.p50.push(bulk.p50);
            self.p99.push(bulk.p99);
            return Ok(());
        };
        let (_, make) = PEERS
            .iter()
            .find(|(name, _)| *name == self.name)
            .context("a peer")?;
        let mut peer = make(dir, 1 << 40)?;
        let mut answers = Vec::with_capacity(batch);
        let (mut done, mut times) = (0, Vec::new());
        while done < options.warm_up + options.count {
            let requests = requests(1 + done as u64, batch);
            answers.clear();
            let began = Instant::now();
            peer.reserve(&requests, &mut answers)?;
            let elapsed = began.elapsed();
            let accepted = answers
                .iter()
                .all(|answer| matches!(answer, job::Answer::Held(_)));
            ensure!(
                accepted && answers.len() == batch,
                "every request is accepted"
            );
            if done >= options.warm_up {
                times.push(elapsed);
            }
            done += batch;
        }
        let reserved = peer.reserved()?;
        let expected = (done as u64, reserved.1.map(|_| done as u64));
        ensure!(
            reserved == expected,
            "{reserved:?} reserved instead of {expected:?}"
        );
        self.rates
            .push(rate(times.len() * batch, times.iter().sum()));
        times.sort_unstable();
        self.p50.push(times[times.len() / 2]);
        self.p99.push(times[times.len() * 99 / 100]);
        Ok(())
    }
}

#[expect(clippy::cast_precision_loss, reason = "rates are for people")]
fn rate(count: usize, elapsed: Duration) -> f64 {
    count as f64 / elapsed.as_secs_f64()
}

fn report(rows: &[Row]) {
    let is_peer = |row: &Row| !row.name.starts_with(STOCKADE);
    let best = |batch: Option<usize>| {
        let peers = rows.iter().filter(|row| is_peer(row));
        let same = peers.filter(|row| batch.is_none() || row.batch == batch);
        same.map(Row::rate).fold(0.0, f64::max)
    };
    let bests: Vec<f64> = rows.iter().map(|row| best(row.batch)).collect();
    println!(
        "{:<14} {:>10} {:>14} {:>24} {:>13} {:>10} {:>10}",
        "", "per commit", "reservations/s", "min .. max", "of best peer", "p50 us", "p99 us"
    );
    for (row, best) in rows.iter().zip(bests) {
        let batch = row
            .batch
            .map_or("any".to_owned(), |batch| batch.to_string());
        let min = row.rates.iter().copied().fold(f64::INFINITY, f64::min);
        let max = row.rates.iter().copied().fold(0.0, f64::max);
        println!(
            "{:<14} {batch:>10} {:>14.0} {:>24} {:>12.2}x {:>10} {:>10}",
            row.name,
            row.rate(),
            format!("{min:.0} .. {max:.0}"),
            row.rate() / best,
            median(&row.p50, Duration::cmp).as_micros(),
            median(&row.p99, Duration::cmp).as_micros(),
        );
    }
}
