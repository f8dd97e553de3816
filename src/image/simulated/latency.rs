//! How long pulls take.

use std::f64::consts::TAU;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use rand::RngExt as _;
use rand::rngs::StdRng;

/// The longest pull that a distribution without an end draws.
const LONGEST: Duration = Duration::from_secs(1_800);
/// By how many standard deviations 99 in a hundred draws of a normal distribution are at most above its mean.
const P99_DEVIATIONS: f64 = 2.326_347_874;

/// How long a pull takes. Zero is allowed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Latency {
    /// Between two durations, evenly.
    Even {
        /// The shortest.
        least: Duration,
        /// The longest.
        most: Duration,
    },
    /// By a log-normal distribution: most pulls take about as long, few take many times as long, as of registries under
    /// load. None takes longer than half an hour.
    Skewed {
        /// Half take at most this long.
        p50: Duration,
        /// 99 in a hundred take at most this long.
        p99: Duration,
    },
}

/// A text that says no latency.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error(
    "{0:?} is no latency: write a duration such as 250ms, two such as 100ms..2s, the shorter first, or what half and what 99 in \
     a hundred take at most, such as p50=2s,p99=30s (units: ms, s, m)"
)]
pub struct LatencyError(String);

impl Latency {
    /// One pull's.
    pub(super) fn draw(self, rng: &mut StdRng) -> Duration {
        match self {
            Self::Even { least, most } => rng.random_range(least..=most),
            Self::Skewed { p50, p99 } => {
                // Box and Muller, "A note on the generation of random normal deviates", 1958.
                let (radius, angle): (f64, f64) =
                    (1.0 - rng.random_range(0.0..1.0), rng.random_range(0.0..TAU));
                let deviations = (-2.0 * radius.ln()).sqrt() * angle.cos();
                let scale = (p99.as_secs_f64() / p50.as_secs_f64()).ln() / P99_DEVIATIONS;
                let seconds = p50.as_secs_f64() * (deviations * scale).exp();
                Duration::try_from_secs_f64(seconds).map_or(LONGEST, |drawn| drawn.min(LONGEST))
            }
        }
    }

    fn read(text: &str) -> Option<Self> {
        if let Some((p50, p99)) = text.split_once(',') {
            let p50 = duration(p50.trim().strip_prefix("p50=")?)?;
            let p99 = duration(p99.trim().strip_prefix("p99=")?)?;
            let is_legal = !p50.is_zero() && p50 <= p99 && p99 <= LONGEST;
            return is_legal.then_some(Self::Skewed { p50, p99 });
        }
        let (least, most) = text.split_once("..").unwrap_or((text, text));
        let (least, most) = (duration(least)?, duration(most)?);
        (least <= most).then_some(Self::Even { least, most })
    }
}

impl FromStr for Latency {
    type Err = LatencyError;

    fn from_str(text: &str) -> Result<Self, LatencyError> {
        Self::read(text).ok_or_else(|| LatencyError(text.to_owned()))
    }
}

impl fmt::Display for Latency {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Even { least, most } => {
                write!(f, "{}ms..{}ms", least.as_millis(), most.as_millis())
            }
            Self::Skewed { p50, p99 } => {
                write!(f, "p50={}ms,p99={}ms", p50.as_millis(), p99.as_millis())
            }
        }
    }
}

fn duration(text: &str) -> Option<Duration> {
    let text = text.trim();
    let (number, millis) = match text {
        "0" => ("0", 1.0),
        _ if text.ends_with("ms") => (&text[..text.len() - 2], 1.0),
        _ if text.ends_with('s') => (&text[..text.len() - 1], 1e3),
        _ if text.ends_with('m') => (&text[..text.len() - 1], 6e4),
        _ => return None,
    };
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * millis / 1e3).ok()
}

#[cfg(test)]
mod tests {
    use rand::SeedableRng as _;

    use super::*;

    #[test]
    fn what_is_said_is_what_is_drawn() {
        let latency: Latency = "p50=200ms,p99=5s".parse().unwrap();
        let mut rng = StdRng::seed_from_u64(1);
        let mut drawn: Vec<Duration> = (0..10_000).map(|_| latency.draw(&mut rng)).collect();
        drawn.sort_unstable();
        for (at, wanted) in [(5_000, 0.2), (9_900, 5.0)] {
            let drawn = drawn[at].as_secs_f64();
            assert!((drawn / wanted - 1.0).abs() < 0.15, "{drawn} for {wanted}");
        }
        assert!(*drawn.last().unwrap() <= LONGEST);
    }

    #[test]
    fn texts_are_read_and_said_again() {
        for (text, said) in [
            ("0", "0ms..0ms"),
            ("250ms", "250ms..250ms"),
            ("0.1s..2m", "100ms..120000ms"),
            ("p50=2s,p99=30s", "p50=2000ms,p99=30000ms"),
            ("p50=1s, p99=1s", "p50=1000ms,p99=1000ms"),
        ] {
            let latency: Latency = text.parse().unwrap();
            assert_eq!(latency.to_string(), said);
            assert_eq!(said.parse(), Ok(latency));
        }
        for text in [
            "",
            "5",
            "2s..1s",
            "p50=0,p99=1s",
            "p50=2s,p99=1s",
            "p50=1s",
            "p99=1s,p50=1s",
            "p50=1s,p99=2h",
        ] {
            let error = text.parse::<Latency>().unwrap_err().to_string();
            assert!(error.contains("p50=2s,p99=30s"), "{error}");
        }
    }
}
