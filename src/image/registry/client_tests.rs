use std::path::Path;

use futures::TryStreamExt as _;

use super::super::test_server::{Asked, MANIFEST, Server, bare_registry, manifest, reply, status};
use super::super::{Registry, RegistryConfig};
use super::*;

const MANIFEST_PATH: &str = "/v2/app/manifests/1";
const BLOB: &[u8] = b"0123456789";

async fn repository(server: &Server) -> Repository {
    bare_registry()
        .repository(&server.image(), &[])
        .await
        .unwrap()
}

async fn resolve(server: &Server) -> Result<Resolved, Failure> {
    repository(server).await.resolve(&server.image()).await
}

async fn blob(server: &Server, size: u64, offset: u64) -> Result<Vec<u8>, Failure> {
    let digest = Digest::of(BLOB);
    let blob = repository(server)
        .await
        .blob(&digest, size, Part::from(offset), 0)
        .await?;
    let chunks: Vec<Bytes> = blob.stream.try_collect().await?;
    Ok(chunks.concat())
}

/// A node with this `hosts.toml` for the server's address.
fn with_hosts(root: &Path, server: &Server, hosts_toml: &str) -> Registry {
    let directory = root.join(&server.addr);
    std::fs::create_dir_all(&directory).unwrap();
    std::fs::write(directory.join("hosts.toml"), hosts_toml).unwrap();
    Registry::new(RegistryConfig {
        hosts_dirs: vec![root.to_owned()],
        ..RegistryConfig::default()
    })
}

#[tokio::test]
async fn a_tag_is_resolved_by_its_head() {
    let server = Server::start(|_| manifest()).await;
    let resolved = resolve(&server).await.unwrap();
    assert_eq!(resolved.digest, Digest::of(MANIFEST.as_bytes()));
    assert_eq!(resolved.media_type, manifest::OCI_MANIFEST);
    assert_eq!(resolved.size, MANIFEST.len() as u64);
    assert_eq!(server.count("HEAD", MANIFEST_PATH), 1);
    assert_eq!(server.count("GET", MANIFEST_PATH), 0);
    let accept = server.asked()[0].header("accept").unwrap().to_owned();
    assert!(accept.contains(manifest::OCI_INDEX), "{accept}");
}

#[tokio::test]
async fn a_digest_that_is_answered_with_another_is_refused() {
    let server = Server::start(|_| manifest()).await;
    let image: ImageRef = format!("{}/app@{}", server.addr, Digest::of(BLOB))
        .parse()
        .unwrap();
    let failure = repository(&server).await.resolve(&image).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::DigestMismatch);
}

#[tokio::test]
async fn without_a_usable_head_the_manifest_itself_is_hashed() {
    for without in [200, 400, 405] {
        let server = Server::start(move |asked| match asked.method.as_str() {
            "HEAD" => status(without),
            _ => reply(200, &[("content-type", manifest::OCI_INDEX)], MANIFEST),
        })
        .await;
        let resolved = resolve(&server).await.unwrap();
        assert_eq!(
            resolved.digest,
            Digest::of(MANIFEST.as_bytes()),
            "{without}"
        );
    }
}

#[tokio::test]
async fn refusals_have_their_kind_and_delay() {
    for (code, kind, requests) in [
        (404, FailureKind::ImageNotFound, 2),
        (403, FailureKind::Unauthorized, 2),
        (429, FailureKind::RateLimited, 1),
        (500, FailureKind::RegistryUnavailable, 1),
        (503, FailureKind::RegistryUnavailable, 1),
    ] {
        let server = Server::start(move |_| reply(code, &[("retry-after", "3")], "")).await;
        let failure = resolve(&server).await.unwrap_err();
        assert_eq!(failure.kind, kind, "{failure}");
        assert_eq!(failure.retry_after, Some(std::time::Duration::from_secs(3)));
        assert!(failure.message.contains(&server.addr), "{failure}");
        assert_eq!(server.asked().len(), requests, "{code} was asked for again");
    }
}

#[tokio::test]
async fn a_registry_that_is_not_there_is_unavailable() {
    let server = Server::start(|_| manifest()).await;
    let image = server.image();
    drop(server);
    let repository = bare_registry().repository(&image, &[]).await.unwrap();
    let failure = repository.resolve(&image).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(failure.message.contains("cannot connect"), "{failure}");
}

