//! The one statement that commits a batch, and its parameters.

use super::changes::{Changes, Moved};
use super::session::{Session, fatal};
use super::sql::Id128;
use crate::store::StoreError;
use crate::types::{Availability, Batch, HoldStatus, IdempotencyKey, ReservationId, Timestamp};
use tokio_postgres::Statement;

const COMMIT: &str = include_str!("commit.sql");

pub(super) fn prepare(session: &Session) -> Result<Statement, StoreError> {
    session.prepare(COMMIT)
}

/// Sends the batch with its rows; `expected` is what the rows of its SKUs must say after it, as far as that is known.
/// False if the fence didn't let it through: nothing has changed then.
///
/// # Errors
/// Those of the session; rows that aren't as expected are `Fatal`.
pub(super) fn commit(
    session: &Session,
    statement: &Statement,
    batch: &Batch,
    changes: &Changes,
    expected: &[Availability],
) -> Result<bool, StoreError> {
    let header = &batch.header;
    let (_, events, refusals) = batch.encoded_parts();
    let hash = batch.hash();
    let sources = header.sources.iter();
    let (source_ids, source_positions): (Vec<i64>, Vec<i64>) = sources
        .map(|source| (source.source.cast_signed(), source.position.cast_signed()))
        .unzip();
    let made = Made::of(changes);
    let lines = Lines::of(changes);
    let changed = Changed::of(changes);
    let returned = Returned::of(changes)?;
    let defined = Defined::of(changes);
    let stock = Stock::of(changes.stock.iter().map(|(sku, moved)| (sku.0, moved)));
    let expected = Expected::of(expected);
    let row = session.prepared_row(
        statement,
        &[
            &header.shard.cast_signed(),
            &signed(header.token.epoch)?,
            &Id128(header.token.writer),
            &signed(header.number)?,
            &header.prev_hash.0.as_slice(),
            &hash.0.as_slice(),
            &header.stamp,
            &signed(header.first_sequence)?,
            &events,
            &refusals,
            &source_ids,
            &source_positions,
            &signed(changes.credit_micros)?,
            &made.ids,
            &made.users,
            &made.keys,
            &made.skus,
            &made.quantities,
            &made.lines,
            &made.sales,
            &made.deadlines,
            &made.replaces,
            &made.statuses,
            &made.ended_at,
            &made.attempts,
            &made.payment_refs,
            &made.returned,
            &lines.ids,
            &lines.places,
            &lines.skus,
            &lines.quantities,
            &lines.returned,
            &changed.ids,
            &changed.were_live,
            &changed.statuses,
            &changed.deadlines,
            &changed.attempts,
            &changed.payment_refs,
            &returned.ids,
            &returned.skus,
            &returned.quantities,
            &defined.stock.skus,
            &defined.names,
            &defined.stock.totals,
            &defined.stock.reserved,
            &defined.stock.sold,
            &defined.stock.sales,
            &defined.stock.gates_set,
            &defined.hold_ms,
            &defined.per_user,
            &defined.per_request,
            &defined.opens_at,
            &defined.closes_at,
            &stock.skus,
            &stock.totals,
            &stock.reserved,
            &stock.sold,
            &stock.gates_set,
            &stock.gates_cleared,
            &stock.sales,
            &expected.skus,
            &expected.totals,
            &expected.reserved,
            &expected.sold,
        ],
    )?;
    Ok(row.is_some())
}

/// A number that must not wrap on its way into a signed column.
pub(super) fn signed(number: u64) -> Result<i64, StoreError> {
    i64::try_from(number).map_err(|_| fatal(format!("{number} doesn't fit a column of PostgreSQL")))
}

/// Quantities, SKUs, sales and attempts are below 2^31 by their types' own bounds; what isn't stays at the bound, which the
/// rows' constraints refuse.
fn int(number: u32) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}

fn small(number: u16) -> i16 {
    i16::try_from(number).unwrap_or(i16::MAX)
}

/// Declares columns side by side and fills them row by row: a row of each is what the statement's `unnest` gives.
macro_rules! columns {
    ($name:ident { $($column:ident: $type:ty),* $(,)? }) => {
        #[derive(Default)]
        struct $name<'a> {
            $($column: Vec<$type>,)*
            of: std::marker::PhantomData<&'a ()>,
        }

        impl<'a> $name<'a> {
            fn with_capacity(rows: usize) -> Self {
                Self {
                    $($column: Vec::with_capacity(rows),)*
                    of: std::marker::PhantomData,
                }
            }
        }
    };
}

columns!(Made {
    ids: ReservationId,
    users: Id128,
    keys: Option<IdempotencyKey>,
    skus: i32,
    quantities: i32,
    lines: i16,
    sales: i32,
    deadlines: Option<Timestamp>,
    replaces: Option<ReservationId>,
    statuses: Option<&'a str>,
    ended_at: Option<Timestamp>,
    attempts: Option<i32>,
    payment_refs: Option<Id128>,
    returned: i32,
});

columns!(Lines {
    ids: ReservationId,
    places: i16,
    skus: i32,
    quantities: i32,
    returned: i32,
});

