//! `demo`: a whole sale in one command. Serves it on a free port, sends a crowd over real HTTP, shows it while it
//! runs, audits the journal, looks up every answer in it, and writes the report.
//!
//! Holds are short, so that abandoned carts lapse and are sold again before your eyes. After half a minute nobody
//! abandons any more, and the sale comes to its end. Exit code non-zero if any law broke or any answer is missing.

mod live;

use crate::audit::{self, Ledger};
use crate::cli::{SkuArg, duration};
use crate::engine::{Engine, Handle};
use crate::load::crowd::{Behaviour, Crowd, Receipt};
use crate::load::pacer::Rates;
use crate::load::run_name;
use crate::payment::SimulatedGateway;
use crate::report::{EngineFigures, Receipts, Report, Sample, Settings};
use crate::sale::{self, Bounds, Folder, Terms};
use crate::serve::{Config, Desk, Server};
use crate::token::Secrets;
use anyhow::{Context, Result, bail};
use clap::Parser;
use live::Live;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stockade::types::{HoldStatus, SkuId, SkuName};

const SAMPLE_EVERY: Duration = Duration::from_millis(250);
const READ_CONNECTIONS: usize = 32;
/// A checkout keeps its connection for the payment's 20 ms.
const WRITE_CONNECTIONS: usize = 128;
const CHECKOUT_CONNECTIONS: usize = 32;
const DRAIN_TIME: Duration = Duration::from_secs(10);
/// After the last unit is sold the crowd stays a little, so that the plots show it.
const AFTERGLOW: Duration = Duration::from_secs(2);

/// `flash-sale demo`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// Units to sell
    #[arg(long, default_value_t = 10_000, value_parser = clap::value_parser!(u64).range(1..))]
    units: u64,
    /// Reservations per second
    #[arg(long, default_value_t = 1_500.0, value_name = "PER_SECOND")]
    reserves: f64,
    /// Availability reads per second
    #[arg(long, default_value_t = 10_000.0, value_name = "PER_SECOND")]
    reads: f64,
    /// How long a reservation holds its units
    #[arg(long, default_value = "4s", value_parser = duration)]
    hold: Duration,
    /// Of those who reserve, the share that never pays
    #[arg(long, default_value_t = 0.2, value_name = "SHARE")]
    abandon: f64,
    /// The end, sold out or not
    #[arg(long, default_value = "55s", value_parser = duration)]
    duration: Duration,
    /// Keep the journal here; without it, in a temporary folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Where the report goes
    #[arg(long, value_name = "DIR", default_value = "flash-sale-report")]
    report_dir: PathBuf,
}

impl Default for Args {
    /// As the command line has it without any flag.
    fn default() -> Self {
        #[derive(Parser)]
        struct Alone {
            #[command(flatten)]
            args: Args,
        }
        Alone::parse_from(["flash-sale"]).args
    }
}

/// A sale that is over.
struct Ran {
    seconds: f64,
    sold_out_after_s: Option<f64>,
    samples: Vec<Sample>,
    receipts: Vec<Receipt>,
}

