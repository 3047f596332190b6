//! The servers: which has a key, connections to each, and pipelines over them.
//!
//! ```text
//! commands, each with its slot ──► by node ──► one pipeline each ──► answers in the order of the commands
//!                                   ▲                  │ MOVED, ASK: once more, where it says
//!                                   └── topology ◄─────┘ NOSCRIPT: load it, and from there on once more
//! ```
//!
//! I1: a connection whose answers were not all read is closed: no answer is ever taken for another command's. I2: commands of
//! one key go over in their order, and a repetition repeats all that followed. I3: nobody waits longer than a time-out for
//! one step, nor for somebody else's.
//!
//! The client's own cluster connection is not used: it sleeps between its retries, fails a whole pipeline with the first node
//! that is down, and leaves the answers of the others unread.

use super::RedisOptions;
use super::circuit::Circuit;
use super::slots::{self, SlotRange};
use crate::types::{Clock, SystemClock};
use ::redis::{Cmd, Connection, ConnectionAddr, ConnectionInfo, ErrorKind, RedisError, Value};
use ::redis::{ServerErrorKind, cmd};
use parking_lot::Mutex;
use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

/// Times that a command goes over, at most: to where it was, to where it is, and with its script.
const ROUNDS_MAX: usize = 4;
/// The topology is asked for so often at most: who fails over takes longer.
const ASKED_EVERY: Duration = Duration::from_millis(100);
/// Connections to one node that are kept for the next use.
const IDLE_MAX: usize = 16;

#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Address {
    pub(super) host: String,
    pub(super) port: u16,
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.host, self.port)
    }
}

impl Address {
    fn of(info: &ConnectionInfo) -> Self {
        match info.addr() {
            ConnectionAddr::Tcp(host, port) => Self {
                host: host.clone(),
                port: *port,
            },
            other => Self {
                host: other.to_string(),
                port: 0,
            },
        }
    }
}

/// A command, ready to be sent, and the slot of its key.
pub(super) struct Keyed {
    slot: u16,
    packed: Vec<u8>,
}

impl Keyed {
    pub(super) fn new(key: &str, command: &Cmd) -> Self {
        Self {
            slot: slots::slot_of(key),
            packed: command.get_packed_command(),
        }
    }
}

/// Why a command has no answer, in words for an operator.
pub(super) type Failure = String;

/// Answers, each for its command.
pub(super) type Answers = Vec<Result<Value, Failure>>;

pub(super) struct Nodes {
    seeds: Vec<ConnectionInfo>,
    timeout: Duration,
    /// Is loaded where a node doesn't have it.
    script: &'static str,
    clock: SystemClock,
    known: Mutex<Known>,
    /// Held by whoever asks for the topology.
    asking: Mutex<()>,
    /// Whether it is worth asking for the topology.
    seeded: Circuit,
}

#[derive(Default)]
struct Known {
    topology: Topology,
    /// A node has said that it has changed, or doesn't answer.
    is_stale: bool,
    /// When it was last asked for, by monotonic time.
    asked_at: Duration,
    nodes: HashMap<Address, Arc<Node>>,
}

#[derive(Default)]
enum Topology {
    #[default]
    Unknown,
    Single(Address),
    Cluster(Vec<SlotRange>),
}

impl Topology {
    fn primary(&self, slot: u16) -> Option<&Address> {
        match self {
            Self::Unknown => None,
            Self::Single(address) => Some(address),
            Self::Cluster(ranges) => {
                let range = ranges
                    .iter()
                    .find(|range| (range.first..=range.last).contains(&slot));
                range.map(|range| &range.primary)
            }
        }
    }

    fn primaries(&self) -> Vec<Address> {
        let mut all = match self {
            Self::Unknown => Vec::new(),
            Self::Single(address) => vec![address.clone()],
            Self::Cluster(ranges) => ranges.iter().map(|range| range.primary.clone()).collect(),
        };
        all.sort();
        all.dedup();
        all
    }
}

/// Where a command is to go.
enum Target {
    Slot(u16),
    At { address: Address, asking: bool },
}

