//! The report of a sale: `report.json`, and `report.html` made from it, which needs nothing else to be read.

mod html;
mod plot;

use crate::audit::Verdict;
use crate::load::record::Figures;
use anyhow::{Context, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

/// `flash-sale report`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The report.json
    #[arg(default_value = "flash-sale-report/report.json")]
    json: PathBuf,
    /// Where to write the page; by default beside the JSON
    #[arg(long, value_name = "FILE.html")]
    html: Option<PathBuf>,
}

/// Everything that a report says.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Report {
    pub(crate) sku_id: String,
    /// RFC 3339.
    pub(crate) started_at: String,
    pub(crate) seconds: f64,
    /// From the first request until nothing was left to sell or to lapse.
    pub(crate) sold_out_after_s: Option<f64>,
    pub(crate) units: u64,
    pub(crate) sold: u64,
    pub(crate) reserved: u64,
    pub(crate) available: u64,
    pub(crate) oversell_count: u64,
    pub(crate) reads: Figures,
    pub(crate) reserve: Figures,
    pub(crate) checkout: Figures,
    pub(crate) refusals: BTreeMap<String, u64>,
    pub(crate) failures: BTreeMap<String, u64>,
    pub(crate) receipts: Receipts,
    pub(crate) audit: Verdict,
    pub(crate) engine: EngineFigures,
    pub(crate) settings: Settings,
    pub(crate) warnings: Vec<String>,
    pub(crate) samples: Vec<Sample>,
}

/// What clients were told, looked up in the journal.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Receipts {
    /// Reservations that were answered with 201.
    pub(crate) reservations: u64,
    /// Orders that were answered with 200.
    pub(crate) orders: u64,
    /// Of these, how many the journal doesn't know, or knows otherwise.
    pub(crate) missing: u64,
    /// The first of them.
    pub(crate) first_missing: Option<String>,
    /// Holds that lapsed, and whose units were sold again.
    pub(crate) lapsed: u64,
}

/// What the engine says of itself.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct EngineFigures {
    pub(crate) accepted: u64,
    pub(crate) refused: u64,
    pub(crate) batches: u64,
    pub(crate) commit_p50_ms: f64,
    pub(crate) commit_p99_ms: f64,
    pub(crate) commit_max_ms: f64,
}

/// How the sale was set up.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) hold_s: f64,
    pub(crate) per_user: u32,
    pub(crate) reads_per_s: f64,
    pub(crate) reserves_per_s: f64,
    pub(crate) abandon: f64,
    pub(crate) cores: usize,
}

/// One moment.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Sample {
    /// Since the first request.
    pub(crate) at_s: f64,
    pub(crate) available: u64,
    pub(crate) reserved: u64,
    pub(crate) sold: u64,
    pub(crate) reads_rps: f64,
    pub(crate) reserve_rps: f64,
    pub(crate) checkout_rps: f64,
    pub(crate) reads_p95_ms: f64,
    pub(crate) reserve_p95_ms: f64,
    pub(crate) checkout_p95_ms: f64,
}

impl Report {
    /// True if nothing was oversold, no answer was lost, and the journal holds every law.
    pub(crate) fn is_proved(&self) -> bool {
        self.oversell_count == 0
            && self.receipts.missing == 0
            && self.audit.ok
            && self.sold + self.reserved + self.available == self.units
    }

    /// Writes both files into `dir`; gives the page's path.
    pub(crate) fn write(&self, dir: &Path) -> Result<PathBuf> {
        let at = |error| format!("can't write the report into {}: {error}", dir.display());
        fs::create_dir_all(dir).map_err(|error| anyhow::anyhow!(at(error)))?;
        let json = serde_json::to_vec_pretty(self)?;
        fs::write(dir.join("report.json"), json).map_err(|error| anyhow::anyhow!(at(error)))?;
        let page = dir.join("report.html");
        fs::write(&page, html::render(self)).map_err(|error| anyhow::anyhow!(at(error)))?;
        Ok(page)
    }
}

/// Makes the page anew.
pub(crate) fn run(args: &Args) -> Result<()> {
    let json = fs::read(&args.json).with_context(|| {
        format!(
            "can't read {}: name a report.json, or make one with `flash-sale demo`",
            args.json.display()
        )
    })?;
    let report: Report = serde_json::from_slice(&json)
        .with_context(|| format!("{} is no report", args.json.display()))?;
    let page = args
        .html
        .clone()
        .unwrap_or_else(|| args.json.with_extension("html"));
    fs::write(&page, html::render(&report))
        .with_context(|| format!("can't write {}", page.display()))?;
    println!("{}", page.display());
    Ok(())
}
