//! Random histories over four pools, each an engine without threads on a log of its own. Any bytes are a history.
//!
//! At every step: no unit is lost or doubled, over all pools and in each. At the end: what is in flight arrives, logs replay to
//! the same state, no user has more than his limit, and all from one pool buy every unit that is left in any.

use parking_lot::Mutex;
use proptest::prelude::*;
use std::sync::Arc;
use std::time::Duration;
use stockade::Engine;
use stockade::engine::{Ask, CommandError, Handle, Runner};
use stockade::pools::{Pool, PooledStock, Pools, PoolsAudit, Whereabouts, audit, pool_of};
use stockade::store::{MemoryLog, MemoryStore};
use stockade::types::{
    Adjust, Availability, Clock, Confirm, DefineSku, Deposit, Gate, HoldStatus, IdempotencyKey,
    ManualClock, Policy, PoolView, Query, QueryAnswer, Refusal, Release, Reservation, Reserve,
    Return, Rules, SetGate, SkuId, SkuName, Timestamp, Transfer, UserId, Withdraw,
};

const POOLS: usize = 4;
const ADMIN: UserId = UserId(1 << 100);
const PER_USER: u32 = 3;
const USERS: u8 = 24;

/// What becomes of the next transfer command that is sent to a pool.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Arrives,
    RequestIsLost,
    AnswerIsLost,
    /// The writer dies before it has decided.
    DiesBefore,
    /// The writer dies after the commit, before it has answered.
    DiesAfter,
}

struct Node {
    handle: Handle,
    runner: Runner,
    fate: Fate,
    /// Every transfer command that was ever sent here.
    sent: Vec<Half>,
}

#[derive(Debug, Clone, Copy)]
enum Half {
    Out(Withdraw),
    In(Deposit),
}

struct Shard {
    number: u16,
    sku: SkuId,
    log: MemoryLog,
    clock: Arc<ManualClock>,
    node: Mutex<Node>,
}

fn start(log: &MemoryLog, number: u16, clock: &Arc<ManualClock>) -> (Handle, Runner) {
    // Keys are soon forgotten: what comes again is recognised by its number.
    let policy = Policy {
        key_retention_ms: 20,
        ..Policy::default()
    };
    let builder = Engine::builder().store(MemoryStore::on(log)).shard(number);
    let builder = builder.policy(policy);
    let built = builder.clock(Arc::clone(clock) as Arc<dyn Clock>).build();
    built.expect("the log replays")
}

impl Shard {
    /// The SKU has another index in every pool.
    fn new(number: u16, total: u64, clock: &Arc<ManualClock>) -> Self {
        let log = MemoryLog::default();
        let (handle, runner) = start(&log, number, clock);
        let shard = Self {
            number,
            sku: SkuId(number.into()),
            log,
            clock: Arc::clone(clock),
            node: Mutex::new(Node {
                handle,
                runner,
                fate: Fate::Arrives,
                sent: Vec::new(),
            }),
        };
        let rules = Rules {
            per_user: Some(PER_USER),
            hold_ms: 50,
            ..Rules::default()
        };
        for n in 0..number {
            let name = SkuName::new(&format!("other {n}")).expect("a name");
            shard.ask(DefineSku::new(ADMIN, name, 0)).expect("defined");
        }
        let hot = DefineSku::new(ADMIN, SkuName::new("hot").expect("a name"), total);
        let sku = shard.ask(hot.rules(rules).expect("rules"));
        assert_eq!(sku, Ok(shard.sku));
        let open = SetGate::new(ADMIN, shard.sku, Gate::Open);
        shard.ask(open).expect("opened");
        shard
    }

    fn ask<C: Ask>(&self, command: C) -> Result<C::Accepted, CommandError> {
        let mut node = self.node.lock();
        let ticket = node.handle.submit(command).expect("room");
        node.runner.step().expect("no law breaks");
        ticket.wait()
    }

    fn turn(&self) {
        self.node.lock().runner.step().expect("no law breaks");
    }

    /// The process is killed and started again.
    fn restart(&self) {
        let mut node = self.node.lock();
        (node.handle, node.runner) = start(&self.log, self.number, &self.clock);
    }

    /// The same, just after a commit: the log gives the same state.
    fn restart_as_it_was(&self, key: IdempotencyKey) {
        let nothing = Adjust::new(ADMIN, key, self.sku, 0);
        self.ask(nothing).expect("changes nothing and is recorded");
        let digest = self.node.lock().runner.digest();
        self.restart();
        assert_eq!(self.node.lock().runner.digest(), digest, "L7");
    }

