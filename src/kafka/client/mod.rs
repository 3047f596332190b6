//! [`KafkaClient`]: the API node's side. Publishes requests to the partition whose writer decides them, and waits for the replies.
//!
//! ```text
//! send ─ which partition? lag? room? ─► producer ─► reservation-requests/p
//!   │                                                      writer of p
//! Pending ◄─ completed by id ◄─ listener ◄─ reservation-replies/own ◄┘
//! ```
//!
//! A node reads one partition of the reply topic, its own, from its end: it waits for nothing that a former life of it asked. Every
//! request in flight has an entry in one bounded map; dropping the [`Pending`] removes it.
//!
//! The watcher asks the cluster once a second how far each writer is behind. While it doesn't answer, or a partition is too far
//! behind, requests are refused at once: a queue of a hundred thousand is an answer too late for everybody. And it sees whose
//! replies will never come, and asks once more.

mod in_flight;
mod watcher;

use super::cluster::{self, KafkaCluster, KafkaError, Producer};
use super::placement::Placement;
use super::reply::{self, Answered, Reply};
use super::request::{self, Body, ReplyTo, Request};
use crate::ticket::{Pool, Ticket};
use crate::types::{Clock, PoolView, SkuName, SystemClock};
use in_flight::{InFlight, Message};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError as RdKafkaError;
use rdkafka::message::Message as _;
use rdkafka::producer::BaseRecord;
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::thread::JoinHandle;
use std::time::Duration;
use watcher::ANSWERS_WITHIN;

/// The listener looks so often whether it is told to stop.
const LISTEN: Duration = Duration::from_millis(50);

/// A request brought no decision.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum AskError {
    /// The cart's SKUs have different writers, and no cart has two: split it. (400)
    #[error("{first} and {other} are sold by different writers: order them apart")]
    CrossGroup {
        /// One SKU.
        first: SkuName,
        /// One that another writer sells.
        other: SkuName,
    },
    /// The SKU has several pools, and the request is about none of them by itself: say which, with
    /// [`send_to`](KafkaClient::send_to). (400)
    #[error("{sku} is sold from {pools} pools: say which one this is for")]
    WhichPool {
        /// The SKU.
        sku: SkuName,
        /// How many it has.
        pools: usize,
    },
    /// That shard does not sell the SKU: its reservation or transfer is another one's. (404)
    #[error("{sku} is not sold by shard {shard}")]
    NotSoldThere {
        /// The SKU.
        sku: SkuName,
        /// The shard.
        shard: u16,
    },
    /// Another shard decides that: [`send`](KafkaClient::send) finds it. (400)
    #[error("that is decided by shard {shard}: send it there")]
    OtherShard {
        /// The one that does.
        shard: u32,
    },
    /// The reservation is no writer's that this node knows. (404)
    #[error("shard {shard} is none of the {partitions} that there are")]
    UnknownShard {
        /// The reservation's shard.
        shard: u16,
        /// How many there are.
        partitions: u32,
    },
    /// Too many requests of this node are in flight. Nothing was sent: try again later. (503)
    #[error("{max} requests are in flight: try again later")]
    Busy {
        /// The most.
        max: usize,
    },
    /// The writer is too far behind. Nothing was sent: try again later. (503)
    #[error("the writer is {lag} requests behind: try again later")]
    Lagging {
        /// Requests that wait for it.
        lag: u64,
    },
    /// Kafka doesn't answer. Nothing was sent: try again later. (503)
    #[error("Kafka can't be used just now: {0}; try again later")]
    Unavailable(String),
    /// No reply came. It may have been decided: ask again with the same key, which gives the truth. (503)
    #[error("the outcome is unknown: ask again with the same key")]
    Unknown,
}

/// Topics, this node's partition, limits.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct ClientOptions {
    /// The topic of requests.
    pub requests: String,
    /// The topic of replies.
    pub replies: String,
    /// This node's own partition of it: no two nodes have the same.
    pub reply_partition: i32,
    /// The consumer group under which writers copy their positions.
    pub group: String,
    /// Which writer sells what.
    pub placement: Placement,
    /// Requests in flight at most (65,536); their messages are kept until they are answered. The last quarter is for what ends or pays what was begun: reservations are refused
    /// before.
    pub in_flight_max: usize,
    /// Reservations and payments are not begun with a writer that is further behind (100,000).
    pub lag_max: u64,
}

impl ClientOptions {
    /// Under the names that everything else has by default.
    pub fn new(reply_partition: i32, placement: Placement) -> Self {
        Self {
            requests: "reservation-requests".into(),
            replies: "reservation-replies".into(),
            reply_partition,
            group: "stockade".into(),
            placement,
            in_flight_max: 65_536,
            lag_max: 100_000,
        }
    }

