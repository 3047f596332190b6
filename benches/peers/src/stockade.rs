//! stockade: the engine on its journal, with its threads. A batch is one block that is submitted and waited for; in bulk
//! many blocks are on their way, and the engine commits what has arrived.
//!
//! It does all that it always does: it also keeps every hold's deadline, records refusals, and chains and hashes its log.

use super::job::{Answer, LIMIT, Peer, Request, SKU, requests};
use anyhow::{Context, Result, bail, ensure};
use std::collections::VecDeque;
use std::path::Path;
use std::time::{Duration, Instant};
use stockade::engine::{BlockTicket, Engine, Handle, Outcomes};
use stockade::store::{JournalOptions, JournalStore};
use stockade::types::{
    DefineSku, Gate, IdempotencyKey, Refusal, Reserve, Rules, SetGate, SkuId, SkuName, UserId,
};

const ADMIN: UserId = UserId(u128::MAX);
/// In bulk: commands of a block, and blocks on their way.
const BLOCK: usize = 1_024;
const IN_FLIGHT: usize = 64;

struct Stockade {
    /// Ends the threads when it is dropped.
    _engine: Engine,
    handle: Handle,
}

fn start(dir: &Path, total: u64) -> Result<Stockade> {
    let store = JournalStore::new(JournalOptions::new(dir.join("stockade")));
    let engine = Engine::builder().store(store).start()?;
    let handle = engine.handle();
    let rules = Rules {
        per_user: Some(LIMIT),
        ..Rules::default()
    };
    let define = DefineSku::new(ADMIN, SkuName::new("hot")?, total).rules(rules)?;
    let sku = handle.define_sku(define)?.wait()?;
    ensure!(sku == SkuId(SKU), "the first SKU is {sku:?}");
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))?
        .wait()?;
    Ok(Stockade {
        _engine: engine,
        handle,
    })
}

pub(crate) fn make(dir: &Path, total: u64) -> Result<Box<dyn Peer>> {
    Ok(Box::new(start(dir, total)?))
}

fn commands(requests: &[Request]) -> Result<Vec<Reserve>> {
    let command = |request: &Request| {
        let key = IdempotencyKey::new(request.key).context("a key of zero")?;
        Ok(Reserve::one(UserId(request.user), SkuId(SKU), 1)?.key(key))
    };
    requests.iter().map(command).collect()
}

impl Stockade {
    fn submit(&self, requests: &[Request]) -> Result<BlockTicket<Reserve>> {
        let submitted = self.handle.submit_block(commands(requests)?);
        submitted.map_err(|busy| anyhow::anyhow!("{busy}"))
    }
}

fn collect(outcomes: Outcomes<Reserve>, answers: &mut Vec<Answer>) -> Result<()> {
    for outcome in outcomes {
        let answer = match outcome {
            Ok(reservation) => Answer::Held(reservation.id.get()),
            Err(error) => match error.refusal() {
                Some(Refusal::UserLimit { .. }) => Answer::OverLimit,
                Some(Refusal::SoldOut { .. }) => Answer::SoldOut,
                _ => bail!(error),
            },
        };
        answers.push(answer);
    }
    Ok(())
}

impl Peer for Stockade {
    fn reserve(&mut self, batch: &[Request], answers: &mut Vec<Answer>) -> Result<()> {
        collect(self.submit(batch)?.wait(), answers)
    }

    fn reserved(&mut self) -> Result<(u64, Option<u64>)> {
        let stock = self.handle.availability(SkuId(SKU)).context("no stock")?;
        Ok((stock.reserved, None))
    }
}

/// What a bulk run gave.
pub(crate) struct Bulk {
    pub(crate) elapsed: Duration,
    /// Of the engine's own commits.
    pub(crate) p50: Duration,
    pub(crate) p99: Duration,
}

/// From the first submission to the last answer; making the commands is in it.
pub(crate) fn bulk(dir: &Path, warm_up: usize, count: usize) -> Result<Bulk> {
    let stockade = start(dir, 1 << 40)?;
    let mut answers = Vec::with_capacity(warm_up + count);
    drive(&stockade, 1, warm_up, &mut answers)?;
    let began = Instant::now();
    drive(&stockade, 1 + warm_up as u64, count, &mut answers)?;
    let elapsed = began.elapsed();
    let held = answers
        .iter()
        .all(|answer| matches!(answer, Answer::Held(_)));
    ensure!(
        held && answers.len() == warm_up + count,
        "every request was accepted"
    );
    let stats = stockade.handle.stats();
    Ok(Bulk {
        elapsed,
        p50: stats.commit.p50,
        p99: stats.commit.p99,
    })
}

fn drive(stockade: &Stockade, first: u64, count: usize, answers: &mut Vec<Answer>) -> Result<()> {
    let mut out = VecDeque::with_capacity(IN_FLIGHT);
    for at in (0..count).step_by(BLOCK) {
        if out.len() == IN_FLIGHT {
            let ticket: BlockTicket<Reserve> = out.pop_front().context("a ticket")?;
            collect(ticket.wait(), answers)?;
        }
        let block = requests(first + at as u64, BLOCK.min(count - at));
        out.push_back(stockade.submit(&block)?);
    }
    out.into_iter()
        .try_for_each(|ticket| collect(ticket.wait(), answers))
}
