mod kruise;

use super::*;
use crate::domain::job::{Amount, CompletionType, ImagePullPolicy};

fn problems(text: &str) -> Vec<String> {
    let rejection = parse(text.as_bytes()).expect_err("the manifest was accepted");
    rejection.problems.iter().map(ToString::to_string).collect()
}

fn native(spec: &str) -> String {
    format!(
        "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata: {{name: base}}\nspec:\n  {}\n",
        spec.replace('\n', "\n  ")
    )
}

fn one_problem(spec: &str) -> String {
    let found = problems(&native(spec));
    assert_eq!(found.len(), 1, "{found:?}");
    found.into_iter().next().unwrap()
}

#[test]
fn the_manifest_of_the_contract_is_read_whole() {
    let text = native(
        "images: [registry.example.com/base:1.4]
selector:
  matchLabels: {resource-pool: serverless}
  matchExpressions: [{key: arch, operator: In, values: [amd64]}]
parallelism: 25%
priority: 5
imagePullPolicy: Always
platform: linux/arm64
pullSecrets: [team-registry]
pin: true
unpack: false
absentAfterSeconds: 60
pullPolicy: {timeoutSeconds: 300, backoffLimit: 1}
completionPolicy: {type: Always, activeDeadlineSeconds: 1800, ttlSecondsAfterFinished: 300}
failurePolicy: {maxFailed: \"10%\"}",
    );
    let job = parse(text.as_bytes()).unwrap();
    assert_eq!(job.spec.parallelism, Amount::Percent(25));
    assert_eq!(job.spec.priority, 5);
    assert_eq!(job.spec.image_pull_policy, ImagePullPolicy::Always);
    assert!(job.spec.pin && !job.spec.unpack);
    assert_eq!(
        job.spec.failure_policy.unwrap().max_failed,
        Amount::Percent(10)
    );
    let again = parse(job.to_manifest().to_string().as_bytes()).unwrap();
    assert_eq!(again, job);
}

#[test]
fn json_and_yaml_say_the_same() {
    let json = r#"{"apiVersion":"prewarm.dev/v1","kind":"PrewarmJob","metadata":{"name":"base"},"spec":{"images":["nginx"]}}"#;
    assert_eq!(
        parse(json.as_bytes()),
        parse(native("images: [nginx]").as_bytes())
    );
}

#[test]
fn what_get_prints_can_be_applied_again() {
    let text = native("images: [nginx]").replace(
        "{name: base}",
        "{name: base, uid: x, generation: 2, createdAt: '2026-01-01T00:00:00Z', requestSequence: 3}",
    ) + "status: {phase: Running}\n";
    assert_eq!(parse(text.as_bytes()).unwrap().name.as_str(), "base");
}

#[test]
fn every_problem_is_told_at_once_with_its_path() {
    let found = problems(&native(
        "images: [UPPER, 'a b']
paralelism: 3
parallelism: ten
selector: {matchExpressions: [{key: 'a b', operator: Inn}]}
completionPolicy: {type: Never, ttlSecondsAfterFinished: 3}",
    ));
    let paths: Vec<&str> = found
        .iter()
        .map(|line| line.split(": ").next().unwrap())
        .collect();
    assert_eq!(
        paths,
        [
            "spec.completionPolicy.ttlSecondsAfterFinished",
            "spec.images[0]",
            "spec.images[1]",
            "spec.parallelism",
            "spec.paralelism",
            "spec.selector.matchExpressions[0].key",
            "spec.selector.matchExpressions[0].operator",
        ]
        .map(|path| path)
        .iter()
        .copied()
        .collect::<std::collections::BTreeSet<_>>()
        .into_iter()
        .collect::<Vec<_>>()
    );
}

#[test]
fn messages_say_what_is_wrong_and_what_would_be_right() {
    assert_eq!(
        one_problem("images: [nginx]\nparallelism: ten"),
        "spec.parallelism: \"ten\" is neither a number nor a percentage"
    );
    assert!(
        one_problem("images: [nginx]\nimage: x").starts_with("spec.image: unknown field; known")
    );
    assert!(one_problem("images: []").contains("at least one image"));
    assert!(one_problem("images: [nginx, docker.io/library/nginx]").contains("the same as [0]"));
    assert!(one_problem("parallelism: 1").contains("spec.images: is missing"));
    assert!(one_problem("images: [nginx]\nplatform: arm64").contains("linux/arm64"));
    assert!(one_problem("images: [nginx]\npullSecrets: [../etc]").contains("spec.pullSecrets[0]"));
    assert!(one_problem("images: [1]").contains("quote it"));
    let both = "images: [nginx]\nselector: {names: [a], matchLabels: {a: b}}";
    assert!(one_problem(both).contains("names exclude"));
    let late = "images: [nginx]\ncompletionPolicy: {activeDeadlineSeconds: 5}";
    assert!(one_problem(late).contains("below pullPolicy.timeoutSeconds, 600"));
}

#[test]
fn a_job_has_at_most_255_images() {
    let list = |count: usize| {
        let images: Vec<String> = (0..count).map(|index| format!("app:{index}")).collect();
        native(&format!("images: [{}]", images.join(", ")))
    };
    assert_eq!(parse(list(255).as_bytes()).unwrap().spec.images.len(), 255);
    assert!(problems(&list(300))[0].contains("has 300 images; a job has at most 255"));
}

#[test]
fn a_job_is_small_enough_for_its_record() {
    let list = |count: usize| {
        let names: Vec<String> = (0..count).map(|index| format!("n{index:0>59}")).collect();
        native(&format!(
            "images: [a]\nselector: {{names: [{}]}}",
            names.join(", ")
        ))
    };
    parse(list(6_000).as_bytes()).unwrap();
    let rejection = parse(list(7_000).as_bytes()).unwrap_err();
    assert!(
        rejection
            .to_string()
            .contains("as JSON; at most 393216 are allowed")
    );
    assert!(rejection.name.is_some());
}

#[test]
fn what_is_no_manifest_is_refused_with_its_place() {
    assert!(problems("{\"apiVersion\": ")[0].contains("line 1 column"));
    assert!(problems("a: [")[0].contains("neither JSON nor YAML"));
    assert!(problems("")[0].contains("empty"));
    assert!(problems("- 1\n")[0].contains("expected an object, found a list"));
    assert!(problems("a: 1\n---\nb: 2\n")[0].contains("one message carries one manifest"));
    assert!(problems("apiVersion: v1\nkind: Pod\n")[0].contains("\"v1 Pod\" is not known"));
    let no_version = "apiVersion: is missing; a job has \"prewarm.dev/v1\"";
    let no_kind = "kind: is missing; a job has \"PrewarmJob\"";
    assert_eq!(problems("kind: PrewarmJob\n"), [no_version]);
    assert_eq!(problems("a: 1\n"), [no_version, no_kind]);
    assert!(
        parse(&[0xff, 0xfe])
            .unwrap_err()
            .to_string()
            .contains("not UTF-8")
    );
    assert!(
        parse(&vec![b'#'; MAX_BYTES + 1])
            .unwrap_err()
            .to_string()
            .contains("bytes")
    );
}

#[test]
fn a_rejection_names_the_job_when_it_can() {
    let rejection = parse(native("images: []").as_bytes()).unwrap_err();
    assert_eq!(rejection.name.unwrap().as_str(), "base");
}

#[test]
fn yaml_that_explodes_is_refused() {
    let mut text = String::from("a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n");
    for level in 1..12 {
        let refs = vec![format!("*a{}", level - 1); 10].join(", ");
        text.push_str(&format!("a{level}: &a{level} [{refs}]\n"));
    }
    assert!(!problems(&text).is_empty());
}

#[test]
fn defaults_are_those_of_the_contract() {
    let spec = parse(native("images: [a]").as_bytes()).unwrap().spec;
    assert_eq!(spec.parallelism, Amount::Count(10));
    assert_eq!(spec.absent_after_seconds, 120);
    assert_eq!(spec.completion_policy.kind, CompletionType::Always);
    assert_eq!(spec.pull_policy.timeout_seconds, 600);
    assert_eq!(spec.pull_policy.backoff_limit, 3);
    let often = "images: [a]\ncompletionPolicy: {type: Always, repeatSeconds: 60}";
    assert_eq!(
        one_problem(often),
        "spec.completionPolicy.repeatSeconds: goes with type Never only"
    );
}

#[test]
fn flow_style_yaml_begins_as_json_does() {
    let flow = "{apiVersion: prewarm.dev/v1, kind: PrewarmJob, metadata: {name: base},\n spec: {images: [nginx]}}";
    assert_eq!(
        parse(flow.as_bytes()),
        parse(native("images: [nginx]").as_bytes())
    );
    let two = format!("{flow}\n---\n{flow}\n");
    assert_eq!(documents(two.as_bytes()).unwrap().len(), 2);
    // What is wrong is told in the words of what it looks like.
    let json = problems("{\"apiVersion\": \"prewarm.dev/v1\", \"kind\"]");
    assert!(
        json[0].starts_with("the manifest is not JSON: "),
        "{json:?}"
    );
    let yaml = problems("{apiVersion: prewarm.dev/v1, kind: [}");
    assert!(
        yaml[0].starts_with("the manifest is neither JSON nor YAML: "),
        "{yaml:?}"
    );
}

proptest::proptest! {
    #[test]
    fn no_bytes_make_it_panic(bytes in proptest::collection::vec(proptest::num::u8::ANY, 0..200)) {
        let _ = parse(&bytes);
    }
}
