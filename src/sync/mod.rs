//! The shim between stockade's concurrent code and the machine, or loom.
//!
//! `ring` and `ticket` take every atomic, cell, lock and parked thread from here, so that the
//! private cfg `stockade_loom` swaps them all at once for loom's models. It holds no algorithm but
//! [`SnapshotCell`], and it leaves out whatever has no counterpart in loom: timed parking is
//! untimed there, so no model may rely on a time-out.
//!
//! ```text
//!            ring, ticket, engine
//!                     |
//!                   sync
//!           /                   \
//!   standard.rs            modelled.rs
//!   (std, parking_lot)     (loom, cfg stockade_loom)
//! ```
//!
//! One difference is deliberate. Loom treats `SeqCst` accesses as `AcqRel`, though it models
//! `fence(SeqCst)` truly. Where the code rests on the total order of `SeqCst` *accesses* it also
//! calls `seq_cst_in_model`, which is that fence under loom and nothing elsewhere.

mod padded;
mod snapshot;

#[cfg(stockade_loom)]
mod modelled;
#[cfg(not(stockade_loom))]
mod standard;

#[cfg(stockade_loom)]
pub(crate) use self::modelled::*;
#[cfg(not(stockade_loom))]
pub(crate) use self::standard::*;

pub use self::padded::CachePadded;
pub use self::snapshot::SnapshotCell;
