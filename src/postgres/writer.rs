//! The writer's role while it lasts: commits, what a commit that changed nothing means, and how a writer goes on after its
//! connection was lost.
//!
//! Invariants. I1: a batch is in the chain once it is known to be committed. I2: a new session is used only after the fence
//! row was found, when no other session of this writer could commit any more, to bear its token and an end that is in the
//! chain, or one batch beyond it, which the next commit judges. I3: what a server has lost it is given again in order, each
//! batch through the same fence.

use super::PostgresOptions;
use super::chain::Chain;
use super::changes::Changes;
use super::commit;
use super::halt;
use super::log::{End, Fence, fence, get};
use super::repair::REPAIR;
use super::session::{Session, fatal};
use super::snapshot::Keeper;
use crate::store::{OpenRequest, Recovered, Replica, StoreError};
use crate::types::{Availability, Batch, ReservationId, SkuId, StateRecord, Timestamp, Token};
use std::collections::{BTreeMap, BTreeSet};
use tokio_postgres::Statement;

/// Overdue holds that are looked at when the role is taken.
const OVERDUE_MAX: usize = 4_096;

pub(super) struct Writer {
    options: PostgresOptions,
    shard: u16,
    token: Token,
    /// `None` after an error that leaves open what the server has done.
    link: Option<Link>,
    chain: Chain,
    /// As of the chain's end.
    credit_micros: u64,
    changes: Changes,
    /// What the rows of the next batch's SKUs must say after it.
    expected: Vec<Availability>,
    /// What the rows say of each SKU, as far as the writer was told.
    stock: BTreeMap<SkuId, Availability>,
    keeper: Option<Keeper>,
    /// Of the opening.
    warnings: Vec<String>,
}

/// A session with its prepared statement.
struct Link {
    session: Session,
    commit: Statement,
}

impl Link {
    fn new(session: Session) -> Result<Self, StoreError> {
        let commit = commit::prepare(&session)?;
        Ok(Self { session, commit })
    }
}

impl Writer {
    /// For a session that has just taken the role.
    pub(super) fn new(
        options: &PostgresOptions,
        request: &OpenRequest,
        session: Session,
        taken: &Fence,
        stock: Vec<Availability>,
        warnings: Vec<String>,
    ) -> Result<Self, StoreError> {
        let every = options.snapshot_every_events;
        let keeper = every.map(|every| Keeper::start(options, request, every));
        Ok(Self {
            options: options.clone(),
            shard: request.shard,
            token: taken.token,
            link: Some(Link::new(session)?),
            chain: Chain::after(taken.end, options.retained_bytes),
            credit_micros: taken.credit_micros,
            changes: Changes::default(),
            expected: Vec::new(),
            stock: stock.into_iter().map(|stock| (stock.sku, stock)).collect(),
            keeper: keeper.transpose()?,
            warnings,
        })
    }

    pub(super) fn expect(&mut self, stock: &[Availability]) {
        self.expected.clear();
        self.expected.extend_from_slice(stock);
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let done = self.linked().and_then(|link| {
            let done = self.offer(&link, batch);
            self.keep(link, &done);
            done
        });
        match done {
            Ok(()) => {
                let expected = self.expected.drain(..);
                self.stock.extend(expected.map(|stock| (stock.sku, stock)));
                Ok(())
            }
            Err(error @ (StoreError::Behind { .. } | StoreError::Fork { .. })) => {
                // What can't be recorded now is told all the same.
                Err(self.halt().ok().flatten().unwrap_or(error))
            }
            Err(error) => Err(error),
        }
    }

    /// Records that the server hasn't what this writer has committed, if that is what is wrong.
    fn halt(&self) -> Result<Option<StoreError>, StoreError> {
        let session = Session::connect(&self.options)?;
        let found = fence(&session, self.shard, false)?;
        let ours = self.chain.end();
        let is_mine = found.token == self.token || found.token.epoch < self.token.epoch;
        if !is_mine || found.end == ours {
            return Ok(None);
        }
        halt::record(&session, self.shard, &found, ours, self.token.epoch)
    }

    /// The session, or a new one that was found fit to go on.
    fn linked(&mut self) -> Result<Link, StoreError> {
        match self.link.take() {
            Some(link) => Ok(link),
            None => self.resume(),
        }
    }

    /// A session that failed is not used again.
    fn keep<T>(&mut self, link: Link, done: &Result<T, StoreError>) {
        if !matches!(done, Err(StoreError::Retryable(_))) {
            self.link = Some(link);
        }
    }

    fn offer(&mut self, link: &Link, batch: &Batch) -> Result<(), StoreError> {
        let refused = self.send(link, batch, self.credit_micros, true)?;
        if let Some(fence) = refused {
            self.judge(&fence, batch)?;
            // The last one once more.
            if self.chain.end() == fence.end {
                return Ok(());
            }
        }
        self.committed(batch);
        Ok(())
    }

