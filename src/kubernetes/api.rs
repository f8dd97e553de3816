//! The two requests to the Kubernetes API that a worker makes, list and watch of one node, by the crate `kube`.
//!
//! It reads token and authority again when kubelet has renewed them. Nodes are read as far as `standing` needs them,
//! so that neither its values nor the program carry all that a Node may be.

use std::error::Error;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::BoxStream;
use http_body_util::{LengthLimitError, Limited};
use hyper::body::{Body as HttpBody, Bytes};
use hyper::header::{HeaderValue, USER_AGENT};
use hyper::{Request, Response};
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use kube::api::{ListParams, ObjectList, WatchEvent, WatchParams};
use kube::client::{Body, Client, ConfigExt as _};
use kube::core::{Request as Paths, Status};
use kube::{Config, Error as KubeError};
use tower::util::MapResponseLayer;
use tower::{BoxError, Service, ServiceBuilder};

use super::standing::Node;
use crate::domain::name::NodeName;

/// How long the API may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(30);
/// How long the API is asked to let a watch go on, in seconds.
const WATCH_SECONDS: u32 = 290;
/// How long a watch may say nothing: the API would have ended it.
const SILENCE_LIMIT: Duration = Duration::from_secs(WATCH_SECONDS as u64 + 10);
/// Largest answer, in bytes, all that one watch tells included; etcd keeps no object above 1.5 MiB.
const MAX_BYTES: usize = 16 << 20;
/// Where the API has nodes.
const NODES: &str = "/api/v1/nodes";
const USER: &str = concat!("prewarm/", env!("CARGO_PKG_VERSION"));

/// What a watch tells.
pub(super) type Change = WatchEvent<Node>;

/// Where the node is asked for.
pub(super) struct Api {
    client: Client,
    selector: String,
}

impl Api {
    /// As environment and files of a pod say.
    pub(super) fn of_pod(node: &NodeName) -> Result<Self, Trouble> {
        let mut config = Config::incluster().map_err(|error| Trouble::files(&error))?;
        config
            .headers
            .push((USER_AGENT, HeaderValue::from_static(USER)));
        let client = connected(&config).map_err(|error| Trouble::files(&error))?;
        Ok(Self::of(client, node))
    }

    fn of(client: Client, node: &NodeName) -> Self {
        // The API keeps an index for watches of one name.
        let selector = format!("metadata.name={node}");
        Self { client, selector }
    }

    /// The node, if there is one. Any version that the API has will do.
    pub(super) async fn list(&self) -> Result<(Option<Node>, String), Trouble> {
        let wanted = ListParams::default().fields(&self.selector).match_any();
        let answer = async {
            let request = Paths::new(NODES).list(&wanted);
            let request = request.map_err(KubeError::BuildRequest)?;
            self.client.request::<ObjectList<Node>>(request).await
        };
        let list = within_limit(answer).await?;
        let version = list.metadata.resource_version.unwrap_or_default();
        Ok((list.items.into_iter().next(), version))
    }

    /// What happens to the node after this version.
    pub(super) async fn watch(&self, version: &str) -> Result<Changes, Trouble> {
        // With bookmarks: nothing happened, and the version moved on.
        let wanted = WatchParams::default()
            .fields(&self.selector)
            .timeout(WATCH_SECONDS);
        let answer = async {
            let request = Paths::new(NODES).watch(&wanted, version);
            let request = request.map_err(KubeError::BuildRequest)?;
            self.client.request_events::<Node>(request).await
        };
        let changes = within_limit(answer).await?;
        Ok(Changes(changes.boxed()))
    }
}

/// kube's client without its own retries and log, which tell a failure each time: the follower paces and tells them.
fn connected(config: &Config) -> Result<Client, KubeError> {
    let http = HttpClient::builder(TokioExecutor::new())
        // Requests are minutes apart, and a new connection goes to an API server that is there.
        .pool_max_idle_per_host(0)
        .build::<_, Body>(config.rustls_https_connector()?);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .layer(config.extra_headers_layer()?)
        .map_err(BoxError::from)
        .service(http);
    Ok(bounded(service, &config.default_namespace))
}

