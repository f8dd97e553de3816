//! Many layers, and many directories in each: what is open at once does not grow with them, and what comes out is what
//! containerd makes of them.

use std::time::{Duration, Instant};

use containerd_client::services::v1::snapshots::Kind;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::elsewhere::{is_asked, process, pull_asked};
use super::node::{COLLECTION_LIMIT, Node, on_all};
use super::rootfs::{both, pulled_alike};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Entry, Layer, Recipe, busybox};
use support::parts;
use support::registry::Registry;
use support::run_container::run_container;
use support::wait::{eventually, within};

/// More than are unpacked at once.
const LAYERS: usize = 32;
const DIRECTORIES: usize = 80;
/// Most layers that Docker builds and pulls (`layer/layer_store.go`).
const MOST_OF_DOCKER: usize = 127;
/// More than the kernel mounts one over the other (`OVL_MAX_STACK`, 500), and than their directories' names have room for
/// in the page that mount(2) takes. Neither we nor containerd mount anything to unpack.
const MORE_THAN_MOUNTED: usize = 520;
/// Longest that both pulls of so many layers may take together, on a busy machine.
const LIMIT: Duration = Duration::from_secs(1200);
/// What a process may have open unless somebody says otherwise (getrlimit(2)).
const OPEN_FILES: u64 = 1024;

/// Not a test of its own: what pulls, in another process.
#[tokio::test(flavor = "multi_thread")]
async fn the_process_that_may_open_little() {
    if !is_asked() {
        return;
    }
    let limit = Rlimit {
        current: Some(OPEN_FILES),
        maximum: Some(OPEN_FILES),
    };
    setrlimit(Resource::Nofile, limit).unwrap();
    let report = pull_asked().await;
    println!("pulled by {:?}", report.engine);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_of_many_layers_is_pulled_with_few_files_open() {
    let registry = Registry::start().await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(&registry.addr());
    let layer = |number| {
        let file = |dir| Entry::file(format!("{dir}/in/{number}"), 0o644, "x");
        Layer::of(&(0..DIRECTORIES).map(file).collect::<Vec<_>>())
    };
    let recipe = Recipe::new((0..LAYERS).map(layer).collect());
    let pushed = registry.push("many", "1", &recipe.build()).await;
    let test = "layers::the_process_that_may_open_little";
    let output = process(test, &node, &pushed.by_tag).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(printed.contains("pulled by Some(Native)"), "{output:?}");
    assert_eq!(node.snapshots(Kind::Committed).await.len(), LAYERS);
    let cri = node.daemon.cri().await;
    assert!(cri.image_status(&pushed.by_tag).await.unwrap().is_some());
}

/// Layers that change what the ones below left: a directory that only the lowest describes, a file of each, and the
/// removal of one before.
fn changing(layers: usize) -> Vec<Layer> {
    let layer = |number: usize| {
        let file = Entry::file(format!("data/in/{number}"), 0o640, number.to_string());
        let mut entries = vec![file.owned_by(3, 4)];
        if number == 0 {
            entries.insert(0, Entry::dir("data", 0o1777).owned_by(7, 7));
            entries.insert(1, Entry::dir("data/in", 0o750).owned_by(8, 9));
        }
        if number % 3 == 2 {
            entries.push(Entry::whiteout(&format!("data/in/{}", number - 1)));
        }
        if number % 50 == 49 {
            entries.push(Entry::opaque(&format!("data/anew-{number}")));
        }
        Layer::of(&entries)
    };
    (0..layers).map(layer).collect()
}

async fn as_containerd(version: ContainerdVersion, number: usize) -> (Registry, [Node; 2], String) {
    let registry = Registry::start().await;
    let (ours, theirs) = both(version, &registry).await;
    let mut recipe = busybox(&parts::program("busybox", "busybox"));
    let added = number - recipe.layers.len();
    recipe.layers.extend(changing(added));
    let archives: Vec<_> = recipe
        .layers
        .iter()
        .map(|layer| layer.tar().to_vec())
        .collect();
    let pushed = registry
        .push("layered", &number.to_string(), &recipe.build())
        .await;
    let began = Instant::now();
    let pulls = pulled_alike([&ours, &theirs], &pushed.by_tag, &archives);
    within(LIMIT, "both pulls", pulls).await;
    println!("{number} layers on {version:?}: {:?}", began.elapsed());
    eventually("the pull's traces to go", COLLECTION_LIMIT, async || {
        ours.is_clean().await
    })
    .await;
    assert_eq!(ours.snapshots(Kind::Committed).await.len(), number);
    (registry, [ours, theirs], pushed.by_tag)
}

async fn as_many_as_docker_makes(version: ContainerdVersion) {
    let (_registry, [ours, _], image) = as_containerd(version, MOST_OF_DOCKER).await;
    let printed = run_container(&ours.daemon, &image, &["/bin/ls", "-ld", "/data"]).await;
    assert!(printed.starts_with("drwxrwxrwt"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_as_many_layers_as_docker_makes_are_those_of_containerd() {
    on_all(as_many_as_docker_makes).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn images_of_more_layers_than_can_be_mounted_are_those_of_containerd() {
    on_all(async |version| drop(as_containerd(version, MORE_THAN_MOUNTED).await)).await;
}
