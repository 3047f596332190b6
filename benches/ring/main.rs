//! The ring beside other bounded MPSC queues, in one run: `cargo bench --bench ring`.
//!
//! Payloads of 64 bytes; the consumer is pinned to one core and the producers to the others (on two
//! cores they share one, so several producers run in turns); the consumer takes at most 256 values
//! at a time; count and checksum are asserted in every run. A row is the median of 5 runs; peers take
//! turns, so that a slow spell of the machine hits all of them. Each queue runs under every way of
//! waiting that it has, and its best is printed:
//!
//! - `spin`: look again after one pause hint,
//! - `back off`: pauses that double up to 64, a microsecond,
//! - `block`: the queue's own blocking receive (ours: `wait`).
//!
//! `base` is the harness without a queue: a producer that writes its payloads to an array of its own.
//! Options: `--test` (a quick check that everything works), `--only NAME` (rows whose name
//! contains it), `--capacity N`.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

mod queues;

use std::hint::{black_box, spin_loop};
use std::sync::Barrier;
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use disruptor::{BusySpin, ProcessorSettings as _, Producer as _, build_multi_producer};

use self::queues::{
    ArrayQueue, Crossbeam, DRAIN_MAX, Flume, Kanal, Payload, Queue, Stockade, SyncChannel,
    Thingbuf, check, payload, sum_of,
};

const RUNS: usize = 5;
const BULK: usize = 64;

#[derive(Clone, Copy, Debug, PartialEq)]
enum Waiting {
    Spin,
    BackOff,
    Block,
}

/// Where a thread runs: the consumer, 0, on the first core, producers on the others in turn.
fn core_of(thread: usize) -> usize {
    let cores = thread::available_parallelism().map_or(1, usize::from);
    if thread == 0 || cores == 1 {
        0
    } else {
        1 + (thread - 1) % (cores - 1)
    }
}

fn pin(thread: usize) {
    core_affinity::set_for_current(core_affinity::CoreId {
        id: core_of(thread),
    });
}

/// Millions a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn rate(count: u64, time: Duration) -> f64 {
    count as f64 / time.as_secs_f64() / 1e6
}

struct Pause(u32);
impl Pause {
    fn after_nothing(&mut self, waiting: Waiting) {
        for _ in 0..self.0 {
            spin_loop();
        }
        if waiting == Waiting::BackOff {
            self.0 = 64.min(self.0 * 2);
        }
    }
}

/// A full queue: let the consumer go on; it has a core of its own.
fn pause_full(attempts: &mut u32) {
    *attempts += 1;
    if attempts.is_multiple_of(64) {
        thread::yield_now();
    } else {
        spin_loop();
    }
}

/// Values a second, in millions, from the first producer's start to the consumer's last value:
/// `producers` threads run `produce(range)`, and `consume` says when it had them all.
fn race<S: Clone + Send>(
    producers: usize,
    total: u64,
    sender: S,
    produce: impl Fn(S, std::ops::Range<u64>) + Sync,
    consume: impl FnOnce() -> (Instant, u64) + Send,
) -> f64 {
    let share = total / producers as u64;
    let barrier = Barrier::new(producers + 1);
    thread::scope(|scope| {
        let (barrier, produce) = (&barrier, &produce);
        let threads: Vec<_> = (0..producers)
            .map(|producer| {
                let sender = sender.clone();
                scope.spawn(move || {
                    pin(1 + producer);
                    let first = producer as u64 * share;
                    barrier.wait();
                    let begin = Instant::now();
                    produce(sender, first..first + share);
                    begin
                })
            })
            .collect();
        drop(sender);
        let consumer = scope.spawn(move || {
            pin(0);
            barrier.wait();
            consume()
        });
        let (end, sum) = consumer.join().expect("the consumer must not panic");
        assert_eq!(
            sum,
            (0..total).fold(0, u64::wrapping_add),
            "values lost or repeated"
        );
        let begins = threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"));
        let begin = begins.min().expect("there are producers");
        rate(total, end - begin)
    })
}

