//! The whole way through Kafka: an API node's client, a broker, the source, an engine, the reply, back to the caller; on an engine
//! in memory, and on the whole system: PostgreSQL as the store, Redis written through, events to Kafka. All of it on this machine.
//!
//! *Open loop*: 25,000 reservations a second are offered by one pacing thread; latency counts from the intended start to the moment
//! at which the caller has his reply. *Sell-out*: the same with units for 4 in 100. *Flood*: as fast as the client takes them. Each
//! reservation is of a new user with a new key. The run must end with as many units sold as the replies say.
//!
//! Run: `cargo bench --features kafka,postgres,redis --bench kafka`, some 10 minutes; `-- --seconds 20 --rounds 1` for a shorter
//! look, `-- --only system` for one engine, `-- --test` for each row once. Needs Java 17, and Maven once, PostgreSQL and Redis.
//! Figures are medians over the rounds.
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::cast_precision_loss, reason = "rates are for people")]

#[path = "../tests/servers/mod.rs"]
#[expect(dead_code, reason = "shared with the tests")]
mod servers;

use servers::Server;
use std::sync::mpsc::sync_channel;
use std::time::{Duration, Instant};
use stockade::engine::Engine;
use stockade::kafka::{
    Body, ClientOptions, KafkaClient, KafkaCluster, KafkaSink, KafkaSource, Pending, Placement,
    Request, SourceOptions, TopicSettings,
};
use stockade::postgres::{PostgresLog, PostgresOptions, PostgresStore};
use stockade::redis::{RedisCache, RedisOptions};
use stockade::types::{Decision, DefineSku, Gate, IdempotencyKey, Rules, SetGate, SkuName, UserId};

type Failure = Box<dyn std::error::Error>;

const OFFERED_PER_S: u64 = 25_000;
const WITHIN: Duration = Duration::from_secs(60);
/// What servers with such a load are given: memory, a compiler that optimises, and disks that are written to steadily. Left alone,
/// the kernel writes half a gigabyte at once every half minute, and every commit waits for it.
const KAFKA: [&str; 4] = [
    "-Xms1g",
    "-Xmx1g",
    "-XX:TieredStopAtLevel=4",
    "log.flush.scheduler.interval.ms=1000",
];
const POSTGRES: [&str; 3] = [
    "shared_buffers=1GB",
    "max_wal_size=4GB",
    "backend_flush_after=2MB",
];

struct Row {
    name: &'static str,
    /// A second; `None`: as fast as it goes.
    offered: Option<u64>,
    requests: u64,
    /// Of 100 requests, so many find a unit.
    served: u64,
}

/// What one run of a row came to.
struct Figures {
    decided_per_s: f64,
    /// Median, 95th and 99th percentile, and the longest, in milliseconds.
    latency_ms: [f64; 4],
    not_sent: u64,
    unknown: u64,
}

/// Servers beside the broker.
struct Backends {
    postgres: Server,
    redis: Server,
}

/// One engine behind the broker.
struct Way {
    name: &'static str,
    engine: Engine,
    source: KafkaSource,
    client: KafkaClient,
    skus: u64,
}

