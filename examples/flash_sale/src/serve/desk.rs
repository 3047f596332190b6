//! Where requests are decided: by the engine of this process, or by writers behind Kafka. What answers HTTP asks a [`Desk`] and
//! need not know which.

use super::catalogue::Names;
use super::problem::Problem;
use crate::engine::{Ask, Handle, Health};
use std::time::Duration;
use stockade::types::{
    Availability, Line, Query, QueryAnswer, ReservationId, ReservationView, SkuId, SkuName,
    Timestamp,
};

#[cfg(feature = "kafka")]
pub(crate) use super::away::Away;

/// How long a request waits for its decision; then its outcome is unknown to it.
pub(crate) const DECISION_TIME_MAX: Duration = Duration::from_secs(10);

/// See the module.
pub(crate) enum Desk {
    Here(Handle),
    #[cfg(feature = "kafka")]
    Away(Away),
}

impl Desk {
    /// Puts a command in line and waits for its decision. `lines` are those of the cart, for a refusal to name.
    pub(crate) async fn ask<C: Ask>(
        &self,
        command: C,
        names: &Names,
        lines: &[Line],
    ) -> Result<C::Accepted, Problem> {
        let name_of = |line: u16| names.name(lines.get(usize::from(line))?.sku);
        match self {
            Self::Here(handle) => {
                let ticket = handle
                    .submit(command)
                    .map_err(|busy| Problem::busy(&busy))?;
                match tokio::time::timeout(DECISION_TIME_MAX, ticket).await {
                    Ok(Ok(accepted)) => Ok(accepted),
                    Ok(Err(error)) => Err(Problem::command(&error, name_of)),
                    Err(_) => Err(Problem::outcome_unknown()),
                }
            }
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.ask(command, names, name_of).await,
        }
    }

    /// A reservation, live or ended.
    pub(crate) async fn reservation(
        &self,
        id: ReservationId,
        names: &Names,
    ) -> Result<Option<ReservationView>, Problem> {
        match self {
            Self::Here(_) => match self.ask(Query::Reservation(id), names, &[]).await? {
                QueryAnswer::Reservation(found) => Ok(found),
                _ => Ok(None),
            },
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.reservation(id).await,
        }
    }

    /// A SKU's stock; never waits.
    pub(crate) fn availability(&self, sku: SkuId) -> Option<Availability> {
        match self {
            Self::Here(handle) => handle.availability(sku),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.availability(sku),
        }
    }

    /// Whether stock is shown as it last was, because what is so now can't be known.
    pub(crate) fn is_stale(&self) -> bool {
        match self {
            Self::Here(handle) => handle.health().is_stalled,
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.is_stale(),
        }
    }

    /// A SKU by its name.
    pub(crate) fn sku(&self, name: &str) -> Option<SkuId> {
        match self {
            Self::Here(handle) => handle.sku(name),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.sku(name),
        }
    }

    /// All SKUs, by their indexes, which are dense.
    pub(crate) fn skus(&self) -> Vec<(SkuId, SkuName)> {
        match self {
            Self::Here(handle) => {
                let mut skus = handle.skus();
                skus.sort_by_key(|&(id, _)| id);
                skus
            }
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.skus(),
        }
    }

    /// What a command's `decide_by` compares with.
    pub(crate) fn now(&self) -> Timestamp {
        match self {
            Self::Here(handle) => handle.now(),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.now(),
        }
    }

    /// What the deadline of a reservation compares with.
    #[cfg_attr(
        not(feature = "kafka"),
        expect(unused_variables, reason = "one engine has one log")
    )]
    pub(crate) fn now_of(&self, reservation: ReservationId) -> Timestamp {
        match self {
            Self::Here(handle) => handle.now(),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.now_of(reservation),
        }
    }

    pub(crate) fn health(&self) -> Health {
        match self {
            Self::Here(handle) => handle.health(),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.health(),
        }
    }

    /// Whether a reservation is worth reading: for want of room one is refused before, so that it costs little. An engine's own
    /// queue needs no such help.
    pub(crate) fn has_room(&self) -> bool {
        match self {
            Self::Here(_) => true,
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.has_room(),
        }
    }

    /// Requests that wait for a decision.
    pub(crate) fn queue_depth(&self) -> usize {
        match self {
            Self::Here(handle) => handle.queue_depth(),
            #[cfg(feature = "kafka")]
            Self::Away(away) => away.queue_depth(),
        }
    }
}