#[tokio::test]
async fn mirrors_are_asked_first_and_told_the_registry() {
    let registry = Server::start(|_| manifest()).await;
    let empty = Server::start(|_| status(404)).await;
    let full = Server::start(|_| manifest()).await;
    let root = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{0}\"\n[host.\"http://{1}\"]\n[host.\"http://{2}\"]\ncapabilities = [\"pull\"]\n[host.\"http://{2}\".header]\nX-Key = \"k\"\n",
        registry.addr, empty.addr, full.addr
    );
    let client = with_hosts(root.path(), &registry, &hosts);
    let image = registry.image();
    let repository = client.repository(&image, &[]).await.unwrap();
    repository.resolve(&image).await.unwrap();
    // A mirror that may not resolve is not asked what a tag means.
    // What one does not have is asked for at the next, without a look at the words of the refusal.
    assert_eq!((empty.asked().len(), full.asked().len()), (1, 0));
    assert_eq!(registry.count("HEAD", MANIFEST_PATH), 1);

    let digest = Digest::of(MANIFEST.as_bytes());
    repository.manifest(&digest).await.unwrap();
    let [asked] = &full.asked()[..] else {
        panic!("{:?}", full.asked())
    };
    assert_eq!(
        asked.target,
        format!(
            "/v2/app/manifests/{digest}?ns={}",
            registry.addr.replace(':', "%3A")
        )
    );
    assert_eq!(asked.header("x-key"), Some("k"));
    assert!(
        registry
            .asked()
            .iter()
            .all(|asked| !asked.target.contains("ns="))
    );
}

#[tokio::test]
async fn when_all_fail_the_registrys_word_counts_and_the_mirrors_are_told() {
    let registry = Server::start(|_| status(503)).await;
    let mirror = Server::start(|_| status(404)).await;
    let root = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        registry.addr, mirror.addr
    );
    let client = with_hosts(root.path(), &registry, &hosts);
    let image = registry.image();
    let failure = client
        .repository(&image, &[])
        .await
        .unwrap()
        .resolve(&image)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(failure.message.contains(&mirror.addr), "{failure}");
}

#[tokio::test]
async fn a_manifest_with_other_bytes_is_refused_and_a_huge_one_not_read() {
    let server = Server::start(|_| reply(200, &[], "other")).await;
    let digest = Digest::of(MANIFEST.as_bytes());
    let failure = repository(&server)
        .await
        .manifest(&digest)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::DigestMismatch);

    let huge = vec![b' '; (MAX_MANIFEST_BYTES + 1) as usize];
    let chunked =
        futures::stream::repeat_with(move || Ok::<_, std::io::Error>(huge.clone())).take(2);
    let endless = std::sync::Mutex::new(Some(axum::body::Body::from_stream(chunked)));
    let endless = std::sync::Arc::new(endless);
    let server =
        Server::start(move |_| reply(200, &[], endless.lock().unwrap().take().unwrap())).await;
    let failure = repository(&server)
        .await
        .manifest(&digest)
        .await
        .unwrap_err();
    assert_eq!(failure.kind, FailureKind::InvalidReference);
    assert!(failure.message.contains("larger than"), "{failure}");
}

fn ranged(asked: &Asked) -> reqwest::header::HeaderMap {
    asked.headers.clone()
}

#[tokio::test]
async fn a_blob_comes_from_the_offset_on_with_ranges_or_without() {
    let with = Server::start(|asked| match ranged(asked).get("range") {
        None => reply(200, &[], BLOB),
        Some(range) => {
            assert_eq!(range, "bytes=4-");
            reply(206, &[("content-range", "bytes 4-9/10")], &BLOB[4..])
        }
    })
    .await;
    let without = Server::start(|_| reply(200, &[], BLOB)).await;
    for server in [with, without] {
        assert_eq!(blob(&server, 10, 0).await.unwrap(), BLOB);
        assert_eq!(blob(&server, 10, 4).await.unwrap(), &BLOB[4..]);
        assert_eq!(
            server.asked()[0].header("accept-encoding"),
            Some("identity")
        );
    }
}

