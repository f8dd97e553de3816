//! Amounts of bytes as people write them, for settings.

use std::fmt;
use std::str::FromStr;

/// A number of bytes: `512`, `100MiB`, `1.5GB`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ByteSize(pub u64);

/// A text that is not a number of bytes.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no size: write a number of bytes, or one with a unit: kB, MB, GB, TB, KiB, MiB, GiB, TiB"
)]
pub struct ByteSizeError(String);

impl FromStr for ByteSize {
    type Err = ByteSizeError;

    fn from_str(text: &str) -> Result<Self, ByteSizeError> {
        let error = || ByteSizeError(text.to_owned());
        let trimmed = text.trim();
        let digits = trimmed
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(trimmed.len());
        let (number, unit) = trimmed.split_at(digits);
        let unit: u64 = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 1,
            "k" | "kb" => 1_000,
            "m" | "mb" => 1_000_000,
            "g" | "gb" => 1_000_000_000,
            "t" | "tb" => 1_000_000_000_000,
            "ki" | "kib" => 1 << 10,
            "mi" | "mib" => 1 << 20,
            "gi" | "gib" => 1 << 30,
            "ti" | "tib" => 1 << 40,
            _ => return Err(error()),
        };
        if let Ok(whole) = number.parse::<u64>() {
            return whole.checked_mul(unit).map(Self).ok_or_else(error);
        }
        let bytes = number.parse::<f64>().map_err(|_| error())? * unit as f64;
        // Beyond this a float no longer counts single bytes, and nobody has such a disk.
        if (0.0..9e15).contains(&bytes) {
            #[expect(
                clippy::cast_possible_truncation,
                clippy::cast_sign_loss,
                reason = "the range was just checked"
            )]
            let bytes = bytes as u64;
            Ok(Self(bytes))
        } else {
            Err(error())
        }
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
        let mut amount = self.0 as f64;
        let mut unit = "B";
        for next in UNITS {
            if amount < 1024.0 {
                break;
            }
            amount /= 1024.0;
            unit = next;
        }
        if unit == "B" || amount >= 100.0 {
            write!(f, "{amount:.0} {unit}")
        } else {
            write!(f, "{amount:.1} {unit}")
        }
    }
}

/// Bytes in a second: a size, `/s` at the end or not.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct Bandwidth(pub ByteSize);

/// A text that is not a bandwidth.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no bandwidth: write bytes in a second, more than none, such as 50MB/s or 20MiB")]
pub struct BandwidthError(String);

impl FromStr for Bandwidth {
    type Err = BandwidthError;

    fn from_str(text: &str) -> Result<Self, BandwidthError> {
        text.strip_suffix("/s")
            .unwrap_or(text)
            .parse()
            .ok()
            .filter(|size| *size > ByteSize(0))
            .map(Self)
            .ok_or_else(|| BandwidthError(text.to_owned()))
    }
}

impl fmt::Display for Bandwidth {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/s", self.0)
    }
}

/// How much of a disk stays free: a size, or a share of the disk.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub enum DiskReserve {
    /// So many bytes.
    Bytes(ByteSize),
    /// So many percent of the file system, 0 to 100.
    Percent(u8),
}

/// A text that is not a disk reserve.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is neither a size such as 20GiB nor a share such as 10%")]
pub struct DiskReserveError(String);

impl FromStr for DiskReserve {
    type Err = DiskReserveError;

    fn from_str(text: &str) -> Result<Self, DiskReserveError> {
        let error = || DiskReserveError(text.to_owned());
        match text.trim().strip_suffix('%') {
            Some(percent) => percent
                .trim()
                .parse()
                .ok()
                .filter(|percent| *percent <= 100)
                .map(Self::Percent)
                .ok_or_else(error),
            None => text.parse().map(Self::Bytes).map_err(|_| error()),
        }
    }
}

impl fmt::Display for DiskReserve {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Bytes(size) => size.fmt(f),
            Self::Percent(percent) => write!(f, "{percent}%"),
        }
    }
}

impl DiskReserve {
    /// The bytes to stay free on a file system of `total` bytes.
    #[must_use]
    pub fn of(self, total: u64) -> u64 {
        match self {
            Self::Bytes(size) => size.0,
            Self::Percent(percent) => total / 100 * u64::from(percent),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_with_their_units() {
        for (text, bytes) in [
            ("0", 0),
            ("512", 512),
            ("512B", 512),
            ("100MiB", 100 << 20),
            ("100 MiB", 100 << 20),
            ("1.5kB", 1500),
            ("2Gi", 2 << 30),
            ("3gb", 3_000_000_000),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
        for bad in [
            "",
            "x",
            "-1",
            "1XB",
            "1.2.3",
            "99999999999999TiB",
            "1e9999999",
            ".",
        ] {
            assert!(bad.parse::<ByteSize>().is_err(), "{bad:?} was accepted");
        }
        assert_eq!(ByteSize(1536).to_string(), "1.5 KiB");
        assert_eq!(ByteSize(100).to_string(), "100 B");
    }

    #[test]
    fn a_reserve_is_a_size_or_a_share() {
        assert_eq!("10%".parse::<DiskReserve>().unwrap().of(1000), 100);
        assert_eq!("1KiB".parse::<DiskReserve>().unwrap().of(1000), 1024);
        for bad in ["", "101%", "-1%", "%", "ten"] {
            assert!(bad.parse::<DiskReserve>().is_err(), "{bad:?} was accepted");
        }
    }

    #[test]
    fn a_bandwidth_is_more_than_none() {
        assert_eq!("50MB/s".parse(), Ok(Bandwidth(ByteSize(50_000_000))));
        assert_eq!("1MiB".parse(), Ok(Bandwidth(ByteSize(1 << 20))));
        for bad in ["0", "/s", "5/m"] {
            assert!(bad.parse::<Bandwidth>().is_err(), "{bad:?} was accepted");
        }
    }
}
