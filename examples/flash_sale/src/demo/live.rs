//! The sale as it goes, in the terminal: a bar of the stock and the figures of the last moment.

use crate::load::record::Figures;
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};
use std::io::IsTerminal;
use std::time::{Duration, Instant};
use stockade::types::Availability;

const BAR_WIDTH: u64 = 60;
/// Without a terminal, a line after so long.
const LINE_EVERY: Duration = Duration::from_secs(2);

/// See the module.
pub(super) struct Live {
    bar: Option<ProgressBar>,
    last_line: Option<Instant>,
}

impl Live {
    /// On a terminal it draws in place, else it prints a line now and then.
    pub(super) fn new() -> Self {
        let bar = std::io::stderr().is_terminal().then(|| {
            let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
            if let Ok(style) = ProgressStyle::with_template("{msg}") {
                bar.set_style(style);
            }
            bar
        });
        Self {
            bar,
            last_line: None,
        }
    }

    /// Shows a moment.
    pub(super) fn show(&mut self, at: Duration, stock: &Availability, figures: &[Figures; 3]) {
        let [reads, reserve, checkout] = figures;
        let counts = format!(
            "{:>5.1} s  sold {:>6}  held {:>6}  available {:>6}",
            at.as_secs_f64(),
            stock.sold,
            stock.reserved,
            stock.available
        );
        let rates = format!(
            "reads {:>6.0}/s p95 {:>5.1} ms   reserves {:>5.0}/s p95 {:>5.1} ms   checkouts {:>5.0}/s p95 {:>5.1} ms",
            reads.rps, reads.p95_ms, reserve.rps, reserve.p95_ms, checkout.rps, checkout.p95_ms
        );
        if let Some(bar) = &self.bar {
            bar.set_message(format!("{counts}\n  {}\n  {rates}", stock_bar(stock)));
            bar.tick();
        } else if self
            .last_line
            .is_none_or(|last| last.elapsed() >= LINE_EVERY)
        {
            eprintln!("{counts}  {rates}");
            self.last_line = Some(Instant::now());
        }
    }

    /// Leaves the last picture standing.
    pub(super) fn finish(self) {
        if let Some(bar) = self.bar {
            bar.abandon();
        }
    }
}

/// Sold, held and available as shares of the total.
fn stock_bar(stock: &Availability) -> String {
    let cells = |units: u64| {
        let share = u128::from(units) * u128::from(BAR_WIDTH) / u128::from(stock.total.max(1));
        usize::try_from(share).unwrap_or(0)
    };
    let sold = cells(stock.sold);
    let taken = cells(stock.sold + stock.reserved);
    let all = cells(stock.total);
    format!(
        "{}{}{}",
        "\u{2588}".repeat(sold),
        "\u{2592}".repeat(taken - sold),
        "\u{2591}".repeat(all - taken)
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use stockade::types::{SkuId, Timestamp};

    #[test]
    fn the_bar_is_always_as_wide() {
        for (available, reserved, sold) in [(10, 0, 0), (3, 3, 4), (0, 0, 10), (0, 0, 0), (1, 9, 0)]
        {
            let stock = Availability {
                sku: SkuId(0),
                available,
                reserved,
                sold,
                total: available + reserved + sold,
                sequence: 1,
                as_of: Timestamp::MIN,
                not_before: None,
            };
            let expected = if stock.total == 0 { 0 } else { 60 };
            assert_eq!(stock_bar(&stock).chars().count(), expected);
        }
    }
}
