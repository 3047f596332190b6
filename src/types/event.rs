//! What happened: the records of the log.
//!
//! An [`Event`] is 128 bytes. The log's sequence counts events, from 1, without gaps. A command that needs more
//! than one record (a cart of many lines, a SKU's definition) writes its continuations *first* and the record
//! that takes effect last, all in one batch; so an effect is always one event. A [`RefusalRecord`] is 64 bytes
//! and has no sequence: it changes no stock, but it is a decision and answers its key.

use super::decision::{DecisionWords, RefusalWords};
use super::record::{
    DecodeError, FORMAT_VERSION, PackedRefusal, RECORD_SIZE, Reader, Record, Writer,
};
use super::{
    CommandKind, Disposition, Gate, IdempotencyKey, Line, Origin, PaymentRef, Policy, Reason,
    Refusal, ReservationId, Rules, SkuId, SkuName, Timestamp, UserId,
};

/// Lines of a long cart that one continuation holds: (104 - 2) / 8.
pub const LINES_PER_EVENT: usize = 12;

/// A recorded fact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// Its position in the log: dense, from 1, never reused.
    pub sequence: u64,
    /// The stamp of its batch.
    pub at: Timestamp,
    /// The writer's share that it belongs to.
    pub shard: u16,
    /// The low 32 bits of its writer's epoch.
    pub epoch: u32,
    /// What happened.
    pub kind: EventKind,
}

/// What happened.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(
    missing_docs,
    reason = "fields are those of the command that the event records"
)]
pub enum EventKind {
    /// The name of the SKU that the next event defines.
    SkuNamed { sku: SkuId, name: SkuName },
    /// A SKU is known from here on.
    SkuDefined {
        origin: Origin,
        sku: SkuId,
        total: u64,
        rules: Rules,
    },
    /// A SKU's total changed; `total` is the new one.
    TotalAdjusted {
        origin: Origin,
        reason: Reason,
        sku: SkuId,
        delta: i64,
        total: u64,
    },
    /// A sale was opened, closed, paused, resumed or ended; `sale` is its number after that.
    GateSet {
        origin: Origin,
        reason: Reason,
        sku: SkuId,
        change: Gate,
        sale: u32,
    },
    /// Lines from the second on of the cart that the next `Reserved` makes.
    CartLines {
        len: u8,
        lines: [Line; LINES_PER_EVENT],
    },
    /// Units are held; the event's own sequence is the reservation's.
    Reserved {
        origin: Origin,
        first: Line,
        /// All lines, the first included.
        lines: u16,
        /// The first line's sale.
        sale: u32,
        hold_ms: u32,
        expires_at: Timestamp,
        /// The lapsed reservation that a late payment meant.
        replaces: Option<ReservationId>,
    },
    /// The gateway is about to be called.
    PaymentBegun {
        origin: Origin,
        reservation: ReservationId,
        payment_ref: PaymentRef,
        attempt: u32,
        expires_at: Timestamp,
    },
    /// The attempt captured nothing; on `Release` the reservation ends here.
    PaymentFailed {
        origin: Origin,
        reservation: ReservationId,
        attempt: u32,
        disposition: Disposition,
        expires_at: Timestamp,
    },
    /// Held units are sold; `asked` differs where a late payment bought them through a new reservation.
    Confirmed {
        origin: Origin,
        reservation: ReservationId,
        asked: ReservationId,
        attempt: u32,
        payment_ref: Option<PaymentRef>,
    },
    /// A captured payment bought nothing.
    RefundDue {
        origin: Origin,
        asked: ReservationId,
        attempt: u32,
        payment_ref: PaymentRef,
    },
    /// The user gave the hold back.
    Released {
        origin: Origin,
        reservation: ReservationId,
    },
    /// The hold's deadline passed.
    Expired { reservation: ReservationId },
    /// Sold units of one line came back; `units` is the command's sum on its last event, else 0.
    Returned {
        origin: Origin,
        reason: Reason,
        reservation: Option<ReservationId>,
        line: Line,
        units: u64,
    },
    /// A hold in payment lives on because confirms are paused.
    DeadlineMoved {
        reservation: ReservationId,
        expires_at: Timestamp,
    },
    /// Nothing could commit for so long; every live deadline moves by it.
    DeadlinesCredited { micros: u64 },
    /// A keyed command was accepted without a change: its key has this answer.
    Repeated {
        origin: Origin,
        kind: CommandKind,
        decision: (u8, u64, u64),
    },
    /// What is remembered, and for how long, from here on.
    PolicySet { policy: Policy },
}

