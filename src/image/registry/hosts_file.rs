//! The text of a `hosts.toml`, and all that is wrong with it.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};
use toml::{Table, Value};

const API_ROOT: &str = "/v2";

/// An endpoint as the file says it, before what it leaves open is filled in.
#[derive(Default)]
pub(super) struct Entry {
    /// Scheme and authority and path; `None` for a root table without `server`.
    pub(super) address: Option<(bool, String, String)>,
    pub(super) capabilities: Option<(bool, bool)>,
    pub(super) ca: Option<Vec<PathBuf>>,
    pub(super) client: Option<Vec<(PathBuf, Option<PathBuf>)>>,
    pub(super) skip_verify: Option<bool>,
    pub(super) headers: HeaderMap,
    pub(super) dial_timeout: Option<Duration>,
    pub(super) in_host_table: bool,
}

/// Reads the endpoints of a file in `directory`, in their order, the one of the root table last.
pub(super) fn parse(directory: &Path, text: &str) -> Result<Vec<Entry>, Vec<String>> {
    let root: Table = text
        .parse()
        .map_err(|error: toml::de::Error| vec![unreadable(text, &error)])?;
    let mut reader = Reader {
        directory,
        problems: Vec::new(),
    };
    let mut entries = Vec::new();
    match root.get("host") {
        None => {}
        Some(Value::Table(hosts)) => {
            for (server, settings) in hosts {
                let at = format!("host.{:?}", without_login(server));
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
        let names = match settings.get("capabilities")? {
            list @ Value::Array(_) => self.texts(&key, list),
            other => {
                let problem = format!("{} is not a list of strings", kind(other));
                self.problem(&key, problem);
                return None;
            }
        };
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
        let text = self
            .text(at, settings, "dial_timeout")
            .filter(|text| !text.is_empty())?;
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

/// What is wrong with the text, and in which line; not the line itself, which may be a header with a secret.
fn unreadable(text: &str, error: &toml::de::Error) -> String {
    let before = error.span().and_then(|span| text.get(..span.start));
    match before {
        Some(before) => {
            let line = before.matches('\n').count() + 1;
            format!("not TOML, line {line}: {}", error.message())
        }
        None => format!("not TOML: {}", error.message()),
    }
}

/// An address for messages: what stands before an `@` may be a password.
fn without_login(server: &str) -> &str {
    server.rsplit('@').next().unwrap_or_default()
}

/// Splits `[scheme://]host[:port][/path]`; without a scheme it is TLS. The path is made as short as it can be, as by Go's
/// `path.Clean`.
fn address(server: &str, override_path: bool) -> Result<(bool, String, String), String> {
    let (scheme, rest) = server.split_once("://").unwrap_or(("https", server));
    let plain = match scheme.to_ascii_lowercase().as_str() {
        "https" => false,
        "http" => true,
        _ => {
            let shown = without_login(server);
            return Err(format!("{shown:?}: {scheme} is neither http nor https"));
        }
    };
    let url = Url::parse(&format!("https://{rest}"))
        .map_err(|error| format!("{:?}: {error}", without_login(server)))?;
    // Taken from the text: the parsed form drops a default port, and with it the difference between
    // `http://host`, which may turn out to be TLS, and `http://host:80`, which may not.
    let authority = rest
        .split(['/', '?', '#'])
        .next()
        .and_then(|authority| authority.rsplit('@').next())
        .unwrap_or_default()
        .to_owned();
    if authority.is_empty() {
        return Err(format!("{:?} names no host", without_login(server)));
    }
    let segments = url.path().split('/').filter(|segment| !segment.is_empty());
    let mut path: String = segments.flat_map(|segment| ["/", segment]).collect();
    if !override_path && !path.ends_with(API_ROOT) {
        path.push_str(API_ROOT);
    }
    Ok((plain, authority, path))
}

/// A duration as Go writes it: numbers with a unit each, `1m30s`, `1.5s`, `500ms`.
fn go_duration(text: &str) -> Option<Duration> {
    if text == "0" {
        return Some(Duration::ZERO);
    }
    let mut rest = text.strip_prefix('+').unwrap_or(text);
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
    (!text.trim_start_matches('+').is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn go_durations_are_read() {
        for (text, millis) in [
            ("1.5s", 1500),
            ("1h2m3s4ms", 3_723_004),
            ("500us", 0),
            ("0", 0),
            ("+.5s", 500),
            ("1.s", 1000),
        ] {
            assert_eq!(go_duration(text).unwrap().as_millis(), millis, "{text}");
        }
        for bad in ["", "+", "++1s", "5", "s", "1d", "-1s", "1..2s"] {
            assert!(go_duration(bad).is_none(), "{bad:?} was accepted");
        }
    }
}
