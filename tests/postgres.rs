//! The PostgreSQL store against a real server: `cargo test --features postgres --test postgres`.

#[expect(dead_code, reason = "shared with tests that use more of it")]
mod servers;

use postgres::NoTls;
use servers::{Proxy, Server};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;
use stockade::engine::{
    CommandError, Engine, EngineBuilder, EngineError, Handle, Runner, State, Ticket,
};
use stockade::postgres::{PostgresOptions, PostgresStore, Role};
use stockade::store::{StoreError, conformance};
use stockade::types::{
    Adjust, BeginPayment, Clock, Confirm, DefineSku, Disposition, Gate, HoldStatus, IdempotencyKey,
    Line, Lines, ManualClock, PaymentFailed, PaymentRef, Query, QueryAnswer, Release,
    ReservationId, Reserve, Return, Rules, SetGate, SkuId, SkuName, Timestamp, UserId,
};

const ADMIN: UserId = UserId(1 << 100);
/// What the tests wait for at most; each is told at once.
const PATIENCE: Duration = Duration::from_secs(60);

/// A schema of its own on a server that is shared with whatever tests run at the time; none of them hurts it.
struct Log {
    options: PostgresOptions,
    _server: Arc<Server>,
}

impl Log {
    fn new() -> Self {
        static SERVER: Mutex<Weak<Server>> = Mutex::new(Weak::new());
        static SCHEMAS: AtomicU32 = AtomicU32::new(0);
        let mut shared = SERVER.lock().expect("no test panicked here");
        let server = shared.upgrade().unwrap_or_else(|| {
            let server = Arc::new(Server::start("postgres.sh", &[]));
            *shared = Arc::downgrade(&server);
            server
        });
        drop(shared);
        let mut options = PostgresOptions::new(url(server.port()));
        options.schema = format!("s{}", SCHEMAS.fetch_add(1, Ordering::Relaxed));
        PostgresStore::migrate(&options).expect("a new schema");
        Self {
            options,
            _server: server,
        }
    }

    fn store(&self) -> PostgresStore {
        PostgresStore::new(self.options.clone())
    }
}

fn url(port: u16) -> String {
    format!("postgres://stockade@127.0.0.1:{port}/stockade")
}

#[test]
fn the_postgres_store_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove(|| {
        let log = Log::new();
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}

fn sql(options: &PostgresOptions) -> postgres::Client {
    let mut client = postgres::Client::connect(&options.url, NoTls).expect("a connection");
    let schema = format!("SET search_path = {}", options.schema);
    client.batch_execute(&schema).expect("a schema");
    client
}

fn open_sku(handle: &Handle, name: &str, total: u64) -> SkuId {
    let unlimited = Rules {
        per_user: None,
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, SkuName::new(name).expect("a name"), total);
    let define = define.rules(unlimited).expect("rules that can be");
    let sku = handle.define_sku(define).expect("room").wait();
    let sku = sku.expect("defined");
    let open = handle.set_gate(SetGate::new(ADMIN, sku, Gate::Open));
    open.expect("room").wait().expect("opened");
    sku
}

fn reserve(handle: &Handle, user: u64, sku: SkuId) -> Result<ReservationId, CommandError> {
    let user = UserId::from(user);
    let key = IdempotencyKey::new(user.0 + 1).expect("not zero");
    let asked = Reserve::one(user, sku, 1).expect("a cart").key(key);
    let held = handle
        .reserve(asked)
        .map_err(|_| CommandError::NotDecided)?;
    held.wait().map(|held| held.id)
}

fn engine(options: &PostgresOptions) -> EngineBuilder {
    Engine::builder().store(PostgresStore::new(options.clone()))
}

fn halted(handle: &Handle) -> String {
    match handle.health().state {
        State::Halted(reason) => reason,
        other => panic!("it is {other:?}"),
    }
}

/// Numbers from a seed (xorshift64*).
struct Random(u64);

impl Random {
    fn below(&mut self, bound: u64) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        (self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 33) % bound
    }
}

/// A sale at random: what happens to one hold often happens within one batch.
struct Script {
    random: Random,
    handle: Handle,
    runner: Runner,
    clock: Arc<ManualClock>,
    skus: Vec<SkuId>,
    sequence: u64,
    key: u128,
    asked: Vec<(UserId, Ticket<Reserve>)>,
    held: Vec<(ReservationId, UserId)>,
}

impl Script {
    fn new(options: &PostgresOptions, seed: u64, clock: &Arc<ManualClock>, key: u128) -> Self {
        let time: Arc<dyn Clock> = Arc::clone(clock) as _;
        let (handle, runner) = engine(options).clock(time).build().expect("it opens");
        let skus = handle.skus().into_iter().map(|(sku, _)| sku).collect();
        Self {
            random: Random(seed),
            handle,
            runner,
            clock: Arc::clone(clock),
            skus,
            sequence: 0,
            key,
            asked: Vec::new(),
            held: Vec::new(),
        }
    }

