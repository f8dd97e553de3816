//! `certs.d/<host>/hosts.toml`: where the images of a registry are to be had, read as containerd does.
//!
//! The format is documented in containerd's `docs/hosts.md`; what it leaves open is taken from
//! `core/remotes/docker/config/hosts.go` of containerd 2.3. Files are read at every pull, so that a
//! change needs no restart. Keys that only matter for pushing are read and ignored.

use std::fmt;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

/// Largest `hosts.toml` that is read, in bytes.
const MAX_HOSTS_FILE_BYTES: u64 = 1 << 20;

const DOCKER_HUB: &str = "docker.io";
const DOCKER_HUB_ENDPOINT: &str = "registry-1.docker.io";
const API_ROOT: &str = "/v2";

/// How an endpoint is spoken to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Transport {
    /// TLS.
    Https,
    /// Plain HTTP.
    Http,
    /// TLS, and plain HTTP if the other side does not speak it: plain HTTP was asked for, yet TLS
    /// settings are there, or the registry is on this machine.
    HttpsThenHttp,
}

/// TLS settings of an endpoint beyond the system's.
#[derive(Clone, PartialEq, Eq, Hash, Debug, Default)]
pub struct TlsSettings {
    /// PEM files of authorities to trust beside the system's.
    pub ca: Vec<PathBuf>,
    /// PEM files of client certificates, with their keys where these are in files of their own.
    pub client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Whether any certificate is accepted.
    pub skip_verify: bool,
}

/// One endpoint that may have the images of a registry.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Host {
    /// How to speak to it.
    pub transport: Transport,
    /// `host` or `host:port`.
    pub authority: String,
    /// The API's root, `/v2` as a rule; no slash at the end.
    pub path: String,
    /// Whether tags may be resolved here.
    pub can_resolve: bool,
    /// Whether manifests and blobs may be fetched here.
    pub can_pull: bool,
    /// TLS settings.
    pub tls: TlsSettings,
    /// Headers for every request to this endpoint.
    pub headers: HeaderMap,
    /// Longest time to connect.
    pub dial_timeout: Option<Duration>,
    /// Whether this is another address than the one in the image's name: it is told the name
    /// (`?ns=`), and gets none of the credentials for it.
    pub is_proxy: bool,
    /// Whether it comes before the registry, and not in its place.
    pub is_mirror: bool,
}

/// A `hosts.toml` that cannot be used, with all that is wrong with it.
#[derive(Debug, thiserror::Error)]
#[error("{}: {}", .path.display(), .problems.join("; "))]
pub struct HostsError {
    /// The file.
    pub path: PathBuf,
    /// What is wrong, each beginning with the key.
    pub problems: Vec<String>,
}

/// The endpoints for the images of `registry`, in the order they are to be tried, the registry
/// itself last; and what is wrong with the registry's `hosts.toml`, which containerd answers by
/// going on as if it were not there.
#[must_use]
pub fn load(roots: &[PathBuf], registry: &str) -> (Vec<Host>, Option<HostsError>) {
    let Some(directory) = find_directory(roots, registry) else {
        return (vec![finish(Entry::default(), registry)], None);
    };
    let path = directory.join("hosts.toml");
    let parsed = match read_bounded(&path) {
        Ok(Some(text)) if !text.is_empty() => parse(&directory, &text),
        Ok(_) => Ok(vec![certificate_files(&directory)]),
        Err(problem) => Err(vec![problem]),
    };
    let (entries, error) = match parsed {
        Ok(entries) => (entries, None),
        Err(problems) => (
            vec![certificate_files(&directory)],
            Some(HostsError { path, problems }),
        ),
    };
    let hosts = entries
        .into_iter()
        .map(|entry| finish(entry, registry))
        .collect();
    (hosts, error)
}

/// `host_port_`, `host:port`, `_default`, in every root in turn (containerd's `config_unix.go`).
fn find_directory(roots: &[PathBuf], registry: &str) -> Option<PathBuf> {
    let encoded = registry
        .rsplit_once(':')
        .map(|(host, port)| format!("{host}_{port}_"));
    roots
        .iter()
        .flat_map(|root| {
            encoded
                .as_deref()
                .into_iter()
                .chain([registry, "_default"])
                .map(|name| root.join(name))
        })
        .find(|path| path.is_dir())
}

