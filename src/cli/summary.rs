//! How a job ended, in a few lines.

use std::fmt::Write as _;
use std::time::Duration;

use super::exit::Exit;
use super::text;
use crate::domain::name::JobName;
use crate::domain::status::{Counts, JobPhase, NodeCounts, Outcome};
use crate::wire::event::{Event, FailureGroup, JobEvent, JobEventKind};
use crate::wire::record::JobRecord;

/// Most node names in one line.
const NODES_SHOWN: usize = 8;

/// The end of a job, or of a round of one that never ends.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Ending {
    /// The job.
    pub job: JobName,
    /// `completed`, `cancelled`, …
    pub word: &'static str,
    /// How it ended.
    pub outcome: Option<Outcome>,
    /// Its pulls.
    pub counts: Counts,
    /// Its nodes.
    pub nodes: NodeCounts,
    /// Compressed bytes it moved.
    pub bytes: u64,
    /// How long it took.
    pub took: Option<Duration>,
    /// What failed and why.
    pub failures: Vec<FailureGroup>,
    /// The dispatcher's words.
    pub message: String,
    /// The event that told it, if one did.
    pub event: Option<Box<Event<JobEvent>>>,
}

impl Ending {
    /// The end an event tells, if it tells one.
    #[must_use]
    pub fn of_event(job: &JobName, told: &Event<JobEvent>) -> Option<Self> {
        let event = &told.data;
        let ends = matches!(
            event.event,
            JobEventKind::Completed
                | JobEventKind::Cancelled
                | JobEventKind::Deleted
                | JobEventKind::RoundCompleted
        );
        ends.then(|| Self {
            job: job.clone(),
            word: event.event.token(),
            outcome: event.outcome,
            counts: event.counts.unwrap_or_default(),
            nodes: event.nodes.unwrap_or_default(),
            bytes: event.bytes_registry.unwrap_or(0) + event.bytes_elsewhere.unwrap_or(0),
            took: event.duration_millis.map(Duration::from_millis),
            failures: event.failures.clone(),
            message: event.message.clone(),
            event: Some(Box::new(told.clone())),
        })
    }

    /// The end a record tells, if the job has ended.
    #[must_use]
    pub fn of_record(record: &JobRecord) -> Option<Self> {
        let status = &record.status;
        let word = match status.phase {
            JobPhase::Completed => "completed",
            JobPhase::Cancelled => "cancelled",
            JobPhase::Resolving | JobPhase::Running | JobPhase::Idle | JobPhase::Paused => {
                return None;
            }
        };
        let took = status
            .completed_at
            .zip(status.started_at)
            .map(|(end, start)| end.since(start));
        Some(Self {
            job: record.metadata.name.clone(),
            word,
            outcome: status.outcome,
            counts: status.counts,
            nodes: status.nodes,
            bytes: status.bytes_registry + status.bytes_elsewhere,
            took,
            failures: status.failures.clone(),
            message: status.message.clone(),
            event: None,
        })
    }

    /// The exit code that says the same.
    #[must_use]
    pub fn exit(&self) -> Exit {
        let fine = match self.outcome {
            Some(Outcome::Succeeded) => true,
            Some(
                Outcome::PartiallyFailed
                | Outcome::Failed
                | Outcome::DeadlineExceeded
                | Outcome::Cancelled,
            ) => false,
            // A round has no outcome; a job deleted while somebody waits for it did not get there.
            None => self.word == JobEventKind::RoundCompleted.token() && self.counts.failed == 0,
        };
        if fine { Exit::Done } else { Exit::JobFailed }
    }

    /// One line, and one for each reason of failure.
    #[must_use]
    pub fn lines(&self) -> String {
        let mut line = format!("job/{} {}", self.job, self.word);
        if let Some(outcome) = self.outcome {
            let _ = write!(line, ": {outcome:?}");
        }
        let Counts {
            desired,
            succeeded,
            failed,
            cancelled,
            ..
        } = self.counts;
        let _ = write!(
            line,
            ", {succeeded} of {} on {}",
            text::count(desired as usize, "pull"),
            text::count(self.nodes.desired as usize, "node")
        );
        for (number, word) in [(failed, "failed"), (cancelled, "cancelled")] {
            if number > 0 {
                let _ = write!(line, ", {number} {word}");
            }
        }
        let _ = write!(line, ", {}", text::bytes(self.bytes));
        if let Some(took) = self.took {
            let _ = write!(line, " in {}", text::duration(took));
        }
        line.push('\n');
        if !self.message.is_empty() && (self.failures.is_empty() || desired == 0) {
            let _ = writeln!(line, "  {}", self.message);
        }
        for group in &self.failures {
            line.push_str(&failure_line(group));
        }
        line
    }
}

