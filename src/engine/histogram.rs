//! Durations, counted in buckets that anybody may read while one thread counts: 8 buckets for each power of two of
//! microseconds, so a percentile is at most 12.5 % too high.

use super::health::Percentiles;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

const SUB_SHIFT: u32 = 3;
const SUBS: u64 = 1 << SUB_SHIFT;
/// Up to 2^40 microseconds, some 12 days.
const BUCKETS: usize = (40 - SUB_SHIFT as usize + 1) << SUB_SHIFT;

pub(super) struct Histogram {
    buckets: Box<[AtomicU64; BUCKETS]>,
    max_micros: AtomicU64,
}

impl Histogram {
    pub(super) fn new() -> Self {
        let buckets = Box::new(std::array::from_fn(|_| AtomicU64::new(0)));
        Self {
            buckets,
            max_micros: AtomicU64::new(0),
        }
    }

    pub(super) fn record(&self, duration: Duration) {
        let micros = u64::try_from(duration.as_micros()).unwrap_or(u64::MAX);
        self.buckets[bucket_of(micros)].fetch_add(1, Ordering::Relaxed);
        self.max_micros.fetch_max(micros, Ordering::Relaxed);
    }

    pub(super) fn percentiles(&self) -> Percentiles {
        let counts: Vec<u64> = self
            .buckets
            .iter()
            .map(|bucket| bucket.load(Ordering::Relaxed))
            .collect();
        let max = self.max_micros.load(Ordering::Relaxed);
        let total: u64 = counts.iter().sum();
        let at = |percent: u64| {
            let rank = (total * percent).div_ceil(100).max(1);
            let mut seen = 0;
            let bucket = counts.iter().position(|count| {
                seen += count;
                seen >= rank
            });
            Duration::from_micros(bucket.map_or(0, upper_end).min(max))
        };
        Percentiles {
            p50: at(50),
            p95: at(95),
            p99: at(99),
            max: Duration::from_micros(max),
        }
    }
}

/// Values below 8 have a bucket each; then 8 to each power of two.
#[expect(
    clippy::cast_possible_truncation,
    reason = "bounded by the number of buckets"
)]
fn bucket_of(micros: u64) -> usize {
    if micros < SUBS {
        return micros as usize;
    }
    let power = u64::from(micros.ilog2() - SUB_SHIFT);
    let bucket = (power + 1) * SUBS + ((micros >> power) - SUBS);
    (bucket as usize).min(BUCKETS - 1)
}

/// The largest value of a bucket.
fn upper_end(bucket: usize) -> u64 {
    let bucket = bucket as u64;
    if bucket < SUBS {
        return bucket;
    }
    let power = bucket / SUBS - 1;
    ((bucket % SUBS + SUBS + 1) << power) - 1
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_value_lies_in_its_bucket_within_an_eighth() {
        for micros in (0..5_000).chain([1 << 20, (1 << 20) + 1, 999_999_999]) {
            let end = upper_end(bucket_of(micros));
            assert!(
                end >= micros && end <= micros + micros / 8,
                "{micros}: {end}"
            );
        }
    }

    #[test]
    fn percentiles_of_a_known_series() {
        let histogram = Histogram::new();
        assert_eq!(histogram.percentiles(), Percentiles::default());
        (1..=100).for_each(|ms| histogram.record(Duration::from_millis(ms)));
        let found = histogram.percentiles();
        assert_eq!(found.max, Duration::from_millis(100));
        for (found, ms) in [(found.p50, 50), (found.p95, 95), (found.p99, 99)] {
            let micros = found.as_micros();
            assert!(
                (ms * 1_000..=ms * 1_125).contains(&micros),
                "{micros} for {ms} ms"
            );
        }
    }
}
