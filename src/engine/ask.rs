//! The typed face of commands: what each is answered with, and the tickets that bring it.

use crate::ticket;
use crate::types::{
    Adjust, Answer, BeginPayment, Command, Confirm, Confirmation, Decision, DefineSku, Deposit,
    Expire, Kept, PaymentAttempt, PaymentFailed, Query, QueryAnswer, Refusal, Release, Reservation,
    Reserve, Return, SetGate, SkuId, Withdraw,
};
use std::fmt;
use std::marker::PhantomData;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

/// A command that can be submitted. Sealed by what it converts to: [`Command`] is not open.
pub trait Ask: Into<Command> + Sized + private::Sealed {
    /// What it is answered with when it is accepted.
    type Accepted;

    #[doc(hidden)]
    fn accepted(answer: Answer) -> Option<Self::Accepted>;

    #[doc(hidden)]
    fn from_command(command: Command) -> Option<Self>;
}

mod private {
    pub trait Sealed {}
}

macro_rules! asks {
    ($($name:ident => $accepted:ty: $answer:pat => $value:expr, $command:pat => $back:expr;)*) => {
        $(impl private::Sealed for $name {}

        impl Ask for $name {
            type Accepted = $accepted;

            fn accepted(answer: Answer) -> Option<$accepted> {
                match answer {
                    $answer => Some($value),
                    _ => None,
                }
            }

            fn from_command(command: Command) -> Option<Self> {
                match command {
                    $command => Some($back),
                    _ => None,
                }
            }
        })*
    };
}

asks! {
    Reserve => Reservation: Answer::Decided(Decision::Reserved(r)) => r, Command::Reserve(c) => c;
    BeginPayment => PaymentAttempt:
        Answer::Decided(Decision::PaymentBegun(p)) => p, Command::BeginPayment(c) => c;
    PaymentFailed => Kept:
        Answer::Decided(Decision::PaymentFailed(k)) => k, Command::PaymentFailed(c) => c;
    Confirm => Confirmation: Answer::Decided(Decision::Confirmed(c)) => c, Command::Confirm(c) => c;
    Release => (): Answer::Decided(Decision::Released) => (), Command::Release(c) => c;
    Expire => (): Answer::Decided(Decision::Expired) => (), Command::Expire(c) => c;
    Return => u64: Answer::Decided(Decision::Returned { units }) => units, Command::Return(c) => *c;
    Adjust => u64: Answer::Decided(Decision::Adjusted { total }) => total, Command::Adjust(c) => *c;
    DefineSku => SkuId: Answer::Decided(Decision::Defined { sku }) => sku, Command::DefineSku(c) => *c;
    SetGate => u32: Answer::Decided(Decision::GateSet { sale }) => sale, Command::SetGate(c) => *c;
    Withdraw => u64:
        Answer::Decided(Decision::Withdrawn { units }) => units, Command::Withdraw(c) => *c;
    Deposit => u64:
        Answer::Decided(Decision::Deposited { units }) => units, Command::Deposit(c) => *c;
    Query => QueryAnswer: Answer::Found(found) => *found, Command::Query(c) => c;
}

/// Why a command brought nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum CommandError {
    /// Decided: no, and why.
    #[error("{0}")]
    Refused(Refusal),
    /// The engine stopped before it looked at the command. Nothing has happened: send it again.
    #[error("the engine stopped before it decided: send the command again")]
    NotDecided,
    /// The engine stopped after it had decided and before the store had answered. It may have happened: ask again with
    /// the same key, which gives the truth.
    #[error("the outcome is unknown: ask again with the same key")]
    Unknown,
}

impl CommandError {
    /// The refusal, if it is one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused(refusal) => Some(refusal),
            Self::NotDecided | Self::Unknown => None,
        }
    }
}

fn outcome<C: Ask>(answer: Option<Answer>) -> Result<C::Accepted, CommandError> {
    match answer {
        None => Err(CommandError::Unknown),
        Some(Answer::NotDecided) => Err(CommandError::NotDecided),
        Some(Answer::Decided(Decision::Refused(refusal))) => Err(CommandError::Refused(refusal)),
        // A decision of another kind would be a bug of the engine; the caller is told what is certain.
        Some(answer) => C::accepted(answer).ok_or(CommandError::Unknown),
    }
}

