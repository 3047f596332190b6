//! Four pools of one SKU on four partitions, each with a writer of its own, all on one database: real brokers, real PostgreSQL.

use crate::servers::{Server, proxy::Proxy};
use crate::{ADMIN, WITHIN, key, name, shared, until};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use stockade::allocator::{Allocator, Limits};
use stockade::engine::{CommandError, Engine, State};
use stockade::kafka::{
    AskError, Body, ClientOptions, KafkaClient, KafkaCluster, KafkaSource, NamedTransfer,
    Placement, Reply, Request, SourceOptions, TopicSettings,
};
use stockade::pools::{
    KafkaPool, Pool, PooledStock, Pools, PoolsAudit, TransferError, Whereabouts, audit, pool_of,
};
use stockade::postgres::{PostgresAudit, PostgresLog, PostgresOptions, PostgresStore};
use stockade::store::ReadLog;
use stockade::types::{
    Confirmation, Decision, Deposit, EventKind, Gate, PoolView, Reason, Refusal, ReservationId,
    Rules, SystemClock, UserId, Withdraw,
};

const POOLS: u16 = 4;
/// Shorter than a writer takes that commits nothing.
const ANSWER_WITHIN: Duration = Duration::from_millis(500);

/// A writer as a process has it: its way to the database, the engine on it, and the source that feeds it.
struct Writer {
    source: KafkaSource,
    engine: Engine,
    way: Proxy,
}

/// Topics with a partition for each pool, and the database that they share.
struct World {
    brokers: String,
    topic: &'static str,
    writers: Vec<Mutex<Writer>>,
    /// Writers that were cut off and replaced, and know nothing of it yet.
    zombies: Mutex<Vec<Writer>>,
    /// Ends after the writers.
    database: Server,
}

impl World {
    fn new(broker: &Server, topic: &'static str) -> Self {
        let brokers = format!("127.0.0.1:{}", broker.port());
        let names = ["requests", "replies", "dead"].map(|kind| format!("{topic}-{kind}"));
        let settings = names.iter().map(|name| TopicSettings {
            name,
            partitions: POOLS.into(),
            replicas: 1,
            properties: &[],
        });
        let settings: Vec<_> = settings.collect();
        let made = KafkaCluster::new(&brokers).create_topics(&settings, WITHIN);
        made.expect("a broker that runs");
        let mut world = Self {
            brokers,
            topic,
            database: Server::start("postgres.sh", &[]),
            writers: Vec::new(),
            zombies: Mutex::default(),
        };
        PostgresStore::migrate(&Self::options(world.database.port())).expect("a new schema");
        world.writers = (0..POOLS)
            .map(|shard| Mutex::new(world.writer(shard)))
            .collect();
        world
    }

    fn cluster(&self) -> KafkaCluster {
        KafkaCluster::new(&self.brokers)
    }

    fn options(port: u16) -> PostgresOptions {
        PostgresOptions::new(format!("postgres://stockade@127.0.0.1:{port}/stockade"))
    }

    /// Takes the role of a shard from whoever has it.
    fn writer(&self, shard: u16) -> Writer {
        let way = Proxy::start(self.database.port());
        let store = PostgresStore::new(Self::options(way.port()));
        let builder = Engine::builder().name(&format!("pool-{shard}"));
        let engine = builder.shard(shard).store(store).start();
        let engine = engine.expect("the log is whole");
        let mut options = SourceOptions::new(shard);
        options.requests = format!("{}-requests", self.topic);
        options.replies = format!("{}-replies", self.topic);
        options.dead_letters = format!("{}-dead", self.topic);
        options.group = self.topic.into();
        let source = KafkaSource::start(&self.cluster(), options, engine.handle());
        Writer {
            way,
            engine,
            source: source.expect("it starts"),
        }
    }

