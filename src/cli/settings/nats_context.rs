//! Contexts of the `nats` command line: where people who use NATS have said already how to reach it.
//!
//! Files and names: github.com/nats-io/jsm.go, `natscontext/context.go`: `context.txt` names the selected
//! one, `context/<name>.json` holds each.

use std::path::{Path, PathBuf};

use serde::Deserialize;

/// A context as far as we use it.
#[derive(Clone, PartialEq, Eq, Default, Deserialize)]
#[serde(default)]
pub(super) struct NatsContext {
    pub(super) url: String,
    pub(super) token: String,
    pub(super) user: String,
    pub(super) password: String,
    pub(super) creds: String,
    pub(super) nkey: String,
    pub(super) cert: String,
    pub(super) key: String,
    pub(super) ca: String,
    pub(super) inbox_prefix: String,
    pub(super) tls_first: bool,
    nsc: String,
    user_jwt: String,
    socks_proxy: String,
    jetstream_domain: String,
    jetstream_api_prefix: String,
}

/// Why a context cannot be used.
#[derive(Debug, thiserror::Error)]
pub(super) enum ContextError {
    #[error("there is no `nats` context {0:?} in {dir}", dir = .1.display())]
    Missing(String, PathBuf),
    #[error("the `nats` context in {path} cannot be read: {reason}", path = .0.display(), reason = .1)]
    Unreadable(PathBuf, String),
    #[error("the `nats` context in {path} uses {field:?}, which prewarm does not know; say it with flags instead", path = .0.display(), field = .1)]
    Unknown(PathBuf, &'static str),
}

/// Where the `nats` command line keeps its settings, if there is a home.
pub(super) fn directory() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty());
    set("XDG_CONFIG_HOME")
        .map(PathBuf::from)
        .or_else(|| set("HOME").map(|home| PathBuf::from(home).join(".config")))
        .map(|config| config.join("nats"))
}

/// The context called `name`.
pub(super) fn load(directory: &Path, name: &str) -> Result<NatsContext, ContextError> {
    let contexts = directory.join("context");
    let path = contexts.join(format!("{name}.json"));
    let missing = || ContextError::Missing(name.to_owned(), contexts.clone());
    if name.contains(['/', '\\']) || name.contains("..") {
        return Err(missing());
    }
    let text = match std::fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Err(missing()),
        Err(error) => return Err(ContextError::Unreadable(path, error.to_string())),
    };
    // The reader's own words may repeat a value, such as a password.
    let context: NatsContext = serde_json::from_str(&text).map_err(|error| {
        let place = format!("line {}, column {}", error.line(), error.column());
        ContextError::Unreadable(path.clone(), format!("it is no context at {place}"))
    })?;
    match context.field_we_do_not_know() {
        Some(field) => Err(ContextError::Unknown(path, field)),
        None => Ok(context),
    }
}

/// The context that `nats context select` chose, if any.
pub(super) fn selected(directory: &Path) -> Result<Option<NatsContext>, ContextError> {
    match std::fs::read_to_string(directory.join("context.txt")) {
        Ok(name) if !name.trim().is_empty() => load(directory, name.trim()).map(Some),
        _ => Ok(None),
    }
}

impl NatsContext {
    /// A field that changes how the broker is reached and that we would otherwise silently ignore.
    fn field_we_do_not_know(&self) -> Option<&'static str> {
        [
            (&self.nsc, "nsc"),
            (&self.user_jwt, "user_jwt"),
            (&self.socks_proxy, "socks_proxy"),
            (&self.jetstream_domain, "jetstream_domain"),
            (&self.jetstream_api_prefix, "jetstream_api_prefix"),
        ]
        .into_iter()
        .find_map(|(value, field)| (!value.is_empty()).then_some(field))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn directory_with(name: &str, text: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join("context")).unwrap();
        std::fs::write(
            dir.path().join("context").join(format!("{name}.json")),
            text,
        )
        .unwrap();
        dir
    }

    #[test]
    fn the_selected_context_is_found() {
        let dir = directory_with(
            "prod",
            r#"{"description":"x","url":"nats://a","creds":"/c","color_scheme":""}"#,
        );
        assert!(selected(dir.path()).unwrap().is_none());
        std::fs::write(dir.path().join("context.txt"), "prod\n").unwrap();
        let context = selected(dir.path()).unwrap().unwrap();
        assert_eq!(
            (context.url.as_str(), context.creds.as_str()),
            ("nats://a", "/c")
        );
    }

    #[test]
    fn a_context_that_is_not_there_is_named_with_its_place() {
        let dir = directory_with("prod", "{}");
        for name in ["test", "../prod", "a/b"] {
            let error = load(dir.path(), name).err().unwrap().to_string();
            assert!(
                error.contains(name) && error.contains("/context"),
                "{error}"
            );
        }
    }

    #[test]
    fn what_would_change_the_connection_is_not_ignored() {
        let dir = directory_with("prod", r#"{"url":"nats://a","jetstream_domain":"hub"}"#);
        let error = load(dir.path(), "prod").err().unwrap().to_string();
        assert!(error.contains("jetstream_domain"), "{error}");
    }
}
