//! `audit`: verifies a journal directory from its files alone, or a log in PostgreSQL with its rows.
//!
//! Reads every batch, so that the chain of hashes is checked; folds them from empty, so that every law is checked at
//! every batch; recounts the laws at the end; and compares the digest of that state with the digests of its own copy by
//! way of a snapshot's stream and of the newest snapshot on disk, if there is one. In PostgreSQL it compares every row of
//! stock, and the status of every reservation, with what the log says, shard by shard and all at one moment; a SKU in several
//! shards is a pool each, and what is in the pools and in flight must be its total. Writers may go on meanwhile. What else rows
//! say `repair` compares, which builds all of them anew.

use crate::log::PostgresUrl;
use crate::oversold::Sales;
use crate::sale::sale_limits;
use anyhow::{Context, Result, bail};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};
use stockade::allocator::Allocator;
use stockade::store::{Replica, ReplicaError, journal};
use stockade::types::{
    Availability, Batch, Event, EventKind, HoldStatus, ReservationId, SkuName, StateRecord,
};
#[cfg(feature = "postgres")]
use {std::collections::BTreeMap, stockade::types::PoolView};

/// `flash-sale audit`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The journal directory
    #[arg(required_unless_present = "store")]
    dir: Option<PathBuf>,
    /// A PostgreSQL server, if no directory is named
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_STORE",
        hide_env_values = true
    )]
    store: Option<PostgresUrl>,
    /// Print it as JSON
    #[arg(long)]
    json: bool,
    /// List the last orders of --sku without which no more than --total units are sold, instead
    #[arg(long, requires_all = ["sku", "total"])]
    oversold: bool,
    /// The SKU that was oversold
    #[arg(long, value_name = "NAME", requires = "oversold")]
    sku: Option<SkuName>,
    /// Its units that can be delivered
    #[arg(long, value_name = "UNITS", requires = "oversold")]
    total: Option<u64>,
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
    /// Units that have left a pool and not come to another one.
    #[serde(default)]
    pub(crate) in_flight: Vec<InFlight>,
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

/// A transfer between two pools of a SKU.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct InFlight {
    pub(crate) sku_id: String,
    pub(crate) from: u16,
    pub(crate) to: u16,
    pub(crate) units: u64,
}

impl fmt::Display for InFlight {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sku_id,
            from,
            to,
            units,
        } = self;
        write!(
            f,
            "{sku_id}: {units} units in flight from shard {from} to shard {to}"
        )
    }
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
    if let (Some(sku), Some(total)) = (&args.sku, args.total) {
        return oversold(args, Sales::of(sku.clone()), total);
    }
    let (verdict, place) = match (&args.dir, &args.store) {
        (Some(dir), _) => (verify(dir)?, dir.display().to_string()),
        (None, Some(url)) => (verify_rows(url)?, url.to_string()),
        (None, None) => bail!("say what to audit: a journal directory, or --store URL"),
    };
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
        for transfer in &verdict.in_flight {
            println!("{transfer}");
        }
        println!("{} live reservations. {verdict}", verdict.live);
    }
    if !verdict.ok {
        bail!("the log in {place} is not fine");
    }
    Ok(())
}

