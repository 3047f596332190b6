//! Idempotency: which command a key was first used for, and what the answer was (law L5).
//!
//! Accepted and refused keys are two queues with bounds of their own. Both forget by logical time: a key is gone
//! when its retention has passed or its sale has ended, whether its entry was swept or not. Refusals are numbered,
//! and only the last `refused_keys_max` answer, so that a storm of refusals evicts only refusals.
//!
//! An accepted key is found through its user: one of his lies with him, the others are in an index. I1: a key has at
//! most one entry that is found, among the accepted or among the refused ones; older ones stay in their queue until
//! their turn. I2: a user counts his entries in the queue of accepted keys, found or not.

use super::arena::{NONE, Queue};
use super::index::{Hash, Index};
use super::users::{User, Users};
use crate::types::record::{PackedRefusal, REFUSAL_SIZE};
use crate::types::{
    CommandKind, Decision, DecisionWords, Field, Fingerprints, IdempotencyKey, Origin,
    RefusalRecord, SkuId, Timestamp, UserId, halves, joined,
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

/// The same, packed: 72 bytes.
#[derive(Debug, Clone, Copy)]
struct PackedKey {
    key: [u64; 2],
    decided_at: Timestamp,
    words: [u64; 2],
    fingerprints: Fingerprints,
    scope: KeyScope,
    /// His place.
    user: u32,
    code: u8,
    kind: CommandKind,
}

const _: () = assert!(
    size_of::<PackedKey>() <= 72,
    "a live reservation is bounded by 256 bytes"
);

impl PackedKey {
    /// Fills memory that isn't used yet.
    const FILLER: Self = Self {
        key: [u64::MAX; 2],
        decided_at: Timestamp::MAX,
        words: [0; 2],
        fingerprints: [0; 3],
        scope: KeyScope {
            sku: SkuId(0),
            sale: 0,
        },
        user: NONE,
        code: 0,
        kind: CommandKind::Reserve,
    };

    fn pack(entry: &AcceptedKey, key: IdempotencyKey, user: u32) -> Self {
        let (code, a, b) = entry.decision;
        Self {
            key: halves(key.get()),
            decided_at: entry.decided_at,
            words: [a, b],
            fingerprints: entry.origin.fingerprints,
            scope: entry.scope,
            user,
            code,
            kind: entry.kind,
        }
    }

    fn unpack(&self, user: UserId) -> AcceptedKey {
        AcceptedKey {
            origin: Origin {
                user,
                key: IdempotencyKey::new(joined(self.key)),
                fingerprints: self.fingerprints,
            },
            decided_at: self.decided_at,
            decision: self.decision(),
            scope: self.scope,
            kind: self.kind,
        }
    }

    fn decision(&self) -> DecisionWords {
        let [a, b] = self.words;
        (self.code, a, b)
    }

    fn is_of(&self, user: u32, kind: CommandKind, key: IdempotencyKey) -> bool {
        self.key == halves(key.get()) && self.user == user && self.kind == kind
    }
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
    /// Those that don't lie with their users.
    further: Index,
    refused: Queue<RefusedKey>,
    refused_index: Index,
}

/// Where an accepted key is found.
enum Found {
    WithUser(u32),
    Further(u32),
}

impl Keys {
    pub(super) fn new(hash: Hash, capacity: usize) -> Self {
        Self {
            hash,
            accepted: Queue::with_capacity(capacity, PackedKey::FILLER),
            further: Index::with_capacity(0),
            refused: Queue::with_capacity(0, RefusedKey::FILLER),
            refused_index: Index::with_capacity(0),
        }
    }

    /// From the hash of its user.
    #[inline]
    fn hash_of(&self, kind: CommandKind, user: u64, key: IdempotencyKey) -> u64 {
        self.hash.of(key.get(), user ^ kind as u64)
    }

    /// Reads what looking for a key will need, so that the misses of a batch overlap.
    #[inline]
    pub(super) fn touch(&self, kind: CommandKind, user: u64, key: IdempotencyKey) -> u64 {
        if self.refused.len() == 0 && kind == CommandKind::Reserve {
            return 0;
        }
        let hash = self.hash_of(kind, user, key);
        self.refused_index.touch(hash) ^ self.further.touch(hash)
    }

    /// Reads the place that the n-th next accepted key will take.
    #[inline]
    pub(super) fn touch_next(&self, ahead: usize) -> u64 {
        let next = self.accepted.upcoming(ahead);
        next.map_or(0, |entry| entry.decided_at.as_micros())
    }

    /// Whether more than `max` accepted keys were decided after `horizon`, or as many.
    pub(super) fn is_full(&self, max: usize, horizon: impl FnOnce() -> Option<Timestamp>) -> bool {
        self.accepted.len() >= max && {
            let horizon = horizon();
            let has_passed = |entry: &PackedKey| Some(entry.decided_at) <= horizon;
            self.accepted.count_from(has_passed) >= max
        }
    }

    /// The key's first decision, whether or not time has ended it: the caller judges.
    #[inline]
    pub(super) fn find(&self, users: &Users, kind: CommandKind, origin: &Origin) -> Option<Known> {
        let key = origin.key?;
        let user = users.find(origin.user);
        if user.is_none() && self.refused.len() == 0 {
            return None;
        }
        self.find_of(users, user, kind, origin, key)
    }

    fn find_of(
        &self,
        users: &Users,
        user: Option<u32>,
        kind: CommandKind,
        origin: &Origin,
        key: IdempotencyKey,
    ) -> Option<Known> {
        let accepted = user.and_then(|user| self.find_accepted(users, user, kind, key));
        if let Some(Found::WithUser(position) | Found::Further(position)) = accepted {
            let entry = self.accepted.get(position);
            return Some(Known {
                fingerprints: entry.fingerprints,
                decision: Decision::from_words(entry.decision())?,
                decided_at: entry.decided_at,
                scope: entry.scope,
                ordinal: None,
            });
        }
        let (_, position) = self.find_refused(users, kind, origin.user, key)?;
        let entry = self.refused.get(position);
        let record = entry.record()?;
        Some(Known {
            fingerprints: record.origin.fingerprints,
            decision: Decision::Refused(record.refusal),
            decided_at: entry.decided_at,
            scope: entry.scope,
            ordinal: Some(entry.ordinal),
        })
    }

    fn find_accepted(
        &self,
        users: &Users,
        user: u32,
        kind: CommandKind,
        key: IdempotencyKey,
    ) -> Option<Found> {
        let entry = users.get(user);
        let is_it = |position| self.accepted.get(position).is_of(user, kind, key);
        if entry.key != NONE && is_it(entry.key) {
            return Some(Found::WithUser(entry.key));
        }
        if !has_further(entry) {
            return None;
        }
        let hash = self.hash_of(kind, users.hash_of(entry.id()), key);
        self.further.find(hash, is_it).map(Found::Further)
    }

    /// A refused key's hash and position.
    fn find_refused(
        &self,
        users: &Users,
        kind: CommandKind,
        user: UserId,
        key: IdempotencyKey,
    ) -> Option<(u64, u32)> {
        if self.refused.len() == 0 {
            return None;
        }
        let hash = self.hash_of(kind, users.hash_of(user), key);
        let position = self.refused_index.find(hash, |position| {
            self.refused.get(position).record().is_some_and(|record| {
                record.origin.key == Some(key) && record.origin.user == user && record.kind == kind
            })
        });
        position.map(|position| (hash, position))
    }

    /// Remembers an answer to the user at a place. An older one of the same key, which time has ended, is found no more.
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: what is returned through memory is read before it has arrived"
    )]
    pub(super) fn accept(
        &mut self,
        users: &mut Users,
        user: u32,
        key: IdempotencyKey,
        entry: &AcceptedKey,
    ) {
        if users.get(user).keys > 0 {
            self.forget_accepted(users, user, entry.kind, key);
        }
        if self.refused.len() > 0 {
            self.forget_refused(users, entry.kind, entry.origin.user, key);
        }
        let position = self.accepted.push(PackedKey::pack(entry, key, user));
        let owner = users.get_mut(user);
        owner.keys += 1;
        if owner.key == NONE {
            owner.key = position;
        }
        // A position that reads as none can't lie with the user.
        if owner.key != position || position == NONE {
            let hash = self.hash_of(entry.kind, users.hash_of(entry.origin.user), key);
            self.further.insert(hash, position);
        }
    }

    /// Remembers a refusal, and drops those that are no longer among the last `max`.
    pub(super) fn refuse(
        &mut self,
        users: &mut Users,
        record: &RefusalRecord,
        entry: RefusedKey,
        max: u64,
    ) {
        let Origin { user, key, .. } = record.origin;
        let Some(key) = key else {
            return;
        };
        if let Some(user) = users.find(user) {
            self.forget_accepted(users, user, record.kind, key);
        }
        self.forget_refused(users, record.kind, user, key);
        let position = self.refused.push(entry);
        let hash = self.hash_of(record.kind, users.hash_of(user), key);
        self.refused_index.insert(hash, position);
        self.keep_last(users, max, entry.ordinal);
    }

    /// Drops refusals that are not among the last `max` up to this one.
    pub(super) fn keep_last(&mut self, users: &Users, max: u64, ordinal: u64) {
        while self
            .refused
            .front()
            .is_some_and(|(_, first)| first.ordinal + max <= ordinal)
        {
            self.pop_refused(users);
        }
    }

    /// From here on the entry is not found; in the queue it stays until its turn.
    fn forget_accepted(
        &mut self,
        users: &mut Users,
        user: u32,
        kind: CommandKind,
        key: IdempotencyKey,
    ) {
        match self.find_accepted(users, user, kind, key) {
            Some(Found::WithUser(_)) => users.get_mut(user).key = NONE,
            Some(Found::Further(position)) => {
                let hash = self.hash_of(kind, users.hash_of(users.get(user).id()), key);
                self.further.remove(hash, position);
            }
            None => {}
        }
    }

    fn forget_refused(
        &mut self,
        users: &Users,
        kind: CommandKind,
        user: UserId,
        key: IdempotencyKey,
    ) {
        if let Some((hash, position)) = self.find_refused(users, kind, user, key) {
            self.refused_index.remove(hash, position);
        }
    }

    fn pop_accepted(&mut self, users: &mut Users) {
        let Some((position, entry)) = self.accepted.pop() else {
            return;
        };
        let owner = users.get_mut(entry.user);
        owner.keys -= 1;
        if owner.key == position && position != NONE {
            owner.key = NONE;
        } else if let Some(key) = IdempotencyKey::new(joined(entry.key)) {
            let user = owner.id();
            let hash = self.hash_of(entry.kind, users.hash_of(user), key);
            self.further.remove(hash, position);
        }
        users.drop_if_idle(entry.user);
    }

    fn pop_refused(&mut self, users: &Users) {
        let Some((position, entry)) = self.refused.pop() else {
            return;
        };
        let Some(RefusalRecord { origin, kind, .. }) = entry.record() else {
            return;
        };
        if let Some(key) = origin.key {
            let hash = self.hash_of(kind, users.hash_of(origin.user), key);
            self.refused_index.remove(hash, position);
        }
    }

    /// Frees up to `max` entries of each queue that were decided at or before `horizon`.
    pub(super) fn sweep(&mut self, users: &mut Users, horizon: Timestamp, max: usize) {
        for _ in 0..max {
            match self.accepted.front() {
                Some((_, entry)) if entry.decided_at <= horizon => self.pop_accepted(users),
                _ => break,
            }
        }
        for _ in 0..max {
            match self.refused.front() {
                Some((_, entry)) if entry.decided_at <= horizon => self.pop_refused(users),
                _ => break,
            }
        }
    }

    /// In the order of deciding; with entries that time has ended, and those that a later use of the key replaced.
    pub(super) fn accepted(&self, users: &Users) -> impl Iterator<Item = AcceptedKey> {
        let user_of = |entry: &PackedKey| users.get(entry.user).id();
        self.accepted
            .iter()
            .map(move |entry| entry.unpack(user_of(entry)))
    }

    /// In the order of deciding; with entries that time has ended.
    pub(super) fn refused(&self) -> impl Iterator<Item = &RefusedKey> {
        self.refused.iter()
    }
}

/// Whether the index may have a key of his.
fn has_further(user: &User) -> bool {
    user.keys > u32::from(user.key != NONE)
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
