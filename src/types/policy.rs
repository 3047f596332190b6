//! What makes a state what it is besides the events: how long ended things are remembered. It is recorded in the log
//! ([`EventKind::PolicySet`](super::EventKind::PolicySet)), so a log replays to the same state on any machine.

/// How long ended things are remembered, and the payment's grace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// How long a key answers, in milliseconds.
    pub key_retention_ms: u64,
    /// How long an ended reservation and a payment's outcome can be asked for, in milliseconds: no less than the
    /// longest callback of a payment gateway.
    pub ended_retention_ms: u64,
    /// What payments may add to a hold's deadline, in milliseconds, spent over all attempts.
    pub payment_grace_ms: u32,
    /// How many keyed refusals are remembered.
    pub refused_keys_max: u32,
}

/// A policy can't be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum PolicyError {
    /// A time or bound of zero, or a retention beyond a year.
    #[error(
        "{what} must be at least 1 and a retention at most a year: set it in the engine's policy"
    )]
    OutOfRange {
        /// Which field.
        what: &'static str,
    },
}

const YEAR_MS: u64 = 366 * 86_400_000;

impl Default for Policy {
    /// Keys and ended reservations 24 h, a grace of 60 s, a million refusals.
    fn default() -> Self {
        Self {
            key_retention_ms: 86_400_000,
            ended_retention_ms: 86_400_000,
            payment_grace_ms: 60_000,
            refused_keys_max: 1_000_000,
        }
    }
}

impl Policy {
    /// # Errors
    /// Which field is out of range.
    pub fn check(&self) -> Result<(), PolicyError> {
        let fields = [
            ("key_retention_ms", self.key_retention_ms, YEAR_MS),
            ("ended_retention_ms", self.ended_retention_ms, YEAR_MS),
            ("payment_grace_ms", self.payment_grace_ms.into(), 86_400_000),
            (
                "refused_keys_max",
                self.refused_keys_max.into(),
                u64::from(u32::MAX),
            ),
        ];
        for (what, value, max) in fields {
            if value == 0 || value > max {
                return Err(PolicyError::OutOfRange { what });
            }
        }
        Ok(())
    }
}