/// Runs the sale.
pub(crate) fn run(args: &Args) -> Result<()> {
    if !(0.0..=1.0).contains(&args.abandon) {
        bail!("--abandon is a share: give 0 to 1");
    }
    let folder = Folder::new(args.data.as_deref())?;
    let sku = SkuArg {
        name: SkuName::new("SNEAKER")?,
        units: args.units,
    };
    let terms = Terms {
        hold: args.hold,
        per_user: 1,
        closed: false,
    };
    let engine = sale::open(
        &folder.log(),
        std::slice::from_ref(&sku),
        &terms,
        &Bounds::default(),
        drop,
    )?;
    let handle = engine.handle();
    let id = handle.sku(sku.name.as_str()).context("just defined")?;
    let started_at = handle.now();
    let secrets = Secrets::random()?;
    let server = Server::start(
        crate::serve::runtime(None)?,
        Desk::Here(engine.handle()),
        Config {
            listen: SocketAddr::from((Ipv4Addr::LOCALHOST, 0)),
            connections_max: 1_024,
            secrets: secrets.clone(),
            gateway: Arc::new(SimulatedGateway::new(Duration::from_millis(20))),
            feed: None,
            takes_changes: true,
        },
    )?;
    eprintln!(
        "{} units of {}, holds of {:.0} s, one per user; http://{}",
        args.units,
        sku.name,
        args.hold.as_secs_f64(),
        server.address()
    );
    let crowd = Crowd::start(&behaviour(args, &sku, server.address()), &secrets.jwt)?;
    let recorder = crowd.recorder.clone();
    let ran = watch(args, &handle, id, crowd)?;
    let outcome = recorder.outcome(Duration::from_secs_f64(ran.seconds));
    let mut report = Report {
        sku_id: sku.name.to_string(),
        started_at: started_at.to_string(),
        seconds: ran.seconds,
        sold_out_after_s: ran.sold_out_after_s,
        reads: outcome.reads,
        reserve: outcome.reserve,
        checkout: outcome.checkout,
        refusals: outcome.refusals.clone(),
        failures: outcome.failures.clone(),
        settings: Settings {
            hold_s: args.hold.as_secs_f64(),
            per_user: terms.per_user,
            reads_per_s: args.reads,
            reserves_per_s: args.reserves,
            abandon: args.abandon,
            cores: std::thread::available_parallelism().map_or(0, usize::from),
        },
        samples: ran.samples,
        ..Report::default()
    };
    server.stop();
    end(engine, &handle, id, &mut report)?;
    let (verdict, ledger) = audit::verify_with_ledger(folder.path())?;
    report.receipts = look_up(&ran.receipts, &ledger);
    let engine_digest = std::mem::replace(&mut report.audit, verdict).digest;
    if engine_digest != report.audit.digest {
        report.audit.ok = false;
        let breach = "the log replays to another state than the engine ended with";
        report.audit.breaches.push(breach.to_owned());
    }
    let page = report.write(&args.report_dir)?;
    outcome.print();
    summarize(&report);
    println!("Report: {}", page.display());
    if let Some(kept) = &args.data {
        println!("Journal: {0}, see flash-sale audit {0}", kept.display());
    }
    if !report.is_proved() {
        bail!("the sale is not proved: see the audit above");
    }
    Ok(())
}

fn behaviour(args: &Args, sku: &SkuArg, address: SocketAddr) -> Behaviour {
    Behaviour {
        addresses: vec![address],
        sku: sku.name.to_string(),
        run: run_name(),
        rates: Rates {
            reads_per_s: args.reads,
            reserves_per_s: args.reserves,
        },
        duration: args.duration,
        abandon: args.abandon,
        abandon_for: args.duration * 6 / 11, // half a minute of the usual 55 s
        again: 0.03,
        decline: 0.05,
        think: Duration::from_millis(700).min(args.hold / 4),
        read_connections: READ_CONNECTIONS,
        write_connections: WRITE_CONNECTIONS,
        checkout_connections: CHECKOUT_CONNECTIONS,
        pipeline: 1,
    }
}

/// Shows the sale until all is sold or time is up, and everybody has gone.
fn watch(args: &Args, handle: &Handle, sku: SkuId, crowd: Crowd) -> Result<Ran> {
    let started = crowd.started();
    let mut live = Live::new();
    let mut samples: Vec<Sample> = Vec::new();
    let mut sold_out_at = None;
    let mut last = started;
    while !crowd.is_gone() {
        // Samples are taken at even times; nothing is waited for.
        std::thread::sleep(SAMPLE_EVERY);
        let now = Instant::now();
        let figures = crowd.recorder.take_window(now - last);
        last = now;
        let at = now - started;
        let stock = handle.availability(sku).context("the SKU is defined")?;
        live.show(at, &stock, &figures);
        let [reads, reserve, checkout] = figures;
        samples.push(Sample {
            at_s: at.as_secs_f64(),
            available: stock.available,
            reserved: stock.reserved,
            sold: stock.sold,
            reads_rps: reads.rps,
            reserve_rps: reserve.rps,
            checkout_rps: checkout.rps,
            reads_p95_ms: reads.p95_ms,
            reserve_p95_ms: reserve.p95_ms,
            checkout_p95_ms: checkout.p95_ms,
        });
        if stock.sold == stock.total {
            let sold_out = *sold_out_at.get_or_insert(at);
            if at >= sold_out + AFTERGLOW {
                crowd.stop();
            }
        } else if at > args.duration {
            crowd.stop();
        }
        if !handle.health().is_running() {
            bail!("the engine has stopped: {:?}", handle.health().state);
        }
    }
    live.finish();
    Ok(Ran {
        seconds: started.elapsed().as_secs_f64(),
        sold_out_after_s: sold_out_at.map(|at: Duration| at.as_secs_f64()),
        samples,
        receipts: crowd.finish(),
    })
}