    /// Cuts a writer off from the database, in the middle of whatever it does.
    fn cut_off(&self, shard: u16) {
        let writer = self.writers[usize::from(shard)].lock();
        writer.expect("nobody panicked").way.close();
    }

    /// Another process takes the role of a writer that is cut off.
    fn replace(&self, shard: u16) {
        let mut writer = self.writers[usize::from(shard)]
            .lock()
            .expect("nobody panicked");
        let zombie = std::mem::replace(&mut *writer, self.writer(shard));
        self.zombies.lock().expect("nobody panicked").push(zombie);
    }

    fn placement() -> Placement {
        let placement = Placement::new(POOLS.into()).pools(name("HOT"), 0..POOLS);
        placement.expect("partitions that there are")
    }

    fn client(&self, node: i32) -> Arc<KafkaClient> {
        let mut options = ClientOptions::new(node, Self::placement());
        options.requests = format!("{}-requests", self.topic);
        options.replies = format!("{}-replies", self.topic);
        options.group = self.topic.into();
        let client = KafkaClient::start(&self.cluster(), options, WITHIN);
        Arc::new(client.expect("it starts"))
    }

    /// Everything from the logs as the database has them: each whole, its rows as it says, and the laws over all of them.
    fn audit(&self) -> (Vec<PoolView>, PoolsAudit) {
        let options = Self::options(self.database.port());
        let views = (0..POOLS).map(|shard| {
            let mut state = Allocator::new(Limits::default(), 1);
            let read = PostgresAudit::run(&options, shard, &mut state, &mut |_| {});
            let read = read.expect("a whole log");
            assert_eq!(read.drift, Vec::<String>::new(), "shard {shard}");
            let report = state.audit();
            assert!(report.is_ok(), "shard {shard}: {report:?}");
            let sku = state.sku(&name("HOT")).expect("it is defined");
            state.pool(sku).expect("it is defined")
        });
        let views: Vec<PoolView> = views.collect();
        let report = audit(&views);
        assert!(report.is_ok(), "{report:?}");
        (views, report)
    }

    /// Ends the writers in good order, and shows that those which were replaced had found that out.
    fn end(self) -> (Vec<PoolView>, PoolsAudit) {
        for zombie in std::mem::take(&mut *self.zombies.lock().expect("nobody panicked")) {
            zombie.way.open();
            let handle = zombie.engine.handle();
            until("it hears that it was replaced", || {
                matches!(handle.health().state, State::Halted(_))
            });
        }
        for writer in &self.writers {
            let running = writer.lock().expect("nobody panicked");
            assert!(running.engine.handle().health().is_running());
            assert_eq!(running.source.status().dead_letters, 0);
        }
        self.audit()
    }

    /// Every user's reservations, by the logs.
    fn reservations(&self) -> BTreeMap<UserId, Vec<ReservationId>> {
        let mut made: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for shard in 0..POOLS {
            let options = Self::options(self.database.port());
            let read = PostgresLog::new(options, shard).read(1, &mut |batch| {
                for event in batch.events() {
                    let event = event.expect("an event");
                    if let EventKind::Reserved { origin, .. } = event.kind {
                        let id = ReservationId::new(event.shard, event.sequence);
                        made.entry(origin.user).or_default().push(id);
                    }
                }
                true
            });
            read.expect("a whole log");
        }
        made
    }
}

/// Asks again, under the same key, until the truth is known.
fn ask(client: &KafkaClient, request: &Request) -> Reply {
    let begun = Instant::now();
    loop {
        match client.ask(request, ANSWER_WITHIN) {
            Ok(reply) => return reply,
            Err(AskError::Unknown | AskError::Unavailable(_)) => {}
            Err(error) => panic!("{error}"),
        }
        assert!(begun.elapsed() < WITHIN, "no answer to {request:?}");
    }
}

