//! Completion cells: a promise is completed once, and waited for by a thread or a task.
//!
//! Generic in the value, without a runtime, and without an allocation once warm. It knows nothing
//! of inventory. A [`Pool`] issues pairs: the [`Completer`] rides with the request, the [`Ticket`]
//! stays with the caller. A bulk submission takes one [`Block`] instead of many tickets: its values
//! lie side by side, and it has one flag and one wake. Leaves out cancellation: dropping a ticket
//! changes nothing for the completer.
//!
//! ```text
//!   Pool --issue--> Completer (16 bytes) ----complete(value)----+
//!     ^       |                                                 v
//!     |       +---> Ticket --wait / poll--> register --> [ signal | waiter | value ]  one cell,
//!     |                                                         |                   128 bytes
//!     +----------------- recycled by whoever is through last ---+
//! ```
//!
//! # Invariants
//!
//! - I1: a node (cell or block) that has been issued belongs to its completing side and its waiting
//!   side together; whoever is through last returns it to the pool, under the next generation.
//! - I2: the value belongs to the completing side until DONE, then to the waiting side; if that was
//!   DROPPED before, to the completing side for good.
//! - I3: the waiter's slot belongs to the waiting side unless WAITING; whoever clears WAITING takes
//!   what it holds.
//! - I4: nodes and the pool's core are freed when no handle of the pool and no issued node is left.
//!
//! # Atomics
//!
//! | atomic | writer | reader | ordering | publishes |
//! |---|---|---|---|---|
//! | `state`, DONE | completing side | waiting side | P1 Release / Acquire | the value |
//! | `state`, WAITING | waiting side | completing side | P2 Release / Acquire | the waiter |
//! | `state`, DROPPED | waiting side | completing side | P3 Release / Acquire | that nobody waits |
//! | `free` | all | all | P4 Release / Acquire | a recycled node |
//! | `remaining` | completers of a block | the last of them | P5 Release / Acquire | their entries |
//! | `left` | who returns a node late | the last of them | P6 Release / Acquire | that no node is in use |
//!
//! Both sides of a signal change one word with read-modify-writes, so no fence is needed and no
//! wake-up can be lost.
//!
//! # Limits
//!
//! A pool holds at most [`CELLS_MAX`] cells; see [`Pool::new`] and [`Pool::issue_block`]. Issuing,
//! completing and taking are O(1) and lock-free but for growing the pool; a block is recycled in
//! one step per entry.
//!
//! Proved by `loom_tests.rs` (`RUSTFLAGS="--cfg stockade_loom" cargo test --profile loom --lib
//! loom_`), by the tests in `tests.rs`, and measured by `benches/ticket.rs`.

mod block;
mod cell;
mod completer;
mod pool;
mod signal;
mod slab;
mod waiter;

#[cfg(all(test, stockade_loom))]
mod loom_tests;
#[cfg(all(test, not(stockade_loom)))]
mod tests;

pub use self::block::{Block, Decisions};
pub use self::cell::Ticket;
pub use self::completer::{BlockCompleters, Completer, CompletionBatch};
pub use self::pool::{CELLS_MAX, Pool};
