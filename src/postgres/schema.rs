//! The schema's versions: each is a file of SQL that is run once, in its order, in one transaction with its number.

use super::session::{Session, fatal};
use crate::store::StoreError;

/// Version n is entry n - 1. What was released is never edited.
const MIGRATIONS: [&str; 2] = [
    include_str!("migrations/0001_tables.sql"),
    include_str!("migrations/0002_halted.sql"),
];

/// The version that this release reads and writes.
#[expect(clippy::cast_possible_truncation, reason = "a handful")]
#[expect(clippy::cast_possible_wrap, reason = "a handful")]
const VERSION: i32 = MIGRATIONS.len() as i32;

/// Brings the schema to this release's version, from nothing or from an older one. Two that migrate at once take turns.
///
/// # Errors
/// A newer schema is left as it is.
pub(super) fn migrate(session: &Session, schema: &str) -> Result<(), StoreError> {
    // The lock ends with the transaction; its number is any that nobody else uses.
    session.begin(0)?;
    let begin = format!(
        "SELECT pg_advisory_xact_lock(7305808869231650); CREATE SCHEMA IF NOT EXISTS {schema};
         CREATE TABLE IF NOT EXISTS schema_version (
             version int4 PRIMARY KEY, migrated_at timestamptz NOT NULL DEFAULT now());"
    );
    session.run(&begin)?;
    let found = version(session)?;
    refuse_newer(found)?;
    let done = usize::try_from(found).unwrap_or(0);
    for (sql, version) in MIGRATIONS.iter().zip(1..).skip(done) {
        session.run(sql)?;
        session.rows(
            "INSERT INTO schema_version (version) VALUES ($1::int4)",
            &[&version],
        )?;
    }
    session.run("COMMIT")?;
    // A COMMIT that became a ROLLBACK is reported as done.
    check(session)
}

/// # Errors
/// If the schema isn't of this release's version.
pub(super) fn check(session: &Session) -> Result<(), StoreError> {
    let exists = session.row(
        "SELECT 1 WHERE to_regclass('schema_version') IS NOT NULL",
        &[],
    )?;
    let found = if exists.is_some() {
        version(session)?
    } else {
        0
    };
    refuse_newer(found)?;
    if found < VERSION {
        return Err(fatal(format!(
            "the schema has version {found}, this release needs {VERSION}: run `PostgresStore::migrate`"
        )));
    }
    Ok(())
}

fn version(session: &Session) -> Result<i32, StoreError> {
    let row = session.row("SELECT coalesce(max(version), 0) FROM schema_version", &[])?;
    Ok(row.map_or(0, |row| row.get(0)))
}

fn refuse_newer(found: i32) -> Result<(), StoreError> {
    if found > VERSION {
        return Err(fatal(format!(
            "the schema has version {found}, this release knows {VERSION}: use the release that made it, or a newer one"
        )));
    }
    Ok(())
}
