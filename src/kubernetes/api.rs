//! The two requests to the Kubernetes API that a worker makes: list and watch of one node.
//!
//! Token and authority are read for each request, because kubelet renews both.

use std::error::Error;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use futures::stream::BoxStream;
use reqwest::{RequestBuilder, Response, Url};
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::pod::SERVICE_ACCOUNT;
use super::standing::{Metadata, Node};
use crate::domain::name::NodeName;

/// How long a connection to the API may take to be made.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// How long the API may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the API is asked to let a watch go on, in seconds.
const WATCH_SECONDS: u64 = 290;
/// How long a watch may say nothing: the API would have ended it.
const SILENCE_LIMIT: Duration = Duration::from_secs(WATCH_SECONDS + 10);
/// Largest answer or event, in bytes; etcd keeps no object above 1.5 MiB.
const MAX_BYTES: usize = 4 << 20;
/// Where kubelet says that the API is.
const HOST: &str = "KUBERNETES_SERVICE_HOST";
const PORT: &str = "KUBERNETES_SERVICE_PORT";

/// The answer to a list.
#[derive(Debug, Deserialize)]
pub(super) struct NodeList {
    pub(super) metadata: Metadata,
    pub(super) items: Vec<Node>,
}

/// One line of a watch.
#[derive(Debug, Deserialize)]
#[serde(tag = "type", content = "object", rename_all = "UPPERCASE")]
pub(super) enum Change {
    Added(Node),
    Modified(Node),
    Deleted(Node),
    /// Nothing happened, and the version moved on.
    Bookmark(Marked),
    Error(Status),
}

#[derive(Debug, Deserialize)]
pub(super) struct Marked {
    pub(super) metadata: Metadata,
}

/// What the API says of a request that it does not serve.
#[derive(Debug, Default, Deserialize)]
pub(super) struct Status {
    #[serde(default)]
    message: String,
    #[serde(default)]
    code: u16,
}

/// Where the node is asked for.
pub(super) struct Api {
    nodes: Url,
    selector: String,
}

impl Api {
    /// As the environment of a pod says.
    pub(super) fn of_pod(node: &NodeName) -> Result<Self, String> {
        let variable = |name: &str| std::env::var(name).map_err(|_| format!("{name} is not set"));
        let host = variable(HOST)?;
        let host = match host.contains(':') {
            true => format!("[{host}]"),
            false => host,
        };
        let url = format!("https://{host}:{}/api/v1/nodes", variable(PORT)?);
        let nodes = Url::parse(&url).map_err(|error| format!("{HOST} and {PORT}: {error}"))?;
        // The API keeps an index for watches of one name.
        let selector = format!("metadata.name={node}");
        Ok(Self { nodes, selector })
    }

    /// The node, if there is one. Any version that the API has will do.
    pub(super) async fn list(&self) -> Result<NodeList, Trouble> {
        let answer = async {
            let response = self.ask(&[("resourceVersion", "0")]).await?;
            let mut body = BytesMut::new();
            let mut pieces = response.bytes_stream();
            while let Some(piece) = pieces.next().await {
                body.extend_from_slice(&piece.map_err(|error| Trouble::away(&error))?);
                if body.len() > MAX_BYTES {
                    return Err(Trouble::unreadable("it is too large"));
                }
            }
            read(&body)
        };
        within_limit(answer).await
    }

    /// What happens to the node after this version.
    pub(super) async fn watch(&self, version: &str) -> Result<Changes, Trouble> {
        let seconds = WATCH_SECONDS.to_string();
        let query = [
            ("watch", "true"),
            ("allowWatchBookmarks", "true"),
            ("timeoutSeconds", &seconds),
            ("resourceVersion", version),
        ];
        let response = within_limit(self.ask(&query)).await?;
        Ok(Changes {
            pieces: response.bytes_stream().boxed(),
            read: BytesMut::new(),
        })
    }

    async fn ask(&self, query: &[(&str, &str)]) -> Result<Response, Trouble> {
        let mut url = self.nodes.clone();
        url.query_pairs_mut()
            .append_pair("fieldSelector", &self.selector)
            .extend_pairs(query);
        let request = request(url).await.map_err(Trouble::files)?;
        let response = request.send().await;
        let response = response.map_err(|error| Trouble::away(&error))?;
        let code = response.status();
        if code.is_success() {
            return Ok(response);
        }
        let body = response.bytes().await.unwrap_or_default();
        let mut status: Status = serde_json::from_slice(&body).unwrap_or_default();
        status.code = code.as_u16();
        Err(Trouble::told(&status))
    }
}

async fn within_limit<T>(answer: impl Future<Output = Result<T, Trouble>>) -> Result<T, Trouble> {
    let limited = tokio::time::timeout(ANSWER_LIMIT, answer).await;
    limited.unwrap_or_else(|_| Err(Trouble::silent(ANSWER_LIMIT)))
}

