//! stockade on PostgreSQL: the store alone, one batch after the other, and the engine with its threads.
//!
//! Alone, each batch is one of new users with new keys, made by the engine's own allocator and committed when the last one was:
//! a batch's time is that of its commit, rates are of all the time. With ends, each batch also ends every hold of the one
//! before, so it updates as many rows as it inserts. In the engine so many requests are always under way, each with a ticket
//! of its own, and a request's time is that from its submission to its answer.

use crate::job::{HOLD_S, LIMIT, Measured, Outcome, PLENTY, Request};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade::allocator::{Allocator, Limits};
use stockade::engine::Engine;
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::store::{OpenRequest, Store};
use stockade::types::{
    Answer, Batch, BatchHash, Command, DefineSku, Gate, IdempotencyKey, Release, ReservationId,
    Reserve, Rules, SetGate, SkuId, SkuName, Timestamp, Token, UserId,
};

const ADMIN: UserId = UserId(1);

struct Bench {
    store: PostgresStore,
    allocator: Allocator,
    token: Token,
    batch: Batch,
    stock: Vec<stockade::types::Availability>,
    number: u64,
    last_hash: BatchHash,
    users: u64,
}

impl Bench {
    fn new(options: &PostgresOptions) -> Self {
        PostgresStore::migrate(options).expect("a schema");
        let limits = Limits::default();
        let mut allocator = Allocator::new(limits, 1);
        let mut store = PostgresStore::new(options.clone());
        let request = OpenRequest {
            shard: 0,
            writer: 1,
            replicas: Arc::new(move || Box::new(Allocator::new(limits, 1))),
        };
        let opened = store.open(&request, &mut allocator, &mut |_| {});
        let token = opened.expect("it opens").token;
        let mut bench = Self {
            store,
            allocator,
            token,
            batch: Batch::default(),
            stock: Vec::new(),
            number: 0,
            last_hash: BatchHash::default(),
            users: 0,
        };
        bench.commit(&[
            define().into(),
            SetGate::new(ADMIN, SkuId(0), Gate::Open).into(),
        ]);
        bench
    }

    /// Decides and commits a batch; how long the commit took.
    fn commit(&mut self, commands: &[Command]) -> Duration {
        self.number += 1;
        self.batch.clear();
        self.stock.clear();
        let header = &mut self.batch.header;
        header.number = self.number;
        header.token = self.token;
        header.stamp = Timestamp::from_micros(1_800_000_000_000_000 + self.number);
        header.first_sequence = self.allocator.sequence() + 1;
        self.allocator.begin(header).expect("it follows");
        let answer = |answer| assert!(matches!(answer, Answer::Decided(_)), "{answer:?}");
        let decided = self
            .allocator
            .decide_all(commands.iter(), &mut self.batch, answer);
        decided.expect("no law breaks");
        self.allocator
            .finish(&mut self.stock)
            .expect("no law breaks");
        assert!(
            self.batch.event_records().len() >= commands.len(),
            "all are accepted"
        );
        self.batch.seal(self.last_hash);
        self.last_hash = self.batch.hash();
        let began = Instant::now();
        self.store.expect(&self.stock);
        self.store.commit(&self.batch).expect("it commits");
        began.elapsed()
    }

    fn reservations(&mut self, size: u64, with_ends: bool) -> Vec<Command> {
        let ends = (self.allocator.sequence() + 1).saturating_sub(size)..=self.allocator.sequence();
        let first = self.users;
        self.users += size;
        let mut commands: Vec<Command> = Vec::new();
        if with_ends {
            // Those of the batch before: its reserves came last.
            let ended = ends.zip(first - size..first).map(|(sequence, number)| {
                let id = ReservationId::new(0, sequence);
                Release::new(UserId(Request::new(number).user), id).into()
            });
            commands.extend(ended);
        }
        commands.extend((first..self.users).map(|number| reserve(number).into()));
        commands
    }
}

fn define() -> DefineSku {
    let rules = Rules {
        hold_ms: HOLD_S * 1_000,
        per_user: Some(LIMIT),
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, SkuName::new("hot").expect("a name"), PLENTY);
    define.rules(rules).expect("rules")
}

fn reserve(number: u64) -> Reserve {
    let request = Request::new(number);
    let key = IdempotencyKey::new(request.key).expect("not zero");
    let reserve = Reserve::one(UserId(request.user), SkuId(0), 1).expect("a cart");
    reserve.key(key)
}

/// In a schema `stockade` of its own, in place of the last one's.
fn options(url: &str) -> Outcome<PostgresOptions> {
    let options = PostgresOptions::new(url);
    let mut client = postgres::Client::connect(url, postgres::NoTls)?;
    let schema = &options.schema;
    client.batch_execute(&format!("DROP SCHEMA IF EXISTS {schema} CASCADE"))?;
    PostgresStore::migrate(&options)?;
    Ok(options)
}

/// Whether there are as many rows of live holds as were counted.
fn check(options: &PostgresOptions, counted: u64) -> Outcome<()> {
    let mut client = postgres::Client::connect(&options.url, postgres::NoTls)?;
    let schema = &options.schema;
    let sql = format!("SELECT count(*) FROM {schema}.reservations WHERE ended_at IS NULL");
    let held: i64 = client.query_one(&sql, &[])?.get(0);
    if held.cast_unsigned() == counted {
        return Ok(());
    }
    Err(format!("{held} rows of live holds, {counted} were committed").into())
}

/// Batches of `size` reservations, each with as many ends or with none.
pub(crate) fn alone(url: &str, size: u64, with_ends: bool, time: Duration) -> Outcome<Measured> {
    let options = options(url)?;
    let mut bench = Bench::new(&options);
    let commands = bench.reservations(size, false);
    bench.commit(&commands);
    let (began, mut commits) = (Instant::now(), Vec::new());
    while began.elapsed() < time {
        let commands = bench.reservations(size, with_ends);
        commits.push(bench.commit(&commands));
    }
    let took = began.elapsed();
    let stock = bench.allocator.availability(SkuId(0));
    check(&options, stock.ok_or("no stock")?.reserved)?;
    let reserved = commits.len() as u64 * size;
    Ok(Measured::new(reserved, reserved, took, &mut commits))
}

/// The engine with so many requests under way.
pub(crate) fn engine(url: &str, under_way: usize, time: Duration) -> Outcome<Measured> {
    let options = options(url)?;
    let engine = Engine::builder().store(PostgresStore::new(options.clone()));
    let engine = engine.start()?;
    let handle = engine.handle();
    let sku = handle.define_sku(define())?.wait()?;
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    handle.set_gate(open)?.wait()?;
    let mut tickets = VecDeque::with_capacity(under_way);
    let (began, mut times, mut number) = (Instant::now(), Vec::new(), 0);
    loop {
        let is_over = began.elapsed() >= time;
        while !is_over && tickets.len() < under_way {
            number += 1;
            tickets.push_back((Instant::now(), handle.reserve(reserve(number))?));
        }
        let Some((asked, ticket)) = tickets.pop_front() else {
            break;
        };
        ticket.wait()?;
        times.push(asked.elapsed());
    }
    let took = began.elapsed();
    drop(engine);
    check(&options, number)?;
    Ok(Measured::new(number, number, took, &mut times))
}
