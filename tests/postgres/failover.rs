//! A primary that is lost with the last batches, and its asynchronous standby that is promoted without them: who remembers
//! them writes them again, who doesn't halts.

use crate::servers::Server;
use crate::servers::proxy::Proxy;
use crate::takeover::{await_connected, hold_back, last_batch, open_later};
use crate::{
    PATIENCE, check_held, connect, engine, halted, open_sku, reserve, sql, standby, start_later,
    url,
};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant};
use stockade::engine::{CommandError, Engine, EngineBuilder, Handle};
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::types::{ReservationId, Reserve, SkuId, Timestamp, UserId};

/// A primary, and an asynchronous standby that gets its log through a proxy.
pub(crate) struct Pair {
    pub(crate) primary: Server,
    pub(crate) link: Proxy,
    standby: Server,
    pub(crate) options: PostgresOptions,
}

impl Pair {
    pub(crate) fn start() -> Self {
        let primary = Server::start("postgres.sh", &[]);
        let link = Proxy::start(primary.port());
        let of = ["--standby-of".to_owned(), link.port().to_string()];
        let standby = Server::start("postgres.sh", &of);
        let mut options = PostgresOptions::new(format!(
            "postgres://stockade@127.0.0.1:{},127.0.0.1:{}/stockade",
            primary.port(),
            standby.port()
        ));
        options.statement_timeout = Duration::from_secs(1);
        PostgresStore::migrate(&options).expect("a new schema");
        Self {
            primary,
            link,
            standby,
            options,
        }
    }

    pub(crate) fn on_standby(&self) -> PostgresOptions {
        let mut options = self.options.clone();
        options.url = url(self.standby.port());
        options
    }

    /// An engine whose first reservation both servers have; of what comes after it the standby server hears nothing.
    pub(crate) fn part(&self, engine: EngineBuilder) -> (Engine, Handle, SkuId, ReservationId) {
        let engine = engine.start().expect("it starts");
        let handle = engine.handle();
        let sku = open_sku(&handle, "A", 1_000);
        let first = reserve(&handle, 1, sku).expect("a unit");
        self.catch_up(&handle, sku);
        self.link.stall();
        (engine, handle, sku, first)
    }

    /// Until the standby has all that the primary has.
    fn catch_up(&self, handle: &Handle, sku: SkuId) {
        let reserved = handle
            .availability(sku)
            .expect("known")
            .reserved
            .cast_signed();
        let mut standby = sql(&self.on_standby());
        while standby
            .query_one("SELECT reserved FROM inventory", &[])
            .map_or(-1, |row| row.get(0))
            < reserved
        {
            std::thread::yield_now();
        }
    }

    /// Kills the primary, with what the standby hasn't got, and makes the standby one. Gives the units reserved there before
    /// anybody could write to it.
    pub(crate) fn fail_over(&mut self) -> i64 {
        self.primary.kill();
        self.link.close();
        let row = sql(&self.on_standby()).query_one("SELECT reserved FROM inventory", &[]);
        let reserved = row.expect("one").get(0);
        let mut standby = connect(&url(self.standby.port()));
        let promoted = standby.query_one("SELECT pg_promote(true, 60)", &[]);
        assert!(promoted.expect("a promotion").get::<_, bool>(0));
        reserved
    }
}

#[test]
fn a_standby_server_that_is_promoted_without_the_last_batches_is_given_them_again() {
    let mut pair = Pair::start();
    let (engine, handle, sku, first) = pair.part(engine(&pair.options));
    let mut held = vec![first];
    held.extend((2..22).map(|user| reserve(&handle, user, sku).expect("a unit")));
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    held.push(reserve(&handle, 99, sku).expect("a unit"));
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    check_held(&pair.on_standby(), &held);
    assert_eq!(held.len(), 22);
}

#[test]
fn a_lost_tail_that_nobody_remembers_halts_the_writer() {
    let mut pair = Pair::start();
    pair.options.retained_bytes = 0;
    let (_engine, handle, sku, _) = pair.part(engine(&pair.options));
    reserve(&handle, 2, sku).expect("a unit");
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    // A heartbeat may have found it before.
    let untold = reserve(&handle, 3, sku).expect_err("no answer");
    assert!(matches!(
        untold,
        CommandError::Unknown | CommandError::NotDecided
    ));
    let reason = halted(&handle);
    assert!(reason.contains("batches are missing"), "{reason}");
}

