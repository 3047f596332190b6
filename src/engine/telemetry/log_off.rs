//! The log without the feature `tracing`: nothing.
#![expect(clippy::unused_self, reason = "the face of the log that speaks")]

use crate::store::Recovered;
use crate::types::Batch;
use std::time::Duration;

pub(in crate::engine) struct Recovery;

pub(super) struct Log;

impl Log {
    pub(super) fn new(_: &str) -> Self {
        Self
    }

    pub(super) fn recovering(&self) -> Recovery {
        Recovery
    }

    pub(super) fn progress(&self) -> impl FnMut(u64) + use<> {
        |_| {}
    }

    pub(super) fn recovered(&self, _: &Recovered) {}
    pub(super) fn started(&self, _: u64) {}
    pub(super) fn slow_commit(&self, _: u64, _: Duration) {}
    pub(super) fn batch(&self, _: &Batch, _: usize, _: Duration) {}
    pub(super) fn drains(&self) {}
    pub(super) fn stopped(&self) {}
    pub(super) fn halted(&self, _: &str) {}
    pub(super) fn degraded(&self, _: &str, _: &str) {}
    pub(super) fn lifted(&self, _: &str) {}
}
