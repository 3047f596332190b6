//! The vocabulary of the crate: ids, units, time, and what crosses an arrow between two rooms.
//!
//! Everything here is data and pure functions over it: no I/O, no threads, and the only clock is the trait that
//! others are given. A [`Command`] asks, a [`Decision`] answers, an [`Event`] records, a [`Batch`] is what a store
//! commits in one step, and a [`StateRecord`] is what a snapshot is made of. Records have a fixed size and a
//! documented layout ([`record`]), little-endian, versioned.

mod batch;
mod clock;
mod command;
mod decision;
mod event;
mod fields;
mod ids;
mod key;
mod kind;
mod lines;
mod policy;
pub mod record;
mod refusal;
mod refusal_record;
#[cfg(test)]
mod round_trips;
mod sku;
mod state;
mod submit;
mod time;
mod transfer;
mod words;

pub use batch::{
    Batch, BatchHash, BatchHeader, EncodedHead, HEADER_SIZE, RECORDS_MAX, SOURCES_MAX,
    SourcePosition, Token,
};
pub use clock::{Clock, ManualClock, SystemClock};
pub use command::{
    Adjust, BeginPayment, Command, Confirm, DefineSku, Disposition, Expire, Gate, PaymentFailed,
    Query, Release, Reserve, Return, SetGate,
};
pub(crate) use decision::DecisionWords;
pub use decision::{
    Answer, Confirmation, Decision, HoldStatus, Kept, PaymentAttempt, QueryAnswer, Reservation,
    ReservationView,
};
pub use event::{Event, EventKind, LINES_PER_EVENT};
pub use ids::{
    IdError, IdempotencyKey, PaymentRef, Reason, ReservationId, ReservationIdError, SEQUENCE_MAX,
    SkuId, SkuName, SkuNameError, UserId,
};
pub use key::{Field, Fingerprints, Origin};
pub(crate) use key::{halves, joined};
pub use kind::CommandKind;
pub use lines::{LINES_INLINE, LINES_MAX, Line, Lines, LinesError, QUANTITY_MAX};
pub use policy::{Policy, PolicyError};
pub use record::DecodeError;
pub use refusal::{Bound, Refusal, RefusalCode};
pub use refusal_record::RefusalRecord;
pub(crate) use refusal_record::ms_until;
pub use sku::{
    Availability, HOLD_DEFAULT_MS, HOLD_MAX_MS, Rules, RulesError, SaleStatus, SkuView, TOTAL_MAX,
};
pub(crate) use state::STATE_LINES;
pub use state::{HeldLine, StateRecord};
pub use submit::{Answers, Sourced, Submit, SubmitError};
pub use time::{Timestamp, TimestampError};
pub use transfer::{Account, Deposit, Moved, PoolView, Transfer, TransferError, Withdraw, pool_of};
