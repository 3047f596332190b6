//! Reservations a second through the PostgreSQL store, and by the ways there are without it, in one run on one machine.
//!
//! ```text
//! cargo bench --features postgres,redis --bench postgres                  all rows, 3 rounds of 10 s each (some 10 minutes)
//! cargo bench --features postgres,redis --bench postgres -- --test        each row once and small, as a check
//! .. -- --seconds 30 --rounds 1 --only store                              the rows whose name begins so
//! ```
//!
//! | row | one transaction is | what it does besides the job (see `job.rs`) |
//! |---|---|---|
//! | store | a batch: one statement, one round trip | deadlines, lines, a log of events in a chain of hashes, a fence |
//! | store, ends | a batch with as many releases of earlier holds | the same |
//! | engine | what came while the last one committed | the same, with threads, tickets and a request each |
//! | row lock, optimistic, conditional | a reservation | nothing: holds don't expire, refusals leave no record |
//! | Redis lock, Redis script | a reservation; many calls of the script in one pipeline | nothing; PostgreSQL has no row of it |
//!
//! Everybody speaks to a server of this machine over TCP, all PostgreSQL rows to the same one. Every commit is synchronous, and
//! what checkpoints cost is in the figures: one begins every 30 s and is spread over the next 27 (`ckpt` counts those that
//! began in a run). Redis has a server per row. Who does the job otherwise proves first, alone and with many callers at once,
//! that it does it. In the row `best` it has as many callers (`callers x calls in a pipeline`) as gave it the highest rate in a
//! short trial; `64` is what a crowd makes of it. Rounds alternate between the rows, figures are medians over the rounds; p50
//! and p95 are of a batch's commit in the rows of the store, else of a request. `tries` are those per reservation. `250` and
//! `4,000` say how many times as many the store reserves in batches of this size. `claimed` is what a design for 25,000
//! requests a second to one SKU reckons with when it weighs these ways, and in the first row what it asks of its own.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::print_stdout, reason = "a report")]

mod in_redis;
mod job;
#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "../../tests/servers/mod.rs"]
mod servers;
mod sql;
mod store;

use in_redis::{Fsync, InRedis};
use job::{Load, Measured, Outcome, PLENTY, Peer};
use servers::Server;
use sql::Sql;
use std::time::Duration;
use stockade::postgres::{PostgresOptions, PostgresStore};

/// What a server with such a load is given: buffers (the default of 128 MB is for machines without memory), and room for the log,
/// so that time begins checkpoints and not its growth. They come ten times as often as by default, so that runs meet them.
const SETTINGS: [&str; 4] = [
    "shared_buffers=1GB",
    "max_wal_size=4GB",
    "checkpoint_timeout=30s",
    "log_checkpoints=on",
];
/// Callers of the rows that show what a crowd does.
const CROWD: Load = Load {
    callers: 64,
    pipeline: 1,
};
/// How long a load is tried.
const TRIAL_MIN: Duration = Duration::from_millis(300);
const TRIAL_MAX: Duration = Duration::from_secs(2);
/// Units of the proof with many callers.
const PROOF_STOCK: u64 = 50;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Store { batch: u64, with_ends: bool },
    Engine { under_way: usize },
    Sql(sql::Way),
    Redis(in_redis::Way, Fsync),
}

impl Kind {
    /// For those that aren't stockade.
    fn peer(self, url: &str, stock: u64) -> Outcome<Option<Box<dyn Peer>>> {
        Ok(match self {
            Self::Store { .. } | Self::Engine { .. } => None,
            Self::Sql(way) => Some(Box::new(Sql::new(url, way, stock)?)),
            Self::Redis(way, fsync) => Some(Box::new(InRedis::new(way, fsync, stock)?)),
        })
    }

    /// What a fair user would try.
    fn loads(self) -> Vec<Load> {
        let loads: &[(usize, usize)] = match self {
            Self::Store { .. } | Self::Engine { .. } => &[],
            Self::Sql(_) => &[(1, 1), (2, 1), (4, 1), (8, 1), (16, 1), (32, 1)],
            Self::Redis(in_redis::Way::Lock, _) => &[(1, 1), (2, 1), (4, 1), (16, 1)],
            Self::Redis(in_redis::Way::Script, _) => &[
                (1, 16),
                (1, 64),
                (1, 250),
                (2, 250),
                (4, 64),
                (16, 16),
                (1, 1_000),
            ],
        };
        let load = |&(callers, pipeline)| Load { callers, pipeline };
        loads.iter().map(load).collect()
    }
}

