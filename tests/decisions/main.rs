//! What the allocator decides, command by command. Here is what the tests share: a sale of four SKUs in which every command is a
//! batch of its own, its replay, and commands in short.

mod laws;
mod log;
mod queries;
mod retention;
mod rows;
mod transfers;

use stockade::allocator::{Allocator, Limits, Violation};
use stockade::types::{
    Answer, Availability, Batch, BatchHeader, BeginPayment, Command, Confirm, Confirmation,
    Decision, DefineSku, Deposit, Event, EventKind, Gate, IdempotencyKey, Line, Lines, PaymentRef,
    Policy, Query, QueryAnswer, ReservationId, Reserve, Rules, SetGate, SkuId, SkuName, SkuView,
    Timestamp, Transfer, UserId, Withdraw,
};

const ANN: UserId = UserId(1);
const BOB: UserId = UserId(2);
const ADMIN: UserId = UserId(9);
/// 2 units, 1 per user.
const A: SkuId = SkuId(0);
/// 5 units, no limit per user, 3 per request.
const B: SkuId = SkuId(1);
/// Defined, never opened.
const CLOSED: SkuId = SkuId(2);
/// Open, reservations paused.
const PAUSED: SkuId = SkuId(3);
const UNKNOWN: SkuId = SkuId(99);
const HOLD_MS: u64 = 100;

/// An allocator with four SKUs; every command is a batch of its own, at the time `now`.
struct Sale {
    allocator: Allocator,
    limits: Limits,
    now: Timestamp,
    log: Vec<Batch>,
}

impl Sale {
    fn with(limits: Limits) -> Self {
        let mut sale = Self {
            allocator: Allocator::new(limits, 3),
            limits,
            now: Timestamp::from_micros(1_000_000_000),
            log: Vec::new(),
        };
        let policy = Policy {
            key_retention_ms: 1_000,
            ended_retention_ms: 1_000,
            payment_grace_ms: 60,
            refused_keys_max: 3,
        };
        sale.batch(|allocator, batch| allocator.set_policy(policy, batch));
        let skus = [
            (2, Some(1), None),
            (5, None, Some(3)),
            (5, None, None),
            (5, None, None),
        ];
        for (number, (total, per_user, per_request)) in skus.into_iter().enumerate() {
            let rules = Rules {
                hold_ms: u32::try_from(HOLD_MS).expect("short"),
                per_user,
                per_request,
                ..Rules::default()
            };
            let name = SkuName::new(&format!("SKU-{number}")).expect("a plain name");
            let define = DefineSku::new(ADMIN, name, total).rules(rules);
            sale.ask(define.expect("rules that can be"));
        }
        for sku in [A, B, PAUSED] {
            sale.gate(sku, Gate::Open);
        }
        sale.gate(PAUSED, Gate::PauseReservations);
        sale
    }

    fn new() -> Self {
        Self::with(Limits {
            lines_max: 2,
            holds_per_user_max: 2,
            ..Limits::default()
        })
    }

    fn batch<T>(
        &mut self,
        work: impl FnOnce(&mut Allocator, &mut Batch) -> Result<T, Violation>,
    ) -> T {
        let mut batch = Batch::default();
        batch.header = BatchHeader {
            number: self.log.len() as u64 + 1,
            stamp: self.now,
            first_sequence: self.allocator.sequence() + 1,
            ..BatchHeader::default()
        };
        self.allocator
            .begin(&batch.header)
            .expect("batches follow each other");
        let result = work(&mut self.allocator, &mut batch).expect("no law breaks");
        self.allocator
            .finish(&mut Vec::new())
            .expect("no law is broken");
        assert!(self.allocator.audit().is_ok());
        self.log.push(batch);
        result
    }

    fn ask(&mut self, command: impl Into<Command>) -> Decision {
        let command = command.into();
        match self.batch(|allocator, batch| allocator.decide(&command, batch)) {
            Answer::Decided(decision) => decision,
            answer => panic!("not a decision: {answer:?}"),
        }
    }

    fn gate(&mut self, sku: SkuId, change: Gate) -> Decision {
        self.ask(SetGate::new(ADMIN, sku, change))
    }

    /// A hold that must succeed.
    fn held(&mut self, user: UserId, sku: SkuId, units: u32) -> ReservationId {
        match self.ask(reserve(user, sku, units)) {
            Decision::Reserved(reservation) => reservation.id,
            decision => panic!("not reserved: {decision:?}"),
        }
    }