/// Lists what is sold beyond a total.
fn oversold(args: &Args, mut sales: Sales, total: u64) -> Result<()> {
    match (&args.dir, &args.store) {
        (Some(dir), _) => {
            let verified = verify(dir)?;
            if !verified.breaches.is_empty() {
                bail!("{verified}");
            }
            sales.read(&mut journal::JournalReader::new(dir))?;
        }
        (None, Some(url)) => url.read_logs(&mut |log| sales.read(log))?,
        (None, None) => bail!("say where to look: a journal directory, or --store URL"),
    }
    let oversold = sales.beyond(total)?;
    if args.json {
        println!("{}", serde_json::to_string_pretty(&oversold)?);
    } else {
        println!("{oversold}");
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
    let mut auditor = Auditor::new();
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
    verdict.recount(&state);
    if verdict.breaches.is_empty() {
        verdict.breaches.extend(copy_differs(&state));
    }
    if verdict.breaches.is_empty() {
        verdict.breaches.extend(compare_snapshot(dir, &state)?);
    }
    verdict.ok = verdict.breaches.is_empty() && verdict.oversell_count == 0;
    Ok((verdict, ledger))
}

/// Walks the logs in PostgreSQL, and compares their rows.
#[cfg(feature = "postgres")]
fn verify_rows(url: &PostgresUrl) -> Result<Verdict> {
    use stockade::postgres::PostgresMoment;
    use stockade::store::StoreError;
    let moment = PostgresMoment::new(&url.options())?;
    let mut verdict = Verdict::default();
    let mut pools = BTreeMap::<SkuName, Vec<PoolView>>::new();
    for shard in moment.shards()? {
        let mut auditor = Auditor::new();
        let mut one = Verdict::default();
        match moment.audit(shard, &mut auditor, &mut |_| {}) {
            Ok(audit) => {
                one.batches = audit.recovered.last_batch;
                one.breaches.extend(audit.drift);
            }
            Err(error @ StoreError::Retryable(_)) => return Err(error.into()),
            Err(error) => one.breaches.push(error.to_string()),
        }
        let state = auditor.state;
        one.recount(&state);
        if one.breaches.is_empty() {
            one.breaches.extend(copy_differs(&state));
        }
        for (sku, name) in state.skus() {
            let pool = state.pool(sku);
            pools.entry(name.clone()).or_default().extend(pool);
        }
        verdict.add(one);
    }
    for (name, pools) in pools {
        let audit = stockade::pools::audit(&pools);
        let breaches = audit.breaches.iter();
        verdict
            .breaches
            .extend(breaches.map(|breach| format!("{name}: {breach}")));
        let transfers = audit.in_flight.iter().map(|of| InFlight {
            sku_id: name.to_string(),
            from: of.from,
            to: of.to,
            units: of.units,
        });
        verdict.in_flight.extend(transfers);
    }
    verdict.ok = verdict.breaches.is_empty() && verdict.oversell_count == 0;
    Ok(verdict)
}

#[cfg(not(feature = "postgres"))]
fn verify_rows(url: &PostgresUrl) -> Result<Verdict> {
    url.missing()
}

impl Verdict {
    /// Adds what another shard's audit found.
    #[cfg(feature = "postgres")]
    fn add(&mut self, shard: Self) {
        self.batches += shard.batches;
        self.events += shard.events;
        let space = if self.digest.is_empty() { "" } else { " " };
        self.digest = format!("{}{space}{}", self.digest, shard.digest);
        self.oversell_count += shard.oversell_count;
        self.live += shard.live;
        self.ended += shard.ended;
        self.breaches.extend(shard.breaches);
        for of in shard.skus {
            match self.skus.iter_mut().find(|sku| sku.sku_id == of.sku_id) {
                None => self.skus.push(of),
                Some(sku) => {
                    sku.total += of.total;
                    sku.available += of.available;
                    sku.reserved += of.reserved;
                    sku.sold += of.sold;
                }
            }
        }
    }

    /// Takes in where the state stands and what is wrong with it.
    fn recount(&mut self, state: &Allocator) {
        self.events = state.sequence();
        self.digest = format!("{:032x}", state.digest());
        let laws = state.audit();
        self.oversell_count = laws.oversell_count;
        self.live = laws.live;
        self.ended = laws.ended;
        self.breaches.extend(laws.breaches);
        self.skus = state
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
    }
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

impl Auditor {
    fn new() -> Self {
        Self {
            state: Allocator::new(sale_limits(), 0),
            ledger: Ledger::default(),
        }
    }
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

    fn stock(&self) -> Vec<Availability> {
        Replica::stock(&self.state)
    }
}

/// Law L7: the state by way of its own snapshot is the state.
fn copy_differs(state: &Allocator) -> Option<String> {
    let mut copy = Allocator::new(sale_limits(), 1);
    let mut refused = None;
    Replica::export(state, &mut |record| {
        if refused.is_none() {
            refused = Replica::restore(&mut copy, record).err();
        }
    });
    match refused {
        Some(error) => Some(format!("the state's own snapshot is refused: {error}")),
        None if copy.digest() != state.digest() => {
            Some("the state's own snapshot gives another digest".to_owned())
        }
        None => None,
    }
}

/// The same by way of the newest snapshot on disk.
fn compare_snapshot(dir: &Path, state: &Allocator) -> Result<Option<String>> {
    let files = std::fs::read_dir(dir).with_context(|| format!("can't list {}", dir.display()))?;
    let has_snapshot = files
        .flatten()
        .any(|file| file.path().extension().is_some_and(|ext| ext == "state"));
    if !has_snapshot {
        return Ok(None);
    }
    let mut copy = Allocator::new(sale_limits(), 2);
    Ok(match journal::read(dir, true, &mut copy, &mut |_| {}) {
        Ok(_) if copy.digest() == state.digest() => None,
        Ok(_) => Some("the newest snapshot leads to another digest".to_owned()),
        Err(error) => Some(format!("from the newest snapshot: {error}")),
    })
}
