//! Where the broker is: flags, `NATS_URL`, a `nats` context, or this machine.

use std::path::PathBuf;

use async_nats::ServerAddr;

use super::nats_context::{self, NatsContext};
use super::{Check, given};
use crate::bus::connect::{ConnectSettings, Login, TlsSettings};
use crate::wire::subject::SubjectPrefix;

/// Where a broker is when nobody says.
pub const DEFAULT_URL: &str = "nats://127.0.0.1:4222";
/// The variable that NATS programs share.
const SHARED_VARIABLE: &str = "NATS_URL";

/// How to reach the broker.
#[derive(clap::Args, Clone, Default)]
#[command(next_help_heading = "Broker")]
pub struct BrokerArgs {
    /// Servers, separated by commas [default: NATS_URL, else the selected `nats` context, else nats://127.0.0.1:4222]
    #[arg(
        long,
        global = true,
        env = "PREWARM_NATS_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    pub nats_url: Option<String>,
    /// Credentials file
    #[arg(long, global = true, env = "PREWARM_NATS_CREDS", value_name = "FILE")]
    pub nats_creds: Option<String>,
    /// File with an nkey seed
    #[arg(long, global = true, env = "PREWARM_NATS_NKEY", value_name = "FILE")]
    pub nats_nkey: Option<String>,
    /// CA certificates to trust
    #[arg(long, global = true, env = "PREWARM_NATS_CA", value_name = "FILE")]
    pub nats_ca: Option<String>,
    /// Client certificate
    #[arg(long, global = true, env = "PREWARM_NATS_CERT", value_name = "FILE")]
    pub nats_cert: Option<String>,
    /// Key of the client certificate
    #[arg(long, global = true, env = "PREWARM_NATS_KEY", value_name = "FILE")]
    pub nats_key: Option<String>,
    /// Context of the `nats` command line to use
    #[arg(long, global = true, env = "PREWARM_NATS_CONTEXT", value_name = "NAME")]
    pub nats_context: Option<String>,
    /// First tokens of every subject: one per fleet
    #[arg(
        long,
        global = true,
        env = "PREWARM_SUBJECT_PREFIX",
        value_name = "PREFIX",
        default_value = "prewarm"
    )]
    pub subject_prefix: String,
}

/// What the environment says beside our own variables.
#[derive(Clone, Debug, Default)]
pub struct Surroundings {
    /// `NATS_URL`.
    pub nats_url: Option<String>,
    /// Where `nats` keeps its contexts.
    pub contexts: Option<PathBuf>,
}

impl Surroundings {
    /// Looks around.
    #[must_use]
    pub fn look() -> Self {
        Self {
            nats_url: std::env::var(SHARED_VARIABLE).ok(),
            contexts: nats_context::directory(),
        }
    }
}

impl BrokerArgs {
    /// Whether somebody said where a broker is; `up` starts one otherwise. A selected `nats` context is
    /// not meant for that: it usually is a production broker.
    #[must_use]
    pub fn names_a_broker(&self, around: &Surroundings) -> bool {
        [&self.nats_url, &self.nats_context, &around.nats_url]
            .into_iter()
            .any(|text| given(text.as_deref()).is_some())
    }

    /// Checks the settings.
    pub fn check(&self, around: &Surroundings, check: &mut Check<'_>) -> Option<ConnectSettings> {
        let context = self.context(around, check);
        let (name, urls) = self.urls(around, &context);
        let urls = urls.to_owned();
        let servers = servers(name, &urls, check);
        let prefix: Option<SubjectPrefix> =
            check.parsed("subject-prefix", Some(&self.subject_prefix));
        let login = self.login(&servers, &context, check);
        let pick = |flag: &Option<String>, from: &str| {
            given(flag.as_deref())
                .or_else(|| given(Some(from)))
                .map(PathBuf::from)
        };
        let client = match (
            pick(&self.nats_cert, &context.cert),
            pick(&self.nats_key, &context.key),
        ) {
            (Some(certificate), Some(key)) => Some((certificate, key)),
            (None, None) => None,
            (Some(_), None) => {
                check.problem(
                    "nats-cert",
                    "a client certificate needs its key: set nats-key too",
                );
                None
            }
            (None, Some(_)) => {
                check.problem("nats-key", "a key needs its certificate: set nats-cert too");
                None
            }
        };
        Some(ConnectSettings {
            servers: servers.into_iter().map(without_login).collect(),
            login,
            tls: TlsSettings {
                ca: pick(&self.nats_ca, &context.ca),
                client,
                first: context.tls_first,
            },
            inbox_prefix: given(Some(&context.inbox_prefix)).map(str::to_owned),
            prefix: prefix?,
        })
    }

