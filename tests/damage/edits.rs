//! Edits of a journal's files, and what the files still prove after them.
//!
//! The offsets are those of the journal's layout. That they are right is checked on every pristine log: a forgery that
//! changes nothing must give the same bytes.

use super::logs::{BLOCK, Files, Log};
use super::script::Script;
use std::ops::Range;

const SECTOR: usize = 512;
const FRAME_HEADER: usize = 64;
const FRAME_MAGIC: &[u8] = b"SKfr";
const SEAL: u8 = 2;
/// In a segment's header: its fields, the number of its base, and its check, which is the key of the frames' checks.
const HEADER_FIELDS: Range<usize> = 8..88;
const HEADER_BASE: Range<usize> = 48..56;
const HEADER_KEY: Range<usize> = 88..120;
/// In a segment's and in a snapshot's header: the number that its name has too.
const NAMED: Range<usize> = 16..24;
/// In a frame's header.
const FRAME_FIELDS: Range<usize> = 4..56;
const FRAME_HASH: usize = 24;
const FRAME_CHECK: Range<usize> = 56..64;
/// In a snapshot's header.
const SNAPSHOT_FIELDS: Range<usize> = 8..180;
const SNAPSHOT_RECORDS: Range<usize> = 80..88;
const SNAPSHOT_BODY_HASH: Range<usize> = 88..120;
const SNAPSHOT_CHECK: Range<usize> = BLOCK - 32..BLOCK;

/// Edits the files of a log.
pub(crate) struct Editor<'a> {
    files: &'a mut Files,
}

impl<'a> Editor<'a> {
    pub(crate) fn new(files: &'a mut Files) -> Self {
        Self { files }
    }

    fn name(&self, script: &mut Script<'_>) -> Option<String> {
        let at = script.below(self.files.len());
        self.files.keys().nth(at).cloned()
    }

    fn file(&mut self, script: &mut Script<'_>) -> Option<&mut Vec<u8>> {
        let name = self.name(script)?;
        self.files.get_mut(&name)
    }

    /// One edit as a disk, a file system or a person might make it.
    pub(crate) fn damage(&mut self, script: &mut Script<'_>) {
        // Nothing is left to be edited when every file was removed.
        let _ = match script.below(12) {
            0 | 1 => self.flip(script),
            2 => self.overwrite(script),
            3 => self.zero(script),
            4 => self.cut(script),
            5 => self.append(script),
            6 => self.copy_block(script, BLOCK),
            7 => self.copy_block(script, SECTOR),
            8 => self.copy_frame(script),
            9 => self.remove(script),
            10 => self.copy_file(script),
            _ => self.replace(script),
        };
    }

    fn flip(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let at = interesting(bytes, script);
        *bytes.get_mut(at)? ^= 1 << script.below(8);
        Some(())
    }

    fn overwrite(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let at = interesting(bytes, script);
        let len = 1 + script.below(64);
        write(bytes, at, script.take(len));
        Some(())
    }

    fn zero(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let at = script.below(bytes.len().div_ceil(SECTOR)) * SECTOR;
        let end = (at + SECTOR * (1 + script.below(16))).min(bytes.len());
        bytes[at..end].fill(0);
        Some(())
    }

    fn cut(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let len = interesting(bytes, script);
        bytes.truncate(len);
        Some(())
    }

    fn append(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let zeros = script.below(BLOCK);
        bytes.resize(bytes.len() + zeros, 0);
        let len = script.below(256);
        bytes.extend_from_slice(script.take(len));
        Some(())
    }

    /// A write that went to another place.
    fn copy_block(&mut self, script: &mut Script<'_>, size: usize) -> Option<()> {
        let from = self.file(script)?;
        let at = script.below(from.len().div_ceil(size)) * size;
        let block = from.get(at..(at + size).min(from.len()))?.to_vec();
        let to = self.file(script)?;
        let at = script.below(to.len().div_ceil(size) + 1) * size;
        to.resize(to.len().max(at), 0);
        write(to, at, &block);
        Some(())
    }

    /// A whole frame, in another place.
    fn copy_frame(&mut self, script: &mut Script<'_>) -> Option<()> {
        let from = self.file(script)?;
        let at = pick(&frames(from), script)?;
        let frame = from[at..(at + frame_len(from, at)).min(from.len())].to_vec();
        let to = self.file(script)?;
        let places = frames(to);
        let at = match pick(&places, script) {
            Some(at) if script.byte() & 1 == 0 => at,
            _ => end_of_frames(to),
        };
        to.resize(to.len().max(at), 0);
        write(to, at, &frame);
        Some(())
    }

    fn remove(&mut self, script: &mut Script<'_>) -> Option<()> {
        let name = self.name(script)?;
        self.files.remove(&name);
        Some(())
    }

