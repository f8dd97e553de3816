//! What an unfinished job waits for, in sentences.

use std::collections::BTreeMap;

use crate::cli::text;
use crate::domain::failure::FailureKind;
use crate::domain::job::Amount;
use crate::domain::name::NodeName;
use crate::domain::status::JobPhase;
use crate::domain::time::Timestamp;
use crate::wire::record::{JobRecord, NodePresence, NodeRecord};

use super::facts::RunFacts;
use super::job::selector;

/// Most names in one sentence.
const NAMES_SHOWN: usize = 10;

/// Everything it waits for; empty for a job that has ended or just goes on.
pub(super) fn waits(
    record: &JobRecord,
    nodes: &[NodeRecord],
    facts: &RunFacts,
    now: Timestamp,
) -> Vec<String> {
    let (spec, status) = (&record.spec, &record.status);
    if status.phase.is_finished() {
        return Vec::new();
    }
    let mut waits = Vec::new();
    if status.paused || status.phase == JobPhase::Paused {
        waits.push(format!(
            "`prewarm resume {}`: it is paused",
            record.metadata.name
        ));
    } else if matches!(spec.parallelism, Amount::Count(0) | Amount::Percent(0)) {
        waits.push("a parallelism above 0".to_owned());
    }
    if status.phase == JobPhase::Resolving {
        waits.push("registries, to say what the tags mean".to_owned());
    }
    let matching: Vec<&NodeRecord> = nodes
        .iter()
        .filter(|node| spec.selector.matches(&node.name, &node.facts.labels))
        .collect();
    if matching.is_empty() {
        let known = text::count(nodes.len(), "known node");
        waits.push(format!(
            "a node that matches: {known}, 0 match {}",
            selector(&spec.selector)
        ));
    }
    let absent: Vec<&NodeName> = matching
        .iter()
        .filter(|node| node.presence == NodePresence::Absent)
        .map(|node| &node.name)
        .collect();
    if !absent.is_empty() && status.counts.finished() < status.counts.desired {
        let count = text::count(absent.len(), "absent node");
        waits.push(format!(
            "{count}, each counted as failed once it is gone for {}s: {}",
            spec.absent_after_seconds,
            text::some_of(&absent, NAMES_SHOWN)
        ));
    }
    waits.extend(held(&matching, record));
    waits.extend(retries(facts, now));
    if status.phase == JobPhase::Idle {
        waits.push("the next round, or a node that joins".to_owned());
    }
    waits
}

/// One sentence for each reason that nodes take no new pulls for.
fn held(matching: &[&NodeRecord], record: &JobRecord) -> Vec<String> {
    if record.status.counts.pending == 0 {
        return Vec::new();
    }
    let mut by_reason: BTreeMap<&str, Vec<&NodeName>> = BTreeMap::new();
    for node in matching {
        if let (Some(why), NodePresence::Present) = (&node.facts.waiting, node.presence) {
            by_reason.entry(why).or_default().push(&node.name);
        }
    }
    let sentence = |(why, nodes): (&str, Vec<&NodeName>)| {
        let count = text::count(nodes.len(), "node");
        let names = text::some_of(&nodes, NAMES_SHOWN);
        format!("{count} to take pulls again, {why}: {names}")
    };
    by_reason.into_iter().map(sentence).collect()
}

/// One sentence for each reason that pulls are tried again for.
fn retries(facts: &RunFacts, now: Timestamp) -> Vec<String> {
    let mut kinds: Vec<FailureKind> = facts
        .retrying
        .values()
        .map(|retrying| retrying.kind)
        .collect();
    kinds.sort_unstable();
    kinds.dedup();
    let sentence = |kind: FailureKind| {
        let pulls: Vec<_> = facts
            .retrying
            .iter()
            .filter(|(_, retrying)| retrying.kind == kind)
            .collect();
        let nodes: Vec<&NodeName> = pulls.iter().map(|((node, _), _)| node).collect();
        let next = pulls.iter().filter_map(|(_, retrying)| retrying.next).min();
        let next = next.map(|next| format!(", the next in {}", text::duration(next.since(now))));
        let (said, attempt) = pulls.first().map_or((String::new(), 0), |(_, retrying)| {
            (retrying.message.clone(), retrying.attempt)
        });
        format!(
            "another attempt of {} after {kind} (attempt {attempt}: {said}) on {}{}",
            text::count(pulls.len(), "pull"),
            text::some_of(&nodes, NAMES_SHOWN),
            next.unwrap_or_default()
        )
    };
    kinds.into_iter().map(sentence).collect()
}
