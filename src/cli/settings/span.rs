//! Lengths of time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A length of time, such as `90s`, `15m`, `1h30m` or `7d`; a bare number is seconds.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Span(pub Duration);

/// A text that is not a length of time.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a length of time: write numbers with ms, s, m, h or d, such as 90s or 1h30m")]
pub struct SpanError(String);

impl FromStr for Span {
    type Err = SpanError;

    fn from_str(text: &str) -> Result<Self, SpanError> {
        let error = || SpanError(text.to_owned());
        if let Ok(seconds) = text.parse() {
            return Ok(Self(Duration::from_secs(seconds)));
        }
        let mut total = Duration::ZERO;
        let mut rest = text;
        while !rest.is_empty() {
            let (number, after) = split_unit(rest);
            let unit_length = after
                .find(|c: char| c.is_ascii_digit())
                .unwrap_or(after.len());
            let (unit, next) = after.split_at(unit_length);
            let millis = match unit {
                "ms" => 1,
                "s" => 1_000,
                "m" => 60_000,
                "h" => 3_600_000,
                "d" => 86_400_000,
                _ => return Err(error()),
            };
            let number: u64 = number.parse().map_err(|_| error())?;
            let part = Duration::from_millis(number.checked_mul(millis).ok_or_else(error)?);
            total = total.checked_add(part).ok_or_else(error)?;
            rest = next;
        }
        if text.is_empty() {
            Err(error())
        } else {
            Ok(Self(total))
        }
    }
}

impl Span {
    /// Whole seconds, rounded up, at most what 32 bits hold.
    #[must_use]
    pub fn as_seconds(self) -> u32 {
        let seconds = self.0.as_millis().div_ceil(1_000);
        u32::try_from(seconds).unwrap_or(u32::MAX)
    }
}

impl fmt::Display for Span {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}", self.0)
    }
}

fn split_unit(text: &str) -> (&str, &str) {
    text.split_at(
        text.find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len()),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spans_add_their_parts_up() {
        for (text, millis) in [
            ("90", 90_000),
            ("250ms", 250),
            ("1h30m", 5_400_000),
            ("7d", 604_800_000),
        ] {
            assert_eq!(
                text.parse(),
                Ok(Span(Duration::from_millis(millis))),
                "{text}"
            );
        }
        for bad in ["", "h", "5 minutes", "-1s", "1h30"] {
            assert!(bad.parse::<Span>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!("1500ms".parse::<Span>().unwrap().as_seconds(), 2);
    }
}
