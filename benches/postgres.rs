//! Reservations a second through the PostgreSQL store, everything a batch holds, on a server of its own:
//! `cargo bench --features postgres --bench postgres`; `-- --test` runs each row once and small, `-- --seconds 30` as long.
//!
//! Each batch is one of new users with new keys on ascending ids, made by the engine's own allocator and committed one after
//! the other: the store alone, without threads and tickets. The second row ends every hold of the first, so each batch also
//! updates as many rows as it inserts. Checked before the figures are told: the rows count what was committed.

#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::print_stdout, reason = "a report")]

#[expect(dead_code, reason = "shared with tests that use more of it")]
#[path = "../tests/servers/mod.rs"]
mod servers;

use servers::Server;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade::allocator::{Allocator, Limits};
use stockade::postgres::{PostgresOptions, PostgresStore};
use stockade::store::{OpenRequest, Store};
use stockade::types::{
    Answer, Batch, BatchHash, Command, DefineSku, Gate, IdempotencyKey, Release, Reserve, Rules,
    SetGate, SkuId, SkuName, Timestamp, Token, UserId,
};

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
        let admin = UserId(1);
        let rules = Rules {
            hold_ms: 86_400_000,
            ..Rules::default()
        };
        let define = DefineSku::new(admin, SkuName::new("hot").expect("a name"), 1 << 40);
        bench.commit(&[
            define.rules(rules).expect("rules").into(),
            SetGate::new(admin, SkuId(0), Gate::Open).into(),
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
            let ended = ends.zip(first - size..first).map(|(sequence, user)| {
                let id = stockade::types::ReservationId::new(0, sequence);
                Release::new(UserId(u128::from(user) << 64 | 7), id).into()
            });
            commands.extend(ended);
        }
        commands.extend((first..self.users).map(|user| {
            let user = UserId(u128::from(user) << 64 | 7);
            let key = IdempotencyKey::new(user.0 + 1).expect("not zero");
            let reserve = Reserve::one(user, SkuId(0), 1).expect("a cart");
            reserve.key(key).into()
        }));
        commands
    }

    fn row(&mut self, name: &str, size: u64, time: Duration, with_ends: bool) {
        let commands = self.reservations(size, false);
        self.commit(&commands);
        let began = Instant::now();
        let mut commits = Vec::new();
        while began.elapsed() < time {
            let commands = self.reservations(size, with_ends);
            commits.push(self.commit(&commands));
        }
        let took = began.elapsed();
        commits.sort_unstable();
        let at = |percent: usize| commits[(commits.len() * percent / 100).min(commits.len() - 1)];
        let reserved = commits.len() as u64 * size;
        println!(
            "{name}/{size}: {:.0} reservations/s, commit p50 {:.2} ms, p95 {:.2} ms, max {:.0} ms ({} batches)",
            f64::from(u32::try_from(reserved).expect("few")) / took.as_secs_f64(),
            at(50).as_secs_f64() * 1e3,
            at(95).as_secs_f64() * 1e3,
            at(100).as_secs_f64() * 1e3,
            commits.len()
        );
    }
}

fn main() {
    let arguments: Vec<String> = std::env::args().collect();
    let is_test = arguments.iter().any(|argument| argument == "--test");
    let seconds = arguments
        .iter()
        .position(|argument| argument == "--seconds");
    let seconds = seconds.and_then(|at| arguments.get(at + 1)?.parse().ok());
    let time = match seconds {
        _ if is_test => Duration::from_millis(50),
        seconds => Duration::from_secs(seconds.unwrap_or(10)),
    };
    let settings = ["shared_buffers=1GB", "max_wal_size=4GB"].map(str::to_owned);
    let server = Server::start("postgres.sh", &settings);
    for (name, with_ends) in [("reserve", false), ("reserve_and_release", true)] {
        for size in [250, 4_000] {
            let port = server.port();
            let mut options =
                PostgresOptions::new(format!("postgres://stockade@127.0.0.1:{port}/stockade"));
            options.schema = format!("{name}_{size}");
            let mut bench = Bench::new(&options);
            bench.row(name, size, time, with_ends);
            let counted = bench
                .allocator
                .availability(SkuId(0))
                .expect("defined")
                .reserved;
            let mut client =
                postgres::Client::connect(&options.url, postgres::NoTls).expect("a connection");
            let sql = format!(
                "SELECT count(*) FROM {}.reservations WHERE ended_at IS NULL",
                options.schema
            );
            let held: i64 = client.query_one(&sql, &[]).expect("a count").get(0);
            assert_eq!(held.cast_unsigned(), counted, "rows are what was committed");
        }
    }
}
