//! An API server of Kubernetes that knows one node: enough of list and watch, with TLS and a token, and with what goes
//! wrong with them.

use std::path::Path;
use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::parts;
use super::process::free_port;

/// Longest head of a request.
const MAX_HEAD: usize = 64 * 1024;

/// How the server answers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mood {
    /// As it should.
    Well,
    /// With this HTTP status.
    Refusing(u16),
    /// It takes requests and says nothing.
    Silent,
    /// It ends every watch as soon as it has told what is new.
    Hasty,
}

/// How a watch that begins too far back is told so; both happen.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gone {
    /// By an event of type ERROR.
    Event,
    /// By the HTTP status.
    Status,
}

#[derive(Debug)]
struct State {
    node: Value,
    version: u64,
    /// Events with their versions.
    events: Vec<(u64, Value)>,
    /// Nothing up to here can be watched from any more.
    forgotten: u64,
    gone: Gone,
    requests: Vec<String>,
}

/// A running API server, and the files by which a pod reaches it.
#[derive(Debug)]
pub struct KubernetesApi {
    port: u16,
    files: TempDir,
    shared: Arc<Shared>,
    tls: Arc<ServerConfig>,
    accepting: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    name: String,
    token: String,
    state: Mutex<State>,
    /// Counts what watches have to look at.
    changes: watch::Sender<u64>,
    mood: watch::Sender<Mood>,
    connections: Mutex<CancellationToken>,
}

impl KubernetesApi {
    /// Starts one with this node, Ready and schedulable.
    pub async fn start(name: &str, labels: Value) -> Self {
        let mut api = Self::prepare(name, labels);
        api.resume().await;
        api
    }

    /// One that does not listen yet.
    pub fn prepare(name: &str, labels: Value) -> Self {
        let files = parts::temp_dir();
        let authority = rcgen::generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
        let claims =
            json!({"kubernetes.io": {"namespace": "prewarm-system", "node": {"name": name}}});
        let token = format!("e30.{}.c2ln", URL_SAFE_NO_PAD.encode(claims.to_string()));
        for (file, text) in [
            ("ca.crt", authority.cert.pem()),
            ("token", token.clone()),
            ("namespace", "prewarm-system".to_owned()),
        ] {
            std::fs::write(files.path().join(file), text).unwrap();
        }
        let key = PrivateKeyDer::try_from(authority.signing_key.serialize_der()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![authority.cert.der().clone()], key)
            .unwrap();
        let node = json!({
            "metadata": {"name": name, "uid": "u", "resourceVersion": "100", "labels": labels},
            "spec": {"podCIDR": "10.0.0.0/24"},
            "status": {"capacity": {"cpu": "8"}, "images": [{"names": ["a"]}],
                "conditions": [{"type": "DiskPressure", "status": "False"},
                    {"type": "Ready", "status": "True", "reason": "KubeletReady"}]},
        });
        Self {
            port: free_port(),
            files,
            tls: Arc::new(tls),
            accepting: None,
            shared: Arc::new(Shared {
                name: name.to_owned(),
                token,
                state: Mutex::new(State {
                    node,
                    version: 100,
                    events: Vec::new(),
                    forgotten: 0,
                    gone: Gone::Event,
                    requests: Vec::new(),
                }),
                changes: watch::Sender::new(0),
                mood: watch::Sender::new(Mood::Well),
                connections: Mutex::new(CancellationToken::new()),
            }),
        }
    }

    /// Listens, and answers.
    pub async fn resume(&mut self) {
        let listener = TcpListener::bind(("127.0.0.1", self.port)).await.unwrap();
        let (shared, tls) = (self.shared.clone(), self.tls.clone());
        self.accepting = Some(tokio::spawn(accept(listener, tls, shared)));
    }

    /// Nobody listens any more, and every connection ends.
    pub async fn stop(&mut self) {
        if let Some(accepting) = self.accepting.take() {
            accepting.abort();
            let _ = accepting.await;
        }
        self.cut();
    }

    /// Every connection ends in the middle of what was said.
    pub fn cut(&self) {
        let mut connections = self.shared.connections.lock().unwrap();
        std::mem::take(&mut *connections).cancel();
    }

    /// The node changes.
    pub fn change(&self, change: impl FnOnce(&mut Value)) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        let version = state.version;
        change(&mut state.node);
        state.node["metadata"]["resourceVersion"] = version.to_string().into();
        let event = json!({"type": "MODIFIED", "object": of_kind(&state.node)});
        state.events.push((version, event));
        self.shared.changes.send_modify(|changes| *changes += 1);
    }

    /// As a label of `kubectl label`.
    pub fn label(&self, key: &str, value: &str) {
        self.change(|node| node["metadata"]["labels"][key] = value.into());
    }

    /// As `kubectl cordon` and `uncordon`.
    pub fn cordon(&self, cordoned: bool) {
        self.change(|node| match cordoned {
            true => node["spec"]["unschedulable"] = true.into(),
            // The API leaves out what is false.
            false => drop(
                node["spec"]
                    .as_object_mut()
                    .unwrap()
                    .remove("unschedulable"),
            ),
        });
    }

    /// As when kubelet goes silent.
    pub fn not_ready(&self) {
        self.change(|node| {
            node["status"]["conditions"][1] =
                json!({"type": "Ready", "status": "Unknown", "reason": "NodeStatusUnknown"});
        });
    }

    /// The versions of the past cannot be watched from any more, though the node is at `version` or later ones.
    pub fn forget(&self, gone: Gone) {
        let mut state = self.shared.state.lock().unwrap();
        state.version += 1;
        state.forgotten = state.version;
        state.gone = gone;
        state.events.clear();
    }

    /// Answers so from now on.
    pub fn mood(&self, mood: Mood) {
        self.shared.mood.send_replace(mood);
    }

    /// What was asked so far: paths with their queries.
    pub fn requests(&self) -> Vec<String> {
        self.shared.state.lock().unwrap().requests.clone()
    }

    /// What a pod finds at `/var/run/secrets/kubernetes.io/serviceaccount`.
    pub fn service_account(&self) -> &Path {
        self.files.path()
    }

    /// What a pod finds in `KUBERNETES_SERVICE_PORT`.
    pub fn port(&self) -> u16 {
        self.port
    }
}

