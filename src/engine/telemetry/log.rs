//! What is told to `tracing`: [`telemetry`](super) lists it.

use crate::store::Recovered;
use crate::types::Batch;
use std::time::Duration;
use tracing::span::EnteredSpan;
use tracing::{debug, error, info, info_span, warn};

pub(in crate::engine) type Recovery = EnteredSpan;

pub(super) struct Log {
    engine: String,
}

impl Log {
    pub(super) fn new(engine: &str) -> Self {
        Self {
            engine: engine.to_owned(),
        }
    }

    pub(super) fn recovering(&self) -> Recovery {
        let span = info_span!(target: "stockade", "recovery", engine = self.engine).entered();
        info!(target: "stockade", engine = self.engine, "recovering");
        span
    }

    pub(super) fn progress(&self) -> impl FnMut(u64) + use<> {
        let engine = self.engine.clone();
        move |percent| info!(target: "stockade", engine, percent, "recovering")
    }

    pub(super) fn recovered(&self, recovered: &Recovered) {
        info!(
            target: "stockade",
            engine = self.engine,
            epoch = recovered.token.epoch,
            batches = recovered.batches_read,
            events = recovered.events_read,
            "recovered"
        );
    }

    pub(super) fn started(&self, sequence: u64) {
        info!(target: "stockade", engine = self.engine, sequence, "started");
    }

    pub(super) fn slow_commit(&self, batch: u64, took: Duration) {
        let seconds = took.as_secs_f64();
        warn!(target: "stockade", engine = self.engine, batch, seconds, "slow commit");
    }

    pub(super) fn batch(&self, batch: &Batch, requests: usize, took: Duration) {
        debug!(
            target: "stockade",
            engine = self.engine,
            number = batch.header.number,
            requests,
            events = batch.event_records().len(),
            commit_seconds = took.as_secs_f64(),
            "batch"
        );
    }

    pub(super) fn drains(&self) {
        info!(target: "stockade", engine = self.engine, "draining");
    }

    pub(super) fn stopped(&self) {
        info!(target: "stockade", engine = self.engine, "stopped");
    }

    pub(super) fn halted(&self, reason: &str) {
        error!(target: "stockade", engine = self.engine, reason, "halted");
    }

    pub(super) fn degraded(&self, kind: &str, warning: &str) {
        warn!(target: "stockade", engine = self.engine, kind, warning, "degraded");
    }

    pub(super) fn lifted(&self, kind: &str) {
        info!(target: "stockade", engine = self.engine, kind, "warning lifted");
    }
}
