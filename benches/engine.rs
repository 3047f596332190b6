//! The engine end to end: submit to collected decision, all threads on the machine's cores.
//!
//! A decision is an accepted single-line reservation of a new user with a new key, limits and retention on, one hot
//! SKU whose stock exceeds the run. Bulk: blocks of 1,024, at most 65,536 commands in flight, from the first submit to
//! the last collected answer. `--test` runs every row once, small. `--rows a,b` picks rows.
//!
//! Run: `cargo bench --bench engine`
#![expect(clippy::disallowed_methods, reason = "a bench measures real time")]
#![expect(clippy::cast_precision_loss, reason = "rates are for people")]

use std::collections::VecDeque;
use std::time::{Duration, Instant};
use stockade::engine::{BlockTicket, Engine, Handle};
use stockade::types::{
    DefineSku, Gate, IdempotencyKey, Reserve, Rules, SetGate, SkuId, SkuName, UserId,
};

const BLOCK: u64 = 1_024;
const IN_FLIGHT: usize = 64;
const ADMIN: UserId = UserId(u128::MAX);

struct Scale {
    warm_up: u64,
    run: u64,
    rounds: usize,
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let is_test = std::env::args().any(|argument| argument == "--test");
    let scale = if is_test {
        Scale {
            warm_up: 4 * BLOCK,
            run: 16 * BLOCK,
            rounds: 1,
        }
    } else {
        Scale {
            warm_up: 1_000_000,
            run: 10_000_000,
            rounds: 5,
        }
    };
    println!(
        "{:<34} {:>14} {:>10} {:>10}",
        "engine/bulk", "decisions/s", "min", "max"
    );
    row("base/submit_without_deciding", &scale, base)?;
    row("memory/one_hot_sku", &scale, memory)?;
    Ok(())
}

type Run = fn(&Scale) -> Result<f64, Box<dyn std::error::Error>>;

fn row(name: &str, scale: &Scale, run: Run) -> Result<(), Box<dyn std::error::Error>> {
    let mut rates: Vec<f64> = (0..scale.rounds)
        .map(|_| run(scale))
        .collect::<Result<_, _>>()?;
    rates.sort_by(f64::total_cmp);
    let median = rates[rates.len() / 2];
    println!(
        "{name:<34} {median:>14.0} {:>10.0} {:>10.0}",
        rates[0],
        rates[rates.len() - 1]
    );
    Ok(())
}

fn commands(first: u64) -> Vec<Reserve> {
    (first..first + BLOCK)
        .map(|n| {
            let key = IdempotencyKey::new(u128::from(n) + 1).expect("not zero");
            // Spread like hashed user ids, so that no table sees an order.
            let user =
                UserId(u128::from(n.wrapping_mul(0x9E37_79B9_7F4A_7C15)) << 32 | u128::from(n));
            Reserve::one(user, SkuId(0), 1).expect("a cart").key(key)
        })
        .collect()
}

/// What making the commands costs by itself.
#[expect(clippy::unnecessary_wraps, reason = "a row like the others")]
fn base(scale: &Scale) -> Result<f64, Box<dyn std::error::Error>> {
    let began = Instant::now();
    for first in (0..scale.run).step_by(1_024) {
        std::hint::black_box(commands(first));
    }
    Ok(scale.run as f64 / began.elapsed().as_secs_f64())
}

fn memory(scale: &Scale) -> Result<f64, Box<dyn std::error::Error>> {
    let engine = Engine::builder().start()?;
    let rate = bulk(&engine.handle(), scale)?;
    engine.shutdown(Duration::from_secs(60));
    Ok(rate)
}

fn bulk(handle: &Handle, scale: &Scale) -> Result<f64, Box<dyn std::error::Error>> {
    let define = DefineSku::new(ADMIN, SkuName::new("hot")?, 1 << 40);
    let sku = handle.define_sku(define.rules(Rules::default())?)?.wait()?;
    handle
        .set_gate(SetGate::new(ADMIN, sku, Gate::Open))?
        .wait()?;
    drive(handle, 0, scale.warm_up)?;
    let began = Instant::now();
    drive(handle, scale.warm_up, scale.run)?;
    let rate = scale.run as f64 / began.elapsed().as_secs_f64();
    let stock = handle.availability(sku).ok_or("no stock")?;
    let asked = scale.warm_up.next_multiple_of(BLOCK) + scale.run.next_multiple_of(BLOCK);
    assert!(
        stock.reserved >= asked - BLOCK,
        "every command was accepted"
    );
    Ok(rate)
}

fn drive(handle: &Handle, first: u64, count: u64) -> Result<(), Box<dyn std::error::Error>> {
    let mut out: VecDeque<BlockTicket<Reserve>> = VecDeque::new();
    let collect = |ticket: BlockTicket<Reserve>| -> Result<(), Box<dyn std::error::Error>> {
        for outcome in ticket.wait() {
            outcome?;
        }
        Ok(())
    };
    for first in (first..first + count).step_by(1_024) {
        if out.len() == IN_FLIGHT
            && let Some(ticket) = out.pop_front()
        {
            collect(ticket)?;
        }
        out.push_back(handle.submit_block(commands(first))?);
    }
    out.into_iter().try_for_each(collect)
}