    fn transfer<C: Ask<Accepted = u64>>(
        &self,
        command: C,
        half: Half,
    ) -> Result<u64, CommandError> {
        let fate = {
            let mut node = self.node.lock();
            node.sent.push(half);
            std::mem::replace(&mut node.fate, Fate::Arrives)
        };
        match fate {
            Fate::Arrives => self.ask(command),
            Fate::RequestIsLost => Err(CommandError::Unknown),
            Fate::AnswerIsLost => {
                let _lost = self.ask(command);
                Err(CommandError::Unknown)
            }
            Fate::DiesBefore => {
                let ticket = self.node.lock().handle.submit(command).expect("room");
                self.restart();
                let answer = ticket.wait();
                assert_eq!(answer, Err(CommandError::NotDecided));
                answer
            }
            Fate::DiesAfter => {
                let _lost = self.ask(command);
                self.restart();
                Err(CommandError::Unknown)
            }
        }
    }
}

/// A balancer's access to a pool; balancers come and go, pools stay.
#[derive(Clone)]
struct Port(Arc<Shard>);

impl Pool for Port {
    fn shard(&self) -> u16 {
        self.0.number
    }

    fn stock(&self) -> Option<PooledStock> {
        let stock = self.0.node.lock().handle.availability(self.0.sku);
        stock.map(PooledStock::from)
    }

    fn view(&self) -> Result<PoolView, CommandError> {
        match self.0.ask(Query::Pool(self.0.sku))? {
            QueryAnswer::Pool(Some(view)) => Ok(view),
            found => panic!("not a pool: {found:?}"),
        }
    }

    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError> {
        self.0.transfer(command, Half::Out(command))
    }

    fn deposit(&self, command: Deposit) -> Result<u64, CommandError> {
        self.0.transfer(command, Half::In(command))
    }
}

struct Held {
    user: UserId,
    reservation: Reservation,
}

/// What a history came across, so that a generator that stopped doing so is noticed.
#[derive(Debug, Default)]
struct Seen {
    reserved: u32,
    sent_elsewhere: u32,
    sold_out: u32,
    in_flight: u32,
    failed_steps: u32,
    repeated: u32,
    out_of_order: u32,
    moved: u64,
}

struct World {
    ports: Vec<Port>,
    pools: Pools<Port>,
    clock: Arc<ManualClock>,
    held: Vec<Held>,
    /// All units that were ever brought in.
    total: i128,
    keys: u128,
    seen: Seen,
}

impl World {
    fn new(totals: [u64; POOLS]) -> Self {
        let clock = Arc::new(ManualClock::at(Timestamp::from_micros(1_000_000_000)));
        let shards = (0..)
            .zip(totals)
            .map(|(n, total)| Shard::new(n, total, &clock));
        let ports: Vec<Port> = shards.map(|shard| Port(Arc::new(shard))).collect();
        Self {
            pools: Pools::new(ports.clone()).expect("different shards"),
            ports,
            clock,
            held: Vec::new(),
            total: totals.iter().copied().map(i128::from).sum(),
            keys: 0,
            seen: Seen::default(),
        }
    }

    fn key(&mut self) -> IdempotencyKey {
        self.keys += 1;
        IdempotencyKey::new(self.keys).expect("not zero")
    }

    fn of(&self, user: UserId) -> &Shard {
        &self.ports[pool_of(user, POOLS)].0
    }

    fn views(&self) -> Vec<PoolView> {
        let view = |port: &Port| port.view().expect("a query");
        self.ports.iter().map(view).collect()
    }

    /// I1 of every step.
    fn check(&mut self) -> PoolsAudit {
        let report = audit(&self.views());
        assert!(report.is_ok(), "{report:?}");
        assert_eq!(report.total, self.total);
        self.seen.in_flight += u32::from(!report.in_flight.is_empty());
        report
    }

    fn reserve(&mut self, user: UserId, units: u32) -> Option<Reservation> {
        if self.pools.want(user, units) == Whereabouts::Elsewhere {
            self.seen.sent_elsewhere += 1;
            return None;
        }
        let shard = self.of(user);
        let command = Reserve::one(user, shard.sku, units).expect("a quantity");
        match shard.ask(command) {
            Ok(reservation) => {
                self.held.push(Held { user, reservation });
                self.seen.reserved += 1;
                Some(reservation)
            }
            Err(CommandError::Refused(Refusal::SoldOut { .. })) => {
                self.seen.sold_out += 1;
                let together = self.pools.stock().available;
                assert!(together < u64::from(units), "sold out beside {together}");
                None
            }
            Err(CommandError::Refused(Refusal::UserLimit { .. })) => None,
            Err(error) => panic!("{error}"),
        }
    }

    fn step(&mut self) {
        match self.pools.step(self.clock.monotonic()) {
            Ok(moved) => self.seen.moved += moved,
            Err(_) => self.seen.failed_steps += 1,
        }
    }