    /// The context that was asked for, or the selected one if nothing else says where the broker is:
    /// one broker's credentials are never shown to another.
    fn context(&self, around: &Surroundings, check: &mut Check<'_>) -> NatsContext {
        let Some(directory) = &around.contexts else {
            if given(self.nats_context.as_deref()).is_some() {
                check.problem(
                    "nats-context",
                    "HOME is not set, so there are no `nats` contexts",
                );
            }
            return NatsContext::default();
        };
        let context = match given(self.nats_context.as_deref()) {
            Some(name) => nats_context::load(directory, name).map(Some),
            None if self.names_a_broker(around) => Ok(None),
            None => nats_context::selected(directory),
        };
        context
            .unwrap_or_else(|error| {
                check.problem("nats-context", error);
                None
            })
            .unwrap_or_default()
    }

    fn urls<'a>(
        &'a self,
        around: &'a Surroundings,
        context: &'a NatsContext,
    ) -> (&'static str, &'a str) {
        if let Some(urls) = given(self.nats_url.as_deref()) {
            return ("nats-url", urls);
        }
        if let Some(urls) = given(Some(&context.url)) {
            return ("nats-context", urls);
        }
        (
            "nats-url",
            given(around.nats_url.as_deref()).unwrap_or(DEFAULT_URL),
        )
    }

    fn login(&self, servers: &[ServerAddr], context: &NatsContext, check: &mut Check<'_>) -> Login {
        let flags = (
            given(self.nats_creds.as_deref()),
            given(self.nats_nkey.as_deref()),
        );
        match flags {
            (Some(_), Some(_)) => {
                check.problem(
                    "nats-nkey",
                    "is set together with nats-creds; keep one of them",
                );
                Login::Anonymous
            }
            (Some(creds), None) => Login::CredentialsFile(creds.into()),
            (None, Some(nkey)) => Login::NkeySeedFile(nkey.into()),
            (None, None) => login_of_url(servers).unwrap_or_else(|| login_of_context(context)),
        }
    }
}

fn servers(name: &str, urls: &str, check: &mut Check<'_>) -> Vec<ServerAddr> {
    let mut servers = Vec::new();
    for (index, url) in urls
        .split(',')
        .map(str::trim)
        .filter(|url| !url.is_empty())
        .enumerate()
    {
        match url.parse::<ServerAddr>() {
            Ok(server) if !server.host().is_empty() => servers.push(server),
            // The text may hold a password, so the message has only its place in the list.
            Ok(_) | Err(_) => check.problem(
                name,
                format!("server {} is not a NATS address such as nats://broker.example.com:4222 or tls://…", index + 1),
            ),
        }
    }
    if servers.is_empty() && urls.trim_matches([',', ' ']).is_empty() {
        check.problem(name, "names no server");
    }
    servers
}

/// The server's address alone: the client library writes addresses into its log as they are.
fn without_login(server: ServerAddr) -> ServerAddr {
    let mut url = server.clone().into_inner();
    // Refused only for addresses that cannot have a login.
    let _ = url.set_username("").and_then(|()| url.set_password(None));
    ServerAddr::from_url(url).unwrap_or(server)
}

/// `nats://user:password@host` or `nats://token@host`.
fn login_of_url(servers: &[ServerAddr]) -> Option<Login> {
    let server = servers.iter().find(|server| server.has_user_pass())?;
    let user = percent_decoded(server.username()?);
    Some(match server.password() {
        Some(password) => Login::Password(user, percent_decoded(password)),
        None => Login::Token(user),
    })
}

fn login_of_context(context: &NatsContext) -> Login {
    if !context.creds.is_empty() {
        Login::CredentialsFile(PathBuf::from(&context.creds))
    } else if !context.nkey.is_empty() {
        Login::NkeySeedFile(PathBuf::from(&context.nkey))
    } else if !context.token.is_empty() {
        Login::Token(context.token.clone())
    } else if !context.user.is_empty() {
        Login::Password(context.user.clone(), context.password.clone())
    } else {
        Login::Anonymous
    }
}

