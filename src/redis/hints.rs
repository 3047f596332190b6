//! What lapsed, as Redis noticed: a hint for the writer that a hold may be due.
//!
//! Redis announces an expired key when it deletes it, which may be late; to who listens just then, so one that is missed is
//! not repeated; and each node of a cluster for its own keys. So this only asks: the engine has its own queue of deadlines,
//! and refuses what is not due. A hold's key outlives it by a second, so with a writer that is well no hint comes.
//!
//! One thread asks for the topology every second and keeps one listener per primary.

use super::RedisOptions;
use super::layout::{PUT, RESERVATION};
use super::nodes::{Address, Failure, Node, Nodes};
use crate::types::{Expire, ReservationId};
use ::redis::{Connection, cmd};
use parking_lot::{Condvar, Mutex};
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

/// How long a step may take if the options don't say.
const TIMEOUT: Duration = Duration::from_millis(500);
/// How often the topology is asked for, and a listener that has ended is started again.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// How long a listener waits for a hint before it looks whether it is still wanted.
const LISTEN_FOR: Duration = Duration::from_millis(200);
/// After so many waits without a hint the server is asked whether it is still there.
const QUIET_MAX: u32 = 10;

/// Listens for reservations that lapse in Redis until it is dropped.
///
/// Each primary must announce expired keys: the server's setting `notify-keyspace-events` must contain `K` and `x` (or `A`).
/// Where they are missing they are added; where the server doesn't allow that, as managed ones often don't,
/// [`warnings`](Self::warnings) names it: set it there. Until then holds lapse by the engine alone, as they do anyway.
///
/// ```no_run
/// use stockade::Engine;
/// use stockade::redis::{ExpiredKeys, RedisOptions};
///
/// let engine = Engine::builder().start()?;
/// let handle = engine.handle();
/// // A hint that finds the queue full, or comes too early, is no loss.
/// let hints = ExpiredKeys::listen(&RedisOptions::new("redis://127.0.0.1")?, move |expire| drop(handle.expire(expire)))?;
/// # drop(hints);
/// # Ok::<(), Box<dyn std::error::Error>>(())
/// ```
pub struct ExpiredKeys {
    shared: Arc<Shared>,
    watcher: Option<JoinHandle<()>>,
}

struct Shared {
    nodes: Nodes,
    /// What is subscribed to, and what comes before the id in a channel's name.
    pattern: String,
    prefix: String,
    hint: Box<dyn Fn(Expire) + Send + Sync>,
    hints: AtomicU64,
    is_over: AtomicBool,
    listening: Mutex<BTreeMap<Address, Listening>>,
    ended: Condvar,
}

/// How it stands with a node.
#[derive(Clone)]
enum Listening {
    Begins,
    Well,
    /// Well, but it won't hear anything.
    Mute(String),
    Failed(Failure),
}

/// The listening threads can't be started.
#[derive(Debug, thiserror::Error)]
#[error("a thread can't be started: {0}")]
pub struct ListenError(#[source] std::io::Error);

impl ExpiredKeys {
    /// Listens, and calls `hint` for each reservation whose key has expired, from one thread per primary: it should not wait.
    /// A Redis that can't be reached is tried again until it can.
    ///
    /// # Errors
    /// If no thread can be started.
    pub fn listen(
        options: &RedisOptions,
        hint: impl Fn(Expire) + Send + Sync + 'static,
    ) -> Result<Self, ListenError> {
        let database = options
            .seeds
            .first()
            .map_or(0, |seed| seed.redis_settings().db());
        let prefix = format!("__keyspace@{database}__:{}{RESERVATION}", options.prefix);
        let shared = Arc::new(Shared {
            nodes: Nodes::new(options, TIMEOUT, PUT),
            pattern: format!("{}*", escaped(&prefix)),
            prefix,
            hint: Box::new(hint),
            hints: AtomicU64::new(0),
            is_over: AtomicBool::new(false),
            listening: Mutex::default(),
            ended: Condvar::new(),
        });
        let watched = Arc::clone(&shared);
        let watcher = std::thread::Builder::new()
            .name("redis-hints".to_owned())
            .spawn(move || watch(&watched))
            .map_err(ListenError)?;
        Ok(Self {
            shared,
            watcher: Some(watcher),
        })
    }

    /// Hints so far.
    pub fn hints(&self) -> u64 {
        self.shared.hints.load(Ordering::Relaxed)
    }

    /// Whether every primary is listened to and announces what expires.
    pub fn is_listening(&self) -> bool {
        let listening = self.shared.listening.lock();
        !listening.is_empty()
            && listening
                .values()
                .all(|state| matches!(state, Listening::Well))
    }

    /// What an operator should know. Empty: nothing.
    pub fn warnings(&self) -> Vec<String> {
        let listening = self.shared.listening.lock();
        let warning = |state: &Listening| match state {
            Listening::Mute(text) | Listening::Failed(text) => Some(text.clone()),
            Listening::Begins | Listening::Well => None,
        };
        listening.values().filter_map(warning).collect()
    }
}

impl Drop for ExpiredKeys {
    fn drop(&mut self) {
        self.shared.is_over.store(true, Ordering::Release);
        self.shared.ended.notify_all();
        if let Some(watcher) = self.watcher.take() {
            // A listener that panicked has told why.
            drop(watcher.join());
        }
    }
}

impl fmt::Debug for ExpiredKeys {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ExpiredKeys")
            .field("hints", &self.hints())
            .finish_non_exhaustive()
    }
}