    /// Restored by somebody under a wrong name.
    fn copy_file(&mut self, script: &mut Script<'_>) -> Option<()> {
        let name = self.name(script)?;
        let bytes = self.files.get(&name)?.clone();
        let number = script.number();
        let copy = match script.below(5) {
            0 => format!("segment-{:010}.log", number % 16),
            1 => format!("segment-{number:010}.log"),
            2 => format!("snapshot-{:020}.state", number % 16),
            3 => format!("snapshot-{number:020}.state"),
            _ => format!("{name}.new"),
        };
        self.files.insert(copy, bytes);
        Some(())
    }

    fn replace(&mut self, script: &mut Script<'_>) -> Option<()> {
        let bytes = self.file(script)?;
        let len = script.below(4 * BLOCK);
        *bytes = script.take(len).to_vec();
        Some(())
    }

    /// One edit as somebody might make it who knows the layout and means harm.
    pub(crate) fn forge(&mut self, script: &mut Script<'_>) {
        let kind = script.below(7);
        let Some(name) = self.name(script) else {
            return;
        };
        let Some(bytes) = self.files.get_mut(&name) else {
            return;
        };
        let is_segment = name.starts_with("segment");
        match kind {
            0 if is_segment => {
                field(bytes, HEADER_FIELDS, script);
                sign_segment(bytes);
            }
            1 | 2 if is_segment => {
                if let Some(at) = pick(&frames(bytes), script) {
                    field(
                        bytes,
                        at + FRAME_FIELDS.start..at + FRAME_FIELDS.end,
                        script,
                    );
                    sign_frame(bytes, at);
                }
            }
            3 if is_segment => {
                if let Some(at) = pick(&frames(bytes), script) {
                    let body = at + FRAME_HEADER;
                    let len = if script.byte() & 1 == 0 {
                        128
                    } else {
                        frame_len(bytes, at)
                    };
                    field(bytes, body..body.saturating_add(len), script);
                    hash_body(bytes, at);
                    sign_frame(bytes, at);
                }
            }
            4 | 5 if !is_segment => {
                let end = if kind == 4 {
                    SNAPSHOT_FIELDS.end
                } else {
                    bytes.len()
                };
                field(bytes, SNAPSHOT_FIELDS.start..end, script);
                sign_snapshot(bytes, kind == 5);
            }
            6 => self.rename(&name),
            _ => self.damage(script),
        }
    }

    /// Gives a file the name that its own header says.
    fn rename(&mut self, name: &str) {
        let Some(bytes) = self.files.remove(name) else {
            return;
        };
        let name = match number_at(&bytes, NAMED) {
            Some(index) if name.starts_with("segment") => format!("segment-{index:010}.log"),
            Some(batch) => format!("snapshot-{batch:020}.state"),
            None => name.to_owned(),
        };
        self.files.insert(name, bytes);
    }
}

/// What files prove to have been committed.
pub(crate) struct Proof {
    /// The last batch that something after it vouches for.
    pub(crate) vouched: u64,
    /// The last batch whose frame begins.
    pub(crate) begun: u64,
}

/// What the bytes prove that are where they were and as they were: a frame is written when its predecessor is durable,
/// a seal, a segment's header and a snapshot when the batch is that they name.
pub(crate) fn proof(log: &Log, files: &Files, from_snapshot: bool) -> Proof {
    let mut proof = Proof {
        vouched: 0,
        begun: 0,
    };
    for (name, written) in &log.files {
        let Some(bytes) = files.get(name) else {
            continue;
        };
        let stands = |range: Range<usize>| {
            let (old, new) = (written.get(range.clone()), bytes.get(range));
            old.is_some() && old == new
        };
        if !name.starts_with("segment") {
            if from_snapshot && bytes == written {
                proof.vouch(number_at(written, NAMED).unwrap_or(0));
            }
            continue;
        }
        if !stands(0..BLOCK) {
            continue;
        }
        proof.vouch(number_at(written, HEADER_BASE).unwrap_or(0));
        for at in frames(written) {
            if !stands(at..at + FRAME_HEADER) {
                continue;
            }
            let number = number_at(written, at + 16..at + 24).unwrap_or(0);
            if written[at + 4] == SEAL {
                proof.vouch(number);
            } else {
                proof.vouch(number - 1);
                proof.begun = proof.begun.max(number);
            }
        }
    }
    proof
}

impl Proof {
    fn vouch(&mut self, number: u64) {
        self.vouched = self.vouched.max(number);
    }
}

