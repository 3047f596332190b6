//! What was skipped, dirty or odd in a file: a count per cause, with the first of each.

use serde::Serialize;
use std::collections::BTreeMap;

/// Why a row or line was not used as it stands, or what is odd about it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub(crate) enum Cause {
    /// Skipped: the row has no order id.
    EmptyOrder,
    /// Skipped: the row has no SKU.
    EmptySku,
    /// Skipped: the row has no quantity.
    EmptyQuantity,
    /// Skipped: the quantity is no integer of 32 bits.
    DirtyQuantity,
    /// Skipped: a quantity of zero or less outside a cancellation.
    NotPositive,
    /// Kept, with the wrong bytes replaced.
    WrongUtf8,
    /// Kept: the time is taken for missing.
    UnreadableTime,
    /// Kept: the time is before that of an earlier cart; the clock stands still.
    TimeBack,
    /// Kept: the engine knows the SKU by a hash, since its name is too long or holds control characters.
    SkuHashed,
    /// The file breaks off; what came before it counts.
    EndsEarly,
}

impl Cause {
    /// For people.
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::EmptyOrder => "row skipped: no order id",
            Self::EmptySku => "row skipped: no SKU",
            Self::EmptyQuantity => "row skipped: no quantity",
            Self::DirtyQuantity => "row skipped: quantity is no 32-bit integer",
            Self::NotPositive => "line skipped: quantity <= 0, no cancellation",
            Self::WrongUtf8 => "kept: wrong UTF-8, replaced",
            Self::UnreadableTime => "kept: unreadable time, taken for missing",
            Self::TimeBack => "kept: cart before an earlier one",
            Self::SkuHashed => "kept: SKU known to the engine by a hash",
            Self::EndsEarly => "the file breaks off",
        }
    }
}

/// How often, and the first time.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Finding {
    pub(crate) count: u64,
    /// The line in the file, from 1.
    pub(crate) first_line: u64,
    /// What stood there, cut to a readable length.
    pub(crate) first_text: String,
}

const TEXT_CHARS_MAX: usize = 80;

/// See the module.
#[derive(Debug, Default, Serialize)]
pub(crate) struct Tally {
    /// Rows read, the header not counted.
    pub(crate) rows: u64,
    /// What was found.
    pub(crate) findings: BTreeMap<Cause, Finding>,
}

impl Tally {
    /// Counts one.
    pub(crate) fn note(&mut self, cause: Cause, line: u64, text: &str) {
        let finding = self.findings.entry(cause).or_insert_with(|| Finding {
            count: 0,
            first_line: line,
            first_text: text.chars().take(TEXT_CHARS_MAX).collect(),
        });
        finding.count += 1;
    }

    /// How often.
    #[cfg(test)]
    pub(crate) fn count(&self, cause: Cause) -> u64 {
        self.findings.get(&cause).map_or(0, |finding| finding.count)
    }
}
