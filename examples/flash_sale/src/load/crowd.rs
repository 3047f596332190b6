//! The crowd: connections that take what is due, ask the server, and record what they met.
//!
//! ```text
//! pacer thread ──► reads     ──► read connections  (up to `pipeline` in flight on each)
//!             ──► reserves  ──► write connections (one in flight on each)
//!             ──► checkouts ──► checkout connections (the same)
//!        later ◄── a reservation's checkout, after the buyer has thought about it
//! ```

use super::http::{Answer, Connection};
use super::pacer::{Agenda, Line, Rates, Write};
use super::record::{Ending, Kind, Recorder};
use crate::token::Signer;
use anyhow::{Context, Result};
use std::fmt::Write as _;
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

/// How the crowd behaves.
#[derive(Debug, Clone)]
pub(crate) struct Behaviour {
    /// Servers, each with its part of the connections.
    pub(crate) addresses: Vec<SocketAddr>,
    pub(crate) sku: String,
    /// Makes one run's users and keys differ from another's.
    pub(crate) run: String,
    pub(crate) rates: Rates,
    pub(crate) duration: Duration,
    /// Of those who reserve, how many never pay.
    pub(crate) abandon: f64,
    /// After so long nobody abandons any more, so that a sale comes to its end.
    pub(crate) abandon_for: Duration,
    /// Of those who come, how many have been there just before, under another key.
    pub(crate) again: f64,
    /// Of those who pay, how many are declined at first, and pay with another card.
    pub(crate) decline: f64,
    /// How long a buyer takes from the reservation to the checkout.
    pub(crate) think: Duration,
    pub(crate) read_connections: usize,
    pub(crate) write_connections: usize,
    pub(crate) checkout_connections: usize,
    /// Reads in flight per connection.
    pub(crate) pipeline: usize,
}

/// An answered reservation or order, for comparison with the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Receipt {
    pub(crate) reservation: String,
    pub(crate) is_order: bool,
}

/// A crowd at work.
pub(crate) struct Crowd {
    pub(crate) recorder: Arc<Recorder>,
    agenda: Arc<Agenda>,
    receipts: Arc<Mutex<Vec<Receipt>>>,
    pacer: JoinHandle<()>,
    clients: JoinHandle<()>,
    started: Instant,
}

/// After the last arrival, how long buyers may finish.
const LINGER: Duration = Duration::from_secs(20);
/// Who hears that the outcome is unknown asks again after this, as the answer says; so does who has units and can't pay just now.
const AGAIN_AFTER: Duration = Duration::from_secs(1);
/// Whoever waits so long for a free connection is held up by the crowd, not by the server alone.
const HELD_UP_AFTER: Duration = Duration::from_millis(100);
const HOUR: Duration = Duration::from_hours(1);

type LineOf = fn(&Agenda) -> &Line<Write>;

struct Client {
    behaviour: Behaviour,
    agenda: Arc<Agenda>,
    recorder: Arc<Recorder>,
    receipts: Arc<Mutex<Vec<Receipt>>>,
    signer: Signer,
    started: Instant,
}

