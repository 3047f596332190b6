//! Identifiers. Ids that users choose are opaque 128-bit numbers; ids that the engine gives are sequences,
//! never slots, so none is ever used twice.

use std::fmt;
use std::num::NonZeroU128;
use std::str::FromStr;
use std::sync::Arc;

/// The largest sequence that a [`ReservationId`] can carry: 48 bits.
pub const SEQUENCE_MAX: u64 = (1 << 48) - 1;

const SKU_NAME_LEN_MAX: usize = 64;

/// An id that must not be empty or zero was.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum IdError {
    /// The text has no bytes: give one that is unique for what it names.
    #[error("the id is empty: give a text or number that is unique for what it names")]
    Empty,
}

/// 128 bits of BLAKE3 under a domain, so that one text gives different ids for different uses.
fn digest_of(domain: &str, text: &str) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(domain.as_bytes());
    hasher.update(&[0]);
    hasher.update(text.as_bytes());
    let mut bytes = [0; 16];
    hasher.finalize_xof().fill(&mut bytes);
    u128::from_le_bytes(bytes)
}

/// A buyer, or the actor of an admin command. Opaque: the log holds no e-mail address.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct UserId(pub u128);

impl UserId {
    /// A user from any text: the first 128 bits of its BLAKE3 hash.
    ///
    /// ```
    /// # use stockade::types::UserId;
    /// assert_eq!(UserId::from_text("ann@example.com"), UserId::from_text("ann@example.com"));
    /// assert_ne!(UserId::from_text("ann@example.com"), UserId::from_text("bob@example.com"));
    /// ```
    pub fn from_text(text: &str) -> Self {
        Self(digest_of("user", text))
    }
}

impl From<u64> for UserId {
    fn from(number: u64) -> Self {
        Self(u128::from(number))
    }
}

impl fmt::Display for UserId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

macro_rules! nonzero_id {
    ($(#[$docs:meta])* $name:ident, $domain:literal) => {
        $(#[$docs])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
        pub struct $name(NonZeroU128);

        impl $name {
            /// From a number, say of a UUID. `None` for zero.
            pub const fn new(number: u128) -> Option<Self> {
                match NonZeroU128::new(number) {
                    Some(number) => Some(Self(number)),
                    None => None,
                }
            }

            /// From any text: the first 128 bits of its BLAKE3 hash.
            ///
            /// # Errors
            /// [`IdError::Empty`] for a text without bytes.
            pub fn from_text(text: &str) -> Result<Self, IdError> {
                if text.is_empty() {
                    return Err(IdError::Empty);
                }
                // A hash of zero has a probability of 2^-128; it is mapped to one all the same.
                Ok(Self(NonZeroU128::new(digest_of($domain, text)).unwrap_or(NonZeroU128::MIN)))
            }

            /// The number.
            pub const fn get(self) -> u128 {
                self.0.get()
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{:032x}", self.0)
            }
        }
    };
}

nonzero_id! {
    /// A caller's name for one command: the same key gives the same answer (law L5).
    ///
    /// A key belongs to its user (or admin actor) and its kind of command.
    IdempotencyKey, "key"
}

nonzero_id! {
    /// The payment provider's reference of one captured or attempted payment.
    PaymentRef, "payment"
}

impl PaymentRef {
    /// The largest.
    pub(crate) const MAX: Self = Self(NonZeroU128::MAX);
}

/// Why an operator did something: at most 16 bytes of UTF-8, kept in the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub struct Reason([u8; 16]);

impl Reason {
    /// The first 16 bytes of the text, cut at a character's edge.
    pub fn new(text: &str) -> Self {
        let mut bytes = [0; 16];
        let end = text.floor_char_boundary(bytes.len());
        bytes[..end].copy_from_slice(&text.as_bytes()[..end]);
        Self(bytes)
    }

    /// The text, without the filling zeros.
    pub fn as_str(&self) -> &str {
        let end = self
            .0
            .iter()
            .position(|&byte| byte == 0)
            .unwrap_or(self.0.len());
        std::str::from_utf8(&self.0[..end]).unwrap_or_default()
    }

    pub(super) const fn to_bytes(self) -> [u8; 16] {
        self.0
    }

    pub(super) const fn from_bytes(bytes: [u8; 16]) -> Self {
        Self(bytes)
    }
}

/// The dense index of a SKU in one engine, from 0, stable for the life of the log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct SkuId(pub u32);

impl fmt::Display for SkuId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "#{}", self.0)
    }
}

/// A SKU's name is not usable.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum SkuNameError {
    /// Nothing is left after trimming.
    #[error("the SKU name is empty: give 1 to 64 bytes")]
    Empty,
    /// More than 64 bytes after trimming.
    #[error("the SKU name has {len} bytes: give 1 to 64")]
    TooLong {
        /// Its length in bytes.
        len: usize,
    },
    /// It holds a control character.
    #[error("the SKU name holds a control character at byte {at}: take it out")]
    Control {
        /// The byte's offset in the trimmed name.
        at: usize,
    },
}

/// What people, HTTP, SQL and messages call a SKU: 1 to 64 bytes of UTF-8, trimmed, exact.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SkuName(Arc<str>);

