//! `init`: makes what a distributed sale needs before its first start. Safe to repeat.

use crate::log::PostgresUrl;
use anyhow::{Context, Result};

/// `flash-sale init`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The PostgreSQL server that keeps the log: its tables are made, or brought to this release's version
    #[arg(long, value_name = "URL")]
    store: PostgresUrl,
}

/// Makes it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let store = &args.store;
    store
        .migrate()
        .with_context(|| format!("can't make the tables in {store}"))?;
    println!("{store}: the tables are of this release");
    Ok(())
}
