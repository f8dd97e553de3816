//! Pushes become jobs by rules; nobody has a hand in it but who pushes.

use std::time::Duration;

use async_nats::jetstream::stream::LastRawMessageErrorKind;
use prewarm::wire::event::JobEventKind;
use prewarm::wire::record::JobRecord;
use prewarm::wire::subject::JobVerb;
use serde_json::{Value, json};

use crate::cell::{Cell, LIMIT};
use crate::support::nats::NatsVersion;
use crate::support::wait::eventually;

fn digest(n: u8) -> String {
    format!("sha256:{}", format!("{n:02x}").repeat(32))
}

fn push(tag: &str, n: u8) -> Value {
    json!({"registry": "registry.invalid", "repository": "team/app", "tag": tag, "digest": digest(n)})
}

async fn apply(cell: &Cell, name: &str, mut spec: Value) {
    spec["job"]["spec"]["images"] = json!(["{{registry}}/{{repository}}@{{digest}}"]);
    let document = json!({
        "apiVersion": "prewarm.dev/v1", "kind": "PushRule", "metadata": {"name": name}, "spec": spec,
    });
    let bucket = eventually("the bucket of rules", LIMIT, async || {
        let bucket = cell
            .bus
            .jetstream
            .get_key_value(cell.bus.subjects.rules_bucket())
            .await;
        bucket.map_err(|error| error.to_string())
    })
    .await;
    let put = bucket.put(name, document.to_string().into()).await;
    put.unwrap();
}

/// As any client may: a message on `prewarm.push`.
async fn tell(cell: &Cell, body: impl Into<bytes::Bytes>) {
    let stored = cell
        .bus
        .jetstream
        .publish(cell.bus.subjects.push(), body.into())
        .await;
    stored.unwrap().await.unwrap();
}

/// Waits until nothing that was asked is left to do.
async fn settled(cell: &Cell) {
    eventually("all requests to be taken", LIMIT, async || {
        let stream = cell
            .bus
            .jetstream
            .get_stream(cell.bus.subjects.jobs_stream())
            .await;
        let left = stream.unwrap().cached_info().state.messages;
        if left == 0 {
            Ok(())
        } else {
            Err(format!("{left} are left"))
        }
    })
    .await;
}

async fn jobs(cell: &Cell) -> Vec<JobRecord> {
    let bucket = cell.bus.subjects.jobs_bucket();
    let mut records = Vec::new();
    let filter = format!("$KV.{bucket}.>");
    let policy = async_nats::jetstream::consumer::DeliverPolicy::LastPerSubject;
    let stream = format!("KV_{bucket}");
    let read = cell.bus.read_all(&stream, filter, policy, |message| {
        records.extend(serde_json::from_slice(&message.payload));
    });
    read.await.unwrap();
    records
}

/// Pushes until the rule, of which a dispatcher hears a moment after it was applied, has made a job. Pushing a digest again
/// makes no other.
async fn tell_until_made(cell: &Cell, push: Value) -> JobRecord {
    eventually("a push to become a job", LIMIT, async || {
        tell(cell, push.to_string()).await;
        settled(cell).await;
        jobs(cell).await.pop().ok_or("there is no job yet")
    })
    .await
}

async fn ten_tags_of_a_digest_in_a_second_warm_the_nodes_with_one_job(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("blue", json!({"pool": "a"}), false).await;
    let spec = json!({
        "registry": "registry.invalid", "repository": "team/*",
        "job": {"spec": {"selector": {"matchLabels": {"pool": "a"}}}},
    });
    apply(&cell, "apps", spec).await;
    tell_until_made(&cell, push("t", 7)).await;
    for n in 0..10 {
        tell(&cell, push(&format!("t{n}"), 7).to_string()).await;
    }
    let task = node.succeed().await;
    assert_eq!(task.image.digest().unwrap().as_str(), digest(7));
    assert_eq!(task.image.repository(), "team/app");
    settled(&cell).await;
    let made = jobs(&cell).await;
    assert_eq!(made.len(), 1, "{made:#?}");
    let record = &made[0];
    assert_eq!(record.metadata.labels["prewarm.dev/rule"], "apps");
    assert_eq!(record.metadata.generation, 1);
    let name = record.metadata.name.to_string();
    let accepted = cell.event(Some(&name), JobEventKind::Accepted).await;
    assert_eq!(accepted.data.labels["prewarm.dev/rule"], "apps");
    let completed = cell.event(Some(&name), JobEventKind::Completed).await;
    assert_eq!(completed.data.counts.unwrap().succeeded, 1);
    // Another digest is another job.
    tell(&cell, push("t0", 8).to_string()).await;
    assert_eq!(
        node.succeed().await.image.digest().unwrap().as_str(),
        digest(8)
    );
    dispatcher.stop().await;
}

