//! One job: its pulls, each in exactly one state, and counts that add up.

use std::collections::BTreeMap;
use std::time::Duration;

use super::fleet::{Away, NodeId};
use super::slots::{Place, Resource};
use crate::domain::failure::FailureKind;
use crate::domain::job::{CompletionType, DEFAULT_REPEAT_SECONDS, JobSpec};
use crate::domain::name::JobName;
use crate::domain::status::{Counts, JobPhase, NodeCounts, Outcome};
use crate::domain::time::Timestamp;
use crate::wire::event::FailureGroup;
use crate::wire::record::{ResolvedImage, RunTrace};
use crate::wire::task::Run;

/// Where one pull is. The last three are terminal.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum PullState {
    /// Not released; waits at this resource.
    Pending(Resource),
    /// Released and unfinished.
    Active,
    Succeeded,
    Failed,
    Cancelled,
}

impl PullState {
    pub(super) fn is_terminal(self) -> bool {
        matches!(self, Self::Succeeded | Self::Failed | Self::Cancelled)
    }

    pub(super) fn word(self) -> &'static str {
        match self {
            Self::Pending(_) => "pending",
            Self::Active => "active",
            Self::Succeeded => "succeeded",
            Self::Failed => "failed",
            Self::Cancelled => "cancelled",
        }
    }
}

/// One pull: a node and an image of a job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Pull {
    pub(super) state: PullState,
    /// Where it is in line while it waits.
    pub(super) place: Place,
    /// Attempts that its worker has told of, as far as this dispatcher has heard.
    pub(super) attempts: u16,
    /// Its message in the task stream while `Active`, or a sequence before it until the broker has
    /// said which it is.
    pub(super) sequence: u64,
}

/// Where a job is in its life.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Stage {
    /// The registry is being asked what the tags mean.
    Resolving,
    /// Pulls are released.
    Running,
    /// It has ended and holds nothing; the record is the truth.
    Finished(Outcome),
}

/// What is known of the failed pulls of one kind.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Failures {
    /// Attempts by failed pull.
    pub(super) pulls: BTreeMap<(NodeId, u8), u32>,
    /// What one of them said.
    pub(super) message: String,
}

/// Why a pull was given up, and after how many attempts.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct GivenUp {
    pub(super) kind: FailureKind,
    pub(super) attempts: u32,
    pub(super) message: String,
}

/// One job.
#[derive(Clone, Debug)]
pub(super) struct Job {
    pub(super) name: JobName,
    pub(super) labels: BTreeMap<String, String>,
    pub(super) uid: String,
    pub(super) generation: u32,
    pub(super) created_at: Timestamp,
    pub(super) request_sequence: u64,
    pub(super) trace: Option<RunTrace>,
    pub(super) spec: JobSpec,
    /// The token of each image, in the job's order.
    pub(super) tokens: Vec<String>,
    pub(super) stage: Stage,
    pub(super) paused: bool,
    pub(super) round: u32,
    pub(super) images: Vec<ResolvedImage>,
    pub(super) started_at: Option<Timestamp>,
    pub(super) round_started_at: Option<Timestamp>,
    pub(super) round_completed_at: Option<Timestamp>,
    pub(super) completed_at: Option<Timestamp>,
    pub(super) events_after: u64,
    pub(super) message: String,
    pub(super) pulls: BTreeMap<NodeId, Box<[Pull]>>,
    /// How pulls of this run ended on nodes that are not part of the job now (`None`: well). They
    /// count again if the node comes back: a pull that has ended in a run never runs in it again.
    pub(super) outside: BTreeMap<(NodeId, u8), Option<GivenUp>>,
    pub(super) counts: Counts,
    pub(super) nodes: NodeCounts,
    /// Pending pulls on nodes that are absent.
    pub(super) pending_absent: u32,
    /// Pending pulls on nodes that are there and held.
    pub(super) pending_held: u32,
    pub(super) failures: BTreeMap<FailureKind, Failures>,
    /// The groups of a finished job, whose pulls are no longer known one by one.
    pub(super) final_failures: Vec<FailureGroup>,
    pub(super) bytes_registry: u64,
    pub(super) bytes_elsewhere: u64,
    /// Whether the task stream may hold messages of it.
    pub(super) has_messages: bool,
}

