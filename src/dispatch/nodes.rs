//! Nodes that register, live, change, go and come back.

use std::collections::BTreeSet;
use std::time::Duration;

use super::fleet::{Node, NodeId};
use super::input::{Effect, ReplyToken};
use super::job::{Job, PullState};
use super::slots::{JobId, PullIndex, Resource};
use super::state::Dispatcher;
use super::timers::Timer;
use crate::domain::name::NodeName;
use crate::domain::node::MAX_CAPACITY;
use crate::domain::pin::Pin;
use crate::domain::time::Timestamp;
use crate::wire::event::{NodeEvent, NodeEventKind};
use crate::wire::record::NodePresence;
use crate::wire::worker::{GONE_AFTER_SECONDS, Heartbeat, PullId, Registration, Revocation};

/// Silence after which a node counts as gone.
const GONE_AFTER: Duration = Duration::from_secs(GONE_AFTER_SECONDS);
/// Silence after which a node is forgotten: its record and consumer go, and no job counts it.
pub(super) const FORGOTTEN_AFTER: Duration = Duration::from_secs(24 * 60 * 60);
/// When it is thought of again, if a job still counts on it.
const FORGOTTEN_LATER: Duration = Duration::from_secs(60 * 60);

impl Dispatcher {
    /// A worker announced itself: a new node, one that is back, or one that is there already.
    pub(super) fn registered(
        &mut self,
        now: Timestamp,
        name: NodeName,
        registration: Registration,
        reply: ReplyToken,
        effects: &mut Vec<Effect>,
    ) {
        if !self.leading {
            return;
        }
        let Registration {
            instance,
            mut facts,
            consumer_lost,
        } = registration;
        facts.capacity = facts.capacity.clamp(1, MAX_CAPACITY);
        let mut freed = Vec::new();
        let (id, changed) = match self.fleet.id(&name) {
            Some(id) => {
                let zone_before = self.zone_of(id);
                let changed = self.update_node(now, id, instance, facts);
                if self.zone_of(id) != zone_before {
                    freed = self.change_zone(id, zone_before);
                }
                (id, changed)
            }
            None => {
                let node = Node {
                    name: name.clone(),
                    facts,
                    instance,
                    presence: NodePresence::Absent,
                    since: now,
                    last_heard: now,
                    active: BTreeSet::new(),
                };
                (self.fleet.insert(node), true)
            }
        };
        let start = self.oldest_unfinished(id);
        if changed && self.fleet.is_absent(id) {
            self.come_back(now, id, effects);
        } else if changed {
            self.put_node(id, effects);
        }
        effects.push(Effect::Welcome {
            node: name,
            remake: consumer_lost,
            start,
            reply,
        });
        self.update_node_limit(id);
        if changed {
            self.match_jobs(now, id, effects);
        }
        freed.push(Resource::Node(id));
        self.refill(now, &freed, effects);
    }

    /// Takes over what a worker says of a known node; says whether its record has to be written.
    fn update_node(
        &mut self,
        now: Timestamp,
        id: NodeId,
        instance: String,
        facts: crate::domain::node::NodeFacts,
    ) -> bool {
        self.change_node(id, |node| {
            node.last_heard = now;
            let changed = node.facts != facts || node.instance != instance || node.is_absent();
            node.instance = instance;
            node.facts = facts;
            changed
        })
        .unwrap_or_default()
    }

    /// Moves what the node holds from one zone's slots to the other's, and what waits for the old
    /// zone back to its job. Says what has to be looked at again.
    fn change_zone(&mut self, id: NodeId, before: Option<Resource>) -> Vec<Resource> {
        let after = self.zone_of(id);
        let holds = self.fleet.get(id).map_or(0, |node| node.active.len());
        for _ in 0..holds {
            self.slots.give_back(before.as_slice());
            self.slots.take(after.as_slice());
        }
        let mut again = Vec::new();
        for job in self.jobs.keys().copied().collect::<Vec<_>>() {
            let pulls = self.jobs.get(&job).and_then(|job| job.pulls.get(&id));
            let waits = |pull: &super::job::Pull| match pull.state {
                PullState::Pending(resource) => Some(resource) == before,
                _ => false,
            };
            let waiting: Vec<bool> = pulls.into_iter().flatten().map(waits).collect();
            for image in (0u8..)
                .zip(waiting)
                .filter_map(|(image, waits)| waits.then_some(image))
            {
                self.wait_at_job(PullIndex {
                    job,
                    node: id,
                    image,
                });
                again.push(Resource::Job(job));
            }
        }
        again.extend(before);
        again
    }

    fn put_node(&self, id: NodeId, effects: &mut Vec<Effect>) {
        if let Some(node) = self.fleet.get(id) {
            effects.push(Effect::PutNode(Box::new(node.record())));
        }
    }

    fn tell_node(
        &self,
        now: Timestamp,
        id: NodeId,
        kind: NodeEventKind,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = self.fleet.get(id) else {
            return;
        };
        let event_id = format!("{}.{}.{}", node.name.token(), kind.token(), now.as_millis());
        let event = NodeEvent {
            node: node.name.clone(),
            event: kind,
            labels: node.facts.labels.clone(),
        };
        effects.push(Effect::TellNode {
            id: event_id,
            time: now,
            event: Box::new(event),
        });
    }

