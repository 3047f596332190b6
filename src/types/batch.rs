//! A batch: the commands decided together, committed by a store in one atomic step.
//!
//! ```text
//! header (128 bytes) | source positions (16 each) | events (128 each) | refusals (64 each)
//!        `-------------------- BLAKE3 over all of it = the batch's hash ------------------'
//! ```
//!
//! Invariants. I1: batch numbers are dense, from 1. I2: `prev_hash` is the hash of the batch before (zero for the
//! first). I3: events have the sequences `first_sequence ..`, without gaps. I4: stamps never go back.

use super::record::{
    DecodeError, FORMAT_VERSION, PackedRefusal, RECORD_SIZE, REFUSAL_SIZE, Reader, Record, Writer,
};
use super::{Event, RefusalRecord, Timestamp};
use std::fmt;

/// The most source positions that a batch carries.
pub const SOURCES_MAX: usize = 16;
/// The size of an encoded header in bytes.
pub const HEADER_SIZE: usize = 128;
const SOURCE_SIZE: usize = 16;
/// The most events or refusals of one batch: bounds what a reader allocates for a damaged header.
pub const RECORDS_MAX: u32 = 1 << 24;

/// BLAKE3 over a batch's header and body.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct BatchHash(pub [u8; 32]);

impl fmt::Display for BatchHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for BatchHash {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// The fencing token of a writer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Token {
    /// One more at every takeover, from 1.
    pub epoch: u64,
    /// 128 random bits, drawn at the takeover.
    pub writer: u128,
}

/// How far an outside source of commands has been taken in; both numbers are the source's own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct SourcePosition {
    /// Which source, say a partition.
    pub source: u64,
    /// The next position to read.
    pub position: u64,
}

/// What is said of a batch besides its records.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct BatchHeader {
    /// Dense, from 1.
    pub number: u64,
    /// The writer's share.
    pub shard: u16,
    /// Logical time: every decision of the batch was made at it.
    pub stamp: Timestamp,
    /// Who wrote it.
    pub token: Token,
    /// The sequence of its first event; without events, of the next one.
    pub first_sequence: u64,
    /// The hash of the batch before.
    pub prev_hash: BatchHash,
    /// Where the sources stand after it, at most [`SOURCES_MAX`].
    pub sources: Vec<SourcePosition>,
}

/// An encoded header with its source positions: the first part of a batch's encoding.
#[derive(Debug, Clone)]
pub struct EncodedHead {
    bytes: [u8; HEADER_SIZE + SOURCES_MAX * SOURCE_SIZE],
    len: usize,
}

impl std::ops::Deref for EncodedHead {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.bytes[..self.len]
    }
}

/// A header, events and refusals. Reused: its buffers keep their capacity.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Batch {
    /// What is said of it.
    pub header: BatchHeader,
    hash: BatchHash,
    events: Vec<Record>,
    refusals: Vec<PackedRefusal>,
}

impl Batch {
    /// Empties it for the next use.
    pub fn clear(&mut self) {
        self.header.sources.clear();
        self.hash = BatchHash::default();
        self.events.clear();
        self.refusals.clear();
    }

    /// Appends an event.
    #[inline]
    pub fn push_event(&mut self, event: &Event) {
        self.events.push([0; RECORD_SIZE]);
        if let Some(record) = self.events.last_mut() {
            event.encode_into(record);
        }
    }

    /// Appends a refusal.
    #[inline]
    pub fn push_refusal(&mut self, refusal: &RefusalRecord) {
        let before = u32::try_from(self.events.len()).unwrap_or(u32::MAX);
        self.refusals
            .push(refusal.encode(self.header.stamp, before));
    }

    /// Its events as records.
    pub fn event_records(&self) -> &[Record] {
        &self.events
    }

    /// Its refusals, packed.
    pub fn packed_refusals(&self) -> &[PackedRefusal] {
        &self.refusals
    }

