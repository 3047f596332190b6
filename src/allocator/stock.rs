//! One SKU: its stock, its rules and its gates. Every change of a count is checked here, so law L1 and the sum in
//! law L2 can't be broken by arithmetic.

use crate::types::{
    Availability, Gate, Refusal, Rules, SaleStatus, SkuId, SkuName, SkuView, TOTAL_MAX, Timestamp,
};

/// What would have broken, if a change had been made.
pub(super) type Broken = &'static str;

#[derive(Debug, Clone)]
pub(super) struct Stock {
    pub(super) name: SkuName,
    pub(super) rules: Rules,
    pub(super) defined_total: u64,
    pub(super) total: u64,
    pub(super) available: u64,
    pub(super) reserved: u64,
    pub(super) sold: u64,
    pub(super) sale: u32,
    pub(super) gates: Gates,
    /// The sum of all adjustments.
    pub(super) deltas: i64,
    /// Users that are counted in this sale, until it ends.
    pub(super) counters: u32,
    /// In the list of SKUs that this batch touched.
    pub(super) is_touched: bool,
}

/// Bits as [`StateRecord::Sku`](crate::types::StateRecord::Sku) has them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Gates(pub(super) u8);

impl Gates {
    const OPEN: u8 = 1;
    const RESERVATIONS_PAUSED: u8 = 2;
    const CONFIRMS_PAUSED: u8 = 4;
    const ENDED: u8 = 8;
    pub(super) const ALL: u8 = 15;

    const fn has(self, gate: u8) -> bool {
        self.0 & gate != 0
    }

    pub(super) const fn confirms_paused(self) -> bool {
        self.has(Self::CONFIRMS_PAUSED)
    }

    pub(super) const fn has_ended(self) -> bool {
        self.has(Self::ENDED)
    }

    /// The gates after a change; `open` after an end begins the next sale.
    const fn after(self, change: Gate) -> Self {
        Self(match change {
            Gate::Open => (self.0 | Self::OPEN) & !Self::ENDED,
            Gate::Close => self.0 & !Self::OPEN,
            Gate::PauseReservations => self.0 | Self::RESERVATIONS_PAUSED,
            Gate::ResumeReservations => self.0 & !Self::RESERVATIONS_PAUSED,
            Gate::PauseConfirms => self.0 | Self::CONFIRMS_PAUSED,
            Gate::ResumeConfirms => self.0 & !Self::CONFIRMS_PAUSED,
            Gate::EndSale => (self.0 & !Self::OPEN) | Self::ENDED,
        })
    }
}

impl Stock {
    pub(super) fn new(name: SkuName, total: u64, rules: Rules) -> Self {
        Self {
            name,
            rules,
            defined_total: total,
            total,
            available: total,
            reserved: 0,
            sold: 0,
            sale: 0,
            gates: Gates(Gates::ENDED),
            deltas: 0,
            counters: 0,
            is_touched: false,
        }
    }

    /// Whether a reservation may begin, and why not.
    pub(super) fn admits(&self, sku: SkuId, now: Timestamp) -> Option<Refusal> {
        let ahead = Some(self.rules.opens_at).filter(|&at| at > now);
        if !self.gates.has(Gates::OPEN) || ahead.is_some() || now >= self.rules.closes_at {
            return Some(Refusal::NotOpen {
                sku,
                opens_at: ahead,
            });
        }
        self.gates
            .has(Gates::RESERVATIONS_PAUSED)
            .then_some(Refusal::Paused { sku })
    }

    /// The gates and the sale's number after a change.
    pub(super) fn after(&self, change: Gate) -> (Gates, u32) {
        let begins = change == Gate::Open && self.gates.has_ended();
        (self.gates.after(change), self.sale + u32::from(begins))
    }

    /// True while units of this sale count against its users' limits and its keys answer.
    pub(super) fn counts(&self, sale: u32) -> bool {
        sale == self.sale && !self.gates.has_ended()
    }

    pub(super) fn reserve(&mut self, units: u32) -> Result<(), Broken> {
        let units = u64::from(units);
        self.available = self
            .available
            .checked_sub(units)
            .ok_or("L1: more reserved than available")?;
        self.reserved += units;
        Ok(())
    }

