//! Clients that reserve, pay and release over HTTP until they are told to stop or the server is gone, and remember what they
//! were told.

use super::{Server, ask, token};
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How long a crowd may take for the reservations that are waited for.
const PATIENCE: Duration = Duration::from_secs(60);
/// Whoever is told to ask again later does so after this.
const AGAIN_AFTER: Duration = Duration::from_millis(50);

/// What a client knows of one of its reservations.
pub struct Told {
    token: String,
    id: String,
    /// Past it the hold may have lapsed.
    expires: Instant,
    /// What was sent after it.
    sent: Option<&'static str>,
    /// Whether that was answered with 200.
    is_answered: bool,
}

/// A client for each token, shared out over the servers.
pub struct Crowd {
    clients: Vec<JoinHandle<Vec<Told>>>,
    hears: Receiver<()>,
    stop: Arc<AtomicBool>,
}

impl Crowd {
    /// `name` makes the keys of this crowd its own.
    pub fn start(servers: &[SocketAddr], name: &str, tokens: &[String]) -> Self {
        let (heard, hears) = mpsc::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let clients = tokens.iter().zip(servers.iter().cycle()).enumerate();
        let clients = clients.map(|(user, (token, &address))| {
            let (token, name) = (token.clone(), format!("{name}-{user}"));
            let (heard, stop) = (heard.clone(), Arc::clone(&stop));
            std::thread::spawn(move || client(address, &token, &name, &heard, &stop))
        });
        Self {
            clients: clients.collect(),
            hears,
            stop,
        }
    }

    /// Waits for so many further reservations.
    pub fn hears(&self, reservations: u32) {
        for _ in 0..reservations {
            let heard = self.hears.recv_timeout(PATIENCE);
            heard.expect("the crowd gets its reservations");
        }
    }

    /// What it was told.
    pub fn stop(self) -> Vec<Told> {
        self.stop.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        let told = clients.map(|client| client.join().expect("clients don't panic"));
        told.flatten().collect()
    }
}

/// Tokens of so many users.
pub fn tokens(users: usize) -> Vec<String> {
    (0..users)
        .map(|user| token(&format!("user-{user}")))
        .collect()
}

fn client(
    address: SocketAddr,
    token: &str,
    name: &str,
    heard: &Sender<()>,
    stop: &AtomicBool,
) -> Vec<Told> {
    let mut told: Vec<Told> = Vec::new();
    let bearer = format!("Bearer {token}");
    let mut number = 0;
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{name}-{number}");
        let headers = [
            ("authorization", bearer.as_str()),
            ("idempotency-key", key.as_str()),
        ];
        let body = br#"{"sku_id":"SNEAKER","quantity":1}"#;
        let Ok(answer) = ask(address, "POST", "/api/reserve", &headers, body) else {
            break;
        };
        if matches!(answer.status, 429 | 503) {
            // With the same key: it may have been decided. The pause is the client's own, as its answer asks for.
            std::thread::sleep(AGAIN_AFTER);
            continue;
        }
        number += 1;
        if answer.status != 201 {
            continue;
        }
        let id = answer.text("reservation_id");
        let held = answer.json()["expires_in_seconds"].as_f64();
        told.push(Told {
            token: token.to_owned(),
            id: id.clone(),
            expires: Instant::now() + Duration::from_secs_f64(held.expect("a time")),
            sent: None,
            is_answered: false,
        });
        // Nobody counts any more once the round ends.
        let _ = heard.send(());
        let last = told.last_mut().expect("just pushed");
        let (method, path, body) = match number % 3 {
            1 => continue,
            2 => {
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

/// Asserts that each reservation is in a state that what was sent after it, answered or not, and its deadline explain.
#[track_caller]
pub fn all_are_explained(server: &Server, all: &[Told]) {
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
