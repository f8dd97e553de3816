//! A dispatcher's process, as `prewarm::dispatch::run` is: it keeps the lease and leads.

use std::time::Duration;

use prewarm::dispatch::lease::{self, DEFAULT_LEASE, Entry, Lease};
use prewarm::dispatch::state::Settings;
use prewarm::domain::time::Timestamp;

use crate::broker::{Broker, Demands, Millis, Refusal};
use crate::leader::{Leader, Over};
use crate::net::{Answer, Ask, Core, Event, Life, Net, Read, Ticket, TimerKind, Who};
use crate::payload::{EVENTS, LEASE, LEASES, Payload};
use crate::plan::Moment;

/// Pause before leading again after a leadership failed.
const RETRY: Millis = 100;

/// A process's clock: apart from the true time, and a little faster or slower.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Clock {
    pub offset: i64,
    /// Parts in a million.
    pub drift: i64,
}

/// When every simulation begins.
const EPOCH: i64 = 1_790_000_000_000;

impl Clock {
    fn elapsed(self, now: Millis) -> i64 {
        let now = i64::try_from(now).unwrap_or(i64::MAX);
        now + now * self.drift / 1_000_000
    }

    pub fn wall(self, now: Millis) -> Timestamp {
        Timestamp::from_millis(EPOCH + self.offset + self.elapsed(now))
    }

    pub fn uptime(self, now: Millis) -> Duration {
        Duration::from_millis(u64::try_from(self.elapsed(now)).unwrap_or(0))
    }

    /// The true time at which this clock shows `elapsed` milliseconds, or a little later.
    fn inverse(self, elapsed: i64) -> Millis {
        let now = elapsed.max(0) * 1_000_000 / (1_000_000 + self.drift);
        u64::try_from(now).unwrap_or(0) + 1
    }

    pub fn when_wall(self, at: Timestamp) -> Millis {
        self.inverse(at.as_millis() - EPOCH - self.offset)
    }

    pub fn when_uptime(self, at: Duration) -> Millis {
        self.inverse(i64::try_from(at.as_millis()).unwrap_or(i64::MAX))
    }
}

/// One dispatcher, running or not.
pub struct DispatcherProcess {
    pub index: usize,
    pub incarnation: u32,
    pub is_up: bool,
    pub frozen_until: Millis,
    pub clock: Clock,
    settings: Settings,
    lease: Lease,
    lease_ticket: Option<Ticket>,
    lease_tick: Option<Millis>,
    leaderships: u64,
    pub leader: Option<Leader>,
    stopping: bool,
    /// Crashes before its so manyth effect from now.
    pub crash_after: Option<u32>,
    /// Crashes right after it began its next effect of this kind, for so long.
    pub crash_at: Option<(Moment, Millis)>,
}

/// What the world has to know of a step.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Step {
    Done,
    /// A leadership began.
    Leads,
    /// The process dies here.
    Crashes,
    /// It handed over and ended.
    Ended,
}

impl DispatcherProcess {
    pub fn new(index: usize, clock: Clock, settings: Settings) -> Self {
        Self {
            index,
            incarnation: 0,
            is_up: false,
            frozen_until: 0,
            clock,
            settings,
            lease: Lease::new(String::new(), DEFAULT_LEASE, Duration::ZERO),
            lease_ticket: None,
            lease_tick: None,
            leaderships: 0,
            leader: None,
            stopping: false,
            crash_after: None,
            crash_at: None,
        }
    }

    pub fn life(&self) -> Life {
        Life {
            who: Who::Dispatcher(self.index),
            incarnation: self.incarnation,
        }
    }

    pub fn begin(&mut self, net: &mut Net) -> Step {
        self.incarnation += 1;
        self.is_up = true;
        self.stopping = false;
        self.crash_after = None;
        self.crash_at = None;
        let instance = format!("dispatcher-{}-{}", self.index, self.incarnation);
        let uptime = self.clock.uptime(net.now);
        self.lease = Lease::new(instance, DEFAULT_LEASE, uptime);
        self.lease_ticket = None;
        self.lease_tick = None;
        self.keep(net, lease::Input::Tick)
    }