    /// A balancer that dies between the halves: it has withdrawn, and nobody remembers.
    fn half(&mut self, from: usize, to: usize, units: u64) {
        let (from, to) = (&self.ports[from], &self.ports[to]);
        let received = to.view().expect("a query").account(from.shard()).received;
        let transfer = Transfer {
            sku: from.0.sku,
            from: from.shard(),
            to: to.shard(),
            number: received.next(),
            units,
        };
        let (from, id) = (from.clone(), 1_000_000 + u128::from(transfer.number));
        let key = IdempotencyKey::new(id).expect("not zero");
        let withdraw = Withdraw::new(UserId(77), key, transfer).expect("a transfer");
        let _nobody_hears = from.withdraw(withdraw);
    }

    /// An old message comes again, to its pool or to another.
    fn repeat(&mut self, from: usize, back: usize, to: usize) {
        let sent = self.ports[from].0.node.lock().sent.clone();
        if sent.is_empty() {
            return;
        }
        let shard = &self.ports[to].0;
        let before = shard.node.lock().handle.availability(shard.sku);
        // A SKU's index is its pool's own: elsewhere it may be unknown.
        let answer = match sent[sent.len() - 1 - back % sent.len()] {
            Half::Out(command) => shard.ask(command),
            Half::In(command) => shard.ask(command),
        };
        let after = shard.node.lock().handle.availability(shard.sku);
        let units = |of: Option<Availability>| of.map(|of| of.total);
        match answer {
            Ok(_) if units(before) == units(after) => self.seen.repeated += 1,
            // It had been lost, and was the next.
            Ok(_) => {}
            Err(CommandError::Refused(refusal)) => {
                let is_order = matches!(refusal, Refusal::OutOfOrder { .. });
                self.seen.out_of_order += u32::from(is_order);
                assert_eq!(units(before), units(after), "{refusal}");
            }
            Err(error) => panic!("{error}"),
        }
    }

    fn end_some(&mut self, byte: u8, how: u8) {
        if self.held.is_empty() {
            return;
        }
        let at = usize::from(byte) % self.held.len();
        let Held { user, reservation } = self.held[at];
        let (shard, id) = (self.ports[pool_of(user, POOLS)].0.clone(), reservation.id);
        let key = self.key();
        assert_eq!(
            self.pools.of_reservation(id).map(Pool::shard),
            Some(shard.number)
        );
        // Whether it has lapsed, or ended before, is the pool's to say.
        let _ = match how {
            0 => shard.ask(Confirm::unpaid(user, id)).map(|_| ()),
            1 => shard.ask(Release::new(user, id)),
            _ => {
                let back = Return::of_reservation(ADMIN, key, id, None);
                shard.ask(back).map(|_| ())
            }
        };
    }

    fn adjust(&mut self, at: usize, delta: i64) {
        let key = self.key();
        let shard = &self.ports[at].0;
        if shard.ask(Adjust::new(ADMIN, key, shard.sku, delta)).is_ok() {
            self.total += i128::from(delta);
        }
    }

    fn pass(&mut self, ms: u64) {
        self.clock.advance(Duration::from_millis(ms));
        self.ports.iter().for_each(|port| port.0.turn());
    }

    fn run(bytes: &[u8]) -> Seen {
        let mut bytes = bytes.iter().copied();
        let mut next = || bytes.next();
        let totals = [0, 1, 2, 3].map(|_| u64::from(next().unwrap_or(0) % 12));
        let mut world = Self::new(totals);
        while let Some(op) = next() {
            let (a, b) = (next().unwrap_or(0), next().unwrap_or(0));
            let (one, other) = (usize::from(a) % POOLS, usize::from(b) % POOLS);
            match op % 24 {
                0..=7 => {
                    let user = UserId::from(u64::from(a % USERS));
                    world.reserve(user, u32::from(b % 5 / 2) + 1);
                }
                8..=9 => world.end_some(a, b % 3),
                10 => world.adjust(one, i64::from(b % 7) - 3),
                11 => world.pass(u64::from(a) % 60),
                12..=15 => world.step(),
                16 => {
                    let key = world.key();
                    world.ports[one].0.restart_as_it_was(key);
                }
                17 => world.pools = Pools::new(world.ports.clone()).expect("different shards"),
                18 if one != other => world.half(one, other, u64::from(a / 8) + 1),
                19..=20 => world.repeat(one, usize::from(b / 4), one),
                21 => world.repeat(one, usize::from(b / 4), other),
                _ => {
                    let fates = [
                        Fate::RequestIsLost,
                        Fate::AnswerIsLost,
                        Fate::DiesBefore,
                        Fate::DiesAfter,
                    ];
                    world.ports[one].0.node.lock().fate = fates[other];
                }
            }
            world.check();
        }
        world.end();
        world.seen
    }

