//! Whether the engine is well, and what it has done: state, warnings and counters that anybody may read.

use super::histogram::Histogram;
use super::telemetry::Telemetry;
use crate::types::{Decision, RefusalCode};
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::time::Duration;

/// What the engine does.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
pub enum State {
    /// Decides and commits.
    Running,
    /// Takes no more commands; those it has are being answered.
    Draining,
    /// Ended in good order.
    Stopped,
    /// Stopped by itself, because going on might break a law. The text says why.
    Halted(String),
}

/// How the engine is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Health {
    /// What it does.
    pub state: State,
    /// What an operator should know.
    pub warnings: Vec<String>,
    /// A commit has been under way for longer than [`stall_credit_after`](super::EngineBuilder::stall_credit_after): decisions
    /// wait, and reads show what was last committed.
    pub is_stalled: bool,
}

impl Health {
    /// True while it decides, degraded or not.
    pub fn is_running(&self) -> bool {
        self.state == State::Running
    }

    /// True if it runs and there is a warning, or nothing can be committed.
    pub fn is_degraded(&self) -> bool {
        self.is_running() && (self.is_stalled || !self.warnings.is_empty())
    }
}

/// What the engine has done since it started.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Stats {
    /// Commands that were accepted.
    pub accepted: u64,
    /// Commands that were refused or deferred, by code.
    pub refused: BTreeMap<&'static str, u64>,
    /// Queries that were answered.
    pub queries: u64,
    /// Batches that were committed.
    pub batches: u64,
    /// Events in them.
    pub events: u64,
    /// Commands in the ring.
    pub queue_depth: u64,
    /// How many fit.
    pub queue_capacity: u64,
    /// Units sold beyond a total: 0, or the engine has halted.
    pub oversell_count: u64,
    /// Durations of commits: median, 95th and 99th percentile, and the longest.
    pub commit: Percentiles,
    /// From taking a batch out of the ring to its answers, likewise.
    pub batch: Percentiles,
}

/// Of many durations.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[expect(missing_docs, reason = "each is the percentile of that name")]
pub struct Percentiles {
    pub p50: Duration,
    pub p95: Duration,
    pub p99: Duration,
    pub max: Duration,
}

const RUNNING: u8 = 0;
const DRAINING: u8 = 1;
const STOPPED: u8 = 2;
const HALTED: u8 = 3;

const CODES: usize = 64;

/// The shared counterpart of [`Health`] and [`Stats`].
pub(super) struct Vitals {
    state: AtomicU8,
    halted: Mutex<String>,
    warnings: Mutex<BTreeMap<&'static str, String>>,
    accepted: AtomicU64,
    refused: [AtomicU64; CODES],
    queries: AtomicU64,
    batches: AtomicU64,
    events: AtomicU64,
    oversold: AtomicU64,
    pub(super) telemetry: Telemetry,
    pub(super) commit: Histogram,
    pub(super) batch: Histogram,
}

const _: () = assert!(
    (RefusalCode::ALL[RefusalCode::ALL.len() - 1] as usize) < CODES,
    "a code has no counter"
);

/// What one batch adds to the counters.
#[derive(Default)]
pub(super) struct Tally {
    accepted: u64,
    queries: u64,
    refused: Vec<(RefusalCode, u64)>,
}

impl Tally {
    pub(super) fn decided(&mut self, decision: &Decision) {
        let Decision::Refused(refusal) = decision else {
            self.accepted += 1;
            return;
        };
        let code = refusal.code();
        match self.refused.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => self.refused.push((code, 1)),
        }
    }

    pub(super) fn found(&mut self) {
        self.queries += 1;
    }
}

impl Vitals {
    pub(super) fn new(telemetry: Telemetry) -> Self {
        Self {
            state: AtomicU8::new(RUNNING),
            halted: Mutex::default(),
            warnings: Mutex::default(),
            accepted: AtomicU64::new(0),
            refused: std::array::from_fn(|_| AtomicU64::new(0)),
            queries: AtomicU64::new(0),
            batches: AtomicU64::new(0),
            events: AtomicU64::new(0),
            oversold: AtomicU64::new(0),
            telemetry,
            commit: Histogram::new(),
            batch: Histogram::new(),
        }
    }

