//! Redis beside a busy engine: how far what lies there is behind, and how many reads it answers.
//!
//! 25,000 reservations a second are offered to an engine in memory, open-loop over ten SKUs, and written through with their
//! stock to a Redis on this machine. *Lag*: from the answer to a probe's reservation, every 10 ms, to the moment at which a
//! connection of its own finds it in Redis. *Storm*: meanwhile two threads read stock as fast as they can, half of them a
//! SKU that nothing happens to; `keep` 0 asks Redis for every read. The run must end with Redis and the engine in agreement.
//!
//! Run: `cargo bench --features redis --bench redis`; `-- --test` runs it short. Needs `redis-server`.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::cast_precision_loss, reason = "rates are for people")]

#[path = "../tests/servers/mod.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod servers;

use servers::Server;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};
use stockade::cache::ReservationEntry;
use stockade::engine::{Engine, Handle};
use stockade::redis::{Fallback, ReadStats, RedisCache, RedisOptions, RedisReader};
use stockade::types::{
    Availability, DefineSku, Gate, ReservationId, Reserve, Rules, SetGate, SkuId, SkuName, UserId,
};

type Failure = Box<dyn std::error::Error>;

const ADMIN: UserId = UserId(u128::MAX);
const OFFERED_PER_S: u64 = 25_000;
const HOT: usize = 10;
const PROBE_EVERY: Duration = Duration::from_millis(10);

/// The engine's own snapshot.
struct Snapshot(Handle);

impl Fallback for Snapshot {
    fn stock(&self, name: &SkuName) -> Result<Option<Availability>, String> {
        Ok(self
            .0
            .sku(name.as_str())
            .and_then(|sku| self.0.availability(sku)))
    }

    fn reservation(&self, _: ReservationId) -> Result<Option<ReservationEntry>, String> {
        Err("not read here".to_owned())
    }
}

/// What a run came to.
struct Run {
    lags: Vec<Duration>,
    reads: Vec<Duration>,
    stats: ReadStats,
    written: u64,
    took: Duration,
}

fn main() -> Result<(), Failure> {
    let is_test = std::env::args().any(|arg| arg == "--test");
    let (rounds, length) = if is_test { (1, 1) } else { (3, 10) };
    println!(
        "{:<28} {:>9} {:>9} {:>9} {:>11} {:>10} {:>11}",
        "redis, medians", "lag p50", "lag p95", "lag p99", "reads/s", "read p95", "hit rate"
    );
    for (row, keep) in [
        ("every_read_asks", Duration::ZERO),
        ("keep_20ms", Duration::from_millis(20)),
    ] {
        let mut runs = (0..rounds)
            .map(|_| run(keep, Duration::from_secs(length)))
            .collect::<Result<Vec<Run>, Failure>>()?;
        let mut median = |of: &dyn Fn(&mut Run) -> f64| {
            let mut all: Vec<f64> = runs.iter_mut().map(of).collect();
            all.sort_by(f64::total_cmp);
            all[all.len() / 2]
        };
        println!(
            "{row:<28} {:>6.2} ms {:>6.2} ms {:>6.2} ms {:>11.0} {:>7.0} us {:>9.3} %  ({:.0} reservations/s)",
            median(&|run| ms(percentile(&mut run.lags, 50))),
            median(&|run| ms(percentile(&mut run.lags, 95))),
            median(&|run| ms(percentile(&mut run.lags, 99))),
            median(&|run| run.reads.len() as f64 / run.took.as_secs_f64()),
            median(&|run| ms(percentile(&mut run.reads, 95)) * 1e3),
            median(&|run| run.stats.hit_rate() * 100.0),
            median(&|run| run.written as f64 / run.took.as_secs_f64()),
        );
    }
    Ok(())
}

