//! The worker on a real broker, with a simulated runtime; the test is its dispatcher.

use std::time::Duration;

use futures::StreamExt as _;
use prewarm::domain::failure::FailureKind;
use prewarm::domain::pin::Pin;
use prewarm::image::PullRequest;
use prewarm::image::simulated::{Simulated, SimulatedConfig};
use prewarm::wire::event::{Event, PullState, TaskEvent};
use prewarm::wire::subject::PullKey;
use prewarm::wire::worker::{ProgressMessage, Revocation};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::support::nats::{NatsServer, NatsVersion, taken_in};
use crate::support::shipped;
use crate::support::wait::{eventually, within};
use crate::worker_cell::{Cell, LIMIT, Worker, node, pull_id, pulls_take, settings, summary, task};

on_every_generation!(
    a_task_becomes_an_image_and_is_acked_after_its_end_is_stored,
    an_end_that_cannot_be_stored_is_told_when_it_can_be,
    a_failing_pull_is_tried_again_ever_later_and_then_fails,
    a_long_pull_keeps_its_task,
    a_deleted_consumer_is_registered_anew,
    a_killed_broker_that_comes_back_is_worked_for_again,
    a_stopping_worker_gives_running_pulls_back_at_once,
    a_killed_workers_task_is_done_by_the_next,
    a_revoked_pull_stops_and_is_not_spoken_of,
    a_pin_is_named_in_heartbeats_until_it_is_taken_back,
    a_message_that_is_no_task_is_dropped,
    a_task_that_cannot_be_read_fails_by_the_name_of_its_pull,
    a_worker_waits_for_a_dispatcher,
    no_more_tasks_are_taken_than_there_are_slots,
    a_worker_in_an_account_without_jetstream_works,
);

async fn a_task_becomes_an_image_and_is_acked_after_its_end_is_stored(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let mut wire = cell.bus.client.subscribe(">").await.unwrap();
    let options = async_nats::ConnectOptions::new().custom_inbox_prefix("_WORKER");
    let client = options.connect(cell.server.url()).await.unwrap();
    let worker = Worker::on(client, pulls_take("50ms"), settings());
    cell.release(&task("base", "nginx")).await;

    let succeeded = cell.told("base", PullState::Succeeded).await;
    assert_eq!(succeeded.kind, "dev.prewarm.task.succeeded");
    assert_eq!(succeeded.source, "/prewarm/worker/node-1");
    assert!(
        succeeded
            .data
            .result
            .is_some_and(|result| result.bytes_registry > 0)
    );
    cell.answered().await;
    worker.stop().await;

    // What went over the wire, in the order the broker saw it.
    let mut seen = vec![];
    while !seen.contains(&"ack") {
        let message = within(LIMIT, "the ack", wire.next()).await.unwrap();
        let payload = String::from_utf8_lossy(&message.payload).into_owned();
        if message.subject.starts_with("prewarm.event.task.") && payload.contains("task.succeeded")
        {
            seen.push("event");
        } else if message.subject.starts_with("_WORKER") && stores_the_second(&payload) {
            seen.push("stored");
        } else if message.subject.starts_with("$JS.ACK.") && payload == "+ACK" {
            seen.push("ack");
        }
    }
    assert_eq!(seen, ["event", "stored", "ack"]);
}

/// Whether this is the broker's word that the second event is stored. The first is `started`, of which nobody waits to
/// hear that it is.
fn stores_the_second(payload: &str) -> bool {
    let word: serde_json::Value = serde_json::from_str(payload).unwrap_or_default();
    word["stream"] == "PREWARM_EVENTS" && word["seq"] == 2
}

async fn an_end_that_cannot_be_stored_is_told_when_it_can_be(version: NatsVersion) {
    let ack_wait = Duration::from_secs(10);
    let cell = Cell::with_ack_wait(version, ack_wait).await;
    let events = cell.bus.subjects.events_stream();
    let jetstream = &cell.bus.jetstream;
    let config = jetstream
        .get_stream(&events)
        .await
        .unwrap()
        .cached_info()
        .config
        .clone();
    jetstream.delete_stream(&events).await.unwrap();

    let mut settings = settings();
    settings.ack_wait = ack_wait;
    let worker = Worker::start(&cell, pulls_take("0"), settings).await;
    let mut tries = cell
        .bus
        .client
        .subscribe("prewarm.event.task.>")
        .await
        .unwrap();
    cell.release(&task("base", "nginx")).await;
    let mut ids = vec![];
    // Eight tries take longer than one ack wait.
    while ids.len() < 8 {
        let message = within(LIMIT, "the end to be stored again", tries.next())
            .await
            .unwrap();
        let headers = message.headers.unwrap();
        if String::from_utf8_lossy(&message.payload).contains("task.succeeded") {
            ids.push(headers.get("Nats-Msg-Id").unwrap().to_string());
        }
    }
    ids.dedup();
    assert_eq!(ids.len(), 1, "one event, told again");
    let info = cell.consumer().await.unwrap();
    assert_eq!(info.num_ack_pending, 1, "the task is not answered");

    jetstream.create_stream(config).await.unwrap();
    cell.told("base", PullState::Succeeded).await;
    cell.answered().await;
    let info = cell.consumer().await.unwrap();
    assert_eq!(info.delivered.consumer_sequence, 1, "delivered once");
    worker.stop().await;
}