/// A server that waits at every commit for a standby that there isn't; the transaction is committed when the wait is broken off.
/// It may not be promoted yet.
fn wait_at_commits(client: &mut postgres::Client, waits: bool) {
    let name = if waits { "nobody" } else { "" };
    let set = format!("ALTER SYSTEM SET synchronous_standby_names = '{name}'");
    client.batch_execute(&set).expect("a setting");
    client
        .batch_execute("SELECT pg_reload_conf()")
        .expect("it is read");
}

#[test]
fn lost_batches_whose_giving_is_broken_off_are_given_on_from_there() {
    let mut pair = Pair::start();
    let (engine, handle, sku, first) = pair.part(engine(&pair.options));
    let mut held = vec![first];
    held.extend((2..6).map(|user| reserve(&handle, user, sku).expect("a unit")));
    let promoted = pair.on_standby();
    wait_at_commits(&mut sql(&promoted), true);
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    // Its sessions give a batch each, and are given up in its commit: the next one breaks that off.
    let mut client = sql(&promoted);
    let mut owner = || -> Option<i32> {
        let row = client.query_one("SELECT owner_process(shard, epoch) FROM writer", &[]);
        row.expect("one").get(0)
    };
    let (mut sessions, begun) = (Vec::new(), Instant::now());
    while sessions.len() < 3 {
        if let Some(session) = owner()
            && sessions.last() != Some(&session)
        {
            sessions.push(session);
        }
        assert!(begun.elapsed() < PATIENCE, "it has given up: {sessions:?}");
    }
    wait_at_commits(&mut client, false);
    held.push(reserve(&handle, 99, sku).expect("a unit"));
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    check_held(&promoted, &held);
    assert_eq!(held.len(), 6);
}

#[test]
fn deadlines_stay_what_was_told_when_the_giving_of_a_credit_is_broken_off() {
    let mut pair = Pair::start();
    let stalls = engine(&pair.options).stall_credit_after(Duration::from_millis(500));
    let (engine, handle, sku, _) = pair.part(stalls);
    let promoted = pair.on_standby();
    wait_at_commits(&mut sql(&promoted), true);
    // A commit that takes long is credited by the next one, and that is the last one that is lost, or nearly.
    let mut client = sql(&pair.options);
    hold_back(&mut client);
    while handle.health().warnings.is_empty() {
        std::thread::yield_now();
    }
    client.batch_execute("ROLLBACK").expect("out of the way");
    let mut end = || -> (i64, i64) {
        let row = client.query_one("SELECT credit_micros, last_batch FROM writer", &[]);
        let row = row.expect("one");
        (row.get(0), row.get(1))
    };
    while end().0 == 0 {
        std::thread::yield_now();
    }
    let (credit, last) = end();
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    // The last one is there once it was broken off.
    let begun = Instant::now();
    while last_batch(&promoted) < last {
        assert!(begun.elapsed() < PATIENCE, "it has given up");
    }
    wait_at_commits(&mut sql(&promoted), false);
    let asked = handle.reserve(Reserve::one(UserId(2), sku, 1).expect("a cart"));
    let held = asked.expect("room").wait().expect("a unit");
    let row = sql(&promoted).query_one(
        "SELECT expires_at, credit_micros FROM holds JOIN writer ON true WHERE id = $1",
        &[&held.id],
    );
    let row = row.expect("its row");
    assert!(row.get::<_, i64>(1) >= credit);
    assert_eq!(row.get::<_, Timestamp>(0), held.expires_at);
    assert!(engine.shutdown(PATIENCE).is_clean);
}

