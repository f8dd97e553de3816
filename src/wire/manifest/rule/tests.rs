use super::*;

fn rule(spec: Value) -> Result<PushRule, Rejection> {
    read(&json!({
        "apiVersion": "prewarm.dev/v1",
        "kind": "PushRule",
        "metadata": {"name": "apps"},
        "spec": spec,
    }))
}

fn push(repository: &str, tag: Option<&str>) -> Push {
    Push {
        registry: "r.example.com:5000".to_owned(),
        repository: repository.to_owned(),
        tag: tag.map(str::to_owned),
        digest: Some(Digest::of(b"x")),
        event_id: None,
        source: Some("harbor".to_owned()),
        unverified: false,
        trace: None,
    }
}

fn problems(spec: Value) -> Vec<String> {
    let rejection = rule(spec).expect_err("a rejection");
    rejection.problems.iter().map(ToString::to_string).collect()
}

#[test]
fn globs_stay_within_a_component_unless_doubled() {
    let one = rule(json!({"registry": "r.example.com:*", "repository": "team/*"})).unwrap();
    let deep =
        rule(json!({"registry": "**", "repository": ["team/**", "!team/**/secret"]})).unwrap();
    for (repository, by_one, by_deep) in [
        ("team/app", true, true),
        ("team/a/b", false, true),
        ("team/a/secret", false, false),
        ("other/app", false, false),
    ] {
        let push = push(repository, Some("1"));
        assert_eq!(one.matches(&push), by_one, "{repository}");
        assert_eq!(deep.matches(&push), by_deep, "{repository}");
    }
}

#[test]
fn versions_are_compared_as_versions() {
    let spec =
        json!({"registry": "**", "repository": "**", "semver": ">=1.9, <2", "tag": "!*-debug"});
    let rule = rule(spec).unwrap();
    for (tag, matches) in [
        ("1.10.0", true),
        ("v1.9.1", true),
        ("1.8.9", false),
        ("2.0.0", false),
        ("latest", false),
        ("1.9.0-debug", false),
    ] {
        assert_eq!(rule.matches(&push("a", Some(tag))), matches, "{tag}");
    }
    assert!(!rule.matches(&push("a", None)));
}

#[test]
fn a_push_without_a_tag_matches_only_what_says_nothing_of_tags() {
    let any = rule(json!({"registry": "**", "repository": "**"})).unwrap();
    assert!(any.matches(&push("a", None)));
    let named = json!({"registry": "**", "repository": "**", "job": {"name": "a-{{ tag }}"}});
    assert!(!rule(named).unwrap().matches(&push("a", None)));
}

#[test]
fn the_job_is_of_the_image_by_digest_and_says_where_it_is_from() {
    let rule = rule(json!({"registry": "**", "repository": "**"})).unwrap();
    let push = push("team/app", Some("1"));
    let manifest = rule.manifest(&push).unwrap();
    let job = read_job(&manifest).unwrap();
    let digest = Digest::of(b"x");
    let images: Vec<String> = job.spec.images.iter().map(ToString::to_string).collect();
    let name = "r.example.com:5000/team/app";
    assert_eq!(images, [format!("{name}@{digest}"), format!("{name}:1")]);
    assert_eq!(job.labels[RULE_LABEL], "apps");
    assert_eq!(job.labels[SOURCE_LABEL], "harbor");
    assert_eq!(
        rule.manifest(&push).unwrap(),
        manifest,
        "the same push makes the same job"
    );
    let elsewhere = Push {
        registry: "other.example.com".to_owned(),
        ..push
    };
    assert_ne!(
        rule.manifest(&elsewhere).unwrap()["metadata"]["name"],
        manifest["metadata"]["name"]
    );
}

#[test]
fn templates_are_filled_in_everywhere() {
    let rule = rule(json!({
        "registry": "**", "repository": "**",
        "job": {
            "name": "warm-{{repository}}-{{ tag }}",
            "labels": {"app": "{{repository}}"},
            "spec": {
                "images": ["{{registry}}/{{repository}}@{{digest}}", "{{registry}}/{{repository}}-sidecar:{{tag}}"],
                "selector": {"matchLabels": {"pool": "p-{{shortDigest}}"}},
                "parallelism": "25%",
            },
        },
    }))
    .unwrap();
    let manifest = rule.manifest(&push("team/app", Some("V1.0"))).unwrap();
    let digest = Digest::of(b"x");
    assert_eq!(manifest["metadata"]["name"], "warm-team-app-v1-0");
    assert_eq!(manifest["metadata"]["labels"]["app"], "team-app");
    assert_eq!(
        manifest["spec"]["images"][0],
        format!("r.example.com:5000/team/app@{digest}")
    );
    assert_eq!(
        manifest["spec"]["images"][1],
        "r.example.com:5000/team/app-sidecar:V1.0"
    );
    assert_eq!(
        manifest["spec"]["selector"]["matchLabels"]["pool"],
        format!("p-{}", &digest.hex()[..12])
    );
}

#[test]
fn every_problem_is_told_at_once_with_its_place() {
    let told = problems(json!({
        "repository": ["a", "{"], "semver": "newest", "debounceSeconds": -1, "colour": "red",
        "job": {"name": "{{tga}}", "spec": {"images": ["{{registry"]}},
    }));
    for place in [
        "spec.registry",
        "spec.repository",
        "spec.semver",
        "spec.debounceSeconds",
        "spec.colour",
        "spec.job.name",
        "spec.job.spec.images[0]",
    ] {
        assert!(
            told.iter().any(|problem| problem.starts_with(place)),
            "{place}: {told:#?}"
        );
    }
}

#[test]
fn a_template_that_makes_no_job_is_refused_when_the_rule_is_read() {
    let told = problems(json!({
        "registry": "**", "repository": "**",
        "job": {"labels": {"-": "x"}, "spec": {"parallelism": "ten", "colour": 1}},
    }));
    for place in [
        "spec.job.spec.parallelism",
        "spec.job.spec.colour",
        "spec.job.labels.-",
    ] {
        assert!(
            told.iter().any(|problem| problem.starts_with(place)),
            "{place}: {told:#?}"
        );
    }
}

#[test]
fn a_rule_reads_back_from_what_is_stored() {
    let rule = rule(json!({"registry": "**", "repository": "a", "debounceSeconds": 3})).unwrap();
    let stored = serde_json::to_vec(&rule).unwrap();
    let back: PushRule = serde_json::from_slice(&stored).unwrap();
    assert_eq!(back, rule);
    assert_eq!(back.debounce(), Duration::from_secs(3));
}

proptest::proptest! {
    /// Whatever a registry calls its repositories and tags, a job comes out.
    #[test]
    fn every_push_makes_a_job(
        repository in "[a-z0-9]{1,30}(/[a-z0-9]{1,30}){0,3}", tag in proptest::option::of("[A-Za-z0-9_][A-Za-z0-9_.-]{0,60}"),
    ) {
        let rule = rule(json!({"registry": "**", "repository": "**"})).unwrap();
        let push = push(&repository, tag.as_deref());
        proptest::prop_assert!(rule.matches(&push));
        let manifest = rule.manifest(&push).map_err(|rejection| proptest::test_runner::TestCaseError::fail(rejection.to_string()))?;
        proptest::prop_assert!(read_job(&manifest).is_ok());
    }
}
