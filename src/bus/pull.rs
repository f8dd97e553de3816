//! The pull protocol of JetStream over core NATS.
//!
//! Workers live in an account without JetStream and may reach nothing of its API but the next-message
//! and ack subjects of their own consumer, so this speaks the protocol itself: NATS ADR-13 (pull
//! requests), ADR-15 (ack subjects) and `server/consumer.go` of nats-server.
//!
//! Several requests may be open at once. They share one inbox, because a delivered message does not say
//! which request it answers; a status does, and says how many messages the request still lacks.

use std::fmt;
use std::time::{Duration, SystemTime};

use async_nats::{Client, HeaderMap, Message, StatusCode, Subject, Subscriber};
use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::{Instant, sleep_until};

/// How long a request stays open; then the broker ends it and it is made anew.
const REQUEST_EXPIRES: Duration = Duration::from_secs(120);
/// How often a broker of one server says that a request is open although nothing is delivered. Each time it looks for a
/// message among all that were stored since the consumer was last looked at, one by one (`firstMatching` in
/// `server/filestore.go`): ten thousand consumers looked at every ten seconds while a job is released made it two to four
/// times slower. Such a broker takes its consumers along when it goes, which the connection says at once.
const IDLE_HEARTBEAT: Duration = Duration::from_secs(30);
/// By how much more, at most: what was delivered at one time would else be looked at in one moment ever after.
const IDLE_HEARTBEAT_SPREAD: Duration = Duration::from_secs(15);
/// How often a broker of several servers says so: one that dies takes consumers of workers that are connected to others,
/// which have to miss them within the ten seconds that the servers left may take to choose new leaders.
const CLUSTER_IDLE_HEARTBEAT: Duration = Duration::from_secs(4);
/// Idle heartbeats in halves that may be missed before the consumer counts as lost: a whole one lost,
/// and half of the next late.
const SILENT_HALVES: u32 = 5;
/// How late the end of a request without idle heartbeats may be told.
const LATE: Duration = Duration::from_secs(30);

/// How many messages of a request will not come, in a status (`JSPullRequestPendingMsgs`).
const PENDING_MESSAGES: &str = "Nats-Pending-Messages";

/// The times of pull requests.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PullTimes {
    /// How long a request stays open.
    pub expires: Duration,
    /// How often the broker says so; at most half of `expires`, or it refuses. Never if it is zero.
    pub idle_heartbeat: Duration,
}

impl PullTimes {
    /// What suits a broker of one server, or of several; `spread` from 0 to 1 is this worker's place among others.
    #[must_use]
    pub fn of(in_cluster: bool, spread: f64) -> Self {
        let idle_heartbeat = if in_cluster {
            CLUSTER_IDLE_HEARTBEAT
        } else {
            IDLE_HEARTBEAT + IDLE_HEARTBEAT_SPREAD.mul_f64(spread.clamp(0.0, 1.0))
        };
        Self {
            expires: REQUEST_EXPIRES,
            idle_heartbeat,
        }
    }

    /// How long the broker may say nothing.
    fn silence(self) -> Duration {
        if self.idle_heartbeat.is_zero() {
            self.expires + LATE
        } else {
            self.idle_heartbeat * SILENT_HALVES / 2
        }
    }
}

/// A message of the stream, to be answered.
#[derive(Clone, Debug)]
pub struct Delivery {
    /// The subject it was published on.
    pub subject: Subject,
    /// Its body.
    pub payload: Bytes,
    /// Where the answer goes, see [`Answer`].
    pub reply: Subject,
    /// How often it was delivered, this time included; at least 1.
    pub deliveries: u32,
    /// When the broker stored it, by the broker's clock; `None` if it did not say.
    pub stored_at: Option<SystemTime>,
}

/// What came by a pull request.
#[derive(Debug)]
pub enum Pulled {
    /// A message.
    Delivery(Delivery),
    /// A request ended by time; this many of its messages will not come.
    Expired {
        /// Messages asked for and not delivered.
        undelivered: u32,
    },
    /// The broker refused or dropped a request; the consumer may well be there.
    Refused {
        /// Messages asked for and not delivered.
        undelivered: u32,
        /// The broker's words.
        reason: String,
    },
    /// The consumer is gone, or nobody speaks for it. No request is open any more.
    Lost {
        /// How that showed.
        reason: String,
    },
}

