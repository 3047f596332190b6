//! Kafka as it is, a real broker: `cargo test --features kafka,postgres --test kafka`. Here is what the tests share: the broker, a
//! test's own topics on it, and an API node that asks until it knows.
#![expect(clippy::disallowed_methods, reason = "brokers live in real time")]

mod crashes;
#[path = "../dying/mod.rs"]
mod dying;
mod events;
mod losses;
mod network;
mod pools;
mod requests;

#[path = "../servers/mod.rs"]
#[expect(dead_code, reason = "shared with other tests")]
mod servers;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::OwnedMessage;
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use servers::Server;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};
use std::time::{Duration, Instant};
use stockade::engine::Handle;
use stockade::kafka::{
    AskError, Body, ClientOptions, KafkaClient, KafkaCluster, KafkaSource, Placement, Reply,
    Request, SourceOptions, SourceState, TopicSettings,
};
use stockade::store::ReadLog;
use stockade::types::{Decision, Event, Gate, IdempotencyKey, Reason, Rules, SkuName, UserId};

const ADMIN: UserId = UserId(1 << 100);
const WITHIN: Duration = Duration::from_secs(30);

/// The broker that tests share; the last one to let it go ends it.
fn shared() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED.lock().unwrap_or_else(PoisonError::into_inner);
    shared.upgrade().unwrap_or_else(|| {
        let server = Arc::new(Server::start("kafka.sh", &[]));
        *shared = Arc::downgrade(&server);
        server
    })
}

/// A test's own topics on a broker.
struct Topics {
    brokers: String,
    name: &'static str,
}

impl Topics {
    fn new(server: &Server, name: &'static str) -> Self {
        Self::at(server.port(), name)
    }

    fn at(port: u16, name: &'static str) -> Self {
        let topics = Self {
            brokers: format!("127.0.0.1:{port}"),
            name,
        };
        let names = ["requests", "replies", "dead", "events"].map(|kind| topics.topic(kind));
        let settings = names.iter().map(|name| TopicSettings {
            name,
            partitions: 2,
            replicas: 1,
            properties: &[],
        });
        let settings: Vec<_> = settings.collect();
        let made = topics.cluster().create_topics(&settings, WITHIN);
        made.expect("a broker that runs");
        let again = topics.cluster().create_topics(&settings, WITHIN);
        again.expect("what is there stays");
        topics
    }

    fn topic(&self, kind: &str) -> String {
        format!("{}-{kind}", self.name)
    }

    fn cluster(&self) -> KafkaCluster {
        KafkaCluster::new(&self.brokers)
    }

    fn source_options(&self) -> SourceOptions {
        let mut options = SourceOptions::new(0);
        options.requests = self.topic("requests");
        options.replies = self.topic("replies");
        options.dead_letters = self.topic("dead");
        options.group = self.name.into();
        options
    }

    fn source(&self, engine: Handle) -> KafkaSource {
        KafkaSource::start(&self.cluster(), self.source_options(), engine).expect("it starts")
    }

    fn client_options(&self) -> ClientOptions {
        // Everything to partition 0, as if the other's writer sold other things.
        let groups = (0..).map(|n| Placement::new(2).group(&format!("group-{n}"), [name("SKU-0")]));
        let placement = groups
            .into_iter()
            .find(|placed| placed.partition_of(&name("SKU-0")) == 0);
        let placement = placement.expect("half of them are");
        let mut options = ClientOptions::new(1, placement);
        options.requests = self.topic("requests");
        options.replies = self.topic("replies");
        options.group = self.name.into();
        options
    }

    fn client(&self) -> KafkaClient {
        KafkaClient::start(&self.cluster(), self.client_options(), WITHIN).expect("it starts")
    }

    fn config(&self) -> ClientConfig {
        let mut config = ClientConfig::new();
        config.set("bootstrap.servers", &self.brokers);
        config
    }

    /// Writes raw messages to partition 0 of the requests.
    fn write(&self, messages: &[&[u8]]) {
        let producer: BaseProducer = self.config().create().expect("settings");
        let topic = self.topic("requests");
        for message in messages {
            let record = BaseRecord::<str, [u8]>::to(&topic).partition(0).key("k");
            let sent = producer.send(record.payload(message));
            sent.map_err(|(error, _)| error).expect("room");
        }
        producer.flush(WITHIN).expect("they arrive");
    }