impl Job {
    pub(super) fn run(&self) -> Run {
        Run {
            uid: self.uid.clone(),
            generation: self.generation,
            round: self.round,
        }
    }

    pub(super) fn is_run(&self, run: &Run) -> bool {
        self.uid == run.uid && self.generation == run.generation && self.round == run.round
    }

    pub(super) fn is_finished(&self) -> bool {
        matches!(self.stage, Stage::Finished(_))
    }

    pub(super) fn repeats(&self) -> bool {
        self.spec.completion_policy.kind == CompletionType::Never
    }

    pub(super) fn image_index(&self, token: &str) -> Option<u8> {
        let index = self.tokens.iter().position(|known| known == token)?;
        u8::try_from(index).ok()
    }

    pub(super) fn pull(&self, node: NodeId, image: u8) -> Option<&Pull> {
        self.pulls.get(&node)?.get(usize::from(image))
    }

    pub(super) fn pull_mut(&mut self, node: NodeId, image: u8) -> Option<&mut Pull> {
        self.pulls.get_mut(&node)?.get_mut(usize::from(image))
    }

    /// How many pulls wait for nodes that are away like this.
    pub(super) fn pending_on(&mut self, away: Option<Away>) -> Option<&mut u32> {
        match away? {
            Away::Absent => Some(&mut self.pending_absent),
            Away::Held => Some(&mut self.pending_held),
        }
    }

    /// How many pulls may be released and unfinished at once, now.
    pub(super) fn slot_limit(&self) -> u32 {
        if self.stage == Stage::Running && !self.paused {
            self.spec.parallelism.of(self.nodes.desired)
        } else {
            0
        }
    }

    /// Whether more nodes failed than the failure policy allows.
    pub(super) fn failed_too_often(&self) -> bool {
        let allowed = self.spec.failure_policy.map(|policy| policy.max_failed);
        allowed.is_some_and(|allowed| allowed.is_exceeded_by(self.nodes.failed, self.nodes.desired))
    }

    pub(super) fn phase(&self) -> JobPhase {
        match self.stage {
            Stage::Finished(Outcome::Cancelled) => JobPhase::Cancelled,
            Stage::Finished(_) => JobPhase::Completed,
            _ if self.paused => JobPhase::Paused,
            Stage::Resolving => JobPhase::Resolving,
            Stage::Running if self.round_completed_at.is_some() && self.round_is_quiet() => {
                JobPhase::Idle
            }
            Stage::Running => JobPhase::Running,
        }
    }

    /// Whether nothing is released and nothing waits but for absent nodes.
    pub(super) fn is_quiet(&self) -> bool {
        self.counts.active == 0 && self.counts.pending == self.pending_absent
    }

    /// Whether a round has nothing to wait for: one node that is held for days must not keep all others
    /// from their next round.
    pub(super) fn round_is_quiet(&self) -> bool {
        self.counts.active == 0 && self.counts.pending == self.pending_absent + self.pending_held
    }

    pub(super) fn deadline(&self) -> Option<Timestamp> {
        let seconds = self.spec.completion_policy.active_deadline_seconds?;
        Some(self.started_at?.after(Duration::from_secs(seconds.into())))
    }

    /// When a finished job is to be forgotten.
    pub(super) fn expires_at(&self) -> Option<Timestamp> {
        let seconds = self.spec.completion_policy.ttl_seconds_after_finished?;
        Some(
            self.completed_at?
                .after(Duration::from_secs(seconds.into())),
        )
    }

    /// When the next round is due: the interval ±5 %, drawn from the run's name so that every
    /// dispatcher draws the same.
    pub(super) fn next_round_at(&self) -> Option<Timestamp> {
        if !self.repeats() || self.is_finished() {
            return None;
        }
        let seconds = self
            .spec
            .completion_policy
            .repeat_seconds
            .unwrap_or(DEFAULT_REPEAT_SECONDS);
        let millis = u64::from(seconds) * 1_000;
        let tenth = millis / 10;
        let offset = if tenth == 0 {
            0
        } else {
            self.draw() % (tenth + 1)
        };
        let interval = Duration::from_millis(millis - tenth / 2 + offset);
        Some(self.round_started_at?.after(interval))
    }

