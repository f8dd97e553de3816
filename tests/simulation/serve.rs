//! The broker at work: what it is asked, what it delivers, and what that shows.

use std::sync::Arc;

use prewarm::dispatch::Input;
use prewarm::wire::event::JobEventKind;
use prewarm::wire::record::{JobRecord, NodePresence};
use prewarm::wire::subject::{PullKey, Subjects};
use prewarm::wire::task::PullTask;
use prewarm::wire::worker::ACK_WAIT_SECONDS;

use prewarm::wire::worker::PullId;

use crate::broker::{Broker, ConsumerConfig, Delivery, Sent, Start};
use crate::invariants::{self, Verdict, end_key};
use crate::net::{
    Answer, Ask, Core, Event, Life, PullEnd, Question, Read, TaskAnswer, Ticket, Who,
};
use crate::payload::{EVENTS, JOB_RECORDS, JOBS, LEASE, LEASES, NODE_RECORDS, Payload, TASKS};
use crate::world::World;

impl World {
    pub fn asked(&mut self, question: Question) -> Verdict {
        if !self.net.broker_up {
            self.net
                .no_answer(question.from, question.ticket, question.until);
            return Ok(());
        }
        let late =
            question.leadership != 0 && self.leading != Some((question.from, question.leadership));
        match &question.ask {
            Ask::Publish { .. } => self.publish(&question, late),
            Ask::Purge {
                stream,
                filter,
                before,
            } => {
                if late {
                    self.net
                        .counters
                        .bump("an effect of a deposed leader was performed");
                }
                self.purge(stream, filter, *before, late);
                self.net.answer(&question, Answer::Done);
                Ok(())
            }
            Ask::Last { subject } => {
                let last = self.broker.last_by_subject(TASKS, subject);
                let answer = Answer::Last(last.map(|(sequence, _)| sequence));
                self.net.answer(&question, answer);
                Ok(())
            }
            Ask::Remove { sequence } => {
                let removed = self.remove_task(*sequence, late);
                self.net.answer(&question, Answer::Removed(removed));
                Ok(())
            }
            Ask::DeleteConsumer { consumer } => {
                let sent = self.broker.delete_consumer(TASKS, consumer);
                self.send(sent);
                self.net.answer(&question, Answer::Done);
                Ok(())
            }
            Ask::MakeConsumer { .. } => {
                self.make_consumer(&question);
                Ok(())
            }
            Ask::Read(read) => {
                let answer = read_back(&self.broker, *read);
                self.net.answer(&question, answer);
                Ok(())
            }
            Ask::Pull { .. } => {
                self.pull_asked(&question);
                Ok(())
            }
            Ask::DropPull {
                stream,
                consumer,
                pull,
            } => {
                self.pulls.remove(pull);
                self.broker.drop_pull(stream, consumer, *pull);
                Ok(())
            }
            Ask::Answer { .. } => self.answered(&question),
        }
    }

    fn pull_asked(&mut self, question: &Question) {
        let Ask::Pull {
            stream,
            consumer,
            batch,
            expires,
        } = &question.ask
        else {
            return;
        };
        let (now, ticket, to) = (self.net.now, question.ticket, question.from);
        let asked = self
            .broker
            .pull(now, stream, consumer, ticket, *batch, *expires);
        if asked.is_err() {
            self.pull_over(to, ticket, 0, PullEnd::NoConsumer);
            return;
        }
        self.pulls.insert(ticket, to);
        self.serve(stream, consumer);
    }

