//! Lists and watches one node of Kubernetes, for as long as the worker runs.
//!
//! A watch that ends is continued where it was; when the API no longer has what came since (410 Gone),
//! the node is listed anew. Whatever ends soon is begun again ever more slowly, so that an API in
//! trouble gets little from us.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::api::{Api, Change, Trouble};
use super::standing::{Choices, Node, Status, standing};
use crate::domain::name::NodeName;
use crate::domain::node::NodeStanding;

/// First delay after something ended soon.
const FIRST_DELAY: Duration = Duration::from_millis(500);
/// Longest delay, which jitter may double.
const MAX_DELAY: Duration = Duration::from_secs(15);
/// What went on for this long was no failure when it ends; nor was what brought news.
const STEADY_AFTER: Duration = Duration::from_secs(30);
/// What a watch is answered that begins too far back (Kubernetes, "410 Gone responses").
const GONE: u16 = 410;
/// Why nothing is known of a node that is not there.
const MISSING: &str = "there is no such node";

/// How the node is looked at.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Following {
    /// The node's name in Kubernetes.
    pub node: NodeName,
    /// Labels of the setting, which outweigh those of Kubernetes.
    pub labels: BTreeMap<String, String>,
    /// What the operator chose.
    pub choices: Choices,
}

/// Why the node cannot be followed at all.
#[derive(Debug, thiserror::Error)]
#[error("cannot ask the Kubernetes API: {0}")]
pub struct FollowError(String);

/// Why the API tells nothing of a node.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Untold {
    /// What happened.
    pub reason: String,
    /// What can be done about it.
    pub advice: &'static str,
}

/// Asks once.
///
/// # Errors
/// Why the API tells nothing.
pub async fn look(node: &NodeName) -> Result<Status, Untold> {
    let untold = |trouble: Trouble| Untold {
        reason: trouble.reason,
        advice: trouble.advice,
    };
    let api = Api::of_pod(node).map_err(untold)?;
    let (node, _) = api.list().await.map_err(untold)?;
    let node = node.as_ref();
    node.map(Status::of).ok_or_else(|| untold(missing()))
}

fn missing() -> Trouble {
    Trouble {
        code: None,
        reason: MISSING.to_owned(),
        advice: "name it as Kubernetes does: PREWARM_NODE from the field spec.nodeName",
    }
}

impl Following {
    /// Waits until the API has told of the node, however long that takes, and follows it from then on.
    /// `None`: the role was stopped first. `told` says meanwhile why it has not, and in the end that it has.
    ///
    /// Without the API there is no standing to begin with, and none is made up: with too few labels the
    /// node would leave jobs it belongs to, and join others. Once it is known, the last one stays in
    /// force while the API is away. That a worker starts without the API is rare: kubelet starts no pod
    /// that it has not heard of.
    ///
    /// # Errors
    /// Environment or files of the pod cannot be used.
    pub async fn begin(
        self,
        told: watch::Sender<Result<(), String>>,
        shutdown: CancellationToken,
    ) -> Result<Option<watch::Receiver<NodeStanding>>, FollowError> {
        let api = Api::of_pod(&self.node).map_err(|trouble| FollowError(trouble.reason))?;
        let mut follower = Follower {
            api,
            following: self,
            pace: pace(),
            status: None,
            trouble: None,
        };
        tracing::info!(node = %follower.following.node, "asking the Kubernetes API for the node");
        let (first, version) = tokio::select! {
            first = follower.first(&told) => first,
            () = shutdown.cancelled() => return Ok(None),
        };
        let _ = told.send_replace(Ok(()));
        let (tell, standing) = watch::channel(first);
        tokio::spawn(async move {
            tokio::select! {
                () = follower.follow(version, &tell) => {}
                () = shutdown.cancelled() => {}
                () = tell.closed() => {}
            }
        });
        Ok(Some(standing))
    }
}

fn pace() -> ExponentialBackoff {
    ExponentialBuilder::default()
        .with_min_delay(FIRST_DELAY)
        .with_max_delay(MAX_DELAY)
        .with_jitter()
        .without_max_times()
        .build()
}

struct Follower {
    following: Following,
    api: Api,
    pace: ExponentialBackoff,
    /// What was told last, so that each thing is told once.
    status: Option<Status>,
    trouble: Option<String>,
}