impl EventKind {
    const fn number(&self) -> u8 {
        match self {
            Self::SkuNamed { .. } => 1,
            Self::SkuDefined { .. } => 2,
            Self::TotalAdjusted { .. } => 3,
            Self::GateSet { .. } => 4,
            Self::CartLines { .. } => 5,
            Self::Reserved { .. } => 6,
            Self::PaymentBegun { .. } => 7,
            Self::PaymentFailed { .. } => 8,
            Self::Confirmed { .. } => 9,
            Self::RefundDue { .. } => 10,
            Self::Released { .. } => 11,
            Self::Expired { .. } => 12,
            Self::Returned { .. } => 13,
            Self::DeadlineMoved { .. } => 14,
            Self::DeadlinesCredited { .. } => 15,
            Self::Repeated { .. } => 16,
            Self::PolicySet { .. } => 17,
        }
    }
}

impl Writer<'_> {
    #[inline]
    pub(super) fn origin(&mut self, origin: &Origin) -> &mut Self {
        let [a, b, c] = origin.fingerprints;
        self.u128(origin.user.0)
            .u128(origin.key.map_or(0, IdempotencyKey::get))
            .u32(a)
            .u32(b)
            .u32(c)
    }

    #[inline]
    pub(super) fn line(&mut self, line: Line) -> &mut Self {
        self.u32(line.sku.0).u32(line.quantity)
    }

    pub(super) fn name(&mut self, name: &SkuName) -> &mut Self {
        let bytes = name.as_str().as_bytes();
        self.u8(u8::try_from(bytes.len()).unwrap_or(u8::MAX))
            .bytes(bytes)
    }

    pub(super) fn policy(&mut self, policy: &Policy) -> &mut Self {
        self.u64(policy.key_retention_ms)
            .u64(policy.ended_retention_ms)
            .u32(policy.payment_grace_ms)
            .u32(policy.refused_keys_max)
    }

    pub(super) fn rules(&mut self, rules: &Rules) -> &mut Self {
        self.u32(rules.hold_ms)
            .u32(rules.per_user.unwrap_or(0))
            .u32(rules.per_request.unwrap_or(0))
            .u64(rules.opens_at.as_micros())
            .u64(rules.closes_at.as_micros())
    }
}

impl Reader<'_> {
    #[inline]
    pub(super) fn origin(&mut self) -> Origin {
        Origin {
            user: UserId(self.u128()),
            key: IdempotencyKey::new(self.u128()),
            fingerprints: [self.u32(), self.u32(), self.u32()],
        }
    }

    #[inline]
    pub(super) fn line(&mut self) -> Line {
        Line {
            sku: SkuId(self.u32()),
            quantity: self.u32(),
        }
    }

    pub(super) fn sku(&mut self) -> SkuId {
        SkuId(self.u32())
    }

    pub(super) fn at(&mut self) -> Timestamp {
        Timestamp::from_micros(self.u64())
    }

    pub(super) fn reservation(&mut self) -> ReservationId {
        ReservationId::from_u64(self.u64())
    }

    /// No reservation has the number 0: sequences begin at 1.
    pub(super) fn reservation_or_none(&mut self) -> Option<ReservationId> {
        Some(self.u64())
            .filter(|&number| number != 0)
            .map(ReservationId::from_u64)
    }

    pub(super) fn payment(&mut self) -> Result<PaymentRef, DecodeError> {
        PaymentRef::new(self.u128()).ok_or(DecodeError::Field {
            what: "a payment's reference",
        })
    }

    pub(super) fn name(&mut self) -> Result<SkuName, DecodeError> {
        const WHAT: DecodeError = DecodeError::Field {
            what: "a SKU's name",
        };
        let len = usize::from(self.u8());
        let bytes: [u8; 64] = self.bytes();
        let (name, rest) = bytes.split_at_checked(len).ok_or(WHAT)?;
        let text = std::str::from_utf8(name).map_err(|_| WHAT)?;
        let name = SkuName::new(text).map_err(|_| WHAT)?;
        // A name that would be trimmed was never written.
        if name.as_str().len() != len || rest.iter().any(|&byte| byte != 0) {
            return Err(WHAT);
        }
        Ok(name)
    }

    pub(super) fn rules(&mut self) -> Result<Rules, DecodeError> {
        let rules = Rules {
            hold_ms: self.u32(),
            per_user: Some(self.u32()).filter(|&limit| limit != 0),
            per_request: Some(self.u32()).filter(|&limit| limit != 0),
            opens_at: self.at(),
            closes_at: self.at(),
        };
        rules.check().map_err(|_| DecodeError::Field {
            what: "a SKU's rules",
        })?;
        Ok(rules)
    }

    pub(super) fn policy(&mut self) -> Result<Policy, DecodeError> {
        let policy = Policy {
            key_retention_ms: self.u64(),
            ended_retention_ms: self.u64(),
            payment_grace_ms: self.u32(),
            refused_keys_max: self.u32(),
        };
        policy
            .check()
            .map_err(|_| DecodeError::Field { what: "a policy" })?;
        Ok(policy)
    }

    pub(super) fn kind(&mut self) -> Result<CommandKind, DecodeError> {
        let kind = self.u8();
        CommandKind::from_u8(kind).ok_or(DecodeError::Kind {
            what: "command",
            kind,
        })
    }
}

