//! `events`: what happened, from the broker's memory and as it goes on.

use std::fmt::Write as _;
use std::time::Duration;

use serde_json::Value;

use super::args::{EventFormat, EventsArgs};
use super::exit::Failure;
use super::journal::{self, Entry, From, Journal};
use super::output::print;
use super::{now, text, verbs};
use crate::bus::Bus;
use crate::cli::settings::span::Span;
use crate::domain::time::Timestamp;
use crate::wire::event::{
    Event, JobEvent, JobEventKind, NodeEvent, NodeEventKind, PullState, TaskEvent,
};

/// `prewarm events`.
///
/// # Errors
/// An argument is none, or the broker does not answer.
pub async fn run(bus: &Bus, args: &EventsArgs) -> Result<(), Failure> {
    let types = types(&args.types)?;
    let since = args
        .since
        .as_deref()
        .map(|text| since(text, now()))
        .transpose()?;
    let stream = journal::stream(bus, &bus.subjects.events_stream()).await?;
    let subjects = match &args.job {
        Some(job) => {
            let job = verbs::job_name(job)?;
            vec![
                bus.subjects.job_events(Some(&job)),
                bus.subjects.task_events(Some(&job)),
            ]
        }
        None => vec![bus.subjects.events()],
    };
    let from = match since {
        Some(time) => From::Time(time),
        None if args.follow => From::After(stream.cached_info().state.last_sequence),
        None => From::Oldest,
    };
    let mut journal = Journal::open(&stream, subjects, from).await?;
    loop {
        let entry = if args.follow {
            journal.next().await?
        } else {
            match journal.next_stored().await? {
                Some(entry) => entry,
                None => return Ok(()),
            }
        };
        if let Some(line) = line_of(&entry, &types, args.output) {
            print(&line)?;
        }
    }
}

fn line_of(entry: &Entry, types: &[String], format: EventFormat) -> Option<String> {
    let value: Value = serde_json::from_slice(&entry.payload).ok()?;
    let kind = value
        .get("type")?
        .as_str()?
        .trim_start_matches("dev.prewarm.")
        .to_owned();
    if !types.is_empty() && !types.iter().any(|wanted| is_of(&kind, wanted)) {
        return None;
    }
    match format {
        EventFormat::Json => Some(format!("{value}\n")),
        EventFormat::Text => line(&kind, value),
    }
}

/// Whether `job.completed` is asked for by itself, by `job` or by `completed`.
fn is_of(kind: &str, wanted: &str) -> bool {
    kind == wanted || kind.split('.').any(|part| part == wanted)
}

/// The types there are: `job`, `completed`, `job.completed`, …
fn known_types() -> Vec<String> {
    let jobs = JobEventKind::ALL.map(|kind| ("job", kind.token()));
    let tasks = [
        PullState::Started,
        PullState::Retrying,
        PullState::Succeeded,
        PullState::Failed,
    ]
    .map(|state| ("task", state.as_str()));
    let nodes = [NodeEventKind::Joined, NodeEventKind::Left].map(|kind| ("node", kind.token()));
    let all = jobs.into_iter().chain(tasks).chain(nodes);
    all.map(|(group, word)| format!("{group}.{word}")).collect()
}

fn types(asked: &[String]) -> Result<Vec<String>, Failure> {
    let known = known_types();
    let asked: Vec<String> = asked
        .iter()
        .map(|text| text.trim_start_matches("dev.prewarm.").to_owned())
        .collect();
    let unknown = asked
        .iter()
        .find(|wanted| !known.iter().any(|kind| is_of(kind, wanted)));
    match unknown {
        Some(wanted) => Err(Failure::input(format!(
            "--type: {wanted:?} is no event; there are {}",
            known.join(", ")
        ))),
        None => Ok(asked),
    }
}

fn since(text: &str, now: Timestamp) -> Result<Timestamp, Failure> {
    if let Ok(time) = text.parse() {
        return Ok(time);
    }
    let Span(ago) = text.parse().map_err(|_| {
        Failure::input(format!("--since: {text:?} is neither a length of time such as 1h nor a time such as 2026-01-31T12:00:00Z"))
    })?;
    let millis = i64::try_from(ago.as_millis()).unwrap_or(i64::MAX);
    Ok(Timestamp::from_millis(
        now.as_millis().saturating_sub(millis).max(0),
    ))
}

/// One line: when, what, about what, and what there is to say.
fn line(kind: &str, value: Value) -> Option<String> {
    let time = value.get("time")?.as_str()?.to_owned();
    let (about, words) = if kind.starts_with("job.") {
        let event: Event<JobEvent> = serde_json::from_value(value).ok()?;
        (event.subject.clone(), job_words(&event.data))
    } else if kind.starts_with("task.") {
        let event: Event<TaskEvent> = serde_json::from_value(value).ok()?;
        (
            format!("{}/{}", event.data.job, event.data.node),
            task_words(&event.data),
        )
    } else {
        let event: Event<NodeEvent> = serde_json::from_value(value).ok()?;
        (event.data.node.to_string(), String::new())
    };
    let line = format!("{time}  {kind:<20}  {about}  {words}");
    Some(format!("{}\n", line.trim_end()))
}

