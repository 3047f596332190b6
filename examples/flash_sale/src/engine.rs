//! What this program uses of the engine, in one place: every other module takes it from here.

#[path = "engine_stub.rs"]
mod stub;
pub(crate) use stub::*;

use stockade::types::{Clock, Refusal};
use stockade::store::Store;
use anyhow::{Context, Result, bail};
use std::sync::Arc;
use std::time::Duration;

/// An engine without threads, asked one thing after the other: decisions come in the order of the questions.
pub(crate) struct Driver {
    handle: Handle,
    runner: Runner,
}

impl Driver {
    /// On `store`, with time as `clock` says.
    pub(crate) fn new(name: &str, store: impl Store + 'static, limits: Limits, clock: Arc<dyn Clock>) -> Result<Self> {
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
    pub(crate) fn submit<C: Request>(&mut self, command: C) -> Result<Ticket<C>> {
        let mut command = command;
        loop {
            match self.handle.submit(command) {
                Ok(ticket) => return Ok(ticket),
                Err(busy) if busy.reason == BusyReason::Full => {
                    command = busy.command;
                    self.step()?;
                }
                Err(busy) => bail!("the engine has stopped: {:?}", self.health_after(busy.reason)),
            }
        }
    }

    /// Decides what is in line.
    pub(crate) fn step(&mut self) -> Result<()> {
        self.runner.step();
        Ok(())
    }

    /// The decision of a command in line.
    pub(crate) fn settle<C: Request>(&mut self, ticket: Ticket<C>) -> Result<Result<C::Accepted, Refusal>> {
        let mut ticket = ticket;
        loop {
            match ticket.wait_timeout(Duration::ZERO) {
                Ok(Ok(accepted)) => return Ok(Ok(accepted)),
                Ok(Err(CommandError::Refused(refusal))) => return Ok(Err(refusal)),
                Ok(Err(error)) => bail!("the engine has stopped: {error:?}, {:?}", self.handle.health()),
                Err(waiting) => {
                    ticket = waiting;
                    self.step()?;
                }
            }
        }
    }

    /// Ends it in good order.
    pub(crate) fn finish(self) -> Result<()> {
        self.runner.shutdown(Duration::from_secs(10));
        Ok(())
    }

    fn health_after(&self, reason: BusyReason) -> (BusyReason, Health) {
        (reason, self.handle.health())
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
