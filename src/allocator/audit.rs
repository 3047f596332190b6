//! The laws, recounted from scratch: nothing here trusts a count that deciding relies on.

use super::Allocator;
use crate::types::{HoldStatus, SkuId, UserId};
use std::collections::BTreeMap;

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
        let mut counted: BTreeMap<(UserId, SkuId), u64> = BTreeMap::new();
        let mut live_of: BTreeMap<UserId, u32> = BTreeMap::new();
        for place in self.holds.iter() {
            let hold = self.holds.get(place);
            let (is_live, user) = (hold.status.is_live(), self.holds.user_of(place));
            *(if is_live {
                &mut report.live
            } else {
                &mut report.ended
            }) += 1;
            *live_of.entry(user).or_default() += u32::from(is_live);
            for held in self.holds.lines(place) {
                let sku = held.line.sku.0 as usize;
                let kept = u64::from(held.line.quantity.saturating_sub(held.returned));
                let counts = match hold.status {
                    HoldStatus::Held | HoldStatus::InPayment => {
                        reserved[sku] += u64::from(held.line.quantity);
                        true
                    }
                    HoldStatus::Confirmed => true,
                    HoldStatus::Released | HoldStatus::Expired => false,
                };
                let stock = &self.stocks[sku];
                if counts && stock.rules.per_user.is_some() && stock.counts(held.sale) {
                    *counted.entry((user, held.line.sku)).or_default() += kept;
                }
            }
        }
        self.audit_stocks(&reserved, &mut report);
        self.audit_users(&counted, &live_of, &mut report);
        report
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
    fn audit_users(
        &self,
        counted: &BTreeMap<(UserId, SkuId), u64>,
        live_of: &BTreeMap<UserId, u32>,
        report: &mut AuditReport,
    ) {
        for (&(user, sku), &units) in counted {
            let stock = &self.stocks[sku.0 as usize];
            let counter = u64::from(self.holds.counted(user, sku, stock.sale));
            if counter < units {
                report.breaches.push(format!(
                    "a user's counter of SKU {} is {counter}, he holds and has bought {units}",
                    stock.name
                ));
            }
            if stock
                .rules
                .per_user
                .is_some_and(|max| counter > u64::from(max))
            {
                report
                    .breaches
                    .push(format!("a user has {counter} of SKU {}", stock.name));
            }
        }
        for (&user, &live) in live_of {
            let known = self
                .holds
                .find_user(user)
                .map_or(0, |place| self.holds.live_of(place));
            if known != live {
                report
                    .breaches
                    .push(format!("a user has {live} live holds, {known} are counted"));
            }
        }
    }
}
