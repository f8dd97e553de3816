//! What can be read of a cell by anyone: records, tasks, events, and every message there is.

use std::sync::{Arc, Mutex};

use async_nats::jetstream::consumer::DeliverPolicy;
use futures::StreamExt as _;
use prewarm::domain::name::JobName;
use prewarm::wire::event::{Event, JobEvent, JobEventKind, PullState, TaskEvent};
use prewarm::wire::record::{JobRecord, NodeRecord};
use prewarm::wire::task::PullTask;
use serde::de::DeserializeOwned;
use tokio::task::JoinHandle;

use crate::cell::{Cell, LIMIT};
use crate::support::nats::taken_in;
use crate::support::wait::eventually;

/// A message of a stream.
#[derive(Debug, Clone)]
pub(crate) struct Kept<T> {
    /// When the broker stored it, in nanoseconds by its own clock.
    pub(crate) at: i128,
    pub(crate) body: T,
}

impl Cell {
    /// The job's record; its counts add up whenever it is read.
    pub(crate) async fn record(&self, name: &str) -> Option<JobRecord> {
        let job: JobName = name.parse().unwrap();
        let record: JobRecord = self
            .value(&self.bus.subjects.jobs_bucket(), &job.token())
            .await?;
        assert!(record.status.counts.add_up(), "{:?}", record.status);
        Some(record)
    }

    pub(crate) async fn node_record(&self, name: &str) -> Option<NodeRecord> {
        let node: prewarm::domain::name::NodeName = name.parse().unwrap();
        self.value(&self.bus.subjects.nodes_bucket(), &node.token())
            .await
    }

    async fn value<T: DeserializeOwned>(&self, bucket: &str, key: &str) -> Option<T> {
        let stream = self
            .bus
            .jetstream
            .get_stream_no_info(format!("KV_{bucket}"));
        let subject = format!("$KV.{bucket}.{key}");
        let message = stream
            .await
            .unwrap()
            .get_last_raw_message_by_subject(&subject)
            .await;
        let message = message.ok().filter(|message| !message.payload.is_empty())?;
        Some(serde_json::from_slice(&message.payload).unwrap())
    }

    /// Waits until the job's record is as it should be.
    pub(crate) async fn job(
        &self,
        name: &str,
        what: &str,
        is: impl Fn(&JobRecord) -> bool,
    ) -> JobRecord {
        eventually(&format!("job {name} to be {what}"), LIMIT, async || {
            let record = self.record(name).await.ok_or("there is no such job")?;
            if is(&record) {
                Ok(record)
            } else {
                Err(format!("{:?}", record.status))
            }
        })
        .await
    }

    /// Waits until the job has ended.
    pub(crate) async fn ended(&self, name: &str) -> JobRecord {
        self.job(name, "at its end", |job| job.status.outcome.is_some())
            .await
    }

    /// Waits until so many pulls of the job have succeeded.
    pub(crate) async fn succeeded(&self, name: &str, pulls: u32) -> JobRecord {
        let what = format!("where {pulls} pulls have succeeded");
        self.job(name, &what, |job| job.status.counts.succeeded == pulls)
            .await
    }

    /// Waits until nothing is left of a job but its events.
    pub(crate) async fn gone(&self, name: &str) {
        eventually(
            &format!("job {name} to be gone"),
            LIMIT,
            async || match self.record(name).await {
                None => Ok(()),
                Some(record) => Err(format!("{:?}", record.status)),
            },
        )
        .await;
        self.no_tasks(name).await;
    }

    /// Waits until no task of the job is kept: what Kruise's tests call "tag gone".
    pub(crate) async fn no_tasks(&self, name: &str) {
        eventually(
            &format!("the tasks of job {name} to go"),
            LIMIT,
            async || self.tasks(name).await.is_empty(),
        )
        .await;
    }

    async fn kept<T: DeserializeOwned>(&self, stream: &str, filter: String) -> Vec<Kept<T>> {
        let mut all = vec![];
        let read = self
            .bus
            .read_all(stream, filter, DeliverPolicy::All, |message| {
                let at = message.info().unwrap().published.unix_timestamp_nanos();
                let body = serde_json::from_slice(&message.payload).unwrap();
                all.push(Kept { at, body });
            });
        read.await.unwrap();
        all
    }

    /// The tasks of a job that the broker keeps now, in the order of their release.
    pub(crate) async fn tasks(&self, job: &str) -> Vec<Kept<PullTask>> {
        let filter = self.bus.subjects.tasks_of_job(&job.parse().unwrap());
        self.kept(&self.bus.subjects.tasks_stream(), filter).await
    }

    /// Waits until so many tasks of a job are kept.
    pub(crate) async fn released(&self, job: &str, tasks: usize) -> Vec<PullTask> {
        let what = format!("{tasks} tasks of job {job}");
        eventually(&what, LIMIT, async || {
            let kept = self.tasks(job).await;
            let kept: Vec<PullTask> = kept.into_iter().map(|kept| kept.body).collect();
            if kept.len() == tasks {
                Ok(kept)
            } else {
                Err(kept)
            }
        })
        .await
    }

