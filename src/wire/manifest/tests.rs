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

const KRUISE: &str = "apiVersion: apps.kruise.io/v1alpha1
kind: ImagePullJob
metadata: {name: job-with-always, namespace: team-a, annotations: {x: y}}
spec:
  image: nginx:1.9.1
  completionPolicy: {type: Always, activeDeadlineSeconds: 1200, ttlSecondsAfterFinished: 300}
  pullPolicy: {backoffLimit: -1, timeoutSeconds: 0}
  pullSecrets: [secret-name1]
  sandboxConfig: {annotations: {io.kubernetes.image.metrics.tags: cluster=x}, labels: {app: y}}
status: {desired: 1}
";

#[test]
fn kruise_jobs_get_kruise_defaults() {
    let job = parse(KRUISE.as_bytes()).unwrap();
    assert_eq!(job.name.as_str(), "team-a.job-with-always");
    assert_eq!(job.spec.parallelism, Amount::Count(1));
    assert_eq!(job.spec.pull_policy.timeout_seconds, 600);
    assert_eq!(job.spec.pull_policy.backoff_limit, 3);
    assert_eq!(job.spec.sandbox_config.labels["app"], "y");
    let text = KRUISE
        .replace("v1alpha1", "v1beta1")
        .replace("team-a", "default");
    assert_eq!(
        parse(text.as_bytes()).unwrap().name.as_str(),
        "job-with-always"
    );
}

#[test]
fn kruise_lists_become_one_job_of_many_images() {
    let text = KRUISE
        .replace("kind: ImagePullJob", "kind: ImageListPullJob")
        .replace(
            "image: nginx:1.9.1",
            "images: [nginx:1, nginx:2]\n  parallelism: '5'",
        )
        .replace(
            "type: Always, activeDeadlineSeconds: 1200, ttlSecondsAfterFinished: 300",
            "type: Never",
        );
    let job = parse(text.as_bytes()).unwrap();
    assert_eq!(job.spec.images.len(), 2);
    assert_eq!(job.spec.parallelism, Amount::Count(5));
    assert_eq!(job.spec.completion_policy.kind, CompletionType::Never);
}

#[test]
fn kruise_rules_hold() {
    let refused = |from: &str, to: &str| problems(&KRUISE.replace(from, to)).join("\n");
    assert!(refused("pullSecrets", "podSelector: {}\n  pullSecrets").contains("needs Kubernetes"));
    assert!(refused("pullSecrets", "parallelism: 10%\n  pullSecrets").contains("no percentages"));
    assert!(refused("pullSecrets", "parallelism: -1\n  pullSecrets").contains("found -1"));
    assert!(refused("type: Always", "type: Never").contains("goes with type Always only"));
    assert!(refused("type: Always", "repeatSeconds: 3").contains("unknown field"));
    let short =
        "1200, ttlSecondsAfterFinished: 300}\n  pullPolicy: {backoffLimit: -1, timeoutSeconds: 0}";
    let long = "599}\n  pullPolicy: {}";
    assert!(refused(short, long).contains("599 is below pullPolicy.timeoutSeconds, 600"));
    assert!(refused("image: nginx:1.9.1", "image: ''").contains("empty"));
    let twice = "selector: {names: [a, a]}\n  pullSecrets";
    assert!(refused("pullSecrets", twice).contains("the same as [0]"));
}

/// A Kruise manifest of this kind with nothing but this specification, in YAML's flow style.
fn kruise(kind: &str, spec: &str) -> String {
    format!(
        "apiVersion: apps.kruise.io/v1beta1\nkind: {kind}\nmetadata: {{name: a}}\nspec: {{{spec}}}\n"
    )
}

#[test]
fn kruise_parallelism_is_read_as_its_webhook_reads_it() {
    let read = |value: &str| {
        let text = kruise("ImagePullJob", &format!("image: a, parallelism: {value}"));
        parse(text.as_bytes()).map(|job| job.spec.parallelism)
    };
    for (value, count) in [
        ("1", 1),
        ("0", 0),
        ("'20'", 20),
        ("'0'", 0),
        ("'+5'", 5),
        ("null", 1),
    ] {
        assert_eq!(read(value).unwrap(), Amount::Count(count), "{value}");
    }
    for value in [
        "-1", "'-1'", "10%", "NaN", "'NaN'", "1.5", "''", "[1]", "true",
    ] {
        let rejection = read(value).expect_err(value);
        assert_eq!(rejection.problems.len(), 1, "{value}: {rejection}");
        assert_eq!(rejection.problems[0].path, "spec.parallelism", "{value}");
    }
    let absent = parse(kruise("ImagePullJob", "image: a").as_bytes()).unwrap();
    assert_eq!(absent.spec.parallelism, Amount::Count(1));
}

