//! What a worker remembers of pulls that are not in its hands.

use std::collections::BTreeMap;
use std::time::Duration;

use super::hand::Until;
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::wire::task::Run;
use crate::wire::worker::PullId;

/// Most pulls whose attempts are remembered; the one tried longest ago is forgotten first, and its
/// next attempt counts by the broker's deliveries alone.
pub const MAX_ATTEMPTS_REMEMBERED: usize = 1_024;
/// Most revocations remembered.
pub const MAX_REVOCATIONS_REMEMBERED: usize = 1_024;
/// How long a revocation is remembered: long enough for a delivery that crossed it on the wire.
///
/// Not longer, since a pull that was revoked because its node seemed gone is released again, under the
/// same run, when the node is back.
pub const REVOCATION_MEMORY: Duration = Duration::from_secs(10);

#[derive(Clone, PartialEq, Eq, Debug)]
struct Tried {
    run: Run,
    attempts: u32,
    until: Until,
    at: Timestamp,
}

/// Attempts and revocations, both bounded.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Memory {
    /// By job and image: another run of the same pull starts from nothing.
    tried: BTreeMap<(JobName, String), Tried>,
    /// Until when each is remembered.
    revoked: BTreeMap<PullId, Timestamp>,
}

fn key(pull: &PullId) -> (JobName, String) {
    (pull.job.clone(), pull.image.clone())
}

impl Memory {
    /// Attempts of this run so far.
    pub(super) fn attempts(&self, pull: &PullId) -> u32 {
        self.tried
            .get(&key(pull))
            .filter(|tried| tried.run == pull.run)
            .map_or(0, |tried| tried.attempts)
    }

    /// How long the job lasts, of an attempt before at the same release of this run.
    pub(super) fn until(&self, pull: &PullId, released_at: Option<Timestamp>) -> Option<Until> {
        let tried = self.tried.get(&key(pull))?;
        // A task that does not say it may be of another release, with a deadline that was edited.
        let is_known = released_at.is_some() && tried.until.released_at == released_at;
        let same = tried.run == pull.run && is_known;
        same.then_some(tried.until)
    }

    /// Remembers that an attempt began.
    pub(super) fn attempt(&mut self, pull: &PullId, attempts: u32, until: Until, now: Timestamp) {
        let tried = Tried {
            run: pull.run.clone(),
            attempts,
            until,
            at: now,
        };
        self.tried.insert(key(pull), tried);
        if self.tried.len() > MAX_ATTEMPTS_REMEMBERED {
            let oldest = self.tried.iter().min_by_key(|(_, tried)| tried.at);
            if let Some(oldest) = oldest.map(|(key, _)| key.clone()) {
                self.tried.remove(&oldest);
            }
        }
    }

    /// Forgets the attempts of a run that has ended.
    pub(super) fn ended(&mut self, pull: &PullId) {
        let key = key(pull);
        if self
            .tried
            .get(&key)
            .is_some_and(|tried| tried.run == pull.run)
        {
            self.tried.remove(&key);
        }
    }

    /// Remembers a revocation.
    pub(super) fn revoke(&mut self, pull: PullId, now: Timestamp) {
        self.ended(&pull);
        self.revoked.retain(|_, until| *until > now);
        self.revoked.insert(pull, now.after(REVOCATION_MEMORY));
        if self.revoked.len() > MAX_REVOCATIONS_REMEMBERED {
            let oldest = self.revoked.iter().min_by_key(|(_, until)| **until);
            if let Some(oldest) = oldest.map(|(pull, _)| pull.clone()) {
                self.revoked.remove(&oldest);
            }
        }
    }

    /// How much longer the revocation of this run is remembered, if it was revoked.
    pub(super) fn revoked(&self, pull: &PullId, now: Timestamp) -> Option<Duration> {
        let until = *self.revoked.get(pull)?;
        (until > now).then(|| until.since(now))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pull(job: u32, round: u32) -> PullId {
        PullId {
            job: format!("job-{job}").parse().unwrap(),
            run: Run {
                uid: "u".to_owned(),
                generation: 1,
                round,
            },
            image: "0123456789ab".to_owned(),
        }
    }

    #[test]
    fn attempts_belong_to_one_run() {
        let mut memory = Memory::default();
        memory.attempt(&pull(1, 1), 3, Until::default(), Timestamp::EPOCH);
        assert_eq!(memory.attempts(&pull(1, 1)), 3);
        assert_eq!(memory.attempts(&pull(1, 2)), 0);
        memory.ended(&pull(1, 2));
        assert_eq!(memory.attempts(&pull(1, 1)), 3);
        memory.ended(&pull(1, 1));
        assert_eq!(memory.attempts(&pull(1, 1)), 0);
    }

    #[test]
    fn memory_is_bounded_and_forgets_the_oldest() {
        let mut memory = Memory::default();
        for job in 0..3_000 {
            let now = Timestamp::from_millis(i64::from(job));
            memory.attempt(&pull(job, 1), 1, Until::default(), now);
            memory.revoke(pull(100_000 + job, 1), now);
        }
        assert_eq!(memory.tried.len(), MAX_ATTEMPTS_REMEMBERED);
        assert_eq!(memory.revoked.len(), MAX_REVOCATIONS_REMEMBERED);
        assert_eq!(memory.attempts(&pull(2_999, 1)), 1);
        assert_eq!(memory.attempts(&pull(0, 1)), 0);
    }

    #[test]
    fn a_revocation_is_remembered_for_its_time_only() {
        let mut memory = Memory::default();
        memory.revoke(pull(1, 1), Timestamp::EPOCH);
        let almost = Timestamp::EPOCH.after(REVOCATION_MEMORY - Duration::from_millis(1));
        assert_eq!(
            memory.revoked(&pull(1, 1), almost),
            Some(Duration::from_millis(1))
        );
        assert_eq!(memory.revoked(&pull(1, 2), almost), None);
        assert_eq!(
            memory.revoked(&pull(1, 1), Timestamp::EPOCH.after(REVOCATION_MEMORY)),
            None
        );
    }
}
