//! The engine as a user meets it: threads, tickets, shutdown, restart, halting.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use stockade::cache::MemoryCache;
use stockade::engine::{
    BusyReason, CommandError, Engine, EngineError, Handle, Runner, State, Step,
};
use stockade::events::MemorySink;
use stockade::store::{
    MemoryLog, MemoryStore, OpenRequest, Progress, Recovered, Replica, Store, StoreError,
};
use stockade::types::{
    Batch, Clock, Confirm, Confirmation, DefineSku, EventKind, Gate, HoldStatus, IdempotencyKey,
    ManualClock, Query, QueryAnswer, Refusal, Release, Reserve, Rules, SaleStatus, SetGate, SkuId,
    SkuName, Timestamp, UserId,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const ADMIN: UserId = UserId(1 << 100);

fn open_sku(handle: &Handle, name: &str, total: u64, rules: Rules) -> SkuId {
    let define = DefineSku::new(ADMIN, SkuName::new(name).expect("a name"), total);
    let define = define.rules(rules).expect("rules that can be");
    let sku = handle
        .define_sku(define)
        .expect("room")
        .wait()
        .expect("defined");
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))
        .expect("room")
        .wait()
        .expect("opened");
    sku
}

fn reserve(user: u64, sku: SkuId) -> Reserve {
    Reserve::one(UserId::from(user), sku, 1).expect("a cart")
}

#[test]
fn many_threads_sell_every_unit_and_not_one_more() -> TestResult {
    let log = MemoryLog::default();
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .digest_at_shutdown()
        .start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "hot", 1_000, Rules::default());
    let sold: usize = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..4_u64)
            .map(|thread| {
                let handle = handle.clone();
                scope.spawn(move || {
                    let mut sold = 0;
                    for n in 0..500 {
                        let user = thread * 10_000 + n;
                        let Ok(held) = handle.reserve(reserve(user, sku)).expect("room").wait()
                        else {
                            continue;
                        };
                        let confirm = Confirm::unpaid(UserId::from(user), held.id);
                        let confirmed = handle.confirm(confirm).expect("room").wait();
                        assert!(matches!(confirmed, Ok(Confirmation::Sold { .. })));
                        sold += 1;
                    }
                    sold
                })
            })
            .collect();
        threads
            .into_iter()
            .map(|thread| thread.join().expect("no panic"))
            .sum()
    });
    assert_eq!(sold, 1_000);
    let stock = handle.availability(sku).expect("known");
    assert_eq!(
        (stock.available, stock.reserved, stock.sold, stock.total),
        (0, 0, 1_000, 1_000)
    );
    let report = engine.shutdown(Duration::from_secs(10));
    assert!(report.is_clean, "{report:?}");
    let (_, runner) = Engine::builder().store(MemoryStore::on(&log)).build()?;
    assert_eq!(
        Some(runner.digest()),
        report.digest,
        "L7: the log replays to the same state"
    );
    assert!(runner.audit().is_ok());
    Ok(())
}

#[test]
fn a_block_is_answered_in_order_and_each_for_itself() -> TestResult {
    let engine = Engine::builder().start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "block", 10, Rules::default());
    let commands = (0..100).map(|user| reserve(user, sku)).collect();
    let outcomes: Vec<_> = handle
        .submit_block(commands)
        .expect("room")
        .wait()
        .collect();
    assert_eq!(outcomes.len(), 100);
    assert!(outcomes[..10].iter().all(Result::is_ok));
    let sold_out = |outcome: &Result<_, CommandError>| {
        matches!(
            outcome,
            Err(CommandError::Refused(Refusal::SoldOut {
                available: 0,
                lapsing: 10,
                ..
            }))
        )
    };
    assert!(outcomes[10..].iter().all(sold_out));
    Ok(())
}

#[test]
fn a_caller_reads_his_own_write() -> TestResult {
    let engine = Engine::builder().start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "own", 100, Rules::default());
    for n in 0..100_u64 {
        let held = handle.reserve(reserve(n, sku)).expect("room").wait()?;
        let stock = handle.availability(sku).expect("known");
        assert_eq!(stock.reserved, n + 1);
        assert!(stock.sequence >= held.id.sequence());
    }
    Ok(())
}

