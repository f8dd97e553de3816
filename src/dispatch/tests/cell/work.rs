//! What a cell's workers tell.

use super::*;

impl Cell {
    pub(in crate::dispatch::tests) fn event(
        &self,
        name: &str,
        on: &str,
        of: &str,
        state: PullState,
    ) -> TaskEvent {
        let key = PullKey::new(node(on), job(name), &image(of));
        let run = match self.tasks.get(&key) {
            Some((_, task)) => task.run.clone(),
            None => self.records[&job(name)].run(),
        };
        TaskEvent {
            job: job(name),
            run,
            node: node(on),
            image: image(of),
            state,
            attempt: 1,
            failure: None,
            next_attempt_at: None,
            result: None,
            labels: BTreeMap::new(),
            annotations: BTreeMap::new(),
        }
    }

    pub(in crate::dispatch::tests) fn tell_event(&mut self, event: TaskEvent) {
        self.last_event += 1;
        let sequence = self.last_event;
        self.events.push((sequence, event.clone()));
        let event = Box::new(event);
        self.tell(Input::TaskEvent { event, sequence });
    }

    /// The worker says that the image is there.
    pub(in crate::dispatch::tests) fn succeed(&mut self, name: &str, on: &str, of: &str) {
        let event = self.success(name, on, of);
        self.tell_event(event);
    }

    pub(in crate::dispatch::tests) fn success(&self, name: &str, on: &str, of: &str) -> TaskEvent {
        let mut event = self.event(name, on, of, PullState::Succeeded);
        event.result = Some(PullResult {
            digest: Digest::of(of.as_bytes()),
            already_present: false,
            bytes_registry: 100,
            bytes_elsewhere: 10,
            bytes_present: 1,
            resolve_millis: 1,
            download_millis: 1,
            unpack_millis: 1,
            engine: String::new(),
            engine_reason: String::new(),
        });
        event
    }

    /// The worker gives the image up.
    pub(in crate::dispatch::tests) fn fail(
        &mut self,
        name: &str,
        on: &str,
        of: &str,
        kind: FailureKind,
    ) {
        let event = self.failure(name, on, of, kind);
        self.tell_event(event);
    }

    pub(in crate::dispatch::tests) fn failure(
        &self,
        name: &str,
        on: &str,
        of: &str,
        kind: FailureKind,
    ) -> TaskEvent {
        let mut event = self.event(name, on, of, PullState::Failed);
        event.failure = Some(FailureReport {
            kind,
            message: format!("{kind} on {on}"),
        });
        event
    }
}