async fn a_digest_that_is_pushed_again_later_makes_no_second_job(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("blue", json!({}), false).await;
    let spec = json!({"registry": "**", "repository": "**", "debounceSeconds": 0});
    apply(&cell, "apps", spec).await;
    let name = tell_until_made(&cell, push("1", 7))
        .await
        .metadata
        .name
        .to_string();
    node.succeed().await;
    cell.event(Some(&name), JobEventKind::Completed).await;
    tell(&cell, push("1", 7).to_string()).await;
    settled(&cell).await;
    // Nor does it for the next dispatcher, which remembers nothing.
    dispatcher.stop().await;
    let dispatcher = cell.dispatcher("two").await;
    tell(&cell, push("1", 7).to_string()).await;
    settled(&cell).await;
    let made = jobs(&cell).await;
    assert_eq!(made.len(), 1);
    assert_eq!(made[0].metadata.generation, 1, "it ran again");
    dispatcher.stop().await;
}

async fn a_push_that_came_while_no_dispatcher_ran_makes_its_job_later(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let first = cell.dispatcher("one").await;
    apply(&cell, "apps", json!({"registry": "**", "repository": "**"})).await;
    let _node = cell.register("blue", json!({}), false).await;
    first.kill().await;
    tell(&cell, push("1", 7).to_string()).await;
    let second = cell.dispatcher("two").await;
    settled(&cell).await;
    assert_eq!(jobs(&cell).await.len(), 1);
    second.stop().await;
}

async fn what_is_no_push_is_told_and_what_no_rule_is_about_is_not(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    cell.register("blue", json!({}), false).await;
    apply(
        &cell,
        "apps",
        json!({"registry": "**", "repository": "other/*"}),
    )
    .await;
    tell(&cell, push("1", 7).to_string()).await;
    settled(&cell).await;
    assert!(jobs(&cell).await.is_empty());
    let subject = cell.bus.subjects.job_event(None, "rejected");
    let stream = cell
        .bus
        .jetstream
        .get_stream(cell.bus.subjects.events_stream())
        .await
        .unwrap();
    let told = stream.get_last_raw_message_by_subject(&subject).await;
    assert_eq!(
        told.unwrap_err().kind(),
        LastRawMessageErrorKind::NoMessageFound
    );
    tell(&cell, "{\"registry\": 1}").await;
    let rejected = cell.event(None, JobEventKind::Rejected).await;
    assert!(
        rejected.data.problems[0].message.contains("not a push"),
        "{rejected:?}"
    );
    settled(&cell).await;
    dispatcher.stop().await;
}

async fn rules_count_from_the_moment_they_are_applied_until_they_are_deleted(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut node = cell.register("blue", json!({}), false).await;
    let rule =
        json!({"registry": "**", "repository": "**", "job": {"name": "first-{{shortDigest}}"}});
    apply(&cell, "apps", rule).await;
    tell_until_made(&cell, push("1", 1)).await;
    assert!(node.succeed().await.job.as_str().starts_with("first-"));
    let rule =
        json!({"registry": "**", "repository": "**", "job": {"name": "second-{{shortDigest}}"}});
    apply(&cell, "apps", rule).await;
    // A watcher hears of it a moment later.
    let mut n = 1;
    eventually("the changed rule to count", LIMIT, async || {
        n += 1;
        tell(&cell, push("1", n).to_string()).await;
        settled(&cell).await;
        let made = jobs(&cell).await;
        let second = |record: &JobRecord| record.metadata.name.as_str().starts_with("second-");
        if made.iter().any(second) {
            Ok(())
        } else {
            Err("no job of it yet")
        }
    })
    .await;
    let bucket = cell
        .bus
        .jetstream
        .get_key_value(cell.bus.subjects.rules_bucket())
        .await
        .unwrap();
    bucket.delete("apps").await.unwrap();
    eventually("the deleted rule to count no more", LIMIT, async || {
        let before = jobs(&cell).await.len();
        n += 1;
        tell(&cell, push("1", n).to_string()).await;
        settled(&cell).await;
        if jobs(&cell).await.len() == before {
            Ok(())
        } else {
            Err("it made a job")
        }
    })
    .await;
    dispatcher.stop().await;
}

