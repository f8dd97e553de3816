//! A registry's password from one of kubelet's credential providers.

use prewarm::image::containerd::Containerd;
use prewarm::image::registry::{CredentialProviders, Registry, RegistryConfig};

use super::faulty::Faulty;
use super::node::{Node, pull, request, settings};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::generated;

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
    let answer = format!(
        r#"{{"kind": "CredentialProviderResponse", "apiVersion": "credentialprovider.kubelet.k8s.io/v1", "cacheKeyType": "Registry", "auth": {{"{}": {{"username": "robot", "password": "secret"}}}}}}"#,
        registry.addr()
    );
    let config = format!(
        "apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
- name: shell
  apiVersion: credentialprovider.kubelet.k8s.io/v1
  matchImages: ['127.0.0.1:{}']
  defaultCacheDuration: 1h
  args: [-c, 'cat > /dev/null; echo ''{answer}''']
",
        registry.addr().rsplit(':').next().unwrap()
    );
    std::os::unix::fs::symlink("/bin/sh", folder.path().join("shell")).unwrap();
    std::fs::write(folder.path().join("config.yaml"), config).unwrap();
    let mut settings = settings(&node.daemon);
    settings.registry = Registry::new(RegistryConfig {
        hosts_dirs: vec![node.daemon.certs_dir()],
        credential_providers: Some(CredentialProviders {
            config: folder.path().join("config.yaml"),
            bin_dir: folder.path().to_owned(),
        }),
        ..RegistryConfig::default()
    });
    let runtime = Containerd::connect(settings).unwrap();
    let pulled = pull(&runtime, &request(&registry.image())).await.unwrap();
    assert!(pulled.bytes_registry > 0);
    assert!(node.image(&registry.image()).await.is_some());
}
