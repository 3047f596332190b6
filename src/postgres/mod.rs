//! A log in PostgreSQL, with rows that other programs can query.
//!
//! ```text
//! commit(batch)                                     one statement: one round trip, one transaction
//!   fence: the row of `writer` bears my token, my last number, its hash ── no row: nothing changed; the row says why
//!     ├─ batches                  the log: header, events, refusals, source positions
//!     ├─ reservations, _lines     what the events make of them
//!     └─ inventory                deltas; CHECK constraints for L1 and L2; and compared with the engine's own counts
//! ```
//!
//! `batches` is the truth, and recovery reads nothing else. The rows say the same for SQL: they are derived from the events, not
//! from the engine's counts, so that comparing the two finds a row that was changed from outside, and the batch that would
//! rest on it is not committed.
//!
//! # The role
//!
//! One writer at a time has a shard's role, under a token in the fence row: an epoch and 128 random bits. Who takes the role
//! raises the epoch in a transaction that also reads the last batch, so nothing of the old writer can come in between or after:
//! its next commit changes nothing and it is told that it is fenced. Nothing is ever answered that wasn't committed, so a
//! writer that was paused past its own replacement answers nothing either.
//!
//! A writer commits every 500 ms, if need be an empty batch. A standby ([`Role::WhenSilent`]) follows the log into its replica,
//! and takes the role at once when the owner's session ends or hands the role on, else after 3 s of silence. The
//! session is watched by an advisory lock that it holds; the lock elects, the token fences. After an outage of the server an owner
//! first has the time to come back that connecting may take, with its memory of what the server may have lost: see
//! [`PostgresOptions::connect_timeout`].
//!
//! # When a connection fails
//!
//! It is dropped, and the batch at hand is offered again on another, after the fence row was read: if it says that the batch
//! was committed, only its acknowledgement was lost. A server that came back without the last batches (a replica that was
//! promoted before it had everything) is given them again if what it has is in this writer's chain. What fits no chain is a
//! fork or a gap, and ends the writer.
//!
//! # The server's settings
//!
//! Its defaults are safe, and small for a sale. A reservation writes some 420 bytes of WAL in batches of 250: let `max_wal_size`
//! hold what comes between two checkpoints, so that time begins them (at 50,000 a second 4 GB last for a minute and a half; a
//! server that has too little logs that checkpoints occur too frequently), `min_wal_size` as much, so that segments are used
//! again instead of made, and `shared_buffers` the newest rows, 1 GB or more. `commit_delay` stays 0: one writer has nobody
//! to wait for. `fsync`, `full_page_writes` and `synchronous_commit` stay on, for every answer rests on them; the
//! store's own session turns `synchronous_commit` on where it is off. Who can't lose a server names a synchronous standby.
//!
//! # When a writer has halted
//!
//! Whoever takes the role compares first, so a halt lasts until its cause is gone; its text names the one command. **Rows** that
//! were changed from outside: [`PostgresRepair`] rebuilds them from the log (`flash-sale repair`). **Batches that are missing**
//! at the end of the log: the fence row, or a snapshot, knows of more than the log holds; or a writer or standby does, because its
//! server came back without them, and records that in the fence row. An operator restores them, or goes on without them by the
//! number of the last one that is left ([`PostgresRepair::resume`], `flash-sale resume`). Where nobody remembers, a promotion by
//! which batches may have been lost is a warning of the next writer. **A damaged batch** is refused by its number: restore the
//! database.
//!
//! # Numbers
//!
//! Ids of users, keys and payments are `uuid`, reservations `int8` (`reservation_text(id)` gives the form users see), times
//! `timestamptz`. The deadlines of `reservations` are without the time credited after a stall: the view `holds` adds it.

mod audit;
mod chain;
mod changes;
mod commit;
mod halt;
mod log;
mod options;
mod reads;
mod rebuild;
mod repair;
mod schema;
mod session;
mod snapshot;
mod sql;
mod standby;
mod tls;
mod watch;
mod writer;

pub use audit::{PostgresAudit, PostgresLog, PostgresMoment};
pub use options::{PostgresOptions, Role};
pub use reads::PostgresReads;
pub use repair::{PostgresRepair, RowDifference};