#[test]
fn a_query_shows_a_sku_as_the_commands_before_it_left_it() -> TestResult {
    let log = MemoryLog::default();
    let shown = |handle: &Handle, sku| -> Result<_, CommandError> {
        match handle.query(Query::Sku(sku)).expect("room").wait()? {
            QueryAnswer::Sku(view) => Ok(view),
            found => panic!("{found:?}"),
        }
    };
    let engine = Engine::builder().store(MemoryStore::on(&log)).start()?;
    let handle = engine.handle();
    assert_eq!(shown(&handle, SkuId(0))?, None);
    let define = DefineSku::new(ADMIN, SkuName::new("shown")?, 3);
    let sku = handle.define_sku(define).expect("room").wait()?;
    let view = shown(&handle, sku)?.expect("defined");
    assert_eq!((view.status, view.sale), (SaleStatus::NeverOpened, 0));
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    let (opened, held) = (handle.set_gate(open), handle.reserve(reserve(1, sku)));
    let view = shown(&handle, sku)?.expect("defined");
    assert_eq!((view.status, view.sale), (SaleStatus::Open, 1));
    assert_eq!((view.available, view.reserved, view.total), (2, 1, 3));
    assert_eq!(
        (view.name.as_str(), view.rules),
        ("shown", Rules::default())
    );
    opened.expect("room").wait()?;
    held.expect("room").wait()?;
    drop(engine);
    let engine = Engine::builder().store(MemoryStore::on(&log)).start()?;
    assert_eq!(shown(&engine.handle(), sku)?, Some(view), "L7");
    Ok(())
}

#[test]
fn holds_lapse_by_themselves_and_their_units_are_sold_again() -> TestResult {
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
    let engine = Engine::builder().clock(clock.clone()).start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "short", 1, Rules::default());
    let held = handle.reserve(reserve(1, sku)).expect("room").wait()?;
    assert!(
        handle
            .reserve(reserve(2, sku))
            .expect("room")
            .wait()
            .is_err()
    );
    clock.advance(Duration::from_secs(120));
    while handle
        .availability(sku)
        .is_some_and(|stock| stock.available == 0)
    {
        std::thread::yield_now();
    }
    let again = handle.reserve(reserve(2, sku)).expect("room").wait()?;
    assert_eq!(
        again.expires_at,
        held.expires_at.plus(Duration::from_secs(120))
    );
    let found = handle
        .query(Query::Reservation(held.id))
        .expect("room")
        .wait()?;
    let QueryAnswer::Reservation(Some(view)) = found else {
        panic!("{found:?}")
    };
    assert_eq!(view.status, HoldStatus::Expired);
    Ok(())
}

#[test]
fn restart_continues_where_the_log_ends() -> TestResult {
    let log = MemoryLog::default();
    let key = IdempotencyKey::from_text("k")?;
    let engine = Engine::builder().store(MemoryStore::on(&log)).start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "again", 5, Rules::default());
    let held = handle
        .reserve(reserve(1, sku).key(key))
        .expect("room")
        .wait()?;
    drop(engine);
    assert_eq!(
        handle
            .reserve(reserve(2, sku))
            .map_err(|busy| busy.reason)
            .err(),
        Some(BusyReason::Draining)
    );
    let engine = Engine::builder().store(MemoryStore::on(&log)).start()?;
    let handle = engine.handle();
    assert_eq!(handle.sku("again"), Some(sku));
    assert_eq!(
        handle.availability(sku).map(|stock| stock.reserved),
        Some(1)
    );
    let again = handle
        .reserve(reserve(1, sku).key(key))
        .expect("room")
        .wait()?;
    assert_eq!(again, held, "L5: the same key, the same answer");
    handle
        .release(Release::new(UserId::from(1), held.id))
        .expect("room")
        .wait()?;
    Ok(())
}

#[test]
fn tickets_can_be_awaited_without_a_runtime() -> TestResult {
    use std::task::{Context, Poll, Wake, Waker};
    struct Unpark(std::thread::Thread);
    impl Wake for Unpark {
        fn wake(self: Arc<Self>) {
            self.0.unpark();
        }
    }
    let engine = Engine::builder().start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "async", 1, Rules::default());
    let mut ticket = std::pin::pin!(handle.reserve(reserve(1, sku)).expect("room"));
    let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
    let mut context = Context::from_waker(&waker);
    loop {
        match ticket.as_mut().poll(&mut context) {
            Poll::Ready(outcome) => {
                outcome?;
                return Ok(());
            }
            Poll::Pending => std::thread::park(),
        }
    }
}

