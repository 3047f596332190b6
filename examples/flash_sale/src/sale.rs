//! Opening the engine for a sale: where its journal lies, its limits, and the SKUs that are sold.

use crate::cli::SkuArg;
use crate::engine::{Ask, CommandError, Engine, EngineError, Handle, Limits};
use crate::ingest::KafkaUrl;
use crate::log::{Log, Stop};
use crate::shared_cache::RedisUrl;
use anyhow::{Context, Result, anyhow, bail};
use std::path::{Path, PathBuf};
use std::time::Duration;
use stockade::store::{JournalOptions, JournalStore};
use stockade::types::{
    DefineSku, Gate, HOLD_MAX_MS, LINES_MAX, Query, QueryAnswer, Rules, SaleStatus, SetGate, SkuId,
    UserId,
};

/// A journal directory: kept, or gone with the program.
pub(crate) enum Folder {
    Kept(PathBuf),
    Temporary(tempfile::TempDir),
}

impl Folder {
    pub(crate) fn new(kept: Option<&Path>) -> Result<Self> {
        Ok(match kept {
            Some(path) => Self::Kept(path.to_owned()),
            None => Self::Temporary(
                tempfile::Builder::new()
                    .prefix("flash-sale-")
                    .tempdir()
                    .context("can't make a temporary folder: name one with --data DIR")?,
            ),
        })
    }

    pub(crate) fn path(&self) -> &Path {
        match self {
            Self::Kept(path) => path,
            Self::Temporary(folder) => folder.path(),
        }
    }

    /// A log in it.
    pub(crate) fn log(&self) -> Log {
        Log::journal(self.path())
    }

    /// A journal in it.
    pub(crate) fn store(&self) -> JournalStore {
        JournalStore::new(JournalOptions::new(self.path()))
    }
}

/// For a rehearsal: carts of any length, and no bound that a file could reach.
pub(crate) fn rehearsal_limits() -> Limits {
    Limits {
        skus_max: 1 << 20,
        ..sale_limits()
    }
}

/// For a sale: carts as long as they can be.
pub(crate) fn sale_limits() -> Limits {
    Limits {
        lines_max: u16::try_from(LINES_MAX).unwrap_or(u16::MAX),
        ..Limits::default()
    }
}

/// Under which conditions a new SKU is sold.
#[derive(Debug, Clone)]
pub(crate) struct Terms {
    pub(crate) hold: Duration,
    /// Units per user; 0 for no limit.
    pub(crate) per_user: u32,
    /// True to leave a new SKU's sale closed.
    pub(crate) closed: bool,
}

impl Terms {
    fn rules(&self) -> Result<Rules> {
        let hold_ms = u32::try_from(self.hold.as_millis()).unwrap_or(u32::MAX);
        let rules = Rules {
            hold_ms,
            per_user: (self.per_user > 0).then_some(self.per_user),
            ..Rules::default()
        };
        rules
            .check()
            .with_context(|| format!("--hold takes 1ms to {}h", HOLD_MAX_MS / 3_600_000))?;
        Ok(rules)
    }
}

/// What the engine is to bear, and what goes with it.
#[derive(Debug, Clone)]
pub(crate) struct Bounds {
    /// Requests that may be in line.
    pub(crate) queue: usize,
    /// How far the clock may be ahead of a log with live holds.
    pub(crate) clock_jump_max: Duration,
    /// What is written through, if anything.
    pub(crate) cache: Option<RedisUrl>,
    /// Where events go and requests come from, if not from this process alone.
    pub(crate) ingest: Option<KafkaUrl>,
    /// The writer's share.
    pub(crate) shard: u16,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            queue: 65_536,
            clock_jump_max: Duration::from_secs(3_600),
            cache: None,
            ingest: None,
            shard: 0,
        }
    }
}