    /// Where a new consumer of this node begins: no unfinished pull of it was stored before.
    fn oldest_unfinished(&self, id: NodeId) -> u64 {
        let sequence =
            |(job, image): &(JobId, u8)| Some(self.jobs.get(job)?.pull(id, *image)?.sequence);
        let active = self.fleet.get(id).map(|node| node.active.iter());
        let sequences = active.into_iter().flatten().filter_map(sequence);
        sequences.fold(self.last_task + 1, u64::min)
    }

    pub(super) fn update_node_limit(&mut self, id: NodeId) {
        let Some(node) = self.fleet.get(id) else {
            return;
        };
        let limit = match node.away() {
            Some(_) => 0,
            None => node.facts.capacity + self.settings.lookahead,
        };
        self.slots.set_limit(Resource::Node(id), limit);
    }

    /// Puts the node into the jobs that are for it and out of those that are not.
    fn match_jobs(&mut self, now: Timestamp, id: NodeId, effects: &mut Vec<Effect>) {
        let unfinished = self.jobs.iter().filter(|(_, job)| !job.is_finished());
        let jobs: Vec<JobId> = unfinished.map(|(id, _)| *id).collect();
        // Every job first: what one gives up must not go to another that the node leaves as well.
        let mut freed = Vec::new();
        for job in &jobs {
            freed.push(Resource::Job(*job));
            freed.extend(self.match_node(now, *job, id, effects));
        }
        freed.sort_unstable();
        freed.dedup();
        self.refill(now, &freed, effects);
        for job in jobs {
            self.check_job(now, job, effects);
        }
    }

    /// Makes one node part of one job, or not, as the selector says. Says what came free.
    pub(super) fn match_node(
        &mut self,
        now: Timestamp,
        id: JobId,
        node: NodeId,
        effects: &mut Vec<Effect>,
    ) -> Vec<Resource> {
        let (Some(known), Some(job)) = (self.fleet.get(node), self.jobs.get(&id)) else {
            return Vec::new();
        };
        let matches = job.spec.selector.matches(&known.name, &known.facts.labels);
        match (matches, job.pulls.contains_key(&node)) {
            (true, false) => {
                self.enroll(id, node);
                self.touch(now, id);
                Vec::new()
            }
            (false, true) => {
                self.touch(now, id);
                self.expel(id, node, effects)
            }
            (true, true) | (false, false) => Vec::new(),
        }
    }

    /// A node that is heard of again holds jobs up again and gets its pulls.
    fn come_back(&mut self, now: Timestamp, id: NodeId, effects: &mut Vec<Effect>) {
        self.set_presence(now, id, NodePresence::Present);
        self.put_node(id, effects);
        self.tell_node(now, id, NodeEventKind::Joined, effects);
        self.timers.set(now.after(GONE_AFTER), Timer::NodeGone(id));
        self.update_node_limit(id);
    }

    fn set_presence(&mut self, now: Timestamp, id: NodeId, presence: NodePresence) {
        self.change_node(id, |node| {
            node.presence = presence;
            node.since = now;
        });
    }

    /// Changes a node, and what jobs count of pulls that wait for it; `None` if there is none.
    fn change_node<T>(&mut self, id: NodeId, change: impl FnOnce(&mut Node) -> T) -> Option<T> {
        let node = self.fleet.get_mut(id)?;
        let before = node.away();
        let said = change(node);
        let after = node.away();
        if before == after {
            return Some(said);
        }
        for job in self.jobs.values_mut() {
            let pulls = job.pulls.get(&id).into_iter().flatten();
            let pending = pulls.filter(|pull| matches!(pull.state, PullState::Pending(_)));
            let pending = u32::try_from(pending.count()).unwrap_or(u32::MAX);
            if let Some(count) = job.pending_on(before) {
                *count -= pending;
            }
            if let Some(count) = job.pending_on(after) {
                *count += pending;
            }
        }
        Some(said)
    }

    /// A worker lives. What it holds and nobody wants is revoked, pulls and pins, so that a lost word is said again.
    pub(super) fn heartbeat(
        &mut self,
        now: Timestamp,
        name: &NodeName,
        heartbeat: &Heartbeat,
        effects: &mut Vec<Effect>,
    ) {
        let Some(id) = self.fleet.id(name).filter(|_| self.leading) else {
            return;
        };
        if let Some(node) = self.fleet.get_mut(id) {
            node.last_heard = now;
        }
        if self.fleet.is_absent(id) {
            self.come_back(now, id, effects);
            self.refill(now, &[Resource::Node(id)], effects);
        }
        let unwanted = heartbeat
            .holding
            .iter()
            .filter(|held| !self.is_wanted(id, held));
        let pulls = unwanted.cloned().collect();
        let ownerless = heartbeat.pins.iter().filter(|pin| !self.is_owned(pin));
        let unpin = ownerless.cloned().collect();
        self.say_revoked(id, Revocation { pulls, unpin }, effects);
    }

