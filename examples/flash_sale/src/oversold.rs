//! `audit --oversold`: the last orders without which no more than so many units of a SKU are sold.
//!
//! What the log says is sold can't exceed its own total: a law. But what may be sold is decided outside, and a restock by
//! mistake, or goods that don't arrive, leave orders that can't be served. They are those confirmed last. The order is that
//! of the log; over several shards, that of time. Units that came back count for the order that they came back from.

use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::HashMap;
use std::fmt;
use stockade::store::ReadLog;
use stockade::types::{
    Batch, Disposition, Event, EventKind, Line, PaymentRef, ReservationId, SkuId, SkuName,
    Timestamp, UserId,
};

/// An order beyond the total.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Order {
    pub(crate) reservation_id: String,
    pub(crate) user: String,
    /// The payment that is to be refunded, if there was one.
    pub(crate) payment_ref: Option<String>,
    /// Of the SKU, without what came back.
    pub(crate) units: u64,
    /// Of the confirmation.
    pub(crate) sequence: u64,
    /// When it was confirmed.
    pub(crate) at: String,
}

/// What is sold beyond a total, and to whom.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Oversold {
    pub(crate) sku_id: String,
    pub(crate) total: u64,
    pub(crate) sold: u64,
    /// In the order of their confirmation.
    pub(crate) orders: Vec<Order>,
}

impl fmt::Display for Oversold {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            sku_id,
            total,
            sold,
            orders,
        } = self;
        for order in orders {
            writeln!(
                f,
                "{} user {} units {} payment {} sequence {} at {}",
                order.reservation_id,
                order.user,
                order.units,
                order.payment_ref.as_deref().unwrap_or("none"),
                order.sequence,
                order.at
            )?;
        }
        if orders.is_empty() {
            writeln!(f, "none")?;
        }
        let beyond = sold.saturating_sub(*total);
        write!(
            f,
            "{sku_id}: {sold} sold, {beyond} beyond {total}, in the last {} orders",
            orders.len()
        )
    }
}

/// A confirmed reservation.
struct Sold {
    reservation: ReservationId,
    user: UserId,
    payment_ref: Option<u128>,
    units: u64,
    sequence: u64,
    at: Timestamp,
}

/// Follows one SKU through logs.
pub(crate) struct Sales {
    name: SkuName,
    /// Units came back that no order was named for.
    unnamed: u64,
    sold: Vec<Sold>,
    is_known: bool,
}

/// What a shard's log has said so far.
#[derive(Default)]
struct Shard {
    /// The SKU's index here.
    sku: Option<SkuId>,
    cart: Vec<Line>,
    /// Who holds how many units, and then where the order stands in [`Sales::sold`].
    held: HashMap<ReservationId, (UserId, u64)>,
    orders: HashMap<ReservationId, usize>,
}

impl Sales {
    pub(crate) fn of(name: SkuName) -> Self {
        Self {
            name,
            unnamed: 0,
            sold: Vec::new(),
            is_known: false,
        }
    }

    /// Reads one shard's log.
    pub(crate) fn read(&mut self, log: &mut dyn ReadLog) -> Result<()> {
        let mut shard = Shard::default();
        let mut damaged = None;
        log.read(1, &mut |batch: &Batch| {
            for event in batch.events() {
                match event {
                    Ok(event) => self.take(&mut shard, &event),
                    Err(error) => damaged = Some(error),
                }
            }
            damaged.is_none()
        })?;
        self.is_known |= shard.sku.is_some();
        match damaged {
            None => Ok(()),
            Some(error) => Err(error.into()),
        }
    }

