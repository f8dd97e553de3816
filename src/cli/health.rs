//! What a role depends on, for `/readyz`, and how it is found out each time it is asked.

use std::sync::{Arc, OnceLock};

use async_nats::connection::State;
use tokio::sync::watch;

use crate::bus::Bus;
use crate::bus::topology::{self, TopologyError, TopologySettings};
use crate::image::Runtime;
use crate::telemetry::health::Condition;
use crate::work::metrics::Listener;

/// The connection to the broker as seen from outside: it may not be there yet, and it may be lost.
#[derive(Clone, Default)]
pub struct Link(Arc<Seen>);

#[derive(Default)]
struct Seen {
    places: OnceLock<String>,
    bus: OnceLock<Bus>,
}

impl Link {
    /// Notes where the broker is looked for.
    pub fn looks_at(&self, places: String) {
        // The first is the one that counts, here and below.
        let _ = self.0.places.set(places);
    }

    /// Notes the connection.
    pub fn found(&self, bus: Bus) {
        let _ = self.0.bus.set(bus);
    }

    /// The connection, if it stands now. A server that has said nothing for a while, asked or not, is left by the client.
    fn bus(&self) -> Option<&Bus> {
        let connected = |bus: &&Bus| bus.client.connection_state() == State::Connected;
        self.0.bus.get().filter(connected)
    }

    fn connected(&self) -> Result<(), String> {
        if self.bus().is_some() {
            return Ok(());
        }
        Err(match self.0.places.get() {
            Some(places) => format!("the broker is not connected ({places})"),
            None => "it is not looked for yet; what has to come first is not there".to_owned(),
        })
    }

    /// The broker is connected.
    #[must_use]
    pub fn broker(&self) -> Condition {
        let link = self.clone();
        Condition::new("broker", move || std::future::ready(link.connected()))
    }

    /// All streams and buckets are there and as they have to be. The broker is asked, so that one that no longer answers
    /// shows at once.
    #[must_use]
    pub fn topology(&self, settings: TopologySettings) -> Condition {
        self.asks("topology", move |bus| async move {
            topology::check(&bus, settings).await
        })
    }

    /// Pushes are kept, by the stream that is to keep them: all that a receiver of webhooks needs, and may find out.
    #[must_use]
    pub fn pushes(&self) -> Condition {
        self.asks("topology", |bus| async move {
            topology::check_pushes(&bus).await
        })
    }

    fn asks<F>(
        &self,
        name: &'static str,
        ask: impl Fn(Bus) -> F + Clone + Send + Sync + 'static,
    ) -> Condition
    where
        F: Future<Output = Result<(), TopologyError>> + Send + 'static,
    {
        let link = self.clone();
        Condition::new(name, move || {
            let asked = link.bus().cloned().map(&ask);
            async move {
                match asked {
                    Some(asked) => asked.await.map_err(|error| error.to_string()),
                    None => Err("it cannot be looked at without the broker".to_owned()),
                }
            }
        })
    }
}

/// Kubernetes has told of the node, before which nothing else begins. What it told stays in force while its API is away.
#[must_use]
pub fn kubernetes(told: watch::Receiver<Result<(), String>>) -> Condition {
    Condition::new("kubernetes", move || {
        let told = told.borrow().clone();
        std::future::ready(told.map_err(|reason| {
            format!("its API has not told of the node yet, which the worker waits for: {reason}")
        }))
    })
}

/// Every runtime answers.
#[must_use]
pub fn runtime(runtimes: Vec<Runtime>) -> Condition {
    Condition::new("runtime", move || {
        let runtimes = runtimes.clone();
        async move {
            for runtime in runtimes {
                runtime.probe().await.map_err(|failure| failure.message)?;
            }
            Ok(())
        }
    })
}

/// Every node of this process is registered.
#[must_use]
pub fn registration(listeners: Vec<Arc<Listener>>) -> Condition {
    Condition::new("registration", move || {
        let found = listeners
            .iter()
            .try_for_each(|worker| worker.registration());
        std::future::ready(found)
    })
}