/// Brings the answer to one command, once it is durable. Dropping it cancels nothing.
#[must_use = "the answer comes through the ticket; dropping it cancels nothing"]
pub struct Ticket<C: Ask> {
    inner: ticket::Ticket<Answer>,
    asked: PhantomData<fn() -> C>,
}

impl<C: Ask> Ticket<C> {
    pub(super) fn new(inner: ticket::Ticket<Answer>) -> Self {
        Self {
            inner,
            asked: PhantomData,
        }
    }

    /// Blocks the thread until the answer is there.
    ///
    /// # Errors
    /// A refusal, or that the engine stopped; see [`CommandError`].
    pub fn wait(self) -> Result<C::Accepted, CommandError> {
        outcome::<C>(self.inner.wait())
    }

    /// Blocks for at most `timeout`.
    ///
    /// # Errors
    /// The ticket itself if the time passed: the command stands, and the answer can be waited for again.
    pub fn wait_timeout(
        self,
        timeout: Duration,
    ) -> Result<Result<C::Accepted, CommandError>, Self> {
        match self.inner.wait_timeout(timeout) {
            Ok(answer) => Ok(outcome::<C>(answer)),
            Err(inner) => Err(Self::new(inner)),
        }
    }

    /// Whether the answer is there.
    pub fn is_done(&self) -> bool {
        self.inner.is_done()
    }
}

impl<C: Ask> Future for Ticket<C> {
    type Output = Result<C::Accepted, CommandError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        Pin::new(&mut self.inner).poll(context).map(outcome::<C>)
    }
}

impl<C: Ask> fmt::Debug for Ticket<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// Brings the answers to a block of commands, once the last of them is durable.
#[must_use = "the answers come through the ticket; dropping it cancels nothing"]
pub struct BlockTicket<C: Ask> {
    inner: ticket::Block<Answer>,
    asked: PhantomData<fn() -> C>,
}

impl<C: Ask> BlockTicket<C> {
    pub(super) fn new(inner: ticket::Block<Answer>) -> Self {
        Self {
            inner,
            asked: PhantomData,
        }
    }

    /// Blocks the thread until all answers are there.
    pub fn wait(self) -> Outcomes<C> {
        Outcomes {
            inner: self.inner.wait(),
            asked: PhantomData,
        }
    }

    /// Blocks for at most `timeout`.
    ///
    /// # Errors
    /// The ticket itself if the time passed.
    pub fn wait_timeout(self, timeout: Duration) -> Result<Outcomes<C>, Self> {
        match self.inner.wait_timeout(timeout) {
            Ok(inner) => Ok(Outcomes {
                inner,
                asked: PhantomData,
            }),
            Err(inner) => Err(Self::new(inner)),
        }
    }

    /// Whether all answers are there.
    pub fn is_done(&self) -> bool {
        self.inner.is_done()
    }
}

impl<C: Ask> Future for BlockTicket<C> {
    type Output = Outcomes<C>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Outcomes<C>> {
        let polled = Pin::new(&mut self.inner).poll(context);
        polled.map(|inner| Outcomes {
            inner,
            asked: PhantomData,
        })
    }
}

impl<C: Ask> fmt::Debug for BlockTicket<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

/// The answers to a block, in the order of its commands.
pub struct Outcomes<C: Ask> {
    inner: ticket::Decisions<Answer>,
    asked: PhantomData<fn() -> C>,
}

impl<C: Ask> Iterator for Outcomes<C> {
    type Item = Result<C::Accepted, CommandError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.inner.next().map(outcome::<C>)
    }

    fn size_hint(&self) -> (usize, Option<usize>) {
        self.inner.size_hint()
    }
}

impl<C: Ask> ExactSizeIterator for Outcomes<C> {}

impl<C: Ask> fmt::Debug for Outcomes<C> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}