/// A runtime whose first three pulls of this image fail in a way that passes.
async fn fails_passingly(image: &str) -> Simulated {
    let config = |seed| SimulatedConfig {
        node: node().to_string(),
        seed,
        latency: "0".parse().unwrap(),
        failure_rate: "1".parse().unwrap(),
        ..SimulatedConfig::default()
    };
    let request = PullRequest {
        image: image.parse().unwrap(),
        digest: None,
        policy: task("base", image).image_pull_policy,
        platform: None,
        pull_secrets: vec![],
        pin: None,
        unpack: true,
        labels: [].into(),
    };
    for seed in 0.. {
        let trial = Simulated::new(config(seed));
        let mut kinds = vec![];
        for _ in 0..3 {
            let (progress, _) = watch::channel(Default::default());
            let failed = trial
                .pull(&request, &progress, &CancellationToken::new())
                .await;
            kinds.push(failed.unwrap_err().kind);
        }
        if kinds == [FailureKind::RegistryUnavailable; 3] {
            return Simulated::new(config(seed));
        }
    }
    unreachable!()
}

async fn a_failing_pull_is_tried_again_ever_later_and_then_fails(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let mut task = task("base", "nginx");
    task.pull_policy.backoff_limit = 2;
    let worker = Worker::start(&cell, fails_passingly("nginx").await, settings()).await;
    cell.release(&task).await;

    let failed = cell.told("base", PullState::Failed).await;
    assert_eq!(failed.data.attempt, 3);
    assert_eq!(
        failed.data.failure.unwrap().kind,
        FailureKind::RegistryUnavailable
    );
    cell.answered().await;
    let events = cell.events().await.unwrap();
    let states: Vec<_> = events
        .iter()
        .map(|event| (event.data.state, event.data.attempt))
        .collect();
    use PullState::{Failed, Retrying, Started};
    assert_eq!(
        states,
        [
            (Started, 1),
            (Retrying, 1),
            (Started, 2),
            (Retrying, 2),
            (Started, 3),
            (Failed, 3)
        ]
    );
    for (retrying, least) in [(1, 900), (3, 1_800)] {
        let next = events[retrying].data.next_attempt_at.unwrap();
        assert!(next.since(events[retrying].time) >= Duration::from_millis(least));
        let started = events[retrying + 1].time;
        assert!(
            started.after(Duration::from_millis(50)) >= next,
            "attempt {} began {:?} early",
            retrying / 2 + 2,
            next.since(started)
        );
    }
    worker.stop().await;
}

async fn a_long_pull_keeps_its_task(version: NatsVersion) {
    let ack_wait = Duration::from_secs(9);
    let cell = Cell::with_ack_wait(version, ack_wait).await;
    let mut settings = settings();
    settings.ack_wait = ack_wait;
    let worker = Worker::start(&cell, pulls_take("20s"), settings).await;
    let mut progress = cell
        .bus
        .client
        .subscribe("prewarm.progress.>")
        .await
        .unwrap();
    cell.release(&task("base", "nginx")).await;

    let succeeded = cell.told("base", PullState::Succeeded).await;
    assert_eq!(succeeded.data.attempt, 1);
    cell.answered().await;
    let info = cell.consumer().await.unwrap();
    assert_eq!(
        info.delivered.consumer_sequence, 1,
        "it was delivered again"
    );
    let said = within(LIMIT, "progress", progress.next()).await.unwrap();
    let said: ProgressMessage = serde_json::from_slice(&said.payload).unwrap();
    assert!(said.progress.bytes_total > 0 && said.node == node());
    worker.stop().await;
}

async fn a_deleted_consumer_is_registered_anew(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let worker = Worker::start(&cell, pulls_take("0"), settings()).await;
    let first = cell.registration(1).await;
    assert!(!first.consumer_lost);
    cell.release(&task("base", "nginx")).await;
    cell.answered().await;

    let tasks = cell.bus.subjects.tasks_stream();
    let stream = cell.bus.jetstream.get_stream(tasks).await.unwrap();
    stream.delete_consumer(&node().token()).await.unwrap();
    let second = cell.registration(2).await;
    assert!(second.consumer_lost);
    assert_eq!(second.instance, first.instance);
    cell.release(&task("other", "nginx")).await;
    cell.told("other", PullState::Succeeded).await;
    worker.stop().await;
}

