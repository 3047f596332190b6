//! Reserve: all lines of a cart or none.

use super::{Decided, refused};
use crate::allocator::{Allocator, Violation};
use crate::types::{
    Batch, Bound, Decision, EventKind, LINES_PER_EVENT, Line, Lines, Origin, Refusal, Reservation,
    ReservationId, Reserve, Timestamp, UserId, ms_until,
};

impl Allocator {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn reserve(&mut self, c: &Reserve, origin: &Origin, batch: &mut Batch) -> Decided {
        if let Some(refusal) = self.refuses_cart(c.user, &c.lines) {
            return refused(refusal);
        }
        if let Some(refusal) = self.refuses_units(c.user, &c.lines, batch)? {
            return refused(refusal);
        }
        self.hold(&c.lines, origin, None, batch)
            .map(Decision::Reserved)
    }

    /// What speaks against a cart whatever the stock is: bounds, unknown SKUs, closed sales.
    #[inline]
    fn refuses_cart(&self, user: UserId, lines: &Lines) -> Option<Refusal> {
        if let Some(bound) = self.exhausted(user, lines) {
            return Some(Refusal::Busy { bound });
        }
        let passes = |line: &Line| {
            self.stocks.get(line.sku.0 as usize).is_some_and(|stock| {
                stock.admits(line.sku, self.now).is_none() && stock.rules.takes(line.quantity)
            })
        };
        // The usual cart passes in one look; which refusal comes first takes several.
        if lines.len() <= usize::from(self.limits.lines_max) && lines.as_slice().iter().all(passes)
        {
            return None;
        }
        self.first_against(lines)
    }

    #[cold]
    fn first_against(&self, lines: &Lines) -> Option<Refusal> {
        let all = || lines.as_slice().iter().zip(0_u16..);
        let stock = |line: &Line| self.stocks.get(line.sku.0 as usize);
        if let Some((_, line)) = all().find(|(line, _)| stock(line).is_none()) {
            return Some(Refusal::UnknownSku { line });
        }
        // Not open comes before paused, whichever line it is.
        let gates = || all().filter_map(|(line, _)| stock(line)?.admits(line.sku, self.now));
        let closed = gates().find(|refusal| matches!(refusal, Refusal::NotOpen { .. }));
        if let Some(refusal) = closed.or_else(|| gates().next()) {
            return Some(refusal);
        }
        if lines.len() > usize::from(self.limits.lines_max) {
            return Some(Refusal::TooManyLines {
                max: self.limits.lines_max,
            });
        }
        all().find_map(|(&Line { sku, quantity }, line)| {
            let rules = self.stocks[sku.0 as usize].rules;
            let max = rules.per_request.filter(|_| !rules.takes(quantity))?;
            Some(Refusal::RequestLimit { line, sku, max })
        })
    }

    /// The first table that has no room for another reservation.
    #[inline]
    pub(super) fn exhausted(&self, user: UserId, lines: &Lines) -> Option<Bound> {
        if self.reservations_are_full() {
            return Some(Bound::Reservations);
        }
        let room = (self.limits.counters_max as usize).saturating_sub(self.users.counting());
        if lines.len() <= room {
            return None;
        }
        self.counters_exhausted(user, lines, room)
            .then_some(Bound::Counters)
    }

    #[cold]
    fn counters_exhausted(&self, user: UserId, lines: &Lines, room: usize) -> bool {
        let user = self.users.find(user);
        let counted = |sku, sale| user.map_or(0, |user| self.users.counted(user, sku, sale));
        let needs_counter = |line: &&Line| {
            let stock = self.stocks.get(line.sku.0 as usize);
            stock.is_some_and(|stock| {
                stock.rules.per_user.is_some()
                    && !(stock.counts(stock.sale) && counted(line.sku, stock.sale) > 0)
            })
        };
        lines.as_slice().iter().filter(needs_counter).count() > room
    }

    /// Counts what has not retired, whether or not the rest was freed.
    #[inline]
    fn reservations_are_full(&self) -> bool {
        let max = self.limits.reservations_max as usize;
        self.holds.len() >= max && {
            let kept = self.ended.count_from(|&id| self.find(id).is_none());
            self.holds.len() - (self.ended.len() - kept) >= max
        }
    }

