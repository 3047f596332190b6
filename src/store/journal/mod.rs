//! The journal: the embedded store, an append-only log in one directory.
//!
//! One durable write a batch, one in flight. It knows batches and their chain, not inventory: snapshots are made by a
//! helper that folds closed segments with a [`Replica`] of its own.
//!
//! ```text
//! lock                               held by the one writer (flock)
//! segment-0000000001.log             header | frame | frame | ..
//! segment-0000000002.log             .. the active one is the last with a frame; the next is prepared, all zeros
//! snapshot-00000000000000012345.state
//! *.new                              unfinished, doesn't count
//! ```
//!
//! # What survives what
//!
//! A commit is `Ok` once its write, past the page cache and with the device's flush, has returned. After a crash the log
//! is whole up to the last such batch; a batch whose write was under way is there whole or not at all.
//!
//! A batch is *vouched for* by its successor, by a later segment's header, or by the seal of a clean
//! [`close`](Store::close). Damage in such a batch is refused, naming file and offset; damage in the very last batch can't be
//! told from a torn write, is dropped, and reported in [`Recovered::dropped_tail`]. That is why an idle writer commits an
//! empty batch after 10 ms ([`Store::idle_commit_after`]).
//!
//! Every takeover begins a segment of its own, whose header holds the writer's token (one epoch more) and the last batch it
//! found. So a takeover vouches for all before it, and nothing is ever written over bytes of an earlier run.
//!
//! # Larger than usual
//!
//! A batch is never split across segments. One that doesn't fit makes its segment longer than prepared; so do
//! batches that come before the next segment is ready, which costs them time but no promise.
//!
//! The tests in `crash` lose power at every step and change every kind of byte.

mod appender;
#[cfg(test)]
mod crash;
mod directory;
mod disk;
mod frame;
mod keeper;
mod options;
mod replay;
mod scan;
mod segment;
#[cfg(test)]
mod sim;
mod snapshot;
mod worker;
mod writer;

pub use options::{JournalOptions, Retention};

use super::{OpenRequest, Progress, ReadLog, Recovered, Replica, Store, StoreError};
use crate::types::Batch;
use directory::{Directory, LOCK_NAME};
use disk::{Disk, place};
use replay::replay;
use segment::{is_unfinished, segment_index};
use snapshot::snapshot_batch;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use writer::Writer;

/// An idle writer vouches for its last batch after this.
const IDLE_COMMIT_AFTER: Duration = Duration::from_millis(10);

/// A store in a directory of its own.
///
/// ```no_run
/// use stockade::store::journal::{JournalOptions, JournalStore};
///
/// let store = JournalStore::new(JournalOptions::new("/var/lib/shop/journal"));
/// # let _ = store;
/// ```
pub struct JournalStore {
    options: JournalOptions,
    /// In place of the real directory; helpers then work on the caller's thread.
    simulated: Option<Arc<dyn Disk>>,
    writer: Option<Writer>,
}

impl std::fmt::Debug for JournalStore {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("JournalStore")
            .field("options", &self.options)
            .field("open", &self.writer.is_some())
            .finish_non_exhaustive()
    }
}

impl JournalStore {
    /// Nothing is touched before it is opened.
    pub fn new(options: JournalOptions) -> Self {
        Self {
            options,
            simulated: None,
            writer: None,
        }
    }

    #[cfg(test)]
    fn simulated(options: JournalOptions, disk: Arc<dyn Disk>) -> Self {
        Self {
            options,
            simulated: Some(disk),
            writer: None,
        }
    }

    fn disk(&self) -> Result<Arc<dyn Disk>, StoreError> {
        if let Some(disk) = &self.simulated {
            return Ok(Arc::clone(disk));
        }
        let dir = &self.options.dir;
        std::fs::create_dir_all(dir)
            .map_err(|error| io_failed(&error, dir, "creating the directory"))?;
        Ok(Arc::new(Directory::new(dir)))
    }
}

/// Reads a journal without taking the writer's role, and verifies every byte on the way: from the first segment, or from
/// the last snapshot. A log whose writer is at work may seem to end in a torn batch.
///
/// # Errors
/// If there is no journal, if it is damaged or of a newer format, or if `replica` refuses a batch; nothing is changed.
pub fn read(
    dir: &Path,
    from_snapshot: bool,
    replica: &mut dyn Replica,
    progress: &mut dyn FnMut(Progress),
) -> Result<Recovered, StoreError> {
    let disk = Directory::new(dir);
    refuse_foreign(&disk)?;
    let replayed = replay(&disk, None, from_snapshot, replica, progress)?;
    if replayed.snapshot.is_none() && replayed.segments.is_empty() {
        let text = format!("{}: there is no journal here", dir.display());
        return Err(StoreError::Fatal(text));
    }
    if let Some(warning) = replayed.warnings.first() {
        let text = format!("{warning}; read it without snapshots");
        return Err(StoreError::Fatal(text));
    }
    let token = replayed.segments.last().map(|last| last.header.token);
    Ok(Recovered {
        token: token.unwrap_or_default(),
        ..replayed.scanned.into_recovered()
    })
}