/// Commands for one node, by index; `true`: the node is still taking the slot over and wants to be asked for it.
type Group = Vec<(usize, bool)>;

impl Nodes {
    pub(super) fn new(options: &RedisOptions, timeout: Duration, script: &'static str) -> Self {
        Self {
            seeds: options.seeds.clone(),
            timeout: options.timeout.unwrap_or(timeout),
            script,
            clock: SystemClock::new(),
            known: Mutex::default(),
            asking: Mutex::default(),
            seeded: Circuit::default(),
        }
    }

    /// Sends the commands, one pipeline for each node, and gives their answers.
    pub(super) fn run(&self, commands: &[Keyed]) -> Answers {
        let mut answers: Vec<Option<Result<Value, Failure>>> = Vec::new();
        answers.resize_with(commands.len(), || None);
        let mut pending: Vec<(usize, Target)> = commands
            .iter()
            .enumerate()
            .map(|(index, command)| (index, Target::Slot(command.slot)))
            .collect();
        for _ in 0..ROUNDS_MAX {
            if pending.is_empty() {
                break;
            }
            let mut groups: BTreeMap<Address, (Arc<Node>, Group)> = BTreeMap::new();
            for (index, target) in pending.drain(..) {
                match self.node(&target) {
                    Ok((node, asking)) => {
                        let group = groups.entry(node.address.clone());
                        let (_, group) = group.or_insert_with(|| (node, Vec::new()));
                        group.push((index, asking));
                    }
                    Err(failure) => answers[index] = Some(Err(failure)),
                }
            }
            for (node, group) in groups.into_values() {
                self.run_at(&node, &group, commands, &mut answers, &mut pending);
            }
            // What goes over once more keeps its order.
            pending.sort_by_key(|&(index, _)| index);
        }
        let unsettled = || Err("Redis moves its keys about: tried again later".to_owned());
        answers
            .into_iter()
            .map(|answer| answer.unwrap_or_else(unsettled))
            .collect()
    }

    fn run_at(
        &self,
        node: &Node,
        group: &Group,
        commands: &[Keyed],
        answers: &mut [Option<Result<Value, Failure>>],
        pending: &mut Vec<(usize, Target)>,
    ) {
        if !node.circuit.admits(self.clock.monotonic()) {
            let failure = node.last_failure.lock().clone();
            for &(index, _) in group {
                answers[index] = Some(Err(failure.clone()));
            }
            return;
        }
        let mut packed = Vec::new();
        let mut replies_len = 0;
        for &(index, asking) in group {
            if asking {
                packed.extend(cmd("ASKING").get_packed_command());
                replies_len += 1;
            }
            packed.extend_from_slice(&commands[index].packed);
            replies_len += 1;
        }
        let mut replies = match node.exchange(&packed, replies_len, self.timeout, &self.clock) {
            Ok(replies) => replies.into_iter(),
            Err(failure) => {
                self.known.lock().is_stale = true;
                for &(index, _) in group {
                    answers[index] = Some(Err(failure.clone()));
                }
                return;
            }
        };
        let mut lacks_script = false;
        for &(index, asking) in group {
            if asking {
                replies.next();
            }
            let reply = replies.next().unwrap_or(Ok(Value::Nil));
            let again = match &reply {
                Err(error) if lacks_script || is(error, ServerErrorKind::NoScript) => {
                    lacks_script = true;
                    Some(Target::Slot(commands[index].slot))
                }
                Ok(_) if lacks_script => Some(Target::Slot(commands[index].slot)),
                Ok(_) => None,
                Err(error) => self.elsewhere(error, node),
            };
            if let Some(target) = again {
                pending.push((index, target));
            } else {
                let failure = |error| format!("Redis at {} says: {error}", node.address);
                answers[index] = Some(reply.map_err(failure));
            }
        }
        if lacks_script {
            let load = cmd("SCRIPT")
                .arg("LOAD")
                .arg(self.script)
                .get_packed_command();
            // If that fails, so do the commands that come again.
            drop(node.exchange(&load, 1, self.timeout, &self.clock));
        }
    }

