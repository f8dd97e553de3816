//! The files in schemas/ are what the types say, and say what the program does.
//!
//! `UPDATE_SCHEMAS=1` writes them instead (`make schemas`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Once;

use prewarm::domain::name::{JobName, NodeName};
use prewarm::wire::subject::{JobVerb, PullKey, Subjects};
use prewarm::wire::{asyncapi, manifest, schema};
use serde_json::{Value, json};

/// The folder of the files, which are written first if that was asked for.
fn directory() -> PathBuf {
    static WRITTEN: Once = Once::new();
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("schemas");
    WRITTEN.call_once(|| {
        if std::env::var_os("UPDATE_SCHEMAS").is_some() {
            fs::create_dir_all(&directory).unwrap();
            for (name, text) in files() {
                fs::write(directory.join(name), text).unwrap();
            }
        }
    });
    directory
}

/// Every file as it should be.
fn files() -> BTreeMap<String, String> {
    let mut files = BTreeMap::new();
    for (name, schema) in schema::all() {
        let text = serde_json::to_string_pretty(&schema).unwrap() + "\n";
        files.insert(format!("{name}.json"), text);
    }
    let document = serde_saphyr::to_string(&asyncapi::document()).unwrap();
    let comment = "# Written by `make schemas` from src/wire/asyncapi.rs.\n";
    files.insert("asyncapi.yaml".to_owned(), format!("{comment}{document}"));
    let document = serde_saphyr::to_string(&prewarm::webhook::openapi::document()).unwrap();
    let comment = "# Written by `make schemas` from src/webhook/openapi.rs.\n";
    files.insert("openapi.yaml".to_owned(), format!("{comment}{document}"));
    files
}

#[test]
fn the_files_are_what_the_types_say() {
    let directory = directory();
    let files = files();
    let there: BTreeSet<String> = fs::read_dir(&directory)
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let wanted: BTreeSet<String> = files.keys().cloned().collect();
    assert_eq!(
        there, wanted,
        "run `make schemas`, and remove what is no longer made"
    );
    for (name, text) in &files {
        let found = fs::read_to_string(directory.join(name)).unwrap();
        assert!(
            found == *text,
            "schemas/{name} is not what the types say: run `make schemas`"
        );
    }
}

fn validator(name: &str) -> jsonschema::Validator {
    let text = fs::read_to_string(directory().join(format!("{name}.json"))).unwrap();
    let schema: Value = serde_json::from_str(&text).unwrap();
    assert!(
        jsonschema::meta::is_valid(&schema),
        "{name} is no JSON Schema"
    );
    jsonschema::draft202012::new(&schema).unwrap()
}

#[test]
fn every_schema_is_a_schema() {
    for (name, _) in schema::all() {
        validator(name);
    }
}

fn job(spec: Value) -> Value {
    json!({"apiVersion": "prewarm.dev/v1", "kind": "PrewarmJob", "metadata": {"name": "base-image", "labels": {"team": "infra"}}, "spec": spec})
}

#[test]
fn a_manifest_passes_the_schema_if_it_passes_the_parser() {
    let schema = validator("job");
    let specs = [
        json!({"images": ["nginx"]}),
        json!({"images": ["registry.example.com/base:1.4"], "selector": {"matchLabels": {"resource-pool": "serverless"},
            "matchExpressions": [{"key": "arch", "operator": "In", "values": ["amd64"]}]}, "parallelism": 10, "priority": -1,
            "imagePullPolicy": "IfNotPresent", "platform": "linux/arm64", "pullSecrets": ["team-registry"], "pin": false,
            "unpack": true, "absentAfterSeconds": 120, "pullPolicy": {"timeoutSeconds": 600, "backoffLimit": 3},
            "completionPolicy": {"type": "Always", "activeDeadlineSeconds": 1800, "ttlSecondsAfterFinished": 300},
            "failurePolicy": {"maxFailed": "10%"}, "sandboxConfig": {"labels": {"a": "b"}, "annotations": {"c": "d"}}}),
        json!({"images": ["a", "b"], "selector": {"names": ["node-1"]}, "parallelism": "25%",
            "completionPolicy": {"type": "Never", "repeatSeconds": 86400}, "pullPolicy": {"backoffLimit": 0}}),
        json!({"images": ["a"], "parallelism": "10", "pullPolicy": {}, "completionPolicy": {}}),
    ];
    for spec in specs {
        let manifest = job(spec);
        manifest::read(&manifest).unwrap_or_else(|rejection| panic!("{rejection}"));
        if let Err(error) = schema.validate(&manifest) {
            panic!(
                "the parser takes {manifest}, the schema says {error} at {}",
                error.instance_path()
            );
        }
    }
}

