//! Stores with one defect each, and the check that must find it: a check that can't fail proves nothing.

use super::prove;
use crate::store::{OpenRequest, Progress, Recovered, Replica, Store, StoreError};
use crate::types::{Batch, BatchHash, Token};
use parking_lot::Mutex;
use std::sync::Arc;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Defect {
    None,
    BornWithATail,
    LosesTheLastBatch,
    TearsTheLastBatch,
    RecoveryEats,
    ReportsAnotherHash,
    EpochStands,
    WriterIsForgotten,
    TakesTheRoleUnasked,
    RefusesTheSameBatch,
    AppendsTheSameBatch,
    ComparesNumbersOnly,
    IgnoresThePredecessor,
    IgnoresGaps,
    NeverFences,
    IgnoresTheBatchsToken,
    ForgetsSources,
    SkipsEmptyBatches,
    CutsLargeBatches,
}

/// Every defect with the check that finds it first.
const DEFECTS: [(Defect, &str); 18] = [
    (Defect::BornWithATail, "a new log is empty"),
    (
        Defect::LosesTheLastBatch,
        "every commit is recovered, whole and in order",
    ),
    (
        Defect::TearsTheLastBatch,
        "every commit is recovered, whole and in order",
    ),
    (
        Defect::ReportsAnotherHash,
        "every commit is recovered, whole and in order",
    ),
    (Defect::RecoveryEats, "recovery changes nothing"),
    (Defect::EpochStands, "every takeover has a new token"),
    (Defect::WriterIsForgotten, "every takeover has a new token"),
    (
        Defect::TakesTheRoleUnasked,
        "a role that is declined stays where it is",
    ),
    (
        Defect::RefusesTheSameBatch,
        "a lost acknowledgement is Ok and changes nothing",
    ),
    (
        Defect::AppendsTheSameBatch,
        "a lost acknowledgement is Ok and changes nothing",
    ),
    (
        Defect::ComparesNumbersOnly,
        "another batch under a number is a fork",
    ),
    (
        Defect::IgnoresThePredecessor,
        "a batch of another predecessor is a fork",
    ),
    (Defect::IgnoresGaps, "a batch after a gap is refused"),
    (Defect::NeverFences, "a zombie commits nothing"),
    (
        Defect::IgnoresTheBatchsToken,
        "a foreign token commits nothing",
    ),
    (
        Defect::ForgetsSources,
        "source positions and refusals come back",
    ),
    (Defect::SkipsEmptyBatches, "an empty batch counts"),
    (Defect::CutsLargeBatches, "a large batch is whole"),
];

#[derive(Default)]
struct Log {
    token: Token,
    batches: Vec<Batch>,
    opened_since_commit: bool,
}

struct Broken {
    defect: Defect,
    log: Arc<Mutex<Log>>,
    token: Token,
}

impl Store for Broken {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        _: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        let mut log = self.log.lock();
        let epoch = log.token.epoch;
        let defect = self.defect;
        let eats = log.opened_since_commit && defect == Defect::RecoveryEats;
        if eats || (epoch > 0 && defect == Defect::LosesTheLastBatch) {
            log.batches.pop();
        }
        if let (Defect::TearsTheLastBatch, Some(last)) = (defect, log.batches.last_mut()) {
            let mut torn = Batch::default();
            torn.header = last.header.clone();
            for event in last.events().take(1).flatten() {
                torn.push_event(&event);
            }
            torn.seal(last.header.prev_hash);
            *last = torn;
        }
        log.opened_since_commit = true;
        for batch in &log.batches {
            let applied = replica.apply(batch);
            applied.map_err(|error| StoreError::Fatal(error.to_string()))?;
        }
        if defect != Defect::TakesTheRoleUnasked {
            let complete = replica.complete();
            complete.map_err(|error| StoreError::Fatal(error.to_string()))?;
        }
        log.token = Token {
            epoch: if defect == Defect::EpochStands {
                1
            } else {
                epoch + 1
            },
            writer: match defect {
                Defect::WriterIsForgotten => 1,
                _ => request.writer,
            },
        };
        self.token = log.token;
        let mut recovered = Recovered {
            token: log.token,
            ..Recovered::default()
        };
        if defect == Defect::BornWithATail {
            recovered.dropped_tail = Some("something".to_owned());
        }
        if let Some(last) = log.batches.last() {
            recovered.last_batch = last.header.number;
            recovered.last_hash = last.hash();
            recovered.last_stamp = last.header.stamp;
            recovered.last_sequence = last.last_sequence();
            if defect != Defect::ForgetsSources {
                recovered.sources.clone_from(&last.header.sources);
            }
            if defect == Defect::ReportsAnotherHash {
                recovered.last_hash = last.header.prev_hash;
            }
        }
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let mut log = self.log.lock();
        let (defect, header) = (self.defect, &batch.header);
        let fenced = log.token != self.token && defect != Defect::NeverFences;
        let foreign = header.token != self.token && defect != Defect::IgnoresTheBatchsToken;
        if fenced || foreign {
            return Err(StoreError::Fenced {
                epoch: log.token.epoch,
            });
        }
        let number = header.number;
        let (last, last_hash) = log
            .batches
            .last()
            .map_or((0, BatchHash::default()), |last| {
                (last.header.number, last.hash())
            });
        if number == last && number > 0 {
            return match defect {
                Defect::RefusesTheSameBatch => Err(StoreError::Fork { number }),
                Defect::AppendsTheSameBatch => {
                    log.batches.push(batch.clone());
                    Ok(())
                }
                Defect::ComparesNumbersOnly => Ok(()),
                _ if batch.hash() == last_hash => Ok(()),
                _ => Err(StoreError::Fork { number }),
            };
        }
        if number != last + 1 && defect != Defect::IgnoresGaps {
            return Err(StoreError::Behind { last, next: number });
        }
        if header.prev_hash != last_hash && defect != Defect::IgnoresThePredecessor {
            return Err(StoreError::Fork { number });
        }
        if batch.is_empty() && defect == Defect::SkipsEmptyBatches {
            return Ok(());
        }
        log.opened_since_commit = false;
        let mut kept = batch.clone();
        if batch.event_records().len() > 10_000 && defect == Defect::CutsLargeBatches {
            kept.clear();
            kept.seal(header.prev_hash);
        }
        log.batches.push(kept);
        Ok(())
    }
}

fn proved(defect: Defect) -> Result<super::Report, super::Failure> {
    prove(|| {
        let log = Arc::new(Mutex::new(Log::default()));
        move || Broken {
            defect,
            log: Arc::clone(&log),
            token: Token::default(),
        }
    })
}

#[test]
fn a_store_without_defect_passes() {
    let report = proved(Defect::None).expect("it passes");
    assert_eq!(report.passed.len(), super::CHECKS.len());
}

#[test]
fn every_defect_is_found_by_its_check() {
    for (defect, check) in DEFECTS {
        let failure = proved(defect).expect_err("the defect is found");
        assert_eq!(failure.check, check, "{defect:?}: {failure}");
    }
}

#[test]
fn every_check_can_fail() {
    for (check, _) in super::CHECKS {
        let finds = DEFECTS.iter().any(|&(_, found_by)| found_by == check);
        assert!(finds, "no defect fails \"{check}\"");
    }
}
