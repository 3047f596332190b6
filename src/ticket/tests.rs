//! What tickets promise to one thread, and under stress to several.
#![expect(
    clippy::disallowed_methods,
    reason = "threads and clocks of these tests are real"
)]

use std::future::Future;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc;
use std::task::{Context, Poll, Wake, Waker};
use std::thread;
use std::time::{Duration, Instant};

use super::signal::Signal;
use super::{Completer, CompletionBatch, Pool};

/// Counts how often it was woken.
#[derive(Default)]
struct Woken(AtomicUsize);

impl Wake for Woken {
    fn wake(self: Arc<Self>) {
        self.0.fetch_add(1, Ordering::Relaxed);
    }
}

impl Woken {
    fn count(&self) -> usize {
        self.0.load(Ordering::Relaxed)
    }
}

#[test]
fn a_ticket_gives_the_value_once_it_is_complete() {
    let pool = Pool::new(4);
    let (completer, ticket) = pool.issue().expect("a cell is free");
    assert!(!ticket.is_done());
    completer.complete("value");
    assert!(ticket.is_done());
    assert_eq!(ticket.wait(), Some("value"));
}

#[test]
fn an_abandoned_ticket_gives_nothing() {
    let pool = Pool::<u8>::new(4);
    let (completer, ticket) = pool.issue().expect("a cell is free");
    drop(completer);
    assert_eq!(ticket.wait(), None);
}

#[test]
fn a_parked_thread_is_woken() {
    let pool = Pool::new(4);
    let (completer, ticket) = pool.issue().expect("a cell is free");
    let waiter = thread::spawn(move || ticket.wait());
    thread::yield_now();
    completer.complete(7);
    assert_eq!(waiter.join().expect("no panic"), Some(7));
}

#[test]
fn a_timed_wait_hands_the_ticket_back() {
    let pool = Pool::new(4);
    let (completer, ticket) = pool.issue().expect("a cell is free");
    let begin = Instant::now();
    let timeout = Duration::from_millis(10);
    let ticket = ticket
        .wait_timeout(timeout)
        .expect_err("nobody has completed it");
    assert!(begin.elapsed() >= timeout);
    completer.complete(7);
    assert_eq!(ticket.wait_timeout(Duration::ZERO).ok(), Some(Some(7)));
}

#[test]
fn a_task_is_woken_through_its_latest_waker_only() {
    let pool = Pool::new(4);
    let (completer, ticket) = pool.issue().expect("a cell is free");
    let (first, second) = (Arc::new(Woken::default()), Arc::new(Woken::default()));
    let mut ticket = pin!(ticket);
    for woken in [&first, &second] {
        let waker = Waker::from(Arc::clone(woken));
        assert_eq!(
            ticket.as_mut().poll(&mut Context::from_waker(&waker)),
            Poll::Pending
        );
    }
    completer.complete(7);
    assert_eq!((first.count(), second.count()), (0, 1));
    let waker = Waker::from(Arc::clone(&second));
    assert_eq!(
        ticket.as_mut().poll(&mut Context::from_waker(&waker)),
        Poll::Ready(Some(7))
    );
    assert_eq!(Arc::strong_count(&first), 1, "wakers are dropped");
}

#[test]
fn a_dropped_ticket_frees_its_cell_and_waker_when_completed() {
    let pool = Pool::new(1);
    let woken = Arc::new(Woken::default());
    for _ in 0..3 {
        let (completer, mut ticket) = pool.issue().expect("the cell came back");
        let waker = Waker::from(Arc::clone(&woken));
        assert!(
            pin!(&mut ticket)
                .poll(&mut Context::from_waker(&waker))
                .is_pending()
        );
        drop(ticket);
        assert!(pool.issue().is_none(), "the completer still holds the cell");
        completer.complete(7);
    }
    assert_eq!(Arc::strong_count(&woken), 1);
    assert_eq!(woken.count(), 0, "nobody waits any more");
}

#[test]
fn at_most_cells_max_tickets_are_outstanding() {
    let pool = Pool::<u8>::new(300);
    let pairs: Vec<_> = std::iter::from_fn(|| pool.issue()).collect();
    assert_eq!(pairs.len(), 300);
    drop(pairs);
    let pairs: Vec<_> = std::iter::from_fn(|| pool.issue()).collect();
    assert_eq!(pairs.len(), 300);
}

