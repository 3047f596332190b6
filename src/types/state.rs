//! A state as an ordered stream of fixed-size records: what a snapshot is made of and a replica restores from.
//!
//! The order is that of the variants, so that what a record refers to came before it; continuations (names, lines,
//! a payment under way) come right before or after the record they belong to. Nothing here depends on how the
//! allocator lays out its tables.

use super::record::{
    DecodeError, FORMAT_VERSION, PackedRefusal, RECORD_SIZE, Reader, Record, Writer,
};
use super::{
    Account, CommandKind, HoldStatus, Line, Origin, PaymentRef, Policy, RefusalRecord,
    ReservationId, Rules, SkuId, SkuName, SourcePosition, Timestamp, UserId,
};

/// Lines that one continuation of a state record holds: (112 - 8) / 16.
pub(crate) const STATE_LINES: usize = 6;

/// A line of a reservation with what became of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct HeldLine {
    /// SKU and quantity, as reserved.
    pub line: Line,
    /// The SKU's sale that it counts in.
    pub sale: u32,
    /// Units of it that came back after the confirm.
    pub returned: u32,
}

/// A piece of state.
#[derive(Debug, Clone, PartialEq, Eq)]
#[non_exhaustive]
#[expect(missing_docs, reason = "the fields' words are those of the events")]
pub enum StateRecord {
    /// The first record of a stream: the last event it counts, its stamp, the sum of all credits, the
    /// number of keyed refusals, and the policy.
    Meta {
        sequence: u64,
        stamp: Timestamp,
        credit_micros: u64,
        refusals: u64,
        policy: Policy,
    },
    /// How far a source has been taken in.
    Source(SourcePosition),
    /// The name of the next SKU.
    SkuName { sku: SkuId, name: SkuName },
    /// A SKU; `flags` are the gates: 1 open, 2 reservations paused, 4 confirms paused, 8 the sale has ended.
    Sku {
        sku: SkuId,
        defined_total: u64,
        total: u64,
        reserved: u64,
        sold: u64,
        rules: Rules,
        sale: u32,
        flags: u8,
    },
    /// Lines from the second on of the next reservation.
    Lines {
        len: u8,
        lines: [HeldLine; STATE_LINES],
    },
    /// A reservation that has not retired. `deadline` is without credits; `moved` if it isn't its creation plus the
    /// hold; `ended_at` is meaningful once ended.
    Reservation {
        id: ReservationId,
        user: UserId,
        status: HoldStatus,
        moved: bool,
        first: HeldLine,
        lines: u16,
        hold_ms: u32,
        deadline: Timestamp,
        ended_at: Timestamp,
    },
    /// The payments of the reservation before: `base` is its deadline without grace and credits.
    Payment {
        reservation: ReservationId,
        payment_ref: PaymentRef,
        attempt: u32,
        under_way: bool,
        began_at: Timestamp,
        spent_micros: u64,
        base: Timestamp,
    },
    /// Units a user holds or has bought in a sale.
    Counter {
        user: UserId,
        sku: SkuId,
        sale: u32,
        units: u32,
    },
    /// The answer of an accepted key; `sku` and `sale` are those whose end drops it (sale 0: none does).
    AcceptedKey {
        origin: Origin,
        kind: CommandKind,
        decided_at: Timestamp,
        decision: (u8, u64, u64),
        sku: SkuId,
        sale: u32,
    },
    /// The answer of a refused key.
    RefusedKey {
        decided_at: Timestamp,
        record: RefusalRecord,
        sku: SkuId,
        sale: u32,
        /// Its number among all keyed refusals.
        ordinal: u64,
    },
    /// What became of a captured payment.
    PaymentOutcome {
        payment_ref: PaymentRef,
        asked: ReservationId,
        /// What it bought; `None`: a refund is due.
        bought: Option<ReservationId>,
        decided_at: Timestamp,
    },
    /// What has moved between this shard and another.
    Account(Account),
}

