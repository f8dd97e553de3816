//! Doing what the state asks for, in order, as `prewarm::dispatch::perform` does.

use std::collections::{BTreeMap, VecDeque};
use std::sync::Arc;

use prewarm::dispatch::{Effect, Input, ReplyToken};
use prewarm::domain::name::JobName;
use prewarm::wire::subject::{PullKey, Subjects};
use prewarm::wire::task::Run;

use crate::broker::{Demands, Millis, Stored};
use crate::dispatcher::Context;
use crate::leader::{Over, REQUEST_TIMEOUT, refused};
use crate::net::{Answer, Ask, Core, Event, Life, Net, TaskAnswer, Ticket};
use crate::payload::{
    EVENTS, JOB_RECORDS, JOBS, NODE_RECORDS, Payload, REQUESTS, TASKS, job_key, node_key,
};
use crate::plan::Moment;

/// Messages sent and not yet confirmed by the broker.
const MAX_UNCONFIRMED: usize = 64;
/// How long a registry that does not answer is asked.
const REGISTRY_TIMEOUT: Millis = 5_000;

/// A question to the broker that is open.
enum Open {
    Release {
        key: PullKey,
        run: Run,
    },
    Record(JobName),
    /// The marker of a deleted record; then its key is purged.
    Deletion(JobName),
    /// Which message a task to withdraw is; then it goes by its sequence.
    Look {
        subject: String,
    },
    Removal {
        subject: String,
        sequence: u64,
    },
    /// Whether somebody else has removed what could not be removed.
    LookAgain {
        sequence: u64,
    },
    Other,
}

/// What an answer came to.
pub enum Asked {
    Known(Result<(), Over>),
    /// It is not to a question of this performer.
    Stranger,
}

pub struct Performer {
    life: Life,
    leadership: u64,
    subjects: Subjects,
    effects: VecDeque<Effect>,
    open: BTreeMap<Ticket, Open>,
    /// Nothing more is begun before everything that is open is answered.
    settling: bool,
    known: Vec<Input>,
    revisions: BTreeMap<JobName, u64>,
    /// The newest message known to be in the task stream.
    newest_task: u64,
    /// Keys of records that were deleted, and not purged.
    markers: Vec<String>,
    pub replies: BTreeMap<ReplyToken, (Life, Ticket)>,
}

impl Performer {
    pub fn new(life: Life, leadership: u64) -> Self {
        Self {
            life,
            leadership,
            subjects: Subjects::default(),
            effects: VecDeque::new(),
            open: BTreeMap::new(),
            settling: false,
            known: Vec::new(),
            revisions: BTreeMap::new(),
            newest_task: 0,
            markers: Vec::new(),
            replies: BTreeMap::new(),
        }
    }

    pub fn know(&mut self, revisions: Vec<(JobName, u64)>, markers: Vec<String>) {
        self.revisions.extend(revisions);
        self.markers.extend(markers);
    }

    pub fn know_task(&mut self, sequence: u64) {
        self.newest_task = self.newest_task.max(sequence);
    }

    /// Removes what is left of deleted records.
    pub fn purge_markers(&mut self, net: &mut Net) {
        for key in std::mem::take(&mut self.markers) {
            self.purge(net, JOB_RECORDS, key);
            self.settling = true;
        }
    }

    pub fn begin(&mut self, effects: Vec<Effect>) {
        self.effects.extend(effects);
    }

    pub fn is_idle(&self) -> bool {
        self.effects.is_empty() && self.open.is_empty() && self.known.is_empty()
    }

    pub fn backlog(&self) -> usize {
        self.effects.len()
    }

    pub fn has_releases_to_do(&self) -> bool {
        let is_release = |effect: &Effect| matches!(effect, Effect::Release(_));
        self.effects.iter().any(is_release)
    }

