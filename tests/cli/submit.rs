//! What `run`, `apply` and the verbs send, and how they end on what the dispatcher says.

use std::time::Duration;

use serde_json::{Value, json};

use super::dispatcher::{Dispatcher, LIMIT, job};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::prewarm::{Output, prewarm};
use crate::support::wait::eventually;

fn counts(succeeded: u32, failed: u32) -> Value {
    json!({"desired": succeeded + failed, "pending": 0, "active": 0, "succeeded": succeeded, "failed": failed, "cancelled": 0})
}

/// `prewarm run` with `--wait` while the dispatcher accepts and then says `kind` with `data`.
async fn waited(kind: &str, data: Value, more: &[&str]) -> Output {
    let dispatcher = Dispatcher::start().await;
    let args = [
        &["run", "example.com/app:1", "--name", "base", "--wait"],
        more,
    ]
    .concat();
    let run = dispatcher.prewarm(&args).run();
    let answer = async {
        let request = dispatcher.request().await;
        assert_eq!(request.verb, "submit");
        assert_eq!(request.body["spec"]["images"], json!(["example.com/app:1"]));
        let run =
            json!({"uid": "u", "generation": 1, "round": 1, "requestSequence": request.sequence});
        dispatcher.tell("base", "accepted", run.clone()).await;
        dispatcher.put_job(&job("base", "Running", 0, 0)).await;
        let mut data = data;
        data.as_object_mut().unwrap().extend(
            json!({"uid": "u", "generation": 1, "round": 1})
                .as_object()
                .unwrap()
                .clone(),
        );
        dispatcher
            .tell_task(
                "base",
                "node-7",
                "failed",
                json!({"failure": {"kind": "ImageNotFound", "message": "no such tag"}}),
            )
            .await;
        dispatcher.tell("base", kind, data).await;
    };
    tokio::join!(run, answer).0
}

#[tokio::test]
async fn a_job_that_succeeds_ends_with_zero() {
    let data = json!({"outcome": "Succeeded", "counts": counts(10, 0), "nodes": {"desired": 10, "succeeded": 10, "failed": 0},
        "durationMillis": 61_000, "bytesRegistry": 1_048_576});
    let output = waited("completed", data, &[]).await;
    assert_eq!(output.code, 0, "{output:?}");
    assert_eq!(
        output.stdout,
        "job/base completed: Succeeded, 10 of 10 pulls on 10 nodes, 1.0 MiB in 1m1s\n"
    );
    assert!(output.stderr.contains("job/base accepted\n"), "{output:?}");
}

#[tokio::test]
async fn a_job_that_partly_fails_ends_with_one_and_says_where_and_why() {
    let data = json!({"outcome": "PartiallyFailed", "counts": counts(9, 1),
        "failures": [{"kind": "ImageNotFound", "pulls": 1, "nodes": ["node-7"], "message": "no such tag"}]});
    let output = waited("completed", data, &[]).await;
    assert_eq!(output.code, 1, "{output:?}");
    assert!(
        output
            .stdout
            .contains("\n  ImageNotFound: 1 pull on node-7: no such tag\n"),
        "{output:?}"
    );
    assert!(
        output
            .stderr
            .contains("base: 1 pull failed on node-7: ImageNotFound: no such tag\n"),
        "{output:?}"
    );
}

#[tokio::test]
async fn other_bad_ends_are_one_too() {
    for (kind, outcome) in [
        ("completed", "Failed"),
        ("completed", "DeadlineExceeded"),
        ("cancelled", "Cancelled"),
    ] {
        let output = waited(
            kind,
            json!({"outcome": outcome, "counts": counts(0, 1)}),
            &[],
        )
        .await;
        assert_eq!(output.code, 1, "{outcome}: {output:?}");
    }
}

#[tokio::test]
async fn a_job_that_never_ends_is_waited_for_until_its_round_is_done() {
    let output = waited(
        "round-completed",
        json!({"counts": counts(10, 0)}),
        &["--never"],
    )
    .await;
    assert_eq!(output.code, 0, "{output:?}");
    assert!(
        output
            .stdout
            .starts_with("job/base round-completed, 10 of 10 pulls"),
        "{output:?}"
    );
}

#[tokio::test]
async fn data_is_never_mixed_with_prose() {
    let output = waited(
        "completed",
        json!({"outcome": "Succeeded", "counts": counts(10, 0)}),
        &["-o", "json"],
    )
    .await;
    let event: Value =
        serde_json::from_str(&output.stdout).unwrap_or_else(|error| panic!("{error}: {output:?}"));
    assert_eq!(event["type"], "dev.prewarm.job.completed");
    assert_eq!(event["data"]["outcome"], "Succeeded");
}