impl StateRecord {
    /// The record: kind, version, six zero bytes, then the fields in order.
    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
    pub fn encode(&self) -> Record {
        let mut record = [0; RECORD_SIZE];
        let mut w = Writer::new(&mut record);
        w.u8(self.number()).u8(FORMAT_VERSION).u16(0).u32(0);
        match self {
            Self::Meta {
                sequence,
                stamp,
                credit_micros,
                refusals,
                policy,
            } => w
                .u64(*sequence)
                .u64(stamp.as_micros())
                .u64(*credit_micros)
                .u64(*refusals)
                .policy(policy),
            Self::Source(source) => w.u64(source.source).u64(source.position),
            Self::SkuName { sku, name } => w.u32(sku.0).name(name),
            Self::Sku {
                sku,
                defined_total,
                total,
                reserved,
                sold,
                rules,
                sale,
                flags,
            } => w
                .u32(sku.0)
                .u64(*defined_total)
                .u64(*total)
                .u64(*reserved)
                .u64(*sold)
                .rules(rules)
                .u32(*sale)
                .u8(*flags),
            Self::Lines { len, lines } => {
                w.u8(*len);
                for line in &lines[..usize::from(*len)] {
                    w.held_line(line);
                }
                &mut w
            }
            Self::Reservation {
                id,
                user,
                status,
                moved,
                first,
                lines,
                hold_ms,
                deadline,
                ended_at,
            } => w
                .u64(id.get())
                .u128(user.0)
                .u8(*status as u8)
                .u8(u8::from(*moved))
                .held_line(first)
                .u16(*lines)
                .u32(*hold_ms)
                .u64(deadline.as_micros())
                .u64(ended_at.as_micros()),
            Self::Payment {
                reservation,
                payment_ref,
                attempt,
                under_way,
                began_at,
                spent_micros,
                base,
            } => w
                .u64(reservation.get())
                .u128(payment_ref.get())
                .u32(*attempt)
                .u8(u8::from(*under_way))
                .u64(began_at.as_micros())
                .u64(*spent_micros)
                .u64(base.as_micros()),
            Self::Counter {
                user,
                sku,
                sale,
                units,
            } => w.u128(user.0).u32(sku.0).u32(*sale).u32(*units),
            Self::AcceptedKey {
                origin,
                kind,
                decided_at,
                decision: (code, a, b),
                sku,
                sale,
            } => w
                .origin(origin)
                .u8(*kind as u8)
                .u64(decided_at.as_micros())
                .u8(*code)
                .u64(*a)
                .u64(*b)
                .u32(sku.0)
                .u32(*sale),
            Self::RefusedKey {
                decided_at,
                record,
                sku,
                sale,
                ordinal,
            } => w
                .u64(decided_at.as_micros())
                .bytes(&record.encode(*decided_at, 0))
                .u32(sku.0)
                .u32(*sale)
                .u64(*ordinal),
            Self::PaymentOutcome {
                payment_ref,
                asked,
                bought,
                decided_at,
            } => w
                .u128(payment_ref.get())
                .u64(asked.get())
                .u64(bought.map_or(0, ReservationId::get))
                .u64(decided_at.as_micros()),
            Self::Account(account) => w
                .u32(account.sku.0)
                .u16(account.peer)
                .moved(&account.sent)
                .moved(&account.received),
        };
        record
    }

