//! `init`: makes what a distributed sale needs before its first start. Safe to repeat.

use crate::ingest::{KafkaUrl, Topics};
use crate::log::PostgresUrl;
use anyhow::{Context, Result};
use clap::value_parser;

/// `flash-sale init`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The PostgreSQL server that keeps the log: its tables are made, or brought to this release's version
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_STORE",
        hide_env_values = true
    )]
    store: PostgresUrl,
    /// The Kafka cluster between API nodes and writers: its topics are made; those that there are stay as they are, and must fit
    #[arg(long, value_name = "URL", env = "FLASH_SALE_INGEST")]
    ingest: Option<KafkaUrl>,
    /// Writers, each with its own share of the SKUs; it can't be changed later
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    shards: u16,
    /// API nodes that there may be
    #[arg(long, default_value_t = 8, value_parser = value_parser!(u16).range(1..))]
    nodes: u16,
    /// Brokers that keep a copy of each message: 3 in production
    #[arg(long, default_value_t = 1, value_parser = value_parser!(u16).range(1..))]
    replicas: u16,
}

/// Makes it.
pub(crate) fn run(args: &Args) -> Result<()> {
    let store = &args.store;
    store
        .migrate()
        .with_context(|| format!("can't make the tables in {store}"))?;
    println!("{store}: the tables are of this release");
    if let Some(ingest) = &args.ingest {
        let topics = Topics {
            shards: args.shards,
            nodes: args.nodes,
            replicas: args.replicas,
        };
        ingest
            .init(topics)
            .with_context(|| format!("can't make the topics in {ingest}"))?;
        println!(
            "{ingest}: the topics are there, for {} writers and {} nodes",
            args.shards, args.nodes
        );
    }
    Ok(())
}
