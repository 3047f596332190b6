//! The thread that reads: messages become commands, runs of them go to the engine.

use super::super::cluster;
use super::super::request::{self, Asked, ReplyTo};
use super::{ASK, DEAD_LETTER, POLL, Sent, Shared, SourceOptions, SourceState};
use crate::types::{
    Clock, Command, Query, SkuId, SkuName, SourcePosition, Sourced, Submit, SubmitError,
    SystemClock, Timestamp,
};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError;
use rdkafka::message::{BorrowedMessage, Header, Message, OwnedHeaders};
use rdkafka::producer::{BaseRecord, Producer as _};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::sync::mpsc::SyncSender;
use std::time::Duration;

/// A dead letter that hasn't arrived by then is not waited for, and neither are those after it until one arrives: it is counted as
/// lost when its producer gives up, and the partition goes on.
const DEAD_LETTERS_WITHIN: Duration = Duration::from_secs(5);
/// No engine gives this index.
const NO_SKU: SkuId = SkuId(u32::MAX);

pub(super) struct Reader {
    shared: Arc<Shared>,
    engine: Arc<dyn Submit>,
    sender: SyncSender<Sent>,
    /// Messages in a run at most.
    run_max: usize,
    run: Vec<Sourced>,
    to: Vec<Option<ReplyTo>>,
    /// The offset after what was read.
    next: u64,
    source_id: u64,
    /// A request that waits for those before it to be decided.
    held: Option<Held>,
    /// How long the next dead letters are waited for.
    patience: Duration,
    /// No message comes after this.
    failed: Option<KafkaError>,
    /// A SKU's definition is on its way: a name that isn't known may be known in a moment.
    has_defined: bool,
    clock: SystemClock,
}

struct Held {
    asked: Asked,
    reply: Option<ReplyTo>,
    letter: Letter,
}

/// A message as it was received.
struct Letter {
    key: Vec<u8>,
    payload: Vec<u8>,
    offset: u64,
    written_at: Timestamp,
}

/// Why reading ends.
enum End {
    /// It was told to, or the engine has ended.
    Quiet,
    /// It can't go on.
    Halt(String),
}

impl Reader {
    pub(super) fn new(
        shared: Arc<Shared>,
        engine: Arc<dyn Submit>,
        sender: SyncSender<Sent>,
    ) -> Self {
        Self {
            source_id: shared.options.source_id(),
            run_max: shared.options.run_max.min(engine.run_max()),
            shared,
            engine,
            sender,
            run: Vec::new(),
            to: Vec::new(),
            next: 0,
            held: None,
            failed: None,
            patience: DEAD_LETTERS_WITHIN,
            has_defined: false,
            clock: SystemClock::new(),
        }
    }

    pub(super) fn run_to_end(mut self) {
        let ended = match self.read() {
            Ok(()) | Err(End::Quiet) => SourceState::Ended,
            Err(End::Halt(reason)) => SourceState::Halted(reason),
        };
        *self.shared.state.lock() = ended;
    }

    fn read(&mut self) -> Result<(), End> {
        self.seek()?;
        while !self.is_over() {
            self.collect();
            if !self.run.is_empty() {
                self.submit()?;
            }
            if self.held.is_some() {
                self.settle()?;
            }
            if let Some(error) = self.failed.take() {
                return Err(End::Halt(self.failure(&error)));
            }
        }
        Ok(())
    }

    fn is_over(&self) -> bool {
        self.shared.is_stopped() || self.engine.has_ended()
    }

