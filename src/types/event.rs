//! What happened: the records of the log.
//!
//! An [`Event`] is 128 bytes. The log's sequence counts events, from 1, without gaps. A command that needs more
//! than one record (a cart of many lines, a SKU's definition) writes its continuations *first* and the record
//! that takes effect last, all in one batch; so an effect is always one event. A
//! [`RefusalRecord`](super::RefusalRecord) is 64 bytes and has no sequence: it changes no stock, but it is a decision
//! and answers its key.

use super::record::{DecodeError, FORMAT_VERSION, RECORD_SIZE, Reader, Record, Writer};
use super::{
    CommandKind, Disposition, Gate, Line, Origin, PaymentRef, Policy, Reason, ReservationId, Rules,
    SkuId, SkuName, Timestamp, Transfer,
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
    /// Units left for another shard; `total` is what is left here.
    Withdrawn {
        origin: Origin,
        transfer: Transfer,
        total: u64,
    },
    /// Units came from another shard; `total` is the new one.
    Deposited {
        origin: Origin,
        transfer: Transfer,
        total: u64,
    },
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
            Self::Withdrawn { .. } => 18,
            Self::Deposited { .. } => 19,
        }
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
    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
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
            EventKind::Withdrawn {
                origin,
                transfer,
                total,
            }
            | EventKind::Deposited {
                origin,
                transfer,
                total,
            } => w.origin(origin).transfer(transfer).u64(*total),
        };
    }

    /// # Errors
    /// Another version, an unknown kind, or a field that no writer of this version writes.
    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
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
            18 => EventKind::Withdrawn {
                origin: r.origin(),
                transfer: r.transfer()?,
                total: r.u64(),
            },
            19 => EventKind::Deposited {
                origin: r.origin(),
                transfer: r.transfer()?,
                total: r.u64(),
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
