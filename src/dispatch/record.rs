//! The state as others see it: records, events, sentences.

use std::collections::BTreeMap;

use super::fleet::Fleet;
use super::input::Effect;
use super::job::{Job, Stage};
use super::requests::part_id;
use super::slots::JobId;
use super::state::Dispatcher;
use crate::domain::name::JobName;
use crate::domain::status::Outcome;
use crate::domain::time::Timestamp;
use crate::wire::event::{FailureGroup, JobEvent, JobEventKind, MAX_NODES_PER_GROUP, Problem};
use crate::wire::manifest::{API_VERSION, KIND};
use crate::wire::record::{JobRecord, JobStatus, RecordMetadata};

impl Dispatcher {
    pub(super) fn tell_job(
        &self,
        now: Timestamp,
        id: JobId,
        kind: JobEventKind,
        effects: &mut Vec<Effect>,
    ) {
        if let Some(job) = self.jobs.get(&id) {
            effects.push(Effect::TellJob {
                id: job.event_id(kind),
                time: job.event_time(kind).unwrap_or(now),
                event: Box::new(job.event(kind, &self.fleet)),
                trace: job.trace,
            });
        }
    }

    pub(super) fn tell_rejected(
        &self,
        now: Timestamp,
        (name, problems): (Option<JobName>, Vec<Problem>),
        (sequence, ordinal): (u64, usize),
        effects: &mut Vec<Effect>,
    ) {
        let event = JobEvent::rejected(name, sequence, problems);
        let id = format!("rejected.{}", part_id(sequence, ordinal));
        effects.push(Effect::TellJob {
            id,
            time: now,
            event: Box::new(event),
            trace: None,
        });
    }
}

impl Job {
    /// The stable id of an event: the same fact has the same id, whoever tells it again.
    pub(super) fn event_id(&self, kind: JobEventKind) -> String {
        let (uid, generation, token) = (&self.uid, self.generation, kind.token());
        match kind {
            JobEventKind::Accepted
            | JobEventKind::Rejected
            | JobEventKind::Paused
            | JobEventKind::Resumed => {
                format!("{uid}.{generation}.{token}.{}", self.request_sequence)
            }
            JobEventKind::RoundCompleted => format!("{uid}.{generation}.{}.{token}", self.round),
            JobEventKind::Started | JobEventKind::Completed | JobEventKind::Cancelled => {
                format!("{uid}.{generation}.{token}")
            }
            JobEventKind::Deleted => format!("{uid}.{token}"),
        }
    }

    pub(super) fn event_time(&self, kind: JobEventKind) -> Option<Timestamp> {
        match kind {
            JobEventKind::Started => self.started_at,
            JobEventKind::Completed | JobEventKind::Cancelled => self.completed_at,
            JobEventKind::RoundCompleted => self.round_completed_at,
            JobEventKind::Accepted
            | JobEventKind::Rejected
            | JobEventKind::Deleted
            | JobEventKind::Paused
            | JobEventKind::Resumed => None,
        }
    }

    fn event(&self, kind: JobEventKind, fleet: &Fleet) -> JobEvent {
        let ended = self.completed_at.or(self.round_completed_at);
        let began = if self.repeats() {
            self.round_started_at
        } else {
            self.started_at
        };
        let duration = began.zip(ended).map(|(from, to)| to.since(from));
        JobEvent {
            job: Some(self.name.clone()),
            run: Some(self.run()),
            event: kind,
            request_sequence: Some(self.request_sequence),
            phase: Some(self.phase()),
            outcome: self.outcome(),
            counts: Some(self.counts),
            nodes: Some(self.nodes),
            duration_millis: duration
                .map(|time| u64::try_from(time.as_millis()).unwrap_or(u64::MAX)),
            bytes_registry: Some(self.bytes_registry),
            bytes_elsewhere: Some(self.bytes_elsewhere),
            failures: self.failure_groups(fleet),
            problems: Vec::new(),
            message: self.describe(),
            labels: self.event_labels(),
            annotations: self.spec.sandbox_config.annotations.clone(),
        }
    }

    /// The sandbox labels, and over them the job's own.
    fn event_labels(&self) -> BTreeMap<String, String> {
        let mut labels = self.spec.sandbox_config.labels.clone();
        labels.extend(self.labels.clone());
        labels
    }

    pub(super) fn outcome(&self) -> Option<Outcome> {
        match self.stage {
            Stage::Finished(outcome) => Some(outcome),
            Stage::Resolving | Stage::Running => None,
        }
    }