/// Checks the offsets above against what the journal has written.
///
/// # Panics
/// If its layout is another one.
pub(crate) fn check_layout(files: &Files) {
    for (name, written) in files {
        let mut bytes = written.clone();
        if name.starts_with("segment") {
            for at in frames(written) {
                hash_body(&mut bytes, at);
            }
            sign_segment(&mut bytes);
        } else {
            sign_snapshot(&mut bytes, true);
        }
        assert!(bytes == *written, "{name} has another layout");
    }
}

fn number_at(bytes: &[u8], range: Range<usize>) -> Option<u64> {
    let bytes = bytes.get(range)?.first_chunk()?;
    Some(u64::from_le_bytes(*bytes))
}

/// Writes as much as fits.
fn write(bytes: &mut [u8], at: usize, data: &[u8]) {
    let place = bytes.get_mut(at..).unwrap_or_default();
    let len = place.len().min(data.len());
    place[..len].copy_from_slice(&data[..len]);
}

fn pick(places: &[usize], script: &mut Script<'_>) -> Option<usize> {
    places.get(script.below(places.len())).copied()
}

/// An offset where damage matters.
fn interesting(bytes: &[u8], script: &mut Script<'_>) -> usize {
    match script.below(4) {
        0 => script.below(bytes.len()),
        1 => script.below(end_of_frames(bytes)),
        2 => script.below(160),
        _ => pick(&frames(bytes), script).unwrap_or(BLOCK) + script.below(256),
    }
}

/// Where frames begin, or seem to.
fn frames(bytes: &[u8]) -> Vec<usize> {
    let places = (BLOCK..bytes.len()).step_by(16);
    places
        .filter(|&at| bytes[at..].starts_with(FRAME_MAGIC) && at + FRAME_HEADER <= bytes.len())
        .collect()
}

/// A frame's length, as its header says.
fn frame_len(bytes: &[u8], at: usize) -> usize {
    let body = number_at(bytes, at + 8..at + 16).and_then(|len| usize::try_from(len).ok());
    body.unwrap_or(usize::MAX).saturating_add(FRAME_HEADER)
}

/// Where the zeros at the end begin, on the grid of frames.
fn end_of_frames(bytes: &[u8]) -> usize {
    let used = bytes
        .iter()
        .rposition(|&byte| byte != 0)
        .map_or(0, |at| at + 1);
    used.next_multiple_of(16)
}

/// Changes some bytes of a range: a number, or raw bytes.
fn field(bytes: &mut [u8], range: Range<usize>, script: &mut Script<'_>) {
    let at = range.start + script.below(range.end.min(bytes.len()).saturating_sub(range.start));
    if script.byte() & 1 == 0 {
        // Fields of eight bytes begin on multiples of eight.
        write(bytes, at & !7, &script.number().to_le_bytes());
    } else {
        let len = 1 + script.below(16);
        write(bytes, at, script.take(len));
    }
}

/// Gives a segment's header its check, and every frame the one that follows from it.
fn sign_segment(bytes: &mut [u8]) {
    if bytes.len() < BLOCK {
        return;
    }
    let key = blake3::hash(&bytes[..HEADER_FIELDS.end]);
    write(bytes, HEADER_KEY.start, key.as_bytes());
    for at in frames(bytes) {
        sign_frame(bytes, at);
    }
}

fn sign_frame(bytes: &mut [u8], at: usize) {
    let Some(key) = bytes[HEADER_KEY].first_chunk().copied() else {
        return;
    };
    let check = blake3::keyed_hash(&key, &bytes[at..at + FRAME_CHECK.start]);
    write(
        bytes,
        at + FRAME_CHECK.start,
        &check.as_bytes()[..FRAME_CHECK.len()],
    );
}

/// Gives a frame's header the hash of its body.
fn hash_body(bytes: &mut [u8], at: usize) {
    let end = at.saturating_add(frame_len(bytes, at));
    let body = bytes.get(at + FRAME_HEADER..end);
    // A seal's hash is that of the batch before it.
    if let Some(body) = body.filter(|body| !body.is_empty()) {
        let hash = blake3::hash(body);
        write(bytes, at + FRAME_HASH, hash.as_bytes());
    }
}

fn sign_snapshot(bytes: &mut [u8], with_body: bool) {
    if bytes.len() < BLOCK {
        return;
    }
    if with_body {
        let records = number_at(bytes, SNAPSHOT_RECORDS).and_then(|n| usize::try_from(n).ok());
        let end = records.map_or(usize::MAX, |n| n.saturating_mul(128).saturating_add(BLOCK));
        let body = bytes.get(BLOCK..end).unwrap_or_default();
        let hash = blake3::hash(body);
        write(bytes, SNAPSHOT_BODY_HASH.start, hash.as_bytes());
    }
    let check = blake3::hash(&bytes[..SNAPSHOT_CHECK.start]);
    write(bytes, SNAPSHOT_CHECK.start, check.as_bytes());
}
