//! Reaching the broker: at once or not at all for a command, sooner or later for a role.

use std::fmt;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use async_nats::{ConnectErrorKind, ConnectOptions, Event, ServerAddr};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::login::{Kind, LoginFile};
use super::{Bus, tls};
use crate::domain::time::Timestamp;
use crate::wire::subject::{SubjectPrefix, Subjects};

/// How long a command waits for one server to greet it.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(3);
/// How long a role waits for one server to greet it before it tries the next.
const ROLE_TIMEOUT: Duration = Duration::from_secs(5);
/// Longest pause of a role between two attempts: a fleet that lost its broker comes back within this.
const MAX_RECONNECT_DELAY: Duration = Duration::from_secs(4);
/// How long a role hears nothing of its server before it asks whether it is there. Two questions may stay open: after
/// three times this, which is when a node counts as gone, a server that says nothing is left for another. A worker's
/// account has nothing else that it could ask.
const PING_EVERY: Duration = Duration::from_secs(5);

/// Least time between two words about lost messages.
const LOSSES_TOLD_EVERY: Duration = Duration::from_secs(1);

/// Where the broker is and how to log in.
#[derive(Clone)]
pub struct ConnectSettings {
    /// One server is enough: it names the others of its cluster.
    pub servers: Vec<ServerAddr>,
    /// Who we are.
    pub login: Login,
    /// Whom we trust, and with which certificate we come.
    pub tls: TlsSettings,
    /// What reply subjects begin with; `None`: `_INBOX`. A worker's permissions may allow one only.
    pub inbox_prefix: Option<String>,
    /// The first tokens of the cell's subjects.
    pub prefix: SubjectPrefix,
}

/// How a client proves who it is.
#[derive(Clone, Default)]
pub enum Login {
    /// Not at all, or by its TLS certificate.
    #[default]
    Anonymous,
    /// A credentials file: a JWT and the seed of its key.
    CredentialsFile(PathBuf),
    /// A file with the seed of an nkey.
    NkeySeedFile(PathBuf),
    /// A token both sides know.
    Token(String),
    /// A user and a password.
    Password(String, String),
}

/// TLS beyond what the server asks for by itself.
#[derive(Clone, Debug, Default)]
pub struct TlsSettings {
    /// Certificates to trust beside the system's, in PEM.
    pub ca: Option<PathBuf>,
    /// Our certificate and its key, in PEM.
    pub client: Option<(PathBuf, PathBuf)>,
    /// Whether TLS begins before the server's greeting.
    pub first: bool,
}

/// Leaves out everything secret: server addresses may hold a password.
impl fmt::Debug for ConnectSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConnectSettings")
            .field("servers", &self.places())
            .field("tls", &self.tls)
            .field("prefix", &self.prefix)
            .finish_non_exhaustive()
    }
}

impl ConnectSettings {
    /// The servers without user names and passwords, for messages.
    #[must_use]
    pub fn places(&self) -> String {
        let place = |server: &ServerAddr| {
            let host = match server.host() {
                address if address.contains(':') => format!("[{address}]"),
                name => name.to_owned(),
            };
            format!("{}://{host}:{}", server.scheme(), server.port())
        };
        let places: Vec<String> = self.servers.iter().map(place).collect();
        places.join(", ")
    }
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectFailure {
    /// No server answered.
    #[error("cannot reach the broker at {places}: {reason}")]
    Unreachable {
        /// Where we tried.
        places: String,
        /// What happened there.
        reason: String,
    },
    /// A server answered and refused us.
    #[error("the broker at {places} refused the login: {reason}")]
    Refused {
        /// Where we tried.
        places: String,
        /// What it said.
        reason: String,
    },
    /// TLS could not be set up with what we have.
    #[error("no TLS connection with the broker at {places}: {reason}")]
    Tls {
        /// Where we tried.
        places: String,
        /// What failed.
        reason: String,
        /// What can be done about it.
        advice: &'static str,
    },
    /// A server answered and refused us, and our credentials say that they have expired.
    #[error("the broker at {places} refused the login: {path} expired on {expired}", path = .path.display())]
    Expired {
        /// Where we tried.
        places: String,
        /// The file of credentials.
        path: PathBuf,
        /// When they expired.
        expired: Timestamp,
    },
    /// A file of the settings cannot be used.
    #[error("cannot use {path}", path = .path.display())]
    File {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: io::Error,
    },
    /// The role was told to stop before a server answered.
    #[error("stopped while waiting for the broker at {places}")]
    Stopped {
        /// Where we waited.
        places: String,
    },
}

impl ConnectFailure {
    /// What a person can do about it.
    #[must_use]
    pub fn advice(&self) -> &'static str {
        match self {
            Self::Unreachable { .. } => {
                "start one with `prewarm up`, or say where it is with --nats-url or NATS_URL"
            }
            Self::Refused { .. } => {
                "check --nats-creds, --nats-nkey, the user in the URL, or the `nats` context"
            }
            Self::Tls { advice, .. } => advice,
            Self::Expired { .. } => "get new credentials for this user, and put them in its place",
            Self::File { source, .. } if source.kind() == io::ErrorKind::InvalidData => {
                "check that the setting names the file that was meant"
            }
            Self::File { .. } => "check the path, and that this user may read the file",
            Self::Stopped { .. } => "",
        }
    }
}