    /// Everything told of the pulls of one job, or of all, in the order in which the broker stored it.
    pub(crate) async fn told(&self, job: Option<&str>) -> Vec<Kept<TaskEvent>> {
        let job = job.map(|job| job.parse().unwrap());
        let filter = self.bus.subjects.task_events(job.as_ref());
        let stream = self.bus.subjects.events_stream();
        let events: Vec<Kept<Event<TaskEvent>>> = self.kept(&stream, filter).await;
        let data = |kept: Kept<Event<TaskEvent>>| Kept {
            at: kept.at,
            body: kept.body.data,
        };
        events.into_iter().map(data).collect()
    }

    /// The names of the nodes that told this of a pull of the job, sorted.
    pub(crate) async fn nodes_that_told(&self, job: &str, state: PullState) -> Vec<String> {
        let told = self.told(Some(job)).await.into_iter();
        let of_state = told.filter(|kept| kept.body.state == state);
        let mut nodes: Vec<String> = of_state.map(|kept| kept.body.node.to_string()).collect();
        nodes.sort();
        nodes
    }

    /// Waits until something is told of a pull of the job.
    pub(crate) async fn hears(&self, job: &str, state: PullState) -> TaskEvent {
        eventually(
            &format!("a pull of {job} to be {state:?}"),
            LIMIT,
            async || {
                let told = self.told(Some(job)).await;
                told.into_iter().find(|kept| kept.body.state == state)
            },
        )
        .await
        .body
    }

    /// What was told of a job itself, or of all, of one kind.
    pub(crate) async fn job_events(&self, job: Option<&str>, kind: JobEventKind) -> Vec<JobEvent> {
        let job = job.map(|job| job.parse().unwrap());
        let filter = self.bus.subjects.job_events(job.as_ref());
        let stream = self.bus.subjects.events_stream();
        let events: Vec<Kept<Event<JobEvent>>> = self.kept(&stream, filter).await;
        let events = events.into_iter().map(|kept| kept.body.data);
        events.filter(|event| event.event == kind).collect()
    }

    /// Waits until this was told of a job so many times.
    pub(crate) async fn job_event(
        &self,
        job: Option<&str>,
        kind: JobEventKind,
        times: usize,
    ) -> JobEvent {
        eventually(
            &format!("{kind:?} of {job:?}, {times} times"),
            LIMIT,
            async || {
                let events = self.job_events(job, kind).await;
                events.get(times - 1).cloned().ok_or(events.len())
            },
        )
        .await
    }

    /// Everything that is published from now on.
    pub(crate) async fn listen(&self) -> Ear {
        let client = self.server.client().await;
        let mut messages = client.subscribe(">").await.unwrap();
        taken_in(&client).await;
        let heard: Arc<Mutex<Vec<Heard>>> = Arc::default();
        let written = heard.clone();
        let listening = tokio::spawn(async move {
            while let Some(message) = messages.next().await {
                // What the broker delivers from a stream was heard when it was published.
                let is_delivery = message
                    .reply
                    .is_some_and(|reply| reply.starts_with("$JS.ACK."));
                if is_delivery {
                    continue;
                }
                written.lock().unwrap().push(Heard {
                    subject: message.subject.to_string(),
                    headers: format!("{:?}", message.headers),
                    body: String::from_utf8_lossy(&message.payload).into_owned(),
                });
            }
        });
        Ear { heard, listening }
    }
}

/// One message.
#[derive(Debug, Clone)]
pub(crate) struct Heard {
    pub(crate) subject: String,
    pub(crate) headers: String,
    pub(crate) body: String,
}

/// Writes down every message of a broker, those of its own protocols too.
pub(crate) struct Ear {
    heard: Arc<Mutex<Vec<Heard>>>,
    listening: JoinHandle<()>,
}

impl Drop for Ear {
    fn drop(&mut self) {
        self.listening.abort();
    }
}

impl Ear {
    pub(crate) fn heard(&self) -> Vec<Heard> {
        self.heard.lock().unwrap().clone()
    }

    /// Waits until so many tasks of a job were heard: what others read meanwhile came to them by another connection.
    pub(crate) async fn hears_tasks(&self, job: &str, tasks: usize) -> Vec<PullTask> {
        let what = format!("{tasks} tasks of job {job} to be heard");
        eventually(&what, LIMIT, async || {
            let heard = self.tasks(job);
            if heard.len() >= tasks {
                Ok(heard)
            } else {
                Err(heard)
            }
        })
        .await
    }

    /// The tasks of a job among them.
    pub(crate) fn tasks(&self, job: &str) -> Vec<PullTask> {
        let heard = self.heard().into_iter();
        let tasks = heard.filter(|heard| heard.subject.starts_with("prewarm.task."));
        let tasks = tasks.filter_map(|heard| serde_json::from_str::<PullTask>(&heard.body).ok());
        tasks.filter(|task| task.job.as_str() == job).collect()
    }
}
