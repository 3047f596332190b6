//! The PostgreSQL store against a real server: `cargo test --features postgres --test postgres`.

#![expect(
    clippy::disallowed_methods,
    reason = "engines that wait for the role are started on threads"
)]

#[path = "postgres/log.rs"]
mod log;
#[path = "postgres/repair.rs"]
mod repair;
#[expect(dead_code, reason = "shared with tests that use more of it")]
mod servers;

use postgres::NoTls;
use postgres::error::SqlState;
use servers::Server;
use servers::proxy::Proxy;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;
use stockade::engine::{
    CommandError, Engine, EngineBuilder, EngineError, Handle, Runner, State, Ticket,
};
use stockade::postgres::{PostgresOptions, PostgresReads, PostgresStore, Role};
use stockade::store::{StoreError, conformance};
use stockade::types::{
    Adjust, BeginPayment, Clock, Confirm, Confirmation, DefineSku, Disposition, Gate, HoldStatus,
    IdempotencyKey, Line, Lines, ManualClock, PaymentFailed, PaymentRef, Query, QueryAnswer,
    Release, ReservationId, Reserve, Return, Rules, SetGate, SkuId, SkuName, Timestamp, UserId,
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
    let mut client = connect(&options.url);
    let schema = format!("SET search_path = {}", options.schema);
    client.batch_execute(&schema).expect("a schema");
    client
}

