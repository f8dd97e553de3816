//! The broker: is it there, new enough, set up, led, and who are we on it.

use std::time::Duration;

use async_nats::jetstream::ErrorCode;
use async_nats::jetstream::context::AccountErrorKind;
use serde::Deserialize;

use super::{Finding, Report, Verdict, node};
use crate::bus::Bus;
use crate::bus::connect::{ConnectSettings, connect_once};
use crate::bus::topology::{self, TopologySettings};
use crate::cli::exit::Failure;
use crate::cli::journal::{self, From, Journal};
use crate::cli::text;
use crate::domain::name::NodeName;

/// The oldest generation that is supported.
const OLDEST: (u32, u32) = (2, 10);
/// How long a leader may take to renew its lease: several times the time between two renewals.
const LEASE_LIMIT: Duration = Duration::from_secs(3);
/// How long the broker may take to say who we are.
const IDENTITY_LIMIT: Duration = Duration::from_secs(2);
/// Where any client may ask who it is (nats-server 2.9 and later).
const IDENTITY_SUBJECT: &str = "$SYS.REQ.USER.INFO";
/// The account of a server without accounts (nats-server, `DEFAULT_GLOBAL_ACCOUNT`).
const GLOBAL_ACCOUNT: &str = "$G";

/// Looks at everything about the broker that can be seen from here.
pub(super) async fn look(
    settings: &ConnectSettings,
    node: Option<&NodeName>,
    report: Report<'_>,
) -> Result<Verdict, Failure> {
    let places = settings.places();
    let bus = match connect_once(settings, "prewarm check").await {
        Ok(bus) => bus,
        Err(error) => {
            let advice = error.advice();
            let failure = Failure::from(error);
            report(&Finding::bad("broker", failure.message, advice))?;
            return Ok(Verdict::Bad);
        }
    };
    let version = version(&places, &bus.client.server_info().version);
    report(&version)?;
    let of_account = look_at_account(&bus, &mut *report).await?;
    let of_node = match node {
        Some(node) => node::look(settings, node, report).await?,
        None => Verdict::Good,
    };
    Ok(version.verdict.max(of_account).max(of_node))
}

async fn look_at_account(bus: &Bus, report: Report<'_>) -> Result<Verdict, Failure> {
    let mut worst = Verdict::Good;
    let mut tell = |finding: Finding| {
        worst = worst.max(finding.verdict);
        report(&finding)
    };
    let account = identity(bus).await;
    let jetstream = jetstream(bus).await;
    if jetstream == JetStream::NotForUs {
        tell(worker_account(account.as_deref()))?;
        return Ok(worst);
    }
    tell(jetstream.finding())?;
    tell(control_account(account.as_deref()))?;
    if let JetStream::Usable(_) = jetstream {
        let set_up = set_up(bus).await;
        let is_set_up = set_up.verdict == Verdict::Good;
        tell(set_up)?;
        if is_set_up {
            tell(dispatcher(bus).await)?;
        }
    }
    Ok(worst)
}

fn version(places: &str, version: &str) -> Finding {
    let mut parts = version
        .split('.')
        .map(|part| part.parse::<u32>().unwrap_or(0));
    let number = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
    let found = format!("{places} is nats-server {version}");
    if number < OLDEST {
        Finding::warning(
            "broker",
            found,
            "prewarm is tested with 2.10 to 2.15; use one of them",
        )
    } else {
        Finding::good("broker", found)
    }
}

/// The account we are in, if the broker says.
async fn identity(bus: &Bus) -> Option<String> {
    #[derive(Deserialize)]
    struct Answer {
        data: User,
    }
    #[derive(Deserialize)]
    struct User {
        account: String,
    }
    let request = bus.client.request(IDENTITY_SUBJECT, bytes::Bytes::new());
    let answer = tokio::time::timeout(IDENTITY_LIMIT, request)
        .await
        .ok()?
        .ok()?;
    let answer: Answer = serde_json::from_slice(&answer.payload).ok()?;
    Some(answer.data.account)
}

fn control_account(account: Option<&str>) -> Finding {
    match account {
        Some(GLOBAL_ACCOUNT) => Finding::warning(
            "accounts",
            "one account for everything: whoever reaches this broker can do everything",
            "fine on a laptop; a fleet's workers belong into an account of their own without JetStream (README, Security)",
        ),
        Some(account) => Finding::good(
            "accounts",
            format!(
                "this is account {account}, which may use JetStream; workers belong into another"
            ),
        ),
        None => Finding::warning(
            "accounts",
            "the broker does not say which account this is",
            "right for a worker's user; else allow requests to $SYS.REQ.USER.INFO",
        ),
    }
}

