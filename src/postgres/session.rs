//! One connection to the server that takes writes, and what its errors mean for a writer.
//!
//! A session is not mended: after an error that leaves in doubt what the server has done it is dropped, and another one is
//! made. It is used by one thread at a time and blocks it, also inside a tokio runtime. Nothing happens on it between calls.

use super::PostgresOptions;
use super::repair::REPAIR;
use super::tls;
use crate::store::StoreError;
use std::future::Future;
use std::time::Duration;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio_postgres::config::{Host, SslMode, TargetSessionAttrs};
use tokio_postgres::error::SqlState;
use tokio_postgres::tls::{MakeTlsConnect, TlsConnect};
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Config, Error, NoTls, Row, Socket, Statement};

/// What the server is given beyond its own statement time-out before it is given up.
const ANSWER_MARGIN: Duration = Duration::from_secs(1);
/// A peer that acknowledges nothing for so long is gone; one that is idle is asked as often.
const PEER_GONE: Duration = Duration::from_secs(3);
/// The server's patience with a client that has begun a transaction and says nothing, or that takes nothing of an answer. It has
/// locks that others wait for, and may be stopped, or its machine gone.
const CLIENT_GONE: Duration = Duration::from_secs(10);
/// What such a client may need beyond that for each event of its log: to audit the state takes 0.05 us for a hold, to export it
/// 0.3 us.
const CLIENT_WORKS_PER_EVENT: Duration = Duration::from_micros(1);
/// The class of errors that `refuse` in the schema raises.
const REFUSED: &str = "SK001";

pub(super) type Param<'a> = &'a (dyn ToSql + Sync);

pub(super) struct Session {
    events: EventLoop,
    client: Client,
    answer_within: Duration,
}

impl Session {
    /// Connects to the first host that takes writes.
    ///
    /// # Errors
    /// `Retryable` if none can be reached just now; `Fatal` if the options can't be, or a server refuses them.
    pub(super) fn connect(options: &PostgresOptions) -> Result<Self, StoreError> {
        Self::connect_to(options, TargetSessionAttrs::ReadWrite)
    }