    /// FNV-1a over the run's name: spreads rounds, nothing depends on its quality.
    fn draw(&self) -> u64 {
        let run = format!("{}/{}/{}", self.uid, self.generation, self.round);
        run.bytes().fold(0xcbf2_9ce4_8422_2325, |hash, byte| {
            (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3)
        })
    }

    /// Counts a pull out of one state and into another; `None` is "not part of the job".
    pub(super) fn recount(&mut self, from: Option<PullState>, to: Option<PullState>) {
        if let Some(from) = from {
            *self.counter(from) -= 1;
            self.counts.desired -= 1;
        }
        if let Some(to) = to {
            *self.counter(to) += 1;
            self.counts.desired += 1;
        }
        debug_assert!(
            self.counts.add_up(),
            "the counts of {} do not add up",
            self.name
        );
    }

    fn counter(&mut self, state: PullState) -> &mut u32 {
        match state {
            PullState::Pending(_) => &mut self.counts.pending,
            PullState::Active => &mut self.counts.active,
            PullState::Succeeded => &mut self.counts.succeeded,
            PullState::Failed => &mut self.counts.failed,
            PullState::Cancelled => &mut self.counts.cancelled,
        }
    }

    /// Counts a node's pulls into the node counts, or out of them before they change.
    pub(super) fn tally_node(&mut self, node: NodeId, counted_in: bool) {
        let Some(pulls) = self.pulls.get(&node) else {
            return;
        };
        let failed = pulls.iter().any(|pull| pull.state == PullState::Failed);
        let succeeded = pulls.iter().all(|pull| pull.state == PullState::Succeeded);
        let apply = |count: &mut u32, applies: bool| {
            if applies {
                *count = if counted_in {
                    *count + 1
                } else {
                    count.saturating_sub(1)
                };
            }
        };
        apply(&mut self.nodes.desired, true);
        apply(&mut self.nodes.failed, failed);
        apply(&mut self.nodes.succeeded, succeeded);
    }

    /// Notes why a pull was given up.
    pub(super) fn note_failure(&mut self, node: NodeId, image: u8, given_up: GivenUp) {
        let failures = self.failures.entry(given_up.kind).or_default();
        failures.pulls.insert((node, image), given_up.attempts);
        if failures.message.is_empty() {
            failures.message = given_up.message;
        }
    }

    /// Keeps how a pull ended while its node is not part of the job.
    pub(super) fn keep_outside(&mut self, node: NodeId, image: u8, state: PullState) {
        let given_up = match state {
            PullState::Succeeded => None,
            PullState::Failed => self.take_failure(node, image),
            PullState::Pending(_) | PullState::Active | PullState::Cancelled => return,
        };
        self.outside.insert((node, image), given_up);
    }

    fn take_failure(&mut self, node: NodeId, image: u8) -> Option<GivenUp> {
        let pull = (node, image);
        let (kind, failures) = self
            .failures
            .iter_mut()
            .find(|(_, failures)| failures.pulls.contains_key(&pull))?;
        let (kind, message) = (*kind, failures.message.clone());
        let attempts = failures.pulls.remove(&pull)?;
        if failures.pulls.is_empty() {
            self.failures.remove(&kind);
        }
        Some(GivenUp {
            kind,
            attempts,
            message,
        })
    }

    /// Forgets every pull and everything counted, as a new run begins.
    pub(super) fn clear_pulls(&mut self) {
        self.pulls.clear();
        self.outside.clear();
        self.counts = Counts::default();
        self.nodes = NodeCounts::default();
        self.pending_absent = 0;
        self.pending_held = 0;
        self.failures.clear();
        self.final_failures.clear();
        self.bytes_registry = 0;
        self.bytes_elsewhere = 0;
    }
}
