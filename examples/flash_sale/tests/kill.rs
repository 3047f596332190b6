//! `kill -9` under load: whatever a client was told is there after the restart.
//!
//! Clients reserve, pay and release over HTTP while the server is killed at random moments and started again. At the end
//! each 201 is asked for: it must be in a state that its own commands, answered or not, and its deadline explain.
//! Three rounds; `FLASH_SALE_KILLS=20` for more.

mod common;

use common::crowd::{Crowd, Told, all_are_explained, tokens};
use common::{Server, flash_sale};

const TOKENS: usize = 12;

/// A crowd on a server, which goes after so many reservations, as `end` says. Gives what the crowd was told.
fn round(
    server: Server,
    name: &str,
    tokens: &[String],
    reservations: u32,
    end: fn(Server),
) -> Vec<Told> {
    let crowd = Crowd::start(&[server.address], name, tokens);
    crowd.hears(reservations);
    end(server);
    crowd.stop()
}

const FLAGS: [&str; 8] = [
    "--sku",
    "SNEAKER=1000000",
    "--per-user",
    "0",
    "--hold",
    "6s",
    "--payment-latency",
    "3ms",
];

#[test]
fn sigterm_under_load_loses_nothing_and_ends_in_good_order() {
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let server = Server::start(&journal, &FLAGS);
    let all = round(server, "0", &tokens(TOKENS), 200, |server| {
        assert!(server.terminate(), "a clean end");
    });
    all_are_explained(&Server::start(&journal, &FLAGS), &all);
}

#[test]
fn every_answered_reservation_survives_kill_9_under_load() {
    let kills = std::env::var("FLASH_SALE_KILLS")
        .ok()
        .and_then(|kills| kills.parse().ok())
        .unwrap_or(3_u32);
    let dir = tempfile::tempdir().expect("a temporary folder");
    let journal = dir.path().join("journal");
    let tokens = tokens(TOKENS);
    let mut seed = std::process::id() ^ 0x9E37_79B9;
    println!("seed {seed}");
    let mut all: Vec<Told> = Vec::new();
    for number in 0..kills {
        let server = Server::start(&journal, &FLAGS);
        seed = seed.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        let reservations = 20 + (seed >> 16) % 500;
        all.extend(round(
            server,
            &number.to_string(),
            &tokens,
            reservations,
            Server::kill,
        ));
    }

    let server = Server::start(&journal, &FLAGS);
    all_are_explained(&server, &all);
    assert!(server.terminate());
    let audit = flash_sale()
        .arg("audit")
        .arg(&journal)
        .output()
        .expect("starts");
    assert!(
        audit.status.success(),
        "{}",
        String::from_utf8_lossy(&audit.stdout)
    );
    println!(
        "{kills} kills, {} answered reservations, none lost",
        all.len()
    );
}
