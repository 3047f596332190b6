//! What a cache hears from an engine: stock, reservations and their ends, and what may be stale after it has failed.

use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use stockade::Engine;
use stockade::cache::{Cache, CacheEntry, CacheError, Change, MemoryCache, ReservationChange};
use stockade::engine::{Handle, Runner};
use stockade::events::{EventSink, SinkError};
use stockade::store::{
    MemoryLog, MemoryStore, OpenRequest, Progress, Recovered, Replica, Store, StoreError,
};
use stockade::types::{
    Batch, BeginPayment, Clock, Confirm, DefineSku, Disposition, Gate, HoldStatus, Line, Lines,
    ManualClock, PaymentFailed, PaymentRef, Release, Reserve, Rules, SetGate, SkuId, SkuName,
    SystemClock, Timestamp, UserId,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const ADMIN: UserId = UserId(1 << 100);

/// An engine that is turned by hand.
struct Turned {
    handle: Handle,
    runner: Runner,
}

impl Turned {
    fn open_sku(&mut self, name: &str) -> SkuId {
        let rules = Rules {
            per_user: None,
            ..Rules::default()
        };
        let define = DefineSku::new(ADMIN, SkuName::new(name).expect("a name"), 100);
        let defined = self
            .handle
            .define_sku(define.rules(rules).expect("rules"))
            .expect("room");
        self.runner.step().expect("running");
        let sku = defined.wait().expect("defined");
        let opened = self
            .handle
            .set_gate(SetGate::new(ADMIN, sku, Gate::Open))
            .expect("room");
        self.runner.step().expect("running");
        opened.wait().expect("opened");
        sku
    }

    fn reserve(&mut self, user: u64, lines: &[(SkuId, u32)]) -> stockade::types::Reservation {
        let lines = lines.iter().map(|&(sku, quantity)| Line { sku, quantity });
        let cart = Reserve::cart(UserId::from(user), Lines::new(lines).expect("a cart"));
        let held = self.handle.reserve(cart).expect("room");
        self.runner.step().expect("running");
        held.wait().expect("accepted")
    }
}

fn build(cache: impl Cache + 'static, log: &MemoryLog, clock: &Arc<ManualClock>) -> Turned {
    let builder = Engine::builder()
        .store(MemoryStore::on(log))
        .clock(clock.clone());
    let (handle, runner) = builder.cache(cache).build().expect("built");
    Turned { handle, runner }
}

fn clock() -> Arc<ManualClock> {
    Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)))
}

#[test]
fn a_cache_holds_a_reservation_until_it_ends() -> TestResult {
    let (cache, clock) = (MemoryCache::new(), clock());
    let mut engine = build(cache.clone(), &MemoryLog::default(), &clock);
    let cart: Vec<(SkuId, u32)> = (1..=20)
        .map(|n| (engine.open_sku(&format!("sku {n}")), n))
        .collect();
    let user = UserId::from(1);
    let held = engine.reserve(1, &cart);
    let entry = cache.reservation(held.id).expect("written through");
    assert_eq!((entry.user, entry.status), (user, HoldStatus::Held));
    assert_eq!(
        (entry.expires_at, entry.sequence),
        (held.expires_at, held.id.sequence())
    );
    let lines: Vec<_> = (1..=20)
        .map(|n| Ok((SkuName::new(&format!("sku {n}"))?, n)))
        .collect();
    assert_eq!(
        entry.lines,
        lines
            .into_iter()
            .collect::<Result<Vec<_>, stockade::types::SkuNameError>>()?
    );

    let payment = PaymentRef::new(7).expect("not zero");
    let begun = engine
        .handle
        .begin_payment(BeginPayment::new(user, held.id, payment))?;
    engine.runner.step()?;
    let begun = begun.wait()?;
    let entry = cache.reservation(held.id).expect("still there");
    assert_eq!(
        (entry.status, entry.expires_at),
        (HoldStatus::InPayment, begun.expires_at)
    );
    let failed = PaymentFailed::new(user, held.id, begun.attempt, Disposition::Keep);
    let failed = engine.handle.payment_failed(failed)?;
    engine.runner.step()?;
    failed.wait()?;
    assert_eq!(
        cache.reservation(held.id).map(|entry| entry.status),
        Some(HoldStatus::Held)
    );

    let payment = PaymentRef::new(8).expect("not zero");
    let begun = engine
        .handle
        .begin_payment(BeginPayment::new(user, held.id, payment))?;
    engine.runner.step()?;
    let confirm = Confirm::paid(user, held.id, begun.wait()?.attempt, payment);
    let confirmed = engine.handle.confirm(confirm)?;
    let released = engine.reserve(2, &cart[..1]);
    assert!(confirmed.wait().is_ok());
    assert_eq!(cache.reservation(held.id), None, "confirmed");
    assert!(cache.reservation(released.id).is_some());
    let release = engine
        .handle
        .release(Release::new(UserId::from(2), released.id))?;
    engine.runner.step()?;
    release.wait()?;
    assert_eq!(cache.reservation(released.id), None, "released");
    let lapsed = engine.reserve(3, &cart[..1]);
    clock.advance(Duration::from_secs(121));
    engine.runner.step()?;
    assert_eq!(cache.reservation(lapsed.id), None, "expired");
    Ok(())
}

