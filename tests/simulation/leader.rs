//! A leadership, as `prewarm::dispatch::{load, lead, perform}` are: reads the cell back, feeds the
//! state, and does what it asks for. Nothing is tried twice: what fails or stays unclear ends it.

use std::collections::{BTreeMap, VecDeque};

use prewarm::dispatch::state::{Dispatcher, Settings};
use prewarm::dispatch::{Effect, Input, ReplyToken, Request};
use prewarm::domain::name::NodeName;
use prewarm::domain::node::NodeFacts;
use prewarm::domain::time::Timestamp;
use prewarm::wire::worker::Registration;

use crate::broker::{Millis, Refusal};
use crate::dispatcher::{Clock, Context};
use crate::net::{Answer, Ask, Core, Event, Life, Net, Read, Ticket, TimerKind};
use crate::payload::{JOBS, Payload, REQUESTS};
use crate::perform::{Asked, Performer};

/// How long the shell waits for an answer.
pub const REQUEST_TIMEOUT: Millis = 5_000;
/// How long a request for requests stays open.
const PULL_EXPIRES: Millis = 30_000;
/// How many requests one request for requests may bring.
const REQUESTS_AT_ONCE: u32 = 10;
/// Time between two looks for lost tasks.
const AUDIT_EVERY: Millis = 60_000;
/// Most arrivals taken together.
const BATCH: usize = 8;
/// Most arrivals that wait; a bound that must hold, not one that is enforced here.
pub const MOST_ARRIVALS: usize = 4_096;

/// Why a leadership is over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Over {
    Failed(String),
    Crash,
}

/// Something for the state, and what is needed to answer it.
enum Arrival {
    Input(Box<Input>),
    Request {
        request: Request,
        sequence: u64,
    },
    Registered {
        node: NodeName,
        registration: Registration,
        reply: (Life, Ticket),
    },
}

/// What is read back, in order.
const STEPS: [Read; 5] = [
    Read::EventsEnd,
    Read::Nodes,
    Read::Jobs,
    Read::Tasks,
    Read::Told,
];

enum Stage {
    /// Waits for the answer to this step; the last one, the events, follows [`STEPS`].
    Loading {
        step: usize,
        ticket: Ticket,
    },
    Leading,
}

pub struct Leader {
    life: Life,
    pub leadership: u64,
    clock: Clock,
    stage: Stage,
    pub state: Dispatcher,
    arrivals: VecDeque<Arrival>,
    performer: Performer,
    /// Events up to here are read.
    pub cursor: u64,
    events_end: u64,
    following: bool,
    /// The request for requests that is open, and how many it may still bring.
    pull: Option<(Ticket, u32)>,
    tick: Option<Millis>,
    /// When the task stream is looked through next, and the look that is open.
    audit_at: Millis,
    audit: Option<Ticket>,
    next_reply: u64,
    /// What the nodes were, in turn, while what is being done was decided, if they changed.
    pub believed: Vec<BTreeMap<NodeName, NodeFacts>>,
}

impl Leader {
    pub fn begin(
        net: &mut Net,
        life: Life,
        leadership: u64,
        clock: Clock,
        settings: Settings,
    ) -> Self {
        let ticket = net.ask(life, leadership, Ask::Read(STEPS[0]), REQUEST_TIMEOUT);
        Self {
            life,
            leadership,
            clock,
            stage: Stage::Loading { step: 0, ticket },
            state: Dispatcher::new(settings),
            arrivals: VecDeque::new(),
            performer: Performer::new(life, leadership),
            cursor: 0,
            events_end: 0,
            following: false,
            pull: None,
            tick: None,
            audit_at: 0,
            audit: None,
            next_reply: 0,
            believed: Vec::new(),
        }
    }

    pub fn end(self, net: &mut Net) {
        net.listening.remove(&self.life);
        if let Some((pull, _)) = self.pull {
            let ask = Ask::DropPull {
                stream: JOBS,
                consumer: REQUESTS.to_owned(),
                pull,
            };
            net.tell(self.life, self.leadership, ask);
        }
    }

