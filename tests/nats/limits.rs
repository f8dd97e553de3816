//! What is too large, too much or full is said, and nothing is lost by it.

use std::time::{Duration, Instant};

use async_nats::jetstream::stream::Config;
use bytes::Bytes;
use prewarm::bus::topology::{self, TopologySettings};
use prewarm::domain::status::Outcome;
use prewarm::wire::event::{Event, JobEvent, JobEventKind, MAX_PROBLEMS, PullState, TaskEvent};
use prewarm::wire::manifest::{MAX_BYTES, MAX_JOB_BYTES};
use prewarm::wire::record::JobRecord;
use prewarm::wire::subject::{JobVerb, PullKey};
use serde_json::{Value, json};

use crate::cell::{Cell, LIMIT, event_of};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Output, Prewarm, Role, prewarm};
use crate::support::wait::eventually;

/// What nats-server takes in one message by default.
const MAX_PAYLOAD: usize = 1024 * 1024;
/// How long what reads or writes a hundred thousand messages may take, unoptimised and on a busy machine.
const LONG: Duration = Duration::from_secs(120);

fn manifest(name: &str, spec: &Value) -> Value {
    json!({"apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": name}, "spec": spec})
}

/// A job for `blue` and for as many nodes that are not there as it takes to have about so many bytes.
fn large(name: &str, bytes: usize) -> Value {
    let part = "n".repeat(60);
    let mut names = vec!["blue".to_owned()];
    let mut length = 500;
    while length < bytes {
        let name = format!("{part}.{part}.{part}.n{:06}", names.len());
        length += name.len() + 3;
        names.push(name);
    }
    manifest(
        name,
        &json!({"images": ["r.invalid/a"], "selector": {"names": names}}),
    )
}

fn images(count: usize) -> Vec<String> {
    (0..count)
        // Where nothing answers, at once: a name would be looked up, which takes as long as the machine's resolver likes.
        .map(|number| format!("127.0.0.1:1/a:{number}"))
        .collect()
}

impl Cell {
    fn cli<S: AsRef<std::ffi::OsStr>>(&self, args: impl IntoIterator<Item = S>) -> Prewarm {
        prewarm(args).env("PREWARM_NATS_URL", self.server.url())
    }

    async fn apply(&self, manifest: &Value) -> Output {
        self.cli(["apply", "-f", "-"])
            .stdin(manifest.to_string())
            .run()
            .await
    }

    /// Stores a message as it is and returns its sequence.
    async fn store(&self, verb: JobVerb, body: impl Into<Bytes>) -> u64 {
        let stored = self
            .bus
            .jetstream
            .publish(self.bus.subjects.job(verb), body.into());
        stored.await.unwrap().await.unwrap().sequence
    }

    /// The answer to the request of this sequence.
    async fn answer(&self, kind: JobEventKind, sequence: u64) -> JobEvent {
        let all = format!("prewarm.event.job.*.{}", kind.token());
        eventually(
            &format!("the {} event of request {sequence}", kind.token()),
            LIMIT,
            async || {
                let stream = self.bus.jetstream.get_stream("PREWARM_EVENTS").await;
                let stream = stream.map_err(|error| error.to_string())?;
                let message = stream.get_last_raw_message_by_subject(&all).await;
                let message = message.map_err(|error| error.to_string())?;
                let event: Event<JobEvent> = serde_json::from_slice(&message.payload).unwrap();
                if event.data.request_sequence == Some(sequence) {
                    Ok(event.data)
                } else {
                    Err(format!("{:?}", event.data.request_sequence))
                }
            },
        )
        .await
    }

