//! Redis as tests need it: one server, a primary with its replica, a cluster of three; and a plain connection to look at what
//! lies there.

use crate::servers::{Server, free_port};
use redis::{Connection, Value, cmd};
use std::time::{Duration, Instant};
use stockade::redis::RedisOptions;

/// How long a cluster may take until it has agreed, or a replica until it has followed.
const AGREES_WITHIN: Duration = Duration::from_secs(30);

pub(crate) fn start() -> Server {
    Server::start("redis.sh", &[])
}

pub(crate) fn options(servers: &[&Server]) -> RedisOptions {
    let urls: Vec<String> = servers.iter().map(|server| url(server)).collect();
    RedisOptions::new(&urls.join(",")).expect("addresses")
}

pub(crate) fn url(server: &Server) -> String {
    format!("redis://127.0.0.1:{}", server.port())
}

/// A connection that the code under test has no part in.
pub(crate) fn connect(server: &Server) -> Connection {
    let client = redis::Client::open(url(server)).expect("an address");
    let connection = client.get_connection().expect("it listens");
    connection
        .set_read_timeout(Some(Duration::from_secs(10)))
        .expect("a time-out");
    connection
}

/// One command's answer as text; empty for nil.
pub(crate) fn ask(connection: &mut Connection, command: &str) -> String {
    let mut words = command.split(' ');
    let mut asked = cmd(words.next().expect("a command"));
    words.for_each(|word| {
        asked.arg(word);
    });
    match asked.query::<Value>(connection).expect("an answer") {
        Value::Nil => String::new(),
        value => redis::from_redis_value(value).expect("text"),
    }
}

/// Waits until it holds.
///
/// # Panics
/// If it doesn't within `deadline`.
pub(crate) fn until(what: &str, deadline: Duration, mut holds: impl FnMut() -> bool) -> Duration {
    let begun = Instant::now();
    while !holds() {
        assert!(
            begun.elapsed() < deadline,
            "not within {deadline:?}: {what}"
        );
        // What is asked are servers and counts, which tell nobody.
        std::thread::sleep(Duration::from_millis(2));
    }
    begun.elapsed()
}

/// A primary and a replica that has caught up with it.
pub(crate) fn pair() -> (Server, Server) {
    let primary = start();
    let replica = Server::start("redis.sh", &replica_of(&primary));
    let mut connection = connect(&replica);
    until("the replica follows", AGREES_WITHIN, || {
        ask(&mut connection, "INFO replication").contains("master_link_status:up")
    });
    (primary, replica)
}

fn replica_of(primary: &Server) -> Vec<String> {
    ["--replicaof", "127.0.0.1", &primary.port().to_string()]
        .map(str::to_owned)
        .to_vec()
}

/// Three nodes with a third of the slots each.
pub(crate) struct Cluster {
    pub(crate) nodes: Vec<Server>,
}

impl Cluster {
    pub(crate) fn start() -> Self {
        let mut busses = Vec::new();
        let nodes: Vec<Server> = (0..3)
            .map(|_| {
                let bus = free_port();
                busses.push(bus);
                Server::start("redis.sh", &settings(bus))
            })
            .collect();
        for (index, node) in nodes.iter().enumerate() {
            let mut connection = connect(node);
            let (first, last) = [(0, 5_460), (5_461, 10_922), (10_923, 16_383)][index];
            ask(
                &mut connection,
                &format!("CLUSTER ADDSLOTSRANGE {first} {last}"),
            );
            for (other, bus) in nodes.iter().zip(&busses) {
                ask(
                    &mut connection,
                    &format!("CLUSTER MEET 127.0.0.1 {} {bus}", other.port()),
                );
            }
        }
        let cluster = Self { nodes };
        cluster.until_ok();
        cluster
    }

    /// Waits until every node that runs thinks that the cluster is well.
    pub(crate) fn until_ok(&self) {
        for node in &self.nodes {
            let mut connection = connect(node);
            until("the cluster agrees", AGREES_WITHIN, || {
                let info = ask(&mut connection, "CLUSTER INFO");
                info.contains("cluster_state:ok") && info.contains("cluster_known_nodes:3")
            });
        }
    }

    pub(crate) fn options(&self) -> RedisOptions {
        options(&self.nodes.iter().collect::<Vec<_>>())
    }

    /// The node that has a key.
    pub(crate) fn node_of(&self, key: &str) -> usize {
        let slot: u16 = ask(
            &mut connect(&self.nodes[0]),
            &format!("CLUSTER KEYSLOT {key}"),
        )
        .parse()
        .expect("a slot");
        usize::from(slot > 5_460) + usize::from(slot > 10_922)
    }
}

fn settings(bus: u16) -> Vec<String> {
    let bus = bus.to_string();
    let settings = [
        "--cluster-enabled",
        "yes",
        "--cluster-port",
        &bus,
        "--cluster-node-timeout",
        "1000",
        // What the others have stays readable and writable while one is down.
        "--cluster-require-full-coverage",
        "no",
    ];
    settings.map(str::to_owned).to_vec()
}
