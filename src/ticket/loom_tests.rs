//! Models of tickets: every interleaving of at most 3 threads, one property each.
//!
//! `RUSTFLAGS="--cfg stockade_loom" cargo test --profile loom --lib loom_ticket`

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc as StdArc;
use std::task::{Context, Poll, Wake, Waker};

use loom::model::Builder;
use loom::sync::atomic::{AtomicBool, Ordering};
use loom::thread;

use super::{CompletionBatch, Pool, Ticket};

/// Explores `model` with at most 3 preemptions a run.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

/// Notes that it was woken, and unparks the thread that polls.
struct Flag {
    woken: AtomicBool,
    thread: thread::Thread,
}

impl Flag {
    fn new() -> StdArc<Self> {
        StdArc::new(Self {
            woken: AtomicBool::new(false),
            thread: thread::current(),
        })
    }

    fn wait(&self) {
        while !self.woken.swap(false, Ordering::AcqRel) {
            thread::park();
        }
    }
}

impl Wake for Flag {
    fn wake(self: StdArc<Self>) {
        // A swap, because loom leaves plain stores out of the order of read-modify-writes.
        self.woken.swap(true, Ordering::AcqRel);
        self.thread.unpark();
    }
}

fn poll<V: Send>(ticket: &mut Ticket<V>, flag: &StdArc<Flag>) -> Poll<Option<V>> {
    let waker = Waker::from(StdArc::clone(flag));
    Pin::new(ticket).poll(&mut Context::from_waker(&waker))
}

/// Leaves a waiter that does nothing when it is woken.
fn wait_idly<V: Send>(ticket: &mut Ticket<V>) -> Poll<Option<V>> {
    Pin::new(ticket).poll(&mut Context::from_waker(Waker::noop()))
}

