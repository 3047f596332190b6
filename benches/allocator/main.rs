//! What the allocator alone decides per second, how long it ever stalls, and what a reservation costs in memory.
//!
//! `cargo bench --bench allocator` prints a table; `-- --test` runs everything small, as a check, `-- NAME` the rows whose name
//! contains it. A decision is an accepted single-line reservation of a new user with a new key, limits and retention on, its event
//! encoded; the tables are presized and lie in huge pages, where the system gives them. `base` is the harness: reading the commands
//! and the clock. `peer` is what one would write in an afternoon: two hash maps, a slab and a counter, presized and warm, without
//! expiry, events, retention or refusals on record. It shows what the machine can do. Medians of 5 runs (3 of the large ones);
//! beside each rate that of the typical batch, which shows how disturbed the machine was.

#[path = "../common/mod.rs"]
mod common;
mod peer;

use std::hint::black_box;
use std::time::Duration;
use stockade::allocator::{Allocator, Limits};
use stockade::types::{
    Answer, Availability, Batch, BatchHeader, Command, Decision, DefineSku, Gate, IdempotencyKey,
    Refusal, Reserve, Rules, SetGate, SkuId, SkuName, Timestamp, UserId,
};

/// The clock of the measurement.
#[expect(clippy::disallowed_methods, reason = "a bench measures real time")]
fn instant() -> std::time::Instant {
    std::time::Instant::now()
}

const BATCH: usize = 1_000;
const START: Timestamp = Timestamp::from_micros(1_700_000_000_000_000);

/// `SplitMix64` (Steele, Lea, Flood 2014): users and keys are spread as UUIDs and hashes are.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn wide(&mut self) -> u128 {
        u128::from(self.next()) << 64 | u128::from(self.next())
    }
}

/// One sale that is driven batch by batch.
struct Sale {
    allocator: Allocator,
    batch: Batch,
    published: Vec<Availability>,
    commands: Vec<Command>,
    numbers: Numbers,
    now: Timestamp,
    accepted: u64,
}

impl Sale {
    fn open(presize: u32, units: u64, hold_ms: u32) -> Self {
        let limits = Limits {
            presize,
            ..Limits::default()
        };
        let mut sale = Self {
            allocator: Allocator::new(limits, 42),
            batch: Batch::default(),
            published: Vec::new(),
            commands: Vec::with_capacity(BATCH),
            numbers: Numbers(1),
            now: START,
            accepted: 0,
        };
        let name = SkuName::new("SNEAKER-42").expect("a plain name");
        let rules = Rules {
            hold_ms,
            ..Rules::default()
        };
        let define = DefineSku::new(UserId(1), name, units).rules(rules);
        sale.commands
            .push(define.expect("rules that can be").into());
        let open = SetGate::new(UserId(1), SkuId(0), Gate::Open);
        sale.commands.push(open.into());
        sale.decide();
        sale
    }

    /// New users with new keys, one unit each.
    fn fill(&mut self) {
        self.commands.clear();
        for _ in 0..BATCH {
            let user = UserId(self.numbers.wide());
            let key = IdempotencyKey::new(self.numbers.wide()).expect("not zero");
            let reserve = Reserve::one(user, SkuId(0), 1).expect("one unit");
            self.commands.push(reserve.key(key).into());
        }
    }

    /// One batch, timed.
    fn decide(&mut self) -> Duration {
        let start = instant();
        self.batch.clear();
        self.batch.header = BatchHeader {
            stamp: self.now,
            first_sequence: self.allocator.sequence() + 1,
            ..BatchHeader::default()
        };
        let begun = self.allocator.begin(&self.batch.header);
        begun.expect("batches follow each other");
        let swept = self.allocator.sweep(self.commands.len(), &mut self.batch);
        swept.expect("no law breaks");
        let accepted = &mut self.accepted;
        let decided =
            self.allocator.decide_all(
                self.commands.iter(),
                &mut self.batch,
                |answer| match answer {
                    Answer::Decided(Decision::Refused(refusal)) => {
                        assert!(matches!(refusal, Refusal::SoldOut { .. }), "{refusal}");
                    }
                    answer => {
                        black_box(answer);
                        *accepted += 1;
                    }
                },
            );
        decided.expect("no law breaks");
        self.published.clear();
        let finished = self.allocator.finish(&mut self.published);
        finished.expect("no law is broken");
        black_box(&self.batch);
        start.elapsed()
    }

    /// So many decisions, `step` later with each batch: the time that each batch took.
    fn run(&mut self, decisions: usize, step: Duration) -> Vec<Duration> {
        let batches = (0..decisions / BATCH).map(|_| {
            self.now = self.now.plus(step);
            self.fill();
            self.decide()
        });
        batches.collect()
    }

    fn check(&self, accepted: u64) {
        assert_eq!(self.accepted, accepted + 2, "what was accepted");
        let availability = self.allocator.availability(SkuId(0));
        let taken = availability.map(|now| now.total - now.available);
        assert!(
            taken.is_some_and(|taken| taken <= accepted),
            "no unit is taken twice"
        );
    }
}