    /// Assigns the partition from where the log says, once the topic answers and holds that offset.
    fn seek(&mut self) -> Result<(), End> {
        let shared = Arc::clone(&self.shared);
        let options = &shared.options;
        let (low, high) = loop {
            match cluster::bounds(&shared.consumer, &options.requests, options.partition, ASK) {
                Ok(bounds) => break bounds,
                Err(error) => shared.waits(Some(format!(
                    "{}/{} doesn't answer: {error}",
                    options.requests, options.partition
                ))),
            }
            std::thread::park_timeout(POLL);
            if self.is_over() {
                return Err(End::Quiet);
            }
        };
        let (low, high) = (low.unsigned_abs(), high.unsigned_abs());
        let stored = self.engine.position(self.source_id);
        let begin = stored.unwrap_or(0);
        if !(low..=high).contains(&begin) {
            return Err(End::Halt(self.outside(stored, Some((low, high)))));
        }
        self.next = begin;
        shared.position.store(begin, Ordering::Release);
        shared.told.begin(begin);
        let assigned = shared.partition(begin).map_err(End::Halt)?;
        shared
            .consumer
            .assign(&assigned)
            .map_err(|error| End::Halt(error.to_string()))?;
        shared.waits(None);
        Ok(())
    }

    /// What keeps it from reading on for good, and what to do.
    fn failure(&self, error: &KafkaError) -> String {
        if !cluster::is_outside(error) {
            return error.to_string();
        }
        let SourceOptions {
            requests,
            partition,
            ..
        } = &self.shared.options;
        let bounds = cluster::bounds(&self.shared.consumer, requests, *partition, ASK).ok();
        let holds = bounds.map(|(low, high)| (low.unsigned_abs(), high.unsigned_abs()));
        self.outside(self.engine.position(self.source_id), holds)
    }

    fn outside(&self, stands: Option<u64>, holds: Option<(u64, u64)>) -> String {
        let options = &self.shared.options;
        let stands = stands.map_or("has no position".to_owned(), |at| {
            format!("stands at offset {at}")
        });
        let first = holds.map_or("OFFSET".to_owned(), |(low, _)| low.to_string());
        let holds = holds.map_or("doesn't hold that".to_owned(), |(low, high)| {
            format!("holds {low} to {high}")
        });
        let SourceOptions {
            requests,
            partition,
            ..
        } = options;
        format!(
            "the log {stands} of {requests}/{partition}, and the topic {holds}: messages are gone, or it is another topic. Nothing was \
             reset. Find out what became of them, then go on with the first that is there, or with another: \
             `flash-sale resume --begin-at {first} --shard {partition} --ingest URL`, and its --store or --data"
        )
    }

    /// Takes what is there, at most a run; waits a little for the first message.
    fn collect(&mut self) {
        let shared = Arc::clone(&self.shared);
        let mut dead = 0;
        if let Some(held) = self.held.take() {
            dead += self.take(held.asked, held.reply, held.letter);
        }
        let mut wait = if self.run.is_empty() {
            POLL
        } else {
            Duration::ZERO
        };
        while self.run.len() < self.run_max && self.held.is_none() {
            match shared.consumer.poll(wait) {
                None => break,
                Some(Ok(message)) => {
                    dead += self.message(&message);
                    shared.waits(None);
                }
                Some(Err(error)) if cluster::is_passing(&error) => {
                    shared.waits(Some(error.to_string()));
                }
                Some(Err(error)) => {
                    // What was read before it is decided first.
                    self.failed = Some(error);
                    break;
                }
            }
            wait = Duration::ZERO;
        }
        if dead > 0 {
            self.wait_for_letters();
        }
    }

    fn wait_for_letters(&mut self) {
        let lost = || self.shared.counts.dead_letters_lost.load(Ordering::Relaxed);
        let before = lost();
        let is_done = self.shared.producer.flush(self.patience).is_ok();
        let have_arrived = is_done && lost() == before;
        self.patience = if have_arrived {
            DEAD_LETTERS_WITHIN
        } else {
            POLL
        };
    }

    /// Takes a message; 1 if it went to the dead letters.
    fn message(&mut self, message: &BorrowedMessage<'_>) -> usize {
        let written_ms = message.timestamp().to_millis().unwrap_or(i64::MAX);
        let letter = Letter {
            key: message.key().unwrap_or_default().to_vec(),
            payload: message.payload().unwrap_or_default().to_vec(),
            offset: message.offset().unsigned_abs(),
            written_at: Timestamp::MIN.plus_ms(written_ms.unsigned_abs()),
        };
        match request::decode(&letter.payload) {
            Ok((asked, reply)) => self.take(asked, reply, letter),
            Err(reason) => self.bury(&letter, &reason),
        }
    }

