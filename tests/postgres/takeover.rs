//! Takeovers that something else comes into the way of: another standby, an owner that is slow or has to come back first, and
//! a client that stands still in the middle of it.

use crate::servers::Server;
use crate::servers::proxy::Proxy;
use crate::{Log, PATIENCE, connect, engine, open_sku, reserve, sql, standby, start_later, url};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;
use stockade::postgres::{PostgresOptions, PostgresRepair, PostgresStore, Stop};
use stockade::store::{OpenRequest, Progress, Replica, ReplicaError, Store, StoreError};
use stockade::types::{Availability, Batch, StateRecord};

/// Where a replica tells that it has come, and waits until it is let on.
struct Gate {
    entered: mpsc::Sender<()>,
    go_on: Mutex<mpsc::Receiver<()>>,
}

impl Gate {
    /// And what its keeper has of it.
    fn new() -> (Self, mpsc::Receiver<()>, mpsc::Sender<()>) {
        let (entered, is_in) = mpsc::channel();
        let (let_on, go_on) = mpsc::channel();
        let go_on = Mutex::new(go_on);
        (Self { entered, go_on }, is_in, let_on)
    }

    fn pass(&self) {
        // A keeper that is gone wants neither.
        let _ = (self.entered.send(()), self.go_on.lock().map(|on| on.recv()));
    }
}

/// A replica that counts nothing, with a gate where it was given all, or where it is compared.
#[derive(Default)]
struct Blank {
    complete: Option<Gate>,
    stock: Option<Gate>,
}

impl Replica for Blank {
    fn restore(&mut self, _: &StateRecord) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn apply(&mut self, _: &Batch) -> Result<(), ReplicaError> {
        Ok(())
    }

    fn complete(&mut self) -> Result<(), ReplicaError> {
        if let Some(gate) = &self.complete {
            gate.pass();
        }
        Ok(())
    }

    fn export(&self, _: &mut dyn FnMut(&StateRecord)) {}

    fn stock(&self) -> Vec<Availability> {
        if let Some(gate) = &self.stock {
            gate.pass();
        }
        Vec::new()
    }
}

/// A store that is being opened on a thread of its own.
pub(crate) struct Opening {
    pub(crate) opened: mpsc::Receiver<Result<PostgresStore, StoreError>>,
    pub(crate) stop: Stop,
}

pub(crate) fn open_later(
    options: &PostgresOptions,
    writer: u128,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Opening {
    open_with(options, writer, Blank::default(), progress)
}

fn open_with(
    options: &PostgresOptions,
    writer: u128,
    mut replica: Blank,
    mut progress: impl FnMut(Progress) + Send + 'static,
) -> Opening {
    let mut store = PostgresStore::new(options.clone());
    let stop = store.stop_handle();
    let request = OpenRequest {
        shard: 0,
        writer,
        replicas: Arc::new(|| Box::new(Blank::default())),
    };
    let opened = later(move || {
        let taken = store.open(&request, &mut replica, &mut progress);
        taken.map(|_| store)
    });
    Opening { opened, stop }
}

/// Does it on a thread of its own.
fn later<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(work()));
    told
}

/// Makes the commit of a batch that is yet to come, whose number is given, wait within the fence until the client's
/// transaction ends.
pub(crate) fn hold_back(client: &mut postgres::Client) -> i64 {
    client.batch_execute("BEGIN").expect("a transaction");
    let row = client.query_one(
        "INSERT INTO batches SELECT shard, last_batch + 2, epoch, writer_id, last_stamp, 1, last_hash, last_hash, '{}', '{}', '', ''
         FROM writer RETURNING number",
        &[],
    );
    row.expect("a row in the way").get(0)
}

pub(crate) fn last_batch(options: &PostgresOptions) -> i64 {
    let row = sql(options).query_one("SELECT last_batch FROM writer", &[]);
    row.expect("one").get(0)
}

fn epoch(options: &PostgresOptions) -> i64 {
    let row = sql(options).query_one("SELECT epoch FROM writer", &[]);
    row.expect("one").get(0)
}