struct Row {
    name: &'static str,
    kind: Kind,
    /// Of a peer; `None` until the best one is known.
    load: Option<Load>,
    claimed: &'static str,
    rounds: Vec<Measured>,
    checkpoints: Vec<usize>,
}

fn rows() -> Vec<Row> {
    let row = |name, kind, claimed| Row {
        name,
        kind,
        load: None,
        claimed,
        rounds: Vec::new(),
        checkpoints: Vec::new(),
    };
    let store = |batch, with_ends| Kind::Store { batch, with_ends };
    let engine = |under_way| Kind::Engine { under_way };
    let mut rows = vec![
        row("store 250", store(250, false), "25,000/s, p95 60 ms"),
        row("store 4,000", store(4_000, false), ""),
        row("store, ends 250", store(250, true), ""),
        row("store, ends 4,000", store(4_000, true), ""),
        row("engine 250", engine(250), ""),
        row("engine 4,000", engine(4_000), ""),
    ];
    let lock = |fsync| Kind::Redis(in_redis::Way::Lock, fsync);
    let script = |fsync| Kind::Redis(in_redis::Way::Script, fsync);
    for (best, crowd, kind, claimed) in [
        (
            "row lock, best",
            "row lock, 64",
            Kind::Sql(sql::Way::RowLock),
            "100/s, p95 4 min",
        ),
        (
            "optimistic, best",
            "optimistic, 64",
            Kind::Sql(sql::Way::Optimistic),
            "12.5 tries, p95 250 ms",
        ),
        (
            "conditional, best",
            "conditional, 64",
            Kind::Sql(sql::Way::Conditional),
            "",
        ),
        (
            "Redis lock everysec, best",
            "Redis lock everysec, 64",
            lock(Fsync::EverySec),
            "as a row lock",
        ),
        (
            "Redis lock always, best",
            "Redis lock always, 64",
            lock(Fsync::Always),
            "",
        ),
    ] {
        rows.push(row(best, kind, claimed));
        let crowd = row(crowd, kind, claimed);
        rows.push(Row {
            load: Some(CROWD),
            ..crowd
        });
    }
    rows.push(row(
        "Redis script everysec, best",
        script(Fsync::EverySec),
        "",
    ));
    rows.push(row("Redis script always, best", script(Fsync::Always), ""));
    rows
}

struct Options {
    rounds: usize,
    time: Duration,
    is_test: bool,
    /// The rows whose names begin so.
    only: String,
}

impl Options {
    fn parse() -> Outcome<Self> {
        let mut options = Self {
            rounds: 3,
            time: Duration::from_secs(10),
            is_test: false,
            only: String::new(),
        };
        let mut arguments = std::env::args().skip(1);
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or(format!("{argument} needs a value"));
            match argument.as_str() {
                // Cargo says so.
                "--bench" => {}
                "--test" => options.is_test = true,
                "--rounds" => options.rounds = value()?.parse()?,
                "--seconds" => options.time = Duration::from_secs(value()?.parse()?),
                "--only" => options.only = value()?,
                _ => {
                    let known = "give --test, --rounds, --seconds or --only";
                    return Err(format!("{argument}: {known}").into());
                }
            }
        }
        if options.is_test {
            (options.rounds, options.time) = (1, Duration::from_millis(50));
        }
        Ok(options)
    }
}

fn main() -> Outcome<()> {
    let options = Options::parse()?;
    let server = Server::start("postgres.sh", &SETTINGS.map(str::to_owned));
    let url = format!("postgres://stockade@127.0.0.1:{}/stockade", server.port());
    // Waits until the server takes connections.
    PostgresStore::migrate(&PostgresOptions::new(&url))?;
    let mut rows = rows();
    rows.retain(|row| row.name.starts_with(&options.only));
    for at in 0..rows.len() {
        let kind = rows[at].kind;
        if !rows[..at].iter().any(|row| row.kind == kind) {
            prove(kind, &url).map_err(|error| format!("{}: {error:?}", rows[at].name))?;
        }
    }
    for row in rows.iter_mut().filter(|row| row.load.is_none()) {
        row.load = best_load(row.kind, &url, &options)?;
    }
    for round in 1..=options.rounds {
        eprintln!("round {round} of {}", options.rounds);
        for row in &mut rows {
            let before = checkpoints(&server);
            let measured = measure(row.kind, row.load, &url, options.time);
            let measured = measured.map_err(|error| format!("{}: {error:?}", row.name))?;
            row.rounds.push(measured);
            row.checkpoints.push(checkpoints(&server) - before);
            // So that no row pays for what another one has written: what is dropped needs no writing.
            let drop = "DROP SCHEMA IF EXISTS peer, stockade CASCADE";
            postgres::Client::connect(&url, postgres::NoTls)?.batch_execute(drop)?;
        }
    }
    report(&rows);
    Ok(())
}

