//! May this login do what the worker of a node does, and only that?
//!
//! The broker refuses a publish or a subscription that is not permitted with an error on the connection.
//! So everything a worker says is said once, without a reply subject and in a form that nobody takes for
//! true, and what is refused is heard.

use std::time::Duration;

use async_nats::client::RequestErrorKind;
use async_nats::{Event, HeaderMap, Request, ServerError};
use bytes::Bytes;
use tokio::sync::mpsc;

use super::{Finding, Report, Verdict};
use crate::bus::Bus;
use crate::bus::connect::{ConnectSettings, connect_listening};
use crate::cli::exit::Failure;
use crate::cli::text;
use crate::domain::name::NodeName;
use crate::wire::subject::PullKey;

/// How long a refusal may take to reach us after the answer to what was asked last.
const SETTLE: Duration = Duration::from_millis(500);
/// How long the broker may take for that answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(5);
/// What is asked last: JetStream answers it, and a broker without it says that nobody does.
const ASKED_LAST: &str = "$JS.API.INFO";
/// Most refusals that wait to be read.
const MAX_REFUSALS: usize = 64;
/// A job and a node that nobody is asked to have.
const NOBODY: &str = "prewarm-check";
/// An image's token.
const NO_IMAGE: &str = "000000000000";
/// Most subjects told one by one.
const SUBJECTS_SHOWN: usize = 3;

/// Looks at the permissions for this node.
pub(super) async fn look(
    settings: &ConnectSettings,
    node: &NodeName,
    report: Report<'_>,
) -> Result<Verdict, Failure> {
    let (told, mut refusals) = mpsc::channel(MAX_REFUSALS);
    let listener = move |event| {
        if let Event::ServerError(ServerError::Other(error)) = event {
            // Beyond the bound there are enough to tell.
            let _ = told.try_send(error.to_lowercase());
        }
    };
    let bus = connect_listening(settings, "prewarm check", listener).await?;
    let mut asked = said_by(&bus, node);
    let subscribed = subscriptions(&bus, node, settings);
    say(&bus, &asked).await?;
    let mut listening = Vec::new();
    for subject in &subscribed {
        let subscription = bus.client.subscribe(subject.clone()).await;
        listening.push(subscription.map_err(unsaid)?);
    }
    asked.extend(subscribed.into_iter().map(Said::nothing));
    let refused = refused(&bus, &asked, &mut refusals).await?;
    let finding = for_own_node(node, &refused);
    report(&finding)?;
    if finding.verdict == Verdict::Bad {
        return Ok(Verdict::Bad);
    }
    let Ok(other) = NOBODY.parse() else {
        return Ok(finding.verdict);
    };
    let asked = said_by(&bus, &other);
    say(&bus, &asked).await?;
    let refused = self::refused(&bus, &asked, &mut refusals).await?;
    let finding = for_other_nodes(&asked, &refused);
    report(&finding)?;
    Ok(finding.verdict)
}

fn unsaid(error: impl std::error::Error) -> Failure {
    Failure::unreachable(format!("the connection to the broker is lost: {error}"))
}

/// Something to publish that changes nothing.
struct Said {
    subject: String,
    headers: HeaderMap,
    payload: Bytes,
}

impl Said {
    fn nothing(subject: String) -> Self {
        Self {
            subject,
            headers: HeaderMap::new(),
            payload: Bytes::new(),
        }
    }
}

/// What a worker of this node publishes. Nobody answers what has no reply subject, an ack of a delivery
/// that never was is dropped, and an empty body is no heartbeat, no progress and no registration.
fn said_by(bus: &Bus, node: &NodeName) -> Vec<Said> {
    let subjects = &bus.subjects;
    let (stream, consumer) = (subjects.tasks_stream(), node.token());
    let mut said = vec![
        format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}"),
        subjects.worker(node),
        subjects.heartbeat(node),
    ];
    let mut event = None;
    if let Ok(job) = NOBODY.parse() {
        let key = PullKey {
            node: node.clone(),
            job,
            image: NO_IMAGE.to_owned(),
        };
        said.push(subjects.progress(&key));
        event = Some(subjects.task_event(&key));
    }
    let mut said: Vec<Said> = said.into_iter().map(Said::nothing).collect();
    said.push(Said {
        payload: Bytes::from_static(b"+WPI"),
        ..Said::nothing(format!("$JS.ACK.{stream}.{consumer}.1.0.0.0.0"))
    });
    said.extend(event.map(|subject| {
        let mut headers = HeaderMap::new();
        // JetStream keeps nothing for another stream than the one that hears it.
        headers.insert("Nats-Expected-Stream", NOBODY);
        Said {
            headers,
            ..Said::nothing(subject)
        }
    }));
    said
}

