//! Live progress of a real pull over a line that is so fast and no faster.

use std::time::Instant;

use futures::StreamExt as _;
use prewarm::domain::progress::PullPhase;
use prewarm::wire::event::{Event, PullState, TaskEvent};
use prewarm::wire::worker::ProgressMessage;
use serde_json::json;

use super::cell::{Cell, LIMIT};
use crate::support::containerd::ContainerdVersion;
use crate::support::gate::Gate;
use crate::support::images::generated;
use crate::support::nats::{NatsVersion, taken_in};
use crate::support::wait::within;

/// What the line lets through.
const BYTES_PER_SECOND: u32 = 2_000_000;
/// Layers, and bytes of each before they are compressed to about half.
const LAYERS: (usize, usize) = (2, 20_000_000);
/// By how much of the line's fastest second a told rate may be too high: headers, and what passes at once.
const TOO_HIGH: f64 = 0.25;
/// By how much of its slowest second it may be too low.
const TOO_LOW: f64 = 0.5;
/// By how many seconds a time left may be wrong, and by which share: nobody knows beforehand what else the machine has to do.
const WRONG: (f64, f64) = (5.0, 1.0);

/// What was told, when, and what the line had let through by then.
type Told = (Instant, u64, ProgressMessage);

/// The least and the most that the line let through between one message and the next, as shares of its rate.
fn of_line(told: &[Told]) -> (f64, f64) {
    let shares = told.windows(2).map(|pair| {
        let took = (pair[1].0 - pair[0].0).as_secs_f64();
        (pair[1].1 - pair[0].1) as f64 / took / f64::from(BYTES_PER_SECOND)
    });
    shares.fold((1.0, 1.0), |(least, most), share| {
        (share.min(least), share.max(most))
    })
}

/// Compares what was told with the line's rate and with when the pull had ended; the rates as shares of the line's.
fn are_plausible(told: &[Told], fetched_at: Instant) -> Vec<f64> {
    let rates: Vec<f64> = told
        .iter()
        .filter_map(|(_, _, said)| said.pace.bytes_per_second)
        .map(|rate| rate as f64 / f64::from(BYTES_PER_SECOND))
        .collect();
    assert!(rates.len() >= 2, "{told:?}");
    // The first of them is of less than a second.
    let settled = *rates.last().unwrap();
    let (least, most) = of_line(told);
    assert!(
        (least * (1.0 - TOO_LOW)..most * (1.0 + TOO_HIGH)).contains(&settled),
        "{rates:?} of the line's rate, of which it had {least} to {most}"
    );
    for (at, _, said) in told {
        if let Some(left) = said.pace.seconds_left {
            let really = (fetched_at - *at).as_secs_f64();
            let wrong = (left as f64 - really).abs();
            assert!(
                wrong < WRONG.0 + WRONG.1 * really,
                "{left} s were left, and it took {really} s: {said:?}"
            );
        }
    }
    rates
}

#[tokio::test(flavor = "multi_thread")]
async fn rate_and_time_left_are_those_of_the_line() {
    let cell = Cell::start(NatsVersion::V2_15).await;
    let image = generated(21, LAYERS.0, LAYERS.1).build();
    cell.registry.push("team/app", "1", &image).await;
    let gate = Gate::closed_after(0, &cell.registry.addr()).await;
    gate.open_at(BYTES_PER_SECOND);
    let _node = cell
        .node("node", ContainerdVersion::V2_1, &gate.addr())
        .await;
    let client = cell.nats.client().await;
    let mut progress = client.subscribe("prewarm.progress.>").await.unwrap();
    let mut events = client.subscribe("prewarm.event.task.>").await.unwrap();
    taken_in(&client).await;
    let reference = format!("{}/team/app:1", gate.addr());
    cell.publish("base", json!({"images": [reference]})).await;

    let mut told: Vec<Told> = Vec::new();
    let mut shown = None;
    let bytes = image.size() as u64;
    let fetched_at = loop {
        let next = async {
            tokio::select! {
                message = progress.next() => Ok(message.unwrap()),
                event = events.next() => Err(event.unwrap()),
            }
        };
        match within(LIMIT, "more progress", next).await {
            Ok(message) => {
                let message: ProgressMessage = serde_json::from_slice(&message.payload).unwrap();
                let has_rate = message.pace.bytes_per_second.is_some();
                told.push((Instant::now(), gate.passed(), message));
                // It knows of pulls from the record, which comes a moment later.
                if has_rate && shown.is_none() {
                    let described = cell.run(&["describe", "job", "base"]).await;
                    let mut lines = described.stdout.lines();
                    shown = lines
                        .find(|it| it.contains("/s, about "))
                        .map(str::to_owned);
                }
            }
            Err(event) => {
                let event: Event<TaskEvent> = serde_json::from_slice(&event.payload).unwrap();
                if event.data.state.is_terminal() {
                    assert_eq!(event.data.state, PullState::Succeeded, "{event:?}");
                    break Instant::now();
                }
            }
        }
    };
    let record = cell.ended("base").await;
    assert_eq!(record.status.bytes_registry, bytes, "{record:?}");

    let (_, _, last) = told.last().unwrap();
    assert_eq!(last.progress.bytes_total, bytes);
    assert_eq!(last.progress.bytes_present, 0);
    let layers = bytes - image.blobs[0].bytes.len() as u64;
    assert!(
        told.iter()
            .all(|(_, _, said)| said.progress.unpack_total == layers
                || said.progress.phase == PullPhase::Resolving)
    );
    let rates = are_plausible(&told, fetched_at);
    let shown = shown.expect("a rate and the time left in what describe prints");
    println!("{rates:.2?} of the line's rate; {shown}");
}