    /// Whether the job of a pin lives and wants the image pinned. Which nodes it is for does not matter: what was
    /// pinned for a job stays so while it lives, also where a node's labels change for a while.
    fn is_owned(&self, pin: &Pin) -> bool {
        let job = self.job_uids.get(&pin.uid).and_then(|id| self.jobs.get(id));
        job.is_some_and(|job| job.spec.pin && job.tokens.contains(&pin.image))
    }

    /// Whether a pull in a worker's hands is one that it was given and not told to drop.
    fn is_wanted(&self, node: NodeId, held: &PullId) -> bool {
        let Some((_, job)) = self.job(&held.job) else {
            return false;
        };
        let state = job
            .image_index(&held.image)
            .and_then(|image| job.pull(node, image))
            .map(|pull| pull.state);
        let in_hand = matches!(
            state,
            Some(PullState::Active | PullState::Succeeded | PullState::Failed)
        );
        !job.is_finished() && job.is_run(&held.run) && in_hand
    }

    pub(super) fn watch_node(&mut self, now: Timestamp, id: NodeId) {
        let Some(node) = self.fleet.get(id) else {
            return;
        };
        let timer = if node.is_absent() {
            (node.since.after(FORGOTTEN_AFTER), Timer::NodeForgotten(id))
        } else {
            (now.after(GONE_AFTER), Timer::NodeGone(id))
        };
        self.timers.set(timer.0, timer.1);
    }

    /// Nobody counts as silent for a time in which nobody was listened to.
    pub(super) fn excuse_silence(&mut self, now: Timestamp, since: Timestamp) {
        let deaf_for = now.since(since);
        for id in self.fleet.ids() {
            if let Some(node) = self.fleet.get_mut(id) {
                node.last_heard = node.last_heard.after(deaf_for).min(now);
            }
        }
    }

    pub(super) fn check_node_gone(
        &mut self,
        now: Timestamp,
        id: NodeId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = self.fleet.get(id).filter(|node| !node.is_absent()) else {
            return;
        };
        let gone_at = node.last_heard.after(GONE_AFTER);
        if gone_at > now {
            self.timers.set(gone_at, Timer::NodeGone(id));
            return;
        }
        self.set_presence(now, id, NodePresence::Absent);
        self.update_node_limit(id);
        self.put_node(id, effects);
        self.tell_node(now, id, NodeEventKind::Left, effects);
        self.timers
            .set(now.after(FORGOTTEN_AFTER), Timer::NodeForgotten(id));
        self.withdraw_node(now, id, effects);
    }

    /// Takes back what an absent node was given and lets others have its slots.
    pub(super) fn withdraw_node(&mut self, now: Timestamp, id: NodeId, effects: &mut Vec<Effect>) {
        let Some(node) = self.fleet.get(id) else {
            return;
        };
        let active: Vec<_> = node.active_pulls(id).collect();
        let keys = active.iter().filter_map(|pull| self.key(*pull));
        effects.extend(keys.map(Effect::WithdrawPull));
        let mut freed = Vec::new();
        for pull in active {
            freed.extend(self.take_back(pull));
            self.touch(now, pull.job);
        }
        freed.sort_unstable();
        freed.dedup();
        self.refill(now, &freed, effects);
        let of_node = self
            .jobs
            .iter()
            .filter(|(_, job)| job.pulls.contains_key(&id));
        let jobs: Vec<JobId> = of_node.map(|(id, _)| *id).collect();
        for job in jobs {
            self.check_job(now, job, effects);
        }
    }

    pub(super) fn check_node_forgotten(
        &mut self,
        now: Timestamp,
        id: NodeId,
        effects: &mut Vec<Effect>,
    ) {
        let Some(node) = self.fleet.get(id).filter(|node| node.is_absent()) else {
            return;
        };
        if node.since.after(FORGOTTEN_AFTER) > now {
            return;
        }
        // A job that can still end counts its pulls until then; whoever forgot them would say that all went well.
        let counts =
            |job: &Job| !job.is_finished() && !job.repeats() && job.pulls.contains_key(&id);
        if self.jobs.values().any(counts) {
            self.timers
                .set(now.after(FORGOTTEN_LATER), Timer::NodeForgotten(id));
            return;
        }
        let name = node.name.clone();
        let enrolled = self
            .jobs
            .iter()
            .filter(|(_, job)| job.pulls.contains_key(&id));
        let jobs: Vec<JobId> = enrolled.map(|(id, _)| *id).collect();
        for job in &jobs {
            // An absent node holds no slots, so nothing comes free.
            self.expel(*job, id, effects);
            self.touch(now, *job);
        }
        for job in self.jobs.values_mut() {
            job.outside.retain(|(node, _), _| *node != id);
        }
        self.fleet.remove(id);
        self.slots.remove(Resource::Node(id));
        effects.push(Effect::DeleteNode(name));
        for job in jobs {
            self.check_job(now, job, effects);
        }
    }
}