    /// Does what can be done now. Says what became known when all is done; `None` while something
    /// is open.
    pub fn go_on(
        &mut self,
        net: &mut Net,
        context: &mut Context,
    ) -> Result<Option<Vec<Input>>, Over> {
        loop {
            if self.settling && !self.open.is_empty() {
                return Ok(None);
            }
            self.settling = false;
            let Some(next) = self.effects.front() else {
                break;
            };
            let full = self.open.len() >= MAX_UNCONFIRMED || is_barrier(next);
            if full && !self.open.is_empty() {
                self.settling = true;
                return Ok(None);
            }
            if context.crashes() {
                net.counters
                    .bump("a dispatcher crashed between two effects");
                return Err(Over::Crash);
            }
            if !context.may_act(net.now) {
                let reason = "the lease was not renewed in time";
                return Err(Over::Failed(reason.to_owned()));
            }
            if let Some(effect) = self.effects.pop_front() {
                let life = self.life;
                net.trace.line(net.now, || {
                    format!("{:?} does {}", life.who, crate::describe::effect(&effect))
                });
                self.settling = is_barrier(&effect);
                let dies = context.crash_at.is_some() && context.crash_at == moment(&effect);
                self.perform(net, effect);
                if dies {
                    net.counters
                        .bump("a dispatcher crashed with an effect on its way");
                    return Err(Over::Crash);
                }
            }
        }
        if self.open.is_empty() {
            Ok(Some(std::mem::take(&mut self.known)))
        } else {
            Ok(None)
        }
    }

    fn ask(&mut self, net: &mut Net, ask: Ask, open: Open) {
        let ticket = net.ask(self.life, self.leadership, ask, REQUEST_TIMEOUT);
        self.open.insert(ticket, open);
    }

