//! Amounts of bytes and time as people write them.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

/// A number of bytes, such as `50MiB`; `k`, `M`, `G` and `T` are powers of 1000, with `i` of 1024.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Bytes(pub u64);

/// A text that is not a number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a number of bytes: write a number and B, KB, MB, GB, TB, KiB, MiB, GiB or TiB"
)]
pub struct BytesError(String);

impl FromStr for Bytes {
    type Err = BytesError;

    fn from_str(text: &str) -> Result<Self, BytesError> {
        let error = || BytesError(text.to_owned());
        let (number, unit) = split_unit(text);
        let unit = match unit.trim().to_ascii_lowercase().trim_end_matches('b') {
            "" => 1,
            "k" => 1_000,
            "m" => 1_000_000,
            "g" => 1_000_000_000,
            "t" => 1_000_000_000_000,
            "ki" => 1 << 10,
            "mi" => 1 << 20,
            "gi" => 1 << 30,
            "ti" => 1_u64 << 40,
            _ => return Err(error()),
        };
        let number: u64 = number.parse().map_err(|_| error())?;
        number.checked_mul(unit).map(Self).ok_or_else(error)
    }
}

/// How much of a disk stays free: a share of it, or a number of bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FreeSpace {
    /// This many of every hundred bytes.
    Percent(u8),
    /// This many bytes.
    Bytes(u64),
}

/// A text that is neither a percentage nor a number of bytes.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is neither a percentage up to 99% nor a number of bytes such as 20GiB")]
pub struct FreeSpaceError(String);

impl FreeSpace {
    /// How many of `total` bytes stay free.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Percent(percent) => total / 100 * u64::from(percent),
            Self::Bytes(bytes) => bytes,
        }
    }
}

impl FromStr for FreeSpace {
    type Err = FreeSpaceError;

    fn from_str(text: &str) -> Result<Self, FreeSpaceError> {
        let error = || FreeSpaceError(text.to_owned());
        match text.strip_suffix('%') {
            Some(percent) => match percent.parse() {
                Ok(percent) if percent <= 99 => Ok(Self::Percent(percent)),
                _ => Err(error()),
            },
            None => text
                .parse()
                .map(|Bytes(bytes)| Self::Bytes(bytes))
                .map_err(|_| error()),
        }
    }
}

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
    fn bytes_have_units_of_1000_and_1024() {
        for (text, bytes) in [
            ("7", 7),
            ("50MiB", 50 << 20),
            ("50MB", 50_000_000),
            ("2g", 2_000_000_000),
            ("1 KiB", 1024),
        ] {
            assert_eq!(text.parse(), Ok(Bytes(bytes)), "{text}");
        }
        for bad in ["", "MiB", "-1", "1.5GB", "1 furlong", "99999999999TiB"] {
            assert!(bad.parse::<Bytes>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn free_space_is_a_share_or_bytes() {
        assert_eq!("10%".parse::<FreeSpace>().unwrap().of(1_000), 100);
        assert_eq!("1GB".parse::<FreeSpace>().unwrap().of(5), 1_000_000_000);
        for bad in ["100%", "-1%", "%", "lots"] {
            assert!(bad.parse::<FreeSpace>().is_err(), "{bad:?} was accepted");
        }
    }

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
