//! The engine end to end: submit to collected decision, all threads on the machine's cores.
//!
//! A decision is an accepted single-line reservation of a new user with a new key, limits and retention on, one hot
//! SKU whose stock exceeds the run. *Bulk*: blocks of 1,024, at most 65,536 commands in flight, from the first submit to
//! the last collected answer, 10 M after 1 M of warm-up, the tables presized and in huge pages, where the system
//! gives them. *Journal*: every decision durable before it
//! is collected; zero-filling and snapshots of the journal run meanwhile. *Expiry*: the same with every hold lapsing
//! inside the run; expiries are not counted as decisions. *Idle*: one caller, one reservation at a time. *Open loop*:
//! 25,000 reservations a second whatever the engine does, latency from the intended start. *Recovery*: from the start of an
//! engine on a journal of 11 M reservations, without a snapshot, to its first possible command; the page cache is dropped
//! before, where that is allowed (else the row says `warm`), and the state's digest is compared. Medians of 5 runs.
//!
//! Run: `cargo bench --bench engine`, with `-- NAME` the rows whose name contains it, with `-- --dir DIR` the journals
//! in that directory instead of the system's temporary one. `-- --test` runs every row once, small.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::cast_precision_loss, reason = "rates are for people")]

mod common;

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::mpsc;
use std::time::{Duration, Instant};
use stockade::allocator::Limits;
use stockade::engine::{BlockTicket, Engine, EngineBuilder, Handle, Ticket};
use stockade::store::journal::{JournalOptions, JournalStore};
use stockade::types::{
    DefineSku, Gate, IdempotencyKey, Reserve, Rules, SetGate, SkuId, SkuName, UserId,
};

type Failure = Box<dyn std::error::Error>;

const BLOCK: usize = 1_024;
/// Blocks in flight: 16,384 commands, which fit the caches better than the 65,536 that the ring would take.
const IN_FLIGHT: usize = 16;
const ADMIN: UserId = UserId(u128::MAX);

struct Bench {
    dir: PathBuf,
    filter: Option<String>,
    warm_up: u64,
    run: u64,
    rounds: usize,
    idle_asks: usize,
    open_loop: Duration,
}

fn main() -> Result<(), Failure> {
    common::take_huge_pages(|| ());
    let bench = Bench::from_args();
    println!(
        "{:<34} {:>12} {:>12} {:>12}",
        "engine/bulk", "decisions/s", "min", "max"
    );
    bench.rates("base/making_the_commands", Bench::base)?;
    bench.rates("memory/one_hot_sku", |bench| {
        bench.bulk(Engine::builder(), 120_000)
    })?;
    bench.rates("journal/one_hot_sku", |bench| {
        bench.on_journal(|bench, engine| bench.bulk(engine, 120_000))
    })?;
    bench.rates("journal/every_hold_lapses", |bench| {
        bench.on_journal(|bench, engine| bench.bulk(engine, 250))
    })?;
    println!(
        "{:<34} {:>12} {:>12} {:>12}",
        "engine/latency, us", "p50", "p95", "p99"
    );
    bench.latencies("journal/idle_one_caller", |bench| {
        bench.on_journal(Bench::idle)
    })?;
    bench.latencies("journal/open_loop_25k_per_s", |bench| {
        bench.on_journal(Bench::open_loop)
    })?;
    bench.recovery("journal/recovery")
}

impl Bench {
    fn from_args() -> Self {
        let mut args = std::env::args().skip(1);
        let (mut is_test, mut dir, mut filter) = (false, std::env::temp_dir(), None);
        while let Some(arg) = args.next() {
            match arg.as_str() {
                "--test" => is_test = true,
                "--dir" => dir = args.next().map_or(dir, PathBuf::from),
                "--bench" => {}
                _ => filter = Some(arg),
            }
        }
        Self {
            dir,
            filter,
            warm_up: if is_test { 4_096 } else { 1_000_000 },
            run: if is_test { 16_384 } else { 10_000_000 },
            rounds: if is_test { 1 } else { 5 },
            idle_asks: if is_test { 20 } else { 2_000 },
            open_loop: Duration::from_millis(if is_test { 200 } else { 10_000 }),
        }
    }

    fn is_wanted(&self, name: &str) -> bool {
        self.filter
            .as_ref()
            .is_none_or(|filter| name.contains(filter))
    }

