//! Looking at the node's pins and taking some back, beside the main loop.

use std::time::Duration;

use tokio::sync::mpsc;

use super::Arrived;
use crate::domain::pin::Pin;
use crate::image::Runtime;
use crate::work::input::Input;

/// How long the runtime may take to name or change its pins.
const PINS_LIMIT: Duration = Duration::from_secs(60);

/// What it takes to reach the pins.
#[derive(Clone, Debug)]
pub(super) struct Pinning {
    runtime: Runtime,
    arrivals: mpsc::Sender<Arrived>,
}

impl Pinning {
    pub(super) const fn new(runtime: Runtime, arrivals: mpsc::Sender<Arrived>) -> Self {
        Self { runtime, arrivals }
    }

    /// Looks, and reports what it found.
    pub(super) fn find(&self) {
        let this = self.clone();
        tokio::spawn(async move {
            let look = tokio::time::timeout(PINS_LIMIT, this.runtime.pins()).await;
            let found = match look {
                Ok(Ok(pins)) => Some(pins),
                Ok(Err(failure)) => {
                    tracing::debug!(%failure, "the node's pins are not known; looking again");
                    None
                }
                Err(_) => None,
            };
            this.report(Input::PinsFound(found)).await;
        });
    }

    /// Takes pins back, and reports when that is over.
    pub(super) fn take_back(&self, pins: Vec<Pin>) {
        let this = self.clone();
        tokio::spawn(async move {
            let unpin = tokio::time::timeout(PINS_LIMIT, this.runtime.unpin(&pins)).await;
            match unpin {
                Ok(Ok(())) => tracing::info!(
                    pins = pins.len(),
                    "pins of jobs that are gone, or want them no more, were taken back"
                ),
                Ok(Err(failure)) => {
                    tracing::warn!(%failure, "pins were not taken back; trying again")
                }
                Err(_) => {
                    tracing::warn!("taking pins back took longer than {PINS_LIMIT:?}; trying again")
                }
            }
            this.report(Input::Unpinned).await;
        });
    }

    async fn report(&self, input: Input) {
        // Nobody listens once the worker has ended.
        let _ = self.arrivals.send(Arrived::Input(input)).await;
    }
}