/// A request with the pod's token, to an API of the pod's authority.
async fn request(url: Url) -> Result<RequestBuilder, String> {
    let folder = Path::new(SERVICE_ACCOUNT);
    let (authority, token) = (folder.join("ca.crt"), folder.join("token"));
    let at = |path: &Path, error: &dyn std::fmt::Display| format!("{}: {error}", path.display());
    let pem = tokio::fs::read(&authority).await;
    let pem = pem.map_err(|error| at(&authority, &error))?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(&pem) {
        let certificate = certificate.map_err(|error| at(&authority, &error))?;
        roots
            .add(certificate)
            .map_err(|error| at(&authority, &error))?;
    }
    let bearer = tokio::fs::read_to_string(&token).await;
    let bearer = bearer.map_err(|error| at(&token, &error))?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    let client = reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .http1_only()
        .user_agent(concat!("prewarm/", env!("CARGO_PKG_VERSION")))
        .redirect(reqwest::redirect::Policy::none())
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(SILENCE_LIMIT)
        // The API is in the cluster, and proxies are for what is not.
        .no_proxy()
        .build()
        .map_err(|error| error.to_string())?;
    Ok(client.get(url).bearer_auth(bearer.trim()))
}

/// What a watch tells, line by line.
pub(super) struct Changes {
    pieces: BoxStream<'static, reqwest::Result<Bytes>>,
    read: BytesMut,
}

impl Changes {
    /// The next change; `None` once the API has ended the watch.
    pub(super) async fn next(&mut self) -> Option<Result<Change, Trouble>> {
        let mut searched = 0;
        loop {
            let end = self.read[searched..].iter().position(|byte| *byte == b'\n');
            if let Some(end) = end {
                let line = self.read.split_to(searched + end + 1);
                return Some(read(&line));
            }
            searched = self.read.len();
            if searched > MAX_BYTES {
                return Some(Err(Trouble::unreadable("a line is too long")));
            }
            match self.pieces.next().await? {
                Ok(piece) => self.read.extend_from_slice(&piece),
                Err(error) => return Some(Err(Trouble::away(&error))),
            }
        }
    }
}

fn read<T: DeserializeOwned>(text: &[u8]) -> Result<T, Trouble> {
    serde_json::from_slice(text).map_err(|error| Trouble::unreadable(&error.to_string()))
}

/// What went wrong, and what can be done about it.
#[derive(PartialEq, Eq, Debug)]
pub(super) struct Trouble {
    /// The HTTP status that the API gave.
    pub(super) code: Option<u16>,
    pub(super) reason: String,
    pub(super) advice: &'static str,
}

impl Trouble {
    fn away(error: &reqwest::Error) -> Self {
        let mut last: &(dyn Error + 'static) = error;
        // The errors in between say less, and print their sources, too.
        while let Some(source) = last.source() {
            last = source;
        }
        Self {
            code: None,
            reason: last.to_string(),
            advice: "check that pods reach the API at KUBERNETES_SERVICE_HOST",
        }
    }

    fn silent(limit: Duration) -> Self {
        Self {
            code: None,
            reason: format!("no answer for {}s", limit.as_secs()),
            advice: "look at the load of the API server",
        }
    }

    fn unreadable(problem: &str) -> Self {
        Self {
            code: None,
            reason: format!("the answer cannot be read: {problem}"),
            advice: "check that KUBERNETES_SERVICE_HOST is the API of Kubernetes",
        }
    }

    fn files(problem: String) -> Self {
        Self {
            code: None,
            reason: problem,
            advice: "check the files of the pod's service account (automountServiceAccountToken)",
        }
    }

    pub(super) fn told(status: &Status) -> Self {
        let advice = match status.code {
            401 => "check that the token of the service account is mounted and has not expired",
            403 => {
                "let the service account get, list and watch nodes; deploy/kubernetes/base/service-accounts.yaml has the role"
            }
            _ => "look at the log of the API server",
        };
        Self {
            code: Some(status.code),
            reason: format!("{} ({})", status.message, status.code),
            advice,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn changes(pieces: &[&'static str]) -> Changes {
        let pieces: Vec<_> = pieces
            .iter()
            .map(|piece| Ok(Bytes::from_static(piece.as_bytes())))
            .collect();
        Changes {
            pieces: futures::stream::iter(pieces).boxed(),
            read: BytesMut::new(),
        }
    }

    #[tokio::test]
    async fn lines_are_read_however_they_are_cut() {
        let mut changes = changes(&[
            r#"{"type":"MODIFIED","object":{"kind":"Node","metadata":{"resourceVersion":"7","labels":{"a":"b"}}}}"#,
            "\n{\"type\":\"BOOK",
            "MARK\",\"object\":{\"kind\":\"Node\",\"metadata\":{\"resourceVersion\":\"9\"}}}\n{\"type\":\"ERROR\",",
            "\"object\":{\"kind\":\"Status\",\"message\":\"too old\",\"code\":410}}\n{\"type\":\"",
        ]);
        let Some(Ok(Change::Modified(node))) = changes.next().await else {
            panic!("no change")
        };
        assert_eq!(node.metadata.labels["a"], "b");
        let Some(Ok(Change::Bookmark(marked))) = changes.next().await else {
            panic!("no bookmark")
        };
        assert_eq!(marked.metadata.resource_version, "9");
        let Some(Ok(Change::Error(status))) = changes.next().await else {
            panic!("no error")
        };
        assert_eq!(Trouble::told(&status).code, Some(410));
        assert!(changes.next().await.is_none(), "half a line is none");
    }

    #[tokio::test]
    async fn a_line_without_an_end_is_not_kept_for_ever() {
        let long: &'static str = "x".repeat(MAX_BYTES + 1).leak();
        let Some(Err(trouble)) = changes(&[long]).next().await else {
            panic!("no trouble")
        };
        assert!(trouble.reason.contains("too long"), "{trouble:?}");
    }
}
