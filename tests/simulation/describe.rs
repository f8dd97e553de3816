//! One line for everything that passes, for traces and counters.

use prewarm::dispatch::{Effect, Input};
use prewarm::wire::event::JobEventKind;
use prewarm::wire::task::Run;
use prewarm::work::effect::Effect as WorkEffect;
use prewarm::work::input::Input as WorkInput;

use crate::net::Net;

fn run(run: &Run) -> String {
    format!("{}.{}.{}", run.uid, run.generation, run.round)
}

/// What a dispatcher takes in.
pub fn input(input: &Input) -> String {
    match input {
        Input::TaskEvent { event, sequence } => format!(
            "event {sequence}: {} {} {} {} attempt {}",
            event.state.as_str(),
            run(&event.run),
            event.node,
            event.image.repository(),
            event.attempt
        ),
        Input::Request { request, sequence } => format!("request {sequence}: {request:?}"),
        Input::Resolved { job, run: of, .. } => format!("resolved {job} {}", run(of)),
        Input::Registered {
            node, registration, ..
        } => format!(
            "registered {node} {} {:?} lost {}",
            registration.instance, registration.facts.labels, registration.consumer_lost
        ),
        Input::Heartbeat { node, heartbeat } => format!(
            "heartbeat {node} holding {} pinning {}",
            heartbeat.holding.len(),
            heartbeat.pins.len()
        ),
        Input::NodeRecord(_)
        | Input::JobRecord(_)
        | Input::Released { .. }
        | Input::EventsEnd { .. }
        | Input::JobEventTold { .. }
        | Input::Lead
        | Input::Kept { .. }
        | Input::Stalled { .. }
        | Input::Tick => format!("{input:?}"),
    }
}

/// What a dispatcher asks for.
pub fn effect(effect: &Effect) -> String {
    match effect {
        Effect::PutRecord(record) => format!(
            "put record {} {} request {} {:?} {:?}",
            record.metadata.name,
            run(&record.run()),
            record.metadata.request_sequence,
            record.status.phase,
            record.status.counts
        ),
        Effect::PutNode(record) => format!("put node {} {:?}", record.name, record.presence),
        Effect::TellJob { id, .. } => format!("tell job {id}"),
        Effect::TellPull { event, .. } => format!("tell end {}", event.id()),
        Effect::TellNode { id, .. } => format!("tell node {id}"),
        Effect::Release(task) => format!(
            "release {} {} to {} {}",
            task.job,
            run(&task.run),
            task.node,
            task.image.repository()
        ),
        Effect::Revoke { node, revocation } => format!(
            "revoke {} pulls of {node} and unpin {:?}",
            revocation.pulls.len(),
            revocation.unpin
        ),
        Effect::Resolve { job, run: of, .. } => format!("resolve {job} {}", run(of)),
        Effect::DeleteRecord(_)
        | Effect::DeleteNode(_)
        | Effect::WithdrawJob(_)
        | Effect::WithdrawPull(_)
        | Effect::Welcome { .. }
        | Effect::Acknowledge { .. } => format!("{effect:?}"),
    }
}

/// What a worker takes in.
pub fn work_input(input: &WorkInput) -> String {
    match input {
        WorkInput::Delivered {
            token,
            task,
            deliveries,
        } => format!(
            "delivery {token} of {} {} {} times {deliveries}",
            task.job,
            run(&task.run),
            task.image.repository()
        ),
        other => format!("{other:?}"),
    }
}

/// What a worker asks for.
pub fn work_effect(effect: &WorkEffect) -> String {
    match effect {
        WorkEffect::StartPull {
            pull,
            task,
            attempt,
        } => format!(
            "start pull {pull} of {} attempt {attempt}",
            task.image.repository()
        ),
        WorkEffect::Store(stored) => {
            format!(
                "store {} {}",
                stored.message_id,
                stored.event.state.as_str()
            )
        }
        WorkEffect::Heartbeat(heartbeat) => {
            format!("heartbeat holding {}", heartbeat.holding.len())
        }
        other => format!("{other:?}"),
    }
}

/// Counts what a leader's decisions show.
pub fn count(net: &mut Net, effect: &Effect) {
    use prewarm::domain::failure::FailureKind;
    use prewarm::domain::status::Outcome;
    let Effect::TellJob { event, .. } = effect else {
        if let Effect::Resolve { run, .. } = effect
            && run.round > 1
        {
            net.counters.bump("a round followed another");
        }
        return;
    };
    match event.event {
        JobEventKind::Rejected => net.counters.bump("a request was rejected"),
        JobEventKind::Paused => net.counters.bump("a job was paused"),
        JobEventKind::Resumed => net.counters.bump("a job was resumed"),
        JobEventKind::Cancelled => net.counters.bump("a job was cancelled"),
        JobEventKind::Deleted if event.request_sequence.is_some() => {
            net.counters.bump("a job was deleted by a user");
        }
        JobEventKind::Completed => {
            if event.outcome == Some(Outcome::DeadlineExceeded) {
                net.counters.bump("a job exceeded its deadline");
            }
            let counts = event.counts.unwrap_or_default();
            if event.outcome == Some(Outcome::Failed) && counts.cancelled > 0 {
                net.counters.bump("a job had too many failures");
            }
            let gave_up = |kind| event.failures.iter().any(|group| group.kind == kind);
            if gave_up(FailureKind::NodeAbsent) {
                net.counters.bump("a job gave up absent nodes");
            }
            if gave_up(FailureKind::Timeout) {
                net.counters.bump("a pull took too long");
            }
        }
        JobEventKind::Accepted
        | JobEventKind::Started
        | JobEventKind::Deleted
        | JobEventKind::RoundCompleted => {}
    }
}