#[test]
fn values_are_dropped_exactly_once() {
    let value = Arc::new(());
    let pool = Pool::new(8);
    for turn in 0..20 {
        let (completer, ticket) = pool.issue().expect("a cell is free");
        match turn % 4 {
            0 => {
                completer.complete(Arc::clone(&value));
                drop(ticket);
            }
            1 => {
                drop(ticket);
                completer.complete(Arc::clone(&value));
            }
            2 => drop((completer, ticket)),
            _ => {
                completer.complete(Arc::clone(&value));
                drop(ticket.wait());
            }
        }
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

#[test]
fn tickets_outlive_the_pool() {
    let value = Arc::new(());
    let pool = Pool::new(8);
    let (completer, ticket) = pool.clone().issue().expect("a cell is free");
    let (orphan, dropped) = pool.issue().expect("a cell is free");
    let (mut completers, block) = pool.issue_block(3).expect("a block is free");
    drop(dropped);
    drop(pool);
    completer.complete(Arc::clone(&value));
    assert!(ticket.wait().is_some());
    orphan.complete(Arc::clone(&value));
    completers
        .next()
        .expect("three of them")
        .complete(Arc::clone(&value));
    drop(completers);
    let decisions = block.wait();
    assert_eq!(
        decisions
            .map(|decision| decision.is_some())
            .collect::<Vec<_>>(),
        [true, false, false]
    );
    assert_eq!(Arc::strong_count(&value), 1);
}

#[test]
#[should_panic(expected = "stale completer")]
fn a_completer_of_another_generation_is_a_programmers_error() {
    let signal = Signal::new();
    let stale = signal.generation();
    signal.renew();
    // Given up, so that nothing but the check keeps it from being emptied a second time.
    assert!(!signal.detach());
    drop(signal.finish(stale));
}

#[test]
fn a_block_gives_its_values_in_order() {
    let pool = Pool::new(1_024);
    for len in [1, 2, 63, 64, 65, 1_000, 1_024] {
        let (completers, block) = pool.issue_block(len).expect("a block is free");
        assert_eq!((completers.len(), block.len()), (len, len));
        let mut completers: Vec<_> = completers.enumerate().collect();
        completers.reverse();
        for (index, completer) in completers {
            assert!(!block.is_done());
            completer.complete(index);
        }
        assert!(block.is_done());
        let decisions = block.wait();
        assert_eq!(decisions.get(len - 1), Some(&(len - 1)));
        assert_eq!(decisions.get(len), None);
        assert!(decisions.eq((0..len).map(Some)));
    }
}

#[test]
fn an_empty_block_is_done_at_once() {
    let pool = Pool::<u8>::new(4);
    let (completers, block) = pool.issue_block(0).expect("a block is free");
    assert_eq!(completers.len(), 0);
    assert!(block.is_empty());
    assert_eq!(block.wait().len(), 0);
}

#[test]
fn blocks_are_limited_by_size_and_number() {
    let pool = Pool::<u8>::new(256);
    assert!(pool.issue_block(257).is_none());
    let blocks: Vec<_> = std::iter::from_fn(|| pool.issue_block(128)).collect();
    assert_eq!(blocks.len(), 2);
    drop(blocks);
    assert!(pool.issue_block(100).is_some());
}

#[test]
fn a_dropped_block_frees_its_values_when_completed() {
    let value = Arc::new(());
    let pool = Pool::new(64);
    for _ in 0..3 {
        let (completers, block) = pool.issue_block(10).expect("the block came back");
        let mut completers: Vec<_> = completers.collect();
        completers.remove(4).complete(Arc::clone(&value));
        drop(block);
        for completer in completers {
            completer.complete(Arc::clone(&value));
        }
        assert_eq!(Arc::strong_count(&value), 1);
    }
}

#[test]
fn a_block_survives_a_value_that_panics_when_dropped() {
    struct Fussy(bool);
    impl Drop for Fussy {
        fn drop(&mut self) {
            assert!(!self.0, "a value that panics when dropped");
        }
    }
    let pool = Pool::new(64);
    let (completers, block) = pool.issue_block(3).expect("a block is free");
    for (index, completer) in completers.enumerate() {
        completer.complete(Fussy(index == 1));
    }
    let decisions = block.wait();
    assert!(catch_unwind(AssertUnwindSafe(|| drop(decisions))).is_err());
    assert!(pool.issue_block(3).is_some(), "the block came back");
}

#[test]
fn a_batch_wakes_each_task_once() {
    let pool = Pool::new(64);
    let woken = Arc::new(Woken::default());
    let waker = Waker::from(Arc::clone(&woken));
    let mut context = Context::from_waker(&waker);
    let mut completers: Vec<Completer<usize>> = Vec::new();
    let mut tickets = Vec::new();
    for _ in 0..10 {
        let (completer, mut ticket) = pool.issue().expect("a cell is free");
        assert!(pin!(&mut ticket).poll(&mut context).is_pending());
        completers.push(completer);
        tickets.push(ticket);
    }
    let (entries, mut block) = pool.issue_block(10).expect("a block is free");
    assert!(pin!(&mut block).poll(&mut context).is_pending());
    completers.extend(entries);

    let mut batch = CompletionBatch::new();
    for (index, completer) in completers.into_iter().enumerate() {
        batch.complete(completer, index);
    }
    assert!(tickets[0].is_done(), "who looks sees single values at once");
    assert!(!block.is_done(), "a block ends with the flush");
    assert_eq!(woken.count(), 0);
    batch.flush();
    assert_eq!(woken.count(), 1);
    assert!(block.is_done());
    for (index, ticket) in tickets.into_iter().enumerate() {
        assert_eq!(ticket.wait(), Some(index));
    }
    assert!(block.wait().eq((10..20).map(Some)));
}

#[test]
fn a_batch_ends_each_block_that_it_completes_whatever_the_order() {
    let pool = Pool::new(128);
    let (first, one) = pool.issue_block(2).expect("a block is free");
    let (second, other) = pool.issue_block(2).expect("another");
    let mut batch = CompletionBatch::new();
    for (value, (first, second)) in first.zip(second).enumerate() {
        batch.complete(first, value);
        batch.complete(second, 10 + value);
    }
    batch.flush();
    assert!(one.is_done() && other.is_done());
    assert!(one.wait().eq([Some(0), Some(1)]));
    assert!(other.wait().eq([Some(10), Some(11)]));
}

/// Two callers, single tickets and blocks, one thread that answers in batches: every caller gets
/// its own answers, also when it gives tickets up, and the pool is whole afterwards.
#[test]
fn everybody_gets_his_own_answers_under_stress() {
    const ROUNDS: u64 = 4_000;
    type Request = (u64, Completer<Vec<u64>>);

    let pool = Pool::<Vec<u64>>::new(128);
    let (requests, inbox) = mpsc::channel::<Request>();
    let writer = thread::spawn(move || {
        let mut batch = CompletionBatch::new();
        while let Ok(first) = inbox.recv() {
            for (value, completer) in std::iter::once(first).chain(inbox.try_iter().take(9)) {
                match value % 11 {
                    10 => drop(completer),
                    5 => completer.complete(vec![value]),
                    _ => batch.complete(completer, vec![value]),
                }
            }
            batch.flush();
        }
    });
    let expected = |value: u64| (value % 11 != 10).then(|| vec![value]);
    thread::scope(|scope| {
        for caller in 0..2 {
            let (pool, requests) = (pool.clone(), requests.clone());
            scope.spawn(move || {
                for round in 0..ROUNDS {
                    let value = (round * 2 + caller) * 100;
                    if round % 3 == 0 {
                        let Some((completers, block)) = pool.issue_block(20) else {
                            continue;
                        };
                        for (completer, value) in completers.zip(value..) {
                            requests.send((value, completer)).expect("the writer lives");
                        }
                        assert!(block.wait().eq((value..value + 20).map(expected)));
                        continue;
                    }
                    let Some((completer, ticket)) = pool.issue() else {
                        continue;
                    };
                    requests.send((value, completer)).expect("the writer lives");
                    if round % 7 == 0 {
                        continue; // dropped
                    }
                    match ticket.wait_timeout(Duration::from_micros(20)) {
                        Ok(answer) => assert_eq!(answer, expected(value)),
                        Err(ticket) => assert_eq!(ticket.wait(), expected(value)),
                    }
                }
            });
        }
        drop(requests);
    });
    writer.join().expect("no panic");
    let pairs: Vec<_> = std::iter::from_fn(|| pool.issue()).collect();
    assert_eq!(pairs.len(), 128);
}
