//! `kill -9` under load: whatever a client was told is there after the restart.
//!
//! Clients reserve, pay and release over HTTP while the server is killed at random moments and started again. At the end
//! each 201 is asked for: it must be in a state that its own commands, answered or not, and its deadline explain.
//! Three rounds; `FLASH_SALE_KILLS=20` for more.

mod common;

use common::{Server, ask, flash_sale, token};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Sender};
use std::time::{Duration, Instant};

/// What a client knows of one of its reservations.
struct Told {
    token: String,
    id: String,
    /// Past it the hold may have lapsed.
    expires: Instant,
    /// What was sent after it.
    sent: Option<&'static str>,
    /// Whether that was answered with 200.
    is_answered: bool,
}

const HOLD: Duration = Duration::from_secs(6);
const TOKENS: usize = 12;

/// How long a crowd may take for the reservations that a round waits for.
const PATIENCE: Duration = Duration::from_secs(60);

/// One client, until it is told to stop or the server is gone. Each of its reservations is reported when it hears of it.
fn client(
    address: SocketAddr,
    token: &str,
    name: &str,
    heard: &Sender<()>,
    stop: &AtomicBool,
) -> Vec<Told> {
    let mut told: Vec<Told> = Vec::new();
    let bearer = format!("Bearer {token}");
    for number in 0.. {
        if stop.load(Ordering::Relaxed) {
            break;
        }
        let key = format!("{name}-{number}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("idempotency-key", key.as_str()),
        ];
        let body = br#"{"sku_id":"SNEAKER","quantity":1}"#;
        let Ok(answer) = ask(address, "POST", "/api/reserve", &headers, body) else {
            break;
        };
        if answer.status != 201 {
            continue;
        }
        let id = answer.text("reservation_id");
        told.push(Told {
            token: token.to_owned(),
            id: id.clone(),
            expires: Instant::now() + HOLD,
            sent: None,
            is_answered: false,
        });
        // Nobody counts any more once the round ends.
        let _ = heard.send(());
        let last = told.last_mut().expect("just pushed");
        let (method, path, body) = match number % 3 {
            0 => continue,
            1 => {
                last.sent = Some("CONFIRMED");
                let body = format!(r#"{{"reservation_id":"{id}","payment_token":"card"}}"#);
                ("POST", "/api/checkout".to_owned(), body)
            }
            _ => {
                last.sent = Some("RELEASED");
                ("DELETE", format!("/api/reservations/{id}"), String::new())
            }
        };
        match ask(address, method, &path, &headers[..1], body.as_bytes()) {
            Ok(answer) => last.is_answered = answer.status == 200,
            Err(_) => break,
        }
    }
    told
}

/// The states that a reservation may be in.
fn explained(told: &Told) -> Vec<&'static str> {
    let mut states = Vec::new();
    if told.is_answered {
        states.extend(told.sent);
        return states;
    }
    states.extend(told.sent);
    // A checkout that was cut off may have begun its payment, and has its grace.
    if told.sent == Some("CONFIRMED") {
        states.push("IN_PAYMENT");
    }
    // Within a second of the deadline either is right.
    if Instant::now() < told.expires + Duration::from_secs(1) {
        states.push("RESERVED");
    }
    if Instant::now() + Duration::from_secs(1) > told.expires {
        states.push("EXPIRED");
    }
    states
}

/// A crowd on a server, which goes after so many reservations, as `end` says. Gives what the crowd was told.
fn round(
    server: Server,
    name: &str,
    tokens: &[String],
    reservations: u32,
    end: fn(Server),
) -> Vec<Told> {
    let (heard, hears) = mpsc::channel();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = tokens
        .iter()
        .enumerate()
        .map(|(user, token)| {
            let (address, token, stop) = (server.address, token.clone(), stop.clone());
            let (name, heard) = (format!("{name}-{user}"), heard.clone());
            std::thread::spawn(move || client(address, &token, &name, &heard, &stop))
        })
        .collect();
    for _ in 0..reservations {
        hears
            .recv_timeout(PATIENCE)
            .expect("the crowd gets its reservations");
    }
    end(server);
    stop.store(true, Ordering::Relaxed);
    let told = clients
        .into_iter()
        .map(|client| client.join().expect("clients don't panic"));
    told.flatten().collect()
}

#[track_caller]
fn all_are_explained(server: &Server, all: &[Told]) {
    for told in all {
        let found = server.reservation("GET", &told.token, &told.id);
        assert_eq!(found.status, 200, "{} is lost: {found:?}", told.id);
        let (status, expected) = (found.text("status"), explained(told));
        assert!(
            expected.contains(&status.as_str()),
            "{} is {status}, explained would be {expected:?}",
            told.id
        );
    }
    assert_eq!(server.get("/readyz").status, 200);
    assert!(server.get("/metrics").body.contains("oversell_count 0"));
}

fn tokens() -> Vec<String> {
    (0..TOKENS)
        .map(|user| token(&format!("user-{user}")))
        .collect()
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
    let all = round(server, "0", &tokens(), 200, |server| {
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
    let tokens = tokens();
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
