//! Telling facts: events as they are published, with the trace they belong to.

use async_nats::HeaderMap;
use async_nats::header::NATS_MESSAGE_ID;
use serde::Serialize;

use super::perform::{Done, Performer, encode};
use super::spans;
use crate::domain::time::Timestamp;
use crate::domain::trace::{TRACEPARENT, TraceContext};
use crate::wire::event::{CONTENT_TYPE, Event, JobEvent, NodeEvent, TaskEvent};
use crate::wire::record::RunTrace;
use crate::wire::subject::PullKey;

impl Performer {
    pub(super) async fn tell_job(
        &mut self,
        id: String,
        time: Timestamp,
        event: JobEvent,
        round: Option<RunTrace>,
    ) -> Done {
        spans::job(time, &event, round);
        let context = match (round, &event.run) {
            (Some(round), Some(run)) => Some(spans::handed_on(&round, run)),
            // What was refused never became a job; its request may have been part of a trace all the same.
            _ => self.asked_by(&event),
        };
        let token = event.event.token();
        let subject = self.bus.subjects.job_event(event.job.as_ref(), token);
        let about = event
            .job
            .as_ref()
            .map_or_else(String::new, ToString::to_string);
        let kind = format!("job.{token}");
        let event = Event::new(&kind, id, self.source.clone(), about, time, event);
        self.tell(subject, &event, context).await
    }

    pub(super) async fn tell_node(
        &mut self,
        id: String,
        time: Timestamp,
        event: NodeEvent,
    ) -> Done {
        let token = event.event.token();
        let subject = self.bus.subjects.node_event(&event.node, token);
        let (kind, about) = (format!("node.{token}"), event.node.to_string());
        let event = Event::new(&kind, id, self.source.clone(), about, time, event);
        self.tell(subject, &event, None).await
    }

    pub(super) async fn tell_pull(
        &mut self,
        time: Timestamp,
        event: TaskEvent,
        context: Option<TraceContext>,
    ) -> Done {
        let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
        let subject = self.bus.subjects.task_event(&key);
        let mut event = event.into_event(&self.bus.subjects.prefix().to_string(), time);
        event.source.clone_from(&self.source);
        self.tell(subject, &event, context).await
    }

    /// The span of whoever published the request that the event answers.
    fn asked_by(&self, event: &JobEvent) -> Option<TraceContext> {
        let taken = self.requests.get(&event.request_sequence?)?;
        taken.trace?.parent()
    }

    async fn tell<T: Serialize>(
        &mut self,
        subject: String,
        event: &Event<T>,
        context: Option<TraceContext>,
    ) -> Done {
        let mut headers = HeaderMap::new();
        headers.insert(NATS_MESSAGE_ID, event.id.as_str());
        headers.insert("Content-Type", CONTENT_TYPE);
        if let Some(context) = context {
            headers.insert(TRACEPARENT, context.to_string());
        }
        let body = encode(event)?;
        self.send(format!("event {}", event.kind), subject, headers, body)
            .await
    }
}
