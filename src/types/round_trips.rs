//! Tests: every record decodes to itself, and has one encoding. A changed byte is refused, or it is another record that
//! encodes to exactly those bytes; so a log can't be altered without the altered bytes being what is hashed.

use super::decision::DecisionWords;
use super::record::Record;
use super::*;
use proptest::prelude::*;

/// Values from a seed, small and large ones alike (`SplitMix64`; Steele, Lea, Flood 2014).
struct Values(u64);

impl Values {
    fn long(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Between 0 and `max`, often at an edge.
    fn upto(&mut self, max: u64) -> u64 {
        match self.long() % 8 {
            0 => 0,
            1 => max,
            2 => 1.min(max),
            _ => self.long() % max.saturating_add(1).max(1),
        }
    }

    fn int(&mut self) -> u32 {
        u32::try_from(self.upto(u32::MAX.into())).expect("bounded")
    }

    fn short(&mut self) -> u16 {
        u16::try_from(self.upto(u16::MAX.into())).expect("bounded")
    }

    fn wide(&mut self) -> u128 {
        (u128::from(self.upto(u64::MAX)) << 64) | u128::from(self.upto(u64::MAX))
    }

    fn flag(&mut self) -> bool {
        self.long().is_multiple_of(2)
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        let at = self.long() % from.len() as u64;
        from[usize::try_from(at).expect("short")]
    }

    fn at(&mut self) -> Timestamp {
        Timestamp::from_micros(self.upto(u64::MAX))
    }

    fn origin(&mut self) -> Origin {
        Origin {
            user: UserId(self.wide()),
            key: IdempotencyKey::new(self.wide()),
            fingerprints: [self.int(), self.int(), self.int()],
        }
    }

    fn line(&mut self) -> Line {
        Line {
            sku: SkuId(self.int()),
            quantity: self.int(),
        }
    }

    fn held_line(&mut self) -> HeldLine {
        HeldLine {
            line: self.line(),
            sale: self.int(),
            returned: self.int(),
        }
    }

    fn reservation(&mut self) -> ReservationId {
        ReservationId::from_u64(self.long())
    }

    fn some_reservation(&mut self) -> Option<ReservationId> {
        self.flag()
            .then(|| ReservationId::from_u64(self.long().max(1)))
    }

    fn payment(&mut self) -> PaymentRef {
        PaymentRef::new(self.wide().max(1)).expect("not zero")
    }

    fn reason(&mut self) -> Reason {
        Reason::new(self.pick(&["", "recount", "sixteen bytes ..", "\u{e9}t\u{e9}"]))
    }

    fn name(&mut self) -> SkuName {
        let long = "x".repeat(64);
        let name = self.pick(&["A", "SNEAKER-42", "\u{e9}t\u{e9} 42", &long]);
        SkuName::new(name).expect("a plain name")
    }

    fn rules(&mut self) -> Rules {
        let opens_at = self.upto(u64::MAX - 1);
        Rules {
            hold_ms: u32::try_from(self.upto(HOLD_MAX_MS.into()).max(1)).expect("bounded"),
            per_user: Some(self.int()).filter(|&max| max > 0),
            per_request: Some(self.int()).filter(|&max| max > 0),
            opens_at: Timestamp::from_micros(opens_at),
            closes_at: Timestamp::from_micros(opens_at + 1 + self.upto(u64::MAX - opens_at - 1)),
        }
    }

    fn policy(&mut self) -> Policy {
        Policy {
            key_retention_ms: self.upto(366 * 86_400_000).max(1),
            ended_retention_ms: self.upto(366 * 86_400_000).max(1),
            payment_grace_ms: u32::try_from(self.upto(86_400_000).max(1)).expect("bounded"),
            refused_keys_max: self.int().max(1),
        }
    }

    fn kind(&mut self) -> CommandKind {
        self.pick(&CommandKind::ALL)
    }

    fn decision(&mut self) -> DecisionWords {
        let (a, b) = (self.upto(u64::MAX), self.upto(u64::MAX));
        let small = u64::from(self.int());
        match self.long() % 14 + 1 {
            code @ (2 | 11 | 12) => (u8::try_from(code).expect("small"), small, b),
            6 => (6, a.max(1), b),
            code => (u8::try_from(code).expect("small"), a, b),
        }
    }

    fn transfer(&mut self) -> Transfer {
        let from = self.short();
        Transfer {
            sku: SkuId(self.int()),
            from,
            to: from.wrapping_add(self.short().max(1)),
            number: self.upto(u64::MAX).max(1),
            units: self.upto(TOTAL_MAX).max(1),
        }
    }

    fn moved(&mut self) -> Moved {
        let last = self.upto(u64::from(u32::MAX));
        if last == 0 {
            return Moved::default();
        }
        let last_units = self.upto(TOTAL_MAX).max(1);
        Moved {
            last,
            last_units,
            units: last_units + last - 1 + self.upto(TOTAL_MAX),
        }
    }

    #[expect(clippy::too_many_lines, reason = "one arm per kind, in one place")]
    fn event_kind(&mut self, number: u8) -> EventKind {
        let origin = self.origin();
        let (reason, sku, reservation) = (self.reason(), SkuId(self.int()), self.reservation());
        let (attempt, expires_at) = (self.int(), self.at());
        match number {
            1 => EventKind::SkuNamed {
                sku,
                name: self.name(),
            },
            2 => EventKind::SkuDefined {
                origin,
                sku,
                total: self.upto(u64::MAX),
                rules: self.rules(),
            },
            3 => EventKind::TotalAdjusted {
                origin,
                reason,
                sku,
                delta: self.long().cast_signed(),
                total: self.upto(u64::MAX),
            },
            4 => EventKind::GateSet {
                origin,
                reason,
                sku,
                change: self.pick(Gate::ALL),
                sale: self.int(),
            },
            5 => {
                let len = usize::try_from(self.long() % 13).expect("small");
                let mut lines = [Line::default(); LINES_PER_EVENT];
                lines[..len].iter_mut().for_each(|line| *line = self.line());
                EventKind::CartLines {
                    len: u8::try_from(len).expect("small"),
                    lines,
                }
            }
            6 => EventKind::Reserved {
                origin,
                first: self.line(),
                lines: self.short(),
                sale: self.int(),
                hold_ms: self.int(),
                expires_at,
                replaces: self.some_reservation(),
            },
            7 => EventKind::PaymentBegun {
                origin,
                reservation,
                payment_ref: self.payment(),
                attempt,
                expires_at,
            },
            8 => EventKind::PaymentFailed {
                origin,
                reservation,
                attempt,
                disposition: self.pick(&[Disposition::Keep, Disposition::Release]),
                expires_at,
            },
            9 => EventKind::Confirmed {
                origin,
                reservation,
                asked: self.reservation(),
                attempt,
                payment_ref: PaymentRef::new(self.wide()),
            },
            10 => EventKind::RefundDue {
                origin,
                asked: reservation,
                attempt,
                payment_ref: self.payment(),
            },
            11 => EventKind::Released {
                origin,
                reservation,
            },
            12 => EventKind::Expired { reservation },
            13 => EventKind::Returned {
                origin,
                reason,
                reservation: self.some_reservation(),
                line: self.line(),
                units: self.upto(u64::MAX),
            },
            14 => EventKind::DeadlineMoved {
                reservation,
                expires_at,
            },
            15 => EventKind::DeadlinesCredited {
                micros: self.upto(u64::MAX),
            },
            16 => EventKind::Repeated {
                origin,
                kind: self.kind(),
                decision: self.decision(),
            },
            17 => EventKind::PolicySet {
                policy: self.policy(),
            },
            18 => EventKind::Withdrawn {
                origin,
                transfer: self.transfer(),
                total: self.upto(u64::MAX),
            },
            _ => EventKind::Deposited {
                origin,
                transfer: self.transfer(),
                total: self.upto(u64::MAX),
            },
        }
    }

    fn event(&mut self) -> Event {
        let number = u8::try_from(self.long() % 19 + 1).expect("small");
        Event {
            sequence: self.upto(u64::MAX),
            at: self.at(),
            shard: self.short(),
            epoch: self.int(),
            kind: self.event_kind(number),
        }
    }

    /// With the detail that its record can carry.
    fn refusal(&mut self, stamp: Timestamp) -> RefusalRecord {
        let (line, sku, max) = (self.short(), SkuId(self.int()), self.int());
        let field = self.pick(&[Field::Lines, Field::Rules, Field::Change, Field::Transfer]);
        let statuses = [
            HoldStatus::Confirmed,
            HoldStatus::Released,
            HoldStatus::Expired,
        ];
        let of_reserve = self.flag();
        let refusal = if of_reserve {
            let not_before = stamp.plus_ms(u64::from(self.int()).min(1 << 30));
            self.pick(&[
                Refusal::KeyConflict { field },
                Refusal::TooOld,
                Refusal::TooManyLines { max: line },
                Refusal::RequestLimit { line, sku, max },
                Refusal::UserLimit {
                    line,
                    sku,
                    max,
                    has: sku.0,
                },
                Refusal::HoldLimit { max },
                Refusal::SoldOut {
                    line,
                    sku,
                    available: max,
                    lapsing: sku.0,
                    not_before: Some(not_before).filter(|_| line > 9),
                },
            ])
        } else {
            let (long, status) = (self.upto(u64::MAX), self.pick(&statuses));
            self.pick(&[
                Refusal::UnknownReservation,
                Refusal::NotOwner,
                Refusal::PaymentUsed {
                    reservation: ReservationId::from_u64(long),
                },
                Refusal::Ended { status },
                Refusal::NotConfirmed,
                Refusal::NotDue {
                    expires_at: Timestamp::from_micros(long),
                },
                Refusal::InPayment { attempt: max },
                Refusal::StaleAttempt { current: max },
                Refusal::ExceedsSold {
                    line,
                    sku,
                    sold: long,
                },
                Refusal::TotalOutOfRange { min: long },
                Refusal::SkuDiffers { field },
                Refusal::OtherShard { shard: line },
            ])
        };
        let (mut origin, mut kind) = (self.origin(), self.kind());
        if of_reserve {
            kind = CommandKind::Reserve;
            origin.fingerprints[2] = 0;
        } else if kind == CommandKind::Reserve {
            kind = CommandKind::Release;
        }
        RefusalRecord {
            origin,
            kind,
            refusal,
        }
    }

    fn state(&mut self) -> StateRecord {
        let (origin, sku, sale) = (self.origin(), SkuId(self.int()), self.int());
        let (user, reservation, at) = (UserId(self.wide()), self.reservation(), self.at());
        let status = [HoldStatus::Held, HoldStatus::InPayment, HoldStatus::Expired];
        match self.long() % 12 {
            0 => StateRecord::Meta {
                sequence: self.upto(u64::MAX),
                stamp: at,
                credit_micros: self.upto(u64::MAX),
                refusals: self.upto(u64::MAX),
                policy: self.policy(),
            },
            1 => StateRecord::Source(SourcePosition {
                source: self.upto(u64::MAX),
                position: self.upto(u64::MAX),
            }),
            2 => StateRecord::SkuName {
                sku,
                name: self.name(),
            },
            3 => StateRecord::Sku {
                sku,
                defined_total: self.upto(u64::MAX),
                total: self.upto(u64::MAX),
                reserved: self.upto(u64::MAX),
                sold: self.upto(u64::MAX),
                rules: self.rules(),
                sale,
                flags: u8::try_from(self.long() % 16).expect("small"),
            },
            4 => {
                let len = usize::try_from(self.long() % 7).expect("small");
                let mut lines = [HeldLine::default(); STATE_LINES];
                lines[..len]
                    .iter_mut()
                    .for_each(|line| *line = self.held_line());
                StateRecord::Lines {
                    len: u8::try_from(len).expect("small"),
                    lines,
                }
            }
            5 => StateRecord::Reservation {
                id: reservation,
                user,
                status: self.pick(&status),
                moved: self.flag(),
                first: self.held_line(),
                lines: self.short(),
                hold_ms: self.int(),
                deadline: self.at(),
                ended_at: at,
            },
            6 => StateRecord::Payment {
                reservation,
                payment_ref: self.payment(),
                attempt: self.int(),
                under_way: self.flag(),
                began_at: at,
                spent_micros: self.upto(u64::MAX),
                base: self.at(),
            },
            7 => StateRecord::Counter {
                user,
                sku,
                sale,
                units: self.int(),
            },
            8 => StateRecord::AcceptedKey {
                origin,
                kind: self.kind(),
                decided_at: at,
                decision: self.decision(),
                sku,
                sale,
            },
            9 => {
                let decided_at = Timestamp::from_micros(self.upto(u64::MAX >> 1));
                StateRecord::RefusedKey {
                    decided_at,
                    record: self.refusal(decided_at),
                    sku,
                    sale,
                    ordinal: self.upto(u64::MAX),
                }
            }
            10 => StateRecord::Account(Account {
                sku,
                peer: self.short(),
                sent: self.moved(),
                received: self.moved(),
            }),
            _ => StateRecord::PaymentOutcome {
                payment_ref: self.payment(),
                asked: reservation,
                bought: self.some_reservation(),
                decided_at: at,
            },
        }
    }

    fn batch(&mut self) -> Batch {
        let mut batch = Batch::default();
        batch.header = BatchHeader {
            number: self.long(),
            shard: self.short(),
            stamp: Timestamp::from_micros(self.upto(u64::MAX >> 1)),
            token: Token {
                epoch: self.long(),
                writer: self.wide(),
            },
            first_sequence: self.long(),
            prev_hash: BatchHash::default(),
            sources: Vec::new(),
        };
        for source in 0..self.long() % 4 {
            let position = self.long();
            batch
                .header
                .sources
                .push(SourcePosition { source, position });
        }
        for _ in 0..self.long() % 4 {
            batch.push_event(&self.event());
            if self.flag() {
                batch.push_refusal(&self.refusal(batch.header.stamp));
            }
        }
        batch.seal(BatchHash([7; 32]));
        batch
    }
}

/// Every byte changed in turn: refused, or another record with exactly that encoding.
fn changes<const N: usize>(
    record: [u8; N],
    flip: u8,
    encode_decoded: impl Fn(&[u8; N]) -> Option<[u8; N]>,
) {
    assert_eq!(encode_decoded(&record), Some(record), "unchanged");
    for at in 0..N {
        let mut changed = record;
        changed[at] ^= flip;
        if let Some(encoded) = encode_decoded(&changed) {
            assert_eq!(encoded, changed, "byte {at} changed by {flip:#x}");
        }
    }
}

fn event_again(record: &Record) -> Option<Record> {
    Event::decode(record).ok().map(|event| event.encode())
}

fn state_again(record: &Record) -> Option<Record> {
    StateRecord::decode(record).ok().map(|state| state.encode())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(500) })]

    #[test]
    fn an_event_has_one_encoding(seed: u64, flip in 1_u8..) {
        let event = Values(seed).event();
        prop_assert_eq!(Event::decode(&event.encode()), Ok(event.clone()));
        changes(event.encode(), flip, event_again);
    }

    #[test]
    fn a_state_record_has_one_encoding(seed: u64, flip in 1_u8..) {
        let state = Values(seed).state();
        prop_assert_eq!(StateRecord::decode(&state.encode()), Ok(state.clone()));
        changes(state.encode(), flip, state_again);
    }

    #[test]
    fn a_refusal_has_one_encoding(seed: u64, before: u32, flip in 1_u8..) {
        let mut values = Values(seed);
        let stamp = Timestamp::from_micros(values.upto(u64::MAX >> 1));
        let refusal = values.refusal(stamp);
        let packed = refusal.encode(stamp, before);
        prop_assert_eq!(RefusalRecord::decode(&packed, stamp), Ok(refusal));
        prop_assert_eq!(RefusalRecord::events_before(&packed), before);
        changes(packed, flip, |changed| {
            let record = RefusalRecord::decode(changed, stamp).ok()?;
            Some(record.encode(stamp, RefusalRecord::events_before(changed)))
        });
    }

    #[test]
    fn a_batch_has_one_encoding(seed: u64, flip in 1_u8..) {
        let batch = Values(seed).batch();
        let mut bytes = Vec::new();
        batch.encode_into(&mut bytes);
        prop_assert_eq!(bytes.len(), batch.encoded_len());
        prop_assert_eq!(Batch::decode(&bytes), Ok(batch.clone()));
        let (_, events, refusals) = batch.encoded_parts();
        prop_assert_eq!(&Batch::from_parts(batch.header.clone(), events, refusals), &Ok(batch.clone()));
        for at in 0..bytes.len() {
            let mut changed = bytes.clone();
            changed[at] ^= flip;
            if let Ok(other) = Batch::decode(&changed) {
                let mut again = Vec::new();
                other.encode_into(&mut again);
                prop_assert_eq!(&again, &changed, "byte {}", at);
                prop_assert_ne!(other.hash(), batch.hash());
            }
        }
    }

    #[test]
    fn any_bytes_decode_to_themselves_or_not_at_all(bytes in prop::array::uniform32(any::<u32>())) {
        let mut record = [0; 128];
        for (to, word) in record.chunks_exact_mut(4).zip(bytes) {
            to.copy_from_slice(&word.to_le_bytes());
        }
        record[0] %= 22;
        record[1] = record::FORMAT_VERSION;
        prop_assert!(event_again(&record).is_none_or(|again| again == record));
        prop_assert!(state_again(&record).is_none_or(|again| again == record));
    }
}
