//! Where the log of a sale is kept: a journal directory here, or PostgreSQL.

use crate::engine::EngineBuilder;
use anyhow::{Result, bail};
use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use stockade::store::{JournalOptions, JournalStore, ReadLog};

/// Where the sale is kept.
#[derive(Debug, clap::Args)]
#[group(required = true, multiple = false)]
pub(crate) struct Kept {
    /// The journal directory; it is made if need be, and continued if it holds a sale
    #[arg(long, value_name = "DIR")]
    pub(crate) data: Option<PathBuf>,
    /// A PostgreSQL server instead, prepared by `init`. While another writer has the role this one follows, as a warm
    /// standby, and serves once it has taken over
    #[arg(
        long,
        value_name = "URL",
        env = "FLASH_SALE_STORE",
        hide_env_values = true
    )]
    pub(crate) store: Option<PostgresUrl>,
}

impl Kept {
    pub(crate) fn log(&self) -> Result<Log> {
        match (&self.data, &self.store) {
            (Some(dir), None) => Ok(Log::journal(dir)),
            (None, Some(url)) => Ok(Log::Postgres(url.clone())),
            _ => bail!("say where the sale is kept: --data DIR or --store URL"),
        }
    }
}

/// A log's place.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Log {
    /// A directory of this machine.
    Journal(PathBuf),
    /// A PostgreSQL server.
    Postgres(PostgresUrl),
}

/// Ends the wait for the writer's role.
pub(crate) type Stop = Box<dyn FnOnce() + Send>;

impl Log {
    pub(crate) fn journal(dir: &Path) -> Self {
        Self::Journal(dir.to_owned())
    }

    /// Gives the engine its store. On PostgreSQL it waits for the role while another writer has it, until it is stopped; a journal
    /// that another writer has is refused at once.
    pub(crate) fn attach(&self, builder: EngineBuilder) -> Result<(EngineBuilder, Stop)> {
        match self {
            Self::Journal(dir) => {
                let store = JournalStore::new(JournalOptions::new(dir));
                Ok((builder.store(store), Box::new(|| ())))
            }
            Self::Postgres(url) => url.attach(builder),
        }
    }

    /// Whether other machines can go on when this writer ends.
    pub(crate) fn is_shared(&self) -> bool {
        matches!(self, Self::Postgres(_))
    }

    /// For whoever wonders why nothing happens.
    pub(crate) fn says_that_it_waits(&self) {
        if self.is_shared() {
            eprintln!("{self}: following the log until the writer's role is free");
        }
    }
}

impl fmt::Display for Log {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Journal(dir) => dir.display().fmt(f),
            Self::Postgres(url) => url.fmt(f),
        }
    }
}

/// `postgres://USER:PASSWORD@HOST:PORT/DATABASE`, several hosts separated by commas.
#[derive(Clone, PartialEq, Eq)]
pub(crate) struct PostgresUrl(String);

/// Without what may be a password.
impl fmt::Display for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (_, rest) = self.0.split_once("://").unwrap_or_default();
        let place = rest.rsplit_once('@').map_or(rest, |(_, place)| place);
        write!(f, "postgres://{place}")
    }
}

impl fmt::Debug for PostgresUrl {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for PostgresUrl {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        if text.starts_with("postgres://") || text.starts_with("postgresql://") {
            Ok(Self(text.to_owned()))
        } else {
            Err("give postgres://USER:PASSWORD@HOST:PORT/DATABASE".to_owned())
        }
    }
}

#[cfg(feature = "postgres")]
impl PostgresUrl {
    /// To follow, and to write once the role is free.
    pub(crate) fn options(&self) -> stockade::postgres::PostgresOptions {
        let mut options = stockade::postgres::PostgresOptions::new(self.0.clone());
        options.role = stockade::postgres::Role::STANDBY;
        options
    }

    #[expect(
        clippy::unnecessary_wraps,
        reason = "it fails where the feature is missing"
    )]
    fn attach(&self, builder: EngineBuilder) -> Result<(EngineBuilder, Stop)> {
        let store = stockade::postgres::PostgresStore::new(self.options());
        let stop = store.stop_handle();
        Ok((builder.store(store), Box::new(move || stop.stop())))
    }

    /// What is committed, read beside its writer.
    #[cfg(feature = "kafka")]
    pub(crate) fn reader(&self, shard: u16) -> stockade::postgres::PostgresLog {
        stockade::postgres::PostgresLog::new(self.options(), shard)
    }

    /// Gives the log of every shard.
    pub(crate) fn read_logs(
        &self,
        take: &mut dyn FnMut(&mut dyn ReadLog) -> Result<()>,
    ) -> Result<()> {
        let options = self.options();
        for shard in stockade::postgres::PostgresMoment::new(&options)?.shards()? {
            take(&mut stockade::postgres::PostgresLog::new(
                options.clone(),
                shard,
            ))?;
        }
        Ok(())
    }

    /// Makes the tables, or brings them to this release's version.
    pub(crate) fn migrate(&self) -> Result<()> {
        Ok(stockade::postgres::PostgresStore::migrate(&self.options())?)
    }
}

#[cfg(not(feature = "postgres"))]
impl PostgresUrl {
    fn attach(&self, _: EngineBuilder) -> Result<(EngineBuilder, Stop)> {
        self.missing()
    }

    pub(crate) fn read_logs(
        &self,
        _: &mut dyn FnMut(&mut dyn ReadLog) -> Result<()>,
    ) -> Result<()> {
        self.missing()
    }

    /// Makes the tables, or brings them to this release's version.
    pub(crate) fn migrate(&self) -> Result<()> {
        self.missing()
    }

    /// # Errors
    /// Always: it names the feature.
    pub(crate) fn missing<T>(&self) -> Result<T> {
        anyhow::bail!("this program can't reach {self}: build it with `--features postgres`")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_password_is_never_shown() {
        let url: PostgresUrl = "postgres://ann:s3cr@t@db:5432/shop".parse().expect("a URL");
        assert_eq!(
            (url.to_string(), format!("{url:?}")),
            (
                "postgres://db:5432/shop".into(),
                "postgres://db:5432/shop".into()
            )
        );
        assert!("mysql://db".parse::<PostgresUrl>().is_err());
    }

    #[cfg(not(feature = "postgres"))]
    #[test]
    fn a_flag_without_its_feature_names_it() {
        let url: PostgresUrl = "postgres://db/shop".parse().expect("a URL");
        let error = url.migrate().expect_err("there is no client");
        assert!(error.to_string().contains("--features postgres"), "{error}");
    }
}
