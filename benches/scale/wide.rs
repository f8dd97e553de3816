//! One job to every node, beside what the broker can do at all; and one to nodes that are warm.

use crate::cell::{Cell, JobTimes, cpu, job, megabytes};
use crate::floor::Floor;
use crate::support::nats::NatsVersion;
use crate::{NODES, figure, median, seconds};

/// How often job and floor are run, in turn.
const RUNS: usize = 5;

pub(crate) async fn measure(version: NatsVersion) {
    let mut cell = Cell::start(
        version,
        NODES,
        &[
            "--simulated-latency",
            "0",
            "--spread",
            "pool=0|1|2|3|4|5|6|7|8|9",
        ],
    )
    .await;
    println!("one job to {NODES} nodes, pulls of no length, nats-server {version:?}, {RUNS} runs:");
    figure(
        "start of the fleet to its last consumer",
        seconds(cell.registered_in),
        "",
    );
    figure(
        "resident: each of the workers",
        format!(
            "{} kB",
            cell.fleet.resident_bytes() / u64::from(NODES) / 1000
        ),
        "",
    );
    let floor = Floor::prepare(&cell, NODES).await;
    let (mut jobs, mut floors) = (Vec::new(), Vec::new());
    let pids = [
        cell.nats.process().pid(),
        cell.dispatcher.pid(),
        cell.fleet.pid(),
    ];
    let mut spent = [0; 3];
    for run in 0..RUNS {
        floors.push(floor.run(run).await);
        let begun = pids.map(cpu);
        let times = cell
            .run(
                &job(&format!("wide-{run}"), &format!("wide-{run}"), NODES),
                NODES.into(),
            )
            .await;
        for (sum, (pid, begun)) in spent.iter_mut().zip(pids.iter().zip(begun)) {
            *sum += (cpu(*pid) - begun).as_millis();
        }
        println!(
            "    run {run}: released {}, completed {}, floor {}",
            seconds(times.released),
            seconds(times.completed),
            seconds(floors[run])
        );
        jobs.push(times);
    }
    floor.remove().await;
    tell(&jobs, &floors, &cell);
    figure(
        "CPU of a job: broker, dispatcher, fleet",
        format!("{:?} ms", spent.map(|millis| millis / RUNS as u128)),
        "",
    );
    warm(&cell).await;
}

fn tell(jobs: &[JobTimes], floors: &[std::time::Duration], cell: &Cell) {
    let released = median(jobs.iter().map(|times| times.released).collect());
    let completed = median(jobs.iter().map(|times| times.completed).collect());
    let floor = median(floors.to_vec());
    figure(
        "publish to the last task in the stream",
        seconds(released),
        "< 5 s",
    );
    figure("publish to completed", seconds(completed), "< 15 s");
    figure("the floor: the same messages, bare", seconds(floor), "");
    let ratio = floor.as_secs_f64() / completed.as_secs_f64() * 100.0;
    figure("of what the floor reaches", format!("{ratio:.0} %"), "80 %");
    figure(
        "dispatcher, resident after it",
        megabytes(cell.dispatcher.resident_bytes()),
        "< 300 MB",
    );
}

/// A thousand nodes that have the image, ten at a time.
async fn warm(cell: &Cell) {
    let mut times = Vec::new();
    for run in 0..RUNS {
        let mut manifest = job(&format!("warm-{run}"), "wide-0", 10);
        manifest["spec"]["selector"] = serde_json::json!({"matchLabels": {"pool": "0"}});
        times.push(cell.run(&manifest, u64::from(NODES / 10)).await.completed);
    }
    figure(
        "1,000 nodes that have the image, 10 at a time: to completed",
        seconds(median(times)),
        "< 5 s",
    );
}
