//! `audit`: verifies a journal directory from its files alone.
//!
//! Reads every batch, so that the chain of hashes is checked; folds them from empty, so that every law is checked at
//! every batch; recounts the laws at the end; and compares the digest of that state with the digests of its own copy by
//! way of a snapshot's stream and of the newest snapshot on disk, if there is one.

use crate::sale::sale_limits;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use stockade::allocator::Allocator;
use stockade::store::{Replica, ReplicaError, journal};
use stockade::types::{Batch, Event, EventKind, HoldStatus, ReservationId, StateRecord};

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
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
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
#[derive(Debug, Clone, Serialize, Deserialize)]
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
    Ok(verify_with_ledger(dir)?.0)
}

/// Also gives every reservation that the log holds.
pub(crate) fn verify_with_ledger(dir: &Path) -> Result<(Verdict, Ledger)> {
    if !dir.is_dir() {
        bail!("{} is no directory: name a journal's", dir.display());
    }
    let mut auditor = Auditor {
        state: Allocator::new(sale_limits(), 0),
        ledger: Ledger::default(),
    };
    let mut verdict = Verdict::default();
    match journal::read(dir, false, &mut auditor, &mut |_| {}) {
        Ok(recovered) => {
            verdict.batches = recovered.last_batch;
            verdict.breaches.extend(recovered.dropped_tail.map(|tail| {
                format!("{tail} (if a crash tore it, nobody was answered from it; the next start drops it)")
            }));
        }
        Err(error) => verdict.breaches.push(error.to_string()),
    }
    let Auditor { state, ledger } = auditor;
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
    Ok((verdict, ledger))
}

/// Every reservation that the log holds and where it stands at the end, told from the events alone.
#[derive(Debug, Default)]
pub(crate) struct Ledger {
    reservations: HashMap<ReservationId, HoldStatus>,
}

impl Ledger {
    /// Where it stands; `None` if the log doesn't know it.
    pub(crate) fn status(&self, id: ReservationId) -> Option<HoldStatus> {
        self.reservations.get(&id).copied()
    }

    fn take(&mut self, event: &Event) {
        let (id, status) = match event.kind {
            EventKind::Reserved { .. } => (
                ReservationId::new(event.shard, event.sequence),
                HoldStatus::Held,
            ),
            EventKind::Confirmed { reservation, .. } => (reservation, HoldStatus::Confirmed),
            EventKind::Released { reservation, .. } => (reservation, HoldStatus::Released),
            EventKind::Expired { reservation } => (reservation, HoldStatus::Expired),
            _ => return,
        };
        self.reservations.insert(id, status);
    }
}

/// Folds the log into the state, and keeps the ledger beside it.
struct Auditor {
    state: Allocator,
    ledger: Ledger,
}

impl Replica for Auditor {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        Replica::restore(&mut self.state, record)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        for event in batch.events() {
            self.ledger.take(&event?);
        }
        Replica::apply(&mut self.state, batch)
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        Replica::export(&self.state, out);
    }
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