/// Reads a journal's batches beside its writer. Each read begins at the newest snapshot, if that is early enough, or at the first
/// segment.
#[derive(Debug, Clone)]
pub struct JournalReader {
    dir: std::path::PathBuf,
}

impl JournalReader {
    /// Nothing is touched before it reads.
    pub fn new(dir: impl Into<std::path::PathBuf>) -> Self {
        Self { dir: dir.into() }
    }
}

impl ReadLog for JournalReader {
    fn read(&mut self, from: u64, take: &mut dyn FnMut(&Batch) -> bool) -> Result<(), StoreError> {
        let disk = Directory::new(&self.dir);
        refuse_foreign(&disk)?;
        replay::read_from(&disk, from, take)
    }
}

impl Store for JournalStore {
    fn open(
        &mut self,
        request: &OpenRequest,
        replica: &mut dyn Replica,
        progress: &mut dyn FnMut(Progress),
    ) -> Result<Recovered, StoreError> {
        if self.writer.is_some() {
            return Err(fatal("this journal is open: close it first"));
        }
        let disk = self.disk()?;
        refuse_foreign(&*disk)?;
        let locked = disk.lock();
        let lock = locked
            .map_err(|error| io_failed(&error, disk.path(), "locking the directory"))?
            .ok_or_else(|| {
                fatal(format!(
                    "{}: another writer has this journal open; stop it, or give this one another directory",
                    disk.path().display()
                ))
            })?;
        let replayed = replay(&*disk, Some(request.shard), true, replica, progress)?;
        replica
            .complete()
            .map_err(|error| fatal(error.to_string()))?;
        let inline = self.simulated.is_some();
        let writer = Writer::begin(disk, lock, &self.options, request, &replayed, inline)?;
        let recovered = Recovered {
            token: writer.token(),
            ..replayed.scanned.into_recovered()
        };
        self.writer = Some(writer);
        Ok(recovered)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        let writer = self.writer.as_mut();
        writer
            .ok_or_else(|| fatal("this journal is not open: open it before the first commit"))?
            .commit(batch)
    }

    fn idle_commit_after(&self) -> Option<Duration> {
        Some(IDLE_COMMIT_AFTER)
    }

    fn close(&mut self) -> Result<(), StoreError> {
        match self.writer.take() {
            Some(mut writer) => writer.seal(),
            None => Ok(()),
        }
    }

    fn warnings(&self) -> Vec<String> {
        self.writer.as_ref().map_or_else(Vec::new, Writer::warnings)
    }
}

/// A directory without a journal must be empty.
fn refuse_foreign(disk: &dyn Disk) -> Result<(), StoreError> {
    let names = disk
        .list()
        .map_err(|error| io_failed(&error, disk.path(), "listing the directory"))?;
    let is_journal =
        |name: &String| segment_index(name).is_some() || snapshot_batch(name).is_some();
    if names.iter().any(is_journal) {
        return Ok(());
    }
    // A file system's own directory, and what a first opening leaves when it is cut short.
    let is_known = |name: &str| name == LOCK_NAME || name == "lost+found" || is_unfinished(name);
    match names.iter().find(|name| !is_known(name)) {
        Some(name) => Err(fatal(format!(
            "{}: it holds \"{name}\" and no journal; choose an empty directory",
            disk.path().display()
        ))),
        None => Ok(()),
    }
}

fn fatal(text: impl Into<String>) -> StoreError {
    StoreError::Fatal(text.into())
}

/// Damage, or something that only a human can judge.
fn damaged(disk: &dyn Disk, name: &str, offset: u64, what: &str) -> StoreError {
    fatal(format!(
        "{}, byte {offset}: {what}; nothing was changed: restore the directory from a backup or a standby",
        place(disk, name).display()
    ))
}

/// An error of the operating system, with what to do.
fn io_failed(error: &io::Error, path: &Path, doing: &str) -> StoreError {
    let advice = match error.kind() {
        io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem => {
            "; make it writable for this user"
        }
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "; free space on the disk",
        io::ErrorKind::NotFound => "; check the path",
        io::ErrorKind::NotADirectory => "; choose a directory",
        _ => "",
    };
    fatal(format!(
        "{}: {doing} failed: {error}{advice}",
        path.display()
    ))
}
