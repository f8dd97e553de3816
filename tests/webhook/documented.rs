//! Payloads as their senders publish them, read without a server.

use axum::http::HeaderMap;
use prewarm::webhook::source::{Reading, Rejection, Source, read};
use serde_json::json;

fn file(source: Source, text: &str) -> Result<Reading, Rejection> {
    read(source, &HeaderMap::new(), text.as_bytes())
}

fn name(reading: &Reading) -> String {
    assert_eq!(
        reading.pushes.len() + reading.by_digest.len(),
        1,
        "{reading:?}"
    );
    let push = reading
        .pushes
        .iter()
        .chain(&reading.by_digest)
        .next()
        .unwrap();
    push.image().unwrap().to_string()
}

#[test]
fn pushes_are_read() {
    let d = "sha256:8a9e9863dbb6e10edb5adfe917c00da84e1700fa76e7ed02476aa6e6fb8ee0d8";
    let harbor = include_str!("payloads/harbor.json");
    let wanted = format!("hub.harbor.com/test-webhook/debian:latest@{d}");
    assert_eq!(name(&file(Source::Harbor, harbor).unwrap()), wanted);
    assert_eq!(
        name(
            &file(
                Source::Harbor,
                &harbor.replace("PUSH_ARTIFACT", "pushImage")
            )
            .unwrap()
        ),
        wanted
    );
    let data: serde_json::Value = serde_json::from_str(harbor).unwrap();
    let event = json!({"specversion": "1.0", "type": "harbor.artifact.pushed", "id": "e", "data": data["event_data"]});
    let reading = file(Source::Harbor, &event.to_string()).unwrap();
    assert_eq!(
        (name(&reading), reading.pushes[0].event_id.as_deref()),
        (wanted, Some("e"))
    );
    let quay = include_str!("payloads/quay.json");
    assert_eq!(
        name(&file(Source::Quay, quay).unwrap()),
        "quay.io/mynamespace/repository:latest"
    );
    let hub = include_str!("payloads/dockerhub.json");
    assert_eq!(
        name(&file(Source::DockerHub, hub).unwrap()),
        "docker.io/svendowideit/testhook:latest"
    );
    // The example is of a manifest without a tag, beside its blobs.
    let reading = file(
        Source::Distribution,
        include_str!("payloads/distribution-push.json"),
    )
    .unwrap();
    assert_eq!(
        (reading.by_digest.len(), reading.ignored.len()),
        (1, 2),
        "{reading:?}"
    );
    assert!(name(&reading).starts_with("registrycluster.local/library/test@sha256:fea8895f"));
    let acr = include_str!("payloads/acr.json");
    let wanted = "myregistry.azurecr.io/hello-world:v1@sha256:80f0d5c8";
    assert!(name(&file(Source::Acr, acr).unwrap()).starts_with(wanted));
    let gitea = include_str!("payloads/gitea.json");
    assert_eq!(
        name(&file(Source::Gitea, gitea).unwrap()),
        "localhost:3000/user1/giteacontainer:latest"
    );
    let jfrog = include_str!("payloads/jfrog-docker.json");
    let wanted = "example.jfrog.io/docker-remote-cache/library/ubuntu:latest@sha256:35c4a2c1";
    assert!(name(&file(Source::JFrog, jfrog).unwrap()).starts_with(wanted));
    // So is GitHub's.
    let reading = file(
        Source::GitHub,
        include_str!("payloads/github-package-container.json"),
    )
    .unwrap();
    assert_eq!(reading.by_digest.len(), 1);
    assert!(name(&reading).starts_with("ghcr.io/codertocat/hello-world@sha256:3da1996a"));
}

#[test]
fn what_is_no_image_is_ignored() {
    for (source, text) in [
        (
            Source::Distribution,
            include_str!("payloads/distribution-pull.json"),
        ),
        (
            Source::GitHub,
            include_str!("payloads/github-package-npm.json"),
        ),
        (Source::GitHub, include_str!("payloads/github-ping.json")),
        (Source::JFrog, include_str!("payloads/jfrog-artifact.json")),
        (Source::Acr, include_str!("payloads/acr-delete.json")),
        (Source::Nexus, include_str!("payloads/nexus-asset.json")),
        (Source::Nexus, include_str!("payloads/nexus-component.json")),
        (
            Source::CloudEvents,
            include_str!("payloads/cdevents-golang.json"),
        ),
    ] {
        let reading = file(source, text).unwrap();
        assert!(
            reading.pushes.is_empty() && reading.by_digest.is_empty(),
            "{source:?}: {reading:?}"
        );
        assert_eq!(reading.ignored.len(), 1, "{source:?}: {reading:?}");
    }
}

#[test]
fn an_example_that_names_no_image_is_refused_with_its_place() {
    // The documentation cuts the digest short here, and has capital letters in a repository there.
    let error = file(Source::Ecr, include_str!("payloads/ecr.json")).unwrap_err();
    assert_eq!(error.place, "detail");
    assert!(error.message.contains("is not a digest"), "{error}");
    let error = file(Source::Aliyun, include_str!("payloads/aliyun.json")).unwrap_err();
    assert_eq!(error.place, "push_data");
    let error = file(Source::Gar, include_str!("payloads/gar.json")).unwrap_err();
    assert_eq!(error.place, "message.data");
    assert!(error.message.contains("is not a digest"), "{error}");
    let whole = include_str!("payloads/ecr.json").replace("abcd1234", "abcd12345678");
    let wanted = "123456789012.dkr.ecr.us-west-2.amazonaws.com/my-repository-name:latest@";
    assert!(name(&file(Source::Ecr, &whole).unwrap()).starts_with(wanted));
}

