//! Which servers of a cluster lead the streams, and whether that changes.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::GetStreamErrorKind;
use futures::future::join_all;
use tokio::time::{MissedTickBehavior, timeout};

use super::Bus;

/// How often it is looked who leads.
const LOOKED_AT: Duration = Duration::from_secs(1);
/// How long a server may take to say it. One that has much to do says it later, and still leads.
const LOOK_LIMIT: Duration = Duration::from_secs(1);

/// What a look at a stream shows.
enum Seen {
    Leader(String),
    /// The cluster is choosing one.
    NoLeader,
    /// Nobody said, or the stream is on one server.
    Unknown,
}

/// A stream, and who leads it.
struct Led {
    stream: String,
    leader: Option<String>,
    was_without: bool,
}

/// The leaders of streams at one moment.
pub struct Leaders {
    bus: Bus,
    streams: Vec<Led>,
}

impl Leaders {
    /// The leaders of these streams now.
    pub async fn now(bus: &Bus, streams: impl IntoIterator<Item = String>) -> Self {
        let look = async |stream: String| {
            let leader = match look(bus, &stream).await {
                Seen::Leader(leader) => Some(leader),
                Seen::NoLeader | Seen::Unknown => None,
            };
            Led {
                stream,
                leader,
                was_without: false,
            }
        };
        Self {
            bus: bus.clone(),
            streams: join_all(streams.into_iter().map(look)).await,
        }
    }

    /// Waits until one of the streams has got another leader, and says which. What had been sent to the one before and
    /// was not confirmed may be lost, and nobody will say so. For ever where the streams are on one server.
    pub async fn changed(mut self) -> String {
        if self.streams.iter().all(|led| led.leader.is_none()) {
            return std::future::pending().await;
        }
        let mut looks = tokio::time::interval(LOOKED_AT);
        looks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            looks.tick().await;
            let seen = self.streams.iter().map(|led| look(&self.bus, &led.stream));
            let seen = join_all(seen).await;
            for (led, seen) in self.streams.iter_mut().zip(seen) {
                if led.changes(seen) {
                    return led.stream.clone();
                }
            }
        }
    }
}

impl Led {
    fn changes(&mut self, seen: Seen) -> bool {
        match seen {
            Seen::Leader(leader) => {
                // The same again, after a time without one, has forgotten what was on its way.
                let before = self.leader.get_or_insert_with(|| leader.clone());
                self.was_without || *before != leader
            }
            Seen::NoLeader => {
                self.was_without = true;
                false
            }
            Seen::Unknown => false,
        }
    }
}

async fn look(bus: &Bus, stream: &str) -> Seen {
    match timeout(LOOK_LIMIT, bus.jetstream.get_stream(stream)).await {
        Ok(Ok(stream)) => {
            let cluster = stream.cached_info().cluster.as_ref();
            let leader = cluster.and_then(|cluster| cluster.leader.clone());
            leader.map_or(Seen::Unknown, Seen::Leader)
        }
        Ok(Err(error)) => match error.kind() {
            GetStreamErrorKind::JetStream(inner)
                if inner.error_code() == ErrorCode::CLUSTER_NOT_AVAILABLE =>
            {
                Seen::NoLeader
            }
            _ => Seen::Unknown,
        },
        Err(_) => Seen::Unknown,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn led() -> Led {
        Led {
            stream: "PREWARM_TASKS".to_owned(),
            leader: Some("one".to_owned()),
            was_without: false,
        }
    }

    fn leader(name: &str) -> Seen {
        Seen::Leader(name.to_owned())
    }

    #[test]
    fn silence_is_no_change() {
        let mut led = led();
        assert!(!led.changes(Seen::Unknown));
        assert!(!led.changes(leader("one")));
    }

    #[test]
    fn another_leader_is_a_change_and_so_is_the_same_after_a_time_without() {
        assert!(led().changes(leader("two")));
        let mut led = led();
        assert!(!led.changes(Seen::NoLeader), "who comes is not known yet");
        assert!(led.changes(leader("one")));
    }

    #[test]
    fn a_leader_that_was_not_known_at_first_is_learned() {
        let mut led = led();
        led.leader = None;
        assert!(!led.changes(leader("one")));
        assert!(led.changes(leader("two")));
    }
}
