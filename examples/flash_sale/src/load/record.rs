//! What a crowd met: counts, latencies from the intended start, and refusals by code.

use hdrhistogram::Histogram;
use serde::Serialize;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// What a request is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(usize)]
pub(crate) enum Kind {
    Read,
    Reserve,
    Checkout,
}

const KINDS: usize = 3;
/// Latencies up to a minute, in microseconds, to three digits.
const LATENCY_MAX_US: u64 = 60_000_000;

/// How a request ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Ending {
    /// As wished.
    Done,
    /// A refusal that belongs to a sale, by its code.
    Refused(String),
    /// No answer, or one that no client should get: its code or what went wrong.
    Failed(String),
}

/// Of one kind.
#[derive(Debug, Clone)]
struct Series {
    latency_us: Histogram<u64>,
    done: u64,
    failed: u64,
}

impl Series {
    fn new() -> Self {
        // The bounds are constants that the histogram takes; a default has the same precision.
        let latency_us = Histogram::new_with_bounds(1, LATENCY_MAX_US, 3);
        Self {
            latency_us: latency_us.unwrap_or_else(|_| unreachable!("constant bounds")),
            done: 0,
            failed: 0,
        }
    }

    fn clear(&mut self) {
        self.latency_us.reset();
        self.done = 0;
        self.failed = 0;
    }
}

/// Over some time.
#[derive(Debug, Clone)]
struct Tally {
    series: [Series; KINDS],
    refusals: BTreeMap<String, u64>,
    failures: BTreeMap<String, u64>,
    held_up: u64,
}

impl Tally {
    fn new() -> Self {
        Self {
            series: [Series::new(), Series::new(), Series::new()],
            refusals: BTreeMap::new(),
            failures: BTreeMap::new(),
            held_up: 0,
        }
    }
}

/// Latencies and rate of one kind, as a report shows them.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, serde::Deserialize)]
pub(crate) struct Figures {
    pub(crate) count: u64,
    pub(crate) rps: f64,
    pub(crate) p50_ms: f64,
    pub(crate) p95_ms: f64,
    pub(crate) p99_ms: f64,
    pub(crate) max_ms: f64,
    pub(crate) errors: u64,
}

impl Figures {
    #[expect(clippy::cast_precision_loss, reason = "for display")]
    fn of(series: &Series, over: Duration) -> Self {
        let latency = &series.latency_us;
        let ms = |quantile| latency.value_at_quantile(quantile) as f64 / 1_000.0;
        let count = latency.len();
        Self {
            count,
            rps: (count as f64 / over.as_secs_f64().max(1e-9) * 10.0).round() / 10.0,
            p50_ms: ms(0.50),
            p95_ms: ms(0.95),
            p99_ms: ms(0.99),
            max_ms: latency.max() as f64 / 1_000.0,
            errors: series.failed,
        }
    }
}

/// Everything that a crowd met.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Outcome {
    pub(crate) seconds: f64,
    pub(crate) reads: Figures,
    pub(crate) reserve: Figures,
    pub(crate) checkout: Figures,
    /// Reservations that were answered with 201.
    pub(crate) reserved: u64,
    /// Checkouts that were answered with 200.
    pub(crate) ordered: u64,
    pub(crate) refusals: BTreeMap<String, u64>,
    pub(crate) failures: BTreeMap<String, u64>,
    /// Reservations and checkouts that waited long for a free connection of the crowd.
    pub(crate) held_up: u64,
}

/// Takes in what any thread met: in all, and since it was last looked at.
pub(crate) struct Recorder {
    inner: Mutex<(Tally, [Series; KINDS])>,
}

impl Recorder {
    pub(crate) fn new() -> Self {
        let window = [Series::new(), Series::new(), Series::new()];
        Self {
            inner: Mutex::new((Tally::new(), window)),
        }
    }

    fn lock(&self) -> MutexGuard<'_, (Tally, [Series; KINDS])> {
        // Counts are whole at every step, whatever panicked elsewhere.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// One request, `latency` after its intended start.
    pub(crate) fn record(&self, kind: Kind, latency: Duration, ending: &Ending) {
        self.record_all(kind, &[latency], ending);
    }

