//! The allocator as a store sees it: something that takes a snapshot's records and batches, and says in the end whether the
//! engine wants the role.

use super::EngineError;
use super::clock::LogicalClock;
use crate::allocator::{Allocator, Limits, Violation};
use crate::store::{Recovered, Replica, ReplicaError, StoreError};
use crate::types::{Availability, Batch, Clock, StateRecord};
use std::sync::Arc;
use std::time::Duration;

impl From<Violation> for ReplicaError {
    fn from(violation: Violation) -> Self {
        Self::Contradiction {
            sequence: violation.sequence,
            what: violation.what,
        }
    }
}

impl Replica for Allocator {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        Ok(Allocator::restore(self, record)?)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        Ok(self.apply_batch(batch)?)
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        Allocator::export(self, out);
    }

    fn stock(&self) -> Vec<Availability> {
        let skus = self.skus().filter_map(|(sku, _)| self.availability(sku));
        skus.collect()
    }
}

/// Copies that a store makes beside the writer start small: they live for one snapshot.
pub(super) fn small(limits: Limits, seed: u64) -> Box<dyn Replica> {
    Box::new(Allocator::new(
        Limits {
            presize: 0,
            ..limits
        },
        seed,
    ))
}

/// The state of an engine that doesn't have the role yet.
pub(super) struct Candidate {
    allocator: Allocator,
    clock: Arc<dyn Clock>,
    clock_jump_max: Duration,
    /// What came of the check; a store that doesn't ask has made none.
    checked: Option<Result<(), EngineError>>,
}

impl Candidate {
    pub(super) fn new(
        allocator: Allocator,
        clock: Arc<dyn Clock>,
        clock_jump_max: Duration,
    ) -> Self {
        Self {
            allocator,
            clock,
            clock_jump_max,
            checked: None,
        }
    }

    fn check(&mut self) -> Result<(), EngineError> {
        let audit = self.allocator.audit();
        if !audit.is_ok() {
            return Err(EngineError::Laws(audit.breaches));
        }
        let has_live = self.allocator.next_deadline().is_some();
        let last_stamp = self.allocator.now();
        LogicalClock::check(&*self.clock, last_stamp, has_live, self.clock_jump_max)
    }

    /// The state, checked once, of a store that has opened.
    ///
    /// # Errors
    /// Why the role was declined, or why the store didn't open.
    pub(super) fn settle(
        mut self,
        opened: Result<Recovered, StoreError>,
    ) -> Result<(Allocator, Recovered), EngineError> {
        // A store only repeats why it was declined.
        let checked = self.checked.take().transpose()?;
        let recovered = opened?;
        if checked.is_none() {
            self.check()?;
        }
        Ok((self.allocator, recovered))
    }
}

impl Replica for Candidate {
    fn restore(&mut self, record: &StateRecord) -> Result<(), ReplicaError> {
        Replica::restore(&mut self.allocator, record)
    }

    fn apply(&mut self, batch: &Batch) -> Result<(), ReplicaError> {
        Replica::apply(&mut self.allocator, batch)
    }

    fn complete(&mut self) -> Result<(), ReplicaError> {
        let checked = self.check();
        let declined = match &checked {
            Ok(()) => Ok(()),
            Err(error) => Err(ReplicaError::Declined(error.to_string())),
        };
        self.checked = Some(checked);
        declined
    }

    fn export(&self, out: &mut dyn FnMut(&StateRecord)) {
        Replica::export(&self.allocator, out);
    }

    fn stock(&self) -> Vec<Availability> {
        self.allocator.stock()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{
        BatchHeader, Command, DefineSku, Gate, ManualClock, Reserve, SetGate, SkuId, SkuName,
        Timestamp, UserId,
    };

    /// With a live hold, made at the beginning of time, two hours ago.
    fn candidate(clock_jump_max: Duration) -> Candidate {
        let mut allocator = Allocator::new(Limits::default(), 1);
        let mut batch = Batch::default();
        batch.header = BatchHeader {
            first_sequence: 1,
            ..BatchHeader::default()
        };
        allocator.begin(&batch.header).expect("the first batch");
        let (user, name) = (UserId(1), SkuName::new("A").expect("a name"));
        let commands: [Command; 3] = [
            DefineSku::new(user, name, 1).into(),
            SetGate::new(user, SkuId(0), Gate::Open).into(),
            Reserve::one(user, SkuId(0), 1).expect("a cart").into(),
        ];
        for command in &commands {
            let decided = allocator.decide(command, &mut batch);
            decided.expect("no law breaks");
        }
        let clock = ManualClock::at(Timestamp::from_micros(7_200_000_000));
        Candidate::new(allocator, Arc::new(clock), clock_jump_max)
    }

    #[test]
    fn the_clock_is_checked_whether_the_store_asks_or_not() {
        let hour = Duration::from_secs(3_600);
        let unasked = candidate(hour).settle(Ok(Recovered::default()));
        assert!(matches!(unasked, Err(EngineError::ClockAhead { .. })));
        let mut asked = candidate(hour);
        let declined = asked.complete().expect_err("two hours are too much");
        assert!(matches!(declined, ReplicaError::Declined(_)));
        let refused = asked.settle(Err(StoreError::Fatal(declined.to_string())));
        assert!(matches!(refused, Err(EngineError::ClockAhead { .. })));
        for asks in [false, true] {
            let mut patient = candidate(2 * hour);
            assert!(!asks || patient.complete().is_ok());
            assert!(patient.settle(Ok(Recovered::default())).is_ok());
        }
    }

    #[test]
    fn what_keeps_the_store_from_opening_is_told() {
        let mut willing = candidate(Duration::MAX);
        assert_eq!(willing.complete(), Ok(()));
        let failed = willing.settle(Err(StoreError::Fatal("no room".to_owned())));
        assert!(matches!(
            failed,
            Err(EngineError::Store(StoreError::Fatal(_)))
        ));
    }
}
