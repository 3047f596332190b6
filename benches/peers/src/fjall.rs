//! fjall 3: LSM-trees behind one write-ahead log, one write batch with `PersistMode::SyncData` (`fdatasync`) per batch.
//!
//! A batch doesn't read its own writes, so what it holds already is kept beside it, in hash maps. Memtables have 8 MiB, the
//! least that its documentation recommends: keys and users come in no order, and finding one's place in a larger
//! memtable is what most of the time goes to.

use super::job::{Answer, HOLD_MICROS, LIMIT, Peer, Request, SKU, Stock};
use anyhow::{Context, Result};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use std::collections::HashMap;
use std::path::Path;

/// More than the run's data, so that nothing is read twice.
const CACHE_SIZE: u64 = 1 << 30;
const MEMTABLE_SIZE: u64 = 8 << 20;

struct Fjall {
    db: Database,
    /// SKU to total and reserved.
    stocks: Keyspace,
    /// User to units.
    limits: Keyspace,
    /// Idempotency key to answer.
    keys: Keyspace,
    /// Hold to user, SKU, quantity, expiry.
    holds: Keyspace,
    /// What the batch at hand has written.
    new_keys: HashMap<u128, u64>,
    new_limits: HashMap<u128, u32>,
}

pub(crate) fn make(dir: &Path, total: u64) -> Result<Box<dyn Peer>> {
    let db = Database::builder(dir.join("fjall"))
        .cache_size(CACHE_SIZE)
        .open()?;
    let options = || KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_SIZE);
    let open = |name| db.keyspace(name, options);
    let peer = Fjall {
        stocks: open("stock")?,
        limits: open("limits")?,
        keys: open("keys")?,
        holds: open("holds")?,
        db: db.clone(),
        new_keys: HashMap::new(),
        new_limits: HashMap::new(),
    };
    peer.stocks.insert(SKU.to_be_bytes(), words(total, 0))?;
    db.persist(PersistMode::SyncAll)?;
    Ok(Box::new(peer))
}

/// Two words as a value.
fn words(a: u64, b: u64) -> [u8; 16] {
    (u128::from(a) | u128::from(b) << 64).to_le_bytes()
}

impl Fjall {
    fn stock(&self) -> Result<Stock> {
        let row = self
            .stocks
            .get(SKU.to_be_bytes())?
            .context("no stock row")?;
        let (total, reserved) = row.split_first_chunk().context("a short row")?;
        let reserved = reserved.first_chunk().context("a short row")?;
        Ok(Stock {
            total: u64::from_le_bytes(*total),
            reserved: u64::from_le_bytes(*reserved),
        })
    }

    fn answered(&self, key: u128) -> Result<Option<Answer>> {
        if let Some(&word) = self.new_keys.get(&key) {
            return Ok(Some(Answer::from_word(word)));
        }
        let Some(row) = self.keys.get(key.to_be_bytes())? else {
            return Ok(None);
        };
        let word = row.first_chunk().context("a short row")?;
        Ok(Some(Answer::from_word(u64::from_le_bytes(*word))))
    }

    fn units(&self, user: u128) -> Result<u32> {
        if let Some(&units) = self.new_limits.get(&user) {
            return Ok(units);
        }
        let Some(row) = self.limits.get(user.to_be_bytes())? else {
            return Ok(0);
        };
        let units = row.first_chunk().context("a short row")?;
        Ok(u32::from_le_bytes(*units))
    }
}

impl Peer for Fjall {
    fn reserve(&mut self, batch: &[Request], answers: &mut Vec<Answer>) -> Result<()> {
        self.new_keys.clear();
        self.new_limits.clear();
        let mut write = self.db.batch().durability(Some(PersistMode::SyncData));
        let mut stock = self.stock()?;
        for request in batch {
            if let Some(answer) = self.answered(request.key)? {
                answers.push(answer);
                continue;
            }
            let units = self.units(request.user)?;
            let answer = if units >= LIMIT {
                Answer::OverLimit
            } else if stock.reserved == stock.total {
                Answer::SoldOut
            } else {
                Answer::Held(stock.reserved + 1)
            };
            answers.push(answer);
            let word = answer.to_word();
            self.new_keys.insert(request.key, word);
            write.insert(&self.keys, request.key.to_be_bytes(), word.to_le_bytes());
            if let Answer::Held(hold) = answer {
                let mut row = [0; 32];
                row[..16].copy_from_slice(&request.user.to_le_bytes());
                row[16..20].copy_from_slice(&SKU.to_le_bytes());
                row[20..24].copy_from_slice(&1_u32.to_le_bytes());
                row[24..].copy_from_slice(&HOLD_MICROS.to_le_bytes());
                write.insert(&self.holds, hold.to_be_bytes(), row);
                self.new_limits.insert(request.user, units + 1);
                let units = (units + 1).to_le_bytes();
                write.insert(&self.limits, request.user.to_be_bytes(), units);
                stock.reserved += 1;
            }
        }
        write.insert(
            &self.stocks,
            SKU.to_be_bytes(),
            words(stock.total, stock.reserved),
        );
        write.commit()?;
        Ok(())
    }

    fn reserved(&mut self) -> Result<(u64, Option<u64>)> {
        Ok((self.stock()?.reserved, Some(self.holds.len()? as u64)))
    }
}
