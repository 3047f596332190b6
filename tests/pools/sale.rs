//! Four engines with their threads sell one hot SKU out, most of its crowd at one of them.

use parking_lot::Mutex;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;
use stockade::Engine;
use stockade::engine::CommandError;
use stockade::pools::{
    EnginePool, NotReserved, Pool, PooledStock, Pools, PoolsError, SETTLE, TransferError,
    Whereabouts, pool_of,
};
use stockade::store::{JournalOptions, JournalStore, MemoryLog, MemoryStore, Store};
use stockade::types::{
    Confirm, DefineSku, Deposit, Gate, PoolView, Refusal, SetGate, SkuName, SystemClock, UserId,
    Withdraw,
};

type TestResult = Result<(), Box<dyn std::error::Error>>;

const POOLS: u16 = 4;
const ADMIN: UserId = UserId(1 << 100);

fn engine(shard: u16, store: impl Store + 'static) -> Result<Engine, Box<dyn std::error::Error>> {
    let builder = Engine::builder().name(&format!("pool-{shard}"));
    Ok(builder.shard(shard).store(store).start()?)
}

fn pool(engine: &Engine) -> Result<EnginePool, Box<dyn std::error::Error>> {
    let handle = engine.handle();
    let sku = handle.sku("hot").ok_or("the SKU is not defined")?;
    Ok(EnginePool::new(handle, sku)?)
}

fn open(engine: &Engine, total: u64) -> TestResult {
    let handle = engine.handle();
    let define = DefineSku::new(ADMIN, SkuName::new("hot")?, total);
    let sku = handle.define_sku(define)?.wait()?;
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))?
        .wait()?;
    Ok(())
}

/// Nine of ten users are of the first pool.
fn user(number: u64) -> UserId {
    let favoured = !number.is_multiple_of(10);
    let candidates = (0..).map(|n| UserId(u128::from(number) << 32 | n));
    let mut fitting = candidates.filter(|&user| !favoured || pool_of(user, POOLS.into()) == 0);
    fitting.next().unwrap_or_default()
}

/// A buyer, as a client behaves: asks again while units are on their way. Returns whether he got one.
fn buys(pools: &Pools<EnginePool>, user: UserId) -> bool {
    loop {
        let asked = pools.reserve(user, 1, None);
        match asked.and_then(stockade::pools::Reserving::wait) {
            Ok(held) => {
                let handle = pools.of(user).handle();
                let confirm = handle.confirm(Confirm::unpaid(user, held.id));
                let confirmed = confirm.expect("room").wait();
                assert!(confirmed.is_ok(), "{confirmed:?}");
                return true;
            }
            Err(NotReserved::Moving | NotReserved::Raced) => std::thread::yield_now(),
            Err(NotReserved::Command(CommandError::Refused(Refusal::SoldOut { .. }))) => {
                // Nothing comes back in this sale: now or never.
                let left = pools.stock().available;
                assert_eq!(left, 0, "told sold out beside {left} units");
                return false;
            }
            Err(error) => panic!("{error}"),
        }
    }
}

/// Sells everything and returns how many units moved.
fn sells_out(engines: &[Engine], total: u64) -> Result<u64, Box<dyn std::error::Error>> {
    let pools: Result<Vec<_>, _> = engines.iter().map(pool).collect();
    let pools = Arc::new(Pools::new(pools?)?);
    let balancing = pools.balance(Arc::new(SystemClock::new()), Duration::from_millis(5))?;
    let (next, sold) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while buys(&pools, user(next.fetch_add(1, Ordering::Relaxed))) {
                    sold.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
    });
    assert_eq!(balancing.failing(), None);
    drop(balancing);
    assert_eq!(sold.into_inner(), total, "sold out, to the unit");
    let stock = pools.stock();
    assert_eq!(
        (stock.available, stock.sold, stock.total),
        (0, total, total)
    );
    let report = pools.audit()?;
    assert!(report.is_ok(), "{report:?}");
    assert_eq!((report.total, report.in_flight.len()), (total.into(), 0));
    let views = pools.all().iter().map(Pool::view);
    let views: Result<Vec<_>, _> = views.collect();
    let accounts = views?.into_iter().flat_map(|view| view.accounts);
    Ok(accounts.map(|account| account.sent.units).sum())
}

#[test]
fn four_pools_in_memory_sell_every_unit_and_not_one_more() -> TestResult {
    let engines: Result<Vec<_>, _> = (0..POOLS)
        .map(|shard| engine(shard, MemoryStore::new()))
        .collect();
    let engines = engines?;
    for engine in &engines {
        open(engine, 2_500)?;
    }
    let moved = sells_out(&engines, 10_000)?;
    // 9,250 of 10,000 buyers are of the first pool, which began with a quarter.
    assert!(moved >= 6_000, "{moved} units moved");
    Ok(())
}

struct Folder(PathBuf);

impl Folder {
    fn new(name: &str) -> Self {
        let name = format!("stockade-pools-{name}-{}", std::process::id());
        Self(std::env::temp_dir().join(name))
    }

    fn store(&self, shard: u16) -> JournalStore {
        JournalStore::new(JournalOptions::new(self.of(shard).as_path()))
    }