/// Defines and opens the SKU in every pool.
fn open(client: &KafkaClient, totals: [u64; POOLS as usize]) {
    for (shard, total) in (0..).zip(totals) {
        let (sku, rules) = (name("HOT"), Rules::default());
        let define = Request::new(ADMIN, key("define"), Body::DefineSku { sku, total, rules });
        let (sku, change, reason) = (name("HOT"), Gate::Open, Reason::default());
        let open = Body::SetGate {
            sku,
            change,
            reason,
        };
        let open = Request::new(ADMIN, key("open"), open);
        for request in [define, open] {
            let sent = client.send_to(shard, &request).expect("room");
            let decision = sent.wait(WITHIN).expect("a writer that runs").decision;
            assert!(!matches!(decision, Decision::Refused(_)), "{decision:?}");
        }
    }
}

/// Nine of ten users are of the first pool.
fn user(number: u64) -> UserId {
    let favoured = !number.is_multiple_of(10);
    let candidates = (0..).map(|n| UserId(u128::from(number) << 32 | n));
    let mut fitting = candidates.filter(|&user| !favoured || pool_of(user, POOLS.into()) == 0);
    fitting.next().unwrap_or_default()
}

/// A buyer, as an API node serves him: told to ask again while units are on their way. What he got, if anything.
fn buys<P: Pool>(pools: &Pools<P>, client: &KafkaClient, user: UserId) -> Option<ReservationId> {
    let begun = Instant::now();
    for attempt in 0.. {
        assert!(begun.elapsed() < 2 * WITHIN, "{user} waits for units");
        if pools.want(user, 1) == Whereabouts::Elsewhere {
            std::thread::park_timeout(Duration::from_millis(5));
            continue;
        }
        let lines = vec![(name("HOT"), 1)];
        let key = key(&format!("{user} {attempt}"));
        let reserve = Request::new(user, key, Body::Reserve { lines });
        match ask(client, &reserve).decision {
            Decision::Reserved(held) => return Some(held.id),
            // Sold out, or another was quicker: with a new key next time, since this one's answer stands.
            Decision::Refused(Refusal::SoldOut { .. }) => {
                if pools.want(user, 1) == Whereabouts::Nowhere {
                    return None;
                }
            }
            other => panic!("{user}: {other:?}"),
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    None
}

/// What goes wrong with some transfers.
struct Trouble {
    world: Arc<World>,
    withdraws: AtomicU64,
    deposits: AtomicU64,
    /// What the logs said between the halves.
    in_flight: Mutex<Vec<(u16, u16, u64)>>,
}

/// A pool whose writer is killed at times, and whose database acknowledges late.
struct Troubled {
    pool: KafkaPool,
    trouble: Arc<Trouble>,
}

impl Pool for Troubled {
    fn shard(&self) -> u16 {
        self.pool.shard()
    }

    fn stock(&self) -> Option<PooledStock> {
        self.pool.stock()
    }

    fn view(&self) -> Result<PoolView, CommandError> {
        self.pool.view()
    }

    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError> {
        let world = &self.trouble.world;
        match self.trouble.withdraws.fetch_add(1, Ordering::Relaxed) {
            // Committed, and its writer doesn't hear of it at once.
            1 => {
                let writer = world.writers[usize::from(self.shard())].lock();
                writer.expect("nobody panicked").way.cut_next_answer();
                self.pool.withdraw(command)
            }
            // The writer is gone before it can decide.
            4 => {
                world.cut_off(self.shard());
                let answer = self.pool.withdraw(command);
                assert!(answer.is_err(), "{answer:?}");
                world.replace(self.shard());
                answer
            }
            _ => self.pool.withdraw(command),
        }
    }

    fn deposit(&self, command: Deposit) -> Result<u64, CommandError> {
        let world = &self.trouble.world;
        match self.trouble.deposits.fetch_add(1, Ordering::Relaxed) {
            // Between the halves the receiver's writer is gone. The message lies in the topic for its successor.
            0 | 3 => {
                world.cut_off(self.shard());
                let answer = self.pool.deposit(command);
                assert!(answer.is_err(), "{answer:?}");
                let (_, report) = world.audit();
                let in_flight = report.in_flight.iter();
                let in_flight = in_flight.map(|of| (of.from, of.to, of.units));
                let (from, to) = (command.transfer().from, command.transfer().to);
                let units = command.transfer().units;
                assert_eq!(in_flight.clone().collect::<Vec<_>>(), [(from, to, units)]);
                let mut seen = self.trouble.in_flight.lock().expect("nobody panicked");
                seen.extend(in_flight);
                world.replace(self.shard());
                answer
            }
            // The balancer is gone between the halves.
            2 => Err(CommandError::Unknown),
            _ => self.pool.deposit(command),
        }
    }
}

#[test]
fn four_pools_on_four_partitions_sell_every_unit_though_writers_die_between_the_halves() {
    const TOTAL: u64 = 10_000;
    let broker = shared();
    let world = Arc::new(World::new(&broker, "hot"));
    let client = world.client(0);
    open(&client, [TOTAL / 4; 4]);
    let trouble = Arc::new(Trouble {
        world: Arc::clone(&world),
        withdraws: AtomicU64::new(0),
        deposits: AtomicU64::new(0),
        in_flight: Mutex::default(),
    });
    let pools = KafkaPool::all(&client, &name("HOT")).into_iter();
    let pools = pools.map(|pool| Troubled {
        pool: pool.answer_within(ANSWER_WITHIN),
        trouble: Arc::clone(&trouble),
    });
    let pools = Arc::new(Pools::new(pools.collect()).expect("different shards"));
    pools.step(Duration::ZERO).expect("writers that run");
    let balancing = pools.balance(Arc::new(SystemClock::new()), Duration::from_millis(20));
    let balancing = balancing.expect("a thread");
    let next = AtomicU64::new(0);
    let told = Mutex::new(BTreeMap::new());
    let begun = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..64 {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let user = user(number);
                    let Some(held) = buys(&pools, &client, user) else {
                        return;
                    };
                    let payment = None;
                    let reservation = held;
                    let confirm = Body::Confirm {
                        reservation,
                        payment,
                    };
                    let confirm = Request::new(user, key(&format!("{user} c")), confirm);
                    let confirmed = ask(&client, &confirm).decision;
                    let sold = Decision::Confirmed(Confirmation::Sold { reservation });
                    assert_eq!(confirmed, sold);
                    told.lock().expect("nobody panicked").insert(user, held);
                    if number.is_multiple_of(16) {
                        let lines = vec![(name("HOT"), 1)];
                        let more = key(&format!("{user} more"));
                        let more = Request::new(user, more, Body::Reserve { lines });
                        let refused = ask(&client, &more).decision;
                        let is_limit = matches!(
                            refused,
                            Decision::Refused(Refusal::UserLimit { max: 1, .. })
                        );
                        assert!(is_limit, "{refused:?}");
                    }
                }
            });
        }
    });
    let elapsed = begun.elapsed();
    drop(balancing);
    let told = told.into_inner().expect("nobody panicked");
    assert_eq!(told.len() as u64, TOTAL, "sold out, to the unit");
    assert_eq!(
        trouble.in_flight.lock().expect("nobody panicked").len(),
        2,
        "writers died between halves"
    );
    assert!(trouble.withdraws.load(Ordering::Relaxed) > 4);
    let deposits = trouble.deposits.load(Ordering::Relaxed);
    drop((pools, trouble));
    let made = world.reservations();
    for (user, held) in &told {
        assert_eq!(made.get(user), Some(&vec![*held]), "one, and it was told");
        assert_eq!(usize::from(held.shard()), pool_of(*user, POOLS.into()));
    }
    assert_eq!(made.len(), told.len(), "and nobody else has any");
    let world = Arc::into_inner(world).expect("nobody else");
    let (views, report) = world.end();
    assert_eq!((report.total, report.in_flight), (TOTAL.into(), vec![]));
    assert_eq!(views.iter().map(|view| view.sold).sum::<u64>(), TOTAL);
    assert!(views.iter().all(|view| view.available == 0));
    let sent = |view: &PoolView| view.accounts.iter().map(|of| of.sent.units).sum::<u64>();
    let moved: u64 = views.iter().map(sent).sum();
    // 9,250 of 10,000 buyers are of the first pool, which began with a quarter.
    assert!(moved >= 6_000, "{moved} units moved");
    eprintln!("{TOTAL} units in {elapsed:?}; {moved} moved by {deposits} deposits");
}

