//! The whole distributed sale on real servers: PostgreSQL, Redis and Kafka, with writers and API nodes as processes.

#[path = "../../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
pub(crate) mod servers;

use crate::common::{ONE, SERVE, Server, Starting, await_standby, becomes, flash_sale};
use crate::places::Places;
use servers::Server as Backend;
use std::process::Command;
use std::time::{Duration, Instant};

/// What writers sell: nobody is the last, and no hold lapses by itself.
const FLAGS: [&str; 6] = [
    "--sku",
    "SNEAKER=1000000",
    "--per-user",
    "0",
    "--hold",
    "10m",
];

/// The servers, prepared by `init`.
pub(crate) struct System {
    pub(crate) postgres: Backend,
    /// A synchronous standby of it, if there is one.
    _replica: Option<Backend>,
    pub(crate) redis: Backend,
    pub(crate) kafka: Backend,
    pub(crate) places: Places,
}

impl System {
    pub(crate) fn start() -> Self {
        Self::of_shards(1)
    }

    pub(crate) fn of_shards(shards: u16) -> Self {
        let postgres = Backend::start("postgres.sh", &[]);
        let store = store(&[postgres.port()]);
        Self::with(postgres, None, store, shards)
    }

    /// A commit is one on two servers.
    pub(crate) fn with_replica() -> Self {
        let postgres = Backend::start("postgres.sh", &[]);
        let of = ["--standby-of".to_owned(), postgres.port().to_string()];
        let replica = Backend::start("postgres.sh", &of);
        let store = store(&[postgres.port(), replica.port()]);
        let system = Self::with(postgres, Some(replica), store, 1);
        // Of the primary alone: once it is promoted the other one has nobody to wait for.
        let waits = "ALTER SYSTEM SET synchronous_standby_names = '*'";
        assert_eq!(system.places.sql(waits), "ALTER SYSTEM");
        system.places.sql("SELECT pg_reload_conf()");
        becomes("the standby", "sync", || {
            system
                .places
                .sql("SELECT sync_state FROM pg_stat_replication")
        });
        system
    }

    fn with(postgres: Backend, replica: Option<Backend>, store: String, shards: u16) -> Self {
        let redis = Backend::start("redis.sh", &[]);
        let kafka = Backend::start("kafka.sh", &[]);
        let places = Places {
            store,
            cache: format!("redis://127.0.0.1:{}", redis.port()),
            ingest: format!("kafka://127.0.0.1:{}", kafka.port()),
        };
        let system = Self {
            postgres,
            _replica: replica,
            redis,
            kafka,
            places,
        };
        let (is_done, said) = system.init(&["--shards", &shards.to_string()]);
        assert!(is_done, "{said}");
        // Nodes only read, and have none of the connections that are kept for superusers.
        let role = "CREATE ROLE node LOGIN; GRANT USAGE ON SCHEMA stockade TO node;
                    GRANT SELECT ON ALL TABLES IN SCHEMA stockade TO node";
        assert!(system.places.sql(role).ends_with("GRANT"));
        system
    }

    /// Makes tables and topics; whether it was done, and what it said.
    pub(crate) fn init(&self, flags: &[&str]) -> (bool, String) {
        let Places { store, ingest, .. } = &self.places;
        let init = flash_sale()
            .args(["init", "--store", store, "--ingest", ingest])
            .args(flags)
            .output();
        let init = init.expect("the program starts");
        let said = [init.stdout, init.stderr].concat();
        let said = String::from_utf8_lossy(&said).into_owned();
        (init.status.success(), said)
    }

    fn serve(&self, role: &str, store: &str) -> Command {
        let mut command = flash_sale();
        command
            .args(SERVE)
            .args(["--role", role, "--store", store])
            .args(["--cache", &self.places.cache])
            .args(["--ingest", &self.places.ingest]);
        command
    }

    /// A further writer: a standby if there is one.
    pub(crate) fn writer(&self) -> Starting {
        self.writer_on(&self.places.store)
    }

    /// A further writer, which reaches PostgreSQL through another port.
    pub(crate) fn writer_through(&self, port: u16) -> Starting {
        self.writer_on(&store(&[port]))
    }

    fn writer_on(&self, store: &str) -> Starting {
        let mut command = self.serve("writer", store);
        command.args(FLAGS);
        Starting::of(command)
    }

    /// A writer of one of several shards, which sells what else it is told.
    pub(crate) fn writer_of(&self, shard: u16, flags: &[&str]) -> Starting {
        let mut command = self.serve("writer", &self.places.store);
        command.args(["--shard", &shard.to_string()]).args(flags);
        Starting::of(command)
    }

    /// A writer that follows.
    pub(crate) fn standby(&self) -> Starting {
        self.follows(self.writer())
    }

    /// A writer that follows, through another port.
    pub(crate) fn standby_through(&self, port: u16) -> Starting {
        self.follows(self.writer_through(port))
    }

    fn follows(&self, standby: Starting) -> Starting {
        await_standby(&self.places.store);
        standby
    }

    /// An API node.
    pub(crate) fn node(&self, number: u16) -> Server {
        self.node_with(number, &[])
    }

    pub(crate) fn node_with(&self, number: u16, flags: &[&str]) -> Server {
        self.node_on(&self.places.store, number, flags)
    }

    /// One that reaches PostgreSQL through another port.
    pub(crate) fn node_through(&self, port: u16, number: u16, flags: &[&str]) -> Server {
        self.node_on(&store(&[port]), number, flags)
    }

    fn node_on(&self, store: &str, number: u16, flags: &[&str]) -> Server {
        // By its name it is no writer.
        let store = store.replace("stockade@", "node@");
        let mut command = self.serve("api", &format!("{store}?application_name=node"));
        command
            .args(["--node", &number.to_string(), "--payment-latency", "0s"])
            .args(flags);
        Server::of(command)
    }
}

/// One that whichever of the servers takes writes keeps.
fn store(ports: &[u16]) -> String {
    let hosts: Vec<String> = ports
        .iter()
        .map(|port| format!("127.0.0.1:{port}"))
        .collect();
    format!("postgres://stockade@{}/stockade", hosts.join(","))
}

/// Asserts that what is asked for now is decided within `max` of `since`. Whoever asked in vain asks again.
#[track_caller]
pub(crate) fn decides_within(node: &Server, max: Duration, since: Instant, token: &str) {
    let key = format!("{since:?}");
    loop {
        let answer = node.reserve(token, &key, ONE);
        let took = since.elapsed();
        assert!(took < max, "after {took:?}, not {max:?}: {answer:?}");
        if !matches!(answer.status, 429 | 503) {
            answer.is(201);
            println!("first new decision after {took:?}");
            return;
        }
    }
}

/// Requests that wait in Kafka, as a node knows.
pub(crate) fn lag(node: &Server) -> u64 {
    let metrics = node.get("/metrics").body;
    let lag = metrics.lines().find_map(|line| {
        let lag = line.strip_prefix("kafka_lag{partition=\"0\"} ")?;
        lag.parse().ok()
    });
    lag.expect("a metric")
}