/// The engine's last words; its digest goes where the audit's will be compared with it.
fn end(engine: Engine, handle: &Handle, sku: SkuId, report: &mut Report) -> Result<()> {
    let stock = handle.availability(sku).context("the SKU is defined")?;
    let stats = handle.stats();
    let ms = |duration: Duration| duration.as_secs_f64() * 1_000.0;
    report.units = stock.total;
    report.sold = stock.sold;
    report.reserved = stock.reserved;
    report.available = stock.available;
    report.oversell_count =
        stats.oversell_count + (stock.sold + stock.reserved).saturating_sub(stock.total);
    report.engine = EngineFigures {
        accepted: stats.accepted,
        refused: stats.refused.values().sum(),
        batches: stats.batches,
        commit_p50_ms: ms(stats.commit.p50),
        commit_p99_ms: ms(stats.commit.p99),
        commit_max_ms: ms(stats.commit.max),
    };
    report.warnings = handle.health().warnings;
    let ended = engine.shutdown(DRAIN_TIME);
    if !ended.is_clean {
        bail!("the engine did not end in good order: {:?}", ended.halted);
    }
    let digest = ended.digest.context("the engine gives its digest")?;
    report.audit.digest = format!("{digest:032x}");
    Ok(())
}

/// Every 201 must be a reservation in the journal, every 200 of a checkout a confirmed one.
fn look_up(receipts: &[Receipt], ledger: &Ledger) -> Receipts {
    let mut found = Receipts::default();
    for receipt in receipts {
        let status = receipt
            .reservation
            .parse()
            .ok()
            .and_then(|id| ledger.status(id));
        let fits = match (receipt.is_order, status) {
            (true, status) => status == Some(HoldStatus::Confirmed),
            (false, status) => status.is_some(),
        };
        if receipt.is_order {
            found.orders += 1;
        } else {
            found.reservations += 1;
            found.lapsed += u64::from(status == Some(HoldStatus::Expired));
        }
        if !fits {
            found.missing += 1;
            found
                .first_missing
                .get_or_insert_with(|| format!("{}: {status:?}", receipt.reservation));
        }
    }
    found
}

fn summarize(report: &Report) {
    let sold_out = report
        .sold_out_after_s
        .map_or("not sold out".to_owned(), |seconds| {
            format!("sold out after {seconds:.1} s")
        });
    println!(
        "{} of {} units sold, {sold_out}; {} held, {} available, {} oversold",
        report.sold, report.units, report.reserved, report.available, report.oversell_count
    );
    println!(
        "{} reservations and {} orders were answered: {} of them missing in the journal; {} holds lapsed",
        report.receipts.reservations,
        report.receipts.orders,
        report.receipts.missing,
        report.receipts.lapsed
    );
    println!("{}", report.audit);
    for warning in &report.warnings {
        println!("warning: {warning}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_order_that_the_journal_does_not_confirm_is_missing() {
        let ledger = Ledger::default();
        let receipt = |is_order| Receipt {
            reservation: "res-0000000000009".into(),
            is_order,
        };
        let found = look_up(&[receipt(true), receipt(false)], &ledger);
        assert_eq!((found.orders, found.reservations, found.missing), (1, 1, 2));
    }
}