    /// With so many in flight, reservations are refused.
    fn reservations_max(&self) -> usize {
        self.in_flight_max - self.in_flight_max / 4
    }
}

/// Asks writers through Kafka; shared by an API node's threads and tasks.
pub struct KafkaClient {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<()>>,
}

struct Shared {
    options: ClientOptions,
    node: u64,
    next_id: AtomicU64,
    in_flight: Arc<InFlight>,
    pool: Pool<Answered>,
    producer: Producer,
    listener: BaseConsumer,
    watcher: BaseConsumer,
    time: SystemClock,
    /// Requests that each partition's writer is behind.
    lags: Vec<AtomicU64>,
    /// The offset up to which this node has heard replies.
    heard: AtomicI64,
    asked_again: AtomicU64,
    /// Why requests are refused, if they are.
    trouble: Mutex<Option<String>>,
    stop: AtomicBool,
}

/// Waits for a reply: by blocking, or as a future. Dropping it withdraws nothing.
#[must_use = "the reply comes through it; dropping it cancels nothing"]
pub struct Pending {
    ticket: Option<Ticket<Answered>>,
    entry: Entry,
}

/// Its place in the map, given up when it is dropped.
struct Entry {
    id: u64,
    in_flight: Arc<InFlight>,
}

impl Drop for Entry {
    fn drop(&mut self) {
        self.in_flight.give_up(self.id);
    }
}

impl Pending {
    /// Blocks for at most `timeout`.
    ///
    /// # Errors
    /// [`AskError::Unknown`] if no reply came.
    pub fn wait(self, timeout: Duration) -> Result<Reply, AskError> {
        self.answered(timeout).and_then(decided)
    }

    fn answered(mut self, timeout: Duration) -> Result<Answered, AskError> {
        let ticket = self.ticket.take().ok_or(AskError::Unknown)?;
        let replied = ticket.wait_timeout(timeout);
        replied.ok().flatten().ok_or(AskError::Unknown)
    }

    /// The number of the request within this node, for logs.
    pub fn id(&self) -> u64 {
        self.entry.id
    }
}

impl Future for Pending {
    type Output = Result<Reply, AskError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let Some(ticket) = self.ticket.as_mut() else {
            return Poll::Ready(Err(AskError::Unknown));
        };
        let polled = Pin::new(ticket).poll(context);
        polled.map(|answered| answered.ok_or(AskError::Unknown).and_then(decided))
    }
}

/// A view is no decision: no writer replies so.
fn decided(answered: Answered) -> Result<Reply, AskError> {
    match answered {
        Answered::Decided(reply) => Ok(reply),
        Answered::Pool(_) => Err(AskError::Unknown),
    }
}