fn job_words(event: &JobEvent) -> String {
    let mut words = Vec::new();
    if let Some(outcome) = event.outcome {
        words.push(format!("{outcome:?}"));
    }
    if !event.message.is_empty() {
        words.push(event.message.clone());
    } else if let Some(counts) = event.counts.filter(|counts| counts.finished() > 0) {
        words.push(format!(
            "{} of {} pulls, {} failed",
            counts.succeeded, counts.desired, counts.failed
        ));
    }
    if let Some(millis) = event.duration_millis {
        words.push(text::duration(Duration::from_millis(millis)));
    }
    let bytes = event.bytes_registry.unwrap_or(0) + event.bytes_elsewhere.unwrap_or(0);
    if bytes > 0 {
        words.push(text::bytes(bytes));
    }
    words.extend(event.problems.iter().map(ToString::to_string));
    words.join("; ")
}

fn task_words(event: &TaskEvent) -> String {
    let mut words = event.image.to_string();
    if event.attempt > 1 {
        let _ = write!(words, ", attempt {}", event.attempt);
    }
    if let Some(result) = &event.result {
        let millis = result.resolve_millis + result.download_millis + result.unpack_millis;
        if result.already_present {
            words.push_str(", was there already");
        } else {
            let bytes = text::bytes(result.bytes_registry + result.bytes_elsewhere);
            let _ = write!(
                words,
                ", {bytes} in {}",
                text::duration(Duration::from_millis(millis))
            );
        }
    }
    if let Some(failure) = &event.failure {
        let _ = write!(words, ", {}: {}", failure.kind, failure.message);
    }
    if let Some(next) = event.next_attempt_at {
        let _ = write!(words, "; next attempt at {next}");
    }
    words
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn shown(kind: &str, subject: &str, data: Value) -> String {
        let value = json!({
            "specversion": "1.0", "id": "x", "source": "/prewarm", "type": format!("dev.prewarm.{kind}"),
            "subject": subject, "time": "2026-01-31T12:00:00.000Z", "datacontenttype": "application/json", "data": data,
        });
        line(kind, value).unwrap()
    }

    #[test]
    fn events_are_lines() {
        let completed = json!({"job": "base", "event": "completed", "outcome": "Succeeded", "durationMillis": 61_000, "bytesRegistry": 1024,
            "counts": {"desired": 2, "pending": 0, "active": 0, "succeeded": 2, "failed": 0, "cancelled": 0}});
        assert_eq!(
            shown("job.completed", "base", completed),
            "2026-01-31T12:00:00.000Z  job.completed         base  Succeeded; 2 of 2 pulls, 0 failed; 1m1s; 1.0 KiB\n"
        );
        let task = json!({"job": "base", "uid": "u", "generation": 1, "round": 1, "node": "n1", "image": "nginx:1", "attempt": 2,
            "state": "retrying", "failure": {"kind": "RateLimited", "message": "429"}, "nextAttemptAt": "2026-01-31T12:00:02.000Z"});
        assert_eq!(
            shown("task.retrying", "base/n1/x", task),
            "2026-01-31T12:00:00.000Z  task.retrying         base/n1  docker.io/library/nginx:1, attempt 2, RateLimited: 429; next attempt at 2026-01-31T12:00:02.000Z\n"
        );
        assert_eq!(
            shown(
                "node.joined",
                "n1",
                json!({"node": "n1", "event": "joined"})
            ),
            "2026-01-31T12:00:00.000Z  node.joined           n1\n"
        );
    }

    #[test]
    fn types_are_asked_for_in_three_ways() {
        for wanted in [
            "job.completed",
            "job",
            "completed",
            "dev.prewarm.job.completed",
        ] {
            let types = types(&[wanted.to_owned()]).unwrap();
            assert!(is_of("job.completed", &types[0]), "{wanted}");
            assert!(!is_of("task.failed", &types[0]), "{wanted}");
        }
        let failure = types(&["done".to_owned()]).unwrap_err();
        assert!(
            failure.message.contains("\"done\" is no event")
                && failure.message.contains("round-completed"),
            "{failure}"
        );
    }

    #[test]
    fn since_is_an_age_or_a_time() {
        let now = Timestamp::from_millis(10_000_000);
        assert_eq!(since("1h", now).unwrap().as_millis(), 6_400_000);
        assert_eq!(
            since("1970-01-01T00:00:01Z", now).unwrap().as_millis(),
            1_000
        );
        assert!(
            since("yesterday", now)
                .unwrap_err()
                .message
                .contains("\"yesterday\"")
        );
    }
}
