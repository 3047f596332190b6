//! Kafka as it is: a real broker, which is killed and comes back, engines that die between commit and reply, and messages that
//! nobody can read. `cargo test --features kafka --test kafka`.

#![expect(clippy::disallowed_methods, reason = "brokers live in real time")]

#[path = "kafka/losses.rs"]
mod losses;
#[path = "kafka/pools.rs"]
mod pools;
#[expect(dead_code, reason = "shared with other tests")]
mod servers;

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::message::{Headers, Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use servers::Server;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, Instant};
use stockade::engine::{Engine, Handle};
use stockade::kafka::{
    AskError, Body, ClientOptions, EventCursor, KafkaClient, KafkaCluster, KafkaEvents, KafkaSink,
    KafkaSource, Placement, Published, Reply, Request, SourceOptions, SourceState, SourceStatus,
    TopicSettings,
};
use stockade::store::{
    JournalOptions, JournalReader, JournalStore, MemoryLog, MemoryStore, OpenRequest, Progress,
    ReadLog, Recovered, Replica, ReplicaError, Store, StoreError,
};
use stockade::types::{
    Batch, Decision, DefineSku, Event, EventKind, Gate, IdempotencyKey, Reason, Refusal,
    ReservationId, Rules, SetGate, SkuId, SkuName, SourcePosition, Sourced, StateRecord, Submit,
    Timestamp, UserId,
};

const ADMIN: UserId = UserId(1 << 100);
const WITHIN: Duration = Duration::from_secs(30);

/// The broker that tests share; the last one to let it go ends it.
fn shared() -> Arc<Server> {
    static SHARED: Mutex<Weak<Server>> = Mutex::new(Weak::new());
    let mut shared = SHARED
        .lock()
        .unwrap_or_else(std::sync::PoisonError::into_inner);
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
        let topics = Self {
            brokers: format!("127.0.0.1:{}", server.port()),
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
    let lines = vec![(name(sku), 1)];
    let key = key(&format!("reserve {user} {sku}"));
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
        // A broker that is away refuses at once.
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
        std::thread::park_timeout(Duration::from_millis(5));
    }
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

struct Collect(Vec<Batch>);

impl Replica for Collect {
    fn restore(&mut self, _: &StateRecord) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        self.0.push(batch.clone());
        Ok(())
    }

    fn export(&self, _: &mut dyn FnMut(&StateRecord)) {}
}

fn batches(log: &MemoryLog) -> Vec<Batch> {
    let mut collected = Collect(Vec::new());
    let request = OpenRequest {
        shard: 0,
        writer: 1,
        replicas: Arc::new(|| Box::new(Collect(Vec::new()))),
    };
    let opened = MemoryStore::on(log).open(&request, &mut collected, &mut |_| {});
    opened.expect("the log is whole");
    collected.0
}

/// Every reservation that the log ever made, by user.
fn reservations(log: &MemoryLog) -> BTreeMap<UserId, Vec<ReservationId>> {
    let mut made: BTreeMap<_, Vec<_>> = BTreeMap::new();
    for batch in batches(log) {
        for event in batch.events() {
            let event = event.expect("an event");
            if let EventKind::Reserved { origin, .. } = event.kind {
                let id = ReservationId::new(event.shard, event.sequence);
                made.entry(origin.user).or_default().push(id);
            }
        }
    }
    made
}

/// A store that dies at some commit, by turns before and after it wrote.
struct Dying {
    inner: MemoryStore,
    commits_left: u64,
    writes: bool,
}

impl Store for Dying {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.inner.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.commits_left > 0 {
            self.commits_left -= 1;
            return self.inner.commit(batch);
        }
        if self.writes {
            self.inner.commit(batch)?;
        }
        Err(StoreError::Fatal("killed".into()))
    }
}

