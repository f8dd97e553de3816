//! A registry that wants a password before it says what a tag means, and a dispatcher's settings for it.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_TYPE, WWW_AUTHENTICATE};
use axum::http::{HeaderName, StatusCode};
use axum::response::{IntoResponse as _, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use prewarm::domain::image::Digest;
use prewarm::image::registry::{Registry, RegistryConfig};
use serde_json::json;
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;

use crate::support::parts;
use crate::support::registry::Registry as DockerRegistry;

const USER: &str = "robot";
const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// One image, `team/app:1`, and the password for it.
struct Image {
    password: String,
    manifest: String,
}

/// The registry, and the folder that the dispatcher finds its settings in.
pub(crate) struct Guarded {
    address: String,
    image: Arc<Mutex<Image>>,
    dir: TempDir,
    serving: JoinHandle<()>,
}

impl Drop for Guarded {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Guarded {
    pub(crate) async fn start(password: &str) -> Self {
        let image = Arc::new(Mutex::new(Image {
            password: password.to_owned(),
            manifest: "{}".to_owned(),
        }));
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let router = Router::new().fallback(answer).with_state(image.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, router).await.unwrap() });
        let dir = parts::temp_dir();
        std::fs::create_dir(dir.path().join("secrets")).unwrap();
        write_hosts(dir.path().join("certs.d"), &address);
        Self {
            address,
            image,
            dir,
            serving,
        }
    }

    /// How a job names the image.
    pub(crate) fn image(&self) -> String {
        format!("{}/team/app:1", self.address)
    }

    /// What the tag means now.
    pub(crate) fn digest(&self) -> Digest {
        Digest::of(self.image.lock().unwrap().manifest.as_bytes())
    }

    /// Moves the tag to another image and wants another password from now on.
    pub(crate) fn change(&self, password: &str) {
        let mut image = self.image.lock().unwrap();
        image.password = password.to_owned();
        image.manifest = format!(
            "{{\"annotations\": {{\"n\": \"{}\"}}}}",
            rand::random::<u64>()
        );
    }

    /// Puts a pull secret where a mounted Kubernetes secret of type `kubernetes.io/dockerconfigjson` would be.
    pub(crate) fn write_secret(&self, name: &str, password: &str) {
        let entry = json!({"auths": {self.address.clone(): {"auth": encoded(password)}}});
        self.write(name, ".dockerconfigjson", &entry.to_string());
    }

    /// The same in the older form, `kubernetes.io/dockercfg`.
    pub(crate) fn write_old_secret(&self, name: &str, password: &str) {
        let entry = json!({self.address.clone(): {"username": USER, "password": password}});
        self.write(name, ".dockercfg", &entry.to_string());
    }

    fn write(&self, secret: &str, key: &str, content: &str) {
        let dir = self.dir.path().join("secrets").join(secret);
        std::fs::create_dir_all(&dir).unwrap();
        std::fs::write(dir.join(key), content).unwrap();
    }

    /// What a dispatcher with these secrets asks with.
    pub(crate) fn registry(&self) -> Registry {
        Registry::new(RegistryConfig {
            hosts_dirs: vec![self.dir.path().join("certs.d")],
            secrets_dir: Some(self.dir.path().join("secrets")),
            ..RegistryConfig::default()
        })
    }
}

/// What a password looks like in a header or a secret.
pub(crate) fn encoded(password: &str) -> String {
    STANDARD.encode(format!("{USER}:{password}"))
}

/// A dispatcher's access to a registry without passwords, and the folder that has to outlive it.
pub(crate) fn open_to(registry: &DockerRegistry) -> (Registry, TempDir) {
    let dir = parts::temp_dir();
    write_hosts(dir.path().to_owned(), &registry.addr());
    let config = RegistryConfig {
        hosts_dirs: vec![dir.path().to_owned()],
        ..RegistryConfig::default()
    };
    (Registry::new(config), dir)
}

fn write_hosts(dir: PathBuf, address: &str) {
    let dir = dir.join(address);
    std::fs::create_dir_all(&dir).unwrap();
    let hosts = format!(
        "server = \"http://{address}\"\n[host.\"http://{address}\"]\ncapabilities = [\"pull\", \"resolve\"]\n"
    );
    std::fs::write(dir.join("hosts.toml"), hosts).unwrap();
}

async fn answer(State(image): State<Arc<Mutex<Image>>>, request: Request) -> Response {
    let image = image.lock().unwrap();
    let wanted = format!("Basic {}", encoded(&image.password));
    let given = request.headers().get(AUTHORIZATION);
    if given.is_none_or(|given| given.as_bytes() != wanted.as_bytes()) {
        let challenge = [(WWW_AUTHENTICATE, "Basic realm=\"test\"")];
        return (StatusCode::UNAUTHORIZED, challenge).into_response();
    }
    if request.uri().path() != "/v2/team/app/manifests/1" {
        return StatusCode::NOT_FOUND.into_response();
    }
    let digest = Digest::of(image.manifest.as_bytes()).to_string();
    let headers = [
        (CONTENT_TYPE, MANIFEST.to_owned()),
        (HeaderName::from_static("docker-content-digest"), digest),
    ];
    (headers, image.manifest.clone()).into_response()
}
