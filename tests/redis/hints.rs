//! Keys that expire in Redis, as hints for the engine.

use crate::cluster::{self, Cluster, ask, connect, until};
use crate::{open_sku, reserve};
use parking_lot::Mutex;
use std::sync::Arc;
use std::time::Duration;
use stockade::Engine;
use stockade::cache::{Cache, Change, ReservationChange};
use stockade::engine::CommandError;
use stockade::redis::{ExpiredKeys, RedisCache, RedisOptions};
use stockade::types::{
    Expire, ManualClock, Refusal, Reservation, ReservationId, Timestamp, UserId,
};

const SOON: Duration = Duration::from_secs(20);

/// Collects what is hinted at.
fn listen(options: &RedisOptions) -> (ExpiredKeys, Arc<Mutex<Vec<ReservationId>>>) {
    let heard = Arc::new(Mutex::new(Vec::new()));
    let hears = Arc::clone(&heard);
    let hint = move |expire: Expire| hears.lock().push(expire.reservation);
    let hints = ExpiredKeys::listen(options, hint).expect("threads");
    until("every primary is listened to", SOON, || {
        hints.is_listening()
    });
    (hints, heard)
}

/// A hold that is due, so that its key lives for the grace of a second alone.
fn due(id: u64) -> ReservationChange {
    ReservationChange {
        id: ReservationId::from_u64(id),
        epoch: 1,
        sequence: id,
        at: Timestamp::from_micros(1),
        change: Change::Made {
            user: UserId(1),
            lines: Vec::new(),
            expires_at: Timestamp::from_micros(1),
        },
    }
}

#[test]
fn every_node_of_a_cluster_says_what_expired_there_and_nothing_else() {
    let cluster = Cluster::start();
    let options = cluster.options().prefix("a*?[b]:");
    let (hints, heard) = listen(&options);
    let (_others, theirs) = listen(&cluster.options().prefix("a1b:"));
    let held: Vec<_> = (1..=30).map(due).collect();
    let mut cache = RedisCache::new(&options);
    cache
        .put(&[crate::entry("stock", 1, 1)], &held)
        .expect("it runs");
    let nodes = (1..=30).map(|id| {
        let id = ReservationId::from_u64(id);
        cluster.node_of(&format!("a*?[b]:reservation:{{{id}}}"))
    });
    let nodes: std::collections::BTreeSet<usize> = nodes.collect();
    assert_eq!(nodes.len(), 3, "they lie on all nodes");
    until("all are heard of", SOON, || heard.lock().len() >= 30);
    heard.lock().sort();
    assert_eq!(
        *heard.lock(),
        (1..=30).map(ReservationId::from_u64).collect::<Vec<_>>()
    );
    assert_eq!((hints.hints(), hints.warnings()), (30, Vec::new()));
    assert!(theirs.lock().is_empty(), "another prefix, another writer");
}

#[test]
fn what_a_server_announced_before_it_announces_after() {
    let server = cluster::start();
    let mut connection = connect(&server);
    ask(&mut connection, "CONFIG SET notify-keyspace-events Eg");
    let (_hints, _) = listen(&cluster::options(&[&server]));
    let flags: Vec<String> = redis::cmd("CONFIG")
        .arg("GET")
        .arg("notify-keyspace-events")
        .query(&mut connection)
        .expect("flags");
    for flag in ['E', 'g', 'K', 'x'] {
        assert!(flags[1].contains(flag), "{flags:?}");
    }
}

#[test]
fn a_server_that_keeps_its_settings_is_named_with_what_to_set() {
    let rename = ["--rename-command", "CONFIG", ""].map(str::to_owned);
    let server = crate::servers::Server::start("redis.sh", &rename);
    let hints = ExpiredKeys::listen(&cluster::options(&[&server]), |_| {}).expect("threads");
    until("it says so", SOON, || !hints.warnings().is_empty());
    let warning = hints.warnings().remove(0);
    assert!(
        warning.contains("set notify-keyspace-events to Kx"),
        "{warning}"
    );
    assert!(warning.contains(&server.port().to_string()), "{warning}");
    assert!(!hints.is_listening());
}

#[test]
fn a_listener_comes_back_with_its_server() {
    let mut server = cluster::start();
    let options = cluster::options(&[&server]);
    let (hints, heard) = listen(&options);
    server.kill();
    until("it is missed", SOON, || !hints.warnings().is_empty());
    server.restart();
    until("it is listened to again", SOON, || hints.is_listening());
    RedisCache::new(&options)
        .put(&[], &[due(5)])
        .expect("it runs");
    until("it is heard of", SOON, || !heard.lock().is_empty());
}

/// The engine's time stands still, so that Redis' is always ahead of it or behind.
#[test]
fn a_hint_ends_a_hold_that_is_due_and_an_early_one_ends_nothing() {
    let server = cluster::start();
    let options = cluster::options(&[&server]);
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
    let (handle, mut runner) = Engine::builder()
        .clock(clock.clone())
        .cache(RedisCache::new(&options))
        .build()
        .expect("built");
    let outcomes: Arc<Mutex<Vec<_>>> = Arc::default();
    let (told, asked) = (Arc::clone(&outcomes), handle.clone());
    let hint = move |expire: Expire| told.lock().push(asked.expire(expire).expect("room"));
    let hints = ExpiredKeys::listen(&options, hint).expect("threads");
    until("it listens", SOON, || hints.is_listening());

    let held: Reservation = std::thread::scope(|scope| {
        let setup = scope.spawn(|| {
            let sku = open_sku(&handle, "held", 1);
            reserve(&handle, 1, sku)
        });
        while !setup.is_finished() {
            runner.step().expect("running");
        }
        setup.join().expect("no panic")
    });
    runner.step().expect("running");
    // Redis' clock runs ahead: the key expires at once, the hold is not due.
    let key = format!("reservation:{{{}}}", held.id);
    let mut connection = connect(&server);
    assert_eq!(ask(&mut connection, &format!("PEXPIRE {key} 1")), "1");
    until("the hint comes", SOON, || outcomes.lock().len() == 1);
    runner.step().expect("running");
    let early = outcomes.lock().remove(0).wait();
    let not_due = |outcome: &Result<(), CommandError>| {
        matches!(outcome, Err(CommandError::Refused(Refusal::NotDue { .. })))
    };
    assert!(not_due(&early), "{early:?}");
    assert_eq!(
        handle
            .availability(stockade::types::SkuId(0))
            .map(|stock| stock.reserved),
        Some(1)
    );
    // The hint of a hold that is due, with its key made anew.
    RedisCache::new(&options)
        .put(&[], &[due(held.id.get())])
        .expect("it runs");
    clock.advance(Duration::from_secs(121));
    until("the hint comes", SOON, || outcomes.lock().len() == 1);
    runner.step().expect("running");
    let outcome = outcomes.lock().remove(0).wait();
    assert!(!not_due(&outcome), "{outcome:?}");
    assert_eq!(
        handle
            .availability(stockade::types::SkuId(0))
            .map(|stock| stock.reserved),
        Some(0)
    );
}
