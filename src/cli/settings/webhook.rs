//! What a receiver of webhooks is told.

use std::path::PathBuf;
use std::time::Duration;

use super::span::Span;
use super::{Check, given};
use crate::telemetry::listen;
use crate::webhook::server::{MAX_CONNECTIONS, ServerSettings};

/// Bounds of a body in bytes.
const BODY: (u32, u32) = (1_024, 64 * 1024 * 1024);
/// Bounds of the requests at once.
const IN_FLIGHT: (u32, u32) = (1, 10_000);
/// Longest of the time limits.
const MAX_TIMEOUT: Duration = Duration::from_secs(60);

/// The receiver's settings.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Webhook")]
pub struct WebhookArgs {
    /// Where to take webhooks; `[::]:8080` or `:8080` for every address of IPv6, too
    #[arg(
        long,
        env = "PREWARM_LISTEN",
        value_name = "ADDRESS",
        default_value = "0.0.0.0:8080"
    )]
    pub listen: String,
    /// Which sources there are, how each proves itself, and of which registries it may speak; YAML
    #[arg(long, env = "PREWARM_WEBHOOK_CONFIG", value_name = "FILE")]
    pub webhook_config: Option<String>,
    /// Certificate chain in PEM, for HTTPS; read again when it changes
    #[arg(long, env = "PREWARM_TLS_CERT", value_name = "FILE")]
    pub tls_cert: Option<String>,
    /// Its private key in PEM
    #[arg(long, env = "PREWARM_TLS_KEY", value_name = "FILE")]
    pub tls_key: Option<String>,
    /// Largest body in bytes; a larger one is answered with 413
    #[arg(
        long,
        env = "PREWARM_MAX_BODY",
        value_name = "BYTES",
        default_value = "8388608"
    )]
    pub max_body: String,
    /// How long a body may take to come; then the answer is 408
    #[arg(
        long,
        env = "PREWARM_REQUEST_TIMEOUT",
        value_name = "TIME",
        default_value = "10s"
    )]
    pub request_timeout: String,
    /// How long the broker may take to have the pushes of a request; then the answer is 503
    #[arg(
        long,
        env = "PREWARM_PUBLISH_TIMEOUT",
        value_name = "TIME",
        default_value = "3s"
    )]
    pub publish_timeout: String,
    /// Most requests at once; one more is answered with 503
    #[arg(
        long,
        env = "PREWARM_MAX_IN_FLIGHT",
        value_name = "NUMBER",
        default_value = "256"
    )]
    pub max_in_flight: String,
}

impl WebhookArgs {
    /// Checks the settings and reads the file of sources.
    pub fn check(&self, check: &mut Check<'_>) -> Option<ServerSettings> {
        let listen = listen::parse(&self.listen);
        if listen.is_none() {
            let say = "is not an address to listen on, such as 0.0.0.0:8080 or :8080";
            check.problem("listen", format!("{:?} {say}", self.listen));
        }
        let tls = match (
            given(self.tls_cert.as_deref()),
            given(self.tls_key.as_deref()),
        ) {
            (Some(chain), Some(key)) => Some((PathBuf::from(chain), PathBuf::from(key))),
            (None, None) => None,
            (Some(_), None) => {
                check.problem("tls-cert", "needs --tls-key, too");
                None
            }
            (None, Some(_)) => {
                check.problem("tls-key", "needs --tls-cert, too");
                None
            }
        };
        let sources = match given(self.webhook_config.as_deref()) {
            None => {
                let say = "has to be set: a file that names the sources, such as\n  sources:\n    github: {secret-file: /etc/prewarm/github}";
                check.problem("webhook-config", say);
                None
            }
            Some(path) => match crate::webhook::settings::read(path.as_ref()) {
                Ok(sources) => Some(sources),
                Err(problems) => {
                    for problem in problems {
                        check.problem("webhook-config", problem);
                    }
                    None
                }
            },
        };
        let max_body = check.number("max-body", Some(&self.max_body), BODY);
        let in_flight = check.number("max-in-flight", Some(&self.max_in_flight), IN_FLIGHT);
        let request_timeout = timeout("request-timeout", &self.request_timeout, check);
        let publish_timeout = timeout("publish-timeout", &self.publish_timeout, check);
        Some(ServerSettings {
            listen: listen?,
            tls,
            sources: sources?,
            max_body: usize::try_from(max_body?).ok()?,
            request_timeout: request_timeout?,
            publish_timeout: publish_timeout?,
            max_in_flight: usize::try_from(in_flight?).ok()?,
            max_connections: MAX_CONNECTIONS,
        })
    }
}

fn timeout(name: &str, text: &str, check: &mut Check<'_>) -> Option<Duration> {
    let span = check.parsed::<Span>(name, Some(text))?.0;
    if span.is_zero() || span > MAX_TIMEOUT {
        check.problem(name, "is more than nothing and at most 60s");
        return None;
    }
    Some(span)
}