    /// What the user's limits and the stock say, after everything overdue that matters was expired.
    #[inline]
    pub(super) fn refuses_units(
        &mut self,
        user: UserId,
        lines: &Lines,
        batch: &mut Batch,
    ) -> Result<Option<Refusal>, Violation> {
        let mut refusal = self.exceeds_limits(user, lines);
        if refusal.is_some() && self.expire_overdue_of(user, batch)? {
            refusal = self.exceeds_limits(user, lines);
        }
        if refusal.is_some() {
            return Ok(refusal);
        }
        for (&line, index) in lines.as_slice().iter().zip(0_u16..) {
            let units = u64::from(line.quantity);
            while self.stocks[line.sku.0 as usize].available < units
                && self.expire_earliest(line, batch)?
            {}
            if self.stocks[line.sku.0 as usize].available < units {
                return Ok(Some(self.sold_out(line, index)));
            }
        }
        Ok(None)
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    fn exceeds_limits(&self, user: UserId, lines: &Lines) -> Option<Refusal> {
        let user = self.users.find(user);
        for (&Line { sku, quantity }, line) in lines.as_slice().iter().zip(0_u16..) {
            let stock = &self.stocks[sku.0 as usize];
            let Some(max) = stock.rules.per_user else {
                continue;
            };
            let has = user.map_or(0, |user| self.users.counted(user, sku, stock.sale));
            if quantity > max.saturating_sub(has) {
                return Some(Refusal::UserLimit {
                    line,
                    sku,
                    max,
                    has,
                });
            }
        }
        let max = self.limits.holds_per_user_max;
        let live = user.map_or(0, |user| self.users.get(user).live_count);
        (live >= max).then_some(Refusal::HoldLimit { max })
    }

    /// True if any of the user's holds was over.
    fn expire_overdue_of(&mut self, user: UserId, batch: &mut Batch) -> Result<bool, Violation> {
        let Some(user) = self.users.find(user) else {
            return Ok(false);
        };
        let overdue: Vec<u32> = self
            .holds
            .list_from(self.users.get(user).live)
            .filter(|&place| self.is_over(place))
            .collect();
        for &place in &overdue {
            self.lapse(place, batch)?;
        }
        Ok(!overdue.is_empty())
    }

    /// Expires the earliest hold if it is overdue and the SKU has held units at all; true if it did.
    fn expire_earliest(&mut self, line: Line, batch: &mut Batch) -> Result<bool, Violation> {
        if self.stocks[line.sku.0 as usize].reserved == 0 {
            return Ok(false);
        }
        match self.deadlines.first(&self.holds) {
            Some((deadline, place)) if self.has_passed(deadline) => {
                self.lapse(place, batch)?;
                Ok(true)
            }
            _ => Ok(false),
        }
    }

    fn sold_out(&mut self, line: Line, index: u16) -> Refusal {
        let clamp = |units: u64| u32::try_from(units).unwrap_or(u32::MAX);
        let stock = &self.stocks[line.sku.0 as usize];
        let (available, reserved) = (stock.available, stock.reserved);
        let next = if reserved > 0 {
            self.next_deadline()
        } else {
            None
        };
        // As it is recorded: whole milliseconds from the stamp.
        let not_before = next.map(|at| self.now.plus_ms(ms_until(self.now, at).into()));
        Refusal::SoldOut {
            line: index,
            sku: line.sku,
            available: clamp(available),
            lapsing: clamp(reserved),
            not_before,
        }
    }

    /// Records a hold that nothing speaks against.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn hold(
        &mut self,
        lines: &Lines,
        origin: &Origin,
        replaces: Option<ReservationId>,
        batch: &mut Batch,
    ) -> Result<Reservation, Violation> {
        let lines = lines.as_slice();
        let first = lines[0];
        for chunk in lines[1..].chunks(LINES_PER_EVENT) {
            let mut cart = [Line::default(); LINES_PER_EVENT];
            cart[..chunk.len()].copy_from_slice(chunk);
            let len = u8::try_from(chunk.len()).unwrap_or(u8::MAX);
            self.record(EventKind::CartLines { len, lines: cart }, batch)?;
        }
        let holds = lines
            .iter()
            .map(|line| self.stocks[line.sku.0 as usize].rules.hold_ms);
        let hold_ms = holds.min().unwrap_or(crate::types::HOLD_DEFAULT_MS);
        let expires_at: Timestamp = self.now.plus_ms(hold_ms.into());
        let reserved = EventKind::Reserved {
            origin: *origin,
            first,
            lines: u16::try_from(lines.len()).unwrap_or(u16::MAX),
            sale: self.stocks[first.sku.0 as usize].sale,
            hold_ms,
            expires_at,
            replaces,
        };
        self.record(reserved, batch)?;
        Ok(Reservation {
            id: ReservationId::new(self.shard, self.sequence),
            expires_at,
        })
    }
}
