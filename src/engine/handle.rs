//! The caller's side of an engine: submit commands, read stock.

use super::Shared;
use super::ask::{Ask, BlockTicket, Ticket};
use super::health::{Health, Stats};
use super::submit::Cargo;
use crate::ring::{Producer, PushError};
use crate::ticket::Completer;
use crate::types::{
    Adjust, Answer, Availability, BeginPayment, Confirm, DefineSku, Deposit, Expire, PaymentFailed,
    Query, Release, Reserve, Return, SetGate, SkuId, SkuName, Timestamp, Withdraw,
};
use std::fmt;
use std::sync::Arc;

/// A command on its way to the writer, and where its answer goes: one slot of the ring.
pub(super) struct Request {
    pub(super) cargo: Cargo,
    pub(super) completer: Completer<Answer>,
}

const _: () = assert!(
    size_of::<Request>() <= 128,
    "a request outgrew its ring slot"
);

/// Talks to one engine; clones talk to the same. Every method may be called from any thread.
#[derive(Clone)]
pub struct Handle {
    pub(super) shared: Arc<Shared>,
    pub(super) producer: Producer<Request>,
}

/// The command was not taken; it is handed back.
#[derive(Clone, PartialEq, Eq, thiserror::Error)]
#[error("{reason}")]
pub struct Busy<C> {
    /// As submitted.
    pub command: C,
    /// Commands that wait for the writer.
    pub queue_depth: usize,
    /// Why.
    pub reason: BusyReason,
}

impl<C> fmt::Debug for Busy<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut fields = f.debug_struct("Busy");
        fields
            .field("reason", &self.reason)
            .field("queue_depth", &self.queue_depth);
        fields.finish_non_exhaustive()
    }
}

/// Why a command was not taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BusyReason {
    /// The ring is full: try again later, or shed the load.
    #[error("the queue is full: try again later")]
    Full,
    /// As many tickets are outstanding as the engine's `tickets_max` allows: collect some.
    #[error("too many answers are waiting to be collected: collect some, or raise tickets_max")]
    Tickets,
    /// The block is longer than the ring: split it.
    #[error("the block is longer than the queue: split it")]
    TooLong,
    /// The engine is shutting down or has ended: use its successor.
    #[error("the engine is shutting down")]
    Draining,
    /// The engine has halted: its health says why.
    #[error("the engine has halted: see its health")]
    Halted,
}