    pub fn crash(&mut self, net: &mut Net) {
        if let Some(leader) = self.leader.take()
            && leader.has_releases_to_do()
        {
            net.counters.bump("a leader crashed with releases to do");
        }
        net.listening.remove(&self.life());
        self.is_up = false;
    }

    pub fn stop(&mut self, net: &mut Net) -> Step {
        self.stopping = true;
        self.keep(net, lease::Input::Stop)
    }

    pub fn may_act(&self, now: Millis) -> bool {
        self.is_up && self.lease.may_act(self.clock.uptime(now))
    }

    /// Takes what the lease's bucket, or the clock, says.
    fn keep(&mut self, net: &mut Net, input: lease::Input) -> Step {
        let mut effects = Vec::new();
        let uptime = self.clock.uptime(net.now);
        self.lease.handle(uptime, input, &mut effects);
        let limit = u64::try_from(self.lease.request_limit().as_millis()).unwrap_or(0);
        let mut step = Step::Done;
        for effect in effects {
            let who = self.index;
            net.trace
                .line(net.now, || format!("dispatcher {who} lease {effect:?}"));
            match effect {
                lease::Effect::Look => {
                    let ask = Ask::Read(Read::Lease);
                    self.lease_ticket = Some(net.ask(self.life(), 0, ask, limit));
                }
                lease::Effect::Write { expected, holder } => {
                    let ask = Ask::Publish {
                        stream: LEASES,
                        subject: LEASE.to_owned(),
                        payload: Payload::Lease(holder),
                        demands: Demands {
                            last_subject_sequence: Some(expected),
                            message_id: None,
                        },
                    };
                    self.lease_ticket = Some(net.ask(self.life(), 0, ask, limit));
                }
                lease::Effect::Lead => step = self.lead(net),
                lease::Effect::Yield => self.yield_lead(net),
                lease::Effect::Stopped => {
                    net.counters.bump("a dispatcher handed over");
                    self.is_up = false;
                    return Step::Ended;
                }
            }
        }
        self.arm_lease(net);
        step
    }

    fn arm_lease(&mut self, net: &mut Net) {
        let Some(at) = self.lease.next_deadline() else {
            return;
        };
        let at = self.clock.when_uptime(at);
        if self.lease_tick.is_none_or(|armed| at < armed) {
            self.lease_tick = Some(at);
            let (to, timer) = (self.life(), TimerKind::Lease);
            net.at(at, Event::Tick { to, timer });
        }
    }

    fn lead(&mut self, net: &mut Net) -> Step {
        self.leaderships += 1;
        let leadership = u64::from(self.incarnation) * 1_000_000 + self.leaderships;
        let leader = Leader::begin(net, self.life(), leadership, self.clock, self.settings);
        self.leader = Some(leader);
        Step::Leads
    }

    fn yield_lead(&mut self, net: &mut Net) {
        if let Some(leader) = self.leader.take() {
            leader.end(net);
        }
    }

    /// What the leader came to. A leadership that fails begins anew, if the lease still holds.
    fn go_on(&mut self, net: &mut Net, over: Result<(), Over>) -> Step {
        match over {
            Ok(()) => Step::Done,
            Err(Over::Crash) => Step::Crashes,
            Err(Over::Failed(reason)) => {
                let who = self.index;
                net.trace.line(net.now, || {
                    format!("dispatcher {who} leads no more: {reason}")
                });
                self.yield_lead(net);
                let (to, timer) = (self.life(), TimerKind::LeadAgain);
                net.at(net.now + RETRY, Event::Tick { to, timer });
                Step::Done
            }
        }
    }