/// `%2F` and the like (RFC 3986, section 2.1); anything else stays as it is.
fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        let hex = |byte: u8| {
            char::from(byte)
                .to_digit(16)
                .and_then(|digit| u8::try_from(digit).ok())
        };
        match (first, tail) {
            (b'%', [high, low, after @ ..]) if hex(*high).is_some() && hex(*low).is_some() => {
                bytes.push(hex(*high).unwrap_or_default() << 4 | hex(*low).unwrap_or_default());
                rest = after;
            }
            _ => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cli::settings::Sources;

    fn args() -> BrokerArgs {
        BrokerArgs {
            subject_prefix: "prewarm".to_owned(),
            ..BrokerArgs::default()
        }
    }

    fn checked(args: &BrokerArgs, around: &Surroundings) -> Result<ConnectSettings, Vec<String>> {
        let sources = Sources::default();
        let mut check = Check::new(&sources);
        let settings = args.check(around, &mut check);
        check.done(settings).map_err(|bad| bad.0)
    }

    fn with_context(text: &str) -> (tempfile::TempDir, Surroundings) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("context")).unwrap();
        std::fs::write(dir.path().join("context/prod.json"), text).unwrap();
        std::fs::write(dir.path().join("context.txt"), "prod").unwrap();
        let contexts = Some(dir.path().to_owned());
        (
            dir,
            Surroundings {
                nats_url: None,
                contexts,
            },
        )
    }

    #[test]
    fn a_flag_outweighs_nats_url_which_outweighs_the_selected_context() {
        let (_dir, mut around) = with_context(r#"{"url": "nats://context:1"}"#);
        let mut args = args();
        assert_eq!(
            checked(&args, &around).unwrap().places(),
            "nats://context:1"
        );
        around.nats_url = Some("nats://shared:2".to_owned());
        assert_eq!(checked(&args, &around).unwrap().places(), "nats://shared:2");
        args.nats_url = Some("a:3, tls://b:4".to_owned());
        assert_eq!(
            checked(&args, &around).unwrap().places(),
            "nats://a:3, tls://b:4"
        );
        let nothing = Surroundings::default();
        assert_eq!(
            checked(&super::tests::args(), &nothing).unwrap().places(),
            DEFAULT_URL
        );
    }

    #[test]
    fn credentials_of_one_broker_are_not_shown_to_another() {
        let (_dir, around) = with_context(r#"{"url": "nats://context:1", "creds": "/prod.creds"}"#);
        let mut args = args();
        let login = checked(&args, &around).unwrap().login;
        assert!(matches!(login, Login::CredentialsFile(path) if path.ends_with("prod.creds")));
        args.nats_url = Some("nats://elsewhere".to_owned());
        assert!(matches!(
            checked(&args, &around).unwrap().login,
            Login::Anonymous
        ));
    }

    #[test]
    fn a_url_may_carry_the_login() {
        let mut args = args();
        args.nats_url = Some("nats://us%2Fer:p%40ss@a".to_owned());
        let login = checked(&args, &Surroundings::default()).unwrap().login;
        assert!(
            matches!(login, Login::Password(user, password) if user == "us/er" && password == "p@ss")
        );
        args.nats_url = Some("nats://secret@a,tls://user:secret@b:1".to_owned());
        let settings = checked(&args, &Surroundings::default()).unwrap();
        assert!(matches!(settings.login, Login::Token(token) if token == "secret"));
        let servers = format!("{:?}", settings.servers);
        assert!(!servers.contains("secret"), "{servers}");
        assert_eq!(settings.servers[1].as_url_str(), "tls://b:1");
    }

    #[test]
    fn every_problem_is_told_and_no_secret_with_it() {
        let mut args = args();
        args.nats_url = Some("http://user:hunter2@a".to_owned());
        args.subject_prefix = "a b".to_owned();
        args.nats_cert = Some("c.pem".to_owned());
        args.nats_creds = Some("x".to_owned());
        args.nats_nkey = Some("y".to_owned());
        let problems = checked(&args, &Surroundings::default())
            .unwrap_err()
            .join("\n");
        for part in [
            "--nats-url: server 1",
            "--subject-prefix: \"a b\"",
            "--nats-cert: ",
            "--nats-nkey: ",
        ] {
            assert!(problems.contains(part), "{part} is missing in {problems}");
        }
        assert!(!problems.contains("hunter2"));
    }
}
