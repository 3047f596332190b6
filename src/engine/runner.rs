//! Turns, one after the other: what the threads call in a loop, and what a [`Runner`] lets a caller do in his own.

use super::announcer::Announcer;
use super::committer::Committer;
use super::handle::Request;
use super::turn::Turn;
use super::writer::Writer;
use super::{Shared, panic_text};
use crate::ring::Consumer;
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

/// The engine has halted: nothing is decided any more.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the engine has halted: {reason}")]
pub struct Halted {
    /// Why.
    pub reason: String,
}

/// What a [`Runner::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Answered so many commands.
    Answered(usize),
    /// There was nothing to do, and there won't be for so long (`None`: for ever) unless a command comes.
    Idle(Option<Duration>),
}

/// The ring's end and the writer.
pub(super) struct Core {
    pub(super) writer: Writer,
    pub(super) consumer: Consumer<Request>,
    pub(super) shared: Arc<Shared>,
    pub(super) batch_max: usize,
    pub(super) linger: Duration,
    /// The last drain found more than one command: the engine is loaded.
    was_loaded: bool,
}

impl Core {
    pub(super) fn new(
        writer: Writer,
        consumer: Consumer<Request>,
        shared: Arc<Shared>,
        batch_max: usize,
        linger: Duration,
    ) -> Self {
        Self {
            writer,
            consumer,
            shared,
            batch_max,
            linger,
            was_loaded: false,
        }
    }

    /// Takes what has arrived and decides it; false if there was nothing to do.
    ///
    /// # Errors
    /// Why the engine must halt. The turn is abandoned then.
    pub(super) fn fill(&mut self, turn: &mut Turn) -> Result<bool, String> {
        self.consumer.drain_into(&mut turn.requests, self.batch_max);
        if turn.requests.is_empty() {
            let vouch = self.writer.must_vouch();
            if !vouch && !self.writer.has_due() {
                return Ok(false);
            }
            return self.decide(turn, vouch).map(|()| true);
        }
        turn.began = self.shared.time.monotonic();
        if self.was_loaded {
            self.gather(turn);
        }
        self.was_loaded = turn.requests.len() > 1;
        let telemetry = &self.shared.vitals.telemetry;
        telemetry.taken(|| self.consumer.len());
        self.decide(turn, false).map(|()| true)
    }

    /// Gathers more commands for as long as the store suggests, so that one commit serves them all.
    fn gather(&mut self, turn: &mut Turn) {
        while turn.requests.len() < self.batch_max {
            let passed = self.shared.time.monotonic().saturating_sub(turn.began);
            let Some(left) = self
                .linger
                .checked_sub(passed)
                .filter(|left| !left.is_zero())
            else {
                return;
            };
            self.consumer.wait(Some(left));
            let room = self.batch_max - turn.requests.len();
            if self.consumer.drain_into(&mut turn.requests, room) == 0 {
                return;
            }
        }
    }

    /// Decides the turn. A panic of the allocator is a reason to halt, with the command that met it.
    pub(super) fn decide(&mut self, turn: &mut Turn, vouch: bool) -> Result<(), String> {
        let decided = catch_unwind(AssertUnwindSafe(|| self.writer.decide(turn, vouch)));
        match decided {
            Ok(Ok(())) => Ok(()),
            Ok(Err(violation)) => {
                // The change was not made: nobody was sold the unit, but somebody must look.
                self.shared
                    .vitals
                    .oversold(u64::from(violation.what.starts_with("L1")));
                Err(violation.to_string())
            }
            Err(panic) => {
                let text = panic_text(&*panic);
                let command = turn
                    .requests
                    .get(turn.answers.len())
                    .map(|request| request.cargo.command());
                Err(format!("the allocator panicked ({text}) at {command:?}"))
            }
        }
    }

    /// After the last push: answers what is left with "not decided".
    pub(super) fn hand_back(&mut self, turn: &mut Turn) {
        while self.consumer.drain_into(&mut turn.requests, self.batch_max) > 0 {
            turn.hand_back();
        }
    }
}

