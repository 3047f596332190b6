//! How the cluster is reached, the settings that all clients share, and the topics.

use crate::types::{Clock, SystemClock};
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError as Rd, RDKafkaErrorCode};
use rdkafka::producer::{BaseProducer, DeliveryResult, ProducerContext};
use rdkafka::topic_partition_list::{Offset, TopicPartitionListElem};
use rdkafka::{ClientContext, Message};
use std::time::Duration;

/// How long to wait before a new topic is looked at again.
const LOOK: Duration = Duration::from_millis(20);
/// In which a cluster nearby answers.
const FIRST_ANSWER: Duration = Duration::from_millis(50);

/// Kafka can't be used just now, or as it was told to.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum KafkaError {
    /// A property is unknown or can't have this value: mend it.
    #[error("a Kafka setting can't be: {0}")]
    Setting(String),
    /// The cluster doesn't answer, or answers no: try again.
    #[error("Kafka can't be used just now: {0}")]
    Unavailable(String),
    /// A thread can't be started, or the system gives no random numbers.
    #[error("{0}")]
    System(String),
}

impl KafkaError {
    pub(super) fn setting(error: &Rd) -> Self {
        Self::Setting(error.to_string())
    }

    pub(super) fn unavailable(error: &Rd) -> Self {
        Self::Unavailable(error.to_string())
    }
}

/// How the cluster is reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KafkaCluster {
    brokers: String,
    properties: Vec<(String, String)>,
}

/// What a topic is made with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TopicSettings<'a> {
    /// Its name.
    pub name: &'a str,
    /// For requests, events and dead letters one per shard; for replies one per API node.
    pub partitions: i32,
    /// Copies of each: 3 in production, with `min.insync.replicas` 2.
    pub replicas: i32,
    /// Topic properties, such as `retention.ms`. Events must stay longer than any consumer is away.
    pub properties: &'a [(&'a str, &'a str)],
}

impl KafkaCluster {
    /// `brokers` are hosts with ports, separated by commas.
    pub fn new(brokers: &str) -> Self {
        Self {
            brokers: brokers.into(),
            properties: Vec::new(),
        }
    }