    fn sold(&mut self, user: UserId, sku: SkuId, units: u32) -> ReservationId {
        let id = self.held(user, sku, units);
        assert_eq!(self.ask(Confirm::unpaid(user, id)), confirmed(id));
        id
    }

    fn view(&mut self, sku: SkuId) -> Option<SkuView> {
        let query = Query::Sku(sku).into();
        match self.batch(|allocator, batch| allocator.decide(&query, batch)) {
            Answer::Found(found) => match *found {
                QueryAnswer::Sku(view) => view,
                found => panic!("not a SKU: {found:?}"),
            },
            answer => panic!("not found: {answer:?}"),
        }
    }

    fn wait_ms(&mut self, ms: u64) {
        self.now = self.now.plus_ms(ms);
    }

    fn counts(&self, sku: SkuId) -> [u64; 4] {
        let Availability {
            available,
            reserved,
            sold,
            total,
            ..
        } = self.allocator.availability(sku).expect("a known SKU");
        [available, reserved, sold, total]
    }

    /// What a replay of the log gives.
    fn replayed(&self) -> Self {
        let mut allocator = Allocator::new(self.limits, 77);
        for batch in &self.log {
            allocator.apply_batch(batch).expect("the log replays");
        }
        Self {
            allocator,
            limits: self.limits,
            now: self.now,
            log: self.log.clone(),
        }
    }

    /// Replays the log and one more event, which nobody decided.
    fn forge(&self, kind: EventKind) -> Result<(), Violation> {
        let mut allocator = self.replayed().allocator;
        let header = BatchHeader {
            stamp: self.now,
            first_sequence: allocator.sequence() + 1,
            ..BatchHeader::default()
        };
        allocator.begin(&header)?;
        let event = Event {
            sequence: header.first_sequence,
            at: self.now,
            shard: 0,
            epoch: 0,
            kind,
        };
        allocator.apply(&event)
    }
}

fn reserve(user: UserId, sku: SkuId, units: u32) -> Reserve {
    Reserve::one(user, sku, units).expect("a quantity")
}

fn cart(user: UserId, lines: &[(SkuId, u32)]) -> Reserve {
    let lines = lines.iter().map(|&(sku, quantity)| Line { sku, quantity });
    Reserve::cart(user, Lines::new(lines).expect("a cart"))
}

fn key(number: u128) -> IdempotencyKey {
    IdempotencyKey::new(number).expect("not zero")
}

fn paid(number: u128) -> PaymentRef {
    PaymentRef::new(number).expect("not zero")
}

fn confirmed(reservation: ReservationId) -> Decision {
    Decision::Confirmed(Confirmation::Sold { reservation })
}

fn nobodys() -> ReservationId {
    ReservationId::new(0, 4_000)
}

fn units(sku: SkuId, quantity: u32) -> Lines {
    Lines::one(sku, quantity).expect("a quantity")
}

fn moving(sku: SkuId, (from, to): (u16, u16), number: u64, units: u64) -> Transfer {
    Transfer {
        sku,
        from,
        to,
        number,
        units,
    }
}

fn withdraw(id: u128, sku: SkuId, way: (u16, u16), number: u64, units: u64) -> Withdraw {
    Withdraw::new(ADMIN, key(id), moving(sku, way, number, units)).expect("a transfer")
}

fn deposit(id: u128, sku: SkuId, way: (u16, u16), number: u64, units: u64) -> Deposit {
    Deposit::new(ADMIN, key(id), moving(sku, way, number, units)).expect("a transfer")
}

fn sneaker(total: u64) -> DefineSku {
    DefineSku::new(ADMIN, SkuName::new("SKU-NEW").expect("a plain name"), total)
}

fn full() -> Sale {
    let mut sale = Sale::with(Limits {
        reservations_max: 1,
        ..Limits::default()
    });
    sale.held(BOB, B, 1);
    sale
}

fn in_payment(sale: &mut Sale) -> ReservationId {
    let id = sale.held(ANN, B, 1);
    let begun = sale.ask(BeginPayment::new(ANN, id, paid(7)));
    assert!(matches!(begun, Decision::PaymentBegun(_)), "{begun:?}");
    id
}
