//! Another dispatcher that reads back what a cell's broker has.

use super::*;

impl Cell {
    /// A dispatcher that has read back what the broker has, and has not begun to act.
    pub(in crate::dispatch::tests) fn rebuilt(&self) -> Dispatcher {
        let mut rebuilt = Dispatcher::new(self.settings);
        let mut inputs: Vec<Input> = Vec::new();
        let nodes = self.nodes.values().cloned().map(Box::new);
        inputs.extend(nodes.map(Input::NodeRecord));
        let jobs = self.records.values().cloned().map(Box::new);
        inputs.extend(jobs.map(Input::JobRecord));
        let released = |(key, (sequence, task)): (&PullKey, &(u64, PullTask))| Input::Released {
            key: key.clone(),
            run: task.run.clone(),
            sequence: *sequence,
        };
        inputs.extend(self.tasks.iter().map(released));
        inputs.push(Input::EventsEnd {
            sequence: self.last_event,
        });
        let told = |(id, event): &Told| {
            Some(Input::JobEventTold {
                job: event.job.clone()?,
                kind: event.event,
                id: id.clone(),
            })
        };
        inputs.extend(self.told.iter().filter_map(told));
        let mut effects = Vec::new();
        for input in inputs {
            rebuilt.handle(self.now, input, &mut effects);
        }
        let after = rebuilt.events_after();
        for (sequence, event) in self.events.iter().filter(|(sequence, _)| *sequence > after) {
            let (event, sequence) = (Box::new(event.clone()), *sequence);
            rebuilt.handle(self.now, Input::TaskEvent { event, sequence }, &mut effects);
        }
        assert_eq!(effects, [], "reading back asks for nothing");
        rebuilt
    }

    /// Another dispatcher takes over.
    pub(in crate::dispatch::tests) fn take_over(&mut self) {
        self.dispatcher = self.rebuilt();
        self.tell(Input::Lead);
    }

    fn has_ended(&self, key: &PullKey) -> bool {
        let is_end = |event: &TaskEvent| {
            event.state.is_terminal()
                && PullKey::new(event.node.clone(), event.job.clone(), &event.image) == *key
        };
        self.events.iter().any(|(_, event)| is_end(event))
    }

    /// Asserts that another dispatcher would know the same and have nothing to do.
    pub(in crate::dispatch::tests) fn assert_rebuilds(&self) {
        let mut rebuilt = self.rebuilt();
        assert_same(&self.dispatcher.view(), &rebuilt.view());
        let mut effects = Vec::new();
        rebuilt.handle(self.now, Input::Lead, &mut effects);
        effects.retain(|effect| match effect {
            Effect::Resolve { .. } => false,
            // What a node that is not part of the job any more has done stays until the job ends.
            Effect::WithdrawPull(key) => !self.has_ended(key),
            _ => true,
        });
        assert_eq!(effects, [], "a takeover finds nothing to do");
    }
}

/// A group's message is what any one of its pulls said, so it may differ.
fn assert_same(live: &View, rebuilt: &View) {
    let jobs = |view: &View| {
        let mut jobs = view.jobs.clone();
        let groups = jobs.values_mut().flat_map(|job| &mut job.status.failures);
        groups.for_each(|group| group.message.clear());
        jobs
    };
    assert_eq!(live.pulls, rebuilt.pulls);
    assert_eq!(live.nodes, rebuilt.nodes);
    assert_eq!(jobs(live), jobs(rebuilt));
}
