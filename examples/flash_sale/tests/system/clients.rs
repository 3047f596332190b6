//! What buyers meet at an API node when they leave, pay twice, or ask while something hangs, and what it reads of several writers.

use crate::backends::System;
use crate::backends::servers::proxy::Proxy;
use crate::common::{Answer, ONE, Server, becomes, token};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};
use stockade::engine::Engine;
use stockade::kafka::Placement;
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::types::{Clock, ManualClock, ReservationId, SkuName, SystemClock};

/// Readers who ask for what is not there, all at once.
const CROWD: u64 = 300;
/// One whom Redis can answer waits for no longer, whatever else hangs.
const SOON: Duration = Duration::from_secs(2);
/// And nobody for longer than this, with everybody on two cores.
const BOUNDED: Duration = Duration::from_secs(5);
/// Everybody has noticed by then that a server is back.
const NOTICED: Duration = Duration::from_secs(20);

/// A metric of a server; 0 before it counts.
fn metric(server: &Server, name: &str) -> u64 {
    let metrics = server.get("/metrics").is(200).body;
    let value = metrics.lines().find_map(|line| line.strip_prefix(name));
    value.map_or(0, |value| value.trim().parse().expect("a number"))
}

#[test]
fn who_pays_at_a_node_is_told_what_became_of_it_and_who_leaves_has_bought() {
    let _alone = crate::alone();
    let mut system = System::start();
    let writer = system.writer().listens();
    let node = system.node(0);

    let (ann, hers) = node.reserves("ann");
    node.checkout(&ann, &hers, "card-1").is(200);
    node.checkout(&ann, &hers, "card-2")
        .is_problem(409, "confirmed");

    let (bob, his) = node.reserves("bob");
    node.leaves_checkout(&bob, &his, "slow card");
    becomes("his order", "CONFIRMED", || node.status_of(&bob, &his));

    // Kafka is away when the money is taken: he is told so and goes, and the confirm comes once it is back.
    let (cem, held) = node.reserves("cem");
    let answer = thread::scope(|scope| {
        let pays = scope.spawn(|| node.checkout(&cem, &held, "slow card"));
        becomes("the reservation", "IN_PAYMENT", || {
            node.status_of(&cem, &held)
        });
        system.kafka.kill();
        pays.join().expect("an answer")
    });
    answer.is(503);
    system.kafka.restart();
    let begun = Instant::now();
    while node.status_of(&cem, &held) != "CONFIRMED" {
        assert!(begun.elapsed() < NOTICED, "the payment is forgotten");
    }
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}

#[test]
fn while_postgres_hangs_a_node_shows_what_redis_holds_and_refuses_the_rest_in_time() {
    let _alone = crate::alone();
    let system = System::start();
    let writer = system.writer().listens();
    let proxy = Proxy::start(system.postgres.port());
    let node = system.node_through(proxy.port(), 0, &[]);
    let (ann, hers) = node.reserves("ann");
    let unknown = |number| ReservationId::new(0, (1 << 40) + number).to_string();
    node.reservation("GET", &ann, &unknown(0))
        .is_problem(404, "unknown_reservation");

    proxy.stall();
    thread::scope(|scope| {
        let (node, ann, unknown) = (&node, &ann, &unknown);
        let crowd: Vec<_> = (1..=CROWD)
            .map(|number| {
                scope.spawn(move || {
                    let begun = Instant::now();
                    let answer = node.reservation("GET", ann, &unknown(number));
                    (answer, begun.elapsed())
                })
            })
            .collect();
        let refused = r#"http_requests_total{route="reservation",status="503"}"#;
        becomes("the crowd", "here", || {
            let came = metric(node, "http_connections ") + metric(node, refused);
            if came < CROWD { "on its way" } else { "here" }.into()
        });
        let begun = Instant::now();
        assert_eq!(node.status_of(ann, &hers), "RESERVED");
        assert!(begun.elapsed() < SOON, "{:?}", begun.elapsed());
        for reader in crowd {
            let (answer, took) = reader.join().expect("an answer");
            answer.is_problem(503, "unavailable");
            let head = answer.head.to_lowercase();
            assert!(head.contains("retry-after"), "{answer:?}");
            assert!(took < BOUNDED, "{took:?}");
        }
    });

    // What the writer sells meanwhile is shown all the time.
    for number in 0..10 {
        let _held = node.reserves(&format!("buyer-{number}"));
        let sold = Instant::now();
        let shows = || {
            let stock = node
                .get("/api/products/SNEAKER/availability")
                .is(200)
                .json();
            assert_eq!(stock["stale"].as_bool(), None, "{stock}");
            stock["reserved"].to_string()
        };
        becomes("reserved at the node", &(number + 2).to_string(), shows);
        assert!(sold.elapsed() < SOON / 2, "{:?}", sold.elapsed());
        // What is asked once a second has to hang meanwhile: time is what is tested.
        thread::sleep(Duration::from_millis(300));
    }
    proxy.open();
    becomes("an unknown reservation", "404", || {
        let asked = node.reservation("GET", &ann, &unknown(0));
        asked.status.to_string()
    });
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}