#[tokio::test]
async fn blobs_of_another_size_and_ranges_that_lie_are_refused() {
    let size = Server::start(|_| reply(200, &[], BLOB)).await;
    assert_eq!(
        blob(&size, 11, 0).await.unwrap_err().kind,
        FailureKind::DigestMismatch
    );
    let total =
        Server::start(|_| reply(206, &[("content-range", "bytes 4-9/99")], &BLOB[4..])).await;
    assert_eq!(
        blob(&total, 10, 4).await.unwrap_err().kind,
        FailureKind::DigestMismatch
    );
    // Each is asked once more, for all of it.
    let start = Server::start(|_| reply(206, &[("content-range", "bytes 0-9/10")], BLOB)).await;
    assert_eq!(
        blob(&start, 10, 4).await.unwrap_err().kind,
        FailureKind::RegistryUnavailable
    );
    let beyond = Server::start(|_| status(416)).await;
    assert_eq!(
        blob(&beyond, 10, 4).await.unwrap_err().kind,
        FailureKind::DigestMismatch
    );
    for server in [start, beyond] {
        assert_eq!(server.asked().len(), 2);
        assert_eq!(server.asked()[1].header("range"), None);
    }
}

#[tokio::test]
async fn a_registry_that_is_wrong_about_ranges_is_asked_for_all_of_the_blob() {
    for (code, range) in [
        (206, "bytes 0-9/10"),
        (206, "bytes 5-9/10"),
        (206, "bytes 4-9"),
        (206, "4-9/10"),
        (416, "bytes */10"),
    ] {
        let server = Server::start(move |asked| match asked.header("range") {
            Some(_) => reply(code, &[("content-range", range)], &BLOB[5..]),
            None => reply(200, &[], BLOB),
        })
        .await;
        assert_eq!(blob(&server, 10, 4).await.unwrap(), &BLOB[4..], "{range}");
        assert_eq!(server.asked().len(), 2, "{range}");
    }
}

#[tokio::test]
async fn a_part_that_is_asked_for_twice_is_not_asked_for_where_ranges_are_not_served() {
    let server = Server::start(|_| reply(200, &[], BLOB)).await;
    let part = Part {
        start: 2,
        end: Some(5),
    };
    let digest = Digest::of(BLOB);
    let repository = repository(&server).await;
    let blob = repository.blob(&digest, 10, part, 0).await.unwrap();
    assert_eq!(blob.end, 10, "all of the rest comes");
    let chunks: Vec<Bytes> = blob.stream.try_collect().await.unwrap();
    assert_eq!(chunks.concat(), &BLOB[2..]);
    assert_eq!(server.asked().len(), 1);
}

#[tokio::test]
async fn a_redirect_to_another_host_takes_no_secret_along() {
    let store =
        Server::start(|_| reply(206, &[("content-range", "bytes 4-9/10")], &BLOB[4..])).await;
    let location = format!("http://{}/signed?key=s", store.addr);
    let registry = Server::start(move |asked| match asked.header("authorization") {
        None => reply(401, &[("www-authenticate", "Basic")], ""),
        Some(_) => reply(307, &[("location", &location)], ""),
    })
    .await;
    let root = tempfile::tempdir().unwrap();
    let docker_config = root.path().join("config.json");
    let auths = format!(
        r#"{{"auths":{{"{}":{{"username":"u","password":"p"}}}}}}"#,
        registry.addr
    );
    std::fs::write(&docker_config, auths).unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[header]\nX-Key = \"k\"\n",
        registry.addr
    );
    with_hosts(root.path(), &registry, &hosts);
    let client = Registry::new(RegistryConfig {
        hosts_dirs: vec![root.path().to_owned()],
        docker_config: Some(docker_config),
        ..RegistryConfig::default()
    });
    let repository = client.repository(&registry.image(), &[]).await.unwrap();
    repository
        .blob(&Digest::of(BLOB), 10, Part::from(4), 0)
        .await
        .unwrap();
    let sent = registry.asked();
    assert_eq!(sent[1].header("x-key"), Some("k"));
    let [asked] = &store.asked()[..] else {
        panic!("{:?}", store.asked())
    };
    assert_eq!(asked.target, "/signed?key=s");
    assert_eq!(asked.header("range"), Some("bytes=4-"));
    for secret in ["authorization", "x-key", "referer", "cookie"] {
        assert_eq!(asked.header(secret), None, "{secret}");
    }
}

