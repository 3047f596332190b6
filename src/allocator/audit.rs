//! The laws, recounted from scratch: nothing here trusts a count that deciding relies on.

use super::Allocator;
use crate::types::{HoldStatus, SkuId};

/// What an audit found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct AuditReport {
    /// SKUs, live and ended reservations that were looked at.
    pub skus: u64,
    /// See `skus`.
    pub live: u64,
    /// See `skus`.
    pub ended: u64,
    /// Units sold beyond a total, over all SKUs: 0 unless law L1 is broken.
    pub oversell_count: u64,
    /// Every breach, with the law it breaks. Empty: all laws hold.
    pub breaches: Vec<String>,
}

impl AuditReport {
    /// True if all laws hold.
    pub fn is_ok(&self) -> bool {
        self.breaches.is_empty() && self.oversell_count == 0
    }
}

impl Allocator {
    /// Recounts laws L1 and L2 and the users' limits over everything that is in the tables. Sold units of reservations
    /// that have retired are in the log alone: replaying it recounts them.
    pub fn audit(&self) -> AuditReport {
        let mut report = AuditReport {
            skus: self.stocks.len() as u64,
            ..AuditReport::default()
        };
        let mut reserved = vec![0_u64; self.stocks.len()];
        let mut listed = 0;
        let mut counted = Vec::new();
        for user in self.users.iter() {
            counted.clear();
            let mut live = 0;
            for place in self.of_user(user) {
                listed += 1;
                live += u32::from(self.holds.get(place).status.is_live());
                self.recount(place, &mut reserved, &mut counted);
            }
            report.live += u64::from(live);
            self.audit_user(user, live, &mut counted, &mut report);
        }
        report.ended = listed - report.live;
        let known = self.holds.iter().count() as u64;
        if known != listed {
            report.breaches.push(format!(
                "L2: {known} reservations are known, their users have {listed}"
            ));
        }
        self.audit_stocks(&reserved, &mut report);
        report
    }

    /// Adds the lines of a reservation to what its SKUs hold and to what counts for its user.
    fn recount(&self, place: u32, reserved: &mut [u64], counted: &mut Vec<(SkuId, u64)>) {
        let status = self.holds.get(place).status;
        for held in self.holds.lines(place) {
            let sku = held.line.sku;
            let stock = &self.stocks[sku.0 as usize];
            if status.is_live() {
                reserved[sku.0 as usize] += u64::from(held.line.quantity);
            }
            let counts = status.is_live() || status == HoldStatus::Confirmed;
            if counts && stock.rules.per_user.is_some() && stock.counts(held.sale) {
                let kept = held.line.quantity.saturating_sub(held.returned);
                counted.push((sku, kept.into()));
            }
        }
    }

    fn audit_stocks(&self, reserved: &[u64], report: &mut AuditReport) {
        for (stock, &reserved) in self.stocks.iter().zip(reserved) {
            report.oversell_count += (stock.reserved + stock.sold).saturating_sub(stock.total);
            if let Err(what) = stock.check() {
                report.breaches.push(format!("{what}, SKU {}", stock.name));
            }
            if stock.reserved != reserved {
                report.breaches.push(format!(
                    "L2: SKU {} counts {} reserved, its live holds {reserved}",
                    stock.name, stock.reserved
                ));
            }
        }
    }

    /// A counter is the sum of what its user holds and has bought; retired reservations only add to it.
    fn audit_user(
        &self,
        user: u32,
        live: u32,
        counted: &mut [(SkuId, u64)],
        report: &mut AuditReport,
    ) {
        let known = self.users.get(user).live_count;
        if known != live {
            report
                .breaches
                .push(format!("a user has {live} live holds, {known} are counted"));
        }
        counted.sort_unstable();
        for of_sku in counted.chunk_by(|(sku, _), (other, _)| sku == other) {
            let sku = of_sku[0].0;
            let units: u64 = of_sku.iter().map(|(_, units)| units).sum();
            let stock = &self.stocks[sku.0 as usize];
            let known = u64::from(self.users.counted(user, sku, stock.sale));
            if known < units {
                report.breaches.push(format!(
                    "a user's counter of SKU {} is {known}, he holds and has bought {units}",
                    stock.name
                ));
            }
            if stock
                .rules
                .per_user
                .is_some_and(|max| known > u64::from(max))
            {
                report
                    .breaches
                    .push(format!("a user has {known} of SKU {}", stock.name));
            }
        }
    }
}
