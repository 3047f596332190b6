//! `rehearse`: replays a real order log through the engine and says what each cart would have met.
//!
//! # Rules, and how we read them
//!
//! - A *row* is skipped, as if it were not in the file, only for an empty order, SKU or quantity, or for a quantity that is
//!   no 32-bit integer. An integer is an optional sign, digits, and at most a fraction of zeros: `6.0` and `6.00` are 6;
//!   `6.`, `6e3` and `1,000` are dirty.
//! - Text is trimmed of Unicode white space and otherwise exact: `85123A` and `85123a` are two SKUs.
//! - Each run of consecutive rows with one order id is a cart of its own, even if the id comes again. A row whose
//!   *line* is skipped (quantity <= 0 outside a cancellation) still belongs to its run and ends the one before.
//! - A cart's user and time are those of its first row. Without a user it is a user of its own; without a readable time
//!   it has the last one before it. Time never runs back: an earlier cart is decided at the latest time so far.
//! - All SKUs of a cart are reserved or none; lines of one SKU are summed. A reserved cart is confirmed at once.
//! - An order id that begins with the cancel prefix (exact; empty: none does) is a cancellation: each SKU is returned by the
//!   sum of its absolute quantities, or refused by itself where less was sold. A sum of zero returns nothing.
//! - `--per-user` limits the units of one SKU that a user may buy in all; returns by SKU give nobody's allowance back. The
//!   limit of every line is checked before the stock of any.
//! - Wrong UTF-8 is replaced and the row kept; a file that breaks off counts as far as it goes.
//! - A SKU's name that the engine does not take (over 64 bytes, or control characters) is known to it by a hash; the
//!   outputs show the name as it stands in the file.
//!
//! ```text
//! rows ──► carts ──► replay ──► engine        decisions.ndjson, final stock, summary
//! ```

mod carts;
mod output;
mod replay;
mod rows;
mod stock;
mod summary;
mod tally;
mod time;

use crate::cli::duration;
use crate::engine::Driver;
use crate::sale::{Folder, rehearsal_limits as limits};
use anyhow::{Context, Result, bail};
use carts::{Cart, Carts};
use replay::Replay;
use rows::{Columns, Rows};
use std::io::Read;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};
use stock::OpeningStock;
use stockade::types::{ManualClock, Timestamp};
use summary::Summary;
use tally::Tally;

/// `flash-sale rehearse`
#[derive(Debug, clap::Args)]
pub(crate) struct Args {
    /// The order log, CSV, plain or gzipped
    #[arg(value_name = "ORDERS.csv[.gz]")]
    orders: PathBuf,
    /// Which column holds what
    #[arg(
        long,
        default_value = "order=InvoiceNo,sku=StockCode,quantity=Quantity,user=CustomerID,time=InvoiceDate"
    )]
    columns: Columns,
    /// Opening units of every SKU (that the stock file does not name)
    #[arg(long, value_name = "UNITS")]
    stock: Option<u64>,
    /// Opening units by SKU: a CSV with the columns sku,total
    #[arg(long, value_name = "FILE.csv")]
    stock_file: Option<PathBuf>,
    /// Orders that begin so are cancellations
    #[arg(long, default_value = "C")]
    cancel_prefix: String,
    /// Units of one SKU that one user may buy; without it, any number
    #[arg(long, value_name = "UNITS", value_parser = clap::value_parser!(u32).range(1..))]
    per_user: Option<u32>,
    /// So many times as fast as it happened; without it, as fast as it goes
    #[arg(long, value_name = "FACTOR")]
    speed: Option<f64>,
    /// The longest wait between two carts at --speed
    #[arg(long, default_value = "10s", value_parser = duration)]
    wait_max: Duration,
    /// Write each cart's decision here, one JSON object a line
    #[arg(long, value_name = "FILE.ndjson")]
    decisions: Option<PathBuf>,
    /// Write the stock at the end here
    #[arg(long, value_name = "FILE.csv")]
    final_stock: Option<PathBuf>,
    /// Keep the journal here, for `flash-sale audit`; without it, in a temporary folder
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