    /// True while commands are taken.
    #[inline]
    pub(super) fn is_open(&self) -> bool {
        self.state.load(Ordering::Acquire) == RUNNING
    }

    pub(super) fn has_halted(&self) -> bool {
        self.state.load(Ordering::Acquire) == HALTED
    }

    pub(super) fn drain(&self) {
        if self.step(RUNNING, DRAINING) {
            self.telemetry.drains();
        }
    }

    pub(super) fn stop(&self) {
        if self.step(DRAINING, STOPPED) {
            self.telemetry.stopped();
        }
    }

    fn step(&self, from: u8, to: u8) -> bool {
        self.state
            .compare_exchange(from, to, Ordering::AcqRel, Ordering::Acquire)
            .is_ok()
    }

    /// The first reason stays.
    pub(super) fn halt(&self, reason: String) {
        let mut halted = self.halted.lock();
        if self.state.swap(HALTED, Ordering::AcqRel) == HALTED {
            return;
        }
        let told = reason.clone();
        *halted = reason;
        // A subscriber may ask for the health.
        drop(halted);
        self.telemetry.halted(&told);
    }

    pub(super) fn oversold(&self, units: u64) {
        let before = self.oversold.fetch_add(units, Ordering::Relaxed);
        self.telemetry.oversold(before + units);
    }

    /// Sets or, with `None`, lifts the warning of one kind.
    pub(super) fn warn(&self, kind: &'static str, text: Option<String>) {
        let mut warnings = self.warnings.lock();
        let now = text.clone();
        let before = match text {
            Some(text) => warnings.insert(kind, text),
            None => warnings.remove(kind),
        };
        self.telemetry.warnings(warnings.len());
        drop(warnings);
        self.telemetry
            .warned(kind, before.as_deref(), now.as_deref());
    }

    /// Sets the warning of one kind to all of these, or lifts it if there are none.
    pub(super) fn warn_all(&self, kind: &'static str, texts: &[String]) {
        self.warn(kind, (!texts.is_empty()).then(|| texts.join("; ")));
    }

    pub(super) fn state(&self) -> State {
        match self.state.load(Ordering::Acquire) {
            RUNNING => State::Running,
            DRAINING => State::Draining,
            STOPPED => State::Stopped,
            _ => State::Halted(self.halted.lock().clone()),
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.warnings.lock().values().cloned().collect()
    }

    pub(super) fn count(&self, tally: &mut Tally, events: u64, is_committed: bool) {
        let both = (tally.accepted, tally.queries);
        self.telemetry.counted(both, &tally.refused, events);
        let add = |counter: &AtomicU64, units| {
            if units > 0 {
                counter.fetch_add(units, Ordering::Relaxed);
            }
        };
        add(&self.accepted, std::mem::take(&mut tally.accepted));
        add(&self.queries, std::mem::take(&mut tally.queries));
        add(&self.batches, u64::from(is_committed));
        add(&self.events, events);
        for (code, count) in tally.refused.drain(..) {
            add(&self.refused[code as usize], count);
        }
    }

    pub(super) fn stats(&self, queue_depth: usize, queue_capacity: usize) -> Stats {
        let load = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        let refused = RefusalCode::ALL
            .iter()
            .map(|&code| (code.name(), load(&self.refused[code as usize])));
        Stats {
            accepted: load(&self.accepted),
            refused: refused.filter(|&(_, count)| count > 0).collect(),
            queries: load(&self.queries),
            batches: load(&self.batches),
            events: load(&self.events),
            queue_depth: queue_depth as u64,
            queue_capacity: queue_capacity as u64,
            oversell_count: load(&self.oversold),
            commit: self.commit.percentiles(),
            batch: self.batch.percentiles(),
        }
    }
}
