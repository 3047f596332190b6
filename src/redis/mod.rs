//! Redis, for readers in other processes: what the engine writes through, how they read it, and hints of what has lapsed.
//!
//! ```text
//! engine ─► announcer ─► RedisCache ──► Redis ◄── RedisReader ◄─ API nodes
//!    ▲                                    │           └─ nothing there, or no answer ─► Fallback (store, snapshot)
//!    └────────── Expire ◄─ ExpiredKeys ◄──┘ a key has expired
//! ```
//!
//! Redis is never the authority, and nothing waits for it that a caller waits for: with Redis down the engine decides and
//! answers as before and its health says so, readers fall back, and when it is back all stock is written again by itself.
//!
//! # What lies there
//!
//! Hashes, whose fields any program may read; each is written whole by one command. An engine's keys begin with its
//! [`prefix`](RedisOptions::prefix).
//!
//! | key | lives | fields |
//! |---|---|---|
//! | `stock:{NAME}` | 5 s ([`stock_ttl`](RedisOptions::stock_ttl)) after the last write | `epoch`, `sequence`, `reservations_from`, `sku` (its index), `available`, `reserved`, `sold`, `total`, `as_of`, `not_before` (empty: none) |
//! | `reservation:{ID}` | until a second after the hold's deadline, or until it ends | `epoch`, `sequence`, `user` (32 hexadecimal digits), `status` (`RESERVED`, `IN_PAYMENT`), `expires_at`, `lines` (for each `UNITS NAME`, each ended by a line feed) |
//!
//! Times are microseconds since 1970, UTC. The braces are part of the key: in a cluster they mark what is hashed.
//!
//! **Versions.** `(epoch, sequence)` is the version: the writer's epoch, then the last event's sequence that the value counts. A
//! script compares it where the value lies, so a write that comes late, twice or from a writer that lost its role changes
//! nothing. Numbers in scripts are doubles: versions are below 2^53 (sequences have 48 bits).
//!
//! **Stock** of a SKU that nothing happens to is written again every quarter of its time-to-live, for 10,000 SKUs at a time; so it
//! goes only with its writer, and then readers ask the authority rather than trust what nobody keeps. An engine with more than
//! some 30,000 SKUs can't keep all that idle: those are read from the fallback.
//!
//! **Reservations** are written once. A program that reads one compares its version with `(epoch, reservations_from)` of any
//! stock that the same writer has just written, as [`RedisReader`] does: below that it may be stale, because a write was lost,
//! a server failed over or another writer took over.
//!
//! # Servers
//!
//! One server, a primary and its replicas (give all their addresses: the one that is the primary is used), or a cluster (give
//! some). Redirections and moved slots are followed; a node that is down takes its own keys with it and no others. There is
//! no support for Sentinel, TLS or Unix sockets: put a proxy before it.
//!
//! A lost connection is made again with pauses from 50 ms to 1 s. A server that fails over may forget the last writes: stock
//! is written again within a quarter of its time-to-live, and readers doubt the reservations from before.

mod cache;
mod circuit;
mod flights;
mod hints;
mod layout;
mod nodes;
mod options;
mod reader;
mod slots;

pub use cache::RedisCache;
pub use hints::{ExpiredKeys, ListenError};
pub use options::{RedisOptions, RedisUrlError};
pub use reader::{Fallback, ReadError, ReadStats, RedisReader};