    fn of(&self, shard: u16) -> PathBuf {
        Path::new(&self.0).join(format!("pool-{shard}"))
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        let _ = std::fs::remove_dir_all(&self.0);
    }
}

#[test]
fn four_pools_on_journals_sell_every_unit_and_remember_it() -> TestResult {
    let folder = Folder::new("journals");
    let start = || -> Result<Vec<Engine>, Box<dyn std::error::Error>> {
        let engines = (0..POOLS).map(|shard| engine(shard, folder.store(shard)));
        engines.collect()
    };
    let engines = start()?;
    for (engine, total) in engines.iter().zip([1_000, 0, 500, 500]) {
        open(engine, total)?;
    }
    sells_out(&engines, 2_000)?;
    let before = Pools::new(engines.iter().map(pool).collect::<Result<_, _>>()?)?.audit()?;
    for engine in engines {
        let report = engine.shutdown(Duration::from_secs(20));
        assert!(report.is_clean, "{report:?}");
    }
    let engines = start()?;
    let pools = Pools::new(engines.iter().map(pool).collect::<Result<_, _>>()?)?;
    assert_eq!(pools.audit()?, before, "after a restart");
    assert_eq!(pools.stock().sold, 2_000);
    Ok(())
}

#[test]
fn pools_of_one_shard_or_none_are_refused() -> TestResult {
    let twins = [
        engine(3, MemoryStore::new())?,
        engine(3, MemoryStore::new())?,
    ];
    for engine in &twins {
        open(engine, 1)?;
    }
    let pools: Result<Vec<_>, _> = twins.iter().map(pool).collect();
    let refused = Pools::new(pools?).err();
    assert_eq!(refused, Some(PoolsError::SameShard(3)));
    assert_eq!(
        Pools::<EnginePool>::new(Vec::new()).err(),
        Some(PoolsError::None)
    );
    Ok(())
}

#[test]
fn a_pool_that_is_down_keeps_its_units_and_stops_no_other() -> TestResult {
    let stores: Vec<_> = (0..3).map(|_| MemoryLog::default()).collect();
    let start = |shard: u16| engine(shard, MemoryStore::on(&stores[usize::from(shard)]));
    let mut engines = vec![start(0)?, start(1)?, start(2)?];
    for (engine, total) in engines.iter().zip([0, 2, 5]) {
        open(engine, total)?;
    }
    let pools = |engines: &[Engine]| -> Result<_, Box<dyn std::error::Error>> {
        let pools: Result<Vec<_>, _> = engines.iter().map(pool).collect();
        Ok(Pools::new(pools?)?)
    };
    let all = pools(&engines)?;
    let down = engines.remove(2).shutdown(Duration::from_secs(20));
    assert!(down.is_clean, "{down:?}");
    let mut users = (0..)
        .map(UserId::from)
        .filter(|&user: &UserId| pool_of(user, 3) == 0);
    let mut buy = |all: &Pools<EnginePool>, now| {
        let user = users.next().unwrap_or_default();
        let there = all.want(user, 1);
        let stepped = all.step(Duration::from_secs(now));
        let asked = all.reserve(user, 1, None);
        (
            there,
            stepped,
            asked.and_then(stockade::pools::Reserving::wait),
        )
    };
    for now in 0..2 {
        let (there, stepped, got) = buy(&all, now);
        assert_eq!(there, Whereabouts::Elsewhere);
        let failed = matches!(stepped, Err(TransferError::Pool { shard: 2, .. }));
        assert!(failed, "{stepped:?}");
        assert!(got.is_ok(), "{got:?}");
    }
    let (_, _, got) = buy(&all, 2);
    assert_eq!(
        got,
        Err(NotReserved::Moving),
        "5 units are where nobody answers"
    );
    engines.push(start(2)?);
    let all = pools(&engines)?;
    for now in 3..8 {
        let (_, stepped, got) = buy(&all, now);
        assert!(stepped.is_ok() && got.is_ok(), "{stepped:?} {got:?}");
    }
    let (there, _, got) = buy(&all, 8);
    assert_eq!(there, Whereabouts::Nowhere);
    let sold_out = matches!(
        got,
        Err(NotReserved::Command(CommandError::Refused(
            Refusal::SoldOut { .. }
        )))
    );
    assert!(sold_out, "{got:?}");
    assert!(all.audit()?.is_ok());
    Ok(())
}

/// A pool at whose door somebody waits: between the halves of a transfer no pool has the unit that he wants.
struct Watched {
    pool: EnginePool,
    all: Arc<OnceLock<Weak<Pools<Watched>>>>,
    told: Arc<Mutex<Vec<Whereabouts>>>,
}

impl Watched {
    fn look(&self) {
        let all = self.all.get().and_then(Weak::upgrade);
        let all = all.expect("pools that move units");
        assert_eq!(all.stock().available, 0);
        let told = all.want(UserId::from(7), 1);
        self.told.lock().push(told);
    }
}

impl Pool for Watched {
    fn shard(&self) -> u16 {
        self.pool.shard()
    }

    fn stock(&self) -> Option<PooledStock> {
        self.pool.stock()
    }

