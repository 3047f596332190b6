//! What is told to `metrics`: [`telemetry`](super) lists it. Every meter is looked up once, at the start or when its SKU
//! is first seen; after that a batch costs some dozen atomic operations.

use super::super::reads::Reads;
use crate::types::{Availability, RefusalCode};
use metrics::{
    Counter, Gauge, Histogram, Unit, counter, describe_counter, describe_gauge, describe_histogram,
    gauge, histogram,
};
use parking_lot::Mutex;
use std::time::Duration;

/// SKUs with meters of their own: recorders keep each label for ever.
const SKUS_MAX: usize = 1_024;

const REQUESTS: &str = "stockade_requests_total";
const BATCHES: &str = "stockade_batches_total";
const EVENTS: &str = "stockade_events_total";
const COMMIT: &str = "stockade_commit_seconds";
const BATCH: &str = "stockade_batch_seconds";
const QUEUE_DEPTH: &str = "stockade_queue_depth";
const QUEUE_CAPACITY: &str = "stockade_queue_capacity";
const OVERSELL_COUNT: &str = "stockade_oversell_count";
const STATE: &str = "stockade_state";
const WARNINGS: &str = "stockade_warnings";
const STOCK: &str = "stockade_stock_units";
const DEPLETION: &str = "stockade_depletion_total";

pub(super) struct Meters {
    engine: String,
    accepted: Counter,
    queries: Counter,
    /// In the order of [`RefusalCode::ALL`], which is that of their numbers.
    refused: Vec<(RefusalCode, Counter)>,
    batches: Counter,
    events: Counter,
    commit: Histogram,
    batch: Histogram,
    queue_depth: Gauge,
    queue_capacity: Gauge,
    oversell_count: Gauge,
    state: Gauge,
    warnings: Gauge,
    /// By SKU index. Whoever finishes a batch has the lock, and nobody else wants it.
    skus: Mutex<Vec<SkuMeters>>,
}

struct SkuMeters {
    available: Gauge,
    reserved: Gauge,
    sold: Gauge,
    depletion: Counter,
    was_available: u64,
}

impl Meters {
    pub(super) fn new(engine: &str) -> Self {
        describe();
        let label = || [("engine", engine.to_owned())];
        let requests = |outcome: &'static str| counter!(REQUESTS, "engine" => engine.to_owned(), "outcome" => outcome);
        let refused = RefusalCode::ALL
            .iter()
            .map(|&code| (code, requests(code.name())));
        let meters = Self {
            engine: engine.to_owned(),
            accepted: requests("accepted"),
            queries: requests("query"),
            refused: refused.collect(),
            batches: counter!(BATCHES, &label()),
            events: counter!(EVENTS, &label()),
            commit: histogram!(COMMIT, &label()),
            batch: histogram!(BATCH, &label()),
            queue_depth: gauge!(QUEUE_DEPTH, &label()),
            queue_capacity: gauge!(QUEUE_CAPACITY, &label()),
            oversell_count: gauge!(OVERSELL_COUNT, &label()),
            state: gauge!(STATE, &label()),
            warnings: gauge!(WARNINGS, &label()),
            skus: Mutex::default(),
        };
        for zero in [
            &meters.queue_depth,
            &meters.oversell_count,
            &meters.state,
            &meters.warnings,
        ] {
            zero.set(0.0);
        }
        meters
    }

    pub(super) fn started(&self, queue_capacity: usize, reads: &Reads) {
        self.queue_capacity.set(float(queue_capacity as u64));
        let ids = reads.skus().into_iter().map(|(id, _)| id);
        let stock: Vec<Availability> = ids.filter_map(|id| reads.availability(id)).collect();
        self.stock(&stock, reads);
    }

    pub(super) fn queue_depth(&self, depth: impl FnOnce() -> usize) {
        self.queue_depth.set(float(depth() as u64));
    }

