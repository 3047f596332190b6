//! The laws over all pools of a SKU: what is in the pools and in flight is what was ever brought in.

use crate::types::{Account, PoolView};

/// A transfer that has left one pool and not come to the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct InFlight {
    /// The sender's shard.
    pub from: u16,
    /// The receiver's shard.
    pub to: u16,
    /// Its number.
    pub number: u64,
    /// Its units.
    pub units: u64,
}

/// What an audit over pools found.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct PoolsAudit {
    /// The units that were ever brought in: all openings and adjustments.
    pub total: i128,
    /// The units of all pools.
    pub in_pools: i128,
    /// What is between them.
    pub in_flight: Vec<InFlight>,
    /// Every breach. Empty: no unit is lost or doubled.
    pub breaches: Vec<String>,
}

impl PoolsAudit {
    /// True if nothing is lost or doubled.
    pub fn is_ok(&self) -> bool {
        self.breaches.is_empty()
    }
}

/// Checks that pool totals and units in flight are the total: of pools at rest, or as of one moment, such as one
/// transaction's view of a database.
///
/// Every pool is recounted by itself, every pair's accounts are compared, and then the sum.
pub fn audit(pools: &[PoolView]) -> PoolsAudit {
    let mut report = PoolsAudit::default();
    for (pool, at) in pools.iter().zip(0..) {
        if pools[..at].iter().any(|other| other.shard == pool.shard) {
            let breach = format!("two pools are of shard {}", pool.shard);
            report.breaches.push(breach);
        }
        audit_pool(pool, pools, &mut report);
        for other in pools.iter().filter(|other| other.shard != pool.shard) {
            audit_way(pool, other, &mut report);
        }
    }
    let in_flight: i128 = report.in_flight.iter().map(|of| i128::from(of.units)).sum();
    if report.in_pools + in_flight != report.total {
        report.breaches.push(format!(
            "L2: {} units in pools and {in_flight} in flight, of {}",
            report.in_pools, report.total
        ));
    }
    report
}

/// A pool's own sums.
fn audit_pool(pool: &PoolView, pools: &[PoolView], report: &mut PoolsAudit) {
    let shard = pool.shard;
    let brought = i128::from(pool.opening) + i128::from(pool.deltas);
    report.total += brought;
    report.in_pools += i128::from(pool.total);
    let counted = [pool.available, pool.reserved, pool.sold].map(i128::from);
    if counted.iter().sum::<i128>() != i128::from(pool.total) {
        report.breaches.push(format!(
            "L2: shard {shard}: available + reserved + sold != total"
        ));
    }
    let net =
        |account: &Account| i128::from(account.received.units) - i128::from(account.sent.units);
    let moved: i128 = pool.accounts.iter().map(net).sum();
    if brought + moved != i128::from(pool.total) {
        report.breaches.push(format!(
            "L2: shard {shard} has {} units, its opening and what came and went make {}",
            pool.total,
            brought + moved
        ));
    }
    for account in &pool.accounts {
        if !pools.iter().any(|other| other.shard == account.peer) {
            report.breaches.push(format!(
                "shard {shard} has moved units with shard {}, which is no pool here: name all pools",
                account.peer
            ));
        }
    }
}

/// What one pool sent and the other received.
fn audit_way(from: &PoolView, to: &PoolView, report: &mut PoolsAudit) {
    let sent = from.account(to.shard).sent;
    let received = to.account(from.shard).received;
    if sent == received {
        return;
    }
    if sent.last == received.next() && sent.units == received.units + sent.last_units {
        report.in_flight.push(InFlight {
            from: from.shard,
            to: to.shard,
            number: sent.last,
            units: sent.last_units,
        });
        return;
    }
    report.breaches.push(format!(
        "L2: shard {} sent {} transfers of {} units to shard {}, which took {} of {}",
        from.shard, sent.last, sent.units, to.shard, received.last, received.units
    ));
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Moved, SkuId};

    fn moved(last: u64, last_units: u64, units: u64) -> Moved {
        Moved {
            last,
            last_units,
            units,
        }
    }

    /// Two pools of 10; the first sent 3 and then 2, of which the second has taken 3.
    fn pools() -> [PoolView; 2] {
        let pool = |shard, peer, total, sent, received| PoolView {
            shard,
            sku: SkuId(shard.into()),
            opening: 10,
            deltas: 0,
            total,
            available: total - 4,
            reserved: 1,
            sold: 3,
            accounts: vec![Account {
                sku: SkuId(shard.into()),
                peer,
                sent,
                received,
            }],
        };
        [
            pool(0, 1, 5, moved(2, 2, 5), Moved::default()),
            pool(1, 0, 13, Moved::default(), moved(1, 3, 3)),
        ]
    }

    #[test]
    fn pool_totals_and_units_in_flight_are_the_total() {
        let report = audit(&pools());
        assert!(report.is_ok(), "{report:?}");
        assert_eq!((report.total, report.in_pools), (20, 18));
        let in_flight = InFlight {
            from: 0,
            to: 1,
            number: 2,
            units: 2,
        };
        assert_eq!(report.in_flight, [in_flight]);
    }

    #[test]
    fn what_is_lost_or_doubled_is_told() {
        type Damage = fn(&mut [PoolView; 2]);
        let cases: [(&str, Damage); 7] = [
            ("L2: shard 1 has 12 units", |it| {
                it[1].total -= 1;
                it[1].available -= 1;
            }),
            ("L2: shard 0: available + reserved", |it| {
                it[0].available += 1;
            }),
            ("which took 1 of 3", |it| {
                // A transfer that was never taken, and forgotten.
                it[0].accounts[0].sent = moved(3, 1, 6);
            }),
            ("which took 3 of 6", |it| {
                // Taken, and never sent.
                it[1].accounts[0].received = moved(3, 1, 6);
            }),
            ("which took 2 of 6", |it| {
                // Taken with other units than were sent.
                it[1].accounts[0].received = moved(2, 3, 6);
            }),
            ("which is no pool here", |it| it[1].accounts[0].peer = 7),
            ("two pools are of shard 0", |it| it[1].shard = 0),
        ];
        for (breach, damage) in cases {
            let mut pools = pools();
            damage(&mut pools);
            let found = audit(&pools).breaches;
            assert!(
                found.iter().any(|told| told.contains(breach)),
                "{breach}: {found:?}"
            );
        }
    }
}