impl KafkaClient {
    /// Finds this node's place in the reply topic and starts to listen.
    ///
    /// # Errors
    /// If the cluster doesn't answer within `timeout`, a setting can't be, or the request topic has other partitions than the
    /// placement.
    pub fn start(
        cluster: &KafkaCluster,
        options: ClientOptions,
        timeout: Duration,
    ) -> Result<Self, KafkaError> {
        let mut node = [0; 8];
        getrandom::fill(&mut node).map_err(|error| KafkaError::System(error.to_string()))?;
        let in_flight = Arc::new(InFlight::default());
        let sent = Arc::clone(&in_flight);
        let producer = cluster.producer(
            // Whoever waits has given up by then.
            Duration::from_secs(10),
            Box::new(move |result, id| match result {
                Ok(offset) => sent.arrived(id as u64, offset),
                // Its caller hears at once that the outcome is unknown.
                Err(_) => sent.failed(id as u64),
            }),
        )?;
        // The listener's group is nobody's: it commits nothing.
        let listener = cluster.consumer(&format!("{}-replies", options.group))?;
        let watcher = cluster.consumer(&options.group)?;
        let partitions = options.placement.partitions();
        let shared = Arc::new(Shared {
            node: u64::from_le_bytes(node),
            next_id: AtomicU64::new(1),
            pool: Pool::new(options.in_flight_max.max(1)),
            in_flight,
            producer,
            listener,
            watcher,
            time: SystemClock::new(),
            lags: (0..partitions).map(|_| AtomicU64::new(0)).collect(),
            heard: AtomicI64::new(0),
            asked_again: AtomicU64::new(0),
            trouble: Mutex::new(None),
            stop: AtomicBool::new(false),
            options,
        });
        shared.begin(timeout)?;
        let mut client = Self {
            shared: Arc::clone(&shared),
            threads: Vec::new(),
        };
        let listening = Arc::clone(&shared);
        client.spawn("kafka-listener", move || listening.listen())?;
        client.spawn("kafka-watcher", move || shared.watch())?;
        Ok(client)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<(), KafkaError> {
        let spawned = std::thread::Builder::new().name(name.into()).spawn(run);
        let thread = spawned
            .map_err(|error| KafkaError::System(format!("a thread can't be started: {error}")))?;
        self.threads.push(thread);
        Ok(())
    }

    /// Sends a request to its writer.
    ///
    /// # Errors
    /// Why it was not sent.
    pub fn send(&self, request: &Request) -> Result<Pending, AskError> {
        let partition = self.shared.options.placement.place(request)?;
        self.send_request(request, partition)
    }

    /// Sends a request to the writer of one pool: for what an administrator does to a SKU that has several, in each of them by
    /// itself.
    ///
    /// # Errors
    /// Why it was not sent.
    pub fn send_to(&self, shard: u16, request: &Request) -> Result<Pending, AskError> {
        let partition = self.shared.options.placement.place_at(request, shard)?;
        self.send_request(request, partition)
    }

    /// Asks the writer of a shard how a SKU stands there, and what has moved between it and other shards; blocks for its reply.
    /// It is as of the moment at which the writer came to the question, after all that was sent to it from here before. `None`
    /// if the SKU is not defined there.
    ///
    /// # Errors
    /// Why it was not asked, or that no reply came.
    pub fn pool(
        &self,
        shard: u16,
        sku: &SkuName,
        timeout: Duration,
    ) -> Result<Option<PoolView>, AskError> {
        let partition = self.shared.options.placement.seller(sku, shard)?;
        self.shared.is_well()?;
        let room = self.shared.options.in_flight_max;
        let ask = |to| request::encode_pool(sku, to);
        let pending = self.put_in_line(partition, room, Some(sku), ask)?;
        match pending.answered(timeout)? {
            Answered::Pool(view) => Ok(view),
            Answered::Decided(_) => Err(AskError::Unknown),
        }
    }

    fn send_request(&self, request: &Request, partition: u32) -> Result<Pending, AskError> {
        self.shared.admit(request, partition)?;
        let options = &self.shared.options;
        let room = match request.body {
            Body::Reserve { .. } => options.reservations_max(),
            _ => options.in_flight_max,
        };
        self.put_in_line(partition, room, request.skus().next(), |to| {
            request::encode(request, Some(to))
        })
    }

    /// Takes it in and sends it, unless so many are in flight already.
    fn put_in_line(
        &self,
        partition: u32,
        room: usize,
        sku: Option<&SkuName>,
        encode: impl FnOnce(ReplyTo) -> Vec<u8>,
    ) -> Result<Pending, AskError> {
        let shared = &self.shared;
        let id = shared.next_id.fetch_add(1, Ordering::Relaxed);
        let max = shared.options.in_flight_max;
        let (completer, ticket) = shared.pool.issue().ok_or(AskError::Busy { max })?;
        // Whoever finds no room costs little.
        if shared.in_flight.len() >= room {
            return Err(AskError::Busy { max });
        }
        let group = sku.map_or("", |sku| shared.options.placement.group_of(sku));
        let message = Arc::new(Message {
            partition,
            key: group.to_owned(),
            payload: encode(ReplyTo {
                node: shared.node,
                partition: shared.options.reply_partition,
                id,
            }),
        });
        let added = shared.in_flight.add(id, completer, &message, room);
        added.map_err(|_| AskError::Busy { max })?;
        let pending = Pending {
            ticket: Some(ticket),
            entry: Entry {
                id,
                in_flight: Arc::clone(&shared.in_flight),
            },
        };
        let sent = shared.transmit(id, &message);
        sent.map_err(|error| AskError::Unavailable(error.to_string()))?;
        Ok(pending)
    }

    /// Sends a request and blocks for its reply.
    ///
    /// # Errors
    /// Why it was not sent, or that no reply came.
    pub fn ask(&self, request: &Request, timeout: Duration) -> Result<Reply, AskError> {
        self.send(request)?.wait(timeout)
    }

    /// Which writer sells what.
    pub fn placement(&self) -> &Placement {
        &self.shared.options.placement
    }

    /// Requests that each partition's writer is behind, as of the last second: alert above 10,000.
    pub fn lags(&self) -> Vec<u64> {
        let lags = self.shared.lags.iter();
        lags.map(|lag| lag.load(Ordering::Relaxed)).collect()
    }

    /// Whether fewer requests are in flight than keep a reservation from being sent: so that whoever is refused for want of room
    /// costs little. [`send`](Self::send) asks again.
    pub fn has_room(&self) -> bool {
        let shared = &self.shared;
        shared.in_flight.len() < shared.options.reservations_max()
    }

    /// Requests that wait for a reply.
    pub fn in_flight(&self) -> usize {
        self.shared.in_flight.len()
    }

    /// Requests that were sent once more, since they were dealt with and no reply will come: mostly because their writer had ended
    /// in between.
    pub fn asked_again(&self) -> u64 {
        self.shared.asked_again.load(Ordering::Relaxed)
    }

    /// Why requests are refused just now, if they are.
    pub fn trouble(&self) -> Option<String> {
        self.shared.trouble.lock().clone()
    }
}

impl Drop for KafkaClient {
    /// Whoever still waits hears that the outcome is unknown.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        for thread in self.threads.drain(..) {
            thread.thread().unpark();
            let _ = thread.join();
        }
        self.shared.in_flight.give_up_all();
    }
}

