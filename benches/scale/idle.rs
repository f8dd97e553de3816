//! Thirty jobs that keep 10,000 nodes warm: what they cost when nothing happens, a new dispatcher, and a broker that was
//! away.

use std::time::{Duration, Instant};

use futures::StreamExt as _;

use crate::cell::{Cell, LIMIT, cpu, dispatcher, job, megabytes};
use crate::support::nats::NatsVersion;
use crate::support::wait::{eventually, within};
use crate::{NODES, figure, seconds};

const JOBS: u32 = 30;
/// How long nothing happens.
const IDLE_FOR: Duration = Duration::from_secs(600);

pub(crate) async fn measure() {
    let mut cell = Cell::start(NatsVersion::V2_15, NODES, &["--simulated-latency", "0"]).await;
    println!("{JOBS} Never jobs on {NODES} nodes:");
    let began = Instant::now();
    let mut rounds = cell.job_events("*", "round-completed").await;
    for number in 0..JOBS {
        let name = format!("never-{number}");
        let mut manifest = job(&name, &name, NODES);
        manifest["spec"]["completionPolicy"] = serde_json::json!({"type": "Never"});
        cell.submit(&manifest).await;
        // One after another: a broker that has the tasks of all of them takes longer by far, and it is not their first
        // round that is measured here.
        within(LIMIT, "a round to end", rounds.next())
            .await
            .unwrap();
    }
    figure(
        "to the end of their first round, one after another",
        seconds(began.elapsed()),
        "",
    );
    // A redelivery whose ack is on its way is not idleness.
    tokio::time::sleep(Duration::from_secs(5)).await;
    idle(&mut cell).await;
    restart(&mut cell).await;
    broker_restart(&mut cell).await;
}

async fn idle(cell: &mut Cell) {
    let pids = [
        cell.dispatcher.pid(),
        cell.nats.process().pid(),
        cell.fleet.pid(),
    ];
    let (before, began) = (pids.map(cpu), Instant::now());
    tokio::time::sleep(IDLE_FOR).await;
    let wall = began.elapsed().as_secs_f64();
    let share = |index: usize| {
        let used = cpu(pids[index]) - before[index];
        format!("{:.1} % of a core", used.as_secs_f64() / wall * 100.0)
    };
    figure("idle dispatcher", share(0), "< 5 %");
    figure(
        "idle dispatcher, resident",
        megabytes(cell.dispatcher.resident_bytes()),
        "< 500 MB",
    );
    figure("idle broker", share(1), "");
    figure("idle fleet (all 10,000 workers)", share(2), "");
}

async fn restart(cell: &mut Cell) {
    cell.dispatcher.kill9();
    let mut tasks = cell.client.subscribe("prewarm.task.>").await.unwrap();
    cell.client.flush().await.unwrap();
    cell.submit(&job("after", "after", NODES)).await;
    let began = Instant::now();
    cell.dispatcher = dispatcher(&cell.nats);
    let line = cell.dispatcher.logs("read the cell back", LIMIT).await;
    let leading = began.elapsed();
    within(LIMIT, "the first released task", tasks.next())
        .await
        .unwrap();
    let released = began.elapsed();
    let line: serde_json::Value = serde_json::from_str(&line).unwrap();
    let read_in = line["fields"]["millis"]
        .as_u64()
        .or(line["millis"].as_u64());
    let read_in = Duration::from_millis(read_in.unwrap());
    figure("killed and started again: to leading", seconds(leading), "");
    figure(
        "  of it waiting for the lease of the one that was killed",
        seconds(leading.saturating_sub(read_in)),
        "",
    );
    figure("  of it reading the cell back", seconds(read_in), "");
    figure(
        "started again to the first released task, lease included",
        seconds(released),
        "",
    );
    figure(
        "the same without the wait for the lease",
        seconds(released.saturating_sub(leading.saturating_sub(read_in))),
        "< 10 s",
    );
    figure(
        "resident after it",
        megabytes(cell.dispatcher.resident_bytes()),
        "< 500 MB",
    );
}

/// The broker is killed and started again: its consumers, which were in memory, are gone, and everybody has to come back.
async fn broker_restart(cell: &mut Cell) {
    let left = left(cell).await;
    let began = Instant::now();
    cell.nats.kill();
    cell.nats.restart().await;
    figure(
        "broker killed and started again: until it listens",
        seconds(began.elapsed()),
        "",
    );
    eventually("every node to have its consumer again", LIMIT, async || {
        let stream = cell.jetstream.get_stream("PREWARM_TASKS").await;
        let consumers = stream.map(|stream| stream.cached_info().state.consumer_count);
        match consumers {
            Ok(consumers) if consumers >= NODES as usize => Ok(()),
            other => Err(format!("{other:?}; {}", cell.fleet.log())),
        }
    })
    .await;
    figure(
        "  until every node has its consumer again",
        seconds(began.elapsed()),
        "< 60 s",
    );
    let times = cell.run(&job("back", "back", NODES), NODES.into()).await;
    figure(
        "  a job on all of them then, to its end",
        seconds(times.completed),
        "",
    );
    figure(
        "  nodes that were taken for gone",
        self::left(cell).await - left,
        "0",
    );
}

/// How often a node was said to have left.
async fn left(cell: &Cell) -> usize {
    let stream = cell.jetstream.get_stream("PREWARM_EVENTS").await.unwrap();
    let subjects = stream.info_with_subjects("prewarm.event.node.*.left").await;
    let mut counts = subjects.unwrap();
    let mut sum = 0;
    while let Some(subject) = counts.next().await {
        sum += subject.unwrap().1;
    }
    sum
}