    fn run(&mut self, batches: u64) {
        for _ in 0..batches {
            for _ in 0..self.random.below(40) {
                self.submit();
            }
            self.clock
                .advance(Duration::from_millis(self.random.below(9_000)));
            self.runner.step().expect("it runs");
            for (user, asked) in self.asked.drain(..) {
                self.held
                    .extend(asked.wait().ok().map(|held| (held.id, user)));
            }
            let skus = self.skus.iter();
            let stock = skus.filter_map(|&sku| self.handle.availability(sku));
            self.sequence = stock
                .map(|stock| stock.sequence)
                .max()
                .unwrap_or(self.sequence);
        }
    }

    fn submit(&mut self) {
        let random = &mut self.random;
        self.key += 1;
        let key = IdempotencyKey::new(self.key).expect("not zero");
        let mut user = UserId::from(random.below(2));
        let sku = |random: &mut Random, skus: &[SkuId]| {
            skus[usize::try_from(random.below(skus.len() as u64)).expect("small")]
        };
        // One of this batch, by guessing, as often as one of an earlier batch.
        let mut held = ReservationId::new(0, self.sequence + 1 + random.below(15));
        if random.below(2) == 0 && !self.held.is_empty() {
            let age = usize::try_from(random.below(self.held.len().min(30) as u64)).expect("small");
            (held, user) = self.held[self.held.len() - 1 - age];
        }
        let payment = PaymentRef::new(u128::from(random.below(300)) + 1).expect("not zero");
        let attempt = u32::try_from(random.below(3)).expect("small");
        let new = self.skus.len() < 3 || (self.skus.len() < 6 && random.below(60) == 0);
        if new {
            let name = SkuName::new(&format!("sku-{}", self.skus.len())).expect("a name");
            let rules = Rules {
                hold_ms: 20_000,
                per_user: None,
                ..Rules::default()
            };
            let define = DefineSku::new(ADMIN, name, 300)
                .rules(rules)
                .expect("rules");
            drop(self.handle.define_sku(define).expect("room"));
            let sku = SkuId(u32::try_from(self.skus.len()).expect("small"));
            self.skus.push(sku);
            drop(
                self.handle
                    .set_gate(SetGate::new(ADMIN, sku, Gate::Open))
                    .expect("room"),
            );
            return;
        }
        match random.below(20) {
            0..8 => {
                let lines = (0..=random.below(5)).map(|_| Line {
                    sku: sku(random, &self.skus),
                    quantity: 1 + u32::try_from(random.below(3)).expect("small"),
                });
                let cart = Lines::new(lines.collect::<Vec<_>>()).expect("a cart");
                let asked = self.handle.reserve(Reserve::cart(user, cart).key(key));
                self.asked.push((user, asked.expect("room")));
            }
            8 => drop(self.handle.release(Release::new(user, held)).expect("room")),
            9..11 => drop(
                self.handle
                    .begin_payment(BeginPayment::new(user, held, payment))
                    .expect("room"),
            ),
            11 => {
                let what = if attempt == 1 {
                    Disposition::Keep
                } else {
                    Disposition::Release
                };
                drop(
                    self.handle
                        .payment_failed(PaymentFailed::new(user, held, attempt, what))
                        .expect("room"),
                );
            }
            12..14 => drop(
                self.handle
                    .confirm(Confirm::paid(user, held, attempt, payment))
                    .expect("room"),
            ),
            14..16 => drop(
                self.handle
                    .confirm(Confirm::unpaid(user, held))
                    .expect("room"),
            ),
            16 => {
                let lines = Lines::one(sku(random, &self.skus), 1).ok();
                let lines = lines.filter(|_| attempt > 0);
                drop(
                    self.handle
                        .return_units(Return::of_reservation(ADMIN, key, held, lines))
                        .expect("room"),
                );
            }
            17 => {
                let delta = i64::try_from(random.below(60)).expect("small") - 20;
                drop(
                    self.handle
                        .adjust(Adjust::new(ADMIN, key, sku(random, &self.skus), delta))
                        .expect("room"),
                );
            }
            18 => {
                let change = [
                    Gate::PauseConfirms,
                    Gate::ResumeConfirms,
                    Gate::EndSale,
                    Gate::Open,
                    Gate::Open,
                    Gate::Close,
                ];
                let change = change[usize::try_from(random.below(6)).expect("small")];
                drop(
                    self.handle
                        .set_gate(SetGate::new(ADMIN, sku(random, &self.skus), change))
                        .expect("room"),
                );
            }
            _ => drop(
                self.handle
                    .submit(Query::ReservationsOf(user))
                    .expect("room"),
            ),
        }
    }

    fn view(&mut self, id: ReservationId) -> Option<stockade::types::ReservationView> {
        let asked = self.handle.submit(Query::Reservation(id)).expect("room");
        self.runner.step().expect("it runs");
        match asked.wait().expect("answered") {
            QueryAnswer::Reservation(view) => view,
            other => panic!("{other:?}"),
        }
    }
}