/// A client, also of a server that listens and isn't ready yet.
fn connect(url: &str) -> postgres::Client {
    loop {
        match postgres::Client::connect(url, NoTls) {
            Ok(client) => return client,
            Err(error) if error.code() == Some(&SqlState::CANNOT_CONNECT_NOW) => {
                std::thread::yield_now();
            }
            Err(error) => panic!("no connection: {error}"),
        }
    }
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
            self.define();
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

    fn define(&mut self) {
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
    let confirmed = confirmed.expect("room").wait();
    assert_eq!(confirmed, Ok(Confirmation::Sold { reservation: id }));
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

#[test]
fn a_schema_is_migrated_once_and_a_newer_one_is_refused() {
    let log = Log::new();
    PostgresStore::migrate(&log.options).expect("it is left alone");
    let mut client = sql(&log.options);
    let newer = "INSERT INTO schema_version (version) VALUES (1000)";
    client.execute(newer, &[]).expect("a row");
    let migrated = PostgresStore::migrate(&log.options).expect_err("newer");
    let opened = engine(&log.options).start().err().expect("newer");
    for error in [migrated.to_string(), opened.to_string()] {
        assert!(
            error.contains("1000") && error.contains("use the release"),
            "{error}"
        );
    }
    let mut missing = log.options.clone();
    missing.schema = "nothing".to_owned();
    let error = engine(&missing)
        .start()
        .err()
        .expect("no tables")
        .to_string();
    assert!(error.contains("PostgresStore::migrate"), "{error}");
    let mut wrong = log.options.clone();
    wrong.schema = "a; DROP".to_owned();
    assert!(matches!(
        PostgresStore::migrate(&wrong),
        Err(StoreError::Fatal(_))
    ));
}

#[test]
fn a_store_that_makes_snapshots_is_a_store() {
    let _one_server_for_all = Log::new();
    let report = conformance::prove(|| {
        let mut log = Log::new();
        log.options.snapshot_every_events = Some(3);
        move || log.store()
    });
    assert!(report.is_ok(), "{report:?}");
}

#[test]
fn a_recovery_begins_at_the_newest_snapshot_that_is_whole() {
    let mut log = Log::new();
    log.options.snapshot_every_events = Some(5);
    let mut client = sql(&log.options);
    let mut digest = None;
    let engine = || engine(&log.options).digest_at_shutdown();
    let snapshots = |client: &mut postgres::Client| -> Vec<i64> {
        let rows = client.query("SELECT batch FROM snapshots ORDER BY batch", &[]);
        rows.expect("snapshots")
            .iter()
            .map(|row| row.get(0))
            .collect()
    };
    for round in 0..4 {
        let before = snapshots(&mut client);
        let running = engine().start().expect("it starts");
        let handle = running.handle();
        let sku = if round == 0 {
            open_sku(&handle, "A", 100)
        } else {
            SkuId(0)
        };
        for user in 0..6 {
            reserve(&handle, round * 10 + user, sku).expect("a unit");
        }
        while snapshots(&mut client) == before {
            std::thread::yield_now();
        }
        digest = running.shutdown(PATIENCE).digest;
    }
    assert_eq!(snapshots(&mut client).len(), 2, "older ones are removed");
    // Its state is that of the log; and a damaged one is passed over, the newest and then all of them.
    for damaged in 0..=2 {
        let (handle, runner) = engine().build().expect("it opens");
        let warnings = handle.health().warnings;
        let passed_over = warnings.join(" ").matches("passed over").count();
        assert_eq!(passed_over, damaged, "{warnings:?}");
        assert_eq!(handle.availability(SkuId(0)).expect("known").reserved, 24);
        assert_eq!(Some(runner.digest()), digest);
        let newest = "UPDATE snapshot_parts SET records = set_byte(records, 700, get_byte(records, 700) # 1)
            WHERE batch = (SELECT batch FROM snapshots ORDER BY batch DESC OFFSET $1 LIMIT 1) AND part = 0";
        let at = i64::try_from(damaged).expect("few");
        client.execute(newest, &[&at]).expect("an edit");
    }
}

#[test]
fn rows_answer_those_who_cannot_ask_the_writer() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let handle = running.handle();
    let sku = open_sku(&handle, "A", 10);
    let id = reserve(&handle, 1, sku).expect("a unit");
    let reads = PostgresReads::new(log.options.clone());
    let now = handle.now();
    let view = reads
        .reservation(id, now)
        .expect("it answers")
        .expect("it is there");
    let asked = handle.query(Query::Reservation(id)).expect("room").wait();
    assert_eq!(asked, Ok(QueryAnswer::Reservation(Some(view.clone()))));
    let late = reads.reservation(id, view.expires_at).expect("it answers");
    assert_eq!(late.expect("it is there").status, HoldStatus::Expired);
    assert_eq!(
        reads
            .reservation(ReservationId::new(0, 1), now)
            .expect("it answers"),
        None
    );
    let name = SkuName::new("A").expect("a name");
    let told = handle.availability(sku).expect("known");
    let read = reads
        .availability(0, &name)
        .expect("it answers")
        .expect("it is there");
    assert_eq!(
        (read.available, read.reserved, read.total),
        (told.available, told.reserved, told.total)
    );
    assert_eq!(reads.availability(7, &name).expect("it answers"), None);
    // A connection that has ended meanwhile is replaced.
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
        WHERE application_name = 'stockade' AND query LIKE '%sku_id = $2%'";
    sql(&log.options).query(end, &[]).expect("it ends");
    assert!(reads.availability(0, &name).expect("it answers").is_some());
}

/// Starts an engine on a thread of its own and gives it when it has the role.
fn start_later(options: &PostgresOptions) -> mpsc::Receiver<Result<Engine, EngineError>> {
    let (tell, told) = mpsc::channel();
    let builder = engine(options);
    std::thread::spawn(move || tell.send(builder.start()));
    told
}

fn standby(options: &PostgresOptions, patience: Duration) -> PostgresOptions {
    let mut standby = options.clone();
    standby.role = Role::WhenSilent(patience);
    standby
}

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

#[tokio::test]
async fn an_engine_can_be_started_used_and_dropped_inside_a_runtime() {
    let log = Log::new();
    let running = engine(&log.options).start().expect("it starts");
    let sku = open_sku(&running.handle(), "A", 10);
    let held = reserve(&running.handle(), 1, sku).expect("a unit");
    drop(running);
    let (handle, runner) = engine(&log.options).build().expect("it opens");
    assert_eq!(handle.availability(sku).expect("known").reserved, 1);
    drop(runner);
    let reads = PostgresReads::new(log.options.clone());
    let view = reads.reservation(held, handle.now()).expect("it answers");
    assert_eq!(view.expect("it is there").status, HoldStatus::Held);
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
fn stock_that_is_edited_by_sql_halts_the_writer_which_names_the_row() {
    let log = Log::new();
    let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
        1_800_000_000_000_000,
    )));
    let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let (handle, mut runner) = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .expect("it opens");
    let mut ask = |what: &dyn Fn()| {
        what();
        runner.step()
    };
    let name = |name| SkuName::new(name).expect("a name");
    ask(&|| {
        for sku in ["A", "B"] {
            drop(handle.define_sku(DefineSku::new(ADMIN, name(sku), 10)));
        }
        for sku in [SkuId(0), SkuId(1)] {
            drop(handle.set_gate(SetGate::new(ADMIN, sku, Gate::Open)));
            drop(handle.reserve(Reserve::one(UserId(1), sku, 1).expect("a cart")));
        }
    })
    .expect("it runs");
    let mut client = sql(&log.options);
    // The database itself refuses to oversell, or to lose a unit.
    for edit in [
        "sold = 11",
        "total = 20",
        "available = 8",
        "reserved = -1, available = 11",
    ] {
        let edited = client.execute(&format!("UPDATE inventory SET {edit} WHERE sku = 0"), &[]);
        let refused = edited.expect_err("a law");
        assert!(refused.to_string().contains("db error"), "{refused:?}");
    }
    client
        .execute(
            "UPDATE inventory SET total = 20, available = 19 WHERE sku = 0",
            &[],
        )
        .expect("an edit");
    // A batch that rests on it isn't committed.
    let batches = |client: &mut postgres::Client| -> i64 {
        client
            .query_one("SELECT count(*) FROM batches", &[])
            .expect("one")
            .get(0)
    };
    let before = batches(&mut client);
    let error =
        ask(&|| drop(handle.reserve(Reserve::one(UserId(2), SkuId(0), 1).expect("a cart"))));
    let error = error.expect_err("it halts").to_string();
    assert!(
        error.contains("inventory row A") && error.contains("total 20"),
        "{error}"
    );
    assert_eq!(batches(&mut client), before);
    // Nor does anybody take the role on such rows.
    let error = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .err()
        .expect("drift")
        .to_string();
    assert!(error.contains("inventory row A"), "{error}");
    client
        .execute(
            "UPDATE inventory SET total = 10, available = 9 WHERE sku = 0",
            &[],
        )
        .expect("an edit");
    // A row that no batch touches is found by the next sweep.
    let (handle, mut runner) = engine(&log.options)
        .clock(Arc::clone(&time))
        .build()
        .expect("it opens");
    client
        .execute(
            "UPDATE inventory SET total = 20, available = 19 WHERE sku = 1",
            &[],
        )
        .expect("an edit");
    clock.advance(Duration::from_secs(11));
    drop(handle.query(Query::Sku(SkuId(0))));
    let error = runner.step().expect_err("it halts").to_string();
    assert!(error.contains("inventory row B"), "{error}");
}