#[test]
fn an_engine_that_starts_tells_a_cache_all_stock_under_its_own_epoch() -> TestResult {
    let (cache, clock, log) = (MemoryCache::new(), clock(), MemoryLog::default());
    let mut engine = build(cache.clone(), &log, &clock);
    let sku = engine.open_sku("seeded");
    let held = engine.reserve(1, &[(sku, 3)]);
    assert!(cache.reservation(held.id).is_some());
    drop(engine);
    let name = SkuName::new("seeded")?;
    let before = cache.get(&name).expect("written through");
    for known in [cache, MemoryCache::new()] {
        let mut engine = build(known.clone(), &log, &clock);
        engine.runner.step()?;
        let after = known.get(&name).expect("told at the start");
        assert!(after.epoch > before.epoch);
        assert_eq!(after.availability, before.availability);
        assert_eq!(
            known.reservation(held.id),
            None,
            "the epoch before may have ended it"
        );
    }
    Ok(())
}

/// Takes what it is offered unless it is told to fail, and remembers both.
#[derive(Clone, Default)]
struct Fails(Arc<Mutex<Failing>>);

#[derive(Default)]
struct Failing {
    is_down: bool,
    stock: Vec<CacheEntry>,
    changes: Vec<ReservationChange>,
}

impl Cache for Fails {
    fn put(
        &mut self,
        stock: &[CacheEntry],
        changes: &[ReservationChange],
    ) -> Result<(), CacheError> {
        let mut known = self.0.lock();
        if known.is_down {
            return Err(CacheError("told to fail".into()));
        }
        known.stock.extend_from_slice(stock);
        known.changes.extend_from_slice(changes);
        Ok(())
    }

    fn holds_reservations(&self) -> bool {
        true
    }

    fn refresh_every(&self) -> Option<Duration> {
        Some(Duration::from_secs(1))
    }
}

#[test]
fn a_cache_that_failed_gets_the_newest_stock_and_no_word_for_older_reservations() -> TestResult {
    let (cache, clock) = (Fails::default(), clock());
    let mut engine = build(cache.clone(), &MemoryLog::default(), &clock);
    let (busy, idle) = (engine.open_sku("busy"), engine.open_sku("idle"));
    let before = engine.reserve(1, &[(busy, 1)]);
    cache.0.lock().is_down = true;
    let during = engine.reserve(2, &[(busy, 1)]);
    let released = engine
        .handle
        .release(Release::new(UserId::from(1), before.id))?;
    engine.runner.step()?;
    released.wait()?;
    let warnings = engine.handle.health().warnings;
    assert!(
        warnings
            .iter()
            .any(|warning| warning.contains("told to fail")),
        "{warnings:?}"
    );
    *cache.0.lock() = Failing::default();
    let after = engine.reserve(3, &[(busy, 1)]);

    let known = cache.0.lock();
    let made: Vec<_> = known.changes.iter().map(|changed| changed.id).collect();
    assert_eq!(made, [after.id], "none is offered twice");
    assert!(matches!(known.changes[0].change, Change::Made { .. }));
    for sku in [busy, idle] {
        let entry = known
            .stock
            .iter()
            .rev()
            .find(|entry| entry.availability.sku == sku);
        let entry = entry.expect("all stock says what it vouches for");
        assert_eq!(
            Some(entry.availability),
            engine.handle.availability(sku),
            "the newest"
        );
        for (id, is_known) in [(before.id, false), (during.id, false), (after.id, true)] {
            assert_eq!(
                entry.vouches_for((entry.epoch, id.sequence())),
                is_known,
                "{id}"
            );
        }
    }
    assert!(engine.handle.health().warnings.is_empty());
    Ok(())
}

#[test]
fn all_stock_is_offered_again_after_a_while_changed_or_not() -> TestResult {
    let (cache, clock) = (Fails::default(), clock());
    let mut engine = build(cache.clone(), &MemoryLog::default(), &clock);
    let skus = [engine.open_sku("one"), engine.open_sku("two")];
    let offered = |engine: &mut Turned| -> Result<Vec<SkuId>, Box<dyn std::error::Error>> {
        cache.0.lock().stock.clear();
        engine.runner.step()?;
        Ok(cache
            .0
            .lock()
            .stock
            .iter()
            .map(|entry| entry.availability.sku)
            .collect())
    };
    for _ in 0..3 {
        assert_eq!(offered(&mut engine)?, []);
        clock.advance(Duration::from_millis(1_001));
        assert_eq!(offered(&mut engine)?, skus);
    }
    Ok(())
}

