//! Fixed-size records: the reader and writer that every layout in the log is made with.
//!
//! A record is filled from the front in the order of its fields, little-endian; what is left stays zero, and
//! decoding refuses anything else there. So a layout *is* the order of the calls, and a record has exactly one
//! encoding.
//!
//! ```text
//! event, state record (128 bytes):   0 kind  1 version  2 shard  4 epoch (low 32 bits)  8 sequence  16 payload ..
//! refusal (64 bytes):                0 code  1 kind of command  2 line  4 payload ..  60 events before
//! ```

/// The size of an event and of a state record in bytes: two cache lines.
pub const RECORD_SIZE: usize = 128;
/// The size of a packed refusal in bytes.
pub const REFUSAL_SIZE: usize = 64;
/// The version of every layout in the log.
pub const FORMAT_VERSION: u8 = 1;

/// An encoded event or state record.
pub type Record = [u8; RECORD_SIZE];
/// An encoded refusal.
pub type PackedRefusal = [u8; REFUSAL_SIZE];

/// Bytes are no record of this version.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum DecodeError {
    /// A newer (or no) version of the format: use the release that wrote it.
    #[error(
        "format version {version} (this release reads {FORMAT_VERSION}): use the release that wrote it"
    )]
    Version {
        /// As found.
        version: u8,
    },
    /// A kind this version doesn't have.
    #[error("unknown kind {kind} of {what}: the log is damaged or from a newer release")]
    Kind {
        /// What was being decoded.
        what: &'static str,
        /// As found.
        kind: u8,
    },
    /// A field holds what no writer of this version writes.
    #[error("{what} is out of range: the log is damaged or from a newer release")]
    Field {
        /// Which.
        what: &'static str,
    },
    /// Fewer bytes than the layout has.
    #[error("{what} is cut short: the log is damaged")]
    Short {
        /// Which.
        what: &'static str,
    },
}

/// Fills bytes from the front.
pub(crate) struct Writer<'a> {
    bytes: &'a mut [u8],
    at: usize,
}

macro_rules! integers {
    ($($name:ident $type:ty),*) => {
        impl Writer<'_> {
            $(#[inline]
            pub(crate) fn $name(&mut self, value: $type) -> &mut Self {
                self.bytes(&value.to_le_bytes())
            })*
        }

        impl Reader<'_> {
            $(#[inline]
            pub(crate) fn $name(&mut self) -> $type {
                <$type>::from_le_bytes(self.bytes())
            })*
        }
    };
}

integers!(u8 u8, u16 u16, u32 u32, u64 u64, u128 u128, i64 i64);

impl<'a> Writer<'a> {
    /// # Panics
    /// Its methods panic when the bytes are full: a layout that doesn't fit is a programmer's error.
    pub(crate) fn new(bytes: &'a mut [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    pub(crate) fn bytes(&mut self, value: &[u8]) -> &mut Self {
        let end = self.at + value.len();
        self.bytes[self.at..end].copy_from_slice(value);
        self.at = end;
        self
    }
}

/// Reads what a [`Writer`] wrote, in the same order.
pub(crate) struct Reader<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl<'a> Reader<'a> {
    /// # Panics
    /// Its methods panic at the end of the bytes: callers read fixed layouts from fixed sizes.
    pub(crate) fn new(bytes: &'a [u8]) -> Self {
        Self { bytes, at: 0 }
    }

    #[inline]
    pub(crate) fn bytes<const N: usize>(&mut self) -> [u8; N] {
        let mut value = [0; N];
        value.copy_from_slice(&self.bytes[self.at..self.at + N]);
        self.at += N;
        value
    }

    /// The rest must be zero.
    pub(crate) fn end(&self, what: &'static str) -> Result<(), DecodeError> {
        if self.bytes[self.at..].iter().all(|&byte| byte == 0) {
            Ok(())
        } else {
            Err(DecodeError::Field { what })
        }
    }
}
