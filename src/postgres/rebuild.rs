//! The rows that a log leads to, built anew in temporary tables and compared with those that are there.
//!
//! ```text
//! log ──► the statement of every commit ──► temporary tables of the same names ──┐
//!                                                                                ├─► what differs ──► the tables
//!                                                            the schema's tables ┘
//! ```
//!
//! The statement finds the temporary tables because they hide those of the schema; so the rows are made by what made them the
//! first time, under the same constraints, and differ from the schema's only where those were changed from outside. Each
//! batch is a transaction of its own, as it was then: within one, every version of a row of stock would stay. Batches without
//! events make no rows and are not sent.

use super::changes::Changes;
use super::commit;
use super::log::{End, get, unsigned};
use super::repair::{REPAIR, RowDifference};
use super::session::{Session, fatal};
use super::sql::Id128;
use crate::store::StoreError;
use crate::types::{Batch, ReservationId, SEQUENCE_MAX, Timestamp, Token};
use tokio_postgres::{Row, Statement};

/// Differences that are told; the others are counted, and mended with them.
const TOLD_MAX: u64 = 1_000;

/// The temporary tables. The log is not copied: a trigger keeps it out.
const TABLES: &str = "
    CREATE TEMP TABLE writer (LIKE {schema}.writer INCLUDING ALL);
    CREATE TEMP TABLE inventory (LIKE {schema}.inventory INCLUDING ALL);
    CREATE TEMP TABLE reservations (LIKE {schema}.reservations INCLUDING ALL);
    CREATE TEMP TABLE reservation_lines (LIKE {schema}.reservation_lines INCLUDING ALL);
    CREATE TEMP TABLE batches (LIKE {schema}.batches);
    CREATE FUNCTION pg_temp.keep_out() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NULL; END';
    CREATE TRIGGER keep_out BEFORE INSERT ON pg_temp.batches FOR EACH ROW EXECUTE FUNCTION pg_temp.keep_out();";

/// What differs of one table, as a temporary table with its key, its name, and the whole row on both sides.
const COMPARE: &str = "
    SET LOCAL enable_seqscan = on; SET LOCAL enable_hashjoin = on; SET LOCAL enable_mergejoin = on;
    ANALYZE pg_temp.{table};
    CREATE TEMP TABLE {table}_differ ON COMMIT DROP AS
    SELECT {key}, {label} AS label, to_jsonb(found) AS found, to_jsonb(wanted) AS wanted
    FROM (SELECT * FROM {schema}.{table} WHERE {range}) AS found
         FULL JOIN pg_temp.{table} AS wanted USING ({key})
    WHERE ROW (found.*) IS DISTINCT FROM ROW (wanted.*);";

/// Of a row that is on both sides only the columns that differ.
const TELL: &str = "
    SELECT label, found IS NULL, wanted IS NULL, f.columns, w.columns
    FROM (SELECT * FROM {table}_differ ORDER BY {key} LIMIT {limit}) AS differ,
         LATERAL (SELECT string_agg(key || ' ' || coalesce(found ->> key, 'none'), ', ') AS columns
                  FROM jsonb_object_keys(coalesce(found, wanted)) AS key
                  WHERE wanted IS NULL OR found -> key <> wanted -> key) AS f,
         LATERAL (SELECT string_agg(key || ' ' || coalesce(wanted ->> key, 'none'), ', ') AS columns
                  FROM jsonb_object_keys(coalesce(found, wanted)) AS key
                  WHERE found IS NULL OR found -> key <> wanted -> key) AS w";

const MEND: &str = "
    DELETE FROM {schema}.{table} USING {table}_differ AS differ WHERE {same};
    INSERT INTO {schema}.{table} ({columns})
    SELECT {columns} FROM pg_temp.{table} WHERE ({key}) IN (SELECT {key} FROM {table}_differ);";

/// What a fence row says beside the end of the log is not the log's to say.
const ADOPT: &str = "
    UPDATE pg_temp.writer AS w
    SET epoch = f.epoch, writer_id = f.writer_id, handed_on = f.handed_on, committed_at = f.committed_at, halted = f.halted,
        timeline = f.timeline
    FROM {schema}.writer AS f WHERE f.shard = w.shard";

