//! Pins: none of a dead job stays, and no image of a live one is unpinned.

use std::collections::BTreeMap;
use std::sync::Arc;

use prewarm::domain::pin::Pin;
use prewarm::wire::event::PullState;
use prewarm::wire::record::JobRecord;

use crate::invariants::{self, Verdict};
use crate::world::World;

/// Whether the job's record wants this pin.
fn is_wanted(record: &JobRecord, pin: &Pin) -> bool {
    let mut images = record.spec.images.iter();
    record.metadata.uid == pin.uid
        && record.spec.pin
        && images.any(|image| image.token() == pin.image)
}

impl World {
    fn records_by_uid(&self) -> BTreeMap<String, Arc<JobRecord>> {
        invariants::records(&self.broker)
            .into_iter()
            .map(|record| (record.metadata.uid.clone(), record))
            .collect()
    }

    /// A pin on a node whose worker runs that no job wants, in words.
    pub fn ownerless_pin(&self) -> Option<String> {
        let records = self.records_by_uid();
        let is_owned = |pin: &Pin| {
            let record = records.get(&pin.uid);
            record.is_some_and(|record| is_wanted(record, pin))
        };
        self.nodes_that_live().iter().find_map(|(node, process)| {
            let ownerless = process.pins.iter().find(|pin| !is_owned(pin))?;
            Some(format!("{node} keeps {ownerless:?}, which nobody wants"))
        })
    }

    /// What was pulled for a job that lives is pinned where it wants that.
    pub fn check_pins_held(&self) -> Verdict {
        let records = self.records_by_uid();
        for ((run, node, image), end) in &self.checks.ends {
            let record = records.get(&run.uid).filter(|record| {
                *end == PullState::Succeeded && record.metadata.generation == run.generation
            });
            let pin = Pin {
                uid: run.uid.clone(),
                image: image.clone(),
                generation: run.generation,
            };
            if !record.is_some_and(|record| is_wanted(record, &pin)) {
                continue;
            }
            let process = self.workers.iter().find(|process| process.node == *node);
            let held = process.is_some_and(|process| {
                let mut pins = process.pins.iter();
                pins.any(|held| held.is_same_hold(&pin))
            });
            if !held {
                return Err(format!(
                    "{node} has unpinned {image} of {run:?}, which lives"
                ));
            }
        }
        Ok(())
    }
}
