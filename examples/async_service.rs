//! Tickets are futures: an async service awaits them, on whatever runtime it has. Here on tokio, with a thousand
//! shoppers for a hundred units.

use stockade::Engine;
use stockade::engine::{CommandError, Handle};
use stockade::types::{Confirm, DefineSku, Gate, Reserve, SetGate, SkuId, SkuName, UserId};

/// What a request handler does. Dropping its future, because the client left, cancels nothing: a hold that nobody pays
/// lapses by itself.
async fn shop(
    handle: Handle,
    sku: SkuId,
    user: UserId,
) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let held = match handle.reserve(Reserve::one(user, sku, 1)?)?.await {
        Ok(held) => held,
        Err(CommandError::Refused(_)) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    let _sold = handle.confirm(Confirm::unpaid(user, held.id))?.await?;
    Ok(true)
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let engine = Engine::builder().name("async").start()?;
    let handle = engine.handle();
    let admin = UserId::from_text("admin");
    let sku = handle
        .define_sku(DefineSku::new(admin, SkuName::new("TICKET")?, 100))?
        .await?;
    handle
        .set_gate(SetGate::new(admin, sku, Gate::Open))?
        .await?;

    let shoppers: Vec<_> = (0..1_000_u64)
        .map(|user| tokio::spawn(shop(handle.clone(), sku, UserId::from(user))))
        .collect();
    let mut happy = 0;
    for shopper in shoppers {
        happy += usize::from(shopper.await??);
    }
    println!("{happy} of 1000 shoppers have one of 100 tickets");
    assert_eq!(happy, 100);
    Ok(())
}