/// Pulls from one consumer at a time.
#[derive(Debug)]
pub struct Puller {
    client: Client,
    times: Option<PullTimes>,
    open: Option<Open>,
}

#[derive(Debug)]
struct Open {
    /// `$JS.API.CONSUMER.MSG.NEXT.<stream>.<consumer>`.
    subject: String,
    inbox: String,
    times: PullTimes,
    subscriber: Subscriber,
    requests: u64,
    /// Requested and not received.
    outstanding: u32,
    /// When the broker's silence is too long, while something is outstanding.
    silent_at: Instant,
}

impl Puller {
    /// A puller with no request open; without times it takes those that suit the broker.
    #[must_use]
    pub const fn new(client: Client, times: Option<PullTimes>) -> Self {
        Self {
            client,
            times,
            open: None,
        }
    }

    /// Asks for `batch` messages beside what was asked for before. Requests to another consumer are
    /// dropped first.
    ///
    /// # Errors
    /// The connection is closed for good.
    pub async fn request(
        &mut self,
        stream: &str,
        consumer: &str,
        batch: u32,
    ) -> Result<(), PullError> {
        let subject = format!("$JS.API.CONSUMER.MSG.NEXT.{stream}.{consumer}");
        if self
            .open
            .as_ref()
            .is_some_and(|open| open.subject != subject)
        {
            self.reset();
        }
        let open = match &mut self.open {
            Some(open) => open,
            None => {
                let inbox = self.client.new_inbox();
                let subscriber = self.client.subscribe(format!("{inbox}.*")).await;
                let times = self.times.unwrap_or_else(|| {
                    let in_cluster = self.client.server_info().cluster.is_some();
                    PullTimes::of(in_cluster, rand::random_range(0.0..=1.0))
                });
                self.open.insert(Open {
                    times,
                    subject,
                    inbox,
                    subscriber: subscriber.map_err(closed)?,
                    requests: 0,
                    outstanding: 0,
                    silent_at: Instant::now() + times.silence(),
                })
            }
        };
        if open.outstanding == 0 {
            open.silent_at = Instant::now() + open.times.silence();
        }
        open.requests += 1;
        open.outstanding = open.outstanding.saturating_add(batch);
        let body = serde_json::json!({
            "batch": batch,
            "expires": nanos(open.times.expires),
            "idle_heartbeat": nanos(open.times.idle_heartbeat),
        });
        // A status comes to the request's own reply subject; the size is in it for the refusals that
        // do not say how much they refuse.
        let reply = format!("{}.{}-{batch}", open.inbox, open.requests);
        self.client
            .publish_with_reply(open.subject.clone(), reply, body.to_string().into())
            .await
            .map_err(closed)
    }

    /// Drops every open request: the broker sees that nobody listens and delivers nothing more.
    pub fn reset(&mut self) {
        self.open = None;
    }

    /// Waits for what comes next; for ever when no request is open. Nothing is lost when the wait is
    /// given up.
    pub async fn next(&mut self) -> Pulled {
        loop {
            let Some(open) = &mut self.open else {
                return std::future::pending().await;
            };
            let silence = open.times.silence();
            let waiting = open.outstanding > 0;
            let message = tokio::select! {
                message = open.subscriber.next() => message,
                () = sleep_until(open.silent_at), if waiting => {
                    self.reset();
                    return Pulled::Lost { reason: format!("the broker said nothing for {silence:?}") };
                }
            };
            let Some(message) = message else {
                self.reset();
                return Pulled::Lost {
                    reason: "the connection is closed".to_owned(),
                };
            };
            open.silent_at = Instant::now() + silence;
            let pulled = match message.status {
                None => open.delivery(message),
                Some(status) => open.status(status, &message),
            };
            if let Some(pulled) = pulled {
                if matches!(pulled, Pulled::Lost { .. }) {
                    self.reset();
                }
                return pulled;
            }
        }
    }
}

impl Open {
    /// A message of the stream; anything else that finds its way to the inbox is not for us.
    fn delivery(&mut self, message: Message) -> Option<Pulled> {
        let reply = message.reply?;
        let said = AckSubject::read(&reply)?;
        self.outstanding = self.outstanding.saturating_sub(1);
        Some(Pulled::Delivery(Delivery {
            subject: message.subject,
            payload: message.payload,
            reply,
            deliveries: said.deliveries,
            stored_at: said.stored_at,
        }))
    }

