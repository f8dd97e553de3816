//! What a worker knows of the pins on its node. The truth is on the image records; this is the last look at them.

use std::collections::BTreeSet;
use std::ops::Bound;

use crate::domain::pin::Pin;

/// Most pins that a heartbeat names, about 80 bytes each. When there are more, it is the turn of others next time.
pub const MAX_PINS_NAMED: usize = 32;
/// Most pins that are remembered of a look: those beyond have their turn when others are gone.
pub const MAX_PINS_REMEMBERED: usize = 10_000;

/// The pins of the last look, and what has to be done about them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Pins {
    known: BTreeSet<Pin>,
    /// The one that was named last.
    named: Option<Pin>,
    /// Whether there may be others by now.
    outdated: bool,
    looking: bool,
    taking_back: bool,
}

impl Default for Pins {
    /// Of a worker that has just started: nothing is known.
    fn default() -> Self {
        Self {
            known: BTreeSet::new(),
            named: None,
            outdated: true,
            looking: false,
            taking_back: false,
        }
    }
}

impl Pins {
    /// The pins that the next heartbeat names.
    pub(super) fn name_some(&mut self) -> Vec<Pin> {
        let after = self
            .named
            .as_ref()
            .map_or(Bound::Unbounded, Bound::Excluded);
        let rest = self.known.range((after, Bound::Unbounded));
        let again = self.known.iter();
        let count = MAX_PINS_NAMED.min(self.known.len());
        let some: Vec<Pin> = rest.chain(again).take(count).cloned().collect();
        self.named = some.last().cloned();
        some
    }

    /// Notes that there may be other pins than were found last.
    pub(super) fn outdate(&mut self) {
        self.outdated = true;
    }

    /// Whether to look now, which it then counts as being done.
    pub(super) fn look(&mut self) -> bool {
        let look = self.outdated && !self.looking;
        if look {
            self.outdated = false;
            self.looking = true;
        }
        look
    }

    /// Takes what a look found; `None`: it could not look.
    pub(super) fn found(&mut self, pins: Option<Vec<Pin>>) {
        self.looking = false;
        match pins {
            Some(pins) => self.known = pins.into_iter().take(MAX_PINS_REMEMBERED).collect(),
            None => self.outdated = true,
        }
    }

    /// Whether to take pins back now, which it then counts as being done. One request at a time: what is not taken
    /// back is named again, and asked for again.
    pub(super) fn take_back(&mut self) -> bool {
        !std::mem::replace(&mut self.taking_back, true)
    }

    /// Notes that they were taken back, or that it was tried.
    pub(super) fn taken_back(&mut self) {
        self.taking_back = false;
        self.outdated = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(number: usize) -> Pin {
        Pin {
            uid: format!("u{number:05}"),
            image: "0123456789ab".to_owned(),
            generation: 1,
        }
    }

    fn with(count: usize) -> Pins {
        let mut pins = Pins::default();
        assert!(pins.look(), "a worker that starts looks");
        pins.found(Some((0..count).map(pin).collect()));
        pins
    }

    #[test]
    fn every_pin_is_named_in_turn() {
        let mut pins = with(MAX_PINS_NAMED * 2 + 5);
        let mut named = BTreeSet::new();
        for _ in 0..3 {
            let some = pins.name_some();
            assert_eq!(some.len(), MAX_PINS_NAMED);
            named.extend(some);
        }
        assert_eq!(named, pins.known);
        let mut few = with(3);
        for _ in 0..3 {
            assert_eq!(few.name_some().len(), 3);
        }
        assert!(with(0).name_some().is_empty());
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        assert_eq!(with(20_000).known.len(), MAX_PINS_REMEMBERED);
    }

    #[test]
    fn a_look_that_failed_is_made_again_and_no_two_at_once() {
        let mut pins = Pins::default();
        assert!(pins.look());
        pins.outdate();
        assert!(!pins.look(), "one is under way");
        pins.found(None);
        assert!(pins.look());
        pins.found(Some(vec![pin(1)]));
        assert!(!pins.look(), "nothing has changed");
        assert!(pins.take_back() && !pins.take_back());
        pins.taken_back();
        assert!(pins.look() && pins.take_back());
    }
}