/// Starts the engine on the directory and makes sure that the SKUs are known: a new one is defined, one that the journal has is
/// checked and never changed; one that another shard sells is left to it. The sale of one that was never opened is opened, also if
/// it was defined long ago.
///
/// A log that others share is waited for: `waits` is given what ends that.
pub(crate) fn open(
    log: &Log,
    skus: &[SkuArg],
    terms: &Terms,
    bounds: &Bounds,
    waits: impl FnOnce(Stop),
) -> Result<Engine> {
    let rules = terms.rules()?;
    let builder = Engine::builder()
        .name("flash-sale")
        .shard(bounds.shard)
        .limits(sale_limits())
        .ring_capacity(bounds.queue)
        .clock_jump_max(bounds.clock_jump_max)
        .digest_at_shutdown();
    let builder = match &bounds.cache {
        Some(cache) => cache.attach(builder, bounds.shard)?,
        None => builder,
    };
    let mut own: Vec<&SkuArg> = skus.iter().collect();
    let builder = match &bounds.ingest {
        Some(ingest) => {
            let (builder, sells) = ingest.attach(builder, log, bounds.shard)?;
            own.retain(|sku| sells(&sku.name));
            builder
        }
        None => builder,
    };
    let (builder, stop) = log.attach(builder)?;
    waits(stop);
    let engine = builder.start().map_err(|error| start_failed(error, log))?;
    let handle = engine.handle();
    for sku in own {
        let ready = define(&handle, sku, rules).and_then(|id| {
            if terms.closed {
                return Ok(());
            }
            open_first(&handle, id).with_context(|| format!("opening the sale of SKU {}", sku.name))
        });
        if let Err(error) = ready {
            engine.shutdown(Duration::from_secs(5));
            return Err(error);
        }
    }
    // Those that Kafka brings may define some.
    if handle.skus().is_empty() && bounds.ingest.is_none() {
        engine.shutdown(Duration::from_secs(5));
        bail!("{log} holds no SKU and none is given: pass --sku NAME=UNITS");
    }
    Ok(engine)
}

/// Starts the engine on a log as it is: nothing is defined, and nothing goes elsewhere.
pub(crate) fn open_as_it_is(log: &Log, shard: u16) -> Result<Engine> {
    let builder = Engine::builder()
        .name("flash-sale")
        .shard(shard)
        .limits(sale_limits());
    let (builder, _) = log.attach(builder)?;
    builder.start().map_err(|error| start_failed(error, log))
}

/// What went wrong, and which flag helps if one does.
fn start_failed(error: EngineError, log: &Log) -> anyhow::Error {
    match &error {
        EngineError::ClockAhead {
            wall, last_stamp, ..
        } => {
            let hours = wall.since(*last_stamp).as_secs().div_ceil(3_600);
            anyhow!("can't start on {log}: {error} (`serve` takes --clock-jump-max {hours}h)")
        }
        _ => anyhow::Error::new(error).context(format!("can't start on {log}")),
    }
}

fn actor() -> UserId {
    UserId::from_text("serve")
}

fn define(handle: &Handle, sku: &SkuArg, rules: Rules) -> Result<SkuId> {
    let known = handle.sku(sku.name.as_str());
    let command = DefineSku::new(actor(), sku.name.clone(), sku.units).rules(rules)?;
    match (settle(handle, command), known) {
        (Ok(id), _) => Ok(id),
        (Err(error), Some(id)) => {
            eprintln!(
                "warning: SKU {}: {error:#}. What the journal says counts; change units by restock.",
                sku.name
            );
            Ok(id)
        }
        (Err(error), None) => Err(error.context(format!("SKU {}", sku.name))),
    }
}

/// Opens the sale of a SKU that never had one. Whoever defined it may have been cut off before he opened it.
fn open_first(handle: &Handle, sku: SkuId) -> Result<()> {
    if let QueryAnswer::Sku(Some(view)) = settle(handle, Query::Sku(sku))?
        && view.status == SaleStatus::NeverOpened
    {
        settle(handle, SetGate::new(actor(), sku, Gate::Open))?;
    }
    Ok(())
}

fn settle<C: Ask>(handle: &Handle, command: C) -> Result<C::Accepted> {
    let Ok(ticket) = handle.submit(command) else {
        bail!("the engine takes no command: {:?}", handle.health());
    };
    match ticket.wait() {
        Ok(accepted) => Ok(accepted),
        Err(CommandError::Refused(refusal)) => bail!("{refusal}"),
        Err(error) => bail!("no decision: {error:?}, {:?}", handle.health()),
    }
}