#[test]
fn what_the_parser_refuses_for_its_shape_the_schema_refuses_too() {
    let schema = validator("job");
    let images: Vec<String> = (0..300).map(|number| format!("app:{number}")).collect();
    let specs = [
        json!({}),
        json!({"images": []}),
        json!({"images": images}),
        json!({"images": "nginx"}),
        json!({"images": [1]}),
        json!({"images": ["a b"]}),
        json!({"images": ["a"], "paralelism": 3}),
        json!({"images": ["a"], "parallelism": "ten"}),
        json!({"images": ["a"], "parallelism": -1}),
        json!({"images": ["a"], "parallelism": "101%"}),
        json!({"images": ["a"], "priority": "high"}),
        json!({"images": ["a"], "imagePullPolicy": "Sometimes"}),
        json!({"images": ["a"], "platform": "arm64"}),
        json!({"images": ["a"], "pin": "yes"}),
        json!({"images": ["a"], "selector": {"names": ["node one"]}}),
        json!({"images": ["a"], "selector": {"matchExpressions": [{"key": "a", "operator": "Is"}]}}),
        json!({"images": ["a"], "pullPolicy": {"timeoutSeconds": 0}}),
        json!({"images": ["a"], "completionPolicy": {"type": "Sometimes"}}),
        json!({"images": ["a"], "failurePolicy": {}}),
    ];
    let mut manifests: Vec<Value> = specs.into_iter().map(job).collect();
    let good = json!({"images": ["a"]});
    for (field, value) in [
        ("kind", json!("Pod")),
        ("apiVersion", json!("v1")),
        ("metadata", json!({"name": "a b"})),
        ("extra", json!(1)),
    ] {
        let mut manifest = job(good.clone());
        manifest[field] = value;
        manifests.push(manifest);
    }
    for manifest in manifests {
        assert!(
            manifest::read(&manifest).is_err(),
            "the parser takes {manifest}"
        );
        assert!(!schema.is_valid(&manifest), "the schema takes {manifest}");
    }
}

#[test]
fn a_command_has_a_name_and_nothing_else() {
    let schema = validator("job-command");
    assert!(schema.is_valid(&json!({"name": "base"})));
    for bad in [
        json!({}),
        json!({"name": "a b"}),
        json!({"name": "a", "force": true}),
    ] {
        assert!(!schema.is_valid(&bad), "the schema takes {bad}");
    }
}

/// One of every subject the program builds, with names that cannot be mistaken for tokens of ours.
fn subjects() -> Vec<String> {
    let subjects = Subjects::default();
    let (node, job): (NodeName, JobName) = ("n-1".parse().unwrap(), "j-1".parse().unwrap());
    let key = PullKey::new(node.clone(), job.clone(), &"nginx".parse().unwrap());
    let mut all: Vec<String> = JobVerb::ALL.map(|verb| subjects.job(verb)).to_vec();
    all.extend([
        subjects.task(&key),
        subjects.worker(&node),
        subjects.heartbeat(&node),
        subjects.revoke(&node),
        subjects.task_event(&key),
        subjects.job_event(Some(&job), "completed"),
        subjects.node_event(&node, "joined"),
        subjects.progress(&key),
        subjects.api("describe"),
        format!("$KV.{}.{}", subjects.jobs_bucket(), job.token()),
        format!("$KV.{}.{}", subjects.nodes_bucket(), node.token()),
    ]);
    all
}

/// Whether a subject is of a channel: parameters stand for one token each.
fn is_of(subject: &str, address: &str) -> bool {
    let (subject, address): (Vec<&str>, Vec<&str>) =
        (subject.split('.').collect(), address.split('.').collect());
    subject.len() == address.len()
        && subject
            .iter()
            .zip(address)
            .all(|(token, part)| *token == part || part.starts_with('{'))
}