/// How a watch ended.
enum End {
    /// It may go on where it was.
    Over,
    /// What came since is gone.
    Gone,
}

impl Follower {
    /// The first standing, and from where on it is watched.
    async fn first(&mut self, told: &watch::Sender<Result<(), String>>) -> (NodeStanding, String) {
        loop {
            let trouble = match self.api.list().await {
                Ok((Some(node), version)) => return (self.saw(&node), version),
                Ok((None, _)) => missing(),
                Err(trouble) => trouble,
            };
            let _ = told.send_replace(Err(trouble.reason.clone()));
            self.warn(trouble);
            self.wait().await;
        }
    }

    async fn follow(&mut self, mut version: String, tell: &watch::Sender<NodeStanding>) {
        loop {
            let began = Instant::now();
            if let End::Gone = self.watch(&mut version, tell).await {
                version = self.list_again(tell).await;
            }
            if began.elapsed() >= STEADY_AFTER {
                self.pace = pace();
            } else {
                self.wait().await;
            }
        }
    }

    async fn wait(&mut self) {
        let delay = self.pace.next().unwrap_or(MAX_DELAY);
        tokio::time::sleep(delay).await;
    }

    async fn list_again(&mut self, tell: &watch::Sender<NodeStanding>) -> String {
        loop {
            match self.api.list().await {
                Ok((node, version)) => {
                    match node {
                        Some(node) => self.tell(&node, tell),
                        None => self.warn(missing()),
                    }
                    return version;
                }
                Err(trouble) => self.warn(trouble),
            }
            self.wait().await;
        }
    }

    /// Takes in what happens to the node from `version` on, which goes along, until the watch ends.
    async fn watch(&mut self, version: &mut String, tell: &watch::Sender<NodeStanding>) -> End {
        let mut changes = match self.api.watch(version).await {
            Ok(changes) => changes,
            Err(trouble) => return self.ended_by(trouble),
        };
        if self.trouble.take_if(|reason| reason != MISSING).is_some() {
            tracing::info!(node = %self.following.node, "the Kubernetes API answers again");
        }
        loop {
            let node = match changes.next().await {
                Some(Ok(Change::Added(node) | Change::Modified(node))) => {
                    self.tell(&node, tell);
                    node
                }
                Some(Ok(Change::Deleted(node))) => {
                    self.warn(missing());
                    node
                }
                Some(Ok(Change::Bookmark(marked))) => {
                    *version = marked.metadata.resource_version;
                    continue;
                }
                Some(Ok(Change::Error(status))) => return self.ended_by(Trouble::told(&status)),
                Some(Err(trouble)) => return self.ended_by(trouble),
                None => return End::Over,
            };
            *version = node.metadata.resource_version;
        }
    }

    fn ended_by(&mut self, trouble: Trouble) -> End {
        match trouble.code {
            Some(GONE) => End::Gone,
            _ => {
                self.warn(trouble);
                End::Over
            }
        }
    }

    fn tell(&mut self, node: &Node, tell: &watch::Sender<NodeStanding>) {
        let standing = self.saw(node);
        let is_news = tell.send_if_modified(|last| {
            let changed = *last != standing;
            *last = standing;
            changed
        });
        if is_news {
            self.pace = pace();
        }
    }

    fn saw(&mut self, node: &Node) -> NodeStanding {
        let standing = standing(node, &self.following.labels, self.following.choices);
        let status = Status::of(node);
        if self.trouble.take().is_some() || self.status.as_ref() != Some(&status) {
            tracing::info!(
                node = %self.following.node, %status, labels = standing.labels.len(),
                takes_pulls = standing.waiting.is_none(),
                "the Kubernetes API tells of the node"
            );
            self.status = Some(status);
        }
        standing
    }

    fn warn(&mut self, trouble: Trouble) {
        if self.trouble.as_ref() == Some(&trouble.reason) {
            return;
        }
        let consequence = if self.status.is_none() {
            "it is not registered, and gets no pulls"
        } else {
            "its labels and state stay as they were"
        };
        tracing::warn!(
            node = %self.following.node, reason = trouble.reason, advice = trouble.advice,
            "the Kubernetes API does not tell of the node: until it does, {consequence}"
        );
        self.trouble = Some(trouble.reason);
    }
}
