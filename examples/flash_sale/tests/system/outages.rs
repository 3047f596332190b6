//! What fails, under load, on real servers and processes: whatever a buyer was told stands, nothing is decided twice, and the
//! sale goes on by itself.

use crate::backends::servers::proxy::Proxy;
use crate::backends::{System, decides_within, lag};
use crate::common::crowd::{Crowd, Told, all_are_explained, tokens};
use crate::common::{Answer, ONE, Server, Starting, becomes, signal, token};
use crate::refusals::{Buyers, all_stand};
use std::process::{Child, Command, Stdio};
use std::sync::MutexGuard;
use std::time::{Duration, Instant};
use stockade::kafka::{Body, ClientOptions, KafkaClient, KafkaCluster, Placement, Request};
use stockade::types::{IdempotencyKey, SkuName, UserId};

/// A standby decides so soon after its writer was paused or cut off.
const TAKEOVER: Duration = Duration::from_secs(5);
/// Everybody has noticed by then.
const NOTICED: Duration = Duration::from_secs(20);

const STOCK: &str = "/api/products/SNEAKER/availability";

/// A sale with two API nodes and a crowd.
struct Sale {
    system: System,
    nodes: [Server; 2],
    crowd: Option<Crowd>,
    told: Vec<Told>,
    _alone: MutexGuard<'static, ()>,
}

impl Sale {
    /// Gives also its writer.
    fn begin() -> (Self, Server) {
        Self::begin_with(System::start, System::writer)
    }

    fn begin_with(
        start: impl FnOnce() -> System,
        writer: impl FnOnce(&System) -> Starting,
    ) -> (Self, Server) {
        let alone = crate::alone();
        let system = start();
        let writer = writer(&system).listens();
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
        if let Some(crowd) = self.crowd.take() {
            let is_whole = crowd.is_whole();
            self.told.extend(crowd.stop());
            assert!(is_whole, "a node broke off");
        }
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
        self.nodes[0].get(STOCK)
    }

