//! `depletion_rate`: units per second that left a SKU's `available`, over the last ten seconds.
//!
//! A look each second: what leaves and comes back between two looks does not count, and an idle sale's rate falls to 0.

use super::app::App;
use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};
use stockade::types::SkuId;

const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Ten seconds lie between the first and the last.
const LOOKS_MAX: usize = 11;

/// The last looks, oldest first.
#[derive(Debug, Default)]
pub(crate) struct Depletion(Mutex<VecDeque<Look>>);

#[derive(Debug)]
struct Look {
    at: Instant,
    /// By SKU index.
    available: Vec<u64>,
}

impl Depletion {
    /// Looks until the server drains.
    pub(crate) async fn watch(app: &App) {
        let mut every = tokio::time::interval(LOOK_EVERY);
        every.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while !app.is_draining() {
            let at = every.tick().await.into_std();
            app.refresh();
            let names = app.catalogue.names();
            let stock = names.iter().map(|(id, _)| app.desk.availability(id));
            let available = stock.map(|stock| stock.map_or(0, |stock| stock.available));
            app.depletion.look(at, available.collect());
        }
    }

    fn look(&self, at: Instant, available: Vec<u64>) {
        let mut looks = self.lock();
        if looks.len() == LOOKS_MAX {
            looks.pop_front();
        }
        looks.push_back(Look { at, available });
    }

    /// Units per second; 0 before the second look.
    pub(crate) fn rate(&self, sku: SkuId) -> f64 {
        let looks = self.lock();
        let (Some(first), Some(last)) = (looks.front(), looks.back()) else {
            return 0.0;
        };
        let seconds = last.at.duration_since(first.at).as_secs_f64();
        let units = |look: &Look| look.available.get(sku.0 as usize).copied();
        let left: u64 = looks
            .iter()
            .zip(looks.iter().skip(1))
            .filter_map(|(before, after)| Some(units(before)?.saturating_sub(units(after)?)))
            .sum();
        if seconds > 0.0 {
            units_f64(left) / seconds
        } else {
            0.0
        }
    }

    fn lock(&self) -> MutexGuard<'_, VecDeque<Look>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[expect(clippy::cast_precision_loss, reason = "totals are at most 2^48")]
fn units_f64(units: u64) -> f64 {
    units as f64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_rate_is_what_left_in_the_last_ten_seconds() {
        let (depletion, start) = (Depletion::default(), Instant::now());
        let rate = |sku| depletion.rate(SkuId(sku));
        let look = |second, available: &[u64]| {
            depletion.look(start + Duration::from_secs(second), available.to_vec());
        };
        assert!(rate(0).abs() < 1e-9, "nothing is known");
        look(0, &[100]);
        assert!(rate(0).abs() < 1e-9, "one look");
        look(1, &[40, 7]);
        assert!((rate(0) - 60.0).abs() < 1e-9);
        assert!(
            rate(1).abs() < 1e-9,
            "a new SKU depletes from its first look on"
        );
        look(2, &[90, 0]);
        assert!((rate(0) - 30.0).abs() < 1e-9, "a restock gives none back");
        assert!((rate(1) - 3.5).abs() < 1e-9);
        (3..=12).for_each(|second| look(second, &[90, 0]));
        assert!(rate(0).abs() < 1e-9 && rate(1).abs() < 1e-9, "long ago");
    }
}