#[test]
fn a_hold_that_ended_and_that_sql_revives_halts_the_writer() {
    let log = Log::new();
    let start = Timestamp::from_micros(1_800_000_000_000_000);
    let clock = Arc::new(ManualClock::at(start));
    let time: Arc<dyn Clock> = Arc::clone(&clock) as _;
    let (handle, mut runner) = engine(&log.options).clock(time).build().expect("it opens");
    let sku = SkuId(0);
    let define = DefineSku::new(ADMIN, SkuName::new("A").expect("a name"), 10);
    drop(handle.define_sku(define));
    drop(handle.set_gate(SetGate::new(ADMIN, sku, Gate::Open)));
    drop(handle.reserve(Reserve::one(UserId(1), sku, 1).expect("a cart")));
    runner.step().expect("it runs");
    clock.advance(Duration::from_secs(200));
    runner.step().expect("the hold lapses");
    let revive = "UPDATE reservations SET status = 'RESERVED', ended_at = NULL";
    let revived = sql(&log.options).execute(revive, &[]);
    assert_eq!(revived.expect("an edit"), 1);
    let mut steps = (0..4).map(|_| {
        clock.advance(Duration::from_secs(11));
        drop(handle.query(Query::Sku(sku)));
        runner.step()
    });
    let error = steps.find_map(Result::err).expect("it halts").to_string();
    assert!(
        error.contains("overdue") && error.contains("res-"),
        "{error}"
    );
}

