//! What anybody may read at any time: the SKUs by name, and their stock as of the last commit.
//!
//! Stock lies in one [`SnapshotCell`] per SKU, written by whoever answers a batch, before it answers; a reader never
//! waits, not even for a writer that was preempted in mid-write. Cells come in chunks that never move.

use crate::sync::SnapshotCell;
use crate::types::{Availability, SkuId, SkuName, Timestamp};
use parking_lot::RwLock;
use std::collections::HashMap;
use std::sync::OnceLock;

const CHUNK: usize = 64;
const WORDS: usize = 7;
/// Stands for no `not_before`.
const NEVER: u64 = u64::MAX;

type Cell = OnceLock<SnapshotCell<WORDS>>;

pub(super) struct Reads {
    chunks: Box<[OnceLock<Box<[Cell; CHUNK]>>]>,
    names: RwLock<Names>,
}

#[derive(Default)]
struct Names {
    ids: HashMap<SkuName, SkuId>,
    names: Vec<SkuName>,
}

impl Reads {
    pub(super) fn new(skus_max: u32) -> Self {
        let chunks = (skus_max as usize).div_ceil(CHUNK);
        Self {
            chunks: (0..chunks).map(|_| OnceLock::new()).collect(),
            names: RwLock::default(),
        }
    }

    #[inline]
    pub(super) fn availability(&self, sku: SkuId) -> Option<Availability> {
        let index = sku.0 as usize;
        let cell = self.chunks.get(index / CHUNK)?.get()?[index % CHUNK].get()?;
        let [
            available,
            reserved,
            sold,
            total,
            sequence,
            as_of,
            not_before,
        ] = cell.load();
        Some(Availability {
            sku,
            available,
            reserved,
            sold,
            total,
            sequence,
            as_of: Timestamp::from_micros(as_of),
            not_before: (not_before != NEVER).then(|| Timestamp::from_micros(not_before)),
        })
    }

    /// Called by one thread at a time.
    pub(super) fn publish(&self, stock: &Availability) {
        let words = [
            stock.available,
            stock.reserved,
            stock.sold,
            stock.total,
            stock.sequence,
            stock.as_of.as_micros(),
            stock.not_before.map_or(NEVER, Timestamp::as_micros),
        ];
        let index = stock.sku.0 as usize;
        let Some(chunk) = self.chunks.get(index / CHUNK) else {
            return;
        };
        let chunk = chunk.get_or_init(|| Box::new(std::array::from_fn(|_| OnceLock::new())));
        let cell = &chunk[index % CHUNK];
        match cell.get() {
            Some(cell) => cell.store(&words),
            None => {
                cell.get_or_init(|| SnapshotCell::new(&words));
            }
        }
    }

    /// SKUs become known by name when the batch that defines them is committed.
    pub(super) fn add_names(&self, new: &mut Vec<(SkuId, SkuName)>) {
        if new.is_empty() {
            return;
        }
        let mut names = self.names.write();
        for (id, name) in new.drain(..) {
            names.ids.insert(name.clone(), id);
            names.names.push(name);
        }
    }

    pub(super) fn sku(&self, name: &SkuName) -> Option<SkuId> {
        self.names.read().ids.get(name).copied()
    }

    pub(super) fn name(&self, sku: SkuId) -> Option<SkuName> {
        self.names.read().names.get(sku.0 as usize).cloned()
    }

    /// All of them, as of now.
    pub(super) fn ids(&self) -> impl ExactSizeIterator<Item = SkuId> + use<> {
        let len = u32::try_from(self.names.read().names.len()).unwrap_or(u32::MAX);
        (0..len).map(SkuId)
    }

    pub(super) fn skus(&self) -> Vec<(SkuId, SkuName)> {
        (0..)
            .map(SkuId)
            .zip(self.names.read().names.iter().cloned())
            .collect()
    }
}
