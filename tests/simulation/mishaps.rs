//! What goes wrong, done to the world; and everything made well again.

use std::sync::Arc;

use prewarm::dispatch::{Pause, Request};
use prewarm::domain::job::Amount;
use prewarm::domain::name::NodeName;
use prewarm::domain::node::ZONE_LABEL;
use prewarm::wire::manifest::Submission;
use prewarm::wire::subject::Subjects;

use crate::broker::Millis;
use crate::dispatcher::Step;
use crate::invariants::{self, Verdict};
use crate::net::{Event, Life, Who};
use crate::payload::TASKS;
use crate::plan::{Action, Target};
use crate::world::World;

/// Longer than what was not answered takes to come again: a request of a life that ended is open for two minutes, and what
/// is delivered to it comes again after the ack wait.
const AFTERMATH: Millis = 180_000;

impl World {
    fn life(&self, who: Who) -> Option<Life> {
        let (is_up, life) = match who {
            Who::Dispatcher(index) => {
                let process = self.dispatchers.get(index)?;
                (process.is_up, process.life())
            }
            Who::Worker(index) => {
                let process = self.workers.get(index)?;
                (process.is_up, process.life())
            }
        };
        is_up.then_some(life)
    }

    fn target(&self, target: Target) -> Who {
        match (target, self.leading) {
            (Target::Leader, Some((life, _))) => life.who,
            (Target::Leader, None) => Who::Dispatcher(0),
            (Target::Dispatcher(index), _) => Who::Dispatcher(index),
            (Target::Worker(index), _) => Who::Worker(index),
        }
    }

    /// Something goes wrong with a process until then, and a while after: what was in doubt comes again.
    pub fn trouble(&mut self, who: Who, until: Millis) {
        if let Who::Worker(index) = who {
            let until = until.saturating_add(AFTERMATH);
            let known = self.troubles.entry(index).or_insert(0);
            *known = until.max(*known);
        }
    }

    /// Until when something was wrong with this node's worker.
    pub fn trouble_of(&self, node: &NodeName) -> Millis {
        let index = self
            .workers
            .iter()
            .position(|process| process.node == *node);
        let until = index.and_then(|index| self.troubles.get(&index));
        until.copied().unwrap_or(0)
    }

    /// Whom it concerns, and for how long. What is lost by number is lost until all is well.
    fn note_trouble(&mut self, action: &Action) {
        let now = self.net.now;
        let (who, until) = match action {
            Action::Freeze { who, still } => (*who, now + still),
            Action::Disconnect { who, down } => (*who, now + down),
            Action::Stop { who, down } => (*who, now + down),
            Action::Crash { who, .. }
            | Action::LoseQuestions { who, .. }
            | Action::LoseAnswers { who, .. }
            | Action::RepeatAcks { who, .. }
            | Action::Delay { who, .. } => (*who, self.plan.heals_at),
            Action::LoseAcks { node, .. } => (Target::Worker(*node), self.plan.heals_at),
            Action::Relabel { node, .. } => (Target::Worker(*node), now),
            Action::RestartBroker { down } => {
                for index in 0..self.workers.len() {
                    self.trouble(Who::Worker(index), now + down);
                }
                return;
            }
            _ => return,
        };
        self.trouble(self.target(who), until);
    }

    pub fn go_wrong(&mut self, action: Action) -> Verdict {
        let now = self.net.now;
        self.note_trouble(&action);
        let to = |world: &Self, who| world.target(who);
        match action {
            Action::Ask(_) => {}
            Action::Crash {
                who,
                after_effects,
                down,
            } => {
                let who = to(self, who);
                match after_effects {
                    None if self.life(who).is_some() => self.ended(who, now + down),
                    Some(_) => self.crash_later(who, after_effects),
                    None => {}
                }
            }
            Action::CrashAfter { who, what, down } => {
                if let Who::Dispatcher(index) = to(self, who) {
                    self.dispatchers[index].crash_at = Some((what, down));
                }
            }
            Action::Stop { who, down } => return self.stop(to(self, who), down),
            Action::Freeze { who, still } => self.freeze(to(self, who), now + still),
            Action::Relabel {
                node,
                pool,
                zone,
                capacity,
            } => {
                let Some(process) = self.workers.get_mut(node) else {
                    return Ok(());
                };
                let labels = &mut process.facts.labels;
                labels.insert("pool".to_owned(), pool);
                labels.insert(ZONE_LABEL.to_owned(), zone);
                process.facts.capacity = capacity;
                return self.stop(Who::Worker(node), 100);
            }
            Action::Hold { node, pool, lasts } => self.hold(node, &pool, now + lasts),
            Action::Disconnect { who, down } => {
                if let Some(life) = self.life(to(self, who)) {
                    self.disconnect(life, now + down);
                }
            }
            Action::LoseQuestions { who, count } => {
                self.net.link(to(self, who)).lose_questions += count
            }
            Action::LoseAnswers { who, count } => {
                self.net.link(to(self, who)).lose_answers += count
            }
            Action::RepeatAcks { who, count } => self.net.link(to(self, who)).repeat += count,
            Action::LoseAcks { node, count } => self.net.link(Who::Worker(node)).lose_acks += count,
            Action::Delay { who, late } => self.net.link(to(self, who)).delays.push(late),
            Action::LoseCore { count } => self.net.lose_core += count,
            Action::RestartBroker { down } => {
                if self.net.broker_up {
                    self.net.broker_up = false;
                    self.net.at(now + down, Event::BrokerUp);
                }
            }
            Action::RegistryDown { down } => self.net.registry.down_until = now + down,
            Action::RegistryFlaky { lasts } => self.net.registry.flaky_until = now + lasts,
            Action::RegistryStalls { lasts } => self.net.registry.stalls_until = now + lasts,
            Action::MoveTag(image) => self.net.registry.move_tag(&image),
            Action::PurgeTasks => self.purge_tasks(),
        }
        Ok(())
    }