    fn publish(&mut self, question: &Question, late: bool) -> Verdict {
        let Ask::Publish {
            stream,
            subject,
            payload,
            demands,
        } = &question.ask
        else {
            return Ok(());
        };
        let before = match *stream {
            JOB_RECORDS | NODE_RECORDS => self.broker.last_by_subject(stream, subject),
            _ => None,
        };
        let before = before.map(|(_, message)| message.payload.clone());
        let now = self.net.now;
        let result = self
            .broker
            .publish(now, stream, subject, payload.clone(), demands);
        self.net.answer(question, Answer::Published(result));
        let Ok(stored) = result else {
            return Ok(());
        };
        if late {
            self.net
                .counters
                .bump("an effect of a deposed leader was performed");
        }
        if stored.duplicate {
            if matches!(payload, Payload::JobEvent { .. }) {
                self.net.counters.bump("a job event was told again");
            }
            return Ok(());
        }
        self.replaced(before.as_ref(), payload)?;
        self.stored(stored.sequence, payload, (late, question.from.who))?;
        match *stream {
            EVENTS => self.tell_followers(),
            TASKS => {
                let node = subject.split('.').nth(2).unwrap_or_default().to_owned();
                self.serve(TASKS, &node);
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks at what a record says that the one before did not.
    fn replaced(&mut self, before: Option<&Payload>, after: &Payload) -> Verdict {
        let counters = &mut self.net.counters;
        match (before, after) {
            (Some(Payload::JobRecord(before)), Payload::Marker) => self.checks.deleted(before)?,
            (Some(Payload::JobRecord(before)), Payload::JobRecord(after))
                if before.status.outcome.is_none() && before.metadata.uid == after.metadata.uid =>
            {
                if after.metadata.generation > before.metadata.generation {
                    counters.bump("a generation replaced one that ran");
                } else if after.spec != before.spec {
                    counters.bump("a job was edited");
                }
            }
            (None, Payload::NodeRecord(_)) => {
                let runs = |record: &Arc<JobRecord>| record.status.outcome.is_none();
                if invariants::records(&self.broker).iter().any(runs) {
                    counters.bump("a node joined while a job ran");
                }
            }
            (Some(Payload::NodeRecord(before)), Payload::NodeRecord(after)) => {
                let works = self.checks.works(&self.broker, &after.name);
                match (before.presence, after.presence) {
                    (NodePresence::Present, NodePresence::Absent) if works => {
                        counters.bump("a node left with active pulls");
                    }
                    (NodePresence::Absent, NodePresence::Present) => {
                        counters.bump("a node returned");
                    }
                    (NodePresence::Present, NodePresence::Present)
                        if works && after.facts.waiting.is_some() =>
                    {
                        counters.bump("a node with active pulls was held");
                    }
                    (NodePresence::Present, NodePresence::Present)
                        if works && before.facts.labels != after.facts.labels =>
                    {
                        counters.bump("a node with active pulls was relabelled");
                    }
                    _ => {}
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Looks at what was stored.
    fn stored(&mut self, sequence: u64, payload: &Payload, (late, by): (bool, Who)) -> Verdict {
        if let Payload::Task(task) = payload {
            self.checks.task(self.net.now, task);
        }
        match payload {
            Payload::Task(_) if late => {
                self.checks.late_tasks.insert(sequence);
                Ok(())
            }
            Payload::Task(task) => self.released(task),
            Payload::TaskEvent(event) => {
                let now = self.net.now;
                self.checks
                    .task_event(now, event, by, &mut self.net.counters)?;
                let trouble = self.trouble_of(&event.node);
                self.checks
                    .attempts(event, trouble, &mut self.net.counters)?;
                self.check_image_is_there(event)
            }
            Payload::JobEvent { id, event } => {
                let record = event
                    .job
                    .as_ref()
                    .and_then(|job| invariants::record(&self.broker, job));
                let by_nobody = record.is_some_and(|record| {
                    Some(record.metadata.request_sequence) == event.request_sequence
                });
                if event.event == JobEventKind::Deleted && by_nobody {
                    let what = "a job was deleted after its time to live";
                    self.net.counters.bump(what);
                }
                self.checks.job_event(id, event);
                Ok(())
            }
            Payload::JobRecord(record) => {
                self.checks.disturbed |= late;
                if self.healed_at.is_some()
                    && record.status.phase == prewarm::domain::status::JobPhase::Idle
                {
                    self.seen_idle.insert(record.metadata.name.clone());
                }
                self.checks.record(&self.broker, record, (late, by))
            }
            Payload::NodeRecord(_) | Payload::Marker => {
                self.checks.disturbed |= late;
                Ok(())
            }
            Payload::Request(_) | Payload::NodeEvent(_) | Payload::Lease(_) => Ok(()),
        }
    }

    fn released(&mut self, task: &PullTask) -> Verdict {
        if let Some(digest) = &task.digest
            && !self.net.registry.has_had(&task.image, digest)
        {
            return Err(format!("{} was never {digest}", task.image));
        }
        // What was decided before a node came back smaller, or held, is released after it.
        let believed = match self.leader() {
            Some(leader) if leader.believed.is_empty() => vec![leader.nodes()],
            Some(leader) => leader.believed.clone(),
            None => vec![invariants::node_facts(&self.broker)],
        };
        let mut verdict = Ok(());
        for nodes in believed {
            verdict = self.checks.released(
                &self.broker,
                self.settings,
                &nodes,
                task,
                &mut self.net.counters,
            );
            if verdict.is_ok() {
                break;
            }
        }
        verdict
    }

    /// Tells everybody who follows the events that there are some.
    pub fn tell_followers(&mut self) {
        for process in &mut self.dispatchers {
            if let Some(leader) = process.leader.as_mut().filter(|_| process.is_up) {
                leader.follow(&mut self.net);
            }
        }
    }

    pub fn purge(&mut self, stream: &'static str, filter: &str, before: Option<u64>, late: bool) {
        let now = self.net.now;
        let purged = self.broker.purge(stream, filter, before);
        // As after a purge by a user: until it looks through the stream, a dispatcher knows of more than there is.
        self.checks.disturbed |= late && purged > 0;
        self.net.trace.line(now, || {
            format!("broker purged {purged} of {filter}, late {late}")
        });
    }

    fn remove_task(&mut self, sequence: u64, late: bool) -> bool {
        let now = self.net.now;
        if late {
            let what = "an effect of a deposed leader was performed";
            self.net.counters.bump(what);
        }
        let removed = self.broker.remove(TASKS, sequence);
        self.checks.disturbed |= late && removed;
        if !removed {
            self.net.counters.bump("a task to withdraw had gone");
        }
        self.net.trace.line(now, || {
            format!("broker removed task {sequence}: {removed}, late {late}")
        });
        removed
    }

    fn make_consumer(&mut self, question: &Question) {
        let Ask::MakeConsumer {
            node,
            remake,
            start,
            reply,
        } = &question.ask
        else {
            return;
        };
        let name = node.token();
        if *remake {
            self.checks.remade.insert(node.clone(), self.net.now);
            let sent = self.broker.delete_consumer(TASKS, &name);
            self.send(sent);
        }
        if !self.broker.has_consumer(TASKS, &name) && *start <= self.broker.last_sequence(TASKS) {
            self.net
                .counters
                .bump("a consumer began behind the newest task");
        }
        let config = ConsumerConfig {
            filters: vec![Subjects::default().tasks_of_node(node)],
            ack_wait: ACK_WAIT_SECONDS * 1_000,
            start: Start::At(*start),
            max_ack_pending: None,
            memory: true,
        };
        self.broker.create_consumer(TASKS, &name, config);
        let (to, ticket) = *reply;
        self.net.core(question.from, to, Core::Welcome(ticket));
    }

    fn answered(&mut self, question: &Question) -> Verdict {
        let Ask::Answer {
            stream,
            consumer,
            sequence,
            answer,
        } = &question.ask
        else {
            return Ok(());
        };
        let now = self.net.now;
        match answer {
            TaskAnswer::Ack => {
                if *stream == JOBS {
                    self.checks.acknowledged(&self.broker, *sequence)?;
                } else {
                    self.check_ended(*sequence)?;
                }
                self.broker.ack(stream, consumer, *sequence);
            }
            TaskAnswer::Nak(delay) => self.broker.nak(now, stream, consumer, *sequence, *delay),
            TaskAnswer::InProgress => self.broker.in_progress(now, stream, consumer, *sequence),
        }
        self.serve(stream, consumer);
        Ok(())
    }

    /// A worker is done with a task: its result is stored, or nobody wants it any more.
    fn check_ended(&self, sequence: u64) -> Verdict {
        let message = self.broker.messages(TASKS, sequence).next();
        let Some((found, message)) = message else {
            return Ok(());
        };
        let Payload::Task(task) = &message.payload else {
            return Ok(());
        };
        let record = invariants::record(&self.broker, &task.job);
        let is_current = record.is_some_and(|record| record.run() == task.run);
        let ended = self.checks.ends.contains_key(&end_key(task));
        if found == sequence && is_current && !ended {
            let (job, node) = (&task.job, &task.node);
            return Err(format!(
                "{node} acked a task of {job} without a terminal event"
            ));
        }
        Ok(())
    }

    /// Sends what a consumer has to send, and looks again when it may have more.
    pub fn serve(&mut self, stream: &'static str, consumer: &str) {
        let sent = self.broker.send(self.net.now, stream, consumer);
        self.send(sent);
        if let Some(at) = self.broker.next_deadline(stream, consumer) {
            let consumer: Arc<str> = consumer.into();
            let armed = self.due.get(&(stream, consumer.clone()));
            if armed.is_none_or(|armed| at < *armed) {
                self.due.insert((stream, consumer.clone()), at);
                let at = at.max(self.net.now + 1);
                self.net.at(at, Event::ConsumerDue { stream, consumer });
            }
        }
    }

    fn send(&mut self, sent: Vec<Sent<Payload>>) {
        for sent in sent {
            match sent {
                Sent::Delivery { request, delivery } => {
                    let Some(to) = self.pulls.get(&request).copied() else {
                        continue;
                    };
                    self.count_delivery(&delivery.payload, delivery.deliveries);
                    self.check_delivery(to, &delivery);
                    if self.net.is_down(to.who) {
                        continue;
                    }
                    let at = self.net.now + self.net.latency();
                    let event = Event::Delivered {
                        to,
                        pull: request,
                        delivery,
                    };
                    self.net.at(at, event);
                }
                Sent::End {
                    request,
                    undelivered,
                    end,
                } => {
                    if let Some(to) = self.pulls.remove(&request) {
                        self.pull_over(to, request, undelivered, PullEnd::Said(end));
                    }
                }
            }
        }
    }

    fn count_delivery(&mut self, payload: &Payload, deliveries: u32) {
        let Payload::Task(task) = payload else {
            return;
        };
        if deliveries > 1 {
            self.net.counters.bump("a task was delivered again");
            if self.checks.ends.contains_key(&end_key(task)) {
                let what = "a task was delivered again after its terminal event";
                self.net.counters.bump(what);
            }
        }
    }

    /// When all is well, nothing is delivered again to the worker that has it; but a consumer that was made anew begins
    /// with what is unfinished, and a request lost long before shows when the others are fulfilled.
    fn check_delivery(&mut self, to: Life, delivery: &Delivery<Payload>) {
        let (Who::Worker(index), Payload::Task(task)) = (to.who, &delivery.payload) else {
            return;
        };
        let state = self.workers[index].state.as_ref();
        let holds = state.is_some_and(|state| {
            let is_it = |held: &PullId| {
                held.job == task.job && held.run == task.run && held.image == task.image.token()
            };
            state.holding().iter().any(is_it)
        });
        let remade = self.checks.remade.get(&task.node);
        let is_new = remade.is_some_and(|at| self.net.now < at + 60_000);
        if self.is_well_since(60_000) && holds && !is_new {
            let (job, node) = (&task.job, &task.node);
            self.wrong = Some(format!(
                "a task of {job} came again to {node}, which has it"
            ));
        }
    }

    fn pull_over(&mut self, to: Life, pull: Ticket, undelivered: u32, end: PullEnd) {
        if self.net.is_down(to.who) {
            return;
        }
        let at = self.net.now + self.net.latency();
        let event = Event::PullOver {
            to,
            pull,
            undelivered,
            end,
        };
        self.net.at(at, event);
    }
}

/// What a dispatcher reads back, as `prewarm::dispatch::load` does.
#[expect(clippy::too_many_lines, reason = "one arm for each thing that is read")]
pub fn read_back(broker: &Broker<Payload>, read: Read) -> Answer {
    let (mut inputs, mut revisions, mut markers) = (Vec::new(), Vec::new(), Vec::new());
    let mut cursor = broker.last_sequence(EVENTS);
    match read {
        Read::Lease => {
            let entry = broker.last_by_subject(LEASES, LEASE);
            return Answer::Lease(
                entry.and_then(|(revision, message)| match &message.payload {
                    Payload::Lease(holder) => Some((revision, holder.clone())),
                    _ => None,
                }),
            );
        }
        Read::EventsEnd => inputs.push(Input::EventsEnd { sequence: cursor }),
        Read::Nodes => {
            for (_, message) in broker.last_per_subject(NODE_RECORDS) {
                if let Payload::NodeRecord(record) = &message.payload {
                    inputs.push(Input::NodeRecord(Box::new(record.as_ref().clone())));
                }
            }
        }
        Read::Jobs => {
            for (revision, message) in broker.last_per_subject(JOB_RECORDS) {
                if message.payload == Payload::Marker {
                    markers.push(message.subject.to_string());
                }
                if let Payload::JobRecord(record) = &message.payload {
                    revisions.push((record.metadata.name.clone(), revision));
                    inputs.push(Input::JobRecord(Box::new(record.as_ref().clone())));
                }
            }
        }
        Read::Tasks => {
            for (sequence, message) in broker.messages(TASKS, 0) {
                if let Payload::Task(task) = &message.payload {
                    inputs.push(Input::Released {
                        key: PullKey::new(task.node.clone(), task.job.clone(), &task.image),
                        run: task.run.clone(),
                        sequence,
                    });
                }
            }
        }
        Read::Kept(as_of) => {
            let key = |(_, message): (u64, &crate::broker::Message<Payload>)| {
                Subjects::default().parse_task(&message.subject)
            };
            let keys = broker.messages(TASKS, 0).filter_map(key).collect();
            inputs.push(Input::Kept { keys, as_of });
        }
        Read::Told => {
            for (_, message) in broker.last_per_subject(EVENTS) {
                if let Payload::JobEvent { id, event } = &message.payload
                    && let Some(job) = &event.job
                {
                    inputs.push(Input::JobEventTold {
                        job: job.clone(),
                        kind: event.event,
                        id: id.clone(),
                    });
                }
            }
        }
        Read::EventsAfter(after) => {
            for (sequence, message) in broker.messages(EVENTS, after + 1) {
                if let Payload::TaskEvent(event) = &message.payload {
                    let event = Box::new(event.as_ref().clone());
                    inputs.push(Input::TaskEvent { event, sequence });
                }
            }
            cursor = cursor.max(after);
        }
    }
    Answer::Read {
        inputs,
        revisions,
        markers,
        cursor,
    }
}