    /// Sends a batch, before which so much time was credited; gives the fence row if it wasn't let through.
    fn send(
        &mut self,
        link: &Link,
        batch: &Batch,
        credit_micros: u64,
        is_expected: bool,
    ) -> Result<Option<Fence>, StoreError> {
        self.changes
            .read(batch, credit_micros)
            .map_err(|what| fatal(format!("batch {}: {what}", batch.header.number)))?;
        let expected = if is_expected { &*self.expected } else { &[] };
        if batch.header.token == self.token
            && batch.header.shard == self.shard
            && commit::commit(&link.session, &link.commit, batch, &self.changes, expected)?
        {
            return Ok(None);
        }
        fence(&link.session, self.shard, false).map(Some)
    }

    fn committed(&mut self, batch: &Batch) {
        self.credit_micros = self
            .credit_micros
            .saturating_add(self.changes.credit_micros);
        self.chain.push(batch);
        if let Some(keeper) = &mut self.keeper {
            let events = batch.event_records().len() as u64;
            keeper.committed(batch.header.number, events);
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let keeper = self.keeper.as_ref().and_then(Keeper::warning);
        self.warnings.iter().cloned().chain(keeper).collect()
    }

    /// Why the fence let nothing through. `Ok`: the batch is the server's last one, its acknowledgement was lost.
    fn judge(&self, fence: &Fence, batch: &Batch) -> Result<(), StoreError> {
        let header = &batch.header;
        let number = header.number;
        if header.shard != self.shard {
            return Err(fatal(format!(
                "batch {number} is of shard {}, this store was opened for {}",
                header.shard, self.shard
            )));
        }
        if header.token != self.token {
            let epoch = fence.token.epoch;
            return Err(StoreError::Fenced { epoch });
        }
        self.check_token(fence)?;
        let offered = End {
            number,
            hash: batch.hash(),
        };
        if fence.end == offered {
            return Ok(());
        }
        if fence.end.number + 1 < number {
            return Err(StoreError::Behind {
                last: fence.end.number,
                next: number,
            });
        }
        Err(StoreError::Fork { number })
    }

    /// Whether the fence row still bears this writer's token.
    fn check_token(&self, fence: &Fence) -> Result<(), StoreError> {
        let epoch = fence.token.epoch;
        if fence.token == self.token && !fence.handed_on {
            Ok(())
        } else if epoch < self.token.epoch {
            // The server has lost even the takeover.
            Err(StoreError::Behind {
                last: fence.end.number,
                next: self.chain.end().number + 1,
            })
        } else {
            Err(StoreError::Fenced { epoch })
        }
    }

    /// Goes on with a new session.
    fn resume(&mut self) -> Result<Link, StoreError> {
        let session = Session::connect(&self.options)?;
        // Before anybody is ended: another writer's session may bear this epoch on a server that has lost the takeover.
        self.check_token(&fence(&session, self.shard, false)?)?;
        own(&session, self.shard, self.token.epoch)?;
        // What the session before this one had under way is there now, or never will be.
        let found = fence(&session, self.shard, false)?;
        self.check_token(&found)?;
        let link = Link::new(session)?;
        self.give_again(&link, &found)?;
        // Whatever server this is, its log is whole.
        link.session.rows(
            "UPDATE writer SET timeline = timeline_at_risk() WHERE shard = $1 AND epoch = $2",
            &[
                &self.shard.cast_signed(),
                &commit::signed(self.token.epoch)?,
            ],
        )?;
        Ok(link)
    }

    /// Commits once more what a server has lost that was behind its predecessor.
    fn give_again(&mut self, link: &Link, found: &Fence) -> Result<(), StoreError> {
        let (theirs, ours) = (found.end, self.chain.end());
        // One beyond is the batch whose acknowledgement was lost, or a fork: the next commit tells.
        if theirs == ours || theirs.number == ours.number + 1 {
            return Ok(());
        }
        let Some(lost) = self.chain.since(theirs) else {
            let is_known = theirs.number > ours.number || self.chain.reaches(theirs.number);
            return Err(if is_known {
                StoreError::Fork {
                    number: theirs.number,
                }
            } else {
                StoreError::Behind {
                    last: theirs.number,
                    next: ours.number + 1,
                }
            });
        };
        let lost: Vec<Batch> = lost.cloned().collect();
        let mut credit_micros = found.credit_micros;
        for batch in &lost {
            // What the rows say in between nobody was told.
            if let Some(fence) = self.send(link, batch, credit_micros, false)? {
                self.judge(&fence, batch)?;
            }
            credit_micros = credit_micros.saturating_add(self.changes.credit_micros);
        }
        Ok(())
    }

    pub(super) fn overdue(
        &mut self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<ReservationId>, StoreError> {
        let link = self.linked()?;
        let found = self.look(&link.session, now, limit);
        self.keep(link, &found);
        found
    }

    /// Compares all rows of stock with what the writer was told, and lists the holds whose deadline has passed.
    fn look(
        &self,
        session: &Session,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<ReservationId>, StoreError> {
        compare_stock(session, self.shard, &self.stock)?;
        overdue(session, self.shard, now, self.credit_micros, limit)
    }

    /// Hands the role on: whoever waits for it may take it at once.
    pub(super) fn close(&mut self) -> Result<(), StoreError> {
        let link = self.linked()?;
        link.session.rows(
            "UPDATE writer SET handed_on = true WHERE shard = $1 AND epoch = $2 AND writer_id = $3",
            &[
                &self.shard.cast_signed(),
                &commit::signed(self.token.epoch)?,
                &super::sql::Id128(self.token.writer),
            ],
        )?;
        link.session.end();
        Ok(())
    }
}

/// The rows of holds whose deadline has passed, the earliest first.
fn overdue(
    session: &Session,
    shard: u16,
    now: Timestamp,
    credit_micros: u64,
    limit: usize,
) -> Result<Vec<ReservationId>, StoreError> {
    let without_credit = now.as_micros().saturating_sub(credit_micros);
    // Not `id BETWEEN`: that lets the server read all of a shard by its primary key, and it does.
    let rows = session.rows(
        "SELECT id FROM reservations
         WHERE ended_at IS NULL AND deadline <= $1 AND (id >> 48)::int2 = $2
         ORDER BY deadline LIMIT $3",
        &[
            &Timestamp::from_micros(without_credit),
            &shard.cast_signed(),
            &i64::try_from(limit).unwrap_or(i64::MAX),
        ],
    )?;
    rows.iter().map(|row| get(row, 0)).collect()
}

/// Rows of holds that were overdue before the role was free must be live in the replica too: one that isn't would halt the
/// writer with its first sweeps.
///
/// # Errors
/// `Fatal` for the first one.
pub(super) fn compare_overdue(
    session: &Session,
    fence: &Fence,
    position: &Recovered,
    shard: u16,
    replica: &dyn Replica,
) -> Result<(), StoreError> {
    let (now, credit) = (position.last_stamp, fence.credit_micros);
    let overdue = overdue(session, shard, now, credit, OVERDUE_MAX)?;
    if overdue.is_empty() {
        return Ok(());
    }
    let mut live = BTreeSet::new();
    replica.export(&mut |record| {
        if let StateRecord::Reservation { id, status, .. } = record
            && status.is_live()
        {
            live.insert(*id);
        }
    });
    match overdue.iter().find(|id| !live.contains(id)) {
        None => Ok(()),
        Some(id) => Err(fatal(format!(
            "reservations row {id} holds units, in the log it doesn't: it was changed from outside{REPAIR}"
        ))),
    }
}

/// Makes this session the one that stands for the writer of an epoch. Another session of that epoch can only be one that this
/// writer has lost: it is ended, so that the server doesn't take it for the writer.
pub(super) fn own(session: &Session, shard: u16, epoch: u64) -> Result<(), StoreError> {
    let (shard, epoch) = (shard.cast_signed(), commit::signed(epoch)?);
    session.rows(
        "SELECT pg_terminate_backend(pid) FROM owner_process($1, $2) AS pid WHERE pid <> pg_backend_pid()",
        &[&shard, &epoch],
    )?;
    session
        .rows(
            "SELECT pg_advisory_lock(owner_lock($1, $2))",
            &[&shard, &epoch],
        )
        .map(drop)
}

/// # Errors
/// `Fatal` for the first row of stock that doesn't say what it should.
pub(super) fn compare_stock(
    session: &Session,
    shard: u16,
    known: &BTreeMap<SkuId, Availability>,
) -> Result<(), StoreError> {
    // A replica that counts nothing has nothing to compare.
    if known.is_empty() {
        return Ok(());
    }
    match drift(session, shard, known)?.first() {
        None => Ok(()),
        Some(row) => Err(fatal(format!("{row}: it was changed from outside{REPAIR}"))),
    }
}

/// Every row of `inventory` that says otherwise than is known.
pub(super) fn drift(
    session: &Session,
    shard: u16,
    known: &BTreeMap<SkuId, Availability>,
) -> Result<Vec<String>, StoreError> {
    let rows = session.rows(
        "SELECT sku, sku_id, total, available, reserved, sold FROM inventory WHERE shard = $1 ORDER BY sku",
        &[&shard.cast_signed()],
    )?;
    let mut drift = Vec::new();
    let mut missing = known.clone();
    for row in &rows {
        let sku = SkuId(get::<i32>(row, 0)?.cast_unsigned());
        let name: &str = get(row, 1)?;
        let counts: [i64; 4] = [get(row, 2)?, get(row, 3)?, get(row, 4)?, get(row, 5)?];
        let Some(stock) = missing.remove(&sku) else {
            drift.push(format!(
                "inventory row {name} is of a SKU that the log doesn't define"
            ));
            continue;
        };
        let told = [stock.total, stock.available, stock.reserved, stock.sold].map(u64::cast_signed);
        if counts != told {
            drift.push(format!(
                "inventory row {name} (total, available, reserved, sold) is {counts:?}, the log says {told:?}"
            ));
        }
    }
    let missing = missing.keys();
    drift.extend(missing.map(|sku| format!("inventory row of SKU {sku} is missing")));
    Ok(drift)
}
