//! Tickets and the snapshot cell: `cargo bench --bench ticket`.
//!
//! Values of 64 bytes, as a decision has. A row is the median of 5 runs. In the rows with two
//! threads a caller keeps 1,024 requests in flight through the ring, and a writer answers whatever
//! it drains as one batch; both are pinned to cores of their own if there are two. Every answer is
//! compared with what was asked. `base` is the harness without tickets. Option: `--test` (a quick
//! check that everything works).
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]

use std::collections::VecDeque;
use std::hint::{black_box, spin_loop};
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use stockade::ring::{Wake, ring};
use stockade::sync::SnapshotCell;
use stockade::ticket::{Block, Completer, CompletionBatch, Pool, Ticket};

type Value = [u64; 8];
type Request = (u64, Completer<Value>);

const RUNS: usize = 5;
const IN_FLIGHT: usize = 1_024;

fn value(request: u64) -> Value {
    [request, 1, 2, 3, 4, 5, 6, !request]
}

fn check(request: u64, answer: Option<Value>) {
    assert_eq!(answer, Some(value(request)), "another request's answer");
}

fn pin(core: usize) {
    if thread::available_parallelism().is_ok_and(|cores| cores.get() > core) {
        core_affinity::set_for_current(core_affinity::CoreId { id: core });
    }
}

/// Millions a second.
#[expect(clippy::cast_precision_loss, reason = "counts are far below 2^52")]
fn rate(count: u64, begin: Instant) -> f64 {
    count as f64 / begin.elapsed().as_secs_f64() / 1e6
}

fn base(count: u64) -> f64 {
    let begin = Instant::now();
    for request in 0..count {
        check(request, black_box(Some(value(request))));
    }
    rate(count, begin)
}

fn one_thread_single(count: u64) -> f64 {
    let pool = Pool::new(IN_FLIGHT);
    let begin = Instant::now();
    for request in 0..count {
        let (completer, ticket) = pool.issue().expect("one ticket is in use");
        completer.complete(value(request));
        check(request, ticket.wait());
    }
    rate(count, begin)
}

fn one_thread_bulk(count: u64) -> f64 {
    let pool = Pool::new(IN_FLIGHT);
    let mut batch = CompletionBatch::new();
    let begin = Instant::now();
    for first in (0..count).step_by(IN_FLIGHT) {
        let (completers, block) = pool.issue_block(IN_FLIGHT).expect("one block is in use");
        for (completer, request) in completers.zip(first..) {
            batch.complete(completer, value(request));
        }
        batch.flush();
        for (answer, request) in block.wait().zip(first..) {
            check(request, answer);
        }
    }
    rate(count, begin)
}

/// Runs `call` against a writer that answers through the ring.
fn with_writer(count: u64, call: impl FnOnce(&Pool<Value>, &dyn Fn(&mut Vec<Request>))) -> f64 {
    let pool = Pool::new(2 * IN_FLIGHT);
    let (producer, mut consumer) = ring::<Request>(4 * IN_FLIGHT);
    thread::scope(|scope| {
        scope.spawn(move || {
            pin(1);
            let mut run = Vec::new();
            let mut batch = CompletionBatch::new();
            while consumer.wait(None) == Wake::Ready {
                consumer.drain_into(&mut run, 256);
                for (request, completer) in run.drain(..) {
                    batch.complete(completer, value(request));
                }
                batch.flush();
            }
        });
        pin(0);
        let begin = Instant::now();
        call(&pool, &|requests| {
            while producer.try_push_bulk(requests).is_err() {
                spin_loop();
            }
        });
        let rate = rate(count, begin);
        drop(producer);
        rate
    })
}

fn two_threads_single(count: u64) -> f64 {
    with_writer(count, |pool, push| {
        let mut tickets = VecDeque::new();
        let mut requests = Vec::new();
        for request in 0..count {
            if tickets.len() == IN_FLIGHT {
                let (request, ticket): (u64, Ticket<Value>) =
                    tickets.pop_front().expect("many are in flight");
                check(request, ticket.wait());
            }
            let (completer, ticket) = pool.issue().expect("half of them are free");
            tickets.push_back((request, ticket));
            requests.push((request, completer));
            push(&mut requests);
        }
        for (request, ticket) in tickets {
            check(request, ticket.wait());
        }
    })
}

fn two_threads_bulk(count: u64) -> f64 {
    with_writer(count, |pool, push| {
        let mut last = None;
        let mut requests = Vec::new();
        for first in (0..count).step_by(IN_FLIGHT) {
            let (completers, block) = pool.issue_block(IN_FLIGHT).expect("two blocks are in use");
            requests.extend((first..).zip(completers));
            push(&mut requests);
            if let Some((first, block)) = last.replace((first, block)) {
                check_block(first, block);
            }
        }
        if let Some((first, block)) = last {
            check_block(first, block);
        }
    })
}

fn check_block(first: u64, block: Block<Value>) {
    for (answer, request) in block.wait().zip(first..) {
        check(request, answer);
    }
}

/// Loads a second of one thread while another stores, at once again or after `pause`.
fn snapshot_loads(count: u64, pause: Option<Duration>) -> f64 {
    let cell = SnapshotCell::<7>::new(&[0; 7]);
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            pin(1);
            for round in 1.. {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                cell.store(&[round; 7]);
                let begin = Instant::now();
                while pause.is_some_and(|pause| begin.elapsed() < pause) {
                    spin_loop();
                }
            }
        });
        pin(0);
        let begin = Instant::now();
        for _ in 0..count {
            let words = black_box(cell.load());
            assert_eq!(words[0], words[6], "a torn snapshot");
        }
        let rate = rate(count, begin);
        stop.store(true, Ordering::Relaxed);
        rate
    })
}

type Bench = fn(u64) -> f64;

fn main() {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let (runs, count) = if is_test {
        (1, 20_480)
    } else {
        (RUNS, 4_096_000)
    };
    let rows: [(&str, Bench); 8] = [
        ("ticket/base", base),
        ("ticket/one thread/single", one_thread_single),
        ("ticket/one thread/bulk 1024", one_thread_bulk),
        ("ticket/two threads/single", two_threads_single),
        ("ticket/two threads/bulk 1024", two_threads_bulk),
        ("snapshot/load/a store every 100 us", |count| {
            snapshot_loads(count * 10, Some(Duration::from_micros(100)))
        }),
        ("snapshot/load/a store every 10 us", |count| {
            snapshot_loads(count * 10, Some(Duration::from_micros(10)))
        }),
        ("snapshot/load/stores without a pause", |count| {
            snapshot_loads(count, None)
        }),
    ];
    println!("M/s");
    for (name, bench) in rows {
        let mut results: Vec<f64> = (0..runs)
            .map(|_| {
                thread::spawn(move || bench(count))
                    .join()
                    .expect("no panic")
            })
            .collect();
        results.sort_by(f64::total_cmp);
        println!("  {name:36} {:7.1}", results[runs / 2]);
    }
}
