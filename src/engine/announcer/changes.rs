//! Reads what becomes of reservations out of committed batches.

use super::super::reads::Reads;
use crate::cache::{Change, ReservationChange};
use crate::types::{Batch, Disposition, Event, EventKind, HoldStatus, Line, ReservationId};
use std::collections::VecDeque;

pub(super) struct Changes {
    epoch: u64,
    next_sequence: u64,
    /// Lines from the second on of the cart that the next event reserves.
    cart: Vec<Line>,
}

impl Changes {
    pub(super) fn new(epoch: u64) -> Self {
        Self {
            epoch,
            next_sequence: 0,
            cart: Vec::new(),
        }
    }

    /// Above everything that was read.
    pub(super) fn next_sequence(&self) -> u64 {
        self.next_sequence
    }

    /// Appends the batch's changes; false if they can't be read.
    pub(super) fn read(
        &mut self,
        batch: &Batch,
        reads: &Reads,
        out: &mut VecDeque<ReservationChange>,
    ) -> bool {
        self.next_sequence = batch.last_sequence() + 1;
        for event in batch.events() {
            let Ok(event) = event else {
                return false;
            };
            match self.change(&event, reads) {
                None => {}
                Some((id, Some(change))) => out.push_back(ReservationChange {
                    id,
                    epoch: self.epoch,
                    sequence: event.sequence,
                    at: event.at,
                    change,
                }),
                Some((_, None)) => return false,
            }
        }
        true
    }

    /// None where the event is about no live reservation; without a change, one of its SKUs has no name.
    fn change(&mut self, event: &Event, reads: &Reads) -> Option<(ReservationId, Option<Change>)> {
        let moved = |status, expires_at| Some(Change::Moved { status, expires_at });
        Some(match event.kind {
            EventKind::CartLines { len, ref lines } => {
                self.cart.extend_from_slice(&lines[..usize::from(len)]);
                return None;
            }
            EventKind::Reserved {
                origin,
                first,
                expires_at,
                ..
            } => {
                let lines = std::iter::once(first).chain(self.cart.drain(..));
                let named = lines.map(|line| Some((reads.name(line.sku)?, line.quantity)));
                let made = named.collect::<Option<_>>().map(|lines| Change::Made {
                    user: origin.user,
                    lines,
                    expires_at,
                });
                (ReservationId::new(event.shard, event.sequence), made)
            }
            EventKind::PaymentBegun {
                reservation,
                expires_at,
                ..
            }
            | EventKind::DeadlineMoved {
                reservation,
                expires_at,
            } => (reservation, moved(HoldStatus::InPayment, expires_at)),
            EventKind::PaymentFailed {
                reservation,
                disposition: Disposition::Keep,
                expires_at,
                ..
            } => (reservation, moved(HoldStatus::Held, expires_at)),
            EventKind::PaymentFailed { reservation, .. }
            | EventKind::Confirmed { reservation, .. }
            | EventKind::Released { reservation, .. }
            | EventKind::Expired { reservation } => (reservation, Some(Change::Ended)),
            EventKind::SkuNamed { .. }
            | EventKind::SkuDefined { .. }
            | EventKind::TotalAdjusted { .. }
            | EventKind::GateSet { .. }
            | EventKind::RefundDue { .. }
            | EventKind::Returned { .. }
            | EventKind::DeadlinesCredited { .. }
            | EventKind::Repeated { .. }
            | EventKind::PolicySet { .. }
            | EventKind::Withdrawn { .. }
            | EventKind::Deposited { .. } => return None,
        })
    }
}