/// Takes as long as it is told for each write.
struct Blocks(Arc<parking_lot::RwLock<()>>);

impl Cache for Blocks {
    fn put(&mut self, _: &[CacheEntry], _: &[ReservationChange]) -> Result<(), CacheError> {
        drop(self.0.read());
        Ok(())
    }
}

/// Counts batches, and those that it was not given.
#[derive(Clone, Default)]
struct Counts(Arc<Mutex<(u64, u64)>>);

impl EventSink for Counts {
    fn publish(&mut self, _: &Batch) -> Result<(), SinkError> {
        self.0.lock().0 += 1;
        Ok(())
    }

    fn gap(&mut self, from: u64, to: u64) {
        self.0.lock().1 += to - from;
    }
}

#[test]
fn a_cache_that_hangs_keeps_nothing_from_a_sink() -> TestResult {
    let (gate, counts) = (Arc::new(parking_lot::RwLock::new(())), Counts::default());
    let engine = Engine::builder()
        .cache(Blocks(Arc::clone(&gate)))
        .sink(counts.clone())
        .start()?;
    let handle = engine.handle();
    let hangs = gate.write();
    let define = DefineSku::new(ADMIN, SkuName::new("sold")?, 10_000);
    let sku = handle.define_sku(define)?.wait()?;
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))?
        .wait()?;
    // More batches than an inbox keeps, each of its own.
    for user in 0..2_000_u64 {
        handle
            .reserve(Reserve::one(UserId::from(user), sku, 1)?)?
            .wait()?;
    }
    let clock = SystemClock::new();
    while *counts.0.lock() != (2_002, 0) {
        assert_eq!(counts.0.lock().1, 0, "the sink was told of a gap");
        assert!(
            clock.monotonic() < Duration::from_secs(20),
            "the sink waits for the cache"
        );
        std::thread::yield_now();
    }
    drop(hangs);
    let report = engine.shutdown(Duration::from_secs(10));
    assert!(report.is_announced, "{report:?}");
    Ok(())
}

/// Commits when it may.
struct Hangs(MemoryStore, Arc<parking_lot::RwLock<()>>);

impl Store for Hangs {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.0.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        drop(self.1.read());
        self.0.commit(batch)
    }
}

/// A clock that is moved by hand, and counts how often the caches' thread has asked it.
struct Asked(ManualClock, AtomicU64);

impl Clock for Asked {
    fn wall(&self) -> Timestamp {
        self.0.wall()
    }

    fn monotonic(&self) -> Duration {
        let name = std::thread::current();
        let asks = u64::from(name.name().is_some_and(|name| name.contains("cache")));
        self.1.fetch_add(asks, Ordering::SeqCst);
        self.0.monotonic()
    }

    fn advances_by_itself(&self) -> bool {
        false
    }
}

#[test]
fn while_nothing_can_be_committed_no_stock_is_vouched_for_again() -> TestResult {
    let clock = ManualClock::at(Timestamp::from_micros(1_000_000_000));
    let clock = Arc::new(Asked(clock, AtomicU64::new(0)));
    let (cache, gate) = (Fails::default(), Arc::new(parking_lot::RwLock::new(())));
    let store = Hangs(MemoryStore::on(&MemoryLog::default()), Arc::clone(&gate));
    let builder = Engine::builder().store(store).clock(clock.clone());
    let engine = builder.cache(cache.clone()).start()?;
    let handle = engine.handle();
    let define = DefineSku::new(ADMIN, SkuName::new("sold")?, 5);
    let sku = handle.define_sku(define)?.wait()?;
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    handle.set_gate(open)?.wait()?;
    let looks = || {
        // It may be in the midst of one: after two more it has seen what is so now.
        let enough = clock.1.load(Ordering::SeqCst) + 3;
        while clock.1.load(Ordering::SeqCst) < enough {
            std::thread::yield_now();
        }
    };
    let offers = || {
        cache.0.lock().stock.clear();
        clock.0.advance(Duration::from_millis(1_001));
        looks();
        !cache.0.lock().stock.is_empty()
    };
    assert!(offers() && !handle.health().is_stalled);

    let hangs = gate.write();
    let held = handle.reserve(Reserve::one(UserId::from(1), sku, 1)?)?;
    // Two seconds are no stall yet, and the commit may begin after the first.
    while !handle.health().is_stalled {
        clock.0.advance(Duration::from_millis(500));
        std::thread::yield_now();
    }
    looks();
    assert!(handle.health().is_degraded());
    assert!(!offers() && !offers());
    drop(hangs);
    held.wait()?;
    assert!(!handle.health().is_stalled && offers());
    Ok(())
}
