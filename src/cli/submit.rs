//! `run` and `apply`: checked manifests go to the broker, the dispatcher's answers come back.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::Value;
use tokio::time::Instant;

use super::args::SubmitArgs;
use super::exit::{Exit, Failure};
use super::output::{self, print, tell};
use super::request::{self, ANSWER_LIMIT, JobEvents, Told};
use super::summary::Ending;
use super::text;
use super::watch::{self, Jobs, Place, Watch};
use crate::bus::Bus;
use crate::domain::name::JobName;
use crate::wire::event::JobEventKind;
use crate::wire::subject::JobVerb;

/// A manifest that passed the checks.
#[derive(Clone, PartialEq, Debug)]
pub struct Checked {
    /// The job it names.
    pub name: JobName,
    /// The document as the user wrote it.
    pub document: Value,
}

/// Sends manifests and reports what becomes of them.
///
/// # Errors
/// The broker does not answer, a manifest is rejected, or, when waiting, a job fails or takes too long.
pub async fn submit(bus: &Bus, manifests: Vec<Checked>, args: &SubmitArgs) -> Result<(), Failure> {
    let limit = args
        .timeout
        .map(|timeout| (Instant::now() + timeout.0, timeout.0));
    let names: Vec<JobName> = manifests
        .iter()
        .map(|manifest| manifest.name.clone())
        .collect();
    let mut events = JobEvents::of(bus, &names).await?;
    let mut sent = BTreeMap::new();
    for manifest in manifests {
        let body = serde_json::to_vec(&manifest.document)
            .map_err(|error| Failure::input(error.to_string()))?;
        let sequence = request::send(bus, JobVerb::Submit, body).await?;
        sent.insert(sequence, manifest.name);
    }
    let answers = match &limit {
        // Whoever waits for the end waits for the beginning, too.
        Some((deadline, _)) => answers(&mut events, sent, Some(*deadline)).await?,
        None if args.wait => answers(&mut events, sent, None).await?,
        None => answers(&mut events, sent, Some(Instant::now() + ANSWER_LIMIT)).await?,
    };
    let mut rejections = None;
    for (name, told) in &answers.rejected {
        let failure = request::rejected(&format!("job/{name}"), &told.event.data);
        tell(&failure.to_string());
        rejections = Some(Failure::told(Exit::BadInput));
    }
    if !args.wait {
        report_accepted(&answers, args)?;
        return rejections.map_or(Ok(()), Err);
    }
    if !answers.silent.is_empty() {
        return Err(Failure::timed_out(nobody_yet(&answers.silent)));
    }
    if args.output.is_none() {
        for name in answers.accepted.keys() {
            tell(&format!("job/{name} accepted"));
        }
    }
    let endings = wait(bus, &answers, limit).await?;
    for ending in endings.values() {
        match (args.output, &ending.event) {
            (Some(format), Some(event)) => print(&output::item(format, event)?)?,
            _ => print(&ending.lines())?,
        }
    }
    match watch::worst(&endings) {
        Exit::Done => rejections.map_or(Ok(()), Err),
        exit => Err(Failure::told(exit)),
    }
}

async fn wait(
    bus: &Bus,
    answers: &Answers,
    limit: Option<(Instant, Duration)>,
) -> Result<BTreeMap<JobName, Ending>, Failure> {
    let sequences: BTreeMap<JobName, u64> = answers
        .accepted
        .iter()
        .map(|(name, told)| (name.clone(), told.sequence))
        .collect();
    let Some(after) = sequences.values().min().copied() else {
        return Ok(BTreeMap::new());
    };
    let watch = Watch {
        jobs: Jobs::Accepted(sequences),
        after,
        limit,
    };
    watch::follow(bus, watch, Place::Stderr).await
}

#[derive(Default)]
struct Answers {
    accepted: BTreeMap<JobName, Told>,
    rejected: BTreeMap<JobName, Told>,
    silent: BTreeMap<u64, JobName>,
}

/// The answers to requests, until all are there or the deadline passes.
async fn answers(
    events: &mut JobEvents,
    sent: BTreeMap<u64, JobName>,
    deadline: Option<Instant>,
) -> Result<Answers, Failure> {
    let mut answers = Answers {
        silent: sent,
        ..Answers::default()
    };
    let mut warned = false;
    while !answers.silent.is_empty() {
        let patience = Instant::now() + ANSWER_LIMIT;
        let until = deadline.map_or(patience, |deadline| deadline.min(patience));
        let Ok(told) = tokio::time::timeout_at(until, events.next()).await else {
            if deadline.is_some_and(|deadline| Instant::now() >= deadline) {
                break;
            }
            if !warned {
                tell(&nobody_yet(&answers.silent));
                warned = true;
            }
            continue;
        };
        let told = told?;
        let Some(name) = told
            .event
            .data
            .request_sequence
            .and_then(|seq| answers.silent.remove(&seq))
        else {
            continue;
        };
        if told.event.data.event == JobEventKind::Rejected {
            answers.rejected.insert(name, told);
        } else {
            answers.accepted.insert(name, told);
        }
    }
    Ok(answers)
}

fn nobody_yet(silent: &BTreeMap<u64, JobName>) -> String {
    let names: Vec<&JobName> = silent.values().collect();
    let requests: Vec<&u64> = silent.keys().collect();
    format!(
        "job/{} is kept by the broker (request {}), but no dispatcher has picked it up yet; start one with `prewarm dispatcher` or `prewarm up`",
        text::some_of(&names, 3),
        text::some_of(&requests, 3),
    )
}

fn report_accepted(answers: &Answers, args: &SubmitArgs) -> Result<(), Failure> {
    for (name, told) in &answers.accepted {
        match args.output {
            Some(format) => print(&output::item(format, &told.event)?)?,
            None => print(&format!("job/{name} accepted\n"))?,
        }
    }
    if !answers.silent.is_empty() {
        tell(&format!("warning: {}", nobody_yet(&answers.silent)));
    }
    Ok(())
}