    /// Makes what is asked a command, unless it has to wait for a definition before it.
    fn take(&mut self, asked: Asked, reply: Option<ReplyTo>, letter: Letter) -> usize {
        let find = |name: &SkuName| self.engine.sku(name.as_str());
        let defines = asked.defines();
        if self.has_defined && !defines && asked.skus().any(|name| find(name).is_none()) {
            self.held = Some(Held {
                asked,
                reply,
                letter,
            });
            return 0;
        }
        match asked.command(find, letter.written_at) {
            Ok(mut command) => {
                if let Command::Reserve(reserve) = &mut command {
                    reserve.asked_at = self.in_log(reserve.asked_at);
                    reserve.decide_by = self.in_log(reserve.decide_by);
                }
                self.has_defined |= defines;
                self.push(command, reply, letter.offset);
                0
            }
            Err(reason) => self.bury(&letter, &reason),
        }
    }

    /// A time of a message, which is by the clock of who asked, as it is by the log.
    fn in_log(&self, at: Timestamp) -> Timestamp {
        if at == Timestamp::MAX {
            return at; // no limit
        }
        let (wall, log) = (self.clock.wall(), self.engine.now());
        let ago = wall.micros_since(at);
        Timestamp::from_micros(log.as_micros().saturating_sub(ago)).plus(at.since(wall))
    }

    fn push(&mut self, command: Command, reply: Option<ReplyTo>, offset: u64) {
        self.next = offset + 1;
        let from = Some(SourcePosition {
            source: self.source_id,
            position: self.next,
        });
        self.run.push(Sourced { command, from });
        self.to.push(reply);
    }

    /// Sends a message that can't be read to the dead letters, as it is, and puts a query that changes nothing in its place.
    fn bury(&mut self, letter: &Letter, reason: &str) -> usize {
        let shared = Arc::clone(&self.shared);
        let SourceOptions {
            requests,
            partition,
            dead_letters,
            ..
        } = &shared.options;
        shared.dead_letters.fetch_add(1, Ordering::Relaxed);
        let headers = [
            ("reason", reason),
            ("topic", requests),
            ("partition", &partition.to_string()),
            ("offset", &letter.offset.to_string()),
        ];
        let headers = headers
            .iter()
            .fold(OwnedHeaders::new(), |all, (key, value)| {
                let value = Some(value.as_bytes());
                all.insert(Header { key, value })
            });
        let record = BaseRecord::with_opaque_to(dead_letters, DEAD_LETTER)
            .key(letter.key.as_slice())
            .payload(letter.payload.as_slice())
            .headers(headers);
        if shared.producer.send(record).is_err() {
            let lost = &shared.counts.dead_letters_lost;
            lost.fetch_add(1, Ordering::Relaxed);
        }
        self.push(Command::Query(Query::Sku(NO_SKU)), None, letter.offset);
        1
    }

    /// Hands the run over; waits while the engine is full.
    fn submit(&mut self) -> Result<(), End> {
        let answers = loop {
            match self.engine.submit_run(&mut self.run) {
                Ok(answers) => break answers,
                Err(SubmitError::Full) => {}
                Err(SubmitError::Ended) => return Err(End::Quiet),
                Err(error) => return Err(End::Halt(error.to_string())),
            }
            // The replier unparks it when a run is answered; others' commands may fill the engine too.
            std::thread::park_timeout(POLL);
            if self.is_over() {
                return Err(End::Quiet);
            }
        };
        let sent = Sent {
            answers,
            to: std::mem::take(&mut self.to),
            end: self.next,
        };
        self.sender.send(sent).map_err(|_| End::Quiet)
    }

    /// Waits until everything that was submitted is decided.
    fn settle(&mut self) -> Result<(), End> {
        let submitted = self.engine.position(self.source_id);
        while Some(self.shared.position.load(Ordering::Acquire)) < submitted {
            std::thread::park_timeout(POLL);
            if self.is_over() {
                return Err(End::Quiet);
            }
        }
        self.has_defined = false;
        Ok(())
    }
}
