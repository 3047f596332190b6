//! What lies between: a broker that nobody hears for a while, topics that are made but not led yet, and copies of the position
//! that come late or not at all.

use crate::requests::sell_across;
use crate::servers::Server;
use crate::servers::proxy::Proxy;
use crate::{Topics, WITHIN, ask, open_sku, reserve, shared, until};
use rdkafka::consumer::{BaseConsumer, CommitMode, Consumer};
use rdkafka::topic_partition_list::{Offset, TopicPartitionList};
use std::time::Duration;
use stockade::engine::Engine;
use stockade::kafka::{AskError, KafkaClient, KafkaCluster, KafkaSource, TopicSettings};
use stockade::types::Submit;

/// Connections stay open, nobody hears anything, nobody is told: twice, and the second time what was on its way is lost.
#[test]
fn a_broker_that_is_not_heard_is_heard_again_and_nothing_is_lost_or_decided_twice() {
    let mut way = None;
    // Whoever asks the broker where it is hears of the proxy.
    let _server = Server::start_with("kafka.sh", |port| {
        let port = way.insert(Proxy::start(port)).port();
        vec![format!("advertised.listeners=BROKER://127.0.0.1:{port}")]
    });
    let way = way.expect("it was started");
    let topics = Topics::at(way.port(), "unheard");
    sell_across(&topics, |round, is_heard| match (round, is_heard) {
        (_, false) => way.stall(),
        (0, true) => way.open(),
        (_, true) => {
            way.close();
            way.open();
        }
    });
}

/// Connecting alone takes longer than a question to a cluster nearby.
#[test]
fn a_cluster_far_away_is_asked_until_it_answers() {
    let server = shared();
    let topics = Topics::new(&server, "far");
    let way = Proxy::start(server.port());
    way.slow(Duration::from_millis(200));
    let engine = Engine::builder().start().expect("it starts");
    let cluster = KafkaCluster::new(&format!("127.0.0.1:{}", way.port()));
    let options = topics.source_options();
    let begun = KafkaSource::begin_at(&cluster, &options, 0, &engine.handle(), WITHIN);
    assert_eq!(begun, Ok(()));
    assert_eq!(engine.handle().position(options.source_id()), Some(0));
}

/// Whoever makes topics starts what uses them next.
#[test]
fn topics_that_were_made_can_be_used_at_once() {
    const PARTITIONS: i32 = 100;
    let server = shared();
    let topics = Topics::new(&server, "fresh");
    for name in ["fresh-1", "fresh-2", "fresh-3"] {
        let settings = TopicSettings {
            name,
            partitions: PARTITIONS,
            replicas: 1,
            properties: &[],
        };
        let made = topics.cluster().create_topics(&[settings], WITHIN);
        made.expect("a broker that runs");
        let reader: BaseConsumer = topics.config().create().expect("settings");
        for partition in (0..PARTITIONS).rev() {
            let bounds = reader.fetch_watermarks(name, partition, WITHIN);
            assert_eq!(bounds, Ok((0, 0)), "{name}/{partition}");
        }
    }
}

/// A copy of the source's position, as anybody can read and set it who knows the group's name.
struct Copy {
    group: BaseConsumer,
    partition: TopicPartitionList,
}

impl Copy {
    fn of(topics: &Topics) -> Self {
        let mut config = topics.config();
        config
            .set("group.id", topics.name)
            .set("enable.auto.commit", "false");
        let mut partition = TopicPartitionList::new();
        partition.add_partition(&topics.topic("requests"), 0);
        Self {
            group: config.create().expect("settings"),
            partition,
        }
    }

    fn get(&self) -> Offset {
        let found = self
            .group
            .committed_offsets(self.partition.clone(), WITHIN)
            .expect("the broker answers");
        found.elements()[0].offset()
    }

    fn set(&self, offset: i64) {
        let mut to = self.partition.clone();
        to.set_all_offsets(Offset::Offset(offset))
            .expect("an offset");
        let set = self.group.commit(&to, CommitMode::Sync);
        set.expect("the broker answers");
    }
}

/// Nothing is decided that would bring the next copy, if nodes refuse by the last one.
#[test]
fn a_copy_of_the_position_that_is_behind_is_put_right_without_traffic() {
    let server = shared();
    let topics = Topics::new(&server, "copied");
    let engine = Engine::builder().start().expect("it starts");
    let source = topics.source(engine.handle());
    let client = topics.client();
    open_sku(&client, "SKU-0", 50);
    for user in 0..10 {
        ask(&client, &reserve(user, "SKU-0"));
    }
    let copy = Copy::of(&topics);
    // A request that was slow to be answered was asked again, and both are in the topic.
    let (mut end, mut lag) = (0, 1);
    until("all of it is decided", || {
        let status = source.status();
        (end, lag) = (status.position, status.lag);
        lag == 0 && end >= 12
    });
    let at = |offset: u64| Offset::Offset(offset.cast_signed());
    until("it is copied", || copy.get() == at(end));
    let mut options = topics.client_options();
    options.lag_max = 5;
    let node = KafkaClient::start(&topics.cluster(), options, WITHIN).expect("it starts");
    // As a former writer's source does that wakes up.
    until("the node sees a lag that is none", || {
        copy.set(1);
        node.lags() == [end - 1, 0]
    });
    let refused = node.send(&reserve(10, "SKU-0")).err();
    assert_eq!(refused, Some(AskError::Lagging { lag: end - 1 }));
    until("it is put right", || node.lags() == [0, 0]);
    assert_eq!(source.status().position, end, "nothing came meanwhile");
    assert_eq!(copy.get(), at(end));
    ask(&node, &reserve(10, "SKU-0"));
}

/// A writer that is cut off from its log doesn't know of its successor, and stands still.
#[test]
fn a_copy_that_a_successor_has_made_is_left_alone() {
    let server = shared();
    let topics = Topics::new(&server, "succeeded");
    let (handle, mut runner) = Engine::builder().build().expect("it opens");
    let source = topics.source(handle);
    topics.write(&[&b"x"[..]; 5]);
    until("they are dealt with", || {
        runner.step().expect("it commits");
        source.status().position == 5
    });
    let copy = Copy::of(&topics);
    until("it is copied", || copy.get() == Offset::Offset(5));
    // From here on nobody turns the crank.
    copy.set(8);
    for lag in 1..=4 {
        topics.write(&[b"x"]);
        until("it looks again", || source.status().lag == lag);
    }
    assert_eq!(source.status().position, 5);
    assert_eq!(copy.get(), Offset::Offset(8));
    drop(runner);
}