#[test]
fn caches_and_sinks_hear_of_every_commit() -> TestResult {
    let (cache, sink) = (MemoryCache::new(), MemorySink::new());
    let engine = Engine::builder()
        .cache(cache.clone())
        .sink(sink.clone())
        .start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "told", 3, Rules::default());
    for user in 0..3 {
        handle.reserve(reserve(user, sku)).expect("room").wait()?;
    }
    let report = engine.shutdown(Duration::from_secs(10));
    assert!(report.is_announced, "{report:?}");
    let name = SkuName::new("told")?;
    let entry = cache.get(&name).expect("written through");
    assert_eq!(
        (entry.availability.available, entry.availability.reserved),
        (0, 3)
    );
    let events = sink.events();
    assert!(
        events
            .iter()
            .zip(1..)
            .all(|(event, sequence)| event.sequence == sequence)
    );
    let reserved = events
        .iter()
        .filter(|event| matches!(event.kind, EventKind::Reserved { .. }));
    assert_eq!(reserved.count(), 3);
    Ok(())
}

#[test]
fn a_runner_works_without_threads() -> TestResult {
    let (handle, mut runner) = Engine::builder().build()?;
    let define = DefineSku::new(ADMIN, SkuName::new("loop")?, 1);
    let ticket = handle.define_sku(define).expect("room");
    assert!(!ticket.is_done());
    assert_eq!(runner.step()?, Step::Answered(1));
    let sku = ticket.wait()?;
    let ticket = handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))
        .expect("room");
    runner.step()?;
    ticket.wait()?;
    let left = handle.reserve(reserve(1, sku)).expect("room");
    let digest = runner.shutdown()?;
    left.wait()?;
    assert_ne!(digest, 0);
    assert_eq!(handle.health().state, State::Stopped);
    Ok(())
}

#[test]
fn settings_out_of_range_are_refused_with_the_range() {
    let error = Engine::builder().batch_max(0).start().err();
    assert!(matches!(
        error,
        Some(EngineError::Setting {
            what: "batch_max",
            value: 0,
            min: 1,
            ..
        })
    ));
}

#[test]
fn a_wall_clock_far_ahead_of_live_holds_is_refused_and_one_behind_is_a_warning() -> TestResult {
    let log = MemoryLog::default();
    let start = Timestamp::from_micros(10_000_000_000_000);
    let at = |wall| Arc::new(ManualClock::at(wall));
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .clock(at(start))
        .start()?;
    let sku = open_sku(&engine.handle(), "clock", 1, Rules::default());
    engine
        .handle()
        .reserve(reserve(1, sku))
        .expect("room")
        .wait()?;
    drop(engine);
    let ahead = at(start.plus(Duration::from_secs(7_200)));
    let refused = Engine::builder()
        .store(MemoryStore::on(&log))
        .clock(ahead.clone())
        .start();
    assert!(matches!(
        refused.err(),
        Some(EngineError::ClockAhead { .. })
    ));
    let behind = at(Timestamp::from_micros(start.as_micros() - 3_600_000_000));
    let engine = Engine::builder()
        .store(MemoryStore::on(&log))
        .clock(behind)
        .start()?;
    let health = engine.handle().health();
    assert!(
        health.is_degraded() && health.warnings[0].contains("behind the log"),
        "{health:?}"
    );
    assert!(
        engine.handle().now() >= start,
        "logical time never goes back"
    );
    drop(engine);
    let told = Engine::builder().store(MemoryStore::on(&log)).clock(ahead);
    drop(told.clock_jump_max(Duration::from_secs(10_000)).start()?);
    Ok(())
}

/// Fails as it is told to.
struct Moody {
    inner: MemoryStore,
    fail: Arc<AtomicBool>,
    error: fn() -> StoreError,
}

impl Store for Moody {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.inner.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if self.fail.load(Ordering::SeqCst) {
            Err((self.error)())
        } else {
            self.inner.commit(batch)
        }
    }
}

#[test]
fn a_commit_that_fails_for_good_halts_and_its_caller_hears_unknown() -> TestResult {
    (0..100).try_for_each(|_| a_commit_fails_for_good())
}

fn a_commit_fails_for_good() -> TestResult {
    let fail = Arc::new(AtomicBool::new(false));
    let error = || StoreError::Fatal("the disk is on fire".into());
    let store = Moody {
        inner: MemoryStore::new(),
        fail: fail.clone(),
        error,
    };
    let engine = Engine::builder().store(store).start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "doomed", 5, Rules::default());
    fail.store(true, Ordering::SeqCst);
    let outcome = handle.reserve(reserve(1, sku)).expect("room").wait();
    assert_eq!(outcome, Err(CommandError::Unknown));
    assert_eq!(
        handle.availability(sku).map(|stock| stock.reserved),
        Some(0),
        "L4"
    );
    // Who has heard that finds the engine halted.
    assert_eq!(
        handle.health().state,
        State::Halted("the disk is on fire".into())
    );
    let next = handle.reserve(reserve(2, sku));
    assert!(matches!(next, Err(busy) if busy.reason == BusyReason::Halted));
    let report = engine.shutdown(Duration::from_secs(1));
    assert!(!report.is_clean && report.halted.is_some());
    Ok(())
}

