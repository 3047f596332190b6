//! The allocator beside the model: every batch on both, and on allocators that were restored or replayed on the way.

use super::Model;
use super::script::Script;
use std::collections::BTreeSet;
use stockade::allocator::{Allocator, Limits};
use stockade::types::{
    Answer, Availability, Batch, BatchHash, BatchHeader, BeginPayment, Command, Decision, Event,
    Policy, QueryAnswer, Refusal, Reservation, SkuId, SourcePosition, StateRecord, Timestamp,
    Token, Transfer,
};

/// What the writer does in a batch besides the commands.
#[derive(Default)]
struct Extras {
    policy: Option<Policy>,
    credit_micros: Option<u64>,
}

pub(crate) struct Pair {
    limits: Limits,
    allocator: Allocator,
    twins: Vec<Allocator>,
    model: Model,
    log: Vec<Vec<u8>>,
    prev_hash: BatchHash,
    /// For statistics.
    pub(crate) events: Vec<Event>,
    pub(crate) refusals: Vec<Refusal>,
}

impl Pair {
    /// Runs a whole script.
    ///
    /// # Panics
    /// Where the allocator and the model differ, a law breaks, or recovery gives another state.
    pub(crate) fn run(bytes: &[u8]) -> Self {
        let mut script = Script::new(bytes);
        let limits = script.limits();
        let mut pair = Self {
            limits,
            allocator: Allocator::new(limits, 1),
            twins: Vec::new(),
            model: Model::new(limits),
            log: Vec::new(),
            prev_hash: BatchHash::default(),
            events: Vec::new(),
            refusals: Vec::new(),
        };
        let mut policy = script.policy();
        let extras = Extras {
            policy: Some(policy),
            credit_micros: None,
        };
        pair.batch(&mut script, 0, &extras);
        let mut credited = 0;
        while !script.is_over() {
            match script.below(64) {
                0..=2 => pair.fork_by_snapshot(),
                3 => pair.fork_by_replay(),
                _ => {}
            }
            let mut extras = Extras::default();
            match script.below(32) {
                0 => {
                    policy = script.policy();
                    extras.policy = Some(policy);
                }
                1..=2 => {
                    // Longer than a stall can have been, but credits never sum up to more than time has passed.
                    let micros = u64::from(script.byte()) * 100;
                    let micros = micros.min(script.now.as_micros() - credited);
                    credited += micros;
                    extras.credit_micros = Some(micros);
                }
                _ => {}
            }
            script.step(pair.allocator.next_deadline(), &policy);
            let len = script.below(12);
            pair.batch(&mut script, len, &extras);
        }
        pair.fork_by_replay();
        pair
    }

    fn header(&self, stamp: Timestamp) -> BatchHeader {
        let number = self.log.len() as u64 + 1;
        BatchHeader {
            number,
            shard: 0,
            stamp,
            token: Token {
                epoch: 1,
                writer: 1,
            },
            first_sequence: self.allocator.sequence() + 1,
            prev_hash: BatchHash::default(),
            sources: vec![SourcePosition {
                source: 7,
                position: number,
            }],
        }
    }

    fn batch(&mut self, script: &mut Script<'_>, len: u8, extras: &Extras) {
        let header = self.header(script.now);
        // Of few commands, so that holds are also left overdue.
        let load = len / 8;
        let mut batch = begun(&mut self.allocator, &header, extras, load);
        let mut others: Vec<Batch> = Vec::new();
        for twin in &mut self.twins {
            others.push(begun(twin, &header, extras, load));
        }
        self.model.begin(script.now);
        extras
            .policy
            .into_iter()
            .for_each(|p| self.model.set_policy(p));
        extras
            .credit_micros
            .into_iter()
            .for_each(|c| self.model.credit(c));
        self.model.sweep(load.into());
        for _ in 0..len {
            let command = script.command();
            let answer = self
                .allocator
                .decide(&command, &mut batch)
                .expect("no law breaks");
            for (twin, batch) in self.twins.iter_mut().zip(&mut others) {
                let same = twin
                    .decide(&command, batch)
                    .expect("no law breaks in a twin");
                assert_eq!(same, answer, "L7: a recovered state answers {command:?}");
            }
            let expected = self.model.decide(&command);
            assert!(
                answers_agree(&answer, &expected),
                "{command:?} at {:?}\n  allocator: {answer:?}\n      model: {expected:?}",
                script.now,
            );
            self.note(script, &command, &answer);
        }
        self.close(&mut batch, &mut others);
    }

    /// What later commands refer to, and what came up.
    fn note(&mut self, script: &mut Script<'_>, command: &Command, answer: &Answer) {
        match (answer, command) {
            (Answer::Decided(Decision::Reserved(Reservation { id, .. })), Command::Reserve(c)) => {
                script.reservations.push((*id, c.user, 0));
            }
            (
                Answer::Decided(Decision::PaymentBegun(begun)),
                &Command::BeginPayment(BeginPayment { reservation, .. }),
            ) => {
                let of = script
                    .reservations
                    .iter_mut()
                    .find(|(id, ..)| *id == reservation);
                if let Some(known) = of {
                    known.2 = begun.attempt;
                }
            }
            (Answer::Decided(Decision::Withdrawn { .. }), Command::Withdraw(c)) => {
                let Transfer {
                    sku, to, number, ..
                } = c.transfer();
                script.numbers[0].insert((sku, to), number);
            }
            (Answer::Decided(Decision::Deposited { .. }), Command::Deposit(c)) => {
                let Transfer {
                    sku, from, number, ..
                } = c.transfer();
                script.numbers[1].insert((sku, from), number);
            }
            (&Answer::Decided(Decision::Refused(refusal)), _) => self.refusals.push(refusal),
            _ => {}
        }
    }