/// Snapshots of what the log doesn't hold.
const FOREIGN_SNAPSHOTS: &str = "
    FROM {schema}.snapshots AS s WHERE s.shard = $1 AND NOT EXISTS (
        SELECT FROM {schema}.batches AS b WHERE b.shard = s.shard AND b.number = s.batch AND b.hash = s.batch_hash)";

/// The columns that can be written.
const COLUMNS: &str = "
    SELECT string_agg(quote_ident(attname), ', ' ORDER BY attnum)
    FROM pg_attribute WHERE attrelid = to_regclass($1::text) AND attnum > 0 AND NOT attisdropped AND attgenerated = ''";

/// A table of rows that are derived from the log.
struct Derived {
    name: &'static str,
    key: &'static [&'static str],
    /// What an operator calls a row.
    label: &'static str,
}

const DERIVED: [Derived; 4] = [
    Derived {
        name: "writer",
        key: &["shard"],
        label: "'of shard ' || shard",
    },
    Derived {
        name: "inventory",
        key: &["shard", "sku"],
        label: "coalesce(found.sku_id, wanted.sku_id)",
    },
    Derived {
        name: "reservations",
        key: &["id"],
        label: "id || ' (' || reservation_text(id) || ')'",
    },
    Derived {
        name: "reservation_lines",
        key: &["reservation_id", "line"],
        label: "reservation_text(reservation_id) || ' line ' || line",
    },
];

/// A session that builds the rows of one shard.
pub(super) struct Rebuild<'a> {
    pub(super) session: &'a Session,
    schema: &'a str,
    shard: u16,
    commit: Statement,
    changes: Changes,
    /// Of the temporary fence row.
    token: Token,
    credit_micros: u64,
    /// The last batch, if it changed no row and was not sent.
    skipped: Option<(End, Timestamp)>,
}

impl<'a> Rebuild<'a> {
    /// Empty tables, in a session that is used for nothing else: they hide the schema's.
    pub(super) fn new(
        session: &'a Session,
        schema: &'a str,
        shard: u16,
    ) -> Result<Self, StoreError> {
        session.run(&TABLES.replace("{schema}", schema))?;
        super::log::begin_shard(session, shard)?;
        session.run("UPDATE pg_temp.writer SET handed_on = false")?;
        Ok(Self {
            session,
            schema,
            shard,
            commit: commit::prepare(session)?,
            changes: Changes::default(),
            token: Token::default(),
            credit_micros: 0,
            skipped: None,
        })
    }

    /// Makes the rows that the next batch made.
    ///
    /// # Errors
    /// `Fatal` if the batch contradicts what came before it.
    pub(super) fn take(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let (header, number) = (&batch.header, batch.header.number);
        self.adopt(header.token)?;
        // A writer that idles commits two a second.
        if batch.event_records().is_empty() {
            let end = End {
                number,
                hash: batch.hash(),
            };
            self.skipped = Some((end, header.stamp));
            return Ok(());
        }
        self.settle()?;
        let nonsense = |what: String| {
            fatal(format!(
                "batch {number} of the log can't be: {what}; restore the database from a backup or a standby"
            ))
        };
        self.changes
            .read(batch, self.credit_micros)
            .map_err(nonsense)?;
        let made = commit::commit(self.session, &self.commit, batch, &self.changes, &[]);
        match made {
            Ok(true) => {}
            Ok(false) => return Err(nonsense("it doesn't follow its predecessor".to_owned())),
            Err(StoreError::Fatal(what)) => {
                let what = what.strip_suffix(REPAIR).unwrap_or(&what);
                return Err(nonsense(what.to_owned()));
            }
            Err(error) => return Err(error),
        }
        self.credit_micros = self
            .credit_micros
            .saturating_add(self.changes.credit_micros);
        Ok(())
    }

