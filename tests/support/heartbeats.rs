//! Heartbeats of nodes that a test plays.

use std::time::Duration;

use prewarm::bus::Bus;
use prewarm::domain::name::NodeName;
use prewarm::wire::worker::Heartbeat;

/// Often enough that a node is still there when several heartbeats in a row are late.
const EVERY: Duration = Duration::from_secs(2);

/// Says for ever that a process of a node is alive.
pub fn beat(bus: &Bus, node: &NodeName, instance: &str) -> impl Future<Output = ()> + use<> {
    let client = bus.client.clone();
    let subject = bus.subjects.heartbeat(node);
    let heartbeat = Heartbeat {
        instance: instance.to_owned(),
        ..Heartbeat::default()
    };
    let body = serde_json::to_vec(&heartbeat).expect("a heartbeat as JSON");
    async move {
        let mut beats = tokio::time::interval(EVERY);
        loop {
            beats.tick().await;
            // A heartbeat that is lost is followed by another.
            let _ = client.publish(subject.clone(), body.clone().into()).await;
        }
    }
}