#[test]
#[expect(clippy::too_many_lines, reason = "a table, a row for each rule")]
fn kruise_rules_name_the_field_they_are_broken_by() {
    let many: Vec<String> = (0..256).map(|n| format!("a:{n}")).collect();
    let many = format!("images: [{}]", many.join(", "));
    let (one, list) = ("ImagePullJob", "ImageListPullJob");
    for (kind, spec, path) in [
        (one, "parallelism: 1", "spec.image"),
        (one, "image: ''", "spec.image"),
        (one, "image: 'a:b:c'", "spec.image"),
        (one, "images: [a]", "spec.image"),
        (list, "parallelism: 1", "spec.images"),
        (list, "images: []", "spec.images"),
        (list, "images: [a, a]", "spec.images[1]"),
        (list, "images: [a, 'B']", "spec.images[1]"),
        (list, &many, "spec.images"),
        (list, "images: [a], image: a", "spec.image"),
        (
            one,
            "image: a, selector: {names: [x, x]}",
            "spec.selector.names[1]",
        ),
        (
            one,
            "image: a, selector: {names: [x], matchExpressions: [{key: k, operator: Exists}]}",
            "spec.selector.names",
        ),
        (
            one,
            "image: a, selector: {matchExpressions: [{key: k, operator: In}]}",
            "spec.selector.matchExpressions[0].values",
        ),
        (
            one,
            "image: a, selector: {matchExpressions: [{key: k, operator: Equals, values: [v]}]}",
            "spec.selector.matchExpressions[0].operator",
        ),
        (
            one,
            "image: a, selector: {matchLabels: {'k k': v}}",
            "spec.selector.matchLabels.k k",
        ),
        (
            one,
            "image: a, podSelector: {matchLabels: {k: v}}",
            "spec.podSelector",
        ),
        (list, "images: [a], podSelector: {}", "spec.podSelector"),
        (
            one,
            "image: a, completionPolicy: {type: Sometimes}",
            "spec.completionPolicy.type",
        ),
        (
            one,
            "image: a, completionPolicy: {type: Never, activeDeadlineSeconds: 700}",
            "spec.completionPolicy.activeDeadlineSeconds",
        ),
        (
            list,
            "images: [a], completionPolicy: {type: Never, ttlSecondsAfterFinished: 1}",
            "spec.completionPolicy.ttlSecondsAfterFinished",
        ),
        (
            one,
            "image: a, completionPolicy: {activeDeadlineSeconds: 599}",
            "spec.completionPolicy.activeDeadlineSeconds",
        ),
        (one, "image: a, priority: 1", "spec.priority"),
    ] {
        let rejection = parse(kruise(kind, spec).as_bytes()).expect_err(spec);
        let paths = rejection.problems.iter().map(|problem| &problem.path);
        assert!(
            paths.clone().any(|found| found == path),
            "{spec}: {rejection}"
        );
    }
}

fn kruise_spec(kind: &str, spec: &str) -> JobSpec {
    let job =
        parse(kruise(kind, spec).as_bytes()).unwrap_or_else(|error| panic!("{spec}: {error}"));
    // What a record says of it can be applied again.
    let again = parse(job.to_manifest().to_string().as_bytes()).unwrap();
    assert_eq!(again, job, "{spec}");
    job.spec
}

