//! Releasing pulls, taking their results, withdrawing them.

use std::cmp::Reverse;
use std::collections::btree_map::Entry;
use std::collections::{BTreeSet, BinaryHeap};

use super::failed::given_up;
use super::fleet::NodeId;
use super::input::Effect;
use super::job::{Pull, PullState};
use super::slots::{JobId, Place, PullIndex, Resource, Slots, Turn};
use super::state::Dispatcher;
use crate::domain::time::Timestamp;
use crate::wire::event::{PullState as Reported, TaskEvent};
use crate::wire::subject::PullKey;
use crate::wire::task::PullTask;
use crate::wire::worker::{PullId, Revocation};

fn intern(names: &mut std::collections::BTreeMap<Box<str>, u32>, name: &str) -> (u32, bool) {
    if let Some(id) = names.get(name) {
        return (*id, false);
    }
    let id = u32::try_from(names.len()).unwrap_or(u32::MAX);
    names.insert(name.into(), id);
    (id, true)
}

impl Dispatcher {
    fn zone_resource(&mut self, zone: &str) -> Option<Resource> {
        let limit = self.settings.zone_limit?;
        let (id, is_new) = intern(&mut self.zones, zone);
        if is_new {
            self.slots.set_limit(Resource::Zone(id), limit);
        }
        Some(Resource::Zone(id))
    }

    /// The slots of the zone the node is in, if zones are limited.
    pub(super) fn zone_of(&mut self, node: NodeId) -> Option<Resource> {
        self.settings.zone_limit?;
        let zone = self.fleet.get(node)?.zone()?.to_owned();
        self.zone_resource(&zone)
    }

    fn host_resource(&mut self, host: &str) -> Option<Resource> {
        let limit = self.settings.host_limit?;
        let (id, is_new) = intern(&mut self.hosts, host);
        if is_new {
            self.slots.set_limit(Resource::Host(id), limit);
        }
        Some(Resource::Host(id))
    }

    /// Everything a pull needs a slot of. The job comes first: a job at its limit waits by itself
    /// and is in nobody's line.
    pub(super) fn needs(&mut self, pull: PullIndex) -> Vec<Resource> {
        let mut needs = vec![Resource::Job(pull.job), Resource::Node(pull.node)];
        if self.settings.host_limit.is_some() {
            let image = self
                .jobs
                .get(&pull.job)
                .and_then(|job| job.spec.images.get(usize::from(pull.image)));
            let host = image.map(|image| image.registry().to_owned());
            needs.extend(host.and_then(|host| self.host_resource(&host)));
        }
        needs.extend(self.zone_of(pull.node));
        needs
    }

    pub(super) fn turn(&self, pull: PullIndex) -> Option<Turn> {
        let job = self.jobs.get(&pull.job)?;
        Some(Turn {
            priority: Reverse(job.spec.priority),
            place: job.pull(pull.node, pull.image)?.place,
            pull,
        })
    }

    /// Lets a pull that is in nobody's line wait.
    pub(super) fn wait_at(&mut self, resource: Resource, pull: PullIndex) {
        let Some(job) = self.jobs.get_mut(&pull.job) else {
            return;
        };
        let place = self.slots.wait(resource, job.spec.priority, pull);
        if let Some(waiting) = job.pull_mut(pull.node, pull.image) {
            waiting.place = place;
            waiting.state = PullState::Pending(resource);
        }
    }

    /// Gives the job this node: its pulls wait until [`Dispatcher::refill`] finds slots for them.
    pub(super) fn enroll(&mut self, id: JobId, node: NodeId) {
        let Some(job) = self.jobs.get_mut(&id) else {
            return;
        };
        if job.pulls.contains_key(&node) {
            return;
        }
        let resource = Resource::Job(id);
        let pending = PullState::Pending(resource);
        let mut pulls = Vec::with_capacity(job.spec.images.len());
        for image in 0..u8::try_from(job.spec.images.len()).unwrap_or(u8::MAX) {
            let state = match job.outside.remove(&(node, image)) {
                None => pending,
                Some(None) => PullState::Succeeded,
                Some(Some(given_up)) => {
                    job.note_failure(node, image, given_up);
                    PullState::Failed
                }
            };
            job.recount(None, Some(state));
            let pull = PullIndex {
                job: id,
                node,
                image,
            };
            let place = if state == pending {
                self.slots.wait(resource, job.spec.priority, pull)
            } else {
                Place::default()
            };
            pulls.push(Pull {
                state,
                place,
                attempts: 0,
                sequence: 0,
            });
        }
        let waiting = pulls.iter().filter(|pull| pull.state == pending).count();
        if let Some(count) = job.pending_on(self.fleet.away(node)) {
            *count += u32::try_from(waiting).unwrap_or(u32::MAX);
        }
        job.pulls.insert(node, pulls.into());
        job.tally_node(node, true);
        self.update_job_limit(id);
    }

