//! An engine without threads: a `Runner` in one's own loop, here a small simulation in which a hold lapses and its unit
//! is sold again. Time is moved by hand.

use std::sync::Arc;
use std::time::Duration;
use stockade::Engine;
use stockade::types::{DefineSku, Gate, ManualClock, Reserve, SetGate, SkuName, Timestamp, UserId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let clock = Arc::new(ManualClock::at(
        "2025-01-15T10:30:00Z".parse::<Timestamp>()?,
    ));
    let (handle, mut runner) = Engine::builder().clock(clock.clone()).build()?;
    let admin = UserId::from_text("admin");

    let defined = handle.define_sku(DefineSku::new(admin, SkuName::new("LAMP")?, 1))?;
    runner.step()?;
    let sku = defined.wait()?;
    let opened = handle.set_gate(SetGate::new(admin, sku, Gate::Open))?;
    let first = handle.reserve(Reserve::one(UserId::from(1), sku, 1)?)?;
    let second = handle.reserve(Reserve::one(UserId::from(2), sku, 1)?)?;
    // One step decides all three, in one batch.
    println!("{:?}", runner.step()?);
    opened.wait()?;
    println!("first:  held until {}", first.wait()?.expires_at);
    println!(
        "second: {}",
        second
            .wait()
            .map_or_else(|refused| refused.to_string(), |_| "held".into())
    );

    clock.advance(Duration::from_secs(120));
    let third = handle.reserve(Reserve::one(UserId::from(3), sku, 1)?)?;
    runner.step()?;
    println!("third:  held until {}", third.wait()?.expires_at);
    println!("digest: {:032x}", runner.shutdown()?);
    Ok(())
}