    fn status(&mut self, status: StatusCode, message: &Message) -> Option<Pulled> {
        let description = message.description.as_deref().unwrap_or_default();
        match Ended::read(status, description) {
            Ended::No => None,
            Ended::Lost => Some(Pulled::Lost {
                reason: format!("{status} {description}"),
            }),
            Ended::InTime => Some(Pulled::Expired {
                undelivered: self.end_request(message),
            }),
            Ended::Refused => Some(Pulled::Refused {
                undelivered: self.end_request(message),
                reason: format!("{status} {description}"),
            }),
        }
    }

    fn end_request(&mut self, message: &Message) -> u32 {
        let undelivered = undelivered(&message.subject, message.headers.as_ref());
        let undelivered = undelivered.min(self.outstanding);
        self.outstanding -= undelivered;
        undelivered
    }
}

/// Whether and how a status ends a request.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Ended {
    /// It does not: an idle heartbeat.
    No,
    /// As agreed.
    InTime,
    /// The broker did not want it, or gave it up for a reason that passes.
    Refused,
    /// With the consumer.
    Lost,
}

impl Ended {
    /// Reads a status (ADR-13; the descriptions are those of `server/consumer.go`, 2.10 to 2.15).
    fn read(status: StatusCode, description: &str) -> Self {
        match status.as_u16() {
            100 => Self::No,
            404 | 408 => Self::InTime,
            409 if description.eq_ignore_ascii_case("Batch Completed") => Self::InTime,
            409 if description.eq_ignore_ascii_case("Consumer Deleted") => Self::Lost,
            503 => Self::Lost,
            // 409 Server Shutdown and Leadership Change: whether the consumer lives on shows at the
            // next request, which then meets 503. The others are refusals of what was asked.
            _ => Self::Refused,
        }
    }
}

fn undelivered(reply: &str, headers: Option<&HeaderMap>) -> u32 {
    let said = headers
        .and_then(|headers| headers.get(PENDING_MESSAGES))
        .and_then(|value| value.as_str().parse().ok());
    let asked = || {
        let (_, batch) = reply.rsplit_once('-')?;
        batch.parse().ok()
    };
    said.or_else(asked).unwrap_or(0)
}

/// What an ack subject says of its message (ADR-15): `$JS.ACK.<stream>.<consumer>.<delivered>.<stream
/// seq>.<consumer seq>.<time>.<pending>`, or from 2.15 with `<domain>.<account hash>` before the stream
/// and more to come at the end. The time is in nanoseconds since the Unix epoch.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct AckSubject {
    deliveries: u32,
    stored_at: Option<SystemTime>,
}

impl AckSubject {
    fn read(reply: &str) -> Option<Self> {
        let tokens: Vec<&str> = reply.strip_prefix("$JS.ACK.")?.split('.').collect();
        let delivered = match tokens.len() {
            7 => 2,
            9.. => 4,
            _ => return None,
        };
        let deliveries: u64 = tokens[delivered].parse().ok()?;
        let stored: Option<u64> = tokens[delivered + 3].parse().ok();
        let since_epoch = stored.map(Duration::from_nanos);
        Some(Self {
            deliveries: u32::try_from(deliveries).unwrap_or(u32::MAX).max(1),
            stored_at: since_epoch.and_then(|time| SystemTime::UNIX_EPOCH.checked_add(time)),
        })
    }
}

/// What a delivery is answered with, published on its reply subject.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Answer {
    /// Done with.
    Ack,
    /// To be delivered again, not before the delay has passed.
    Nak(Option<Duration>),
    /// Worked on: the ack wait starts anew.
    InProgress,
}

impl Answer {
    /// The body of the answer (`AckAck`, `AckNak`, `AckProgress` of `server/consumer.go`).
    #[must_use]
    pub fn body(self) -> Bytes {
        match self {
            Self::Ack => Bytes::from_static(b"+ACK"),
            Self::Nak(None) => Bytes::from_static(b"-NAK"),
            Self::Nak(Some(delay)) => format!("-NAK {{\"delay\": {}}}", nanos(delay)).into(),
            Self::InProgress => Bytes::from_static(b"+WPI"),
        }
    }
}

/// Go's `time.Duration` as JSON: nanoseconds in an i64.
fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}