impl SkuName {
    /// Trims and checks the name.
    ///
    /// # Errors
    /// Empty, longer than 64 bytes, or with a control character.
    ///
    /// ```
    /// # use stockade::types::SkuName;
    /// assert_eq!(SkuName::new(" SNEAKER-42 ")?.as_str(), "SNEAKER-42");
    /// # Ok::<(), stockade::types::SkuNameError>(())
    /// ```
    pub fn new(name: &str) -> Result<Self, SkuNameError> {
        let name = name.trim();
        if name.is_empty() {
            return Err(SkuNameError::Empty);
        }
        if name.len() > SKU_NAME_LEN_MAX {
            return Err(SkuNameError::TooLong { len: name.len() });
        }
        if let Some((at, _)) = name.char_indices().find(|(_, c)| c.is_control()) {
            return Err(SkuNameError::Control { at });
        }
        Ok(Self(name.into()))
    }

    /// The name.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for SkuName {
    type Err = SkuNameError;

    fn from_str(text: &str) -> Result<Self, SkuNameError> {
        Self::new(text)
    }
}

impl fmt::Display for SkuName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// A reservation's id: the shard (16 bits) and the sequence of its creating event (48 bits). Unique for
/// ever and monotone within a shard; as text `res-` and 13 characters of Crockford's base32.
///
/// ```
/// # use stockade::types::ReservationId;
/// let id = ReservationId::new(0, 10_001);
/// assert_eq!(id.to_string(), "res-00000000009RH");
/// assert_eq!("res-00000000009rh".parse(), Ok(id));
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ReservationId(u64);

const BASE32: &[u8; 32] = b"0123456789ABCDEFGHJKMNPQRSTVWXYZ";
const ID_DIGITS: usize = 13; // 13 x 5 bits = 65 >= 64

impl ReservationId {
    /// # Panics
    /// If the sequence exceeds [`SEQUENCE_MAX`].
    pub const fn new(shard: u16, sequence: u64) -> Self {
        assert!(
            sequence <= SEQUENCE_MAX,
            "a reservation's sequence has 48 bits"
        );
        Self(((shard as u64) << 48) | sequence)
    }

    /// From its number, as stores and messages carry it.
    pub const fn from_u64(number: u64) -> Self {
        Self(number)
    }

    /// Its number.
    pub const fn get(self) -> u64 {
        self.0
    }

    /// The writer's share that created it.
    pub const fn shard(self) -> u16 {
        (self.0 >> 48) as u16
    }

    /// The sequence of its creating event.
    pub const fn sequence(self) -> u64 {
        self.0 & SEQUENCE_MAX
    }
}

impl fmt::Display for ReservationId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut text = *b"res-0000000000000";
        let mut rest = self.0;
        for digit in text[4..].iter_mut().rev() {
            *digit = BASE32[(rest & 31) as usize];
            rest >>= 5;
        }
        f.write_str(std::str::from_utf8(&text).unwrap_or_default())
    }
}

/// A text is not a reservation's id.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a reservation id: expected `res-` and 13 base32 characters")]
pub struct ReservationIdError;

impl FromStr for ReservationId {
    type Err = ReservationIdError;

    fn from_str(text: &str) -> Result<Self, ReservationIdError> {
        let digits = text
            .strip_prefix("res-")
            .ok_or(ReservationIdError)?
            .as_bytes();
        if digits.len() != ID_DIGITS {
            return Err(ReservationIdError);
        }
        let mut number: u64 = 0;
        for &digit in digits {
            let value = BASE32.iter().position(|&c| c == digit.to_ascii_uppercase());
            let value = value.ok_or(ReservationIdError)? as u64;
            number = number.checked_mul(32).ok_or(ReservationIdError)? + value;
        }
        Ok(Self(number))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reservation_id_survives_its_text_form_at_every_bit() {
        for bit in 0..64 {
            let id = ReservationId::from_u64(1 << bit);
            assert_eq!(id.to_string().parse(), Ok(id));
        }
        let id = ReservationId::from_u64(u64::MAX);
        assert_eq!(id.to_string().parse(), Ok(id));
        assert_eq!((id.shard(), id.sequence()), (u16::MAX, SEQUENCE_MAX));
    }

    #[test]
    fn malformed_reservation_ids_are_refused() {
        for text in [
            "",
            "res-",
            "res-00000000009R",
            "res-00000000009RHX",
            "RES-00000000009RH",
            "res-0000000000ILO",
        ] {
            assert_eq!(
                text.parse::<ReservationId>(),
                Err(ReservationIdError),
                "{text}"
            );
        }
        assert_eq!(
            "res-ZZZZZZZZZZZZZ".parse::<ReservationId>(),
            Err(ReservationIdError),
            "65 bits"
        );
    }

    #[test]
    fn sku_names_are_trimmed_and_bounded() {
        assert_eq!(SkuName::new("  "), Err(SkuNameError::Empty));
        assert_eq!(
            SkuName::new(&"x".repeat(65)),
            Err(SkuNameError::TooLong { len: 65 })
        );
        assert_eq!(
            SkuName::new("a\u{7}b"),
            Err(SkuNameError::Control { at: 1 })
        );
        assert!(SkuName::new(&"x".repeat(64)).is_ok());
    }

    #[test]
    fn one_text_names_different_things_in_different_domains() {
        let key = IdempotencyKey::from_text("a").map(IdempotencyKey::get);
        let payment = PaymentRef::from_text("a").map(PaymentRef::get);
        assert_ne!(key, payment);
        assert_eq!(IdempotencyKey::from_text(""), Err(IdError::Empty));
        assert_eq!(IdempotencyKey::new(0), None);
    }

    #[test]
    fn a_reason_is_cut_at_a_characters_edge() {
        assert_eq!(Reason::new("recount").as_str(), "recount");
        assert_eq!(Reason::new("fifteen bytes..é").as_str(), "fifteen bytes..");
    }
}
