//! What is read of others, and what must be true of it whatever they send. No target may panic.

mod messages;
mod registries;
mod streams;
mod texts;

/// What takes an input; it panics where something is not as it must be.
pub type Target = fn(&[u8]);

/// Every target by its name, which is also the name of its corpus.
pub const ALL: [(&str, Target); 15] = [
    ("manifest", messages::manifest),
    ("rule", messages::rule),
    ("message", messages::message),
    ("webhook", messages::webhook),
    ("oidc", messages::oidc),
    ("document", registries::document),
    ("headers", registries::headers),
    ("token", registries::token),
    ("hosts", registries::hosts),
    ("docker_config", registries::docker_config),
    ("provider", registries::provider),
    ("settings", texts::settings),
    ("text", texts::text),
    ("inflate", streams::inflate),
    ("untar", streams::untar),
];

/// The first byte chooses among `count` things; the rest is for what was chosen.
fn choose(data: &[u8], count: usize) -> Option<(usize, &[u8])> {
    let (first, rest) = data.split_first()?;
    Some((usize::from(*first) % count, rest))
}

/// Lines up to the first empty one as `name: value`, and what follows it.
fn headers(data: &[u8]) -> (axum::http::HeaderMap, &[u8]) {
    let (head, body) = match data.windows(2).position(|two| two == b"\n\n") {
        Some(end) => (&data[..end], &data[end + 2..]),
        None => (data, &[][..]),
    };
    let mut headers = axum::http::HeaderMap::new();
    for line in head.split(|byte| *byte == b'\n').take(32) {
        let Some(colon) = line.iter().position(|byte| *byte == b':') else {
            continue;
        };
        let name = axum::http::HeaderName::from_bytes(&line[..colon]);
        let value = axum::http::HeaderValue::from_bytes(line[colon + 1..].trim_ascii());
        if let (Ok(name), Ok(value)) = (name, value) {
            headers.append(name, value);
        }
    }
    (headers, body)
}