    /// Where a command is to go that this node has sent away.
    fn elsewhere(&self, error: &RedisError, node: &Node) -> Option<Target> {
        let ErrorKind::Server(kind) = error.kind() else {
            return None;
        };
        // It was the primary until just now, and its successor may lack what it has taken: that is a failure.
        let is_over = matches!(
            kind,
            ServerErrorKind::ReadOnly | ServerErrorKind::ClusterDown | ServerErrorKind::MasterDown
        );
        if is_over || kind == ServerErrorKind::Moved {
            self.known.lock().is_stale = true;
        }
        let asking = kind == ServerErrorKind::Ask;
        let (host, port) = error.redirect_node()?.0.rsplit_once(':')?;
        let host = if host.is_empty() {
            &node.address.host
        } else {
            host
        };
        let address = Address {
            host: host.to_owned(),
            port: port.parse().ok()?,
        };
        Some(Target::At { address, asking })
    }

    fn node(&self, target: &Target) -> Result<(Arc<Node>, bool), Failure> {
        match target {
            Target::At { address, asking } => {
                Ok((self.known.lock().node(address, &self.seeds), *asking))
            }
            &Target::Slot(slot) => {
                self.refresh_if_stale();
                let mut known = self.known.lock();
                let address = known.topology.primary(slot).cloned();
                let address = address.ok_or_else(|| self.nobody())?;
                Ok((known.node(&address, &self.seeds), false))
            }
        }
    }

    fn nobody(&self) -> Failure {
        let seeds: Vec<String> = self
            .seeds
            .iter()
            .map(|seed| Address::of(seed).to_string())
            .collect();
        format!(
            "no Redis answers as a primary at {}: start it, or correct the address",
            seeds.join(", ")
        )
    }

    /// All primaries that are known, newly asked for if that is due.
    pub(super) fn primaries(&self) -> Vec<Arc<Node>> {
        self.known.lock().is_stale = true;
        self.refresh_if_stale();
        let mut known = self.known.lock();
        let addresses = known.topology.primaries();
        addresses
            .iter()
            .map(|address| known.node(address, &self.seeds))
            .collect()
    }

    /// Asks for the topology if it is stale, nobody else is asking, and it is worth it; what is known is used meanwhile.
    fn refresh_if_stale(&self) {
        let known = self.known.lock();
        let now = self.clock.monotonic();
        let is_due = known.is_stale && now >= known.asked_at.saturating_add(ASKED_EVERY);
        if !is_due && !matches!(known.topology, Topology::Unknown) {
            return;
        }
        let mut candidates: Vec<Address> = known.topology.primaries();
        drop(known);
        let Some(_asking) = self.asking.try_lock() else {
            return;
        };
        if !self.seeded.admits(now) {
            return;
        }
        candidates.extend(self.seeds.iter().map(Address::of));
        let found = candidates.into_iter().find_map(|address| {
            let node = self.known.lock().node(&address, &self.seeds);
            self.topology(&node)
        });
        match found {
            Some(topology) => {
                self.seeded.succeeded();
                let mut known = self.known.lock();
                known.topology = topology;
                known.is_stale = false;
                known.asked_at = now;
                let current = known.topology.primaries();
                known.nodes.retain(|address, _| current.contains(address));
            }
            None => self.seeded.failed(self.clock.monotonic()),
        }
    }

    /// What a node says of the topology; `None` if it doesn't answer, or is nobody's primary.
    fn topology(&self, node: &Node) -> Option<Topology> {
        if !node.circuit.admits(self.clock.monotonic()) {
            return None;
        }
        let mut ask = cmd("CLUSTER").arg("SLOTS").get_packed_command();
        ask.extend(cmd("ROLE").get_packed_command());
        let replies = node.exchange(&ask, 2, self.timeout, &self.clock).ok()?;
        let mut replies = replies.into_iter();
        let (slots, role) = (replies.next()?, replies.next()?);
        if let Ok(slots) = slots {
            let ranges = slots::parse(&slots, &node.address)?;
            return (!ranges.is_empty()).then_some(Topology::Cluster(ranges));
        }
        let role = role.ok()?;
        let role: String = ::redis::from_redis_value_ref(role.as_sequence()?.first()?).ok()?;
        (role == "master").then(|| Topology::Single(node.address.clone()))
    }