fn read_bounded(path: &Path) -> Result<Option<String>, String> {
    match std::fs::metadata(path) {
        Ok(metadata) if metadata.len() > MAX_HOSTS_FILE_BYTES => {
            return Err(format!("larger than {MAX_HOSTS_FILE_BYTES} bytes"));
        }
        Ok(_) => {}
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(error.to_string()),
    }
    std::fs::read_to_string(path)
        .map(Some)
        .map_err(|error| error.to_string())
}

/// An endpoint as the file says it, before what it leaves open is filled in.
#[derive(Default)]
struct Entry {
    /// Scheme and authority and path; `None` for a root table without `server`.
    address: Option<(bool, String, String)>,
    capabilities: Option<(bool, bool)>,
    ca: Option<Vec<PathBuf>>,
    client: Option<Vec<(PathBuf, Option<PathBuf>)>>,
    skip_verify: Option<bool>,
    headers: HeaderMap,
    dial_timeout: Option<Duration>,
    in_host_table: bool,
}

fn parse(directory: &Path, text: &str) -> Result<Vec<Entry>, Vec<String>> {
    let root: Table = text
        .parse()
        .map_err(|error: toml::de::Error| vec![error.to_string().trim_end().replace('\n', " ")])?;
    let mut reader = Reader {
        directory,
        problems: Vec::new(),
    };
    let mut entries = Vec::new();
    match root.get("host") {
        None => {}
        Some(Value::Table(hosts)) => {
            for (server, settings) in hosts {
                let at = format!("host.{server:?}");
                match settings {
                    Value::Table(settings) => {
                        entries.push(reader.entry(&at, Some(server), settings, true));
                    }
                    other => reader.problem(&at, format_args!("{} is not a table", kind(other))),
                }
            }
        }
        Some(other) => reader.problem("host", format_args!("{} is not a table", kind(other))),
    }
    let server = reader.text("", &root, "server");
    entries.push(reader.entry(
        "",
        server.as_deref().filter(|server| !server.is_empty()),
        &root,
        false,
    ));
    if reader.problems.is_empty() {
        Ok(entries)
    } else {
        Err(reader.problems)
    }
}

struct Reader<'a> {
    directory: &'a Path,
    problems: Vec<String>,
}