    fn end(&mut self) {
        for port in &self.ports {
            port.0.node.lock().fate = Fate::Arrives;
        }
        // Also what was left by a balancer that died beside this one.
        self.pools
            .step(self.clock.monotonic())
            .expect("pools answer");
        let report = self.check();
        assert_eq!(report.in_flight, [], "what was in flight has come");
        assert_eq!(report.in_pools, self.total);
        assert_eq!(self.pools.audit().as_ref(), Ok(&report));
        // Nobody has come back for what was brought for him.
        self.pass(100);
        self.sell_all_to_one_pool();
        self.check();
        for port in self.ports.clone() {
            port.0.restart_as_it_was(self.key());
            let report = port.0.node.lock().runner.audit();
            assert!(report.is_ok(), "{report:?}");
        }
        (0..USERS).for_each(|user| self.check_limit(UserId::from(u64::from(user))));
    }

    /// Everybody who still wants a unit is a user of one pool.
    fn sell_all_to_one_pool(&mut self) {
        let pool = usize::try_from(self.keys % 4).expect("small");
        let crowd = (1_000..).map(|n: u64| UserId::from(n));
        let mut crowd = crowd.filter(|&user| pool_of(user, POOLS) == pool);
        let available = self.pools.stock().available;
        let mut sold = 0;
        let mut user = crowd.next().expect("endless");
        for _ in 0..10 * (available + 10) {
            if self.pools.want(user, 1) == Whereabouts::Nowhere {
                break;
            }
            if let Some(reservation) = self.reserve(user, 1) {
                let confirmed = self.of(user).ask(Confirm::unpaid(user, reservation.id));
                assert!(confirmed.is_ok(), "{confirmed:?}");
                sold += 1;
                user = crowd.next().expect("endless");
            } else {
                self.clock.advance(Duration::from_millis(1));
                self.pools
                    .step(self.clock.monotonic())
                    .expect("pools answer");
            }
        }
        // Holds that lapsed meanwhile only add to it.
        assert!(sold >= available, "{sold} of {available} were sold");
        assert_eq!(self.pools.stock().available, 0);
    }

    /// A user always meets the same pool, so his limit holds over all of them.
    fn check_limit(&self, user: UserId) {
        let mut has = 0;
        for port in &self.ports {
            let found = port.0.ask(Query::ReservationsOf(user)).expect("a query");
            let QueryAnswer::Reservations(own) = found else {
                panic!("not reservations: {found:?}");
            };
            let is_own = port.0.number == self.of(user).number;
            assert!(is_own || own.is_empty(), "{user} has met two pools");
            let kept = own
                .iter()
                .filter(|view| view.status.is_live() || view.status == HoldStatus::Confirmed);
            has += kept
                .flat_map(|view| &view.lines)
                .map(|line| line.quantity)
                .sum::<u32>();
        }
        assert!(has <= PER_USER, "{user} has {has}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig {
        failure_persistence: None,
        ..ProptestConfig::with_cases(cases())
    })]

    /// `PROPTEST_CASES=5000 cargo test --release --test pools` looks longer.
    #[test]
    fn no_history_loses_or_doubles_a_unit(bytes in prop::collection::vec(any::<u8>(), 0..600)) {
        World::run(&bytes);
    }
}

fn cases() -> u32 {
    let set = std::env::var("PROPTEST_CASES").ok();
    set.and_then(|cases| cases.parse().ok()).unwrap_or(60)
}

/// Fixed histories meet everything that they should: a generator that stopped doing so would prove nothing.
#[test]
fn histories_meet_every_kind_of_trouble() {
    let mut sum = Seen::default();
    for seed in 0..20_u64 {
        let mut state = seed;
        let mut byte = || {
            // SplitMix64 (Steele, Lea, Flood 2014).
            state = state.wrapping_add(0x9E37_79B9_7F4A_7C15);
            let mut z = state;
            z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
            z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
            (z ^ (z >> 31)).to_le_bytes()[0]
        };
        let bytes: Vec<u8> = (0..900).map(|_| byte()).collect();
        let seen = World::run(&bytes);
        sum.reserved += seen.reserved;
        sum.sent_elsewhere += seen.sent_elsewhere;
        sum.sold_out += seen.sold_out;
        sum.in_flight += seen.in_flight;
        sum.failed_steps += seen.failed_steps;
        sum.repeated += seen.repeated;
        sum.out_of_order += seen.out_of_order;
        sum.moved += seen.moved;
    }
    let met = [
        sum.reserved,
        sum.sent_elsewhere,
        sum.sold_out,
        sum.in_flight,
        sum.failed_steps,
        sum.repeated,
        sum.out_of_order,
    ];
    assert!(met.iter().all(|&count| count > 20), "{sum:?}");
    assert!(sum.moved > 20, "{sum:?}");
}
