//! Points in time as the log knows them: microseconds UTC.

use std::fmt;
use std::time::Duration;

/// Microseconds since 1970-01-01T00:00:00Z.
///
/// ```
/// # use stockade::types::Timestamp;
/// assert_eq!(Timestamp::from_micros(1_736_937_000_250_999).to_string(), "2025-01-15T10:30:00.250Z");
/// ```
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct Timestamp(u64);

/// A text is not a timestamp of the form `2025-01-15T10:30:00.250Z`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("not a time of the form 2025-01-15T10:30:00.250Z")]
pub struct TimestampError;

const MICROS_PER_SECOND: u64 = 1_000_000;
const SECONDS_PER_DAY: u64 = 86_400;

impl Timestamp {
    /// The beginning of time, and the end of it.
    pub const MIN: Self = Self(0);
    /// A deadline that never comes.
    pub const MAX: Self = Self(u64::MAX);

    /// From microseconds since 1970.
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since 1970.
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// Later by so much, at most [`Timestamp::MAX`].
    #[must_use]
    pub const fn plus_micros(self, micros: u64) -> Self {
        Self(self.0.saturating_add(micros))
    }

    /// Later by so much, at most [`Timestamp::MAX`].
    #[must_use]
    pub const fn plus_ms(self, ms: u64) -> Self {
        self.plus_micros(ms.saturating_mul(1_000))
    }

    /// Later by so much, at most [`Timestamp::MAX`].
    #[must_use]
    pub fn plus(self, duration: Duration) -> Self {
        self.plus_micros(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX))
    }

    /// Microseconds from `earlier` to this, 0 if it is not later.
    pub const fn micros_since(self, earlier: Self) -> u64 {
        self.0.saturating_sub(earlier.0)
    }

    /// The time from `earlier` to this, zero if it is not later.
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros_since(earlier))
    }
}

/// RFC 3339 with milliseconds, cut rather than rounded: a shown deadline is never later than the real one.
impl fmt::Display for Timestamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.0 / MICROS_PER_SECOND;
        let ms = self.0 % MICROS_PER_SECOND / 1_000;
        let (year, month, day) = civil_from_days(seconds / SECONDS_PER_DAY);
        let (hour, minute, second) = (seconds / 3_600 % 24, seconds / 60 % 60, seconds % 60);
        write!(
            f,
            "{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{ms:03}Z"
        )
    }
}

impl std::str::FromStr for Timestamp {
    type Err = TimestampError;

    /// Reads `YYYY-MM-DDTHH:MM:SS[.fraction]Z`.
    fn from_str(text: &str) -> Result<Self, TimestampError> {
        let number = |range: std::ops::Range<usize>| -> Result<u64, TimestampError> {
            let digits = text.get(range).ok_or(TimestampError)?;
            if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) {
                return Err(TimestampError);
            }
            digits.parse().map_err(|_| TimestampError)
        };
        let bytes = text.as_bytes();
        let marks = [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':')];
        if marks.iter().any(|&(at, mark)| bytes.get(at) != Some(&mark))
            || bytes.last() != Some(&b'Z')
        {
            return Err(TimestampError);
        }
        let (year, month, day) = (number(0..4)?, number(5..7)?, number(8..10)?);
        let (hour, minute, second) = (number(11..13)?, number(14..16)?, number(17..19)?);
        let micros = match bytes.get(19) {
            Some(b'.') => {
                let end = (text.len() - 1).min(26);
                let digits = u32::try_from(end.saturating_sub(20)).map_err(|_| TimestampError)?;
                number(20..end)? * 10_u64.pow(6_u32.saturating_sub(digits))
            }
            Some(b'Z') if text.len() == 20 => 0,
            _ => return Err(TimestampError),
        };
        let valid = (1970..=9999).contains(&year)
            && (1..=12).contains(&month)
            && (1..=31).contains(&day)
            && hour < 24
            && minute < 60
            && second < 61;
        let days = days_from_civil(year, month, day);
        if !valid || civil_from_days(days) != (year, month, day) {
            return Err(TimestampError);
        }
        let seconds = days * SECONDS_PER_DAY + hour * 3_600 + minute * 60 + second;
        Ok(Self(seconds * MICROS_PER_SECOND + micros))
    }
}

/// Days since 1970 to (year, month, day), proleptic Gregorian.
/// Source: Howard Hinnant, "chrono-Compatible Low-Level Date Algorithms", `civil_from_days`.
fn civil_from_days(days: u64) -> (u64, u64, u64) {
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1_460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let mp = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * mp + 2) / 5 + 1;
    let month = if mp < 10 { mp + 3 } else { mp - 9 };
    (era * 400 + year_of_era + u64::from(month <= 2), month, day)
}

/// The inverse of [`civil_from_days`], same source.
fn days_from_civil(year: u64, month: u64, day: u64) -> u64 {
    let year = if month <= 2 { year - 1 } else { year };
    let (era, year_of_era) = (year / 400, year % 400);
    let mp = if month > 2 { month - 3 } else { month + 9 };
    let day_of_year = (153 * mp + 2) / 5 + day.saturating_sub(1);
    let day_of_era = year_of_era * 365 + year_of_era / 4 - year_of_era / 100 + day_of_year;
    (era * 146_097 + day_of_era).saturating_sub(719_468)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_form_survives_a_round_trip_on_every_day_of_a_century() {
        for day in 0..36_525_u64 {
            let at = Timestamp::from_micros(day * 86_400_000_000 + 12_345_678_000);
            assert_eq!(at.to_string().parse(), Ok(at));
        }
    }

    #[test]
    fn malformed_times_are_refused() {
        for text in [
            "",
            "2025-01-15",
            "2025-02-30T00:00:00Z",
            "2025-01-15T24:00:00Z",
            "2025-01-15T10:30:00",
            "2025-01-15T10:30:00.Z",
            "2025-01-15T10:30:0+Z",
        ] {
            assert_eq!(text.parse::<Timestamp>(), Err(TimestampError), "{text}");
        }
        assert_eq!(
            "2024-02-29T00:00:00Z".parse(),
            Ok(Timestamp::from_micros(1_709_164_800_000_000))
        );
    }
}
