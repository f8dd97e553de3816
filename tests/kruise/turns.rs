//! Whose turn it is on a node, and how much the node takes at once.

use prewarm::wire::event::PullState;
use serde_json::json;

use crate::cell::Cell;
use crate::node::Setup;

/// Most pulls that ran at once on the one node of the cell, by what its worker told, in the order in which it told it.
async fn most_running(cell: &Cell) -> i32 {
    let mut now = 0;
    let counts = cell.told(None).await.into_iter().map(|kept| {
        now += match kept.body.state {
            PullState::Started => 1,
            PullState::Retrying | PullState::Succeeded | PullState::Failed => -1,
        };
        now
    });
    counts.max().unwrap_or(0)
}

#[tokio::test]
async fn issue_1995_a_node_pulls_no_more_at_once_than_it_says() {
    let cell = Cell::start().await;
    let setup = Setup::new("node").capacity(2).latency("30ms..60ms");
    let _node = cell.worker(setup).await;
    // Twenty pulls may be out as far as the jobs are concerned.
    for job in ["one", "two"] {
        let images: Vec<String> = (1..=6).map(|n| format!("{job}:{n}")).collect();
        cell.submit(job, json!({"images": images, "parallelism": 10}))
            .await;
    }
    for job in ["one", "two"] {
        assert_eq!(cell.ended(job).await.status.counts.succeeded, 6);
    }
    assert_eq!(most_running(&cell).await, 2);
}

#[tokio::test]
async fn issue_1682_a_job_with_a_higher_priority_goes_first() {
    let cell = Cell::start().await;
    let setup = Setup::new("node").capacity(1).latency("300ms");
    let _node = cell.worker(setup).await;
    let images: Vec<String> = (1..=14).map(|n| format!("common:{n}")).collect();
    cell.submit("common", json!({"images": images})).await;
    cell.hears("common", PullState::Started).await;
    cell.submit("urgent", json!({"images": ["urgent:1"], "priority": 100}))
        .await;
    cell.ended("urgent").await;
    cell.ended("common").await;
    let told = cell.told(None).await.into_iter();
    let started = told.filter(|kept| kept.body.state == PullState::Started);
    let order: Vec<String> = started.map(|kept| kept.body.job.to_string()).collect();
    assert_eq!(order.len(), 15);
    // What the node was given beforehand comes first: the one that runs and two that wait, and as many as ended before
    // the request was heard. The rest gives way.
    let urgent = order.iter().position(|job| job == "urgent").unwrap();
    assert!((3..=13).contains(&urgent), "{order:?}");
}

#[tokio::test]
async fn issue_1682_an_edit_of_the_priority_counts_for_what_waits() {
    let cell = Cell::start().await;
    cell.silent("node", &[]).await;
    let images = |job: &str| -> Vec<String> { (1..=4).map(|n| format!("{job}:{n}")).collect() };
    // The node has three slots and two that wait.
    cell.submit("first", json!({"images": images("first")}))
        .await;
    cell.released("first", 4).await;
    cell.submit("second", json!({"images": images("second")}))
        .await;
    let mut tasks = cell.released("second", 1).await;
    cell.submit("third", json!({"images": images("third")}))
        .await;
    cell.submit("third", json!({"images": images("third"), "priority": 1}))
        .await;
    tasks.extend(cell.released("first", 4).await);
    for (n, task) in tasks.iter().take(3).enumerate() {
        cell.tell_success(task).await;
        cell.released("third", n + 1).await;
    }
    assert_eq!(cell.tasks("second").await.len(), 1);
}

/// There, ten jobs and more that meet a new node share the time of one attempt (`activeDeadlineSeconds` of the tag)
/// while they queue. Here, an attempt's time begins with it.
#[tokio::test]
async fn issue_2071_many_never_jobs_at_once_on_a_new_node_have_their_whole_timeout_each() {
    let cell = Cell::start().await;
    for job in 0..12 {
        let spec = json!({
            "images": [format!("large:{job}")], "completionPolicy": {"type": "Never"},
            "pullPolicy": {"timeoutSeconds": 6, "backoffLimit": 0},
        });
        cell.submit(&format!("warm-{job}"), spec).await;
    }
    // One after another they take twice as long as one of them may.
    let setup = Setup::new("new").capacity(1).latency("1s");
    let _node = cell.worker(setup).await;
    for job in 0..12 {
        let job = cell.succeeded(&format!("warm-{job}"), 1).await;
        assert_eq!(job.status.counts.failed, 0, "{:?}", job.status);
    }
}
