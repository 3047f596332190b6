//! What an administrator asks: returns, changes of a total, transfers, SKUs and their gates.

use super::{Decided, Model, SHARD, Sku, busy};
use std::collections::{BTreeMap, BTreeSet};
use stockade::types::{
    Adjust, Bound, Decision, DefineSku, Deposit, Field, Gate, HoldStatus, Line, Refusal, Return,
    SetGate, SkuId, TOTAL_MAX, Transfer, Withdraw,
};

/// Different hold durations that an engine takes.
const DURATIONS_MAX: usize = 64;

impl Model {
    pub(super) fn return_units(&mut self, c: &Return) -> Decided {
        let asked = c.lines.as_ref().map(|lines| lines.as_slice().to_vec());
        self.all_known(asked.as_deref().unwrap_or(&[]))?;
        let left: Option<BTreeMap<SkuId, u32>> = match c.reservation {
            None => None,
            Some(id) => {
                let hold = self.holds.get(&id).ok_or(Refusal::UnknownReservation)?;
                if hold.status != HoldStatus::Confirmed {
                    return Err(Refusal::NotConfirmed);
                }
                let left = hold.lines.iter().map(|l| (l.sku, l.quantity - l.returned));
                Some(left.collect())
            }
        };
        let all = || {
            let id = c.reservation?;
            let lines = self.holds[&id].lines.iter().map(|l| Line {
                sku: l.sku,
                quantity: l.quantity - l.returned,
            });
            Some(lines.filter(|line| line.quantity > 0).collect())
        };
        let lines: Vec<Line> = asked.or_else(all).unwrap_or_default();
        if lines.is_empty() {
            return Err(Refusal::NotConfirmed);
        }
        for (line, &Line { sku, quantity }) in (0..).zip(&lines) {
            let mut sold = self.skus[sku.0 as usize].sold;
            if let Some(left) = &left {
                sold = sold.min(left.get(&sku).copied().unwrap_or(0).into());
            }
            if u64::from(quantity) > sold {
                return Err(Refusal::ExceedsSold { line, sku, sold });
            }
        }
        for &Line { sku, quantity } in &lines {
            self.sequence += 1;
            self.skus[sku.0 as usize].sold -= u64::from(quantity);
            let Some(id) = c.reservation else { continue };
            let of_sku = self.holds[&id].lines.iter().position(|l| l.sku == sku);
            let index = of_sku.expect("units were left of it");
            self.hold_mut(id).lines[index].returned += quantity;
            self.give_back(id, index, quantity);
        }
        let units = lines.iter().map(|line| u64::from(line.quantity)).sum();
        Ok(Decision::Returned { units })
    }