/// Connects for one command: one attempt at each server, and no retry.
///
/// # Errors
/// No server can be reached or logged in to.
pub async fn connect_once(settings: &ConnectSettings, name: &str) -> Result<Bus, ConnectFailure> {
    let losses = Losses::default();
    connect_listening(settings, name, move |event| log(&event, &losses)).await
}

/// As [`connect_once`], with somebody who hears what happens to the connection.
///
/// # Errors
/// As [`connect_once`].
pub async fn connect_listening(
    settings: &ConnectSettings,
    name: &str,
    listener: impl Fn(Event) + Send + Sync + 'static,
) -> Result<Bus, ConnectFailure> {
    let (options, file) = options(settings, name).await?;
    let options = options
        .connection_timeout(COMMAND_TIMEOUT)
        .event_callback(move |event| {
            listener(event);
            std::future::ready(())
        });
    let client = options
        .connect(settings.servers.clone())
        .await
        .map_err(|error| failure(settings, file.as_deref(), &error))?;
    Ok(Bus::new(client, Subjects::new(settings.prefix.clone())))
}

/// Connects for a role: waits for the broker as long as it takes, and comes back whenever it is lost.
///
/// # Errors
/// A file cannot be read, or `shutdown` came first.
pub async fn connect_role(
    settings: &ConnectSettings,
    name: &str,
    shutdown: &CancellationToken,
) -> Result<Bus, ConnectFailure> {
    let (connected, mut first) = watch::channel(false);
    let losses = Losses::default();
    let (options, file) = options(settings, name).await?;
    let options = options
        .connection_timeout(ROLE_TIMEOUT)
        .ping_interval(PING_EVERY)
        .retry_on_initial_connect()
        .reconnect_delay_callback(reconnect_delay)
        .event_callback(move |event| {
            log(&event, &losses);
            if event == Event::Connected {
                connected.send_replace(true);
            }
            std::future::ready(())
        });
    tracing::info!(broker = settings.places(), "connecting to the broker");
    let client = options
        .connect(settings.servers.clone())
        .await
        .map_err(|error| failure(settings, file.as_deref(), &error))?;
    tokio::select! {
        _ = first.wait_for(|connected| *connected) => {
            Ok(Bus::new(client, Subjects::new(settings.prefix.clone())))
        }
        () = shutdown.cancelled() => Err(ConnectFailure::Stopped { places: settings.places() }),
    }
}

fn reconnect_delay(attempts: usize) -> Duration {
    let doublings = u32::try_from(attempts).unwrap_or(u32::MAX).min(16);
    let delay = Duration::from_millis(10).saturating_mul(1 << doublings);
    let jitter = rand::random_range(0.5..=1.0);
    delay.min(MAX_RECONNECT_DELAY).mul_f64(jitter)
}

/// Messages that were lost because they were read too slowly. The client tells of each; a dispatcher that cannot keep
/// up with the heartbeats of ten thousand nodes would fill its log with them.
#[derive(Default)]
struct Losses(Mutex<(u64, Option<Instant>)>);

impl Losses {
    /// Counts one; how many to tell of, if it is time again.
    fn count(&self, now: Instant) -> Option<u64> {
        let mut losses = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let (lost, told) = &mut *losses;
        *lost += 1;
        if told.is_some_and(|told| now.saturating_duration_since(told) < LOSSES_TOLD_EVERY) {
            return None;
        }
        *told = Some(now);
        Some(std::mem::take(lost))
    }
}

fn log(event: &Event, losses: &Losses) {
    match event {
        Event::Connected => tracing::info!("the broker is connected"),
        Event::Disconnected => tracing::warn!("the broker is lost; reconnecting"),
        Event::LameDuckMode => tracing::warn!("the broker is about to stop; moving to another"),
        Event::SlowConsumer(_) => {
            if let Some(messages) = losses.count(Instant::now()) {
                tracing::warn!(messages, "messages were lost: we read too slowly");
            }
        }
        // A denied subject shows nowhere else: the request that used it only times out.
        Event::ServerError(error) => tracing::warn!(%error, "the broker refused something"),
        Event::ClientError(error) => tracing::warn!(%error, "no connection with the broker yet"),
        Event::Draining | Event::Closed => tracing::debug!(%event, "broker connection"),
    }
}

