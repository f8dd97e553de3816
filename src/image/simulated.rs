//! A runtime that only pretends: latencies, sizes and failures by setting, for tests and load.
//!
//! What happens to an image on a node is a function of the seed, the node, the image and the attempt,
//! so that a run can be repeated.

mod latency;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use sha2::{Digest as _, Sha256};
use tokio_util::sync::CancellationToken;
use tracing::field::Empty;

pub use self::latency::{Latency, LatencyError};
use super::{Engine, ProgressSink, PullReport, PullRequest, RuntimeInfo, phase};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef, Platform};
use crate::domain::job::ImagePullPolicy;
use crate::domain::pin::Pin;
use crate::domain::progress::{PullPhase, PullProgress};

/// How many times a pull reports while it downloads.
const PROGRESS_STEPS: u32 = 10;
/// The share of a pull's time that goes into unpacking, in percent.
const UNPACK_PERCENT: u32 = 30;
/// Sizes are drawn up to this many percent below and above the mean.
const SIZE_SPREAD_PERCENT: u64 = 50;
/// The disk a simulated node says it has.
const DISK_TOTAL: u64 = 1 << 40;
/// Most images a simulated node keeps; beyond, the set starts anew.
const MAX_IMAGES: usize = 100_000;

/// How the simulated runtime behaves.
#[derive(Clone, PartialEq, Debug)]
pub struct SimulatedConfig {
    /// The node it stands in for; part of what the draws depend on.
    pub node: String,
    /// Where the draws start.
    pub seed: u64,
    /// How long a pull takes.
    pub latency: Latency,
    /// How often an attempt fails.
    pub failure_rate: FailureRate,
    /// Mean compressed bytes of an image.
    pub image_bytes: u64,
}

impl Default for SimulatedConfig {
    fn default() -> Self {
        Self {
            node: String::new(),
            seed: 1,
            latency: Latency::Even {
                least: Duration::from_millis(500),
                most: Duration::from_secs(2),
            },
            failure_rate: FailureRate(0.0),
            image_bytes: 100 << 20,
        }
    }
}

/// The share of attempts that fail, from 0 to 1.
#[derive(Clone, Copy, PartialEq, Debug)]
pub struct FailureRate(f64);

/// A text that is not a rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no failure rate: write a number from 0 (never) to 1 (always), such as 0.1")]
pub struct FailureRateError(String);

impl FromStr for FailureRate {
    type Err = FailureRateError;

    fn from_str(text: &str) -> Result<Self, FailureRateError> {
        text.parse()
            .ok()
            .filter(|rate| (0.0..=1.0).contains(rate))
            .map(Self)
            .ok_or_else(|| FailureRateError(text.to_owned()))
    }
}

impl fmt::Display for FailureRate {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// A runtime that only pretends. Clones share what is on the node.
#[derive(Clone, Debug)]
pub struct Simulated {
    config: SimulatedConfig,
    state: Arc<Mutex<State>>,
}

#[derive(Default, Debug)]
struct State {
    /// What the tag and digest names of the node point at.
    images: BTreeMap<String, Digest>,
    pins: BTreeSet<Pin>,
    /// How often each image was tried, so that each attempt draws anew.
    attempts: BTreeMap<String, u64>,
    last_asked: Option<PullRequest>,
}

impl State {
    fn pin(&mut self, request: &PullRequest) {
        if let Some(pin) = &request.pin {
            self.pins.retain(|held| !held.is_same_hold(pin));
            self.pins.insert(pin.clone());
        }
    }
}

/// What will happen to one attempt.
struct Draw {
    latency: Duration,
    bytes: u64,
    failure: Option<Failure>,
    /// How far the attempt comes before it fails, in steps.
    fails_at: u32,
}

impl Simulated {
    /// A node without images.
    #[must_use]
    pub fn new(config: SimulatedConfig) -> Self {
        Self {
            config,
            state: Arc::default(),
        }
    }

    /// What it claims to be.
    #[must_use]
    pub fn probe(&self) -> RuntimeInfo {
        RuntimeInfo {
            name: "simulated".to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            platform: Platform::host(),
            disk_total: DISK_TOTAL,
            disk_free: DISK_TOTAL,
        }
    }

    /// What it was asked to pull last.
    #[must_use]
    pub fn last_asked(&self) -> Option<PullRequest> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_asked.clone()
    }

    /// The pins that were set and not taken back.
    #[must_use]
    pub fn pins(&self) -> Vec<Pin> {
        let state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.pins.iter().cloned().collect()
    }