    pub fn has_releases_to_do(&self) -> bool {
        self.performer.has_releases_to_do()
    }

    pub fn listens(&self) -> bool {
        matches!(self.stage, Stage::Leading)
    }

    /// Whether it has done all it was asked for and heard all there was.
    pub fn is_quiet(&self, last_event: u64) -> bool {
        self.listens()
            && self.arrivals.is_empty()
            && self.performer.is_idle()
            && self.cursor >= last_event
    }

    /// Arrivals that wait and effects that are to be done.
    pub fn backlog(&self) -> usize {
        self.arrivals.len().max(self.performer.backlog())
    }

    pub fn answered(
        &mut self,
        net: &mut Net,
        context: &mut Context,
        ticket: Ticket,
        answer: Answer,
    ) -> Result<(), Over> {
        if let Stage::Loading { step, ticket: open } = self.stage {
            return if open == ticket {
                self.loaded(net, context, step, answer)
            } else {
                Ok(())
            };
        }
        let looked = match &answer {
            Answer::Read { inputs, .. } => Some(inputs.clone()),
            _ => None,
        };
        match (self.performer.answered(net, ticket, answer), self.pull) {
            (Asked::Known(result), _) => {
                result?;
                self.go_on(net, context)
            }
            (Asked::Stranger, _) if self.audit.take_if(|open| *open == ticket).is_some() => {
                if let Some(inputs) = looked {
                    let arrivals = inputs
                        .into_iter()
                        .map(|input| Arrival::Input(Box::new(input)));
                    self.arrivals.extend(arrivals);
                }
                self.go_on(net, context)
            }
            (Asked::Stranger, Some((pull, _))) if pull == ticket => {
                // The broker never said that it took the request for requests.
                self.pull = None;
                self.pull_requests(net);
                Ok(())
            }
            (Asked::Stranger, _) => Ok(()),
        }
    }

    fn loaded(
        &mut self,
        net: &mut Net,
        context: &mut Context,
        step: usize,
        answer: Answer,
    ) -> Result<(), Over> {
        let Answer::Read {
            inputs,
            revisions,
            markers,
            cursor,
        } = answer
        else {
            return Err(Over::Failed("reading back failed".to_owned()));
        };
        let now = self.clock.wall(net.now);
        for input in inputs {
            if let Input::Released { sequence, .. } = &input {
                self.performer.know_task(*sequence);
            }
            self.state.handle(now, input, &mut Vec::new());
        }
        self.performer.know(revisions, markers);
        if step == 0 {
            self.events_end = cursor;
        }
        let next = step + 1;
        let read = match STEPS.get(next) {
            Some(read) => *read,
            None if next == STEPS.len() => {
                Read::EventsAfter(self.state.events_after().min(self.events_end))
            }
            None => {
                self.cursor = cursor;
                return self.lead(net, context);
            }
        };
        let ticket = net.ask(self.life, self.leadership, Ask::Read(read), REQUEST_TIMEOUT);
        self.stage = Stage::Loading { step: next, ticket };
        Ok(())
    }

    fn lead(&mut self, net: &mut Net, context: &mut Context) -> Result<(), Over> {
        self.stage = Stage::Leading;
        net.listening.insert(self.life);
        self.pull_requests(net);
        self.follow(net);
        self.performer.purge_markers(net);
        self.audit(net)?;
        self.arrivals
            .push_back(Arrival::Input(Box::new(Input::Lead)));
        self.go_on(net, context)
    }

    fn pull_requests(&mut self, net: &mut Net) {
        if self.pull.is_some() {
            return;
        }
        let ask = Ask::Pull {
            stream: JOBS,
            consumer: REQUESTS.to_owned(),
            batch: REQUESTS_AT_ONCE,
            expires: PULL_EXPIRES,
        };
        let limit = PULL_EXPIRES + REQUEST_TIMEOUT;
        let ticket = net.ask(self.life, self.leadership, ask, limit);
        self.pull = Some((ticket, REQUESTS_AT_ONCE));
    }