impl Reader<'_> {
    fn problem(&mut self, key: &str, problem: impl fmt::Display) {
        self.problems.push(format!("{key}: {problem}"));
    }

    fn entry(
        &mut self,
        at: &str,
        server: Option<&str>,
        settings: &Table,
        in_host_table: bool,
    ) -> Entry {
        let override_path = self.flag(at, settings, "override_path").unwrap_or(false);
        Entry {
            address: server.and_then(|server| {
                address(server, override_path)
                    .map_err(|problem| {
                        let key = if at.is_empty() { "server" } else { at };
                        self.problem(key, problem);
                    })
                    .ok()
            }),
            capabilities: self.capabilities(at, settings),
            ca: self.files(at, settings, "ca"),
            client: self.client_pairs(at, settings),
            skip_verify: self.flag(at, settings, "skip_verify"),
            headers: self.headers(at, settings),
            dial_timeout: self.dial_timeout(at, settings),
            in_host_table,
        }
    }

    fn text(&mut self, at: &str, settings: &Table, name: &str) -> Option<String> {
        match settings.get(name)? {
            Value::String(text) => Some(text.clone()),
            other => {
                self.problem(
                    &key(at, name),
                    format_args!("{} is not a string", kind(other)),
                );
                None
            }
        }
    }

    fn flag(&mut self, at: &str, settings: &Table, name: &str) -> Option<bool> {
        match settings.get(name)? {
            Value::Boolean(flag) => Some(*flag),
            other => {
                self.problem(
                    &key(at, name),
                    format_args!("{} is neither true nor false", kind(other)),
                );
                None
            }
        }
    }

    /// A string, or a list of strings.
    fn texts(&mut self, key: &str, value: &Value) -> Vec<String> {
        let values = match value {
            Value::String(text) => return vec![text.clone()],
            Value::Array(values) => values,
            other => {
                let problem = format!("{} is neither a string nor a list of strings", kind(other));
                self.problem(key, problem);
                return Vec::new();
            }
        };
        let mut texts = Vec::with_capacity(values.len());
        for value in values {
            match value {
                Value::String(text) => texts.push(text.clone()),
                other => self.problem(key, format_args!("{} is not a string", kind(other))),
            }
        }
        texts
    }

    fn capabilities(&mut self, at: &str, settings: &Table) -> Option<(bool, bool)> {
        let key = key(at, "capabilities");
        let names = self.texts(&key, settings.get("capabilities")?);
        if names.is_empty() {
            return None;
        }
        let (mut resolve, mut pull) = (false, false);
        for name in names {
            match name.to_ascii_lowercase().as_str() {
                "resolve" => resolve = true,
                "pull" => pull = true,
                "push" | "referrers" => {}
                _ => self.problem(
                    &key,
                    format_args!("{name:?} is none of pull, resolve, push, referrers"),
                ),
            }
        }
        Some((resolve, pull))
    }

    fn files(&mut self, at: &str, settings: &Table, name: &str) -> Option<Vec<PathBuf>> {
        let paths = self.texts(&key(at, name), settings.get(name)?);
        Some(paths.iter().map(|path| self.directory.join(path)).collect())
    }

    fn client_pairs(
        &mut self,
        at: &str,
        settings: &Table,
    ) -> Option<Vec<(PathBuf, Option<PathBuf>)>> {
        let key = key(at, "client");
        let value = settings.get("client")?;
        let entries = match value {
            Value::Array(entries) => entries.as_slice(),
            single => std::slice::from_ref(single),
        };
        let mut pairs = Vec::with_capacity(entries.len());
        for entry in entries {
            let files = self.texts(&key, entry);
            match (entry, files.as_slice()) {
                (Value::String(_), [both]) => pairs.push((self.directory.join(both), None)),
                (Value::Array(_), [certificate, private]) => pairs.push((
                    self.directory.join(certificate),
                    Some(self.directory.join(private)),
                )),
                _ => self.problem(&key, "neither a file nor a pair of certificate and key"),
            }
        }
        Some(pairs)
    }

    fn headers(&mut self, at: &str, settings: &Table) -> HeaderMap {
        let mut headers = HeaderMap::new();
        let table = match settings.get("header") {
            None => return headers,
            Some(Value::Table(table)) => table,
            Some(other) => {
                self.problem(
                    &key(at, "header"),
                    format_args!("{} is not a table", kind(other)),
                );
                return headers;
            }
        };
        for (name, value) in table {
            let at = key(&key(at, "header"), name);
            let Ok(header) = HeaderName::try_from(name.as_str()) else {
                self.problem(&at, "not a header name");
                continue;
            };
            for text in self.texts(&at, value) {
                // The value may be a credential: it stays out of the message and out of logs.
                match HeaderValue::try_from(text) {
                    Ok(mut value) => {
                        value.set_sensitive(true);
                        headers.append(header.clone(), value);
                    }
                    Err(_) => self.problem(&at, "the value has characters no header may have"),
                }
            }
        }
        headers
    }

    fn dial_timeout(&mut self, at: &str, settings: &Table) -> Option<Duration> {
        let text = self.text(at, settings, "dial_timeout")?;
        let timeout = go_duration(&text);
        if timeout.is_none() {
            self.problem(
                &key(at, "dial_timeout"),
                format_args!("{text:?} is not a duration such as \"3s\" or \"1m30s\""),
            );
        }
        timeout.filter(|timeout| !timeout.is_zero())
    }
}

fn key(at: &str, name: &str) -> String {
    if at.is_empty() {
        name.to_owned()
    } else {
        format!("{at}.{name}")
    }
}

fn kind(value: &Value) -> &'static str {
    value.type_str()
}

/// Splits `[scheme://]host[:port][/path]`; without a scheme it is TLS.
fn address(server: &str, override_path: bool) -> Result<(bool, String, String), String> {
    let with_scheme = if server.starts_with("http://") || server.starts_with("https://") {
        server.to_owned()
    } else {
        format!("https://{server}")
    };
    let url = Url::parse(&with_scheme).map_err(|error| format!("{server:?}: {error}"))?;
    // Taken from the text: the parsed form drops a default port, and with it the difference between
    // `http://host`, which may turn out to be TLS, and `http://host:80`, which may not.
    let authority = with_scheme
        .split("://")
        .nth(1)
        .and_then(|rest| rest.split(['/', '?', '#']).next())
        .and_then(|authority| authority.rsplit('@').next())
        .unwrap_or_default()
        .to_owned();
    if authority.is_empty() {
        return Err(format!("{server:?} names no host"));
    }
    let mut path = url.path().trim_end_matches('/').to_owned();
    if !override_path && !path.ends_with(API_ROOT) {
        path.push_str(API_ROOT);
    }
    Ok((url.scheme() == "http", authority, path))
}

