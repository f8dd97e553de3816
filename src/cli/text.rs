//! Numbers as people read them, and columns.

use std::fmt::Write as _;
use std::time::Duration;

use crate::domain::progress::{Pace, PullPhase, PullProgress};

/// A number of bytes with three digits or so: `1.4 GiB`.
#[must_use]
pub fn bytes(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut tenths = u128::from(bytes) * 10;
    // Rounded to a tenth it would read "1024.0".
    while tenths >= 10_235 && unit + 1 < UNITS.len() {
        tenths = (tenths + 512) / 1024;
        unit += 1;
    }
    if unit == 0 {
        format!("{bytes} B")
    } else {
        format!("{}.{} {}", tenths / 10, tenths % 10, UNITS[unit])
    }
}

/// A length of time with its two largest units: `3m12s`.
#[must_use]
pub fn duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let (days, hours, minutes) = (seconds / 86_400, seconds / 3_600 % 24, seconds / 60 % 60);
    let seconds_left = seconds % 60;
    if days > 0 {
        format!("{days}d{hours}h")
    } else if hours > 0 {
        format!("{hours}h{minutes}m")
    } else if minutes > 0 {
        format!("{minutes}m{seconds_left}s")
    } else if seconds >= 10 || (seconds > 0 && duration.subsec_millis() < 100) {
        format!("{seconds}s")
    } else if seconds > 0 {
        format!("{seconds}.{}s", duration.subsec_millis() / 100)
    } else {
        format!("{}ms", duration.as_millis())
    }
}

/// An age as `kubectl` has it: whole seconds, minutes, hours or days.
#[must_use]
pub fn age(age: Duration) -> String {
    match age.as_secs() {
        seconds @ 0..=119 => format!("{seconds}s"),
        seconds @ 120..=7_199 => format!("{}m", seconds / 60),
        seconds @ 7_200..=172_799 => format!("{}h", seconds / 3_600),
        seconds => format!("{}d", seconds / 86_400),
    }
}

/// `1 node`, `2 nodes`.
#[must_use]
pub fn count(number: usize, singular: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {singular}{plural}")
}

/// The first `most` names, and how many there are beyond.
#[must_use]
pub fn some_of<T: ToString>(names: &[T], most: usize) -> String {
    let shown: Vec<String> = names.iter().take(most).map(ToString::to_string).collect();
    let mut text = shown.join(", ");
    if names.len() > most {
        let _ = write!(text, " and {} more", names.len() - most);
    }
    text
}

/// Rows as columns three spaces apart, the last one ragged. The first row is the heading.
#[must_use]
pub fn columns(rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter()
            .filter_map(|row| row.get(column))
            .map(|cell| cell.chars().count())
            .max()
    };
    let widths: Vec<usize> = (0..).map_while(width).collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            let _ = write!(line, "{cell:<width$}   ");
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// How far a pull is, how fast, and how long it may take: `12.0 MiB of 40.1 MiB, 5.2 MiB/s, about 6s left`.
#[must_use]
pub fn progress(progress: &PullProgress, pace: &Pace) -> String {
    let mut text = match progress.phase {
        PullPhase::Resolving => "resolving".to_owned(),
        PullPhase::Committing => "committing".to_owned(),
        PullPhase::Downloading => format!(
            "{} of {}",
            bytes(progress.bytes_done),
            bytes(progress.bytes_total)
        ),
        PullPhase::Unpacking => format!(
            "unpacked {} of {}",
            bytes(progress.unpack_done),
            bytes(progress.unpack_total)
        ),
    };
    if let Some(rate) = pace.bytes_per_second {
        let _ = write!(text, ", {}/s", bytes(rate));
    }
    if let Some(left) = pace.seconds_left {
        let _ = write!(text, ", about {} left", duration(Duration::from_secs(left)));
    }
    if progress.phase == PullPhase::Downloading && progress.bytes_present > 0 {
        let _ = write!(text, ", {} were there", bytes(progress.bytes_present));
    }
    text
}

/// A bar of `width` cells, as full as `done` of `total`.
#[must_use]
pub fn bar(done: u64, total: u64, width: usize) -> String {
    let cells = u64::try_from(width).unwrap_or(0);
    let full = if total == 0 {
        0
    } else {
        u128::from(done.min(total)) * u128::from(cells) / u128::from(total)
    };
    let full = usize::try_from(full).unwrap_or(width);
    format!("{}{}", "█".repeat(full), "░".repeat(width - full))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_have_one_decimal() {
        for (number, text) in [
            (0, "0 B"),
            (1023, "1023 B"),
            (1024, "1.0 KiB"),
            (1536, "1.5 KiB"),
            (1_048_576, "1.0 MiB"),
            (1_048_575, "1.0 MiB"),
            (1_503_238_553, "1.4 GiB"),
            (5 << 50, "5120.0 TiB"),
        ] {
            assert_eq!(bytes(number), text);
        }
    }

    #[test]
    fn durations_have_two_units() {
        for (millis, text) in [
            (0, "0ms"),
            (999, "999ms"),
            (1_000, "1s"),
            (1_500, "1.5s"),
            (12_000, "12s"),
            (192_000, "3m12s"),
            (3_600_000, "1h0m"),
            (90_000_000, "1d1h"),
        ] {
            assert_eq!(duration(Duration::from_millis(millis)), text);
        }
    }

    #[test]
    fn ages_have_one_unit() {
        for (seconds, text) in [
            (5, "5s"),
            (119, "119s"),
            (120, "2m"),
            (7_200, "2h"),
            (200_000, "2d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), text);
        }
    }

    #[test]
    fn lists_are_cut_with_a_count() {
        assert_eq!(some_of(&["a", "b", "c"], 2), "a, b and 1 more");
        assert_eq!(some_of(&["a"], 2), "a");
        assert_eq!(
            (count(1, "node"), count(2, "node")),
            ("1 node".to_owned(), "2 nodes".to_owned())
        );
    }

    #[test]
    fn columns_line_up() {
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let text = columns(&[
            row(["NAME", "AGE", "NOTE"]),
            row(["a", "12s", ""]),
            row(["abcdef", "1d", "x"]),
        ]);
        assert_eq!(
            text,
            "NAME     AGE   NOTE\na        12s\nabcdef   1d    x\n"
        );
    }

    #[test]
    fn progress_names_what_is_known() {
        let mut now = PullProgress::default();
        let mut pace = Pace::default();
        assert_eq!(progress(&now, &pace), "resolving");
        now.phase = PullPhase::Downloading;
        (now.bytes_done, now.bytes_total) = (12 << 20, 40 << 20);
        assert_eq!(progress(&now, &pace), "12.0 MiB of 40.0 MiB");
        now.bytes_present = 2 << 20;
        (pace.bytes_per_second, pace.seconds_left) = (Some(5 << 20), Some(6));
        assert_eq!(
            progress(&now, &pace),
            "12.0 MiB of 40.0 MiB, 5.0 MiB/s, about 6s left, 2.0 MiB were there"
        );
        now.phase = PullPhase::Unpacking;
        (now.unpack_done, now.unpack_total) = (1 << 20, 40 << 20);
        pace.bytes_per_second = None;
        assert_eq!(
            progress(&now, &pace),
            "unpacked 1.0 MiB of 40.0 MiB, about 6s left"
        );
    }

    #[test]
    fn a_bar_is_full_only_at_the_end() {
        assert_eq!(bar(0, 0, 4), "░░░░");
        assert_eq!(bar(99, 100, 4), "███░");
        assert_eq!(bar(100, 100, 4), "████");
        assert_eq!(bar(7, 5, 2), "██");
    }
}
