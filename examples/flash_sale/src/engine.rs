//! What this program uses of the engine, in one place: every other module takes it from here.

pub(crate) use stockade::allocator::Limits;
pub(crate) use stockade::engine::{
    Ask, Busy, BusyReason, CommandError, Engine, EngineBuilder, EngineError, Handle, Health,
    Runner, State, Ticket,
};

use anyhow::{Context, Result, anyhow, bail};
use std::sync::Arc;
use std::time::Duration;
use stockade::store::Store;
use stockade::types::{Clock, Refusal};

/// An engine without threads, asked one thing after the other: decisions come in the order of the questions.
pub(crate) struct Driver {
    handle: Handle,
    runner: Runner,
}

impl Driver {
    /// On `store`, with time as `clock` says.
    pub(crate) fn new(
        name: &str,
        store: impl Store + 'static,
        limits: Limits,
        clock: Arc<dyn Clock>,
    ) -> Result<Self> {
        let (handle, runner) = Engine::builder()
            .name(name)
            .store(store)
            .limits(limits)
            .clock(clock)
            .build()
            .context("the engine doesn't start")?;
        Ok(Self { handle, runner })
    }

    /// Reads.
    pub(crate) fn handle(&self) -> &Handle {
        &self.handle
    }

    /// Puts a command in line; several of them are decided in one batch.
    pub(crate) fn submit<C: Ask>(&mut self, mut command: C) -> Result<Ticket<C>> {
        loop {
            match self.handle.submit(command) {
                Ok(ticket) => return Ok(ticket),
                Err(busy) if busy.reason == BusyReason::Full => {
                    command = busy.command;
                    self.step()?;
                }
                Err(busy) => bail!("the engine takes no command: {busy}"),
            }
        }
    }

    /// The decision of a command in line.
    pub(crate) fn settle<C: Ask>(
        &mut self,
        mut ticket: Ticket<C>,
    ) -> Result<Result<C::Accepted, Refusal>> {
        loop {
            match ticket.wait_timeout(Duration::ZERO) {
                Ok(Ok(accepted)) => return Ok(Ok(accepted)),
                Ok(Err(CommandError::Refused(refusal))) => return Ok(Err(refusal)),
                Ok(Err(error)) => bail!("{error}: {:?}", self.handle.health().state),
                Err(waiting) => {
                    ticket = waiting;
                    self.step()?;
                }
            }
        }
    }

    /// Ends it in good order. Gives the digest of the state.
    pub(crate) fn finish(self) -> Result<u128> {
        self.runner
            .shutdown()
            .map_err(|halted| anyhow!("the engine has halted: {halted}"))
    }

    fn step(&mut self) -> Result<()> {
        self.runner
            .step()
            .map(|_| ())
            .map_err(|halted| anyhow!("the engine has halted: {halted}"))
    }
}

/// The line of a cart that a refusal is about.
pub(crate) const fn failing_line(refusal: &Refusal) -> Option<u16> {
    match refusal {
        Refusal::UnknownSku { line }
        | Refusal::RequestLimit { line, .. }
        | Refusal::UserLimit { line, .. }
        | Refusal::SoldOut { line, .. }
        | Refusal::ExceedsSold { line, .. } => Some(*line),
        _ => None,
    }
}
