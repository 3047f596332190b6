//! The whole distributed sale on real servers: PostgreSQL, Redis and Kafka, with writers and API nodes as processes.

#[path = "../../../../tests/servers/mod.rs"]
#[expect(dead_code, reason = "it serves other tests too")]
pub(crate) mod servers;

use crate::common::{SERVE, Server, Starting, flash_sale};
use servers::Server as Backend;
use std::process::Command;
use std::time::{Duration, Instant};
use stockade::allocator::{Allocator, Limits};
use stockade::kafka::{EventCursor, KafkaCluster, KafkaEvents, Published};
use stockade::types::{Availability, BatchHeader, SkuName, Token};

/// How long the others may take to hear of a commit.
const PATIENCE: Duration = Duration::from_secs(5);
/// How long something may take that is under way.
const WITHIN: Duration = Duration::from_secs(30);

/// The servers, prepared by `init`.
pub(crate) struct System {
    pub(crate) postgres: Backend,
    pub(crate) redis: Backend,
    pub(crate) kafka: Backend,
    flags: Vec<String>,
}

impl System {
    /// With writers that take `flags`.
    pub(crate) fn start(flags: &[&str]) -> Self {
        let system = Self {
            postgres: Backend::start("postgres.sh", &[]),
            redis: Backend::start("redis.sh", &[]),
            kafka: Backend::start("kafka.sh", &[]),
            flags: flags.iter().map(|&flag| flag.to_owned()).collect(),
        };
        let init = ["--ingest", &system.ingest(), "--store", &system.store()];
        let init = flash_sale().arg("init").args(init).output();
        let init = init.expect("the program starts");
        assert!(init.status.success(), "{init:?}");
        system
    }

    pub(crate) fn store(&self) -> String {
        store(self.postgres.port())
    }

    fn cache(&self) -> String {
        format!("redis://127.0.0.1:{}", self.redis.port())
    }

    fn ingest(&self) -> String {
        format!("kafka://127.0.0.1:{}", self.kafka.port())
    }

    fn serve(&self, role: &str, store: &str) -> Command {
        let mut command = flash_sale();
        command
            .args(SERVE)
            .args(["--role", role, "--store", store])
            .args(["--cache", &self.cache(), "--ingest", &self.ingest()]);
        command
    }

    /// A further writer: a standby if there is one.
    pub(crate) fn writer(&self) -> Starting {
        self.writer_through(self.postgres.port())
    }

    /// A further writer, which reaches PostgreSQL through another port.
    pub(crate) fn writer_through(&self, port: u16) -> Starting {
        let mut command = self.serve("writer", &store(port));
        command.args(&self.flags);
        Starting::of(command)
    }

    /// A writer that follows.
    pub(crate) fn standby(&self) -> Starting {
        let standby = self.writer();
        let writers = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stockade'";
        becomes("connected writers", "2", || self.sql(writers));
        standby
    }

    /// An API node.
    pub(crate) fn node(&self, number: u16) -> Server {
        // By its name it is no writer.
        let store = format!("{}?application_name=node", self.store());
        let mut command = self.serve("api", &store);
        command.args(["--node", &number.to_string(), "--payment-latency", "0s"]);
        Server::of(command)
    }

    /// What PostgreSQL says.
    pub(crate) fn sql(&self, asks: &str) -> String {
        said("psql", &["-Atc", asks, &self.store()])
    }

    /// What Redis says of the sneakers.
    fn in_redis(&self, field: &str) -> String {
        let port = self.redis.port().to_string();
        said(
            "redis-cli",
            &["-p", &port, "HGET", "stock:{SNEAKER}", field],
        )
    }

    /// What the events come to, read up to where the log is.
    fn by_events(&self) -> Availability {
        let last = "SELECT epoch || ' ' || last_sequence FROM stockade.writer";
        let last = self.sql(last);
        let (epoch, sequence) = last.split_once(' ').expect("two numbers");
        let until = EventCursor {
            epoch: epoch.parse().expect("a number"),
            sequence: sequence.parse().expect("a number"),
        };
        let cluster = KafkaCluster::new(&format!("127.0.0.1:{}", self.kafka.port()));
        let begin = EventCursor::default();
        let events = KafkaEvents::start(&cluster, "reservation-events", 0, 0, begin);
        let mut events = events.expect("a topic");
        let mut state = Allocator::new(Limits::default(), 1);
        while events.cursor().sequence < until.sequence {
            match events.next(WITHIN).expect("a broker") {
                Some(Published::Event(event)) => {
                    // Each is a batch of its own to who sees no batches.
                    let header = BatchHeader {
                        stamp: event.at,
                        token: Token {
                            epoch: event.epoch.into(),
                            writer: 0,
                        },
                        first_sequence: event.sequence,
                        ..BatchHeader::default()
                    };
                    state.begin(&header).expect("in order");
                    state.apply(&event).expect("lawful");
                }
                other => panic!("{other:?} before {until:?}, at {:?}", events.cursor()),
            }
        }
        let name = SkuName::new("SNEAKER").expect("a name");
        let sku = state.sku(&name).expect("it is defined");
        state.availability(sku).expect("it is defined")
    }

    /// Asserts that rows, Redis and events say the same, that no key was decided twice, and that the audit finds nothing.
    #[track_caller]
    pub(crate) fn agrees(&self) {
        for column in ["available", "reserved", "sold"] {
            let row = format!("SELECT {column} FROM stockade.inventory WHERE sku_id = 'SNEAKER'");
            becomes(&format!("{column} in Redis"), &self.sql(&row), || {
                self.in_redis(column)
            });
        }
        let stock = self.by_events();
        let rows =
            "SELECT available, reserved, sold FROM stockade.inventory WHERE sku_id = 'SNEAKER'";
        let told = format!("{}|{}|{}", stock.available, stock.reserved, stock.sold);
        assert_eq!(self.sql(rows), told, "the events differ from the rows");
        let twice =
            "SELECT count(*) FROM (SELECT 1 FROM stockade.reservations WHERE key IS NOT NULL
                     GROUP BY user_id, key HAVING count(*) > 1) twice";
        assert_eq!(self.sql(twice), "0", "a key was decided twice");
        let audit = flash_sale()
            .args(["audit", "--store", &self.store()])
            .output();
        let audit = audit.expect("the program starts");
        let told = String::from_utf8_lossy(&audit.stdout);
        assert!(
            audit.status.success() && told.contains("all laws hold"),
            "{told}"
        );
    }
}

/// Asks until the answer is as expected, for as long as it may take at most.
#[track_caller]
pub(crate) fn becomes(what: &str, expected: &str, ask: impl Fn() -> String) {
    let begun = Instant::now();
    loop {
        let found = ask();
        if found == expected {
            return;
        }
        assert!(
            begun.elapsed() < PATIENCE,
            "{what} is {found:?} and not {expected:?}"
        );
        // Another process tells nobody.
        std::thread::sleep(Duration::from_millis(10));
    }
}

fn store(port: u16) -> String {
    format!("postgres://stockade@127.0.0.1:{port}/stockade")
}

fn said(program: &str, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output();
    let output = output.unwrap_or_else(|error| panic!("{program}: {error}"));
    String::from_utf8_lossy(&output.stdout).trim().to_owned()
}
