//! Time and the network: what is to happen when, and what becomes of messages on their way.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::sync::Arc;

use prewarm::dispatch::Input as DispatchInput;
use prewarm::domain::image::ImageRef;
use prewarm::domain::name::{JobName, NodeName};
use prewarm::wire::task::Run;
use prewarm::wire::worker::{Heartbeat, Registration, Revocation};
use prewarm::work::effect::PullHandle;

use crate::broker::{Delivery, Demands, End, Millis, Refusal, Stored};
use crate::counters::Counters;
use crate::payload::{LEASES, Payload};
use crate::registry::Registry;
use crate::rng::Rng;
use crate::trace::Trace;

/// A process.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Who {
    Dispatcher(usize),
    Worker(usize),
}

/// One life of a process: after a crash it has another.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Life {
    pub who: Who,
    pub incarnation: u32,
}

/// Names a question, so that its answer finds back.
pub type Ticket = u64;

/// What a process asks the broker for.
#[derive(Clone, Debug)]
pub enum Ask {
    Publish {
        stream: &'static str,
        subject: String,
        payload: Payload,
        demands: Demands,
    },
    Purge {
        stream: &'static str,
        filter: String,
        /// Only what was stored before this.
        before: Option<u64>,
    },
    /// The newest message of a task's subject.
    Last {
        subject: String,
    },
    /// A task goes, by its sequence.
    Remove {
        sequence: u64,
    },
    DeleteConsumer {
        consumer: String,
    },
    MakeConsumer {
        node: NodeName,
        remake: bool,
        start: u64,
        /// The worker that waits for the answer.
        reply: (Life, Ticket),
    },
    Read(Read),
    Pull {
        stream: &'static str,
        consumer: String,
        batch: u32,
        expires: Millis,
    },
    DropPull {
        stream: &'static str,
        consumer: String,
        pull: Ticket,
    },
    Answer {
        stream: &'static str,
        consumer: String,
        sequence: u64,
        answer: TaskAnswer,
    },
}

/// What a delivery is answered with.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TaskAnswer {
    Ack,
    Nak(Millis),
    InProgress,
}

/// What a dispatcher reads back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Read {
    Lease,
    EventsEnd,
    Nodes,
    Jobs,
    Tasks,
    Told,
    EventsAfter(u64),
    /// The pulls that have a task, for a leader that knew of this one as the newest.
    Kept(u64),
}

/// The broker's answer.
#[derive(Clone, Debug)]
pub enum Answer {
    Published(Result<Stored, Refusal>),
    Done,
    /// Facts for the state, and the sequence up to which they go or of each record.
    Read {
        inputs: Vec<DispatchInput>,
        revisions: Vec<(JobName, u64)>,
        /// Keys of deleted records.
        markers: Vec<String>,
        cursor: u64,
    },
    Lease(Option<(u64, Option<String>)>),
    /// The sequence of a subject's newest message.
    Last(Option<u64>),
    /// Whether there was something to remove.
    Removed(bool),
    /// Nobody knows whether it was or will be done.
    Unclear,
}

/// What is sent and not kept.
#[derive(Clone, Debug)]
pub enum Core {
    Registration {
        node: NodeName,
        registration: Registration,
        reply: (Life, Ticket),
    },
    Heartbeat {
        node: NodeName,
        heartbeat: Heartbeat,
    },
    Revocation(Revocation),
    /// A worker's consumer is there.
    Welcome(Ticket),
}

/// What is to happen.
#[derive(Clone, Debug)]
pub enum Event {
    /// A question arrives at the broker.
    Asked(Question),
    Answered {
        to: Life,
        ticket: Ticket,
        answer: Answer,
    },
    Core {
        to: Life,
        message: Core,
    },
    Delivered {
        to: Life,
        pull: Ticket,
        delivery: Delivery<Payload>,
    },
    PullOver {
        to: Life,
        pull: Ticket,
        undelivered: u32,
        end: PullEnd,
    },
    /// A timer of a process.
    Tick {
        to: Life,
        timer: TimerKind,
    },
    /// Events may be there for a leader.
    Follow {
        to: Life,
    },
    Resolved {
        to: Life,
        leadership: u64,
        job: JobName,
        run: Run,
        images: Vec<ImageRef>,
    },
    ImagePulled {
        to: Life,
        pull: PullHandle,
    },
    Reconnected {
        to: Life,
    },
    StandingChanged {
        to: Life,
    },
    /// A node that was held takes new pulls again.
    TakesPulls(usize),
    /// A consumer may have something to send.
    ConsumerDue {
        stream: &'static str,
        consumer: Arc<str>,
    },
    BrokerUp,
    Begin(Who),
    Planned(usize),
}