#[test]
fn a_node_reads_the_stock_of_every_shard_from_redis_whoever_took_over() {
    let _alone = crate::alone();
    let system = System::of_shards(2);
    let placement = Placement::new(2);
    let of = |shard| {
        let names = (0..).map(|number| format!("SKU-{number}"));
        let mut own = names.filter(|name| {
            let name = SkuName::new(name).expect("a name");
            placement.partition_of(&name) == shard
        });
        own.next().expect("half of them are")
    };
    let skus = [of(0), of(1)];
    let sold = skus.each_ref().map(|name| format!("{name}=1000"));
    let mut flags = vec!["--per-user", "0", "--hold", "10m"];
    flags.extend(sold.iter().flat_map(|sold| ["--sku", sold]));
    let first = system.writer_of(0, &flags).listens();
    let other = system.writer_of(1, &flags).listens();
    // The first shard's epoch gets ahead of the other's.
    first.kill();
    let first = system.writer_of(0, &flags).listens();
    let node = system.node(0);

    let ann = token("ann");
    let mut held = Vec::new();
    for (sku, key) in skus.iter().zip(["k0", "k1"]) {
        let cart = format!(r#"{{"sku_id":"{sku}","quantity":1}}"#);
        held.push(
            node.reserve(&ann, key, &cart)
                .is(201)
                .text("reservation_id"),
        );
        becomes("reserved", "1", || {
            let stock = node.get(&format!("/api/products/{sku}/availability"));
            stock.is(200).json()["reserved"].to_string()
        });
    }
    let count = |outcome| {
        metric(
            &node,
            &format!("cache_reads_total{{outcome=\"{outcome}\"}}"),
        )
    };
    let (misses, hits) = (count("miss"), count("hit"));
    becomes("many reads", "done", || {
        if count("hit") > hits + 100 {
            "done"
        } else {
            "under way"
        }
        .into()
    });
    for reservation in &held {
        assert_eq!(node.status_of(&ann, reservation), "RESERVED");
    }
    assert_eq!(count("miss"), misses, "Redis holds what all writers write");
    assert!(node.terminate() && first.terminate() && other.terminate());
}

#[test]
fn a_log_ahead_of_the_clocks_sells_and_holds_last_as_long_as_they_say() {
    let _alone = crate::alone();
    let system = System::start();
    // A machine whose clock was a minute ahead has left its stamps.
    let ahead = SystemClock::new().wall().plus(Duration::from_secs(60));
    let engine = Engine::builder()
        .store(PostgresStore::new(PostgresOptions::new(
            &system.places.store,
        )))
        .clock(Arc::new(ManualClock::at(ahead)))
        .start();
    assert!(engine.expect("it starts").shutdown(NOTICED).is_clean);
    let writer = system.writer().listens();
    let node = system.node(0);

    let ann = token("ann");
    let reserved = node.reserve(&ann, "k", ONE).is(201);
    let hers = reserved.text("reservation_id");
    let shown = || node.reservation("GET", &ann, &hers).is(200);
    let ten_minutes = 590.0..=600.0;
    let lasts = |answer: &Answer| answer.json()["expires_in_seconds"].as_f64();
    for answer in [reserved, shown()] {
        let left = lasts(&answer).expect("a number");
        assert!(ten_minutes.contains(&left), "{answer:?}");
    }
    assert!(node.terminate() && writer.terminate());
    system.places.agrees();
}
