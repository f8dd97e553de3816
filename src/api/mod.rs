//! The request/reply service `prewarm` (NATS micro, ADR-32): `prewarm.api.submit`, `get`, `list`,
//! `describe`, `cancel`, `delete`, `pause`, `resume`, `nodes`.
//!
//! It changes nothing by itself: a change becomes a message in `PREWARM_JOBS`, as if it had been
//! published there, and what is read comes from the buckets. So every dispatcher serves it, whether
//! it leads or not.

mod read;

use async_nats::service::error::Error as ServiceError;
use async_nats::service::{Request, ServiceExt as _};
use async_nats::{HeaderMap, Message};
use bytes::Bytes;
use futures::StreamExt as _;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::bus::Bus;
use crate::domain::name::JobName;
use crate::domain::trace::TRACEPARENT;
use crate::wire::api::{Page, Stored};
use crate::wire::command::JobCommand;
use crate::wire::manifest;
use crate::wire::subject::JobVerb;

/// Requests of one endpoint that are answered at once; more wait in the client's buffer.
const AT_ONCE: usize = 32;

/// Why the service does not run.
#[derive(Debug, thiserror::Error)]
#[error("the service prewarm cannot be started: {0}")]
pub struct ApiError(String);

/// Why a request is not answered with what was asked.
#[derive(Debug)]
pub(crate) struct Refusal {
    code: usize,
    message: String,
}

impl Refusal {
    pub(crate) fn bad_input(message: impl Into<String>) -> Self {
        Self {
            code: 400,
            message: message.into(),
        }
    }

    pub(crate) fn not_found(message: impl Into<String>) -> Self {
        Self {
            code: 404,
            message: message.into(),
        }
    }

    pub(crate) fn unanswered(message: impl std::fmt::Display) -> Self {
        Self {
            code: 503,
            message: format!("the broker did not do it: {message}"),
        }
    }
}

#[derive(Clone, Copy)]
enum Endpoint {
    Change(JobVerb),
    Get,
    List,
    Describe,
    Nodes,
}

const ENDPOINTS: [(&str, Endpoint); 9] = [
    ("submit", Endpoint::Change(JobVerb::Submit)),
    ("cancel", Endpoint::Change(JobVerb::Cancel)),
    ("delete", Endpoint::Change(JobVerb::Delete)),
    ("pause", Endpoint::Change(JobVerb::Pause)),
    ("resume", Endpoint::Change(JobVerb::Resume)),
    ("get", Endpoint::Get),
    ("list", Endpoint::List),
    ("describe", Endpoint::Describe),
    ("nodes", Endpoint::Nodes),
];

/// Serves until the token is cancelled.
///
/// # Errors
/// The service cannot be announced.
pub async fn run(bus: Bus, shutdown: CancellationToken) -> Result<(), ApiError> {
    let failed = |error: async_nats::Error| ApiError(error.to_string());
    let service = bus
        .client
        .service_builder()
        .description("Jobs that put container images on nodes")
        .start("prewarm", env!("CARGO_PKG_VERSION"))
        .await
        .map_err(failed)?;
    let mut endpoints = JoinSet::new();
    for (name, endpoint) in ENDPOINTS {
        let requests = service
            .endpoint_builder()
            .name(name)
            .add(bus.subjects.api(name))
            .await
            .map_err(failed)?;
        let bus = bus.clone();
        endpoints.spawn(requests.for_each_concurrent(AT_ONCE, move |request| {
            let bus = bus.clone();
            async move { answer(&bus, endpoint, request).await }
        }));
    }
    shutdown.cancelled().await;
    // Those who ask hear from another dispatcher; a failure to say goodbye changes nothing.
    let _ = service.stop().await;
    Ok(())
}

async fn answer(bus: &Bus, endpoint: Endpoint, request: Request) {
    let answer = match endpoint {
        Endpoint::Change(verb) => change(bus, verb, &request.message).await,
        Endpoint::Get => match parse(&request.message.payload) {
            Ok(named) => read::job(bus, named)
                .await
                .and_then(|record| encode(&record)),
            Err(refusal) => Err(refusal),
        },
        Endpoint::Describe => match parse(&request.message.payload) {
            Ok(named) => read::describe(bus, named)
                .await
                .and_then(|found| encode(&found)),
            Err(refusal) => Err(refusal),
        },
        Endpoint::List => match page(&request.message.payload) {
            Ok(page) => read::jobs(bus, page).await.and_then(|found| encode(&found)),
            Err(refusal) => Err(refusal),
        },
        Endpoint::Nodes => match page(&request.message.payload) {
            Ok(page) => read::nodes(bus, page)
                .await
                .and_then(|found| encode(&found)),
            Err(refusal) => Err(refusal),
        },
    };
    let answer = answer.map_err(|refusal| ServiceError {
        status: refusal.message,
        code: refusal.code,
    });
    if let Err(error) = request.respond(answer).await {
        tracing::warn!(subject = request.message.subject.as_str(), %error, "an answer was not sent");
    }
}

fn parse<T: DeserializeOwned>(body: &[u8]) -> Result<T, Refusal> {
    serde_json::from_slice(body).map_err(|error| Refusal::bad_input(error.to_string()))
}

fn page(body: &[u8]) -> Result<Page, Refusal> {
    if body.is_empty() {
        Ok(Page::default())
    } else {
        parse(body)
    }
}

fn encode<T: Serialize>(value: &T) -> Result<Bytes, Refusal> {
    match serde_json::to_vec(value) {
        Ok(body) => Ok(body.into()),
        Err(error) => Err(Refusal {
            code: 500,
            message: error.to_string(),
        }),
    }
}

/// Checks a change and hands it to the dispatchers.
async fn change(bus: &Bus, verb: JobVerb, request: &Message) -> Result<Bytes, Refusal> {
    let body = &request.payload;
    let job: JobName = if verb == JobVerb::Submit {
        manifest::parse(body)
            .map_err(|rejection| Refusal::bad_input(rejection.to_string()))?
            .name
    } else {
        let command = JobCommand::parse(body);
        let name = command
            .map_err(|problem| Refusal::bad_input(problem.to_string()))?
            .name;
        read::job(bus, crate::wire::api::Named { name: name.clone() }).await?;
        name
    };
    let mut headers = HeaderMap::new();
    let said = request
        .headers
        .as_ref()
        .and_then(|said| said.get(TRACEPARENT));
    if let Some(traceparent) = said {
        headers.insert(TRACEPARENT, traceparent.clone());
    }
    let stored = bus
        .store(bus.subjects.job(verb), headers, body.clone())
        .await;
    let stored = stored
        .map_err(Refusal::unanswered)?
        .await
        .map_err(Refusal::unanswered)?;
    encode(&Stored {
        job,
        request_sequence: stored.sequence,
    })
}