impl Way {
    fn start(
        name: &'static str,
        cluster: &KafkaCluster,
        backends: Option<&Backends>,
    ) -> Result<Self, Failure> {
        let topic = |of: &str| format!("{name}-{of}");
        let names = ["requests", "replies", "events", "dead-letters"].map(topic);
        let topics = names.each_ref().map(|name| TopicSettings {
            name,
            partitions: 1,
            replicas: 1,
            properties: &[],
        });
        cluster.create_topics(&topics, WITHIN)?;
        let [requests, replies, events, dead_letters] = names;
        let mut builder = Engine::builder();
        if let Some(Backends { postgres, redis }) = backends {
            let url = format!("postgres://stockade@127.0.0.1:{}/stockade", postgres.port());
            let options = PostgresOptions::new(url);
            PostgresStore::migrate(&options)?;
            let redis = RedisOptions::new(&format!("redis://127.0.0.1:{}", redis.port()))?;
            builder = builder
                .store(PostgresStore::new(options.clone()))
                .log(PostgresLog::new(options, 0))
                .cache(RedisCache::new(&redis))
                .sink(KafkaSink::new(cluster, 0).topic(&events));
        }
        let engine = builder.start()?;
        let mut options = SourceOptions::new(0);
        (options.requests, options.replies) = (requests.clone(), replies.clone());
        (options.dead_letters, options.group) = (dead_letters, topic("group"));
        let source = KafkaSource::start(cluster, options, engine.handle())?;
        let mut options = ClientOptions::new(0, Placement::new(1));
        (options.requests, options.replies) = (requests, replies);
        options.group = topic("group");
        let client = KafkaClient::start(cluster, options, WITHIN)?;
        Ok(Self {
            name,
            engine,
            source,
            client,
            skus: 0,
        })
    }

    fn end(self) {
        let status = self.source.stop();
        assert_eq!((status.dead_letters, status.replies_lost), (0, 0));
        let report = self.engine.shutdown(WITHIN);
        assert!(report.is_clean && report.is_announced, "{report:?}");
    }
}

