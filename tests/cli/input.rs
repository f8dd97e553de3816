//! Bad input: each with its message and its exit code, and nothing sent anywhere.

use crate::support::prewarm::{Output, prewarm};

/// Nothing can listen there without being put there on purpose.
const NOBODY: &str = "nats://127.0.0.1:1";

async fn apply(manifest: &str) -> Output {
    prewarm(["apply", "-f", "-"])
        .env("NATS_URL", NOBODY)
        .stdin(manifest)
        .run()
        .await
}

fn manifest(spec: &str) -> String {
    format!(
        "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata: {{name: base}}\nspec: {spec}\n"
    )
}

async fn refused(manifest: &str, message: &str) {
    let output = apply(manifest).await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output.stderr.contains(message),
        "{message:?} is missing in {output:?}"
    );
    assert_eq!(output.stdout, "", "{output:?}");
}

#[tokio::test]
async fn what_is_not_json_is_refused_with_its_place() {
    refused(
        "{\"apiVersion\": ",
        "stdin: the manifest is not JSON: EOF while parsing a value at line 1 column 15",
    )
    .await;
}

#[tokio::test]
async fn an_unknown_kind_is_named_with_those_that_are_known() {
    let message = "stdin: kind: \"v1 Pod\" is not known; use prewarm.dev/v1 PrewarmJob, or apps.kruise.io/v1alpha1";
    refused("apiVersion: v1\nkind: Pod\n", message).await;
}

#[tokio::test]
async fn an_unknown_field_is_named_with_those_that_are_known() {
    refused(
        &manifest("{images: [nginx], paralelism: 3}"),
        "stdin: spec.paralelism: unknown field; known here: images, selector, parallelism",
    )
    .await;
}

#[tokio::test]
async fn three_hundred_images_are_too_many() {
    let images: Vec<String> = (0..300).map(|number| format!("app:{number}")).collect();
    let spec = format!("{{images: [{}]}}", images.join(", "));
    refused(
        &manifest(&spec),
        "stdin: spec.images: has 300 images; a job has at most 255",
    )
    .await;
}

#[tokio::test]
async fn a_bad_reference_is_quoted_with_the_rule_it_breaks() {
    refused(
        &manifest("{images: [Nginx/App]}"),
        "stdin: spec.images[0]: \"Nginx/App\": \"App\" is not a repository path",
    )
    .await;
}

#[tokio::test]
async fn a_bad_selector_is_told_requirement_by_requirement() {
    let spec = "{images: [nginx], selector: {matchExpressions: [{key: arch, operator: Is}, {key: 'a b', operator: In, values: []}]}}";
    let output = apply(&manifest(spec)).await;
    for message in [
        "spec.selector.matchExpressions[0].operator: \"Is\" is not In, NotIn, Exists or DoesNotExist",
        "spec.selector.matchExpressions[1].key: \"a b\" is not a label key",
        "spec.selector.matchExpressions[1].values: In and NotIn need at least one value",
    ] {
        assert!(
            output.stderr.contains(message),
            "{message:?} is missing in {output:?}"
        );
    }
    assert_eq!(output.code, 2);
}

#[tokio::test]
async fn parallelism_is_no_word() {
    let message = "spec.parallelism: \"ten\" is neither a number nor a percentage";
    refused(&manifest("{images: [nginx], parallelism: ten}"), message).await;
    let output = prewarm(["run", "nginx", "--parallelism", "ten"])
        .env("NATS_URL", NOBODY)
        .run()
        .await;
    assert_eq!(
        (output.code, output.stderr.as_str()),
        (
            2,
            "error: --parallelism: \"ten\" is neither a number nor a percentage\n"
        )
    );
}

#[tokio::test]
async fn every_problem_of_every_document_is_told_before_anything_is_sent() {
    let documents = format!(
        "{}---\n{}",
        manifest("{images: [nginx]}"),
        manifest("{images: [], priority: high}").replace("base", "other")
    );
    let output = apply(&documents).await;
    assert_eq!(
        output.stderr,
        "error: stdin: doc 2: spec.images: is empty; a job has at least one image\n       stdin: doc 2: spec.priority: expected a whole number from -2147483648 to 2147483647, found \"high\"\n"
    );
    assert_eq!(output.code, 2);
}

#[tokio::test]
async fn a_node_name_with_spaces_is_refused() {
    let output = prewarm(["worker", "--node", "node one", "--nats-url", NOBODY])
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output
            .stderr
            .contains("error: --node: \"node one\" is not a DNS-1123 subdomain"),
        "{output:?}"
    );
    let output = prewarm(["worker"])
        .env("PREWARM_NODE", "node one")
        .run()
        .await;
    assert!(
        output
            .stderr
            .contains("error: PREWARM_NODE: \"node one\" is not"),
        "the message says where it came from: {output:?}"
    );
}

#[tokio::test]
async fn every_bad_setting_is_told_at_once_with_its_source() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prewarm.yaml");
    std::fs::write(&file, "capacity: 1000\nlog-format: text\n").unwrap();
    let output = prewarm(["worker", "--labels", "pool", "--min-free-disk", "lots"])
        .env("PREWARM_NODE", "A_B")
        .env("PREWARM_CONFIG", &file)
        .run()
        .await;
    assert_eq!(output.code, 2, "{output:?}");
    let file = file.display().to_string();
    for begin in [
        "PREWARM_NODE: \"A_B\" is not",
        "--labels: \"pool\" is not a label",
        &format!("{file}: capacity: \"1000\" is not a whole number from 1 to 64"),
        "--min-free-disk: \"lots\"",
    ] {
        assert!(
            output.stderr.contains(begin),
            "{begin:?} is missing in {output:?}"
        );
    }
}

