//! Who tells of pushes, and what their payloads mean.
//!
//! Every source has a file that reads its payload; all of them give the same: pushes. Nothing here proves
//! anything: that is done before, over the raw body.

mod aliyun;
mod cloudevents;
mod distribution;
mod dockerhub;
mod ecr;
mod gar;
mod generic;
mod gitea;
mod github;
mod harbor;
mod jfrog;
mod nexus;
mod payload;
mod quay;

use axum::http::HeaderMap;

use crate::wire::push::Push;

/// What a payload tells.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Reading {
    /// The pushes of images. Registries are named as the payload names them; settings may map them.
    pub pushes: Vec<Push>,
    /// Pushes of a digest without a tag, by a source that tells the children of an index in the same way.
    /// They count only where the source's setting `digest-only` says so.
    pub by_digest: Vec<Push>,
    /// What is no push of an image, and why.
    pub ignored: Vec<String>,
}

/// A payload that is not what its source sends.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{place}: {message}")]
pub struct Rejection {
    /// Where in the payload: a line and column, or the path of a field.
    pub place: String,
    /// What is wrong there.
    pub message: String,
}

/// A text that is no source.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is no source of webhooks; known: {list}", list = Source::ALL.map(Source::as_str).join(", "))]
pub struct SourceError(String);

macro_rules! sources {
    ($($(#[$doc:meta])* $name:ident = $text:literal,)+) => {
        /// Who tells of pushes.
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
        pub enum Source {
            $($(#[$doc])* $name,)+
        }

        impl Source {
            /// All of them.
            pub const ALL: [Self; 15] = [$(Self::$name,)+];

            /// Its name in paths, settings and metrics.
            #[must_use]
            pub const fn as_str(self) -> &'static str {
                match self {
                    $(Self::$name => $text,)+
                }
            }
        }
    };
}

sources! {
    /// CNCF Distribution (`registry:2`), and registries that notify in its format.
    Distribution = "distribution",
    /// Harbor, in both formats and the legacy one.
    Harbor = "harbor",
    /// Quay.
    Quay = "quay",
    /// Docker Hub.
    DockerHub = "dockerhub",
    /// GitHub Packages: the container registry.
    GitHub = "github",
    /// GitLab's container registry.
    GitLab = "gitlab",
    /// Azure Container Registry.
    Acr = "acr",
    /// AWS Elastic Container Registry through EventBridge.
    Ecr = "ecr",
    /// Google Artifact Registry through Pub/Sub.
    Gar = "gar",
    /// Gitea and Forgejo.
    Gitea = "gitea",
    /// JFrog Artifactory.
    JFrog = "jfrog",
    /// Sonatype Nexus 3.
    Nexus = "nexus",
    /// Alibaba Cloud Container Registry.
    Aliyun = "aliyun",
    /// CloudEvents of others, and CDEvents.
    CloudEvents = "cloudevents",
    /// Anything that can post a push as `prewarm.push` takes it.
    Generic = "generic",
}

impl std::str::FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, SourceError> {
        match text {
            "forgejo" => Ok(Self::Gitea),
            text => Self::ALL
                .into_iter()
                .find(|source| source.as_str() == text)
                .ok_or_else(|| SourceError(text.to_owned())),
        }
    }
}

/// Reads a payload. Headers help where a source says there what it sends; without them the body decides.
///
/// # Errors
/// The payload is not what the source sends.
pub fn read(source: Source, headers: &HeaderMap, body: &[u8]) -> Result<Reading, Rejection> {
    let mut reading = match source {
        Source::Distribution | Source::GitLab => distribution::read(body),
        Source::Harbor => harbor::read(body),
        Source::Quay => quay::read(body),
        Source::DockerHub => dockerhub::read(body),
        Source::GitHub => github::read(headers, body),
        Source::Acr => distribution::read_bare(body),
        Source::Ecr => ecr::read(body),
        Source::Gar => gar::read(headers, body),
        Source::Gitea => gitea::read(headers, body),
        Source::JFrog => jfrog::read(body),
        Source::Nexus => nexus::read(headers, body),
        Source::Aliyun => aliyun::read(body),
        Source::CloudEvents => cloudevents::read(headers, body),
        Source::Generic => generic::read(body),
    }?;
    for push in reading.pushes.iter_mut().chain(&mut reading.by_digest) {
        push.source = Some(source.as_str().to_owned());
    }
    Ok(reading)
}