    /// Takes this node from the job: nothing of it counts any more. Says what came free.
    pub(super) fn expel(
        &mut self,
        id: JobId,
        node: NodeId,
        effects: &mut Vec<Effect>,
    ) -> Vec<Resource> {
        let Some(images) = self
            .jobs
            .get(&id)
            .and_then(|job| job.pulls.get(&node))
            .map(|p| p.len())
        else {
            return Vec::new();
        };
        let (mut revoked, mut freed) = (Vec::new(), Vec::new());
        for image in 0..images {
            let image = u8::try_from(image).unwrap_or(u8::MAX);
            let pull = PullIndex {
                job: id,
                node,
                image,
            };
            let Some(state) = self.state_of(pull) else {
                continue;
            };
            if state == PullState::Active {
                effects.extend(self.key(pull).map(Effect::WithdrawPull));
                revoked.extend(self.pull_id(pull));
            }
            freed.extend(self.leave_slots(pull, state));
        }
        let away = self.fleet.away(node);
        if let Some(job) = self.jobs.get_mut(&id) {
            job.tally_node(node, false);
            let pulls = job.pulls.remove(&node).unwrap_or_default();
            for (image, pull) in (0u8..).zip(pulls) {
                job.keep_outside(node, image, pull.state);
                if let Some(count) = job.pending_on(away)
                    && matches!(pull.state, PullState::Pending(_))
                {
                    *count -= 1;
                }
                job.recount(Some(pull.state), None);
            }
        }
        self.revoke(node, revoked, effects);
        self.update_job_limit(id);
        freed
    }

    pub(super) fn revoke(&self, node: NodeId, pulls: Vec<PullId>, effects: &mut Vec<Effect>) {
        let unpin = Vec::new();
        self.say_revoked(node, Revocation { pulls, unpin }, effects);
    }

    /// Tells a worker what to stop and take back, if there is anything.
    pub(super) fn say_revoked(
        &self,
        node: NodeId,
        revocation: Revocation,
        effects: &mut Vec<Effect>,
    ) {
        let says_nothing = revocation.pulls.is_empty() && revocation.unpin.is_empty();
        if let Some(node) = self.fleet.get(node).filter(|_| !says_nothing) {
            effects.push(Effect::Revoke {
                node: node.name.clone(),
                revocation,
            });
        }
    }

    pub(super) fn state_of(&self, pull: PullIndex) -> Option<PullState> {
        Some(self.jobs.get(&pull.job)?.pull(pull.node, pull.image)?.state)
    }

    pub(super) fn key(&self, pull: PullIndex) -> Option<PullKey> {
        let job = self.jobs.get(&pull.job)?;
        Some(PullKey {
            node: self.fleet.get(pull.node)?.name.clone(),
            job: job.name.clone(),
            image: job.tokens.get(usize::from(pull.image))?.clone(),
        })
    }

    fn pull_id(&self, pull: PullIndex) -> Option<PullId> {
        let job = self.jobs.get(&pull.job)?;
        let image = job.tokens.get(usize::from(pull.image))?.clone();
        Some(PullId {
            job: job.name.clone(),
            run: job.run(),
            image,
        })
    }

    /// Lets go of whatever a pull in this state holds or waits at; says what came free.
    pub(super) fn leave_slots(&mut self, pull: PullIndex, state: PullState) -> Vec<Resource> {
        match state {
            PullState::Active => {
                let needs = self.needs(pull);
                self.slots.give_back(&needs);
                if let Some(node) = self.fleet.get_mut(pull.node) {
                    node.active.remove(&(pull.job, pull.image));
                }
                needs
            }
            PullState::Pending(resource) => {
                if let Some(turn) = self.turn(pull) {
                    self.slots.leave(resource, &turn);
                }
                Vec::new()
            }
            PullState::Succeeded | PullState::Failed | PullState::Cancelled => Vec::new(),
        }
    }