#[test]
fn loom_ticket_a_waiting_thread_gets_the_value() {
    explore(|| {
        let pool = Pool::new(2);
        let (completer, ticket) = pool.issue().expect("a cell is free");
        let other = thread::spawn(move || completer.complete(7));
        assert_eq!(ticket.wait(), Some(7));
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_an_abandoned_wait_ends() {
    explore(|| {
        let pool = Pool::<u8>::new(2);
        let (completer, ticket) = pool.issue().expect("a cell is free");
        let other = thread::spawn(move || drop(completer));
        assert_eq!(ticket.wait(), None);
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_a_task_whose_waker_was_replaced_is_woken() {
    explore(|| {
        let pool = Pool::new(2);
        let (completer, mut ticket) = pool.issue().expect("a cell is free");
        let other = thread::spawn(move || completer.complete(7));
        let (first, second) = (Flag::new(), Flag::new());
        let mut answer = poll(&mut ticket, &first);
        while answer.is_pending() {
            answer = poll(&mut ticket, &second);
            if answer.is_pending() {
                second.wait();
                thread::yield_now(); // while the completer is waking, each poll wakes at once
            }
        }
        assert_eq!(answer, Poll::Ready(Some(7)));
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_dropping_it_frees_value_and_waker_once() {
    explore(|| {
        let value = StdArc::new(());
        let pool = Pool::new(1);
        let (completer, mut ticket) = pool.issue().expect("a cell is free");
        let flag = Flag::new();
        let answer = {
            let value = StdArc::clone(&value);
            let other = thread::spawn(move || completer.complete(value));
            let answer = poll(&mut ticket, &flag).is_ready();
            drop(ticket);
            other.join().expect("no panic");
            answer
        };
        let _ = answer;
        assert_eq!(StdArc::strong_count(&value), 1);
        assert_eq!(StdArc::strong_count(&flag), 1);
        assert!(pool.issue().is_some(), "the cell came back");
    });
}

#[test]
fn loom_ticket_a_reused_cell_never_shows_the_last_value() {
    explore(|| {
        let pool = Pool::new(1);
        let (completer, ticket) = pool.issue().expect("a cell is free");
        let first = completer.generation();
        let other = thread::spawn(move || completer.complete(1));
        assert_eq!(ticket.wait(), Some(1));
        // The completer of the first generation may still be waking.
        let (completer, ticket) = pool.issue().expect("the cell came back");
        assert_ne!(completer.generation(), first);
        assert!(!ticket.is_done());
        completer.complete(2);
        assert_eq!(ticket.wait(), Some(2));
        other.join().expect("no panic");
    });
}

/// Its completer took the last waiter out before the next one is put in; the wake-up comes later and orders nothing.
#[test]
fn loom_ticket_a_reused_cell_is_free_of_its_last_waiter() {
    explore(|| {
        let pool = Pool::new(1);
        let (completer, mut ticket) = pool.issue().expect("a cell is free");
        let other = thread::spawn(move || completer.complete(1));
        if wait_idly(&mut ticket).is_pending() && ticket.is_done() {
            drop(ticket);
            let (_completer, mut ticket) = pool.issue().expect("the cell came back");
            assert!(wait_idly(&mut ticket).is_pending());
        }
        other.join().expect("no panic");
    });
}

/// The waiter of a dropped ticket is taken out before the thread that completes it uses the cell anew.
#[test]
fn loom_ticket_a_dropped_waiter_is_gone_before_its_cell_is_used_again() {
    explore(|| {
        let pool = Pool::new(1);
        let others = pool.clone();
        let (completer, mut ticket) = pool.issue().expect("a cell is free");
        let other = thread::spawn(move || {
            completer.complete(1);
            // None while the cell is still the other ticket's.
            if let Some((_completer, mut ticket)) = others.issue() {
                assert!(wait_idly(&mut ticket).is_pending());
            }
        });
        let _ = wait_idly(&mut ticket);
        drop(ticket);
        other.join().expect("no panic");
    });
}

/// One thread takes both cells and gives the first one back, while the other is about to take it.
#[test]
fn loom_ticket_a_cell_that_was_free_before_is_not_taken_for_free_again() {
    explore(|| {
        let pool = Pool::<u8>::new(2);
        drop(pool.issue());
        let others = pool.clone();
        let other = thread::spawn(move || {
            let first = others.issue();
            let second = others.issue();
            drop(first);
            second
        });
        let mine = [pool.issue(), pool.issue()];
        let theirs = other.join().expect("no panic");
        let held = mine.into_iter().chain([theirs]).flatten();
        let mut tickets = Vec::new();
        for ((completer, ticket), value) in held.zip(0..) {
            completer.complete(value);
            tickets.push(ticket);
        }
        for (ticket, value) in tickets.into_iter().zip(0..) {
            assert_eq!(ticket.wait(), Some(value), "a cell of its own");
        }
    });
}

#[test]
fn loom_ticket_a_block_completed_by_two_threads_wakes_once_complete() {
    explore(|| {
        let pool = Pool::new(2);
        let (mut completers, block) = pool.issue_block(2).expect("a block is free");
        let first = completers.next().expect("two of them");
        let second = completers.next().expect("two of them");
        let one = thread::spawn(move || first.complete(1));
        let other = thread::spawn(move || second.complete(2));
        assert!(block.wait().eq([Some(1), Some(2)]));
        one.join().expect("no panic");
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_a_batch_ends_its_block_and_wakes_the_waiter() {
    explore(|| {
        let pool = Pool::new(2);
        let (completers, block) = pool.issue_block(2).expect("a block is free");
        let other = thread::spawn(move || {
            let mut batch = CompletionBatch::new();
            for (value, completer) in completers.enumerate() {
                batch.complete(completer, value);
            }
        });
        assert!(block.wait().eq([Some(0), Some(1)]));
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_a_dropped_block_is_emptied_once() {
    explore(|| {
        let value = StdArc::new(());
        let pool = Pool::new(2);
        let (completers, block) = pool.issue_block(2).expect("a block is free");
        let other = {
            let value = StdArc::clone(&value);
            thread::spawn(move || {
                completers.for_each(|entry| entry.complete(StdArc::clone(&value)))
            })
        };
        drop(block);
        other.join().expect("no panic");
        assert_eq!(StdArc::strong_count(&value), 1);
        assert!(pool.issue_block(2).is_some(), "the block came back");
    });
}

/// Loom's `Arc` reports the core as leaked, or as used after free, if the count is wrong.
#[test]
fn loom_ticket_the_core_is_freed_by_whoever_goes_last() {
    explore(|| {
        let pool = Pool::new(2);
        let (completer, ticket) = pool.issue().expect("a cell is free");
        let (orphan, dropped) = pool.issue().expect("a cell is free");
        let one = thread::spawn(move || {
            completer.complete(1);
            drop(orphan);
        });
        let other = thread::spawn(move || drop(pool));
        drop(dropped);
        assert_eq!(ticket.wait(), Some(1));
        one.join().expect("no panic");
        other.join().expect("no panic");
    });
}

#[test]
fn loom_ticket_two_threads_never_hold_one_cell() {
    explore(|| {
        let pool = Pool::new(2);
        let others = pool.clone();
        let turn = |pool: &Pool<u64>, value: u64| {
            for round in 0..2 {
                let (completer, ticket) = pool.issue().expect("a cell each");
                completer.complete(value + round);
                assert_eq!(ticket.wait(), Some(value + round));
            }
        };
        let other = thread::spawn(move || turn(&others, 10));
        turn(&pool, 20);
        other.join().expect("no panic");
    });
}
