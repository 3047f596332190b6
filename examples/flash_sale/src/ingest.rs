//! Kafka between the API nodes and the writers: requests come from it, events go to it.
//!
//! ```text
//! serve --role api ──► reservation-requests/shard ──► serve --role writer ──► reservation-events/shard
//!         ▲                                                 │
//!         └───── reservation-replies/node ◄─────────────────┘
//! ```

use anyhow::Result;
use std::fmt;
use std::str::FromStr;

/// `kafka://HOST:PORT`, several brokers separated by commas.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct KafkaUrl(String);

impl fmt::Display for KafkaUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "kafka://{}", self.0)
    }
}

impl FromStr for KafkaUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix("kafka://") {
            Some(brokers) if !brokers.is_empty() => Ok(Self(brokers.to_owned())),
            _ => Err("give kafka://HOST:PORT, several brokers separated by commas".to_owned()),
        }
    }
}

/// The topics that `init` makes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Topics {
    /// Writers, each with its own share of the SKUs.
    pub(crate) shards: u16,
    /// API nodes.
    pub(crate) nodes: u16,
    /// Copies of each message.
    pub(crate) replicas: u16,
}

#[cfg(feature = "kafka")]
mod connected {
    use super::{KafkaUrl, Topics};
    use crate::engine::{EngineBuilder, Handle};
    use crate::log::Log;
    use anyhow::{Result, ensure};
    use std::sync::{Mutex, PoisonError};
    use std::time::Duration;
    use stockade::kafka::{
        ClientOptions, KafkaClient, KafkaCluster, KafkaSink, KafkaSource, Placement, SourceOptions,
        SourceState, SourceStatus, TopicSettings,
    };
    use stockade::store::JournalReader;
    use stockade::types::SkuName;

    /// How long the cluster may take to answer at the start.
    const ANSWERS_WITHIN: Duration = Duration::from_secs(30);

    impl KafkaUrl {
        fn cluster(&self) -> KafkaCluster {
            KafkaCluster::new(&self.0)
        }

        /// Makes the topics that are missing.
        ///
        /// # Errors
        /// Also if one is there that is not as it should be.
        pub(crate) fn init(&self, topics: Topics) -> Result<()> {
            let Topics {
                shards,
                nodes,
                replicas,
            } = topics;
            let replies = "reservation-replies";
            let properties: &[(&str, &str)] = if replicas > 2 {
                &[("min.insync.replicas", "2")]
            } else {
                &[]
            };
            let all = [
                ("reservation-requests", shards),
                (replies, nodes),
                ("reservation-events", shards),
                ("reservation-dead-letters", shards),
            ];
            let topics = all.map(|(name, partitions)| TopicSettings {
                name,
                partitions: partitions.into(),
                replicas: replicas.into(),
                properties,
            });
            for known in self.cluster().create_topics(&topics, ANSWERS_WITHIN)? {
                let has = self.cluster().partitions(&known, ANSWERS_WITHIN)?;
                if known == replies {
                    ensure!(
                        has >= u32::from(nodes),
                        "{known} has {has} partitions, too few for {nodes} nodes: add some by Kafka's own \
                         `kafka-topics.sh --alter --topic {known} --partitions {nodes}`, then restart the nodes"
                    );
                } else {
                    ensure!(
                        has == u32::from(shards),
                        "{known} has {has} partitions, and so many writers share the SKUs, which can't be changed: say --shards {has}"
                    );
                }
            }
            Ok(())
        }

        /// Which writer sells what.
        pub(crate) fn placement(&self) -> Result<Placement> {
            let topic = SourceOptions::new(0).requests;
            let partitions = self.cluster().partitions(&topic, ANSWERS_WITHIN)?;
            ensure!(
                partitions > 0,
                "{self} has no topic {topic}: make it by `flash-sale init`"
            );
            Ok(Placement::new(partitions))
        }

        /// The same for the writer of a shard.
        ///
        /// # Errors
        /// If there is no such shard.
        pub(crate) fn placement_of(&self, shard: u16) -> Result<Placement> {
            let placement = self.placement()?;
            ensure!(
                u32::from(shard) < placement.partitions(),
                "{self} has no shard {shard}: there are {}, from 0, as `flash-sale init --shards` has made them",
                placement.partitions()
            );
            Ok(placement)
        }

        /// Lets the engine publish its events. Gives also which SKUs the shard sells.
        pub(crate) fn attach(
            &self,
            builder: EngineBuilder,
            log: &Log,
            shard: u16,
        ) -> Result<(EngineBuilder, impl Fn(&SkuName) -> bool + use<>)> {
            let placement = self.placement_of(shard)?;
            let sells = move |sku: &SkuName| placement.partition_of(sku) == u32::from(shard);
            let builder = builder.sink(KafkaSink::new(&self.cluster(), shard));
            let builder = match log {
                Log::Journal(dir) => builder.log(JournalReader::new(dir)),
                Log::Postgres(url) => builder.log(url.reader(shard)),
            };
            Ok((builder, sells))
        }