#[test]
fn a_store_that_can_not_commit_for_a_while_is_retried_and_deadlines_are_credited() -> TestResult {
    let fail = Arc::new(AtomicBool::new(false));
    let store = Moody {
        inner: MemoryStore::new(),
        fail: fail.clone(),
        error: || StoreError::Retryable("the network is down".into()),
    };
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
    let engine = Engine::builder()
        .store(store)
        .clock(clock.clone())
        .start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "patient", 5, Rules::default());
    let held = handle.reserve(reserve(1, sku)).expect("room").wait()?;
    fail.store(true, Ordering::SeqCst);
    let waiting = handle.reserve(reserve(2, sku)).expect("room");
    while !handle.health().is_degraded() {
        std::thread::yield_now();
    }
    clock.advance(Duration::from_secs(119));
    fail.store(false, Ordering::SeqCst);
    waiting.wait()?;
    clock.advance(Duration::from_secs(60));
    let found = handle
        .query(Query::Reservation(held.id))
        .expect("room")
        .wait()?;
    let QueryAnswer::Reservation(Some(view)) = found else {
        panic!("{found:?}")
    };
    assert_eq!(view.status, HoldStatus::Held, "the stall doesn't count");
    assert_eq!(
        view.expires_at.since(held.expires_at),
        Duration::from_secs(119)
    );
    assert!(clock.wall() > held.expires_at);
    assert!(!handle.health().is_degraded());
    Ok(())
}

/// Warns of what it is told to.
struct Worried {
    inner: MemoryStore,
    warnings: Arc<Mutex<Vec<String>>>,
}

impl Store for Worried {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.inner.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.inner.commit(batch)
    }

    fn warnings(&self) -> Vec<String> {
        self.warnings.lock().expect("no panic").clone()
    }
}

#[test]
fn a_warning_of_the_store_comes_and_goes_with_the_commits_at_most_once_a_second() -> TestResult {
    let warnings = Arc::new(Mutex::new(vec!["slow disk".to_owned()]));
    let warn = |texts: &[&str]| {
        *warnings.lock().expect("no panic") = texts.iter().map(ToString::to_string).collect();
    };
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
    let engine = Engine::builder()
        .store(Worried {
            inner: MemoryStore::new(),
            warnings: warnings.clone(),
        })
        .clock(clock.clone());
    let (handle, mut runner) = engine.build()?;
    let told = || handle.health().warnings;
    assert_eq!(told(), ["slow disk"], "from the start");
    let mut defined = 0;
    let mut commit = |runner: &mut Runner| {
        defined += 1;
        let name = SkuName::new(&format!("SKU-{defined}")).expect("a name");
        let ticket = handle.define_sku(DefineSku::new(ADMIN, name, 1));
        runner.step().expect("it commits");
        ticket.expect("room").wait().expect("defined");
    };
    warn(&[]);
    clock.advance(Duration::from_millis(999));
    commit(&mut runner);
    assert_eq!(told(), ["slow disk"], "within the second");
    clock.advance(Duration::from_millis(1));
    assert_eq!(runner.step()?, Step::Idle(None));
    assert_eq!(told(), ["slow disk"], "nothing was committed");
    commit(&mut runner);
    assert!(!handle.health().is_degraded());
    warn(&["no snapshot", "no room"]);
    commit(&mut runner);
    assert!(!handle.health().is_degraded(), "within the next second");
    clock.advance(Duration::from_secs(1));
    commit(&mut runner);
    assert_eq!(told(), ["no snapshot; no room"]);
    warn(&["no room"]);
    clock.advance(Duration::from_secs(60));
    commit(&mut runner);
    assert_eq!(told(), ["no room"]);
    runner.shutdown()?;
    Ok(())
}

#[test]
fn shutdown_answers_everything_that_was_submitted() -> TestResult {
    let engine = Engine::builder().start()?;
    let handle = engine.handle();
    let sku = open_sku(&handle, "last", 100_000, Rules::default());
    let tickets: Vec<_> = (0..20_000)
        .map(|user| handle.reserve(reserve(user, sku)).expect("room"))
        .collect();
    let report = engine.shutdown(Duration::from_secs(10));
    assert!(report.is_clean);
    for ticket in tickets {
        assert!(ticket.is_done());
        ticket.wait()?;
    }
    Ok(())
}