    fn publish(
        &mut self,
        net: &mut Net,
        to: (&'static str, String),
        payload: Payload,
        demands: Demands,
        open: Open,
    ) {
        let (stream, subject) = to;
        let ask = Ask::Publish {
            stream,
            subject,
            payload,
            demands,
        };
        self.ask(net, ask, open);
    }

    fn tell(&mut self, net: &mut Net, subject: String, id: String, payload: Payload) {
        let demands = Demands {
            message_id: Some(id),
            last_subject_sequence: None,
        };
        self.publish(net, (EVENTS, subject), payload, demands, Open::Other);
    }

    fn purge(&mut self, net: &mut Net, stream: &'static str, filter: String) {
        let ask = Ask::Purge {
            stream,
            filter,
            before: None,
        };
        self.ask(net, ask, Open::Other);
    }

    /// Withdraws only what this leader knows of: a purge that is held up on its way must not take
    /// what the next one has released.
    fn withdraw(&mut self, net: &mut Net, filter: String) {
        let ask = Ask::Purge {
            stream: TASKS,
            filter,
            before: Some(self.newest_task + 1),
        };
        self.ask(net, ask, Open::Other);
    }

    fn put_record(&mut self, net: &mut Net, name: JobName, payload: Payload) {
        let is_deletion = payload == Payload::Marker;
        let demands = Demands {
            message_id: None,
            last_subject_sequence: Some(self.revisions.get(&name).copied().unwrap_or(0)),
        };
        let to = (JOB_RECORDS, job_key(&name.token()));
        let open = if is_deletion {
            Open::Deletion(name)
        } else {
            Open::Record(name)
        };
        self.publish(net, to, payload, demands, open);
    }

    fn perform(&mut self, net: &mut Net, effect: Effect) {
        match effect {
            Effect::PutRecord(record) => {
                let name = record.metadata.name.clone();
                self.put_record(net, name, Payload::JobRecord(Arc::from(record)));
            }
            Effect::DeleteRecord(name) => self.put_record(net, name, Payload::Marker),
            Effect::PutNode(record) => {
                let to = (NODE_RECORDS, node_key(&record.name.token()));
                let payload = Payload::NodeRecord(Arc::from(record));
                self.publish(net, to, payload, Demands::default(), Open::Other);
            }
            Effect::DeleteNode(name) => {
                let consumer = name.token();
                self.purge(net, NODE_RECORDS, node_key(&consumer));
                self.ask(net, Ask::DeleteConsumer { consumer }, Open::Other);
            }
            Effect::TellJob { id, event, .. } => {
                let subject = self
                    .subjects
                    .job_event(event.job.as_ref(), event.event.token());
                let event = Arc::from(event);
                self.tell(net, subject, id.clone(), Payload::JobEvent { id, event });
            }
            Effect::TellNode { id, event, .. } => {
                let subject = self.subjects.node_event(&event.node, event.event.token());
                self.tell(net, subject, id, Payload::NodeEvent(Arc::from(event)));
            }
            Effect::TellPull { event, .. } => {
                let key = PullKey::new(event.node.clone(), event.job.clone(), &event.image);
                let (subject, id) = (self.subjects.task_event(&key), event.id());
                self.tell(net, subject, id, Payload::TaskEvent(Arc::from(event)));
            }
            Effect::Release(task) => self.release(net, *task),
            Effect::WithdrawJob(name) => self.withdraw(net, self.subjects.tasks_of_job(&name)),
            Effect::WithdrawPull(key) => self.look(net, &key),
            Effect::Revoke { node, revocation } => {
                net.send_to_node(self.life, &node, Core::Revocation(revocation))
            }
            Effect::Resolve {
                job, run, images, ..
            } => self.resolve(net, job, run, images),
            Effect::Welcome {
                node,
                remake,
                start,
                reply,
            } => {
                if let Some(reply) = self.replies.remove(&reply) {
                    let ask = Ask::MakeConsumer {
                        node,
                        remake,
                        start,
                        reply,
                    };
                    net.tell(self.life, self.leadership, ask);
                }
            }
            Effect::Acknowledge { sequence } => {
                let ask = Ask::Answer {
                    stream: JOBS,
                    consumer: REQUESTS.to_owned(),
                    sequence,
                    answer: TaskAnswer::Ack,
                };
                net.tell(self.life, self.leadership, ask);
            }
        }
    }

    fn look(&mut self, net: &mut Net, key: &PullKey) {
        let subject = self.subjects.task(key);
        let ask = Ask::Last {
            subject: subject.clone(),
        };
        self.ask(net, ask, Open::Look { subject });
    }

    fn release(&mut self, net: &mut Net, task: prewarm::wire::task::PullTask) {
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let to = (TASKS, self.subjects.task(&key));
        let run = task.run.clone();
        let demands = Demands {
            message_id: None,
            last_subject_sequence: Some(0),
        };
        let open = Open::Release { key, run };
        self.publish(net, to, Payload::Task(Arc::new(task)), demands, open);
    }

    fn resolve(
        &self,
        net: &mut Net,
        job: JobName,
        run: Run,
        images: Vec<prewarm::domain::image::ImageRef>,
    ) {
        let takes = if net.registry.is_up(net.now) {
            net.rng.range(20, 800)
        } else {
            REGISTRY_TIMEOUT
        };
        let resolved = Event::Resolved {
            to: self.life,
            leadership: self.leadership,
            job,
            run,
            images,
        };
        net.at(net.now + takes, resolved);
    }

    pub fn answered(&mut self, net: &mut Net, ticket: Ticket, answer: Answer) -> Asked {
        let Some(open) = self.open.remove(&ticket) else {
            return Asked::Stranger;
        };
        if let Answer::Last(_) | Answer::Removed(_) = answer {
            return Asked::Known(self.withdrawn(net, open, &answer));
        }
        let stored = match answer {
            Answer::Published(Ok(stored)) => Some(stored),
            Answer::Published(Err(refusal)) => {
                return Asked::Known(Err(refused(net, open.refusal(), refusal)));
            }
            Answer::Done => None,
            Answer::Unclear
            | Answer::Read { .. }
            | Answer::Lease(_)
            | Answer::Last(_)
            | Answer::Removed(_) => {
                return Asked::Known(Err(Over::Failed("no answer".to_owned())));
            }
        };
        self.done(net, open, stored);
        Asked::Known(Ok(()))
    }

    /// Goes on with withdrawing one task, as the shell does: what the next leader has released is not for this one to
    /// take, and what is gone already is withdrawn.
    fn withdrawn(&mut self, net: &mut Net, open: Open, answer: &Answer) -> Result<(), Over> {
        match (open, answer) {
            (Open::Look { subject }, Answer::Last(Some(sequence)))
                if *sequence <= self.newest_task =>
            {
                let sequence = *sequence;
                let ask = Ask::Remove { sequence };
                self.ask(net, ask, Open::Removal { subject, sequence });
            }
            (Open::Removal { subject, sequence }, Answer::Removed(false)) => {
                let ask = Ask::Last { subject };
                self.ask(net, ask, Open::LookAgain { sequence });
            }
            (Open::LookAgain { sequence }, Answer::Last(Some(still))) if sequence == *still => {
                let reason = "a task that is there was not removed";
                return Err(Over::Failed(reason.to_owned()));
            }
            _ => {}
        }
        Ok(())
    }

    fn done(&mut self, net: &mut Net, open: Open, stored: Option<Stored>) {
        let sequence = stored.map_or(0, |stored| stored.sequence);
        match open {
            Open::Release { key, run } => {
                self.newest_task = self.newest_task.max(sequence);
                self.known.push(Input::Released { key, run, sequence });
            }
            Open::Record(name) => {
                self.revisions.insert(name, sequence);
            }
            Open::Deletion(name) => {
                self.revisions.remove(&name);
                self.purge(net, JOB_RECORDS, job_key(&name.token()));
                self.settling = true;
            }
            Open::Look { .. } | Open::Removal { .. } | Open::LookAgain { .. } | Open::Other => {}
        }
    }
}

impl Open {
    const fn refusal(&self) -> &'static str {
        match self {
            Self::Release { .. } => "a release met a message",
            Self::Record(_) | Self::Deletion(_) => "a record write met another's revision",
            Self::Look { .. } | Self::Removal { .. } | Self::LookAgain { .. } | Self::Other => {
                "a write was refused"
            }
        }
    }
}

