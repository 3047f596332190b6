//! Sells one pair of shoes to two people, durably in memory only: the whole API in thirty lines.

use stockade::Engine;
use stockade::types::{Confirm, DefineSku, Gate, Reserve, SetGate, SkuName, UserId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let engine = Engine::builder().name("quickstart").start()?;
    let handle = engine.handle();

    let admin = UserId::from_text("admin");
    let name = SkuName::new("SNEAKER-42")?;
    let sku = handle.define_sku(DefineSku::new(admin, name, 1))?.wait()?;
    handle
        .set_gate(SetGate::new(admin, sku, Gate::Open))?
        .wait()?;

    let (ann, bob) = (
        UserId::from_text("ann@example.com"),
        UserId::from_text("bob@example.com"),
    );
    let held = handle.reserve(Reserve::one(ann, sku, 1)?)?.wait()?;
    println!("ann holds {} until {}", held.id, held.expires_at);
    match handle.reserve(Reserve::one(bob, sku, 1)?)?.wait() {
        Ok(held) => println!("bob holds {}", held.id),
        Err(refused) => println!("bob: {refused}"),
    }
    println!(
        "ann pays: {:?}",
        handle.confirm(Confirm::unpaid(ann, held.id))?.wait()?
    );

    let stock = handle.availability(sku).ok_or("the SKU is gone")?;
    println!(
        "{} sold, {} available of {}",
        stock.sold, stock.available, stock.total
    );
    Ok(())
}