    fn with_leader(
        &mut self,
        net: &mut Net,
        act: impl FnOnce(&mut Leader, &mut Net, &mut Context) -> Result<(), Over>,
    ) -> Step {
        let Some(mut leader) = self.leader.take() else {
            return Step::Done;
        };
        let mut context = Context {
            acts_until: self.lease.acts_until().map(|at| self.clock.when_uptime(at)),
            crash_after: self.crash_after,
            crash_at: self.crash_at.map(|(what, _)| what),
        };
        let over = act(&mut leader, net, &mut context);
        self.crash_after = context.crash_after;
        self.leader = Some(leader);
        self.go_on(net, over)
    }

    pub fn tick(&mut self, net: &mut Net, timer: TimerKind) -> Step {
        match timer {
            TimerKind::Lease => {
                if self.lease_tick.take_if(|at| *at <= net.now).is_none() {
                    return Step::Done;
                }
                self.keep(net, lease::Input::Tick)
            }
            TimerKind::LeadAgain => {
                if self.leader.is_none() && self.may_act(net.now) && !self.stopping {
                    self.lead(net)
                } else {
                    Step::Done
                }
            }
            TimerKind::State => self.with_leader(net, Leader::tick),
            TimerKind::Audit => self.with_leader(net, |leader, net, _| leader.audit(net)),
        }
    }

    pub fn answered(&mut self, net: &mut Net, ticket: Ticket, answer: Answer) -> Step {
        if self.lease_ticket.take_if(|open| *open == ticket).is_some() {
            let is_looking = self.lease.is_looking();
            let input = match answer {
                Answer::Lease(entry) => {
                    lease::Input::Looked(entry.map(|(revision, holder)| Entry { revision, holder }))
                }
                Answer::Published(Ok(stored)) => lease::Input::Written {
                    revision: stored.sequence,
                },
                Answer::Published(Err(Refusal::WrongLastSequence)) => lease::Input::Refused,
                _ if is_looking => lease::Input::NotLooked,
                _ => lease::Input::Unclear,
            };
            return self.keep(net, input);
        }
        self.with_leader(net, |leader, net, context| {
            leader.answered(net, context, ticket, answer)
        })
    }

    pub fn core(&mut self, net: &mut Net, message: Core) -> Step {
        self.with_leader(net, |leader, net, context| {
            leader.core(net, context, message)
        })
    }

    pub fn event(&mut self, net: &mut Net, event: Event) -> Step {
        self.with_leader(net, |leader, net, context| {
            leader.event(net, context, event)
        })
    }

    /// Reads the events that are there.
    pub fn follow(&mut self, net: &mut Net, broker: &Broker<Payload>) -> Step {
        self.with_leader(net, |leader, net, context| {
            let events = broker.messages(EVENTS, leader.cursor + 1);
            let events = events.map(|(sequence, message)| (sequence, &message.payload));
            leader.take_events(net, context, events)
        })
    }

    /// There is no connection to read events by; they are read when there is.
    pub fn unfollow(&mut self) -> Step {
        if let Some(leader) = &mut self.leader {
            leader.unfollow();
        }
        Step::Done
    }

    pub fn reconnected(&mut self, net: &mut Net) -> Step {
        self.with_leader(net, |leader, net, context| leader.reconnected(net, context))
    }
}

/// What a leader has to know of its process.
#[derive(Clone, Copy, Debug)]
pub struct Context {
    /// The true time at which its permission to act ends.
    pub acts_until: Option<Millis>,
    pub crash_after: Option<u32>,
    pub crash_at: Option<Moment>,
}

impl Context {
    pub fn may_act(&self, now: Millis) -> bool {
        self.acts_until.is_some_and(|until| now < until)
    }

    /// Counts an effect; says whether the process dies before it.
    pub fn crashes(&mut self) -> bool {
        match &mut self.crash_after {
            Some(0) => true,
            Some(left) => {
                *left -= 1;
                false
            }
            None => false,
        }
    }
}
