//! SQLite (bundled): WAL with `synchronous = FULL`, one transaction per batch, every statement prepared once.
//!
//! One connection and no other process, so the WAL's index may live on the heap (`locking_mode = EXCLUSIVE`). The WAL is
//! moved into the database every 64 MiB instead of every 4 MiB, so that a page which many batches change is moved once.

use super::job::{Answer, HOLD_MICROS, LIMIT, Peer, Request, SKU, Stock};
use anyhow::Result;
use rusqlite::{Connection, OptionalExtension, params};
use std::path::Path;

/// The cache holds more than the run's data (in KiB, which SQLite takes as a negative number of pages).
const SETTINGS: &str = "
    PRAGMA locking_mode = EXCLUSIVE;
    PRAGMA journal_mode = WAL;
    PRAGMA synchronous = FULL;
    PRAGMA cache_size = -1048576;
    PRAGMA wal_autocheckpoint = 16384;
    PRAGMA temp_store = MEMORY;
";
const TABLES: &str = "
    CREATE TABLE stock (sku INTEGER PRIMARY KEY, total INTEGER NOT NULL, reserved INTEGER NOT NULL,
        CHECK (reserved <= total));
    CREATE TABLE limits (user BLOB PRIMARY KEY, units INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE keys (key BLOB PRIMARY KEY, answer INTEGER NOT NULL) WITHOUT ROWID;
    CREATE TABLE holds (id INTEGER PRIMARY KEY, user BLOB NOT NULL, sku INTEGER NOT NULL, quantity INTEGER NOT NULL,
        expires_at INTEGER NOT NULL);
";
const READ_STOCK: &str = "SELECT total, reserved FROM stock WHERE sku = ?1";
const WRITE_STOCK: &str = "UPDATE stock SET reserved = ?2 WHERE sku = ?1";
/// Claims a key: no row is changed if it is taken.
const CLAIM_KEY: &str = "INSERT INTO keys VALUES (?1, ?2) ON CONFLICT DO NOTHING";
const READ_KEY: &str = "SELECT answer FROM keys WHERE key = ?1";
const REFUSE_KEY: &str = "UPDATE keys SET answer = ?2 WHERE key = ?1";
/// Takes a unit of the user's allowance: no row is changed if it is used up.
const TAKE: &str = "INSERT INTO limits VALUES (?1, 1)
    ON CONFLICT DO UPDATE SET units = units + 1 WHERE units < ?2";
const HOLD: &str = "INSERT INTO holds VALUES (?1, ?2, ?3, 1, ?4)";

struct Sqlite(Connection);

pub(crate) fn make(dir: &Path, total: u64) -> Result<Box<dyn Peer>> {
    let connection = Connection::open(dir.join("sqlite"))?;
    connection.execute_batch(SETTINGS)?;
    connection.execute_batch(TABLES)?;
    connection.set_prepared_statement_cache_capacity(16);
    let row = params![SKU, i64::try_from(total)?];
    connection.execute("INSERT INTO stock VALUES (?1, ?2, 0)", row)?;
    Ok(Box::new(Sqlite(connection)))
}

fn stock(connection: &Connection) -> Result<Stock> {
    let mut read = connection.prepare_cached(READ_STOCK)?;
    let (total, reserved): (i64, i64) =
        read.query_row([SKU], |row| Ok((row.get(0)?, row.get(1)?)))?;
    Ok(Stock {
        total: u64::try_from(total)?,
        reserved: u64::try_from(reserved)?,
    })
}

impl Peer for Sqlite {
    fn reserve(&mut self, batch: &[Request], answers: &mut Vec<Answer>) -> Result<()> {
        let write = self.0.transaction()?;
        {
            let mut claim = write.prepare_cached(CLAIM_KEY)?;
            let mut take = write.prepare_cached(TAKE)?;
            let mut hold_row = write.prepare_cached(HOLD)?;
            let mut stock = stock(&write)?;
            for request in batch {
                let (user, key) = (request.user.to_be_bytes(), request.key.to_be_bytes());
                let hold = stock.reserved + 1;
                if claim.execute(params![key, word(Answer::Held(hold))])? == 0 {
                    let mut read = write.prepare_cached(READ_KEY)?;
                    let answer = read.query_row([key], |row| row.get(0)).optional()?;
                    answers.push(answer.map_or(Answer::SoldOut, from_word));
                    continue;
                }
                let answer = if stock.reserved == stock.total {
                    Answer::SoldOut
                } else if take.execute(params![user, LIMIT])? == 0 {
                    Answer::OverLimit
                } else {
                    Answer::Held(hold)
                };
                answers.push(answer);
                if let Answer::Held(hold) = answer {
                    let expires_at = i64::try_from(HOLD_MICROS)?;
                    hold_row.execute(params![i64::try_from(hold)?, user, SKU, expires_at])?;
                    stock.reserved += 1;
                } else {
                    let mut refuse = write.prepare_cached(REFUSE_KEY)?;
                    refuse.execute(params![key, word(answer)])?;
                }
            }
            let mut update = write.prepare_cached(WRITE_STOCK)?;
            update.execute(params![SKU, i64::try_from(stock.reserved)?])?;
        }
        write.commit()?;
        Ok(())
    }

    fn reserved(&mut self) -> Result<(u64, Option<u64>)> {
        let rows: i64 = self
            .0
            .query_row("SELECT count(*) FROM holds", [], |row| row.get(0))?;
        Ok((stock(&self.0)?.reserved, Some(u64::try_from(rows)?)))
    }
}

/// SQLite's integers are signed.
fn word(answer: Answer) -> i64 {
    answer.to_word().cast_signed()
}

fn from_word(word: i64) -> Answer {
    Answer::from_word(word.cast_unsigned())
}