#[test]
fn an_engine_killed_between_commit_and_reply_again_and_again_decides_everything_once() {
    const USERS: u64 = 600;
    const UNITS: u64 = 400;
    let server = shared();
    let topics = Topics::new(&server, "killed");
    let log = MemoryLog::default();
    let client = topics.client();
    let (lives, answered) = (AtomicU64::new(0), AtomicU64::new(0));
    let replies = Mutex::new(BTreeMap::new());
    let is_done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let crowd: Vec<_> = (0..8)
            .map(|thread| {
                let (client, replies, answered) = (&client, &replies, &answered);
                scope.spawn(move || {
                    if thread == 0 {
                        open_sku(client, "SKU-0", UNITS);
                    }
                    until("the sale opens", || {
                        let probe = ask(client, &reserve(1_000_000, "SKU-0")).decision;
                        let is_shut = |refusal: &Refusal| refusal.is_deferral();
                        !matches!(probe, Decision::Refused(refusal) if is_shut(&refusal))
                    });
                    for user in (thread..USERS).step_by(8) {
                        let reply = ask(client, &reserve(user, "SKU-0"));
                        let mut replies = replies.lock().expect("nobody panicked");
                        replies.insert(UserId::from(user), reply.decision);
                        answered.fetch_add(1, Ordering::Relaxed);
                    }
                })
            })
            .collect();
        let killer = scope.spawn(|| {
            while !is_done.load(Ordering::Acquire) {
                let life = lives.fetch_add(1, Ordering::Relaxed);
                let store = Dying {
                    inner: MemoryStore::on(&log),
                    commits_left: 2 + life % 5,
                    writes: life % 2 == 0,
                };
                let engine = Engine::builder().store(store).start().expect("it recovers");
                let source = topics.source(engine.handle());
                until("it dies, or everything is answered", || {
                    is_done.load(Ordering::Acquire) || !engine.handle().health().is_running()
                });
                drop(source);
            }
        });
        let panicked = crowd.into_iter().find_map(|thread| thread.join().err());
        is_done.store(true, Ordering::Release);
        killer.join().expect("every life recovers");
        assert!(
            panicked.is_none(),
            "{} answered",
            answered.load(Ordering::Relaxed)
        );
    });
    assert!(lives.into_inner() > 20, "it died often");
    let made = reservations(&log);
    assert!(
        made.values().all(|ids| ids.len() == 1),
        "one reservation a user: {made:?}"
    );
    assert_eq!(made.len() as u64, UNITS, "sold out, and not one more");
    for (user, decision) in replies.into_inner().expect("nobody panicked") {
        match decision {
            Decision::Reserved(held) => assert_eq!(made.get(&user), Some(&vec![held.id])),
            Decision::Refused(Refusal::SoldOut { .. }) => assert_eq!(made.get(&user), None),
            other => panic!("{user}: {other:?}"),
        }
    }
}

#[test]
fn the_same_message_twice_is_one_reservation_and_one_refusal() {
    let server = shared();
    let topics = Topics::new(&server, "twice");
    let log = MemoryLog::default();
    let start = || {
        Engine::builder()
            .store(MemoryStore::on(&log))
            .start()
            .expect("it recovers")
    };
    let client = topics.client();
    let engine = start();
    let source = topics.source(engine.handle());
    open_sku(&client, "SKU-0", 1);
    let sold = ask(&client, &reserve(1, "SKU-0"));
    let refused = ask(&client, &reserve(2, "SKU-0"));
    assert!(matches!(sold.decision, Decision::Reserved(_)));
    assert!(matches!(
        refused.decision,
        Decision::Refused(Refusal::SoldOut { .. })
    ));
    assert_eq!(
        refused.sku,
        Some(name("SKU-0")),
        "by name, for whoever has no engine"
    );
    for _ in 0..2 {
        assert_eq!(ask(&client, &reserve(1, "SKU-0")), sold);
        assert_eq!(
            ask(&client, &reserve(2, "SKU-0")).decision,
            refused.decision
        );
    }
    // And by the next writer.
    drop((source, engine));
    let engine = start();
    let _source = topics.source(engine.handle());
    assert_eq!(ask(&client, &reserve(1, "SKU-0")), sold);
    assert_eq!(
        ask(&client, &reserve(2, "SKU-0")).decision,
        refused.decision
    );
    let conflict = {
        let mut other = reserve(1, "SKU-0");
        let lines = vec![(name("SKU-0"), 2)];
        other.body = Body::Reserve { lines };
        ask(&client, &other).decision
    };
    assert!(
        matches!(conflict, Decision::Refused(Refusal::KeyConflict { .. })),
        "{conflict:?}"
    );
    drop(engine);
    let made = reservations(&log);
    assert_eq!(made.into_values().map(|ids| ids.len()).sum::<usize>(), 1);
}

