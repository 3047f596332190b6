//! How the fields that several records share are written and read.

use super::decision::DecisionWords;
use super::record::{DecodeError, Reader, Writer};
use super::{
    CommandKind, Decision, IdempotencyKey, Line, Moved, Origin, PaymentRef, Policy, ReservationId,
    Rules, SkuId, SkuName, Timestamp, Transfer, UserId,
};

impl Writer<'_> {
    #[inline(always)]
    #[expect(
        clippy::inline_always,
        reason = "measured: at a constant offset it needs no bounds checks"
    )]
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

    pub(super) fn transfer(&mut self, transfer: &Transfer) -> &mut Self {
        self.u32(transfer.sku.0)
            .u16(transfer.from)
            .u16(transfer.to)
            .u64(transfer.number)
            .u64(transfer.units)
    }

    pub(super) fn moved(&mut self, moved: &Moved) -> &mut Self {
        self.u64(moved.last).u64(moved.last_units).u64(moved.units)
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

    pub(super) fn transfer(&mut self) -> Result<Transfer, DecodeError> {
        let transfer = Transfer {
            sku: self.sku(),
            from: self.u16(),
            to: self.u16(),
            number: self.u64(),
            units: self.u64(),
        };
        transfer
            .check()
            .map_err(|_| DecodeError::Field { what: "a transfer" })?;
        Ok(transfer)
    }

    pub(super) fn moved(&mut self) -> Result<Moved, DecodeError> {
        let moved = Moved {
            last: self.u64(),
            last_units: self.u64(),
            units: self.u64(),
        };
        let is_possible = moved.is_possible();
        is_possible.then_some(moved).ok_or(DecodeError::Field {
            what: "a sum of transfers",
        })
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

    pub(super) fn decision_words(&mut self) -> Result<DecisionWords, DecodeError> {
        let words = (self.u8(), self.u64(), self.u64());
        Decision::from_words(words).ok_or(DecodeError::Field { what: "a decision" })?;
        Ok(words)
    }
}
