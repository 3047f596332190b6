//! A sale at random, over several writers: the rows, a recount of them and every recovery say what the engine says.

use crate::{ADMIN, Log, RECOUNT, engine, sql};
use std::sync::Arc;
use std::time::Duration;
use stockade::engine::{Handle, Runner, Ticket};
use stockade::postgres::PostgresOptions;
use stockade::types::{
    Adjust, BeginPayment, Clock, Confirm, DefineSku, Disposition, Gate, HoldStatus, IdempotencyKey,
    Line, Lines, ManualClock, PaymentFailed, PaymentRef, Query, QueryAnswer, Release,
    ReservationId, ReservationView, Reserve, Return, Rules, SetGate, SkuId, SkuName, Timestamp,
    UserId,
};

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
pub(crate) struct Script {
    random: Random,
    handle: Handle,
    pub(crate) runner: Runner,
    clock: Arc<ManualClock>,
    skus: Vec<SkuId>,
    sequence: u64,
    key: u128,
    asked: Vec<(UserId, Ticket<Reserve>)>,
    held: Vec<(ReservationId, UserId)>,
}

impl Script {
    pub(crate) fn new(
        options: &PostgresOptions,
        seed: u64,
        clock: &Arc<ManualClock>,
        key: u128,
    ) -> Self {
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

    pub(crate) fn run(&mut self, batches: u64) {
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

    fn view(&mut self, id: ReservationId) -> Option<ReservationView> {
        let asked = self.handle.submit(Query::Reservation(id)).expect("room");
        self.runner.step().expect("it runs");
        match asked.wait().expect("answered") {
            QueryAnswer::Reservation(view) => view,
            other => panic!("{other:?}"),
        }
    }
}

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
