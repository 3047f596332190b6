//! How the role is taken: follow the log into the replica, wait until the role may be had, and take it between two batches.
//!
//! ```text
//! connect ─► follow ─► may it be had? ─► lock the fence row ─► still? ─► the last batches ─► the replica agrees ─► a new token
//!    ▲          ▲            │ no                                │ no                          │ no: nothing changed
//!    │          └─ 50 ms ────┴───────────────────────────────────┘
//!    └── any error that passes: what the replica has taken it keeps
//! ```
//!
//! It is asked twice, because whoever had the lock until then may have taken the role, or be the owner and have committed.

use super::commit::signed;
use super::halt;
use super::log::{
    End, Fence, PAGE, Position, begin_shard, fence, get, hash, log_end, read_page, unsigned,
};
use super::session::{Session, fatal};
use super::sql::Id128;
use super::watch::Watch;
use super::writer::{Writer, compare_overdue, compare_stock};
use super::{PostgresOptions, Role, Stop, schema, snapshot};
use crate::store::{OpenRequest, Progress, Recovered, Replica, StoreError};
use crate::types::{Batch, Clock, SystemClock};
use std::time::Duration;

/// How often a standby looks.
const LOOK_EVERY: Duration = Duration::from_millis(50);
/// Pauses between attempts to connect.
const BACKOFF_MIN: Duration = Duration::from_millis(20);
const BACKOFF_MAX: Duration = Duration::from_secs(1);
/// An engine's longest pause before it offers a batch again.
const OFFERED_AGAIN: Duration = Duration::from_millis(200);

/// What one opening knows.
pub(super) struct Opening<'a> {
    options: &'a PostgresOptions,
    request: &'a OpenRequest,
    stop: &'a Stop,
    replica: &'a mut dyn Replica,
    progress: &'a mut dyn FnMut(Progress),
    /// `None` before a snapshot was looked for.
    position: Option<Position>,
    warnings: Vec<String>,
    clock: SystemClock,
    /// `None` to take the role at once.
    watch: Option<Watch>,
    /// The highest that a fence row bore: a server may have lost it.
    epoch: u64,
}

impl<'a> Opening<'a> {
    pub(super) fn new(
        options: &'a PostgresOptions,
        request: &'a OpenRequest,
        stop: &'a Stop,
        replica: &'a mut dyn Replica,
        progress: &'a mut dyn FnMut(Progress),
    ) -> Self {
        let watch = match options.role {
            Role::TakeNow => None,
            Role::WhenSilent(patience) => Some(Watch::new(patience)),
        };
        Self {
            options,
            request,
            stop,
            replica,
            progress,
            position: None,
            warnings: Vec::new(),
            clock: SystemClock::new(),
            watch,
            epoch: 0,
        }
    }

    /// Until the role is taken, or can't be.
    pub(super) fn run(mut self) -> Result<(Writer, Recovered), StoreError> {
        let (options, stop) = (self.options, self.stop);
        let within = match options.role {
            Role::TakeNow => options.open_within,
            Role::WhenSilent(_) => Duration::MAX,
        };
        persist(within, stop, || self.attempt())
    }

    fn pause(&self, time: Duration) -> Result<(), StoreError> {
        if self.stop.wait(time) {
            return Err(StoreError::Stopped);
        }
        Ok(())
    }

