//! What the documents say of the program is so: its commands, the lines of `check`, the conditions of `/readyz`.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use clap::Parser as _;
use clap::error::ErrorKind;
use prewarm::cli::args::Cli;

use super::deploy;

/// Where commands are shown.
const DOCUMENTS: [&str; 6] = [
    "README.md",
    "BENCHMARKS.md",
    "deploy/RUNBOOK.md",
    "deploy/THREATS.md",
    "deploy/ci/README.md",
    "deploy/monitoring/README.md",
];
/// Words that stand for a value, where any text will not do.
const STAND_INS: [(&str, &str); 4] = [
    ("N", "3"),
    ("FORMAT", "json"),
    ("FILE|-", "-"),
    ("IMAGE…", "IMAGE"),
];
/// Ends what is a command in a line of several.
const ENDS: [&str; 5] = ["|", "&&", ">", "2>", "#"];

fn read(path: &str) -> String {
    fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join(path)).unwrap()
}

/// Everything between backticks in the text, and every line of its blocks of code.
fn code(text: &str) -> Vec<String> {
    let mut found = Vec::new();
    let mut fenced = false;
    let mut prose = String::new();
    for line in text.lines() {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
        } else if fenced || line.starts_with("    ") {
            let line = line.trim().trim_start_matches("$ ");
            found.push(line.trim_end_matches('\\').to_owned());
        } else {
            prose.push_str(line);
            prose.push('\n');
        }
    }
    let spans = prose.split('`').skip(1).step_by(2);
    found.extend(spans.map(|span| span.replace('\n', " ")));
    found
}

/// A call as it is shown, as words of every call that it stands for: `a|b` is two, `[--c D]` may be there.
fn calls(shown: &str) -> Vec<Vec<String>> {
    // What follows two spaces is said about it.
    let (shown, _) = shown.split_once("  ").unwrap_or((shown, ""));
    let mut calls: Vec<Vec<String>> = vec![Vec::new()];
    for word in shown.split_whitespace() {
        if ENDS.contains(&word) {
            break;
        }
        let word = word.trim_matches(|c| "[]\"',;".contains(c));
        let known = STAND_INS.iter().find(|(stands, _)| *stands == word);
        let word = known.map_or(word, |(_, value)| value);
        if word.is_empty() || word == "…" {
            continue;
        }
        let choices: Vec<&str> = word.split('|').collect();
        calls = choices
            .iter()
            .flat_map(|choice| {
                calls.iter().map(|call| {
                    let mut call = call.clone();
                    call.push((*choice).to_owned());
                    call
                })
            })
            .collect();
    }
    calls
}

#[test]
fn every_command_that_a_document_shows_is_one() {
    let mut count = 0;
    let mut wrong = Vec::new();
    for document in DOCUMENTS {
        let shown = code(&read(document));
        let ours = shown.iter().filter(|code| code.starts_with("prewarm "));
        for call in ours.flat_map(|code| calls(code)) {
            // A verb by itself is the command's name; `prewarm dispatcher ID` in the README's own words is none.
            let is_name = call.len() == 2 && !call[1].starts_with('-');
            let call = if is_name {
                vec![call[0].clone(), call[1].clone(), "--help".to_owned()]
            } else {
                call
            };
            count += 1;
            if let Err(error) = Cli::try_parse_from(&call)
                // A command that is spoken of need not be a whole one.
                && !matches!(
                    error.kind(),
                    ErrorKind::DisplayHelp | ErrorKind::MissingRequiredArgument
                )
            {
                wrong.push(format!("{document}: {}: {error}", call.join(" ")));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(count > 60, "{count}");
}

#[test]
fn what_is_no_command_is_found() {
    for wrong in [
        "prewarm check IMAGE",
        "prewarm get pods x",
        "prewarm describe job NAME --all",
    ] {
        let calls = calls(wrong);
        assert_eq!(calls.len(), 1);
        assert!(Cli::try_parse_from(&calls[0]).is_err(), "{wrong}");
    }
}

/// First cells of the table that begins with this head.
fn rows(text: &str, head: &str) -> BTreeSet<String> {
    let (_, table) = text.split_once(head).unwrap_or_else(|| panic!("no {head}"));
    let rows = table
        .lines()
        .skip(1)
        .take_while(|line| line.starts_with('|'));
    let first = rows.filter_map(|line| line.split('|').nth(1));
    let names = first.filter_map(|cell| cell.split('`').nth(1));
    names
        .filter(|name| !name.is_empty())
        .map(str::to_owned)
        .collect()
}

/// The words that follow one of these in the sources below a path, between quotation marks.
fn named(path: &str, before: &[&str]) -> BTreeSet<String> {
    fn sources(path: &Path, into: &mut String) {
        if path.is_dir() {
            for entry in fs::read_dir(path).unwrap() {
                sources(&entry.unwrap().path(), into);
            }
        } else {
            let text = fs::read_to_string(path).unwrap();
            let code = text.split("\n#[cfg(test)]").next().unwrap();
            // As it would be on one line.
            into.extend(code.split_whitespace());
        }
    }
    let mut code = String::new();
    sources(&Path::new(env!("CARGO_MANIFEST_DIR")).join(path), &mut code);
    let mut names = BTreeSet::new();
    for before in before {
        let begin = format!("{before}\"");
        let parts = code.split(begin.as_str()).skip(1);
        names.extend(parts.map(|rest| rest.split('"').next().unwrap().to_owned()));
    }
    assert!(names.len() > 3, "{names:?}");
    names
}

#[test]
fn every_condition_of_readiness_is_told_and_no_other() {
    let conditions = named("src/cli/health.rs", &["Condition::new(", "self.asks("]);
    let runbook = rows(&read("deploy/RUNBOOK.md"), "| Condition | Do |\n");
    assert_eq!(runbook, conditions, "RUNBOOK.md (left)");
    let monitoring = rows(
        &read("deploy/monitoring/README.md"),
        "| Condition | Of | Holds while |\n",
    );
    assert_eq!(monitoring, conditions, "monitoring/README.md (left)");
}

#[test]
fn every_line_of_check_is_told_and_no_other() {
    let kinds = ["good(", "warning(", "bad("].map(|kind| format!("Finding::{kind}"));
    let kinds: Vec<&str> = kinds.iter().map(String::as_str).collect();
    let lines = named("src/cli/check", &kinds);
    let runbook = rows(
        &read("deploy/RUNBOOK.md"),
        "| Line | `warn` or `FAIL` means |\n",
    );
    assert_eq!(runbook, lines, "RUNBOOK.md (left)");
}

/// What the alert and the runbook say that a leader survives is what it does.
#[test]
fn the_lease_is_lost_as_the_runbook_says() {
    // Half of the renewals of a lease time (`Lease::may_act`).
    let misses = prewarm::dispatch::lease::RENEWALS_PER_LEASE / 2;
    let lease = prewarm::dispatch::lease::DEFAULT_LEASE;
    assert_eq!((misses, lease.as_secs()), (5, 5));
    assert_eq!(
        lease / prewarm::dispatch::lease::RENEWALS_PER_LEASE,
        std::time::Duration::from_millis(500)
    );
    let runbook = read("deploy/RUNBOOK.md");
    assert!(runbook.contains("At half a second a renewal counts as unanswered (with the\nusual lease of 5 s), and five in a row end the leadership."));
    let rules = fs::read_to_string(deploy().join("monitoring/rules.yaml")).unwrap();
    assert!(rules.contains("Half a second, five times in a row, costs the lease."));
}
