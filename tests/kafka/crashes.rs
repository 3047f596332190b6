//! Engines that die at a commit, again and again, before or after it is written: what was answered under a key is answered under
//! it for good, refusals too, also where another key would get another answer by then.

use crate::dying::Dying;
use crate::{ADMIN, Topics, ask, events, key, name, raised, reserve, reserve_as, shared, until};
use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use stockade::engine::Engine;
use stockade::kafka::{Body, KafkaClient, Request};
use stockade::store::{MemoryLog, MemoryStore};
use stockade::types::{
    Decision, EventKind, Gate, IdempotencyKey, Reason, Refusal, ReservationId, Rules, UserId,
};

const USERS: u64 = 300;
const UNITS: u64 = 200;
/// Every so many users come back for more than the one unit that a user may have.
const GREEDY: u64 = 10;

/// Writers of one log, one after the other: each dies at one of its first commits.
struct Lives<'a> {
    topics: &'a Topics,
    log: &'a MemoryLog,
    begun: AtomicUsize,
}

impl Lives<'_> {
    fn run_until(&self, is_done: &AtomicBool) {
        while !is_done.load(Ordering::Acquire) {
            let life = self.begun.fetch_add(1, Ordering::AcqRel);
            let store = Dying {
                inner: Box::new(MemoryStore::on(self.log)),
                commits_left: 2 + life % 5,
                writes: life.is_multiple_of(2),
            };
            let engine = Engine::builder().store(store).start().expect("it recovers");
            let source = self.topics.source(engine.handle());
            until("it dies, or everything is answered", || {
                is_done.load(Ordering::Acquire) || !engine.handle().health().is_running()
            });
            drop(source);
        }
    }
}

/// The first answer to a request.
struct Told {
    request: Request,
    decision: Decision,
    life: usize,
}

/// What was told under each key.
struct Asking<'a> {
    client: &'a KafkaClient,
    lives: &'a Lives<'a>,
    told: Mutex<BTreeMap<(UserId, IdempotencyKey), Told>>,
    /// Refusals that were told again by another writer than the one that decided them.
    refused_again: AtomicU64,
}

impl Asking<'_> {
    /// Asks until it knows.
    ///
    /// # Panics
    /// If something else was told before under the same key.
    fn ask(&self, request: &Request) -> Decision {
        let life = || self.lives.begun.load(Ordering::Acquire);
        let asked_in = life();
        let decision = ask(self.client, request).decision;
        let mut told = self.told.lock().expect("nobody panicked");
        let id = (request.user, request.key);
        let first = told.entry(id).or_insert_with(|| Told {
            request: request.clone(),
            decision,
            life: life(),
        });
        let (first, first_life) = (first.decision, first.life);
        drop(told);
        assert_eq!(first, decision, "{request:?}");
        let is_refused = matches!(decision, Decision::Refused(_));
        if is_refused && first_life < asked_in {
            self.refused_again.fetch_add(1, Ordering::Relaxed);
        }
        decision
    }

    fn define(&self, sku: &str, total: u64) {
        let define = Body::DefineSku {
            sku: name(sku),
            total,
            rules: Rules::default(),
        };
        let open = Body::SetGate {
            sku: name(sku),
            change: Gate::Open,
            reason: Reason::default(),
        };
        for (what, body) in [("define", define), ("open", open)] {
            self.ask(&Request::new(ADMIN, key(&format!("{what} {sku}")), body));
        }
    }

    /// Takes the one unit that a user may have, is refused another, gives the first back, and is refused still.
    fn want_more(&self, user: u64, sku: &str) {
        let Decision::Reserved(held) = self.ask(&reserve(user, sku)) else {
            panic!("there are enough for everybody");
        };
        let another = reserve_as("another", user, sku);
        let refused = self.ask(&another);
        let is_limit = matches!(refused, Decision::Refused(Refusal::UserLimit { .. }));
        assert!(is_limit, "{refused:?}");
        let reservation = held.id;
        let release = Body::Release { reservation };
        let release = Request::new(another.user, key(&format!("release {user}")), release);
        assert_eq!(self.ask(&release), Decision::Released);
        self.ask(&another);
    }

    fn refused(&self) -> Vec<Request> {
        let told = self.told.lock().expect("nobody panicked");
        let refused = told
            .values()
            .filter(|told| matches!(told.decision, Decision::Refused(_)));
        refused.map(|told| told.request.clone()).collect()
    }

    /// Every reservation that anybody was told of, once for each key.
    fn reservations(&self) -> Vec<(UserId, ReservationId)> {
        let told = self.told.lock().expect("nobody panicked");
        let held = told.iter().filter_map(|((user, _), told)| {
            let Decision::Reserved(held) = told.decision else {
                return None;
            };
            Some((*user, held.id))
        });
        held.collect()
    }
}