fn consume<Q: Queue>(receiver: &mut Q::Receiver, total: u64, waiting: Waiting) -> (Instant, u64) {
    let (mut taken, mut sum) = (0, 0_u64);
    let mut pause = Pause(1);
    let mut block = false;
    while taken < total {
        let (count, part) = Q::drain(receiver, block);
        taken += count;
        sum = sum.wrapping_add(part);
        if count == DRAIN_MAX as u64 {
            block = false;
            pause = Pause(1);
        } else if waiting == Waiting::Block {
            block = taken < total;
        } else {
            pause.after_nothing(waiting);
        }
    }
    assert_eq!(taken, total, "more values than were pushed");
    (Instant::now(), sum)
}

fn single<Q: Queue>(capacity: usize, producers: usize, total: u64, waiting: Waiting) -> f64 {
    let (sender, mut receiver) = Q::make(capacity);
    race(
        producers,
        total,
        sender,
        |sender, values| {
            let mut attempts = 0;
            for value in values {
                while !Q::push(&sender, payload(value)) {
                    pause_full(&mut attempts);
                }
            }
        },
        move || consume::<Q>(&mut receiver, total, waiting),
    )
}

fn bulk<const LEN: usize>(capacity: usize, producers: usize, total: u64, waiting: Waiting) -> f64 {
    let (sender, mut receiver) = Stockade::make(capacity);
    race(
        producers,
        total,
        sender,
        |sender, values| {
            let mut attempts = 0;
            let mut block = Vec::with_capacity(LEN);
            for value in values {
                block.push(payload(value));
                if block.len() == LEN {
                    while sender.try_push_bulk(&mut block).is_err() {
                        pause_full(&mut attempts);
                    }
                }
            }
            while !block.is_empty() && sender.try_push_bulk(&mut block).is_err() {
                pause_full(&mut attempts);
            }
        },
        move || consume::<Stockade>(&mut receiver, total, waiting),
    )
}

/// The disruptor drives its consumer itself, by a closure, and spins. It makes its payloads in the
/// slots and reads them there; with `MOVES` it does what a queue does: the producer copies them from
/// a `Vec`, the consumer to one.
fn disruptor<const LEN: usize, const MOVES: bool>(
    capacity: usize,
    producers: usize,
    total: u64,
    _waiting: Waiting,
) -> f64 {
    let (report, result) = mpsc::channel();
    let (mut taken, mut sum) = (0, 0_u64);
    let mut run = Vec::with_capacity(DRAIN_MAX);
    let producer = build_multi_producer(capacity, || [0; 8], BusySpin)
        .pin_at_core(core_of(0))
        .handle_events_with(move |event: &Payload, _, end_of_batch| {
            taken += 1;
            if MOVES {
                run.push(*event);
                if run.len() == DRAIN_MAX || end_of_batch {
                    sum = sum.wrapping_add(sum_of(&mut run).1);
                }
            } else {
                sum = sum.wrapping_add(check(event));
            }
            if taken == total {
                sum = sum.wrapping_add(sum_of(&mut run).1);
                report.send((Instant::now(), sum)).expect("the bench waits");
            }
        })
        .build();
    race(
        producers,
        total,
        producer,
        |mut producer, mut values| {
            let mut attempts = 0;
            let mut block = Vec::with_capacity(LEN);
            while !values.is_empty() {
                let next = values.start;
                let left = usize::try_from(values.end - next).unwrap_or(usize::MAX);
                let len = LEN.min(left);
                if MOVES && block.is_empty() {
                    block.extend((next..).take(len).map(payload));
                }
                let pushed = if LEN == 1 {
                    producer.try_publish(|event| *event = payload(next)).is_ok()
                } else {
                    let filled = producer.try_batch_publish(len, |events| {
                        if MOVES {
                            events
                                .zip(&block)
                                .for_each(|(event, value)| *event = *value);
                        } else {
                            events
                                .zip(next..)
                                .for_each(|(event, value)| *event = payload(value));
                        }
                    });
                    filled.is_ok()
                };
                if pushed {
                    values.start += len as u64;
                    block.clear();
                } else {
                    pause_full(&mut attempts);
                }
            }
        },
        move || result.recv().expect("the consumer reports"),
    )
}

