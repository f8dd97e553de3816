//! What a worker does, as spans of traces; lines of the log that are written meanwhile have their fields.

use tracing::Span;
use tracing::field::Empty;

use crate::domain::failure::Failure;
use crate::telemetry::trace::{self, Kind};
use crate::wire::event::PullResult;
use crate::wire::task::PullTask;

/// One attempt to put an image on the node. At the highest level, so that a log of errors alone says what they are about.
pub(super) fn pull(task: &PullTask, attempt: u32) -> Span {
    let PullTask {
        job, node, image, ..
    } = task;
    let span = tracing::error_span!(
        "pull", %job, %node, %image, attempt, trace_id = Empty, digest = Empty, engine = Empty, already_present = Empty,
        bytes_registry = Empty, bytes_elsewhere = Empty, failure = Empty, error = Empty
    );
    trace::join(&span, task.traceparent.map(Into::into), Kind::Consumer);
    span
}

/// Says in the current span how the attempt ended.
pub(super) fn pull_ended(result: &Result<PullResult, Failure>) {
    let span = Span::current();
    match result {
        Ok(result) => {
            span.record("digest", tracing::field::display(&result.digest));
            span.record("already_present", result.already_present);
            span.record("bytes_registry", result.bytes_registry);
            span.record("bytes_elsewhere", result.bytes_elsewhere);
            if !result.engine.is_empty() {
                span.record("engine", result.engine.as_str());
            }
        }
        Err(failure) => {
            span.record("failure", failure.kind.as_str());
            trace::fail(&span, &failure.message);
        }
    }
}