    pub(super) fn timeout(&self) -> Duration {
        self.timeout
    }
}

impl Known {
    fn node(&mut self, address: &Address, seeds: &[ConnectionInfo]) -> Arc<Node> {
        let node = self.nodes.entry(address.clone());
        let node = node.or_insert_with(|| Arc::new(Node::new(address.clone(), seeds)));
        Arc::clone(node)
    }
}

fn is(error: &RedisError, kind: ServerErrorKind) -> bool {
    error.kind() == ErrorKind::Server(kind)
}

pub(super) struct Node {
    pub(super) address: Address,
    info: Option<ConnectionInfo>,
    idle: Mutex<Vec<Connection>>,
    circuit: Circuit,
    /// Why the circuit is open, if it is.
    last_failure: Mutex<Failure>,
}

type Replies = Vec<Result<Value, RedisError>>;

impl Node {
    fn new(address: Address, seeds: &[ConnectionInfo]) -> Self {
        let own = seeds.iter().find(|seed| Address::of(seed) == address);
        let info = own.or(seeds.first()).cloned();
        let (host, port) = (address.host.clone(), address.port);
        Self {
            address,
            info: info.map(|info| info.set_addr(ConnectionAddr::Tcp(host, port))),
            idle: Mutex::default(),
            circuit: Circuit::default(),
            last_failure: Mutex::default(),
        }
    }

    pub(super) fn connect(&self, timeout: Duration) -> Result<Connection, Failure> {
        let open = || {
            let info = self
                .info
                .clone()
                .ok_or((ErrorKind::InvalidClientConfig, "no address"))?;
            let connection = ::redis::Client::open(info)?.get_connection_with_timeout(timeout)?;
            connection.set_read_timeout(Some(timeout))?;
            connection.set_write_timeout(Some(timeout))?;
            Ok(connection)
        };
        open().map_err(|error: RedisError| self.broken(&error))
    }

    fn broken(&self, error: &RedisError) -> Failure {
        format!(
            "Redis at {} can't be asked ({error}): it is tried again; see that it runs and can be reached",
            self.address
        )
    }

    /// Sends commands and reads so many replies. Safe to repeat commands only: where an idle connection turns out to be dead,
    /// they go over a new one.
    fn exchange(
        &self,
        packed: &[u8],
        replies_len: usize,
        timeout: Duration,
        clock: &SystemClock,
    ) -> Result<Replies, Failure> {
        let idle = self.idle.lock().pop();
        let result = match idle {
            Some(connection) => match self.exchange_over(connection, packed, replies_len) {
                Err(error) if error.is_connection_dropped() => {
                    self.idle.lock().clear();
                    self.exchange_anew(packed, replies_len, timeout)
                }
                result => result.map_err(|error| self.broken(&error)),
            },
            None => self.exchange_anew(packed, replies_len, timeout),
        };
        match &result {
            Ok(_) => self.circuit.succeeded(),
            Err(failure) => {
                self.idle.lock().clear();
                self.last_failure.lock().clone_from(failure);
                self.circuit.failed(clock.monotonic());
            }
        }
        result
    }

    fn exchange_anew(
        &self,
        packed: &[u8],
        replies_len: usize,
        timeout: Duration,
    ) -> Result<Replies, Failure> {
        let connection = self.connect(timeout)?;
        let replies = self.exchange_over(connection, packed, replies_len);
        replies.map_err(|error| self.broken(&error))
    }

    fn exchange_over(
        &self,
        mut connection: Connection,
        packed: &[u8],
        replies_len: usize,
    ) -> Result<Replies, RedisError> {
        connection.send_packed_command(packed)?;
        let mut replies = Vec::with_capacity(replies_len);
        for _ in 0..replies_len {
            let reply = connection.recv_response().and_then(Value::extract_error);
            match reply {
                Err(error)
                    if !matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) =>
                {
                    return Err(error);
                }
                reply => replies.push(reply),
            }
        }
        let mut idle = self.idle.lock();
        if idle.len() < IDLE_MAX {
            idle.push(connection);
        }
        Ok(replies)
    }
}
