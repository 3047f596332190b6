//! [`KafkaSink`]: the events of a shard, in order, to one partition; and [`KafkaEvents`], which reads them.
//!
//! The cursor is the topic itself: a sink that starts reads the last record of its partition and goes on with the batch that it is
//! of, from the log. So per shard the stream may repeat a suffix, when a writer or its producer is replaced, but never skips; and
//! whoever reads it ignores what is not above the last (epoch, sequence) that he has: see [`EventCursor`]. Not a row beside the
//! log: what consumers see is the topic, so it alone is the truth about what has left, and a second cursor could say more or less
//! than that, say after a broker lost its tail.
//!
//! A record's value is the event as the log has it, 128 bytes ([`record`](crate::types::record)): one format, and nothing is lost
//! in a second one. Its headers are text, for tools:
//!
//! | header | |
//! |---|---|
//! | `kind` | `event`; `fork`: what lies above `sequence` under earlier epochs is void, for the log lost it; `gap`: the log had no more of what follows `sequence` |
//! | `epoch`, `sequence` | of the event; larger is newer |
//! | `batch` | the batch that it is of, or that comes next |
//!
//! `fork` and `gap` have no value. What is taken is sent in the background, by an idempotent producer that tries for ever and, if a
//! message fails all the same, sends no later one. The sink then begins anew at what has arrived. If the log has another batch in
//! the place of the topic's last one, it has lost its tail: the whole log is read again, and the first batch that differs follows a
//! `fork`.

use super::cluster::{self, KafkaCluster, KafkaError, Producer};
use crate::events::{EventSink, SinkError};
use crate::types::{Batch, Event};
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::RDKafkaErrorCode;
use rdkafka::message::{BorrowedMessage, Header, Headers, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

/// How long one question to the cluster may take.
const ASK: Duration = Duration::from_secs(5);
/// How long a full producer is waited for, and how long a flush waits, before the engine is told.
const ROOM: Duration = Duration::from_millis(100);

/// A place in the stream of a shard's events. Larger is newer: an epoch begins with the writer that took the role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct EventCursor {
    /// The epoch of the writer.
    pub epoch: u64,
    /// The event's sequence.
    pub sequence: u64,
}

impl EventCursor {
    /// Whether an event is new to whoever stands here, who then stands at it.
    pub fn advance(&mut self, to: Self) -> bool {
        let is_new = to > *self;
        if is_new {
            *self = to;
        }
        is_new
    }
}

/// Publishes the committed events of one shard. Give the engine a way to read its log
/// ([`EngineBuilder::log`](crate::engine::EngineBuilder::log)), or a restart leaves a `gap`.
pub struct KafkaSink {
    cluster: KafkaCluster,
    topic: String,
    partition: i32,
    producer: Option<Sending>,
    /// The last that was sent or is in the topic.
    at: EventCursor,
    /// The batch that it asked for.
    from: u64,
    /// The next batch shows whether the log is what the topic was made from.
    must_compare: bool,
    /// It isn't.
    has_forked: bool,
}

struct Sending {
    producer: Producer,
    has_failed: Arc<AtomicBool>,
}

impl KafkaSink {
    /// To the partition of the shard, in `reservation-events`. Nothing is connected before the engine starts.
    pub fn new(cluster: &KafkaCluster, shard: u16) -> Self {
        Self {
            cluster: cluster.clone(),
            topic: "reservation-events".into(),
            partition: shard.into(),
            producer: None,
            at: EventCursor::default(),
            from: 1,
            must_compare: false,
            has_forked: false,
        }
    }

    /// To another topic.
    #[must_use]
    pub fn topic(mut self, topic: &str) -> Self {
        self.topic = topic.into();
        self
    }

    /// The producer, unless it has lost something.
    fn sending(&mut self) -> Result<&Sending, SinkError> {
        let failed = |sending: &Sending| {
            sending.has_failed.load(Ordering::Acquire)
                || sending.producer.client().fatal_error().is_some()
        };
        if self.producer.as_ref().is_some_and(failed) {
            self.producer = None;
            return Err(SinkError("a record did not arrive: it is sent anew".into()));
        }
        let missing = || SinkError("it has not begun".into());
        self.producer.as_ref().ok_or_else(missing)
    }

