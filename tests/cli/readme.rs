//! What the README shows works, and what it lists is there.

use std::collections::BTreeSet;

use clap::CommandFactory as _;
use prewarm::cli::args::Cli;
use prewarm::cli::settings::file;
use prewarm::wire::manifest::{self, rule};

use crate::support::prewarm::prewarm;

fn readme() -> &'static str {
    include_str!("../../README.md")
}

/// The code blocks of a language.
fn blocks(language: &str) -> Vec<String> {
    let fence = format!("```{language}\n");
    let parts = readme().split(fence.as_str()).skip(1);
    parts
        .map(|part| part.split("```").next().unwrap().to_owned())
        .collect()
}

#[test]
fn its_manifests_are_accepted_and_fit_the_schema() {
    let manifests: Vec<String> = blocks("yaml")
        .into_iter()
        .filter(|block| block.contains("kind:"))
        .collect();
    assert_eq!(manifests.len(), 3);
    let schema: serde_json::Value =
        serde_json::from_str(include_str!("../../schemas/job.json")).unwrap();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    for text in manifests {
        if text.contains("kind: PushRule") {
            let rule: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            rule::read(&rule).unwrap_or_else(|rejection| panic!("{rejection}\n{text}"));
            continue;
        }
        manifest::parse(text.as_bytes()).unwrap_or_else(|rejection| panic!("{rejection}\n{text}"));
        if text.contains("prewarm.dev/v1") {
            let value: serde_json::Value = serde_saphyr::from_str(&text).unwrap();
            assert!(schema.is_valid(&value), "{text}");
        }
    }
}

#[test]
fn its_settings_are_all_there_are() {
    let table = readme()
        .split("### Settings")
        .nth(1)
        .unwrap()
        .split("### Security")
        .next()
        .unwrap();
    let first_cells = table
        .lines()
        .filter(|line| line.starts_with("| `"))
        .map(|line| line.split('|').nth(1).unwrap());
    let known: BTreeSet<String> = file::names(&Cli::command()).into_iter().collect();
    let told: BTreeSet<String> = first_cells
        .flat_map(|cell| cell.split('`').skip(1).step_by(2))
        .map(str::to_owned)
        .filter(|word| known.contains(word) || word.contains('-'))
        .collect();
    let simulated = |name: &&String| name.starts_with("simulated-");
    let known: BTreeSet<String> = known
        .iter()
        .filter(|name| !simulated(name))
        .cloned()
        .collect();
    assert_eq!(told, known);
}

#[tokio::test]
async fn its_settings_file_is_read() {
    let file = blocks("yaml")
        .into_iter()
        .find(|block| block.contains("nats-creds:"))
        .unwrap();
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("worker.yaml");
    std::fs::write(&path, file).unwrap();
    let output = prewarm(["get", "jobs", "--config"]).arg(&path).run().await;
    assert!(
        output
            .stderr
            .starts_with("error: cannot use /etc/prewarm/worker.creds"),
        "{output:?}"
    );
}

#[tokio::test]
async fn its_commands_exist() {
    let shown = readme()
        .lines()
        .map(str::trim)
        .filter_map(|line| line.trim_start_matches("$ ").strip_prefix("prewarm "));
    let commands: BTreeSet<String> = shown
        .flat_map(|line| line.split_whitespace().next().unwrap().split('|'))
        .map(str::to_owned)
        .collect();
    assert!(commands.len() > 8, "{commands:?}");
    for command in commands {
        let output = prewarm([command.as_str(), "--help"]).run().await;
        assert_eq!(output.code, 0, "prewarm {command}: {output:?}");
    }
}
