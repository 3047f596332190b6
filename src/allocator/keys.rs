//! Idempotency: which command a key was first used for, and what the answer was (law L5).
//!
//! Accepted and refused keys are two queues with bounds of their own. Both forget by logical time: a key is gone
//! when its retention has passed or its sale has ended, whether its entry was swept or not. Refusals are numbered,
//! and only the last `refused_keys_max` answer, so that a storm of refusals evicts only refusals.

use super::arena::Queue;
use super::index::{Hash, Index};
use crate::types::record::{PackedRefusal, REFUSAL_SIZE};
use crate::types::{
    CommandKind, Decision, DecisionWords, Field, Fingerprints, IdempotencyKey, Origin,
    RefusalRecord, SkuId, Timestamp, UserId, halves,
};

/// The sale whose end drops a key; sale 0 for none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct KeyScope {
    pub(super) sku: SkuId,
    pub(super) sale: u32,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct AcceptedKey {
    pub(super) origin: Origin,
    pub(super) decided_at: Timestamp,
    pub(super) decision: DecisionWords,
    pub(super) scope: KeyScope,
    pub(super) kind: CommandKind,
}

/// The same, without the padding: 80 bytes.
#[derive(Debug, Clone, Copy)]
struct PackedKey {
    user: [u64; 2],
    key: [u64; 2],
    decided_at: Timestamp,
    words: [u64; 2],
    fingerprints: Fingerprints,
    scope: KeyScope,
    code: u8,
    kind: CommandKind,
}

const _: () = assert!(
    size_of::<PackedKey>() <= 80,
    "a live reservation is bounded by 256 bytes"
);

impl PackedKey {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        user: [u64::MAX; 2],
        key: [0; 2],
        decided_at: Timestamp::MAX,
        words: [0; 2],
        fingerprints: [0; 3],
        scope: KeyScope {
            sku: SkuId(0),
            sale: 0,
        },
        code: 0,
        kind: CommandKind::Reserve,
    };

    fn pack(entry: &AcceptedKey) -> Self {
        let (code, a, b) = entry.decision;
        Self {
            user: halves(entry.origin.user.0),
            key: halves(entry.origin.key.map_or(0, IdempotencyKey::get)),
            decided_at: entry.decided_at,
            words: [a, b],
            fingerprints: entry.origin.fingerprints,
            scope: entry.scope,
            code,
            kind: entry.kind,
        }
    }

    fn unpack(&self) -> AcceptedKey {
        let [a, b] = self.words;
        AcceptedKey {
            origin: Origin {
                user: UserId(joined(self.user)),
                key: IdempotencyKey::new(joined(self.key)),
                fingerprints: self.fingerprints,
            },
            decided_at: self.decided_at,
            decision: (self.code, a, b),
            scope: self.scope,
            kind: self.kind,
        }
    }

    fn is_of(&self, kind: CommandKind, origin: &Origin) -> bool {
        self.kind == kind
            && joined(self.user) == origin.user.0
            && IdempotencyKey::new(joined(self.key)) == origin.key
    }
}

const fn joined([low, high]: [u64; 2]) -> u128 {
    low as u128 | (high as u128) << 64
}

#[derive(Debug, Clone, Copy)]
pub(super) struct RefusedKey {
    pub(super) decided_at: Timestamp,
    pub(super) packed: PackedRefusal,
    pub(super) scope: KeyScope,
    /// Its number among all keyed refusals, from 1.
    pub(super) ordinal: u64,
}

impl RefusedKey {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        decided_at: Timestamp::MAX,
        packed: [0; REFUSAL_SIZE],
        scope: KeyScope {
            sku: SkuId(0),
            sale: 0,
        },
        ordinal: 0,
    };

    /// What was packed by this program is unpacked by it; a log's refusals are decoded before they come here.
    pub(super) fn record(&self) -> Option<RefusalRecord> {
        RefusalRecord::decode(&self.packed, self.decided_at).ok()
    }
}

/// What is known of a key.
pub(super) struct Known {
    pub(super) fingerprints: Fingerprints,
    pub(super) decision: Decision,
    pub(super) decided_at: Timestamp,
    pub(super) scope: KeyScope,
    /// For a refusal, its number.
    pub(super) ordinal: Option<u64>,
}

pub(super) struct Keys {
    hash: Hash,
    accepted: Queue<PackedKey>,
    accepted_index: Index,
    refused: Queue<RefusedKey>,
    refused_index: Index,
}

impl Keys {
    pub(super) fn new(hash: Hash, capacity: usize) -> Self {
        Self {
            hash,
            accepted: Queue::with_capacity(capacity, PackedKey::FILLER),
            accepted_index: Index::with_capacity(capacity),
            refused: Queue::with_capacity(0, RefusedKey::FILLER),
            refused_index: Index::with_capacity(0),
        }
    }

    fn hash_of(&self, kind: CommandKind, origin: &Origin) -> Option<u64> {
        origin
            .key
            .map(|key| self.hash_of_key(kind, origin.user, key))
    }

    #[inline]
    fn hash_of_key(&self, kind: CommandKind, user: UserId, key: IdempotencyKey) -> u64 {
        self.hash.of_two(user.0, key.get(), kind as u64)
    }

    #[inline]
    pub(super) fn touch(
        &self,
        kind: CommandKind,
        user: UserId,
        key: Option<IdempotencyKey>,
    ) -> u64 {
        key.map_or(0, |key| {
            let hash = self.hash_of_key(kind, user, key);
            self.accepted_index.touch(hash) ^ self.refused_index.touch(hash)
        })
    }