    fn send(
        &mut self,
        kind: &str,
        to: EventCursor,
        batch: u64,
        value: Option<&[u8]>,
    ) -> Result<(), SinkError> {
        let headers = [
            ("kind", kind.to_owned()),
            ("epoch", to.epoch.to_string()),
            ("sequence", to.sequence.to_string()),
            ("batch", batch.to_string()),
        ];
        let headers = headers.iter().fold(
            OwnedHeaders::new_with_capacity(headers.len()),
            |all, (key, value)| {
                let value = Some(value.as_bytes());
                all.insert(Header { key, value })
            },
        );
        let (topic, partition) = (self.topic.clone(), self.partition);
        let mut record = BaseRecord::<(), [u8], usize>::with_opaque_to(&topic, 0)
            .partition(partition)
            .headers(headers);
        record.payload = value;
        let producer = &self.sending()?.producer;
        let mut waited = false;
        while let Err((error, again)) = producer.send(record) {
            let is_full = error.rdkafka_error_code() == Some(RDKafkaErrorCode::QueueFull);
            if !is_full || waited {
                return Err(SinkError(error.to_string()));
            }
            producer.poll(ROOM);
            waited = true;
            record = again;
        }
        self.at = to;
        Ok(())
    }
}

impl EventSink for KafkaSink {
    /// Where the topic ends, if it has begun anew; else it goes on with what it is given.
    fn resume(&mut self) -> Result<Option<u64>, SinkError> {
        if self.sending().is_ok() {
            return Ok(None);
        }
        let tail = last(&self.cluster, &self.topic, self.partition);
        let tail = tail.map_err(|error| SinkError(error.to_string()))?;
        let has_failed = Arc::new(AtomicBool::new(false));
        let failed = Arc::clone(&has_failed);
        let on_delivery = move |result: Result<i64, _>, _| {
            if result.is_err() {
                failed.store(true, Ordering::Release);
            }
        };
        let producer = self.cluster.gapless_producer(Box::new(on_delivery));
        let producer = producer.map_err(|error| SinkError(error.to_string()))?;
        self.producer = Some(Sending {
            producer,
            has_failed,
        });
        let (at, batch, must_compare) = tail.unwrap_or_default();
        self.at = at;
        self.must_compare = must_compare && !self.has_forked;
        self.from = if std::mem::take(&mut self.has_forked) {
            1
        } else {
            batch.max(1)
        };
        Ok(Some(self.from))
    }

    fn publish(&mut self, batch: &Batch) -> Result<(), SinkError> {
        let header = &batch.header;
        let (epoch, first) = (header.token.epoch, header.first_sequence);
        let is_same = header.number == self.from && epoch == self.at.epoch;
        if std::mem::take(&mut self.must_compare) && !is_same {
            (self.producer, self.has_forked) = (None, true);
            let text = "the log is not what the topic was made from: all of it is compared";
            return Err(SinkError(text.into()));
        }
        if epoch > self.at.epoch && first <= self.at.sequence {
            // The topic has events of earlier epochs that the log has lost.
            let sequence = first - 1;
            self.send("fork", EventCursor { epoch, sequence }, header.number, None)?;
        }
        for (sequence, record) in (first..).zip(batch.event_records()) {
            let to = EventCursor { epoch, sequence };
            if to > self.at {
                self.send("event", to, header.number, Some(record))?;
            }
        }
        self.sending()?.producer.poll(Duration::ZERO);
        Ok(())
    }

    fn flush(&mut self) -> Result<(), SinkError> {
        let flushed = self.sending()?.producer.flush(ROOM);
        flushed.map_err(|error| SinkError(error.to_string()))
    }

    fn gap(&mut self, _: u64, to: u64) {
        self.must_compare = false;
        // Without a producer nothing was sent yet, and the topic's end says where it goes on.
        let _ = self.send("gap", self.at, to, None);
    }
}