    /// Makes the temporary fence row let the batches of this writer through.
    fn adopt(&mut self, token: Token) -> Result<(), StoreError> {
        if token != self.token {
            self.session.rows(
                "UPDATE pg_temp.writer SET epoch = $1, writer_id = $2",
                &[&commit::signed(token.epoch)?, &Id128(token.writer)],
            )?;
            self.token = token;
        }
        Ok(())
    }

    /// Brings the fence row past what was skipped.
    fn settle(&mut self) -> Result<(), StoreError> {
        let Some((end, stamp)) = self.skipped.take() else {
            return Ok(());
        };
        self.session
            .rows(
                "UPDATE pg_temp.writer SET last_batch = $1, last_hash = $2, last_stamp = $3",
                &[&commit::signed(end.number)?, &end.hash.0.as_slice(), &stamp],
            )
            .map(drop)
    }

    /// Within a transaction: compares all rows with those of the schema. Gives the first differences and the number of all.
    pub(super) fn compare(&mut self) -> Result<(Vec<RowDifference>, u64), StoreError> {
        self.settle()?;
        self.session.run(&ADOPT.replace("{schema}", self.schema))?;
        let foreign = self.foreign_snapshots("SELECT s.batch")?;
        let mut count = foreign.len() as u64;
        let mut told = Vec::new();
        for row in &foreign {
            told.push(RowDifference {
                table: "snapshots",
                row: format!("after batch {}", unsigned(row, 0)?),
                found: Some("of another history".to_owned()),
                wanted: None,
            });
        }
        for table in &DERIVED {
            self.session.run(&self.text(COMPARE, table))?;
            let counted = format!("SELECT count(*) FROM {}_differ", table.name);
            let differ = self.session.row(&counted, &[])?;
            count += differ.map_or(Ok(0), |row| unsigned(&row, 0))?;
            let room = TOLD_MAX.saturating_sub(told.len() as u64);
            let tell = self.text(TELL, table).replace("{limit}", &room.to_string());
            for row in &self.session.rows(&tell, &[])? {
                let [is_missing, is_surplus]: [bool; 2] = [get(row, 1)?, get(row, 2)?];
                let columns = |at| get::<Option<String>>(row, at).map(Option::unwrap_or_default);
                told.push(RowDifference {
                    table: table.name,
                    row: get(row, 0)?,
                    found: (!is_missing).then(|| columns(3)).transpose()?,
                    wanted: (!is_surplus).then(|| columns(4)).transpose()?,
                });
            }
        }
        Ok((told, count))
    }

    /// In the same transaction as [`compare`](Self::compare): makes the schema's rows what they should be.
    pub(super) fn mend(&self) -> Result<(), StoreError> {
        self.foreign_snapshots("DELETE")?;
        for table in &DERIVED {
            let name = format!("{}.{}", self.schema, table.name);
            let columns = self.session.row(COLUMNS, &[&name])?;
            let columns: String = columns.map_or(Ok(String::new()), |row| get(&row, 0))?;
            let same = table.key.iter();
            let same: Vec<String> = same
                .map(|key| format!("{name}.{key} = differ.{key}"))
                .collect();
            let mend = self.text(MEND, table).replace("{columns}", &columns);
            self.session
                .run(&mend.replace("{same}", &same.join(" AND ")))?;
        }
        Ok(())
    }

    fn foreign_snapshots(&self, what: &str) -> Result<Vec<Row>, StoreError> {
        let sql = FOREIGN_SNAPSHOTS.replace("{schema}", self.schema);
        self.session
            .rows(&format!("{what}{sql}"), &[&self.shard.cast_signed()])
    }

    fn text(&self, template: &str, table: &Derived) -> String {
        let (first, last) = (
            ReservationId::new(self.shard, 0).get().cast_signed(),
            ReservationId::new(self.shard, SEQUENCE_MAX)
                .get()
                .cast_signed(),
        );
        let range = match table.key[0] {
            "shard" => format!("shard = {}", self.shard.cast_signed()),
            id => format!("{id} BETWEEN {first} AND {last}"),
        };
        template
            .replace("{table}", table.name)
            .replace("{key}", &table.key.join(", "))
            .replace("{label}", table.label)
            .replace("{range}", &range)
            .replace("{schema}", self.schema)
    }
}
