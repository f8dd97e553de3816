//! `hosts.toml` as containerd reads it: the same file, given to containerd's own pull and to ours, leads to the same
//! requests at the same hosts in the same order.

use std::collections::{BTreeMap, HashMap};
use std::sync::{Arc, Mutex};

use axum::Router;
use axum::body::Body;
use axum::extract::{Request, State};
use axum::http::header::{CONTENT_TYPE, HOST};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use tokio::task::JoinHandle;

use super::node::{Node, on_all, request};
use super::support;
use support::containerd::ContainerdVersion;
use support::images::{Blob, Image, generated};
use support::process::free_port;

/// A registry that no resolver knows: whatever is asked of anyone was in the file.
pub const REGISTRY: &str = "registry.test:5000";

/// What a host does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Plays {
    /// It has the image.
    Serves,
    /// It answers with this status.
    Status(u16),
    /// It does not listen.
    Absent,
}

/// Three hosts, and what they were asked.
pub struct Hosts {
    pub addrs: Vec<String>,
    shared: Arc<Shared>,
    serving: Vec<JoinHandle<()>>,
}

struct Shared {
    plays: Vec<Plays>,
    /// What a tag or digest is, and what it is to the image it belongs to.
    things: HashMap<String, (&'static str, Blob)>,
    /// By what was asked for, in order: the number of the host, path, query and a header.
    asked: Mutex<BTreeMap<&'static str, Vec<String>>>,
}

impl Hosts {
    pub async fn serve(plays: &[Plays], images: [(&str, &Image); 2]) -> Self {
        let mut things = HashMap::new();
        for (tag, image) in images {
            things.insert(tag.to_owned(), ("TAG", image.target.clone()));
            let roles = ["MANIFEST", "CONFIG", "LAYER"];
            let blobs = std::iter::once(&image.target).chain(&image.blobs);
            for (role, blob) in roles.into_iter().zip(blobs) {
                things.insert(blob.digest.clone(), (role, blob.clone()));
            }
        }
        let shared = Arc::new(Shared {
            plays: plays.to_vec(),
            things,
            asked: Mutex::default(),
        });
        let (mut addrs, mut serving) = (Vec::new(), Vec::new());
        for (number, plays) in plays.iter().enumerate() {
            // Nobody else gets the port of one that is not there.
            let port = match plays {
                Plays::Absent => {
                    addrs.push(format!("127.0.0.1:{}", free_port()));
                    continue;
                }
                _ => 0,
            };
            let listener = tokio::net::TcpListener::bind(("127.0.0.1", port))
                .await
                .unwrap();
            addrs.push(listener.local_addr().unwrap().to_string());
            let router = Router::new()
                .fallback(answer)
                .with_state((number, shared.clone()));
            serving.push(tokio::spawn(async move {
                axum::serve(listener, router).await.unwrap();
            }));
        }
        Self {
            addrs,
            shared,
            serving,
        }
    }

    /// The text with the hosts' addresses in place of `A`, `B` and `C` after a slash.
    fn addressed(&self, text: &str) -> String {
        let names = ["//A", "//B", "//C"].into_iter().zip(&self.addrs);
        names.fold(text.to_owned(), |text, (name, addr)| {
            text.replace(name, &format!("//{addr}"))
        })
    }

    /// What was asked since the last time.
    fn asked(&self) -> BTreeMap<&'static str, Vec<String>> {
        std::mem::take(&mut self.shared.asked.lock().unwrap())
    }
}

impl Drop for Hosts {
    fn drop(&mut self) {
        for serving in &self.serving {
            serving.abort();
        }
    }
}

async fn answer(
    State((number, shared)): State<(usize, Arc<Shared>)>,
    request: Request,
) -> Response {
    assert!(request.headers().contains_key(HOST));
    let path = request.uri().path();
    let Some((folder, name)) = path.rsplit_once('/') else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let Some((role, blob)) = shared.things.get(name).cloned() else {
        return StatusCode::NOT_FOUND.into_response();
    };
    let keys = request.headers().get_all("x-key").iter();
    let keys: Vec<_> = keys.map(|key| key.to_str().unwrap()).collect();
    let query = request.uri().query().unwrap_or_default();
    let line = format!("{number} {folder}/{role}?{query} {}", keys.join("+"));
    {
        let mut asked = shared.asked.lock().unwrap();
        let lines = asked.entry(role).or_default();
        // How often somebody tries again is another matter.
        if lines.last() != Some(&line) {
            lines.push(line);
        }
    }
    match shared.plays[number] {
        Plays::Status(status) => StatusCode::from_u16(status).unwrap().into_response(),
        _ => {
            let headers = [
                (CONTENT_TYPE.as_str(), blob.media_type),
                ("content-length", blob.bytes.len().to_string()),
                ("docker-content-digest", blob.digest),
            ];
            let body = match *request.method() {
                Method::HEAD => Body::empty(),
                _ => Body::from(blob.bytes),
            };
            (headers, body).into_response()
        }
    }
}

struct Case {
    name: &'static str,
    plays: [Plays; 3],
    /// The directory's name.
    directory: &'static str,
    text: &'static str,
}

const SERVES: Plays = Plays::Serves;
const NOT_FOUND: Plays = Plays::Status(404);