impl Event {
    /// The record. See [`record`](super::record) for the layout's frame; the payload is the fields in order.
    #[inline]
    pub fn encode(&self) -> Record {
        let mut record = [0; RECORD_SIZE];
        self.encode_into(&mut record);
        record
    }

    /// Into zeros: a record that is made elsewhere and copied costs more than its encoding.
    #[inline]
    pub(super) fn encode_into(&self, record: &mut Record) {
        let mut w = Writer::new(record);
        w.u8(self.kind.number())
            .u8(FORMAT_VERSION)
            .u16(self.shard)
            .u32(self.epoch);
        w.u64(self.sequence).u64(self.at.as_micros());
        match &self.kind {
            EventKind::SkuNamed { sku, name } => w.u32(sku.0).name(name),
            EventKind::SkuDefined {
                origin,
                sku,
                total,
                rules,
            } => w.origin(origin).u32(sku.0).u64(*total).rules(rules),
            EventKind::TotalAdjusted {
                origin,
                reason,
                sku,
                delta,
                total,
            } => w
                .origin(origin)
                .bytes(&reason.to_bytes())
                .u32(sku.0)
                .i64(*delta)
                .u64(*total),
            EventKind::GateSet {
                origin,
                reason,
                sku,
                change,
                sale,
            } => w
                .origin(origin)
                .bytes(&reason.to_bytes())
                .u32(sku.0)
                .u8(*change as u8)
                .u32(*sale),
            EventKind::CartLines { len, lines } => {
                w.u8(*len);
                for &line in &lines[..usize::from(*len)] {
                    w.line(line);
                }
                &mut w
            }
            EventKind::Reserved {
                origin,
                first,
                lines,
                sale,
                hold_ms,
                expires_at,
                replaces,
            } => w
                .origin(origin)
                .line(*first)
                .u16(*lines)
                .u32(*sale)
                .u32(*hold_ms)
                .u64(expires_at.as_micros())
                .u64(replaces.map_or(0, ReservationId::get)),
            EventKind::PaymentBegun {
                origin,
                reservation,
                payment_ref,
                attempt,
                expires_at,
            } => w
                .origin(origin)
                .u64(reservation.get())
                .u128(payment_ref.get())
                .u32(*attempt)
                .u64(expires_at.as_micros()),
            EventKind::PaymentFailed {
                origin,
                reservation,
                attempt,
                disposition,
                expires_at,
            } => w
                .origin(origin)
                .u64(reservation.get())
                .u32(*attempt)
                .u8(*disposition as u8)
                .u64(expires_at.as_micros()),
            EventKind::Confirmed {
                origin,
                reservation,
                asked,
                attempt,
                payment_ref,
            } => w
                .origin(origin)
                .u64(reservation.get())
                .u64(asked.get())
                .u32(*attempt)
                .u128(payment_ref.map_or(0, PaymentRef::get)),
            EventKind::RefundDue {
                origin,
                asked,
                attempt,
                payment_ref,
            } => w
                .origin(origin)
                .u64(asked.get())
                .u32(*attempt)
                .u128(payment_ref.get()),
            EventKind::Released {
                origin,
                reservation,
            } => w.origin(origin).u64(reservation.get()),
            EventKind::Expired { reservation } => w.u64(reservation.get()),
            EventKind::Returned {
                origin,
                reason,
                reservation,
                line,
                units,
            } => w
                .origin(origin)
                .bytes(&reason.to_bytes())
                .u64(reservation.map_or(0, ReservationId::get))
                .line(*line)
                .u64(*units),
            EventKind::DeadlineMoved {
                reservation,
                expires_at,
            } => w.u64(reservation.get()).u64(expires_at.as_micros()),
            EventKind::DeadlinesCredited { micros } => w.u64(*micros),
            EventKind::Repeated {
                origin,
                kind,
                decision: (code, a, b),
            } => w.origin(origin).u8(*kind as u8).u8(*code).u64(*a).u64(*b),
            EventKind::PolicySet { policy } => w.policy(policy),
        };
    }

