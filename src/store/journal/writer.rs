//! The writer of a journal: what a store is from its opening to its end. It appends batches, moves on from segment to
//! segment and gives the helpers their work; what a log says, others read.
//!
//! Invariants. I1: at most one frame is beyond what was acknowledged. I2: after a failed write nothing is written any
//! more. I3: the chain in memory is the chain on disk after each `Ok`. I4: before the takeover's segment exists,
//! everything it vouches for is durable.

use super::appender::Appender;
use super::disk::{Access, BLOCK, Disk, place};
use super::frame::{FRAME_HEADER_SIZE, FrameHeader, FrameKind};
use super::keeper::{Closed, Keeper};
use super::replay::Replayed;
use super::scan::ChainEnd;
use super::segment::{FRAMES_START, Segment, SegmentHeader, is_unfinished};
use super::worker::{Notes, Worker};
use super::{JournalOptions, fatal, io_failed};
use crate::store::{OpenRequest, StoreError};
use crate::types::{Batch, Token};
use std::io;
use std::sync::Arc;

/// A store that holds the role.
pub(super) struct Writer {
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
    /// Takes the role: from here on the log has this writer's epoch.
    pub(super) fn begin(
        disk: Arc<dyn Disk>,
        lock: Box<dyn Send>,
        options: &JournalOptions,
        request: &OpenRequest,
        replayed: &Replayed,
        inline: bool,
    ) -> Result<Self, StoreError> {
        settle(&*disk, replayed)?;
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

    pub(super) fn token(&self) -> Token {
        self.token
    }

    pub(super) fn warnings(&self) -> Vec<String> {
        let mut warnings = self.disk.warnings();
        warnings.extend(self.notes.warnings());
        warnings
    }

    pub(super) fn commit(&mut self, batch: &Batch) -> Result<(), StoreError> {
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
            if batch.hash() == chain.hash {
                return Ok(Committed::Already);
            }
            return Err(StoreError::Fork {
                number: header.number,
            });
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
        // A log that stays small never asks; one that doesn't asks while there is room yet.
        let early = active.len / 8;
        if matches!(self.next, Next::NotAsked) && self.appender.end() + len > early {
            self.ask_for_next();
        }
        if self.appender.fits(len) || self.appender.is_empty() {
            return Ok(());
        }
        if matches!(self.next, Next::Asked) {
            // A segment may grow while the next one is prepared, but not without bound.
            let wait = self.appender.end() + len > 2 * self.options.segment_size;
            let prepared = if wait {
                self.preparer.wait()
            } else {
                self.preparer.take()
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

    /// Says at the log's end that nothing is missing.
    pub(super) fn seal(&mut self) -> Result<(), StoreError> {
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
        let pad = first_end.next_multiple_of(BLOCK as u64) - first_end;
        let zeros = [0; BLOCK];
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
        Worker::on_thread("journal-prepare", false, prepare)?,
        Worker::on_thread("journal-keep", true, keep)?,
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
            let unused = end.next_multiple_of(BLOCK as u64);
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
