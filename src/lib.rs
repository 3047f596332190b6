//! An embeddable inventory engine for flash sales that cannot oversell.
//!
//! A service adds this crate, starts an [`Engine`] on a journal directory, and reserves, pays, confirms and releases
//! from any number of threads. One writer decides everything in batches; each batch is durable before anybody hears an
//! answer; and every decision can be replayed and proved afterwards.
//!
//! ```
//! use stockade::Engine;
//! use stockade::store::{JournalOptions, JournalStore};
//! use stockade::types::{Confirm, DefineSku, Gate, Reserve, SetGate, SkuName, UserId};
//!
//! # let directory = std::env::temp_dir().join(format!("stockade-doc-{}", std::process::id()));
//! let engine = Engine::builder().store(JournalStore::new(JournalOptions::new(&directory))).start()?;
//! let handle = engine.handle();
//!
//! let admin = UserId::from_text("admin");
//! let sku = handle.define_sku(DefineSku::new(admin, SkuName::new("SNEAKER-42")?, 10_000))?.wait()?;
//! handle.set_gate(SetGate::new(admin, sku, Gate::Open))?.wait()?;
//!
//! let ann = UserId::from_text("ann@example.com");
//! let held = handle.reserve(Reserve::one(ann, sku, 1)?)?.wait()?;
//! let sold = handle.confirm(Confirm::unpaid(ann, held.id))?.wait()?;
//! # let _ = sold;
//! # drop(engine);
//! # std::fs::remove_dir_all(&directory)?;
//! # Ok::<(), Box<dyn std::error::Error>>(())
//! ```
//!
//! # The laws
//!
//! Breaking any of them halts the engine; it never limps on.
//!
//! | law | |
//! |---|---|
//! | L1 | no oversell: `reserved + sold <= total` for every SKU at every sequence |
//! | L2 | no lost unit: `available + reserved + sold == total`, each recounted from what it stands for |
//! | L3 | a reservation ends exactly once |
//! | L4 | durable before told: nobody sees a decision, a count or an event that the store has not committed |
//! | L5 | the same key gives the same answer, across restarts; with another payload it is refused, naming the field |
//! | L6 | one writer: the store compares token, number and predecessor's hash of every batch |
//! | L7 | the log replayed, from empty or from a snapshot, gives the same state and digest |
//! | L8 | everything has a limit, and exceeding it is an answer |
//!
//! # The map
//!
//! ```text
//!                         pools             one hot SKU, sold by several engines as one, in this process or over `kafka`
//!                          │
//!                         engine            threads or your own loop: drain, decide, commit, answer, announce
//!        ┌──────┬──────────┼──────────┬────────┬────────┐
//!      ring   ticket   allocator    store    cache   events
//!        └──┬───┘          │          │        │        │
//!          sync            └───────── types ───┴────────┘
//! ```
//!
//! Arrows point down only. [`types`] is the vocabulary and [`allocator`] the rules; both are pure: no I/O, clock, threads
//! or randomness. [`ring`] and [`ticket`] know nothing of inventory. Unsafe code lives in `ring`, `ticket` and `sync`
//! alone, under loom models. A [`store`] knows batches, not inventory; one of your own is proved by
//! [`store::conformance`]. A test reads the `use` lines and fails on any other arrow.
//!
//! # Features
//!
//! None is on by default.
//!
//! | feature | |
//! |---|---|
//! | `kafka` | requests, replies and events through Kafka, exactly once: see `stockade::kafka`; builds librdkafka, with a C compiler and make |
//! | `metrics` | counters, gauges and histograms for the recorder that you install: see [`engine::telemetry`] |
//! | `postgres` | a log in PostgreSQL, with standby and takeover: see `stockade::postgres` |
//! | `postgres-tls` | that over encrypted connections, with rustls |
//! | `redis` | a cache for readers in other processes, their side of it, and hints of what has lapsed: see `stockade::redis` |
//! | `tracing` | start, recovery, warnings and halts for the subscriber that you install: see [`engine::telemetry`] |
//!
//! # Choices worth knowing
//!
//! - A cart of up to four lines lies in its command; a longer one is one boxed slice that the caller allocates before it
//!   submits. So every command takes exactly one ring slot, and nothing is chained.
//! - Refusals are packed into 64 bytes, with the user and everything their answer says: a refusal that can't be
//!   attributed is no trace, and one that can't be repeated in full is another answer.
//! - How long things are remembered ([`types::Policy`]) is recorded in the log, so that a log replays to the same state
//!   under any configuration.
//! - Holds of one duration share a queue, whatever their SKUs. So a reserve that is short of units expires the overdue holds of
//!   other SKUs that come before those of its own: each is expired once, by it or by the next sweep, and with the same result.
//! - A user's first accepted key and first counter lie with the user: a new user, who has neither, costs one cache miss.
//! - A command of an outside source (a partition of messages) rides the ring boxed with its position, and its batch holds the
//!   position: so offset and effect commit together, and every other command's slot stays as small as it was. See
//!   [`types::Submit`].
//! - A hot SKU that is split over several writers ([`pools`]) moves units, never users. A transfer's number is its
//!   acknowledgement: it is taken from the receiver, so asking the sender for `n + 1` says that `n` has come, and neither keeps
//!   more than its last transfer and two sums per peer. A withdraw takes what is available, at most what was asked for: under load
//!   an exact amount would be refused for ever.
//! - Pools over Kafka ask each other's accounts by messages, not by SQL: the writer's own word, in the order of its partition, is
//!   the one that a transfer may rest on, and whoever balances needs no database.
//! - A restart credits nothing to deadlines: logical time goes on by the wall clock. Only a store that could not commit
//!   while the engine ran does.
#![forbid(clippy::print_stdout)]

pub mod allocator;
pub mod cache;
pub mod engine;
pub mod events;
#[cfg(feature = "kafka")]
pub mod kafka;
pub mod pools;
#[cfg(feature = "postgres")]
pub mod postgres;
#[cfg(feature = "redis")]
pub mod redis;
pub mod ring;
pub mod store;
pub mod sync;
pub mod ticket;
pub mod types;

pub use engine::{Engine, Handle};
