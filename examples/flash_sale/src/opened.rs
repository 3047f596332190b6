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