impl Crowd {
    /// Sends it; tokens are signed with `secret`.
    pub(crate) fn start(behaviour: &Behaviour, secret: &str) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("can't start the crowd")?;
        let agenda = Arc::new(Agenda::new());
        let recorder = Arc::new(Recorder::new());
        let receipts = Arc::new(Mutex::new(Vec::new()));
        let started = Instant::now();
        let client = Arc::new(Client {
            behaviour: behaviour.clone(),
            agenda: agenda.clone(),
            recorder: recorder.clone(),
            receipts: receipts.clone(),
            signer: Signer::new(secret),
            started,
        });
        let clients = std::thread::Builder::new()
            .name("crowd".into())
            .spawn(move || {
                let mut tasks = Vec::new();
                let Behaviour {
                    addresses,
                    read_connections,
                    write_connections,
                    checkout_connections,
                    ..
                } = &client.behaviour;
                for &address in addresses.iter().cycle().take(*read_connections) {
                    tasks.push(runtime.spawn(client.clone().reader(address)));
                }
                let lines: [(LineOf, usize); 2] = [
                    (|agenda| &agenda.reserves, *write_connections),
                    (|agenda| &agenda.checkouts, *checkout_connections),
                ];
                for (line, connections) in lines {
                    for &address in addresses.iter().cycle().take(connections) {
                        tasks.push(runtime.spawn(client.clone().writer(address, line)));
                    }
                }
                runtime.block_on(async {
                    for task in tasks {
                        // A panic of one client has been printed; the others go on.
                        let _ = task.await;
                    }
                });
            })?;
        let pacer = {
            let agenda = agenda.clone();
            let (rates, duration) = (behaviour.rates, behaviour.duration);
            std::thread::Builder::new()
                .name("pacer".into())
                .spawn(move || agenda.run(started, rates, duration, LINGER))?
        };
        Ok(Self {
            recorder,
            agenda,
            receipts,
            pacer,
            clients,
            started,
        })
    }

    /// No more arrivals.
    pub(crate) fn stop(&self) {
        self.agenda.stop();
    }

    /// Since when it is there.
    pub(crate) fn started(&self) -> Instant {
        self.started
    }

    /// True once everybody is gone.
    pub(crate) fn is_gone(&self) -> bool {
        self.clients.is_finished()
    }

    /// Requests that are due and wait for a free connection.
    pub(crate) fn waiting(&self) -> usize {
        let Agenda {
            reads,
            reserves,
            checkouts,
            ..
        } = &*self.agenda;
        reads.len() + reserves.len() + checkouts.len()
    }

    /// Waits until everybody is gone; gives what was answered with 201 and 200.
    pub(crate) fn finish(self) -> Vec<Receipt> {
        // A panic has been printed; what the others met still counts.
        let _ = self.pacer.join();
        let _ = self.clients.join();
        let Agenda {
            reads,
            reserves,
            checkouts,
            ..
        } = &*self.agenda;
        let left = [
            (Kind::Read, reads.left()),
            (Kind::Reserve, reserves.left()),
            (Kind::Checkout, checkouts.left()),
        ];
        for (kind, left) in left {
            for due in left {
                let ending = Ending::Failed("no free connection".to_owned());
                self.recorder.record(kind, due.elapsed(), &ending);
            }
        }
        std::mem::take(&mut self.receipts.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl Client {
    async fn reader(self: Arc<Self>, address: SocketAddr) {
        let request = format!(
            "GET /api/products/{}/availability HTTP/1.1\r\nhost: sale\r\n\r\n",
            percent_encoded(&self.behaviour.sku)
        );
        let pipeline = self.behaviour.pipeline.max(1);
        let requests = request.repeat(pipeline);
        let mut connection = Connection::new(address);
        let (mut due, mut latencies) = (Vec::new(), Vec::new());
        loop {
            self.agenda.reads.take(pipeline, &mut due).await;
            if due.is_empty() {
                return;
            }
            latencies.clear();
            let mut failed: Vec<(Duration, String)> = Vec::new();
            let mut starts = due.iter();
            let bytes = &requests.as_bytes()[..request.len() * due.len()];
            let asked = connection.ask_all(bytes, due.len(), |status, _| {
                let latency = starts.next().map_or(Duration::ZERO, |due| due.0.elapsed());
                if status == 200 {
                    latencies.push(latency);
                } else {
                    failed.push((latency, status.to_string()));
                }
            });
            let error = asked.await.err();
            let unanswered = starts.map(|due| due.0.elapsed());
            if let Some(error) = error {
                failed.extend(unanswered.map(|latency| (latency, error.kind().to_string())));
            }
            self.recorder
                .record_all(Kind::Read, &latencies, &Ending::Done);
            for (latency, what) in failed {
                self.recorder
                    .record(Kind::Read, latency, &Ending::Failed(what));
            }
        }
    }

    async fn writer(self: Arc<Self>, address: SocketAddr, line: LineOf) {
        let mut connection = Connection::new(address);
        let mut due = Vec::new();
        loop {
            line(&self.agenda).take(1, &mut due).await;
            let Some((start, write)) = due.pop() else {
                return;
            };
            if start.elapsed() >= HELD_UP_AFTER {
                self.recorder.record_held_up();
            }
            let request = match self.request(&write) {
                Ok(request) => request,
                Err(error) => {
                    eprintln!("the crowd can't sign tokens: {error:#}");
                    return;
                }
            };
            let answer = connection.ask(request.as_bytes()).await;
            let ending = match &answer {
                Ok(answer) => ending(answer),
                Err(error) => Ending::Failed(error.kind().to_string()),
            };
            let kind = match write {
                Write::Reserve(_) => Kind::Reserve,
                Write::Checkout { .. } => Kind::Checkout,
            };
            self.recorder.record(kind, start.elapsed(), &ending);
            if let Ok(answer) = answer {
                self.follow_up(write, &answer);
            }
        }
    }

    fn request(&self, write: &Write) -> Result<String> {
        let run = &self.behaviour.run;
        let (user, path, key, body) = match write {
            Write::Reserve(user) => (
                *user,
                "reserve",
                format!("idempotency-key: {run}-{user}\r\n"),
                format!(
                    "{{\"sku_id\":{},\"quantity\":1}}",
                    serde_json::to_string(&self.behaviour.sku)?
                ),
            ),
            Write::Checkout {
                user,
                reservation,
                attempt,
            } => {
                let declined = *attempt == 1 && share(*user, 1) < self.behaviour.decline;
                let card = if declined { "decline" } else { "card" };
                (
                    *user,
                    "checkout",
                    String::new(),
                    format!(
                        "{{\"reservation_id\":\"{reservation}\",\"payment_token\":\"{card}-{attempt}\"}}"
                    ),
                )
            }
        };
        let who = self.identity(user);
        let token = self.signer.sign(&format!("{run}-{who}"), 2, HOUR)?;
        let mut request = String::with_capacity(512);
        write!(
            request,
            "POST /api/{path} HTTP/1.1\r\nhost: sale\r\nauthorization: Bearer {token}\r\n{key}content-length: {}\r\n\r\n{body}",
            body.len()
        )?;
        Ok(request)
    }

    /// Who the n-th to come is: the one before, if he comes again.
    fn identity(&self, user: u64) -> u64 {
        user - u64::from(user > 0 && share(user, 3) < self.behaviour.again)
    }

    /// A buyer pays, after a while, and again if declined or if there was no room; and asks again for what became of his request,
    /// if that is unknown.
    fn follow_up(&self, write: Write, answer: &Answer) {
        let receipt = |reservation: &str, is_order| Receipt {
            reservation: reservation.to_owned(),
            is_order,
        };
        let has_units = matches!(write, Write::Checkout { .. });
        if answer.text("code") == Some("outcome_unknown")
            || (has_units && matches!(answer.status, 429 | 503))
        {
            // The same again, with the same key, gives the truth.
            self.agenda.later(Instant::now() + AGAIN_AFTER, write);
            return;
        }
        let next = match (write, answer.status) {
            (Write::Reserve(user), 201) => {
                let Some(reservation) = answer.text("reservation_id") else {
                    return;
                };
                self.keep(receipt(reservation, false));
                let abandons = share(user, 2) < self.behaviour.abandon
                    && self.started.elapsed() < self.behaviour.abandon_for;
                (!abandons).then(|| (user, reservation.to_owned(), 1))
            }
            (Write::Checkout { .. }, 200) => {
                if let Some(reservation) = answer.text("reservation_id") {
                    self.keep(receipt(reservation, true));
                }
                None
            }
            (
                Write::Checkout {
                    user,
                    reservation,
                    attempt: 1,
                },
                402,
            ) => Some((user, reservation, 2)),
            _ => None,
        };
        if let Some((user, reservation, attempt)) = next {
            let write = Write::Checkout {
                user,
                reservation,
                attempt,
            };
            self.agenda
                .later(Instant::now() + self.behaviour.think, write);
        }
    }

    fn keep(&self, receipt: Receipt) {
        self.receipts
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(receipt);
    }
}

fn ending(answer: &Answer) -> Ending {
    let code = || answer.text("code").unwrap_or("unknown").to_owned();
    match answer.status {
        200 | 201 => Ending::Done,
        402 | 409 | 410 => Ending::Refused(code()),
        status => Ending::Failed(format!("{status} {}", code())),
    }
}

/// A share from 0 to 1 for a user, the same every time: splitmix64.
#[expect(clippy::cast_precision_loss, reason = "53 bits are kept")]
pub(crate) fn share(user: u64, salt: u64) -> f64 {
    let mut z = (user ^ (salt << 56)).wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    ((z ^ (z >> 31)) >> 11) as f64 / (1_u64 << 53) as f64
}

/// A SKU's name in an address.
fn percent_encoded(name: &str) -> String {
    let mut out = String::new();
    for byte in name.bytes() {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            // Writing to a String can't fail.
            let _ = write!(out, "%{byte:02X}");
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_spread_evenly_and_the_same_every_time() {
        let below = (0..10_000).filter(|&user| share(user, 2) < 0.15).count();
        assert!((1_300..1_700).contains(&below), "{below} of 10,000");
        assert!((share(7, 1) - share(7, 1)).abs() < f64::EPSILON);
    }

    #[test]
    fn names_are_percent_encoded() {
        assert_eq!(percent_encoded("a b/é"), "a%20b%2F%C3%A9");
    }
}
