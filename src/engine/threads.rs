//! The threads of a started engine: writer, committer, announcers. They only call what [`runner`](super::runner) and
//! the stages offer.
//!
//! ```text
//!            idle: the writer commits and answers its own batch
//! writer ──┬────────────────────────────────────────────────────► finish(turn)
//!          │ loaded: turns go over, the writer decides n+1 meanwhile
//!          └──► ring of turns ──► committer ──► finish(turn) ──┐
//!          ◄──────────────────── ring of free turns ◄──────────┘
//! ```
//!
//! I1: turns finish in the order in which they were decided: the writer finishes one itself only when none is out.
//! I2: at most [`TURNS`] exist, so a store that is slow makes the ring fill, not the memory.

use super::announcer::Announcer;
use super::committer::Committer;
use super::runner::Core;
use super::turn::Turn;
use super::{EngineError, Shared, panic_text};
use crate::ring::{Consumer, Notifier, Producer, Wake, ring};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread::JoinHandle;

/// One that is decided, one that is committed, one that waits for that, and one that comes back.
const TURNS: usize = 4;

/// What a writer left behind that ended in good order.
pub(super) struct Ended {
    /// The state's digest, if it was asked for.
    pub(super) digest: Option<u128>,
}

pub(super) struct Threads {
    writer: Option<JoinHandle<Option<Ended>>>,
    committer: Option<JoinHandle<()>>,
    announcers: Vec<JoinHandle<()>>,
    notifier: Notifier,
}

impl Threads {
    pub(super) fn start(
        core: Core,
        committer: Arc<Mutex<Committer>>,
        announcers: Vec<Announcer>,
        with_digest: bool,
    ) -> Result<Self, EngineError> {
        let shared = Arc::clone(&core.shared);
        let notifier = core.consumer.notifier();
        let (line, far_end) = Line::new(Arc::clone(&committer), notifier.clone());
        let far_shared = Arc::clone(&shared);
        let mut threads = Self {
            writer: None,
            committer: None,
            announcers: Vec::new(),
            notifier: notifier.clone(),
        };
        threads.committer = Some(spawn(&shared, "committer", move || {
            far_end.run(&far_shared);
        })?);
        for announcer in announcers {
            let (vitals, role) = (Arc::clone(&shared), announcer.role);
            let warn = move |warning| vitals.vitals.warn(role, warning);
            threads.announcers.push(spawn(&shared, role, move || {
                let run = AssertUnwindSafe(|| announcer.run(&warn));
                if let Err(panic) = catch_unwind(run) {
                    let text = panic_text(&*panic);
                    warn(Some(format!(
                        "it panicked ({text}) and is told nothing any more: start again"
                    )));
                    resume_unwind(panic);
                }
            })?);
        }
        let writing = Writing {
            core,
            committer,
            line,
            with_digest,
        };
        threads.writer = Some(spawn(&shared, "writer", move || writing.run())?);
        Ok(threads)
    }

    /// Makes the writer look at the state it is in.
    pub(super) fn wake(&self) {
        self.notifier.notify();
    }

    /// Waits until writer and committer have ended. `None` if they did so in bad order.
    pub(super) fn join_writer(&mut self) -> Option<Ended> {
        let ended = self
            .writer
            .take()
            .and_then(|writer| writer.join().ok().flatten());
        if let Some(committer) = self.committer.take()
            && committer.join().is_err()
        {
            return None;
        }
        ended
    }

    /// Whether the announcers have ended.
    pub(super) fn has_announced(&self) -> bool {
        self.announcers.iter().all(JoinHandle::is_finished)
    }

    /// Whether the announcers have delivered everything; those that haven't are left alone.
    pub(super) fn join_announcers(&mut self) -> bool {
        let mut announcers = self.announcers.drain(..);
        announcers.all(|thread| thread.is_finished() && thread.join().is_ok())
    }
}

fn spawn<R: Send + 'static>(
    shared: &Shared,
    role: &str,
    run: impl FnOnce() -> R + Send + 'static,
) -> Result<JoinHandle<R>, EngineError> {
    let name = format!("{}-{role}", shared.name);
    std::thread::Builder::new()
        .name(name)
        .spawn(run)
        .map_err(EngineError::Thread)
}

/// The writer's end of the line to the committer's thread.
struct Line {
    to: Producer<Box<Turn>>,
    back: Consumer<Box<Turn>>,
    /// Turns that went over and have not finished.
    out: Arc<AtomicUsize>,
    #[expect(clippy::vec_box, reason = "a turn is large, and travels by its box")]
    free: Vec<Box<Turn>>,
}

/// The committer's end.
struct FarEnd {
    from: Consumer<Box<Turn>>,
    back: Producer<Box<Turn>>,
    out: Arc<AtomicUsize>,
    committer: Arc<Mutex<Committer>>,
    writer: Notifier,
}

