//! The thread that keeps results on the disk, so that no disk delays a pull or a timer.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;
use tokio::task::{JoinHandle, spawn_blocking};

use super::WorkerSettings;
use super::shelf::{Shelf, ShelfError};
use crate::work::effect::EventToStore;
use crate::work::state::kept::KeptResult;

/// Most orders that wait for the disk. More come only from one that does not answer, and are dropped.
const MAX_WAITING: usize = 1_024;
/// How long the disk may take at the end.
const CLOSE_LIMIT: Duration = Duration::from_secs(5);

enum Order {
    Keep(Arc<EventToStore>),
    Discard(Arc<EventToStore>),
}

/// Where an order is left. Without a directory every order is dropped: a task then comes again, and finds its image.
#[derive(Debug)]
pub(super) struct Keeping(Option<(mpsc::Sender<Order>, JoinHandle<()>)>);

impl Keeping {
    /// Reads what an earlier life left, and starts the thread. A directory that cannot be used is told, and the worker
    /// works without.
    pub(super) async fn start(settings: &WorkerSettings, prefix: &str) -> (Self, Vec<KeptResult>) {
        let Some(directory) = settings.state_dir.clone() else {
            return (Self(None), Vec::new());
        };
        let (node, prefix) = (settings.node.clone(), prefix.to_owned());
        let opened = spawn_blocking(move || {
            let mut shelf = Shelf::open(&directory, &prefix, &node)?;
            let kept = shelf.load()?;
            Ok::<_, ShelfError>((shelf, kept))
        });
        let (shelf, kept) = match opened.await {
            Ok(Ok(opened)) => opened,
            Ok(Err(error)) => {
                without(settings.state_dir.as_deref(), &error);
                return (Self(None), Vec::new());
            }
            Err(defect) => {
                without(settings.state_dir.as_deref(), &defect);
                return (Self(None), Vec::new());
            }
        };
        if !kept.is_empty() {
            tracing::info!(
                node = %settings.node,
                results = kept.len(),
                "an earlier run of this worker finished pulls that the broker may not know of; they are told now"
            );
        }
        let (sender, waiting) = mpsc::channel(MAX_WAITING);
        let keeping = spawn_blocking(move || keep(shelf, waiting));
        (Self(Some((sender, keeping))), kept)
    }

    /// Writes the end of a pull to the disk.
    pub(super) fn keep(&self, event: Arc<EventToStore>) {
        self.order(Order::Keep(event));
    }

    /// Takes it off the disk.
    pub(super) fn discard(&self, event: Arc<EventToStore>) {
        self.order(Order::Discard(event));
    }

    fn order(&self, order: Order) {
        if let Some((sender, _)) = &self.0
            && sender.try_send(order).is_err()
        {
            tracing::warn!(
                "the disk of the state directory does not answer; a result is not kept on it"
            );
        }
    }

    /// Waits until everything is on the disk.
    pub(super) async fn close(self) {
        if let Some((sender, keeping)) = self.0 {
            drop(sender);
            if tokio::time::timeout(CLOSE_LIMIT, keeping).await.is_err() {
                tracing::warn!(
                    "the disk of the state directory does not answer; results are not kept on it"
                );
            }
        }
    }
}

fn without(directory: Option<&Path>, error: &dyn std::fmt::Display) {
    let directory = directory.unwrap_or(Path::new("")).display();
    tracing::warn!(
        %directory,
        %error,
        "the state directory cannot be used (--state-dir); if this worker restarts while the broker is away, pulls that had ended are looked at again"
    );
}

fn keep(mut shelf: Shelf, mut waiting: mpsc::Receiver<Order>) {
    while let Some(order) = waiting.blocking_recv() {
        match order {
            Order::Keep(event) => match shelf.put(&KeptResult::from(&*event)) {
                Ok(()) => {
                    let (job, image) = (&event.event.job, &event.event.image);
                    tracing::info!(%job, %image, "the broker does not answer; the end of the pull is kept on the disk until it does");
                }
                Err(error) => {
                    let (job, image) = (&event.event.job, &event.event.image);
                    tracing::warn!(%job, %image, %error, "the end of a pull is not kept on the disk; if this worker restarts before the broker has it, the pull is looked at again");
                }
            },
            Order::Discard(event) => {
                if let Err(error) = shelf.remove(&event.message_id) {
                    tracing::warn!(%error, "a kept result that the broker has stays on the disk, and is told again at the next start");
                }
            }
        }
    }
}
