//! Who writes: a standby takes the role when it is handed on, when the session ends and after silence, and not before; who
//! has lost it commits nothing and answers nothing.

use crate::servers::proxy::Proxy;
use crate::{
    ADMIN, Log, PATIENCE, engine, halted, open_sku, reserve, sql, standby, start_later, url,
};
use std::sync::mpsc;
use std::time::Duration;
use stockade::engine::{CommandError, Engine, EngineError, State};
use stockade::postgres::PostgresStore;
use stockade::store::StoreError;
use stockade::types::{Gate, Query, Reserve, SetGate, UserId};

fn taken(waiting: &mpsc::Receiver<Result<Engine, EngineError>>) -> Engine {
    let engine = waiting.recv_timeout(PATIENCE).expect("it takes the role");
    engine.expect("it starts")
}

#[test]
fn a_standby_takes_over_when_the_role_is_handed_on_and_when_the_session_ends() {
    let log = Log::new();
    let patient = standby(&log.options, Duration::from_secs(3_600));
    let first = engine(&log.options).start().expect("it starts");
    let sku = open_sku(&first.handle(), "A", 10);
    let waiting = start_later(&patient);
    let id = reserve(&first.handle(), 1, sku).expect("a unit");
    let early = waiting.recv_timeout(Duration::from_secs(2));
    assert!(early.is_err(), "an owner that beats is left alone");
    assert!(first.shutdown(PATIENCE).is_clean);
    let second = taken(&waiting);
    assert_eq!(
        reserve(&second.handle(), 1, sku).expect("the same answer"),
        id
    );
    // The server ends the owner's session: nobody has to wait for silence.
    let waiting = start_later(&patient);
    let mut client = sql(&log.options);
    // A standby must have seen the owner's session: it looks every 50 ms once it is connected, and tells nobody.
    let ended = client.query_one(
        "SELECT pg_terminate_backend(owner_process(shard, epoch)) FROM writer WHERE pg_sleep(1.5)::text = ''",
        &[],
    );
    assert!(ended.expect("a row").get::<_, bool>(0));
    let third = taken(&waiting);
    assert!(reserve(&third.handle(), 3, sku).is_ok());
    // The second one finds out by its next heartbeat, without being asked.
    let mut state = second.handle().health().state;
    while !matches!(state, State::Halted(_)) {
        std::thread::yield_now();
        state = second.handle().health().state;
    }
    assert!(halted(&second.handle()).contains("another writer (epoch 3)"));
}

#[test]
fn an_idle_owner_keeps_the_role_and_a_standby_that_waits_can_be_stopped() {
    let log = Log::new();
    let owner = engine(&log.options).start().expect("it starts");
    let store = PostgresStore::new(standby(&log.options, Duration::from_millis(1_500)));
    let stop = store.stop_handle();
    let (tell, told) = mpsc::channel();
    std::thread::spawn(move || tell.send(Engine::builder().store(store).start().map(drop)));
    let early = told.recv_timeout(Duration::from_secs(4));
    assert!(early.is_err(), "the owner's heartbeat is silent: {early:?}");
    stop.stop();
    let stopped = told.recv_timeout(PATIENCE).expect("it ends");
    assert!(matches!(
        stopped,
        Err(EngineError::Store(StoreError::Stopped))
    ));
    assert!(owner.handle().health().is_running());
}

#[test]
fn a_writer_cut_off_past_its_takeover_commits_nothing_and_answers_nothing() {
    let log = Log::new();
    let port = log.options.url.rsplit([':', '/']).nth(1).expect("a port");
    let proxy = Proxy::start(port.parse().expect("a number"));
    let mut far = log.options.clone();
    far.url = url(proxy.port());
    far.statement_timeout = Duration::from_secs(60);
    let zombie = engine(&far).start().expect("it starts");
    let handle = zombie.handle();
    let sku = open_sku(&handle, "A", 2);
    reserve(&handle, 1, sku).expect("a unit");
    let closed = open_sku(&handle, "B", 2);
    let close = handle.set_gate(SetGate::new(ADMIN, closed, Gate::Close));
    close.expect("room").wait().expect("closed");
    let waiting = start_later(&standby(&log.options, Duration::from_secs(1)));
    proxy.stall();
    // What is accepted, what is refused, what records nothing, and what only asks.
    let user = UserId::from(2);
    let cart = |sku, units| Reserve::one(user, sku, units).expect("a cart");
    let sold = handle.reserve(cart(sku, 1)).expect("room");
    let refused = handle.reserve(cart(sku, 9)).expect("room");
    let deferred = handle.reserve(cart(closed, 1)).expect("room");
    let asked = handle.query(Query::ReservationsOf(user)).expect("room");
    let owner = taken(&waiting);
    reserve(&owner.handle(), 3, sku).expect("the last unit");
    assert!(!asked.is_done() && !sold.is_done());
    proxy.open();
    for untold in [
        sold.wait().err(),
        refused.wait().err(),
        deferred.wait().err(),
        asked.wait().err(),
    ] {
        let untold = untold.expect("no answer");
        assert!(
            matches!(untold, CommandError::Unknown | CommandError::NotDecided),
            "{untold}"
        );
    }
    assert!(halted(&handle).contains("another writer (epoch 2)"));
    assert!(handle.reserve(cart(sku, 1)).is_err());
    assert!(owner.shutdown(PATIENCE).is_clean);
    let row = sql(&log.options).query_one(
        "SELECT count(*), count(DISTINCT epoch) FROM batches b, events e
        WHERE b.number = e.batch AND e.kind = 'reserved'",
        &[],
    );
    let row = row.expect("a count");
    assert_eq!(
        (row.get(0), row.get(1)),
        (2_i64, 2_i64),
        "one of each writer"
    );
}
