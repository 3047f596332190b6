//! The whole way through Kafka: an API node's client, a broker, the source, an engine in memory, the reply, back to the caller. Broker
//! and all on this machine.
//!
//! *Open loop*: 25,000 reservations a second are offered by one pacing thread; latency counts from the intended start to the moment at
//! which the caller has his reply. *Sell-out*: the same with units for 4 in 100. *Flood*: as fast as the client takes them.
//! Each reservation is of a new user with a new key. The run must end with as many units sold as the replies say.
//!
//! Run: `cargo bench --features kafka --bench kafka`; `-- --test` runs it short. Needs Java 17, and Maven once.
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
    Body, ClientOptions, KafkaClient, KafkaCluster, KafkaSource, Pending, Placement, Request,
    SourceOptions, TopicSettings,
};
use stockade::types::{Decision, DefineSku, Gate, IdempotencyKey, SetGate, SkuName, UserId};

type Failure = Box<dyn std::error::Error>;

const OFFERED_PER_S: u64 = 25_000;
const WITHIN: Duration = Duration::from_secs(60);

struct Row {
    name: &'static str,
    /// A second; `None`: as fast as it goes.
    offered: Option<u64>,
    requests: u64,
    /// Of 100 requests, so many find a unit.
    served: u64,
}

fn main() -> Result<(), Failure> {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let seconds = if is_test { 1 } else { 20 };
    let server = Server::start("kafka.sh", &[]);
    let cluster = KafkaCluster::new(&format!("127.0.0.1:{}", server.port()));
    let topics = [
        "reservation-requests",
        "reservation-replies",
        "reservation-dead-letters",
    ];
    let topics = topics.map(|name| TopicSettings {
        name,
        partitions: 1,
        replicas: 1,
        properties: &[],
    });
    cluster.create_topics(&topics, WITHIN)?;
    let engine = Engine::builder().start()?;
    let source = KafkaSource::start(&cluster, SourceOptions::new(0), engine.handle())?;
    let options = ClientOptions::new(0, Placement::new(1));
    let client = KafkaClient::start(&cluster, options, WITHIN)?;
    let rows = [
        ("warm-up", Some(OFFERED_PER_S), seconds / 4 + 1, 100),
        ("open loop", Some(OFFERED_PER_S), seconds, 100),
        ("sell-out", Some(OFFERED_PER_S), seconds, 4),
        ("flood", None, seconds, 100),
    ];
    println!(
        "| row | offered/s | decided/s | p50 ms | p95 ms | p99 ms | max ms | not sent | unknown |"
    );
    println!("|---|---|---|---|---|---|---|---|---|");
    for (index, (name, offered, seconds, served)) in (0..).zip(rows) {
        let requests = OFFERED_PER_S * seconds;
        let row = Row {
            name,
            offered,
            requests,
            served,
        };
        run(&engine, &client, index, &row)?;
    }
    let status = source.stop();
    assert_eq!((status.dead_letters, status.replies_lost), (0, 0));
    Ok(())
}

fn run(engine: &Engine, client: &KafkaClient, index: u64, row: &Row) -> Result<(), Failure> {
    let (handle, admin) = (engine.handle(), UserId(u128::MAX));
    let sku = SkuName::new(&format!("SKU-{index}"))?;
    let units = row.requests * row.served / 100;
    let id = handle
        .define_sku(DefineSku::new(admin, sku.clone(), units))?
        .wait()?;
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
    println!(
        "| {} | {} | {:.0} | {:.1} | {:.1} | {:.1} | {:.1} | {} | {unknown} |",
        row.name,
        row.offered
            .map_or("flood".to_owned(), |rate| rate.to_string()),
        decided as f64 / took.as_secs_f64(),
        ms(500),
        ms(950),
        ms(990),
        ms(1_000),
        row.requests - decided - unknown,
    );
    Ok(())
}