fn main() -> Result<(), Failure> {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let given = |flag: &str| {
        let mut rest = std::env::args().skip_while(|argument| argument != flag);
        rest.nth(1).map(|value| value.parse::<u64>()).transpose()
    };
    let (seconds, rounds) = if is_test { (1, 1) } else { (60, 3) };
    let seconds = given("--seconds")?.unwrap_or(seconds);
    let rounds = given("--rounds")?.unwrap_or(rounds);
    let server = Server::start("kafka.sh", &KAFKA.map(str::to_owned));
    let backends = Backends {
        postgres: Server::start("postgres.sh", &POSTGRES.map(str::to_owned)),
        redis: Server::start("redis.sh", &[]),
    };
    let cluster = KafkaCluster::new(&format!("127.0.0.1:{}", server.port()));
    let rows = [
        ("open loop", Some(OFFERED_PER_S), seconds, 100),
        ("sell-out", Some(OFFERED_PER_S), seconds, 4),
        ("flood", None, seconds.min(20), 100),
    ];
    println!(
        "| row | offered/s | decided/s | p50 ms | p95 ms | p99 ms | max ms | not sent | unknown |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    let only = std::env::args()
        .skip_while(|argument| argument != "--only")
        .nth(1);
    for (name, backends) in [("memory", None), ("system", Some(&backends))] {
        if only.as_ref().is_some_and(|only| only != name) {
            continue;
        }
        let mut way = Way::start(name, &cluster, backends)?;
        // The broker's compiler takes its time.
        let warm_up = Row {
            name: "warm-up",
            offered: Some(OFFERED_PER_S),
            requests: OFFERED_PER_S * (seconds / 2).clamp(1, 30),
            served: 100,
        };
        run(&mut way, &warm_up)?;
        for (name, offered, seconds, served) in rows {
            let row = Row {
                name,
                offered,
                requests: OFFERED_PER_S * seconds,
                served,
            };
            let figures: Result<Vec<Figures>, Failure> =
                (0..rounds).map(|_| run(&mut way, &row)).collect();
            print(&way, &row, &figures?);
        }
        way.end();
    }
    Ok(())
}

/// Medians over the rounds; what was lost, in all of them.
fn print(way: &Way, row: &Row, rounds: &[Figures]) {
    let median = |of: &dyn Fn(&Figures) -> f64| {
        let mut all: Vec<f64> = rounds.iter().map(of).collect();
        all.sort_unstable_by(f64::total_cmp);
        all[all.len() / 2]
    };
    let latency = |at: usize| median(&|figures: &Figures| figures.latency_ms[at]);
    let sum = |of: fn(&Figures) -> u64| rounds.iter().map(of).sum::<u64>();
    println!(
        "| {}, {} | {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {} |",
        way.name,
        row.name,
        row.offered
            .map_or("as it goes".to_owned(), |rate| rate.to_string()),
        median(&|figures: &Figures| figures.decided_per_s),
        latency(0),
        latency(1),
        latency(2),
        latency(3),
        sum(|figures| figures.not_sent),
        sum(|figures| figures.unknown),
    );
}

fn run(way: &mut Way, row: &Row) -> Result<Figures, Failure> {
    way.skus += 1;
    let (handle, client, index) = (way.engine.handle(), &way.client, way.skus);
    let admin = UserId(u128::MAX);
    let sku = SkuName::new(&format!("SKU-{index}"))?;
    let units = row.requests * row.served / 100;
    // No hold of one row lapses in another.
    let rules = Rules {
        hold_ms: 86_400_000,
        ..Rules::default()
    };
    let define = DefineSku::new(admin, sku.clone(), units).rules(rules)?;
    let id = handle.define_sku(define)?.wait()?;
    handle
        .set_gate(SetGate::new(admin, id, Gate::Open))?
        .wait()?;
    let (sent, collected) = sync_channel::<(Duration, Pending)>(1 << 17);
    let begun = Instant::now();
    let (mut latencies, refused, unknown) = std::thread::scope(|scope| {
        let collector = scope.spawn(move || {
            let (mut latencies, mut refused, mut unknown) = (Vec::new(), 0_u64, 0_u64);
            for (intended, pending) in collected {
                match pending.wait(WITHIN) {
                    Ok(reply) => {
                        latencies.push(begun.elapsed().saturating_sub(intended));
                        refused += u64::from(!matches!(reply.decision, Decision::Reserved(_)));
                    }
                    Err(_) => unknown += 1,
                }
            }
            (latencies, refused, unknown)
        });
        for number in 0..row.requests {
            let intended = match row.offered {
                Some(rate) => Duration::from_nanos(number * 1_000_000_000 / rate),
                None => begun.elapsed(),
            };
            while begun.elapsed() < intended {
                // The pacing itself: requests become due with time. Latency counts from when one was due, so that a late
                // wake-up counts too.
                std::thread::sleep(Duration::from_millis(1));
            }
            let unique = u128::from(index << 40 | (number + 1));
            let key = IdempotencyKey::new(unique).unwrap_or_else(|| unreachable!("not zero"));
            let lines = vec![(sku.clone(), 1)];
            let request = Request::new(UserId(unique), key, Body::Reserve { lines });
            loop {
                match client.send(&request) {
                    Ok(pending) => drop(sent.send((intended, pending))),
                    Err(_) if row.offered.is_none() => {
                        // A flood waits for room, and a refusal tells nobody when there is some again.
                        std::thread::sleep(Duration::from_millis(1));
                        continue;
                    }
                    Err(_) => {}
                }
                break;
            }
        }
        drop(sent);
        collector.join().unwrap_or_default()
    });
    let took = begun.elapsed();
    latencies.sort_unstable();
    let decided = latencies.len() as u64;
    let stock = handle.availability(id).ok_or("the SKU is known")?;
    // What was told is so; what is unknown may be either.
    assert!((decided - refused..=decided - refused + unknown).contains(&stock.reserved));
    assert!(stock.reserved <= units);
    let ms = |of: usize| {
        let at = (latencies.len() * of / 1_000).min(latencies.len().saturating_sub(1));
        latencies
            .get(at)
            .map_or(0.0, |latency| latency.as_secs_f64() * 1e3)
    };
    Ok(Figures {
        decided_per_s: decided as f64 / took.as_secs_f64(),
        latency_ms: [500, 950, 990, 1_000].map(ms),
        not_sent: row.requests - decided - unknown,
        unknown,
    })
}