    /// # Errors
    /// Another version, an unknown kind, or a field that no writer of this version writes.
    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
    pub fn decode(record: &Record) -> Result<Self, DecodeError> {
        let mut r = Reader::new(record);
        let (number, version, zero, zeros) = (r.u8(), r.u8(), r.u16(), r.u32());
        if version != FORMAT_VERSION {
            return Err(DecodeError::Version { version });
        }
        if zero != 0 || zeros != 0 {
            return Err(DecodeError::Field {
                what: "a state record's head",
            });
        }
        let state = match number {
            1 => Self::Meta {
                sequence: r.u64(),
                stamp: r.at(),
                credit_micros: r.u64(),
                refusals: r.u64(),
                policy: r.policy()?,
            },
            2 => Self::Source(SourcePosition {
                source: r.u64(),
                position: r.u64(),
            }),
            3 => Self::SkuName {
                sku: r.sku(),
                name: r.name()?,
            },
            4 => Self::Sku {
                sku: r.sku(),
                defined_total: r.u64(),
                total: r.u64(),
                reserved: r.u64(),
                sold: r.u64(),
                rules: r.rules()?,
                sale: r.u32(),
                flags: r.u8(),
            },
            5 => {
                let len = r.u8();
                let mut lines = [HeldLine::default(); STATE_LINES];
                let used = lines.get_mut(..usize::from(len));
                for line in used.ok_or(DecodeError::Field {
                    what: "a reservation's length",
                })? {
                    *line = r.held_line();
                }
                Self::Lines { len, lines }
            }
            6 => Self::Reservation {
                id: r.reservation(),
                user: UserId(r.u128()),
                status: HoldStatus::from_u8(r.u8()).ok_or(DecodeError::Field {
                    what: "a reservation's status",
                })?,
                moved: r.flag()?,
                first: r.held_line(),
                lines: r.u16(),
                hold_ms: r.u32(),
                deadline: r.at(),
                ended_at: r.at(),
            },
            7 => Self::Payment {
                reservation: r.reservation(),
                payment_ref: r.payment()?,
                attempt: r.u32(),
                under_way: r.flag()?,
                began_at: r.at(),
                spent_micros: r.u64(),
                base: r.at(),
            },
            8 => Self::Counter {
                user: UserId(r.u128()),
                sku: r.sku(),
                sale: r.u32(),
                units: r.u32(),
            },
            9 => Self::AcceptedKey {
                origin: r.origin(),
                kind: r.kind()?,
                decided_at: r.at(),
                decision: r.decision_words()?,
                sku: r.sku(),
                sale: r.u32(),
            },
            10 => {
                let decided_at = r.at();
                let packed: PackedRefusal = r.bytes();
                let record = RefusalRecord::decode(&packed, decided_at)?;
                // Its place in a batch has been acted upon.
                if RefusalRecord::events_before(&packed) != 0 {
                    return Err(DecodeError::Field {
                        what: "a refused key's record",
                    });
                }
                Self::RefusedKey {
                    decided_at,
                    record,
                    sku: r.sku(),
                    sale: r.u32(),
                    ordinal: r.u64(),
                }
            }
            11 => Self::PaymentOutcome {
                payment_ref: r.payment()?,
                asked: r.reservation(),
                bought: r.reservation_or_none(),
                decided_at: r.at(),
            },
            12 => Self::Account(Account {
                sku: r.sku(),
                peer: r.u16(),
                sent: r.moved()?,
                received: r.moved()?,
            }),
            kind => {
                return Err(DecodeError::Kind {
                    what: "state record",
                    kind,
                });
            }
        };
        r.end("a state record's padding")?;
        Ok(state)
    }

    const fn number(&self) -> u8 {
        match self {
            Self::Meta { .. } => 1,
            Self::Source(_) => 2,
            Self::SkuName { .. } => 3,
            Self::Sku { .. } => 4,
            Self::Lines { .. } => 5,
            Self::Reservation { .. } => 6,
            Self::Payment { .. } => 7,
            Self::Counter { .. } => 8,
            Self::AcceptedKey { .. } => 9,
            Self::RefusedKey { .. } => 10,
            Self::PaymentOutcome { .. } => 11,
            Self::Account(_) => 12,
        }
    }
}

impl Writer<'_> {
    fn held_line(&mut self, line: &HeldLine) -> &mut Self {
        self.line(line.line).u32(line.sale).u32(line.returned)
    }
}

impl Reader<'_> {
    fn held_line(&mut self) -> HeldLine {
        HeldLine {
            line: self.line(),
            sale: self.u32(),
            returned: self.u32(),
        }
    }

    fn flag(&mut self) -> Result<bool, DecodeError> {
        match self.u8() {
            0 => Ok(false),
            1 => Ok(true),
            _ => Err(DecodeError::Field { what: "a flag" }),
        }
    }
}