    /// Sets a property of librdkafka for every client, such as `client.rack`. What the adapter relies on stays as it is.
    #[must_use]
    pub fn property(mut self, name: &str, value: &str) -> Self {
        self.properties.push((name.into(), value.into()));
        self
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config
            .set("client.id", "stockade")
            // A broker that comes back is found within half a second.
            .set("reconnect.backoff.ms", "50")
            .set("reconnect.backoff.max.ms", "500")
            .set("socket.nagle.disable", "true")
            .set("socket.keepalive.enable", "true");
        for (name, value) in &self.properties {
            config.set(name, value);
        }
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// A consumer that assigns partitions by itself and stores no offsets by itself. The group's name is for committed copies.
    pub(super) fn consumer(&self, group: &str) -> Result<BaseConsumer, KafkaError> {
        let mut config = self.config();
        config
            .set("group.id", group)
            .set("enable.auto.commit", "false")
            .set("enable.auto.offset.store", "false")
            .set("auto.offset.reset", "error")
            .set("isolation.level", "read_committed")
            // Waiting for a full buffer to empty, and after an error: 1 s and 0.5 s by default.
            .set("fetch.queue.backoff.ms", "10")
            .set("fetch.error.backoff.ms", "50");
        config.create().map_err(|error| KafkaError::setting(&error))
    }

    /// A producer whose messages arrive once and in order, and are acknowledged by all replicas. One that hasn't arrived within
    /// `timeout` is given up.
    pub(super) fn producer(
        &self,
        timeout: Duration,
        on_delivery: OnDelivery,
    ) -> Result<Producer, KafkaError> {
        Self::produce(&self.producing(timeout.as_millis()), on_delivery)
    }

    /// The same, and one message after another: each is tried for ever, and none arrives after one that can't.
    pub(super) fn gapless_producer(&self, on_delivery: OnDelivery) -> Result<Producer, KafkaError> {
        let mut config = self.producing(0);
        config.set("enable.gapless.guarantee", "true");
        Self::produce(&config, on_delivery)
    }

    fn producing(&self, timeout_ms: u128) -> ClientConfig {
        let mut config = self.config();
        config
            .set("enable.idempotence", "true")
            .set("linger.ms", "1")
            .set("message.timeout.ms", timeout_ms.to_string())
            .set("message.max.bytes", "2097152");
        config
    }

    fn produce(config: &ClientConfig, on_delivery: OnDelivery) -> Result<Producer, KafkaError> {
        config
            .create_with_context(Deliveries(on_delivery))
            .map_err(|error| KafkaError::setting(&error))
    }

    /// Makes the topics that don't exist yet, and waits until they can be used; those that do are left as they are. Gives the names
    /// of those: see whether their [`partitions`](Self::partitions) are as many.
    ///
    /// # Errors
    /// If the cluster doesn't answer or they can't be used within `timeout`, or it refuses.
    pub fn create_topics(
        &self,
        topics: &[TopicSettings<'_>],
        timeout: Duration,
    ) -> Result<Vec<String>, KafkaError> {
        use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, TopicReplication};
        let admin: AdminClient<_> = self
            .config()
            .create()
            .map_err(|error| KafkaError::setting(&error))?;
        let asked = topics;
        let topics = asked.iter().map(|topic| {
            let replicas = TopicReplication::Fixed(topic.replicas);
            let new = NewTopic::new(topic.name, topic.partitions, replicas);
            let properties = topic.properties.iter();
            properties.fold(new, |new, (name, value)| new.set(name, value))
        });
        let topics: Vec<NewTopic<'_>> = topics.collect();
        let options = AdminOptions::new()
            .request_timeout(Some(timeout))
            .operation_timeout(Some(timeout));
        let made = wait(admin.create_topics(&topics, &options));
        let (mut new, mut known) = (Vec::new(), Vec::new());
        for result in made.map_err(|error| KafkaError::unavailable(&error))? {
            match result {
                Ok(topic) => new.extend(asked.iter().filter(|asked| asked.name == topic)),
                Err((topic, RDKafkaErrorCode::TopicAlreadyExists)) => known.push(topic),
                Err((topic, code)) => {
                    return Err(KafkaError::Unavailable(format!(
                        "topic {topic} can't be made: {code}"
                    )));
                }
            }
        }
        self.await_leaders(&new, timeout)?;
        Ok(known)
    }

    /// Waits until every partition has a broker that knows it: a topic is made before that.
    fn await_leaders(
        &self,
        topics: &[&TopicSettings<'_>],
        timeout: Duration,
    ) -> Result<(), KafkaError> {
        let consumer = self.consumer("stockade")?;
        let clock = SystemClock::new();
        let begun = clock.monotonic();
        for topic in topics {
            for partition in 0..topic.partitions {
                // Who may make topics and not look at them is told nothing of this.
                while let Err(error) = bounds(&consumer, topic.name, partition, timeout)
                    && is_passing(&error)
                {
                    if clock.monotonic().saturating_sub(begun) > timeout {
                        return Err(KafkaError::unavailable(&error));
                    }
                    std::thread::park_timeout(LOOK);
                }
            }
        }
        Ok(())
    }

    /// How many partitions a topic has; 0 if there is no such topic.
    ///
    /// # Errors
    /// If the cluster doesn't answer within `timeout`.
    pub fn partitions(&self, topic: &str, timeout: Duration) -> Result<u32, KafkaError> {
        let consumer = self.consumer("stockade")?;
        let metadata = consumer.fetch_metadata(Some(topic), timeout);
        let metadata = metadata.map_err(|error| KafkaError::unavailable(&error))?;
        let partitions = metadata.topics().first().map(|t| t.partitions().len());
        Ok(u32::try_from(partitions.unwrap_or(0)).unwrap_or(u32::MAX))
    }
}

/// Blocks until a future is there, which another thread brings about.
fn wait<F: Future>(future: F) -> F::Output {
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: std::sync::Arc<Self>) {
            self.0.unpark();
        }
    }
    let waker = Waker::from(std::sync::Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    let mut future = std::pin::pin!(future);
    loop {
        match future.as_mut().poll(&mut context) {
            Poll::Ready(output) => return output,
            Poll::Pending => std::thread::park(),
        }
    }
}

/// Is told where each message of a producer arrived, or why it didn't, with the tag that it was sent with.
pub(super) struct Deliveries(pub(super) OnDelivery);

pub(super) type OnDelivery = Box<dyn Fn(Result<i64, Rd>, usize) + Send + Sync>;
pub(super) type Producer = BaseProducer<Deliveries>;

impl ClientContext for Deliveries {}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let result = match result {
            Ok(message) => Ok(message.offset()),
            Err((error, _)) => Err(error.clone()),
        };
        (self.0)(result, tag);
    }
}

