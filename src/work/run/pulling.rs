//! Running pulls: each is a task of its own that reports its progress and its end.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{mpsc, watch};
use tokio_util::sync::{CancellationToken, DropGuard};
use tracing::Instrument as _;

use super::Arrived;
use super::clock::Clock;
use super::outbox::Outbox;
use super::spans;
use crate::bus::Bus;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::pin::Pin;
use crate::domain::progress::{Pace, Pacer, PullProgress};
use crate::image::{PullReport, PullRequest, Runtime};
use crate::wire::event::{PullResult, TaskEvent};
use crate::wire::subject::{PullKey, Subjects};
use crate::wire::task::PullTask;
use crate::wire::worker::ProgressMessage;
use crate::work::effect::PullHandle;
use crate::work::input::Input;

/// Between two words on one pull's progress: the contract's two a second.
const PROGRESS_EVERY: Duration = Duration::from_millis(500);
/// How long a pull may take to stop; then it is abandoned where it is.
const STOP_LIMIT: Duration = Duration::from_secs(5);

/// What every pull needs.
#[derive(Clone, Debug)]
pub(super) struct Pulling {
    subjects: Subjects,
    runtime: Runtime,
    outbox: Outbox,
    arrivals: mpsc::Sender<Arrived>,
    /// Cancels every pull.
    all: CancellationToken,
}

impl Pulling {
    pub(super) fn new(
        bus: &Bus,
        runtime: Runtime,
        outbox: Outbox,
        arrivals: mpsc::Sender<Arrived>,
    ) -> Self {
        Self {
            subjects: bus.subjects.clone(),
            runtime,
            outbox,
            arrivals,
            all: CancellationToken::new(),
        }
    }

    /// Stops every pull when it is dropped: a worker that ends without a word leaves none behind.
    pub(super) fn drop_guard(&self) -> DropGuard {
        self.all.clone().drop_guard()
    }

    /// Starts a pull; cancel what is returned to stop it. Its end is reported exactly once.
    pub(super) fn start(
        &self,
        pull: PullHandle,
        task: Arc<PullTask>,
        attempt: u32,
    ) -> CancellationToken {
        let cancelled = self.all.child_token();
        let (this, stop) = (self.clone(), cancelled.clone());
        let span = spans::pull(&task, attempt);
        let work = async move {
            let result = this.pull(&task, attempt, stop).await;
            spans::pull_ended(&result);
            let ended = Input::PullEnded { pull, result };
            let _ = this.arrivals.send(Arrived::Input(ended)).await;
        };
        tokio::spawn(work.instrument(span));
        cancelled
    }

    async fn pull(
        &self,
        task: &PullTask,
        attempt: u32,
        cancelled: CancellationToken,
    ) -> Result<PullResult, Failure> {
        let (sink, progress) = watch::channel(PullProgress::default());
        let (runtime, request) = (self.runtime.clone(), request(task));
        let stop = cancelled.clone();
        let pulling = async move { runtime.pull(&request, &sink, &stop).await };
        // A task of its own, so that a defect of the runtime that panics is a failed pull.
        let mut pulling = tokio::spawn(pulling.in_current_span());
        let overdue = async {
            cancelled.cancelled().await;
            tokio::time::sleep(STOP_LIMIT).await;
        };
        tokio::select! {
            ended = &mut pulling => match ended {
                Ok(result) => result.map(|report| told(&report)),
                Err(error) => Err(Failure::new(
                    FailureKind::Internal,
                    format!("the pull ended by a defect of prewarm, please report it: {error}"),
                )),
            },
            never = self.report(task, attempt, progress) => never,
            () = overdue => {
                pulling.abort();
                let message = format!("the pull did not stop within {} s and was abandoned", STOP_LIMIT.as_secs());
                tracing::warn!("{message}");
                Err(Failure::new(FailureKind::Internal, message))
            }
        }
    }

    /// Says how far the pull is and how fast it goes whenever that changes, but not more often than is allowed.
    async fn report<T>(
        &self,
        task: &PullTask,
        attempt: u32,
        mut progress: watch::Receiver<PullProgress>,
    ) -> T {
        let key = PullKey::new(task.node.clone(), task.job.clone(), &task.image);
        let subject = self.subjects.progress(&key);
        let (mut clock, mut pacer) = (Clock::new(), Pacer::default());
        let mut said = (PullProgress::default(), Pace::default());
        loop {
            // Where nothing moves, the rate does: it falls.
            let still = said.1.bytes_per_second.is_some_and(|rate| rate > 0);
            tokio::select! {
                changed = progress.changed() => if changed.is_err() {
                    return std::future::pending().await;
                },
                () = tokio::time::sleep(PROGRESS_EVERY), if still => {}
            }
            let now = *progress.borrow_and_update();
            let pace = pacer.pace(clock.now(), &now);
            if said != (now, pace) {
                said = (now, pace);
                let message = ProgressMessage {
                    job: task.job.clone(),
                    run: task.run.clone(),
                    node: task.node.clone(),
                    image: task.image.clone(),
                    attempt,
                    progress: now,
                    pace,
                    waiting_after: None,
                };
                self.outbox.say(subject.clone(), &message);
            }
            tokio::time::sleep(PROGRESS_EVERY).await;
        }
    }
}

/// What watchers are told of a pull that waits for its next attempt.
pub(super) fn waiting(event: &TaskEvent) -> ProgressMessage {
    ProgressMessage {
        job: event.job.clone(),
        run: event.run.clone(),
        node: event.node.clone(),
        image: event.image.clone(),
        attempt: event.attempt,
        progress: PullProgress::default(),
        pace: Pace::default(),
        waiting_after: event.failure.as_ref().map(|failure| failure.kind),
    }
}

fn request(task: &PullTask) -> PullRequest {
    PullRequest {
        image: task.image.clone(),
        digest: task.digest.clone(),
        policy: task.image_pull_policy,
        platform: task.platform.clone(),
        pull_secrets: task.pull_secrets.clone(),
        pin: task.pin.then(|| Pin {
            uid: task.run.uid.clone(),
            image: task.image.token(),
            generation: task.run.generation,
        }),
        unpack: task.unpack,
        labels: task.labels.clone(),
    }
}

fn told(report: &PullReport) -> PullResult {
    let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
    PullResult {
        digest: report.digest.clone(),
        already_present: report.already_present,
        bytes_registry: report.bytes_registry,
        bytes_elsewhere: report.bytes_mirror,
        bytes_present: report.bytes_present,
        resolve_millis: millis(report.resolve),
        download_millis: millis(report.download),
        unpack_millis: millis(report.unpack),
        engine: report
            .engine
            .map_or_else(String::new, |engine| engine.as_str().to_owned()),
        engine_reason: report.engine_reason.clone(),
    }
}
