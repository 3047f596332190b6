//! One cache, and what it has yet to hear: the SKUs whose stock it doesn't know, and the changes of reservations.
//!
//! I1: what is offered of a SKU is its newest committed stock. I2: changes are offered in order, each once; where one may
//! have been missed, `vouched_from` passes it before the next stock is offered.

use super::super::Shared;
use super::Patience;
use super::changes::Changes;
use crate::cache::{Cache, CacheEntry, ReservationChange};
use crate::types::{Batch, SkuId};
use std::collections::{BTreeSet, VecDeque};
use std::sync::Arc;
use std::time::Duration;

/// Of each kind in one call: some 4 MiB.
const STOCK_PER_CALL: usize = 4_096;
const CHANGES_PER_CALL: usize = 4_096;
/// Changes that wait for a cache that fails.
const CHANGES_MAX: usize = 65_536;
/// SKUs that are offered again at a time.
const REFRESH_MAX: usize = 10_000;

pub(super) struct Mirror {
    cache: Box<dyn Cache>,
    epoch: u64,
    shared: Arc<Shared>,
    unwritten: BTreeSet<SkuId>,
    /// For a cache that holds reservations.
    changes: Option<Changes>,
    waiting: VecDeque<ReservationChange>,
    vouched_from: u64,
    refresh_every: Option<Duration>,
    /// By monotonic time.
    refresh_at: Option<Duration>,
    /// The SKU that a refresh begins with.
    refresh_from: usize,
    patience: Patience,
}

impl Mirror {
    pub(super) fn new(cache: Box<dyn Cache>, epoch: u64, shared: &Arc<Shared>) -> Self {
        let refresh_every = cache.refresh_every();
        let changes = cache.holds_reservations().then(|| Changes::new(epoch));
        let mut mirror = Self {
            cache,
            epoch,
            shared: Arc::clone(shared),
            unwritten: BTreeSet::new(),
            changes,
            waiting: VecDeque::new(),
            vouched_from: 0,
            refresh_every,
            refresh_at: refresh_every.map(|_| Duration::ZERO),
            refresh_from: 0,
            patience: Patience::default(),
        };
        mirror.offer_all_again();
        mirror
    }

    pub(super) fn patience(&self) -> &Patience {
        &self.patience
    }

    pub(super) fn is_done(&self) -> bool {
        self.unwritten.is_empty() && self.waiting.is_empty()
    }

    /// When there is something to offer, by monotonic time.
    pub(super) fn due(&self) -> Option<Duration> {
        let offer = (!self.is_done()).then_some(Duration::ZERO);
        let first = offer.into_iter().chain(self.refresh_at).min()?;
        Some(first.max(self.patience.not_before))
    }

    /// Takes what has changed. With `missed`, batches before these never arrived.
    pub(super) fn take(
        &mut self,
        changed: &BTreeSet<SkuId>,
        missed: bool,
        batches: &VecDeque<Arc<Batch>>,
    ) {
        self.unwritten.extend(changed);
        let Some(changes) = &mut self.changes else {
            return;
        };
        let mut missed = missed;
        for batch in batches {
            missed |= !changes.read(batch, &self.shared.reads, &mut self.waiting);
        }
        if missed || self.waiting.len() > CHANGES_MAX {
            self.miss();
        }
    }

    /// What was read up to now may not have reached the cache: nothing vouches for it any more.
    fn miss(&mut self) {
        self.waiting.clear();
        if let Some(changes) = &self.changes {
            self.vouched_from = changes.next_sequence();
            self.offer_all_again();
        }
    }

    fn offer_all_again(&mut self) {
        self.unwritten.extend(self.shared.reads.ids());
    }

    /// Offers what is there.
    ///
    /// # Errors
    /// What the cache said. The stock stays to be offered.
    pub(super) fn offer(&mut self, now: Duration) -> Result<(), String> {
        if self.refresh_at.is_some_and(|at| at <= now) {
            self.refresh(now);
        }
        if self.is_done() {
            return Ok(());
        }
        let skus: Vec<SkuId> = std::mem::take(&mut self.unwritten).into_iter().collect();
        let mut rest = &skus[..];
        while !(rest.is_empty() && self.waiting.is_empty()) {
            let (head, tail) = rest.split_at(rest.len().min(STOCK_PER_CALL));
            let stock: Vec<CacheEntry> = head.iter().filter_map(|&sku| self.entry(sku)).collect();
            let len = self.waiting.len().min(CHANGES_PER_CALL);
            let changes: Vec<ReservationChange> = self.waiting.drain(..len).collect();
            if let Err(error) = self.cache.put(&stock, &changes) {
                self.unwritten.extend(rest);
                self.miss();
                self.patience.failed(now);
                return Err(error.to_string());
            }
            rest = tail;
        }
        self.patience.succeeded();
        Ok(())
    }

    fn entry(&self, sku: SkuId) -> Option<CacheEntry> {
        Some(CacheEntry {
            name: self.shared.reads.name(sku)?,
            epoch: self.epoch,
            availability: self.shared.reads.availability(sku)?,
            reservations_from: self.vouched_from,
        })
    }

    fn refresh(&mut self, now: Duration) {
        self.refresh_at = self.refresh_every.map(|every| now.saturating_add(every));
        if self.shared.is_stalled(now) {
            // Another writer may have the role: what is known runs out.
            return;
        }
        let skus = self.shared.reads.ids();
        let len = skus.len();
        self.unwritten
            .extend(skus.skip(self.refresh_from).take(REFRESH_MAX));
        self.refresh_from += REFRESH_MAX;
        if self.refresh_from >= len {
            self.refresh_from = 0;
        }
    }
}