fn asyncapi() -> Value {
    let text = fs::read_to_string(directory().join("asyncapi.yaml")).unwrap();
    serde_saphyr::from_str(&text).unwrap()
}

#[test]
fn every_subject_has_one_channel() {
    let document = asyncapi();
    let channels = document["channels"].as_object().unwrap();
    for subject in subjects() {
        let of: Vec<&String> = channels
            .iter()
            .filter(|(_, channel)| is_of(&subject, channel["address"].as_str().unwrap()))
            .map(|(id, _)| id)
            .collect();
        assert_eq!(of.len(), 1, "{subject} is of the channels {of:?}");
    }
}

fn references(value: &Value, found: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|value| references(value, found)),
        _ => {}
    }
}

#[test]
fn every_reference_leads_somewhere() {
    let document = asyncapi();
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(
        found.len() > 50,
        "only {} references were found",
        found.len()
    );
    for reference in found {
        match reference.strip_prefix('#') {
            Some(pointer) => assert!(
                document.pointer(pointer).is_some(),
                "{reference} leads nowhere"
            ),
            None => assert!(
                directory().join(&reference).is_file(),
                "{reference} leads nowhere"
            ),
        }
    }
}

#[test]
fn every_channel_is_whole() {
    let document = asyncapi();
    assert_eq!(document["asyncapi"], "3.0.0");
    for (id, channel) in document["channels"].as_object().unwrap() {
        let address = channel["address"].as_str().unwrap();
        let used: BTreeSet<&str> = address.split(['{', '}']).skip(1).step_by(2).collect();
        let described: BTreeSet<&str> = channel["parameters"]
            .as_object()
            .map(|map| map.keys().map(String::as_str).collect())
            .unwrap_or_default();
        assert_eq!(used, described, "parameters of {id}");
        assert!(
            !channel["messages"].as_object().unwrap().is_empty(),
            "{id} carries nothing"
        );
        let of = format!("#/channels/{id}");
        let operations = document["operations"].as_object().unwrap();
        let operated = operations
            .values()
            .filter(|operation| operation["channel"]["$ref"] == of.as_str())
            .count();
        assert_eq!(operated, 1, "operations of {id}");
    }
    let carried: BTreeSet<String> = document["components"]["messages"]
        .as_object()
        .unwrap()
        .keys()
        .cloned()
        .collect();
    // A rule is no message: it lies in a bucket.
    let schemas: BTreeSet<String> = schema::all()
        .into_iter()
        .map(|(name, _)| name.to_owned())
        .filter(|name| name != "push-rule")
        .collect();
    assert_eq!(
        carried, schemas,
        "every schema is of a message of some channel"
    );
}

#[test]
fn the_openapi_document_has_every_source_and_leads_somewhere() {
    let text = fs::read_to_string(directory().join("openapi.yaml")).unwrap();
    let document: Value = serde_saphyr::from_str(&text).unwrap();
    assert_eq!(document["openapi"], "3.1.0");
    for source in prewarm::webhook::source::Source::ALL {
        let path = format!("/webhooks/{}", source.as_str());
        for path in [path.clone(), format!("{path}/{{secret}}")] {
            let answers = document["paths"][&path]["post"]["responses"].as_object();
            let statuses: Vec<&str> = answers.unwrap().keys().map(String::as_str).collect();
            let wanted = [
                "200", "202", "400", "401", "404", "405", "408", "413", "503",
            ];
            assert_eq!(statuses, wanted, "{path}");
        }
    }
    let mut found = Vec::new();
    references(&document, &mut found);
    assert!(found.len() > 100, "only {} references", found.len());
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(
            document.pointer(pointer).is_some(),
            "{reference} leads nowhere"
        );
    }
    let mut schema = document["components"]["schemas"]["Push"].clone();
    schema["components"] = document["components"].clone();
    let schema = jsonschema::draft202012::new(&schema).unwrap();
    assert!(schema.is_valid(&json!({"registry": "r.io", "repository": "a", "tag": "1"})));
    assert!(!schema.is_valid(&json!({"registry": "r.io", "repository": "a", "digest": "1"})));
}