async fn a_killed_broker_that_comes_back_is_worked_for_again(version: NatsVersion) {
    let mut cell = Cell::start(version).await;
    let worker = Worker::start(&cell, pulls_take("0..3s"), settings()).await;
    cell.release(&task("before", "nginx")).await;
    cell.told("before", PullState::Succeeded).await;
    cell.release(&task("during", "redis")).await;
    cell.told("during", PullState::Started).await;

    cell.server.kill();
    cell.server.restart().await;

    cell.told("during", PullState::Succeeded).await;
    eventually("a registration after the restart", LIMIT, async || {
        cell.registrations().len() > 1
    })
    .await;
    cell.release(&task("after", "busybox")).await;
    cell.told("after", PullState::Succeeded).await;
    worker.stop().await;
}

async fn a_stopping_worker_gives_running_pulls_back_at_once(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let mut settings = settings();
    settings.grace = Duration::from_millis(200);
    let worker = Worker::start(&cell, pulls_take("60s"), settings.clone()).await;
    cell.release(&task("base", "nginx")).await;
    cell.told("base", PullState::Started).await;
    worker.stop().await;

    // With an ack wait of 30 s, only a task that was given back comes again this soon.
    let next = Worker::start(&cell, pulls_take("0"), settings).await;
    let succeeded = within(
        Duration::from_secs(10),
        "the task to be done by the next worker",
        cell.told("base", PullState::Succeeded),
    )
    .await;
    assert_eq!(succeeded.data.attempt, 2);
    next.stop().await;
}

async fn a_killed_workers_task_is_done_by_the_next(version: NatsVersion) {
    let cell = Cell::with_ack_wait(version, Duration::from_secs(2)).await;
    let worker = Worker::start(&cell, pulls_take("60s"), settings()).await;
    cell.release(&task("base", "nginx")).await;
    cell.told("base", PullState::Started).await;
    worker.kill().await;

    let next = Worker::start(&cell, pulls_take("0"), settings()).await;
    let succeeded = cell.told("base", PullState::Succeeded).await;
    // Once more for each ack wait that passes before the next one is there.
    assert!(succeeded.data.attempt >= 2, "{succeeded:?}");
    cell.answered().await;
    next.stop().await;
}

async fn a_revoked_pull_stops_and_is_not_spoken_of(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let revoked = task("base", "nginx");
    let worker = Worker::start(&cell, pulls_take("60s"), settings()).await;
    cell.release(&revoked).await;
    eventually("a heartbeat that names the pull", LIMIT, async || {
        cell.heartbeats()
            .iter()
            .any(|beat| beat.holding == [pull_id(&revoked)])
    })
    .await;
    let tasks = cell.bus.subjects.tasks_stream();
    let stream = cell.bus.jetstream.get_stream(tasks).await.unwrap();
    stream.purge().await.unwrap();
    cell.revoke(&revoked).await;
    eventually("a heartbeat that names nothing", LIMIT, async || {
        cell.heartbeats()
            .last()
            .is_some_and(|beat| beat.holding.is_empty())
    })
    .await;
    let events = cell.events().await.unwrap();
    assert_eq!(events.len(), 1, "{}", summary(&events));
    worker.stop().await;
}

async fn a_pin_is_named_in_heartbeats_until_it_is_taken_back(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let mut pinned = task("base", "nginx");
    pinned.pin = true;
    pinned.run.generation = 2;
    let pins = vec![Pin {
        uid: "u".to_owned(),
        image: pull_id(&pinned).image,
        generation: 2,
    }];
    let runtime = pulls_take("0");
    let worker = Worker::start(&cell, runtime.clone(), settings()).await;
    cell.release(&pinned).await;
    eventually("a heartbeat that names the pin", LIMIT, async || {
        let beats = cell.heartbeats();
        beats.iter().any(|beat| beat.pins == pins)
    })
    .await;
    assert_eq!(runtime.pins(), pins);
    let revocation = Revocation {
        pulls: vec![],
        unpin: pins,
    };
    cell.say_revoked(revocation).await;
    eventually("the pin to go", LIMIT, async || runtime.pins().is_empty()).await;
    worker.stop().await;
}

async fn a_message_that_is_no_task_is_dropped(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let worker = Worker::start(&cell, pulls_take("0"), settings()).await;
    let stored = cell
        .bus
        .jetstream
        .publish("prewarm.task.node-1.base.000000000000", "{".into());
    stored.await.unwrap().await.unwrap();
    cell.answered().await;
    cell.release(&task("base", "nginx")).await;
    cell.told("base", PullState::Succeeded).await;
    worker.stop().await;
}

