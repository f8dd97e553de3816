//! A registry's password from one of kubelet's credential providers.

use std::path::Path;

use prewarm::domain::failure::FailureKind;
use prewarm::image::containerd::Containerd;
use prewarm::image::registry::{CredentialProviders, Registry, RegistryConfig};

use super::faulty::Faulty;
use super::node::{Node, pull, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;

/// bcrypt of `secret`, the only hash that docker-registry reads.
const SECRET: &str = "$2b$05$abcdefghijklmnopqrstuuOQiyCxlgf/oeuTqixKmWdcYUh4Hjl0a";

/// A runtime whose node has a plugin that knows the password `secret` of `robot` for the registry at this address. It
/// notes each of its runs in a file.
fn with_plugin(node: &Node, addr: &str, folder: &Path) -> Containerd {
    let answer = format!(
        r#"{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry", "auth": {{"{addr}": {{"username": "robot", "password": "secret"}}}}}}"#
    );
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: shell
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['127.0.0.1:{}']
  defaultCacheDuration: 1h
  args: [-c, 'cat > /dev/null; echo run >> {}/runs; echo ''{answer}''']
",
        addr.rsplit(':').next().unwrap(),
        folder.display()
    );
    std::os::unix::fs::symlink("/bin/sh", folder.join("shell")).unwrap();
    std::fs::write(folder.join("config.yaml"), config).unwrap();
    let mut settings = settings(&node.daemon);
    settings.registry = Registry::new(RegistryConfig {
        hosts_dirs: vec![node.daemon.certs_dir()],
        credential_providers: Some(CredentialProviders {
            config: folder.join("config.yaml"),
            bin_dir: folder.to_owned(),
        }),
        ..RegistryConfig::default()
    });
    Containerd::connect(settings).unwrap()
}

#[tokio::test]
async fn a_plugin_of_kubelets_opens_the_registry() {
    let image = generated(1, 1, 10_000).build();
    let registry = Faulty::serve(&image).await;
    registry.want("robot", "secret");
    let node = Node::start(ContainerdVersion::V2_1).await;
    node.daemon.allow_registry(registry.addr());
    let refused = pull(&node.another_runtime(), &request(&registry.image())).await;
    assert!(refused.is_err(), "{refused:?}");
    let folder = support::parts::temp_dir();
    let runtime = with_plugin(&node, registry.addr(), folder.path());
    let pulled = pull(&runtime, &request(&registry.image())).await.unwrap();
    assert!(pulled.bytes_registry > 0);
    assert!(node.image(&registry.image()).await.is_some());
}

#[tokio::test]
async fn a_plugin_of_kubelets_opens_docker_registry_with_a_password_file() {
    let mut registry = support::registry::Registry::start().await;
    let node = Node::start(ContainerdVersion::V1_7).await;
    node.daemon.allow_registry(&registry.addr());
    let mut pushed = Vec::new();
    for (tag, seed) in [("1", 1), ("2", 2)] {
        let image = generated(seed, 3, 10_000).build();
        pushed.push(registry.push("app", tag, &image).await.by_tag);
    }
    let folder = support::parts::temp_dir();
    let users = folder.path().join("users");
    std::fs::write(&users, format!("robot:{SECRET}\n")).unwrap();
    let users = users.display();
    let auth = format!("auth: {{htpasswd: {{realm: test, path: \"{users}\"}}}}");
    registry.restart_with(&auth).await;

    let failure = node.pull(&request(&pushed[0])).await.unwrap_err();
    assert_eq!(failure.kind, FailureKind::Unauthorized, "{failure}");
    let runtime = with_plugin(&node, &registry.addr(), folder.path());
    let mark = registry.mark().await;
    for image in &pushed {
        let pulled = pull(&runtime, &request(image)).await.unwrap();
        assert!(pulled.bytes_registry > 0);
        assert!(node.image(image).await.is_some());
    }
    let requests = registry.requests_since(mark).await;
    let refused = requests.iter().filter(|request| request.status == 401);
    // One, which says how the registry wants to be asked; the second pull knows it.
    assert_eq!(refused.count(), 1, "{requests:#?}");
    let runs = std::fs::read_to_string(folder.path().join("runs")).unwrap();
    assert_eq!(runs, "run\n", "the plugin's answer is kept");
}