#[tokio::test]
async fn a_wait_that_takes_too_long_ends_with_four() {
    let dispatcher = Dispatcher::start().await;
    let run = dispatcher
        .prewarm(&[
            "run",
            "nginx",
            "--name",
            "base",
            "--wait",
            "--timeout",
            "15s",
        ])
        .run();
    let answer = async {
        let request = dispatcher.request().await;
        dispatcher
            .tell(
                "base",
                "accepted",
                json!({"requestSequence": request.sequence}),
            )
            .await;
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(output.code, 4, "{output:?}");
    assert!(
        output
            .stderr
            .contains("error: job/base has not ended within 15s"),
        "{output:?}"
    );
}

#[tokio::test]
async fn an_end_before_the_acceptance_is_another_runs() {
    let dispatcher = Dispatcher::start().await;
    dispatcher.put_job(&job("base", "Completed", 10, 0)).await;
    let run = dispatcher
        .prewarm(&["run", "nginx", "--name", "base", "--wait"])
        .run();
    let answer = async {
        let request = dispatcher.request().await;
        dispatcher
            .tell("base", "completed", json!({"outcome": "Failed"}))
            .await;
        dispatcher
            .tell(
                "base",
                "accepted",
                json!({"requestSequence": request.sequence}),
            )
            .await;
        dispatcher
            .tell("base", "completed", json!({"outcome": "Succeeded"}))
            .await;
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(output.code, 0, "{output:?}");
}

#[tokio::test]
async fn without_waiting_the_acceptance_is_the_end() {
    let dispatcher = Dispatcher::start().await;
    let run = dispatcher
        .prewarm(&["run", "nginx", "--name", "base"])
        .run();
    let answer = async {
        let request = dispatcher.request().await;
        dispatcher
            .tell(
                "base",
                "accepted",
                json!({"requestSequence": request.sequence}),
            )
            .await;
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(
        (output.code, output.stdout.as_str()),
        (0, "job/base accepted\n")
    );
    assert!(!output.stderr.contains("error"), "{output:?}");
}

#[tokio::test]
async fn a_rejection_of_the_dispatcher_is_bad_input_with_every_problem() {
    let dispatcher = Dispatcher::start().await;
    let run = dispatcher
        .prewarm(&["run", "nginx", "--name", "base", "--wait"])
        .run();
    let answer = async {
        let request = dispatcher.request().await;
        let problems = json!([{"path": "spec.pin", "message": "is not there yet"}, {"path": "spec.platform", "message": "is odd"}]);
        dispatcher
            .tell(
                "base",
                "rejected",
                json!({"requestSequence": request.sequence, "problems": problems}),
            )
            .await;
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(output.code, 2, "{output:?}");
    assert!(output.stderr.contains("error: job/base was rejected: spec.pin: is not there yet\n       spec.platform: is odd\n"), "{output:?}");
}

#[tokio::test]
async fn a_job_that_nobody_picks_up_is_kept_and_said_to_be() {
    let dispatcher = Dispatcher::start().await;
    let output = dispatcher
        .prewarm(&["run", "nginx", "--name", "base"])
        .run()
        .await;
    assert_eq!(
        output.code, 0,
        "it is kept, which is what was asked: {output:?}"
    );
    assert_eq!(
        output.stderr,
        "warning: job/base is kept by the broker (request 1), but no dispatcher has picked it up yet; start one with `prewarm dispatcher` or `prewarm up`\n"
    );
    assert_eq!(dispatcher.request().await.body["metadata"]["name"], "base");
}

#[tokio::test]
async fn a_broker_that_nobody_set_up_is_said_to_be_so() {
    let nats = NatsServer::start(NatsVersion::V2_10).await;
    let commands: [&[&str]; 5] = [
        &["run", "nginx"],
        &["get", "jobs"],
        &["events"],
        &["pause", "base"],
        &["watch", "base"],
    ];
    for args in commands {
        let output = prewarm(args).env("NATS_URL", nats.url()).run().await;
        assert_eq!(output.code, 3, "{output:?}");
        assert_eq!(
            output.stderr,
            "error: no dispatcher has set this broker up\n help: start one with `prewarm dispatcher` or `prewarm up`\n"
        );
    }
}

#[tokio::test]
async fn every_document_of_a_file_becomes_a_job() {
    let dispatcher = Dispatcher::start().await;
    let manifest = |name: &str| {
        format!(
            "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata: {{name: {name}}}\nspec: {{images: [nginx]}}\n"
        )
    };
    let kruise = "apiVersion: apps.kruise.io/v1alpha1\nkind: ImagePullJob\nmetadata: {name: c, namespace: team}\nspec: {image: nginx, completionPolicy: {type: Never}}\n";
    let file = format!("{}---\n{}---\n{kruise}", manifest("a"), manifest("b"));
    let run = dispatcher
        .prewarm(&["apply", "-f", "-", "--wait"])
        .stdin(file)
        .run();
    let answer = async {
        for name in ["a", "b", "team.c"] {
            let request = dispatcher.request().await;
            dispatcher
                .tell(
                    name,
                    "accepted",
                    json!({"requestSequence": request.sequence}),
                )
                .await;
            let kind = if name == "team.c" {
                "round-completed"
            } else {
                "completed"
            };
            let outcome = if name == "b" {
                json!({"outcome": "Failed"})
            } else {
                json!({"outcome": "Succeeded"})
            };
            dispatcher.tell(name, kind, outcome).await;
        }
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(output.code, 1, "one of them failed: {output:?}");
    let ends: Vec<&str> = output
        .stdout
        .lines()
        .map(|line| line.split(',').next().unwrap())
        .collect();
    assert_eq!(
        ends,
        [
            "job/a completed: Succeeded",
            "job/b completed: Failed",
            "job/team.c round-completed: Succeeded"
        ]
    );
}

#[tokio::test]
async fn verbs_wait_for_the_dispatchers_word() {
    let dispatcher = Dispatcher::start().await;
    for (verb, event) in [
        ("cancel", "cancelled"),
        ("pause", "paused"),
        ("resume", "resumed"),
        ("delete", "deleted"),
    ] {
        let run = dispatcher.prewarm(&[verb, "base.image"]).run();
        let answer = async {
            let request = dispatcher.request().await;
            assert_eq!(
                (request.verb.as_str(), request.body),
                (verb, json!({"name": "base.image"}))
            );
            dispatcher
                .tell(
                    "base.image",
                    event,
                    json!({"requestSequence": request.sequence}),
                )
                .await;
        };
        let (output, ()) = tokio::join!(run, answer);
        assert_eq!(
            (output.code, output.stdout),
            (0, format!("job/base.image {event}\n"))
        );
    }
}

#[tokio::test]
async fn a_verb_for_a_job_that_is_not_there_is_bad_input() {
    let dispatcher = Dispatcher::start().await;
    let run = dispatcher.prewarm(&["cancel", "base"]).run();
    let answer = async {
        let request = dispatcher.request().await;
        let problems = json!([{"path": "name", "message": "there is no job base"}]);
        dispatcher
            .tell(
                "base",
                "rejected",
                json!({"requestSequence": request.sequence, "problems": problems}),
            )
            .await;
    };
    let (output, ()) = tokio::join!(run, answer);
    assert_eq!(output.code, 2, "{output:?}");
    assert_eq!(
        output.stderr,
        "error: cancel of job/base was rejected: name: there is no job base\n"
    );
}

#[tokio::test]
async fn a_verb_that_nobody_answers_is_kept_and_ends_with_four() {
    let dispatcher = Dispatcher::start().await;
    let output = dispatcher
        .prewarm(&["delete", "base", "--timeout", "300ms"])
        .run()
        .await;
    assert_eq!(output.code, 4, "{output:?}");
    assert!(
        output
            .stderr
            .contains("kept as number 1, but no dispatcher has answered within 300ms"),
        "{output:?}"
    );
    assert_eq!(dispatcher.request().await.verb, "delete");
}

#[tokio::test]
async fn a_wait_survives_a_restart_of_the_broker() {
    let mut dispatcher = Dispatcher::start().await;
    let mut run = dispatcher
        .prewarm(&["run", "nginx", "--name", "base", "--wait"])
        .spawn("run --wait");
    let request = dispatcher.request().await;
    let accepted = json!({"requestSequence": request.sequence});
    dispatcher.tell("base", "accepted", accepted).await;
    run.logs("job/base accepted", LIMIT).await;
    dispatcher.put_job(&job("base", "Running", 1, 0)).await;
    run.logs("base: 1/10 pulls", LIMIT).await;
    dispatcher.nats.kill();
    dispatcher.nats.restart().await;
    eventually("the broker to keep events again", LIMIT, async || {
        let name = dispatcher.bus.subjects.events_stream();
        dispatcher.bus.jetstream.get_stream(name).await
    })
    .await;
    dispatcher
        .tell("base", "completed", json!({"outcome": "Succeeded"}))
        .await;
    let end = run.end(Duration::from_secs(60)).await;
    assert_eq!(end.code, 0, "{end:?}");
    assert!(
        end.stderr.contains("job/base completed: Succeeded"),
        "{end:?}"
    );
}