    fn view(&self) -> Result<PoolView, CommandError> {
        self.pool.view()
    }

    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError> {
        self.pool.withdraw(command)
    }

    fn deposit(&self, command: Deposit) -> Result<u64, CommandError> {
        self.look();
        self.pool.deposit(command)
    }
}

#[test]
fn units_on_their_way_are_not_sold_out() -> TestResult {
    let engines = [
        engine(0, MemoryStore::new())?,
        engine(1, MemoryStore::new())?,
    ];
    let (all, told) = (Arc::new(OnceLock::new()), Arc::default());
    let mut watched = Vec::new();
    for (engine, other) in engines.iter().zip([0, 1]) {
        // One unit, where the user's pool is not.
        let of_user = pool_of(UserId::from(7), 2);
        open(engine, u64::from(of_user != other))?;
        watched.push(Watched {
            pool: pool(engine)?,
            all: Arc::clone(&all),
            told: Arc::clone(&told),
        });
    }
    let pools = Arc::new(Pools::new(watched)?);
    assert!(all.set(Arc::downgrade(&pools)).is_ok());
    let user = UserId::from(7);
    assert_eq!(pools.want(user, 1), Whereabouts::Elsewhere);
    assert_eq!(pools.step(Duration::ZERO), Ok(1));
    assert_eq!(*told.lock(), [Whereabouts::Elsewhere]);
    assert_eq!(pools.want(user, 1), Whereabouts::Here);
    assert_eq!(pools.want(user, 2), Whereabouts::Nowhere);
    Ok(())
}

/// Two who want the last unit in turns, at two pools: without a while in which it stays, each would take it from the other
/// before he has come back for it.
#[test]
fn a_unit_that_was_brought_for_a_request_waits_for_it_and_then_goes_on() -> TestResult {
    let engines = [
        engine(0, MemoryStore::new())?,
        engine(1, MemoryStore::new())?,
    ];
    open(&engines[0], 1)?;
    open(&engines[1], 0)?;
    let pools: Result<Vec<_>, _> = engines.iter().map(pool).collect();
    let pools = Pools::new(pools?)?;
    let of = |pool| {
        (0..1_000)
            .map(UserId)
            .find(|&user| pool_of(user, 2) == pool)
    };
    let (here, there) = (of(0).unwrap_or_default(), of(1).unwrap_or_default());
    assert_eq!(pools.want(there, 1), Whereabouts::Elsewhere);
    assert_eq!(pools.step(Duration::ZERO), Ok(1));
    let before = SETTLE.saturating_sub(Duration::from_millis(1));
    for now in [Duration::ZERO, before] {
        assert_eq!(pools.want(here, 1), Whereabouts::Elsewhere);
        assert_eq!(pools.step(now), Ok(0));
        assert_eq!(pools.want(there, 1), Whereabouts::Here);
    }
    assert_eq!(pools.want(here, 1), Whereabouts::Elsewhere);
    assert_eq!(pools.step(SETTLE), Ok(1), "he has not come back");
    assert_eq!(pools.want(here, 1), Whereabouts::Here);
    Ok(())
}

/// Two processes balance the same pools. Neither knows what moves through the other, so buyers of one may hear "sold out"
/// for the time of a transfer; but no unit is lost or doubled.
#[test]
fn two_balancers_lose_and_double_nothing() -> TestResult {
    const TOTAL: u64 = 2_000;
    let engines: Result<Vec<_>, _> = (0..POOLS)
        .map(|shard| engine(shard, MemoryStore::new()))
        .collect();
    let engines = engines?;
    for engine in &engines {
        open(engine, TOTAL / 4)?;
    }
    let mut sides = Vec::new();
    for _ in 0..2 {
        let pools: Result<Vec<_>, _> = engines.iter().map(pool).collect();
        let pools = Arc::new(Pools::new(pools?)?);
        let clock = Arc::new(SystemClock::new());
        let balancing = pools.balance(clock, Duration::from_millis(1))?;
        sides.push((pools, balancing));
    }
    let (next, held) = (AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        for (pools, _) in sides.iter().chain(&sides) {
            scope.spawn(|| {
                while held.load(Ordering::Acquire) < TOTAL {
                    let user = user(next.fetch_add(1, Ordering::Relaxed));
                    let asked = pools.reserve(user, 1, None);
                    match asked.and_then(stockade::pools::Reserving::wait) {
                        Ok(_) => {
                            held.fetch_add(1, Ordering::AcqRel);
                        }
                        Err(
                            NotReserved::Moving
                            | NotReserved::Raced
                            | NotReserved::Command(CommandError::Refused(_)),
                        ) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    let (pools, balancing): (Vec<_>, Vec<_>) = sides.into_iter().unzip();
    drop(balancing);
    assert_eq!(held.into_inner(), TOTAL);
    let stock = pools[0].stock();
    assert_eq!(
        (stock.available, stock.reserved, stock.total),
        (0, TOTAL, TOTAL)
    );
    let report = pools[0].audit()?;
    assert!(report.is_ok() && report.in_flight.is_empty(), "{report:?}");
    Ok(())
}
