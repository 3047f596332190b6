//! Pools that are engines of this process, and reservations through them.

use super::{Pool, PooledStock, Pools, Whereabouts};
use crate::engine::{BusyReason, CommandError, Handle, Ticket};
use crate::types::{
    Deposit, IdempotencyKey, LinesError, PoolView, Query, QueryAnswer, Refusal, Reservation,
    Reserve, SkuId, UserId, Withdraw,
};

/// A pool that is an engine of this process.
#[derive(Debug, Clone)]
pub struct EnginePool {
    handle: Handle,
    shard: u16,
    sku: SkuId,
}

impl EnginePool {
    /// One SKU of an engine, which knows its shard.
    ///
    /// # Errors
    /// If the SKU is not defined there, or the engine does not answer.
    pub fn new(handle: Handle, sku: SkuId) -> Result<Self, CommandError> {
        let shard = view_of(&handle, sku)?.shard;
        Ok(Self { handle, shard, sku })
    }

    /// The engine: payments, confirms and releases of this pool's users go to it.
    pub fn handle(&self) -> &Handle {
        &self.handle
    }
}

fn view_of(handle: &Handle, sku: SkuId) -> Result<PoolView, CommandError> {
    let ticket = handle.query(Query::Pool(sku));
    match ticket.map_err(|_| CommandError::NotDecided)?.wait()? {
        QueryAnswer::Pool(Some(view)) => Ok(view),
        _ => Err(CommandError::Refused(Refusal::UnknownSku { line: 0 })),
    }
}

impl Pool for EnginePool {
    fn shard(&self) -> u16 {
        self.shard
    }

    fn stock(&self) -> Option<PooledStock> {
        self.handle.availability(self.sku).map(PooledStock::from)
    }

    fn view(&self) -> Result<PoolView, CommandError> {
        view_of(&self.handle, self.sku)
    }

    fn withdraw(&self, command: Withdraw) -> Result<u64, CommandError> {
        let ticket = self.handle.withdraw(command);
        ticket.map_err(|_| CommandError::NotDecided)?.wait()
    }

    fn deposit(&self, command: Deposit) -> Result<u64, CommandError> {
        let ticket = self.handle.deposit(command);
        ticket.map_err(|_| CommandError::NotDecided)?.wait()
    }
}

/// A user got nothing, and what that means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum NotReserved {
    /// The quantity can't be asked for.
    #[error(transparent)]
    Lines(#[from] LinesError),
    /// The user's pool took no command.
    #[error("{0}")]
    Busy(BusyReason),
    /// His pool is short, units are on their way to it. Nothing was decided: the same again in some milliseconds, with
    /// the same key.
    #[error("units are on their way: ask again in some milliseconds")]
    Moving,
    /// His pool sold out while he asked, and other pools have units. That he was refused is the answer of his key: ask
    /// again in some milliseconds with a new one.
    #[error("units are on their way: ask again in some milliseconds, with a new key")]
    Raced,
    /// Decided, or nobody knows. Sold out means that all pools together had fewer units than asked for.
    #[error(transparent)]
    Command(CommandError),
}

/// A reservation on its way through a user's pool.
#[must_use = "the answer comes through it; dropping it cancels nothing"]
pub struct Reserving<'a> {
    pools: &'a Pools<EnginePool>,
    ticket: Ticket<Reserve>,
    user: UserId,
    units: u32,
}

impl Pools<EnginePool> {
    /// Asks the user's pool for units, if it has some or no pool has.
    ///
    /// # Errors
    /// Nothing was submitted then.
    pub fn reserve(
        &self,
        user: UserId,
        units: u32,
        key: Option<IdempotencyKey>,
    ) -> Result<Reserving<'_>, NotReserved> {
        let pool = self.of(user);
        let mut command = Reserve::one(user, pool.sku, units)?;
        command.key = key;
        if self.want(user, units) == Whereabouts::Elsewhere {
            return Err(NotReserved::Moving);
        }
        let ticket = pool.handle.reserve(command);
        Ok(Reserving {
            pools: self,
            ticket: ticket.map_err(|busy| NotReserved::Busy(busy.reason))?,
            user,
            units,
        })
    }
}

impl Reserving<'_> {
    /// Blocks the thread until the answer is there.
    ///
    /// # Errors
    /// What to do next: see [`NotReserved`].
    pub fn wait(self) -> Result<Reservation, NotReserved> {
        self.ticket.wait().map_err(|error| match error {
            CommandError::Refused(Refusal::SoldOut { .. })
                if self.pools.want(self.user, self.units) != Whereabouts::Nowhere =>
            {
                NotReserved::Raced
            }
            other => NotReserved::Command(other),
        })
    }
}
