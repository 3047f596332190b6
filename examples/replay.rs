//! A journal in, the same state out: writes a small sale, then reads the log back, from its snapshot if there is one and
//! from its first event, and compares the digests. With a directory as its argument it replays that one.

use std::path::{Path, PathBuf};
use std::time::Duration;
use stockade::Engine;
use stockade::allocator::{Allocator, Limits};
use stockade::store::{JournalOptions, JournalStore, journal};
use stockade::types::{Confirm, DefineSku, Gate, Reserve, SetGate, SkuName, UserId};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    if let Some(directory) = std::env::args().nth(1) {
        println!("digest {:032x}", replay(Path::new(&directory), true)?);
        return Ok(());
    }
    let directory = std::env::temp_dir().join(format!("stockade-replay-{}", std::process::id()));
    let written = write(directory.clone());
    let read = replay(&directory, false);
    std::fs::remove_dir_all(&directory)?;
    let (written, read) = (written?, read?);
    println!("written {written:032x}\nread    {read:032x}");
    assert_eq!(written, read, "the log replays to the same state");
    Ok(())
}

fn write(directory: PathBuf) -> Result<u128, Box<dyn std::error::Error>> {
    let store = JournalStore::new(JournalOptions::new(directory));
    let engine = Engine::builder()
        .store(store)
        .digest_at_shutdown()
        .start()?;
    let handle = engine.handle();
    let admin = UserId::from_text("admin");
    let sku = handle
        .define_sku(DefineSku::new(admin, SkuName::new("VASE")?, 500))?
        .wait()?;
    handle
        .set_gate(SetGate::new(admin, sku, Gate::Open))?
        .wait()?;
    for user in (0..1_000).map(UserId::from) {
        if let Ok(held) = handle.reserve(Reserve::one(user, sku, 1)?)?.wait() {
            let _sold = handle.confirm(Confirm::unpaid(user, held.id))?.wait()?;
        }
    }
    let report = engine.shutdown(Duration::from_secs(10));
    Ok(report
        .digest
        .ok_or("the engine did not end in good order")?)
}

fn replay(directory: &Path, from_snapshot: bool) -> Result<u128, Box<dyn std::error::Error>> {
    let mut state = Allocator::new(Limits::default(), 0);
    let read = journal::read(directory, from_snapshot, &mut state, &mut |_| {})?;
    println!("{} batches, {} events", read.batches_read, read.events_read);
    assert!(state.audit().is_ok(), "the laws hold");
    Ok(state.digest())
}