    /// # Errors
    /// Another version, an unknown kind, or a field that no writer of this version writes.
    pub fn decode(record: &Record) -> Result<Self, DecodeError> {
        let mut r = Reader::new(record);
        let (number, version, shard, epoch) = (r.u8(), r.u8(), r.u16(), r.u32());
        if version != FORMAT_VERSION {
            return Err(DecodeError::Version { version });
        }
        let (sequence, at) = (r.u64(), r.at());
        let kind = match number {
            1 => EventKind::SkuNamed {
                sku: r.sku(),
                name: r.name()?,
            },
            2 => EventKind::SkuDefined {
                origin: r.origin(),
                sku: r.sku(),
                total: r.u64(),
                rules: r.rules()?,
            },
            3 => EventKind::TotalAdjusted {
                origin: r.origin(),
                reason: Reason::from_bytes(r.bytes()),
                sku: r.sku(),
                delta: r.i64(),
                total: r.u64(),
            },
            4 => EventKind::GateSet {
                origin: r.origin(),
                reason: Reason::from_bytes(r.bytes()),
                sku: r.sku(),
                change: *Gate::ALL
                    .get(usize::from(r.u8()))
                    .ok_or(DecodeError::Field {
                        what: "a gate's change",
                    })?,
                sale: r.u32(),
            },
            5 => {
                let len = r.u8();
                let mut lines = [Line::default(); LINES_PER_EVENT];
                let used = lines.get_mut(..usize::from(len));
                for line in used.ok_or(DecodeError::Field {
                    what: "a cart's length",
                })? {
                    *line = r.line();
                }
                EventKind::CartLines { len, lines }
            }
            6 => EventKind::Reserved {
                origin: r.origin(),
                first: r.line(),
                lines: r.u16(),
                sale: r.u32(),
                hold_ms: r.u32(),
                expires_at: r.at(),
                replaces: r.reservation_or_none(),
            },
            7 => EventKind::PaymentBegun {
                origin: r.origin(),
                reservation: r.reservation(),
                payment_ref: r.payment()?,
                attempt: r.u32(),
                expires_at: r.at(),
            },
            8 => EventKind::PaymentFailed {
                origin: r.origin(),
                reservation: r.reservation(),
                attempt: r.u32(),
                disposition: match r.u8() {
                    0 => Disposition::Keep,
                    1 => Disposition::Release,
                    _ => {
                        return Err(DecodeError::Field {
                            what: "a failed payment's disposition",
                        });
                    }
                },
                expires_at: r.at(),
            },
            9 => EventKind::Confirmed {
                origin: r.origin(),
                reservation: r.reservation(),
                asked: r.reservation(),
                attempt: r.u32(),
                payment_ref: PaymentRef::new(r.u128()),
            },
            10 => EventKind::RefundDue {
                origin: r.origin(),
                asked: r.reservation(),
                attempt: r.u32(),
                payment_ref: r.payment()?,
            },
            11 => EventKind::Released {
                origin: r.origin(),
                reservation: r.reservation(),
            },
            12 => EventKind::Expired {
                reservation: r.reservation(),
            },
            13 => EventKind::Returned {
                origin: r.origin(),
                reason: Reason::from_bytes(r.bytes()),
                reservation: r.reservation_or_none(),
                line: r.line(),
                units: r.u64(),
            },
            14 => EventKind::DeadlineMoved {
                reservation: r.reservation(),
                expires_at: r.at(),
            },
            15 => EventKind::DeadlinesCredited { micros: r.u64() },
            16 => EventKind::Repeated {
                origin: r.origin(),
                kind: r.kind()?,
                decision: r.decision_words()?,
            },
            17 => EventKind::PolicySet {
                policy: r.policy()?,
            },
            kind => {
                return Err(DecodeError::Kind {
                    what: "event",
                    kind,
                });
            }
        };
        r.end("an event's padding")?;
        Ok(Self {
            sequence,
            at,
            shard,
            epoch,
            kind,
        })
    }
}

