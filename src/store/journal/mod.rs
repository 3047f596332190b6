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
//! Every opening begins a segment of its own, whose header holds the writer's token (one epoch more) and the last batch it
//! found. So a takeover vouches for all before it, and nothing is ever written over bytes of an earlier run.
//!
//! # Larger than usual
//!
//! A batch is never split across segments. One that doesn't fit makes its segment longer than prepared; so do
//! batches that come before the next segment is ready, which costs them time but no promise.
//!
//! Invariants. I1: at most one frame is beyond what was acknowledged. I2: after a failed write nothing is written any
//! more. I3: the chain in memory is the chain on disk after each `Ok`.

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

pub use options::{JournalOptions, Retention};

use super::{OpenRequest, Progress, Recovered, Replica, Store, StoreError};
use crate::types::{Batch, Token};
use appender::Appender;
use directory::{Directory, LOCK_NAME};
use disk::{Access, Disk, place};
use frame::{FRAME_HEADER_SIZE, FrameHeader, FrameKind};
use keeper::{Closed, Keeper, Notes, Worker, is_unfinished};
use replay::{Replayed, replay};
use scan::ChainEnd;
use segment::{FRAMES_START, Segment, SegmentHeader, segment_index};
use snapshot::snapshot_batch;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

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
        settle(&*disk, &replayed)?;
        let inline = self.simulated.is_some();
        let writer = Writer::begin(disk, lock, &self.options, request, &replayed, inline)?;
        let recovered = Recovered {
            token: writer.token,
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
        self.writer.as_ref().map_or_else(Vec::new, |writer| {
            let mut warnings = writer.disk.warnings();
            warnings.extend(writer.notes.warnings());
            warnings
        })
    }
}

/// What a store has while it holds the role.
struct Writer {
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    shard: u16,
    token: Token,
    chain: ChainEnd,
    appender: Appender,
    next: Next,
    preparer: Worker<(SegmentHeader, u64), io::Result<Segment>>,
    keeper: Worker<Closed, ()>,
    notes: Notes,
    poisoned: Option<String>,
    /// Given back last, when the helpers have ended.
    _lock: Box<dyn Send>,
}

/// The segment after the active one.
enum Next {
    NotAsked,
    Asked,
    Ready(Segment),
}

impl Writer {
    fn begin(
        disk: Arc<dyn Disk>,
        lock: Box<dyn Send>,
        options: &JournalOptions,
        request: &OpenRequest,
        replayed: &Replayed,
        inline: bool,
    ) -> Result<Self, StoreError> {
        let last = replayed.segments.last().map(|segment| &segment.header);
        let chain = replayed.scanned.chain.clone();
        let header = SegmentHeader {
            shard: request.shard,
            takeover: true,
            index: last.map_or(1, |last| last.index + 1),
            token: Token {
                epoch: last.map_or(1, |last| last.token.epoch + 1),
                writer: request.writer,
            },
            base_number: chain.number,
            base_hash: chain.hash,
        };
        let begin = |error: io::Error| io_failed(&error, disk.path(), "beginning a segment");
        let size = options.first_segment_size.min(options.segment_size);
        let size = JournalOptions::whole(size);
        let segment = header.create(&*disk, size, &|| false).map_err(begin)?;
        remove_unfinished(&*disk);
        let appender = Appender::new(&*disk, segment).map_err(begin)?;
        let notes = Notes::default();
        for warning in &replayed.warnings {
            notes.warn(warning.clone());
        }
        let (preparer, keeper) = helpers(&disk, options, request, &notes, inline)
            .map_err(|error| fatal(format!("starting the journal's helper threads: {error}")))?;
        let mut writer = Self {
            disk,
            options: options.clone(),
            shard: request.shard,
            token: header.token,
            chain,
            appender,
            next: Next::NotAsked,
            preparer,
            keeper,
            notes,
            poisoned: None,
            _lock: lock,
        };
        if let Some(last) = last {
            writer.keeper.give(Closed {
                index: last.index,
                bytes: replayed.segments.iter().map(|segment| segment.len).sum(),
                last_batch: writer.chain.number,
            });
        }
        Ok(writer)
    }

    fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
        if let Some(text) = &self.poisoned {
            return Err(StoreError::Fatal(text.clone()));
        }
        if let Committed::Already = self.check(batch)? {
            return Ok(());
        }
        let header = FrameHeader {
            kind: FrameKind::Batch,
            body_len: batch.encoded_len() as u64,
            number: batch.header.number,
            hash: batch.hash(),
        };
        self.make_room(FRAME_HEADER_SIZE as u64 + header.body_len)
            .map_err(|error| self.poison(&error))?;
        let frame = header.encode(&self.appender.segment().key);
        let (head, events, refusals) = batch.encoded_parts();
        self.appender
            .append(&[&frame, &head, events, refusals])
            .map_err(|error| self.poison(&error))?;
        self.chain.follow(batch);
        Ok(())
    }

    /// Law L6: the token, the number and the predecessor's hash; and what a recovery would refuse.
    fn check(&self, batch: &Batch) -> Result<Committed, StoreError> {
        let (header, chain) = (&batch.header, &self.chain);
        if header.token != self.token {
            return Err(StoreError::Fenced {
                epoch: self.token.epoch,
            });
        }
        if header.number == chain.number && header.number > 0 {
            return match batch.hash() == chain.hash {
                true => Ok(Committed::Already),
                false => Err(StoreError::Fork {
                    number: header.number,
                }),
            };
        }
        if header.number != chain.number + 1 {
            return Err(StoreError::Behind {
                last: chain.number,
                next: header.number,
            });
        }
        if header.prev_hash != chain.hash {
            return Err(StoreError::Fork {
                number: header.number,
            });
        }
        if header.shard != self.shard {
            return Err(fatal(
                "a batch of another shard: this is a programming error",
            ));
        }
        match chain.refuses(batch) {
            Some(what) => Err(fatal(format!("{what}: this is a programming error"))),
            None => Ok(Committed::New),
        }
    }

    /// Moves on to the next segment if the active one is full and the next one is ready.
    fn make_room(&mut self, len: u64) -> io::Result<()> {
        let active = self.appender.segment();
        if matches!(self.next, Next::NotAsked) && self.appender.end() + len > active.len / 2 {
            self.ask_for_next();
        }
        if self.appender.fits(len) || self.appender.is_empty() {
            return Ok(());
        }
        if matches!(self.next, Next::Asked) {
            // A segment may grow while the next one is prepared, but not without bound.
            let wait = self.appender.end() + len > 2 * self.options.segment_size;
            let prepared = match wait {
                true => self.preparer.wait(),
                false => self.preparer.take(),
            };
            match prepared {
                Some(Ok(segment)) => self.next = Next::Ready(segment),
                Some(Err(error)) => {
                    self.notes
                        .warn(format!("the next segment can't be prepared: {error}"));
                    self.next = Next::NotAsked;
                }
                None => {}
            }
        }
        match std::mem::replace(&mut self.next, Next::NotAsked) {
            Next::Ready(segment) => {
                let closed = Closed {
                    index: self.appender.segment().header.index,
                    bytes: self.appender.end(),
                    last_batch: self.chain.number,
                };
                self.appender.advance(&*self.disk, segment)?;
                self.keeper.give(closed);
            }
            other => self.next = other,
        }
        Ok(())
    }

    fn ask_for_next(&mut self) {
        let active = self.appender.segment();
        let header = SegmentHeader {
            takeover: false,
            index: active.header.index + 1,
            base_number: self.chain.number,
            base_hash: self.chain.hash,
            ..active.header.clone()
        };
        let size = self.options.size_after(active.len);
        self.preparer.give((header, size));
        self.next = Next::Asked;
    }

    fn poison(&mut self, error: &io::Error) -> StoreError {
        let path = place(&*self.disk, &self.appender.segment().name());
        let error = io_failed(error, &path, "writing a batch");
        let text = format!(
            "{error}; what was acknowledged is on disk, nothing more is written: restart to recover"
        );
        self.poisoned = Some(text.clone());
        StoreError::Fatal(text)
    }

    fn seal(&mut self) -> Result<(), StoreError> {
        if let Some(text) = &self.poisoned {
            return Err(StoreError::Fatal(text.clone()));
        }
        let seal = FrameHeader {
            kind: FrameKind::Seal,
            body_len: 0,
            number: self.chain.number,
            hash: self.chain.hash,
        };
        let frame = seal.encode(&self.appender.segment().key);
        // A second copy begins a block of its own: one bad sector can't take the last batch and both its seals.
        let first_end = self.appender.end() + FRAME_HEADER_SIZE as u64;
        let pad = first_end.next_multiple_of(disk::BLOCK as u64) - first_end;
        let zeros = [0; disk::BLOCK];
        let pad = usize::try_from(pad).unwrap_or(0);
        self.appender
            .append(&[&frame, &zeros[..pad], &frame])
            .map_err(|error| self.poison(&error))
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The helpers' fields are dropped after this and wait for their threads.
        self.notes.stop();
    }
}