    fn attempt(&mut self) -> Result<(Writer, Recovered), StoreError> {
        let session = Session::connect(self.options)?;
        schema::check(&session)?;
        begin_shard(&session, self.request.shard)?;
        if self.position.is_none() {
            let (shard, warnings) = (self.request.shard, &mut self.warnings);
            warnings.clear();
            let restored = snapshot::restore(&session, shard, self.replica, warnings, &|_| Ok(()))?;
            self.position = Some(restored);
        }
        if let Some(watch) = &mut self.watch {
            // An idle owner notices with its next heartbeat.
            let notices = super::HEARTBEAT + OFFERED_AGAIN;
            let returns_within = Session::connects_within(self.options)?.saturating_add(notices);
            watch.connect(self.clock.monotonic(), returns_within);
        }
        loop {
            let found = fence(&session, self.request.shard, false)?;
            // A server that is behind may yet be given what it lost, by the owner.
            if !self.is_ahead_of(found.end) {
                self.follow(&session, found.end.number)?;
            }
            if self.may_take(&found)
                && let Some(found) = self.lock(&session)?
            {
                return self.take(session, &found);
            }
            self.pause(LOOK_EVERY)?;
        }
    }

    fn is_ahead_of(&self, end: End) -> bool {
        let position = self.position.as_ref();
        position.is_some_and(|position| position.end.number > end.number)
    }

    /// Reads what there is, `last` being the number of the last batch.
    fn follow(&mut self, session: &Session, last: u64) -> Result<(), StoreError> {
        let Self {
            position,
            replica,
            progress,
            request,
            stop,
            ..
        } = self;
        let position = position.get_or_insert_default();
        if position.end.number < last {
            still_there(session, request.shard, position.end)?;
        }
        while position.end.number < last {
            let mut take = |batch: &Batch| {
                let applied = replica.apply(batch);
                applied.map_err(|error| fatal(error.to_string()))
            };
            let read = read_page(session, request.shard, position, &mut take)?;
            progress(Progress {
                done: position.end.number,
                total: Some(last.max(position.end.number)),
            });
            if stop.is_set() {
                return Err(StoreError::Stopped);
            }
            if read < PAGE {
                break;
            }
        }
        Ok(())
    }

    fn may_take(&mut self, found: &Fence) -> bool {
        self.epoch = self.epoch.max(found.token.epoch);
        let now = self.clock.monotonic();
        let watch = self.watch.as_mut();
        watch.is_none_or(|watch| watch.look(found, now))
    }

    /// Begins a transaction in which nobody else commits, or ends it again if the role is no longer to be had.
    fn lock(&mut self, session: &Session) -> Result<Option<Fence>, StoreError> {
        let position = self.position.as_ref();
        session.begin(position.map_or(0, |position| position.recovered.last_sequence))?;
        let found = fence(session, self.request.shard, true)?;
        if self.may_take(&found) {
            return Ok(Some(found));
        }
        session.run("ROLLBACK")?;
        Ok(None)
    }

    /// Takes the role in that transaction, between two batches of whoever has it.
    fn take(&mut self, session: Session, found: &Fence) -> Result<(Writer, Recovered), StoreError> {
        let shard = self.request.shard;
        let end = log_end(&session, shard)?;
        self.follow(&session, end.number)?;
        let position = self.position.clone().unwrap_or_default();
        if position.end.number > end.number && found.end == end {
            // Nobody else may remember it.
            let recorded = halt::record(&session, shard, found, position.end, self.epoch)?;
            session.run("COMMIT")?;
            let behind = StoreError::Behind {
                last: end.number,
                next: position.end.number + 1,
            };
            return Err(recorded.unwrap_or(behind));
        }
        found.fits(shard, end)?;
        if position.end != end {
            return Err(another_history(position.end));
        }
        self.replica
            .complete()
            .map_err(|error| fatal(error.to_string()))?;
        let stock = self.replica.stock();
        let known = stock.iter().map(|stock| (stock.sku, *stock)).collect();
        compare_stock(&session, shard, &known)?;
        // A replica that counts nothing has nothing to compare.
        if !stock.is_empty() {
            compare_overdue(&session, found, &position.recovered, shard, self.replica)?;
        }
        let promoted = promoted(&session, shard)?;
        // The lock is this session's before anybody sees the new token.
        let row = session.row(
            "UPDATE writer SET epoch = greatest(epoch, $3) + 1, writer_id = $2, handed_on = false, committed_at = now(),
                               timeline = timeline_at_risk()
             WHERE shard = $1
             RETURNING epoch, pg_try_advisory_lock(owner_lock(shard, epoch))",
            &[
                &shard.cast_signed(),
                &Id128(self.request.writer),
                &signed(self.epoch)?,
            ],
        )?;
        let row = row.ok_or_else(|| fatal("the fence row has vanished"))?;
        let epoch = unsigned(&row, 0)?;
        session.run("COMMIT")?;
        // A COMMIT that became a ROLLBACK is reported as done.
        let taken = fence(&session, shard, false)?;
        if taken.token.epoch != epoch || taken.token.writer != self.request.writer {
            return Err(StoreError::Retryable("the takeover didn't last".to_owned()));
        }
        if !get::<bool>(&row, 1)? {
            super::writer::own(&session, shard, epoch)?;
        }
        self.warnings.extend(promoted);
        self.warnings.extend(durability(&session)?);
        let warnings = std::mem::take(&mut self.warnings);
        let writer = Writer::new(self.options, self.request, session, &taken, stock, warnings)?;
        let recovered = Recovered {
            token: taken.token,
            ..position.recovered
        };
        Ok((writer, recovered))
    }
}