    /// Whether more than `max` accepted keys were decided after `horizon`, or as many.
    pub(super) fn is_full(&self, max: usize, horizon: Option<Timestamp>) -> bool {
        let has_passed = |entry: &PackedKey| Some(entry.decided_at) <= horizon;
        self.accepted.len() >= max && self.accepted.count_from(has_passed) >= max
    }

    /// The key's first decision, whether or not time has ended it: the caller judges.
    pub(super) fn find(&self, kind: CommandKind, origin: &Origin) -> Option<Known> {
        let hash = self.hash_of(kind, origin)?;
        let is_same = |other: &Origin, other_kind| {
            other.user == origin.user && other.key == origin.key && other_kind == kind
        };
        let accepted = self.accepted_index.find(hash, |position| {
            self.accepted.get(position).is_of(kind, origin)
        });
        if let Some(position) = accepted {
            let entry = self.accepted.get(position).unpack();
            return Some(Known {
                fingerprints: entry.origin.fingerprints,
                decision: Decision::from_words(entry.decision)?,
                decided_at: entry.decided_at,
                scope: entry.scope,
                ordinal: None,
            });
        }
        let refused = self.refused_index.find(hash, |position| {
            let record = self.refused.get(position).record();
            record.is_some_and(|record| is_same(&record.origin, record.kind))
        })?;
        let entry = self.refused.get(refused);
        let record = entry.record()?;
        Some(Known {
            fingerprints: record.origin.fingerprints,
            decision: Decision::Refused(record.refusal),
            decided_at: entry.decided_at,
            scope: entry.scope,
            ordinal: Some(entry.ordinal),
        })
    }

    /// Remembers an answer. An older one of the same key, which time has ended, is dropped.
    pub(super) fn accept(&mut self, entry: AcceptedKey) {
        let Some(hash) = self.hash_of(entry.kind, &entry.origin) else {
            return;
        };
        self.forget(hash, entry.kind, &entry.origin);
        let position = self.accepted.push(PackedKey::pack(&entry));
        self.accepted_index.insert(hash, position);
    }

    /// Remembers a refusal, and drops those that are no longer among the last `max`.
    pub(super) fn refuse(&mut self, record: &RefusalRecord, entry: RefusedKey, max: u64) {
        let Some(hash) = self.hash_of(record.kind, &record.origin) else {
            return;
        };
        self.forget(hash, record.kind, &record.origin);
        let position = self.refused.push(entry);
        self.refused_index.insert(hash, position);
        self.keep_last(max, entry.ordinal);
    }

    /// Drops refusals that are not among the last `max` up to this one.
    pub(super) fn keep_last(&mut self, max: u64, ordinal: u64) {
        while self
            .refused
            .front()
            .is_some_and(|(_, first)| first.ordinal + max <= ordinal)
        {
            self.pop_refused();
        }
    }

    /// Takes a key's entries out of the indexes; in the queues they stay until their turn.
    fn forget(&mut self, hash: u64, kind: CommandKind, origin: &Origin) {
        let accepted = self.accepted_index.find(hash, |position| {
            self.accepted.get(position).is_of(kind, origin)
        });
        if let Some(position) = accepted {
            self.accepted_index.remove(hash, position);
        }
        let refused = self.refused_index.find(hash, |position| {
            self.refused.get(position).record().is_some_and(|record| {
                record.origin.key == origin.key
                    && record.origin.user == origin.user
                    && record.kind == kind
            })
        });
        if let Some(position) = refused {
            self.refused_index.remove(hash, position);
        }
    }

    fn pop_refused(&mut self) {
        let Some((position, entry)) = self.refused.pop() else {
            return;
        };
        let record = entry.record();
        if let Some(hash) = record.and_then(|record| self.hash_of(record.kind, &record.origin)) {
            self.refused_index.remove(hash, position);
        }
    }

    /// Frees up to `max` entries of each queue that were decided at or before `horizon`.
    pub(super) fn sweep(&mut self, horizon: Timestamp, max: usize) {
        for _ in 0..max {
            match self.accepted.front() {
                Some((_, entry)) if entry.decided_at <= horizon => {}
                _ => break,
            }
            let Some((position, entry)) = self.accepted.pop() else {
                break;
            };
            let entry = entry.unpack();
            if let Some(hash) = self.hash_of(entry.kind, &entry.origin) {
                self.accepted_index.remove(hash, position);
            }
        }
        for _ in 0..max {
            match self.refused.front() {
                Some((_, entry)) if entry.decided_at <= horizon => self.pop_refused(),
                _ => break,
            }
        }
    }

    /// In the order of deciding; with entries that time has ended, and those that a later use of the key replaced.
    pub(super) fn accepted(&self) -> impl Iterator<Item = AcceptedKey> {
        self.accepted.iter().map(PackedKey::unpack)
    }

    /// In the order of deciding; with entries that time has ended.
    pub(super) fn refused(&self) -> impl Iterator<Item = &RefusedKey> {
        self.refused.iter()
    }
}

/// The first field whose fingerprint differs.
pub(super) fn difference(
    kind: CommandKind,
    first: &Fingerprints,
    now: &Fingerprints,
) -> Option<Field> {
    let differs = first
        .iter()
        .zip(now)
        .position(|(first, now)| first != now)?;
    kind.fields()
        .get(differs)
        .copied()
        .or(kind.fields().last().copied())
}