#[test]
fn events_that_are_wrapped_or_transformed_are_read() {
    let d = format!("sha256:{}", "1".repeat(64));
    let transformed = json!({"specversion": "1.0", "id": "i", "type": "com.amazon.ecr.image.push",
        "source": "arn:aws:ecr:eu-west-1:123456789012:repository/app",
        "data": {"repositoryName": "app", "imageTag": "1", "imageDigest": d, "registryId": "123456789012"}});
    let wanted = format!("123456789012.dkr.ecr.eu-west-1.amazonaws.com/app:1@{d}");
    assert_eq!(
        name(&file(Source::Ecr, &transformed.to_string()).unwrap()),
        wanted
    );
    let aliyun = json!({"specversion": "1.0", "id": "i", "type": "cr:Artifact:PushCompleted", "aliyunregionid": "cn-beijing",
        "data": {"repoNamespaceName": "n", "repoName": "app", "tag": "1", "digest": d}});
    let wanted = format!("registry.cn-beijing.aliyuncs.com/n/app:1@{d}");
    assert_eq!(
        name(&file(Source::Aliyun, &aliyun.to_string()).unwrap()),
        wanted
    );
    // As Harbor writes it: the whole reference where the repository's URL belongs.
    let purl = format!(
        "pkg:oci/busybox@{d}?repository_url=harbor.dev%2Flibrary%2Fbusybox:v1.0@{d}&tag=v1.0"
    );
    let event = json!({"specversion": "1.0", "id": "i", "type": "dev.cdevents.artifact.published.0.1.1", "data": {
        "context": {"version": "0.3.0", "id": "i", "type": "dev.cdevents.artifact.published.0.1.1"},
        "subject": {"id": purl, "type": "artifact", "content": {}},
        "customData": {
            "resources": [{"digest": d, "tag": "v1.0", "resource_url": format!("harbor.dev/library/busybox:v1.0@{d}")}],
            "repository": {"name": "busybox", "namespace": "library", "repo_full_name": "library/busybox"}}}});
    for source in [Source::CloudEvents, Source::Harbor] {
        let reading = file(source, &event.to_string()).unwrap();
        let wanted = format!("harbor.dev/library/busybox:v1.0@{d}");
        assert_eq!(name(&reading), wanted, "{source:?}");
        assert_eq!(reading.pushes[0].event_id.as_deref(), Some("i"));
    }
    let unwrapped = json!({"action": "INSERT", "digest": format!("us-docker.pkg.dev/p/r/app@{d}"), "tag": "us-docker.pkg.dev/p/r/app:1"});
    let mut headers = HeaderMap::new();
    headers.insert("x-goog-pubsub-message-id", "7".parse().unwrap());
    let reading = read(Source::Gar, &headers, unwrapped.to_string().as_bytes()).unwrap();
    assert_eq!(name(&reading), format!("us-docker.pkg.dev/p/r/app:1@{d}"));
    assert_eq!(reading.pushes[0].event_id.as_deref(), Some("7"));
    let no_origin = include_str!("payloads/jfrog-docker.json").replace("jpd_origin", "other");
    let push = file(Source::JFrog, &no_origin).unwrap().pushes.remove(0);
    assert_eq!(
        (push.registry.as_str(), push.repository.as_str()),
        ("docker-remote-cache", "library/ubuntu")
    );
    let push = json!({"registry": "r.example.com", "repository": "a", "tag": "1"});
    let structured =
        json!({"specversion": "1.0", "id": "i", "type": "ci.pushed", "data": push}).to_string();
    let reading = file(Source::CloudEvents, &structured).unwrap();
    assert_eq!(
        (
            name(&reading).as_str(),
            reading.pushes[0].event_id.as_deref()
        ),
        ("r.example.com/a:1", Some("i"))
    );
    let mut headers = HeaderMap::new();
    headers.insert("ce-type", "ci.pushed".parse().unwrap());
    headers.insert("ce-id", "j".parse().unwrap());
    let reading = read(Source::CloudEvents, &headers, push.to_string().as_bytes()).unwrap();
    assert_eq!(reading.pushes[0].event_id.as_deref(), Some("j"));
    let asset = json!({"timestamp": "t", "repositoryName": "hosted", "action": "UPDATED",
        "asset": {"format": "docker", "name": "v2/a/b/manifests/1.0"}});
    let reading = file(Source::Nexus, &asset.to_string()).unwrap();
    assert_eq!(
        (
            reading.pushes[0].registry.as_str(),
            reading.pushes[0].repository.as_str()
        ),
        ("hosted", "a/b")
    );
}

/// Gitea and GitHub offer a form in the place of JSON.
#[test]
fn a_form_is_read_as_its_payload() {
    let mut headers = HeaderMap::new();
    let kind = "application/x-www-form-urlencoded; charset=utf-8";
    headers.insert("content-type", kind.parse().unwrap());
    for (source, payload) in [
        (Source::Gitea, include_str!("payloads/gitea.json")),
        (
            Source::GitHub,
            include_str!("payloads/github-package-container.json"),
        ),
    ] {
        let form: String = form_urlencoded::Serializer::new(String::new())
            .append_pair("payload", payload)
            .finish();
        let reading = read(source, &headers, form.as_bytes()).unwrap();
        assert_eq!(reading, file(source, payload).unwrap());
        for (body, place) in [
            ("a=b", "payload: "),
            ("payload=%7B", "payload: line 1 column 1"),
        ] {
            let error = read(source, &headers, body.as_bytes()).unwrap_err();
            assert!(error.to_string().starts_with(place), "{error}");
        }
    }
}