    fn rates(
        &self,
        name: &str,
        run: impl Fn(&Self) -> Result<f64, Failure>,
    ) -> Result<(), Failure> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let rates: Result<Vec<f64>, Failure> = (0..self.rounds).map(|_| run(self)).collect();
        let mut rates = rates?;
        rates.sort_by(f64::total_cmp);
        let [min, median, max] = [0, rates.len() / 2, rates.len() - 1].map(|at| rates[at]);
        println!("{name:<34} {median:>12.0} {min:>12.0} {max:>12.0}");
        Ok(())
    }

    /// Each percentile is the median over the rounds.
    fn latencies(
        &self,
        name: &str,
        run: impl Fn(&Self) -> Result<Vec<Duration>, Failure>,
    ) -> Result<(), Failure> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let mut columns = [const { Vec::new() }; 3];
        for _ in 0..self.rounds {
            let mut took = run(self)?;
            took.sort_unstable();
            for (column, percent) in columns.iter_mut().zip([50, 95, 99]) {
                column.push(took[(took.len() * percent / 100).min(took.len() - 1)].as_micros());
            }
        }
        let median = |mut column: Vec<u128>| {
            column.sort_unstable();
            column[column.len() / 2]
        };
        let [p50, p95, p99] = columns.map(median);
        println!("{name:<34} {p50:>12} {p95:>12} {p99:>12}");
        Ok(())
    }

    /// What making the commands costs by itself.
    #[expect(clippy::unnecessary_wraps, reason = "a row like the others")]
    fn base(&self) -> Result<f64, Failure> {
        let began = Instant::now();
        for first in (0..self.run).step_by(BLOCK) {
            std::hint::black_box(commands(first));
        }
        Ok(self.run as f64 / began.elapsed().as_secs_f64())
    }

    /// An engine on a new journal, which is removed afterwards.
    fn on_journal<R>(
        &self,
        run: impl Fn(&Self, EngineBuilder) -> Result<R, Failure>,
    ) -> Result<R, Failure> {
        let dir = TemporaryDir::new(&self.dir)?;
        let store = JournalStore::new(JournalOptions::new(&dir.0));
        run(self, Engine::builder().store(store))
    }

    fn limits(&self) -> Limits {
        Limits {
            presize: u32::try_from(self.warm_up + self.run).unwrap_or(u32::MAX),
            ..Limits::default()
        }
    }

    fn bulk(&self, builder: EngineBuilder, hold_ms: u32) -> Result<f64, Failure> {
        let engine = builder.limits(self.limits()).start()?;
        let handle = engine.handle();
        let sku = open_sale(&handle, hold_ms)?;
        drive(&handle, 0, self.warm_up)?;
        let began = Instant::now();
        let asked = drive(&handle, self.warm_up, self.run)?;
        let took = began.elapsed().as_secs_f64();
        let rate = asked as f64 / took;
        if hold_ms < 1_000 {
            let held = handle.availability(sku).ok_or("no stock")?.reserved as f64;
            let holds = rate * f64::from(hold_ms) / 1e3;
            assert!(
                held <= 2.0 * holds + 65_536.0,
                "{held} holds are left: they lapse inside the run, or the row means nothing"
            );
            wait_for_expiry(&handle, sku)?;
        }
        settle(engine)?;
        Ok(rate)
    }

    fn recovery(&self, name: &str) -> Result<(), Failure> {
        if !self.is_wanted(name) {
            return Ok(());
        }
        let dir = TemporaryDir::new(&self.dir)?;
        let builder = || {
            let mut options = JournalOptions::new(&dir.0);
            options.snapshot_every_bytes = None;
            let engine = Engine::builder().store(JournalStore::new(options));
            engine.limits(self.limits()).digest_at_shutdown()
        };
        let engine = builder().start()?;
        open_sale(&engine.handle(), 86_400_000)?;
        let events = drive(&engine.handle(), 0, self.warm_up + self.run)? as f64 / 1e6;
        let written = engine.shutdown(Duration::from_secs(60)).digest;
        let mut took = Vec::new();
        let mut cache = "cold";
        for _ in 0..self.rounds {
            if std::fs::write("/proc/sys/vm/drop_caches", "1").is_err() {
                cache = "warm";
            }
            let began = Instant::now();
            let (_, runner) = builder().build()?;
            took.push(began.elapsed().as_secs_f64());
            assert_eq!(Some(runner.digest()), written, "the state is the log's");
        }
        took.sort_by(f64::total_cmp);
        let [min, median, max] = [0, took.len() / 2, took.len() - 1].map(|at| took[at]);
        println!(
            "{name:<34} {median:>10.2} s {min:>10.2} s {max:>10.2} s   {events:.1} M events, cache {cache}"
        );
        Ok(())
    }

    fn idle(&self, builder: EngineBuilder) -> Result<Vec<Duration>, Failure> {
        let engine = builder.start()?;
        let handle = engine.handle();
        open_sale(&handle, 120_000)?;
        let mut took = Vec::with_capacity(self.idle_asks);
        for command in (0..2 * self.idle_asks as u64).map(command) {
            let began = Instant::now();
            handle.reserve(command)?.wait()?;
            took.push(began.elapsed());
        }
        settle(engine)?;
        // The first half warmed up.
        Ok(took.split_off(self.idle_asks))
    }

    /// One thread paces, another collects.
    fn open_loop(&self, builder: EngineBuilder) -> Result<Vec<Duration>, Failure> {
        const PER_SECOND: f64 = 25_000.0;
        let engine = builder.start()?;
        let handle = engine.handle();
        open_sale(&handle, 120_000)?;
        let (collect, collected) = mpsc::channel::<(Instant, Ticket<Reserve>)>();
        let collector = std::thread::spawn(move || -> Result<Vec<Duration>, String> {
            collected
                .into_iter()
                .map(|(intended, ticket)| {
                    ticket.wait().map_err(|error| error.to_string())?;
                    Ok(intended.elapsed())
                })
                .collect()
        });
        let start = Instant::now();
        for (n, command) in (0_u32..).zip((0..).map(command)) {
            let intended = start + Duration::from_secs_f64(f64::from(n) / PER_SECOND);
            if intended > start + self.open_loop {
                break;
            }
            while let Some(early) = intended.checked_duration_since(Instant::now()) {
                // The pacing itself: a reservation becomes due with time. Latency counts from when it was due, so that a
                // late wake-up counts too.
                std::thread::sleep(early);
            }
            collect.send((intended, handle.reserve(command)?))?;
        }
        drop(collect);
        let took = collector.join().map_err(|_| "the collector panicked")??;
        settle(engine)?;
        Ok(took)
    }
}