    /// Publishes on one connection, with few acks, which would take long, and not without any: what comes faster than
    /// nats-server stores it is dropped (2.15 keeps 10,000 for later).
    async fn publish_all<'a>(&self, messages: impl Iterator<Item = (&'a String, &'a Bytes)>) {
        let client = self.server.client().await;
        let jetstream = async_nats::jetstream::new(client.clone());
        for (number, (subject, body)) in messages.enumerate() {
            let (subject, body) = (subject.clone(), body.clone());
            if number % 1_000 == 0 {
                let stored = jetstream.publish(subject, body).await;
                stored.unwrap().await.unwrap();
            } else {
                client.publish(subject, body).await.unwrap();
            }
        }
        client.flush().await.unwrap();
    }

    async fn limit(&self, stream: &str, change: impl FnOnce(&mut Config)) {
        let stream = self.bus.jetstream.get_stream(stream).await.unwrap();
        let mut config = stream.cached_info().config.clone();
        change(&mut config);
        self.bus.jetstream.update_stream(config).await.unwrap();
    }

    async fn record(&self, job: &str) -> Result<JobRecord, String> {
        let output = self.cli(["get", "job", job, "-o", "json"]).run().await;
        serde_json::from_str(&output.stdout).map_err(|_| format!("{output:?}"))
    }

    async fn succeeds(&self, job: &str, pulls: u32, limit: Duration) {
        let record = eventually(&format!("job {job} to end"), limit, async || {
            let record = self.record(job).await?;
            match record.status.outcome {
                Some(_) => Ok(record),
                None => Err(format!("{:?}", record.status)),
            }
        })
        .await;
        assert_eq!(
            record.status.outcome,
            Some(Outcome::Succeeded),
            "{record:?}"
        );
        assert_eq!(record.status.counts.succeeded, pulls);
    }

    async fn knows_blue(&self) {
        eventually("the node to be present", LIMIT * 2, async || {
            let output = self.cli(["get", "node", "blue", "-o", "json"]).run().await;
            if output.stdout.contains("\"Present\"") {
                Ok(())
            } else {
                Err(format!("{output:?}"))
            }
        })
        .await;
    }

    fn dispatcher_process(&self) -> Role {
        self.cli(["dispatcher", "--metrics-listen", "off", "--lease", "1s"])
            .env("PREWARM_LOG", "info,prewarm=debug")
            .spawn("the dispatcher")
    }

    fn worker_process(&self) -> Role {
        self.cli([
            "worker",
            "--metrics-listen",
            "off",
            "--runtime",
            "simulated",
            "--simulated-latency",
            "0",
        ])
        .env("PREWARM_NODE", "blue")
        .spawn("the worker")
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_255_images_runs_and_one_of_256_is_refused() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut blue = cell.register("blue", json!({}), false).await;
    cell.submit("most", json!({"images": images(255)})).await;
    for _ in 0..255 {
        blue.succeed().await;
    }
    cell.succeeds("most", 255, LIMIT).await;

    let more = manifest("more", &json!({"images": images(256)}));
    let output = cell.apply(&more).await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output
            .stderr
            .contains("has 256 images; a job has at most 255"),
        "{output:?}"
    );
    let sequence = cell.store(JobVerb::Submit, more.to_string()).await;
    let rejected = cell.answer(JobEventKind::Rejected, sequence).await;
    assert_eq!(rejected.problems[0].path, "spec.images");
    assert!(
        rejected.problems[0].message.contains("256 images"),
        "{rejected:?}"
    );
    dispatcher.stop().await;
}