    pub(super) fn counted(
        &self,
        accepted: u64,
        queries: u64,
        refused: &[(RefusalCode, u64)],
        events: u64,
    ) {
        self.accepted.increment(accepted);
        self.queries.increment(queries);
        self.events.increment(events);
        for (code, count) in refused {
            if let Ok(at) = self.refused.binary_search_by_key(code, |&(code, _)| code) {
                self.refused[at].1.increment(*count);
            }
        }
    }

    pub(super) fn answered(&self, took: Duration) {
        self.batch.record(took.as_secs_f64());
    }

    pub(super) fn committed(&self, took: Duration, stock: &[Availability], reads: &Reads) {
        self.batches.increment(1);
        self.commit.record(took.as_secs_f64());
        self.stock(stock, reads);
    }

    pub(super) fn oversold(&self, units: u64) {
        self.oversell_count.set(float(units));
    }

    pub(super) fn state(&self, state: u8) {
        self.state.set(f64::from(state));
    }

    pub(super) fn warnings(&self, count: usize) {
        self.warnings.set(float(count as u64));
    }

    fn stock(&self, stock: &[Availability], reads: &Reads) {
        let mut skus = self.skus.lock();
        for now in stock {
            let index = now.sku.0 as usize;
            // A batch that defines SKUs touches them in the order of their numbers, or not all of them.
            while skus.len() <= index.min(SKUS_MAX - 1) {
                let next = crate::types::SkuId(u32::try_from(skus.len()).unwrap_or(u32::MAX));
                let Some(name) = reads.name(next) else {
                    break;
                };
                skus.push(SkuMeters::new(&self.engine, name.as_str()));
            }
            if let Some(meters) = skus.get_mut(index) {
                meters.set(now);
            }
        }
    }
}

impl SkuMeters {
    fn new(engine: &str, sku: &str) -> Self {
        let units = |state: &'static str| gauge!(STOCK, "engine" => engine.to_owned(), "sku" => sku.to_owned(), "state" => state);
        Self {
            available: units("available"),
            reserved: units("reserved"),
            sold: units("sold"),
            depletion: counter!(DEPLETION, "engine" => engine.to_owned(), "sku" => sku.to_owned()),
            was_available: 0,
        }
    }

    fn set(&mut self, now: &Availability) {
        self.available.set(float(now.available));
        self.reserved.set(float(now.reserved));
        self.sold.set(float(now.sold));
        let left = self.was_available.saturating_sub(now.available);
        self.depletion.increment(left);
        self.was_available = now.available;
    }
}

fn describe() {
    describe_counter!(
        REQUESTS,
        Unit::Count,
        "Requests that were answered, by outcome"
    );
    describe_counter!(BATCHES, Unit::Count, "Batches that were committed");
    describe_counter!(EVENTS, Unit::Count, "Events in committed batches");
    describe_histogram!(
        COMMIT,
        Unit::Seconds,
        "One durable commit, with its retries"
    );
    describe_histogram!(
        BATCH,
        Unit::Seconds,
        "From taking a batch out of the queue to its answers"
    );
    describe_gauge!(
        QUEUE_DEPTH,
        Unit::Count,
        "Requests left in the queue when the last batch was taken"
    );
    describe_gauge!(
        QUEUE_CAPACITY,
        Unit::Count,
        "Requests that fit into the queue"
    );
    describe_gauge!(
        OVERSELL_COUNT,
        Unit::Count,
        "Units beyond a total; 0, or the engine has halted"
    );
    describe_gauge!(STATE, "0 running, 1 draining, 2 stopped, 3 halted");
    describe_gauge!(
        WARNINGS,
        Unit::Count,
        "Warnings; with any, a running engine is degraded"
    );
    describe_gauge!(STOCK, Unit::Count, "Units of a SKU by state");
    describe_counter!(DEPLETION, Unit::Count, "Units of a SKU that left available");
}

/// Exact: counts of units stay below 2^48, a float is exact to 2^53.
#[expect(clippy::cast_precision_loss, reason = "exact below 2^53")]
fn float(value: u64) -> f64 {
    value as f64
}
