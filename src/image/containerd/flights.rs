//! One at a time: work on a digest that others of this process wait for instead of doing it again.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use tokio::sync::{OwnedMutexGuard, watch};

use crate::domain::image::Digest;

/// Digests that somebody works on.
#[derive(Default)]
pub(super) struct Flights {
    under_way: Mutex<HashMap<Digest, Weak<Flight>>>,
}

struct Flight {
    turn: Arc<tokio::sync::Mutex<()>>,
    done: watch::Sender<u64>,
}

/// The right to work on a digest, until dropped.
pub(super) struct Turn {
    _turn: OwnedMutexGuard<()>,
    flight: Arc<Flight>,
}

impl Turn {
    /// Tells those who wait how many bytes there are.
    pub(super) fn tell(&self, done: u64) {
        self.flight.done.send_replace(done);
    }
}

impl Flights {
    /// Waits for the turn to work on a digest, and meanwhile passes on what whoever has it tells.
    /// Whoever comes later has to look whether anything is left to do.
    pub(super) async fn turn(&self, digest: &Digest, mut follow: impl FnMut(u64)) -> Turn {
        let flight = self.join(digest);
        let mut done = flight.done.subscribe();
        let mut waiting = std::pin::pin!(flight.turn.clone().lock_owned());
        loop {
            tokio::select! {
                biased;
                turn = &mut waiting => return Turn { _turn: turn, flight },
                // The sender lives in the flight that is held here, so there is always a next value.
                Ok(()) = done.changed() => follow(*done.borrow_and_update()),
            }
        }
    }

    fn join(&self, digest: &Digest) -> Arc<Flight> {
        let mut under_way = self
            .under_way
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        if let Some(flight) = under_way.get(digest).and_then(Weak::upgrade) {
            return flight;
        }
        // The map is as large as the number of digests under way: whoever adds one sweeps.
        under_way.retain(|_, flight| flight.strong_count() > 0);
        let flight = Arc::new(Flight {
            turn: Arc::default(),
            done: watch::Sender::new(0),
        });
        under_way.insert(digest.clone(), Arc::downgrade(&flight));
        flight
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn the_second_waits_and_hears_of_the_first() {
        let flights = Flights::default();
        let digest = Digest::of(b"x");
        let first = flights.turn(&digest, |_| {}).await;
        let mut heard = Vec::new();
        let second = flights.turn(&digest, |done| heard.push(done));
        let mut second = Box::pin(second);
        assert!(futures::poll!(&mut second).is_pending());
        first.tell(5);
        assert!(futures::poll!(&mut second).is_pending());
        drop(first);
        drop(second.await);
        assert_eq!(heard, [5]);
    }

    #[tokio::test]
    async fn different_digests_do_not_wait_and_nothing_is_kept() {
        let flights = Flights::default();
        for n in 0..10_u8 {
            let one = flights.turn(&Digest::of(&[n]), |_| {}).await;
            let other = flights.turn(&Digest::of(&[n, n]), |_| {}).await;
            drop((one, other));
        }
        assert!(flights.under_way.lock().unwrap().len() <= 2);
    }
}