    /// Its events.
    pub fn events(&self) -> impl Iterator<Item = Result<Event, DecodeError>> + '_ {
        self.events.iter().map(Event::decode)
    }

    /// Its refusals.
    pub fn refusals(&self) -> impl Iterator<Item = Result<RefusalRecord, DecodeError>> + '_ {
        let stamp = self.header.stamp;
        self.refusals
            .iter()
            .map(move |packed| RefusalRecord::decode(packed, stamp))
    }

    /// True if it records nothing.
    pub fn is_empty(&self) -> bool {
        self.events.is_empty() && self.refusals.is_empty()
    }

    /// The sequence of the last event up to and with this batch; 0 if there is none yet.
    pub fn last_sequence(&self) -> u64 {
        self.header.first_sequence.saturating_sub(1) + self.events.len() as u64
    }

    /// Its hash, once sealed or decoded.
    pub fn hash(&self) -> BatchHash {
        self.hash
    }

    /// Links it to its predecessor and computes its hash: the last step before the commit.
    ///
    /// # Panics
    /// If it has more than [`SOURCES_MAX`] source positions, or 2^24 records.
    pub fn seal(&mut self, prev_hash: BatchHash) {
        assert!(
            self.header.sources.len() <= SOURCES_MAX,
            "a batch carries at most 16 source positions"
        );
        assert!(
            self.events.len().max(self.refusals.len()) <= RECORDS_MAX as usize,
            "a batch holds at most 2^24 records of a kind"
        );
        self.header.prev_hash = prev_hash;
        self.hash = self.compute_hash();
    }

    /// The length of its encoding in bytes.
    pub fn encoded_len(&self) -> usize {
        HEADER_SIZE
            + self.header.sources.len() * SOURCE_SIZE
            + self.events.len() * RECORD_SIZE
            + self.refusals.len() * REFUSAL_SIZE
    }

    /// The parts of its encoding, in order: header with source positions, events, refusals. Allocates nothing.
    pub fn encoded_parts(&self) -> (EncodedHead, &[u8], &[u8]) {
        let header = &self.header;
        let sources = &header.sources[..header.sources.len().min(SOURCES_MAX)];
        let mut head = EncodedHead {
            bytes: [0; HEADER_SIZE + SOURCES_MAX * SOURCE_SIZE],
            len: HEADER_SIZE + sources.len() * SOURCE_SIZE,
        };
        let mut w = Writer::new(&mut head.bytes);
        // Lengths were checked when it was sealed; a batch that was not sealed encodes as damaged.
        let count = |len: usize| u32::try_from(len).unwrap_or(u32::MAX);
        w.u8(FORMAT_VERSION)
            .u8(0)
            .u16(header.shard)
            .u32(count(header.sources.len()));
        w.u64(header.number)
            .u64(header.stamp.as_micros())
            .u64(header.token.epoch);
        w.u128(header.token.writer).u64(header.first_sequence);
        w.u32(count(self.events.len()))
            .u32(count(self.refusals.len()))
            .bytes(&header.prev_hash.0);
        let mut w = Writer::new(&mut head.bytes[HEADER_SIZE..]);
        for source in sources {
            w.u64(source.source).u64(source.position);
        }
        (
            head,
            self.events.as_flattened(),
            self.refusals.as_flattened(),
        )
    }

    fn compute_hash(&self) -> BatchHash {
        let (head, events, refusals) = self.encoded_parts();
        let mut hasher = blake3::Hasher::new();
        hasher.update(&head).update(events).update(refusals);
        BatchHash(*hasher.finalize().as_bytes())
    }

    /// Appends its encoding.
    pub fn encode_into(&self, out: &mut Vec<u8>) {
        let (head, events, refusals) = self.encoded_parts();
        out.reserve(self.encoded_len());
        out.extend_from_slice(&head);
        out.extend_from_slice(events);
        out.extend_from_slice(refusals);
    }

    /// The length of the encoding that begins with this header.
    ///
    /// # Errors
    /// Another version, or counts beyond their bounds.
    pub fn encoded_len_from(header: &[u8; HEADER_SIZE]) -> Result<usize, DecodeError> {
        let mut r = Reader::new(header);
        let (version, zero, _, sources) = (r.u8(), r.u8(), r.u16(), r.u32());
        if version != FORMAT_VERSION {
            return Err(DecodeError::Version { version });
        }
        let _: [u8; 48] = r.bytes();
        let (events, refusals) = (r.u32(), r.u32());
        if zero != 0 || sources as usize > SOURCES_MAX || events.max(refusals) > RECORDS_MAX {
            return Err(DecodeError::Field {
                what: "a batch's header",
            });
        }
        Ok(HEADER_SIZE
            + sources as usize * SOURCE_SIZE
            + events as usize * RECORD_SIZE
            + refusals as usize * REFUSAL_SIZE)
    }

    /// A batch from its parts, for a store that keeps them apart, with its hash; whether that is the expected one is the
    /// caller's to check.
    ///
    /// # Errors
    /// More than [`SOURCES_MAX`] sources, or bytes that are no whole records.
    pub fn from_parts(
        header: BatchHeader,
        events: &[u8],
        refusals: &[u8],
    ) -> Result<Self, DecodeError> {
        let (events, torn_event) = events.as_chunks();
        let (refusals, torn_refusal) = refusals.as_chunks();
        if !torn_event.is_empty() || !torn_refusal.is_empty() {
            return Err(DecodeError::Short { what: "a batch" });
        }
        if header.sources.len() > SOURCES_MAX
            || events.len().max(refusals.len()) > RECORDS_MAX as usize
        {
            return Err(DecodeError::Field {
                what: "a batch's header",
            });
        }
        let mut batch = Self {
            header,
            hash: BatchHash::default(),
            events: events.to_vec(),
            refusals: refusals.to_vec(),
        };
        batch.hash = batch.compute_hash();
        Ok(batch)
    }

    /// Decodes an encoding and computes its hash; whether that is the expected one is the caller's to check, as
    /// are the records, which are decoded when they are read.
    ///
    /// # Errors
    /// Bytes that are no batch of this version, or not exactly one.
    pub fn decode(bytes: &[u8]) -> Result<Self, DecodeError> {
        let mut batch = Self::default();
        batch.decode_from(bytes)?;
        Ok(batch)
    }

    /// [`decode`](Self::decode) into this batch, whose buffers are used again. After an error it is empty.
    ///
    /// # Errors
    /// Bytes that are no batch of this version, or not exactly one.
    pub fn decode_from(&mut self, bytes: &[u8]) -> Result<(), DecodeError> {
        const SHORT: DecodeError = DecodeError::Short { what: "a batch" };
        self.clear();
        let head: &[u8; HEADER_SIZE] = bytes.first_chunk().ok_or(SHORT)?;
        if Self::encoded_len_from(head)? != bytes.len() {
            return Err(SHORT);
        }
        let mut r = Reader::new(head);
        let (_, _, shard, sources) = (r.u8(), r.u8(), r.u16(), r.u32());
        let (number, stamp, epoch) = (r.u64(), r.at(), r.u64());
        let (writer, first_sequence) = (r.u128(), r.u64());
        let (events, refusals) = (r.u32() as usize, r.u32() as usize);
        let prev_hash = BatchHash(r.bytes());
        r.end("a batch header's padding")?;
        let (source_bytes, rest) = bytes[HEADER_SIZE..].split_at(sources as usize * SOURCE_SIZE);
        let (event_bytes, refusal_bytes) = rest.split_at(events * RECORD_SIZE);
        debug_assert_eq!(
            refusal_bytes.len(),
            refusals * REFUSAL_SIZE,
            "the lengths were checked"
        );
        let sources = source_bytes.as_chunks::<SOURCE_SIZE>().0.iter();
        let header = &mut self.header;
        header.sources.extend(sources.map(|bytes| {
            let mut r = Reader::new(bytes);
            SourcePosition {
                source: r.u64(),
                position: r.u64(),
            }
        }));
        (header.number, header.shard, header.stamp) = (number, shard, stamp);
        (header.token, header.first_sequence) = (Token { epoch, writer }, first_sequence);
        header.prev_hash = prev_hash;
        self.hash = BatchHash(*blake3::hash(bytes).as_bytes());
        self.events.extend_from_slice(event_bytes.as_chunks().0);
        self.refusals.extend_from_slice(refusal_bytes.as_chunks().0);
        Ok(())
    }
}
