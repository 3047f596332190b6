//! How units come back: released by their user, expired by time, returned after the sale.

use super::{Decided, refused};
use crate::allocator::Allocator;
use crate::types::{
    Batch, Decision, EventKind, Expire, HoldStatus, Line, Lines, Origin, Refusal, Release, Return,
    SkuId,
};

impl Allocator {
    pub(super) fn release(&mut self, c: &Release, origin: &Origin, batch: &mut Batch) -> Decided {
        let place = match self.live_own(c.user, c.reservation, batch)? {
            Ok(place) => place,
            Err(refusal) => return refused(refusal),
        };
        let payment = self
            .holds
            .payment(place)
            .filter(|payment| payment.is_under_way);
        if let Some(payment) = payment {
            return refused(Refusal::InPayment {
                attempt: payment.attempt,
            });
        }
        let released = EventKind::Released {
            origin: *origin,
            reservation: c.reservation,
        };
        self.record(released, batch)?;
        Ok(Decision::Released)
    }

    pub(super) fn expire(&mut self, c: Expire, batch: &mut Batch) -> Decided {
        let was_live = self
            .find(c.reservation)
            .is_some_and(|place| self.holds.get(place).status.is_live());
        let Some(place) = self.settled(c.reservation, batch)? else {
            return refused(Refusal::UnknownReservation);
        };
        let hold = *self.holds.get(place);
        let status = hold.status;
        if !was_live {
            return refused(Refusal::Ended { status });
        }
        if status.is_live() {
            let expires_at = self.effective(hold.time);
            return refused(Refusal::NotDue { expires_at });
        }
        Ok(Decision::Expired)
    }

    pub(super) fn return_units(
        &mut self,
        c: &Return,
        origin: &Origin,
        batch: &mut Batch,
    ) -> Decided {
        let lines: Vec<Line> = match self.lines_to_return(c) {
            Ok(lines) => lines,
            Err(refusal) => return refused(refusal),
        };
        let units: u64 = lines.iter().map(|line| u64::from(line.quantity)).sum();
        for (index, &line) in lines.iter().enumerate() {
            let is_last = index + 1 == lines.len();
            let returned = EventKind::Returned {
                origin: *origin,
                reason: c.reason,
                reservation: c.reservation,
                line,
                units: if is_last { units } else { 0 },
            };
            self.record(returned, batch)?;
        }
        Ok(Decision::Returned { units })
    }

    fn lines_to_return(&self, c: &Return) -> Result<Vec<Line>, Refusal> {
        let named = c.lines.as_ref().map_or(&[][..], Lines::as_slice);
        let unknown = |line: &Line| line.sku.0 as usize >= self.stocks.len();
        if let Some((_, line)) = named.iter().zip(0_u16..).find(|(line, _)| unknown(line)) {
            return Err(Refusal::UnknownSku { line });
        }
        let place = match c.reservation {
            Some(id) => Some(self.find(id).ok_or(Refusal::UnknownReservation)?),
            None => None,
        };
        if place.is_some_and(|place| self.holds.get(place).status != HoldStatus::Confirmed) {
            return Err(Refusal::NotConfirmed);
        }
        let left = |place: u32, sku: SkuId| {
            let mut lines = self.holds.lines(place);
            let held = lines.find(|held| held.line.sku == sku);
            held.map_or(0, |held| held.line.quantity - held.returned)
        };
        let lines: Vec<Line> = match (&c.lines, place) {
            (Some(lines), _) => lines.as_slice().to_vec(),
            (None, Some(place)) => {
                let held = self.holds.lines(place).map(|held| Line {
                    quantity: held.line.quantity - held.returned,
                    ..held.line
                });
                held.filter(|line| line.quantity > 0).collect()
            }
            (None, None) => Vec::new(),
        };
        if lines.is_empty() {
            return Err(Refusal::NotConfirmed);
        }
        for (&Line { sku, quantity }, line) in lines.iter().zip(0_u16..) {
            let sold = self.stocks[sku.0 as usize].sold;
            let sold = place.map_or(sold, |place| sold.min(left(place, sku).into()));
            if u64::from(quantity) > sold {
                return Err(Refusal::ExceedsSold { line, sku, sold });
            }
        }
        Ok(lines)
    }
}
