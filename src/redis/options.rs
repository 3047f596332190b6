//! Where Redis is, and how long it may take.

use ::redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo};
use std::fmt;
use std::time::Duration;

/// Where Redis is and under which names things lie there; the writer and its readers give the same.
#[derive(Clone)]
pub struct RedisOptions {
    pub(super) seeds: Vec<ConnectionInfo>,
    pub(super) prefix: String,
    pub(super) stock_ttl: Duration,
    pub(super) timeout: Option<Duration>,
}

/// An address is not one that can be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{url}` is no address of a Redis: {reason}; give redis://[user:password@]host[:port][/database], or several of them \
     separated by commas"
)]
pub struct RedisUrlError {
    /// As given.
    pub url: String,
    /// What is wrong with it.
    pub reason: String,
}

impl RedisOptions {
    /// `redis://host:port`, or several separated by commas: any nodes of a cluster, or a primary and its replicas, of which
    /// the one that is the primary just now is used. Name and password of the first serve for all.
    ///
    /// # Errors
    /// If that is no address, or one that needs TLS, which this build doesn't have.
    pub fn new(urls: &str) -> Result<Self, RedisUrlError> {
        let parse = |url: &str| {
            let wrong = |reason: String| RedisUrlError {
                url: url.to_owned(),
                reason,
            };
            let info = url.into_connection_info();
            let info = info.map_err(|error| wrong(error.to_string()))?;
            match info.addr() {
                ConnectionAddr::Tcp(..) => {}
                _ => return Err(wrong("only plain TCP is supported".to_owned())),
            }
            let settings = info.tcp_settings().clone().set_nodelay(true);
            Ok(info.set_tcp_settings(settings))
        };
        Ok(Self {
            seeds: urls
                .split(',')
                .map(|url| parse(url.trim()))
                .collect::<Result<_, _>>()?,
            prefix: String::new(),
            stock_ttl: Duration::from_secs(5),
            timeout: None,
        })
    }

    /// Comes before every key. Writers that share a Redis need different ones: each shard, and each pool of a SKU. Default:
    /// none.
    #[must_use]
    pub fn prefix(mut self, prefix: &str) -> Self {
        prefix.clone_into(&mut self.prefix);
        self
    }

    /// After so long without a writer stock is forgotten, 1 s to 1 h. Default: 5 s.
    #[must_use]
    pub fn stock_ttl(mut self, ttl: Duration) -> Self {
        self.stock_ttl = ttl.clamp(Duration::from_secs(1), Duration::from_secs(3_600));
        self
    }

    /// How long one step may take: to connect, to send, to wait for the next answer; at least 1 ms. Default: 500 ms for
    /// whoever writes or listens, 50 ms for whoever reads.
    #[must_use]
    pub fn timeout(mut self, timeout: Duration) -> Self {
        self.timeout = Some(timeout.max(Duration::from_millis(1)));
        self
    }
}

/// Without the password.
impl fmt::Debug for RedisOptions {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seeds: Vec<String> = self
            .seeds
            .iter()
            .map(|seed| seed.addr().to_string())
            .collect();
        f.debug_struct("RedisOptions")
            .field("seeds", &seeds)
            .field("prefix", &self.prefix)
            .field("stock_ttl", &self.stock_ttl)
            .field("timeout", &self.timeout)
            .finish()
    }
}
