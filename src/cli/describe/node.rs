//! A node as text.

use std::collections::BTreeMap;

use super::job::{Sheet, labels};
use crate::cli::text;
use crate::domain::image::ImageRef;
use crate::domain::name::JobName;
use crate::domain::time::Timestamp;
use crate::wire::event::{Event, TaskEvent};
use crate::wire::record::{NodePresence, NodeRecord};

/// Most pulls listed, newest first.
const PULLS_SHOWN: usize = 20;
/// Most pulls kept while reading.
const MAX_PULLS: usize = 10_000;

/// The last event of every pull of a node.
#[derive(Default)]
pub(super) struct NodePulls {
    last: BTreeMap<(JobName, ImageRef), (Timestamp, TaskEvent)>,
}

impl NodePulls {
    pub(super) fn add(&mut self, event: &Event<TaskEvent>) {
        let key = (event.data.job.clone(), event.data.image.clone());
        if self.last.len() < MAX_PULLS || self.last.contains_key(&key) {
            self.last.insert(key, (event.time, event.data.clone()));
        }
    }
}

/// Everything there is to say about a node.
pub(super) fn text(record: &NodeRecord, pulls: &NodePulls, now: Timestamp) -> String {
    let mut out = Sheet::default();
    let facts = &record.facts;
    out.field("Name", &record.name);
    out.field("Labels", labels(&facts.labels));
    let presence = match record.presence {
        NodePresence::Present => "present",
        NodePresence::Absent => "absent",
    };
    out.field(
        "Status",
        format!("{presence} for {}", text::age(now.since(record.since))),
    );
    if let Some(why) = &facts.waiting {
        out.field("Waits", format!("nothing new is released to it: {why}"));
    }
    out.field("Runtime", format!("{}, {}", facts.runtime, facts.platform));
    out.field(
        "Capacity",
        format!("{} at once", text::count(facts.capacity as usize, "pull")),
    );
    out.field(
        "Disk",
        format!(
            "{} of {} free when it joined",
            text::bytes(facts.disk_free_bytes),
            text::bytes(facts.disk_total_bytes)
        ),
    );
    out.field("Worker", format!("prewarm {}", facts.version));
    let mut newest: Vec<&(Timestamp, TaskEvent)> = pulls.last.values().collect();
    newest.sort_by_key(|(time, _)| std::cmp::Reverse(*time));
    if !newest.is_empty() {
        out.heading("Pulls");
        let rows: Vec<Vec<String>> = newest
            .into_iter()
            .take(PULLS_SHOWN)
            .map(|(time, event)| {
                let why = event.failure.as_ref().map_or(String::new(), |failure| {
                    format!("{}: {}", failure.kind, failure.message)
                });
                vec![
                    format!("  {} ago", text::age(now.since(*time))),
                    event.state.as_str().to_owned(),
                    event.job.to_string(),
                    event.image.to_string(),
                    why,
                ]
            })
            .collect();
        out.text.push_str(&text::columns(&rows));
    }
    out.text
}
