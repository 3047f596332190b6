//! The queues under test, ours and its peers, behind one trait. The disruptor, which drives its
//! consumer itself, is in `main.rs`.

use std::sync::{Arc, mpsc};

use stockade::ring::{Consumer, Producer, Wake, ring};

pub(crate) type Payload = [u64; 8];

pub(crate) const DRAIN_MAX: usize = 256;

pub(crate) fn payload(value: u64) -> Payload {
    [value, 1, 2, 3, 4, 5, 6, !value]
}

/// What every payload adds up to; reads its first and its last word.
pub(crate) fn check(payload: &Payload) -> u64 {
    assert_eq!(payload[7], !payload[0], "a torn payload");
    payload[0]
}

/// A queue with one consumer.
pub(crate) trait Queue: Sized {
    const NAME: &'static str;
    const BLOCKS: bool = true;
    type Sender: Clone + Send;
    type Receiver: Send;

    fn make(capacity: usize) -> (Self::Sender, Self::Receiver);
    fn push(sender: &Self::Sender, payload: Payload) -> bool;
    /// Takes up to `DRAIN_MAX`; with `block` it may wait for the first. Returns count and checksum.
    fn drain(receiver: &mut Self::Receiver, block: bool) -> (u64, u64);
}

/// The drain of queues that give one value at a time.
fn drain_singly(mut take: impl FnMut() -> Option<Payload>) -> (u64, u64) {
    let (mut count, mut sum) = (0, 0_u64);
    while count < DRAIN_MAX as u64 {
        let Some(payload) = take() else { break };
        count += 1;
        sum = sum.wrapping_add(check(&payload));
    }
    (count, sum)
}

pub(crate) fn sum_of(run: &mut Vec<Payload>) -> (u64, u64) {
    let sum = run
        .iter()
        .fold(0_u64, |sum, payload| sum.wrapping_add(check(payload)));
    let count = run.len() as u64;
    run.clear();
    (count, sum)
}

pub(crate) struct Stockade;
impl Queue for Stockade {
    const NAME: &'static str = "stockade";
    type Sender = Producer<Payload>;
    type Receiver = Consumer<Payload>;

    fn make(capacity: usize) -> (Self::Sender, Self::Receiver) {
        ring(capacity)
    }

    fn push(sender: &Self::Sender, payload: Payload) -> bool {
        sender.try_push(payload).is_ok()
    }

    fn drain(consumer: &mut Self::Receiver, block: bool) -> (u64, u64) {
        if block {
            assert_eq!(consumer.wait(None), Wake::Ready);
        }
        let mut sum = 0_u64;
        let count = consumer.drain_with(DRAIN_MAX, |payload| {
            sum = sum.wrapping_add(check(&payload));
        });
        (count as u64, sum)
    }
}

pub(crate) struct ArrayQueue;
impl Queue for ArrayQueue {
    const NAME: &'static str = "crossbeam ArrayQueue";
    const BLOCKS: bool = false;
    type Sender = Arc<crossbeam_queue::ArrayQueue<Payload>>;
    type Receiver = Self::Sender;

    fn make(capacity: usize) -> (Self::Sender, Self::Receiver) {
        let queue = Arc::new(crossbeam_queue::ArrayQueue::new(capacity));
        (Arc::clone(&queue), queue)
    }

    fn push(sender: &Self::Sender, payload: Payload) -> bool {
        sender.push(payload).is_ok()
    }

    fn drain(receiver: &mut Self::Receiver, _block: bool) -> (u64, u64) {
        drain_singly(|| receiver.pop())
    }
}

pub(crate) struct Thingbuf;
impl Queue for Thingbuf {
    const NAME: &'static str = "thingbuf";
    type Sender = thingbuf::mpsc::blocking::Sender<Payload>;
    type Receiver = thingbuf::mpsc::blocking::Receiver<Payload>;

    fn make(capacity: usize) -> (Self::Sender, Self::Receiver) {
        thingbuf::mpsc::blocking::channel(capacity)
    }

    fn push(sender: &Self::Sender, payload: Payload) -> bool {
        sender.try_send(payload).is_ok()
    }

    fn drain(receiver: &mut Self::Receiver, mut block: bool) -> (u64, u64) {
        drain_singly(|| {
            if std::mem::take(&mut block) {
                receiver.recv()
            } else {
                receiver.try_recv().ok()
            }
        })
    }
}

/// Channels with the same methods.
macro_rules! channel {
    ($queue:ident, $name:literal, $sender:ty, $receiver:ty, $make:expr, $try_send:ident, $take:expr) => {
        pub(crate) struct $queue;
        impl Queue for $queue {
            const NAME: &'static str = $name;
            type Sender = $sender;
            type Receiver = $receiver;

            fn make(capacity: usize) -> (Self::Sender, Self::Receiver) {
                $make(capacity)
            }

            fn push(sender: &Self::Sender, payload: Payload) -> bool {
                sender.$try_send(payload)
            }

            fn drain(receiver: &mut Self::Receiver, mut block: bool) -> (u64, u64) {
                drain_singly(|| {
                    if std::mem::take(&mut block) {
                        receiver.recv().ok()
                    } else {
                        $take(&*receiver)
                    }
                })
            }
        }
    };
}

trait TrySend {
    fn offer(&self, payload: Payload) -> bool;
}
impl TrySend for flume::Sender<Payload> {
    fn offer(&self, payload: Payload) -> bool {
        self.try_send(payload).is_ok()
    }
}
impl TrySend for crossbeam_channel::Sender<Payload> {
    fn offer(&self, payload: Payload) -> bool {
        self.try_send(payload).is_ok()
    }
}
impl TrySend for mpsc::SyncSender<Payload> {
    fn offer(&self, payload: Payload) -> bool {
        self.try_send(payload).is_ok()
    }
}
impl TrySend for kanal::Sender<Payload> {
    fn offer(&self, payload: Payload) -> bool {
        self.try_send(payload).unwrap_or(false)
    }
}

channel!(
    Flume,
    "flume",
    flume::Sender<Payload>,
    flume::Receiver<Payload>,
    flume::bounded,
    offer,
    |receiver: &flume::Receiver<Payload>| receiver.try_recv().ok()
);
channel!(
    Crossbeam,
    "crossbeam-channel",
    crossbeam_channel::Sender<Payload>,
    crossbeam_channel::Receiver<Payload>,
    crossbeam_channel::bounded,
    offer,
    |receiver: &crossbeam_channel::Receiver<Payload>| receiver.try_recv().ok()
);
channel!(
    SyncChannel,
    "std sync_channel",
    mpsc::SyncSender<Payload>,
    mpsc::Receiver<Payload>,
    mpsc::sync_channel,
    offer,
    |receiver: &mpsc::Receiver<Payload>| receiver.try_recv().ok()
);
channel!(
    Kanal,
    "kanal",
    kanal::Sender<Payload>,
    kanal::Receiver<Payload>,
    kanal::bounded,
    offer,
    |receiver: &kanal::Receiver<Payload>| receiver.try_recv().ok().flatten()
);