/// Less than the minute after which a tag that means nothing is given up.
const BEFORE_THE_END_OF_DOUBT: Duration = Duration::from_secs(45);

/// More than a dispatcher has in its hands at once.
async fn tags_that_mean_nothing_hold_no_other_push_back(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    apply(&cell, "apps", json!({"registry": "**", "repository": "**"})).await;
    tell_until_made(&cell, push("1", 1)).await;
    for n in 0..300 {
        let tag = json!({"registry": "registry.invalid", "repository": "team/app", "tag": format!("t{n}")});
        tell(&cell, tag.to_string()).await;
    }
    tell(&cell, push("1", 2).to_string()).await;
    eventually(
        "the push that has a digest to become a job",
        BEFORE_THE_END_OF_DOUBT,
        async || match jobs(&cell).await.len() {
            2 => Ok(()),
            made => Err(format!("{made} jobs")),
        },
    )
    .await;
    dispatcher.stop().await;
}

async fn a_push_after_its_job_was_deleted_makes_it_anew(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let dispatcher = cell.dispatcher("one").await;
    let spec = json!({"registry": "**", "repository": "**", "debounceSeconds": 0});
    apply(&cell, "apps", spec).await;
    let first = tell_until_made(&cell, push("1", 7)).await;
    let name = first.metadata.name.to_string();
    cell.publish(JobVerb::Delete, json!({"name": name})).await;
    cell.event(Some(&name), JobEventKind::Deleted).await;
    settled(&cell).await;
    assert!(jobs(&cell).await.is_empty());
    tell(&cell, push("1", 7).to_string()).await;
    settled(&cell).await;
    eventually("the job to be there again", LIMIT, async || {
        match jobs(&cell).await.pop() {
            Some(again) if again.metadata.uid != first.metadata.uid => Ok(()),
            found => Err(format!("{found:?}")),
        }
    })
    .await;
    dispatcher.stop().await;
}

/// The most that may wait is an operator's to set; here it is little.
async fn a_stream_full_of_pushes_is_worked_off(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let first = cell.dispatcher("one").await;
    apply(&cell, "apps", json!({"registry": "**", "repository": "**"})).await;
    tell_until_made(&cell, push("1", 100)).await;
    first.stop().await;
    let name = cell.bus.subjects.jobs_stream();
    let stream = cell.bus.jetstream.get_stream(name).await.unwrap();
    let mut config = stream.cached_info().config.clone();
    config.max_messages = 20;
    cell.bus.jetstream.update_stream(config).await.unwrap();
    for n in 0..20 {
        tell(&cell, push("1", n).to_string()).await;
    }
    let one_more = cell
        .bus
        .jetstream
        .publish(cell.bus.subjects.push(), push("1", 99).to_string().into());
    assert!(one_more.await.unwrap().await.is_err(), "the stream is full");
    let second = cell.dispatcher("two").await;
    eventually("a job of each push", LIMIT, async || {
        match jobs(&cell).await.len() {
            21 => Ok(()),
            made => Err(format!("{made} jobs")),
        }
    })
    .await;
    settled(&cell).await;
    second.stop().await;
}

on_every_generation!(
    ten_tags_of_a_digest_in_a_second_warm_the_nodes_with_one_job,
    a_digest_that_is_pushed_again_later_makes_no_second_job,
    a_push_that_came_while_no_dispatcher_ran_makes_its_job_later,
    what_is_no_push_is_told_and_what_no_rule_is_about_is_not,
    tags_that_mean_nothing_hold_no_other_push_back,
    a_push_after_its_job_was_deleted_makes_it_anew,
    a_stream_full_of_pushes_is_worked_off,
    rules_count_from_the_moment_they_are_applied_until_they_are_deleted,
);