/// An engine without threads: the caller turns the crank, in one thread at a time.
pub struct Runner {
    core: Core,
    committer: Arc<Mutex<Committer>>,
    announcers: Vec<Announcer>,
    turn: Turn,
}

impl Runner {
    pub(super) fn new(
        core: Core,
        committer: Arc<Mutex<Committer>>,
        announcers: Vec<Announcer>,
    ) -> Self {
        Self {
            core,
            committer,
            announcers,
            turn: Turn::default(),
        }
    }

    /// Decides, commits and answers what has arrived, expires what is due, and tells caches and sinks.
    ///
    /// # Errors
    /// [`Halted`], now and ever after.
    pub fn step(&mut self) -> Result<Step, Halted> {
        self.check()?;
        let did = match self.core.fill(&mut self.turn) {
            Ok(did) => did,
            Err(reason) => return Err(self.halt(reason)),
        };
        let answered = self.turn.requests.len();
        if did && let Err(error) = self.committer.lock().finish(&mut self.turn) {
            self.core.shared.vitals.halt(error.to_string());
        }
        self.check()?;
        for announcer in &mut self.announcers {
            let warning = announcer.step();
            self.core.shared.vitals.warn(announcer.role, warning);
        }
        Ok(if did {
            Step::Answered(answered)
        } else {
            Step::Idle(self.core.writer.idle_for())
        })
    }

    /// Waits until there is something to do, at most for `timeout`.
    pub fn wait(&mut self, timeout: Duration) {
        let idle = self
            .core
            .writer
            .idle_for()
            .map_or(timeout, |idle| idle.min(timeout));
        self.core.consumer.wait(Some(idle));
    }

    /// A fingerprint of the state: that of a replay of the log up to here. Only between steps, and only if the last step
    /// was committed, is it what others can replay.
    pub fn digest(&self) -> u128 {
        self.core.writer.allocator().digest()
    }

    /// Recounts the laws from scratch.
    pub fn audit(&self) -> crate::allocator::AuditReport {
        self.core.writer.allocator().audit()
    }

    /// Answers everything that was submitted, commits a last batch and ends the store's role in good order. Returns the
    /// state's digest, which a replay of the log gives too.
    ///
    /// # Errors
    /// [`Halted`], if it has or does so now.
    pub fn shutdown(mut self) -> Result<u128, Halted> {
        self.core.shared.vitals.drain();
        self.core.consumer.close();
        while self.step()? != Step::Answered(0) && !self.core.consumer.is_empty() {}
        self.last_batch()?;
        if let Err(error) = self.committer.lock().close() {
            self.core.shared.vitals.halt(error.to_string());
        }
        self.check()?;
        self.core.shared.vitals.stop();
        Ok(self.digest())
    }

    fn last_batch(&mut self) -> Result<(), Halted> {
        if let Err(reason) = self.core.decide(&mut self.turn, true) {
            return Err(self.halt(reason));
        }
        if let Err(error) = self.committer.lock().finish(&mut self.turn) {
            self.core.shared.vitals.halt(error.to_string());
        }
        self.check()
    }

    fn check(&mut self) -> Result<(), Halted> {
        if !self.core.shared.vitals.has_halted() {
            return Ok(());
        }
        match self.core.shared.vitals.state() {
            super::State::Halted(reason) => {
                self.turn.clear();
                self.core.consumer.close();
                self.core.hand_back(&mut self.turn);
                Err(Halted { reason })
            }
            _ => Ok(()),
        }
    }

    fn halt(&mut self, reason: String) -> Halted {
        self.core.shared.vitals.halt(reason.clone());
        self.check().err().unwrap_or(Halted { reason })
    }
}

impl Drop for Runner {
    /// Nobody is left waiting: what was not decided is handed back.
    fn drop(&mut self) {
        self.core.shared.vitals.drain();
        self.core.consumer.close();
        self.core.hand_back(&mut self.turn);
    }
}
