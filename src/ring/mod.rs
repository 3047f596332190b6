//! A bounded ring: any number of producers push, one consumer takes runs.
//!
//! It knows nothing of inventory and allocates only when it is made. It leaves out blocking pushes
//! (a full ring is an answer, [`PushError::Full`], which hands the value back) and anything with
//! more than one consumer. Callers push through [`Producer`], the writer loop drains through
//! [`Consumer`], and [`Notifier`] wakes the consumer for news that doesn't come through the ring.
//!
//! ```text
//!            head (consumer)              tail (producers)
//!              |                            |
//!   slots  [ . | A   B   C   ?   E   F   .  .  . ]    ? claimed, not yet published
//!   stamps [ 1 | 1   1   1   0   1   1   0  0  0 ]    lap + 1, one byte each
//!              |<- a run ->|
//! ```
//!
//! A producer claims positions by moving `tail`, writes its values, then stamps the slots. The
//! consumer takes the run of stamped slots at `head`, then moves `head`, once per run.
//!
//! **Who waits for whom.** Producers never wait for each other. The consumer waits for a producer
//! that was preempted between claim and publish, and for nothing else: values behind such a gap
//! are published but can't be taken yet. Nothing of the caller's (closure, `Clone`, `Drop`,
//! allocation) runs within the gap, so it is a copy of the value long unless the scheduler widens
//! it.
//!
//! # Invariants
//!
//! - I1: `head <= tail <= head + capacity`. Positions are counted from 0 and never wrap: 63 bits
//!   last 292 years at a billion pushes a second.
//! - I2: a position belongs to one producer from its claim to its stamp, to the consumer from the
//!   stamp until `head` has passed it, and to nobody else meanwhile.
//! - I3: the stamp of a slot is the lap of its last published position plus one, modulo 256. The
//!   slot of a position holds the lap before until it is stamped, never an older one: it can't be
//!   claimed before the consumer has taken the lap before. One bit would do.
//! - I4: once `tail` bears `CLOSED`, no position is claimed any more.
//! - I5: a consumer that sleeps while something is claimed or notified will be unparked.
//!
//! # Atomics
//!
//! | atomic | writer | reader | ordering | publishes |
//! |---|---|---|---|---|
//! | `stamps[i]` | owner of the position | consumer | P1 Release / Acquire | the value in the slot |
//! | `head` | consumer | producers, when the ring looks full | P2 Release / Acquire | free slots |
//! | `head_seen` | producers, after reading `head` | producers | P3 Release / Acquire | what P2 gave them |
//! | `tail` | producers, and the consumer to close | all | P4 `SeqCst` | a claim, before looking for a sleeper |
//! | `producers` | producers | consumer | P5 Release / Acquire | everything the last one pushed |
//! | `signal` | all | all | P4, P6 `SeqCst` / `AcqRel` | that the consumer sleeps, or is notified |
//!
//! P4 is the handshake that lets no wake-up be lost. A producer claims (writes `tail`), then looks
//! for a sleeper (reads `signal`); the consumer says that it sleeps (writes `signal`), then looks
//! for a claim (reads `tail`). All four are `SeqCst`, so at least one sees the other. The consumer
//! looks for *claims*, not for stamps, because a claim is an atomic read-modify-write anyway: the
//! usual handshake puts a fence between stamp and `signal`, which waits for the value to reach the
//! cache: measured, a push takes 24 ns with it and 17 ns without. Loom models `SeqCst` accesses as
//! `AcqRel`; the models therefore add the fence (`sync::seq_cst_in_model`), and `tests/tidy.rs` looks
//! at the orderings themselves.
//!
//! # Limits
//!
//! Capacity from 2 to 2^31 slots, rounded up to a power of two. A slot is its value rounded up to
//! whole cache lines (64 bytes), a stamp is one byte. A push is O(1) unless claims collide, a bulk
//! push and a run are one step per value.
//!
//! Proved by `loom_tests.rs` (`RUSTFLAGS="--cfg stockade_loom" cargo test --profile loom --lib
//! loom_`), by the tests in `tests.rs`, and measured by `benches/ring`.

mod bell;
mod consumer;
mod producer;
mod shared;
mod slots;

#[cfg(all(test, stockade_loom))]
mod loom_tests;
#[cfg(all(test, not(stockade_loom)))]
mod tests;

pub use self::bell::Notifier;
pub use self::consumer::{Consumer, SPINS_DEFAULT, Wake};
pub use self::producer::{BulkError, Producer, PushError};

use self::shared::Shared;
use crate::sync::Arc;

/// The most slots that a ring can have.
pub const CAPACITY_MAX: usize = 1 << 31;

/// Makes a ring of at least `capacity` slots, rounded up to a power of two and to 2.
///
/// # Panics
///
/// If `capacity` is over [`CAPACITY_MAX`], or the memory can't be had.
///
/// # Examples
///
/// ```
/// let (producer, mut consumer) = stockade::ring::ring(4);
/// producer.try_push("first")?;
/// producer.try_push("second")?;
///
/// let mut run = Vec::new();
/// assert_eq!(consumer.drain_into(&mut run, 256), 2);
/// assert_eq!(run, ["first", "second"]);
/// # Ok::<(), stockade::ring::PushError<&str>>(())
/// ```
pub fn ring<T: Send>(capacity: usize) -> (Producer<T>, Consumer<T>) {
    assert!(
        capacity <= CAPACITY_MAX,
        "a ring of {capacity} slots is over the limit"
    );
    let shared = Arc::new(Shared::new(capacity.next_power_of_two().max(2)));
    (Producer::new(Arc::clone(&shared)), Consumer::new(shared))
}
