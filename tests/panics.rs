//! Stores and sinks that panic: the engine halts or goes on, says which of them it was, and nobody waits for ever.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use stockade::engine::{Engine, Handle, State};
use stockade::events::{EventSink, SinkError};
use stockade::store::{MemoryStore, OpenRequest, Progress, Recovered, Replica, Store, StoreError};
use stockade::types::{Batch, DefineSku, Gate, Reserve, SetGate, SkuId, SkuName, UserId};

const ADMIN: UserId = UserId(1 << 100);
const WITHIN: Duration = Duration::from_secs(30);

/// Panics from when it is told to.
struct Broken(MemoryStore, Arc<AtomicBool>);

impl Store for Broken {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        self.0.open(request, replica, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        assert!(!self.1.load(Ordering::SeqCst), "out of ideas");
        self.0.commit(batch)
    }
}

impl EventSink for Broken {
    fn publish(&mut self, _: &Batch) -> Result<(), SinkError> {
        panic!("out of ideas")
    }
}

fn broken(is_broken: &Arc<AtomicBool>) -> Broken {
    Broken(MemoryStore::new(), Arc::clone(is_broken))
}

fn open_sku(handle: &Handle) -> SkuId {
    let define = DefineSku::new(ADMIN, SkuName::new("A").expect("a name"), 100);
    let sku = handle.define_sku(define).expect("room").wait();
    let sku = sku.expect("it is new");
    let open = SetGate::new(ADMIN, sku, Gate::Open);
    let opened = handle.set_gate(open).expect("room").wait();
    opened.expect("it is closed");
    sku
}

/// Whichever thread it was that committed: idle the writer's, loaded the committer's.
#[test]
fn a_store_that_panics_halts_the_engine() {
    for _ in 0..100 {
        let is_broken = Arc::new(AtomicBool::new(false));
        let engine = Engine::builder().store(broken(&is_broken)).start();
        let engine = engine.expect("it starts");
        let handle = engine.handle();
        let sku = open_sku(&handle);
        is_broken.store(true, Ordering::SeqCst);
        let reserve = |user| handle.reserve(Reserve::one(UserId(user), sku, 1).expect("a cart"));
        let tickets: Vec<_> = (0..50).filter_map(|user| reserve(user).ok()).collect();
        for ticket in tickets {
            assert!(ticket.wait().is_err());
        }
        let state = handle.health().state;
        let says = "the store panicked (out of ideas) at batch ";
        assert!(
            matches!(&state, State::Halted(reason) if reason.starts_with(says)),
            "{state:?}"
        );
        assert!(!engine.shutdown(WITHIN).is_clean);
    }
}

#[test]
fn a_sink_that_panics_is_warned_of_and_stops_nothing() {
    let sink = broken(&Arc::default());
    let engine = Engine::builder().sink(sink).start().expect("it starts");
    let handle = engine.handle();
    let sku = open_sku(&handle);
    while !handle.health().is_degraded() {
        std::thread::yield_now();
    }
    let warned = format!("{:?}", handle.health());
    assert!(warned.contains("panicked (out of ideas)"), "{warned}");
    let reserve = Reserve::one(UserId(1), sku, 1).expect("a cart");
    let held = handle.reserve(reserve).expect("room").wait();
    held.expect("the engine goes on");
    let report = engine.shutdown(WITHIN);
    assert!(report.is_clean && !report.is_announced, "{report:?}");
}
