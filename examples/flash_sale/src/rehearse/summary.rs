//! The summary of a rehearsal, for people or as JSON.

use super::replay::Counts;
use super::tally::Tally;
use crate::audit::Verdict;
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;
use stockade::types::Availability;

/// See the module.
#[derive(Debug, Serialize)]
pub(crate) struct Summary<'a> {
    #[serde(flatten)]
    tally: Tally,
    #[serde(flatten)]
    counts: Counts,
    skus: usize,
    units: u64,
    sold: u64,
    available: u64,
    seconds: f64,
    audit: &'a Verdict,
}

impl<'a> Summary<'a> {
    pub(crate) fn new(
        tally: Tally,
        counts: Counts,
        stock: &[Availability],
        took: Duration,
        audit: &'a Verdict,
    ) -> Self {
        Self {
            tally,
            counts,
            skus: stock.len(),
            units: stock.iter().map(|stock| stock.total).sum(),
            sold: stock.iter().map(|stock| stock.sold).sum(),
            available: stock.iter().map(|stock| stock.available).sum(),
            seconds: took.as_secs_f64(),
            audit,
        }
    }

    pub(crate) fn print(&self, json: bool) -> Result<()> {
        if json {
            println!("{}", serde_json::to_string_pretty(self)?);
            return Ok(());
        }
        let counts = &self.counts;
        println!(
            "{} rows, {} carts: {} reserved and confirmed, {} refused",
            self.tally.rows, counts.carts, counts.reserved, counts.refused
        );
        println!(
            "{} cancellations: {} SKUs returned, {} refused because less was sold",
            counts.cancellations, counts.returns, counts.returns_refused
        );
        println!(
            "{} SKUs, {} units: {} sold, {} left",
            self.skus, self.units, self.sold, self.available
        );
        for (cause, finding) in &self.tally.findings {
            println!(
                "  {:>8} x {} (first on line {}: {})",
                finding.count,
                cause.text(),
                finding.first_line,
                finding.first_text.trim()
            );
        }
        println!(
            "{} commands in {:.2} s. {}",
            counts.commands, self.seconds, self.audit
        );
        Ok(())
    }
}