/// A client that reads no more of an answer than it may have.
fn bounded<S, B>(service: S, namespace: &str) -> Client
where
    S: Service<Request<Body>, Response = Response<B>, Error = BoxError> + Send + 'static,
    S::Future: Send + 'static,
    B: HttpBody<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    let limit = |answer: Response<B>| answer.map(|body| Limited::new(body, MAX_BYTES));
    let service = ServiceBuilder::new()
        .layer(MapResponseLayer::new(limit))
        .service(service);
    Client::new(service, namespace)
}

async fn within_limit<T>(answer: impl Future<Output = Result<T, KubeError>>) -> Result<T, Trouble> {
    match tokio::time::timeout(ANSWER_LIMIT, answer).await {
        Ok(answer) => answer.map_err(|error| Trouble::of(&error)),
        Err(_) => Err(Trouble::silent(ANSWER_LIMIT)),
    }
}

/// What a watch tells, one after another.
pub(super) struct Changes(BoxStream<'static, Result<Change, KubeError>>);

impl Changes {
    /// The next change; `None` once the watch has ended.
    pub(super) async fn next(&mut self) -> Option<Result<Change, Trouble>> {
        match tokio::time::timeout(SILENCE_LIMIT, self.0.next()).await {
            Ok(change) => change.map(|change| change.map_err(|error| Trouble::of(&error))),
            Err(_) => Some(Err(Trouble::silent(SILENCE_LIMIT))),
        }
    }
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
    fn of(error: &KubeError) -> Self {
        match error {
            KubeError::Api(status) => Self::told(status),
            KubeError::SerdeError(_) | KubeError::FromUtf8(_) => {
                Self::unreadable(&innermost(error).to_string())
            }
            _ if innermost(error).is::<LengthLimitError>() => Self::unreadable("it is too large"),
            _ => Self::away(error),
        }
    }

    fn away(error: &KubeError) -> Self {
        Self {
            code: None,
            reason: innermost(error).to_string(),
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

    fn files(problem: &dyn Error) -> Self {
        Self {
            code: None,
            reason: problem.to_string(),
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

/// What an error comes from; those in between say less, and print their sources, too.
fn innermost<'a>(error: &'a (dyn Error + 'static)) -> &'a (dyn Error + 'static) {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use tower::service_fn;

    use super::*;

    /// An API that answers everything so.
    fn answering(code: u16, body: &str) -> Api {
        let body = Bytes::from(body.to_owned());
        let service = service_fn(move |_: Request<Body>| {
            let answer = Response::builder().status(code);
            let answer = answer.body(Full::new(body.clone()));
            async { answer.map_err(BoxError::from) }
        });
        Api::of(bounded(service, ""), &"n".parse().unwrap())
    }

    #[tokio::test]
    async fn a_watch_tells_changes_bookmarks_and_why_it_ends() {
        let api = answering(
            200,
            r#"{"type":"MODIFIED","object":{"kind":"Node","metadata":{"resourceVersion":"7","labels":{"a":"b"}}}}
{"type":"BOOKMARK","object":{"kind":"Node","apiVersion":"v1","metadata":{"resourceVersion":"9"}}}
{"type":"ERROR","object":{"kind":"Status","message":"too old","code":410}}
{"type":""#,
        );
        let mut changes = api.watch("1").await.unwrap();
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
    async fn an_answer_without_an_end_is_not_kept_for_ever() {
        let api = answering(200, &"x".repeat(MAX_BYTES + 1));
        let listed = api.list().await.unwrap_err();
        let mut changes = api.watch("1").await.unwrap();
        let Some(Err(watched)) = changes.next().await else {
            panic!("no trouble")
        };
        for trouble in [listed, watched] {
            assert!(trouble.reason.contains("too large"), "{trouble:?}");
        }
    }

    #[tokio::test]
    async fn what_is_no_answer_of_the_api_is_told_as_what_it_is() {
        let page = answering(200, "<html>").list().await.unwrap_err();
        assert!(page.reason.contains("cannot be read"), "{page:?}");
        assert!(page.advice.contains("KUBERNETES_SERVICE_HOST"), "{page:?}");
        let gateway = answering(502, "bad gateway").list().await.unwrap_err();
        assert_eq!(gateway.reason, "bad gateway (502)");
    }
}