/// The n-th user's only reservation.
fn command(n: u64) -> Reserve {
    let key = IdempotencyKey::new(u128::from(n) + 1).expect("not zero");
    // Spread like hashed user ids, so that no table sees an order.
    let user = UserId(u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 32 | u128::from(n));
    let reserve = Reserve::one(user, SkuId(0), 1).expect("one unit");
    reserve.key(key)
}

fn commands(first: u64) -> Vec<Reserve> {
    (first..first + BLOCK as u64).map(command).collect()
}

fn open_sale(handle: &Handle, hold_ms: u32) -> Result<SkuId, Failure> {
    let rules = Rules {
        hold_ms,
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, SkuName::new("hot")?, 1 << 40);
    let sku = handle.define_sku(define.rules(rules)?)?.wait()?;
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    handle.set_gate(open)?.wait()?;
    Ok(sku)
}

/// Submits at least `count` commands and collects every answer. Returns how many it were.
fn drive(handle: &Handle, first: u64, count: u64) -> Result<u64, Failure> {
    let mut out: VecDeque<BlockTicket<Reserve>> = VecDeque::new();
    let mut accepted = 0;
    let mut collect = |ticket: BlockTicket<Reserve>| -> Result<(), Failure> {
        for outcome in ticket.wait() {
            outcome?;
            accepted += 1;
        }
        Ok(())
    };
    for first in (first..first + count).step_by(BLOCK) {
        if out.len() == IN_FLIGHT
            && let Some(ticket) = out.pop_front()
        {
            collect(ticket)?;
        }
        out.push_back(handle.submit_block(commands(first))?);
    }
    out.into_iter().try_for_each(&mut collect)?;
    Ok(accepted)
}

fn wait_for_expiry(handle: &Handle, sku: SkuId) -> Result<(), Failure> {
    let patience = Instant::now();
    loop {
        let stock = handle.availability(sku).ok_or("no stock")?;
        if stock.reserved == 0 {
            return Ok(());
        }
        if patience.elapsed() > Duration::from_secs(10) {
            return Err(format!("{} holds have not lapsed", stock.reserved).into());
        }
        // Holds lapse by time, and nobody tells when the last has; this is not timed.
        std::thread::sleep(Duration::from_millis(1));
    }
}

fn settle(engine: Engine) -> Result<(), Failure> {
    let ended = engine.shutdown(Duration::from_secs(60));
    if ended.is_clean {
        Ok(())
    } else {
        Err("the engine did not end in good order".into())
    }
}

struct TemporaryDir(PathBuf);

impl TemporaryDir {
    fn new(parent: &Path) -> Result<Self, Failure> {
        let name = format!("stockade-bench-{}", std::process::id());
        let dir = parent.join(name);
        std::fs::create_dir(&dir)?;
        Ok(Self(dir))
    }
}

impl Drop for TemporaryDir {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            eprintln!("{} stays: {error}", self.0.display());
        }
    }
}