#[test]
fn a_broker_killed_under_load_comes_back_and_nothing_is_lost_or_decided_twice() {
    let mut server = Server::start("kafka.sh", &[]);
    let topics = Topics::new(&server, "away");
    let log = MemoryLog::default();
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 1_000_000);
    let (stop, next) = (AtomicBool::new(false), AtomicU64::new(0));
    let replies = Mutex::new(BTreeMap::new());
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Acquire) {
                    let user = next.fetch_add(1, Ordering::Relaxed);
                    let reply = ask(&client, &reserve(user, "SKU-0"));
                    let mut replies = replies.lock().expect("nobody panicked");
                    replies.insert(UserId::from(user), reply.decision);
                }
            });
        }
        let replied = || replies.lock().expect("nobody panicked").len();
        for _ in 0..2 {
            let before = replied();
            until("it goes on", || replied() > before + 200);
            server.kill();
            until("the node says so", || client.trouble().is_some());
            let refused = client.send(&reserve(9_999_999, "SKU-0")).err();
            assert!(
                matches!(refused, Some(AskError::Unavailable(_))),
                "{refused:?}"
            );
            assert!(matches!(source.status().state, SourceState::Running(_)));
            server.restart();
        }
        let before = replied();
        until("it resumes by itself", || replied() > before + 200);
        stop.store(true, Ordering::Release);
    });
    until("the source is well again", || {
        source.status().state == SourceState::Running(None)
    });
    drop((source, engine));
    let made = reservations(&log);
    assert!(
        made.values().all(|ids| ids.len() == 1),
        "one reservation a user"
    );
    for (user, decision) in replies.into_inner().expect("nobody panicked") {
        let Decision::Reserved(held) = decision else {
            panic!("{user}: {decision:?}");
        };
        assert_eq!(
            made.get(&user),
            Some(&vec![held.id]),
            "what was told is in the log"
        );
    }
}

#[test]
fn what_nobody_can_read_goes_to_the_dead_letters_and_the_next_one_is_decided() {
    let server = shared();
    let topics = Topics::new(&server, "dead");
    let log = MemoryLog::default();
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it starts");
    let bad: [&[u8]; 4] = [
        b"not json",
        br#"{"v":9}"#,
        b"",
        br#"{"v":1,"kind":"reserve","user":"0000000000000000000000000000002a","key":"00000000000000000000000000000001","lines":[]}"#,
    ];
    topics.write(&bad[..2]);
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 5);
    topics.write(&bad[2..]);
    let after = ask(&client, &reserve(1, "SKU-0"));
    assert!(matches!(after.decision, Decision::Reserved(_)));
    let letters = topics.read("dead", bad.len());
    let told: BTreeSet<(Vec<u8>, String)> = letters
        .iter()
        .map(|letter| {
            let headers = letter.headers().expect("a reason");
            let header = |key: &str| {
                let found = headers.iter().find(|header| header.key == key);
                let value = found.and_then(|header| header.value).unwrap_or_default();
                String::from_utf8_lossy(value).into_owned()
            };
            assert_eq!(header("topic"), topics.topic("requests"));
            assert_eq!(header("partition"), "0");
            assert_eq!(letter.key(), Some(&b"k"[..]));
            let payload = letter.payload().unwrap_or_default().to_vec();
            (payload, header("offset") + ": " + &header("reason"))
        })
        .collect();
    let reason = |payload: &[u8]| {
        let found = told.iter().find(|(letter, _)| letter == payload);
        found.map(|(_, reason)| reason.clone()).unwrap_or_default()
    };
    assert_eq!(reason(bad[0]), "0: expected ident at line 1 column 2");
    assert_eq!(reason(bad[1]), "1: version 9, not 1");
    assert!(reason(bad[2]).contains("EOF"), "{told:?}");
    assert!(reason(bad[3]).contains("the cart is empty"), "{told:?}");
    let status = source.status();
    assert_eq!((status.dead_letters, status.dead_letters_lost), (4, 0));
    // What can't be read moves the position too, so that its successor doesn't read it again.
    let end = engine
        .handle()
        .position(topics.source_options().source_id());
    topics.write(&bad[..1]);
    until("it is dealt with", || {
        source.status().position > end.unwrap_or_default()
    });
    drop((source, engine));
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .start()
        .expect("it recovers");
    let source = topics.source(engine.handle());
    ask(&client, &reserve(1, "SKU-0"));
    assert_eq!(source.status().dead_letters, 0);
}