fn subscriptions(bus: &Bus, node: &NodeName, settings: &ConnectSettings) -> Vec<String> {
    let inbox = settings.inbox_prefix.as_deref().unwrap_or("_INBOX");
    vec![bus.subjects.revoke(node), format!("{inbox}.>")]
}

async fn say(bus: &Bus, all: &[Said]) -> Result<(), Failure> {
    for said in all {
        let (subject, headers) = (said.subject.clone(), said.headers.clone());
        let payload = said.payload.clone();
        let published = bus.client.publish_with_headers(subject, headers, payload);
        published.await.map_err(unsaid)?;
    }
    Ok(())
}

/// The subjects that were refused, in the order in which they were asked for.
async fn refused<'a>(
    bus: &Bus,
    asked: &'a [Said],
    refusals: &mut mpsc::Receiver<String>,
) -> Result<Vec<&'a str>, Failure> {
    let mut told = until_answered(bus, refusals).await?;
    while let Ok(Some(refusal)) = tokio::time::timeout(SETTLE, refusals.recv()).await {
        told.push(refusal);
    }
    let is_refused = |said: &&Said| {
        let quoted = format!("\"{}\"", said.subject.to_lowercase());
        told.iter().any(|refusal| refusal.contains(&quoted))
    };
    let refused = asked.iter().filter(is_refused);
    Ok(refused.map(|said| said.subject.as_str()).collect())
}

/// What is refused until the broker has taken in all that was sent. A flush of the client ends when it is written, which says
/// nothing of the broker; so it is asked for something last that it answers, or refuses.
async fn until_answered(
    bus: &Bus,
    refusals: &mut mpsc::Receiver<String>,
) -> Result<Vec<String>, Failure> {
    let request = Request::new().timeout(Some(ANSWER_LIMIT));
    let answer = bus.client.send_request(ASKED_LAST, request);
    tokio::pin!(answer);
    let mut told = Vec::new();
    loop {
        tokio::select! {
            answered = &mut answer => match answered {
                Err(error) if told.is_empty() && error.kind() != RequestErrorKind::NoResponders => {
                    return Err(unsaid(error));
                }
                // Whoever may not listen for answers gets none, and was told so.
                _ => return Ok(told),
            },
            Some(refusal) = refusals.recv() => {
                let is_last = refusal.contains(&ASKED_LAST.to_lowercase());
                told.push(refusal);
                if is_last {
                    return Ok(told);
                }
            }
        }
    }
}

fn for_own_node(node: &NodeName, refused: &[&str]) -> Finding {
    if refused.is_empty() {
        return Finding::good(
            "permissions",
            format!("this login may do all that the worker of {node} does"),
        );
    }
    Finding::bad(
        "permissions",
        format!(
            "this login may not work for node {node}: the broker refuses {}",
            text::some_of(refused, SUBJECTS_SHOWN)
        ),
        "use the credentials of this very node, or say with --node which node they are for; deploy/nats/accounts.conf has all that a worker needs",
    )
}

fn for_other_nodes(asked: &[Said], refused: &[&str]) -> Finding {
    if refused.len() == asked.len() {
        return Finding::good("permissions", "and nothing in the name of another node");
    }
    Finding::warning(
        "permissions",
        "it may speak for other nodes, too",
        "right for a dispatcher's login and on a laptop; else give each node a user of its own (deploy/nats/accounts.conf)",
    )
}