    /// Several that ended alike.
    pub(crate) fn record_all(&self, kind: Kind, latencies: &[Duration], ending: &Ending) {
        let mut inner = self.lock();
        let (total, window) = &mut *inner;
        for series in [&mut total.series[kind as usize], &mut window[kind as usize]] {
            for latency in latencies {
                let us = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
                series.latency_us.saturating_record(us.max(1));
            }
            let count = latencies.len() as u64;
            match ending {
                Ending::Done => series.done += count,
                Ending::Failed(_) => series.failed += count,
                Ending::Refused(_) => {}
            }
        }
        let codes = match ending {
            Ending::Done => return,
            Ending::Refused(code) => (&mut total.refusals, code),
            Ending::Failed(what) => (&mut total.failures, what),
        };
        *codes.0.entry(codes.1.clone()).or_default() += latencies.len() as u64;
    }

    /// One that waited long for a free connection.
    pub(crate) fn record_held_up(&self) {
        self.lock().0.held_up += 1;
    }

    /// The figures since the last call, by kind.
    pub(crate) fn take_window(&self, over: Duration) -> [Figures; KINDS] {
        let mut inner = self.lock();
        let figures = [0, 1, 2].map(|kind| Figures::of(&inner.1[kind], over));
        inner.1.iter_mut().for_each(Series::clear);
        figures
    }

    /// The figures from the beginning.
    pub(crate) fn outcome(&self, over: Duration) -> Outcome {
        let inner = self.lock();
        let total = &inner.0;
        let figures = |kind: Kind| Figures::of(&total.series[kind as usize], over);
        Outcome {
            seconds: over.as_secs_f64(),
            reads: figures(Kind::Read),
            reserve: figures(Kind::Reserve),
            checkout: figures(Kind::Checkout),
            reserved: total.series[Kind::Reserve as usize].done,
            ordered: total.series[Kind::Checkout as usize].done,
            refusals: total.refusals.clone(),
            failures: total.failures.clone(),
            held_up: total.held_up,
        }
    }
}

impl Outcome {
    /// As a table for people.
    pub(crate) fn print(&self) {
        println!(
            "{:<9} {:>10} {:>11} {:>9} {:>9} {:>9} {:>9} {:>7}",
            "", "count", "per second", "p50 ms", "p95 ms", "p99 ms", "max ms", "errors"
        );
        for (name, figures) in [
            ("reads", &self.reads),
            ("reserve", &self.reserve),
            ("checkout", &self.checkout),
        ] {
            if figures.count > 0 {
                println!(
                    "{name:<9} {:>10} {:>11.0} {:>9.2} {:>9.2} {:>9.2} {:>9.2} {:>7}",
                    figures.count,
                    figures.rps,
                    figures.p50_ms,
                    figures.p95_ms,
                    figures.p99_ms,
                    figures.max_ms,
                    figures.errors
                );
            }
        }
        for (what, codes) in [("refused", &self.refusals), ("failed", &self.failures)] {
            if !codes.is_empty() {
                let codes: Vec<String> = codes
                    .iter()
                    .map(|(code, count)| format!("{code} {count}"))
                    .collect();
                println!("{what}: {}", codes.join(", "));
            }
        }
        if self.held_up > 0 {
            println!(
                "{} waited long for a free connection, which their latency holds: see --write-connections and --checkout-connections",
                self.held_up
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refusals_are_no_errors_and_a_window_starts_anew() {
        let recorder = Recorder::new();
        let second = Duration::from_secs(1);
        recorder.record(Kind::Reserve, Duration::from_millis(2), &Ending::Done);
        recorder.record(
            Kind::Reserve,
            Duration::from_millis(4),
            &Ending::Refused("sold_out".into()),
        );
        recorder.record(Kind::Read, second, &Ending::Failed("timeout".into()));
        let [reads, reserve, _] = recorder.take_window(second);
        assert_eq!((reads.count, reads.errors), (1, 1));
        assert_eq!((reserve.count, reserve.errors), (2, 0));
        assert_eq!(recorder.take_window(second)[1].count, 0);
        let outcome = recorder.outcome(second);
        assert_eq!((outcome.reserved, outcome.reserve.count), (1, 2));
        assert_eq!(outcome.refusals["sold_out"], 1);
    }
}
