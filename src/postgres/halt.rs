//! A halt that outlives whoever found it: the fence row says why nobody may take the role before an operator has decided.
//!
//! Needed where only a process knows what is wrong: its server came back without batches that were committed, and what the
//! server has says nothing of them. Rows that were changed need no such mark: they say it themselves.

use super::commit::signed;
use super::log::{End, Fence, NOBODY, missing};
use super::repair::resume_after;
use super::session::{Session, fatal};
use crate::store::StoreError;

/// Records that `known` was committed, unless the fence row has changed since it was `found`. Also takes the role from whoever
/// has it, with an epoch above `epoch`, so that none is used for two histories. Gives the error to end with, if it was recorded.
pub(super) fn record(
    session: &Session,
    shard: u16,
    found: &Fence,
    known: End,
    epoch: u64,
) -> Result<Option<StoreError>, StoreError> {
    let why = missing(known, found.end);
    let row = session.row(
        &format!(
            "UPDATE writer SET halted = $2, epoch = greatest(epoch, $3) + 1, writer_id = '{NOBODY}', handed_on = true
             WHERE shard = $1 AND epoch = $4 AND last_batch = $5 AND last_hash = $6 AND halted IS NULL
             RETURNING epoch"
        ),
        &[
            &shard.cast_signed(),
            &why,
            &signed(epoch)?,
            &signed(found.token.epoch)?,
            &signed(found.end.number)?,
            &found.end.hash.0.as_slice(),
        ],
    )?;
    Ok(row.map(|_| fatal(format!("{why}{}", resume_after(shard, found.end.number)))))
}