const CASES: [Case; 8] = [
    Case {
        name: "one after the other, where it is not found or not to be had, with paths and headers",
        plays: [NOT_FOUND, Plays::Status(500), SERVES],
        directory: "registry.test_5000_",
        text: r#"
server = "http://C/deep//er/"
[header]
X-Key = ["c", "d"]
[host."http://B"]
[host."http://B".header]
X-Key = "b"
[host."http://A/cache"]
"#,
    },
    Case {
        name: "a mirror that has everything, and a port in the directory's name as it is",
        plays: [SERVES, SERVES, SERVES],
        directory: REGISTRY,
        text: "server = \"http://C\"\n[host.\"http://A/v2/proxy\"]\noverride_path = true\n[host.\"http://B\"]\n",
    },
    Case {
        name: "a mirror that may not resolve, in the directory for all",
        plays: [SERVES, SERVES, SERVES],
        directory: "_default",
        text: "server = \"http://C\"\n[host.\"http://A\"]\ncapabilities = [\"pull\"]\n[host.\"http://B\"]\ncapabilities = [\"resolve\", \"pull\"]\n",
    },
    Case {
        name: "hosts that refuse, and one that is not there",
        plays: [Plays::Absent, Plays::Status(403), SERVES],
        directory: "registry.test_5000_",
        text: "server = \"http://C/v2\"\n[host.\"http://A\"]\n[host.\"http://B\"]\n",
    },
    Case {
        name: "a host that wants a proof which nobody has",
        plays: [Plays::Status(401), SERVES, SERVES],
        directory: "registry.test_5000_",
        text: "server = \"http://C/v2\"\n[host.\"http://A\"]\n[host.\"http://B\"]\n",
    },
    Case {
        name: "nobody has it",
        plays: [NOT_FOUND, NOT_FOUND, NOT_FOUND],
        directory: "registry.test_5000_",
        text: "server = \"http://C\"\n[host.\"http://A\"]\n[host.\"http://B\"]\n",
    },
    Case {
        name: "plain HTTP where TLS is set up",
        plays: [SERVES, SERVES, SERVES],
        directory: "registry.test_5000_",
        text: "server = \"http://C\"\n[host.\"http://A\"]\nskip_verify = true\ncapabilities = [\"pull\", \"resolve\"]\n",
    },
    Case {
        name: "a file with a mistake is no file",
        plays: [SERVES, SERVES, SERVES],
        directory: "registry.test_5000_",
        text: "server = \"http://C\"\n[host.\"http://A\"]\ncapabilities = \"pull\"\n",
    },
];

async fn compare(node: &Node, number: usize, case: &Case) {
    let seed = 2 * number as u64;
    let (theirs, ours) = (
        generated(seed, 1, 1_000).build(),
        generated(seed + 1, 1, 1_000).build(),
    );
    let (their_tag, our_tag) = (format!("theirs-{number}"), format!("ours-{number}"));
    let hosts = Hosts::serve(&case.plays, [(&their_tag, &theirs), (&our_tag, &ours)]).await;
    let certs = node.daemon.certs_dir();
    for old in std::fs::read_dir(&certs).unwrap() {
        std::fs::remove_dir_all(old.unwrap().path()).unwrap();
    }
    node.daemon
        .registry_hosts(case.directory, &hosts.addressed(case.text));

    let cri = node.daemon.cri().await;
    let pulled = cri.pull_image(&format!("{REGISTRY}/app:{their_tag}")).await;
    let their_way = hosts.asked();
    let report = node
        .pull(&request(&format!("{REGISTRY}/app:{our_tag}")))
        .await;
    let our_way = hosts.asked();
    let version = node.daemon.version();
    assert_eq!(our_way, their_way, "{version:?}: {}", case.name);
    assert_eq!(
        report.is_ok(),
        pulled.is_ok(),
        "{}: {report:?} {pulled:?}",
        case.name
    );
}

async fn all_cases(version: ContainerdVersion) {
    let node = Node::start(version).await;
    for (number, case) in CASES.iter().enumerate() {
        compare(&node, number, case).await;
    }
}

#[tokio::test]
async fn the_same_requests_as_by_containerd() {
    on_all(all_cases).await;
}

/// containerd before 2.0 ignores a file without a `host` table.
#[tokio::test]
async fn a_file_with_a_server_alone_is_read_as_by_containerd_2() {
    let node = Node::start(ContainerdVersion::V2_1).await;
    let case = Case {
        name: "a server alone",
        plays: [SERVES, SERVES, SERVES],
        directory: "registry.test_5000_",
        text: "server = \"http://B/x\"\n",
    };
    compare(&node, 0, &case).await;
}

/// Unlike containerd, which asks it for blobs (`fetcher.go` goes through all hosts, whatever they may do), a host for
/// pushes gets no requests of a pull.
#[tokio::test]
async fn a_host_for_pushes_is_not_asked() {
    let image = generated(1, 1, 1_000).build();
    let hosts = Hosts::serve(&[SERVES, SERVES, SERVES], [("ours", &image), ("2", &image)]).await;
    let node = Node::start(ContainerdVersion::V2_1).await;
    let text = "server = \"http://C\"\n[host.\"http://A\"]\ncapabilities = [\"push\"]\n";
    node.daemon
        .registry_hosts("registry.test_5000_", &hosts.addressed(text));
    node.pull(&request(&format!("{REGISTRY}/app:ours")))
        .await
        .unwrap();
    let asked: Vec<_> = hosts.asked().into_values().flatten().collect();
    assert!(asked.iter().all(|line| line.starts_with("2 ")), "{asked:?}");
    assert_eq!(asked.len(), 4, "{asked:?}");
}