    fn take(&mut self, shard: &mut Shard, event: &Event) {
        match &event.kind {
            EventKind::SkuNamed { sku, name } if *name == self.name => shard.sku = Some(*sku),
            EventKind::CartLines { len, lines } => {
                shard.cart.extend_from_slice(&lines[..usize::from(*len)]);
            }
            EventKind::Reserved { origin, first, .. } => {
                let cart = std::mem::take(&mut shard.cart);
                let lines = std::iter::once(*first).chain(cart);
                let of_sku = lines.filter(|line| Some(line.sku) == shard.sku);
                let units: u64 = of_sku.map(|line| u64::from(line.quantity)).sum();
                if units > 0 {
                    let id = ReservationId::new(event.shard, event.sequence);
                    shard.held.insert(id, (origin.user, units));
                }
            }
            EventKind::Confirmed {
                reservation,
                payment_ref,
                ..
            } => {
                if let Some((user, units)) = shard.held.remove(reservation) {
                    shard.orders.insert(*reservation, self.sold.len());
                    self.sold.push(Sold {
                        reservation: *reservation,
                        user,
                        payment_ref: payment_ref.map(PaymentRef::get),
                        units,
                        sequence: event.sequence,
                        at: event.at,
                    });
                }
            }
            EventKind::Released { reservation, .. }
            | EventKind::Expired { reservation }
            | EventKind::PaymentFailed {
                reservation,
                disposition: Disposition::Release,
                ..
            } => {
                shard.held.remove(reservation);
            }
            EventKind::Returned {
                reservation, line, ..
            } if Some(line.sku) == shard.sku => {
                let order = reservation.and_then(|id| shard.orders.get(&id));
                let units = u64::from(line.quantity);
                match order {
                    Some(&at) => self.sold[at].units = self.sold[at].units.saturating_sub(units),
                    None => self.unnamed += units,
                }
            }
            _ => {}
        }
    }