    /// Moves a pull to another state and keeps every count right.
    pub(super) fn set_state(&mut self, pull: PullIndex, to: PullState) {
        let away = self.fleet.away(pull.node);
        let Some(job) = self.jobs.get_mut(&pull.job) else {
            return;
        };
        let Some(from) = job.pull(pull.node, pull.image).map(|pull| pull.state) else {
            return;
        };
        job.tally_node(pull.node, false);
        if let Some(pull) = job.pull_mut(pull.node, pull.image) {
            pull.state = to;
            if to != PullState::Active {
                pull.sequence = 0;
            }
        }
        job.tally_node(pull.node, true);
        if let Some(count) = job.pending_on(away) {
            let pending = |state| u32::from(matches!(state, PullState::Pending(_)));
            *count = *count + pending(to) - pending(from);
        }
        job.recount(Some(from), Some(to));
    }

    /// Lets whoever waits at these resources try again: the highest priority first, wherever it waits.
    pub(super) fn refill(&mut self, now: Timestamp, freed: &[Resource], effects: &mut Vec<Effect>) {
        if !self.leading {
            return;
        }
        // Of one priority, a job's own line comes last: a slot of a node goes to whoever waits for it.
        let call = |slots: &Slots, resource: Resource| {
            let is_shared = !matches!(resource, Resource::Job(_));
            let priority = slots.next_priority(resource)?;
            Some((priority, is_shared, Reverse(resource)))
        };
        let freed = freed
            .iter()
            .filter_map(|resource| call(&self.slots, *resource));
        let mut calls: BinaryHeap<_> = freed.collect();
        while let Some((_, _, Reverse(resource))) = calls.pop() {
            if let Some(pull) = self.slots.next(resource) {
                self.place(now, pull, effects);
                calls.extend(call(&self.slots, resource));
            }
        }
    }

    /// Releases a pull that is in nobody's line, or lets it wait at the first resource that is full.
    fn place(&mut self, now: Timestamp, pull: PullIndex, effects: &mut Vec<Effect>) {
        let needs = self.needs(pull);
        if let Some(full) = self.slots.first_full(&needs) {
            return self.wait_at(full, pull);
        }
        let Some(task) = self.task(now, pull) else {
            return;
        };
        self.slots.take(&needs);
        self.activate(pull);
        self.touch(now, pull.job);
        effects.push(Effect::Release(Box::new(task)));
    }

    /// Notes that a pull is out; its slots are taken by the caller.
    pub(super) fn activate(&mut self, pull: PullIndex) {
        self.set_state(pull, PullState::Active);
        let not_before = self.last_task + 1;
        if let Some(node) = self.fleet.get_mut(pull.node) {
            node.active.insert((pull.job, pull.image));
        }
        if let Some(job) = self.jobs.get_mut(&pull.job) {
            job.has_messages = true;
            if let Some(pull) = job.pull_mut(pull.node, pull.image) {
                pull.sequence = not_before;
            }
        }
    }

    /// Stores the message of a pull again when it is out and somebody removed it: nobody would ever
    /// work on it otherwise. Its slots stay taken.
    pub(super) fn release_what_is_lost(
        &mut self,
        now: Timestamp,
        keys: &BTreeSet<PullKey>,
        as_of: u64,
        effects: &mut Vec<Effect>,
    ) {
        if !self.leading {
            return;
        }
        let nodes = self.fleet.ids().into_iter();
        let out: Vec<PullIndex> = nodes
            .filter_map(|id| Some(self.fleet.get(id)?.active_pulls(id)))
            .flatten()
            .collect();
        for pull in out {
            let stored =
                |job: &super::job::Job| job.pull(pull.node, pull.image).map(|p| p.sequence);
            let sequence = self.jobs.get(&pull.job).and_then(stored);
            let lost = self.key(pull).is_some_and(|key| !keys.contains(&key));
            if !lost || sequence.is_none_or(|sequence| sequence > as_of) {
                continue;
            }
            if let Some(task) = self.task(now, pull) {
                self.activate(pull);
                effects.push(Effect::Release(Box::new(task)));
            }
        }
    }