enum Committed {
    Already,
    New,
}

type Helpers = (
    Worker<(SegmentHeader, u64), io::Result<Segment>>,
    Worker<Closed, ()>,
);

fn helpers(
    disk: &Arc<dyn Disk>,
    options: &JournalOptions,
    request: &OpenRequest,
    notes: &Notes,
    inline: bool,
) -> io::Result<Helpers> {
    let (prepare_disk, prepare_notes) = (Arc::clone(disk), notes.clone());
    let prepare = move |(header, size): (SegmentHeader, u64)| {
        header.create(&*prepare_disk, size, &|| prepare_notes.stopped())
    };
    let mut keeper = Keeper::new(
        Arc::clone(disk),
        options.clone(),
        request.shard,
        Arc::clone(&request.replicas),
        notes.clone(),
    );
    let keep = move |closed| keeper.tend(closed);
    if inline {
        return Ok((Worker::inline(prepare), Worker::inline(keep)));
    }
    Ok((
        Worker::on_thread("journal-prepare", prepare)?,
        Worker::on_thread("journal-keep", keep)?,
    ))
}

/// Makes durable what was read, also what a killed process had not synced, and gives back what was prepared for nothing.
fn settle(disk: &dyn Disk, replayed: &Replayed) -> Result<(), StoreError> {
    let scanned = &replayed.scanned;
    let (last_index, last_end) = scanned.end.unwrap_or((0, FRAMES_START));
    let covered = replayed.snapshot.as_ref().map_or(0, |s| s.next_segment);
    for segment in &replayed.segments {
        let index = segment.header.index;
        if index < last_index.max(covered) {
            continue;
        }
        let name = segment.name();
        let settled = disk.open(&name, Access::Append).and_then(|file| {
            let end = if index == last_index {
                last_end
            } else {
                FRAMES_START
            };
            let unused = end.next_multiple_of(disk::BLOCK as u64);
            // A torn tail stays as it is, for whoever wants to look at it.
            if scanned.dropped_tail.is_none() && unused < segment.len {
                file.cut(unused)?;
            }
            file.sync()
        });
        settled.map_err(|error| io_failed(&error, &place(disk, &name), "syncing a segment"))?;
    }
    Ok(())
}

/// Best effort: what stays is removed by the next opening.
fn remove_unfinished(disk: &dyn Disk) {
    let names = disk.list().unwrap_or_default();
    for name in names.iter().filter(|name| is_unfinished(name)) {
        let _ = disk.remove(name);
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
