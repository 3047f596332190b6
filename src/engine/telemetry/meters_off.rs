//! The meters without the feature `metrics`: nothing.
#![expect(clippy::unused_self, reason = "the face of the meters that count")]

use super::super::reads::Reads;
use crate::types::{Availability, RefusalCode};
use std::time::Duration;

pub(super) struct Meters;

impl Meters {
    pub(super) fn new(_: &str) -> Self {
        Self
    }

    pub(super) fn started(&self, _: usize, _: &Reads) {}
    pub(super) fn queue_depth(&self, _: impl FnOnce() -> usize) {}
    pub(super) fn counted(&self, _: u64, _: u64, _: &[(RefusalCode, u64)], _: u64) {}
    pub(super) fn answered(&self, _: Duration) {}
    pub(super) fn committed(&self, _: Duration, _: &[Availability], _: &Reads) {}
    pub(super) fn oversold(&self, _: u64) {}
    pub(super) fn state(&self, _: u8) {}
    pub(super) fn warnings(&self, _: usize) {}
}
