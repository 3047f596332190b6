//! The whole distributed sale on real servers: PostgreSQL, Redis and Kafka, with writers and API nodes as processes.

#[path = "../../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
pub(crate) mod servers;

use crate::common::{SERVE, Server, Starting, becomes, flash_sale};
use crate::places::Places;
use servers::Server as Backend;
use std::process::Command;

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
        let redis = Backend::start("redis.sh", &[]);
        let kafka = Backend::start("kafka.sh", &[]);
        let places = Places {
            store: store(postgres.port()),
            cache: format!("redis://127.0.0.1:{}", redis.port()),
            ingest: format!("kafka://127.0.0.1:{}", kafka.port()),
        };
        let system = Self {
            postgres,
            redis,
            kafka,
            places,
        };
        let (is_done, said) = system.init(&["--shards", &shards.to_string()]);
        assert!(is_done, "{said}");
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
        self.writer_through(self.postgres.port())
    }

    /// A further writer, which reaches PostgreSQL through another port.
    pub(crate) fn writer_through(&self, port: u16) -> Starting {
        let mut command = self.serve("writer", &store(port));
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
        let standby = self.writer();
        let writers = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stockade'";
        becomes("connected writers", "2", || self.places.sql(writers));
        standby
    }

    /// An API node.
    pub(crate) fn node(&self, number: u16) -> Server {
        self.node_with(number, &[])
    }

    pub(crate) fn node_with(&self, number: u16, flags: &[&str]) -> Server {
        self.node_through(self.postgres.port(), number, flags)
    }

    /// One that reaches PostgreSQL through another port.
    pub(crate) fn node_through(&self, port: u16, number: u16, flags: &[&str]) -> Server {
        // By its name it is no writer.
        let store = format!("{}?application_name=node", store(port));
        let mut command = self.serve("api", &store);
        command
            .args(["--node", &number.to_string(), "--payment-latency", "0s"])
            .args(flags);
        Server::of(command)
    }
}

fn store(port: u16) -> String {
    format!("postgres://stockade@127.0.0.1:{port}/stockade")
}
