//! The rules: what the answer to each command is. One file for each group of commands.
//!
//! The order is fixed: the key first (law L5), then what defers, then what refuses, in the order of
//! [`RefusalCode`](crate::types::RefusalCode). A rule looks at the state and records events; it never changes
//! the state itself.

mod admin;
mod ending;
mod payment;
mod reserve;
mod transfer;

use super::keys::{Known, difference};
use super::{Allocator, TOUCHED, Violation};
use crate::types::{
    Answer, Batch, Bound, Command, CommandKind, Decision, EventKind, IdempotencyKey, Origin,
    Refusal, RefusalRecord, ReservationId, UserId,
};

/// A rule's result: a decision, or a law that would break.
type Decided = Result<Decision, Violation>;

#[expect(clippy::unnecessary_wraps, reason = "the tail of every rule")]
fn refused(refusal: Refusal) -> Decided {
    Ok(Decision::Refused(refusal))
}

/// The key's first answer, or a conflict.
fn first_answer(known: &Known, kind: CommandKind, origin: &Origin) -> Decision {
    match difference(kind, &known.fingerprints, &origin.fingerprints) {
        Some(field) => Decision::Refused(Refusal::KeyConflict { field }),
        None => known.decision,
    }
}

impl Allocator {
    /// Decides commands, in order, within the batch that was begun; each answer is given as soon as it is made.
    ///
    /// # Errors
    /// If a law would break: the writer must stop, and nothing of the batch may be told.
    pub fn decide_all<'a>(
        &mut self,
        mut commands: impl Iterator<Item = &'a Command> + Clone,
        batch: &mut Batch,
        mut answer: impl FnMut(Answer),
    ) -> Result<(), Violation> {
        let mut hashes = [0; TOUCHED];
        loop {
            let len = self.touch(commands.clone(), &mut hashes);
            if len == 0 {
                return Ok(());
            }
            // The hashes end first, so no command is taken that is not decided.
            for (&hash, command) in hashes[..len].iter().zip(commands.by_ref()) {
                answer(self.decide_hashed(command, hash, batch)?);
            }
        }
    }

    /// Decides one command within the batch that was begun, and records it there.
    ///
    /// # Errors
    /// If a law would break: the writer must stop, and nothing of the batch may be told.
    pub fn decide(&mut self, command: &Command, batch: &mut Batch) -> Result<Answer, Violation> {
        let (user, _) = command.user_and_key();
        self.decide_hashed(command, self.users.hash_of(user), batch)
    }

    /// Hashes the users of a run of commands and reads what deciding them will need, each sort of place in a loop of its
    /// own: the fewer instructions between two misses, the more of them overlap. Returns how many it took.
    fn touch<'a>(
        &self,
        commands: impl Iterator<Item = &'a Command>,
        hashes: &mut [u64; TOUCHED],
    ) -> usize {
        let (mut touched, mut len) = (0, 0);
        for (command, hash) in commands.zip(hashes.iter_mut()) {
            let (user, key) = command.user_and_key();
            *hash = self.users.hash_of(user);
            touched ^= self.touch_known(command, *hash, key);
            len += 1;
        }
        for &hash in &hashes[..len] {
            touched ^= self.users.touch(hash);
        }
        for ahead in 0..len {
            touched ^= self.touch_next(ahead);
        }
        std::hint::black_box(touched);
        len
    }

    /// Reads the reservation and the key that a command names, where they may be known.
    #[inline]
    fn touch_known(&self, command: &Command, hash: u64, key: Option<IdempotencyKey>) -> u64 {
        let reservation = match command {
            Command::BeginPayment(c) => Some(c.reservation),
            Command::PaymentFailed(c) => Some(c.reservation),
            Command::Confirm(c) => Some(c.reservation),
            Command::Release(c) => Some(c.reservation),
            Command::Expire(c) => Some(c.reservation),
            _ => None,
        };
        let hold = reservation.map_or(0, |id| self.touch_hold(id));
        hold ^ key.map_or(0, |key| self.keys.touch(command.kind(), hash, key))
    }

    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    fn decide_hashed(
        &mut self,
        command: &Command,
        hash: u64,
        batch: &mut Batch,
    ) -> Result<Answer, Violation> {
        if let Command::Query(query) = command {
            return Ok(Answer::Found(Box::new(self.query(query))));
        }
        let kind = command.kind();
        let origin = command.origin();
        self.users.ask(origin.user, hash);
        let known = self.known(kind, &origin);
        let is_known = known.is_some();
        let first = known.map(|known| first_answer(&known, kind, &origin));
        let outdated = || self.outdated(command);
        let no_room = || self.no_room_for_key(&origin);
        let decision = match first.or_else(outdated).or_else(no_room) {
            Some(decision) => decision,
            None => match command {
                Command::Reserve(c) => self.reserve(c, &origin, batch)?,
                Command::BeginPayment(c) => self.begin_payment(c, &origin, batch)?,
                Command::PaymentFailed(c) => self.payment_failed(c, &origin, batch)?,
                Command::Confirm(c) => self.confirm(c, &origin, batch)?,
                Command::Release(c) => self.release(c, &origin, batch)?,
                Command::Expire(c) => self.expire(*c, batch)?,
                Command::Return(c) => self.return_units(c, &origin, batch)?,
                Command::Adjust(c) => self.adjust(c, &origin, batch)?,
                Command::DefineSku(c) => self.define(c, &origin, batch)?,
                Command::SetGate(c) => self.set_gate(c, &origin, batch)?,
                Command::Withdraw(c) => self.withdraw(c, &origin, batch)?,
                Command::Deposit(c) => self.deposit(c, &origin, batch)?,
                Command::Query(_) => unreachable!("answered above"),
            },
        };
        // A repeated refusal is on record already, under the same key.
        if let Decision::Refused(refusal) = decision
            && !refusal.is_deferral()
            && !(is_known && refusal.takes_key())
        {
            let record = RefusalRecord {
                origin,
                kind,
                refusal,
            };
            self.apply_refusal(&record);
            batch.push_refusal(&record);
        }
        Ok(Answer::Decided(decision))
    }

    /// What is known of a key and still answers.
    #[inline]
    pub(super) fn known(&self, kind: CommandKind, origin: &Origin) -> Option<Known> {
        self.keys.find(&self.users, kind, origin).filter(|known| {
            let kept = known.decided_at.plus_ms(self.policy.key_retention_ms) > self.now;
            let scope = known.scope;
            let in_sale = scope.sale == 0 || self.stocks[scope.sku.0 as usize].counts(scope.sale);
            let max = u64::from(self.policy.refused_keys_max);
            let among_last = known
                .ordinal
                .is_none_or(|ordinal| ordinal + max > self.refusals);
            kept && in_sale && among_last
        })
    }

    /// Too old for its key to be known, or too late for its caller.
    #[inline]
    fn outdated(&self, command: &Command) -> Option<Decision> {
        let Command::Reserve(c) = command else {
            return None;
        };
        let kept_until = c.asked_at.plus_ms(self.policy.key_retention_ms);
        if kept_until <= self.now {
            return Some(Decision::Refused(Refusal::TooOld));
        }
        let is_late = c.decide_by < self.now;
        is_late.then_some(Decision::Refused(Refusal::TooLate))
    }

    #[inline]
    fn no_room_for_key(&self, origin: &Origin) -> Option<Decision> {
        origin.key?;
        let max = self.limits.accepted_keys_max as usize;
        let horizon = || self.horizon(self.policy.key_retention_ms);
        let full = self.keys.is_full(max, horizon);
        full.then_some(Decision::Refused(Refusal::Busy {
            bound: Bound::AcceptedKeys,
        }))
    }

    /// Accepted without a change: only a key has to be recorded.
    fn unchanged(
        &mut self,
        kind: CommandKind,
        origin: &Origin,
        decision: Decision,
        batch: &mut Batch,
    ) -> Decided {
        if origin.key.is_some() {
            let decision = decision.to_words();
            self.record(
                EventKind::Repeated {
                    origin: *origin,
                    kind,
                    decision,
                },
                batch,
            )?;
        }
        Ok(decision)
    }

    /// Finds a reservation. A hold is over when its deadline has passed, swept or not: a command that touches it
    /// expires it first (or moves the deadline, of one in payment while confirms are paused).
    fn settled(&mut self, id: ReservationId, batch: &mut Batch) -> Result<Option<u32>, Violation> {
        let place = self.find(id);
        if let Some(place) = place {
            let hold = self.holds.get(place);
            if hold.status.is_live() && self.has_passed(hold.time) {
                self.lapse(place, batch)?;
            }
        }
        Ok(place)
    }

    /// The same, of a user's own that has not ended.
    fn live_own(
        &mut self,
        user: UserId,
        id: ReservationId,
        batch: &mut Batch,
    ) -> Result<Result<u32, Refusal>, Violation> {
        let Some(place) = self.settled(id, batch)? else {
            return Ok(Err(Refusal::UnknownReservation));
        };
        if self.user_of(place) != user {
            return Ok(Err(Refusal::NotOwner));
        }
        let status = self.holds.get(place).status;
        Ok(if status.is_live() {
            Ok(place)
        } else {
            Err(Refusal::Ended { status })
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::allocator::Limits;
    use crate::types::{BatchHeader, DefineSku, Gate, Reserve, SetGate, SkuId, SkuName};

    /// More commands than one run holds, of some users twice: deciding them together or one by one is the same.
    #[test]
    fn deciding_all_is_deciding_one_by_one() {
        let name = SkuName::new("A").expect("a name");
        let mut commands: Vec<Command> = vec![
            DefineSku::new(UserId(1), name, 200).into(),
            SetGate::new(UserId(1), SkuId(0), Gate::Open).into(),
        ];
        commands.extend((0..1_000_u128).map(|n| {
            let user = UserId(n % 260);
            let key = IdempotencyKey::new(n % 300 + 1).expect("not zero");
            let reserve = Reserve::one(user, SkuId(0), 1).expect("one unit");
            reserve.key(key).into()
        }));
        let begin = || {
            let mut allocator = Allocator::new(Limits::default(), 7);
            let mut batch = Batch::default();
            batch.header = BatchHeader {
                first_sequence: 1,
                ..BatchHeader::default()
            };
            allocator.begin(&batch.header).expect("the first batch");
            (allocator, batch)
        };
        let (mut together, mut batch) = begin();
        let mut answers = Vec::new();
        let decided =
            together.decide_all(commands.iter(), &mut batch, |answer| answers.push(answer));
        decided.expect("no law breaks");
        let (mut single, mut other) = begin();
        let one_by_one = commands
            .iter()
            .map(|command| single.decide(command, &mut other));
        let one_by_one: Result<Vec<Answer>, Violation> = one_by_one.collect();
        assert_eq!(answers, one_by_one.expect("no law breaks"));
        assert_eq!(answers.len(), commands.len());
        assert_eq!(together.digest(), single.digest());
        assert_eq!(batch, other);
    }
}
