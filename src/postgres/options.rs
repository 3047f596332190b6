//! What a user decides about a PostgreSQL store. It checks nothing against a server; opening does.

use std::path::PathBuf;
use std::time::Duration;

/// When to take the writer's role.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Role {
    /// At once, from whoever has it. That writer finds itself fenced with its next batch.
    #[default]
    TakeNow,
    /// Follow the log as a warm standby, and take the role when its owner has ended (its session is gone, or it has handed the role
    /// on) or has committed nothing for so long, while the server could be reached. An owner commits every 500 ms; give six times
    /// that, 3 s.
    WhenSilent(Duration),
}

impl Role {
    /// A standby with the usual patience, 3 s.
    pub const STANDBY: Self = Self::WhenSilent(Duration::from_secs(3));
}

/// Where and how a log is kept in PostgreSQL.
#[derive(Clone, PartialEq, Eq)]
#[non_exhaustive]
pub struct PostgresOptions {
    /// `postgres://user:password@host:port/database`, several hosts separated by commas: the first that takes writes is used.
    /// The session must be the writer's own: no pooler that shares sessions.
    /// `?sslmode=require` encrypts, and checks the server's certificate (feature `postgres-tls`).
    pub url: String,
    /// The root certificates to check the server's by, in a PEM file; `None`: the system's, or those that `SSL_CERT_FILE` names.
    pub tls_roots: Option<PathBuf>,
    /// The schema that holds the tables (`stockade`): lower-case letters, digits and `_`.
    pub schema: String,
    /// When to take the role.
    pub role: Role,
    /// How long one host may take to be connected to (2 s). A standby that has just connected itself, and doesn't find the
    /// owner connected, gives it so long for every host in the URL, and 0.7 s.
    pub connect_timeout: Duration,
    /// How long opening goes on trying to reach a server (30 s); a standby goes on for ever.
    pub open_within: Duration,
    /// How long the server may take for one statement (5 s). Without an answer a second later the connection is given up;
    /// a batch is then offered again on another.
    pub statement_timeout: Duration,
    /// How long a loaded writer gathers commands for one commit (2 ms).
    pub linger: Duration,
    /// How many bytes of committed batches the writer keeps (64 MiB), to give them again to a server that has lost them.
    pub retained_bytes: usize,
    /// A snapshot is made after so many events (1,000,000), later if the last one has more records than that; `None`: never, so
    /// recovery reads the whole log.
    pub snapshot_every_events: Option<u64>,
}

impl PostgresOptions {
    /// The defaults, on this server.
    pub fn new(url: impl Into<String>) -> Self {
        Self {
            url: url.into(),
            tls_roots: None,
            schema: "stockade".to_owned(),
            role: Role::TakeNow,
            connect_timeout: Duration::from_secs(2),
            open_within: Duration::from_secs(30),
            statement_timeout: Duration::from_secs(5),
            linger: Duration::from_millis(2),
            retained_bytes: 64 << 20,
            snapshot_every_events: Some(1_000_000),
        }
    }
}

/// Without the URL, which may hold a password.
impl std::fmt::Debug for PostgresOptions {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("PostgresOptions")
            .field("schema", &self.schema)
            .field("role", &self.role)
            .finish_non_exhaustive()
    }
}
