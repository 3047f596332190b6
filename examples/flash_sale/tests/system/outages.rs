//! What fails, under load, on real servers and processes: whatever a buyer was told stands, nothing is decided twice, and the
//! sale goes on by itself.

use crate::backends::System;
use crate::backends::servers::proxy::Proxy;
use crate::common::crowd::{Crowd, Told, all_are_explained, tokens};
use crate::common::{Answer, ONE, Server, becomes, signal, token};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};
use stockade::kafka::{Body, ClientOptions, KafkaClient, KafkaCluster, Placement, Request};
use stockade::types::{IdempotencyKey, SkuName, UserId};

/// A standby decides so soon after its writer was paused or cut off.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Everybody has noticed by then.
const NOTICED: Duration = Duration::from_secs(20);

/// A sale with two API nodes and a crowd.
struct Sale {
    system: System,
    nodes: [Server; 2],
    crowd: Option<Crowd>,
    told: Vec<Told>,
    _alone: MutexGuard<'static, ()>,
}

impl Sale {
    /// Gives also its writer, which reaches PostgreSQL on the port that is chosen.
    fn begin(port: impl FnOnce(&System) -> u16) -> (Self, Server) {
        let alone = crate::alone();
        let system = System::start();
        let port = port(&system);
        let writer = system.writer_through(port).listens();
        let nodes = [system.node(0), system.node(1)];
        let mut sale = Self {
            system,
            nodes,
            crowd: None,
            told: Vec::new(),
            _alone: alone,
        };
        sale.crowd_comes("a");
        sale.sells();
        (sale, writer)
    }

    fn crowd_comes(&mut self, name: &str) {
        let nodes = self.nodes.each_ref().map(|node| node.address);
        self.crowd = Some(Crowd::start(&nodes, name, &tokens(12)));
    }

    /// The crowd gets some more.
    fn sells(&self) {
        self.crowd.as_ref().expect("it is here").hears(50);
    }

    fn crowd_goes(&mut self) {
        let told = self.crowd.take().map(Crowd::stop);
        self.told.extend(told.into_iter().flatten());
    }

    /// Nothing that was told is lost or twofold, and everybody says the same.
    #[track_caller]
    fn ends(mut self, writer: Server) {
        self.crowd_goes();
        assert!(self.told.len() >= 100, "there was no load");
        // What nodes show of a reservation is as old as the cache.
        self.system.places.agrees();
        for node in &self.nodes {
            all_are_explained(node, &self.told);
        }
        assert!(writer.terminate());
        self.system.places.agrees();
    }

    fn stock(&self) -> Answer {
        self.nodes[0].get("/api/products/SNEAKER/availability")
    }

    /// Reads go on; within some seconds they say whether they may be old.
    #[track_caller]
    fn reads_become(&self, is_stale: bool) {
        let begun = Instant::now();
        let says = || self.stock().is(200).json()["stale"].as_bool();
        while says().unwrap_or(false) != is_stale {
            assert!(begun.elapsed() < NOTICED, "{:?}", self.stock());
        }
    }

    /// Whoever asks in vain is told to come again, and not that he gets nothing.
    #[track_caller]
    fn is_unavailable(&self, user: &str, codes: &[&str]) {
        let answer = self.nodes[1].reserve(&token(user), user, ONE).is(503);
        let code = answer.text("code");
        assert!(codes.contains(&code.as_str()), "{answer:?}");
        let head = answer.head.to_lowercase();
        assert!(head.contains("retry-after"), "{answer:?}");
    }
}

fn direct(system: &System) -> u16 {
    system.postgres.port()
}

/// The zombie ends, not in good order, and says why.
#[track_caller]
fn is_fenced(zombie: Server) {
    let (is_well, said) = zombie.ends();
    assert!(!is_well && said.contains("another writer"), "{said}");
}

#[test]
fn a_paused_writer_is_replaced_and_wakes_up_to_say_nothing() {
    let (mut sale, writer) = Sale::begin(direct);
    let standby = sale.system.standby();
    let paused = Instant::now();
    signal(&writer.child, "STOP");
    let next = standby.listens();
    sale.sells();
    println!("50 reservations {:?} after the pause", paused.elapsed());
    signal(&writer.child, "CONT");
    is_fenced(writer);
    sale.sells();

    // Without traffic.
    sale.crowd_goes();
    let standby = sale.system.standby();
    let paused = Instant::now();
    signal(&next.child, "STOP");
    let last = standby.listens();
    assert!(paused.elapsed() < TAKEOVER, "{:?}", paused.elapsed());
    signal(&next.child, "CONT");
    is_fenced(next);
    sale.crowd_comes("b");
    sale.sells();
    sale.ends(last);
}

#[test]
fn a_writer_that_is_cut_off_from_the_store_is_replaced_and_answers_nothing() {
    let mut proxy = None;
    let (sale, writer) = Sale::begin(|system| {
        let between = Proxy::start(system.postgres.port());
        proxy.insert(between).port()
    });
    let proxy = proxy.expect("it was started");
    let standby = sale.system.standby();
    let cut = Instant::now();
    proxy.stall();
    let next = standby.listens();
    assert!(cut.elapsed() < TAKEOVER, "{:?}", cut.elapsed());
    sale.sells();
    println!("50 reservations {:?} after the cut", cut.elapsed());
    proxy.open();
    is_fenced(writer);
    sale.sells();
    sale.ends(next);
}

