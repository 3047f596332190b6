//! What the rows say, for those who can't ask the writer: while it is away, or of what it has long forgotten.

use super::PostgresOptions;
use super::log::{get, unsigned};
use super::session::{Session, fatal};
use crate::store::StoreError;
use crate::types::{
    Availability, Clock, HoldStatus, Line, ReservationId, ReservationView, SkuId, SkuName,
    SystemClock, Timestamp,
};
use parking_lot::{Mutex, MutexGuard};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// How long a question waits for those before it.
const LINE_MAX: Duration = Duration::from_millis(500);
/// How long questions are refused after one has failed, or has waited in vain.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads rows over a connection of its own, also from a server that takes no writes. Its calls block, one at a time.
///
/// A server that hangs costs one caller the time-outs of [`PostgresOptions`]; who waits behind him is refused after half a second,
/// and whoever comes in the second after that at once.
///
/// What it says was committed, and may be older than what the writer would say: [`Availability::as_of`] tells.
pub struct PostgresReads {
    options: PostgresOptions,
    session: Mutex<Option<Session>>,
    clock: SystemClock,
    /// By the monotonic clock, in microseconds. Relaxed: it guards nothing but itself.
    refuses_until: AtomicU64,
}

impl PostgresReads {
    /// Nothing is connected to before the first question.
    pub fn new(options: PostgresOptions) -> Self {
        Self {
            options,
            session: Mutex::new(None),
            clock: SystemClock::new(),
            refuses_until: AtomicU64::new(0),
        }
    }

    /// A reservation, live or ended, however long ago; a hold that lapsed before `now` is shown as expired.
    ///
    /// # Errors
    /// `Retryable` if no server can be asked just now.
    pub fn reservation(
        &self,
        id: ReservationId,
        now: Timestamp,
    ) -> Result<Option<ReservationView>, StoreError> {
        self.ask(|session| {
            let rows = session.rows(
                "SELECT r.user_id, r.status, r.deadline, w.credit_micros, r.attempt, l.sku, l.quantity - l.returned
                 FROM reservations r
                 JOIN writer w ON w.shard = (r.id >> 48)::int2
                 CROSS JOIN LATERAL (
                     SELECT 0::int2 AS line, r.sku, r.quantity, r.returned
                     UNION ALL
                     SELECT line, sku, quantity, returned FROM reservation_lines WHERE reservation_id = r.id) AS l
                 WHERE r.id = $1 ORDER BY l.line",
                &[&id],
            )?;
            let Some(first) = rows.first() else {
                return Ok(None);
            };
            let deadline: Timestamp = get(first, 2)?;
            let expires_at = deadline.plus_micros(unsigned(first, 3)?);
            let stored = status(get(first, 1)?)?;
            let is_over = stored == HoldStatus::Held && expires_at <= now;
            let mut lines = Vec::new();
            for row in &rows {
                let quantity = get::<i32>(row, 6)?.cast_unsigned();
                if quantity > 0 {
                    let sku = SkuId(get::<i32>(row, 5)?.cast_unsigned());
                    lines.push(Line { sku, quantity });
                }
            }
            Ok(Some(ReservationView {
                id,
                user: get(first, 0)?,
                status: if is_over { HoldStatus::Expired } else { stored },
                expires_at,
                attempt: get::<i32>(first, 4)?.cast_unsigned(),
                lines,
            }))
        })
    }

    /// The counts of a SKU in one shard.
    ///
    /// # Errors
    /// `Retryable` if no server can be asked just now.
    pub fn availability(
        &self,
        shard: u16,
        sku: &SkuName,
    ) -> Result<Option<Availability>, StoreError> {
        self.ask(|session| {
            let row = session.row(
                "SELECT sku, available, reserved, sold, total, sequence, as_of
                 FROM inventory WHERE shard = $1 AND sku_id = $2",
                &[&shard.cast_signed(), sku],
            )?;
            let Some(row) = row else { return Ok(None) };
            Ok(Some(Availability {
                sku: SkuId(get::<i32>(&row, 0)?.cast_unsigned()),
                available: unsigned(&row, 1)?,
                reserved: unsigned(&row, 2)?,
                sold: unsigned(&row, 3)?,
                total: unsigned(&row, 4)?,
                sequence: unsigned(&row, 5)?,
                as_of: get(&row, 6)?,
                not_before: None,
            }))
        })
    }