#[test]
fn kruise_takes_what_its_webhook_takes() {
    let job = kruise_spec;
    // The list job's webhook does not compare them.
    let spec = "images: [a], completionPolicy: {activeDeadlineSeconds: 5}";
    let short = job("ImageListPullJob", spec).completion_policy;
    assert_eq!(short.active_deadline_seconds, Some(5));
    let spec =
        "image: a, completionPolicy: {activeDeadlineSeconds: 600, ttlSecondsAfterFinished: 0}";
    let equal = job("ImagePullJob", spec).completion_policy;
    assert_eq!(equal.active_deadline_seconds, Some(600));
    assert_eq!(equal.ttl_seconds_after_finished, Some(0));
    // Another name of an image is another text to its webhook, and the same image to us.
    let twice = job("ImageListPullJob", "images: [a, 'a:latest', b]");
    assert_eq!(twice.images.len(), 2);
    for spec in ["image: a, selector: {}", "image: a, selector: null"] {
        assert_eq!(job("ImagePullJob", spec).selector, Default::default());
    }
    let defaults = job("ImageListPullJob", "images: [a]");
    assert_eq!(defaults.image_pull_policy, ImagePullPolicy::IfNotPresent);
    assert_eq!(defaults.completion_policy.kind, CompletionType::Always);
    assert_eq!(defaults.pull_policy.timeout_seconds, 600);
    assert_eq!(defaults.pull_policy.backoff_limit, 3);
}

#[test]
fn kruise_sets_may_say_a_thing_twice() {
    let spec = "image: a, pullSecrets: [x, y, x]";
    assert_eq!(kruise_spec("ImagePullJob", spec).pull_secrets, ["x", "y"]);
    let spec =
        "image: a, selector: {matchExpressions: [{key: k, operator: In, values: [v, w, v]}]}";
    let selector = kruise_spec("ImagePullJob", spec).selector;
    assert_eq!(selector.match_expressions[0].values, ["v", "w"]);
}

#[test]
fn kruise_reads_an_empty_policy_as_its_default() {
    for kind in ["image: a, ", "images: [a], "] {
        let spec = format!("{kind}imagePullPolicy: '', completionPolicy: {{type: ''}}");
        let kind = if kind.starts_with("images") {
            "ImageListPullJob"
        } else {
            "ImagePullJob"
        };
        let spec = kruise_spec(kind, &spec);
        assert_eq!(spec.image_pull_policy, ImagePullPolicy::IfNotPresent);
        assert_eq!(spec.completion_policy.kind, CompletionType::Always);
    }
}

#[test]
fn kruise_times_out_of_bounds_are_read_as_its_controllers_read_them() {
    let of = |kind: &str, images: &str, times: &str| {
        let spec = kruise_spec(kind, &format!("{images}, {times}"));
        let policy = spec.completion_policy;
        let timeout = spec.pull_policy.timeout_seconds;
        (
            timeout,
            policy.active_deadline_seconds,
            policy.ttl_seconds_after_finished,
        )
    };
    let one = |times: &str| of("ImagePullJob", "image: a", times);
    let list = |times: &str| of("ImageListPullJob", "images: [a]", times);
    // The webhook compares what was written; an attempt gets no more than what is left.
    let none = "pullPolicy: {timeoutSeconds: 0}, completionPolicy: {activeDeadlineSeconds: 300}";
    assert_eq!(one(none), (300, Some(300), None));
    assert_eq!(one("pullPolicy: {timeoutSeconds: -7}"), (600, None, None));
    assert_eq!(
        list("completionPolicy: {activeDeadlineSeconds: 5}"),
        (5, Some(5), None)
    );
    assert_eq!(
        one("completionPolicy: {ttlSecondsAfterFinished: -3}"),
        (600, None, Some(0))
    );
    let ages = "completionPolicy: {activeDeadlineSeconds: 9000000000000}";
    assert_eq!(one(ages), (600, Some(u32::MAX), None));
}

#[test]
fn what_kruise_takes_and_cannot_mean_is_refused_with_a_reason() {
    let one = |kind: &str, spec: &str| {
        let rejection = parse(kruise(kind, spec).as_bytes()).expect_err(spec);
        assert_eq!(rejection.problems.len(), 1, "{rejection}");
        rejection.to_string()
    };
    assert_eq!(
        one("ImagePullJob", "image: a, imagePullPolicy: Never"),
        "spec.imagePullPolicy: \"Never\" is neither IfNotPresent nor Always; Kruise accepts it, and then does as for Always"
    );
    let over = "spec.completionPolicy.activeDeadlineSeconds: is over before anything begins, which Kruise accepts; give it 1 or more, or leave it out";
    for deadline in ["0", "-5"] {
        let policy = format!("completionPolicy: {{activeDeadlineSeconds: {deadline}}}");
        assert_eq!(
            one("ImageListPullJob", &format!("images: [a], {policy}")),
            over
        );
        let spec = format!("image: a, pullPolicy: {{timeoutSeconds: -9}}, {policy}");
        assert_eq!(one("ImagePullJob", &spec), over);
    }
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