    fn is_open(&self, pull: Ticket) -> bool {
        self.pull.is_some_and(|(open, _)| open == pull)
    }

    /// One more has come; after the last one more are asked for.
    fn count_request(&mut self, net: &mut Net) {
        if let Some((_, left)) = &mut self.pull {
            *left -= 1;
            if *left == 0 {
                self.pull = None;
                self.pull_requests(net);
            }
        }
    }

    /// Reads what is new in the event stream, soon.
    pub fn follow(&mut self, net: &mut Net) {
        if self.listens() && !self.following {
            self.following = true;
            let at = net.now + net.latency();
            net.at(at, Event::Follow { to: self.life });
        }
    }

    /// Takes the events from the cursor on, as an ordered consumer brings them.
    pub fn take_events<'a>(
        &mut self,
        net: &mut Net,
        context: &mut Context,
        events: impl Iterator<Item = (u64, &'a Payload)>,
    ) -> Result<(), Over> {
        self.following = false;
        let mut more = false;
        for (taken, (sequence, payload)) in events.enumerate() {
            if taken == BATCH {
                more = true;
                break;
            }
            self.cursor = sequence;
            if let Payload::TaskEvent(event) = payload {
                let event = Box::new(event.as_ref().clone());
                let input = Input::TaskEvent { event, sequence };
                self.arrivals.push_back(Arrival::Input(Box::new(input)));
            }
        }
        if more {
            self.follow(net);
        }
        self.go_on(net, context)
    }

    pub fn unfollow(&mut self) {
        self.following = false;
    }

    pub fn tick(&mut self, net: &mut Net, context: &mut Context) -> Result<(), Over> {
        if self.tick.take_if(|at| *at <= net.now).is_none() {
            return Ok(());
        }
        self.go_on(net, context)
    }

    /// Looks through the task stream, from time to time.
    pub fn audit(&mut self, net: &mut Net) -> Result<(), Over> {
        if !self.listens() || self.audit_at > net.now {
            return Ok(());
        }
        self.audit_at = net.now + AUDIT_EVERY;
        let (to, timer) = (self.life, TimerKind::Audit);
        net.at(self.audit_at, Event::Tick { to, timer });
        if let Some(as_of) = self.state.has_out() {
            let ask = Ask::Read(Read::Kept(as_of));
            self.audit = Some(net.ask(self.life, self.leadership, ask, REQUEST_TIMEOUT));
        }
        Ok(())
    }

    pub fn core(
        &mut self,
        net: &mut Net,
        context: &mut Context,
        message: Core,
    ) -> Result<(), Over> {
        if !self.listens() {
            return Ok(());
        }
        let arrival = match message {
            Core::Registration {
                node,
                registration,
                reply,
            } => Arrival::Registered {
                node,
                registration,
                reply,
            },
            Core::Heartbeat { node, heartbeat } => {
                Arrival::Input(Box::new(Input::Heartbeat { node, heartbeat }))
            }
            Core::Revocation(_) | Core::Welcome(_) => return Ok(()),
        };
        self.arrivals.push_back(arrival);
        self.go_on(net, context)
    }

    pub fn event(
        &mut self,
        net: &mut Net,
        context: &mut Context,
        event: Event,
    ) -> Result<(), Over> {
        match event {
            Event::Delivered { pull, delivery, .. } if self.is_open(pull) => {
                if delivery.deliveries > 1 {
                    net.counters.bump("a request came again");
                }
                self.count_request(net);
                if let Payload::Request(request) = delivery.payload {
                    self.arrivals.push_back(Arrival::Request {
                        request: request.as_ref().clone(),
                        sequence: delivery.sequence,
                    });
                }
            }
            Event::PullOver { pull, .. } if self.is_open(pull) => {
                self.pull = None;
                self.pull_requests(net);
            }
            Event::Resolved {
                leadership,
                job,
                run,
                images,
                ..
            } if leadership == self.leadership => {
                let images = net.registry.resolve(net.now, images);
                if images.iter().any(|image| image.digest.is_none()) {
                    net.counters
                        .bump("images were left to the nodes to resolve");
                }
                let input = Input::Resolved { job, run, images };
                self.arrivals.push_back(Arrival::Input(Box::new(input)));
            }
            _ => {}
        }
        self.go_on(net, context)
    }

