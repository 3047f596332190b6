//! What the ring promises to one thread, and under stress to several.
#![expect(
    clippy::disallowed_methods,
    reason = "threads and clocks of these tests are real"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::{BulkError, CAPACITY_MAX, PushError, Wake, ring};

/// Long enough that only a lost wake-up can take so long.
const FOREVER: Option<Duration> = Some(Duration::from_mins(1));

#[test]
fn values_come_out_in_the_order_of_their_pushes() {
    let (producer, mut consumer) = ring(8);
    let mut out = Vec::new();
    for lap in 0..1_000_u32 {
        for offset in 0..5 {
            producer.try_push(lap * 5 + offset).expect("there is room");
        }
        assert_eq!(consumer.drain_into(&mut out, usize::MAX), 5);
    }
    assert!(out.iter().copied().eq(0..5_000));
}

#[test]
fn values_are_handed_out_in_order_across_the_wrap_and_a_panic_keeps_the_rest() {
    let (producer, mut consumer) = ring(8);
    let mut out = Vec::new();
    for lap in 0..100_u32 {
        for offset in 0..7 {
            producer.try_push(lap * 7 + offset).expect("there is room");
        }
        assert_eq!(consumer.drain_with(3, |value| out.push(value)), 3);
        let panicked = catch_unwind(AssertUnwindSafe(|| {
            consumer.drain_with(usize::MAX, |value| {
                out.push(value);
                assert_ne!(value % 7, 4, "the second of four");
            })
        }));
        assert!(panicked.is_err(), "the closure's panic is passed on");
        assert_eq!(consumer.drain_with(usize::MAX, |value| out.push(value)), 2);
    }
    assert!(out.iter().copied().eq(0..700));
    assert!(consumer.is_empty());
}

#[test]
fn capacity_is_rounded_up_to_a_power_of_two_and_to_two() {
    for (asked, given) in [(0, 2), (1, 2), (2, 2), (3, 4), (1_000, 1_024)] {
        assert_eq!(ring::<u8>(asked).0.capacity(), given);
    }
}

#[test]
#[should_panic(expected = "over the limit")]
fn capacity_over_the_limit_is_a_programmers_error() {
    let _ = ring::<u8>(CAPACITY_MAX + 1);
}

#[test]
fn a_full_ring_hands_the_value_back() {
    let (producer, mut consumer) = ring(2);
    producer.try_push("a").expect("there is room");
    producer.try_push("b").expect("there is room");
    assert_eq!(producer.try_push("c"), Err(PushError::Full("c")));
    assert_eq!(producer.len(), 2);

    let mut out = Vec::new();
    assert_eq!(consumer.drain_into(&mut out, 1), 1);
    producer.try_push("c").expect("a slot is free at once");
    assert_eq!(
        producer.try_push("d").map_err(PushError::into_inner),
        Err("d")
    );
}

#[test]
fn a_closed_ring_hands_the_value_back_and_gives_what_it_holds() {
    let (producer, mut consumer) = ring(4);
    producer.try_push(1).expect("there is room");
    consumer.close();
    assert!(producer.is_closed());
    assert_eq!(producer.try_push(2), Err(PushError::Closed(2)));
    assert_eq!(consumer.wait(None), Wake::Ready);
    let mut out = Vec::new();
    consumer.drain_into(&mut out, 256);
    assert_eq!(out, [1]);
    assert_eq!(consumer.wait(None), Wake::Closed);
}

#[test]
fn dropping_the_consumer_closes_the_ring() {
    let (producer, consumer) = ring(4);
    drop(consumer);
    assert_eq!(producer.try_push(1), Err(PushError::Closed(1)));
    assert_eq!(producer.try_push_bulk(&mut vec![1]), Err(BulkError::Closed));
    assert_eq!(producer.try_push_bulk(&mut vec![]), Err(BulkError::Closed));
}

#[test]
fn a_block_is_pushed_whole_or_not_at_all() {
    let (producer, mut consumer) = ring(4);
    let mut block = Vec::with_capacity(9);
    block.extend(0..3);
    producer.try_push_bulk(&mut block).expect("there is room");
    assert!(block.is_empty());
    assert_eq!(block.capacity(), 9);

    block.extend(3..5);
    assert_eq!(producer.try_push_bulk(&mut block), Err(BulkError::Full));
    assert_eq!(block, [3, 4]);
    block.extend(5..8);
    assert_eq!(
        producer.try_push_bulk(&mut block),
        Err(BulkError::TooLong {
            len: 5,
            capacity: 4
        })
    );
    assert_eq!(block, [3, 4, 5, 6, 7]);

    let mut out = Vec::new();
    assert_eq!(consumer.drain_into(&mut out, 256), 3);
    block.pop();
    producer
        .try_push_bulk(&mut block)
        .expect("the whole ring is free");
    assert_eq!(consumer.drain_into(&mut out, 256), 4);
    assert_eq!(out, [0, 1, 2, 3, 4, 5, 6]);
}

#[test]
fn an_empty_block_changes_nothing() {
    let (producer, _consumer) = ring::<u8>(2);
    assert_eq!(producer.try_push_bulk(&mut Vec::new()), Ok(()));
    assert!(producer.is_empty());
}

#[test]
fn a_notice_ends_one_wait() {
    let (_producer, mut consumer) = ring::<u8>(2);
    let notifier = consumer.notifier();
    notifier.notify();
    notifier.clone().notify();
    assert_eq!(consumer.wait(None), Wake::Notified);
    assert_eq!(consumer.wait(Some(Duration::ZERO)), Wake::TimedOut);
}