impl Line {
    fn new(committer: Arc<Mutex<Committer>>, writer: Notifier) -> (Self, FarEnd) {
        let (to, from) = ring(TURNS);
        let (back_to, back) = ring(TURNS);
        let out = Arc::new(AtomicUsize::new(0));
        let free = (0..TURNS).map(|_| Box::default()).collect();
        let line = Self {
            to,
            back,
            out: Arc::clone(&out),
            free,
        };
        (
            line,
            FarEnd {
                from,
                back: back_to,
                out,
                committer,
                writer,
            },
        )
    }

    /// An empty turn; waits for one if all are out. `None` if the committer's thread is gone.
    fn take(&mut self) -> Option<Box<Turn>> {
        while self.free.is_empty() {
            match self.back.wait(None) {
                Wake::Disconnected | Wake::Closed => return None,
                _ => self.back.drain_into(&mut self.free, TURNS),
            };
        }
        self.free.pop()
    }

    fn is_clear(&self) -> bool {
        // Pairs with the committer's release: what it published is ours to follow.
        self.out.load(Ordering::Acquire) == 0
    }

    fn send(&mut self, turn: Box<Turn>) {
        self.out.fetch_add(1, Ordering::Relaxed);
        // There are only so many turns as the ring has slots, so it is never full; closed means that the engine has
        // halted, and dropping the turn tells its callers that the outcome is unknown.
        if self.to.try_push(turn).is_err() {
            self.out.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// Waits until every turn is back.
    fn clear(&mut self) {
        while !self.is_clear() {
            match self.back.wait(None) {
                Wake::Disconnected | Wake::Closed => return,
                _ => self.back.drain_into(&mut self.free, TURNS),
            };
        }
    }
}

impl FarEnd {
    fn run(mut self, shared: &Shared) {
        loop {
            if let Wake::Disconnected | Wake::Closed = self.from.wait(None) {
                return;
            }
            let mut next = None;
            self.from.drain_with(1, |turn| next = Some(turn));
            let Some(mut turn) = next else {
                continue;
            };
            if !shared.vitals.has_halted()
                && let Err(error) = self.committer.lock().finish(&mut turn)
            {
                shared.vitals.halt(error.to_string());
                self.writer.notify();
            }
            turn.clear();
            self.out.fetch_sub(1, Ordering::Release);
            // As many slots as turns: there is room, unless the writer is gone.
            drop(self.back.try_push(turn));
        }
    }
}

/// The writer's thread.
struct Writing {
    core: Core,
    committer: Arc<Mutex<Committer>>,
    line: Line,
    with_digest: bool,
}

impl Writing {
    fn run(mut self) -> Option<Ended> {
        let result = self.decide_all().and_then(|()| self.end());
        let mut turn = Turn::default();
        if let Err(reason) = &result {
            self.core.shared.vitals.halt(reason.clone());
        }
        self.core.consumer.close();
        self.core.hand_back(&mut turn);
        self.core.shared.vitals.stop();
        result.ok()
    }

    /// Until the engine drains and nothing is left.
    fn decide_all(&mut self) -> Result<(), String> {
        let mut is_draining = false;
        while let Some(mut turn) = self.line.take() {
            let vitals = &self.core.shared.vitals;
            if vitals.has_halted() {
                return Err("halted".into());
            }
            if !is_draining && !vitals.is_open() {
                is_draining = true;
                self.core.consumer.close();
            }
            if is_draining && self.core.shared.stop_by(self.core.shared.time.monotonic()) {
                return Ok(());
            }
            let did = match self.core.fill(&mut turn) {
                Ok(did) => did,
                Err(reason) => {
                    // Batches before this one are sound: let them finish, so that their callers get their answers.
                    self.line.clear();
                    return Err(self.halt(reason));
                }
            };
            if !did {
                self.line.free.push(turn);
                let idle = self.core.writer.idle_for();
                match self.core.consumer.wait(idle) {
                    Wake::Closed => return Ok(()),
                    _ => continue,
                }
            }
            if self.line.is_clear() && self.core.consumer.is_empty() {
                let finished = self.committer.lock().finish(&mut turn);
                finished.map_err(|error| self.halt(error.to_string()))?;
                self.line.free.push(turn);
            } else {
                self.line.send(turn);
            }
        }
        Err("the committer's thread has ended".into())
    }

    /// Before the turn at hand is dropped, by which its callers hear that the outcome is unknown: whoever has heard that
    /// finds the engine halted.
    fn halt(&self, reason: String) -> String {
        self.core.shared.vitals.halt(reason.clone());
        reason
    }

    /// Lets everything finish, commits a last batch, and ends the store's role in good order.
    fn end(&mut self) -> Result<Ended, String> {
        self.line.clear();
        if self.core.shared.vitals.has_halted() {
            return Err("halted".into());
        }
        let mut turn = Turn::default();
        self.core.decide(&mut turn, true)?;
        let mut committer = self.committer.lock();
        committer
            .finish(&mut turn)
            .map_err(|error| error.to_string())?;
        committer.close().map_err(|error| error.to_string())?;
        Ok(Ended {
            digest: self
                .with_digest
                .then(|| self.core.writer.allocator().digest()),
        })
    }
}
