//! Which labels say that an image is pinned, and by whom (pure).
//!
//! Every hold is a label of its own beside the one that CRI and kubelet go by, so that the last one that is taken back
//! takes CRI's along; and only if it was one of ours that set it. The labels are all there is: a worker that starts
//! reads them, and another one would say the same.

use std::collections::{BTreeMap, HashMap};

use super::labels::CRI_PINNED;
use crate::domain::pin::Pin;

/// Beginning of the label of one hold: `dev.prewarm/pin.<job uid>.<image token>=<generation>`.
const HOLD_PREFIX: &str = "dev.prewarm/pin.";
/// On a record with holds: who set CRI's label.
pub(super) const PINNED: &str = "dev.prewarm/pinned";
/// We did.
const BY_US: &str = "by-prewarm";
/// It was there before.
const BY_OTHERS: &str = "by-others";

/// Labels to be set; those with an empty value are taken off, as containerd does with them.
pub(super) type Changes = BTreeMap<String, String>;
type Labels = HashMap<String, String>;

/// The name of a hold's label.
fn hold(pin: &Pin) -> String {
    format!("{HOLD_PREFIX}{}.{}", pin.uid, pin.image)
}

/// The holds on a record.
pub(super) fn holds(labels: &Labels) -> impl Iterator<Item = Pin> {
    labels.iter().filter_map(|(key, value)| {
        let (uid, image) = key.strip_prefix(HOLD_PREFIX)?.rsplit_once('.')?;
        Some(Pin {
            uid: uid.to_owned(),
            image: image.to_owned(),
            generation: value.parse().ok()?,
        })
    })
}

/// What makes a record held by the pin.
pub(super) fn add(labels: &Labels, pin: &Pin) -> Changes {
    let mut changes = Changes::new();
    let mut set = |key: &str, value: &str| {
        if labels.get(key).map(String::as_str) != Some(value) {
            changes.insert(key.to_owned(), value.to_owned());
        }
    };
    let same = holds(labels).find(|held| held.is_same_hold(pin));
    let generation = same.map_or(pin.generation, |same| same.generation.max(pin.generation));
    set(&hold(pin), &generation.to_string());
    let (key, value) = CRI_PINNED;
    let is_pinned = labels.get(key).map(String::as_str) == Some(value);
    match (labels.contains_key(PINNED), is_pinned) {
        (_, false) => {
            // Somebody took it off in spite of the holds, or there is none yet.
            set(PINNED, BY_US);
            set(key, value);
        }
        (false, true) => set(PINNED, BY_OTHERS),
        (true, true) => {}
    }
    changes
}

/// What takes holds off a record, and with the last one what we have set.
pub(super) fn remove(labels: &Labels, goes: impl Fn(&Pin) -> bool) -> Changes {
    let (gone, left): (Vec<Pin>, Vec<Pin>) = holds(labels).partition(|held| goes(held));
    let mut keys: Vec<String> = gone.iter().map(hold).collect();
    if left.is_empty() {
        let by_us = labels.get(PINNED).map(String::as_str) == Some(BY_US);
        keys.extend(by_us.then(|| CRI_PINNED.0.to_owned()));
        keys.push(PINNED.to_owned());
    }
    keys.retain(|key| labels.contains_key(key));
    keys.into_iter().map(|key| (key, String::new())).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pin(uid: &str, generation: u32) -> Pin {
        Pin {
            uid: uid.to_owned(),
            image: "0123456789ab".to_owned(),
            generation,
        }
    }

    fn apply(labels: &mut Labels, changes: Changes) {
        for (key, value) in changes {
            if value.is_empty() {
                labels.remove(&key);
            } else {
                labels.insert(key, value);
            }
        }
    }

    fn is_pinned(labels: &Labels) -> bool {
        labels.get(CRI_PINNED.0).map(String::as_str) == Some(CRI_PINNED.1)
    }

    fn take_back(labels: &mut Labels, pin: &Pin) {
        let changes = remove(labels, |held| held.goes_with(pin));
        apply(labels, changes);
    }

    fn hold_by(labels: &mut Labels, pin: &Pin) {
        let changes = add(labels, pin);
        apply(labels, changes);
    }

    #[test]
    fn the_last_hold_takes_the_pin_along() {
        let others: Labels = [("io.cri-containerd.image", "managed"), ("team", "infra")]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into();
        let mut labels = others.clone();
        hold_by(&mut labels, &pin("a-1", 1));
        hold_by(&mut labels, &pin("b-2", 3));
        assert!(is_pinned(&labels));
        let mut held: Vec<Pin> = holds(&labels).collect();
        held.sort();
        assert_eq!(held, [pin("a-1", 1), pin("b-2", 3)]);
        take_back(&mut labels, &pin("a-1", 1));
        assert!(is_pinned(&labels));
        take_back(&mut labels, &pin("b-2", 3));
        assert_eq!(labels, others);
    }

    #[test]
    fn a_pin_of_somebody_else_stays() {
        let foreign: Labels = [(CRI_PINNED.0.to_owned(), CRI_PINNED.1.to_owned())].into();
        let mut labels = foreign.clone();
        hold_by(&mut labels, &pin("a", 1));
        hold_by(&mut labels, &pin("b", 1));
        take_back(&mut labels, &pin("a", 1));
        take_back(&mut labels, &pin("b", 1));
        assert_eq!(labels, foreign);
        assert_eq!(remove(&foreign, |_| true), Changes::new());
    }

    #[test]
    fn what_is_said_of_an_earlier_generation_does_not_touch_a_later_one() {
        let mut labels = Labels::new();
        hold_by(&mut labels, &pin("a", 2));
        hold_by(&mut labels, &pin("a", 1));
        take_back(&mut labels, &pin("a", 1));
        assert!(is_pinned(&labels));
        assert_eq!(holds(&labels).collect::<Vec<_>>(), [pin("a", 2)]);
        assert_eq!(add(&labels, &pin("a", 2)), Changes::new());
        take_back(&mut labels, &pin("a", 3));
        assert_eq!(labels, Labels::new());
    }

    #[test]
    fn a_pin_that_was_taken_off_is_set_again() {
        let mut labels = Labels::new();
        hold_by(&mut labels, &pin("a", 1));
        labels.remove(CRI_PINNED.0);
        hold_by(&mut labels, &pin("a", 1));
        assert!(is_pinned(&labels));
    }
}
