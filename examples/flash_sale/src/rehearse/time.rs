//! Times as order logs write them, taken for UTC.

use stockade::types::Timestamp;

/// Reads `2010-12-01 08:26[:00[.5]]`, with `T` for the space and a final `Z` if it likes, or `12/1/2010 8:26[:00]`
/// (month first). Anything else, and any year before 1970, is `None`.
pub(crate) fn parse(text: &str) -> Option<Timestamp> {
    let text = text.strip_suffix('Z').unwrap_or(text);
    let (date, clock) = text.split_once([' ', 'T']).unwrap_or((text, "0:00"));
    let (year, month, day) = if date.contains('/') {
        let (month, day, year) = three(date, '/')?;
        (year, month, day)
    } else {
        three(date, '-')?
    };
    let (clock, fraction) = clock.trim().split_once('.').unwrap_or((clock.trim(), "0"));
    let mut parts = clock.split(':').map(number);
    let (hour, minute) = (parts.next()??, parts.next()??);
    let second = parts.next().unwrap_or(Some(0))?;
    if parts.next().is_some() || fraction.is_empty() || number(fraction).is_none() {
        return None;
    }
    // The library's own reader checks ranges and the calendar.
    format!("{year:04}-{month:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{fraction}Z")
        .parse()
        .ok()
}

fn three(date: &str, separator: char) -> Option<(u32, u32, u32)> {
    let mut parts = date.split(separator).map(number);
    let date = (parts.next()??, parts.next()??, parts.next()??);
    parts.next().is_none().then_some(date)
}

fn number(text: &str) -> Option<u32> {
    (!text.is_empty() && text.len() <= 9 && text.bytes().all(|byte| byte.is_ascii_digit()))
        .then(|| text.parse().ok())
        .flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_usual_forms_mean_the_same_moment() {
        let expected = "2010-12-01T08:26:00Z".parse().ok();
        for text in [
            "2010-12-01 08:26:00",
            "2010-12-01 08:26",
            "2010-12-01T08:26:00Z",
            "2010-12-01 08:26:00.000",
            "12/1/2010 8:26",
        ] {
            assert_eq!(parse(text), expected, "{text}");
        }
        assert_eq!(
            parse("2010-12-01"),
            "2010-12-01T00:00:00Z".parse().ok(),
            "a day alone is its midnight"
        );
    }

    #[test]
    fn what_is_no_time_is_none() {
        for text in [
            "",
            "yesterday",
            "2010-13-01 00:00",
            "2010-02-30 00:00",
            "2010-12-01 25:00",
            "1969-12-31 00:00",
            "2010-12-01 08",
            "2010-12-01 08:26:00.",
            "2010-12-01-02 08:26",
        ] {
            assert_eq!(parse(text), None, "{text}");
        }
    }
}