#[test]
fn units_that_a_balancer_left_in_flight_arrive_through_another_and_its_late_messages_change_nothing()
 {
    let broker = shared();
    let world = World::new(&broker, "left");
    let client = world.client(0);
    open(&client, [10, 0, 0, 0]);
    let pools = |client: &Arc<KafkaClient>| {
        let pools = KafkaPool::all(client, &name("HOT"));
        Pools::new(pools).expect("different shards")
    };
    let all = pools(&client);
    assert_eq!(all.step(Duration::ZERO), Ok(0));
    // Another process withdraws, and dies.
    let half = |number, units| NamedTransfer {
        sku: name("HOT"),
        from: 0,
        to: 3,
        number,
        units,
    };
    let sender = UserId(77);
    let withdraw = Request::new(sender, key("out"), Body::Withdraw(half(1, 4)));
    let dying = world.client(1);
    let sent = dying.send(&withdraw).expect("room");
    let left = sent.wait(WITHIN).expect("a writer that runs").decision;
    assert_eq!(left, Decision::Withdrawn { units: 4 });
    drop(dying);
    let (_, report) = world.audit();
    assert_eq!(report.in_flight.len(), 1, "{report:?}");
    // Nobody wants anything; the one that runs all the same brings it where it belongs.
    assert_eq!(all.step(Duration::ZERO), Ok(4));
    let deposit = Request::new(sender, key("in"), Body::Deposit(half(1, 4)));
    let again = Request::new(sender, key("out again"), Body::Withdraw(half(1, 9)));
    for _ in 0..2 {
        let decisions = [&deposit, &again, &withdraw].map(|late| ask(&client, late).decision);
        let units = 4;
        assert_eq!(
            decisions,
            [
                Decision::Deposited { units },
                Decision::Withdrawn { units },
                Decision::Withdrawn { units }
            ]
        );
    }
    let beyond = Request::new(sender, key("beyond"), Body::Deposit(half(3, 1)));
    assert_eq!(
        ask(&client, &beyond).decision,
        Decision::Refused(Refusal::OutOfOrder { expected: 2 })
    );
    // A pool whose writer is away keeps its units and stops no other.
    world.cut_off(1);
    let buyer = |pool| (0..100).map(UserId).find(|&user| pool_of(user, 4) == pool);
    let buyer = buyer(2).expect("a quarter of them");
    assert_eq!(all.want(buyer, 1), Whereabouts::Elsewhere);
    let stepped = all.step(Duration::ZERO);
    let is_away = matches!(stepped, Err(TransferError::Pool { shard: 1, .. }));
    assert!(is_away, "{stepped:?}");
    assert_eq!(all.want(buyer, 1), Whereabouts::Here);
    assert_eq!(
        buys(&all, &client, buyer).map(ReservationId::shard),
        Some(2)
    );
    world.replace(1);
    assert!(all.step(Duration::from_secs(1)).is_ok());
    drop((all, client));
    let (views, report) = world.end();
    assert_eq!((report.total, report.in_flight), (10, vec![]));
    let sold: Vec<u64> = views.iter().map(|view| view.reserved).collect();
    assert_eq!(sold, [0, 0, 1, 0]);
}