    pub(super) fn adjust(&mut self, c: &Adjust) -> Decided {
        let stock = self.skus.get_mut(c.sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        let min = stock.reserved + stock.sold;
        let total = stock.total.checked_add_signed(c.delta);
        let total = total.filter(|&total| total >= min && total <= TOTAL_MAX);
        stock.total = total.ok_or(Refusal::TotalOutOfRange { min })?;
        stock.deltas += c.delta;
        self.sequence += 1;
        let total = stock.total;
        Ok(Decision::Adjusted { total })
    }

    pub(super) fn withdraw(&mut self, c: &Withdraw) -> Decided {
        let Transfer {
            sku,
            from,
            to,
            number,
            units,
        } = c.transfer();
        let made = self.sent.get(&(sku, to)).cloned().unwrap_or_default();
        let last = made.len() as u64;
        if from == SHARD && number == last {
            let units = made[made.len() - 1];
            return self.unchanged(Some(c.key), Decision::Withdrawn { units });
        }
        self.room_for_peer(sku, to)?;
        let stock = self.skus.get_mut(sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        if from != SHARD {
            return Err(Refusal::OtherShard { shard: SHARD });
        }
        if number != last + 1 {
            let expected = last + 1;
            return Err(Refusal::OutOfOrder { expected });
        }
        let units = units.min(stock.total - stock.reserved - stock.sold);
        if units == 0 {
            return Err(Refusal::NothingToMove { sku });
        }
        stock.total -= units;
        self.sequence += 1;
        self.sent.entry((sku, to)).or_default().push(units);
        Ok(Decision::Withdrawn { units })
    }

    pub(super) fn deposit(&mut self, c: &Deposit) -> Decided {
        let Transfer {
            sku,
            from,
            to,
            number,
            units,
        } = c.transfer();
        let made = self.received.get(&(sku, from)).cloned().unwrap_or_default();
        let last = made.len() as u64;
        if to == SHARD && number == last && made.last() == Some(&units) {
            return self.unchanged(Some(c.key), Decision::Deposited { units });
        }
        self.room_for_peer(sku, from)?;
        let stock = self.skus.get_mut(sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        if stock.total + units > TOTAL_MAX {
            let min = stock.reserved + stock.sold;
            return Err(Refusal::TotalOutOfRange { min });
        }
        if to != SHARD {
            return Err(Refusal::OtherShard { shard: SHARD });
        }
        if number != last + 1 {
            let expected = last + 1;
            return Err(Refusal::OutOfOrder { expected });
        }
        stock.total += units;
        self.sequence += 1;
        self.received.entry((sku, from)).or_default().push(units);
        Ok(Decision::Deposited { units })
    }

    fn room_for_peer(&self, sku: SkuId, peer: u16) -> Result<(), Refusal> {
        let known: BTreeSet<_> = self.sent.keys().chain(self.received.keys()).collect();
        let max = self.limits.transfers_max as usize;
        if known.len() >= max && !known.contains(&(sku, peer)) {
            let bound = Bound::Transfers;
            return Err(Refusal::Busy { bound });
        }
        Ok(())
    }

    pub(super) fn define(&mut self, c: &DefineSku) -> Decided {
        let count = self.skus.len();
        if let Some(at) = self.skus.iter().position(|sku| sku.name == c.name) {
            let known = &self.skus[at];
            let field = if known.defined_total != c.total {
                Field::Total
            } else if known.rules != c.rules_given() {
                Field::Rules
            } else {
                let sku = SkuId(u32::try_from(at).expect("few SKUs"));
                return self.unchanged(c.key, Decision::Defined { sku });
            };
            return Err(Refusal::SkuDiffers { field });
        }
        if count >= self.limits.skus_max as usize {
            return busy(Bound::Skus);
        }
        let mut durations: Vec<u32> = self.skus.iter().map(|sku| sku.rules.hold_ms).collect();
        durations.sort_unstable();
        durations.dedup();
        if durations.len() >= DURATIONS_MAX && !durations.contains(&c.rules_given().hold_ms) {
            return busy(Bound::HoldDurations);
        }
        if c.total > TOTAL_MAX {
            return Err(Refusal::TotalOutOfRange { min: 0 });
        }
        self.sequence += 2;
        self.skus.push(Sku {
            name: c.name.clone(),
            rules: c.rules_given(),
            defined_total: c.total,
            total: c.total,
            reserved: 0,
            sold: 0,
            deltas: 0,
            sale: 0,
            is_open: false,
            has_ended: true,
            reservations_paused: false,
            confirms_paused: false,
        });
        let sku = SkuId(u32::try_from(count).expect("few SKUs"));
        Ok(Decision::Defined { sku })
    }

    pub(super) fn set_gate(&mut self, c: &SetGate) -> Decided {
        let stock = self.skus.get_mut(c.sku.0 as usize);
        let stock = stock.ok_or(Refusal::UnknownSku { line: 0 })?;
        let gates = |stock: &Sku| {
            [
                stock.is_open,
                stock.has_ended,
                stock.reservations_paused,
                stock.confirms_paused,
            ]
        };
        let before = gates(stock);
        match c.change {
            Gate::Open => {
                stock.sale += u32::from(stock.has_ended);
                (stock.is_open, stock.has_ended) = (true, false);
            }
            Gate::Close => stock.is_open = false,
            Gate::PauseReservations => stock.reservations_paused = true,
            Gate::ResumeReservations => stock.reservations_paused = false,
            Gate::PauseConfirms => stock.confirms_paused = true,
            Gate::ResumeConfirms => stock.confirms_paused = false,
            Gate::EndSale => (stock.is_open, stock.has_ended) = (false, true),
        }
        let sale = stock.sale;
        let decision = Decision::GateSet { sale };
        if gates(stock) == before {
            return self.unchanged(c.key, decision);
        }
        if stock.has_ended {
            self.counters.retain(|&(_, sku), _| sku != c.sku);
        }
        self.sequence += 1;
        Ok(decision)
    }
}