impl Shared {
    fn begin(&self, timeout: Duration) -> Result<(), KafkaError> {
        let options = &self.options;
        let unavailable = |error| KafkaError::unavailable(&error);
        let metadata = self
            .watcher
            .fetch_metadata(Some(&options.requests), timeout)
            .map_err(unavailable)?;
        let partitions = metadata
            .topics()
            .first()
            .map_or(0, |t| t.partitions().len());
        if partitions != self.lags.len() {
            return Err(KafkaError::Setting(format!(
                "{} has {partitions} partitions, the placement {}: make them agree",
                options.requests,
                self.lags.len()
            )));
        }
        let until = self.time.monotonic().saturating_add(timeout);
        loop {
            match self.hear(timeout) {
                Err(error) if cluster::is_leaderless(&error) && self.time.monotonic() < until => {
                    std::thread::park_timeout(LISTEN);
                }
                heard => return heard.map_err(unavailable),
            }
        }
    }

    /// Listens from the end of its place in the reply topic on.
    fn hear(&self, timeout: Duration) -> Result<(), RdKafkaError> {
        let ClientOptions {
            replies,
            reply_partition,
            ..
        } = &self.options;
        let (_, end) = cluster::bounds(&self.listener, replies, *reply_partition, timeout)?;
        self.heard.store(end, Ordering::Release);
        let mut own = TopicPartitionList::new();
        own.add_partition_offset(replies, *reply_partition, Offset::Offset(end))?;
        self.listener.assign(&own)
    }

    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    fn is_well(&self) -> Result<(), AskError> {
        let trouble = self.trouble.lock().clone();
        trouble.map_or(Ok(()), |trouble| Err(AskError::Unavailable(trouble)))
    }

    /// Refuses what would wait too long.
    fn admit(&self, request: &Request, partition: u32) -> Result<(), AskError> {
        self.is_well()?;
        let lag = self.lags.get(partition as usize);
        let lag = lag.map_or(0, |lag| lag.load(Ordering::Relaxed));
        // What ends something that was begun may wait.
        let begins = matches!(
            request.body,
            Body::Reserve { .. } | Body::BeginPayment { .. }
        );
        if begins && lag > self.options.lag_max {
            return Err(AskError::Lagging { lag });
        }
        Ok(())
    }

    fn listen(&self) {
        let is_own = |node| node == self.node;
        let mut is_lost = false;
        while !self.is_stopped() {
            self.producer.poll(Duration::ZERO);
            if is_lost {
                is_lost = self.hear(ANSWERS_WITHIN).is_err();
            }
            let message = match self.listener.poll(LISTEN) {
                Some(Ok(message)) => message,
                Some(Err(error)) => {
                    // Whoever waits for a reply that is gone asks again. Other errors pass, or the watcher sees them too.
                    is_lost |= cluster::is_outside(&error);
                    continue;
                }
                None => continue,
            };
            let read = reply::decode(message.payload().unwrap_or_default());
            if let Ok((node, id, reply)) = read
                && is_own(node)
            {
                self.in_flight.complete(id, reply);
            }
            self.heard.store(message.offset() + 1, Ordering::Release);
        }
    }

    fn transmit(&self, id: u64, message: &Message) -> Result<(), RdKafkaError> {
        let tag = usize::try_from(id).unwrap_or_default();
        let record = BaseRecord::with_opaque_to(&self.options.requests, tag)
            .partition(i32::try_from(message.partition).unwrap_or_default())
            .key(message.key.as_str())
            .payload(message.payload.as_slice());
        self.producer.send(record).map_err(|(error, _)| error)
    }
}