    /// Connects to the first host there is.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(super) fn connect_for_reads(options: &PostgresOptions) -> Result<Self, StoreError> {
        Self::connect_to(options, TargetSessionAttrs::Any)
    }

    fn connect_to(
        options: &PostgresOptions,
        wanted: TargetSessionAttrs,
    ) -> Result<Self, StoreError> {
        check_schema_name(&options.schema)?;
        let config = config(options)?;
        let mut last =
            fatal("the PostgreSQL URL names no host: give postgres://user@host:port/database");
        for at in 0..config.get_hosts().len() {
            match Self::connect_one(&single_host(&config, at, options, wanted), options) {
                Ok(session) => return Ok(session),
                Err(error) => last = error,
            }
        }
        Err(last)
    }

    fn connect_one(config: &Config, options: &PostgresOptions) -> Result<Self, StoreError> {
        let events = EventLoop::new()?;
        // The server also has to answer, so twice what its socket may take.
        let within = options.connect_timeout * 2;
        let client = if config.get_ssl_mode() == SslMode::Require {
            events.block_on(within, open(config, tls::checked(options)?))?
        } else {
            events.block_on(within, open(config, NoTls))?
        };
        let session = Self {
            events,
            client,
            answer_within: options.statement_timeout + ANSWER_MARGIN,
        };
        session.run(&settings(options))?;
        Ok(session)
    }

    /// How long it takes at most to connect, if there is a server: the hosts before it may hang.
    ///
    /// # Errors
    /// As [`connect`](Self::connect).
    pub(super) fn connects_within(options: &PostgresOptions) -> Result<Duration, StoreError> {
        let hosts = u32::try_from(config(options)?.get_hosts().len()).unwrap_or(u32::MAX);
        Ok(options.connect_timeout.saturating_mul(hosts))
    }

    /// Runs statements without parameters.
    pub(super) fn run(&self, sql: &str) -> Result<(), StoreError> {
        self.wait(self.client.batch_execute(sql))
    }

    /// Begins a transaction whose locks others wait for, by a client that may work in between on a log of so many events.
    pub(super) fn begin(&self, events: u64) -> Result<(), StoreError> {
        let works = CLIENT_WORKS_PER_EVENT.as_nanos() * u128::from(events);
        // The server's longest is 24 days.
        let idle_ms = (CLIENT_GONE.as_millis() + works / 1_000_000).min(1 << 30);
        self.run(&format!(
            "BEGIN ISOLATION LEVEL READ COMMITTED; SET LOCAL idle_in_transaction_session_timeout = {idle_ms}"
        ))
    }

    pub(super) fn prepare(&self, sql: &str) -> Result<Statement, StoreError> {
        self.wait(self.client.prepare(sql))
    }

    pub(super) fn rows(&self, sql: &str, params: &[Param<'_>]) -> Result<Vec<Row>, StoreError> {
        self.wait(self.client.query(sql, params))
    }

    pub(super) fn row(&self, sql: &str, params: &[Param<'_>]) -> Result<Option<Row>, StoreError> {
        self.wait(self.client.query_opt(sql, params))
    }

    pub(super) fn prepared_row(
        &self,
        statement: &Statement,
        params: &[Param<'_>],
    ) -> Result<Option<Row>, StoreError> {
        self.wait(self.client.query_opt(statement, params))
    }

    /// Tells the server that the session ends, so that its locks are free when this returns.
    pub(super) fn end(self) {
        // A session that can't be ended any more is ended by its drop.
        drop(self.row("SELECT pg_advisory_unlock_all()", &[]));
    }

    fn wait<T: Send>(
        &self,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, StoreError> {
        self.events.block_on(self.answer_within, work)
    }
}

async fn open<T>(config: &Config, tls: T) -> Result<Client, Error>
where
    T: MakeTlsConnect<Socket> + Send,
    T::Stream: Send + 'static,
    T::TlsConnect: Send,
    <T::TlsConnect as TlsConnect<Socket>>::Future: Send,
{
    let (client, connection) = config.connect(tls).await?;
    // It ends with the client; its error is also that of the call at hand.
    tokio::spawn(async move { drop(connection.await) });
    Ok(client)
}

/// What drives a connection, only while somebody waits.
struct EventLoop {
    /// `None` while it is being dropped.
    runtime: Option<Runtime>,
}

impl EventLoop {
    fn new() -> Result<Self, StoreError> {
        let runtime = Builder::new_current_thread().enable_all().build();
        let runtime = runtime.map_err(|error| {
            StoreError::Retryable(format!("no event loop for a connection: {error}"))
        })?;
        Ok(Self {
            runtime: Some(runtime),
        })
    }

    /// Blocks this thread, or, where a runtime forbids that, one made for it.
    fn block_on<T: Send>(
        &self,
        within: Duration,
        work: impl Future<Output = Result<T, Error>> + Send,
    ) -> Result<T, StoreError> {
        let runtime = self.runtime.as_ref();
        let runtime = runtime.ok_or_else(|| fatal("the session has ended"))?;
        let timed = async { tokio::time::timeout(within, work).await };
        let done = if Handle::try_current().is_err() {
            runtime.block_on(timed)
        } else {
            let joined = std::thread::scope(|scope| scope.spawn(|| runtime.block_on(timed)).join());
            joined.map_err(|_| fatal("the PostgreSQL client panicked"))?
        };
        match done {
            Ok(Ok(value)) => Ok(value),
            Ok(Err(error)) => Err(meaning(&error)),
            Err(_) => Err(StoreError::Retryable(format!(
                "PostgreSQL hasn't answered within {} ms",
                within.as_millis()
            ))),
        }
    }
}

impl Drop for EventLoop {
    /// Closes the socket at once, whatever is under way on it; also inside a runtime, where waiting is not allowed.
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn config(options: &PostgresOptions) -> Result<Config, StoreError> {
    options.url.parse().map_err(|error| {
        StoreError::Fatal(format!(
            "the PostgreSQL URL can't be read: {error}; give postgres://user@host:port/database"
        ))
    })
}

/// The configuration with one host of several, so that one which hangs doesn't hide the others.
fn single_host(
    config: &Config,
    at: usize,
    options: &PostgresOptions,
    wanted: TargetSessionAttrs,
) -> Config {
    let mut one = Config::new();
    match &config.get_hosts()[at] {
        Host::Tcp(host) => one.host(host),
        #[cfg(unix)]
        Host::Unix(path) => one.host_path(path),
    };
    if let Some(&address) = config.get_hostaddrs().get(at) {
        one.hostaddr(address);
    }
    let ports = config.get_ports();
    if let Some(&port) = ports.get(at).or_else(|| ports.first()) {
        one.port(port);
    }
    config.get_user().map(|user| one.user(user));
    config.get_password().map(|password| one.password(password));
    config.get_dbname().map(|dbname| one.dbname(dbname));
    config.get_options().map(|options| one.options(options));
    one.application_name(config.get_application_name().unwrap_or("stockade"))
        .ssl_mode(match config.get_ssl_mode() {
            SslMode::Require => SslMode::Require,
            _ => SslMode::Disable,
        })
        .channel_binding(config.get_channel_binding())
        .connect_timeout(options.connect_timeout)
        .tcp_user_timeout(PEER_GONE)
        .keepalives_idle(PEER_GONE)
        .keepalives_interval(Duration::from_secs(1))
        .keepalives_retries(3)
        .target_session_attrs(wanted);
    one
}

/// The tables grow from nothing while plans stay: so the planner may not choose what is best for an empty table. The
/// server must find a client that is gone, or takes nothing of an answer, by itself: else its locks stay for hours.
fn settings(options: &PostgresOptions) -> String {
    format!(
        "SET search_path = {schema};
         SET statement_timeout = {timeout_ms};
         SET plan_cache_mode = force_generic_plan;
         SET jit = off;
         SET enable_seqscan = off;
         SET enable_hashjoin = off;
         SET enable_mergejoin = off;
         SET tcp_keepalives_idle = {asked_after_s};
         SET tcp_keepalives_interval = 1;
         SET tcp_keepalives_count = {asked};
         SET tcp_user_timeout = {gone_ms};
         SELECT set_config('synchronous_commit', 'on', false) WHERE current_setting('synchronous_commit') = 'off';",
        schema = options.schema,
        timeout_ms = options.statement_timeout.as_millis(),
        asked_after_s = PEER_GONE.as_secs(),
        asked = CLIENT_GONE.saturating_sub(PEER_GONE).as_secs(),
        gone_ms = CLIENT_GONE.as_millis(),
    )
}

/// It is written into statements.
fn check_schema_name(name: &str) -> Result<(), StoreError> {
    let is_plain = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || byte == b'_';
    let starts = name
        .bytes()
        .next()
        .is_some_and(|byte| !byte.is_ascii_digit());
    if starts && name.len() <= 63 && name.bytes().all(is_plain) {
        return Ok(());
    }
    Err(fatal(format!(
        "\"{name}\" can't be a schema: give 1 to 63 of a-z, 0-9 and _, no digit first"
    )))
}

/// What an error means for the writer.
fn meaning(error: &Error) -> StoreError {
    let Some(database) = error.as_db_error() else {
        return if tls::is_distrusted(error) {
            fatal(format!(
                "{}; name the file of its root certificate, or reach it by the name that its certificate bears",
                text(error)
            ))
        } else if error.is_closed() || is_io(error) {
            StoreError::Retryable(text(error))
        } else {
            fatal(text(error))
        };
    };
    let code = database.code();
    let class = code.code().get(..2).unwrap_or_default();
    let told = format!("PostgreSQL: {} ({})", database.message(), code.code());
    if code.code() == REFUSED {
        return fatal(format!(
            "{}: the tables were changed from outside; nothing of the batch was committed{REPAIR}",
            database.message()
        ));
    }
    if *code == SqlState::CHECK_VIOLATION || *code == SqlState::UNIQUE_VIOLATION {
        return fatal(format!(
            "{} ({}): a law would break, or the tables were changed from outside; nothing of the batch was committed{REPAIR}",
            database.message(),
            database.detail().unwrap_or("no detail")
        ));
    }
    match class {
        // Connection, transaction state (a primary that became a standby), rollback, resources, state, operator, system.
        "08" | "25" | "40" | "53" | "55" | "57" | "58" => StoreError::Retryable(told),
        "28" => fatal(format!("{told}; check user and password in the URL")),
        "3D" => fatal(format!(
            "{told}; create the database, or name another one in the URL"
        )),
        "42" | "3F" => fatal(format!(
            "{told}; check the user's rights, and that the schema was made by `PostgresStore::migrate`"
        )),
        _ => fatal(told),
    }
}

/// Whether the connection itself failed.
fn is_io(error: &(dyn std::error::Error + 'static)) -> bool {
    error.is::<std::io::Error>() || error.source().is_some_and(is_io)
}

/// An error with its causes: the client's own texts say little.
fn text(error: &Error) -> String {
    let mut text = format!("PostgreSQL: {error}");
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        text = format!("{text}: {error}");
        cause = error.source();
    }
    text
}

pub(super) fn fatal(text: impl Into<String>) -> StoreError {
    StoreError::Fatal(text.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_schema_that_could_be_more_than_a_name_is_refused() {
        for name in ["", "a b", "a;b", "A", "1a", "a\"b", &"x".repeat(64)] {
            assert!(check_schema_name(name).is_err(), "{name}");
        }
        for name in ["stockade", "_s1", &"x".repeat(63)] {
            assert!(check_schema_name(name).is_ok(), "{name}");
        }
    }

    #[test]
    fn each_host_is_tried_by_itself_with_its_own_port() {
        let options = PostgresOptions::new("postgres://u:p@a:1,b:2/d?application_name=x");
        let config: Config = options.url.parse().expect("a URL");
        let one = single_host(&config, 1, &options, TargetSessionAttrs::ReadWrite);
        assert_eq!(one.get_hosts(), [Host::Tcp("b".to_owned())]);
        assert_eq!((one.get_ports(), one.get_user()), (&[2][..], Some("u")));
        assert_eq!(
            (one.get_dbname(), one.get_application_name()),
            (Some("d"), Some("x"))
        );
        assert_eq!(
            one.get_target_session_attrs(),
            TargetSessionAttrs::ReadWrite
        );
    }
}
