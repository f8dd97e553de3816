//! The whole system in one thread: processes, broker, registry, users and what goes wrong.

use std::collections::BTreeMap;
use std::sync::Arc;

use prewarm::dispatch::state::Settings;
use prewarm::domain::node::{NodeFacts, ZONE_LABEL};

use prewarm::wire::worker::PullId;

use crate::broker::{Broker, ConsumerConfig, Demands, Millis, Start};
use crate::dispatcher::{Clock, DispatcherProcess, Step};
use crate::faults::MISSING;
use crate::invariants::{Checks, Verdict};
use crate::net::{Event, Life, Net, Ticket, TimerKind, Who};
use crate::payload::{JOBS, Payload, REQUESTS, topology};
use crate::plan::{Action, Plan, PlannedNode};
use crate::rng::Rng;
use crate::trace::Trace;
use crate::worker::WorkerProcess;

/// How long everything may take once nothing goes wrong any more.
const END_LIMIT: Millis = 3_600_000;
/// How often it is looked whether everything has ended.
const LOOK_EVERY: Millis = 5_000;
/// How long a dispatcher or the broker may take a request, before it is asked for in vain.
const REQUEST_ACK_WAIT: Millis = 30_000;
/// Most that is on its way at once; a bound that must hold.
const MOST_ON_THE_WAY: usize = 20_000;

/// Seconds that a node's clock may be ahead or behind: more than the longest deadline of a simulated job.
const NODE_CLOCKS: i64 = 600;
/// Milliseconds two clocks differ by when it counts: more than a lease.
const DIFFERING_CLOCKS: u64 = 10_000;