/// A request could not be sent.
#[derive(Debug, thiserror::Error)]
#[error("tasks cannot be asked for, the connection to the broker is closed: {0}")]
pub struct PullError(String);

fn closed(error: impl fmt::Display) -> PullError {
    PullError(error.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_broker_takes_the_times_whatever_a_workers_place() {
        for in_cluster in [false, true] {
            for spread in [-1.0, 0.0, 0.5, 1.0, 2.0] {
                let times = PullTimes::of(in_cluster, spread);
                assert!(times.idle_heartbeat * 2 <= times.expires, "{times:?}");
            }
        }
        let apart = |spread| PullTimes::of(false, spread).idle_heartbeat;
        assert!(apart(0.0) < apart(0.5) && apart(0.5) < apart(1.0));
    }

    #[test]
    fn both_forms_of_ack_subject_are_read() {
        for (reply, expected) in [
            (
                "$JS.ACK.PREWARM_TASKS.node-1.3.17.5.1790000000000000000.2",
                Some(3),
            ),
            (
                "$JS.ACK._.hASh.PREWARM_TASKS.node-1.3.17.5.1790000000000000000.2",
                Some(3),
            ),
            (
                "$JS.ACK.hub.hASh.S.C.4.17.5.1790000000000000000.2.random",
                Some(4),
            ),
            ("$JS.ACK.S.C.99999999999.17.5.1.2", Some(u32::MAX)),
            ("$JS.ACK.S.C.0.17.5.1.2", Some(1)),
            ("$JS.ACK.S.C.x.17.5.1.2", None),
            ("$JS.ACK.S.C.1", None),
            ("_INBOX.a.b.1.2.3.4.5.6", None),
        ] {
            let said = AckSubject::read(reply);
            assert_eq!(said.map(|said| said.deliveries), expected, "{reply}");
        }
    }

    #[test]
    fn an_ack_subject_says_when_the_message_was_stored() {
        let stored = SystemTime::UNIX_EPOCH + Duration::from_nanos(1_790_000_000_000_000_001);
        for (reply, expected) in [
            ("$JS.ACK.S.C.1.17.5.1790000000000000001.2", Some(stored)),
            (
                "$JS.ACK._.hASh.S.C.1.17.5.1790000000000000001.2.x",
                Some(stored),
            ),
            ("$JS.ACK.S.C.1.17.5.soon.2", None),
        ] {
            let said = AckSubject::read(reply).unwrap();
            assert_eq!(said.stored_at, expected, "{reply}");
        }
    }

    #[test]
    fn every_status_of_the_broker_is_understood() {
        for (code, description, expected) in [
            (100, "Idle Heartbeat", Ended::No),
            (404, "No Messages", Ended::InTime),
            (408, "Request Timeout", Ended::InTime),
            (409, "Batch Completed", Ended::InTime),
            (409, "Consumer Deleted", Ended::Lost),
            (409, "Server Shutdown", Ended::Refused),
            (409, "Leadership Change", Ended::Refused),
            (409, "Exceeded MaxWaiting", Ended::Refused),
            (409, "Message Size Exceeds MaxBytes", Ended::Refused),
            (400, "Bad Request", Ended::Refused),
            (423, "Nats-Pin-Id mismatch", Ended::Refused),
            (503, "", Ended::Lost),
        ] {
            let status = StatusCode::from_u16(code).unwrap();
            assert_eq!(
                Ended::read(status, description),
                expected,
                "{code} {description}"
            );
        }
    }

    #[test]
    fn a_request_that_ends_says_how_much_it_lacks() {
        let mut headers = HeaderMap::new();
        assert_eq!(
            undelivered("_INBOX.x.7-5", Some(&headers)),
            5,
            "refused whole"
        );
        headers.insert(PENDING_MESSAGES, "2");
        assert_eq!(undelivered("_INBOX.x.7-5", Some(&headers)), 2);
        assert_eq!(undelivered("_INBOX.x", None), 0);
    }

    #[test]
    fn answers_are_those_of_the_protocol() {
        let delay = Some(Duration::from_millis(1_500));
        for (answer, body) in [
            (Answer::Ack, "+ACK"),
            (Answer::Nak(None), "-NAK"),
            (Answer::Nak(delay), "-NAK {\"delay\": 1500000000}"),
            (Answer::InProgress, "+WPI"),
        ] {
            assert_eq!(answer.body(), body);
        }
    }
}
