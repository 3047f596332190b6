//! What an engine tells a metrics recorder and a log: the features `metrics` and `tracing`.
//!
//! Both are facades: the program chooses and installs an exporter and a subscriber of its own, **before** it starts the
//! engine (what is registered with no recorder installed stays silent). Without the features nothing here does anything.
//! Nothing is emitted per request: a batch adds what it has counted, after its answers have gone out.
//!
//! # Metrics
//!
//! Each has the label `engine`, the name that the builder was given. Every name below is there from the start.
//!
//! | name | kind | unit | further labels | |
//! |---|---|---|---|---|
//! | `stockade_requests_total` | counter | requests | `outcome`: `accepted`, `query`, or a refusal's [code](crate::types::RefusalCode::name) | its rate is the request rate |
//! | `stockade_batches_total` | counter | batches | | committed ones |
//! | `stockade_events_total` | counter | events | | in them |
//! | `stockade_commit_seconds` | histogram | seconds | | one durable commit, with its retries |
//! | `stockade_batch_seconds` | histogram | seconds | | from taking a batch out of the queue to its answers |
//! | `stockade_queue_depth` | gauge | requests | | left in the queue when the last batch was taken |
//! | `stockade_queue_capacity` | gauge | requests | | how many fit |
//! | `stockade_oversell_count` | gauge | units | | 0, or the engine has halted: alert at once |
//! | `stockade_state` | gauge | | | 0 running, 1 draining, 2 stopped, 3 halted |
//! | `stockade_warnings` | gauge | warnings | | with any, a running engine is degraded |
//! | `stockade_stock_units` | gauge | units | `sku`; `state`: `available`, `reserved`, `sold` | as of the last batch that changed it |
//! | `stockade_depletion_total` | counter | units | `sku` | units that left `available`; its rate is the depletion rate |
//!
//! The depletion rate comes as a counter, because an engine without requests has no batch that could lower a gauge: the
//! last rate of a sold-out SKU would stand for ever. What leaves `available` and comes back within one batch does not
//! count. The first 1,024 SKUs have metrics of their own. A request that a full queue did not take was never the
//! engine's: who submits it counts it.
//!
//! # Log
//!
//! Events have the target `stockade` and the field `engine`.
//!
//! | level | message | fields |
//! |---|---|---|
//! | error | `halted` | `reason` |
//! | warn | `degraded` | `kind` (`clock`, `tail`, `commit`, `store`, `caches`, `sinks`), `warning`: a warning is new or changed |
//! | warn | `slow commit` | `batch`, `seconds`: beyond `stall_credit_after` |
//! | info | `recovering` | at the start of the span `recovery`, then with `percent` at each tenth that the store tells |
//! | info | `recovered` | `epoch`, `batches` and `events` that were read |
//! | info | `started` | `sequence`: that of the last event |
//! | info | `warning lifted` | `kind` |
//! | info | `draining`, `stopped` | |
//! | debug | `batch` | `number`, `requests`, `events`, `commit_seconds` |

#[cfg_attr(not(feature = "tracing"), path = "log_off.rs")]
mod log;
#[cfg_attr(not(feature = "metrics"), path = "meters_off.rs")]
mod meters;

use super::reads::Reads;
use super::turn::Turn;
use crate::store::{Progress, Recovered};
use crate::types::RefusalCode;
use log::Log;
use meters::Meters;
use std::time::Duration;

/// One engine's voice. Its methods are empty without the features, so call sites need no `cfg`.
pub(super) struct Telemetry {
    meters: Meters,
    log: Log,
}

impl Telemetry {
    pub(super) fn new(engine: &str) -> Self {
        Self {
            meters: Meters::new(engine),
            log: Log::new(engine),
        }
    }

    /// Until what is returned is dropped, the engine recovers.
    #[must_use = "the span ends when this is dropped"]
    pub(super) fn recovering(&self) -> log::Recovery {
        self.log.recovering()
    }

    /// To be told how far recovery is.
    pub(super) fn progress(&self) -> impl FnMut(Progress) + use<> {
        let mut progress = self.log.progress();
        let mut tenths = 0;
        move |now: Progress| {
            let reached = match now.total {
                Some(total) if total > 0 => now.done.saturating_mul(10) / total,
                _ => 0,
            };
            if reached > tenths {
                tenths = reached;
                progress(reached * 10);
            }
        }
    }

    pub(super) fn recovered(&self, recovered: &Recovered) {
        self.log.recovered(recovered);
    }

    pub(super) fn started(&self, sequence: u64, queue_capacity: usize, reads: &Reads) {
        self.meters.started(queue_capacity, reads);
        self.log.started(sequence);
    }

    /// A batch was taken; `depth` gives what it left.
    pub(super) fn taken(&self, depth: impl FnOnce() -> usize) {
        self.meters.queue_depth(depth);
    }

    pub(super) fn slow_commit(&self, number: u64, took: Duration) {
        self.log.slow_commit(number, took);
    }

    /// What the counters get.
    pub(super) fn counted(
        &self,
        (accepted, queries): (u64, u64),
        refused: &[(RefusalCode, u64)],
        events: u64,
    ) {
        self.meters.counted(accepted, queries, refused, events);
    }

    /// A batch took so long from the queue to its answers.
    pub(super) fn answered(&self, took: Duration) {
        self.meters.answered(took);
    }

    /// A turn of so many requests is over; `commit` is there if it had a batch.
    pub(super) fn finished(
        &self,
        turn: &Turn,
        requests: usize,
        commit: Option<Duration>,
        reads: &Reads,
    ) {
        if let Some(took) = commit {
            self.meters.committed(took, &turn.stock, reads);
            self.log.batch(&turn.batch, requests, took);
        }
    }

    pub(super) fn oversold(&self, units: u64) {
        self.meters.oversold(units);
    }

    pub(super) fn drains(&self) {
        self.meters.state(1);
        self.log.drains();
    }

    pub(super) fn stopped(&self) {
        self.meters.state(2);
        self.log.stopped();
    }

    pub(super) fn halted(&self, reason: &str) {
        self.meters.state(3);
        self.log.halted(reason);
    }

    pub(super) fn warnings(&self, count: usize) {
        self.meters.warnings(count);
    }

    /// The warning of one kind was set, changed or lifted, or is as it was.
    pub(super) fn warned(&self, kind: &str, before: Option<&str>, now: Option<&str>) {
        match (before, now) {
            (before, Some(warning)) if before != now => self.log.degraded(kind, warning),
            (Some(_), None) => self.log.lifted(kind),
            _ => {}
        }
    }
}
