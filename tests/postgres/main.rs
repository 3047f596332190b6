//! The PostgreSQL store against a real server: `cargo test --features postgres --test postgres`. Here is what the tests share:
//! a log in a schema of its own, an engine on it, and the checks of its rows.
#![expect(
    clippy::disallowed_methods,
    reason = "engines that wait for the role are started on threads"
)]

mod drift;
mod failover;
mod faults;
mod log;
mod repair;
mod role;
mod rows;
mod sale;

#[path = "../servers/mod.rs"]
mod servers;
mod store;
mod takeover;
#[cfg(feature = "postgres-tls")]
mod tls;

use postgres::NoTls;
use postgres::error::SqlState;
use postgres::fallible_iterator::FallibleIterator as _;
use servers::Server;
use servers::proxy::Proxy;
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, Weak, mpsc};
use std::time::Duration;
use stockade::engine::{CommandError, Engine, EngineBuilder, EngineError, Handle, State};
use stockade::postgres::{PostgresOptions, PostgresStore, Role};
use stockade::types::{
    DefineSku, Gate, IdempotencyKey, ReservationId, Reserve, Rules, SetGate, SkuId, SkuName, UserId,
};

const ADMIN: UserId = UserId(1 << 100);
/// What the tests wait for at most; each is told at once.
const PATIENCE: Duration = Duration::from_secs(60);

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

fn halted(handle: &Handle) -> String {
    match handle.health().state {
        State::Halted(reason) => reason,
        other => panic!("it is {other:?}"),
    }
}

/// Reserves until it is told to stop; gives what was acknowledged.
fn load(handle: &Handle, sku: SkuId, first: u64, stop: &AtomicBool) -> Vec<ReservationId> {
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
    let known: BTreeSet<ReservationId> = rows.iter().map(|row| row.get(0)).collect();
    let lost: Vec<_> = held.iter().filter(|id| !known.contains(id)).collect();
    assert!(lost.is_empty(), "acknowledged and lost: {lost:?}");
    let distinct: BTreeSet<_> = held.iter().collect();
    assert_eq!(distinct.len(), held.len(), "acknowledged twice");
    assert!(client.query(RECOUNT, &[]).expect("a recount").is_empty());
}

/// As after a Ctrl-C, where nothing of this program is dropped.
#[test]
fn a_server_ends_with_whoever_started_it_and_leaves_nothing() {
    let mut server = Server::start("postgres.sh", &[]);
    let mut ends = connect(&url(server.port()));
    server.abandon();
    assert!(!server.dir().exists(), "its folder is gone");
    // It would find that out by itself, within a minute or so.
    let closed = ends.notifications().timeout_iter(PATIENCE / 20).next();
    assert!(closed.is_err(), "it goes on: {closed:?}");
}

/// A server listens before it takes connections.
#[test]
fn a_standby_server_waits_until_its_primary_is_ready() {
    let primary = Server::start("postgres.sh", &[]);
    let link = Proxy::start(primary.port());
    link.cut_next_answer();
    let of = ["--standby-of".to_owned(), link.port().to_string()];
    let standby = Server::start("postgres.sh", &of);
    assert_eq!(link.swallowed(), 1);
    let follows = connect(&url(standby.port())).query_one("SELECT pg_is_in_recovery()", &[]);
    assert!(follows.expect("one row").get::<_, bool>(0));
}