    /// All SKUs that the writers of all shards have defined: the shard, the index in it, the name. By shard and index.
    ///
    /// # Errors
    /// `Retryable` if no server can be asked just now.
    pub fn skus(&self) -> Result<Vec<(u16, SkuId, SkuName)>, StoreError> {
        self.ask(|session| {
            let rows = session.rows(
                "SELECT shard, sku, sku_id FROM inventory ORDER BY shard, sku",
                &[],
            )?;
            let sku = |row| {
                let shard = get::<i16>(row, 0)?.cast_unsigned();
                let sku = SkuId(get::<i32>(row, 1)?.cast_unsigned());
                Ok((shard, sku, get(row, 2)?))
            };
            rows.iter().map(sku).collect()
        })
    }

    /// The last stamp of each shard's log, and when it was committed by the server's clock. So far is the log's time from the
    /// clocks' as long as its writer is the same; a writer commits every 500 ms.
    ///
    /// # Errors
    /// `Retryable` if no server can be asked just now.
    pub fn stamps(&self) -> Result<Vec<(u16, Timestamp, Timestamp)>, StoreError> {
        self.ask(|session| {
            let rows = session.rows("SELECT shard, last_stamp, committed_at FROM writer", &[])?;
            let stamp = |row| {
                let shard = get::<i16>(row, 0)?.cast_unsigned();
                Ok((shard, get(row, 1)?, get(row, 2)?))
            };
            rows.iter().map(stamp).collect()
        })
    }

    fn ask<T>(
        &self,
        question: impl Fn(&Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        let mut session = self.session()?;
        let answer = self.ask_over(&mut session, question);
        let until = match &answer {
            Err(StoreError::Retryable(_)) => self.micros() + micros(PAUSE),
            _ => 0,
        };
        self.refuses_until.store(until, Ordering::Relaxed);
        answer
    }

    /// The connection, once those before have asked.
    fn session(&self) -> Result<MutexGuard<'_, Option<Session>>, StoreError> {
        let refused = || {
            let text = "PostgreSQL has just not answered others: ask again in a second";
            StoreError::Retryable(text.to_owned())
        };
        let admits = || self.refuses_until.load(Ordering::Relaxed) <= self.micros();
        if !admits() {
            return Err(refused());
        }
        let Some(session) = self.session.try_lock_for(LINE_MAX) else {
            let until = self.micros() + micros(PAUSE);
            self.refuses_until.store(until, Ordering::Relaxed);
            return Err(refused());
        };
        // It may have failed meanwhile.
        if admits() {
            Ok(session)
        } else {
            Err(refused())
        }
    }

    /// Asks over the connection that there is, and once more over a new one if that has failed.
    fn ask_over<T>(
        &self,
        held: &mut Option<Session>,
        question: impl Fn(&Session) -> Result<T, StoreError>,
    ) -> Result<T, StoreError> {
        if let Some(session) = held.take() {
            match question(&session) {
                Err(StoreError::Retryable(_)) => {}
                answer => {
                    *held = Some(session);
                    return answer;
                }
            }
        }
        let session = Session::connect_for_reads(&self.options)?;
        let answer = question(&session)?;
        *held = Some(session);
        Ok(answer)
    }

    fn micros(&self) -> u64 {
        micros(self.clock.monotonic())
    }
}

fn micros(time: Duration) -> u64 {
    u64::try_from(time.as_micros()).unwrap_or(u64::MAX)
}

fn status(word: &str) -> Result<HoldStatus, StoreError> {
    let found = HoldStatus::from_name(word);
    found.ok_or_else(|| fatal(format!("\"{word}\" is no status of a reservation")))
}