#[tokio::test]
async fn redirects_in_circles_and_to_nowhere_end() {
    let circle = Server::start(|asked| reply(302, &[("location", &asked.target)], "")).await;
    let failure = blob(&circle, 10, 0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::RegistryUnavailable);
    assert!(failure.message.contains("redirects more than"), "{failure}");
    assert!(circle.asked().len() <= 6);
    for location in ["", "file:///etc/passwd", "http://"] {
        let nowhere = Server::start(move |_| match location {
            "" => status(302),
            location => reply(302, &[("location", location)], ""),
        })
        .await;
        let failure = blob(&nowhere, 10, 0).await.unwrap_err();
        assert_eq!(
            failure.kind,
            FailureKind::RegistryUnavailable,
            "{location}: {failure}"
        );
    }
}

#[tokio::test]
async fn a_store_that_refuses_is_not_asked_with_the_registrys_credentials() {
    let store = Server::start(|_| reply(401, &[("www-authenticate", "Basic")], "")).await;
    let location = format!("http://{}/signed?key=TopSecret", store.addr);
    let registry = Server::start(move |_| reply(307, &[("location", &location)], "")).await;
    let failure = blob(&registry, 10, 0).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unauthorized);
    assert!(!failure.message.contains("TopSecret"), "{failure}");
    assert_eq!((registry.asked().len(), store.asked().len()), (1, 1));
}

#[tokio::test]
async fn a_host_that_asks_to_wait_is_asked_by_one_pull_for_all() {
    let limited = Server::start(|_| reply(429, &[("retry-after", "30")], "")).await;
    let client = bare_registry();
    let image = limited.image();
    let first = client.repository(&image, &[]).await.unwrap();
    assert_eq!(
        first.resolve(&image).await.unwrap_err().kind,
        FailureKind::RateLimited
    );
    let digest = Digest::of(BLOB);
    let others = (0..20).map(|_| async {
        let repository = client.repository(&image, &[]).await.unwrap();
        let resolve = repository.resolve(&image).await.unwrap_err();
        let part = Part::from(0);
        let blob = repository.blob(&digest, 10, part, 0).await.err().unwrap();
        [resolve, blob]
    });
    for failure in futures::future::join_all(others).await.concat() {
        assert_eq!(failure.kind, FailureKind::RateLimited, "{failure}");
        let wait = failure.retry_after.unwrap();
        assert!(
            wait > std::time::Duration::from_secs(20),
            "{wait:?} is not what was asked for"
        );
        assert!(failure.message.contains("not asked"), "{failure}");
    }
    assert_eq!(limited.asked().len(), 1, "each found out for itself");
}

#[tokio::test]
async fn a_mirror_that_asks_to_wait_is_passed_over_and_the_registry_is_asked() {
    let registry = Server::start(|_| manifest()).await;
    let mirror = Server::start(|_| reply(429, &[("retry-after", "30")], "")).await;
    let root = tempfile::tempdir().unwrap();
    let hosts = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\n",
        registry.addr, mirror.addr
    );
    let client = with_hosts(root.path(), &registry, &hosts);
    let image = registry.image();
    for _ in 0..5 {
        let repository = client.repository(&image, &[]).await.unwrap();
        repository.resolve(&image).await.unwrap();
    }
    assert_eq!(mirror.asked().len(), 1);
    assert_eq!(registry.asked().len(), 5);
}

#[tokio::test]
async fn a_store_that_asks_to_wait_does_not_close_the_registry() {
    let store = Server::start(|_| reply(429, &[("retry-after", "30")], "")).await;
    let location = format!("http://{}/signed", store.addr);
    let registry = Server::start(move |asked| match asked.target.contains("/blobs/") {
        true => reply(307, &[("location", &location)], ""),
        false => manifest(),
    })
    .await;
    let image = registry.image();
    let repository = bare_registry().repository(&image, &[]).await.unwrap();
    let part = Part::from(0);
    let failure = repository.blob(&Digest::of(BLOB), 10, part, 0).await;
    assert_eq!(failure.err().unwrap().kind, FailureKind::RateLimited);
    repository.resolve(&image).await.unwrap();
}
