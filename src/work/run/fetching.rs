//! The task that asks the broker for tasks.

use tokio::sync::mpsc;

use super::Arrived;
use crate::bus::Bus;
use crate::bus::pull::{PullTimes, Pulled, Puller};
use crate::work::effect::ConsumerName;
use crate::work::input::{FetchEnd, Input};

/// Most commands that wait for the task. A worker has at most as many requests open as slots, 64.
const MAX_COMMANDS: usize = 128;

enum Command {
    Fetch {
        consumer: ConsumerName,
        batch: u32,
    },
    /// Drop every open request; what is told of them carries an older epoch.
    Reset {
        epoch: u64,
    },
}

/// The main loop's end of it.
#[derive(Debug)]
pub(super) struct Fetching {
    commands: mpsc::Sender<Command>,
    epoch: u64,
}

impl Fetching {
    pub(super) fn start(
        bus: &Bus,
        times: Option<PullTimes>,
        arrivals: mpsc::Sender<Arrived>,
    ) -> Self {
        let (commands, taken) = mpsc::channel(MAX_COMMANDS);
        let puller = Puller::new(bus.client.clone(), times);
        tokio::spawn(fetch(puller, taken, arrivals));
        Self { commands, epoch: 0 }
    }

    /// Counts the resets.
    pub(super) const fn epoch(&self) -> u64 {
        self.epoch
    }

    /// Asks for tasks; says whether it could.
    pub(super) fn fetch(&self, consumer: ConsumerName, batch: u32) -> bool {
        let command = Command::Fetch { consumer, batch };
        self.commands.try_send(command).is_ok()
    }

    /// Drops every open request. If the queue is full the broker does not take requests either, and
    /// those that are open show as refused or lost in time.
    pub(super) fn reset(&mut self) {
        let epoch = self.epoch + 1;
        if self.commands.try_send(Command::Reset { epoch }).is_ok() {
            self.epoch = epoch;
        }
    }
}

async fn fetch(
    mut puller: Puller,
    mut commands: mpsc::Receiver<Command>,
    arrivals: mpsc::Sender<Arrived>,
) {
    let mut epoch = 0;
    // What the log was told of last, so that it is told once for each change.
    let mut refusal = None;
    loop {
        let arrived = tokio::select! {
            command = commands.recv() => match command {
                None => return,
                Some(Command::Reset { epoch: new }) => {
                    puller.reset();
                    epoch = new;
                    continue;
                }
                Some(Command::Fetch { consumer, batch }) => {
                    let ConsumerName { stream, consumer } = consumer;
                    match puller.request(&stream, &consumer, batch).await {
                        Ok(()) => continue,
                        Err(error) => refused(epoch, batch, error.to_string(), &mut refusal),
                    }
                }
            },
            pulled = puller.next() => match pulled {
                Pulled::Delivery(delivery) => {
                    refusal = None;
                    Arrived::Delivery(delivery)
                }
                Pulled::Expired { undelivered } => {
                    refusal = None;
                    let end = FetchEnd::Expired;
                    Arrived::Fetched { epoch, input: Input::FetchEnded { undelivered, end } }
                }
                Pulled::Refused { undelivered, reason } => {
                    refused(epoch, undelivered, reason, &mut refusal)
                }
                Pulled::Lost { reason } => {
                    tracing::warn!(reason, "the node's consumer is gone");
                    Arrived::Fetched { epoch, input: Input::ConsumerLost }
                }
            },
        };
        if arrivals.send(arrived).await.is_err() {
            return;
        }
    }
}

fn refused(epoch: u64, undelivered: u32, reason: String, told: &mut Option<String>) -> Arrived {
    if told.as_ref() != Some(&reason) {
        tracing::warn!(reason, "the broker refuses requests for tasks; asking on");
        *told = Some(reason);
    }
    let end = FetchEnd::Refused;
    let input = Input::FetchEnded { undelivered, end };
    Arrived::Fetched { epoch, input }
}