/// Until so many sessions wait for locks while they use the fence row.
fn await_queue(options: &PostgresOptions, sessions: i64) {
    let mut client = sql(options);
    let waiting = "SELECT count(DISTINCT w.pid) FROM pg_locks w JOIN pg_locks r USING (pid)
        WHERE NOT w.granted AND r.relation = 'writer'::regclass";
    while client
        .query_one(waiting, &[])
        .expect("a count")
        .get::<_, i64>(0)
        < sessions
    {
        std::thread::yield_now();
    }
}

#[test]
fn of_two_standbys_that_find_the_role_free_one_takes_it_and_the_other_goes_on_following() {
    let log = Log::new();
    let patient = standby(&log.options, Duration::from_secs(3_600));
    let (gate, is_in, let_on) = Gate::new();
    let gated = Blank {
        complete: Some(gate),
        ..Blank::default()
    };
    // Nobody has had the role yet, so it is free.
    let first = open_with(&patient, 1, gated, |_| {});
    is_in.recv_timeout(PATIENCE).expect("it takes the role");
    let second = open_later(&patient, 2, |_| {});
    await_queue(&log.options, 1);
    let_on.send(()).expect("it waits");
    let owner = first.opened.recv_timeout(PATIENCE).expect("it is open");
    // Its session must last: a standby takes the role of an owner that leaves.
    let _owner = owner.expect("it has the role");
    let robbed = second.opened.recv_timeout(Duration::from_secs(1));
    assert!(robbed.is_err(), "both have taken the role");
    assert_eq!(epoch(&log.options), 1);
    second.stop.stop();
    let stopped = second.opened.recv_timeout(PATIENCE).expect("it ends");
    assert!(matches!(stopped, Err(StoreError::Stopped)));
}

#[test]
fn an_owner_whose_slow_commit_a_standby_has_waited_for_keeps_the_role() {
    let mut log = Log::new();
    log.options.statement_timeout = PATIENCE;
    let owner = engine(&log.options).start().expect("it starts");
    let handle = owner.handle();
    let sku = open_sku(&handle, "A", 10);
    let waiting = start_later(&standby(&log.options, Duration::from_secs(1)));
    let mut client = sql(&log.options);
    hold_back(&mut client);
    // The owner for this client, and the standby, for which it is silent, for the owner.
    await_queue(&log.options, 2);
    client.batch_execute("ROLLBACK").expect("out of the way");
    let early = waiting.recv_timeout(Duration::from_secs(2));
    assert!(early.is_err(), "it has robbed an owner that commits");
    reserve(&handle, 1, sku).expect("a unit");
    assert!(owner.shutdown(PATIENCE).is_clean);
    let next = waiting.recv_timeout(PATIENCE).expect("it takes the role");
    assert_eq!(epoch(&log.options), 2);
    drop(next);
}

/// Until so many writers and standbys are connected.
pub(crate) fn await_connected(url: &str, programs: i64) {
    let mut client = connect(url);
    let connected = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'stockade'";
    while client
        .query_one(connected, &[])
        .expect("a count")
        .get::<_, i64>(0)
        < programs
    {
        std::thread::yield_now();
    }
}

#[test]
fn an_owner_keeps_the_role_over_outages_that_last_longer_than_its_standbys_patience() {
    let mut server = Server::start("postgres.sh", &[]);
    let options = PostgresOptions::new(url(server.port()));
    PostgresStore::migrate(&options).expect("a new schema");
    // The standby is always the first to be back.
    let proxy = Proxy::start(server.port());
    let mut far = options.clone();
    far.url = url(proxy.port());
    let owner = engine(&far).start().expect("it starts");
    let handle = owner.handle();
    let sku = open_sku(&handle, "A", 10);
    let waiting = start_later(&standby(&options, Duration::from_secs(1)));
    for round in 0..4 {
        await_connected(&options.url, 2);
        // Time for a first look, which it tells nobody.
        let early = waiting.recv_timeout(Duration::from_millis(500));
        assert!(early.is_err(), "beside its owner");
        // Killed, and merely stopped: then connections stay.
        let is_killed = round % 2 == 0;
        let outage = Duration::from_millis(2_500);
        let early = if is_killed {
            server.kill();
            proxy.close();
            let early = waiting.recv_timeout(outage);
            server.restart();
            await_connected(&options.url, 1);
            early
        } else {
            server.pause();
            proxy.stall();
            let early = waiting.recv_timeout(outage);
            server.go_on();
            early
        };
        assert!(early.is_err(), "without a server");
        let early = waiting.recv_timeout(Duration::from_millis(400));
        assert!(early.is_err(), "robbed (killed: {is_killed})");
        proxy.open();
        reserve(&handle, round, sku).expect("a unit");
        assert_eq!(epoch(&options), 1);
    }
    assert!(owner.shutdown(PATIENCE).is_clean);
    let next = waiting.recv_timeout(PATIENCE).expect("it takes the role");
    drop(next);
    assert_eq!(epoch(&options), 2);
}