/// Eight threads share the work.
fn crowd<T: Sync>(of: &[T], each: impl Fn(&T) + Sync) {
    std::thread::scope(|scope| {
        for thread in 0..8 {
            let each = &each;
            scope.spawn(move || of.iter().skip(thread).step_by(8).for_each(each));
        }
    });
}

#[test]
fn engines_that_die_between_commit_and_reply_decide_everything_once_and_stand_by_it() {
    let server = shared();
    let topics = Topics::new(&server, "killed");
    let log = MemoryLog::default();
    let client = topics.client();
    // Another SKU of the same writer.
    let names = (0..).map(|n| format!("LIMITED-{n}"));
    let is_beside = |sku: &String| topics.client_options().placement.partition_of(&name(sku)) == 0;
    let limited = names.into_iter().find(is_beside).expect("half of them are");
    let lives = Lives {
        topics: &topics,
        log: &log,
        begun: AtomicUsize::new(0),
    };
    let asking = Asking {
        client: &client,
        lives: &lives,
        told: Mutex::default(),
        refused_again: AtomicU64::new(0),
    };
    let is_done = AtomicBool::new(false);
    let users: Vec<u64> = (0..USERS).collect();
    std::thread::scope(|scope| {
        let done = raised(&is_done);
        scope.spawn(|| lives.run_until(&is_done));
        asking.define("SKU-0", UNITS);
        asking.define(&limited, USERS);
        crowd(&users, |&user| {
            asking.ask(&reserve(user, "SKU-0"));
            if user.is_multiple_of(GREEDY) {
                asking.want_more(user, &limited);
            }
        });
        let refused = asking.refused();
        let count = USERS - UNITS + USERS / GREEDY;
        assert_eq!(refused.len() as u64, count, "sold out, and not one more");
        // By now there is something for each of them, under a new key.
        let restock = Body::Adjust {
            sku: name("SKU-0"),
            delta: USERS.cast_signed(),
            reason: Reason::default(),
        };
        asking.ask(&Request::new(ADMIN, key("restock"), restock));
        crowd(&refused, |request| {
            asking.ask(request);
            let mut anew = request.clone();
            anew.key = key(&format!("anew {:?}", request.key));
            let decision = asking.ask(&anew);
            assert!(matches!(decision, Decision::Reserved(_)), "{decision:?}");
            asking.ask(request);
        });
        drop(done);
    });
    let lives = lives.begun.load(Ordering::Relaxed);
    let again = asking.refused_again.load(Ordering::Relaxed);
    eprintln!("{lives} lives, {again} refusals told again by another");
    assert!(lives > 20, "it died often: {lives}");
    assert!(again > USERS - UNITS, "{again} refusals by another writer");
    let mut told = asking.reservations();
    let mut made: Vec<_> = events(log)
        .into_iter()
        .filter_map(|event| {
            let EventKind::Reserved { origin, .. } = event.kind else {
                return None;
            };
            let id = ReservationId::new(event.shard, event.sequence);
            Some((origin.user, id))
        })
        .collect();
    told.sort_unstable();
    made.sort_unstable();
    assert_eq!(made, told, "each that was told, once, and no other");
}