/// The last record of a partition: its place, its batch, and whether that batch must be in the log as it is. `None` if the
/// partition has none.
fn last(
    cluster: &KafkaCluster,
    topic: &str,
    partition: i32,
) -> Result<Option<(EventCursor, u64, bool)>, KafkaError> {
    let unavailable = |error| KafkaError::unavailable(&error);
    let consumer = cluster.consumer("stockade-events")?;
    let (low, high) = cluster::bounds(&consumer, topic, partition, ASK).map_err(unavailable)?;
    if low == high {
        return Ok(None);
    }
    // Nothing but records of sinks is there, so the last offset holds one.
    assign(&consumer, topic, partition, high - 1).map_err(unavailable)?;
    loop {
        match consumer.poll(ASK) {
            Some(Ok(message)) => {
                let is_of_batch = header(&message, "kind") != "gap";
                let (at, batch) = (cursor(&message), number(&message, "batch"));
                return Ok(Some((at, batch, is_of_batch)));
            }
            Some(Err(error)) if cluster::is_passing(&error) => {}
            Some(Err(error)) => return Err(unavailable(error)),
            None => return Err(KafkaError::Unavailable("its end can't be read".into())),
        }
    }
}

fn assign(
    consumer: &BaseConsumer,
    topic: &str,
    partition: i32,
    offset: i64,
) -> Result<(), rdkafka::error::KafkaError> {
    let mut list = TopicPartitionList::new();
    list.add_partition_offset(topic, partition, Offset::Offset(offset))?;
    consumer.assign(&list)
}

fn header<'a>(message: &'a BorrowedMessage<'_>, key: &str) -> &'a str {
    let headers = message.headers().into_iter().flat_map(Headers::iter);
    let mut found = headers.filter(|header| header.key == key);
    let value = found.next().and_then(|header| header.value);
    value
        .and_then(|value| std::str::from_utf8(value).ok())
        .unwrap_or_default()
}

fn number(message: &BorrowedMessage<'_>, key: &str) -> u64 {
    header(message, key).parse().unwrap_or_default()
}

fn cursor(message: &BorrowedMessage<'_>) -> EventCursor {
    EventCursor {
        epoch: number(message, "epoch"),
        sequence: number(message, "sequence"),
    }
}

/// What a reader of events meets.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Published {
    /// The next event.
    Event(Event),
    /// The log lost its tail: events above this sequence that came before are void, and those that follow hold.
    Fork {
        /// The last sequence that stands.
        sequence: u64,
    },
    /// The log has no more of what follows the last event.
    Gap,
}

/// Reads a shard's events in order, each once.
pub struct KafkaEvents {
    consumer: BaseConsumer,
    at: EventCursor,
    offset: u64,
}

impl KafkaEvents {
    /// From an offset of the topic on, ignoring what is not above `at`: both as a former reader left them, or zero.
    ///
    /// # Errors
    /// A setting that can't be, or no such topic.
    pub fn start(
        cluster: &KafkaCluster,
        topic: &str,
        shard: u16,
        offset: u64,
        at: EventCursor,
    ) -> Result<Self, KafkaError> {
        let consumer = cluster.consumer("stockade-events")?;
        let from = offset.try_into().unwrap_or(i64::MAX);
        assign(&consumer, topic, shard.into(), from)
            .map_err(|error| KafkaError::unavailable(&error))?;
        Ok(Self {
            consumer,
            at,
            offset,
        })
    }

    /// The last that it gave: what a reader remembers, with what he made of it.
    pub fn cursor(&self) -> EventCursor {
        self.at
    }

    /// The offset to go on from.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Waits at most `timeout` for the next one that is new.
    ///
    /// # Errors
    /// If the topic can't be read just now, doesn't hold the offset any more, or holds what is no event.
    pub fn next(&mut self, timeout: Duration) -> Result<Option<Published>, KafkaError> {
        loop {
            let Some(message) = self.consumer.poll(timeout) else {
                return Ok(None);
            };
            let message = message.map_err(|error| KafkaError::unavailable(&error))?;
            let (kind, to) = (header(&message, "kind"), cursor(&message));
            let published = match kind {
                "gap" => Published::Gap,
                _ if !self.at.advance(to) => {
                    self.offset = message.offset().unsigned_abs() + 1;
                    continue;
                }
                "fork" => Published::Fork {
                    sequence: to.sequence,
                },
                _ => {
                    let value = message.payload().unwrap_or_default();
                    let record = value.try_into().ok();
                    let event = record.and_then(|record| Event::decode(record).ok());
                    let what =
                        || format!("offset {} is no event of this version", message.offset());
                    Published::Event(event.ok_or_else(|| KafkaError::Setting(what()))?)
                }
            };
            self.offset = message.offset().unsigned_abs() + 1;
            return Ok(Some(published));
        }
    }
}