/// A duration as Go writes it: numbers with a unit each, `1m30s`, `1.5s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.find(|c: char| !c.is_ascii_digit() && c != '.')?;
        let number: f64 = rest[..digits].parse().ok()?;
        let unit_len = rest[digits..]
            .find(|c: char| c.is_ascii_digit() || c == '.')
            .unwrap_or(rest.len() - digits);
        let unit = match &rest[digits..digits + unit_len] {
            "ns" => 1e-9,
            "us" | "µs" | "μs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[digits + unit_len..];
    }
    (!text.is_empty()).then_some(total)
}

/// The layout of `/etc/docker/certs.d`: `*.crt` are authorities, `*.cert` client certificates with
/// their key in the `*.key` of the same name.
fn certificate_files(directory: &Path) -> Entry {
    let mut files: Vec<PathBuf> = std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .filter_map(|file| Some(file.ok()?.path()))
        .filter(|path| path.is_file())
        .collect();
    files.sort();
    let with_extension = |wanted: &'static str| {
        files.iter().filter(move |path| {
            path.extension()
                .is_some_and(|extension| extension == wanted)
        })
    };
    let ca: Vec<PathBuf> = with_extension("crt").cloned().collect();
    let client: Vec<_> = with_extension("cert")
        .map(|certificate| {
            let private = certificate.with_extension("key");
            let private = private.is_file().then_some(private);
            (certificate.clone(), private)
        })
        .collect();
    Entry {
        ca: (!ca.is_empty()).then_some(ca),
        client: (!client.is_empty()).then_some(client),
        ..Entry::default()
    }
}

/// Fills in what an entry leaves open; one without an address stands for the registry itself.
fn finish(mut entry: Entry, registry: &str) -> Host {
    let mut capabilities = entry.capabilities.unwrap_or((true, true));
    let (plain, authority, path) = entry.address.take().unwrap_or_else(|| {
        // containerd drops the capabilities of a root table without a server.
        capabilities = (true, true);
        let mut plain = false;
        let mut authority = registry.to_owned();
        if registry == DOCKER_HUB {
            DOCKER_HUB_ENDPOINT.clone_into(&mut authority);
        } else if is_loopback(registry) {
            plain = !matches!(port(registry), None | Some("443"));
            if port(registry) != Some("80") {
                entry.skip_verify = Some(true);
            }
        }
        (plain, authority, API_ROOT.to_owned())
    });
    let tls_is_set = entry.ca.is_some() || entry.client.is_some() || entry.skip_verify.is_some();
    let transport = match plain {
        false => Transport::Https,
        true if tls_is_set && port(&authority) != Some("80") => Transport::HttpsThenHttp,
        true => Transport::Http,
    };
    let is_proxy =
        authority != registry && !(registry == DOCKER_HUB && authority == DOCKER_HUB_ENDPOINT);
    Host {
        transport,
        authority,
        path,
        can_resolve: capabilities.0,
        can_pull: capabilities.1,
        tls: TlsSettings {
            ca: entry.ca.unwrap_or_default(),
            client: entry.client.unwrap_or_default(),
            skip_verify: entry.skip_verify.unwrap_or(false),
        },
        headers: entry.headers,
        dial_timeout: entry.dial_timeout,
        is_proxy,
        is_mirror: is_proxy && entry.in_host_table,
    }
}

fn port(authority: &str) -> Option<&str> {
    let after_address = authority
        .rsplit_once(']')
        .map_or(authority, |(_, rest)| rest);
    after_address.rsplit_once(':').map(|(_, port)| port)
}

/// Whether this is a name or address of this machine, for which nobody has certificates.
pub(super) fn is_loopback(authority: &str) -> bool {
    let host = match port(authority) {
        Some(port) => &authority[..authority.len() - port.len() - 1],
        None => authority,
    };
    host == "localhost"
        || host
            .trim_matches(['[', ']'])
            .parse::<std::net::IpAddr>()
            .is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
