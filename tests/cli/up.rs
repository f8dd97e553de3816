//! `up`: one command from nothing to a job that is done, and nothing left behind.

use std::path::Path;
use std::time::Duration;

use serde_json::Value;

use super::dispatcher::{Dispatcher, LIMIT};
use crate::support::parts;
use crate::support::prewarm::{Prewarm, Role, prewarm};
use crate::support::wait::eventually;

fn up(directory: &Path, args: &[&str]) -> Prewarm {
    let server = parts::program("nats-2.15", "nats-server");
    let base = prewarm([
        "up",
        "--runtime",
        "simulated",
        "--simulated-latency",
        "50ms",
    ])
    .arg("--data-dir")
    .arg(directory)
    .arg("--nats-server")
    .arg(server);
    args.iter().fold(base, |call, arg| call.arg(arg))
}

async fn url(directory: &Path, role: &mut Role) -> String {
    let file = directory.join("nats.url");
    eventually("nats.url to be written", LIMIT, async || {
        let text = std::fs::read_to_string(&file).map_err(|_| role.log())?;
        if text.ends_with('\n') {
            Ok(text.trim().to_owned())
        } else {
            Err(text)
        }
    })
    .await
}

fn schema(name: &str) -> jsonschema::Validator {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("schemas/{name}.json"));
    let schema: Value = serde_json::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
    jsonschema::draft202012::new(&schema).unwrap()
}

#[tokio::test]
async fn a_first_look_needs_one_command_and_everything_said_fits_the_schemas() {
    let directory = parts::temp_dir();
    let mut up = up(directory.path(), &["--nodes", "3"]).spawn("up");
    let url = url(directory.path(), &mut up).await;
    let call = |args: &[&str]| prewarm(args).env("NATS_URL", &url);
    eventually("three nodes", LIMIT, async || {
        let nodes = call(&["get", "nodes"]).run().await;
        if nodes.stdout.matches("Present").count() == 3 {
            Ok(())
        } else {
            Err(format!("{nodes:?}"))
        }
    })
    .await;
    let run = call(&["run", "example.com/app:1", "--name", "base", "--wait"])
        .run()
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    assert!(
        run.stdout
            .starts_with("job/base completed: Succeeded, 3 of 3 pulls on 3 nodes"),
        "{run:?}"
    );

    let events = call(&["events", "-o", "json"]).run().await;
    let (job, task, node) = (
        schema("job-event"),
        schema("task-event"),
        schema("node-event"),
    );
    let mut seen = std::collections::BTreeSet::new();
    for line in events.stdout.lines() {
        let event: Value = serde_json::from_str(line).unwrap();
        let kind = event["type"].as_str().unwrap().to_owned();
        let schema = if kind.contains(".job.") {
            &job
        } else if kind.contains(".task.") {
            &task
        } else {
            &node
        };
        if let Err(error) = schema.validate(&event) {
            panic!("{error} at {} of {event}", error.instance_path());
        }
        seen.insert(kind.trim_start_matches("dev.prewarm.").to_owned());
    }
    let wanted = [
        "job.accepted",
        "job.completed",
        "job.started",
        "node.joined",
        "task.started",
        "task.succeeded",
    ];
    assert_eq!(seen.iter().map(String::as_str).collect::<Vec<_>>(), wanted);
    for (args, name) in [
        (["get", "job", "base", "-o", "json"], "job-record"),
        (["get", "node", "node-1", "-o", "json"], "node-record"),
    ] {
        let record: Value = serde_json::from_str(&call(&args).run().await.stdout).unwrap();
        if let Err(error) = schema(name).validate(&record) {
            panic!("{error} at {} of {record}", error.instance_path());
        }
    }
    let check = call(&["check", "--runtime", "simulated"]).run().await;
    assert_eq!(check.code, 0, "{check:?}");
    assert!(
        check.stdout.contains("ok    dispatcher    one leads"),
        "{check:?}"
    );
    assert!(up.terminate().await.success(), "{}", up.log());
    gone(&url).await;
}

/// Waits until nothing listens there any more.
async fn gone(url: &str) {
    let address = url.trim_start_matches("nats://").to_owned();
    eventually(
        &format!("nats-server at {address} to be gone"),
        LIMIT,
        async || tokio::net::TcpStream::connect(&address).await.is_err(),
    )
    .await;
}

#[tokio::test]
async fn its_broker_ends_with_it_however_it_ends_and_its_jobs_stay() {
    let directory = parts::temp_dir();
    let mut first = up(directory.path(), &[]).spawn("up");
    let old = url(directory.path(), &mut first).await;
    let run = prewarm(["run", "example.com/app:1", "--name", "base", "--wait"])
        .env("NATS_URL", &old)
        .run()
        .await;
    assert_eq!(run.code, 0, "{run:?}");
    first.kill9();
    gone(&old).await;
    std::fs::remove_file(directory.path().join("nats.url")).unwrap();
    let mut second = up(directory.path(), &[]).spawn("up again");
    let new = url(directory.path(), &mut second).await;
    let job = prewarm(["get", "job", "base"])
        .env("NATS_URL", &new)
        .run()
        .await;
    assert!(job.stdout.contains("Succeeded"), "{job:?}");
}

#[tokio::test]
async fn two_of_them_do_not_share_a_directory() {
    let directory = parts::temp_dir();
    let mut first = up(directory.path(), &[]).spawn("up");
    url(directory.path(), &mut first).await;
    let second = up(directory.path(), &[])
        .limit(Duration::from_secs(60))
        .run()
        .await;
    assert_eq!(second.code, 3, "{second:?}");
    assert!(
        second
            .stderr
            .contains("another `prewarm up` uses this directory"),
        "{second:?}"
    );
}

#[tokio::test]
async fn a_missing_nats_server_is_named_with_what_to_install() {
    let directory = parts::temp_dir();
    let output = prewarm(["up", "--runtime", "simulated", "--data-dir"])
        .arg(directory.path())
        .env("PATH", "/nowhere")
        .run()
        .await;
    assert_eq!(output.code, 3, "{output:?}");
    assert!(
        output.stderr.contains("no nats-server on PATH")
            && output.stderr.contains("apt install nats-server"),
        "{output:?}"
    );
}

#[tokio::test]
async fn with_a_broker_given_it_starts_none() {
    let dispatcher = Dispatcher::start().await;
    let mut up = dispatcher
        .prewarm(&["up", "--runtime", "simulated", "--node", "mine"])
        .env("PATH", "/nowhere")
        .spawn("up");
    eventually("the node to be there", LIMIT, async || {
        let node = dispatcher.prewarm(&["get", "node", "mine"]).run().await;
        if node.stdout.contains("Present") {
            Ok(())
        } else {
            Err(up.log())
        }
    })
    .await;
    assert!(up.terminate().await.success(), "{}", up.log());
}
