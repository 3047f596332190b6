//! The helpers beside the writer: one prepares the next segment, one makes snapshots and keeps or removes old segments.
//! Neither sees the live state or the active segment's end, and neither is needed for a commit to succeed.
//!
//! ```text
//! writer ── next segment's header ──► preparer ── segment ──► writer
//!        ── segments below n are closed ──► keeper: fresh replica, restore last snapshot, apply, export
//!                                                   then archive or delete what two snapshots cover
//! ```
//!
//! Invariants. I1: a segment is removed only if the second newest snapshot covers it, so a damaged newest one never
//! costs the log. I2: helpers stop between two slices (or batches) when told, and have ended when `Worker` is dropped.
//! I3: a failure, also a panic of the replica, is a warning and leaves the log as it is.

use super::disk::Disk;
use super::scan::{ChainEnd, scan};
use super::segment::{segments, unfinished};
use super::snapshot::{self, snapshot_name, snapshots};
use super::{JournalOptions, Retention, fatal};
use crate::store::{ReplicaFactory, StoreError};
use parking_lot::Mutex;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread::{self, JoinHandle};

/// Snapshots that stay.
const SNAPSHOTS_KEPT: usize = 2;
/// Warnings that are remembered.
const WARNINGS_MAX: usize = 8;

/// What helpers share with the writer.
#[derive(Clone, Default)]
pub(super) struct Notes(Arc<Mutex<NotesInner>>);

#[derive(Default)]
struct NotesInner {
    stop: bool,
    warnings: Vec<String>,
}

impl Notes {
    pub(super) fn stopped(&self) -> bool {
        self.0.lock().stop
    }

    pub(super) fn stop(&self) {
        self.0.lock().stop = true;
    }

    pub(super) fn warn(&self, warning: String) {
        let warnings = &mut self.0.lock().warnings;
        if warnings.len() < WARNINGS_MAX && !warnings.contains(&warning) {
            warnings.push(warning);
        }
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        self.0.lock().warnings.clone()
    }
}

/// Does jobs one after the other: on a thread of low priority, or on the caller's at once.
pub(super) struct Worker<J, R> {
    /// `None` once it is to end.
    jobs: Option<Jobs<J, R>>,
    results: Receiver<R>,
    thread: Option<JoinHandle<()>>,
}

enum Jobs<J, R> {
    Thread(Sender<J>),
    Inline(Box<dyn FnMut(J) -> R + Send>, Sender<R>),
}

impl<J: Send + 'static, R: Send + 'static> Worker<J, R> {
    /// Jobs are done on a thread of this name.
    pub(super) fn on_thread(
        name: &str,
        mut work: impl FnMut(J) -> R + Send + 'static,
    ) -> std::io::Result<Self> {
        let (jobs, todo) = channel::<J>();
        let (done, results) = channel();
        let thread = thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || {
                lower_priority();
                for job in todo {
                    if done.send(work(job)).is_err() {
                        break;
                    }
                }
            })?;
        Ok(Self {
            jobs: Some(Jobs::Thread(jobs)),
            results,
            thread: Some(thread),
        })
    }

    /// Jobs are done where they are given: for tests, which want one order of things.
    pub(super) fn inline(work: impl FnMut(J) -> R + Send + 'static) -> Self {
        let (done, results) = channel();
        Self {
            jobs: Some(Jobs::Inline(Box::new(work), done)),
            results,
            thread: None,
        }
    }

    pub(super) fn give(&mut self, job: J) {
        // A helper that has ended (it can't, but by a panic it reported) leaves the job undone.
        match &mut self.jobs {
            Some(Jobs::Thread(jobs)) => drop(jobs.send(job)),
            Some(Jobs::Inline(work, done)) => drop(done.send(work(job))),
            None => {}
        }
    }

    /// The result of a finished job.
    pub(super) fn take(&self) -> Option<R> {
        self.results.try_recv().ok()
    }

    /// Waits for the result of a job; `None` if there is none to come.
    pub(super) fn wait(&self) -> Option<R> {
        self.results.recv().ok()
    }
}

impl<J, R> Drop for Worker<J, R> {
    fn drop(&mut self) {
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            // A panic was reported as a warning where it happened.
            let _ = thread.join();
        }
    }
}

/// The writer's thread should get the processor first.
#[cfg(target_os = "linux")]
fn lower_priority() {
    // On Linux this is the calling thread's own; without it everything works, only less smoothly.
    let _ = rustix::process::setpriority_process(None, 19);
}

#[cfg(not(target_os = "linux"))]
fn lower_priority() {}