    /// The last orders without which no more than `total` units are sold.
    pub(crate) fn beyond(mut self, total: u64) -> Result<Oversold> {
        let name = self.name.as_str();
        if !self.is_known {
            bail!("the log knows no SKU {name}: give one that `audit` lists");
        }
        self.sold
            .sort_by_key(|order| (order.at, order.reservation.shard(), order.sequence));
        let ordered: u64 = self.sold.iter().map(|order| order.units).sum();
        let sold = ordered.saturating_sub(self.unnamed);
        let mut left = sold;
        let mut orders = Vec::new();
        while left > total
            && let Some(order) = self.sold.pop()
        {
            left = left.saturating_sub(order.units);
            // All of it has come back.
            if order.units > 0 {
                orders.push(Order {
                    reservation_id: order.reservation.to_string(),
                    user: order.user.to_string(),
                    payment_ref: order.payment_ref.map(|payment| format!("{payment:032x}")),
                    units: order.units,
                    sequence: order.sequence,
                    at: order.at.to_string(),
                });
            }
        }
        orders.reverse();
        Ok(Oversold {
            sku_id: name.to_owned(),
            total,
            sold,
            orders,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::engine::Driver;
    use crate::sale::sale_limits;
    use std::sync::Arc;
    use std::time::Duration;
    use stockade::store::{MemoryLog, MemoryStore};
    use stockade::types::{
        Confirm, Confirmation, DefineSku, Gate, IdempotencyKey, Lines, ManualClock, Reserve,
        Return, Rules, SetGate,
    };

    const ADMIN: UserId = UserId(1 << 100);

    struct Shop {
        driver: Driver,
        clock: Arc<ManualClock>,
        log: MemoryLog,
    }

    impl Shop {
        /// Laces, and sneakers: the second SKU.
        fn new() -> Self {
            let clock = Arc::new(ManualClock::at(Timestamp::from_micros(
                1_800_000_000_000_000,
            )));
            let log = MemoryLog::default();
            let store = MemoryStore::on(&log);
            let driver =
                Driver::new("shop", store, sale_limits(), clock.clone()).expect("it starts");
            let mut shop = Self { driver, clock, log };
            let unlimited = Rules {
                per_user: None,
                ..Rules::default()
            };
            for (name, sku) in [("LACES", SkuId(0)), ("SNEAKER", SkuId(1))] {
                let name = SkuName::new(name).expect("a name");
                let define = shop
                    .driver
                    .submit(
                        DefineSku::new(ADMIN, name, 100)
                            .rules(unlimited)
                            .expect("rules"),
                    )
                    .expect("room");
                shop.driver
                    .settle(define)
                    .expect("it runs")
                    .expect("defined");
                let open = SetGate::new(ADMIN, sku, Gate::Open);
                let open = shop.driver.submit(open).expect("room");
                shop.driver.settle(open).expect("it runs").expect("opened");
            }
            shop
        }

        fn holds(&mut self, user: u64, sneakers: u32) -> ReservationId {
            let lines = [(0, 1), (1, sneakers)].map(|(sku, quantity)| Line {
                sku: SkuId(sku),
                quantity,
            });
            let cart = Lines::new(lines.to_vec()).expect("a cart");
            let asked = self.driver.submit(Reserve::cart(UserId::from(user), cart));
            let held = self.driver.settle(asked.expect("room")).expect("it runs");
            held.expect("units").id
        }

        fn buys(&mut self, user: u64, id: ReservationId) {
            self.clock.advance(Duration::from_secs(1));
            let confirm = Confirm::unpaid(UserId::from(user), id);
            let asked = self.driver.submit(confirm).expect("room");
            let bought = self.driver.settle(asked).expect("it runs");
            assert_eq!(bought, Ok(Confirmation::Sold { reservation: id }));
        }

        fn returns(&mut self, key: u128, id: ReservationId, sneakers: u32) {
            let key = IdempotencyKey::new(key).expect("not zero");
            let lines = Lines::one(SkuId(1), sneakers).expect("a line");
            let back = Return::of_reservation(ADMIN, key, id, Some(lines));
            let asked = self.driver.submit(back).expect("room");
            self.driver
                .settle(asked)
                .expect("it runs")
                .expect("taken back");
        }

        fn beyond(&self, total: u64) -> Vec<(String, u64)> {
            let mut sales = Sales::of(SkuName::new("SNEAKER").expect("a name"));
            sales.read(&mut self.log.clone()).expect("a whole log");
            let oversold = sales.beyond(total).expect("it is known");
            let orders = oversold.orders.into_iter();
            orders
                .map(|order| (order.reservation_id, order.units))
                .collect()
        }
    }

    #[test]
    fn the_last_orders_beyond_a_total_are_those_confirmed_last() {
        let mut shop = Shop::new();
        let [a, b, c, d] = [1, 2, 3, 4].map(|user| shop.holds(user, 2));
        let _held_and_not_bought = shop.holds(5, 2);
        // Not in the order in which they were reserved.
        for (user, id) in [(4, d), (1, a), (2, b), (3, c)] {
            shop.buys(user, id);
        }
        let [a, b, c, d] = [a, b, c, d].map(|id| id.to_string());
        assert_eq!(shop.beyond(8), []);
        assert_eq!(shop.beyond(7), [(c.clone(), 2)]);
        assert_eq!(shop.beyond(6), [(c.clone(), 2)]);
        assert_eq!(shop.beyond(5), [(b.clone(), 2), (c.clone(), 2)]);
        assert_eq!(shop.beyond(0), [(d, 2), (a, 2), (b, 2), (c, 2)]);
    }

    #[test]
    fn what_came_back_counts_for_its_order() {
        let mut shop = Shop::new();
        let ids = [1, 2, 3].map(|user| shop.holds(user, 2));
        for (user, id) in (1..).zip(ids) {
            shop.buys(user, id);
        }
        shop.returns(1, ids[2], 2);
        shop.returns(2, ids[0], 1);
        // 1 + 2 + 0 are sold.
        assert_eq!(shop.beyond(3), []);
        assert_eq!(shop.beyond(1), [(ids[1].to_string(), 2)]);
    }

    #[test]
    fn a_sku_that_nobody_knows_is_no_sku_that_nobody_bought() {
        let shop = Shop::new();
        assert_eq!(shop.beyond(0), []);
        let mut sales = Sales::of(SkuName::new("SNAEKER").expect("a name"));
        sales.read(&mut shop.log.clone()).expect("a whole log");
        assert!(sales.beyond(0).is_err());
    }
}
