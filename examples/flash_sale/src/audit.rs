//! `audit`: verifies a journal directory from its files alone.
//!
//! Reads every batch, so that the chain of hashes is checked; folds them from empty, so that every law is checked at
//! every batch; recounts the laws at the end; and compares the digest of that state with the digests of its own copy by
//! way of a snapshot's stream and of the newest snapshot on disk, if there is one.

use crate::sale::sale_limits;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::fmt;
use std::path::{Path, PathBuf};
use stockade::allocator::Allocator;
use stockade::store::{Replica, journal};

/// `flash-sale audit`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The journal directory
    dir: PathBuf,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
}

/// What an audit found.
#[derive(Debug, Clone, Default, Serialize)]
pub(crate) struct Verdict {
    /// True if nothing is wrong.
    pub(crate) ok: bool,
    /// Batches in the log.
    pub(crate) batches: u64,
    /// Events that were replayed.
    pub(crate) events: u64,
    /// Of the state they lead to.
    pub(crate) digest: String,
    /// Units sold or reserved beyond a total.
    pub(crate) oversell_count: u64,
    /// Live reservations at the end of the log.
    pub(crate) live: u64,
    /// Reservations that have ended and are not retired.
    pub(crate) ended: u64,
    /// What is wrong.
    pub(crate) breaches: Vec<String>,
    /// Totals per SKU.
    pub(crate) skus: Vec<SkuTotals>,
}

/// One SKU at the end of the log.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct SkuTotals {
    pub(crate) sku_id: String,
    pub(crate) total: u64,
    pub(crate) available: u64,
    pub(crate) reserved: u64,
    pub(crate) sold: u64,
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.ok {
            write!(
                f,
                "Audit: all laws hold over {} events in {} batches, digest {}",
                self.events, self.batches, self.digest
            )
        } else {
            write!(f, "Audit: NOT fine: {}", self.breaches.join("; "))
        }
    }
}

/// Prints what it finds; fails on any damage.
pub(crate) fn run(args: &Args) -> Result<()> {
    let verdict = verify(&args.dir)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&verdict)?);
    } else {
        println!(
            "{:<24} {:>12} {:>12} {:>12} {:>12}",
            "SKU", "total", "available", "reserved", "sold"
        );
        for sku in &verdict.skus {
            println!(
                "{:<24} {:>12} {:>12} {:>12} {:>12}",
                sku.sku_id, sku.total, sku.available, sku.reserved, sku.sold
            );
        }
        println!("{} live reservations. {verdict}", verdict.live);
    }
    if !verdict.ok {
        bail!("the journal in {} is not fine", args.dir.display());
    }
    Ok(())
}

/// Walks the journal. Damage is part of the verdict; an error means that there is nothing to audit.
pub(crate) fn verify(dir: &Path) -> Result<Verdict> {
    if !dir.is_dir() {
        bail!("{} is no directory: name a journal's", dir.display());
    }
    let mut state = Allocator::new(sale_limits(), 0);
    let mut verdict = Verdict::default();
    match journal::read(dir, false, &mut state, &mut |_| {}) {
        Ok(recovered) => {
            verdict.batches = recovered.last_batch;
            verdict.breaches.extend(recovered.dropped_tail.map(|tail| {
                format!("{tail} (if a crash tore it, nobody was answered from it; the next start drops it)")
            }));
        }
        Err(error) => verdict.breaches.push(error.to_string()),
    }
    verdict.events = state.sequence();
    verdict.digest = format!("{:032x}", state.digest());
    let laws = state.audit();
    verdict.oversell_count = laws.oversell_count;
    verdict.live = laws.live;
    verdict.ended = laws.ended;
    verdict.breaches.extend(laws.breaches);
    verdict.skus = state
        .skus()
        .filter_map(|(id, name)| {
            let stock = state.availability(id)?;
            Some(SkuTotals {
                sku_id: name.as_str().to_owned(),
                total: stock.total,
                available: stock.available,
                reserved: stock.reserved,
                sold: stock.sold,
            })
        })
        .collect();
    if verdict.breaches.is_empty() {
        verdict.breaches.extend(compare_copies(dir, &state)?);
    }
    verdict.ok = verdict.breaches.is_empty() && verdict.oversell_count == 0;
    Ok(verdict)
}

/// Law L7: the state by way of a snapshot is the state.
fn compare_copies(dir: &Path, state: &Allocator) -> Result<Vec<String>> {
    let mut breaches = Vec::new();
    let mut copy = Allocator::new(sale_limits(), 1);
    let mut refused = None;
    Replica::export(state, &mut |record| {
        if refused.is_none() {
            refused = Replica::restore(&mut copy, record).err();
        }
    });
    if let Some(error) = refused {
        breaches.push(format!("the state's own snapshot is refused: {error}"));
    } else if copy.digest() != state.digest() {
        breaches.push("the state's own snapshot gives another digest".to_owned());
    }
    let files = std::fs::read_dir(dir).with_context(|| format!("can't list {}", dir.display()))?;
    let has_snapshot = files
        .flatten()
        .any(|file| file.path().extension().is_some_and(|ext| ext == "state"));
    if has_snapshot {
        let mut copy = Allocator::new(sale_limits(), 2);
        match journal::read(dir, true, &mut copy, &mut |_| {}) {
            Ok(_) if copy.digest() == state.digest() => {}
            Ok(_) => breaches.push("the newest snapshot leads to another digest".to_owned()),
            Err(error) => breaches.push(format!("from the newest snapshot: {error}")),
        }
    }
    Ok(breaches)
}