/// How to connect, and the file we log in by.
async fn options(
    settings: &ConnectSettings,
    name: &str,
) -> Result<(ConnectOptions, Option<Arc<LoginFile>>), ConnectFailure> {
    let file = match &settings.login {
        Login::CredentialsFile(path) => Some((path, Kind::Credentials)),
        Login::NkeySeedFile(path) => Some((path, Kind::NkeySeed)),
        Login::Anonymous | Login::Token(_) | Login::Password(..) => None,
    };
    let file = match file {
        Some((path, kind)) => {
            let opened = LoginFile::open(path, kind).await;
            Some(opened.map_err(|source| unusable(path, source))?)
        }
        None => None,
    };
    let mut options = match &file {
        Some(file) => {
            let file = Arc::clone(file);
            ConnectOptions::with_auth_callback(move |nonce| Arc::clone(&file).answer(nonce))
        }
        None => ConnectOptions::new(),
    };
    options = match &settings.login {
        Login::Token(token) => options.token(token.clone()),
        Login::Password(user, password) => {
            options.user_and_password(user.clone(), password.clone())
        }
        Login::Anonymous | Login::CredentialsFile(_) | Login::NkeySeedFile(_) => options,
    };
    options = options.name(name);
    if let Some(path) = &settings.tls.ca {
        let looked = tls::certificates(path).await;
        looked.map_err(|source| unusable(path, source))?;
        options = options
            .add_root_certificates(path.clone())
            .require_tls(true);
    }
    if let Some((certificate, key)) = &settings.tls.client {
        let chain = tls::certificates(certificate).await;
        let chain = chain.map_err(|source| unusable(certificate, source))?;
        let looked = tls::key(key, chain).await;
        looked.map_err(|source| unusable(key, source))?;
        options = options.add_client_certificate(certificate.clone(), key.clone());
    }
    if settings.tls.first {
        options = options.tls_first();
    }
    if let Some(prefix) = &settings.inbox_prefix {
        options = options.custom_inbox_prefix(prefix);
    }
    Ok((options, file))
}

fn unusable(path: &Path, source: io::Error) -> ConnectFailure {
    ConnectFailure::File {
        path: path.to_owned(),
        source,
    }
}

fn failure(
    settings: &ConnectSettings,
    file: Option<&LoginFile>,
    error: &async_nats::ConnectError,
) -> ConnectFailure {
    let places = settings.places();
    let reason = innermost(error);
    if let Some(advice) = tls::advice(error) {
        return ConnectFailure::Tls {
            places,
            reason,
            advice,
        };
    }
    match error.kind() {
        ConnectErrorKind::Authentication | ConnectErrorKind::AuthorizationViolation => {
            let now = Timestamp::from_millis(jiff::Timestamp::now().as_millisecond());
            match file.and_then(|file| file.expired(now).map(|at| (file, at))) {
                Some((file, expired)) => ConnectFailure::Expired {
                    places,
                    path: file.path().to_owned(),
                    expired,
                },
                None => ConnectFailure::Refused { places, reason },
            }
        }
        ConnectErrorKind::Tls => ConnectFailure::Tls {
            places,
            reason,
            advice: "check --nats-ca, --nats-cert and --nats-key",
        },
        ConnectErrorKind::ServerParse
        | ConnectErrorKind::Dns
        | ConnectErrorKind::TimedOut
        | ConnectErrorKind::Io
        | ConnectErrorKind::MaxReconnects => ConnectFailure::Unreachable { places, reason },
    }
}

/// What went wrong at the bottom: the client's own errors print their sources, so a chain repeats itself.
fn innermost(error: &dyn std::error::Error) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(server: &str) -> ConnectSettings {
        ConnectSettings {
            servers: vec![server.parse().unwrap()],
            login: Login::default(),
            tls: TlsSettings::default(),
            inbox_prefix: None,
            prefix: SubjectPrefix::default(),
        }
    }

    #[test]
    fn no_password_is_ever_shown() {
        let settings = settings("nats://app:hunter2@[::1]:4333");
        assert_eq!(settings.places(), "nats://[::1]:4333");
        assert!(!format!("{settings:?}").contains("hunter2"));
    }

    #[test]
    fn lost_messages_are_counted_and_told_once_a_second() {
        let (losses, begin) = (Losses::default(), Instant::now());
        assert_eq!(losses.count(begin), Some(1));
        let quiet = (0..999).filter_map(|_| losses.count(begin));
        assert_eq!(quiet.count(), 0);
        assert_eq!(losses.count(begin + LOSSES_TOLD_EVERY), Some(1_000));
    }

    #[test]
    fn a_fleet_is_back_within_the_longest_delay() {
        assert!(reconnect_delay(1) <= Duration::from_millis(20));
        assert!((2..100).all(|attempts| reconnect_delay(attempts) <= MAX_RECONNECT_DELAY));
        assert!(reconnect_delay(50) >= MAX_RECONNECT_DELAY / 2);
    }

    #[tokio::test]
    async fn an_unreachable_broker_is_named_with_what_to_do() {
        // Nothing can listen on port 1 without being put there on purpose.
        let error = connect_once(&settings("nats://127.0.0.1:1"), "test")
            .await
            .unwrap_err();
        assert_eq!(
            error.to_string(),
            "cannot reach the broker at nats://127.0.0.1:1: Connection refused (os error 111)"
        );
        assert!(error.advice().contains("prewarm up"));
    }

    #[tokio::test]
    async fn a_role_that_is_stopped_while_waiting_ends() {
        let shutdown = CancellationToken::new();
        shutdown.cancel();
        let error = connect_role(&settings("nats://127.0.0.1:1"), "test", &shutdown)
            .await
            .unwrap_err();
        assert!(matches!(error, ConnectFailure::Stopped { .. }), "{error}");
    }
}
