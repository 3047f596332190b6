//! The checks. Each begins on a new log, and ends by opening it once more: a refused call must have left nothing.

use super::Tally;
use super::session::{NewStore, Session, decline, expect, reopened};
use crate::store::StoreError;
use crate::types::{BatchHash, SourcePosition};

/// Events of the large batch: 40,000 of 128 bytes are 5 MB.
const LARGE_BATCH: u64 = 40_000;
/// What a check finds wrong.
type Check = fn(&mut NewStore<'_>) -> Result<(), String>;

/// Every check, by its claim.
pub(super) const CHECKS: [(&str, Check); 14] = [
    ("a new log is empty", new_log_is_empty),
    (
        "every commit is recovered, whole and in order",
        recovery_at_every_point,
    ),
    ("recovery changes nothing", recovery_changes_nothing),
    (
        "every takeover has a new token",
        every_takeover_has_a_new_token,
    ),
    ("a role that is declined stays where it is", declined),
    (
        "a lost acknowledgement is Ok and changes nothing",
        lost_acknowledgement,
    ),
    ("another batch under a number is a fork", fork_by_hash),
    (
        "a batch of another predecessor is a fork",
        fork_by_predecessor,
    ),
    ("a batch after a gap is refused", gap),
    ("a zombie commits nothing", zombie),
    ("a foreign token commits nothing", foreign_token),
    (
        "source positions and refusals come back",
        sources_and_refusals,
    ),
    ("an empty batch counts", empty_batch),
    ("a large batch is whole", large_batch),
];

fn new_log_is_empty(new: &mut NewStore<'_>) -> Result<(), String> {
    let session = Session::open(new, 1)?;
    expect(
        "the number of the last batch",
        &session.recovered.last_batch,
        &0,
    )?;
    expect("what is left out", &session.recovered.dropped_tail, &None)
}

fn recovery_at_every_point(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut wanted = Tally::default();
    for writer in 1..=6 {
        let mut session = reopened(new, writer, &wanted)?;
        for events in 1..4 {
            let batch = session.next(events * 40, events);
            session.commit(&batch)?;
        }
        // Every other writer ends without a word, as one that was killed.
        if writer % 2 == 0 {
            let closed = session.store.close();
            closed.map_err(|error| format!("it doesn't close: {error}"))?;
        }
        wanted = session.tally.clone();
    }
    reopened(new, 99, &wanted).map(drop)
}

fn recovery_changes_nothing(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let wanted = session.tally.clone();
    drop(session);
    for writer in 2..6 {
        reopened(new, writer, &wanted)?;
    }
    Ok(())
}

fn every_takeover_has_a_new_token(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut epoch = 0;
    for writer in 1..5 {
        let session = Session::open(new, writer)?;
        expect("the token's writer", &session.token.writer, &writer)?;
        if session.token.epoch <= epoch {
            return Err(format!("epoch {} follows {epoch}", session.token.epoch));
        }
        epoch = session.token.epoch;
    }
    Ok(())
}

/// Declined while a writer is at work, whom a store that locks guards anyway, and when none is.
fn declined(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    decline(new, 2)?;
    let batch = session.next(3, 1);
    session.commit(&batch)?;
    let wanted = session.tally.clone();
    drop(session);
    decline(new, 3)?;
    reopened(new, 4, &wanted).map(drop)
}

fn lost_acknowledgement(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let batch = session.next(5, 1);
    session.commit(&batch)?;
    for _ in 0..3 {
        let again = session.store.commit(&batch);
        again.map_err(|error| format!("the same batch again is refused: {error}"))?;
    }
    let batch = session.next(2, 0);
    session.commit(&batch)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn fork_by_hash(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let (one, other) = (session.next(3, 0), session.next(4, 0));
    session.commit(&one)?;
    let fork = |error: &StoreError| matches!(error, StoreError::Fork { .. });
    session.must_refuse(&other, "another batch under the last number", fork)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn fork_by_predecessor(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let mut batch = session.next(3, 0);
    batch.seal(BatchHash([7; 32]));
    let fork = |error: &StoreError| matches!(error, StoreError::Fork { .. });
    session.must_refuse(&batch, "a batch with another predecessor", fork)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn gap(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let mut batch = session.next(3, 0);
    batch.header.number += 1;
    batch.seal(session.tally.last_hash);
    let behind = |error: &StoreError| matches!(error, StoreError::Behind { .. });
    session.must_refuse(&batch, "a batch that skips a number", behind)?;
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

/// A second writer opens while the first one lives. A store that locks refuses it, and then the first goes on.
fn zombie(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut zombie = Session::open(new, 1)?;
    zombie.history()?;
    match Session::open(new, 2) {
        Err(_) => {
            let batch = zombie.next(3, 0);
            zombie.commit(&batch)?;
            let wanted = zombie.tally.clone();
            drop(zombie);
            reopened(new, 3, &wanted).map(drop)
        }
        Ok(mut session) => {
            expect("the log at the takeover", &session.tally, &zombie.tally)?;
            let fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
            let batch = zombie.next(3, 1);
            zombie.must_refuse(&batch, "a batch of the old writer", fenced)?;
            let batch = session.next(2, 1);
            session.commit(&batch)?;
            let batch = zombie.next(1, 0);
            zombie.must_refuse(&batch, "a later batch of the old writer", fenced)?;
            drop(zombie);
            let batch = session.next(2, 1);
            session.commit(&batch)?;
            let wanted = session.tally.clone();
            drop(session);
            reopened(new, 3, &wanted).map(drop)
        }
    }
}

fn foreign_token(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    session.history()?;
    let fenced = |error: &StoreError| matches!(error, StoreError::Fenced { .. });
    for (epoch, writer) in [(1, 0), (0, 1)] {
        let mut batch = session.next(3, 0);
        batch.header.token.epoch += epoch;
        batch.header.token.writer += writer;
        batch.seal(session.tally.last_hash);
        session.must_refuse(&batch, "a batch under a foreign token", fenced)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn sources_and_refusals(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut wanted = Tally::default();
    for sources in [1, 16, 0, 5] {
        let mut session = reopened(new, sources, &wanted)?;
        let mut batch = session.next(1, 7);
        batch.header.sources = (0..sources)
            .map(|source| SourcePosition {
                source: u64::MAX - u64::try_from(source).unwrap_or(0),
                position: u64::MAX,
            })
            .collect();
        batch.seal(session.tally.last_hash);
        session.commit(&batch)?;
        wanted = session.tally.clone();
        drop(session);
        let session = reopened(new, 100 + sources, &wanted)?;
        expect(
            "the sources",
            &session.recovered.sources,
            &batch.header.sources,
        )?;
    }
    Ok(())
}

fn empty_batch(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    for events in [0, 2, 0, 0, 1, 0] {
        let batch = session.next(events, 0);
        session.commit(&batch)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}

fn large_batch(new: &mut NewStore<'_>) -> Result<(), String> {
    let mut session = Session::open(new, 1)?;
    for events in [1, LARGE_BATCH, 1, LARGE_BATCH / 3] {
        let batch = session.next(events, events / 2);
        session.commit(&batch)?;
    }
    let wanted = session.tally.clone();
    drop(session);
    reopened(new, 2, &wanted).map(drop)
}