impl Reader<'_> {
    pub(super) fn decision_words(&mut self) -> Result<DecisionWords, DecodeError> {
        let words = (self.u8(), self.u64(), self.u64());
        super::Decision::from_words(words).ok_or(DecodeError::Field { what: "a decision" })?;
        Ok(words)
    }
}

/// A refusal, as it is recorded and answers its key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RefusalRecord {
    /// Who asked.
    pub origin: Origin,
    /// For what kind of command.
    pub kind: CommandKind,
    /// Why not.
    pub refusal: Refusal,
}

impl RefusalRecord {
    /// Packs it; times are kept as whole milliseconds from the batch's stamp. `events_before` counts the events of its
    /// batch that were recorded before it: replaying needs the order of what takes or frees a key.
    ///
    /// ```text
    /// 0 code  1 kind  2 line  4 user  20 key  36 fingerprints (12)  48 SKU  52 detail (8)  60 events before
    /// ```
    ///
    /// The second part of a reserve's detail has the place of its third fingerprint, which it doesn't use; other commands'
    /// refusals have one part only.
    #[inline]
    pub fn encode(&self, stamp: Timestamp, events_before: u32) -> PackedRefusal {
        let words = self.refusal.to_words(stamp);
        let mut origin = self.origin;
        let detail = if self.kind == CommandKind::Reserve {
            origin.fingerprints[2] = words.short;
            words.long
        } else {
            words.long | u64::from(words.short)
        };
        let mut packed = [0; super::record::REFUSAL_SIZE];
        Writer::new(&mut packed)
            .u8(words.code)
            .u8(self.kind as u8)
            .u16(words.line)
            .origin(&origin)
            .u32(words.sku)
            .u64(detail)
            .u32(events_before);
        packed
    }

    /// # Errors
    /// An unknown code or kind, or a detail that no writer writes.
    #[expect(clippy::cast_possible_truncation, reason = "compared below")]
    pub fn decode(packed: &PackedRefusal, stamp: Timestamp) -> Result<Self, DecodeError> {
        let mut r = Reader::new(packed);
        let code = r.u8();
        let kind = r.kind()?;
        let line = r.u16();
        let mut origin = r.origin();
        let (sku, long) = (r.u32(), r.u64());
        let short = if kind == CommandKind::Reserve {
            std::mem::take(&mut origin.fingerprints[2])
        } else {
            long as u32
        };
        let words = RefusalWords {
            code,
            line,
            sku,
            long,
            short,
        };
        let refusal = Refusal::from_words(&words, stamp);
        let refusal = refusal.ok_or(DecodeError::Kind {
            what: "refusal",
            kind: code,
        })?;
        let record = Self {
            origin,
            kind,
            refusal,
        };
        // Most codes leave some of the words empty.
        if record.encode(stamp, Self::events_before(packed)) == *packed {
            Ok(record)
        } else {
            Err(DecodeError::Field {
                what: "a refusal's detail",
            })
        }
    }

    /// How many events of its batch were recorded before it.
    pub fn events_before(packed: &PackedRefusal) -> u32 {
        packed
            .last_chunk()
            .map_or(0, |bytes| u32::from_le_bytes(*bytes))
    }
}
