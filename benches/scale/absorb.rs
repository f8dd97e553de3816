//! How many events about pulls a dispatcher takes in a second.

use std::time::Instant;

use async_nats::{HeaderMap, Message};
use futures::StreamExt as _;
use serde_json::{Value, json};

use crate::cell::{Cell, LIMIT, cpu, job};
use crate::support::nats::NatsVersion;
use crate::support::wait::within;
use crate::{NODES, figure, seconds};

const IMAGES: u32 = 3;

struct Told {
    subject: String,
    id: String,
    body: Vec<u8>,
}

pub(crate) async fn measure() {
    // Pulls that do not end by themselves, so that every end is one of ours.
    let cell = Cell::start(NatsVersion::V2_15, NODES, &["--simulated-latency", "60m"]).await;
    let pulls = NODES * IMAGES;
    println!("{pulls} results published at full speed:");
    let mut manifest = job("absorb", "absorb", pulls);
    let images: Vec<Value> = (0..IMAGES)
        .map(|image| {
            let named = manifest["spec"]["images"][0].as_str().unwrap();
            json!(named.replace("absorb", &format!("absorb-{image}")))
        })
        .collect();
    manifest["spec"]["images"] = json!(images);
    manifest["spec"]["pullPolicy"] = json!({"timeoutSeconds": 3000});
    let mut tasks = cell.client.subscribe("prewarm.task.>").await.unwrap();
    let mut started = cell.client.subscribe("prewarm.event.task.>").await.unwrap();
    let mut completed = cell.job_events("absorb", "completed").await;
    cell.submit(&manifest).await;
    let mut told = Vec::new();
    for _ in 0..pulls {
        let task = within(LIMIT, "every task", tasks.next()).await.unwrap();
        told.push(succeeded(&task));
        within(LIMIT, "every pull to begin", started.next()).await;
    }
    drop((tasks, started));
    let publisher = cell.nats.client().await;
    let mut acks = publisher.subscribe("bench.acks").await.unwrap();
    let (cpu_before, began) = (cpu(cell.dispatcher.pid()), Instant::now());
    let publish = async {
        for Told { subject, id, body } in told {
            let mut headers = HeaderMap::new();
            headers.insert("Nats-Msg-Id", id.as_str());
            let reply = "bench.acks".to_owned();
            publisher
                .publish_with_reply_and_headers(subject, reply, headers, body.into())
                .await
                .unwrap();
        }
        began.elapsed()
    };
    let stored = async {
        for _ in 0..pulls {
            acks.next().await.unwrap();
        }
        began.elapsed()
    };
    let absorbed = async {
        completed.next().await.unwrap();
        began.elapsed()
    };
    let all = async { tokio::join!(publish, stored, absorbed) };
    let (_, stored, absorbed) = within(LIMIT, "every result to be taken", all).await;
    let used = cpu(cell.dispatcher.pid()) - cpu_before;
    let rate =
        |time: std::time::Duration| format!("{:.0}/s", f64::from(pulls) / time.as_secs_f64());
    figure("first publish to the last stored", seconds(stored), "");
    figure("first publish to the job's end", seconds(absorbed), "");
    figure(
        "absorbed, with broker and publisher on the same cores",
        rate(absorbed),
        "5000/s",
    );
    figure(
        "absorbed per second of the dispatcher's CPU",
        rate(used),
        "5000/s",
    );
}

/// What the task's worker would say in the end.
fn succeeded(task: &Message) -> Told {
    let tokens: Vec<&str> = task.subject.split('.').collect();
    let [_, _, node_token, job_token, image_token] = tokens[..] else {
        panic!("{} is no task", task.subject);
    };
    let task: Value = serde_json::from_slice(&task.payload).unwrap();
    let (job, node, image) = (&task["job"], &task["node"], &task["image"]);
    let id = format!(
        "{}.{node_token}.{image_token}.end",
        task["uid"].as_str().unwrap()
    );
    let body = json!({
        "specversion": "1.0",
        "id": id,
        "source": format!("/prewarm/worker/{}", node.as_str().unwrap()),
        "type": "dev.prewarm.task.succeeded",
        "subject": format!("{job}/{node}/{image}"),
        "time": "2026-01-01T00:00:00.000Z",
        "datacontenttype": "application/json",
        "data": {
            "job": job, "uid": task["uid"], "generation": task["generation"], "round": task["round"],
            "node": node, "image": image, "state": "succeeded", "attempt": 1,
            "result": {
                "digest": task["digest"], "alreadyPresent": false, "bytesRegistry": 104_857_600,
                "bytesElsewhere": 0, "bytesPresent": 0, "resolveMillis": 12, "downloadMillis": 3456,
                "unpackMillis": 789,
            },
        },
    });
    Told {
        subject: format!("prewarm.event.task.{job_token}.{node_token}.{image_token}"),
        id,
        body: body.to_string().into_bytes(),
    }
}
