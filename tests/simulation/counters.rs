//! How often rare things happened: a simulation that never reaches a branch proves nothing of it.

use std::collections::BTreeMap;

/// What has to happen at least once in a default run.
pub const SOMETIMES: [&str; 59] = [
    "a consumer began behind the newest task",
    "a consumer was lost",
    "a dispatcher crashed between two effects",
    "a dispatcher crashed with an effect on its way",
    "a dispatcher handed over",
    "a disk took no result",
    "a failed pull was tried again",
    "a frozen leader woke up deposed",
    "a generation replaced one that ran",
    "a job event was told again",
    "a job exceeded its deadline",
    "a job gave up absent nodes",
    "a job had too many failures",
    "a job was cancelled",
    "a job was deleted after its time to live",
    "a job was deleted by a user",
    "a job was edited",
    "a job was paused",
    "a job was resumed",
    "a leader crashed with releases to do",
    "a leader's clock was seconds apart from the one before",
    "a lost task was released again",
    "a message overtook one to another stream",
    "a node joined while a job ran",
    "a node left with active pulls",
    "a node returned",
    "a node with active pulls was held",
    "a node with active pulls was relabelled",
    "a pull failed with its last attempt",
    "a pull met a registry that was down",
    "a pull took too long",
    "a record write met another's revision",
    "a release met a message",
    "a request came again",
    "a request was rejected",
    "a revocation stopped a running pull",
    "a result of an earlier life was stored",
    "a round followed another",
    "a rebuilt dispatcher was compared",
    "a running pull's worker crashed",
    "a second terminal event differed from the first",
    "a stale task was withdrawn after a takeover",
    "a standby took over",
    "a task to withdraw had gone",
    "a task was delivered again",
    "a task was delivered again after its terminal event",
    "a worker crashed between two effects",
    "a worker drained",
    "a worker ended a pull for its job's deadline",
    "a worker stored an event again",
    "an ack came twice",
    "an ack was lost",
    "an answer came too late or never",
    "an effect of a deposed leader was performed",
    "images were left to the nodes to resolve",
    "pins were taken back",
    "the broker restarted",
    "the broker's word on a publish was lost",
    "a zone or a host was full",
];

/// Counts by name.
#[derive(Clone, Debug, Default)]
pub struct Counters(BTreeMap<&'static str, u64>);

impl Counters {
    pub fn bump(&mut self, what: &'static str) {
        *self.0.entry(what).or_insert(0) += 1;
    }

    pub fn add(&mut self, other: &Self) {
        for (what, count) in &other.0 {
            *self.0.entry(what).or_insert(0) += count;
        }
    }

    pub fn get(&self, what: &str) -> u64 {
        self.0.get(what).copied().unwrap_or(0)
    }

    /// What never happened and should have.
    pub fn missing(&self) -> Vec<&'static str> {
        let never = |what: &&&'static str| self.get(what) == 0;
        SOMETIMES.iter().filter(never).copied().collect()
    }

    pub fn table(&self) -> String {
        let rows = self
            .0
            .iter()
            .map(|(what, count)| format!("{count:>9}  {what}\n"));
        rows.collect()
    }
}