#[test]
fn while_postgres_is_down_reservations_wait_and_reads_go_on() {
    let (mut sale, writer) = Sale::begin(direct);
    // It hangs.
    sale.system.postgres.pause();
    sale.reads_become(true);
    sale.is_unavailable("eve", &["outcome_unknown"]);
    sale.system.postgres.go_on();
    sale.reads_become(false);
    sale.sells();
    // It dies.
    sale.system.postgres.kill();
    sale.reads_become(true);
    sale.is_unavailable("fay", &["outcome_unknown"]);
    sale.system.postgres.restart();
    sale.reads_become(false);
    sale.sells();
    sale.ends(writer);
}

#[test]
fn while_redis_is_down_nobody_notices() {
    let (mut sale, writer) = Sale::begin(direct);
    sale.system.redis.kill();
    sale.sells();
    sale.reads_become(false);
    sale.sells();
    sale.system.redis.restart();
    sale.sells();
    sale.system.redis.pause();
    sale.sells();
    sale.reads_become(false);
    sale.system.redis.go_on();
    sale.sells();
    sale.ends(writer);
}

#[test]
fn while_kafka_is_down_nodes_say_so_and_the_writer_keeps_its_state() {
    let (mut sale, writer) = Sale::begin(direct);
    sale.system.kafka.kill();
    sale.is_unavailable("eve", &["unavailable", "outcome_unknown"]);
    sale.is_unavailable("fay", &["unavailable"]);
    sale.reads_become(false);
    assert_eq!(writer.get("/livez").status, 200);
    sale.system.kafka.restart();
    sale.sells();
    sale.system.kafka.pause();
    sale.is_unavailable("gus", &["unavailable", "outcome_unknown"]);
    sale.is_unavailable("hal", &["unavailable"]);
    assert_eq!(writer.get("/livez").status, 200);
    sale.system.kafka.go_on();
    sale.sells();
    sale.ends(writer);
}

#[test]
fn a_writer_that_is_far_behind_gets_no_more_until_it_has_caught_up() {
    let (sale, writer) = Sale::begin(direct);
    signal(&writer.child, "STOP");
    // A hundred thousand requests wait; whoever sent them has left.
    let brokers = sale.system.places.ingest.trim_start_matches("kafka://");
    let mut options = ClientOptions::new(7, Placement::new(1));
    options.in_flight_max = 1 << 18;
    let client = KafkaClient::start(&KafkaCluster::new(brokers), options, NOTICED);
    let client = client.expect("a broker");
    let sku = SkuName::new("SNEAKER").expect("a name");
    let mut left = Vec::new();
    for number in 1..=100_001 {
        let key = IdempotencyKey::new(number).expect("not zero");
        let lines = vec![(sku.clone(), 1)];
        let request = Request::new(UserId(number), key, Body::Reserve { lines });
        left.push(client.send(&request).expect("room"));
    }
    becomes("what the node knows of it", "far behind", || {
        let metrics = sale.nodes[1].get("/metrics").body;
        let lag = metrics.lines().find_map(|line| {
            let lag = line.strip_prefix("kafka_lag{partition=\"0\"} ")?;
            lag.parse::<u64>().ok()
        });
        match lag.expect("a metric") {
            100_001.. => "far behind".into(),
            lag => lag.to_string(),
        }
    });
    sale.is_unavailable("fay", &["lagging"]);
    sale.reads_become(false);
    drop((left, client));
    signal(&writer.child, "CONT");
    sale.sells();
    sale.ends(writer);
}

#[test]
fn while_postgres_takes_no_more_connections_the_writer_keeps_its_own() {
    let (sale, writer) = Sale::begin(direct);
    let occupants = Occupants::of(&sale.system);
    sale.sells();
    sale.reads_become(false);
    drop(occupants);
    sale.sells();
    sale.ends(writer);
}

/// Who have every connection that there still is.
struct Occupants(Vec<Child>);

impl Occupants {
    fn of(system: &System) -> Self {
        assert_eq!(system.places.sql("CREATE ROLE crowd LOGIN"), "CREATE ROLE");
        let url = system.places.store.replace("stockade@", "crowd@");
        let max = system.places.sql("SHOW max_connections").parse();
        let sleepers = (0..max.expect("a number")).map(|_: u32| {
            let sleeper = Command::new("psql")
                .args(["-qAtc", "SELECT pg_sleep(600)", &url])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            sleeper.expect("psql runs")
        });
        let mut all = Self(sleepers.collect());
        // One that finds no room ends.
        let begun = Instant::now();
        let mut has_ended = || {
            let mut sleepers = all.0.iter_mut();
            sleepers.any(|sleeper| matches!(sleeper.try_wait(), Ok(Some(_))))
        };
        while !has_ended() {
            assert!(begun.elapsed() < NOTICED, "there is room for all");
            // Other processes tell nobody.
            std::thread::sleep(Duration::from_millis(10));
        }
        all
    }
}

impl Drop for Occupants {
    fn drop(&mut self) {
        for sleeper in &mut self.0 {
            let _ = sleeper.kill();
            let _ = sleeper.wait();
        }
    }
}