/// No queue at all: what making and storing the payloads costs.
fn base(capacity: usize, _producers: usize, total: u64, _waiting: Waiting) -> f64 {
    let producer = thread::spawn(move || {
        pin(1);
        let mut slots = vec![[0; 8]; capacity];
        let begin = Instant::now();
        for (value, slot) in (0..total).zip((0..capacity).cycle()) {
            slots[slot] = payload(value);
            black_box(&mut slots);
        }
        rate(total, begin.elapsed())
    });
    producer.join().expect("the producer must not panic")
}

type Bench = fn(usize, usize, u64, Waiting) -> f64;

struct Row {
    name: &'static str,
    waitings: &'static [Waiting],
    bench: Bench,
}

fn row<Q: Queue>() -> Row {
    let waitings: &[Waiting] = if Q::BLOCKS {
        &[Waiting::Spin, Waiting::BackOff, Waiting::Block]
    } else {
        &[Waiting::Spin, Waiting::BackOff]
    };
    Row {
        name: Q::NAME,
        waitings,
        bench: single::<Q>,
    }
}

const ALL: &[Waiting] = &[Waiting::Spin, Waiting::BackOff, Waiting::Block];

fn groups() -> [(&'static str, Vec<Row>); 2] {
    let singles = vec![
        Row {
            name: "base",
            waitings: &[Waiting::Spin],
            bench: base,
        },
        row::<Stockade>(),
        row::<ArrayQueue>(),
        row::<SyncChannel>(),
        row::<Thingbuf>(),
        row::<Kanal>(),
        row::<Flume>(),
        row::<Crossbeam>(),
        Row {
            name: "disruptor",
            waitings: &[Waiting::Spin],
            bench: disruptor::<1, false>,
        },
    ];
    let bulks = vec![
        Row {
            name: "stockade bulk/16",
            waitings: ALL,
            bench: bulk::<16>,
        },
        Row {
            name: "stockade bulk/64",
            waitings: ALL,
            bench: bulk::<BULK>,
        },
        Row {
            name: "disruptor batch/64",
            waitings: &[Waiting::Spin],
            bench: disruptor::<BULK, false>,
        },
        Row {
            name: "disruptor batch/64, moved",
            waitings: &[Waiting::Spin],
            bench: disruptor::<BULK, true>,
        },
    ];
    [("ring/single push", singles), ("ring/bulk", bulks)]
}

fn median(runs: &mut [f64]) -> f64 {
    runs.sort_by(f64::total_cmp);
    runs[runs.len() / 2]
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let option = |name: &str| {
        arguments
            .iter()
            .position(|argument| argument == name)
            .and_then(|at| arguments.get(at + 1))
    };
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let only = option("--only").map_or("", String::as_str);
    let capacities = match option("--capacity").and_then(|capacity| capacity.parse().ok()) {
        Some(capacity) => vec![capacity],
        None if is_test => vec![4_096],
        None => vec![65_536, 4_096],
    };
    let (runs, total) = if is_test {
        (1, 20_000)
    } else {
        (RUNS, 4_000_000)
    };

    for capacity in capacities {
        for (group, rows) in groups() {
            println!("{group}, M/s, capacity {capacity}, producers 1 / 2 / 4");
            let rows: Vec<_> = rows.iter().filter(|row| row.name.contains(only)).collect();
            let mut table: Vec<Vec<(f64, Waiting)>> = vec![Vec::new(); rows.len()];
            for producers in [1, 2, 4] {
                let mut best = vec![(0.0, Waiting::Spin); rows.len()];
                for waiting in ALL {
                    let mut results = vec![Vec::new(); rows.len()];
                    for _ in 0..runs {
                        for (row, results) in rows.iter().zip(&mut results) {
                            if row.waitings.contains(waiting) {
                                results.push((row.bench)(capacity, producers, total, *waiting));
                            }
                        }
                    }
                    for (best, results) in best.iter_mut().zip(&mut results) {
                        if !results.is_empty() && median(results) > best.0 {
                            *best = (median(results), *waiting);
                        }
                    }
                }
                for (line, best) in table.iter_mut().zip(best) {
                    line.push(best);
                }
            }
            for (row, line) in rows.iter().zip(&table) {
                let cells: Vec<_> = line
                    .iter()
                    .map(|(rate, waiting)| format!("{rate:7.1} {:8}", format!("{waiting:?}")))
                    .collect();
                println!("  {:26} {}", row.name, cells.join(" "));
            }
        }
    }
}