/// The world.
pub struct World {
    pub net: Net,
    pub broker: Broker<Payload>,
    pub dispatchers: Vec<DispatcherProcess>,
    pub workers: Vec<WorkerProcess>,
    pub checks: Checks,
    pub settings: Settings,
    pub plan: Plan,
    /// Whose pull request each is.
    pub pulls: BTreeMap<Ticket, Life>,
    /// When each consumer is looked at next.
    pub due: BTreeMap<(&'static str, Arc<str>), Millis>,
    /// Who leads, and which leadership it is.
    pub leading: Option<(Life, u64)>,
    pub steps: u64,
    pub compared_at: u64,
    /// When everything had healed.
    pub healed_at: Option<Millis>,
    /// Until when something goes wrong with each worker.
    pub troubles: BTreeMap<usize, Millis>,
    /// What was seen to be wrong where nobody could say so.
    pub wrong: Option<String>,
    /// Since when each worker holds a pull that nobody wants.
    pub unwanted: BTreeMap<(usize, PullId), Millis>,
    /// `Never` jobs that were seen idle since everything healed.
    pub seen_idle: std::collections::BTreeSet<prewarm::domain::name::JobName>,
}

impl World {
    pub fn new(seed: u64, plan: Plan, trace: Trace) -> Self {
        let mut rng = Rng::new(seed ^ 0x5bd1_e995_9d1b_54a7);
        let settings = Settings {
            host_limit: plan.host_limit,
            zone_limit: plan.zone_limit,
            ..Settings::default()
        };
        let mut clock = |spread: i64| Clock {
            offset: i64::try_from(rng.range(0, 2_000)).unwrap_or(0) * spread - 1_000 * spread,
            drift: i64::try_from(rng.range(0, 20_000)).unwrap_or(0) - 10_000,
        };
        let dispatchers = (0..plan.dispatchers)
            .map(|index| DispatcherProcess::new(index, clock(30), settings))
            .collect();
        let facts = |node: &PlannedNode| NodeFacts {
            labels: [("pool", &node.pool), (ZONE_LABEL, &node.zone)]
                .map(|(key, value)| (key.to_owned(), value.clone()))
                .into(),
            platform: "linux/amd64".parse().expect("a platform"),
            runtime: "model".to_owned(),
            capacity: node.capacity,
            disk_total_bytes: 1,
            disk_free_bytes: 1,
            version: "0".to_owned(),
            waiting: None,
        };
        let nodes = plan.nodes.iter().enumerate();
        let workers = nodes
            .map(|(index, node)| WorkerProcess::new(index, facts(node), clock(NODE_CLOCKS)))
            .collect();
        let mut world = Self {
            net: Net::new(rng, trace),
            broker: topology(),
            dispatchers,
            workers,
            checks: Checks::default(),
            settings,
            plan,
            pulls: BTreeMap::new(),
            due: BTreeMap::new(),
            leading: None,
            steps: 0,
            compared_at: 0,
            healed_at: None,
            troubles: BTreeMap::new(),
            wrong: None,
            unwanted: BTreeMap::new(),
            seen_idle: std::collections::BTreeSet::new(),
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let requests = ConsumerConfig {
            filters: vec!["prewarm.job.>".to_owned()],
            ack_wait: REQUEST_ACK_WAIT,
            start: Start::All,
            max_ack_pending: Some(1),
            memory: false,
        };
        self.broker.create_consumer(JOBS, REQUESTS, requests);
        let missing: prewarm::domain::image::ImageRef = MISSING.parse().expect("a reference");
        self.net.registry.missing.insert(missing.to_string());
        for index in 0..self.dispatchers.len() {
            let at = self.net.rng.range(0, 1_000);
            self.net.at(at, Event::Begin(Who::Dispatcher(index)));
        }
        for (index, node) in self.plan.nodes.iter().enumerate() {
            self.net.at(node.begins, Event::Begin(Who::Worker(index)));
        }
        for (index, planned) in self.plan.actions.iter().enumerate() {
            self.net.at(planned.at, Event::Planned(index));
        }
    }

    /// Runs until everything has ended well, or something is wrong.
    pub fn run(&mut self) -> Verdict {
        while self.net.now < self.plan.heals_at {
            self.step()?;
        }
        self.heal()?;
        let limit = self.net.now + END_LIMIT;
        let mut look_at = self.net.now + LOOK_EVERY;
        loop {
            self.step()?;
            if self.net.now < look_at {
                continue;
            }
            look_at = self.net.now + LOOK_EVERY;
            self.let_go_on();
            match self.unfinished() {
                None => return self.check_the_end(),
                Some(what) if self.net.now > limit => {
                    return Err(format!("after an hour without faults {what}"));
                }
                Some(_) => {}
            }
        }
    }

    fn step(&mut self) -> Verdict {
        let Some(event) = self.net.next() else {
            return Err("nothing is going to happen any more".to_owned());
        };
        self.steps += 1;
        if self.net.queue_len() > MOST_ON_THE_WAY {
            return Err(format!("{} things are on their way", self.net.queue_len()));
        }
        if let Some(wrong) = self.wrong.take() {
            return Err(wrong);
        }
        match event {
            Event::Asked(question) => self.asked(question),
            Event::ConsumerDue { stream, consumer } => {
                self.due.remove(&(stream, consumer.clone()));
                self.serve(stream, &consumer);
                Ok(())
            }
            Event::BrokerUp => {
                self.broker_up();
                Ok(())
            }
            Event::Begin(who) => self.begin_process(who),
            Event::TakesPulls(node) => {
                self.takes_pulls(node);
                Ok(())
            }
            Event::Planned(index) => {
                let action = self.plan.actions[index].action.clone();
                self.act(action)
            }
            Event::Answered { to, .. }
            | Event::Core { to, .. }
            | Event::Delivered { to, .. }
            | Event::PullOver { to, .. }
            | Event::Tick { to, .. }
            | Event::Follow { to }
            | Event::Resolved { to, .. }
            | Event::ImagePulled { to, .. }
            | Event::StandingChanged { to }
            | Event::Reconnected { to } => self.hand_to_process(to, event),
        }
    }

    fn hand_to_process(&mut self, to: Life, event: Event) -> Verdict {
        let (is_up, incarnation, frozen_until) = match to.who {
            Who::Dispatcher(index) => {
                let process = &self.dispatchers[index];
                (process.is_up, process.incarnation, process.frozen_until)
            }
            Who::Worker(index) => {
                let process = &self.workers[index];
                (process.is_up, process.incarnation, process.frozen_until)
            }
        };
        if !is_up || incarnation != to.incarnation {
            return Ok(());
        }
        if frozen_until > self.net.now {
            self.net.at(frozen_until, event);
            return Ok(());
        }
        let step = match to.who {
            Who::Dispatcher(index) => self.hand_to_dispatcher(index, event),
            Who::Worker(index) => self.hand_to_worker(index, event),
        };
        self.stepped(to.who, step)
    }

    fn hand_to_dispatcher(&mut self, index: usize, event: Event) -> Step {
        let (process, net) = (&mut self.dispatchers[index], &mut self.net);
        if std::mem::take(&mut process.frozen_until) > 0
            && process.leader.is_some()
            && self.leading.is_some_and(|(life, _)| life != process.life())
        {
            net.counters.bump("a frozen leader woke up deposed");
        }
        match event {
            Event::Answered { ticket, answer, .. } => process.answered(net, ticket, answer),
            Event::Core { message, .. } => process.core(net, message),
            Event::Tick { timer, .. } => process.tick(net, timer),
            Event::Reconnected { .. } => process.reconnected(net),
            Event::Follow { to } => {
                if net.is_down(to.who) {
                    return process.unfollow();
                }
                process.follow(net, &self.broker)
            }
            other => process.event(net, other),
        }
    }

    fn hand_to_worker(&mut self, index: usize, event: Event) -> Step {
        let (process, net) = (&mut self.workers[index], &mut self.net);
        match event {
            Event::Answered { ticket, answer, .. } => process.answered(net, ticket, &answer),
            Event::Core { message, .. } => process.core(net, message),
            Event::Tick {
                timer: TimerKind::State,
                ..
            } => process.tick(net),
            Event::StandingChanged { .. } => process.standing_changed(net),
            Event::Reconnected { .. } => process.reconnected(net),
            Event::Delivered { pull, delivery, .. } => process.delivered(net, pull, delivery),
            Event::PullOver {
                pull,
                undelivered,
                end,
                ..
            } => process.pull_over(net, pull, undelivered, end),
            Event::ImagePulled { pull, .. } => process.image_pulled(net, pull),
            _ => Step::Done,
        }
    }

    fn stepped(&mut self, who: Who, step: Step) -> Verdict {
        match (step, who) {
            (Step::Done, _) => {}
            (Step::Leads, Who::Dispatcher(index)) => return self.leads(index),
            (Step::Leads, Who::Worker(_)) => {}
            (Step::Crashes | Step::Ended, _) => self.ended(who, self.net.now + 3_000),
        }
        match who {
            Who::Worker(index) => self.check_worker(index),
            Who::Dispatcher(index) => self.check_dispatcher(index),
        }
    }

    fn leads(&mut self, index: usize) -> Verdict {
        let now = self.net.now;
        let process = &self.dispatchers[index];
        let Some(leader) = &process.leader else {
            return Ok(());
        };
        let others = self.dispatchers.iter().filter(|other| other.index != index);
        if let Some(other) = others.into_iter().find(|other| other.may_act(now)) {
            return Err(format!(
                "dispatchers {index} and {} lead at once",
                other.index
            ));
        }
        if let Some((
            Life {
                who: Who::Dispatcher(before),
                ..
            },
            _,
        )) = self.leading
            && before != index
        {
            self.net.counters.bump("a standby took over");
            let wall = |index: usize| self.dispatchers[index].clock.wall(now).as_millis();
            if wall(before).abs_diff(wall(index)) > DIFFERING_CLOCKS {
                self.net
                    .counters
                    .bump("a leader's clock was seconds apart from the one before");
            }
        }
        self.leading = Some((process.life(), leader.leadership));
        self.checks.disturbed = false;
        self.net
            .trace
            .line(now, || format!("dispatcher {index} leads"));
        Ok(())
    }

    /// A process has ended, one way or another, and begins again then.
    pub fn ended(&mut self, who: Who, again_at: Millis) {
        self.net
            .trace
            .line(self.net.now, || format!("{who:?} ended"));
        match who {
            Who::Dispatcher(index) => self.dispatchers[index].crash(&mut self.net),
            Who::Worker(index) => self.workers[index].crash(&mut self.net),
        }
        self.trouble(who, again_at);
        self.net.at(again_at, Event::Begin(who));
    }

    pub fn begin_process(&mut self, who: Who) -> Verdict {
        let is_up = match who {
            Who::Dispatcher(index) => self.dispatchers[index].is_up,
            Who::Worker(index) => self.workers[index].is_up,
        };
        if is_up {
            return Ok(());
        }
        self.net
            .trace
            .line(self.net.now, || format!("{who:?} begins"));
        let step = match who {
            Who::Dispatcher(index) => self.dispatchers[index].begin(&mut self.net),
            Who::Worker(index) => self.workers[index].begin(&mut self.net),
        };
        self.stepped(who, step)
    }

    /// A user's message, stored by the broker, or tried again a little later.
    pub fn request(&mut self, request: prewarm::dispatch::Request) {
        let verb = match &request {
            prewarm::dispatch::Request::Submit(_) => "submit",
            _ => "command",
        };
        let request = Arc::new(request);
        let (payload, demands) = (Payload::Request(request.clone()), Demands::default());
        let subject = format!("prewarm.job.{verb}");
        let stored = self
            .broker
            .publish(self.net.now, JOBS, &subject, payload, &demands);
        if let Ok(stored) = stored {
            self.checks.requests.insert(stored.sequence, request);
        }
        self.serve(JOBS, REQUESTS);
    }

    fn broker_up(&mut self) {
        self.net.broker_up = true;
        self.broker.restart();
        self.pulls.clear();
        self.net.counters.bump("the broker restarted");
        let lives: Vec<Life> = self
            .dispatchers
            .iter()
            .map(DispatcherProcess::life)
            .chain(self.workers.iter().map(WorkerProcess::life))
            .collect();
        for life in lives {
            let back = self.net.now + self.net.rng.range(50, 2_500);
            self.disconnect(life, back);
        }
    }

    /// The process has no connection until then.
    pub fn disconnect(&mut self, life: Life, until: Millis) {
        let link = self.net.link(life.who);
        link.down_until = link.down_until.max(until);
        let until = link.down_until;
        self.net.at(until, Event::Reconnected { to: life });
    }

    fn act(&mut self, action: Action) -> Verdict {
        if let Action::Ask(wish) = action {
            if self.net.broker_up {
                let request = wish.request();
                self.net
                    .trace
                    .line(self.net.now, || format!("user {request:?}"));
                self.request(request);
            }
            return Ok(());
        }
        self.net
            .trace
            .line(self.net.now, || format!("fault {action:?}"));
        self.go_wrong(action)
    }
}