        /// Starts to take requests.
        pub(crate) fn feed(&self, engine: Handle, shard: u16) -> Result<Feed> {
            let source = KafkaSource::start(&self.cluster(), SourceOptions::new(shard), engine)?;
            Ok(Feed(Mutex::new(Some(source))))
        }

        /// Lets the shard's requests go on at an offset.
        pub(crate) fn begin_at(&self, engine: &Handle, shard: u16, offset: u64) -> Result<()> {
            let (cluster, options) = (self.cluster(), SourceOptions::new(shard));
            let begun = KafkaSource::begin_at(&cluster, &options, offset, engine, ANSWERS_WITHIN);
            Ok(begun?)
        }

        /// The API node's side.
        pub(crate) fn client(
            &self,
            node: u16,
            queue: u32,
            placement: Placement,
        ) -> Result<KafkaClient> {
            let mut options = ClientOptions::new(node.into(), placement);
            options.in_flight_max = queue as usize;
            let client = KafkaClient::start(&self.cluster(), options, ANSWERS_WITHIN);
            Ok(client?)
        }
    }

    /// Brings one partition's requests to the engine.
    pub(crate) struct Feed(Mutex<Option<KafkaSource>>);

    impl Feed {
        fn status(&self) -> Option<SourceStatus> {
            let source = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            source.as_ref().map(KafkaSource::status)
        }

        /// Why it can't go on, if it can't.
        pub(crate) fn halted(&self) -> Option<String> {
            match self.status()?.state {
                SourceState::Halted(reason) => Some(reason),
                _ => None,
            }
        }

        /// What keeps it from reading just now.
        pub(crate) fn warning(&self) -> Option<String> {
            match self.status()?.state {
                SourceState::Running(reason) => reason,
                _ => None,
            }
        }

        /// For `/metrics`: name, what it is, value.
        pub(crate) fn gauges(&self) -> Vec<(&'static str, &'static str, u64)> {
            let Some(status) = self.status() else {
                return Vec::new();
            };
            vec![
                (
                    "kafka_position",
                    "Offset up to which all is decided",
                    status.position,
                ),
                (
                    "kafka_lag",
                    "Requests in the partition that wait",
                    status.lag,
                ),
                (
                    "kafka_dead_letters",
                    "Messages that could not be read",
                    status.dead_letters,
                ),
                (
                    "kafka_replies_lost",
                    "Replies that did not arrive",
                    status.replies_lost,
                ),
            ]
        }

        /// Takes no more, and answers what it has.
        pub(crate) fn stop(&self) {
            let source = self.0.lock().unwrap_or_else(PoisonError::into_inner).take();
            drop(source);
        }
    }
}

#[cfg(not(feature = "kafka"))]
mod connected {
    use super::{KafkaUrl, Topics};
    use crate::engine::{EngineBuilder, Handle};
    use crate::log::Log;
    use anyhow::Result;
    use stockade::types::SkuName;

    type Sells = fn(&SkuName) -> bool;

    impl KafkaUrl {
        /// Makes the topics that are missing.
        pub(crate) fn init(&self, _: Topics) -> Result<()> {
            self.missing()
        }

        /// Lets the engine publish its events. Gives also which SKUs the shard sells.
        pub(crate) fn attach(
            &self,
            _: EngineBuilder,
            _: &Log,
            _: u16,
        ) -> Result<(EngineBuilder, Sells)> {
            self.missing()
        }

        /// Starts to take requests.
        pub(crate) fn feed(&self, _: Handle, _: u16) -> Result<Feed> {
            self.missing()
        }

        /// Which writer sells what.
        pub(crate) fn placement_of(&self, _: u16) -> Result<()> {
            self.missing()
        }

        /// Lets the shard's requests go on at an offset.
        pub(crate) fn begin_at(&self, _: &Handle, _: u16, _: u64) -> Result<()> {
            self.missing()
        }

        /// # Errors
        /// Always: it names the feature.
        pub(crate) fn missing<T>(&self) -> Result<T> {
            anyhow::bail!("this program can't reach {self}: build it with `--features kafka`")
        }
    }

    /// There is none.
    pub(crate) enum Feed {}

    impl Feed {
        /// Why it can't go on, if it can't.
        pub(crate) fn halted(&self) -> Option<String> {
            match *self {}
        }

        /// What keeps it from reading just now.
        pub(crate) fn warning(&self) -> Option<String> {
            match *self {}
        }

        /// For `/metrics`: name, what it is, value.
        pub(crate) fn gauges(&self) -> Vec<(&'static str, &'static str, u64)> {
            match *self {}
        }

        /// Takes no more, and answers what it has.
        pub(crate) fn stop(&self) {
            match *self {}
        }
    }
}

pub(crate) use connected::Feed;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn brokers_are_named_by_a_url() {
        let url: KafkaUrl = "kafka://a:9092,b:9092".parse().expect("a URL");
        assert_eq!(url.to_string(), "kafka://a:9092,b:9092");
        assert!("a:9092".parse::<KafkaUrl>().is_err());
        assert!("kafka://".parse::<KafkaUrl>().is_err());
    }
}