    pub(super) fn failure_groups(&self, fleet: &Fleet) -> Vec<FailureGroup> {
        if !self.final_failures.is_empty() {
            return self.final_failures.clone();
        }
        let group = |(kind, failures): (&_, &super::job::Failures)| {
            let name = |(node, _): &(_, u8)| Some(&fleet.get(*node)?.name);
            let mut names: Vec<_> = failures.pulls.keys().filter_map(name).collect();
            names.sort_unstable();
            names.dedup();
            FailureGroup {
                kind: *kind,
                pulls: u32::try_from(failures.pulls.len()).unwrap_or(u32::MAX),
                nodes: names
                    .into_iter()
                    .take(MAX_NODES_PER_GROUP)
                    .cloned()
                    .collect(),
                message: failures.message.clone(),
            }
        };
        self.failures.iter().map(group).collect()
    }

    /// The job in one sentence.
    pub(super) fn describe(&self) -> String {
        if !self.message.is_empty() {
            return self.message.clone();
        }
        let counts = self.counts;
        if counts.desired == 0 {
            return match (self.outcome(), self.repeats()) {
                (Some(Outcome::Cancelled), _) => {
                    "cancelled; no node matched the selector".to_owned()
                }
                (Some(_), _) => "no node matches the selector; nothing was done".to_owned(),
                (None, _) => "no node matches the selector".to_owned(),
            };
        }
        let Self { nodes, .. } = self;
        let mut text = format!(
            "{} of {} pulls done on {} of {} nodes",
            counts.succeeded, counts.desired, nodes.succeeded, nodes.desired
        );
        for (count, what) in [(counts.failed, "failed"), (counts.cancelled, "cancelled")] {
            if count > 0 {
                text.push_str(&format!(", {count} {what}"));
            }
        }
        for (count, what) in [(self.pending_absent, "absent"), (self.pending_held, "held")] {
            if count > 0 {
                text.push_str(&format!(", {count} wait for {what} nodes"));
            }
        }
        let unresolved = self
            .images
            .iter()
            .filter(|image| image.digest.is_none())
            .count();
        if unresolved > 0 && !self.is_finished() {
            let images = if unresolved == 1 {
                "image is"
            } else {
                "images are"
            };
            text.push_str(&format!(
                ", {unresolved} {images} resolved by each node for itself"
            ));
        }
        text
    }

    pub(super) fn record(&self, fleet: &Fleet) -> JobRecord {
        JobRecord {
            api_version: API_VERSION.to_owned(),
            kind: KIND.to_owned(),
            metadata: RecordMetadata {
                name: self.name.clone(),
                labels: self.labels.clone(),
                uid: self.uid.clone(),
                generation: self.generation,
                created_at: self.created_at,
                request_sequence: self.request_sequence,
                trace: self.trace,
            },
            spec: self.spec.clone(),
            status: JobStatus {
                phase: self.phase(),
                paused: self.paused,
                outcome: self.outcome(),
                round: self.round,
                counts: self.counts,
                nodes: self.nodes,
                message: self.describe(),
                images: self.images.clone(),
                failures: self.failure_groups(fleet),
                bytes_registry: self.bytes_registry,
                bytes_elsewhere: self.bytes_elsewhere,
                started_at: self.started_at,
                round_started_at: self.round_started_at,
                round_completed_at: self.round_completed_at,
                completed_at: self.completed_at,
                events_after: self.events_after,
            },
        }
    }

    /// The job a record tells of, without its pulls: those come from tasks and events.
    pub(super) fn from_record(record: JobRecord) -> Self {
        let JobRecord {
            metadata,
            spec,
            status,
            ..
        } = record;
        let stage = match status.outcome {
            Some(outcome) => Stage::Finished(outcome),
            None if status.round_started_at.is_some() => Stage::Running,
            None => Stage::Resolving,
        };
        let finished = matches!(stage, Stage::Finished(_));
        let counted = |finished_value| if finished { finished_value } else { 0 };
        Self {
            name: metadata.name,
            labels: metadata.labels,
            uid: metadata.uid,
            generation: metadata.generation,
            created_at: metadata.created_at,
            request_sequence: metadata.request_sequence,
            trace: metadata.trace,
            tokens: spec.images.iter().map(|image| image.token()).collect(),
            spec,
            stage,
            paused: status.paused,
            round: status.round,
            images: status.images,
            started_at: status.started_at,
            round_started_at: status.round_started_at,
            round_completed_at: status.round_completed_at,
            completed_at: status.completed_at,
            events_after: status.events_after,
            message: if finished {
                status.message
            } else {
                String::new()
            },
            pulls: BTreeMap::new(),
            outside: BTreeMap::new(),
            counts: if finished {
                status.counts
            } else {
                Default::default()
            },
            nodes: if finished {
                status.nodes
            } else {
                Default::default()
            },
            pending_absent: 0,
            pending_held: 0,
            failures: BTreeMap::new(),
            final_failures: if finished {
                status.failures
            } else {
                Vec::new()
            },
            bytes_registry: counted(status.bytes_registry),
            bytes_elsewhere: counted(status.bytes_elsewhere),
            has_messages: false,
        }
    }
}
