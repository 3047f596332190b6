//! A Redis beside the engine: written through for readers in other processes, and listened to for what lapses there.

use crate::engine::{EngineBuilder, Handle};
use anyhow::Result;
use std::fmt;
use std::str::FromStr;

/// `redis://[USER:PASSWORD@]HOST[:PORT][/DATABASE]`, or several of a cluster separated by commas.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct RedisUrl(String);

/// Without what may be a password.
impl fmt::Debug for RedisUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("redis://..")
    }
}

impl FromStr for RedisUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("redis://") {
            Ok(Self(text.to_owned()))
        } else {
            Err("give redis://HOST:PORT".to_owned())
        }
    }
}

#[cfg(feature = "redis")]
mod connected {
    use super::{EngineBuilder, Handle, RedisUrl, Result};
    use stockade::redis::{ExpiredKeys, RedisCache, RedisOptions};

    /// Listens until it is dropped.
    pub(crate) type Hints = ExpiredKeys;

    impl RedisUrl {
        /// Each shard has keys of its own: the plain ones are the first's, those of another begin with its number.
        pub(crate) fn options(&self, shard: u16) -> Result<RedisOptions> {
            let options = RedisOptions::new(&self.0)?;
            Ok(match shard {
                0 => options,
                _ => options.prefix(&format!("{shard}:")),
            })
        }

        /// Lets the engine of a shard write every change through.
        pub(crate) fn attach(&self, builder: EngineBuilder, shard: u16) -> Result<EngineBuilder> {
            Ok(builder.cache(RedisCache::new(&self.options(shard)?)))
        }

        /// Asks the engine of a shard to expire what of it has expired in Redis. It decides by its own time.
        pub(crate) fn hint(&self, handle: Handle, shard: u16) -> Result<Hints> {
            let options = self.options(shard)?;
            // One that finds the queue full is no loss: the engine sweeps by itself.
            Ok(ExpiredKeys::listen(&options, move |expire| {
                drop(handle.expire(expire));
            })?)
        }
    }
}

#[cfg(not(feature = "redis"))]
mod connected {
    use super::{EngineBuilder, Handle, RedisUrl, Result};

    /// There is none.
    pub(crate) enum Hints {}

    impl RedisUrl {
        /// Lets the engine of a shard write every change through.
        pub(crate) fn attach(&self, _: EngineBuilder, _: u16) -> Result<EngineBuilder> {
            self.missing()
        }

        /// Asks the engine of a shard to expire what of it has expired in Redis. It decides by its own time.
        pub(crate) fn hint(&self, _: Handle, _: u16) -> Result<Hints> {
            self.missing()
        }

        fn missing<T>(&self) -> Result<T> {
            anyhow::bail!("this program can't reach {self:?}: build it with `--features redis`")
        }
    }
}
