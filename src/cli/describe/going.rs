//! The pulls of a job that go on, from what their workers tell meanwhile.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::fmt::Write as _;

use crate::cli::text;
use crate::domain::progress::PullPhase;
use crate::wire::subject::PullKey;
use crate::wire::worker::ProgressMessage;

/// Most pulls kept.
const MAX_PULLS: usize = 10_000;
/// Most pulls listed, those with the longest time left first.
const PULLS_SHOWN: usize = 10;

/// The last word on every pull.
#[derive(Default)]
pub(super) struct GoingOn(BTreeMap<PullKey, ProgressMessage>);

impl GoingOn {
    pub(super) fn add(&mut self, message: ProgressMessage) {
        let key = PullKey::new(message.node.clone(), message.job.clone(), &message.image);
        if self.0.len() < MAX_PULLS || self.0.contains_key(&key) {
            self.0.insert(key, message);
        }
    }

    /// A line for each pull that does not wait; empty if there is none.
    pub(super) fn text(&self) -> String {
        let mut going: Vec<&ProgressMessage> = self.0.values().collect();
        going.retain(|pull| pull.waiting_after.is_none());
        if going.is_empty() {
            return String::new();
        }
        // One that commits has the least left, and of one that resolves nothing is known.
        going.sort_by_key(|pull| {
            let is_committing = pull.progress.phase == PullPhase::Committing;
            let left = pull.pace.seconds_left.unwrap_or(u64::MAX);
            Reverse(if is_committing { 0 } else { left })
        });
        let rows: Vec<Vec<String>> = going
            .iter()
            .take(PULLS_SHOWN)
            .map(|pull| {
                vec![
                    format!("  {}", pull.node),
                    pull.image.to_string(),
                    text::progress(&pull.progress, &pull.pace),
                ]
            })
            .collect();
        let mut lines = format!("Pulls going on:\n{}", text::columns(&rows));
        if let Some(more) = going.len().checked_sub(PULLS_SHOWN + 1) {
            let _ = writeln!(lines, "  and {}", text::count(more + 1, "more pull"));
        }
        lines
    }
}
