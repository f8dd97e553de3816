//! `run`: a native manifest from flags.

use serde_json::{Map, Value, json};

use super::args::RunArgs;
use super::exit::Failure;
use super::submit::Checked;
use crate::cli::settings::labels::labels;
use crate::cli::settings::{Check, Sources};
use crate::domain::image::ImageRef;
use crate::wire::event::Problem;
use crate::wire::manifest::{API_VERSION, KIND, read};

/// Random letters and digits after a made name.
const SUFFIX_LENGTH: usize = 5;
/// What they are drawn from: no vowels, so that no words come out.
const SUFFIX_LETTERS: &[u8] = b"bcdfghjklmnpqrstvwxz0123456789";
/// Longest part of the image's name in a made name, in bytes.
const STEM_LENGTH: usize = 40;

/// The flags whose values become these fields: a problem is told by the flag the user typed.
const FLAGS: [(&str, &str); 18] = [
    ("metadata.name", "--name"),
    ("metadata.labels", "--label"),
    ("spec.images", "IMAGE"),
    ("spec.selector.matchLabels", "--selector"),
    ("spec.selector.names", "--node"),
    ("spec.parallelism", "--parallelism"),
    ("spec.priority", "--priority"),
    ("spec.imagePullPolicy", "--pull-policy"),
    ("spec.platform", "--platform"),
    ("spec.pullSecrets", "--pull-secret"),
    ("spec.pullPolicy.timeoutSeconds", "--timeout-seconds"),
    ("spec.pullPolicy.backoffLimit", "--backoff-limit"),
    ("spec.completionPolicy.activeDeadlineSeconds", "--deadline"),
    ("spec.completionPolicy.ttlSecondsAfterFinished", "--ttl"),
    ("spec.completionPolicy.repeatSeconds", "--repeat"),
    ("spec.completionPolicy.type", "--never"),
    ("spec.failurePolicy.maxFailed", "--max-failed"),
    ("spec.pin", "--pin"),
];

/// The manifest that the flags ask for, checked; `suffix` makes a made name unique.
///
/// # Errors
/// Everything that is wrong, by flag.
pub fn manifest(args: &RunArgs, suffix: &str) -> Result<Checked, Failure> {
    let sources = Sources::default();
    let mut check = Check::new(&sources);
    let selector = labels("selector", args.selector.as_deref(), &mut check);
    let label = labels("label", args.label.as_deref(), &mut check);
    let mut problems = check
        .done::<()>(None)
        .map_or_else(|bad| bad.0, |()| Vec::new());

    let mut metadata =
        json!({"name": args.name.clone().unwrap_or_else(|| made_name(&args.images, suffix))});
    if !label.is_empty() {
        metadata["labels"] = json!(label);
    }
    let mut spec = Map::new();
    spec.insert("images".to_owned(), json!(args.images));
    if !selector.is_empty() {
        spec.insert("selector".to_owned(), json!({"matchLabels": selector}));
    } else if !args.node.is_empty() {
        spec.insert("selector".to_owned(), json!({"names": args.node}));
    }
    fill(&mut spec, args);
    let document =
        json!({"apiVersion": API_VERSION, "kind": KIND, "metadata": metadata, "spec": spec});
    match read(&document) {
        Ok(submission) if problems.is_empty() => Ok(Checked {
            name: submission.name,
            document,
        }),
        Ok(_) => Err(Failure::input(problems.join("\n"))),
        Err(rejection) => {
            problems.extend(rejection.problems.iter().map(by_flag));
            Err(Failure::input(problems.join("\n")))
        }
    }
}

fn fill(spec: &mut Map<String, Value>, args: &RunArgs) {
    let mut set = |key: &str, value: Option<Value>| {
        if let Some(value) = value {
            spec.insert(key.to_owned(), value);
        }
    };
    set("parallelism", args.parallelism.as_deref().map(Value::from));
    set("priority", args.priority.as_deref().map(number));
    set(
        "imagePullPolicy",
        args.pull_policy.as_deref().map(Value::from),
    );
    set("platform", args.platform.as_deref().map(Value::from));
    set(
        "pullSecrets",
        (!args.pull_secret.is_empty()).then(|| json!(args.pull_secret)),
    );
    set("pin", args.pin.then_some(Value::Bool(true)));
    let policy = object([
        (
            "timeoutSeconds",
            args.timeout_seconds.as_deref().map(number),
        ),
        ("backoffLimit", args.backoff_limit.as_deref().map(number)),
    ]);
    set("pullPolicy", policy);
    let seconds = |span: crate::cli::settings::span::Span| Value::from(span.as_seconds());
    let completion = object([
        ("type", args.never.then(|| Value::from("Never"))),
        ("activeDeadlineSeconds", args.deadline.map(seconds)),
        ("ttlSecondsAfterFinished", args.ttl.map(seconds)),
        ("repeatSeconds", args.repeat.map(seconds)),
    ]);
    set("completionPolicy", completion);
    let failure = object([("maxFailed", args.max_failed.as_deref().map(Value::from))]);
    set("failurePolicy", failure);
}

