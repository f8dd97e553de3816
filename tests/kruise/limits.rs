//! What bounds pulls beside a job's own number, and what stops a job that fails everywhere. In Kruise a node, a registry
//! and a zone take whatever all jobs send them (openkruise/kruise#1848 wants a limit), and a job goes on to its last node.

use prewarm::dispatch::state::Settings;
use prewarm::domain::node::ZONE_LABEL;
use prewarm::domain::status::Outcome;
use prewarm::wire::event::JobEventKind;
use prewarm::wire::subject::JobVerb;
use prewarm::wire::task::PullTask;
use serde_json::json;

use crate::cell::{Cell, LIMIT};
use crate::node::names;
use crate::support::nats::NatsVersion;
use crate::support::prewarm::{Prewarm, Role, prewarm};

/// A cell with these limits and silent nodes in these zones.
async fn limited(limits: Settings, nodes: &[(&str, &str)]) -> Cell {
    let mut cell = Cell::broker(NatsVersion::V2_15).await;
    cell.dispatch(|settings| settings.limits = limits).await;
    for (node, zone) in nodes {
        cell.silent(node, &[(ZONE_LABEL, zone)]).await;
    }
    cell
}

#[tokio::test]
async fn issue_1848_a_registry_serves_so_many_pulls_of_all_jobs() {
    let limits = Settings {
        host_limit: Some(2),
        ..Settings::default()
    };
    let cell = limited(limits, &[("a", "x"), ("b", "x"), ("c", "x")]).await;
    cell.submit("one", json!({"images": ["r1.example/app:1"]}))
        .await;
    let one = cell.released("one", 2).await;
    cell.submit(
        "two",
        json!({"images": ["r1.example/app:2"], "priority": 1}),
    )
    .await;
    // Another registry is not concerned.
    cell.submit("three", json!({"images": ["r2.example/app:3"]}))
        .await;
    cell.released("three", 2).await;
    assert_eq!(cell.tasks("two").await.len(), 0);
    cell.tell_success(&one[0]).await;
    let two = cell.released("two", 1).await;
    assert_eq!(cell.tasks("one").await.len(), 2, "the third waits");
    cell.tell_success(&two[0]).await;
    cell.released("two", 2).await;
    assert_eq!(cell.tasks("one").await.len(), 2, "the third waits");
}

#[tokio::test]
async fn issue_1848_a_zone_takes_so_many_pulls_of_all_jobs() {
    let limits = Settings {
        zone_limit: Some(1),
        ..Settings::default()
    };
    let cell = limited(limits, &[("a", "x"), ("b", "x"), ("c", "y")]).await;
    cell.submit("one", json!({"images": ["app:1"]})).await;
    let one = cell.released("one", 2).await;
    assert_eq!(names(&one), ["a", "c"]);
    cell.submit(
        "two",
        json!({"images": ["app:2"], "selector": {"names": ["b", "c"]}}),
    )
    .await;
    cell.tell_success(&one[0]).await;
    let released = cell.released("one", 3).await;
    assert_eq!(names(&released), ["a", "c", "b"]);
    cell.tell_success(&one[1]).await;
    assert_eq!(names(&cell.released("two", 1).await), ["c"]);
}

/// The program with this limit and silent nodes in these zones.
async fn the_program_with(limit: Prewarm, nodes: &[(&str, &str)]) -> (Cell, Role) {
    let cell = Cell::broker(NatsVersion::V2_15).await;
    let mut dispatcher = limit
        .env("PREWARM_NATS_URL", cell.server.url())
        .env("PREWARM_METRICS_LISTEN", "off")
        .spawn("the dispatcher");
    dispatcher.logs("leading", LIMIT).await;
    for (node, zone) in nodes {
        cell.silent(node, &[(ZONE_LABEL, zone)]).await;
    }
    (cell, dispatcher)
}