fn worker_account(account: Option<&str>) -> Finding {
    Finding::good(
        "accounts",
        format!(
            "this is account {}, without JetStream, as a worker's should be; check the dispatcher with its own credentials",
            account.unwrap_or("of unknown name")
        ),
    )
}

#[derive(PartialEq, Eq)]
enum JetStream {
    Usable(String),
    Off(String),
    /// Nobody answers its API here: a worker's account.
    NotForUs,
    /// Nobody says anything: a request that is not permitted is dropped in silence.
    Silent,
}

async fn jetstream(bus: &Bus) -> JetStream {
    match bus.jetstream.query_account().await {
        Ok(account) => {
            let used = text::bytes(account.storage);
            JetStream::Usable(format!(
                "{}, {used} stored",
                text::count(account.streams, "stream")
            ))
        }
        Err(error) => match error.kind() {
            AccountErrorKind::JetStream(inner)
                if inner.error_code() == ErrorCode::JETSTREAM_NOT_ENABLED_FOR_ACCOUNT =>
            {
                JetStream::NotForUs
            }
            // The server has it, and nobody answers us.
            AccountErrorKind::JetStreamUnavailable if bus.client.server_info().jetstream => {
                JetStream::NotForUs
            }
            AccountErrorKind::TimedOut => JetStream::Silent,
            _ => JetStream::Off(error.to_string()),
        },
    }
}

impl JetStream {
    fn finding(&self) -> Finding {
        match self {
            Self::Usable(found) => Finding::good("jetstream", found.clone()),
            Self::Off(error) => Finding::bad(
                "jetstream",
                format!("it does not answer: {error}"),
                "start nats-server with -js, or switch jetstream on for this account",
            ),
            Self::NotForUs => Finding::bad("jetstream", "it is not for this account", ""),
            Self::Silent => Finding::warning(
                "jetstream",
                "it does not answer",
                "right for a worker's user, which may not ask; else allow $JS.API.>, and look at the broker's log",
            ),
        }
    }
}

async fn set_up(bus: &Bus) -> Finding {
    let streams = topology::streams(&bus.subjects, TopologySettings::default()).len();
    match topology::check(bus, TopologySettings::default()).await {
        Ok(()) => Finding::good(
            "streams",
            format!("all {streams} streams and buckets are as they should be"),
        ),
        Err(error) => Finding::bad(
            "streams",
            error.to_string(),
            "a dispatcher makes what is missing: `prewarm dispatcher` or `prewarm up`",
        ),
    }
}

/// A dispatcher that leads renews its lease several times a second.
async fn dispatcher(bus: &Bus) -> Finding {
    let renewed = async {
        let name = format!("KV_{}", bus.subjects.leases_bucket());
        let stream = journal::stream(bus, &name).await?;
        let from = From::After(stream.cached_info().state.last_sequence);
        Journal::open(&stream, Vec::new(), from).await?.next().await
    };
    match tokio::time::timeout(LEASE_LIMIT, renewed).await {
        Ok(Ok(_)) => Finding::good("dispatcher", "one leads"),
        Ok(Err(failure)) => Finding::bad("dispatcher", failure.message, failure.advice),
        Err(_) => Finding::bad(
            "dispatcher",
            format!(
                "none has renewed its lease for {}",
                text::duration(LEASE_LIMIT)
            ),
            "start one: `prewarm dispatcher`; what is submitted meanwhile is kept",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn old_servers_are_warned_about() {
        for (text, verdict) in [
            ("2.9.25", Verdict::Warning),
            ("2.10.0", Verdict::Good),
            ("2.15.1-beta.1", Verdict::Good),
            ("3.0.0", Verdict::Good),
        ] {
            assert_eq!(version("nats://a", text).verdict, verdict, "{text}");
        }
    }

    #[test]
    fn one_account_for_everything_is_said_to_be_so() {
        assert_eq!(control_account(Some("$G")).verdict, Verdict::Warning);
        assert_eq!(control_account(Some("CORE")).verdict, Verdict::Good);
    }
}