/// Keeps one listener per primary; ends them, and waits for them, at the end.
fn watch(shared: &Shared) {
    std::thread::scope(|scope| {
        while !shared.is_over() {
            let primaries = shared.nodes.primaries();
            let mut listening = shared.listening.lock();
            // A node that is a primary no more ends its listener by this.
            listening.retain(|address, _| primaries.iter().any(|node| node.address == *address));
            for node in primaries {
                let is_there = matches!(
                    listening.get(&node.address),
                    Some(Listening::Begins | Listening::Well | Listening::Mute(_))
                );
                if !is_there {
                    listening.insert(node.address.clone(), Listening::Begins);
                    let name = format!("redis-hints-{}", node.address.port);
                    let address = node.address.clone();
                    let thread = std::thread::Builder::new().name(name);
                    let started = thread.spawn_scoped(scope, move || shared.listen(&node));
                    if let Err(error) = started {
                        let failure = format!("a thread can't be started: {error}");
                        listening.insert(address, Listening::Failed(failure));
                    }
                }
            }
            if !shared.is_over() {
                shared.ended.wait_for(&mut listening, LOOK_EVERY);
            }
        }
    });
}

impl Shared {
    fn is_over(&self) -> bool {
        self.is_over.load(Ordering::Acquire)
    }

    fn is_wanted(&self, address: &Address) -> bool {
        !self.is_over() && self.listening.lock().contains_key(address)
    }

    fn listen(&self, node: &Node) {
        if let Err(failure) = self.listen_to(node) {
            let mut listening = self.listening.lock();
            if let Some(state) = listening.get_mut(&node.address) {
                *state = Listening::Failed(failure);
            }
        }
    }

    /// # Errors
    /// If the connection breaks.
    fn listen_to(&self, node: &Node) -> Result<(), Failure> {
        let broken = |error| {
            format!(
                "Redis at {} doesn't announce what expires: {error}",
                node.address
            )
        };
        let mut connection = node.connect(self.nodes.timeout())?;
        let mute = announce(&mut connection).err();
        let mute = mute.map(|reason| {
            format!(
                "Redis at {} doesn't announce expired keys, and doesn't let its setting be changed ({reason}): set \
                 notify-keyspace-events to Kx there; until then holds lapse by the engine alone",
                node.address
            )
        });
        let mut subscription = connection.as_pubsub();
        subscription.psubscribe(&self.pattern).map_err(broken)?;
        subscription
            .set_read_timeout(Some(LISTEN_FOR))
            .map_err(broken)?;
        if let Some(state) = self.listening.lock().get_mut(&node.address) {
            *state = mute.map_or(Listening::Well, Listening::Mute);
        }
        let mut quiet = 0;
        while self.is_wanted(&node.address) {
            match subscription.get_message() {
                Ok(message) => {
                    quiet = 0;
                    if message.get_payload_bytes() == b"expired" {
                        self.tell(message.get_channel_name());
                    }
                }
                Err(error) if error.is_timeout() && quiet < QUIET_MAX => quiet += 1,
                Err(error) if error.is_timeout() => {
                    quiet = 0;
                    let patience = Some(self.nodes.timeout());
                    subscription.set_read_timeout(patience).map_err(broken)?;
                    subscription.ping::<::redis::Value>().map_err(broken)?;
                    subscription
                        .set_read_timeout(Some(LISTEN_FOR))
                        .map_err(broken)?;
                }
                Err(error) => return Err(broken(error)),
            }
        }
        Ok(())
    }

    fn tell(&self, channel: &str) {
        let id = channel
            .strip_prefix(&self.prefix)
            .and_then(|rest| rest.strip_suffix('}'));
        if let Some(Ok(reservation)) = id.map(str::parse::<ReservationId>) {
            self.hints.fetch_add(1, Ordering::Relaxed);
            (self.hint)(Expire { reservation });
        }
    }
}

/// Makes the server announce expired keys, on top of what it announces already.
///
/// # Errors
/// Why it doesn't.
fn announce(connection: &mut Connection) -> Result<(), String> {
    const SETTING: &str = "notify-keyspace-events";
    let mut get = cmd("CONFIG");
    let known: Result<Vec<String>, _> = get.arg("GET").arg(SETTING).query(connection);
    let known = known.map_err(|error| error.to_string())?;
    let flags = known.get(1).cloned().unwrap_or_default();
    let has = |flag| flags.contains(flag);
    if has('K') && (has('x') || has('A')) {
        return Ok(());
    }
    let mut set = cmd("CONFIG");
    set.arg("SET").arg(SETTING).arg(format!("{flags}Kx"));
    set.exec(connection).map_err(|error| error.to_string())
}

/// As a pattern that matches this text alone.
fn escaped(text: &str) -> String {
    let escape = |c: char| {
        let special = matches!(c, '*' | '?' | '[' | ']' | '\\' | '^');
        special
            .then_some('\\')
            .into_iter()
            .chain(std::iter::once(c))
    };
    text.chars().flat_map(escape).collect()
}
