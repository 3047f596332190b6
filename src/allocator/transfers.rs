//! What has moved between this shard and others, per SKU and peer: kept for ever, since a transfer's number must be
//! recognised however late it comes again. Few and rarely touched: pools of one SKU, and a move at a time.

use super::Allocator;
use crate::types::{Account, PoolView, SkuId, Transfer};
use std::collections::BTreeMap;

#[derive(Default)]
pub(super) struct Transfers(BTreeMap<(SkuId, u16), Account>);

impl Transfers {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn knows(&self, sku: SkuId, peer: u16) -> bool {
        self.0.contains_key(&(sku, peer))
    }

    pub(super) fn account(&self, sku: SkuId, peer: u16) -> Account {
        let known = self.0.get(&(sku, peer));
        known.copied().unwrap_or_else(|| Account::new(sku, peer))
    }

    pub(super) fn set(&mut self, account: Account) {
        self.0.insert((account.sku, account.peer), account);
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &Account> {
        self.0.values()
    }

    pub(super) fn of_sku(&self, sku: SkuId) -> impl Iterator<Item = &Account> {
        self.0.range((sku, 0)..=(sku, u16::MAX)).map(|(_, of)| of)
    }
}

impl Allocator {
    /// Units leave.
    pub(super) fn withdrawn(&mut self, transfer: &Transfer, total: u64) -> Result<(), String> {
        let mut account = self.transfers.account(transfer.sku, transfer.to);
        if transfer.from != self.shard || transfer.number != account.sent.next() {
            return Err(format!(
                "shard {} withdraws transfer {} of shard {}, after {}",
                self.shard, transfer.number, transfer.from, account.sent.last
            ));
        }
        let sent = account.sent.and(transfer);
        account.sent = sent.ok_or("L8: more units are sent than can be counted")?;
        let stock = self.stock_mut(transfer.sku)?;
        stock.withdraw(transfer.units)?;
        stock.has_total(total)?;
        self.transfers.set(account);
        Ok(())
    }

    /// Units come.
    pub(super) fn deposited(&mut self, transfer: &Transfer, total: u64) -> Result<(), String> {
        let mut account = self.transfers.account(transfer.sku, transfer.from);
        if transfer.to != self.shard || transfer.number != account.received.next() {
            return Err(format!(
                "shard {} deposits transfer {} to shard {}, after {}",
                self.shard, transfer.number, transfer.to, account.received.last
            ));
        }
        let received = account.received.and(transfer);
        account.received = received.ok_or("L8: more units are received than can be counted")?;
        let stock = self.stock_mut(transfer.sku)?;
        stock.deposit(transfer.units)?;
        stock.has_total(total)?;
        self.transfers.set(account);
        Ok(())
    }

    /// A SKU as a pool, for an audit of all pools.
    pub fn pool(&self, sku: SkuId) -> Option<PoolView> {
        let stock = self.stocks.get(sku.0 as usize)?;
        Some(PoolView {
            shard: self.shard,
            sku,
            opening: stock.defined_total,
            deltas: stock.deltas,
            total: stock.total,
            available: stock.available,
            reserved: stock.reserved,
            sold: stock.sold,
            accounts: self.transfers.of_sku(sku).copied().collect(),
        })
    }
}