/// Why a request for messages is over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum PullEnd {
    Said(End),
    /// There is no such consumer.
    NoConsumer,
    /// The broker said nothing for too long.
    Silence,
}

#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum TimerKind {
    Lease,
    State,
    LeadAgain,
    Audit,
}

/// A question on its way.
#[derive(Clone, Debug)]
pub struct Question {
    pub from: Life,
    /// Which leadership asks; 0 for workers.
    pub leadership: u64,
    pub ticket: Ticket,
    pub ask: Ask,
    /// When the asker stops waiting; `None`: it does not wait.
    pub until: Option<Millis>,
}

struct Scheduled {
    at: Millis,
    order: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.order) == (other.at, other.order)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.order).cmp(&(other.at, other.order))
    }
}

/// A process's connection to the broker.
#[derive(Clone, Debug, Default)]
pub struct Link {
    pub down_until: Millis,
    /// So many questions are lost on their way.
    pub lose_questions: u32,
    /// So many answers are lost on their way.
    pub lose_answers: u32,
    /// So many acks are lost on their way.
    pub lose_acks: u32,
    /// So many acks arrive twice.
    pub repeat: u32,
    /// The next questions that change something take so much longer.
    pub delays: Vec<Millis>,
    /// One stream's messages arrive in their order; those of different streams need not.
    last_arrival: BTreeMap<&'static str, Millis>,
}

/// Time, chance, and everything on its way.
pub struct Net {
    pub now: Millis,
    queue: BinaryHeap<Reverse<Scheduled>>,
    order: u64,
    tickets: Ticket,
    pub rng: Rng,
    pub links: BTreeMap<Who, Link>,
    pub broker_up: bool,
    /// So many unkept messages are lost.
    pub lose_core: u32,
    pub counters: Counters,
    pub trace: Trace,
    pub registry: Registry,
    /// The workers that run, by node.
    pub nodes: BTreeMap<NodeName, Life>,
    /// The dispatchers that take registrations and heartbeats.
    pub listening: BTreeSet<Life>,
}

impl Net {
    pub fn new(rng: Rng, trace: Trace) -> Self {
        Self {
            now: 0,
            queue: BinaryHeap::new(),
            order: 0,
            tickets: 0,
            rng,
            links: BTreeMap::new(),
            broker_up: true,
            lose_core: 0,
            counters: Counters::default(),
            trace,
            registry: Registry::default(),
            nodes: BTreeMap::new(),
            listening: BTreeSet::new(),
        }
    }

    pub fn at(&mut self, at: Millis, event: Event) {
        self.order += 1;
        let scheduled = Scheduled {
            at: at.max(self.now),
            order: self.order,
            event,
        };
        self.queue.push(Reverse(scheduled));
    }

    /// The next thing that happens; the time is then its time.
    pub fn next(&mut self) -> Option<Event> {
        let Reverse(next) = self.queue.pop()?;
        self.now = next.at;
        Some(next.event)
    }

    pub fn queue_len(&self) -> usize {
        self.queue.len()
    }

    pub fn ticket(&mut self) -> Ticket {
        self.tickets += 1;
        self.tickets
    }

    pub fn link(&mut self, who: Who) -> &mut Link {
        self.links.entry(who).or_default()
    }

    pub fn is_down(&self, who: Who) -> bool {
        !self.broker_up
            || self
                .links
                .get(&who)
                .is_some_and(|link| link.down_until > self.now)
    }

    /// Milliseconds on the wire: few, now and then many.
    pub fn latency(&mut self) -> Millis {
        if self.rng.percent(3) {
            self.rng.range(20, 400)
        } else {
            self.rng.range(1, 6)
        }
    }

    /// Sends a question that nobody waits for.
    pub fn tell(&mut self, from: Life, leadership: u64, ask: Ask) {
        let ticket = self.ticket();
        self.send(from, leadership, ticket, ask, None);
    }

    /// Sends a question and waits for so long; [`Answer::Unclear`] comes in place of an answer.
    pub fn ask(&mut self, from: Life, leadership: u64, ask: Ask, limit: Millis) -> Ticket {
        let ticket = self.ticket();
        let until = self.now + limit;
        self.send(from, leadership, ticket, ask, Some(until));
        ticket
    }