#[test]
fn a_standby_that_stands_still_in_the_middle_of_its_takeover_keeps_nobody_from_committing_for_long()
{
    let log = Log::new();
    let owner = engine(&log.options).start().expect("it starts");
    let handle = owner.handle();
    let sku = open_sku(&handle, "A", 10);
    let (gate, is_in, let_on) = Gate::new();
    let gated = Blank {
        complete: Some(gate),
        ..Blank::default()
    };
    let frozen = open_with(&log.options, 1, gated, |_| {});
    is_in.recv_timeout(PATIENCE).expect("it takes the role");
    let held = later(move || reserve(&handle, 1, sku)).recv_timeout(Duration::from_secs(20));
    held.expect("the shard is blocked").expect("a unit");
    // It finds itself without a session, and has changed nothing.
    frozen.stop.stop();
    let_on.send(()).expect("it waits");
    let ended = frozen.opened.recv_timeout(PATIENCE).expect("it ends");
    assert!(matches!(ended, Err(StoreError::Stopped)));
    assert_eq!(epoch(&log.options), 1);
    assert!(owner.shutdown(PATIENCE).is_clean);
}

#[test]
fn a_repair_that_is_stopped_in_the_middle_keeps_nobody_from_committing_for_long() {
    let log = Log::new();
    let owner = engine(&log.options).start().expect("it starts");
    let handle = owner.handle();
    let sku = open_sku(&handle, "A", 10);
    let (gate, is_in, let_on) = Gate::new();
    let mut gated = Blank {
        stock: Some(gate),
        ..Blank::default()
    };
    let options = log.options.clone();
    let repaired = later(move || PostgresRepair::apply(&options, 0, &mut gated, &mut |_| {}));
    is_in.recv_timeout(PATIENCE).expect("it compares");
    let held = later(move || reserve(&handle, 1, sku)).recv_timeout(Duration::from_secs(20));
    held.expect("the shard is blocked").expect("a unit");
    let_on.send(()).expect("it waits");
    let ended = repaired.recv_timeout(PATIENCE).expect("it ends");
    assert!(matches!(ended, Err(StoreError::Retryable(_))), "{ended:?}");
    assert_eq!(epoch(&log.options), 1);
    assert!(owner.shutdown(PATIENCE).is_clean);
}

#[test]
fn an_epoch_that_a_server_has_forgotten_is_not_used_again() {
    let log = Log::new();
    for writer in 1..=2 {
        let taken = open_later(&log.options, writer, |_| {}).opened;
        let taken = taken.recv_timeout(PATIENCE).expect("it ends");
        drop(taken.expect("it has the role"));
    }
    assert_eq!(epoch(&log.options), 2);
    let owner = open_later(&log.options, 3, |_| {}).opened;
    let owner = owner.recv_timeout(PATIENCE).expect("it ends");
    let _owner = owner.expect("it has the role");
    let patient = standby(&log.options, Duration::from_secs(3_600));
    let waiting = open_later(&patient, 4, |_| {}).opened;
    // Time for a look, which it tells nobody.
    let early = waiting.recv_timeout(Duration::from_secs(1));
    assert!(early.is_err(), "the owner is there");
    sql(&log.options)
        .batch_execute("UPDATE writer SET epoch = 1, handed_on = true")
        .expect("as a server says that has lost two takeovers");
    let taken = waiting.recv_timeout(PATIENCE).expect("it ends");
    let _next = taken.expect("it has the role");
    assert_eq!(epoch(&log.options), 4);
}