    pub(super) fn release(&mut self, units: u32) -> Result<(), Broken> {
        let units = u64::from(units);
        self.reserved = self
            .reserved
            .checked_sub(units)
            .ok_or("L2: more released than reserved")?;
        self.available += units;
        Ok(())
    }

    pub(super) fn sell(&mut self, units: u32) -> Result<(), Broken> {
        let units = u64::from(units);
        self.reserved = self
            .reserved
            .checked_sub(units)
            .ok_or("L2: more sold than reserved")?;
        self.sold += units;
        Ok(())
    }

    pub(super) fn take_back(&mut self, units: u32) -> Result<(), Broken> {
        let units = u64::from(units);
        self.sold = self
            .sold
            .checked_sub(units)
            .ok_or("L2: more returned than sold")?;
        self.available += units;
        Ok(())
    }

    /// The total after a delta, if that is possible.
    pub(super) fn adjusted(&self, delta: i64) -> Option<u64> {
        let total = self.total.checked_add_signed(delta)?;
        self.deltas.checked_add(delta)?;
        (total >= self.reserved + self.sold && total <= TOTAL_MAX).then_some(total)
    }

    pub(super) fn adjust(&mut self, delta: i64) -> Result<(), Broken> {
        let total = self
            .adjusted(delta)
            .ok_or("L1: the total falls below what is reserved and sold")?;
        self.total = total;
        self.available = total - self.reserved - self.sold;
        self.deltas += delta;
        Ok(())
    }

    /// Units leave for another shard: only what is available can.
    pub(super) fn withdraw(&mut self, units: u64) -> Result<(), Broken> {
        self.available = self
            .available
            .checked_sub(units)
            .ok_or("L1: more withdrawn than available")?;
        self.total -= units;
        Ok(())
    }

    /// The total after units came from another shard, if that is possible.
    pub(super) fn deposited(&self, units: u64) -> Option<u64> {
        let total = self.total.checked_add(units)?;
        (total <= TOTAL_MAX).then_some(total)
    }

    pub(super) fn deposit(&mut self, units: u64) -> Result<(), Broken> {
        self.total = self
            .deposited(units)
            .ok_or("L8: a deposit exceeds the largest total")?;
        self.available += units;
        Ok(())
    }

    /// The total as it came about: the opening, the deltas, and what other shards sent (`received`) and were `sent`.
    pub(super) fn recounted(&self, received: i128, sent: i128) -> i128 {
        i128::from(self.defined_total) + i128::from(self.deltas) + received - sent
    }

    /// What an event recorded as the total, compared.
    pub(super) fn has_total(&self, recorded: u64) -> Result<(), String> {
        if self.total == recorded {
            return Ok(());
        }
        Err(format!(
            "an adjusted total is {}, recorded {recorded}",
            self.total
        ))
    }

    /// Laws L1 and L2 of this SKU's counts.
    pub(super) fn check(&self) -> Result<(), Broken> {
        if self.reserved + self.sold > self.total {
            return Err("L1: reserved + sold > total");
        }
        if self.available + self.reserved + self.sold != self.total {
            return Err("L2: available + reserved + sold != total");
        }
        Ok(())
    }

    pub(super) fn availability(
        &self,
        sku: SkuId,
        sequence: u64,
        as_of: Timestamp,
        not_before: Option<Timestamp>,
    ) -> Availability {
        let &Self {
            available,
            reserved,
            sold,
            total,
            ..
        } = self;
        Availability {
            sku,
            available,
            reserved,
            sold,
            total,
            sequence,
            as_of,
            not_before,
        }
    }

    /// Where its sale stands; never opened, its gates are those of one that has ended.
    fn status(&self) -> SaleStatus {
        if self.sale == 0 {
            SaleStatus::NeverOpened
        } else if self.gates.has_ended() {
            SaleStatus::Ended
        } else if self.gates.has(Gates::OPEN) {
            SaleStatus::Open
        } else {
            SaleStatus::Closed
        }
    }

    pub(super) fn view(&self, sku: SkuId) -> SkuView {
        SkuView {
            sku,
            name: self.name.clone(),
            rules: self.rules,
            defined_total: self.defined_total,
            total: self.total,
            available: self.available,
            reserved: self.reserved,
            sold: self.sold,
            sale: self.sale,
            status: self.status(),
            reservations_paused: self.gates.has(Gates::RESERVATIONS_PAUSED),
            confirms_paused: self.gates.confirms_paused(),
        }
    }
}
