//! What kinds of commands there are, and which fields of their payloads a key remembers.

use super::Field;

/// The kind of a command: a key belongs to its user and kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
#[expect(missing_docs, reason = "each is the command of that name")]
pub enum CommandKind {
    Reserve = 1,
    BeginPayment = 2,
    PaymentFailed = 3,
    Confirm = 4,
    Release = 5,
    Expire = 6,
    Return = 7,
    Adjust = 8,
    DefineSku = 9,
    SetGate = 10,
    Query = 11,
    Withdraw = 12,
    Deposit = 13,
}

impl CommandKind {
    pub(super) const ALL: [Self; 13] = [
        Self::Reserve,
        Self::BeginPayment,
        Self::PaymentFailed,
        Self::Confirm,
        Self::Release,
        Self::Expire,
        Self::Return,
        Self::Adjust,
        Self::DefineSku,
        Self::SetGate,
        Self::Query,
        Self::Withdraw,
        Self::Deposit,
    ];

    /// The payload's fields in the order of their fingerprints.
    pub const fn fields(self) -> &'static [Field] {
        match self {
            Self::Reserve => &[Field::Lines],
            Self::BeginPayment => &[Field::Reservation, Field::PaymentRef],
            Self::PaymentFailed => &[Field::Reservation, Field::Attempt, Field::Disposition],
            Self::Confirm => &[Field::Reservation, Field::Attempt, Field::PaymentRef],
            Self::Release | Self::Expire => &[Field::Reservation],
            Self::Return => &[Field::Reservation, Field::Lines],
            Self::Adjust => &[Field::Sku, Field::Delta],
            Self::DefineSku => &[Field::Sku, Field::Total, Field::Rules],
            Self::SetGate => &[Field::Sku, Field::Change],
            Self::Query => &[],
            Self::Withdraw | Self::Deposit => &[Field::Sku, Field::Units, Field::Transfer],
        }
    }

    pub(super) fn from_u8(number: u8) -> Option<Self> {
        Self::ALL.into_iter().find(|&kind| kind as u8 == number)
    }

    /// The word for it in metrics and logs.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reserve => "reserve",
            Self::BeginPayment => "begin_payment",
            Self::PaymentFailed => "payment_failed",
            Self::Confirm => "confirm",
            Self::Release => "release",
            Self::Expire => "expire",
            Self::Return => "return",
            Self::Adjust => "adjust",
            Self::DefineSku => "define_sku",
            Self::SetGate => "set_gate",
            Self::Query => "query",
            Self::Withdraw => "withdraw",
            Self::Deposit => "deposit",
        }
    }
}