/// As when the dispatcher is newer than the worker.
async fn a_task_that_cannot_be_read_fails_by_the_name_of_its_pull(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let worker = Worker::start(&cell, pulls_take("0"), settings()).await;
    let newer = task("base", "nginx");
    let mut message = serde_json::to_value(&newer).unwrap();
    message["imagePullPolicy"] = "Sometimes".into();
    let key = PullKey::new(newer.node.clone(), newer.job.clone(), &newer.image);
    let subject = cell.bus.subjects.task(&key);
    let stored = cell
        .bus
        .jetstream
        .publish(subject, message.to_string().into());
    stored.await.unwrap().await.unwrap();
    let failed = cell.told("base", PullState::Failed).await.data;
    assert_eq!((failed.run, failed.image), (newer.run, newer.image));
    let failure = failed.failure.unwrap();
    assert_eq!(failure.kind, FailureKind::Internal);
    assert!(failure.message.contains("Sometimes"), "{}", failure.message);
    cell.answered().await;
    worker.stop().await;
}

async fn a_worker_waits_for_a_dispatcher(version: NatsVersion) {
    let server = NatsServer::start(version).await;
    let client = server.client().await;
    let mut cell = Cell::on(server, client, Duration::from_secs(30)).await;
    let mut asked = cell.bus.client.subscribe("prewarm.worker.*").await.unwrap();
    taken_in(&cell.bus.client).await;
    let worker = Worker::start(&cell, pulls_take("0"), settings()).await;
    within(LIMIT, "a registration that nobody answers", asked.next())
        .await
        .unwrap();
    drop(asked);
    cell.dispatch().await;
    cell.release(&task("base", "nginx")).await;
    cell.told("base", PullState::Succeeded).await;
    worker.stop().await;
}

/// Most pulls that ran at once, by what the worker told, in the order in which it told it.
fn most_running(events: &[Event<TaskEvent>]) -> i32 {
    let mut now = 0;
    let counts = events.iter().map(|event| {
        now += match event.data.state {
            PullState::Started => 1,
            PullState::Retrying | PullState::Succeeded | PullState::Failed => -1,
        };
        now
    });
    counts.max().unwrap_or(0)
}

async fn no_more_tasks_are_taken_than_there_are_slots(version: NatsVersion) {
    let cell = Cell::start(version).await;
    let mut settings = settings();
    settings.capacity = 2;
    let worker = Worker::start(&cell, pulls_take("300ms"), settings).await;
    for job in 0..7 {
        cell.release(&task(&format!("job-{job}"), &format!("image-{job}")))
            .await;
    }
    let mut most_taken = 0;
    eventually("seven pulls to end", LIMIT, async || {
        let info = cell.consumer().await.map_err(|error| error.to_string())?;
        most_taken = most_taken.max(info.num_ack_pending);
        let events = cell.events().await.map_err(|error| error.to_string())?;
        let ended = events
            .iter()
            .filter(|event| event.data.state.is_terminal())
            .count();
        if ended == 7 {
            Ok(())
        } else {
            Err(format!("{ended} ended"))
        }
    })
    .await;
    let events = cell.events().await.unwrap();
    assert_eq!(most_running(&events), 2, "{}", summary(&events));
    // The broker may deliver the next before it counts what has just been acked, but never to a slot that is taken.
    assert!(
        most_taken <= 4,
        "{most_taken} were delivered and unanswered"
    );
    worker.stop().await;
}

async fn a_worker_in_an_account_without_jetstream_works(version: NatsVersion) {
    let server = NatsServer::start_with(version, &shipped::accounts()).await;
    let url = server.url();
    let options = |user: &str, password: &str| {
        async_nats::ConnectOptions::with_user_and_password(user.to_owned(), password.to_owned())
    };
    let core = options("core", "core").connect(&url).await.unwrap();
    let of_node = options("node-1", "node")
        .custom_inbox_prefix("_INBOX.node-1")
        .connect(&url)
        .await
        .unwrap();
    let mut cell = Cell::on(server, core, Duration::from_secs(30)).await;
    cell.dispatch().await;
    let worker = Worker::on(of_node, fails_passingly("nginx").await, settings());

    // Answers, delays, a lost consumer and a revocation all cross the border.
    let mut failing = task("base", "nginx");
    failing.pull_policy.backoff_limit = 1;
    cell.release(&failing).await;
    let failed: TaskEvent = cell.told("base", PullState::Failed).await.data;
    assert_eq!(failed.attempt, 2);
    cell.answered().await;
    let tasks = cell.bus.subjects.tasks_stream();
    let stream = cell.bus.jetstream.get_stream(tasks).await.unwrap();
    stream.purge().await.unwrap();
    stream.delete_consumer(&node().token()).await.unwrap();
    assert!(cell.registration(2).await.consumer_lost);
    eventually("a heartbeat", LIMIT, async || !cell.heartbeats().is_empty()).await;
    worker.stop().await;
}
