//! Clients that reserve, pay and release over HTTP until they are told to stop or the server is gone, and remember what they
//! were told. There is enough for all of them: who hears that there is not, or anything else that was not to be heard, panics.

use super::{Answer, ONE, Server, ask, token};
use std::io::{self, ErrorKind};
use std::net::SocketAddr;
use std::panic::resume_unwind;
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
    key: String,
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

    /// Waits for so many further reservations, from now on.
    pub fn hears(&self, reservations: u32) {
        while self.hears.try_recv().is_ok() {}
        for _ in 0..reservations {
            let heard = self.hears.recv_timeout(PATIENCE);
            heard.expect("the crowd gets its reservations");
        }
    }

    /// Whether everybody is still here: none has lost his server.
    pub fn is_whole(&self) -> bool {
        !self.clients.iter().any(JoinHandle::is_finished)
    }

    /// What it was told.
    ///
    /// # Panics
    /// If one of them was told what nobody may be told.
    pub fn stop(self) -> Vec<Told> {
        self.stop.store(true, Ordering::Relaxed);
        let clients = self.clients.into_iter();
        let told = clients.map(|client| client.join().unwrap_or_else(|panic| resume_unwind(panic)));
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
        let answer = ask(address, "POST", "/api/reserve", &headers, ONE.as_bytes());
        let Some(answer) = unless_gone(answer) else {
            break;
        };
        match answer.status {
            201 => number += 1,
            429 | 503 => {
                // With the same key: it may have been decided. The pause is the client's own, as its answer asks for.
                std::thread::sleep(AGAIN_AFTER);
                continue;
            }
            _ => panic!("{key} was no unit: {answer:?}"),
        }
        let id = answer.text("reservation_id");
        let held = answer.json()["expires_in_seconds"].as_f64();
        told.push(Told {
            token: token.to_owned(),
            key: key.clone(),
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
        let answer = ask(address, method, &path, &headers[..1], body.as_bytes());
        let Some(answer) = unless_gone(answer) else {
            break;
        };
        match answer.status {
            200 => last.is_answered = true,
            429 | 503 => {}
            // Sent once, for a hold of its own: only its deadline can have ended it.
            410 if last.may_have_lapsed() => {}
            _ => panic!("{method} {path}: {answer:?}"),
        }
    }
    told
}

/// The answer, unless the server went away. One that is there and says nothing does not count as gone.
fn unless_gone(answer: io::Result<Answer>) -> Option<Answer> {
    match answer {
        Ok(answer) => Some(answer),
        Err(error) => match error.kind() {
            ErrorKind::ConnectionRefused
            | ErrorKind::ConnectionReset
            | ErrorKind::ConnectionAborted
            | ErrorKind::BrokenPipe
            | ErrorKind::UnexpectedEof => None,
            _ => panic!("no answer: {error}"),
        },
    }
}

impl Told {
    fn may_have_lapsed(&self) -> bool {
        Instant::now() + Duration::from_secs(1) > self.expires
    }
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

/// Asserts that whoever asks again with his key gets the reservation that he has.
#[track_caller]
pub fn all_are_repeated(server: &Server, all: &[Told]) {
    for told in all {
        let again = server.reserve(&told.token, &told.key, ONE).is(201);
        assert_eq!(again.text("reservation_id"), told.id, "{}", told.key);
    }
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
    if told.may_have_lapsed() {
        states.push("EXPIRED");
    }
    states
}