    fn send(
        &mut self,
        from: Life,
        leadership: u64,
        ticket: Ticket,
        ask: Ask,
        until: Option<Millis>,
    ) {
        let stream = ask.stream();
        let latency = self.latency();
        let now = self.now;
        let is_ack = matches!(ask, Ask::Answer { .. });
        let link = self.link(from.who);
        let loses = if is_ack && link.lose_acks > 0 {
            &mut link.lose_acks
        } else {
            &mut link.lose_questions
        };
        if *loses > 0 {
            *loses -= 1;
            if is_ack {
                self.counters.bump("an ack was lost");
            }
            self.no_answer(from, ticket, until);
            return;
        }
        // A client that has lost its connection sends what waits when it has another.
        let mut arrives = now.max(link.down_until) + latency;
        if ask.changes_something() {
            arrives += link.delays.pop().unwrap_or(0);
        }
        let last = link.last_arrival.entry(stream).or_insert(0);
        arrives = arrives.max(*last);
        *last = arrives;
        let overtakes = link.last_arrival.values().any(|other| *other > arrives);
        let again = link.repeat > 0 && is_ack;
        if again {
            link.repeat -= 1;
            self.counters.bump("an ack came twice");
        }
        if overtakes {
            self.counters
                .bump("a message overtook one to another stream");
        }
        if until.is_some_and(|until| arrives > until) {
            self.no_answer(from, ticket, until);
        }
        let question = Question {
            from,
            leadership,
            ticket,
            ask,
            until,
        };
        if again {
            self.at(arrives + latency, Event::Asked(question.clone()));
        }
        self.at(arrives, Event::Asked(question));
    }

    /// Nobody will answer: the asker notices when it has waited long enough.
    pub fn no_answer(&mut self, to: Life, ticket: Ticket, until: Option<Millis>) {
        if let Some(until) = until {
            let answer = Answer::Unclear;
            self.at(until, Event::Answered { to, ticket, answer });
        }
    }

    /// Sends an answer back, unless it is lost or comes too late.
    pub fn answer(&mut self, question: &Question, answer: Answer) {
        let Some(until) = question.until.filter(|until| *until >= self.now) else {
            return;
        };
        let (to, ticket) = (question.from, question.ticket);
        let arrives = self.now + self.latency();
        let is_down = self.is_down(to.who);
        let link = self.link(to.who);
        let lost = link.lose_answers > 0;
        if lost {
            link.lose_answers -= 1;
            if matches!(answer, Answer::Published(Ok(_))) {
                self.counters
                    .bump("the broker's word on a publish was lost");
            }
        }
        if lost || is_down || arrives > until {
            self.counters.bump("an answer came too late or never");
            self.no_answer(to, ticket, Some(until));
        } else {
            self.at(arrives, Event::Answered { to, ticket, answer });
        }
    }

    /// Tells a node's worker something, if one runs.
    pub fn send_to_node(&mut self, from: Life, node: &NodeName, message: Core) {
        if let Some(to) = self.nodes.get(node).copied() {
            self.core(from, to, message);
        }
    }

    /// Tells every dispatcher that listens something; says whether one does.
    pub fn send_to_dispatchers(&mut self, from: Life, message: &Core) -> bool {
        let listening: Vec<Life> = self.listening.iter().copied().collect();
        for to in &listening {
            self.core(from, *to, message.clone());
        }
        !listening.is_empty()
    }

    /// Sends what nobody keeps; it may be lost.
    pub fn core(&mut self, from: Life, to: Life, message: Core) {
        let lost = self.is_down(from.who) || self.is_down(to.who);
        if self.lose_core > 0 {
            self.lose_core -= 1;
        } else if !lost {
            let arrives = self.now + self.latency();
            self.at(arrives, Event::Core { to, message });
        }
    }
}

impl Ask {
    /// Whether the broker is another one after it, the lease aside.
    fn changes_something(&self) -> bool {
        match self {
            Self::Publish { stream, .. } => *stream != LEASES,
            Self::Purge { .. }
            | Self::Remove { .. }
            | Self::DeleteConsumer { .. }
            | Self::MakeConsumer { .. }
            | Self::Answer { .. } => true,
            Self::Read(_) | Self::Last { .. } | Self::Pull { .. } | Self::DropPull { .. } => false,
        }
    }

    /// What it goes to: questions to one are answered in their order.
    fn stream(&self) -> &'static str {
        match self {
            Self::Publish { stream, .. }
            | Self::Pull { stream, .. }
            | Self::DropPull { stream, .. }
            | Self::Answer { stream, .. } => stream,
            Self::Purge { .. }
            | Self::Remove { .. }
            | Self::DeleteConsumer { .. }
            | Self::MakeConsumer { .. } => "api",
            Self::Read(_) | Self::Last { .. } => "read",
        }
    }
}