#[test]
fn an_owner_that_comes_back_later_than_its_standby_still_gives_the_lost_batches_again() {
    let mut pair = Pair::start();
    // The owner's way to the new primary, and the standby's to the old one.
    let (late, lost) = (
        Proxy::start(pair.standby.port()),
        Proxy::start(pair.primary.port()),
    );
    late.close();
    let url_of = |first: u16, second: u16| {
        format!("postgres://stockade@127.0.0.1:{first},127.0.0.1:{second}/stockade")
    };
    let mut own = pair.options.clone();
    own.url = url_of(pair.primary.port(), late.port());
    let mut follower = standby(&pair.options, Duration::from_secs(2));
    follower.url = url_of(lost.port(), pair.standby.port());
    follower.connect_timeout = Duration::from_secs(1);
    let engine = engine(&own).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 1_000);
    let mut held = vec![reserve(&handle, 1, sku).expect("a unit")];
    let followed = Arc::new(AtomicI64::new(0));
    let following = Arc::clone(&followed);
    let waiting = open_later(&follower, 7, move |progress| {
        following.store(progress.done.cast_signed(), Ordering::Relaxed);
    });
    // The standby has what the server that will be promoted has, to the batch: so that it can't tell an owner that isn't back
    // from one that is silent.
    let mut client = sql(&pair.options);
    let last = hold_back(&mut client) - 1;
    let mut replica = sql(&pair.on_standby());
    let has_all = |replica: &mut postgres::Client| {
        let row = replica.query_one("SELECT last_batch FROM writer", &[]);
        row.is_ok_and(|row| row.get::<_, i64>(0) == last)
    };
    while followed.load(Ordering::Relaxed) < last || !has_all(&mut replica) {
        std::thread::yield_now();
    }
    drop(replica);
    lost.stall();
    pair.link.stall();
    client.batch_execute("ROLLBACK").expect("out of the way");
    held.extend((2..5).map(|user| reserve(&handle, user, sku).expect("a unit")));
    let early = waiting.opened.recv_timeout(Duration::from_millis(2_500));
    assert!(early.is_err(), "it reaches no server");
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    await_connected(&pair.on_standby().url, 1);
    let early = waiting.opened.recv_timeout(Duration::from_millis(400));
    assert!(early.is_err(), "it has robbed an owner that wasn't back");
    late.open();
    held.push(reserve(&handle, 99, sku).expect("a unit"));
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    let next = waiting.opened.recv_timeout(PATIENCE).expect("handed on");
    drop(next.expect("it has the role"));
    check_held(&pair.on_standby(), &held);
    assert_eq!(held.len(), 5);
}

#[test]
fn a_standby_that_followed_further_than_the_server_remembers_halts_the_shard() {
    let mut pair = Pair::start();
    let (first, _, sku, _) = pair.part(engine(&pair.options));
    // Nor will it remember that the role changed hands.
    assert!(first.shutdown(PATIENCE).is_clean);
    let first = engine(&pair.options).start().expect("it starts");
    let handle = first.handle();
    let waiting = start_later(&standby(&pair.options, Duration::from_secs(2)));
    for user in 2..6 {
        reserve(&handle, user, sku).expect("a unit");
    }
    // It follows every 50 ms, on a connection of its own.
    let followed = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stockade'";
    let mut client = sql(&pair.options);
    while client
        .query_one(followed, &[])
        .expect("a count")
        .get::<_, i64>(0)
        < 2
    {
        std::thread::yield_now();
    }
    let reads = "SELECT coalesce(sum(idx_scan), 0)::int8 FROM pg_stat_user_tables WHERE relname = 'batches'";
    let before: i64 = client.query_one(reads, &[]).expect("a count").get(0);
    while client
        .query_one(reads, &[])
        .expect("a count")
        .get::<_, i64>(0)
        < before + 2
    {
        // A heartbeat tells nobody else.
        std::thread::sleep(Duration::from_millis(10));
    }
    drop(client);
    // Its owner dies with the server that had it all.
    pair.primary.kill();
    drop(first);
    assert_eq!(pair.fail_over(), 1, "the tail was lost");
    let told = waiting.recv_timeout(PATIENCE).expect("it is told");
    let told = told.err().expect("it doesn't go on").to_string();
    assert!(told.contains("flash-sale resume --store"), "{told}");
    let refused = engine(&pair.options).start().err().expect("halted");
    assert!(
        refused.to_string().contains("batches are missing"),
        "{refused}"
    );
    let epoch = sql(&pair.on_standby()).query_one("SELECT epoch FROM writer", &[]);
    let epoch: i64 = epoch.expect("one").get(0);
    assert_eq!(epoch, 3, "one that the lost history has used");
}
