//! What can happen to a worker.

use std::sync::Arc;

use super::effect::{ConsumerName, DeliveryToken, PullHandle, StoreHandle};
use crate::domain::failure::Failure;
use crate::domain::pin::Pin;
use crate::wire::event::PullResult;
use crate::wire::task::PullTask;
use crate::wire::worker::Revocation;

/// One thing that happened.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Input {
    /// The broker delivered a task.
    Delivered {
        /// What to answer to.
        token: DeliveryToken,
        /// The task.
        task: Arc<PullTask>,
        /// How often the broker has delivered it, this time included; at least 1.
        deliveries: u32,
    },
    /// The broker delivered something that is no task, or one that this worker cannot read.
    Undecodable {
        /// What to answer to.
        token: DeliveryToken,
        /// The subject it was published on.
        subject: String,
        /// Why it cannot be read.
        problem: String,
        /// Which pull it is, if that much of it can be read; the rest of it is empty.
        named: Option<Arc<PullTask>>,
        /// How often the broker has delivered it, this time included; at least 1.
        deliveries: u32,
    },
    /// A pull ended, by itself or because it was cancelled. Said once for every `StartPull`.
    PullEnded {
        /// Which one.
        pull: PullHandle,
        /// What it found and did, or why not.
        result: Result<PullResult, Failure>,
    },
    /// The broker keeps the event of that `Store`.
    Stored(StoreHandle),
    /// The broker did not say in time that it keeps the event of that `Store`; it may or may not.
    NotStored(StoreHandle),
    /// The dispatcher no longer wants these pulls and pins.
    Revoked(Revocation),
    /// A `FindPins` ended: the pins of the node, or nothing if the runtime could not be asked.
    PinsFound(Option<Vec<Pin>>),
    /// An `Unpin` ended; what it did not take off is named again.
    Unpinned,
    /// The dispatcher answered a `Register`: here is the node's consumer.
    Registered(ConsumerName),
    /// Nobody answered a `Register`, or the answer was no.
    NotRegistered,
    /// A request for tasks ended early or late; this many of what it asked for will not come by it.
    FetchEnded {
        /// Tasks asked for and not delivered.
        undelivered: u32,
        /// Why.
        end: FetchEnd,
    },
    /// The consumer is gone, or its server is; every open request for tasks is dead.
    ConsumerLost,
    /// The connection to the broker was lost and is there again; every open request for tasks is dead.
    Reconnected {
        /// The broker is several servers. The one that was lost may live, and hold on to the requests that it had from us: when
        /// the worker has an account of its own, those that lead consumers do not see that nobody listens there any more.
        in_cluster: bool,
    },
    /// The node's labels changed, or whether it takes new pulls: the dispatcher has to hear of it.
    StandingChanged,
    /// SIGTERM: take nothing more, finish or put back what is in hand.
    Stop,
    /// Time has passed.
    Tick,
}

/// Why a request for tasks ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FetchEnd {
    /// Its time was over, as agreed: ask again.
    Expired,
    /// The broker refused or dropped it: ask again, but not at once.
    Refused,
}