/// Segments that will not change any more.
pub(super) struct Closed {
    /// The last of them.
    pub(super) index: u64,
    /// How much longer the closed log has become.
    pub(super) bytes: u64,
    /// The last batch in them.
    pub(super) last_batch: u64,
}

/// Makes snapshots and removes what they cover.
pub(super) struct Keeper {
    disk: Arc<dyn Disk>,
    options: JournalOptions,
    shard: u16,
    replicas: ReplicaFactory,
    notes: Notes,
    /// Bytes in closed segments since the last snapshot.
    bytes: u64,
}

impl Keeper {
    pub(super) fn new(
        disk: Arc<dyn Disk>,
        options: JournalOptions,
        shard: u16,
        replicas: ReplicaFactory,
        notes: Notes,
    ) -> Self {
        Self {
            disk,
            options,
            shard,
            replicas,
            notes,
            bytes: 0,
        }
    }

    /// The closed log has become longer.
    pub(super) fn tend(&mut self, closed: Closed) {
        self.bytes += closed.bytes;
        let due = self.options.snapshot_every_bytes;
        if due.is_none_or(|every| self.bytes < every) || self.notes.stopped() {
            return;
        }
        // Also after a failure: it is tried again after as many bytes, not with every segment.
        self.bytes = 0;
        let tended = catch_unwind(AssertUnwindSafe(|| self.snapshot(&closed)));
        let error = match tended {
            Ok(Ok(())) => return,
            Ok(Err(_)) if self.notes.stopped() => return,
            Ok(Err(error)) => error.to_string(),
            Err(_) => "the replica panicked".to_owned(),
        };
        self.notes.warn(format!(
            "no snapshot could be made, the log is whole without it: {error}"
        ));
    }

    /// Makes a snapshot of the closed segments.
    fn snapshot(&self, closed: &Closed) -> Result<(), StoreError> {
        let disk = &*self.disk;
        let mut warnings = Vec::new();
        let last = snapshot::newest(disk, Some(self.shard), &mut warnings)?;
        for warning in warnings {
            self.notes.warn(warning);
        }
        let mut replica = (self.replicas)();
        let (first, from) = match &last {
            Some(header) => {
                snapshot::restore(disk, header, &mut *replica)?;
                (header.next_segment, header.chain.clone())
            }
            None => (0, ChainEnd::default()),
        };
        let mut segments = segments(disk, Some(self.shard), first)?;
        segments.retain(|segment| segment.header.index <= closed.index);
        let before = from.number;
        let scanned = scan(disk, &segments, from, &mut |batch, _| {
            if self.notes.stopped() {
                return Err(fatal("stopped"));
            }
            replica
                .apply(batch)
                .map_err(|error| fatal(error.to_string()))
        })?;
        if scanned.chain.number != closed.last_batch {
            let what = format!(
                "the closed segments end with batch {} instead of {}",
                scanned.chain.number, closed.last_batch
            );
            return Err(fatal(what));
        }
        if scanned.chain.number > before {
            let next_segment = closed.index + 1;
            snapshot::write(disk, self.shard, &scanned.chain, next_segment, &*replica)
                .map_err(|error| fatal(format!("writing a snapshot: {error}")))?;
        }
        self.retain()
            .map_err(|error| fatal(format!("removing old segments: {error}")))
    }

    /// Removes old snapshots, and old segments as the policy says.
    fn retain(&self) -> std::io::Result<()> {
        let disk = &*self.disk;
        let batches = snapshots(disk)?;
        let Some(&covering) = batches.get(SNAPSHOTS_KEPT - 1) else {
            return Ok(());
        };
        let covered = match snapshot::verify(disk, covering) {
            Ok(header) => header.next_segment,
            // What a damaged snapshot covers must stay.
            Err(_) => 0,
        };
        for &batch in batches.iter().skip(SNAPSHOTS_KEPT) {
            disk.remove(&snapshot_name(batch))?;
        }
        if self.options.retention == Retention::Keep {
            return disk.sync();
        }
        let names = disk.list()?;
        let mut old: Vec<u64> = names
            .iter()
            .filter_map(|name| super::segment::segment_index(name))
            .filter(|&index| index < covered)
            .collect();
        // Oldest first, each durably: what is left has no gap.
        old.sort_unstable();
        for index in old {
            let name = super::segment::segment_name(index);
            match &self.options.retention {
                Retention::Keep => {}
                Retention::Archive(to) => disk.archive(&name, to)?,
                Retention::Delete => {
                    disk.remove(&name)?;
                    disk.sync()?;
                }
            }
        }
        Ok(())
    }
}

/// True for names of files that were never finished.
pub(super) fn is_unfinished(name: &str) -> bool {
    name.ends_with(&unfinished(""))
}
