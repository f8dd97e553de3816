//! Many layers, and many directories in each: what is open at once does not grow with them.

use containerd_client::services::v1::snapshots::Kind;
use rustix::process::{Resource, Rlimit, setrlimit};

use super::elsewhere::{is_asked, process, pull_asked};
use super::node::Node;
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Entry, Layer, Recipe};
use support::registry::Registry;

/// More than are unpacked at once.
const LAYERS: usize = 32;
const DIRECTORIES: usize = 80;
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