    fn close(&mut self, batch: &mut Batch, others: &mut [Batch]) {
        let mut published = Vec::new();
        self.allocator
            .finish(&mut published)
            .expect("no law is broken");
        batch.seal(self.prev_hash);
        for (twin, other) in self.twins.iter_mut().zip(others) {
            twin.finish(&mut Vec::new())
                .expect("no law is broken in a twin");
            other.seal(self.prev_hash);
            assert_eq!(
                other.hash(),
                batch.hash(),
                "L7: a recovered state records the same"
            );
        }
        self.prev_hash = batch.hash();
        let mut bytes = Vec::new();
        batch.encode_into(&mut bytes);
        self.log.push(bytes);
        let events = batch.events().map(|event| event.expect("just encoded"));
        self.events.extend(events);

        assert_eq!(
            self.allocator.sequence(),
            self.model.sequence,
            "events recorded"
        );
        for availability in &published {
            let expected = self.model.availability(availability.sku);
            assert!(
                availabilities_agree(availability, &expected),
                "published {availability:?}, expected {expected:?}"
            );
        }
        for sku in (0..).map(SkuId).take(self.model.skus()) {
            let now = self.allocator.availability(sku).expect("a known SKU");
            let expected = Availability {
                not_before: None,
                ..self.model.availability(sku)
            };
            assert_eq!(now, expected, "SKU {sku}");
        }
        let report = self.allocator.audit();
        assert!(report.is_ok(), "{report:?}");
    }

    /// From here on an allocator that was restored from a snapshot goes along.
    fn fork_by_snapshot(&mut self) {
        let mut twin = Allocator::new(self.limits, 99);
        self.allocator.export(&mut |record| {
            let decoded = StateRecord::decode(&record.encode());
            assert_eq!(decoded.as_ref(), Ok(record), "a state record round trip");
            twin.restore(&decoded.expect("compared"))
                .expect("an exported state");
        });
        twin.finish(&mut Vec::new()).expect("a lawful state");
        self.join(twin);
    }

    /// From here on an allocator that was replayed from empty goes along.
    fn fork_by_replay(&mut self) {
        let mut twin = Allocator::new(self.limits, 7);
        for bytes in &self.log {
            let batch = Batch::decode(bytes).expect("just encoded");
            twin.apply_batch(&batch).expect("the log replays");
            twin.finish(&mut Vec::new()).expect("a lawful state");
        }
        self.join(twin);
    }

    fn join(&mut self, twin: Allocator) {
        if twin.digest() != self.allocator.digest() {
            let (of_twin, own) = (records(&twin), records(&self.allocator));
            let differing: Vec<_> = of_twin.symmetric_difference(&own).collect();
            panic!("L7: a recovered state differs in {differing:#?}");
        }
        assert_eq!(twin.audit(), self.allocator.audit(), "L7: audit");
        if self.twins.len() == 2 {
            self.twins.remove(0);
        }
        self.twins.push(twin);
    }
}

fn begun(allocator: &mut Allocator, header: &BatchHeader, extras: &Extras, load: u8) -> Batch {
    let mut batch = Batch::default();
    batch.header.clone_from(header);
    allocator.begin(header).expect("batches follow each other");
    let recorded = extras
        .policy
        .map(|policy| allocator.set_policy(policy, &mut batch));
    recorded.unwrap_or(Ok(())).expect("a valid policy");
    let credit = extras.credit_micros;
    let recorded = credit.map(|micros| allocator.credit(micros, &mut batch));
    recorded.unwrap_or(Ok(())).expect("a credit breaks no law");
    let swept = allocator.sweep(load.into(), &mut batch);
    swept.expect("expiry breaks no law");
    batch
}

fn records(allocator: &Allocator) -> BTreeSet<String> {
    let mut records = BTreeSet::new();
    allocator.export(&mut |record| {
        records.insert(format!("{record:?}"));
    });
    records
}

/// Equal, except that what is said of the next lapse may lie before the true time.
pub(crate) fn answers_agree(answer: &Answer, expected: &Answer) -> bool {
    match (answer, expected) {
        (Answer::Decided(answer), Answer::Decided(expected)) => decisions_agree(answer, expected),
        (Answer::Found(answer), Answer::Found(expected)) => match (&**answer, &**expected) {
            (QueryAnswer::Status(Some(answer)), QueryAnswer::Status(Some(expected))) => {
                decisions_agree(answer, expected)
            }
            (answer, expected) => answer == expected,
        },
        _ => false,
    }
}

fn decisions_agree(answer: &Decision, expected: &Decision) -> bool {
    let (mut answer, mut expected) = (*answer, *expected);
    if let Decision::Refused(Refusal::SoldOut { not_before, .. }) = &mut answer
        && let Decision::Refused(Refusal::SoldOut {
            not_before: earliest,
            ..
        }) = &mut expected
        && is_lower_bound(*not_before, *earliest)
    {
        (*not_before, *earliest) = (None, None);
    }
    answer == expected
}

fn availabilities_agree(answer: &Availability, expected: &Availability) -> bool {
    let without = |availability: &Availability| Availability {
        not_before: None,
        ..*availability
    };
    without(answer) == without(expected) && is_lower_bound(answer.not_before, expected.not_before)
}

fn is_lower_bound(said: Option<Timestamp>, earliest: Option<Timestamp>) -> bool {
    match (said, earliest) {
        (Some(said), Some(earliest)) => said <= earliest,
        (None, None) => true,
        _ => false,
    }
}
