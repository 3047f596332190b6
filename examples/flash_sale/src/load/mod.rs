//! `load`: an open-loop crowd against a server, or with `--in-process` against an engine without HTTP.
//!
//! Latencies count from the moment at which a request was due, not from when it was sent, so a server that stalls is
//! not spared the requests that would have come meanwhile.

pub(crate) mod crowd;
mod http;
mod in_process;
pub(crate) mod pacer;
pub(crate) mod record;

use crate::cli::duration;
use crate::token::jwt_secret;
use anyhow::{Context, Result, bail};
use crowd::{Behaviour, Crowd, Receipt};
use indicatif::{ProgressBar, ProgressStyle};
use pacer::Rates;
use record::{Outcome, Recorder};
use std::fs::File;
use std::io::{BufWriter, Write};
use std::net::{SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `flash-sale load`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The server
    #[arg(long, value_name = "URL", default_value = "http://127.0.0.1:8080")]
    target: Vec<String>,
    /// The SKU that everybody wants
    #[arg(long, default_value = "SNEAKER")]
    sku: String,
    /// How long
    #[arg(long, default_value = "10s", value_parser = duration)]
    duration: Duration,
    /// Availability reads per second
    #[arg(long, default_value_t = 5_000.0, value_name = "PER_SECOND")]
    reads: f64,
    /// Reservations per second
    #[arg(long, default_value_t = 1_000.0, value_name = "PER_SECOND")]
    reserves: f64,
    /// Of those who reserve, the share that never pays
    #[arg(long, default_value_t = 0.1, value_name = "SHARE")]
    abandon: f64,
    /// Of those who pay, the share whose first card is declined
    #[arg(long, default_value_t = 0.02, value_name = "SHARE")]
    decline: f64,
    /// From a reservation to its checkout
    #[arg(long, default_value = "500ms", value_parser = duration)]
    think: Duration,
    /// Connections for reads
    #[arg(long, default_value_t = 128)]
    connections: usize,
    /// Connections for reservations
    #[arg(long, default_value_t = 512)]
    write_connections: usize,
    /// Connections for checkouts [default: as many as for reservations]
    #[arg(long)]
    checkout_connections: Option<usize>,
    /// Reads in flight per connection
    #[arg(long, default_value_t = 1)]
    pipeline: usize,
    /// Drive an engine in this process instead, on a journal
    #[arg(long)]
    in_process: bool,
    /// The journal directory for --in-process; without it, a temporary one
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Units to sell with --in-process
    #[arg(long, default_value_t = 1_000_000_000)]
    units: u64,
    /// A file for the answered reservations and orders: a line each, with `reserved` or `ordered`
    #[arg(long, value_name = "FILE", conflicts_with = "in_process")]
    receipts: Option<PathBuf>,
    /// Print the outcome as JSON
    #[arg(long)]
    json: bool,
    /// Sign tokens with the development secret if the environment has none
    #[arg(long)]
    insecure_dev: bool,
}

/// Runs it and prints what it met.
pub(crate) fn run(args: &Args) -> Result<()> {
    for (flag, share) in [("--abandon", args.abandon), ("--decline", args.decline)] {
        if !(0.0..=1.0).contains(&share) {
            bail!("{flag} is a share: give 0 to 1");
        }
    }
    for (flag, rate) in [("--reads", args.reads), ("--reserves", args.reserves)] {
        if !(0.0..=1e7).contains(&rate) {
            bail!("{flag} is a rate per second: give 0 to 10000000");
        }
    }
    let outcome = if args.in_process {
        in_process::run(args)?
    } else {
        over_http(args)?
    };
    if args.json {
        println!("{}", serde_json::to_string_pretty(&outcome)?);
    } else {
        outcome.print();
    }
    Ok(())
}

fn over_http(args: &Args) -> Result<Outcome> {
    let mut addresses = Vec::new();
    for target in &args.target {
        let address = resolve(target)?;
        std::net::TcpStream::connect(address)
            .with_context(|| format!("no server at {target}: start one with `flash-sale serve`"))?;
        addresses.push(address);
    }
    let secret = jwt_secret(args.insecure_dev)?;
    let crowd = Crowd::start(
        &Behaviour {
            addresses,
            sku: args.sku.clone(),
            run: run_name(),
            rates: args.rates(),
            duration: args.duration,
            abandon: args.abandon,
            abandon_for: Duration::MAX,
            again: 0.0,
            decline: args.decline,
            think: args.think,
            read_connections: args.connections,
            write_connections: args.write_connections,
            checkout_connections: args.checkout_connections.unwrap_or(args.write_connections),
            pipeline: args.pipeline,
        },
        &secret,
    )?;
    let progress = progress_bar(args.duration);
    let started = crowd.started();
    let mut last = started;
    while !crowd.is_gone() {
        // How often the display is drawn; nothing is waited for.
        std::thread::sleep(Duration::from_millis(200));
        let elapsed = started.elapsed();
        let waiting = crowd.waiting();
        show(&progress, &crowd.recorder, elapsed, last.elapsed(), waiting);
        last = std::time::Instant::now();
    }
    progress.finish_and_clear();
    let recorder = crowd.recorder.clone();
    let receipts = crowd.finish();
    if let Some(file) = &args.receipts {
        write(&receipts, file).with_context(|| format!("can't write {}", file.display()))?;
    }
    Ok(recorder.outcome(args.duration))
}

fn write(receipts: &[Receipt], file: &Path) -> std::io::Result<()> {
    let mut out = BufWriter::new(File::create(file)?);
    for receipt in receipts {
        let what = if receipt.is_order {
            "ordered"
        } else {
            "reserved"
        };
        writeln!(out, "{} {what}", receipt.reservation)?;
    }
    out.flush()
}

impl Args {
    fn rates(&self) -> Rates {
        Rates {
            reads_per_s: self.reads,
            reserves_per_s: self.reserves,
        }
    }
}

/// A bar over the time of the load.
pub(crate) fn progress_bar(duration: Duration) -> ProgressBar {
    let progress = ProgressBar::new(u64::try_from(duration.as_millis()).unwrap_or(u64::MAX));
    if let Ok(style) = ProgressStyle::with_template("{elapsed:>4} {bar:30} {msg}") {
        progress.set_style(style);
    }
    progress
}

fn show(
    progress: &ProgressBar,
    recorder: &Recorder,
    elapsed: Duration,
    window: Duration,
    waiting: usize,
) {
    let [reads, reserve, checkout] = recorder.take_window(window);
    progress.set_position(u64::try_from(elapsed.as_millis()).unwrap_or(u64::MAX));
    progress.set_message(format!(
        "{:.0} reads/s p95 {:.1} ms, {:.0} reserves/s p95 {:.1} ms, {:.0} checkouts/s, {waiting} waiting",
        reads.rps, reads.p95_ms, reserve.rps, reserve.p95_ms, checkout.rps
    ));
}

/// Users and keys of this run, unlike those of any other.
pub(crate) fn run_name() -> String {
    let since = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .unwrap_or_default();
    format!("{:x}-{:x}", since.as_micros(), std::process::id())
}

fn resolve(target: &str) -> Result<SocketAddr> {
    let host = target
        .strip_prefix("http://")
        .unwrap_or(target)
        .trim_end_matches('/');
    if host.starts_with("https://") {
        bail!("the load generator speaks plain HTTP only: point it at the server itself");
    }
    let mut addresses = host
        .to_socket_addrs()
        .with_context(|| format!("--target {target}: give http://HOST:PORT"))?;
    addresses
        .next()
        .with_context(|| format!("{host} has no address"))
}
