//! One transfer: out of one pool and into another. Crash-safe because each half is a keyed command with a number, and
//! because what the halves have done is read from the pools, never remembered here.
//!
//! ```text
//! receiver's last == sender's last        nothing is in flight: withdraw the next number, deposit it
//! receiver's last + 1 == sender's last    in flight: deposit what the sender says
//! ```

use super::Pool;
use crate::engine::CommandError;
use crate::types::{
    Deposit, IdempotencyKey, PoolView, Refusal, SkuId, Transfer, TransferError as Impossible,
    UserId, Withdraw,
};

/// Units could not be moved just now, or nobody knows whether they were: the next step looks again and goes on.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum TransferError {
    /// A pool did not do its half.
    #[error("pool of shard {shard}: {error}")]
    Pool {
        /// Which.
        shard: u16,
        /// Why.
        #[source]
        error: CommandError,
    },
    /// The pools' accounts of each other don't fit. Where no other balancer moves units at the moment, one of them has
    /// lost a part of its log, or they are not pools of one SKU: audit them.
    #[error(
        "shard {from} has sent {sent} transfers to shard {to}, which has taken {received}: unless another balancer \
         is at work, a log is incomplete; audit the pools"
    )]
    OutOfStep {
        /// The sender.
        from: u16,
        /// The receiver.
        to: u16,
        /// The sender's last number.
        sent: u64,
        /// The receiver's.
        received: u64,
    },
    /// Units moved through other processes at every look.
    #[error("units moved at every look: audit again when there is less to balance")]
    NeverStill,
}

fn failed(pool: &impl Pool) -> impl FnOnce(CommandError) -> TransferError {
    let shard = pool.shard();
    move |error| TransferError::Pool { shard, error }
}

pub(super) fn view(pool: &impl Pool) -> Result<PoolView, TransferError> {
    pool.view().map_err(failed(pool))
}

/// What is between two pools.
struct Between {
    in_flight: Option<Transfer>,
    /// The number of the transfer that comes after it.
    next: u64,
    /// The SKU's index at the sender.
    from_sku: SkuId,
    /// And at the receiver.
    to_sku: SkuId,
}

/// The receiver is asked first: what it has taken was sent before.
fn between<P: Pool>(from: &P, to: &P) -> Result<Between, TransferError> {
    let to_view = view(to)?;
    let from_view = view(from)?;
    let received = to_view.account(from.shard()).received;
    let sent = from_view.account(to.shard()).sent;
    if sent.last != received.last && sent.last != received.next() {
        return Err(TransferError::OutOfStep {
            from: from.shard(),
            to: to.shard(),
            sent: sent.last,
            received: received.last,
        });
    }
    let last = Transfer {
        sku: to_view.sku,
        from: from.shard(),
        to: to.shard(),
        number: sent.last,
        units: sent.last_units,
    };
    Ok(Between {
        in_flight: (sent.last != received.last).then_some(last),
        next: sent.next(),
        from_sku: from_view.sku,
        to_sku: to_view.sku,
    })
}

/// Brings what is in flight from one pool to another, if something is. Returns its units.
pub(super) fn finish<P: Pool>(from: &P, to: &P) -> Result<u64, TransferError> {
    match between(from, to)?.in_flight {
        Some(transfer) => bring(to, transfer),
        None => Ok(0),
    }
}

/// Moves at most so many units, after whatever was in flight. Returns how many came.
pub(super) fn carry<P: Pool>(from: &P, to: &P, units: u64) -> Result<u64, TransferError> {
    let between = between(from, to)?;
    let came = match between.in_flight {
        Some(transfer) => bring(to, transfer)?,
        None => 0,
    };
    let wanted = Transfer {
        sku: between.from_sku,
        from: from.shard(),
        to: to.shard(),
        number: between.next,
        units: units.saturating_sub(came),
    };
    if wanted.units == 0 {
        return Ok(came);
    }
    let command = Withdraw::new(actor(), key(&wanted), wanted).map_err(impossible(from))?;
    match from.withdraw(command) {
        Ok(units) => {
            let transfer = Transfer {
                sku: between.to_sku,
                units,
                ..wanted
            };
            Ok(came + bring(to, transfer)?)
        }
        // Sold meanwhile, or another balancer was quicker.
        Err(CommandError::Refused(Refusal::NothingToMove { .. } | Refusal::OutOfOrder { .. })) => {
            Ok(came)
        }
        Err(error) => Err(failed(from)(error)),
    }
}

fn bring<P: Pool>(to: &P, transfer: Transfer) -> Result<u64, TransferError> {
    let command = Deposit::new(actor(), key(&transfer), transfer).map_err(impossible(to))?;
    match to.deposit(command) {
        Ok(units) => Ok(units),
        // Another balancer brought it and went on.
        Err(CommandError::Refused(Refusal::OutOfOrder { expected }))
            if expected > transfer.number =>
        {
            Ok(transfer.units)
        }
        Err(error) => Err(failed(to)(error)),
    }
}

/// A view or an answer that no pool gives.
fn impossible(pool: &impl Pool) -> impl FnOnce(Impossible) -> TransferError {
    let shard = pool.shard();
    move |_| TransferError::Pool {
        shard,
        error: CommandError::Unknown,
    }
}

/// In whose name units move.
fn actor() -> UserId {
    UserId::from_text("pools")
}

/// The same transfer has the same key, whoever carries it; other units of the same number are recognised by it.
fn key(transfer: &Transfer) -> IdempotencyKey {
    let Transfer {
        sku,
        from,
        to,
        number,
        units,
    } = transfer;
    IdempotencyKey::from_text(&format!("{sku} {from} {to} {number} {units}"))
        .unwrap_or_else(|_| unreachable!("the text is not empty"))
}