#[test]
fn an_offset_outside_the_topic_halts_and_is_never_reset() {
    let server = shared();
    let topics = Topics::new(&server, "outside");
    let options = topics.source_options();
    let log_at = |position: u64| {
        let log = MemoryLog::default();
        let (handle, mut runner) = Engine::builder()
            .store(MemoryStore::on(&log))
            .build()
            .expect("it opens");
        let expire = stockade::types::Expire {
            reservation: ReservationId::new(0, 1),
        };
        let source = options.source_id();
        let from = Some(SourcePosition { source, position });
        let command = expire.into();
        handle
            .submit_run(&mut vec![Sourced { command, from }])
            .expect("room");
        runner.step().expect("it commits");
        drop(runner);
        Engine::builder()
            .store(MemoryStore::on(&log))
            .start()
            .expect("it recovers")
    };
    // Beyond its end: it is another topic, or its tail is lost.
    let engine = log_at(1_000);
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(why.contains("stands at offset 1000"), "{why}");
    assert!(
        why.contains("holds 0 to 0") && why.contains("begin_at"),
        "{why}"
    );
    // Before its beginning: retention has taken messages that nobody has decided.
    topics.write(&[&b"x"[..]; 10]);
    delete_before(&topics, 6);
    let engine = log_at(3);
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(
        why.contains("stands at offset 3") && why.contains("holds 6 to 10"),
        "{why}"
    );
    assert!(engine.handle().health().is_running(), "holds still lapse");
    // An operator who knows what became of them says where to go on.
    let mut accepted = topics.source_options();
    accepted.begin_at = Some(6);
    let source = KafkaSource::start(&topics.cluster(), accepted, engine.handle());
    let source = source.expect("it starts");
    until("the rest is dealt with", || source.status().position == 10);
    assert_eq!(source.status().dead_letters, 4);
    // A new log that begins with a topic whose beginning is gone.
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let why = halted(&source);
    assert!(why.contains("has no position"), "{why}");
}

fn delete_before(topics: &Topics, offset: i64) {
    use rdkafka::admin::{AdminClient, AdminOptions};
    let admin: AdminClient<_> = topics.config().create().expect("settings");
    let mut list = TopicPartitionList::new();
    let added = list.add_partition_offset(&topics.topic("requests"), 0, Offset::Offset(offset));
    added.expect("an offset");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .build()
        .expect("a runtime");
    let deleted = runtime.block_on(admin.delete_records(&list, &AdminOptions::new()));
    deleted.expect("the broker deletes them");
}

