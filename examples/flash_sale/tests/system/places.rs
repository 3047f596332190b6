//! Where the servers of a distributed sale are, and whether all of them say the same.

use crate::common::{becomes, flash_sale, said};
use std::time::Duration;
use stockade::allocator::{Allocator, Limits};
use stockade::kafka::{EventCursor, KafkaCluster, KafkaEvents, Published};
use stockade::types::{Availability, BatchHeader, SkuName, Token};

/// How long something may take that is under way.
const WITHIN: Duration = Duration::from_secs(30);

/// Their addresses, as the program takes them.
pub(crate) struct Places {
    pub(crate) store: String,
    pub(crate) cache: String,
    pub(crate) ingest: String,
}

impl Places {
    /// What PostgreSQL says.
    pub(crate) fn sql(&self, asks: &str) -> String {
        said("psql", &["-Atc", asks, &self.store])
    }

    /// What the rows say of the sneakers: available, reserved, sold.
    pub(crate) fn rows(&self) -> String {
        self.sql(
            "SELECT available, reserved, sold FROM stockade.inventory WHERE sku_id = 'SNEAKER'",
        )
    }

    /// What Redis says of the sneakers.
    fn in_redis(&self, field: &str) -> String {
        let stock = ["-u", &self.cache, "HGET", "stock:{SNEAKER}", field];
        said("redis-cli", &stock)
    }

    /// What the events come to, read up to where the log is, and how often one of its tails was lost.
    fn by_events(&self) -> (Availability, u64) {
        let last = "SELECT epoch || ' ' || first_sequence + octet_length(events) / 128 - 1 FROM stockade.batches
                    WHERE events <> '' ORDER BY number DESC LIMIT 1";
        let last = self.sql(last);
        let (epoch, sequence) = last.split_once(' ').expect("two numbers");
        let until = EventCursor {
            epoch: epoch.parse().expect("a number"),
            sequence: sequence.parse().expect("a number"),
        };
        let cluster = KafkaCluster::new(self.ingest.trim_start_matches("kafka://"));
        let begin = EventCursor::default();
        let reader = KafkaEvents::start(&cluster, "reservation-events", 0, 0, begin);
        let mut reader = reader.expect("a topic");
        let (mut events, mut forks) = (Vec::new(), 0);
        while reader.cursor() < until {
            match reader.next(WITHIN).expect("a broker") {
                Some(Published::Event(event)) => events.push(event),
                Some(Published::Fork { sequence }) => {
                    events.retain(|event| event.sequence <= sequence);
                    forks += 1;
                }
                other => panic!("{other:?} before {until:?}, at {:?}", reader.cursor()),
            }
        }
        let mut state = Allocator::new(Limits::default(), 1);
        for event in events {
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
        let name = SkuName::new("SNEAKER").expect("a name");
        let sku = state.sku(&name).expect("it is defined");
        (state.availability(sku).expect("it is defined"), forks)
    }

    /// Asserts that rows, Redis and events say the same. Gives how often the events say that the log has lost a tail.
    #[track_caller]
    pub(crate) fn counts_agree(&self) -> u64 {
        becomes("stock in Redis", &self.rows(), || {
            ["available", "reserved", "sold"]
                .map(|column| self.in_redis(column))
                .join("|")
        });
        let (stock, forks) = self.by_events();
        let told = format!("{}|{}|{}", stock.available, stock.reserved, stock.sold);
        assert_eq!(self.rows(), told, "the events differ from the rows");
        forks
    }

    /// Asserts also that no key was decided twice, that the audit finds nothing, and that no row differs from the log.
    #[track_caller]
    pub(crate) fn agrees(&self) -> u64 {
        let forks = self.counts_agree();
        let twice =
            "SELECT count(*) FROM (SELECT 1 FROM stockade.reservations WHERE key IS NOT NULL
                     GROUP BY user_id, key HAVING count(*) > 1) twice";
        assert_eq!(self.sql(twice), "0", "a key was decided twice");
        for (command, wanted) in [("audit", "all laws hold"), ("repair", ": 0 rows differ")] {
            let looked = flash_sale()
                .args([command, "--store", &self.store])
                .output();
            let looked = looked.expect("the program starts");
            let told = String::from_utf8_lossy(&looked.stdout);
            assert!(
                looked.status.success() && told.contains(wanted),
                "{command}: {looked:?}"
            );
        }
        forks
    }
}