    /// Reads `count` messages of partition 0 of a topic from its beginning.
    fn read(&self, kind: &str, count: usize) -> Vec<OwnedMessage> {
        let mut config = self.config();
        config
            .set("group.id", "reader")
            .set("enable.auto.commit", "false");
        let consumer: BaseConsumer = config.create().expect("settings");
        let mut all = TopicPartitionList::new();
        for partition in 0..2 {
            let added = all.add_partition_offset(&self.topic(kind), partition, Offset::Beginning);
            added.expect("an offset");
        }
        consumer.assign(&all).expect("a partition");
        let mut read = Vec::new();
        let begun = Instant::now();
        while read.len() < count && begun.elapsed() < WITHIN {
            if let Some(Ok(message)) = consumer.poll(Duration::from_millis(100)) {
                read.push(message.detach());
            }
        }
        read
    }
}

fn name(text: &str) -> SkuName {
    SkuName::new(text).expect("a name")
}

fn key(text: &str) -> IdempotencyKey {
    IdempotencyKey::from_text(text).expect("not empty")
}

fn reserve(user: u64, sku: &str) -> Request {
    reserve_as("reserve", user, sku)
}

/// Under a key of its own for each `what`.
fn reserve_as(what: &str, user: u64, sku: &str) -> Request {
    let lines = vec![(name(sku), 1)];
    let key = key(&format!("{what} {user} {sku}"));
    Request::new(UserId::from(user), key, Body::Reserve { lines })
}

/// Asks as an API node does: again, under the same key, until the truth is known.
fn ask(client: &KafkaClient, request: &Request) -> Reply {
    let begun = Instant::now();
    loop {
        match client.ask(request, Duration::from_millis(500)) {
            Ok(reply) => return reply,
            Err(AskError::Unknown | AskError::Unavailable(_) | AskError::Busy { .. }) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < 3 * WITHIN, "no answer to {request:?}");
        // A broker that is away refuses at once, and tells nobody when it is back.
        std::thread::park_timeout(Duration::from_millis(10));
    }
}

fn open_sku(client: &KafkaClient, sku: &str, total: u64) {
    let define = Body::DefineSku {
        sku: name(sku),
        total,
        rules: Rules::default(),
    };
    let define = Request::new(ADMIN, key(&format!("define {sku}")), define);
    let open = Body::SetGate {
        sku: name(sku),
        change: Gate::Open,
        reason: Reason::default(),
    };
    let open = Request::new(ADMIN, key(&format!("open {sku}")), open);
    // Without waiting for the definition: the source knows that it is on its way.
    let defined = client.send(&define).expect("room");
    let opened = ask(client, &open);
    assert!(
        matches!(opened.decision, Decision::GateSet { sale: 1 }),
        "{opened:?}"
    );
    let defined = defined.wait(WITHIN).expect("the first was decided first");
    assert!(
        matches!(defined.decision, Decision::Defined { .. }),
        "{defined:?}"
    );
}

fn until(what: &str, mut is: impl FnMut() -> bool) {
    let begun = Instant::now();
    while !is() {
        assert!(begun.elapsed() < WITHIN, "{what}");
        // What is asked are states and counts, which tell nobody.
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

/// Raises a flag when it is dropped, however that comes about.
fn raised(flag: &AtomicBool) -> impl Drop {
    struct Raised<'a>(&'a AtomicBool);
    impl Drop for Raised<'_> {
        fn drop(&mut self) {
            self.0.store(true, Ordering::Release);
        }
    }
    Raised(flag)
}

fn halted(source: &KafkaSource) -> String {
    let mut why = String::new();
    until("the source halts", || match source.status().state {
        SourceState::Halted(reason) => {
            why = reason;
            true
        }
        _ => false,
    });
    why
}

/// Every event of a log.
fn events(mut log: impl ReadLog) -> Vec<Event> {
    let mut all = Vec::new();
    let read = log.read(1, &mut |batch| {
        all.extend(batch.events().map(|event| event.expect("an event")));
        true
    });
    read.expect("the log is whole");
    all
}