#[test]
fn a_full_engine_pauses_the_source_and_refuses_nothing() {
    const USERS: u64 = 500;
    let server = shared();
    let topics = Topics::new(&server, "full");
    // Nobody turns the crank yet.
    let (handle, mut runner) = Engine::builder()
        .ring_capacity(16)
        .build()
        .expect("it opens");
    let mut options = topics.source_options();
    options.run_max = 8;
    let source = KafkaSource::start(&topics.cluster(), options, handle.clone());
    let source = source.expect("it starts");
    let client = topics.client();
    let asked: Vec<_> = (0..USERS)
        .map(|user| client.send(&reserve(user, "SKU-0")).expect("room"))
        .collect();
    until("the ring is full", || handle.queue_depth() == 16);
    assert_eq!(source.status().state, SourceState::Running(None));
    let id = topics.source_options().source_id();
    assert_eq!(handle.position(id), Some(16), "the rest waits in the topic");
    until("the lag is seen", || source.status().lag == USERS);
    until("it is seen from the node too", || {
        client.lags() == [USERS, 0]
    });
    while source.status().position < USERS {
        runner.step().expect("it commits");
        runner.wait(Duration::from_millis(1));
    }
    for pending in asked {
        let reply = pending.wait(WITHIN).expect("a reply");
        let refused = Decision::Refused(Refusal::UnknownSku { line: 0 });
        assert_eq!(reply.decision, refused, "in its turn, by the engine");
    }
    assert_eq!(client.in_flight(), 0);
}

#[test]
fn a_node_refuses_what_it_can_not_send_or_would_wait_too_long_for() {
    let server = shared();
    let topics = Topics::new(&server, "node");
    let mut options = topics.client_options();
    (options.in_flight_max, options.lag_max) = (10, 5);
    let client = KafkaClient::start(&topics.cluster(), options, WITHIN).expect("it starts");
    let mut cart = reserve(1, "SKU-0");
    let placement = topics.client_options().placement;
    let elsewhere = (0..).map(|n| name(&format!("OTHER-{n}")));
    let elsewhere = elsewhere
        .into_iter()
        .find(|sku| placement.partition_of(sku) == 1);
    let elsewhere = elsewhere.expect("half of them are");
    let lines = vec![(name("SKU-0"), 1), (elsewhere.clone(), 1)];
    cart.body = Body::Reserve { lines };
    let crossed = AskError::CrossGroup {
        first: name("SKU-0"),
        other: elsewhere,
    };
    assert_eq!(client.send(&cart).err(), Some(crossed));
    let reservation = ReservationId::new(2, 1);
    let release = Request::new(UserId(1), key("r"), Body::Release { reservation });
    let unknown = AskError::UnknownShard {
        shard: 2,
        partitions: 2,
    };
    assert_eq!(client.send(&release).err(), Some(unknown));
    // Nobody decides: ten are in flight, the eleventh is not sent, and a time-out makes room.
    let mut asked: Vec<_> = (0..10)
        .map(|user| client.send(&reserve(user, "SKU-0")).expect("room"))
        .collect();
    let busy = client.send(&reserve(11, "SKU-0")).err();
    assert_eq!(busy, Some(AskError::Busy { max: 10 }));
    let late = asked.pop().expect("ten").wait(Duration::from_millis(1));
    assert_eq!(late, Err(AskError::Unknown));
    assert_eq!(client.in_flight(), 9);
    until("the lag is seen", || client.lags()[0] == 10);
    let lagging = client.send(&reserve(12, "SKU-0")).err();
    assert_eq!(lagging, Some(AskError::Lagging { lag: 10 }));
    let reservation = ReservationId::new(0, 1);
    let release = Request::new(UserId(1), key("r"), Body::Release { reservation });
    let ends = client
        .send(&release)
        .expect("what ends something is sent all the same");
    drop((ends, asked));
    assert_eq!(client.in_flight(), 0);
    let mut other = topics.client_options();
    other.placement = Placement::new(3);
    let refused = KafkaClient::start(&topics.cluster(), other, WITHIN).err();
    assert!(refused.is_some_and(|error| error.to_string().contains("has 2 partitions")));
}

#[test]
fn a_request_that_was_asked_too_late_is_not_decided() {
    let server = shared();
    let topics = Topics::new(&server, "late");
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 5);
    let mut late = reserve(1, "SKU-0");
    late.decide_by = Some(Timestamp::from_micros(1));
    assert_eq!(
        ask(&client, &late).decision,
        Decision::Refused(Refusal::TooLate)
    );
    let mut old = reserve(2, "SKU-0");
    old.asked_at = Some(Timestamp::from_micros(1));
    assert_eq!(
        ask(&client, &old).decision,
        Decision::Refused(Refusal::TooOld)
    );
    let SourceStatus { replies_lost, .. } = source.stop();
    assert_eq!(replies_lost, 0);
}

