//! [`KafkaSource`]: feeds the requests of one partition to an engine, and sends its decisions back.
//!
//! ```text
//! reader    poll 10 ms, then whatever is there ─► decode ─► submit_run ──► engine
//!                                                   └► dead letter            │ answers, once durable
//! replier   ◄──────────── runs in order, at most `runs_max` ──────────────────┘
//!           └► reply per request
//! watcher   twice a second: the lag, and how far it is as a copy to the consumer group, if it has moved or the copy is behind
//! ```
//!
//! Every message becomes one command with the offset after it, also one that can't be read (a query that changes nothing): so the
//! stored position is always the offset up to which everything is dealt with. Dead letters of a run have arrived before the run is
//! submitted, unless their topic can't be written to: then nobody waits for them. A full engine makes the reader wait for answers;
//! it polls nothing meanwhile.
//!
//! The copy is the stored position, and as its metadata, in decimal, the offset up to which everybody was [`told`](Told).

mod reader;
mod replier;
mod told;

use super::cluster::{self, KafkaCluster, KafkaError, Producer};
use super::request::ReplyTo;
use crate::types::{Answers, SourcePosition, Submit};
use parking_lot::Mutex;
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use reader::Reader;
use replier::Replier;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::mpsc::sync_channel;
use std::thread::JoinHandle;
use std::time::Duration;
use told::Told;

/// How long the threads wait for something to do before they look around.
const POLL: Duration = Duration::from_millis(10);
/// How long one question to the cluster may take before it is asked again.
const ASK: Duration = Duration::from_secs(5);
/// How long a reply is tried: whoever asked has given up by then.
const REPLY_WITHIN: Duration = Duration::from_secs(10);
/// How often the lag is computed and the position copied to the consumer group.
const COPY_EVERY: Duration = Duration::from_millis(500);
/// What a delivery was, see `Deliveries`: this, or a reply to the run that ends there.
const DEAD_LETTER: usize = 0;

/// Which topics, which partition, how much at once.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct SourceOptions {
    /// The topic of requests. One that is made anew under the same name begins at offset 0 again, before the log's position: give
    /// it a new name, or say [where to go on](KafkaSource::begin_at) before it is used.
    pub requests: String,
    /// The partition: the engine's shard.
    pub partition: i32,
    /// The topic of replies.
    pub replies: String,
    /// The topic of messages that can't be read.
    pub dead_letters: String,
    /// The consumer group that the position is copied to, so that others see the lag. It decides nothing.
    pub group: String,
    /// Messages that are submitted together at most (512).
    pub run_max: usize,
    /// Runs whose answers are outstanding at most (16).
    pub runs_max: usize,
}

impl SourceOptions {
    /// One partition, under the names that everything else has by default.
    pub fn new(partition: u16) -> Self {
        Self {
            requests: "reservation-requests".into(),
            partition: partition.into(),
            replies: "reservation-replies".into(),
            dead_letters: "reservation-dead-letters".into(),
            group: "stockade".into(),
            run_max: 512,
            runs_max: 16,
        }
    }

    /// The number of this partition in [`BatchHeader::sources`](crate::types::BatchHeader::sources): 64 bits of BLAKE3 over its
    /// topic and number.
    pub fn source_id(&self) -> u64 {
        let name = format!("kafka\0{}\0{}", self.requests, self.partition);
        let mut bytes = [0; 8];
        let hash = blake3::hash(name.as_bytes());
        bytes.copy_from_slice(&hash.as_bytes()[..8]);
        u64::from_le_bytes(bytes)
    }
}

/// What a source does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum SourceState {
    /// Reads, or tries to: the text says what keeps it from reading just now.
    Running(Option<String>),
    /// It was stopped, or its engine has ended.
    Ended,
    /// It can't go on without losing messages; the text says why and what to do, which a program of your own does by
    /// [`KafkaSource::begin_at`].
    Halted(String),
}

/// How a source is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SourceStatus {
    /// What it does.
    pub state: SourceState,
    /// The offset up to which everything is decided and durable.
    pub position: u64,
    /// Messages in the partition that are not: alert above 10,000.
    pub lag: u64,
    /// Messages that could not be read.
    pub dead_letters: u64,
    /// Dead letters that did not arrive: their topic is missing or takes none that long. What they held is in the partition still,
    /// as long as it keeps messages; mend the topic.
    pub dead_letters_lost: u64,
    /// Replies that could not be delivered: whoever asked asks again.
    pub replies_lost: u64,
}

/// Feeds one partition to one engine until it is dropped, halts, or the engine ends.
pub struct KafkaSource {
    shared: Arc<Shared>,
    reader: Option<JoinHandle<()>>,
    replier: Option<JoinHandle<()>>,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    options: SourceOptions,
    consumer: BaseConsumer,
    producer: Producer,
    state: Mutex<SourceState>,
    stop: AtomicBool,
    position: AtomicU64,
    told: Arc<Told>,
    lag: AtomicU64,
    dead_letters: AtomicU64,
    counts: Arc<Counts>,
}

