//! A refusal as the log keeps it: 64 bytes, without a sequence, since it changes no stock.

use super::record::{DecodeError, PackedRefusal, REFUSAL_SIZE, Reader, Writer};
use super::{
    CommandKind, Field, HoldStatus, Origin, Refusal, RefusalCode, ReservationId, SkuId, Timestamp,
};

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
        let mut packed = [0; REFUSAL_SIZE];
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

/// The refusal's part of its packed record: code, line, SKU and 12 bytes of detail, which are two numbers.
pub(super) struct RefusalWords {
    pub(super) code: u8,
    pub(super) line: u16,
    pub(super) sku: u32,
    pub(super) long: u64,
    pub(super) short: u32,
}

const NOT_BEFORE_NONE: u32 = u32::MAX;

impl Refusal {
    /// Times become whole milliseconds from `stamp`, so the allocator makes them so in the first place.
    pub(super) fn to_words(self, stamp: Timestamp) -> RefusalWords {
        let (line, sku, long, short) = match self {
            Self::KeyConflict { field } | Self::SkuDiffers { field } => {
                (0, 0, 0, field_number(field))
            }
            Self::TooOld | Self::UnknownReservation | Self::NotOwner | Self::NotConfirmed => {
                (0, 0, 0, 0)
            }
            Self::TooManyLines { max } => (0, 0, 0, u32::from(max)),
            Self::RequestLimit { line, sku, max } => (line, sku.0, 0, max),
            Self::UserLimit {
                line,
                sku,
                max,
                has,
            } => (line, sku.0, u64::from(has), max),
            Self::HoldLimit { max } => (0, 0, 0, max),
            Self::SoldOut {
                line,
                sku,
                available,
                lapsing,
                not_before,
            } => {
                let ms = not_before.map_or(NOT_BEFORE_NONE, |at| ms_until(stamp, at));
                (
                    line,
                    sku.0,
                    (u64::from(available) << 32) | u64::from(lapsing),
                    ms,
                )
            }
            Self::PaymentUsed { reservation } => (0, 0, reservation.get(), 0),
            Self::Ended { status } => (0, 0, 0, status as u32),
            Self::NotDue { expires_at } => (0, 0, expires_at.as_micros(), 0),
            Self::InPayment { attempt } => (0, 0, 0, attempt),
            Self::StaleAttempt { current } => (0, 0, 0, current),
            Self::ExceedsSold { line, sku, sold } => (line, sku.0, sold, 0),
            Self::TotalOutOfRange { min } => (0, 0, min, 0),
            Self::OtherShard { shard } => (0, 0, 0, u32::from(shard)),
            Self::TooLate
            | Self::Busy { .. }
            | Self::UnknownSku { .. }
            | Self::NotOpen { .. }
            | Self::Paused { .. }
            | Self::OutOfOrder { .. }
            | Self::NothingToMove { .. } => unreachable!("a deferral is not recorded"),
        };
        RefusalWords {
            code: self.code() as u8,
            line,
            sku,
            long,
            short,
        }
    }

    #[expect(clippy::cast_possible_truncation, reason = "halves of a word")]
    pub(super) fn from_words(words: &RefusalWords, stamp: Timestamp) -> Option<Self> {
        let &RefusalWords {
            code,
            line,
            sku,
            long,
            short,
        } = words;
        let sku = SkuId(sku);
        Some(match RefusalCode::from_u8(code)? {
            RefusalCode::KeyConflict => Self::KeyConflict {
                field: field_of(short)?,
            },
            RefusalCode::TooOld => Self::TooOld,
            RefusalCode::TooManyLines => Self::TooManyLines {
                max: u16::try_from(short).ok()?,
            },
            RefusalCode::RequestLimit => Self::RequestLimit {
                line,
                sku,
                max: short,
            },
            RefusalCode::UserLimit => Self::UserLimit {
                line,
                sku,
                max: short,
                has: u32::try_from(long).ok()?,
            },
            RefusalCode::HoldLimit => Self::HoldLimit { max: short },
            RefusalCode::SoldOut => Self::SoldOut {
                line,
                sku,
                available: (long >> 32) as u32,
                lapsing: long as u32,
                not_before: (short != NOT_BEFORE_NONE).then(|| stamp.plus_ms(short.into())),
            },
            RefusalCode::UnknownReservation => Self::UnknownReservation,
            RefusalCode::NotOwner => Self::NotOwner,
            RefusalCode::PaymentUsed => Self::PaymentUsed {
                reservation: ReservationId::from_u64(long),
            },
            RefusalCode::Ended => Self::Ended {
                status: HoldStatus::from_u8(u8::try_from(short).ok()?)?,
            },
            RefusalCode::NotConfirmed => Self::NotConfirmed,
            RefusalCode::NotDue => Self::NotDue {
                expires_at: Timestamp::from_micros(long),
            },
            RefusalCode::InPayment => Self::InPayment { attempt: short },
            RefusalCode::StaleAttempt => Self::StaleAttempt { current: short },
            RefusalCode::ExceedsSold => Self::ExceedsSold {
                line,
                sku,
                sold: long,
            },
            RefusalCode::TotalOutOfRange => Self::TotalOutOfRange { min: long },
            RefusalCode::SkuDiffers => Self::SkuDiffers {
                field: field_of(short)?,
            },
            RefusalCode::OtherShard => Self::OtherShard {
                shard: u16::try_from(short).ok()?,
            },
            RefusalCode::TooLate
            | RefusalCode::Busy
            | RefusalCode::UnknownSku
            | RefusalCode::NotOpen
            | RefusalCode::Paused
            | RefusalCode::OutOfOrder
            | RefusalCode::NothingToMove => return None,
        })
    }
}

/// Whole milliseconds from `stamp` to `at`, cut; at most what fits.
pub(crate) fn ms_until(stamp: Timestamp, at: Timestamp) -> u32 {
    u32::try_from(at.micros_since(stamp) / 1_000)
        .unwrap_or(NOT_BEFORE_NONE - 1)
        .min(NOT_BEFORE_NONE - 1)
}

fn field_number(field: Field) -> u32 {
    let mut numbered = Field::ALL.iter().zip(0..);
    numbered
        .find(|&(&known, _)| known == field)
        .map_or(u32::MAX, |(_, number)| number)
}

fn field_of(number: u32) -> Option<Field> {
    Field::ALL.get(number as usize).copied()
}
