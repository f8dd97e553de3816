//! `certs.d/<host>/hosts.toml`: where the images of a registry are to be had, read as containerd does.
//!
//! The format is documented in containerd's `docs/hosts.md`; what it leaves open is taken from
//! `core/remotes/docker/config/hosts.go` of containerd 2.1 to 2.3. containerd 1.6 and 1.7 read the same, except that they
//! ignore a file without a `host` table and do not know `dial_timeout`. Files are read at every pull, so that a
//! change needs no restart. Keys that only matter for pushing are read and ignored.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::header::HeaderMap;

use super::hosts_file::{Entry, parse};

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
    let has_client = entry.client.as_ref().is_some_and(|pairs| !pairs.is_empty());
    let tls_is_set = entry.ca.is_some() || has_client || entry.skip_verify.is_some();
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
#[path = "hosts_rows_tests.rs"]
mod rows;
#[cfg(test)]
#[path = "hosts_tests.rs"]
mod tests;