#[test]
fn a_notice_wakes_a_parked_consumer() {
    let (_producer, mut consumer) = ring::<u8>(2);
    consumer.set_spins(0);
    let notifier = consumer.notifier();
    let consumer = thread::spawn(move || consumer.wait(FOREVER));
    thread::yield_now();
    notifier.notify();
    assert_eq!(
        consumer.join().expect("the consumer must not panic"),
        Wake::Notified
    );
}

#[test]
fn a_wait_ends_with_its_time_out() {
    let (_producer, mut consumer) = ring::<u8>(2);
    let begin = Instant::now();
    let timeout = Duration::from_millis(20);
    assert_eq!(consumer.wait(Some(timeout)), Wake::TimedOut);
    assert!(begin.elapsed() >= timeout);
}

#[test]
fn the_last_producer_to_go_wakes_a_parked_consumer() {
    let (producer, mut consumer) = ring(2);
    consumer.set_spins(0);
    let other = producer.clone();
    let consumer = thread::spawn(move || {
        let first = consumer.wait(FOREVER);
        consumer.drain_into(&mut Vec::new(), 256);
        (first, consumer.wait(FOREVER))
    });
    drop(producer);
    other.try_push(7).expect("there is room");
    drop(other);
    let wakes = consumer.join().expect("the consumer must not panic");
    assert_eq!(wakes, (Wake::Ready, Wake::Disconnected));
}

#[test]
fn what_is_left_is_dropped_once_even_if_a_drop_panics() {
    struct Fussy {
        _alive: Arc<()>,
        panics: bool,
    }
    impl Drop for Fussy {
        fn drop(&mut self) {
            assert!(!self.panics, "a value that panics when dropped");
        }
    }
    let alive = Arc::new(());
    let (producer, consumer) = ring(8);
    for index in 0..6 {
        producer
            .try_push(Fussy {
                _alive: Arc::clone(&alive),
                panics: index == 2,
            })
            .expect("there is room");
    }
    let dropped = catch_unwind(AssertUnwindSafe(|| drop(consumer)));
    assert!(dropped.is_err(), "the panic reaches whoever drops");
    drop(producer);
    assert_eq!(Arc::strong_count(&alive), 1);
}

#[test]
fn a_value_of_no_size_is_counted_too() {
    let (producer, mut consumer) = ring(2);
    producer.try_push(()).expect("there is room");
    producer.try_push(()).expect("there is room");
    assert_eq!(producer.try_push(()), Err(PushError::Full(())));
    assert_eq!(consumer.drain_into(&mut Vec::new(), 256), 2);
}

/// Several producers, single pushes and blocks mixed, a small ring, a consumer that parks at once:
/// every value arrives once, in the order of its producer, and blocks are not broken up.
#[test]
fn nothing_is_lost_repeated_or_reordered_under_stress() {
    const PRODUCERS: usize = 3;
    const VALUES: usize = 60_000;
    const BLOCK: usize = 5;

    let (producer, mut consumer) = ring::<[usize; 8]>(16);
    consumer.set_spins(0);
    thread::scope(|scope| {
        for id in 0..PRODUCERS {
            let producer = producer.clone();
            scope.spawn(move || {
                let mut block = Vec::new();
                for value in (0..VALUES).step_by(BLOCK) {
                    if value % 2 == 0 {
                        block.extend(
                            (value..value + BLOCK).map(|value| [id, value, 1, 0, 0, 0, 0, 0]),
                        );
                        while producer.try_push_bulk(&mut block) == Err(BulkError::Full) {
                            thread::yield_now();
                        }
                        assert!(block.is_empty());
                    } else {
                        for value in value..value + BLOCK {
                            while producer.try_push([id, value, 0, 0, 0, 0, 0, 0]).is_err() {
                                thread::yield_now();
                            }
                        }
                    }
                }
            });
        }
        drop(producer);

        let mut next = [0; PRODUCERS];
        let mut block_of = None;
        let mut run = Vec::new();
        loop {
            match consumer.wait(FOREVER) {
                Wake::Ready => assert!(consumer.drain_into(&mut run, 7) > 0),
                Wake::Disconnected => break,
                other => panic!("unexpected {other:?}"),
            }
            for [id, value, is_block, ..] in run.drain(..) {
                assert_eq!(next[id], value, "lost, repeated or out of order");
                next[id] += 1;
                if let Some(owner) = block_of {
                    assert_eq!(owner, id, "a block was broken up");
                }
                let inside = is_block == 1 && value % BLOCK != BLOCK - 1;
                block_of = inside.then_some(id);
            }
        }
        assert_eq!(next, [VALUES; PRODUCERS]);
    });
}

#[test]
fn closing_under_fire_loses_nothing_that_was_accepted() {
    for _ in 0..200 {
        let (producer, mut consumer) = ring::<usize>(64);
        let accepted: usize = thread::scope(|scope| {
            let pushers: Vec<_> = (0..2)
                .map(|_| {
                    let producer = producer.clone();
                    scope.spawn(move || {
                        let mut accepted = 0;
                        loop {
                            match producer.try_push(accepted) {
                                Ok(()) => accepted += 1,
                                Err(PushError::Full(_)) => thread::yield_now(),
                                Err(PushError::Closed(_)) => return accepted,
                            }
                        }
                    })
                })
                .collect();
            let mut out = Vec::new();
            while out.len() < 100 {
                consumer.wait(FOREVER);
                consumer.drain_into(&mut out, 256);
            }
            consumer.close();
            while consumer.wait(FOREVER) == Wake::Ready {
                consumer.drain_into(&mut out, 256);
            }
            let accepted: usize = pushers
                .into_iter()
                .map(|pusher| pusher.join().expect("no panic"))
                .sum();
            assert_eq!(accepted, out.len());
            accepted
        });
        assert!(accepted >= 100);
    }
}