/// `  ImageNotFound: 2 pulls on node-1, node-2: what one of them said`.
#[must_use]
pub fn failure_line(group: &FailureGroup) -> String {
    let nodes = text::some_of(&group.nodes, NODES_SHOWN);
    let pulls = text::count(group.pulls as usize, "pull");
    format!("  {}: {pulls} on {nodes}: {}\n", group.kind, group.message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::domain::failure::FailureKind;
    use crate::domain::time::Timestamp;

    fn ending(text: &str) -> Option<Ending> {
        let data: JobEvent = serde_json::from_str(text).unwrap();
        let event = Event::new(
            "job.x",
            String::new(),
            String::new(),
            String::new(),
            Timestamp::EPOCH,
            data,
        );
        Ending::of_event(&"base".parse().unwrap(), &event)
    }

    const PARTLY: &str = r#"{"event": "completed", "outcome": "PartiallyFailed",
        "counts": {"desired": 10, "pending": 0, "active": 0, "succeeded": 8, "failed": 2, "cancelled": 0},
        "nodes": {"desired": 10, "succeeded": 8, "failed": 2}, "durationMillis": 192000,
        "bytesRegistry": 1073741824, "bytesElsewhere": 429496729,
        "failures": [{"kind": "ImageNotFound", "pulls": 2, "nodes": ["node-3", "node-7"], "message": "no such tag"}]}"#;

    #[test]
    fn a_partly_failed_job_says_what_failed_where() {
        let ending = ending(PARTLY).unwrap();
        assert_eq!(
            ending.lines(),
            "job/base completed: PartiallyFailed, 8 of 10 pulls on 10 nodes, 2 failed, 1.4 GiB in 3m12s\n  ImageNotFound: 2 pulls on node-3, node-7: no such tag\n"
        );
        assert_eq!(ending.exit(), Exit::JobFailed);
    }

    #[test]
    fn exit_codes_follow_the_outcome() {
        for (text, exit) in [
            (
                r#"{"event": "completed", "outcome": "Succeeded"}"#,
                Exit::Done,
            ),
            (
                r#"{"event": "completed", "outcome": "Failed"}"#,
                Exit::JobFailed,
            ),
            (
                r#"{"event": "completed", "outcome": "DeadlineExceeded"}"#,
                Exit::JobFailed,
            ),
            (
                r#"{"event": "cancelled", "outcome": "Cancelled"}"#,
                Exit::JobFailed,
            ),
            (r#"{"event": "deleted"}"#, Exit::JobFailed),
            (r#"{"event": "round-completed"}"#, Exit::Done),
        ] {
            assert_eq!(ending(text).unwrap().exit(), exit, "{text}");
        }
        let mut round = ending(r#"{"event": "round-completed"}"#).unwrap();
        round.counts.failed = 1;
        assert_eq!(round.exit(), Exit::JobFailed);
        assert_eq!(ending(r#"{"event": "started"}"#), None);
    }

    #[test]
    fn nothing_to_do_is_said_in_the_dispatchers_words() {
        let text = r#"{"event": "completed", "outcome": "Succeeded", "message": "no node matches", "durationMillis": 3}"#;
        assert_eq!(
            ending(text).unwrap().lines(),
            "job/base completed: Succeeded, 0 of 0 pulls on 0 nodes, 0 B in 3ms\n  no node matches\n"
        );
    }

    #[test]
    fn long_lists_of_nodes_are_cut() {
        let nodes = (1..=10).map(|n| format!("n{n}").parse().unwrap()).collect();
        let group = FailureGroup {
            kind: FailureKind::Timeout,
            pulls: 12,
            nodes,
            message: "slow".to_owned(),
        };
        assert_eq!(
            failure_line(&group),
            "  Timeout: 12 pulls on n1, n2, n3, n4, n5, n6, n7, n8 and 2 more: slow\n"
        );
    }
}
