//! Models of the ring: every interleaving of at most 3 threads over 2 slots, one property each.
//!
//! `RUSTFLAGS="--cfg stockade_loom" cargo test --profile loom --lib loom_ring`

use std::sync::Arc as StdArc;

use loom::model::Builder;
use loom::thread;

use super::{BulkError, Consumer, Producer, PushError, Wake, ring};

/// Explores `model` with at most 3 preemptions a run: enough for every bug known to need two
/// threads to meet twice, and the models end within seconds.
fn explore(model: impl Fn() + Sync + Send + 'static) {
    let mut builder = Builder::new();
    builder.preemption_bound = Some(3);
    builder.check(model);
}

fn pair<T: Send>() -> (Producer<T>, Consumer<T>) {
    let (producer, mut consumer) = ring(2);
    consumer.set_spins(0);
    (producer, consumer)
}

/// Takes until the ring says that nothing will come.
fn take_all<T: Send>(consumer: &mut Consumer<T>) -> Vec<T> {
    let mut out = Vec::new();
    while consumer.wait(None) == Wake::Ready {
        assert!(
            consumer.drain_into(&mut out, 2) > 0,
            "Ready means that there is something"
        );
    }
    out
}

#[test]
fn loom_ring_two_producers_lose_nothing_and_keep_their_order() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let other = producer.clone();
        let pusher = thread::spawn(move || other.try_push(10).expect("there is room"));
        producer.try_push(20).expect("there is room");
        drop(producer);
        let mut out = take_all(&mut consumer);
        out.sort_unstable();
        assert_eq!(out, [10, 20]);
        pusher.join().expect("no panic");
    });
}

#[test]
fn loom_ring_wraps_around_without_mixing_laps() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let pusher = thread::spawn(move || {
            for value in 0..4 {
                while producer.try_push(value).is_err() {
                    thread::yield_now();
                }
            }
        });
        assert_eq!(take_all(&mut consumer), [0, 1, 2, 3]);
        pusher.join().expect("no panic");
    });
}

#[test]
fn loom_ring_full_is_an_answer_and_frees_are_seen() {
    explore(|| {
        let (producer, mut consumer) = pair();
        producer.try_push(0).expect("there is room");
        producer.try_push(1).expect("there is room");
        let pusher = thread::spawn(move || match producer.try_push(2) {
            Ok(()) => true,
            Err(error) => {
                assert_eq!(error, PushError::Full(2));
                false
            }
        });
        let mut out = Vec::new();
        assert_eq!(consumer.drain_into(&mut out, 2), 2);
        let pushed = pusher.join().expect("no panic");
        out.extend(take_all(&mut consumer));
        assert_eq!(out, if pushed { vec![0, 1, 2] } else { vec![0, 1] });
    });
}

/// The block finds too little room, but leaves the head that it saw for the single push to rest on.
#[test]
fn loom_ring_a_head_seen_by_another_producer_is_enough() {
    explore(|| {
        let (producer, mut consumer) = pair();
        producer
            .try_push_bulk(&mut vec![0, 1])
            .expect("there is room");
        let other = producer.clone();
        let refused = thread::spawn(move || {
            assert_eq!(other.try_push_bulk(&mut vec![8, 9]), Err(BulkError::Full));
        });
        let pusher = thread::spawn(move || producer.try_push(2).is_ok());
        let mut out = Vec::new();
        assert_eq!(consumer.drain_into(&mut out, 1), 1);
        refused.join().expect("no panic");
        let pushed = pusher.join().expect("no panic");
        out.extend(take_all(&mut consumer));
        assert_eq!(out, if pushed { vec![0, 1, 2] } else { vec![0, 1] });
    });
}

#[test]
fn loom_ring_blocks_stay_whole() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let other = producer.clone();
        let pusher = thread::spawn(move || {
            let mut block = vec![1, 2];
            match other.try_push_bulk(&mut block) {
                Ok(()) => assert!(block.is_empty()),
                Err(error) => assert_eq!((error, block), (BulkError::Full, vec![1, 2])),
            }
        });
        let single = producer.try_push(9).is_ok();
        drop(producer);
        let out = take_all(&mut consumer);
        pusher.join().expect("no panic");
        let allowed: [&[i32]; 4] = [&[9], &[1, 2], &[1, 2, 9], &[9, 1, 2]];
        assert!(allowed.contains(&&out[..]), "{out:?}");
        assert_eq!(single, out.contains(&9));
    });
}

#[test]
fn loom_ring_a_push_that_meets_close_is_taken_or_refused() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let pusher = thread::spawn(move || producer.try_push(1).is_ok());
        consumer.close();
        let out = take_all(&mut consumer);
        let accepted = pusher.join().expect("no panic");
        assert_eq!(out.len(), usize::from(accepted));
    });
}

#[test]
fn loom_ring_no_wake_up_is_lost_by_a_push() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let other = producer.clone();
        let pusher = thread::spawn(move || other.try_push(1).expect("there is room"));
        // The producer that stays keeps the wait from ending any other way.
        assert_eq!(consumer.wait(None), Wake::Ready);
        pusher.join().expect("no panic");
        drop(producer);
    });
}

#[test]
fn loom_ring_no_wake_up_is_lost_by_a_notice() {
    explore(|| {
        let (producer, mut consumer) = pair::<u8>();
        let notifier = consumer.notifier();
        let caller = thread::spawn(move || notifier.notify());
        assert_eq!(consumer.wait(None), Wake::Notified);
        caller.join().expect("no panic");
        drop(producer);
    });
}

#[test]
fn loom_ring_no_wake_up_is_lost_by_the_last_producer() {
    explore(|| {
        let (producer, mut consumer) = pair::<u8>();
        let leaver = thread::spawn(move || drop(producer));
        assert_eq!(consumer.wait(None), Wake::Disconnected);
        leaver.join().expect("no panic");
    });
}

#[test]
fn loom_ring_two_wakers_and_two_sleeps_lose_nothing() {
    explore(|| {
        let (producer, mut consumer) = pair();
        let other = producer.clone();
        let pusher = thread::spawn(move || other.try_push(1).expect("there is room"));
        let leaver = thread::spawn(move || producer.try_push(2).expect("there is room"));
        let out = take_all(&mut consumer);
        assert_eq!(out.len(), 2);
        pusher.join().expect("no panic");
        leaver.join().expect("no panic");
    });
}

#[test]
fn loom_ring_drop_frees_everything_exactly_once() {
    explore(|| {
        let alive = StdArc::new(());
        let (producer, mut consumer) = pair();
        let other = producer.clone();
        let value = StdArc::clone(&alive);
        let pusher = thread::spawn(move || drop(other.try_push(value)));
        drop(producer.try_push(StdArc::clone(&alive)));
        let mut out = Vec::new();
        consumer.drain_into(&mut out, 1);
        drop(consumer);
        drop(producer);
        pusher.join().expect("no panic");
        drop(out);
        assert_eq!(StdArc::strong_count(&alive), 1);
    });
}
