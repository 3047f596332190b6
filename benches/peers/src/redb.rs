//! redb 4: copy-on-write B-trees, one `Durability::Immediate` transaction per batch (its default).
//!
//! A key or a user is looked up by inserting it: one descent where a look-up first would take two.

use super::job::{Answer, HOLD_MICROS, LIMIT, Peer, Request, SKU, Stock};
use anyhow::{Context, Result};
use redb::{Database, ReadableDatabase, ReadableTable, ReadableTableMetadata, TableDefinition};
use std::path::Path;

/// SKU to (total, reserved).
const STOCK: TableDefinition<u32, (u64, u64)> = TableDefinition::new("stock");
/// User to units.
const LIMITS: TableDefinition<u128, u32> = TableDefinition::new("limits");
/// Idempotency key to answer.
const KEYS: TableDefinition<u128, u64> = TableDefinition::new("keys");
/// Hold to (user, SKU, quantity, expiry).
const HOLDS: TableDefinition<u64, (u128, u32, u32, u64)> = TableDefinition::new("holds");

/// More than the run's data, so that nothing is read twice.
const CACHE_SIZE: usize = 1 << 30;

struct Redb(Database);

pub(crate) fn make(dir: &Path, total: u64) -> Result<Box<dyn Peer>> {
    let path = dir.join("redb");
    let db = Database::builder()
        .set_cache_size(CACHE_SIZE)
        .create(path)?;
    let write = db.begin_write()?;
    write.open_table(STOCK)?.insert(SKU, (total, 0))?;
    write.open_table(LIMITS)?;
    write.open_table(KEYS)?;
    write.open_table(HOLDS)?;
    write.commit()?;
    Ok(Box::new(Redb(db)))
}

fn stock(row: (u64, u64)) -> Stock {
    let (total, reserved) = row;
    Stock { total, reserved }
}

impl Peer for Redb {
    fn reserve(&mut self, batch: &[Request], answers: &mut Vec<Answer>) -> Result<()> {
        let write = self.0.begin_write()?;
        {
            let mut stocks = write.open_table(STOCK)?;
            let mut limits = write.open_table(LIMITS)?;
            let mut keys = write.open_table(KEYS)?;
            let mut holds = write.open_table(HOLDS)?;
            let mut stock = stock(stocks.get(SKU)?.context("no stock row")?.value());
            for request in batch {
                let hold = stock.reserved + 1;
                let old = keys.insert(request.key, hold)?.map(|word| word.value());
                if let Some(word) = old {
                    keys.insert(request.key, word)?;
                    answers.push(Answer::from_word(word));
                    continue;
                }
                let held = limits.insert(request.user, 1)?.map(|units| units.value());
                let units = held.unwrap_or(0);
                let answer = if units >= LIMIT {
                    Answer::OverLimit
                } else if stock.reserved == stock.total {
                    Answer::SoldOut
                } else {
                    Answer::Held(hold)
                };
                answers.push(answer);
                if let Answer::Held(hold) = answer {
                    if held.is_some() {
                        limits.insert(request.user, units + 1)?;
                    }
                    holds.insert(hold, (request.user, SKU, 1, HOLD_MICROS))?;
                    stock.reserved += 1;
                } else {
                    limits.insert(request.user, units)?;
                    keys.insert(request.key, answer.to_word())?;
                }
            }
            stocks.insert(SKU, (stock.total, stock.reserved))?;
        }
        write.commit()?;
        Ok(())
    }

    fn reserved(&mut self) -> Result<(u64, Option<u64>)> {
        let read = self.0.begin_read()?;
        let row = read
            .open_table(STOCK)?
            .get(SKU)?
            .context("no stock row")?
            .value();
        Ok((stock(row).reserved, Some(read.open_table(HOLDS)?.len()?)))
    }
}
