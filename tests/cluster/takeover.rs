//! The dispatcher that leads ends, and a standby goes on.

use std::time::Duration;

use prewarm::dispatch::lease::DEFAULT_LEASE;
use prewarm::domain::status::Outcome;
use prewarm::domain::time::Timestamp;
use prewarm::wire::event::{JobEventKind, PullState};
use serde_json::{Value, json};

use crate::fleet::{Fleet, LIMIT, downloaded_once, each_pulled_once, images, now};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::Role;

const NODES: u32 = 50;
const IMAGES: usize = 20;
/// A lease so long that nobody leads soon who has to wait for its end.
const LONG_LEASE: Duration = Duration::from_secs(40);

/// A cell with a leader, two standbys, and a job that releases a pull every few milliseconds.
struct Cell {
    _server: NatsServer,
    fleet: Fleet,
    leader: Role,
    _standbys: [Role; 2],
    nodes: Role,
}

fn job(parallelism: u32) -> Value {
    json!({"images": images(IMAGES), "parallelism": parallelism})
}

impl Cell {
    async fn start(lease: Duration) -> Self {
        let server = NatsServer::start(NatsVersion::V2_15).await;
        let fleet = Fleet::new(server.client().await, server.url(), 1);
        let mut leader = fleet.dispatcher_with("the leader", lease);
        leader.logs("leading", LIMIT).await;
        let mut standbys = [
            fleet.dispatcher_with("a standby", lease),
            fleet.dispatcher_with("another standby", lease),
        ];
        for standby in &mut standbys {
            standby.logs("the broker is connected", LIMIT).await;
        }
        let nodes = fleet.nodes("sim", NODES, "50ms");
        fleet.present(50).await;
        fleet.submit("base", job(4)).await;
        fleet
            .job("base", "to be under way", |job| {
                job.status.counts.succeeded >= 40
            })
            .await;
        Self {
            _server: server,
            fleet,
            leader,
            _standbys: standbys,
            nodes,
        }
    }

    /// How long after this moment no pull began that had not been released before it.
    async fn gap(&self, after: Timestamp) -> Duration {
        // What was released before is begun at once.
        let before = after.after(Duration::from_millis(500));
        let job = |job: &prewarm::wire::record::JobRecord| job.status.counts.succeeded;
        let done = self.fleet.job("base", "to be there", |_| true).await;
        let goal = job(&done) + 20;
        self.fleet
            .job("base", "to go on", |record| job(record) >= goal)
            .await;
        let told = self.fleet.told("base").await;
        let started = told
            .iter()
            .filter(|event| event.data.state == PullState::Started);
        let next = started
            .map(|event| event.time)
            .filter(|at| *at > before)
            .min();
        next.expect("a pull that began").since(after)
    }

    /// The job ends, as if nothing had happened.
    async fn ends(self) {
        self.fleet.submit("base", job(2_000)).await;
        let record = self.fleet.ended("base").await;
        assert_eq!(
            record.status.outcome,
            Some(Outcome::Succeeded),
            "{record:?}"
        );
        each_pulled_once(&self.fleet.told("base").await, 50 * IMAGES);
        downloaded_once(self.nodes, 50 * IMAGES).await;
        for kind in [JobEventKind::Started, JobEventKind::Completed] {
            let mut told = self.fleet.told_of_job("base", kind).await;
            told.dedup_by(|one, other| one.id == other.id);
            assert_eq!(told.len(), 1, "{kind:?}: {told:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_leader_is_followed_within_two_lease_times() {
    let mut cell = Cell::start(DEFAULT_LEASE).await;
    let killed = now();
    cell.leader.kill9();
    let gap = cell.gap(killed).await;
    println!("a standby released after {gap:?}");
    assert!(gap <= DEFAULT_LEASE * 2, "nobody led for {gap:?}");
    cell.ends().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_leader_that_is_told_to_stop_is_followed_at_once() {
    let mut cell = Cell::start(LONG_LEASE).await;
    let told = now();
    cell.leader.terminate().await;
    let gap = cell.gap(told).await;
    println!("a standby released after {gap:?}");
    assert!(gap < LONG_LEASE / 2, "nobody led for {gap:?}");
    cell.ends().await;
}