    /// The crowd goes. What the nodes show then comes to be what the rows say, as news. Another one comes.
    #[track_caller]
    fn reads_are_right(&mut self, next: &str) {
        self.crowd_goes();
        for node in &self.nodes {
            becomes("a node's stock", "that of the rows", || {
                let shown = node.get(STOCK).is(200).json();
                let counts = ["available", "reserved", "sold"].map(|name| shown[name].to_string());
                let rows = self.system.places.rows();
                if counts.join("|") == rows && shown["stale"].is_null() {
                    return "that of the rows".into();
                }
                format!("{shown}, the rows {rows}")
            });
        }
        self.crowd_comes(next);
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

/// The zombie ends, not in good order, and says why.
#[track_caller]
fn is_fenced(zombie: Server) {
    let (is_well, said) = zombie.ends();
    assert!(!is_well && said.contains("another writer"), "{said}");
}

#[test]
fn a_paused_writer_is_replaced_and_wakes_up_to_say_nothing() {
    let (mut sale, writer) = Sale::begin();
    let buyers = Buyers::start(&sale.nodes);
    let (standby, dan) = (sale.system.standby(), token("dan"));
    let paused = Instant::now();
    signal(&writer.child, "STOP");
    decides_within(&sale.nodes[0], TAKEOVER, paused, &dan);
    let next = standby.listens();
    sale.sells();
    signal(&writer.child, "CONT");
    is_fenced(writer);
    sale.sells();

    // Without traffic.
    sale.crowd_goes();
    let heard = buyers.stop();
    let standby = sale.system.standby();
    let paused = Instant::now();
    signal(&next.child, "STOP");
    let last = standby.listens();
    assert!(paused.elapsed() < TAKEOVER, "{:?}", paused.elapsed());
    signal(&next.child, "CONT");
    is_fenced(next);
    sale.crowd_comes("b");
    sale.sells();
    all_stand(&sale.system.places, &sale.nodes[1], &heard);
    sale.ends(last);
}

#[test]
fn a_writer_that_is_cut_off_from_the_store_is_replaced_and_answers_nothing() {
    let mut proxy = None;
    let (mut sale, writer) = Sale::begin_with(System::start, |system| {
        let between = Proxy::start(system.postgres.port());
        system.writer_through(proxy.insert(between).port())
    });
    let proxy = proxy.expect("it was started");
    let another = Proxy::start(sale.system.postgres.port());
    let buyers = Buyers::start(&sale.nodes);
    let standby = sale.system.standby_through(another.port());
    let dan = token("dan");
    let cut = Instant::now();
    proxy.stall();
    decides_within(&sale.nodes[0], TAKEOVER, cut, &dan);
    let next = standby.listens();
    sale.sells();
    proxy.open();
    is_fenced(writer);
    sale.sells();

    // With refusals alone in line: nothing before them waits for a commit.
    sale.crowd_goes();
    let standby = sale.system.standby();
    let cut = Instant::now();
    another.stall();
    let last = standby.listens();
    assert!(cut.elapsed() < TAKEOVER, "{:?}", cut.elapsed());
    sale.crowd_comes("b");
    sale.sells();
    another.open();
    is_fenced(next);
    sale.sells();
    all_stand(&sale.system.places, &sale.nodes[1], &buyers.stop());
    sale.ends(last);
}

#[test]
fn while_postgres_is_down_reservations_wait_and_reads_go_on() {
    let (mut sale, writer) = Sale::begin();
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
fn when_the_primary_dies_its_synchronous_standby_has_everything_and_the_sale_goes_on() {
    let (mut sale, writer) = Sale::begin_with(System::with_replica, System::writer);
    sale.system.postgres.kill();
    sale.stock().is(200);
    sale.is_unavailable("eve", &["outcome_unknown"]);
    // The one that is left of the two.
    assert_eq!(sale.system.places.sql("SELECT pg_promote()"), "t");
    sale.sells();
    sale.reads_are_right("b");
    sale.sells();
    sale.ends(writer);
}

#[test]
fn while_redis_is_down_nobody_notices() {
    let (mut sale, writer) = Sale::begin();
    sale.system.redis.kill();
    sale.sells();
    sale.reads_are_right("b");
    sale.sells();
    sale.system.redis.restart();
    sale.sells();
    sale.system.redis.pause();
    sale.sells();
    sale.reads_are_right("c");
    sale.system.redis.go_on();
    sale.sells();
    sale.ends(writer);
}

#[test]
fn while_kafka_is_down_nodes_say_so_and_the_writer_keeps_its_state() {
    let (mut sale, writer) = Sale::begin();
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
    let (sale, writer) = Sale::begin();
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
        match lag(&sale.nodes[1]) {
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
fn while_postgres_takes_no_more_connections_the_writer_keeps_its_own_and_nodes_need_none() {
    let (mut sale, writer) = Sale::begin();
    let occupants = Occupants::of(&sale.system);
    sale.sells();
    sale.reads_are_right("b");
    sale.sells();
    assert_eq!(sale.system.places.sql(NODES), "0", "there was room");
    occupants.leave(&sale.system);
    sale.sells();
    becomes("nodes that read rows", "2", || {
        sale.system.places.sql(NODES)
    });
    sale.ends(writer);
}

const NODES: &str = "SELECT count(*) FROM pg_stat_activity WHERE usename = 'node'";

/// Who have every connection that there still is, and those that the nodes had.
struct Occupants(Vec<Child>);

impl Occupants {
    fn of(system: &System) -> Self {
        assert_eq!(system.places.sql("CREATE ROLE crowd LOGIN"), "CREATE ROLE");
        let url = system.places.store.replace("stockade@", "crowd@");
        let max = system.places.sql("SHOW max_connections").parse();
        let (mut all, mut more) = (Self(Vec::new()), max.expect("a number"));
        // Who counts the nodes has a connection himself, for a moment.
        let (mut without_nodes, begun) = (0, Instant::now());
        while without_nodes < 2 {
            assert!(begun.elapsed() < NOTICED, "there is room for nodes");
            all.come(more, &url);
            without_nodes = match system.places.sql(NODES).as_str() {
                "0" => without_nodes + 1,
                _ => 0,
            };
            let ends = NODES.replace("count(*)", "pg_terminate_backend(pid, 5000)");
            system.places.sql(&ends);
            more = 8;
        }
        all
    }

    fn leave(self, system: &System) {
        drop(self);
        // Their servers' processes would not notice before they have slept.
        let ends = NODES.replace("count(*)", "pg_terminate_backend(pid)");
        system.places.sql(&ends.replace("node", "crowd"));
    }

    /// So many more, until one of them finds no room and leaves.
    fn come(&mut self, more: usize, url: &str) {
        let is_here = |sleeper: &mut Child| matches!(sleeper.try_wait(), Ok(None));
        self.0.retain_mut(is_here);
        let sleepers = (0..more).map(|_| {
            let sleeper = Command::new("psql")
                .args(["-qAtc", "SELECT pg_sleep(600)", url])
                .stdout(Stdio::null())
                .stderr(Stdio::null())
                .spawn();
            sleeper.expect("psql runs")
        });
        self.0.extend(sleepers);
        let begun = Instant::now();
        while self.0.iter_mut().all(is_here) {
            assert!(begun.elapsed() < NOTICED, "there is room for all");
            // Other processes tell nobody.
            std::thread::sleep(Duration::from_millis(10));
        }
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