/// Rows recounted against rows, which shows what no comparison with the engine does.
const RECOUNT: &str = "
    WITH lines AS (
        SELECT id, sku, quantity, returned, status, ended_at FROM reservations
        UNION ALL
        SELECT r.id, l.sku, l.quantity, l.returned, r.status, r.ended_at
        FROM reservation_lines l JOIN reservations r ON r.id = l.reservation_id)
    SELECT i.sku_id FROM inventory i LEFT JOIN lines l ON l.sku = i.sku
    GROUP BY i.shard, i.sku
    HAVING i.reserved <> coalesce(sum(l.quantity) FILTER (WHERE l.ended_at IS NULL), 0)
        OR i.sold <> coalesce(sum(l.quantity - l.returned) FILTER (WHERE l.status = 'CONFIRMED'), 0)";

#[test]
fn rows_and_recovery_say_what_the_engine_says_whatever_happened() {
    let log = Log::new();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_800_000_000_000_000,
    )));
    let mut digest = None;
    let mut sold: i64 = 0;
    for seed in 1..=4 {
        let mut script = Script::new(&log.options, seed, &clock, u128::from(seed) << 64);
        // Another writer recovers what the last one left, after a good end and after none.
        assert!(
            digest.is_none_or(|digest| digest == script.runner.digest()),
            "seed {seed}"
        );
        script.run(120);
        let mut client = sql(&log.options);
        assert!(
            client.query(RECOUNT, &[]).expect("a recount").is_empty(),
            "seed {seed}"
        );
        let rows = client.query(
            "SELECT r.id, r.status, r.user_id, reservation_text(r.id), h.expires_at,
                    (r.quantity - r.returned + coalesce(
                        (SELECT sum(l.quantity - l.returned) FROM reservation_lines l WHERE l.reservation_id = r.id), 0)
                    )::int8
             FROM reservations r LEFT JOIN holds h ON h.id = r.id ORDER BY r.id DESC LIMIT 200",
            &[],
        );
        for row in rows.expect("reservations") {
            let (id, status): (ReservationId, &str) = (row.get(0), row.get(1));
            assert_eq!(row.get::<_, &str>(3), id.to_string());
            let view = script.view(id).expect("it hasn't retired");
            let is_overdue = view.status == HoldStatus::Expired && status != "EXPIRED";
            assert!(
                status == view.status.name() || is_overdue,
                "{id} is {status}: {view:?}"
            );
            assert_eq!(row.get::<_, UserId>(2), view.user);
            let units: u32 = view.lines.iter().map(|line| line.quantity).sum();
            assert_eq!(row.get::<_, i64>(5), i64::from(units), "{id}: {view:?}");
            if view.status.is_live() {
                assert_eq!(row.get::<_, Timestamp>(4), view.expires_at, "{id}");
            }
        }
        let row = client.query_one("SELECT sum(sold)::int8 FROM inventory", &[]);
        sold = row.expect("inventory").get(0);
        digest = Some(if seed % 2 == 0 {
            script.runner.shutdown().expect("a good end")
        } else {
            script.runner.step().expect("what was asked last");
            script.runner.digest()
        });
    }
    assert!(sold > 100, "the script sells: {sold}");
}

#[test]
fn the_log_can_be_read_by_sql() {
    let log = Log::new();
    let engine = engine(&log.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "SNEAKER-42", 1);
    let id = reserve(&handle, 7, sku).expect("a unit");
    assert!(reserve(&handle, 8, sku).is_err(), "sold out");
    let confirmed = handle.confirm(Confirm::unpaid(UserId::from(7), id));
    confirmed.expect("room").wait().expect("confirmed");
    let mut client = sql(&log.options);
    let rows = client.query(
        "SELECT kind, user_id, key, reservation_id, sku, quantity, at FROM events ORDER BY sequence",
        &[],
    );
    let rows = rows.expect("events");
    let kinds: Vec<&str> = rows.iter().map(|row| row.get(0)).collect();
    assert_eq!(
        kinds,
        [
            "sku_named",
            "sku_defined",
            "gate_set",
            "reserved",
            "confirmed"
        ]
    );
    let held = &rows[3];
    assert_eq!(held.get::<_, UserId>(1), UserId::from(7));
    assert_eq!(
        held.get::<_, Option<IdempotencyKey>>(2),
        IdempotencyKey::new(8)
    );
    assert_eq!(held.get::<_, ReservationId>(3), id);
    assert_eq!((held.get(4), held.get(5)), (0_i64, 1_i64));
    assert_eq!(rows[4].get::<_, ReservationId>(3), id);
    let refused = client.query_one("SELECT user_id, key FROM refusals", &[]);
    assert_eq!(refused.expect("one").get::<_, UserId>(0), UserId::from(8));
    let row = client.query_one(
        "SELECT is_open, available, sold, total FROM inventory WHERE sku_id = 'SNEAKER-42'",
        &[],
    );
    let row = row.expect("one");
    assert_eq!(
        (row.get(0), row.get(1), row.get(2), row.get(3)),
        (true, 0_i64, 1_i64, 1_i64)
    );
}