/// Every record of the events, with its cursor, and what a reader makes of them.
fn published(topics: &Topics, wanted: &[Event]) -> (Vec<EventCursor>, Vec<Published>) {
    let last = wanted.last().expect("some events");
    let until = EventCursor {
        epoch: last.epoch.into(),
        sequence: last.sequence,
    };
    let events = topics.topic("events");
    let begin = EventCursor::default();
    let mut reader = KafkaEvents::start(&topics.cluster(), &events, 0, 0, begin).expect("a topic");
    let mut read = Vec::new();
    while reader.cursor() < until {
        let next = reader.next(WITHIN).expect("a broker that runs");
        read.push(next.expect("the last event comes"));
    }
    let count = usize::try_from(reader.offset()).expect("a few");
    let raw = topics.read("events", count).into_iter().map(|record| {
        let headers = record.headers().expect("a place");
        let number = |key: &str| {
            let found = headers.iter().find(|header| header.key == key);
            let value = found.and_then(|header| header.value).unwrap_or_default();
            String::from_utf8_lossy(value).parse().expect("a number")
        };
        EventCursor {
            epoch: number("epoch"),
            sequence: number("sequence"),
        }
    });
    (raw.collect(), read)
}

fn events(mut log: impl ReadLog) -> Vec<Event> {
    let mut all = Vec::new();
    let read = log.read(1, &mut |batch| {
        all.extend(batch.events().map(|event| event.expect("an event")));
        true
    });
    read.expect("the log is whole");
    all
}

fn sell(handle: &Handle, users: std::ops::Range<u64>) {
    let tickets = users.map(|user| {
        let reserve = stockade::types::Reserve::one(UserId::from(user), SkuId(0), 1);
        handle.reserve(reserve.expect("a cart")).expect("room")
    });
    for ticket in tickets.collect::<Vec<_>>() {
        ticket.wait().expect("units for all");
    }
}

fn define(handle: &Handle) {
    let define = DefineSku::new(ADMIN, name("SKU-0"), 1_000_000);
    handle
        .define_sku(define)
        .expect("room")
        .wait()
        .expect("defined");
    let open = SetGate::new(ADMIN, SkuId(0), Gate::Open);
    handle.set_gate(open).expect("room").wait().expect("opened");
}

#[test]
fn events_may_repeat_over_restarts_but_none_is_skipped() {
    let server = shared();
    let topics = Topics::new(&server, "outbox");
    let log = MemoryLog::default();
    let start = || {
        let sink = KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
        let store = MemoryStore::on(&log);
        let builder = Engine::builder().store(store).log(log.clone()).sink(sink);
        builder.start().expect("it recovers")
    };
    for life in 0..20 {
        let engine = start();
        if life == 0 {
            define(&engine.handle());
        }
        // Some lives have more batches than wait for a slow sink, others few large ones.
        let (batches, len) = if life % 5 == 0 {
            (1_200, 1)
        } else {
            (life, 3_000)
        };
        for batch in 0..batches {
            let first = life * 100_000 + batch * len;
            sell(&engine.handle(), first..first + len);
        }
        // It is dropped without waiting for the sink, which has sent nothing, or all, or some of a batch.
    }
    let report = start().shutdown(WITHIN);
    assert!(report.is_announced, "{report:?}");
    let wanted = events(log.clone());
    let (raw, read) = published(&topics, &wanted);
    let read: Vec<Event> = read
        .into_iter()
        .map(|published| match published {
            Published::Event(event) => event,
            other => panic!("{other:?}"),
        })
        .collect();
    assert_eq!(read, wanted);
    // What a producer that died had under way may come late, so a repetition may break off.
    let mut last = 0;
    for at in raw {
        assert!(at.sequence <= last + 1, "{at:?} skips what follows {last}");
        last = last.max(at.sequence);
    }
}

