//! What the receiver counts, by source.

use prometheus::{HistogramOpts, HistogramVec, IntCounterVec, Opts, Registry};

/// The name in the place of a source that there is not: labels stay bounded, whatever is asked for.
pub(super) const NO_SOURCE: &str = "none";
/// What a request to a source can come to.
const OUTCOMES: [&str; 10] = [
    "published",
    "nothing",
    "unproven",
    "malformed",
    "too-large",
    "too-slow",
    "cut-off",
    "not-post",
    "busy",
    "unavailable",
];
/// Bounds of the publish times in seconds.
const BUCKETS: [f64; 10] = [0.001, 0.0025, 0.005, 0.01, 0.02, 0.05, 0.1, 0.5, 1.0, 3.0];

/// The counters.
#[derive(Clone)]
pub struct Metrics {
    pub(super) requests: IntCounterVec,
    pub(super) pushes: IntCounterVec,
    pub(super) publish: HistogramVec,
}

impl Metrics {
    /// Makes the counters and enters them.
    ///
    /// # Errors
    /// A metric's name is taken.
    pub fn new(registry: &Registry) -> Result<Self, prometheus::Error> {
        let requests = Opts::new(
            "prewarm_webhook_requests_total",
            "Requests by source and by outcome, which is published if they hold pushes that count",
        );
        let pushes = Opts::new(
            "prewarm_webhook_pushes_total",
            "Pushes of images in payloads by source and what became of them: published, ignored, refused",
        );
        let publish = HistogramOpts::new(
            "prewarm_webhook_publish_seconds",
            "Time until the broker had all pushes of a request, by source",
        );
        let metrics = Self {
            requests: IntCounterVec::new(requests, &["source", "outcome"])?,
            pushes: IntCounterVec::new(pushes, &["source", "outcome"])?,
            publish: HistogramVec::new(publish.buckets(BUCKETS.to_vec()), &["source"])?,
        };
        registry.register(Box::new(metrics.requests.clone()))?;
        registry.register(Box::new(metrics.pushes.clone()))?;
        registry.register(Box::new(metrics.publish.clone()))?;
        Ok(metrics)
    }

    /// Has every series of a source there from the start: of a counter that appears with its first increment, `rate`
    /// never sees it.
    pub(super) fn begin(&self, source: &str) {
        for outcome in OUTCOMES {
            self.requests.with_label_values(&[source, outcome]);
        }
        for outcome in ["published", "ignored", "refused"] {
            self.pushes.with_label_values(&[source, outcome]);
        }
        self.publish.with_label_values(&[source]);
    }
}
