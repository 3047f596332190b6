//! Redis, for readers in other processes.

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
