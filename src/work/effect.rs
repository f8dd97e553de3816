//! What a worker does: the shell carries these out, in order.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use crate::domain::name::NodeName;
use crate::domain::pin::Pin;
use crate::domain::time::Timestamp;
use crate::domain::trace::TraceContext;
use crate::wire::event::TaskEvent;
use crate::wire::task::{PullTask, Run};
use crate::wire::worker::{Heartbeat, PullId};

macro_rules! handle {
    ($(#[$doc:meta])* $type:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub struct $type(pub u64);

        impl fmt::Display for $type {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                write!(f, "{}", self.0)
            }
        }
    };
}

handle!(
    /// Names one delivery, chosen by whoever delivers; never used twice in a process.
    DeliveryToken
);
handle!(
    /// Names one running pull, chosen by the state; never used twice in a process.
    PullHandle
);
handle!(
    /// Names one event to store, chosen by the state; the same when the event is stored again.
    StoreHandle
);

/// Where the node's tasks are asked for.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct ConsumerName {
    /// The stream.
    pub stream: String,
    /// The node's consumer on it.
    pub consumer: String,
}

/// An event on its way to the broker.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct EventToStore {
    /// What to answer with.
    pub store: StoreHandle,
    /// The `Nats-Msg-Id`: repeats of one `Store` are dropped by the broker, and nothing else is.
    ///
    /// It is not the event's own id. When a task comes again after a crash, `started` is told again,
    /// and would be the last word on its subject if the broker dropped the second `succeeded`.
    pub message_id: String,
    /// When it happened.
    pub at: Timestamp,
    /// What happened.
    pub event: TaskEvent,
    /// The span that the task hangs under: what goes with the event as its header `traceparent`.
    pub traceparent: Option<TraceContext>,
}

/// One thing to do.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Effect {
    /// Announce the node to the dispatcher; answered by `Registered` or `NotRegistered`.
    Register {
        /// Whether the consumer was found gone, so that it has to be made anew.
        consumer_lost: bool,
    },
    /// Ask for this many tasks, beside what was asked for before.
    Fetch {
        /// The consumer to ask. When it is another than before, requests to the old one are dead.
        consumer: ConsumerName,
        /// How many, at least 1.
        batch: u32,
    },
    /// Take no more deliveries: drop every open request for tasks.
    StopFetching,
    /// Put the image on the node; answered by `PullEnded`.
    StartPull {
        /// What to answer with.
        pull: PullHandle,
        /// The task.
        task: Arc<PullTask>,
        /// Which attempt, from 1.
        attempt: u32,
    },
    /// Stop a pull at its next safe point; its `PullEnded` still follows.
    CancelPull(PullHandle),
    /// Publish an event and wait for the broker to keep it; answered by `Stored` or `NotStored`.
    Store(Arc<EventToStore>),
    /// Write the end of a pull to the disk, where it survives this process; nothing waits for that.
    Keep(Arc<EventToStore>),
    /// Take it off the disk again, if it is there.
    Discard(Arc<EventToStore>),
    /// The task is done with.
    Ack(DeliveryToken),
    /// The task is to be delivered again.
    Nak {
        /// Which delivery.
        token: DeliveryToken,
        /// Not before this has passed; `None` means at once.
        delay: Option<Duration>,
    },
    /// Another delivery of the same task took this one's place: it is never answered.
    Forget(DeliveryToken),
    /// The task is in good hands: the broker's ack wait starts anew.
    InProgress(DeliveryToken),
    /// Say that the node lives.
    Heartbeat(Heartbeat),
    /// Find out which pins the node has; answered by `PinsFound`.
    FindPins,
    /// Take pins back; answered by `Unpinned`.
    Unpin(Vec<Pin>),
    /// Tell whoever reads the log.
    Note(Note),
    /// Nothing is in hand, and after `Stop` nothing will be.
    Drained,
}

/// Something unusual that no event tells.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Note {
    /// A message that is no task was dropped, or a task that cannot be read is failed.
    Undecodable {
        /// The subject it was published on.
        subject: String,
        /// Why it cannot be read.
        problem: String,
    },
    /// A task of another node was dropped: the consumer's filter or somebody's permissions are wrong.
    ForAnotherNode {
        /// Which pull.
        pull: PullId,
        /// The node it names.
        node: NodeName,
    },
    /// A pull in hand gave way to another run of the same job and image.
    Superseded {
        /// Which pull.
        pull: PullId,
        /// The run that was delivered.
        by: Run,
    },
    /// A task of an older run than the one in hand was dropped.
    Outdated(PullId),
    /// A pull in hand was revoked.
    Revoked(PullId),
    /// A task was put back because its pull was revoked a moment ago.
    RevokedBefore(PullId),
    /// A task was put back because more came than was asked for.
    NoSlot(PullId),
    /// A task was put back because the worker is stopping.
    Stopping(PullId),
}
