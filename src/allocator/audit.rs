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
        for ((stock, &reserved), sku) in self.stocks.iter().zip(reserved).zip((0..).map(SkuId)) {
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
            let (mut received, mut sent) = (0, 0);
            for account in self.transfers.of_sku(sku) {
                received += i128::from(account.received.units);
                sent += i128::from(account.sent.units);
            }
            let recounted = stock.recounted(received, sent);
            if recounted != i128::from(stock.total) {
                report.breaches.push(format!(
                    "L2: SKU {} has {} units, its opening and what came and went make {recounted}",
                    stock.name, stock.total
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::Limits;
    use crate::types::{
        Batch, BatchHeader, Command, DefineSku, Gate, Reserve, SetGate, SkuName, UserId,
    };

    const USER: UserId = UserId(7);
    const SKU: usize = 0;

    type Damage = fn(&mut Allocator);

    /// Two units, of which a user holds one, in a batch that is not finished.
    fn state() -> Allocator {
        let name = SkuName::new("A").expect("a name");
        let commands: [Command; 3] = [
            DefineSku::new(UserId(1), name, 2).into(),
            SetGate::new(UserId(1), SkuId(0), Gate::Open).into(),
            Reserve::one(USER, SkuId(0), 1).expect("one unit").into(),
        ];
        let mut allocator = Allocator::new(Limits::default(), 7);
        let mut batch = Batch::default();
        batch.header = BatchHeader {
            first_sequence: 1,
            ..BatchHeader::default()
        };
        allocator.begin(&batch.header).expect("the first batch");
        for command in &commands {
            let decided = allocator.decide(command, &mut batch);
            decided.expect("no law breaks");
        }
        allocator
    }

    #[test]
    fn a_sound_state_has_no_breach() {
        let mut allocator = state();
        let report = allocator.audit();
        assert!(report.is_ok(), "{report:?}");
        assert_eq!((report.skus, report.live, report.ended), (1, 1, 0));
        assert_eq!(allocator.finish(&mut Vec::new()), Ok(()));
    }

    #[test]
    fn a_broken_count_is_found_by_the_audit_and_halts_the_batch() {
        let cases: [(&str, u64, Damage); 4] = [
            ("L1: reserved + sold > total", 1, |it| {
                it.stocks[SKU].available = 0;
                it.stocks[SKU].sold = 2;
            }),
            ("L1: reserved + sold > total", 2, |it| {
                it.stocks[SKU].reserved = 4;
            }),
            ("L2: available + reserved + sold != total", 0, |it| {
                it.stocks[SKU].available += 1;
            }),
            ("L2: available + reserved + sold != total", 0, |it| {
                it.stocks[SKU].available -= 1;
            }),
        ];
        for (law, oversell_count, damage) in cases {
            let mut allocator = state();
            damage(&mut allocator);
            let report = allocator.audit();
            let is_told = |breach: &String| breach.starts_with(law);
            assert!(report.breaches.iter().any(is_told), "{law}: {report:?}");
            assert_eq!(report.oversell_count, oversell_count, "{law}");
            let halted = allocator.finish(&mut Vec::new()).expect_err(law);
            assert!(halted.what.starts_with(law), "{law}: {halted}");
        }
    }

    /// Sums that a batch can't check in passing: only the recount sees them.
    #[test]
    fn counts_that_only_a_recount_can_check_are_recounted() {
        let cases: [(&str, Damage); 7] = [
            ("L2: SKU A counts 0 reserved, its live holds 1", |it| {
                it.stocks[SKU].reserved -= 1;
                it.stocks[SKU].available += 1;
            }),
            ("L2: SKU A counts 2 reserved, its live holds 1", |it| {
                it.stocks[SKU].reserved += 1;
                it.stocks[SKU].available -= 1;
            }),
            ("a user has 1 live holds, 2 are counted", |it| {
                let user = it.users.find(USER).expect("he holds a unit");
                it.users.get_mut(user).live_count += 1;
            }),
            (
                "a user's counter of SKU A is 0, he holds and has bought 1",
                |it| {
                    let user = it.users.find(USER).expect("he holds a unit");
                    it.users.discount(user, SkuId(0), 1, 1);
                },
            ),
            (
                "L2: SKU A has 2 units, its opening and what came and went make 3",
                |it| it.stocks[SKU].deltas += 1,
            ),
            (
                "L2: SKU A has 2 units, its opening and what came and went make 1",
                |it| {
                    let mut account = it.transfers.account(SkuId(0), 1);
                    account.sent.units = 1;
                    it.transfers.set(account);
                },
            ),
            ("a user has 2 of SKU A", |it| {
                let user = it.users.find(USER).expect("he holds a unit");
                it.users.count(user, SkuId(0), 1, 1);
            }),
        ];
        for (breach, damage) in cases {
            let mut allocator = state();
            damage(&mut allocator);
            assert_eq!(allocator.audit().breaches, [breach]);
        }
    }
}