/// Replays the file and prints the summary.
pub(crate) fn run(args: &Args) -> Result<()> {
    if args
        .speed
        .is_some_and(|speed| speed.is_nan() || speed <= 0.0)
    {
        bail!("--speed must be above 0: 1 is as fast as it happened, 60 a minute in a second");
    }
    let stock = OpeningStock::new(args.stock, args.stock_file.as_deref())?;
    let mut source = Source::open(args)?;
    let journal = Folder::new(args.data.as_deref())?;
    if std::fs::read_dir(journal.path()).is_ok_and(|mut files| files.next().is_some()) {
        bail!(
            "{} is not empty: a rehearsal begins a journal of its own, name an empty directory or a new one",
            journal.path().display()
        );
    }
    let began = Instant::now();

    let mut cart = source.next();
    let start = cart.as_ref().and_then(|cart| cart.time);
    let clock = Arc::new(ManualClock::at(start.unwrap_or(DAY_ONE)));
    let driver = Driver::new("rehearse", journal.store(), limits(), clock.clone())?;
    let mut replay = Replay::new(driver, clock, stock, args.per_user);
    let mut decisions = output::Decisions::create(args.decisions.as_deref())?;
    let mut pace = Pace::new(args.speed, args.wait_max);
    while let Some(current) = cart {
        pace.wait(current.time);
        let names = source.carts.catalogue.names();
        if let Some(verdict) = replay.cart(&current, names, &mut source.tally)? {
            decisions.write(&current.order, &verdict, names)?;
        }
        cart = source.next();
    }
    decisions.finish()?;
    let took = began.elapsed();

    let stock = replay.availability()?;
    if let Some(path) = &args.final_stock {
        output::write_final_stock(path, source.carts.catalogue.names(), &stock)?;
    }
    let counts = replay.counts;
    let digest = replay.finish()?;
    let mut audit = crate::audit::verify(journal.path())?;
    if audit.digest != format!("{digest:032x}") {
        audit.ok = false;
        let breach = "the log replays to another state than the engine ended with";
        audit.breaches.push(breach.to_owned());
    }
    let summary = Summary::new(source.tally, counts, &stock, took, &audit);
    summary.print(args.json)?;
    if !audit.ok {
        bail!("the audit of the journal found what must not be: see above");
    }
    if let Some(kept) = &args.data {
        eprintln!(
            "The journal is in {0}: flash-sale audit {0}",
            kept.display()
        );
    }
    Ok(())
}

/// Where a cart without any time before it is put.
const DAY_ONE: Timestamp = Timestamp::from_micros(86_400_000_000);

/// Carts out of a file.
struct Source {
    rows: Rows<Box<dyn Read>>,
    carts: Carts,
    tally: Tally,
}

impl Source {
    fn open(args: &Args) -> Result<Self> {
        let rows = Rows::new(rows::open(&args.orders)?, &args.columns)
            .with_context(|| format!("the order log {}", args.orders.display()))?;
        Ok(Self {
            rows,
            carts: Carts::new(&args.cancel_prefix),
            tally: Tally::default(),
        })
    }

    fn next(&mut self) -> Option<Cart> {
        while let Some(row) = self.rows.next(&mut self.tally) {
            if let Some(cart) = self.carts.push(row, &mut self.tally) {
                return Some(cart);
            }
        }
        self.carts.finish()
    }
}

/// Waits as long as the customers did, divided by the speed.
struct Pace {
    speed: Option<f64>,
    wait_max: Duration,
    last: Option<Timestamp>,
}

impl Pace {
    fn new(speed: Option<f64>, wait_max: Duration) -> Self {
        Self {
            speed,
            wait_max,
            last: None,
        }
    }

    fn wait(&mut self, time: Option<Timestamp>) {
        if let (Some(speed), Some(last), Some(time)) = (self.speed, self.last, time) {
            let seconds = time.since(last).as_secs_f64() / speed;
            let wait = Duration::try_from_secs_f64(seconds).unwrap_or(self.wait_max);
            // The log's own gap between two orders, at the speed that was asked for.
            std::thread::sleep(wait.min(self.wait_max));
        }
        self.last = time.max(self.last);
    }
}
