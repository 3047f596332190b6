//! `repair` and `resume`: what an operator does about a sale whose writer has halted.
//!
//! `repair` shows every row in PostgreSQL that says otherwise than the log, and with `--apply` makes it what the log says. `resume`
//! goes on with a log there that lost its end, and needs the number of the last batch that is left: the halt names it.
//! Neither waits for a writer to end, whoever lives is fenced.
//!
//! `resume --begin-at` goes on with requests in Kafka that lack the offset where the log stands. It takes the writer's role as a
//! writer does, and leaves one batch behind, which says where: so it counts once, and no later start repeats it.
//!
//! After each of them a writer starts. All say what they did.

use crate::ingest::KafkaUrl;
use crate::log::{Kept, Log, PostgresUrl};
use crate::sale;
use anyhow::{Result, bail, ensure};
use std::time::Duration;

/// How long an engine may take to end.
const ENDS_WITHIN: Duration = Duration::from_secs(10);

/// `flash-sale repair`
#[derive(Debug, clap::Args)]
pub(crate) struct RepairArgs {
    /// The PostgreSQL server that keeps the log
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_STORE",
        hide_env_values = true
    )]
    store: PostgresUrl,
    /// One writer's share; by default all of them
    #[arg(long, value_name = "NUMBER")]
    shard: Option<u16>,
    /// Do it: replace what differs, and fence a writer that lives
    #[arg(long)]
    apply: bool,
}

/// `flash-sale resume`
#[derive(Debug, clap::Args)]
#[command(
    mut_arg("data", |data| data.help("The journal directory that keeps the log")),
    mut_arg("store", |store| store.help("The PostgreSQL server that keeps it instead"))
)]
pub(crate) struct ResumeArgs {
    #[command(flatten)]
    kept: Kept,
    /// The writer's share that has halted
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    shard: u16,
    /// The last batch that is left in PostgreSQL: what was answered from later ones is lost, and you know it
    #[arg(
        long,
        value_name = "NUMBER",
        requires = "store",
        required_unless_present = "begin_at",
        conflicts_with = "begin_at"
    )]
    after_batch: Option<u64>,
    /// Where in its partition the requests go on: you know what became of those before it
    #[arg(long, value_name = "OFFSET", requires = "ingest")]
    begin_at: Option<u64>,
    /// The Kafka cluster that lacks what the log would read next
    #[arg(long, value_name = "URL", env = "FLASH_SALE_INGEST")]
    ingest: Option<KafkaUrl>,
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::{PostgresUrl, RepairArgs};
    use crate::sale::sale_limits;
    use anyhow::{Result, bail};
    use stockade::allocator::Allocator;
    use stockade::postgres::{PostgresMoment, PostgresRepair};

    fn empty() -> Allocator {
        Allocator::new(sale_limits(), 0)
    }

    fn print(shard: u16, repair: &PostgresRepair) {
        for row in &repair.differences {
            println!("{row}");
        }
        let more = repair.differing - repair.differences.len() as u64;
        if more > 0 {
            println!("and {more} more rows");
        }
        let recovered = &repair.recovered;
        println!(
            "shard {shard}: {} rows differ from the log, which ends with batch {}, event {}",
            repair.differing, recovered.last_batch, recovered.last_sequence
        );
        if let Some(epoch) = repair.epoch {
            println!(
                "shard {shard}: they are what the log says now; the writer's role is free, as of epoch {epoch}"
            );
        }
    }

    pub(super) fn repair(args: &RepairArgs) -> Result<()> {
        let options = args.store.options();
        let shards = match args.shard {
            Some(shard) => vec![shard],
            None => PostgresMoment::new(&options)?.shards()?,
        };
        let (mut differing, mut lost) = (0, Vec::new());
        for shard in shards {
            let run = if args.apply {
                PostgresRepair::apply
            } else {
                PostgresRepair::look
            };
            let repair = run(&options, shard, &mut empty(), &mut |_| {})?;
            print(shard, &repair);
            differing += repair.differing;
            if let Some(why) = repair.lost {
                lost.push(format!(
                    "shard {shard}: {why}; go on without them: {}",
                    resumes(&args.store, shard, repair.recovered.last_batch)
                ));
            }
        }
        if !lost.is_empty() {
            bail!("{}", lost.join("; "));
        }
        if differing > 0 && !args.apply {
            println!("nothing was changed: add --apply to make the rows what the log says");
        }
        Ok(())
    }

    fn resumes(store: &PostgresUrl, shard: u16, after: u64) -> String {
        format!("`flash-sale resume --store {store} --shard {shard} --after-batch {after}`")
    }

    pub(super) fn resume(store: &PostgresUrl, shard: u16, after_batch: u64) -> Result<()> {
        let options = store.options();
        let resumed =
            PostgresRepair::resume(&options, shard, after_batch, &mut empty(), &mut |_| {})?;
        print(shard, &resumed);
        match &resumed.lost {
            Some(why) => println!("shard {shard}: {why}; accepted: a writer may start"),
            None => println!("shard {shard}: nothing was missing; a writer may start"),
        }
        Ok(())
    }
}

/// Shows what differs, or mends it.
#[cfg(feature = "postgres")]
pub(crate) fn repair(args: &RepairArgs) -> Result<()> {
    postgres::repair(args)
}

/// Accepts that the end of a log is lost, or that requests are.
pub(crate) fn resume(args: &ResumeArgs) -> Result<()> {
    match (args.after_batch, args.begin_at) {
        (Some(batch), None) => match &args.kept.store {
            Some(store) => after_batch(store, args.shard, batch),
            None => bail!("--after-batch takes --store URL: a journal drops a torn end by itself"),
        },
        (None, Some(offset)) => match &args.ingest {
            Some(ingest) => begin_at(&args.kept.log()?, ingest, args.shard, offset),
            None => bail!("--begin-at takes --ingest URL"),
        },
        _ => bail!("say what the halt has named: --after-batch NUMBER or --begin-at OFFSET"),
    }
}

/// Writes to the log where its requests go on.
fn begin_at(log: &Log, ingest: &KafkaUrl, shard: u16, offset: u64) -> Result<()> {
    // What can't be is said before the role is waited for.
    ingest.placement_of(shard)?;
    if let Log::Journal(dir) = log {
        ensure!(dir.is_dir(), "{log} is no directory: name the journal's");
    }
    log.says_that_it_waits();
    let engine = sale::open_as_it_is(log, shard)?;
    let begun = ingest.begin_at(&engine.handle(), shard, offset);
    let ended = engine.shutdown(ENDS_WITHIN);
    begun?;
    ensure!(
        ended.is_clean,
        "the engine did not end in good order: {}",
        ended.halted.unwrap_or_else(|| "it took too long".into())
    );
    println!("{ingest}: shard {shard} goes on at offset {offset}; a writer may start");
    Ok(())
}

#[cfg(feature = "postgres")]
fn after_batch(store: &PostgresUrl, shard: u16, batch: u64) -> Result<()> {
    postgres::resume(store, shard, batch)
}

#[cfg(not(feature = "postgres"))]
fn after_batch(store: &PostgresUrl, _: u16, _: u64) -> Result<()> {
    store.missing()
}

/// Says what is missing.
#[cfg(not(feature = "postgres"))]
pub(crate) fn repair(args: &RepairArgs) -> Result<()> {
    let RepairArgs {
        store,
        shard: _,
        apply: _,
    } = args;
    store.missing()
}