#[tokio::test]
async fn max_pulls_per_registry_is_a_flag_that_holds() {
    let limit = prewarm(["dispatcher", "--max-pulls-per-registry", "2"]);
    let nodes = [("a", "x"), ("b", "x"), ("c", "x")];
    let (cell, _dispatcher) = the_program_with(limit, &nodes).await;
    // Nothing answers there, so that the nodes resolve for themselves; a name would be looked up, which may take long.
    let images = json!(["127.0.0.1:1/app:1", "127.0.0.1:2/app:1"]);
    cell.submit("job", json!({"images": images})).await;
    let tasks = cell.released("job", 4).await;
    let first = |task: &&PullTask| task.image.registry() == "127.0.0.1:1";
    assert_eq!(tasks.iter().filter(first).count(), 2);
    cell.tell_success(tasks.iter().find(first).unwrap()).await;
    let tasks = cell.released("job", 5).await;
    assert_eq!(tasks.iter().filter(first).count(), 3);
}

#[tokio::test]
async fn max_pulls_per_zone_is_a_variable_that_holds() {
    let limit = prewarm(["dispatcher"]).env("PREWARM_MAX_PULLS_PER_ZONE", "1");
    let nodes = [("a", "x"), ("b", "x"), ("c", "y")];
    let (cell, _dispatcher) = the_program_with(limit, &nodes).await;
    let spec = json!({"images": ["127.0.0.1:1/app:1"]});
    cell.submit("job", spec).await;
    let tasks = cell.released("job", 2).await;
    assert_eq!(names(&tasks), ["a", "c"]);
    cell.tell_success(&tasks[0]).await;
    assert_eq!(names(&cell.released("job", 3).await), ["a", "c", "b"]);
}

#[tokio::test]
async fn a_percentage_is_of_the_nodes_that_match_rounded_up() {
    let nodes = [("a", "x"), ("b", "x"), ("c", "x"), ("d", "y"), ("e", "y")];
    let cell = limited(Settings::default(), &nodes).await;
    let spec = json!({
        "images": ["app:1"], "parallelism": "34%", "selector": {"matchLabels": {ZONE_LABEL: "x"}},
    });
    cell.submit("job", spec).await;
    let tasks = cell.released("job", 2).await;
    cell.tell_success(&tasks[0]).await;
    cell.released("job", 3).await;
}

#[tokio::test]
async fn a_job_that_fails_on_too_many_nodes_is_stopped() {
    let nodes = [("a", "x"), ("b", "x"), ("c", "x"), ("d", "x"), ("e", "x")];
    let cell = limited(Settings::default(), &nodes).await;
    let spec = json!({
        "images": ["app:1"], "parallelism": 2, "failurePolicy": {"maxFailed": "20%"},
    });
    cell.submit("job", spec).await;
    let tasks = cell.released("job", 2).await;
    cell.tell_failure(&tasks[0]).await;
    let tasks = cell.released("job", 3).await;
    cell.tell_failure(&tasks[1]).await;
    let job = cell.ended("job").await;
    assert_eq!(job.status.outcome, Some(Outcome::Failed));
    let counts = job.status.counts;
    assert_eq!((counts.failed, counts.cancelled), (2, 3));
    cell.no_tasks("job").await;
    let told = cell
        .job_event(Some("job"), JobEventKind::Completed, 1)
        .await;
    assert_eq!(told.failures[0].pulls, 2);
}

#[tokio::test]
async fn a_pod_selector_is_refused_with_what_it_needs() {
    let cell = Cell::start().await;
    let manifest = "apiVersion: apps.kruise.io/v1beta1\nkind: ImagePullJob\nmetadata: {name: pods}\nspec: {image: nginx, podSelector: {matchLabels: {app: web}}}\n";
    cell.publish(JobVerb::Submit, manifest).await;
    let rejected = cell
        .job_event(Some("pods"), JobEventKind::Rejected, 1)
        .await;
    assert_eq!(rejected.problems[0].path, "spec.podSelector");
    let message = &rejected.problems[0].message;
    assert!(message.contains("needs Kubernetes"), "{message}");
    assert!(cell.record("pods").await.is_none());
}