macro_rules! submits {
    ($($(#[$docs:meta])* $method:ident($command:ty);)*) => {
        $($(#[$docs])*
        ///
        /// # Errors
        /// [`Busy`] with the command, if it was not taken.
        pub fn $method(&self, command: $command) -> Result<Ticket<$command>, Busy<$command>> {
            self.submit(command)
        })*
    };
}

#[expect(
    clippy::result_large_err,
    reason = "a command that was not taken is handed back whole"
)]
impl Handle {
    submits! {
        /// Asks for units.
        reserve(Reserve);
        /// Says that a payment is about to be attempted.
        begin_payment(BeginPayment);
        /// Says that a payment attempt captured nothing.
        payment_failed(PaymentFailed);
        /// Says that a payment is captured, or none is due: sells the units.
        confirm(Confirm);
        /// Gives a hold back.
        release(Release);
        /// Asks for an overdue hold to end; the engine also does so by itself.
        expire(Expire);
        /// Takes sold units back.
        return_units(Return);
        /// Changes a SKU's total.
        adjust(Adjust);
        /// Takes available units out, on their way to another pool.
        withdraw(Withdraw);
        /// Adds units that come from another pool.
        deposit(Deposit);
        /// Makes a SKU known.
        define_sku(DefineSku);
        /// Opens, closes, pauses or ends a sale.
        set_gate(SetGate);
        /// Asks what is; answered in order with the commands submitted before it.
        query(Query);
    }

    /// Submits any command.
    ///
    /// # Errors
    /// [`Busy`] with the command, if it was not taken.
    pub fn submit<C: Ask>(&self, command: C) -> Result<Ticket<C>, Busy<C>> {
        if let Some(reason) = self.closed() {
            return Err(self.busy(command, reason));
        }
        let Some((completer, ticket)) = self.shared.pool.issue() else {
            return Err(self.busy(command, BusyReason::Tickets));
        };
        match self.producer.try_push(Request {
            cargo: Cargo::Direct(command.into()),
            completer,
        }) {
            Ok(()) => Ok(Ticket::new(ticket)),
            Err(error) => {
                let reason = match &error {
                    PushError::Full(_) => BusyReason::Full,
                    PushError::Closed(_) => self.closed().unwrap_or(BusyReason::Draining),
                };
                let command = C::from_command(error.into_inner().cargo.into_command());
                let command = command.unwrap_or_else(|| unreachable!("a command keeps its type"));
                Err(self.busy(command, reason))
            }
        }
    }

    /// Submits commands that belong together for speed: one claim in the ring, one wake, answers side by side in order.
    /// Each is decided for itself.
    ///
    /// # Errors
    /// [`Busy`] with all commands, if they were not taken; none was then.
    pub fn submit_block<C: Ask>(&self, commands: Vec<C>) -> Result<BlockTicket<C>, Busy<Vec<C>>> {
        if let Some(reason) = self.closed() {
            return Err(self.busy(commands, reason));
        }
        if commands.len() > self.producer.capacity() {
            return Err(self.busy(commands, BusyReason::TooLong));
        }
        let Some((completers, block)) = self.shared.pool.issue_block(commands.len()) else {
            return Err(self.busy(commands, BusyReason::Tickets));
        };
        let mut requests: Vec<Request> = commands
            .into_iter()
            .zip(completers)
            .map(|(command, completer)| Request {
                cargo: Cargo::Direct(command.into()),
                completer,
            })
            .collect();
        match self.producer.try_push_bulk(&mut requests) {
            Ok(()) => Ok(BlockTicket::new(block)),
            Err(error) => {
                let reason = match error {
                    crate::ring::BulkError::Full => BusyReason::Full,
                    crate::ring::BulkError::TooLong { .. } => BusyReason::TooLong,
                    crate::ring::BulkError::Closed => self.closed().unwrap_or(BusyReason::Draining),
                };
                let commands = requests
                    .into_iter()
                    .filter_map(|request| C::from_command(request.cargo.into_command()));
                Err(self.busy(commands.collect(), reason))
            }
        }
    }

    fn closed(&self) -> Option<BusyReason> {
        let vitals = &self.shared.vitals;
        if vitals.is_open() {
            return None;
        }
        Some(if vitals.has_halted() {
            BusyReason::Halted
        } else {
            BusyReason::Draining
        })
    }

    fn busy<C>(&self, command: C, reason: BusyReason) -> Busy<C> {
        Busy {
            command,
            queue_depth: self.producer.len(),
            reason,
        }
    }

    /// A SKU's stock as of the last committed batch that changed it: one snapshot, which never waits. `None` for a SKU
    /// that is not defined.
    #[inline]
    pub fn availability(&self, sku: SkuId) -> Option<Availability> {
        self.shared.reads.availability(sku)
    }

    /// The index of a SKU; `None` if it is not defined or the name can't be one.
    pub fn sku(&self, name: &str) -> Option<SkuId> {
        self.shared.reads.sku(&SkuName::new(name).ok()?)
    }

    /// The name of a SKU.
    pub fn sku_name(&self, sku: SkuId) -> Option<SkuName> {
        self.shared.reads.name(sku)
    }

    /// All SKUs, in the order of their definition.
    pub fn skus(&self) -> Vec<(SkuId, SkuName)> {
        self.shared.reads.skus()
    }

    /// The engine's logical time: what deadlines and `decide_by` compare with.
    pub fn now(&self) -> Timestamp {
        self.shared.clock.now()
    }

    /// Commands that wait for the writer.
    pub fn queue_depth(&self) -> usize {
        self.producer.len()
    }

    /// How the engine is.
    pub fn health(&self) -> Health {
        self.shared.health()
    }

    /// What it has done.
    pub fn stats(&self) -> Stats {
        self.shared
            .vitals
            .stats(self.producer.len(), self.producer.capacity())
    }

    /// The engine's name.
    pub fn name(&self) -> &str {
        &self.shared.name
    }
}

impl fmt::Debug for Handle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Handle")
            .field("name", &self.shared.name)
            .finish_non_exhaustive()
    }
}