use crate::store::{OpenRequest, Progress, Recovered, Replica, Store, StoreError};
use crate::types::{Availability, Batch, ReservationId, Timestamp};
use parking_lot::{Condvar, Mutex};
use session::{Session, fatal};
use standby::Opening;
use std::sync::Arc;
use std::time::Duration;
use writer::Writer;

/// An owner commits so often, also when nobody asks for anything.
const HEARTBEAT: Duration = Duration::from_millis(500);

/// A store in one schema of a PostgreSQL database, version 13 or later.
///
/// ```no_run
/// use stockade::postgres::{PostgresOptions, PostgresStore, Role};
///
/// let mut options = PostgresOptions::new("postgres://shop@db1,db2/shop");
/// options.role = Role::STANDBY;
/// PostgresStore::migrate(&options)?;
/// let store = PostgresStore::new(options);
/// let stop = store.stop_handle();
/// // `Engine::builder().store(store).start()` waits for the role, or until `stop.stop()`.
/// # let _ = (store, stop);
/// # Ok::<(), stockade::store::StoreError>(())
/// ```
pub struct PostgresStore {
    options: PostgresOptions,
    stop: Stop,
    writer: Option<Writer>,
}

/// Ends the wait of a standby, from any thread.
#[derive(Clone, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// A store that is being opened gives up with [`StoreError::Stopped`], also one that is opened later. One that is open is
    /// not touched.
    pub fn stop(&self) {
        let (stopped, told) = &*self.0;
        *stopped.lock() = true;
        told.notify_all();
    }

    fn is_set(&self) -> bool {
        *self.0.0.lock()
    }

    /// Waits, less if it is told to stop; true then.
    fn wait(&self, time: Duration) -> bool {
        let (stopped, told) = &*self.0;
        let mut stopped = stopped.lock();
        if !*stopped {
            told.wait_for(&mut stopped, time);
        }
        *stopped
    }
}

impl PostgresStore {
    /// Nothing is connected to before it is opened.
    pub fn new(options: PostgresOptions) -> Self {
        Self {
            options,
            stop: Stop::default(),
            writer: None,
        }
    }

    /// Makes the schema and its tables, or brings them to this release's version; a schema of this version is left alone.
    ///
    /// # Errors
    /// A schema that a newer release has made is refused, and left as it is.
    pub fn migrate(options: &PostgresOptions) -> Result<(), StoreError> {
        standby::persist(options.open_within, &Stop::default(), || {
            schema::migrate(&Session::connect(options)?, &options.schema)
        })
    }

    /// Ends the wait of [`open`](Store::open).
    pub fn stop_handle(&self) -> Stop {
        self.stop.clone()
    }

    fn writer(&mut self) -> Result<&mut Writer, StoreError> {
        let writer = self.writer.as_mut();
        writer.ok_or_else(|| fatal("this store is not open: open it before the first commit"))
    }
}

impl Store for PostgresStore {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        if self.writer.is_some() {
            return Err(fatal("this store is open: close it first"));
        }
        let opening = Opening::new(&self.options, request, &self.stop, replica, progress);
        let (writer, recovered) = opening.run()?;
        self.writer = Some(writer);
        Ok(recovered)
    }

    fn expect(&mut self, stock: &[Availability]) {
        if let Some(writer) = &mut self.writer {
            writer.expect(stock);
        }
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        self.writer()?.commit(batch)
    }

    fn overdue(&mut self, now: Timestamp, limit: usize) -> Result<Vec<ReservationId>, StoreError> {
        self.writer()?.overdue(now, limit)
    }

    fn linger(&self) -> Duration {
        self.options.linger
    }

    fn heartbeat(&self) -> Option<Duration> {
        Some(HEARTBEAT)
    }

    fn warnings(&self) -> Vec<String> {
        self.writer.as_ref().map_or_else(Vec::new, Writer::warnings)
    }

    fn close(&mut self) -> Result<(), StoreError> {
        match self.writer.take() {
            Some(mut writer) => writer.close(),
            None => Ok(()),
        }
    }
}