impl Drop for KubernetesApi {
    fn drop(&mut self) {
        if let Some(accepting) = &self.accepting {
            accepting.abort();
        }
        self.cut();
    }
}

/// In a list items have no kind, elsewhere they do.
fn of_kind(node: &Value) -> Value {
    let mut node = node.clone();
    node["kind"] = "Node".into();
    node["apiVersion"] = "v1".into();
    node
}

async fn accept(listener: TcpListener, tls: Arc<ServerConfig>, shared: Arc<Shared>) {
    let acceptor = TlsAcceptor::from(tls);
    while let Ok((stream, _)) = listener.accept().await {
        let (acceptor, shared) = (acceptor.clone(), shared.clone());
        let cut = shared.connections.lock().unwrap().clone();
        tokio::spawn(async move {
            tokio::select! {
                // How a connection ends is the client's affair.
                _ = serve(&acceptor, stream, &shared) => {}
                () = cut.cancelled() => {}
            }
        });
    }
}

async fn serve(acceptor: &TlsAcceptor, stream: TcpStream, shared: &Shared) -> std::io::Result<()> {
    let mut stream = acceptor.accept(stream).await?;
    loop {
        let Some(head) = read_head(&mut stream).await? else {
            return Ok(());
        };
        let target = head.split(' ').nth(1).unwrap_or_default().to_owned();
        shared.state.lock().unwrap().requests.push(target.clone());
        let mut mood = shared.mood.subscribe();
        // Never gone: the sender is in what we borrow.
        let _ = mood.wait_for(|mood| *mood != Mood::Silent).await;
        let mood = *mood.borrow();
        let authorized = head.contains(&format!("authorization: Bearer {}\r\n", shared.token));
        let selected = target.contains(&format!("fieldSelector=metadata.name%3D{}", shared.name));
        let refusal = match mood {
            Mood::Refusing(status) => Some((status, "as the test says")),
            _ if !authorized => Some((401, "Unauthorized")),
            _ if !target.starts_with("/api/v1/nodes?") || !selected => {
                Some((403, "more is asked than one node"))
            }
            _ => None,
        };
        if let Some((status, message)) = refusal {
            answer(&mut stream, status, &status_of(status, message)).await?;
        } else if target.contains("watch=true") {
            return watch(&mut stream, &target, mood, shared).await;
        } else {
            let list = {
                let state = shared.state.lock().unwrap();
                json!({"kind": "NodeList", "apiVersion": "v1",
                    "metadata": {"resourceVersion": state.version.to_string()}, "items": [state.node]})
            };
            answer(&mut stream, 200, &list).await?;
        }
    }
}

fn status_of(code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "message": message,
        "reason": "Test", "code": code})
}

async fn read_head(stream: &mut TlsStream<TcpStream>) -> std::io::Result<Option<String>> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") && head.len() < MAX_HEAD {
        match stream.read_u8().await {
            Ok(byte) => head.push(byte),
            Err(_) => return Ok(None),
        }
    }
    Ok(Some(String::from_utf8_lossy(&head).into_owned()))
}

async fn answer(
    stream: &mut TlsStream<TcpStream>,
    status: u16,
    body: &Value,
) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} Test\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n",
        body.len()
    );
    stream.write_all((head + &body).as_bytes()).await?;
    stream.flush().await
}

async fn watch(
    stream: &mut TlsStream<TcpStream>,
    target: &str,
    mood: Mood,
    shared: &Shared,
) -> std::io::Result<()> {
    let since = target.split("resourceVersion=").nth(1).unwrap_or_default();
    let since = since.split('&').next().unwrap_or_default();
    let mut since: u64 = since.parse().expect("a version to watch from");
    let mut changes = shared.changes.subscribe();
    let gone = {
        let state = shared.state.lock().unwrap();
        (since < state.forgotten).then_some(state.gone)
    };
    let expired = status_of(410, "too old resource version");
    if gone == Some(Gone::Status) {
        return answer(stream, 410, &expired).await;
    }
    stream
        .write_all(b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n")
        .await?;
    stream.flush().await?;
    if gone == Some(Gone::Event) {
        chunk(stream, &json!({"type": "ERROR", "object": expired})).await?;
        return end(stream).await;
    }
    loop {
        let events: Vec<(u64, Value)> = {
            let state = shared.state.lock().unwrap();
            let new = state.events.iter().filter(|(version, _)| *version > since);
            new.cloned().collect()
        };
        for (version, event) in events {
            chunk(stream, &event).await?;
            since = version;
        }
        if mood == Mood::Hasty {
            return end(stream).await;
        }
        if changes.changed().await.is_err() {
            return Ok(());
        }
    }
}

async fn chunk(stream: &mut TlsStream<TcpStream>, event: &Value) -> std::io::Result<()> {
    let line = format!("{event}\n");
    let chunk = format!("{:x}\r\n{line}\r\n", line.len());
    stream.write_all(chunk.as_bytes()).await?;
    stream.flush().await
}

/// The last chunk, and no more requests.
async fn end(stream: &mut TlsStream<TcpStream>) -> std::io::Result<()> {
    stream.write_all(b"0\r\n\r\n").await?;
    stream.shutdown().await
}
