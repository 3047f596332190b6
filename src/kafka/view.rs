//! How a SKU stands as a pool, in a reply: a [`PoolView`] with the fields' own names.

use crate::types::{Account, Moved, PoolView, SkuId};
use serde::{Deserialize, Serialize};

#[derive(Serialize, Deserialize)]
pub(super) struct WireView {
    shard: u16,
    sku: u32,
    opening: u64,
    deltas: i64,
    total: u64,
    available: u64,
    reserved: u64,
    sold: u64,
    accounts: Vec<WireAccount>,
}

#[derive(Serialize, Deserialize)]
struct WireAccount {
    peer: u16,
    sent: WireMoved,
    received: WireMoved,
}

#[derive(Serialize, Deserialize)]
struct WireMoved {
    last: u64,
    last_units: u64,
    units: u64,
}

impl From<&PoolView> for WireView {
    fn from(view: &PoolView) -> Self {
        let moved = |of: Moved| WireMoved {
            last: of.last,
            last_units: of.last_units,
            units: of.units,
        };
        let accounts = view.accounts.iter().map(|account| WireAccount {
            peer: account.peer,
            sent: moved(account.sent),
            received: moved(account.received),
        });
        Self {
            shard: view.shard,
            sku: view.sku.0,
            opening: view.opening,
            deltas: view.deltas,
            total: view.total,
            available: view.available,
            reserved: view.reserved,
            sold: view.sold,
            accounts: accounts.collect(),
        }
    }
}

impl From<WireView> for PoolView {
    fn from(wire: WireView) -> Self {
        let sku = SkuId(wire.sku);
        let moved = |of: WireMoved| Moved {
            last: of.last,
            last_units: of.last_units,
            units: of.units,
        };
        let accounts = wire.accounts.into_iter().map(|account| Account {
            sku,
            peer: account.peer,
            sent: moved(account.sent),
            received: moved(account.received),
        });
        Self {
            shard: wire.shard,
            sku,
            opening: wire.opening,
            deltas: wire.deltas,
            total: wire.total,
            available: wire.available,
            reserved: wire.reserved,
            sold: wire.sold,
            accounts: accounts.collect(),
        }
    }
}