#[test]
fn a_row_that_was_deleted_halts_the_writer_which_names_it() {
    let log = Log::new();
    let engine = engine(&log.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 10);
    let id = reserve(&handle, 1, sku).expect("a unit");
    sql(&log.options)
        .execute("DELETE FROM reservations", &[])
        .expect("an edit");
    let released = handle
        .release(Release::new(UserId::from(1), id))
        .expect("room")
        .wait();
    assert_eq!(released.err(), Some(CommandError::Unknown));
    let reason = halted(&handle);
    assert!(reason.contains(&id.to_string()), "{reason}");
}

/// Reserves until it is told to stop; gives what was acknowledged.
fn load(
    handle: &Handle,
    sku: SkuId,
    first: u64,
    stop: &std::sync::atomic::AtomicBool,
) -> Vec<ReservationId> {
    let mut held = Vec::new();
    for user in first.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        held.extend(reserve(handle, user, sku).ok());
    }
    held
}

/// Every one of these is in the rows, once, and the laws hold.
fn check_held(options: &PostgresOptions, held: &[ReservationId]) {
    let mut client = sql(options);
    let rows = client
        .query("SELECT id FROM reservations WHERE ended_at IS NULL", &[])
        .expect("rows");
    let known: std::collections::BTreeSet<ReservationId> =
        rows.iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = held.iter().filter(|id| !known.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let distinct: std::collections::BTreeSet<_> = held.iter().collect();
    assert_eq!(distinct.len(), held.len(), "acknowledged twice");
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
    let stop = std::sync::atomic::AtomicBool::new(false);
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

/// A primary, and an asynchronous standby that gets its log through a proxy.
struct Pair {
    primary: Server,
    link: Proxy,
    standby: Server,
    options: PostgresOptions,
}

impl Pair {
    fn start() -> Self {
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

    fn on_standby(&self) -> PostgresOptions {
        let mut options = self.options.clone();
        options.url = url(self.standby.port());
        options
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
    fn fail_over(&mut self) -> i64 {
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
    let engine = engine(&pair.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 1_000);
    let mut held: Vec<_> = (0..20)
        .map(|user| reserve(&handle, user, sku).expect("a unit"))
        .collect();
    pair.catch_up(&handle, sku);
    pair.link.stall();
    held.extend((20..40).map(|user| reserve(&handle, user, sku).expect("a unit")));
    assert_eq!(pair.fail_over(), 20, "the tail was lost");
    held.push(reserve(&handle, 99, sku).expect("a unit"));
    let report = engine.shutdown(PATIENCE);
    assert!(report.is_clean, "{report:?}");
    check_held(&pair.on_standby(), &held);
    assert_eq!(held.len(), 41);
}

#[test]
fn a_lost_tail_that_nobody_remembers_halts_the_writer() {
    let mut pair = Pair::start();
    pair.options.retained_bytes = 0;
    let engine = engine(&pair.options).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle, "A", 1_000);
    reserve(&handle, 1, sku).expect("a unit");
    pair.catch_up(&handle, sku);
    pair.link.stall();
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