#[test]
fn a_broker_killed_while_events_leave_gets_all_of_them_in_order() {
    let mut server = Server::start("kafka.sh", &[]);
    let topics = Topics::new(&server, "leave");
    let log = MemoryLog::default();
    let sink = KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
    let store = MemoryStore::on(&log);
    let builder = Engine::builder().store(store).log(log.clone()).sink(sink);
    let engine = builder.start().expect("it starts");
    define(&engine.handle());
    for part in 0..30 {
        match part {
            10 => server.kill(),
            20 => server.restart(),
            _ => {}
        }
        for block in 0..100 {
            let first = (part * 100 + block) * 5;
            sell(&engine.handle(), first..first + 5);
        }
    }
    assert!(engine.handle().health().is_running());
    let report = engine.shutdown(2 * WITHIN);
    assert!(report.is_announced, "{report:?}");
    let wanted = events(log.clone());
    let (_, read) = published(&topics, &wanted);
    let wanted: Vec<Published> = wanted.into_iter().map(Published::Event).collect();
    assert!(read == wanted, "{} of {} events", read.len(), wanted.len());
}

#[test]
fn a_log_that_lost_its_tail_publishes_a_fork_before_it_goes_on() {
    let server = shared();
    // The copy's sink begins before the number of the topic's last batch, and after it.
    loses_its_tail(&Topics::new(&server, "fork-short"), 20, 3);
    loses_its_tail(&Topics::new(&server, "fork-long"), 3, 20);
}

fn loses_its_tail(topics: &Topics, lost_batches: u64, new_batches: u64) {
    let sell_singly = |engine: &Engine, first: u64, count: u64| {
        for user in first..first + count {
            sell(&engine.handle(), user..user + 1);
        }
    };
    let folder = tempfile::tempdir().expect("a temporary folder");
    let (whole, lost) = (folder.path().join("whole"), folder.path().join("lost"));
    let builder = |dir: &std::path::Path| {
        let store = JournalStore::new(JournalOptions::new(dir));
        Engine::builder().store(store).log(JournalReader::new(dir))
    };
    let sink = || KafkaSink::new(&topics.cluster(), 0).topic(&topics.topic("events"));
    let ends = |engine: Engine| {
        let report = engine.shutdown(WITHIN);
        assert!(report.is_clean && report.is_announced, "{report:?}");
    };
    let engine = builder(&whole).sink(sink()).start().expect("it starts");
    define(&engine.handle());
    sell(&engine.handle(), 0..5);
    ends(engine);
    let common = events(JournalReader::new(&whole)).len();
    std::fs::create_dir(&lost).expect("an empty folder");
    for file in std::fs::read_dir(&whole).expect("a journal").flatten() {
        std::fs::copy(file.path(), lost.join(file.file_name())).expect("room");
    }
    let engine = builder(&whole).sink(sink()).start().expect("it recovers");
    sell_singly(&engine, 100, lost_batches);
    ends(engine);
    let told = events(JournalReader::new(&whole));
    // The copy has lost those. Its writer's first life has no sink: what it did there is not to be missed.
    ends(builder(&lost).start().expect("it recovers"));
    let engine = builder(&lost).start().expect("it recovers");
    sell_singly(&engine, 200, new_batches);
    ends(engine);
    let engine = builder(&lost).sink(sink()).start().expect("it recovers");
    sell(&engine.handle(), 300..310);
    ends(engine);
    let wanted = events(JournalReader::new(&lost));
    let (_, read) = published(topics, &wanted);
    let (before, after) = read.split_at(told.len());
    let as_published = |events: &[Event]| -> Vec<Published> {
        events.iter().cloned().map(Published::Event).collect()
    };
    assert_eq!(before, as_published(&told));
    let sequence = common as u64;
    assert_eq!(after[0], Published::Fork { sequence });
    assert_eq!(after[1..], as_published(&wanted[common..]));
}