    /// Takes pins back, those of the same and of earlier generations.
    pub fn unpin(&self, pins: &[Pin]) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state
            .pins
            .retain(|held| !pins.iter().any(|pin| held.goes_with(pin)));
    }

    /// Waits as long as the draw says and reports on the way.
    ///
    /// # Errors
    /// The failure that was drawn, or `Internal` when cancelled.
    pub async fn pull(
        &self,
        request: &PullRequest,
        progress: &ProgressSink,
        cancelled: &CancellationToken,
    ) -> Result<PullReport, Failure> {
        let digest = request
            .digest
            .clone()
            .or_else(|| request.image.digest().cloned())
            .unwrap_or_else(|| simulated_digest(&request.image));
        let (draw, present) = self.begin(request, &digest);
        let report = PullReport {
            digest: digest.clone(),
            already_present: present.is_some(),
            bytes_registry: 0,
            bytes_mirror: 0,
            bytes_present: draw.bytes,
            resolve: Duration::ZERO,
            download: Duration::ZERO,
            unpack: Duration::ZERO,
            engine: None,
            engine_reason: String::new(),
        };
        if let Some(digest) = present {
            return Ok(PullReport { digest, ..report });
        }
        let unpack = draw.latency * UNPACK_PERCENT / 100;
        let download = draw.latency - unpack;
        let report_progress = |phase, bytes_done| {
            progress.send_replace(PullProgress {
                phase,
                bytes_done,
                bytes_total: draw.bytes,
                unpack_total: draw.bytes,
                unpack_done: if phase == PullPhase::Committing {
                    draw.bytes
                } else {
                    0
                },
                ..PullProgress::default()
            });
        };
        let downloading = async {
            for step in 0..PROGRESS_STEPS {
                report_progress(
                    PullPhase::Downloading,
                    draw.bytes / u64::from(PROGRESS_STEPS) * u64::from(step),
                );
                if step == draw.fails_at
                    && let Some(failure) = &draw.failure
                {
                    return Err(failure.clone());
                }
                wait(download / PROGRESS_STEPS, cancelled).await?;
            }
            Ok(())
        };
        phase(tracing::info_span!("download", error = Empty), downloading).await?;
        report_progress(PullPhase::Unpacking, draw.bytes);
        let unpacking = wait(unpack, cancelled);
        phase(tracing::info_span!("unpack", error = Empty), unpacking).await?;
        report_progress(PullPhase::Committing, draw.bytes);
        self.keep(request, &digest);
        Ok(PullReport {
            bytes_registry: draw.bytes,
            bytes_present: 0,
            download,
            unpack,
            engine: Some(Engine::Simulated),
            engine_reason: String::new(),
            ..report
        })
    }

    /// Draws what happens, and says what the image's name means on the node if it is good enough.
    fn begin(&self, request: &PullRequest, digest: &Digest) -> (Draw, Option<Digest>) {
        let name = request.image.to_string();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.last_asked = Some(request.clone());
        let present = state
            .images
            .get(&name)
            .filter(|there| request.policy == ImagePullPolicy::IfNotPresent || *there == digest);
        let present = present.cloned();
        if present.is_some() {
            state.pin(request);
            return (self.draw(&name, 0), present);
        }
        if state.attempts.len() >= MAX_IMAGES {
            state.attempts.clear();
        }
        let attempt = state.attempts.entry(name.clone()).or_default();
        *attempt += 1;
        (self.draw(&name, *attempt), None)
    }

    fn keep(&self, request: &PullRequest, digest: &Digest) {
        let name = request.image.to_string();
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.images.len() >= MAX_IMAGES {
            state.images.clear();
            state.pins.clear();
        }
        state.pin(request);
        state.images.insert(name, digest.clone());
    }

    fn draw(&self, image: &str, attempt: u64) -> Draw {
        let config = &self.config;
        let rng = |of: &str, attempt: u64| {
            let mut hash = Sha256::new();
            hash.update(config.seed.to_le_bytes());
            hash.update(attempt.to_le_bytes());
            for part in [of, image] {
                hash.update(part.len().to_le_bytes());
                hash.update(part);
            }
            StdRng::from_seed(hash.finalize().into())
        };
        // An image has one size on all nodes.
        let spread = config.image_bytes / 100 * SIZE_SPREAD_PERCENT;
        let bytes = rng("", 0)
            .random_range(config.image_bytes - spread..=config.image_bytes.saturating_add(spread));
        let mut rng = rng(&config.node, attempt);
        let latency = config.latency.draw(&mut rng);
        let failure = rng
            .random_bool(config.failure_rate.0)
            .then(|| simulated_failure(rng.random_range(0..100)));
        Draw {
            latency,
            bytes,
            failure,
            fails_at: rng.random_range(0..PROGRESS_STEPS),
        }
    }
}

async fn wait(duration: Duration, cancelled: &CancellationToken) -> Result<(), Failure> {
    let elapsed = async {
        if !duration.is_zero() {
            tokio::time::sleep(duration).await;
        }
    };
    cancelled
        .run_until_cancelled(elapsed)
        .await
        .ok_or_else(|| Failure::new(FailureKind::Internal, "the pull was cancelled"))
}

/// What a registry would say of a tag: the same on all nodes.
fn simulated_digest(image: &ImageRef) -> Digest {
    Digest::of(format!("simulated {image}").as_bytes())
}

/// A failure by percent of all failures: most are the passing kind that a registry under load shows.
fn simulated_failure(percent: u8) -> Failure {
    let (kind, message, retry_after) = match percent {
        0..55 => (
            FailureKind::RegistryUnavailable,
            "503 Service Unavailable",
            None,
        ),
        55..75 => (
            FailureKind::RateLimited,
            "429 Too Many Requests",
            Some(Duration::from_secs(1)),
        ),
        75..85 => (
            FailureKind::DigestMismatch,
            "a layer has other bytes than its digest says",
            None,
        ),
        85..90 => (
            FailureKind::RuntimeUnavailable,
            "the runtime does not answer",
            None,
        ),
        90..95 => (FailureKind::ImageNotFound, "404 Not Found", None),
        _ => (
            FailureKind::InsufficientDisk,
            "no space left on device",
            None,
        ),
    };
    Failure {
        kind,
        message: format!("simulated: {message}"),
        retry_after,
    }
}

#[cfg(test)]
#[path = "simulated_tests.rs"]
mod tests;