/// A number as JSON has it; anything else stays a text, for the manifest's checks to name.
fn number(text: &str) -> Value {
    text.parse::<i64>()
        .map_or_else(|_| Value::from(text), Value::from)
}

fn object<const N: usize>(fields: [(&str, Option<Value>); N]) -> Option<Value> {
    let fields: Map<String, Value> = fields
        .into_iter()
        .filter_map(|(key, value)| Some((key.to_owned(), value?)))
        .collect();
    (!fields.is_empty()).then_some(Value::Object(fields))
}

fn by_flag(problem: &Problem) -> String {
    let flag = FLAGS
        .iter()
        .find(|(path, _)| problem.path.starts_with(path));
    match flag {
        Some((_, flag)) => format!("{flag}: {}", problem.message),
        None => problem.to_string(),
    }
}

/// The last part of the first image's name and the suffix: `nginx-x7k2p`.
fn made_name(images: &[String], suffix: &str) -> String {
    let image = images
        .first()
        .and_then(|image| image.parse::<ImageRef>().ok());
    let stem = image
        .as_ref()
        .and_then(|image| image.repository().rsplit('/').next());
    let legal = |c: char| {
        if c.is_ascii_lowercase() || c.is_ascii_digit() {
            c
        } else {
            '-'
        }
    };
    let stem: String = stem
        .unwrap_or("job")
        .chars()
        .take(STEM_LENGTH)
        .map(legal)
        .collect();
    format!("{}-{suffix}", stem.trim_matches('-'))
}

/// A random end of a name.
#[must_use]
pub fn random_suffix() -> String {
    let letter = |_| {
        let index = rand::random_range(0..SUFFIX_LETTERS.len());
        char::from(SUFFIX_LETTERS[index])
    };
    (0..SUFFIX_LENGTH).map(letter).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::args::{Cli, Command};
    use clap::Parser as _;

    fn args(line: &str) -> RunArgs {
        let words = ["prewarm", "run"]
            .into_iter()
            .chain(line.split_whitespace());
        match Cli::try_parse_from(words).map(|cli| cli.command) {
            Ok(Command::Run(args)) => args,
            Ok(_) => panic!("not run"),
            Err(error) => panic!("{error}"),
        }
    }

    #[test]
    fn flags_become_a_native_manifest() {
        let line = "registry.example.com/team/My_app:1 nginx -l pool=gpu -p 25% --priority -3 --never \
            --repeat 1h --timeout-seconds 60 --backoff-limit 0 --pin --label team=infra --max-failed 2";
        let line = line.replace("My_app", "my_app");
        let checked = manifest(&args(&line), "abcde").unwrap();
        assert_eq!(checked.name.as_str(), "my-app-abcde");
        assert_eq!(
            checked.document,
            json!({
                "apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob",
                "metadata": {"name": "my-app-abcde", "labels": {"team": "infra"}},
                "spec": {
                    "images": ["registry.example.com/team/my_app:1", "nginx"],
                    "selector": {"matchLabels": {"pool": "gpu"}},
                    "parallelism": "25%", "priority": -3, "pin": true,
                    "pullPolicy": {"timeoutSeconds": 60, "backoffLimit": 0},
                    "completionPolicy": {"type": "Never", "repeatSeconds": 3600},
                    "failurePolicy": {"maxFailed": "2"},
                },
            })
        );
    }

    #[test]
    fn every_problem_is_told_by_its_flag() {
        let line = "UPPER/x:1 --selector pool --parallelism ten --name a_b --priority high --platform arm64 \
            --deadline 5s --pull-policy Sometimes --backoff-limit -1 --timeout-seconds 0";
        let failure = manifest(
            &args(&line.replace("--backoff-limit -1", "--backoff-limit=-1")),
            "abcde",
        )
        .unwrap_err();
        for begin in [
            "--selector: \"pool\" is not a label",
            "--parallelism: \"ten\" is neither a number nor a percentage",
            "--name: ",
            "--priority: ",
            "--platform: ",
            "--pull-policy: ",
            "--backoff-limit: ",
            "--timeout-seconds: ",
            "--deadline: ",
        ] {
            assert!(
                failure.message.lines().any(|line| line.starts_with(begin)),
                "{begin} is missing in\n{}",
                failure.message
            );
        }
    }

    #[test]
    fn made_names_are_legal_and_differ() {
        for image in ["nginx", "example.com/a/b__c.d:1", "UPPER", "quay.io/org/-x"] {
            let name = made_name(&[image.to_owned()], &random_suffix());
            assert!(
                name.parse::<crate::domain::name::JobName>().is_ok(),
                "{name}"
            );
        }
        assert_ne!(random_suffix(), random_suffix());
    }
}
