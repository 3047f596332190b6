//! A server that is killed, that hangs, that is far away, that has no connection left, and answers that are lost on the way: what
//! was acknowledged is in the rows, once.

use crate::servers::Server;
use crate::servers::proxy::Proxy;
use crate::{
    Log, PATIENCE, RECOUNT, check_held, engine, load, open_sku, reserve, sql, standby, start_later,
    url,
};
use postgres::NoTls;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use stockade::engine::CommandError;
use stockade::postgres::{PostgresOptions, PostgresStore, Role};
use stockade::types::{IdempotencyKey, Refusal, Reserve, UserId};

#[test]
fn an_answer_that_is_lost_on_the_way_changes_nothing() {
    let log = Log::new();
    let port = log.options.url.rsplit([':', '/']).nth(1).expect("a port");
    let proxy = Proxy::start(port.parse().expect("a number"));
    let mut far = log.options.clone();
    far.url = url(proxy.port());
    let engine = engine(&far).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 100);
    for user in 0..20 {
        proxy.cut_next_answer();
        reserve(&handle, user, sku).expect("a unit, once");
    }
    assert!(proxy.swallowed() >= 20);
    assert_eq!(handle.availability(sku).expect("known").reserved, 20);
    // Connections that are cut without a word lose nothing either.
    for user in 20..40 {
        proxy.cut();
        reserve(&handle, user, sku).expect("a unit, once");
    }
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    let mut client = sql(&log.options);
    let row = client
        .query_one("SELECT reserved, available FROM inventory", &[])
        .expect("one");
    assert_eq!((row.get(0), row.get(1)), (40_i64, 60_i64));
    assert!(client.query(RECOUNT, &[]).expect("a recount").is_empty());
}

#[test]
fn a_server_that_is_killed_under_load_and_comes_back_costs_nothing() {
    let mut server = Server::start("postgres.sh", &[]);
    let options = PostgresOptions::new(url(server.port()));
    PostgresStore::migrate(&options).expect("a new schema");
    let engine = engine(&options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 1_000_000);
    let stop = AtomicBool::new(false);
    let held = std::thread::scope(|scope| {
        let (handle, stop) = (&handle, &stop);
        let threads: Vec<_> = (0..4)
            .map(|thread| scope.spawn(move || load(handle, sku, thread << 32, stop)))
            .collect();
        for _ in 0..2 {
            // In the middle of it, as the counts show.
            let before = handle.stats().accepted;
            while handle.stats().accepted < before + 200 {
                std::thread::yield_now();
            }
            server.kill();
            assert!(handle.health().is_running());
            server.restart();
        }
        let before = handle.stats().accepted;
        while handle.stats().accepted < before + 200 {
            std::thread::yield_now();
        }
        stop.store(true, Ordering::Relaxed);
        let held = threads
            .into_iter()
            .flat_map(|thread| thread.join().expect("no panic"));
        held.collect::<Vec<_>>()
    });
    assert!(held.len() >= 600);
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    check_held(&options, &held);
    let mut again = options.clone();
    again.role = Role::TakeNow;
    self::engine(&again).start().expect("it recovers");
}

#[test]
fn a_server_that_hangs_makes_reservations_wait_and_nothing_else() {
    let server = Server::start("postgres.sh", &[]);
    let mut options = PostgresOptions::new(url(server.port()));
    options.statement_timeout = Duration::from_millis(300);
    PostgresStore::migrate(&options).expect("a new schema");
    let engine = engine(&options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 10);
    server.pause();
    let asked = handle
        .reserve(Reserve::one(UserId(1), sku, 1).expect("a cart"))
        .expect("room");
    while handle.health().warnings.is_empty() {
        std::thread::yield_now();
    }
    assert!(handle.health().is_running() && !asked.is_done());
    assert_eq!(handle.availability(sku).expect("reads go on").available, 10);
    server.go_on();
    let held = asked.wait().expect("a unit");
    assert!(engine.shutdown(PATIENCE).is_clean);
    check_held(&options, &[held.id]);
}

#[test]
fn other_clients_that_take_every_connection_leave_the_writer_its_own() {
    let settings = [
        "max_connections=8".to_owned(),
        "superuser_reserved_connections=0".to_owned(),
    ];
    let server = Server::start("postgres.sh", &settings);
    let options = PostgresOptions::new(url(server.port()));
    PostgresStore::migrate(&options).expect("a new schema");
    let engine = engine(&options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 10);
    let connect = || postgres::Client::connect(&options.url, NoTls);
    let others: Vec<_> = std::iter::from_fn(|| connect().ok()).collect();
    assert!(others.len() >= 5 && connect().is_err(), "{}", others.len());
    let held = reserve(&handle, 1, sku).expect("a unit");
    drop(others);
    assert!(engine.shutdown(PATIENCE).is_clean);
    check_held(&options, &[held]);
}

/// One batch is on its way at a time, so what comes meanwhile goes together.
#[test]
fn a_server_far_away_costs_time_and_neither_the_role_nor_a_unit() {
    const ASKED: u128 = 3_000;
    const UNITS: u64 = 2_000;
    const ONE_WAY: Duration = Duration::from_millis(20);
    let log = Log::new();
    let port = log.options.url.rsplit([':', '/']).nth(1).expect("a port");
    let proxy = Proxy::start(port.parse().expect("a number"));
    proxy.slow(ONE_WAY);
    let mut far = log.options.clone();
    far.url = url(proxy.port());
    let engine = engine(&far).start().expect("it starts");
    let handle = engine.handle();
    let waiting = start_later(&standby(&log.options, Duration::from_millis(1_500)));
    let sku = open_sku(&handle, "A", UNITS);
    let begun = Instant::now();
    let first = reserve(&handle, 1, sku).expect("a unit");
    assert!(begun.elapsed() >= 2 * ONE_WAY, "there and back");
    // Each is asked twice at once.
    let ask = |user: u128| {
        let key = IdempotencyKey::new(user + 1).expect("not zero");
        let asked = Reserve::one(UserId(user), sku, 1).expect("a cart").key(key);
        handle.reserve(asked).expect("room")
    };
    let begun = Instant::now();
    let asked: Vec<_> = (1..=ASKED).map(|user| [ask(user), ask(user)]).collect();
    let mut held = Vec::new();
    for (user, asked) in (1..).zip(asked) {
        let [once, twice] = asked.map(|asked| asked.wait().map(|held| held.id));
        match once {
            Ok(id) => held.push(id),
            Err(CommandError::Refused(Refusal::SoldOut { .. })) => {}
            Err(ref error) => panic!("{user}: {error}"),
        }
        assert_eq!(once, twice, "{user}");
    }
    eprintln!("{ASKED} asked twice: {:?}", begun.elapsed());
    assert_eq!((held.len() as u64, held[0]), (UNITS, first));
    // One by one they would have taken minutes.
    let mut client = sql(&log.options);
    let count = "SELECT count(DISTINCT batch) FROM events WHERE kind = 'reserved'";
    let batches: i64 = client.query_one(count, &[]).expect("a count").get(0);
    assert!(batches <= 100, "{batches} batches");
    let early = waiting.recv_timeout(Duration::from_secs(4));
    assert!(early.is_err(), "the owner is heard, if late");
    assert!(handle.health().is_running());
    check_held(&log.options, &held);
    // What comes next is the standby's, and it stands by what was told.
    assert!(engine.shutdown(PATIENCE).is_clean);
    let next = waiting.recv_timeout(PATIENCE).expect("it takes the role");
    let next = next.expect("it starts");
    let again = reserve(&next.handle(), 1, sku);
    assert_eq!(again.expect("the same answer"), first);
}