    /// The task that a pull is released by `now`.
    pub(super) fn task(&self, now: Timestamp, pull: PullIndex) -> Option<PullTask> {
        let job = self.jobs.get(&pull.job)?;
        let index = usize::from(pull.image);
        Some(PullTask {
            job: job.name.clone(),
            run: job.run(),
            node: self.fleet.get(pull.node)?.name.clone(),
            image: job.spec.images.get(index)?.clone(),
            digest: job.images.get(index).and_then(|image| image.digest.clone()),
            platform: job.spec.platform.clone(),
            image_pull_policy: job.spec.image_pull_policy,
            pull_policy: job.spec.pull_policy,
            priority: job.spec.priority,
            pull_secrets: job.spec.pull_secrets.clone(),
            pin: job.spec.pin,
            unpack: job.spec.unpack,
            expires_at: job.deadline(),
            released_at: job.deadline().map(|_| now),
            labels: job.spec.sandbox_config.labels.clone(),
            annotations: job.spec.sandbox_config.annotations.clone(),
            traceparent: job.trace.map(|trace| trace.handed_on(&job.run())),
        })
    }

    /// Lets a pending pull wait at its job, whatever it waits at.
    pub(super) fn wait_at_job(&mut self, pull: PullIndex) {
        let Some(PullState::Pending(before)) = self.state_of(pull) else {
            return;
        };
        if let Some(turn) = self.turn(pull) {
            self.slots.leave(before, &turn);
        }
        self.wait_at(Resource::Job(pull.job), pull);
    }

    /// Takes a released pull back: it waits again, at its job. The caller withdraws the message.
    pub(super) fn take_back(&mut self, pull: PullIndex) -> Vec<Resource> {
        let freed = self.leave_slots(pull, PullState::Active);
        let resource = Resource::Job(pull.job);
        self.set_state(pull, PullState::Pending(resource));
        self.wait_at(resource, pull);
        freed
    }

    /// Takes a fact from a worker. The first terminal fact of a pull in a run is the truth; what
    /// is told of other runs, or after it, changes nothing.
    pub(super) fn task_event(
        &mut self,
        now: Timestamp,
        event: &TaskEvent,
        sequence: u64,
        effects: &mut Vec<Effect>,
    ) {
        self.last_event = self.last_event.max(sequence);
        let Some((id, job)) = self.job(&event.job) else {
            return;
        };
        if job.is_finished() || !job.is_run(&event.run) {
            return;
        }
        let image = job.image_index(&event.image.token());
        let (Some(image), Some(node)) = (image, self.fleet.id(&event.node)) else {
            return;
        };
        let pull = PullIndex {
            job: id,
            node,
            image,
        };
        if !event.state.is_terminal() {
            return self.note_attempt(pull, event.attempt);
        }
        let Some(state) = self.state_of(pull) else {
            self.note_outside(pull, event);
            return;
        };
        if state.is_terminal() {
            return;
        }
        self.note_bytes(id, event);
        if let Some(given_up) = given_up(event) {
            self.note_failure(pull, given_up);
        }
        let succeeded = event.state == Reported::Succeeded;
        let freed = self.leave_slots(pull, state);
        self.set_state(
            pull,
            if succeeded {
                PullState::Succeeded
            } else {
                PullState::Failed
            },
        );
        self.touch(now, id);
        self.check_job(now, id, effects);
        self.refill(now, &freed, effects);
    }

    /// A fact of a node that is not part of the job now, and may be again.
    fn note_outside(&mut self, pull: PullIndex, event: &TaskEvent) {
        let key = (pull.node, pull.image);
        let Some(job) = self.jobs.get_mut(&pull.job) else {
            return;
        };
        if let Entry::Vacant(entry) = job.outside.entry(key) {
            entry.insert(given_up(event));
            self.note_bytes(pull.job, event);
        }
    }

    fn note_bytes(&mut self, id: JobId, event: &TaskEvent) {
        if let (Some(job), Some(result)) = (self.jobs.get_mut(&id), &event.result) {
            job.bytes_registry += result.bytes_registry;
            job.bytes_elsewhere += result.bytes_elsewhere;
        }
    }
}
