//! Connections, bounded in number. When there are too many, the one that has kept us waiting longest goes, so that
//! those who send slowly, or nothing at all, keep nobody else out.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio_util::sync::CancellationToken;

/// All connections of a receiver.
pub(super) struct Connections {
    places: Arc<Semaphore>,
    waiting: Mutex<Waiting>,
    /// Told when a connection begins to keep us waiting.
    turned: Notify,
}

/// Who is waited for, the longest first.
#[derive(Default)]
struct Waiting {
    next: u64,
    turns: BTreeMap<u64, CancellationToken>,
}

/// One of them. It is waited for until [`Connection::mark_busy`] is called.
pub(super) struct Connection {
    all: Arc<Connections>,
    turn: Mutex<Option<u64>>,
    closed: CancellationToken,
    _place: OwnedSemaphorePermit,
}

impl Connections {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self {
            places: Arc::new(Semaphore::new(most)),
            waiting: Mutex::default(),
            turned: Notify::new(),
        })
    }

    /// A place for a connection, at the cost of another one if need be. While all of them are being answered, this waits.
    pub(super) async fn enter(self: &Arc<Self>) -> Option<Connection> {
        let mut makes_room = self.places.available_permits() > 0;
        loop {
            makes_room = makes_room || self.close_longest_waiting();
            tokio::select! {
                biased;
                place = Arc::clone(&self.places).acquire_owned() => {
                    let connection = Connection {
                        all: Arc::clone(self),
                        turn: Mutex::default(),
                        closed: CancellationToken::new(),
                        _place: place.ok()?,
                    };
                    connection.mark_waiting();
                    return Some(connection);
                }
                () = self.turned.notified(), if !makes_room => {}
            }
        }
    }

    /// Says whether there was one.
    fn close_longest_waiting(&self) -> bool {
        let longest = self.waiting().turns.pop_first();
        longest.map(|(_, closed)| closed.cancel()).is_some()
    }

    fn waiting(&self) -> MutexGuard<'_, Waiting> {
        self.waiting.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Connection {
    /// It has to be dropped for another one.
    pub(super) async fn closed(&self) {
        self.closed.cancelled().await;
    }

    /// Its request is all there, and it stays until it has its answer.
    pub(super) fn mark_busy(&self) {
        if let Some(turn) = self.turn().take() {
            self.all.waiting().turns.remove(&turn);
        }
    }

    /// It has its answer, or has just come.
    pub(super) fn mark_waiting(&self) {
        let mut waiting = self.all.waiting();
        waiting.next += 1;
        let turn = waiting.next;
        waiting.turns.insert(turn, self.closed.clone());
        *self.turn() = Some(turn);
        drop(waiting);
        self.all.turned.notify_one();
    }

    fn turn(&self) -> MutexGuard<'_, Option<u64>> {
        self.turn.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Connection {
    fn drop(&mut self) {
        self.mark_busy();
    }
}

#[cfg(test)]
mod tests {
    use futures::FutureExt as _;

    use super::*;

    #[tokio::test]
    async fn the_one_that_keeps_us_waiting_longest_goes() {
        let all = Connections::new(2);
        let first = all.enter().await.unwrap();
        let second = all.enter().await.unwrap();
        // Answered meanwhile, the first has kept us waiting for less long now.
        first.mark_busy();
        first.mark_waiting();
        let third = all.enter();
        tokio::pin!(third);
        assert!(third.as_mut().now_or_never().is_none());
        assert!(second.closed().now_or_never().is_some());
        assert!(first.closed().now_or_never().is_none());
        drop(second);
        let third = third.await.unwrap();
        first.mark_busy();
        third.mark_busy();
        let fourth = all.enter();
        tokio::pin!(fourth);
        assert!(fourth.as_mut().now_or_never().is_none(), "all are busy");
        assert!(third.closed().now_or_never().is_none());
        third.mark_waiting();
        assert!(fourth.as_mut().now_or_never().is_none());
        assert!(third.closed().now_or_never().is_some());
        drop(third);
        assert!(fourth.await.is_some());
        assert_eq!(all.waiting().turns.len(), 0, "both are gone or busy");
    }
}