fn run(keep: Duration, length: Duration) -> Result<Run, Failure> {
    let server = Server::start("redis.sh", &[]);
    let url = format!("redis://127.0.0.1:{}", server.port());
    let options = RedisOptions::new(&url)?;
    let engine = Engine::builder().cache(RedisCache::new(&options)).start()?;
    let handle = engine.handle();
    let hot = (0..HOT)
        .map(|n| open_sku(&handle, &format!("HOT-{n}")))
        .collect::<Result<Vec<_>, _>>()?;
    let probe = open_sku(&handle, "PROBE")?;
    open_sku(&handle, "IDLE")?;
    let mut connection = redis::Client::open(url.as_str())?.get_connection()?;
    visible(&mut connection, "IDLE", 0)?;
    let reader = RedisReader::new(&options, Snapshot(handle.clone())).keep(keep);
    let (is_over, written) = (AtomicBool::new(false), AtomicU64::new(0));
    let begun = Instant::now();
    let (lags, reads) = std::thread::scope(|scope| {
        scope.spawn(|| offer(&handle, &hot, &is_over, &written));
        let readers: Vec<_> = (0..2)
            .map(|n| {
                scope.spawn({
                    let (reader, is_over) = (&reader, &is_over);
                    move || storm(reader, n, is_over)
                })
            })
            .collect();
        let lags = probes(&handle, probe, &mut connection, begun + length);
        is_over.store(true, Ordering::Relaxed);
        let reads = readers
            .into_iter()
            .filter_map(|reader| reader.join().ok())
            .flatten()
            .collect();
        (lags, reads)
    });
    let took = begun.elapsed();
    for (sku, name) in handle.skus() {
        let stock = handle.availability(sku).ok_or("a SKU without stock")?;
        visible(&mut connection, name.as_str(), stock.sequence)?;
        let key = format!("stock:{{{}}}", name.as_str());
        let available: u64 = redis::cmd("HGET")
            .arg(key)
            .arg("available")
            .query(&mut connection)?;
        assert_eq!(
            available,
            stock.available,
            "{} agrees to the unit",
            name.as_str()
        );
    }
    assert!(handle.health().warnings.is_empty(), "{:?}", handle.health());
    let stats = reader.stats();
    let written = written.into_inner();
    Ok(Run {
        lags: lags?,
        reads,
        stats,
        written,
        took,
    })
}

fn open_sku(handle: &Handle, name: &str) -> Result<SkuId, Failure> {
    let rules = Rules {
        per_user: None,
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, SkuName::new(name)?, 1 << 40).rules(rules)?;
    let sku = handle.define_sku(define)?.wait()?;
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))?
        .wait()?;
    Ok(sku)
}

/// Every millisecond what is due of the rate.
fn offer(handle: &Handle, skus: &[SkuId], is_over: &AtomicBool, written: &AtomicU64) {
    let begun = Instant::now();
    let mut offered = 0;
    while !is_over.load(Ordering::Relaxed) {
        let due = begun.elapsed().as_micros() * u128::from(OFFERED_PER_S) / 1_000_000;
        let due = u64::try_from(due).unwrap_or(u64::MAX);
        let commands = (offered..due).filter_map(|n| {
            let sku = skus[usize::try_from(n).unwrap_or(0) % skus.len()];
            Reserve::one(UserId::from(n), sku, 1).ok()
        });
        let commands: Vec<Reserve> = commands.collect();
        offered = due;
        if !commands.is_empty()
            && let Ok(block) = handle.submit_block(commands)
        {
            let accepted = block.wait().flatten().count();
            written.fetch_add(accepted as u64, Ordering::Relaxed);
        }
        // The pacing itself: what is due grows with time.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn storm(reader: &RedisReader<Snapshot>, thread: usize, is_over: &AtomicBool) -> Vec<Duration> {
    let names: Option<Vec<SkuName>> = (0..HOT)
        .map(|n| SkuName::new(&format!("HOT-{n}")).ok())
        .collect();
    let (Some(hot), Ok(idle)) = (names, SkuName::new("IDLE")) else {
        return Vec::new();
    };
    let mut took = Vec::new();
    for n in thread.. {
        if is_over.load(Ordering::Relaxed) {
            break;
        }
        let name = if n % 2 == 0 { &idle } else { &hot[n / 2 % HOT] };
        let begun = Instant::now();
        let read = reader.stock(name);
        took.push(begun.elapsed());
        assert!(matches!(read, Ok(Some(_))), "{read:?}");
    }
    took
}

fn probes(
    handle: &Handle,
    probe: SkuId,
    connection: &mut redis::Connection,
    until: Instant,
) -> Result<Vec<Duration>, Failure> {
    let mut lags = Vec::new();
    while Instant::now() < until {
        let user = UserId(u128::from(u64::MAX) + lags.len() as u128);
        let held = handle.reserve(Reserve::one(user, probe, 1)?)?.wait()?;
        let answered = Instant::now();
        visible(connection, "PROBE", held.id.sequence())?;
        lags.push(answered.elapsed());
        // The pause between two probes; nothing is waited for.
        std::thread::sleep(PROBE_EVERY);
    }
    Ok(lags)
}

/// Waits until Redis has a SKU's stock as of the sequence.
fn visible(connection: &mut redis::Connection, name: &str, sequence: u64) -> Result<(), Failure> {
    let begun = Instant::now();
    let key = format!("stock:{{{name}}}");
    loop {
        let mut get = redis::cmd("HGET");
        let known: Option<u64> = get.arg(&key).arg("sequence").query(connection)?;
        if known.is_some_and(|known| known >= sequence) {
            return Ok(());
        }
        if begun.elapsed() > Duration::from_secs(10) {
            return Err(format!("{key} is not written").into());
        }
    }
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times
        .get((times.len() * percent / 100).min(times.len().saturating_sub(1)))
        .copied()
        .unwrap_or_default()
}

fn ms(time: Duration) -> f64 {
    time.as_secs_f64() * 1e3
}
