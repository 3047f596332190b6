//! `repair` and `resume`: what an operator does about a log in PostgreSQL whose writer has halted.
//!
//! `repair` shows every row that says otherwise than the log, and with `--apply` makes it what the log says. `resume` goes on
//! with a log that lost its end, and needs the number of the last batch that is left: the halt names it. After either one a
//! writer starts. Both say what they did; neither waits for a writer to end, whoever lives is fenced.

use crate::log::PostgresUrl;
use anyhow::Result;

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
pub(crate) struct ResumeArgs {
    /// The PostgreSQL server that keeps the log
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_STORE",
        hide_env_values = true
    )]
    store: PostgresUrl,
    /// The writer's share that has halted
    #[arg(long, value_name = "NUMBER", default_value_t = 0)]
    shard: u16,
    /// The last batch that is left: what was answered from later ones is lost, and you know it
    #[arg(long, value_name = "NUMBER")]
    after_batch: u64,
}

#[cfg(feature = "postgres")]
mod postgres {
    use super::{PostgresUrl, RepairArgs, ResumeArgs};
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

    pub(super) fn resume(args: &ResumeArgs) -> Result<()> {
        let &ResumeArgs {
            shard, after_batch, ..
        } = args;
        let options = args.store.options();
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

/// Accepts that the end of a log is lost.
#[cfg(feature = "postgres")]
pub(crate) fn resume(args: &ResumeArgs) -> Result<()> {
    postgres::resume(args)
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

/// Says what is missing.
#[cfg(not(feature = "postgres"))]
pub(crate) fn resume(args: &ResumeArgs) -> Result<()> {
    let ResumeArgs {
        store,
        shard: _,
        after_batch: _,
    } = args;
    store.missing()
}
