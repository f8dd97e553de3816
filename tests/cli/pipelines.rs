//! The examples for CI in deploy/ci do what they say: their own lines are run, against a fleet.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use serde_json::{Value, json};

use super::fleet::{Fleet, shipped_accounts};
use crate::support::nats::{NatsServer, NatsVersion};
use crate::support::parts;
use crate::support::prewarm::prewarm;
use crate::support::wait::{eventually, within};

/// How long a pipeline may take whose pulls are tried four times before they fail.
const LIMIT: std::time::Duration = std::time::Duration::from_secs(90);

fn ci() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/ci")
}

fn example(name: &str) -> String {
    fs::read_to_string(ci().join(name)).unwrap()
}

fn yaml(name: &str) -> Value {
    serde_saphyr::from_str(&example(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// A pipeline's own lines, and what its system puts into the environment.
struct Pipeline {
    name: &'static str,
    script: String,
    env: Vec<(&'static str, String)>,
}

/// What every system but the plain one has as a secret.
fn secret(fleet: &Fleet) -> (&'static str, String) {
    ("PREWARM_NATS_URL", fleet.url("core"))
}

const IMAGE: &str = "registry.example.com/app:1";

fn github(fleet: &Fleet) -> Pipeline {
    let workflow = yaml("github-actions.yaml");
    let step = &workflow["jobs"]["prewarm"]["steps"][0];
    assert_eq!(step["env"]["IMAGE"], "${{ inputs.image }}");
    let script = step["run"].as_str().unwrap();
    // Whoever starts it could write commands into an expression.
    assert!(!script.contains("${{"), "{script}");
    Pipeline {
        name: "GitHub",
        script: script.to_owned(),
        env: vec![
            secret(fleet),
            ("IMAGE", IMAGE.to_owned()),
            ("GITHUB_RUN_ID", "17".to_owned()),
            ("GITHUB_RUN_ATTEMPT", "1".to_owned()),
        ],
    }
}

fn gitlab(fleet: &Fleet) -> Pipeline {
    let job = &yaml("gitlab-ci.yaml")["prewarm"];
    let lines = job["script"].as_array().unwrap().iter();
    let lines: Vec<&str> = lines.map(|line| line.as_str().unwrap()).collect();
    // GitLab fills variables in before the shell sees them.
    let image = job["variables"]["IMAGE"].as_str().unwrap();
    let image = image
        .replace("$CI_REGISTRY_IMAGE", "registry.example.com/team/app")
        .replace("$CI_COMMIT_SHORT_SHA", "1a2b3c4d");
    Pipeline {
        name: "GitLab",
        script: lines.join("\n"),
        env: vec![
            secret(fleet),
            ("IMAGE", image),
            ("CI_PIPELINE_ID", "4711".to_owned()),
        ],
    }
}

fn jenkins(fleet: &Fleet) -> Pipeline {
    let file = example("Jenkinsfile");
    let (_, script) = file.split_once("sh '''").unwrap();
    let (script, _) = script.split_once("'''").unwrap();
    // Groovy takes a backslash at the end of a line out, with the line's end.
    let script = script.replace("\\\n", "");
    for (open, close) in [('{', '}'), ('(', ')')] {
        let count = |c| file.matches(c).count();
        assert_eq!(count(open), count(close), "{open} and {close}");
    }
    Pipeline {
        name: "Jenkins",
        script,
        env: vec![
            secret(fleet),
            ("IMAGE", IMAGE.to_owned()),
            (
                "JOB_NAME",
                "Team A/app/feature%2FA-name-that-says-what-it-is-about".to_owned(),
            ),
            ("BUILD_NUMBER", "3".to_owned()),
        ],
    }
}

fn tekton(fleet: &Fleet) -> Pipeline {
    let task = yaml("tekton.yaml");
    let step = &task["spec"]["steps"][0];
    let words = |list: &Value| -> Vec<String> {
        let list = list.as_array().unwrap().iter();
        list.map(|word| word.as_str().unwrap().to_owned()).collect()
    };
    let mut call = [words(&step["command"]), words(&step["args"])].concat();
    for param in task["spec"]["params"].as_array().unwrap() {
        let name = param["name"].as_str().unwrap();
        let value = match name {
            "image" => IMAGE,
            "name" => "run-x7k2p",
            _ => param["default"].as_str().unwrap(),
        };
        for word in &mut call {
            *word = word.replace(&format!("$(params.{name})"), value);
        }
    }
    assert!(!call.iter().any(|word| word.contains("$(")), "{call:?}");
    let quoted: Vec<String> = call.iter().map(|word| format!("'{word}'")).collect();
    Pipeline {
        name: "Tekton",
        script: quoted.join(" "),
        env: vec![secret(fleet)],
    }
}

fn plain(fleet: &Fleet) -> Pipeline {
    plain_at(fleet.server(), 60)
}

/// Against this broker, for so long.
fn plain_at(server: String, seconds: u32) -> Pipeline {
    let folder = ci().join("nats").display().to_string();
    Pipeline {
        name: "nats",
        script: format!("'{folder}/prewarm-job' '{folder}/base.json' base {seconds}"),
        env: vec![
            ("NATS_URL", server),
            ("NATS_USER", "ci".to_owned()),
            ("NATS_PASSWORD", "ci".to_owned()),
        ],
    }
}

/// A folder with what a runner has on its PATH.
fn programs(folder: &Path) {
    std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_prewarm"), folder.join("prewarm")).unwrap();
    let stand_in = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/python/nats_request.py");
    let nats = folder.join("nats");
    let call = format!(
        "#!/bin/sh\nexec '{}' '{}' \"$@\"\n",
        parts::python().display(),
        stand_in.display()
    );
    fs::write(&nats, call).unwrap();
    fs::set_permissions(&nats, fs::Permissions::from_mode(0o755)).unwrap();
}

/// Its exit code, and everything it said.
async fn run(pipeline: Pipeline) -> (i32, String) {
    let home = parts::temp_dir();
    programs(home.path());
    let path = format!(
        "{}:{}",
        home.path().display(),
        std::env::var("PATH").unwrap()
    );
    let mut command = tokio::process::Command::new("sh");
    command
        .args(["-e", "-c", &pipeline.script])
        .env_clear()
        .env("PATH", path)
        .env("HOME", home.path())
        .current_dir(home.path())
        .stdin(Stdio::null())
        .kill_on_drop(true);
    for (name, value) in &pipeline.env {
        command.env(name, value);
    }
    let what = format!("the end of the pipeline of {}", pipeline.name);
    let output = within(LIMIT, &what, command.output()).await.unwrap();
    let said = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    (
        output.status.code().unwrap(),
        format!("{}: {said}", pipeline.name),
    )
}

/// Runs all of them at once.
async fn run_all(fleet: &Fleet) -> [(i32, String); 5] {
    let (github, gitlab, jenkins, tekton, plain) = tokio::join!(
        run(github(fleet)),
        run(gitlab(fleet)),
        run(jenkins(fleet)),
        run(tekton(fleet)),
        run(plain(fleet)),
    );
    [github, gitlab, jenkins, tekton, plain]
}

#[tokio::test]
async fn every_pipeline_ends_well_when_the_image_is_on_the_nodes() {
    let fleet = Fleet::start("0").await;
    for (code, said) in run_all(&fleet).await {
        assert_eq!(code, 0, "{said}");
        assert!(said.contains("Succeeded"), "{said}");
    }
    let jobs = prewarm(["get", "jobs"]).env("NATS_URL", fleet.url("core"));
    let jobs = jobs.run().await;
    for name in [
        "ci-17-1",
        "ci-4711",
        "ci-team-a-app-feature-2fa-name-that-says-wh-3",
        "run-x7k2p",
        "base",
    ] {
        assert!(jobs.stdout.contains(name), "{name}: {jobs:?}");
    }
}

#[tokio::test]
async fn every_pipeline_fails_when_a_node_did_not_get_the_image() {
    let fleet = Fleet::start("1").await;
    for (code, said) in run_all(&fleet).await {
        assert_eq!(code, 1, "{said}");
    }
}

#[tokio::test]
async fn a_pipeline_whose_manifest_is_wrong_ends_with_two() {
    let fleet = Fleet::start("0").await;
    let dir = parts::temp_dir();
    let manifest = dir.path().join("wrong.json");
    let wrong = example("nats/base.json").replacen("parallelism", "paralelism", 1);
    fs::write(&manifest, wrong).unwrap();
    let mut pipeline = plain(&fleet);
    let right = format!("{}/nats/base.json", ci().display());
    let script = pipeline
        .script
        .replace(&right, &manifest.display().to_string());
    assert_ne!(script, pipeline.script);
    pipeline.script = script;
    let (code, said) = run(pipeline).await;
    assert_eq!(code, 2, "{said}");
}

#[tokio::test]
async fn a_pipeline_that_nobody_answers_ends_with_three() {
    let (code, said) = run(plain_at("nats://127.0.0.1:1".to_owned(), 60)).await;
    assert_eq!(code, 3, "no broker: {said}");
    let nats = NatsServer::start_with(NatsVersion::V2_15, &shipped_accounts()).await;
    let (code, said) = run(plain_at(nats.url(), 60)).await;
    assert_eq!(code, 3, "no dispatcher: {said}");
    let mut refused = plain_at(nats.url(), 60);
    refused.env.pop();
    let (code, said) = run(refused).await;
    assert_eq!(code, 3, "no password: {said}");
}

#[tokio::test]
async fn a_pipeline_whose_broker_goes_meanwhile_ends_with_three() {
    let fleet = Fleet::start("1").await;
    let running = tokio::spawn(run(plain_at(fleet.server(), 6)));
    // Its pulls are tried again for several seconds.
    let core = fleet.url("core");
    eventually("the job to be there", LIMIT, async || {
        let jobs = prewarm(["get", "job", "base"]).env("NATS_URL", &core);
        let jobs = jobs.run().await;
        (jobs.code == 0).then_some(()).ok_or(format!("{jobs:?}"))
    })
    .await;
    drop(fleet);
    let (code, said) = running.await.unwrap();
    assert_eq!(code, 3, "{said}");
}

#[tokio::test]
async fn a_pipeline_whose_job_takes_too_long_ends_with_four() {
    let fleet = Fleet::start("1").await;
    let (code, said) = run(plain_at(fleet.server(), 0)).await;
    assert_eq!(code, 4, "{said}");
}

#[tokio::test]
async fn the_line_that_only_starts_a_job_does() {
    let fleet = Fleet::start("0").await;
    let readme = example("README.md");
    let (_, line) = readme.split_once("one line does: `").unwrap();
    let (line, _) = line.split_once('`').unwrap();
    assert!(line.starts_with("nats pub prewarm.job.submit "), "{line}");
    let mut pipeline = plain(&fleet);
    pipeline.script = format!("cd '{}' && {line}", ci().display());
    let (code, said) = run(pipeline).await;
    assert_eq!(code, 0, "{said}");
    eventually("the job's end", LIMIT, async || {
        let job = prewarm(["get", "job", "base", "-o", "json"]).env("NATS_URL", fleet.url("core"));
        let job = job.run().await;
        let ended = job.stdout.contains("\"Succeeded\"");
        ended.then_some(()).ok_or(format!("{job:?}"))
    })
    .await;
}

/// check-jsonschema brings the schemas that GitHub's and GitLab's own editors use.
#[test]
fn github_and_gitlab_take_theirs() {
    for (file, schema) in [
        ("github-actions.yaml", "vendor.github-workflows"),
        ("gitlab-ci.yaml", "vendor.gitlab-ci"),
    ] {
        let check = |path: &Path| {
            let mut command = std::process::Command::new(parts::python());
            command.args(["-m", "check_jsonschema", "--builtin-schema", schema]);
            command.arg(path).output().unwrap()
        };
        let output = check(&ci().join(file));
        assert!(output.status.success(), "{file}: {output:?}");
        // And it would say so if not.
        let dir = parts::temp_dir();
        let wrong = dir.path().join(file);
        fs::write(&wrong, example(file).replace("timeout", "timeouts")).unwrap();
        let output = check(&wrong);
        assert!(!output.status.success(), "{file}: {output:?}");
    }
}

/// The fields of Tekton's own types (pkg/apis/pipeline/v1 of tektoncd/pipeline).
const TASK: &str = "apiVersion kind metadata spec";
const TASK_SPEC: &str =
    "params displayName description steps volumes stepTemplate sidecars workspaces results";
const PARAM: &str = "name type description properties default enum";
const STEP: &str = "name displayName image command args workingDir envFrom env computeResources volumeMounts volumeDevices \
    imagePullPolicy securityContext script timeout workspaces onError stdoutConfig stderrConfig ref params results when";

fn has_only(value: &Value, fields: &str) {
    for field in value.as_object().unwrap().keys() {
        let known = fields.split_whitespace().any(|known| known == field);
        assert!(known, "{field} is none of {fields}");
    }
}

#[test]
fn tekton_takes_its_own() {
    let task = yaml("tekton.yaml");
    assert_eq!(task["apiVersion"], "tekton.dev/v1");
    assert_eq!(task["kind"], "Task");
    has_only(&task, TASK);
    has_only(&task["spec"], TASK_SPEC);
    let params = task["spec"]["params"].as_array().unwrap();
    let names: BTreeSet<&str> = params
        .iter()
        .map(|param| {
            has_only(param, PARAM);
            assert_eq!(param["type"], "string");
            assert!(param["default"].is_string() || param["default"].is_null());
            param["name"].as_str().unwrap()
        })
        .collect();
    assert_eq!(names.len(), params.len(), "each name once");
    let steps = task["spec"]["steps"].as_array().unwrap();
    let used: Vec<String> = steps.iter().flat_map(params_used).collect();
    let used: BTreeSet<&str> = used.iter().map(String::as_str).collect();
    assert_eq!(used, names, "declared and used");
    for step in steps {
        has_only(step, STEP);
        let (takes, said) = kubernetes_takes(step);
        assert!(takes, "{said}");
        for (right, wrong) in [
            ("secretKeyRef", "secretRef"),
            ("runAsNonRoot", "runAsNonroot"),
            ("[\"run\"", "[7"),
        ] {
            let text = step.to_string();
            let broken = text.replacen(right, wrong, 1);
            assert_ne!(text, broken);
            let (takes, said) = kubernetes_takes(&serde_json::from_str(&broken).unwrap());
            assert!(!takes, "{wrong}: {said}");
        }
    }
}

/// The parameters that a step names.
fn params_used(step: &Value) -> Vec<String> {
    let text = step.to_string();
    let names = text.split("$(params.").skip(1);
    let names = names.map(|rest| rest.split_once(')').unwrap().0.to_owned());
    names.collect()
}

/// Whether the schema of Kubernetes allows the container that Tekton makes of a step (`Step.ToK8sContainer`), and what the
/// validator says.
fn kubernetes_takes(step: &Value) -> (bool, String) {
    let mut container = serde_json::Map::new();
    for (field, value) in step.as_object().unwrap() {
        let field = match field.as_str() {
            "computeResources" => "resources",
            "displayName" | "script" | "timeout" | "workspaces" | "onError" | "stdoutConfig"
            | "stderrConfig" | "ref" | "params" | "results" | "when" => continue,
            field => field,
        };
        container.insert(field.to_owned(), value.clone());
    }
    let pod = json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": "tekton"}, "spec": {"containers": [container]},
    });
    let dir = parts::temp_dir();
    let manifest = dir.path().join("pod.yaml");
    fs::write(&manifest, pod.to_string()).unwrap();
    let validator = parts::python().with_file_name("kubernetes-validate");
    let mut command = std::process::Command::new(validator);
    command.args(["--strict", "-k", "1.37"]).arg(&manifest);
    let output = command.output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    let said = String::from_utf8_lossy(&said).into_owned();
    (output.status.success(), said)
}