#[derive(Default)]
struct Counts {
    dead_letters_lost: AtomicU64,
    replies_lost: AtomicU64,
}

/// A run on its way through the engine.
struct Sent {
    answers: Box<dyn Answers>,
    /// Where each answer goes.
    to: Vec<Option<ReplyTo>>,
    /// The offset after its last message.
    end: u64,
}

impl KafkaSource {
    /// Starts to read where the engine's log says. A cluster that doesn't answer is waited for.
    ///
    /// # Errors
    /// A setting that can't be, or no thread.
    pub fn start(
        cluster: &KafkaCluster,
        options: SourceOptions,
        engine: impl Submit + 'static,
    ) -> Result<Self, KafkaError> {
        let counts = Arc::new(Counts::default());
        let counted = Arc::clone(&counts);
        let told = Arc::new(Told::default());
        let arrived = Arc::clone(&told);
        let producer = cluster.producer(
            REPLY_WITHIN,
            Box::new(move |result, tag| {
                let lost = match tag {
                    DEAD_LETTER => &counted.dead_letters_lost,
                    _ => &counted.replies_lost,
                };
                lost.fetch_add(u64::from(result.is_err()), Ordering::Relaxed);
                if tag != DEAD_LETTER {
                    arrived.arrived(tag as u64);
                }
            }),
        )?;
        let shared = Arc::new(Shared {
            consumer: cluster.consumer(&options.group)?,
            producer,
            state: Mutex::new(SourceState::Running(None)),
            stop: AtomicBool::new(false),
            position: AtomicU64::new(0),
            told,
            lag: AtomicU64::new(0),
            dead_letters: AtomicU64::new(0),
            counts,
            options,
        });
        let engine: Arc<dyn Submit> = Arc::new(engine);
        let (sender, receiver) = sync_channel(shared.options.runs_max.max(1));
        let mut source = Self {
            shared: Arc::clone(&shared),
            reader: None,
            replier: None,
            watcher: None,
        };
        let name = |role| format!("kafka-{role}-{}", shared.options.partition);
        let reader = Reader::new(Arc::clone(&shared), Arc::clone(&engine), sender);
        let reader = spawn(name("reader"), move || reader.run_to_end())?;
        let replier = Replier {
            shared: Arc::clone(&shared),
            engine,
            reader: reader.thread().clone(),
        };
        source.reader = Some(reader);
        source.replier = Some(spawn(name("replier"), move || replier.run(&receiver))?);
        let watched = Arc::clone(&shared);
        source.watcher = Some(spawn(name("watcher"), move || watched.watch())?);
        Ok(source)
    }

    /// Lets a partition's requests go on at `offset`: an operator's answer to a source that halted, who knows what became of the
    /// messages between. The log has it once this returns; then start a source. From an offset before the log's position,
    /// messages are decided that may have been decided already: their keys say so.
    ///
    /// # Errors
    /// `Unavailable` if the cluster or the engine doesn't answer within `timeout`; `Setting` if the topic doesn't hold that offset,
    /// or holds the one where the log stands: then nothing halts a source.
    pub fn begin_at(
        cluster: &KafkaCluster,
        options: &SourceOptions,
        offset: u64,
        engine: &dyn Submit,
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let (topic, partition) = (&options.requests, options.partition);
        let consumer = cluster.consumer(&options.group)?;
        let bounds = cluster::bounds(&consumer, topic, partition, timeout);
        let (low, high) = bounds.map_err(|error| KafkaError::unavailable(&error))?;
        let (low, high) = (low.unsigned_abs(), high.unsigned_abs());
        let cannot = |what: String| {
            Err(KafkaError::Setting(format!(
                "{topic}/{partition} holds {low} to {high}, and {what}"
            )))
        };
        let source = options.source_id();
        match engine.position(source) {
            Some(stands) if (low..=high).contains(&stands) => {
                return cannot(format!(
                    "the log stands at {stands}: it goes on there by itself"
                ));
            }
            _ if !(low..=high).contains(&offset) => return cannot(format!("not {offset}")),
            _ => {}
        }
        let to = SourcePosition {
            source,
            position: offset,
        };
        let moved = engine.move_source(to);
        let moved = moved.map_err(|error| KafkaError::Unavailable(error.to_string()))?;
        match moved.wait(timeout) {
            Ok(answers) if answers.iter().all(Option::is_some) => Ok(()),
            _ => Err(KafkaError::Unavailable(
                "the engine doesn't say that it has committed it: see its log, then do it again"
                    .into(),
            )),
        }
    }