    pub fn reconnected(&mut self, net: &mut Net, context: &mut Context) -> Result<(), Over> {
        if self.listens() {
            self.pull = None;
            self.pull_requests(net);
            self.follow(net);
        }
        self.go_on(net, context)
    }

    /// Goes on where it can: with the effects that are to be done, else with what has arrived.
    fn go_on(&mut self, net: &mut Net, context: &mut Context) -> Result<(), Over> {
        if !self.listens() {
            return Ok(());
        }
        while let Some(known) = self.performer.go_on(net, context)? {
            let mut effects = Vec::new();
            let now = self.clock.wall(net.now);
            let any_known = !known.is_empty();
            self.believed.clear();
            for input in known {
                self.state.handle(now, input, &mut effects);
            }
            if !any_known && !self.take(net, now, &mut effects) {
                break;
            }
            self.performer.begin(effects);
        }
        self.arm(net);
        Ok(())
    }

    /// Feeds the state with what has arrived, or with the time if it wants to know it.
    fn take(&mut self, net: &mut Net, now: Timestamp, effects: &mut Vec<Effect>) -> bool {
        let mut batch: Vec<Arrival> = Vec::new();
        while batch.len() < BATCH
            && let Some(arrival) = self.arrivals.pop_front()
        {
            batch.push(arrival);
        }
        if batch.is_empty() {
            if self.state.next_deadline().is_none_or(|at| at > now) {
                return false;
            }
            batch.push(Arrival::Input(Box::new(Input::Tick)));
        }
        let registers = |arrival: &Arrival| matches!(arrival, Arrival::Registered { .. });
        if batch.iter().any(registers) {
            self.believed.push(self.nodes());
        }
        let mut leads = false;
        for arrival in batch {
            let input = match arrival {
                Arrival::Input(input) => *input,
                Arrival::Request { request, sequence } => Input::Request { request, sequence },
                Arrival::Registered {
                    node,
                    registration,
                    reply,
                } => {
                    let token = ReplyToken(self.next_reply);
                    self.next_reply += 1;
                    self.performer.replies.insert(token, reply);
                    Input::Registered {
                        node,
                        registration: Box::new(registration),
                        reply: token,
                    }
                }
            };
            leads |= input == Input::Lead;
            let who = self.life.who;
            net.trace.line(net.now, || {
                format!("{who:?} takes {}", crate::describe::input(&input))
            });
            let looked = matches!(input, Input::Kept { .. });
            let registered = matches!(input, Input::Registered { .. });
            let before = effects.len();
            self.state.handle(now, input, effects);
            if registered {
                self.believed.push(self.nodes());
            }
            if looked && effects.len() > before {
                net.counters.bump("a lost task was released again");
            }
        }
        for effect in &*effects {
            if leads && matches!(effect, Effect::WithdrawPull(_)) {
                let what = "a stale task was withdrawn after a takeover";
                net.counters.bump(what);
            }
            crate::describe::count(net, effect);
        }
        true
    }

    pub fn nodes(&self) -> BTreeMap<NodeName, NodeFacts> {
        let nodes = self.state.view().nodes.into_iter();
        nodes.map(|(name, node)| (name, node.facts)).collect()
    }

    fn arm(&mut self, net: &mut Net) {
        let Some(at) = self.state.next_deadline() else {
            return;
        };
        let at = self.clock.when_wall(at).max(net.now + 1);
        if self.tick.is_none_or(|armed| at < armed) {
            self.tick = Some(at);
            let (to, timer) = (self.life, TimerKind::State);
            net.at(at, Event::Tick { to, timer });
        }
    }
}

/// Whether a refusal is another dispatcher's doing.
pub fn refused(net: &mut Net, what: &'static str, refusal: Refusal) -> Over {
    net.counters.bump(what);
    Over::Failed(format!("{what}: {refusal:?}"))
}
