//! Manifests of OpenKruise.

use super::super::*;
use super::problems;
use crate::domain::job::{Amount, CompletionType, ImagePullPolicy};

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
        // Nor is it compared with the default of a timeout that nobody wrote.
        assert_eq!(one("ImagePullJob", &format!("image: a, {policy}")), over);
    }
}