fn main() {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let is_test = args.iter().any(|arg| arg == "--test");
    let filter = args.iter().find(|arg| !arg.starts_with("--"));
    let is_wanted = |name: &str| filter.is_none_or(|filter| name.contains(filter.as_str()));
    let scale = if is_test { 100 } else { 1 };
    let (million, runs) = (1_000_000 / scale, if is_test { 1 } else { 5 });
    let step = Duration::from_micros(100);

    common::take_huge_pages(|| {
        // While the process is small: memory that was given back would hide what is taken. And the kernel clears a huge
        // page at once, a stall that presized tables don't have.
        if is_wanted("growth") {
            growth(million, step, runs);
        }
    });
    let row = |name: &str, runs: usize, run: &dyn Fn() -> Vec<Duration>| {
        if is_wanted(name) {
            row(name, runs, run);
        }
    };
    println!("allocator/decide, batches of {BATCH}, medians of {runs}");
    row("base/harness", runs, &|| base(million));
    row("peer/two_maps_and_a_slab/1M", runs, &|| {
        peer::reserve(million, million)
    });
    row("peer/two_maps_and_a_slab/10M", runs.min(3), &|| {
        peer::reserve(10 * million, million)
    });
    row("accepted/1M_users", runs, &|| {
        reserve(million, million, step)
    });
    row("accepted/10M_live", runs.min(3), &|| {
        reserve(9 * million, million, step)
    });
    row("sell_out/4_percent_accepted", runs, &|| {
        sell_out(million, step)
    });
    row("expiry/every_hold_lapses", runs, &|| expire(2 * million));
}

fn growth(million: usize, step: Duration, runs: usize) {
    let growth = grow(10 * million, step, runs.min(3));
    let ms = |time: Duration| time.as_secs_f64() * 1e3;
    let (longest, of_best) = (ms(growth.longest), ms(growth.longest_of_best));
    println!(
        "{:<32} {of_best:>10.3} ms   disturbed {longest:>8.3} ms",
        "growth/longest_1000"
    );
    let bytes = growth.bytes_per_live;
    println!("{:<32} {bytes:>10} bytes", "growth/resident_per_live");
}

/// The median of the runs' rates; beside it the rate of the typical batch, which shows how disturbed the machine was.
fn row(name: &str, runs: usize, run: &dyn Fn() -> Vec<Duration>) {
    #[expect(clippy::cast_precision_loss, reason = "shown with two digits")]
    let rate = |decisions: usize, took: Duration| decisions as f64 / took.as_secs_f64() / 1e6;
    let (mut rates, mut typical): (Vec<f64>, Vec<f64>) = (0..runs)
        .map(|_| {
            let mut times = run();
            times.sort();
            let all = rate(times.len() * BATCH, times.iter().sum());
            (all, rate(BATCH, times[times.len() / 2]))
        })
        .unzip();
    rates.sort_by(f64::total_cmp);
    typical.sort_by(f64::total_cmp);
    let (rate, typical) = (rates[runs / 2], typical[runs / 2]);
    println!("{name:<32} {rate:>10.2} M/s   typical batch {typical:>6.2} M/s");
}

fn base(decisions: usize) -> Vec<Duration> {
    let mut sale = Sale::open(0, 1, 1);
    let batches = (0..decisions / BATCH).map(|_| {
        sale.fill();
        let start = instant();
        for command in &sale.commands {
            black_box(command.origin());
        }
        start.elapsed()
    });
    batches.collect()
}

/// The times of the last `measured` of all.
fn reserve(before: usize, measured: usize, step: Duration) -> Vec<Duration> {
    let all = before + measured;
    let presize = u32::try_from(all).expect("millions");
    let mut sale = Sale::open(presize, 2 * all as u64, 120_000);
    sale.run(before, step);
    let took = sale.run(measured, step);
    sale.check(all as u64);
    took
}

fn sell_out(decisions: usize, step: Duration) -> Vec<Duration> {
    let units = decisions as u64 / 25;
    let mut sale = Sale::open(u32::try_from(units).expect("thousands"), units, 120_000);
    let took = sale.run(decisions, step);
    sale.check(units);
    took
}

/// Holds of 10 ms, one batch every 100 us: 100,000 are live at a time.
fn expire(decisions: usize) -> Vec<Duration> {
    let presize = u32::try_from(decisions).expect("millions");
    let mut sale = Sale::open(presize, decisions as u64, 10);
    let took = sale.run(decisions, Duration::from_micros(100));
    sale.check(decisions as u64);
    took
}

/// What growing to so many live reservations from empty, not presized, took at worst.
struct Growth {
    longest: Duration,
    /// The longest batch, each at its best over the runs: every run does the same, so what remains is not the machine's.
    longest_of_best: Duration,
    bytes_per_live: u64,
}

fn grow(decisions: usize, step: Duration, runs: usize) -> Growth {
    let mut best = vec![Duration::MAX; decisions / BATCH];
    let mut growth = Growth {
        longest: Duration::ZERO,
        longest_of_best: Duration::ZERO,
        bytes_per_live: 0,
    };
    for _ in 0..runs {
        let before = resident_bytes();
        let mut sale = Sale::open(0, 2 * decisions as u64, 120_000);
        for (best, took) in best.iter_mut().zip(sale.run(decisions, step)) {
            *best = took.min(*best);
            growth.longest = growth.longest.max(took);
        }
        // Later runs find memory that earlier ones gave back, so the first one counts.
        let bytes = resident_bytes().saturating_sub(before) / decisions as u64;
        growth.bytes_per_live = growth.bytes_per_live.max(bytes);
        sale.check(decisions as u64);
    }
    growth.longest_of_best = best.into_iter().max().unwrap_or_default();
    growth
}

/// 0 where there is no `/proc`.
fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages = statm.split_whitespace().nth(1);
    pages.and_then(|pages| pages.parse().ok()).unwrap_or(0) * 4_096
}