    fn purge_tasks(&mut self) {
        self.purge(TASKS, &Subjects::default().tasks(), None, false);
        // Until the dispatcher has looked through the stream, it knows of more than there is.
        self.checks.disturbed = true;
    }

    fn crash_later(&mut self, who: Who, after: Option<u32>) {
        match who {
            Who::Dispatcher(index) => self.dispatchers[index].crash_after = after,
            Who::Worker(index) => self.workers[index].crash_after = after,
        }
    }

    fn stop(&mut self, who: Who, down: u64) -> Verdict {
        if self.life(who).is_none() {
            return Ok(());
        }
        let step = match who {
            Who::Dispatcher(index) => self.dispatchers[index].stop(&mut self.net),
            Who::Worker(index) => {
                let process = &mut self.workers[index];
                if process.stopping {
                    return Ok(());
                }
                process.stop(&mut self.net)
            }
        };
        match step {
            Step::Crashes | Step::Ended => self.ended(who, self.net.now + down),
            Step::Done | Step::Leads => {}
        }
        Ok(())
    }

    /// The node of a running worker has another label, and takes no new pulls until then.
    fn hold(&mut self, node: usize, pool: &str, until: u64) {
        let Some(process) = self.workers.get_mut(node) else {
            return;
        };
        let labels = &mut process.facts.labels;
        labels.insert("pool".to_owned(), pool.to_owned());
        process.facts.waiting = Some("cordoned".to_owned());
        let to = process.life();
        self.net.at(self.net.now, Event::StandingChanged { to });
        self.net.at(until, Event::TakesPulls(node));
    }

    /// The node takes new pulls again.
    pub fn takes_pulls(&mut self, node: usize) {
        let Some(process) = self.workers.get_mut(node) else {
            return;
        };
        if process.facts.waiting.take().is_some() {
            let to = process.life();
            self.net.at(self.net.now, Event::StandingChanged { to });
        }
    }

    fn freeze(&mut self, who: Who, until: u64) {
        match who {
            Who::Dispatcher(index) => self.dispatchers[index].frozen_until = until,
            Who::Worker(index) => self.workers[index].frozen_until = until,
        }
    }

    /// Nothing goes wrong any more; what users have stopped goes on. Some nodes stay away.
    pub fn heal(&mut self) -> Verdict {
        let now = self.net.now;
        self.net.trace.line(now, || "everything heals".to_owned());
        self.healed_at = Some(now);
        for link in self.net.links.values_mut() {
            link.lose_questions = 0;
            link.lose_answers = 0;
            link.repeat = 0;
            link.lose_acks = 0;
            link.delays.clear();
        }
        self.net.lose_core = 0;
        self.net.registry.down_until = 0;
        self.net.registry.flaky_until = 0;
        self.net.registry.stalls_until = 0;
        for index in 0..self.dispatchers.len() {
            self.dispatchers[index].crash_after = None;
            self.dispatchers[index].crash_at = None;
            self.begin_process(Who::Dispatcher(index))?;
        }
        for node in 0..self.workers.len() {
            self.workers[node].crash_after = None;
            self.takes_pulls(node);
        }
        Ok(())
    }

    /// Users let go on what they have paused or given no parallelism.
    pub fn let_go_on(&mut self) {
        if !self.net.broker_up || !self.waiting_requests().is_empty() {
            return;
        }
        for record in invariants::records(&self.broker) {
            if record.status.outcome.is_some() {
                continue;
            }
            if record.status.paused {
                self.request(Request::Pause(record.metadata.name.clone(), Pause::Resume));
            }
            let mut spec = record.spec.clone();
            if matches!(spec.parallelism, Amount::Count(0) | Amount::Percent(0)) {
                spec.parallelism = Amount::Count(3);
                self.request(Request::Submit(Box::new(Submission {
                    name: record.metadata.name.clone(),
                    labels: record.metadata.labels.clone(),
                    spec,
                    trace: None,
                })));
            }
        }
    }

    /// Whether nothing has gone wrong for so long.
    pub fn is_well_since(&self, long: u64) -> bool {
        self.net.broker_up && self.healed_at.is_some_and(|at| at + long <= self.net.now)
    }

    /// Names of nodes whose workers run.
    pub fn nodes_that_live(
        &self,
    ) -> Vec<(
        &prewarm::domain::name::NodeName,
        &crate::worker::WorkerProcess,
    )> {
        let live = self.workers.iter().filter(|process| process.is_up);
        live.map(|process| (&process.node, process)).collect()
    }

    /// Requests that nobody has taken off the queue.
    pub fn waiting_requests(&self) -> Vec<(u64, Arc<Request>)> {
        let messages = self.broker.messages(crate::payload::JOBS, 0);
        let request =
            |(sequence, message): (u64, &crate::broker::Message<_>)| match &message.payload {
                crate::payload::Payload::Request(request) => Some((sequence, request.clone())),
                _ => None,
            };
        messages.filter_map(request).collect()
    }
}