#[tokio::test]
async fn an_unknown_key_of_the_settings_file_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("prewarm.yaml");
    std::fs::write(&file, "nod: a\n").unwrap();
    let output = prewarm(["get", "jobs", "--config"]).arg(&file).run().await;
    assert_eq!(output.code, 2, "{output:?}");
    assert!(
        output
            .stderr
            .contains("nod: unknown setting; known: bandwidth-limit, capacity"),
        "{output:?}"
    );
}

#[tokio::test]
async fn an_unreachable_broker_is_named_with_what_to_do() {
    let commands: [&[&str]; 6] = [
        &["get", "jobs"],
        &["run", "nginx"],
        &["events"],
        &["watch"],
        &["cancel", "base"],
        &["describe", "job", "base"],
    ];
    for args in commands {
        let output = prewarm(args).env("NATS_URL", NOBODY).run().await;
        assert_eq!(output.code, 3, "{output:?}");
        assert_eq!(
            output.stderr,
            "error: cannot reach the broker at nats://127.0.0.1:1: Connection refused (os error 111)\n help: start one with `prewarm up`, or say where it is with --nats-url or NATS_URL\n"
        );
        assert_eq!(output.stdout, "");
    }
}

#[tokio::test]
async fn a_password_in_the_address_is_not_shown() {
    let output = prewarm(["get", "jobs"])
        .env("NATS_URL", "nats://app:hunter2@127.0.0.1:1")
        .run()
        .await;
    assert_eq!(output.code, 3);
    assert!(
        output.stderr.contains("nats://127.0.0.1:1") && !output.stderr.contains("hunter2"),
        "{output:?}"
    );
}

#[tokio::test]
async fn bad_arguments_end_with_two() {
    let commands: [&[&str]; 6] = [
        &[],
        &["frobnicate"],
        &["get", "pods"],
        &["run"],
        &[
            "events",
            "--type",
            "done",
            "--nats-url",
            "nats://127.0.0.1:1",
        ],
        &["cancel", "a b", "--nats-url", "nats://127.0.0.1:1"],
    ];
    for args in commands {
        let output = prewarm(args).run().await;
        let expected = if args.contains(&"--nats-url") { 3 } else { 2 };
        assert_eq!(output.code, expected, "{args:?}: {output:?}");
    }
}

#[tokio::test]
async fn a_dry_run_writes_a_manifest_that_can_be_applied() {
    let output = prewarm([
        "run",
        "nginx:1",
        "redis",
        "--name",
        "cache",
        "-l",
        "pool=gpu",
        "-p",
        "25%",
        "--deadline",
        "30m",
        "--dry-run",
    ])
    .run()
    .await;
    assert_eq!(
        output.stdout,
        "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata:\n  name: cache\nspec:\n  images:\n  - nginx:1\n  - redis\n  selector:\n    matchLabels:\n      pool: gpu\n  parallelism: 25%\n  completionPolicy:\n    activeDeadlineSeconds: 1800\n"
    );
    assert_eq!((output.code, output.stderr.as_str()), (0, ""));
    prewarm::wire::manifest::parse(output.stdout.as_bytes()).unwrap();
}

#[tokio::test]
async fn schemas_and_completions_need_no_broker() {
    let output = prewarm(["schema", "job"]).run().await;
    let schema: serde_json::Value = serde_json::from_str(&output.stdout).unwrap();
    assert_eq!(schema["title"], "JobManifest");
    let listed = prewarm(["schema"]).run().await;
    assert!(
        listed.stdout.lines().any(|line| line == "task-event"),
        "{listed:?}"
    );
    let unknown = prewarm(["schema", "pod"]).run().await;
    assert_eq!(unknown.code, 2);
    for shell in ["bash", "zsh", "fish"] {
        let output = prewarm(["completions", shell]).run().await;
        assert!(
            output.stdout.contains("describe") && output.code == 0,
            "{output:?}"
        );
    }
}

#[tokio::test]
async fn accounts_name_every_node_that_cannot_be_and_then_do_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let accounts = async |verb: &str, names: &[&str]| {
        let call = prewarm(["accounts", verb]).arg(dir.path().to_str().unwrap());
        names
            .iter()
            .fold(call, |call, name| call.arg(name))
            .run()
            .await
    };
    let unmade = accounts("node", &["node-1"]).await;
    assert_eq!(unmade.code, 2, "{unmade:?}");
    assert!(
        unmade
            .stderr
            .contains("make them with `prewarm accounts init`"),
        "{unmade:?}"
    );
    assert_eq!(accounts("init", &[]).await.code, 0);
    let bad = accounts("node", &["Bad Name", "node-1", "node_2"]).await;
    assert_eq!(bad.code, 2, "{bad:?}");
    for name in ["\"Bad Name\"", "\"node_2\""] {
        assert!(
            bad.stderr
                .contains(&format!("no node's name: {name} is not")),
            "{bad:?}"
        );
    }
    assert_eq!(accounts("node", &["node-1"]).await.code, 0, "the first");
    let conf = || std::fs::read_to_string(dir.path().join("accounts.conf")).unwrap();
    let before = conf();
    let ghosts = accounts("revoke", &["node-1", "ghost-1", "ghost-2"]).await;
    assert_eq!(ghosts.code, 2, "{ghosts:?}");
    for name in ["ghost-1", "ghost-2"] {
        assert!(
            ghosts
                .stderr
                .contains(&format!("{name}.creds is not there")),
            "{ghosts:?}"
        );
    }
    assert!(
        !dir.path().join("revoked").exists(),
        "node-1 alone was revoked"
    );
    assert_eq!(conf(), before);
}