    /// How it is.
    pub fn status(&self) -> SourceStatus {
        let shared = &self.shared;
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let mut state = shared.state.lock().clone();
        let has_ended = self.reader.as_ref().is_some_and(JoinHandle::is_finished);
        if has_ended && matches!(state, SourceState::Running(_)) {
            state = SourceState::Halted("the reader has panicked: see its message".into());
        }
        SourceStatus {
            state,
            position: shared.position.load(Ordering::Acquire),
            lag: load(&shared.lag),
            dead_letters: load(&shared.dead_letters),
            dead_letters_lost: load(&shared.counts.dead_letters_lost),
            replies_lost: load(&shared.counts.replies_lost),
        }
    }

    /// Reads no more, and sends the replies to what it has submitted. Dropping it does the same.
    pub fn stop(mut self) -> SourceStatus {
        self.end();
        self.status()
    }

    fn end(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        // A thread that panicked has ended too; what it leaves undone, its successor reads again.
        let threads = [self.reader.take(), self.replier.take(), self.watcher.take()];
        for thread in threads.into_iter().flatten() {
            thread.thread().unpark();
            let _ = thread.join();
        }
    }
}

impl Drop for KafkaSource {
    fn drop(&mut self) {
        self.end();
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> Result<JoinHandle<()>, KafkaError> {
    let spawned = std::thread::Builder::new().name(name).spawn(run);
    spawned.map_err(|error| KafkaError::System(format!("a thread can't be started: {error}")))
}

impl Shared {
    fn is_stopped(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// What keeps it from reading, or nothing.
    fn waits(&self, why: Option<String>) {
        let mut state = self.state.lock();
        if let SourceState::Running(reason) = &mut *state
            && *reason != why
        {
            *reason = why;
        }
    }

    /// Tells others how far this partition is.
    fn watch(&self) {
        let mut copied = (0, 0);
        while !self.is_stopped() {
            let position = self.position.load(Ordering::Acquire);
            let copy = (position, self.told.position());
            let answers = self.measure(position);
            self.count();
            if answers
                && (copy != copied || self.is_copy_behind(copy))
                && let Ok(list) = self.copy(copy)
                // Only a copy: one that fails is found behind, and followed by the next.
                && self.consumer.commit(&list, CommitMode::Async).is_ok()
            {
                copied = copy;
            }
            std::thread::park_timeout(COPY_EVERY);
        }
    }

    /// Whether the group says less than a position that stands still: a copy didn't arrive, or a former writer's came late. One
    /// that says more is a successor's, and left: whoever is cut off from the log stands still for long.
    fn is_copy_behind(&self, (position, told): (u64, u64)) -> bool {
        let list = self.partition(position);
        let found = list.and_then(|list| {
            let answered = self.consumer.committed_offsets(list, ASK);
            answered.map_err(|error| error.to_string())
        });
        found.is_ok_and(|list| {
            let SourceOptions {
                requests,
                partition,
                ..
            } = &self.options;
            let found = list.find_partition(requests, *partition);
            let (at, all_told) = found.map_or((0, 0), |found| cluster::copied(&found));
            at < position || (at == position && all_told < told)
        })
    }

    /// What is copied to the group.
    fn copy(&self, (position, told): (u64, u64)) -> Result<TopicPartitionList, String> {
        let list = self.partition(position)?;
        let SourceOptions {
            requests,
            partition,
            ..
        } = &self.options;
        if let Some(mut copy) = list.find_partition(requests, *partition) {
            copy.set_metadata(told.to_string());
        }
        Ok(list)
    }

    /// How many messages could not be read, and how many of those are only in the partition still.
    fn count(&self) {
        let SourceOptions {
            requests,
            partition,
            ..
        } = &self.options;
        for (name, counter) in [
            ("stockade_kafka_dead_letters", &self.dead_letters),
            (
                "stockade_kafka_dead_letters_lost",
                &self.counts.dead_letters_lost,
            ),
        ] {
            let count = counter.load(Ordering::Relaxed);
            cluster::meter(name, requests, *partition, count);
        }
    }

    /// How far the topic is ahead of a position. A cluster that doesn't answer leaves the lag as it was; false.
    fn measure(&self, position: u64) -> bool {
        let SourceOptions {
            requests,
            partition,
            ..
        } = &self.options;
        let Ok((_, high)) = cluster::bounds(&self.consumer, requests, *partition, ASK) else {
            return false;
        };
        let lag = high.unsigned_abs().saturating_sub(position);
        self.lag.store(lag, Ordering::Relaxed);
        // It answers: whatever kept the reader from reading has passed.
        self.waits(None);
        cluster::meter("stockade_kafka_lag", requests, *partition, lag);
        true
    }

    fn partition(&self, offset: u64) -> Result<TopicPartitionList, String> {
        let mut list = TopicPartitionList::new();
        let offset = Offset::Offset(offset.try_into().unwrap_or(i64::MAX));
        list.add_partition_offset(&self.options.requests, self.options.partition, offset)
            .map_err(|error| error.to_string())?;
        Ok(list)
    }
}
