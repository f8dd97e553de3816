//! containerd, CRI and runc.

use crate::support::containerd::{Containerd, ContainerdVersion};
use crate::support::images::{
    Compression, Entry, Format, Image, Layer, Recipe, busybox, generated,
};
use crate::support::parts;
use crate::support::registry::Registry;
use crate::support::run_container::run_container;

/// A pod's life as far as images go: CRI pulls, lists and knows it by digest; a container of it runs.
async fn pulls_and_runs(version: ContainerdVersion) {
    let (registry, mut containerd) = tokio::join!(Registry::start(), Containerd::start(version));
    containerd.allow_registry(&registry.addr());
    let image = busybox(&parts::program("busybox", "busybox")).build();
    let pushed = registry.push("library/busybox", "1.0", &image).await;
    let cri = containerd.cri().await;
    assert!(cri.image_status(&pushed.by_tag).await.unwrap().is_none());

    let id = cri.pull_image(&pushed.by_tag).await.unwrap();

    assert_eq!(id, pushed.config);
    let [listed] = &cri.list_images().await.unwrap()[..] else {
        panic!("one image")
    };
    assert_eq!(listed.repo_tags, std::slice::from_ref(&pushed.by_tag));
    assert_eq!(listed.repo_digests, std::slice::from_ref(&pushed.by_digest));
    assert!(
        containerd
            .ctr(&["images", "ls", "-q"])
            .await
            .contains(&pushed.by_tag)
    );
    let printed = run_container(
        &containerd,
        &pushed.by_tag,
        &["/bin/sh", "-c", "echo one line; id -u"],
    )
    .await;
    assert_eq!(printed, "one line\n0\n");

    let mark = registry.mark().await;
    cri.pull_image(&pushed.by_tag).await.unwrap();
    assert!(
        !registry
            .requests_since(mark)
            .await
            .iter()
            .any(|request| request.gets_blob())
    );

    containerd.kill();
    containerd.restart().await;
    let cri = containerd.cri().await;
    assert!(cri.image_status(&pushed.by_digest).await.unwrap().is_some());
    assert_eq!(
        run_container(&containerd, &pushed.by_tag, &["/bin/echo", "again"]).await,
        "again\n"
    );
    cri.remove_image(&pushed.by_tag).await.unwrap();
    assert_eq!(cri.list_images().await.unwrap(), []);
}

#[tokio::test]
async fn containerd_1_6_pulls_and_runs() {
    pulls_and_runs(ContainerdVersion::V1_6).await;
}

#[tokio::test]
async fn containerd_1_7_pulls_and_runs() {
    pulls_and_runs(ContainerdVersion::V1_7).await;
}

#[tokio::test]
async fn containerd_2_1_pulls_and_runs() {
    pulls_and_runs(ContainerdVersion::V2_1).await;
}

#[tokio::test]
async fn several_layers_of_any_form_make_one_root() {
    let (registry, containerd) = tokio::join!(
        Registry::start(),
        Containerd::start(ContainerdVersion::V1_7)
    );
    containerd.allow_registry(&registry.addr());
    let mut recipe = busybox(&parts::program("busybox", "busybox"));
    recipe.layers.push(Layer::of(&[
        Entry::dir("d", 0o755),
        Entry::file("d/hidden", 0o644, "1"),
        Entry::file("d/kept", 0o600, "kept").owned_by(12, 34),
        Entry::dir("o", 0o755),
        Entry::file("o/hidden", 0o644, "1"),
    ]));
    recipe.layers.push(
        Layer::of(&[
            Entry::whiteout("d/hidden"),
            Entry::dir("o", 0o755),
            Entry::opaque("o"),
            Entry::file("o/new", 0o644, "new"),
            Entry::hard_link("o/same", "o/new"),
        ])
        .packed_as(Compression::None),
    );
    for format in [Format::Oci, Format::Docker] {
        let host = Recipe {
            format,
            ..recipe.clone()
        }
        .build();
        let other = Recipe {
            format,
            platform: "linux/s390x".to_owned(),
            ..generated(1, 1, 100)
        }
        .build();
        let pushed = registry
            .push(
                "app",
                &format!("{format:?}"),
                &Image::index(format, &[other, host]),
            )
            .await;
        containerd
            .cri()
            .await
            .pull_image(&pushed.by_tag)
            .await
            .unwrap();
        let script = "ls d o; stat -c '%u:%g %a' d/kept; cat o/same";
        let printed = run_container(&containerd, &pushed.by_tag, &["/bin/sh", "-c", script]).await;
        assert_eq!(printed, "d:\nkept\n\no:\nnew\nsame\n12:34 600\nnew");
    }
}

#[tokio::test]
async fn all_generations_run_side_by_side() {
    let all = tokio::join!(
        Containerd::start(ContainerdVersion::V1_6),
        Containerd::start(ContainerdVersion::V1_7),
        Containerd::start(ContainerdVersion::V2_1),
        Containerd::start(ContainerdVersion::V2_1),
    );
    for (containerd, version) in [
        (all.0, "1.6."),
        (all.1, "1.7."),
        (all.2, "2."),
        (all.3, "2."),
    ] {
        let said = containerd.ctr(&["version"]).await;
        let (_, server) = said.split_once("Server:").expect("the server's version");
        let said = server
            .lines()
            .find_map(|line| line.trim().strip_prefix("Version:"))
            .expect("a version");
        assert!(
            said.trim().trim_start_matches('v').starts_with(version),
            "{:?} is {said}",
            containerd.version()
        );
    }
}