/// What a dispatcher can die after.
fn moment(effect: &Effect) -> Option<Moment> {
    match effect {
        Effect::PutRecord(_) | Effect::DeleteRecord(_) => Some(Moment::Record),
        Effect::PutNode(_) | Effect::DeleteNode(_) => Some(Moment::Node),
        Effect::TellJob { .. } | Effect::TellNode { .. } | Effect::TellPull { .. } => {
            Some(Moment::Word)
        }
        Effect::Release(_) => Some(Moment::Release),
        Effect::WithdrawJob(_) | Effect::WithdrawPull(_) => Some(Moment::Withdrawal),
        Effect::Revoke { .. }
        | Effect::Resolve { .. }
        | Effect::Welcome { .. }
        | Effect::Acknowledge { .. } => None,
    }
}

/// Whether what was sent before has to be confirmed before this is done, and this before the next.
fn is_barrier(effect: &Effect) -> bool {
    match effect {
        Effect::Release(_)
        | Effect::TellJob { .. }
        | Effect::TellNode { .. }
        | Effect::TellPull { .. }
        | Effect::PutNode(_)
        | Effect::Resolve { .. }
        | Effect::Revoke { .. } => false,
        Effect::PutRecord(_)
        | Effect::DeleteRecord(_)
        | Effect::DeleteNode(_)
        | Effect::WithdrawJob(_)
        | Effect::WithdrawPull(_)
        | Effect::Welcome { .. }
        | Effect::Acknowledge { .. } => true,
    }
}