columns!(Changed {
    ids: ReservationId,
    were_live: bool,
    statuses: Option<&'a str>,
    deadlines: Option<Timestamp>,
    attempts: Option<i32>,
    payment_refs: Option<Id128>,
});

columns!(Returned {
    ids: ReservationId,
    skus: i32,
    quantities: i32,
});

columns!(Stock {
    skus: i32,
    totals: i64,
    reserved: i64,
    sold: i64,
    sales: i32,
    gates_set: i16,
    gates_cleared: i16,
});

columns!(Expected {
    skus: i32,
    totals: i64,
    reserved: i64,
    sold: i64,
});

#[derive(Default)]
struct Defined<'a> {
    stock: Stock<'a>,
    names: Vec<&'a str>,
    hold_ms: Vec<i32>,
    per_user: Vec<Option<i64>>,
    per_request: Vec<Option<i64>>,
    opens_at: Vec<Timestamp>,
    closes_at: Vec<Timestamp>,
}

impl<'a> Made<'a> {
    fn of(changes: &'a Changes) -> Self {
        let mut rows = Self::with_capacity(changes.made.len());
        for made in &changes.made {
            rows.ids.push(made.id);
            rows.users.push(Id128(made.user.0));
            rows.keys.push(made.key);
            rows.skus.push(int(made.first.sku.0));
            rows.quantities.push(int(made.first.quantity));
            rows.lines.push(small(made.lines));
            rows.sales.push(int(made.sale));
            rows.deadlines.push(made.now.deadline);
            rows.replaces.push(made.replaces);
            rows.statuses.push(made.now.status.map(HoldStatus::name));
            rows.ended_at.push(changes.ended_at(made.now.status));
            rows.attempts.push(made.now.attempt.map(int));
            rows.payment_refs
                .push(made.now.payment_ref.map(|payment| Id128(payment.get())));
            rows.returned.push(int(made.returned));
        }
        rows
    }
}

impl Lines<'_> {
    fn of(changes: &Changes) -> Self {
        let mut rows = Self::with_capacity(changes.made_lines.len());
        for &(id, place, line, returned) in &changes.made_lines {
            rows.ids.push(id);
            rows.places.push(small(place));
            rows.skus.push(int(line.sku.0));
            rows.quantities.push(int(line.quantity));
            rows.returned.push(int(returned));
        }
        rows
    }
}

impl<'a> Changed<'a> {
    fn of(changes: &'a Changes) -> Self {
        let mut rows = Self::with_capacity(changes.changed.len());
        for (&id, change) in &changes.changed {
            rows.ids.push(id);
            rows.were_live.push(change.was_live);
            rows.statuses.push(change.status.map(HoldStatus::name));
            rows.deadlines.push(change.deadline);
            rows.attempts.push(change.attempt.map(int));
            rows.payment_refs
                .push(change.payment_ref.map(|payment| Id128(payment.get())));
        }
        rows
    }
}

impl Returned<'_> {
    fn of(changes: &Changes) -> Result<Self, StoreError> {
        let mut rows = Self::with_capacity(changes.returned.len());
        for (&(id, sku), &quantity) in &changes.returned {
            let quantity = i32::try_from(quantity);
            rows.ids.push(id);
            rows.skus.push(int(sku.0));
            rows.quantities
                .push(quantity.map_err(|_| fatal("more units come back than a line holds"))?);
        }
        Ok(rows)
    }
}

impl<'a> Stock<'a> {
    fn of(moves: impl ExactSizeIterator<Item = (u32, &'a Moved)>) -> Self {
        let mut rows = Self::with_capacity(moves.len());
        for (sku, moved) in moves {
            rows.skus.push(int(sku));
            rows.totals.push(moved.total);
            rows.reserved.push(moved.reserved);
            rows.sold.push(moved.sold);
            rows.sales.push(int(moved.sale));
            rows.gates_set.push(moved.gates_set.into());
            rows.gates_cleared.push(moved.gates_cleared.into());
        }
        rows
    }
}

impl<'a> Defined<'a> {
    fn of(changes: &'a Changes) -> Self {
        let defined = &changes.defined;
        let mut rows = Self {
            stock: Stock::of(defined.iter().map(|new| (new.sku.0, &new.now))),
            ..Self::default()
        };
        for new in defined {
            rows.names.push(new.name.as_str());
            rows.hold_ms.push(int(new.rules.hold_ms));
            rows.per_user.push(new.rules.per_user.map(i64::from));
            rows.per_request.push(new.rules.per_request.map(i64::from));
            rows.opens_at.push(new.rules.opens_at);
            rows.closes_at.push(new.rules.closes_at);
        }
        rows
    }
}

impl Expected<'_> {
    fn of(expected: &[Availability]) -> Self {
        let mut rows = Self::with_capacity(expected.len());
        for stock in expected {
            rows.skus.push(int(stock.sku.0));
            // At most 2^48.
            rows.totals.push(stock.total.cast_signed());
            rows.reserved.push(stock.reserved.cast_signed());
            rows.sold.push(stock.sold.cast_signed());
        }
        rows
    }
}