fn checkpoints(server: &Server) -> usize {
    server.log().matches("checkpoint starting").count()
}

fn prove(kind: Kind, url: &str) -> Outcome<()> {
    if let Some(peer) = kind.peer(url, 3)? {
        job::prove(&*peer)?;
    }
    if let Some(peer) = kind.peer(url, PROOF_STOCK)? {
        job::prove_at_once(&*peer, PROOF_STOCK)?;
    }
    Ok(())
}

/// The load with the highest rate; in a test the first.
fn best_load(kind: Kind, url: &str, options: &Options) -> Outcome<Option<Load>> {
    let loads = kind.loads();
    if options.is_test {
        return Ok(loads.first().copied());
    }
    let time = (options.time / 10).clamp(TRIAL_MIN, TRIAL_MAX);
    let mut best = None;
    for load in loads {
        let rate = measure(kind, Some(load), url, time)?.rate;
        if best.is_none_or(|(highest, _)| rate > highest) {
            best = Some((rate, load));
        }
    }
    Ok(best.map(|(_, load)| load))
}

fn measure(kind: Kind, load: Option<Load>, url: &str, time: Duration) -> Outcome<Measured> {
    match (kind, kind.peer(url, PLENTY)?, load) {
        (Kind::Store { batch, with_ends }, ..) => store::alone(url, batch, with_ends, time),
        (Kind::Engine { under_way }, ..) => store::engine(url, under_way, time),
        (_, Some(peer), Some(load)) => job::drive(&*peer, load, time),
        _ => Err("a peer without a load".into()),
    }
}

/// Waits a random time before a try that follows so many failed ones, longer each time: full jitter.
fn back_off(seed: u64, failed: u32) {
    // The finaliser of `SplitMix64` (Steele, Lea, Flood 2014).
    let z = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let random = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB) >> 32;
    let most_us = 100_u64 << failed.min(6);
    // The back-off is what is measured: nobody tells when a row is free.
    std::thread::sleep(Duration::from_micros(random % most_us));
}

fn median<T: Copy>(values: impl Iterator<Item = T>, order: fn(&T, &T) -> std::cmp::Ordering) -> T {
    let mut values: Vec<T> = values.collect();
    values.sort_unstable_by(order);
    values[values.len() / 2]
}

fn report(rows: &[Row]) {
    let rate = |row: &Row| median(row.rounds.iter().map(|run| run.rate), f64::total_cmp);
    let store = |batch| {
        let kind = Kind::Store {
            batch,
            with_ends: false,
        };
        rows.iter().find(|row| row.kind == kind).map(rate)
    };
    let stores = [store(250), store(4_000)];
    println!(
        "{:<28} {:>9} {:>14} {:>22} {:>9} {:>9} {:>6} {:>5} {:>8} {:>8}  claimed",
        "",
        "callers",
        "reservations/s",
        "min .. max",
        "p50 ms",
        "p95 ms",
        "tries",
        "ckpt",
        "250",
        "4,000"
    );
    for row in rows {
        let load = row.load.map_or(String::new(), |load| load.to_string());
        let rates = row.rounds.iter().map(|run| run.rate);
        let min = rates.clone().fold(f64::INFINITY, f64::min);
        let max = rates.fold(0.0, f64::max);
        let ms = |of: fn(&Measured) -> Duration| {
            median(row.rounds.iter().map(of), Duration::cmp).as_secs_f64() * 1e3
        };
        let times = stores
            .map(|store| store.map_or(String::new(), |store| format!("{:.1}x", store / rate(row))));
        println!(
            "{:<28} {load:>9} {:>14.0} {:>22} {:>9.2} {:>9.2} {:>6.2} {:>5} {:>8} {:>8}  {}",
            row.name,
            rate(row),
            format!("{min:.0} .. {max:.0}"),
            ms(|run| run.p50),
            ms(|run| run.p95),
            median(row.rounds.iter().map(|run| run.tries), f64::total_cmp),
            median(row.checkpoints.iter().copied(), usize::cmp),
            times[0],
            times[1],
            row.claimed,
        );
    }
}