/// Whether the log still holds the batch up to which it was followed.
fn still_there(session: &Session, shard: u16, end: End) -> Result<(), StoreError> {
    let row = session.row(
        "SELECT hash FROM batches WHERE shard = $1 AND number = $2",
        &[&shard.cast_signed(), &signed(end.number)?],
    )?;
    let found = row.map(|row| hash(&row, 0)).transpose()?;
    // One that is missing is the fence row's to judge.
    if found.is_none_or(|found| found == end.hash) {
        return Ok(());
    }
    Err(another_history(end))
}

fn another_history(end: End) -> StoreError {
    fatal(format!(
        "batch {} ({}), up to which the log was followed, is no longer in it: another history goes on; start this standby anew",
        end.number, end.hash
    ))
}

/// Tries again what fails only just now.
pub(super) fn persist<T>(
    within: Duration,
    stop: &Stop,
    mut attempt: impl FnMut() -> Result<T, StoreError>,
) -> Result<T, StoreError> {
    let clock = SystemClock::new();
    let began = clock.monotonic();
    let mut backoff = BACKOFF_MIN;
    loop {
        let error = match attempt() {
            Err(error @ StoreError::Retryable(_)) => error,
            done => return done,
        };
        if clock.monotonic().saturating_sub(began) >= within {
            return Err(error);
        }
        if stop.wait(backoff) {
            return Err(StoreError::Stopped);
        }
        backoff = (backoff * 2).min(BACKOFF_MAX);
    }
}

/// Whether the server may lack what an earlier one had committed, and nobody who remembers is left.
fn promoted(session: &Session, shard: u16) -> Result<Option<String>, StoreError> {
    let row = session.row(
        "SELECT timeline, current_timeline(), last_batch FROM writer WHERE shard = $1 AND timeline <> current_timeline()",
        &[&shard.cast_signed()],
    )?;
    let Some(row) = row else { return Ok(None) };
    let (before, now): (i32, i32) = (get(&row, 0)?, get(&row, 1)?);
    Ok(Some(format!(
        "this server was promoted or restored (timeline {before}, now {now}) without a writer that could compare, and commits did \
         not wait for it: batches after {} may be lost; compare with what was published",
        unsigned(&row, 2)?
    )))
}

/// What the server's settings mean for what it has committed.
fn durability(session: &Session) -> Result<Option<String>, StoreError> {
    let row = session.row("SELECT current_setting('fsync') = 'off'", &[])?;
    let is_off = row.map_or(Ok(false), |row| get(&row, 0))?;
    Ok(is_off.then(|| {
        "PostgreSQL runs with fsync = off: a crash of its machine loses or damages the log; set it to on".to_owned()
    }))
}
