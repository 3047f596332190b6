//! Buyers of a unit that somebody has nearly always: they are refused, and now and then one of them gets it for a second. Each
//! answer that they heard must be the one that the log gives.
//!
//! The hold lapses while a standby waits for its role. So what a writer refused that may not decide any more, its successor
//! sells to whoever is first in line, and the two differ.

use crate::common::{Answer, Server, ask, becomes, token};
use crate::places::Places;
use std::collections::HashSet;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;
use stockade::types::{IdempotencyKey, UserId};

const RARE: &str = r#"{"sku_id":"RARE","quantity":1}"#;
const BUYERS: usize = 4;
/// From an answer to the next request.
const PAUSE: Duration = Duration::from_millis(10);
/// Asking is slow: of the answers that each buyer heard, so many are asked for again.
const AGAIN: usize = 50;

/// They ask until they are told to stop.
pub(crate) struct Buyers {
    threads: Vec<JoinHandle<Vec<Heard>>>,
    stop: Arc<AtomicBool>,
}

/// An answer, and to what.
pub(crate) struct Heard {
    user: String,
    token: String,
    key: String,
    answer: Answer,
}

impl Buyers {
    /// They begin once all nodes know what they want.
    pub(crate) fn start(nodes: &[Server]) -> Self {
        let defines = r#"{"sku_id":"RARE","units":1,"hold_ms":1000,"per_user":0}"#;
        nodes[0].admin("skus", "rare", defines).is(201);
        nodes[0].admin("products/RARE/open", "rare", "{}").is(200);
        for node in nodes {
            becomes("the rare SKU at a node", "200", || {
                let shown = node.get("/api/products/RARE/availability");
                shown.status.to_string()
            });
        }
        let stop = Arc::new(AtomicBool::new(false));
        let threads = (0..BUYERS).zip(nodes.iter().cycle()).map(|(number, node)| {
            let (address, stop) = (node.address, Arc::clone(&stop));
            std::thread::spawn(move || buyer(address, number, &stop))
        });
        Self {
            threads: threads.collect(),
            stop,
        }
    }

    /// What they heard.
    pub(crate) fn stop(self) -> Vec<Heard> {
        self.stop.store(true, Ordering::Relaxed);
        let threads = self.threads.into_iter();
        let heard = threads.map(|thread| thread.join().expect("buyers don't panic"));
        heard.flatten().collect()
    }
}

fn buyer(address: SocketAddr, number: usize, stop: &AtomicBool) -> Vec<Heard> {
    let user = format!("buyer-{number}");
    let token = token(&user);
    let bearer = format!("Bearer {token}");
    let mut heard: Vec<Heard> = Vec::new();
    while !stop.load(Ordering::Relaxed) {
        let key = format!("{user}-{}", heard.len());
        let headers = [
            ("authorization", bearer.as_str()),
            ("idempotency-key", key.as_str()),
        ];
        let answer = ask(address, "POST", "/api/reserve", &headers, RARE.as_bytes());
        let answer = answer.expect("an answer");
        match answer.status {
            201 => {}
            409 => assert_eq!(answer.text("code"), "sold_out", "{answer:?}"),
            // With the same key: it may have been decided.
            429 | 503 => {
                std::thread::sleep(PAUSE);
                continue;
            }
            _ => panic!("{key}: {answer:?}"),
        }
        heard.push(Heard {
            user: user.clone(),
            token: token.clone(),
            key,
            answer,
        });
        // A buyer's own pace.
        std::thread::sleep(PAUSE);
    }
    heard
}

impl Heard {
    /// As the log names it.
    fn place(&self) -> (u128, u128) {
        let key = IdempotencyKey::from_text(&self.key).expect("a key");
        (UserId::from_text(&self.user).0, key.get())
    }

    /// What it decided.
    fn decision(answer: &Answer) -> (u16, String) {
        let what = match answer.status {
            201 => answer.text("reservation_id"),
            _ => answer.text("code"),
        };
        (answer.status, what)
    }
}

/// Asserts that the log has the same answer to each of their requests, and no other one, and that so has who asks again.
#[track_caller]
pub(crate) fn all_stand(places: &Places, server: &Server, all: &[Heard]) {
    let asked = |rows: &str| -> HashSet<(u128, u128)> {
        let rows = places.sql(&format!(
            "SELECT replace(user_id || ' ' || key, '-', '') FROM stockade.{rows}"
        ));
        let number = |hex: &str| u128::from_str_radix(hex, 16).expect("an id");
        let row = |row: &str| {
            let (user, key) = row.split_once(' ').expect("two ids");
            (number(user), number(key))
        };
        rows.lines().map(row).collect()
    };
    let refused = asked("refusals WHERE command = 1 AND key IS NOT NULL");
    let sold = asked("reservations WHERE key IS NOT NULL");
    let mut refusals = 0;
    for heard in all {
        let (is_refused, place) = (heard.answer.status == 409, heard.place());
        refusals += u32::from(is_refused);
        let found = (refused.contains(&place), sold.contains(&place));
        assert_eq!(
            found,
            (is_refused, !is_refused),
            "in the log as refused, as sold: {} of {}, who heard {:?}",
            heard.key,
            heard.user,
            heard.answer
        );
    }
    assert!(refusals >= 30, "{refusals} refusals were heard");
    for heard in all.iter().step_by(all.len() / (BUYERS * AGAIN) + 1) {
        let again = server.reserve(&heard.token, &heard.key, RARE);
        let (told, again) = (Heard::decision(&heard.answer), Heard::decision(&again));
        assert_eq!(told, again, "{} of {}", heard.key, heard.user);
    }
}