/// Everything that a dispatcher writes because of one message has to fit into one message, or it would write it for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn messages_at_the_brokers_limit_are_answered_and_larger_ones_refused() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let dispatcher = cell.dispatcher("one").await;
    let mut blue = cell.register("blue", json!({}), false).await;
    assert_eq!(cell.bus.client.max_payload(), MAX_PAYLOAD);

    // As large as a job may be, and its record with it.
    let mut most = large("most", MAX_JOB_BYTES - 1_000);
    assert!(most.to_string().len() > MAX_JOB_BYTES - 20_000);
    most["spec"]["absentAfterSeconds"] = json!(1);
    let output = cell.apply(&most).await;
    assert_eq!(output.code, 0, "{output:?}");
    blue.succeed().await;

    // As large as a message may be.
    let mut whole = large("whole", MAX_PAYLOAD - 10_000).to_string();
    whole.extend(std::iter::repeat_n(' ', MAX_PAYLOAD - whole.len()));
    let sequence = cell.store(JobVerb::Submit, whole.clone()).await;
    let rejected = cell.answer(JobEventKind::Rejected, sequence).await;
    assert_eq!(rejected.job.unwrap().as_str(), "whole");
    let message = &rejected.problems[0].message;
    assert!(
        message.contains(&format!("at most {MAX_JOB_BYTES} are allowed")),
        "{message}"
    );
    let output = cell
        .cli(["apply", "-f", "-"])
        .stdin(whole.clone())
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains("choose nodes by labels"),
        "{output:?}"
    );

    // Larger: the client refuses it, and so does the command.
    whole.push(' ');
    let sent = cell
        .bus
        .client
        .publish("prewarm.job.submit", whole.clone().into())
        .await;
    assert!(sent.is_err(), "a client sent more than the server takes");
    let output = cell.cli(["apply", "-f", "-"]).stdin(whole).run().await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output
            .stderr
            .contains(&format!("at most {MAX_BYTES} are allowed")),
        "{output:?}"
    );

    // Wrong in a hundred thousand places, and in one long one.
    let mut wrong = String::from(
        r#"{"apiVersion":"prewarm.dev/v1","kind":"PrewarmJob","metadata":{"name":"wrong"},"spec":{"images":["a"]"#,
    );
    for number in 0..80_000 {
        wrong.push_str(&format!(r#","{number}":1"#));
    }
    wrong.push_str("}}");
    for (wrong, problems) in [
        (wrong, MAX_PROBLEMS + 1),
        (
            manifest("wrong", &json!({"images": ["\u{1}".repeat(150_000)]})).to_string(),
            1,
        ),
    ] {
        let sequence = cell.store(JobVerb::Submit, wrong).await;
        let rejected = cell.answer(JobEventKind::Rejected, sequence).await;
        assert_eq!(rejected.problems.len(), problems);
    }

    cell.submit("next", json!({"images": ["r.invalid/b"]}))
        .await;
    blue.succeed().await;
    cell.succeeds("next", 1, LIMIT).await;
    dispatcher.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_broker_for_small_messages_is_refused() {
    let server = NatsServer::start_with(NatsVersion::V2_15, "max_payload: 65536").await;
    let output = prewarm(["dispatcher", "--metrics-listen", "off"])
        .env("PREWARM_NATS_URL", server.url())
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output
            .stderr
            .contains("65536 bytes at most, and prewarm needs 1048576"),
        "{output:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_nobody_takes_are_refused_at_the_limit_and_none_before_is_lost() {
    for version in [NatsVersion::V2_10, NatsVersion::V2_15] {
        let cell = Cell::start(version).await;
        topology::ensure(&cell.bus, TopologySettings::default())
            .await
            .unwrap();
        cell.limit("PREWARM_JOBS", |jobs| jobs.max_messages = 1)
            .await;
        cell.submit("first", json!({"images": ["r.invalid/a"]}))
            .await;
        let output = cell
            .cli(["run", "r.invalid/b", "--name", "second"])
            .run()
            .await;
        assert_eq!(output.code, 3, "{output:?}");
        for words in [
            "did not take the request into PREWARM_JOBS",
            "maximum messages exceeded",
            "prewarm check",
        ] {
            assert!(output.stderr.contains(words), "{words}: {output:?}");
        }
        let body = manifest("third", &json!({"images": ["r.invalid/c"]})).to_string();
        let publish = cell
            .bus
            .jetstream
            .publish("prewarm.job.submit", body.into());
        let refused = publish.await.unwrap().await.unwrap_err().to_string();
        assert!(refused.contains("maximum messages exceeded"), "{refused}");

        let dispatcher = cell.dispatcher("one").await;
        // There is no node yet.
        cell.succeeds("first", 0, LIMIT).await;
        let mut blue = cell.register("blue", json!({}), false).await;
        let output = cell
            .cli(["run", "r.invalid/b", "--name", "second"])
            .run()
            .await;
        assert_eq!(output.code, 0, "{output:?}");
        blue.succeed().await;
        cell.succeeds("second", 1, LIMIT).await;
        dispatcher.stop().await;
    }
}

/// Whatever stream an operator has limited too tightly: the dispatcher says which message did not fit, and does it when
/// there is room.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stream_that_is_full_is_told_and_waited_for() {
    let limited: [(&str, i64, &str); 3] = [
        ("PREWARM_TASKS", 2, "releasing base to blue"),
        ("KV_prewarm_jobs", 1, "the record of job base"),
        ("KV_prewarm_nodes", 1, "the record of node blue"),
    ];
    for (stream, messages, said) in limited {
        let cell = Cell::start(NatsVersion::V2_15).await;
        topology::ensure(&cell.bus, TopologySettings::default())
            .await
            .unwrap();
        if stream.starts_with("KV_") {
            let filler = format!("$KV.{}.filler", stream.trim_start_matches("KV_"));
            cell.bus
                .jetstream
                .publish(filler, "{}".into())
                .await
                .unwrap()
                .await
                .unwrap();
        }
        cell.limit(stream, |config| config.max_messages = messages)
            .await;
        let mut dispatcher = cell.dispatcher_process();
        let _worker = cell.worker_process();
        if stream != "KV_prewarm_nodes" {
            cell.knows_blue().await;
            cell.submit("base", json!({"images": images(4)})).await;
        }
        let line = dispatcher.logs(said, LIMIT).await;
        assert!(
            line.contains("maximum messages exceeded"),
            "{stream}: {line}"
        );
        cell.limit(stream, |config| config.max_messages = -1).await;
        if stream == "KV_prewarm_nodes" {
            cell.knows_blue().await;
            cell.submit("base", json!({"images": images(4)})).await;
        }
        cell.succeeds("base", 4, LIMIT * 2).await;
    }
}

/// An operator's limit has dropped what told that pulls have ended.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pulls_whose_ends_the_events_lost_are_made_again() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let mut dispatcher = cell.dispatcher_process();
    dispatcher.logs("leading", LIMIT).await;
    let mut blue = cell.register("blue", json!({}), false).await;
    cell.submit("base", json!({"images": images(3)})).await;
    let mut held = Vec::new();
    for _ in 0..3 {
        held.push(blue.take().await);
    }
    dispatcher.kill9();
    for (task, message) in held {
        blue.tell(event_of(&task, PullState::Succeeded)).await;
        message.ack().await.unwrap();
    }
    cell.limit("PREWARM_EVENTS", |events| events.max_messages = 1)
        .await;

    let dispatcher = cell.dispatcher("two").await;
    // The last of the three is known.
    for _ in 0..2 {
        blue.succeed().await;
    }
    cell.succeeds("base", 3, LIMIT).await;
    dispatcher.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_dispatcher_that_is_a_hundred_thousand_events_behind_catches_up() {
    const PULLS: usize = 250;
    const EVENTS: usize = 100_000;
    let cell = Cell::start(NatsVersion::V2_15).await;
    let mut dispatcher = cell.dispatcher_process();
    dispatcher.logs("leading", LIMIT).await;
    let mut blue = cell.register("blue", json!({}), false).await;
    cell.submit("base", json!({"images": images(PULLS)})).await;
    let (task, _) = blue.take().await;
    dispatcher.kill9();

    let of = |number: usize, state| TaskEvent {
        image: images(PULLS)[number].parse().unwrap(),
        ..event_of(&task, state)
    };
    let bodies: Vec<_> = (0..PULLS)
        .flat_map(|number| {
            [PullState::Started, PullState::Succeeded].map(|state| of(number, state))
        })
        .map(|event| {
            let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
            let ends = event.state.is_terminal();
            let body = event.into_event("prewarm", prewarm::domain::time::Timestamp::EPOCH);
            (
                ends,
                cell.bus.subjects.task_event(&key),
                Bytes::from(serde_json::to_vec(&body).unwrap()),
            )
        })
        .collect();
    let (ends, started): (Vec<_>, Vec<_>) = bodies.iter().partition(|(ends, ..)| *ends);
    let started = started.into_iter().cycle().take(EVENTS - PULLS);
    cell.publish_all(
        started
            .chain(ends)
            .map(|(_, subject, body)| (subject, body)),
    )
    .await;
    eventually("the broker to keep all events", LONG, async || {
        let stream = cell
            .bus
            .jetstream
            .get_stream("PREWARM_EVENTS")
            .await
            .unwrap();
        let kept = stream.cached_info().state.messages;
        if kept >= EVENTS as u64 {
            Ok(())
        } else {
            Err(format!("{kept} so far"))
        }
    })
    .await;

    let began = Instant::now();
    let dispatcher = cell.dispatcher("two").await;
    cell.succeeds("base", u32::try_from(PULLS).unwrap(), LONG)
        .await;
    let took = began.elapsed();
    println!("{EVENTS} events read, and the job ended, in {took:?}");
    dispatcher.stop().await;
}

on_every_generation!(a_full_disk_under_the_broker_is_told_and_outlived);

/// A stream that met a full disk takes nothing until nats-server is started again (2.15 says "critical write error").
async fn a_full_disk_under_the_broker_is_told_and_outlived(version: NatsVersion) {
    let server = NatsServer::start_on_small_disk(version, 16).await;
    let mut cell = Cell::on(server).await;
    let mut dispatcher = cell.dispatcher_process();
    let mut worker = cell
        .cli([
            "worker",
            "--metrics-listen",
            "off",
            "--runtime",
            "simulated",
            "--simulated-latency",
            "10s",
        ])
        .env("PREWARM_NODE", "blue")
        .spawn("the worker");
    dispatcher.logs("leading", LIMIT).await;
    cell.knows_blue().await;
    cell.submit("before", json!({"images": ["127.0.0.1:1/a"]}))
        .await;
    worker.logs("pull started", LIMIT).await;
    cell.server.fill_disk();
    // The rest of a page that is in use is still there.
    let mut stored = 0;
    while let Ok(ack) = cell
        .bus
        .jetstream
        .publish("prewarm.event.filler", "x".into())
        .await
        && ack.await.is_ok()
    {
        stored += 1;
        assert!(stored < 1_000, "the disk does not fill up");
    }

    worker.logs("the broker did not keep an event", LIMIT).await;
    let output = cell.apply(&large("during", 100_000)).await;
    assert_eq!(output.code, 3, "{output:?}");
    for words in ["error: the broker did not", "a full disk"] {
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }

    cell.server.free_disk();
    cell.server.restart().await;
    cell.succeeds("before", 1, LIMIT * 2).await;
    let after = [
        "run",
        "127.0.0.1:1/a",
        "--name",
        "after",
        "--wait",
        "--timeout",
        "60s",
    ];
    let output = cell.cli(after).run().await;
    assert_eq!(output.code, 0, "{output:?}\n{}", dispatcher.log());
}

on_every_generation!(an_account_at_its_storage_limit_is_told_and_outlived);

/// What all streams together may have is used up by any of them.
async fn an_account_at_its_storage_limit_is_told_and_outlived(version: NatsVersion) {
    let account = |mebibytes: u32| {
        format!(
            "accounts {{ CORE {{ jetstream: {{ max_disk: {mebibytes}MB }}, users: [{{user: core, password: core}}] }} }}\n\
             no_auth_user: core"
        )
    };
    let server = NatsServer::start_with(version, &account(4)).await;
    let mut cell = Cell::on(server).await;
    let mut dispatcher = cell.dispatcher_process();
    dispatcher.logs("leading", LIMIT).await;
    let mut worker = cell
        .cli([
            "worker",
            "--metrics-listen",
            "off",
            "--runtime",
            "simulated",
            "--simulated-latency",
            "10s",
        ])
        .env("PREWARM_NODE", "blue")
        .spawn("the worker");
    cell.knows_blue().await;
    cell.submit("before", json!({"images": ["127.0.0.1:1/a"]}))
        .await;
    worker.logs("pull started", LIMIT).await;
    // The smaller ones take what the larger ones left.
    for size in [100_000, 1_000, 1] {
        let mut stored = 0;
        let filler = Bytes::from(vec![b'x'; size]);
        let publish = async || {
            let subject = "prewarm.event.filler";
            let sent = cell.bus.jetstream.publish(subject, filler.clone()).await;
            sent.unwrap().await
        };
        while publish().await.is_ok() {
            stored += 1;
            assert!(stored < 5_000, "the account takes everything");
        }
    }

    worker.logs("the broker did not keep an event", LIMIT).await;
    let output = cell.apply(&large("during", 100_000)).await;
    assert_eq!(output.code, 3, "{output:?}");
    for words in [
        "did not take the request into PREWARM_JOBS",
        "resource limits exceeded for account",
        "a limit of the stream or of the account",
    ] {
        assert!(output.stderr.contains(words), "{words}: {output:?}");
    }

    cell.server.reload(&account(100));
    cell.succeeds("before", 1, LIMIT * 2).await;
    let args = ["run", "127.0.0.1:1/a", "--name", "after", "--wait"];
    let output = cell.cli(args).arg("--timeout=60s").run().await;
    assert_eq!(output.code, 0, "{output:?}\n{}", dispatcher.log());
}
