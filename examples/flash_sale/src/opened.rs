//! Which SKUs have ever been on sale: learned from the log while the engine recovers it.
//!
//! The engine tells stock, not gates; but whoever defines a SKU and opens its sale may be cut off between the two, and has
//! to know on the next start. [`Watched`] is a store that looks at what goes by, and changes nothing.

use std::collections::HashSet;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use stockade::store::{OpenRequest, Progress, Recovered, Replica, ReplicaError, Store, StoreError};
use stockade::types::{Batch, EventKind, ReservationId, SkuId, StateRecord, Timestamp};

/// The SKUs whose first sale had begun when the log ended; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Opened(Arc<Mutex<HashSet<SkuId>>>);

impl Opened {
    pub(crate) fn contains(&self, sku: SkuId) -> bool {
        self.lock().contains(&sku)
    }

    fn lock(&self) -> MutexGuard<'_, HashSet<SkuId>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A store whose log is watched as it is recovered.
pub(crate) struct Watched<S> {
    store: S,
    opened: Opened,
}

impl<S: Store> Watched<S> {
    pub(crate) fn new(store: S, opened: Opened) -> Self {
        Self { store, opened }
    }
}

impl<S: Store> Store for Watched<S> {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        let mut watching = Watching {
            replica,
            opened: &mut self.opened.lock(),
        };
        self.store.open(request, &mut watching, progress)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.store.commit(batch)
    }

    fn overdue(&mut self, now: Timestamp, limit: usize) -> Result<Vec<ReservationId>, StoreError> {
        self.store.overdue(now, limit)
    }

    fn linger(&self) -> Duration {
        self.store.linger()
    }

    fn idle_commit_after(&self) -> Option<Duration> {
        self.store.idle_commit_after()
    }

    fn close(&mut self) -> Result<(), StoreError> {
        self.store.close()
    }

    fn warnings(&self) -> Vec<String> {
        self.store.warnings()
    }
}

struct Watching<'a> {
    replica: &'a mut dyn Replica,
    opened: &'a mut HashSet<SkuId>,
}

impl Replica for Watching<'_> {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        if let StateRecord::Sku { sku, sale: 1.., .. } = record {
            self.opened.insert(*sku);
        }
        self.replica.restore(record)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        // What can't be decoded the replica refuses.
        for event in batch.events().flatten() {
            if let EventKind::GateSet { sku, sale: 1.., .. } = event.kind {
                self.opened.insert(sku);
            }
        }
        self.replica.apply(batch)
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        self.replica.export(out);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade::Engine;
    use stockade::store::{MemoryLog, MemoryStore};
    use stockade::types::{DefineSku, Gate, Rules, SetGate, SkuName, UserId};

    /// A log that is only a snapshot.
    struct Snapshot(Vec<StateRecord>);

    impl Store for Snapshot {
        fn open(
            &mut self,
            _: &OpenRequest,
            replica: &mut dyn Replica,
            _: &mut dyn FnMut(Progress),
        ) -> Result<Recovered, StoreError> {
            let mut all = self.0.iter();
            all.try_for_each(|record| replica.restore(record))
                .map_err(|error| StoreError::Fatal(error.to_string()))?;
            Ok(Recovered::default())
        }

        fn commit(&mut self, _: &Batch) -> Result<(), StoreError> {
            Ok(())
        }
    }

    #[test]
    fn what_a_snapshot_says_counts() {
        let sku = |number, sale| {
            let name = StateRecord::SkuName {
                sku: SkuId(number),
                name: SkuName::new(&format!("SKU-{number}")).expect("a name"),
            };
            let sku = StateRecord::Sku {
                sku: SkuId(number),
                defined_total: 1,
                total: 1,
                reserved: 0,
                sold: 0,
                rules: Rules::default(),
                sale,
                flags: 8,
            };
            [name, sku]
        };
        let opened = Opened::default();
        let store = Snapshot([sku(0, 0), sku(1, 3)].concat());
        let store = Watched::new(store, opened.clone());
        Engine::builder().store(store).build().expect("a state");
        assert!(!opened.contains(SkuId(0)) && opened.contains(SkuId(1)));
    }

    #[test]
    fn what_the_log_says_counts_and_what_comes_later_does_not() {
        let log = MemoryLog::default();
        let opened = Opened::default();
        for is_known in [false, true] {
            let store = Watched::new(MemoryStore::on(&log), opened.clone());
            let engine = Engine::builder().store(store).start().expect("starts");
            assert_eq!(opened.contains(SkuId(0)), is_known);
            assert!(!opened.contains(SkuId(1)), "a pause begins no sale");
            let handle = engine.handle();
            let admin = UserId::from_text("admin");
            for (name, gate) in [("A", Gate::Open), ("B", Gate::PauseReservations)] {
                let name = SkuName::new(name).expect("a name");
                let define = DefineSku::new(admin, name, 1);
                let sku = handle.define_sku(define).expect("room").wait();
                let set = SetGate::new(admin, sku.expect("defined"), gate);
                handle.set_gate(set).expect("room").wait().expect("set");
            }
            assert_eq!(opened.contains(SkuId(0)), is_known);
        }
    }
}
