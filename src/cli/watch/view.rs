//! What a watcher shows, as text: bars for a terminal, lines for everything else.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use super::state::{ActivePull, EndedPull, Job, State};
use crate::cli::text;
use crate::domain::failure::FailureKind;
use crate::domain::name::{JobName, NodeName};
use crate::domain::progress::PullPhase;
use crate::domain::status::JobPhase;
use crate::domain::time::Timestamp;
use crate::wire::event::JobEventKind;
use crate::wire::record::JobRecord;
use crate::wire::subject::PullKey;

/// Cells of a job's bar.
const JOB_BAR: usize = 16;
/// Cells of a pull's bar.
const PULL_BAR: usize = 12;
/// Most names in one line.
const NAMES_SHOWN: usize = 5;

/// A line for every job, each followed by lines for its pulls, at most `most_pulls` of them altogether.
#[must_use]
pub(super) fn bars(state: &State, now: Timestamp, most_pulls: usize) -> Vec<String> {
    let mut lines = Vec::new();
    let mut left = most_pulls;
    for (name, job) in &state.jobs {
        let Some(record) = &job.record else { continue };
        lines.push(job_bar(state, name, record, now));
        for (key, pull) in state
            .pulls
            .iter()
            .filter(|(key, _)| key.job == *name)
            .take(left)
        {
            left -= 1;
            lines.push(pull_bar(key, pull));
        }
    }
    lines
}

fn job_bar(state: &State, name: &JobName, record: &JobRecord, now: Timestamp) -> String {
    let counts = &record.status.counts;
    let bar = text::bar(counts.finished().into(), counts.desired.into(), JOB_BAR);
    format!("{name}  {bar}  {}", job_words(state, name, record, now))
}

/// The most telling first: a terminal may cut the end off.
fn job_words(state: &State, name: &JobName, record: &JobRecord, now: Timestamp) -> String {
    let (counts, nodes) = (&record.status.counts, &record.status.nodes);
    let mut words = format!("{}/{} pulls", counts.finished(), counts.desired);
    match record.status.phase {
        JobPhase::Running => {}
        JobPhase::Resolving => words.push_str(", resolving tags"),
        JobPhase::Idle => words.push_str(", warm"),
        JobPhase::Paused => words.push_str(", paused"),
        JobPhase::Completed => words.push_str(", completed"),
        JobPhase::Cancelled => words.push_str(", cancelled"),
    }
    if counts.failed > 0 {
        let _ = write!(words, ", {} failed", counts.failed);
    }
    let _ = write!(words, ", {}", text::bytes(state.bytes(name)));
    if record.status.phase == JobPhase::Running {
        if let Some(rate) = state.rate(name).filter(|rate| *rate > 0) {
            let _ = write!(words, ", {}/s", text::bytes(rate));
        }
        if let Some(left) = state.time_left(name, now) {
            let left = Duration::from_secs(left.as_secs() + 1);
            let _ = write!(words, ", about {} left", text::duration(left));
        }
    }
    if counts.active > 0 {
        let _ = write!(words, ", {} active", counts.active);
    }
    let _ = write!(words, ", {}/{} nodes", nodes.succeeded, nodes.desired);
    words
}

fn pull_bar(key: &PullKey, pull: &ActivePull) -> String {
    let progress = &pull.progress;
    let (done, total) = match progress.phase {
        PullPhase::Unpacking => (progress.unpack_done, progress.unpack_total),
        _ => (progress.bytes_done, progress.bytes_total),
    };
    let bar = text::bar(done, total, PULL_BAR);
    let mut line = format!("  {bar}  {}  {}  ", key.node, pull.image);
    match pull.waiting_after {
        Some(kind) => {
            let _ = write!(line, "waiting after {kind}");
        }
        None => line.push_str(&text::progress(progress, &pull.pace)),
    }
    if pull.attempt > 1 {
        let _ = write!(line, ", attempt {}", pull.attempt);
    }
    line
}

/// What is new of a job since the last look, one line each; the last look's news are taken.
#[must_use]
pub(super) fn news(name: &JobName, job: &mut Job) -> Vec<String> {
    let mut lines = Vec::new();
    for event in job.news.drain(..) {
        lines.extend(news_line(name, event, job.record.as_ref()));
    }
    let (succeeded, failed): (Vec<_>, Vec<_>) =
        job.ended.drain(..).partition(|pull| pull.failure.is_none());
    if !succeeded.is_empty() {
        let pulls = text::count(succeeded.len(), "pull");
        lines.push(format!(
            "{name}: {pulls} succeeded on {}",
            nodes_of(&succeeded)
        ));
    }
    let mut by_kind: BTreeMap<FailureKind, Vec<EndedPull>> = BTreeMap::new();
    for pull in failed {
        if let Some((kind, _)) = &pull.failure {
            by_kind.entry(*kind).or_default().push(pull);
        }
    }
    for (kind, pulls) in by_kind {
        let said = pulls
            .iter()
            .find_map(|pull| pull.failure.as_ref().map(|(_, said)| said.as_str()));
        let count = text::count(pulls.len(), "pull");
        lines.push(format!(
            "{name}: {count} failed on {}: {kind}: {}",
            nodes_of(&pulls),
            said.unwrap_or_default()
        ));
    }
    lines
}

/// The job's own ends are told by its summary.
fn news_line(name: &JobName, event: JobEventKind, record: Option<&JobRecord>) -> Option<String> {
    match event {
        JobEventKind::Started => Some(match record {
            Some(record) => {
                let status = &record.status;
                let (pulls, nodes) = (
                    status.counts.desired as usize,
                    status.nodes.desired as usize,
                );
                format!(
                    "{name}: started: {} on {}, at most {} at once",
                    text::count(pulls, "pull"),
                    text::count(nodes, "node"),
                    record.spec.parallelism
                )
            }
            None => format!("{name}: started"),
        }),
        JobEventKind::Paused
        | JobEventKind::Resumed
        | JobEventKind::Accepted
        | JobEventKind::Rejected => Some(format!("{name}: {}", event.token())),
        JobEventKind::Completed
        | JobEventKind::Cancelled
        | JobEventKind::Deleted
        | JobEventKind::RoundCompleted => None,
    }
}

fn nodes_of(pulls: &[EndedPull]) -> String {
    let mut nodes: Vec<&NodeName> = pulls.iter().map(|pull| &pull.node).collect();
    nodes.sort_unstable();
    nodes.dedup();
    text::some_of(&nodes, NAMES_SHOWN)
}

/// Where a job stands, in one line; `None` before its record was seen and after its end.
#[must_use]
pub(super) fn standing(state: &State, name: &JobName, now: Timestamp) -> Option<String> {
    let record = state.jobs.get(name)?.record.as_ref()?;
    (!record.status.phase.is_finished())
        .then(|| format!("{name}: {}", job_words(state, name, record, now)))
}
