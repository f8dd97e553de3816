//! What a dispatcher does, as spans of traces and as lines of the log.

use std::time::SystemTime;

use serde_json::json;
use tracing::Span;
use tracing::field::Empty;

use crate::domain::name::JobName;
use crate::domain::status::Outcome;
use crate::domain::time::Timestamp;
use crate::domain::trace::{TraceContext, TraceOrigin};
use crate::telemetry::trace::{self, FinishedSpan, Kind};
use crate::wire::event::{JobEvent, JobEventKind, PullState, TaskEvent};
use crate::wire::record::RunTrace;
use crate::wire::task::{PullTask, Run};

/// Where what is done for a run hangs: under its own span, if this process exports that.
fn above(run: &Run, origin: TraceOrigin) -> TraceOrigin {
    if trace::is_exporting() {
        run.span(&origin).into()
    } else {
        origin
    }
}

/// What the events of a run hang under: its own span, if this process exports that, or else the one above it.
pub(super) fn handed_on(round: &RunTrace, run: &Run) -> TraceContext {
    if trace::is_exporting() {
        run.span(&round.origin)
    } else {
        round.handed_on(run)
    }
}

/// The question what a job's tags mean.
pub(super) fn resolve(job: &JobName, run: &Run, round: Option<RunTrace>) -> Span {
    let span = tracing::error_span!("resolve", %job, trace_id = Empty);
    let above = round.map(|round| above(run, round.origin));
    trace::join(&span, above, Kind::Internal);
    span
}

/// The release of a pull, which what the worker does hangs under.
pub(super) fn release(task: &mut PullTask) -> Span {
    let PullTask {
        job, node, image, ..
    } = &*task;
    let span =
        tracing::error_span!("release", %job, %node, %image, trace_id = Empty, error = Empty);
    let above = task
        .traceparent
        .map(|parent| above(&task.run, parent.into()));
    trace::join(&span, above, Kind::Producer);
    task.traceparent = trace::context(&span, above);
    span
}

/// Says what a worker told of a pull.
pub(super) fn pull_told(event: &TaskEvent) {
    let TaskEvent {
        job,
        node,
        image,
        attempt,
        state,
        failure,
        ..
    } = event;
    let failure = failure.as_ref().map(|failure| failure.kind.as_str());
    let message = match state {
        PullState::Started => "a pull started",
        PullState::Retrying => "a pull is tried again",
        PullState::Succeeded | PullState::Failed => "a pull ended",
    };
    let state = state.as_str();
    tracing::debug!(%job, %node, %image, attempt, state, failure, "{message}");
}

/// Says what is told of a job. What ends a round ends its span, too, which may have begun in another process.
pub(super) fn job(time: Timestamp, event: &JobEvent, round: Option<RunTrace>) {
    let name = event.job.as_ref().map_or("", JobName::as_str);
    let trace_id = round.map(|round| tracing::field::display(round.origin.trace_id));
    let (what, message) = (event.event.token(), &event.message);
    match event.event {
        JobEventKind::Rejected => {
            let problems: Vec<String> = event.problems.iter().map(ToString::to_string).collect();
            tracing::warn!(job = name, trace_id, event = what, ?problems, "{message}");
        }
        _ => {
            let outcome = event.outcome.map(|outcome| format!("{outcome:?}"));
            tracing::info!(job = name, trace_id, event = what, outcome, "{message}");
        }
    }
    let ends = matches!(
        event.event,
        JobEventKind::Completed | JobEventKind::Cancelled | JobEventKind::RoundCompleted
    );
    let (Some(round), Some(run), true) = (round, &event.run, ends && trace::is_exporting()) else {
        return;
    };
    let context = run.span(&round.origin);
    let counts = event.counts.unwrap_or_default();
    let failed = match event.outcome {
        None => counts.failed > 0,
        Some(outcome) => !matches!(outcome, Outcome::Succeeded | Outcome::Cancelled),
    };
    trace::export(FinishedSpan {
        trace_id: context.trace_id,
        span_id: context.span_id,
        parent_id: round.origin.parent_id,
        sampled: context.sampled,
        name: "job",
        kind: Kind::Consumer,
        start: system_time(round.since),
        end: system_time(time),
        attributes: vec![
            ("job", json!(name)),
            ("uid", json!(run.uid)),
            ("generation", json!(run.generation)),
            ("round", json!(run.round)),
            ("outcome", json!(event.outcome)),
            ("desired", json!(counts.desired)),
            ("succeeded", json!(counts.succeeded)),
            ("failed", json!(counts.failed)),
            ("cancelled", json!(counts.cancelled)),
        ],
        error: failed.then(|| message.clone()),
    });
}

fn system_time(time: Timestamp) -> SystemTime {
    SystemTime::UNIX_EPOCH + time.since(Timestamp::EPOCH)
}