/// True for what passes by itself: the cluster is away, or elects a leader.
pub(super) fn is_passing(error: &Rd) -> bool {
    let code = error.rdkafka_error_code();
    let is_final = code == Some(RDKafkaErrorCode::Fatal)
        || code == Some(RDKafkaErrorCode::TopicAuthorizationFailed);
    !is_final && !is_outside(error)
}

/// True while a partition that was just made, or has lost its broker, has no leader yet.
pub(super) fn is_leaderless(error: &Rd) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::LeaderNotAvailable | RDKafkaErrorCode::NotLeaderForPartition)
    )
}

/// True for what librdkafka says when it has waited in vain: also that nothing is connected, though that may be on its way.
fn is_unanswered(error: &Rd) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(
            RDKafkaErrorCode::OperationTimedOut
                | RDKafkaErrorCode::AllBrokersDown
                | RDKafkaErrorCode::BrokerTransportFailure
        )
    )
}

/// True if messages are gone, or the topic is another one.
pub(super) fn is_outside(error: &Rd) -> bool {
    matches!(
        error.rdkafka_error_code(),
        Some(RDKafkaErrorCode::AutoOffsetReset | RDKafkaErrorCode::OffsetOutOfRange)
    )
}

/// Sets a gauge of a partition, for the recorder that the program has installed.
pub(super) fn meter(name: &'static str, topic: &str, partition: i32, value: u64) {
    #[cfg(feature = "metrics")]
    {
        #[expect(clippy::cast_precision_loss, reason = "metrics are floats")]
        metrics::gauge!(name, "topic" => topic.to_owned(), "partition" => partition.to_string())
            .set(value as f64);
    }
    #[cfg(not(feature = "metrics"))]
    let _ = (name, topic, partition, value);
}

/// What the group says of a partition, as its source copied it: the position, and the offset up to which everybody was told; 0 for
/// what it doesn't say.
pub(super) fn copied(partition: &TopicPartitionListElem<'_>) -> (u64, u64) {
    let position = match partition.offset() {
        Offset::Offset(at) => at.unsigned_abs(),
        _ => 0,
    };
    (position, partition.metadata().parse().unwrap_or(0))
}

/// The first offset that the topic holds, and the one after its last. A question that a client still connecting drops with its
/// first connection is asked again by librdkafka after 0.7 s; here at once, and with twice the patience each time.
pub(super) fn bounds(
    consumer: &BaseConsumer,
    topic: &str,
    partition: i32,
    timeout: Duration,
) -> Result<(i64, i64), Rd> {
    let mut left = timeout;
    let mut patience = FIRST_ANSWER.min(left);
    loop {
        let answer = consumer.fetch_watermarks(topic, partition, patience);
        left -= patience;
        match answer {
            Err(error) if is_unanswered(&error) && !left.is_zero() => {}
            answer => return answer,
        }
        patience = (patience * 2).min(left);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What it hears meanwhile is that every broker is down.
    #[test]
    fn who_does_not_answer_is_asked_for_as_long_as_was_said() {
        const TIMEOUT: Duration = Duration::from_millis(400);
        let closed = std::net::TcpListener::bind("127.0.0.1:0").and_then(|it| it.local_addr());
        let nobody = KafkaCluster::new(&closed.expect("a loopback address").to_string());
        let consumer = nobody.consumer("nobody").expect("settings");
        let clock = SystemClock::new();
        let begun = clock.monotonic();
        let answer = bounds(&consumer, "requests", 0, TIMEOUT);
        answer.expect_err("nobody is there");
        let asked_for = clock.monotonic().saturating_sub(begun);
        assert!(asked_for >= TIMEOUT, "{asked_for:?}");
    }
}
