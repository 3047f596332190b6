//! The same crowd without HTTP: open-loop reserves and confirms straight into an engine on a journal.
//!
//! ```text
//! pacer: submits what is due ──► (start, ticket) ──► collector: waits for answers in order, confirms, records
//! ```
//!
//! Decisions come in the order of submission, so one collector that waits for them in turn sees each as soon as it may.

use super::Args;
use super::crowd::share;
use super::record::{Ending, Kind, Outcome, Recorder};
use crate::cli::SkuArg;
use crate::engine::{BusyReason, CommandError, Handle, Ticket};
use crate::sale::{self, Bounds, Folder, Terms};
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};
use stockade::types::{Confirm, IdempotencyKey, Reserve, SkuId, SkuName, UserId};

const TICK: Duration = Duration::from_micros(100);

/// A command under way.
enum Asked {
    Reserve(Instant, UserId, u64, Ticket<Reserve>),
    Confirm(Instant, Ticket<Confirm>),
}

/// Runs it.
pub(super) fn run(args: &Args) -> Result<Outcome> {
    let folder = Folder::new(args.data.as_deref())?;
    let sku = SkuArg {
        name: SkuName::new(&args.sku)?,
        units: args.units,
    };
    let terms = Terms {
        hold: Duration::from_mins(2),
        per_user: 1,
        closed: false,
    };
    let engine = sale::open(&folder.log(), &[sku], &terms, &Bounds::default(), drop)?;
    let handle = engine.handle();
    let sku = handle.sku(&args.sku).context("the SKU was just defined")?;
    let recorder = Arc::new(Recorder::new());
    let (asked, answers) = channel();
    let collector = {
        let (recorder, handle, asked) = (recorder.clone(), handle.clone(), asked.clone());
        let abandon = args.abandon;
        std::thread::Builder::new()
            .name("collector".into())
            .spawn(move || collect(&answers, &asked, &handle, &recorder, abandon))?
    };
    pace(args, &handle, sku, &recorder, &asked)?;
    drop(asked);
    let lost = collector.join().unwrap_or(false);
    let report = engine.shutdown(Duration::from_secs(10));
    if !report.is_clean || lost {
        bail!("the engine did not end in good order: {report:?}");
    }
    Ok(recorder.outcome(args.duration))
}

#[expect(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "counts of one run are far below 2^52"
)]
fn pace(
    args: &Args,
    handle: &Handle,
    sku: SkuId,
    recorder: &Recorder,
    asked: &Sender<Asked>,
) -> Result<()> {
    let run = super::run_name();
    let start = Instant::now();
    let (mut reads, mut reserves) = (0_u64, 0_u64);
    let mut latencies = Vec::new();
    loop {
        let now = start.elapsed();
        if now >= args.duration {
            return Ok(());
        }
        latencies.clear();
        while reads < (now.as_secs_f64() * args.reads) as u64 {
            let due = start + Duration::from_secs_f64(reads as f64 / args.reads);
            std::hint::black_box(handle.availability(sku));
            latencies.push(due.elapsed());
            reads += 1;
        }
        recorder.record_all(Kind::Read, &latencies, &Ending::Done);
        while reserves < (now.as_secs_f64() * args.reserves) as u64 {
            let due = start + Duration::from_secs_f64(reserves as f64 / args.reserves);
            let text = format!("{run}-{reserves}");
            let user = UserId::from_text(&text);
            let command = Reserve::one(user, sku, 1)?.key(IdempotencyKey::from_text(&text)?);
            match handle.reserve(command) {
                Ok(ticket) => asked.send(Asked::Reserve(due, user, reserves, ticket))?,
                Err(busy) if busy.reason == BusyReason::Full => {
                    let ending = Ending::Failed("queue_full".into());
                    recorder.record(Kind::Reserve, due.elapsed(), &ending);
                }
                Err(busy) => bail!("{busy}"),
            }
            reserves += 1;
        }
        // The pacing itself: commands become due with time.
        std::thread::sleep(TICK);
    }
}

/// Until all that was asked is answered, and nobody asks any more. True if an answer was lost.
fn collect(
    answers: &Receiver<Asked>,
    asked: &Sender<Asked>,
    handle: &Handle,
    recorder: &Recorder,
    abandon: f64,
) -> bool {
    let mut lost = false;
    // The collector holds a sender itself, so it ends by silence.
    while let Ok(next) = answers.recv_timeout(Duration::from_secs(1)) {
        let (kind, start, ending) = match next {
            Asked::Reserve(start, user, number, ticket) => {
                let answer = ticket.wait();
                if let Ok(reservation) = &answer
                    && share(number, 2) >= abandon
                    && let Ok(ticket) = handle.confirm(Confirm::unpaid(user, reservation.id))
                {
                    lost |= asked.send(Asked::Confirm(Instant::now(), ticket)).is_err();
                }
                (Kind::Reserve, start, ending(answer.err()))
            }
            Asked::Confirm(start, ticket) => (Kind::Checkout, start, ending(ticket.wait().err())),
        };
        recorder.record(kind, start.elapsed(), &ending);
    }
    lost
}

fn ending(error: Option<CommandError>) -> Ending {
    match error {
        None => Ending::Done,
        Some(CommandError::Refused(refusal)) => Ending::Refused(refusal.code().name().to_owned()),
        Some(error) => Ending::Failed(error.to_string()),
    }
}
