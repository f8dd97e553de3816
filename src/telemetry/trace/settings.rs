//! Where spans go, from the variables that OpenTelemetry names (its specification, "OTLP Exporter Configuration" and
//! "Environment Variable Specification").

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use reqwest::Url;
use reqwest::header::{HeaderMap, HeaderName, HeaderValue};

/// How long a request to the collector may take, unless the environment says.
const TIMEOUT: Duration = Duration::from_secs(10);
/// Where a collector listens for OTLP over HTTP when nobody says.
const DEFAULT_ENDPOINT: &str = "http://localhost:4318";
/// The path of traces below an endpoint that is for everything.
const TRACES_PATH: &str = "v1/traces";

/// Where spans are exported to, and what is said of this process.
#[derive(Clone)]
pub struct TraceSettings {
    pub(super) endpoint: Url,
    /// Beside the content type. They may hold secrets, and are marked so.
    pub(super) headers: HeaderMap,
    pub(super) timeout: Duration,
    /// Authorities to trust beside the system's, in PEM.
    pub(super) certificate: Option<PathBuf>,
    /// What the process is, such as `service.name`.
    pub(super) resource: Vec<(String, String)>,
}

/// Leaves out what may be secret.
impl fmt::Debug for TraceSettings {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("TraceSettings")
            .field("endpoint", &self.place())
            .field("resource", &self.resource)
            .finish_non_exhaustive()
    }
}

/// Why nothing is exported although somebody wanted it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("{variable}: {problem}")]
pub struct TraceSettingsError {
    variable: String,
    problem: String,
}

fn wrong(variable: &str, problem: impl Into<String>) -> TraceSettingsError {
    TraceSettingsError {
        variable: variable.to_owned(),
        problem: problem.into(),
    }
}

impl TraceSettings {
    /// Reads the variables by `look`. `None`: nobody wants traces. `service` is the name of this process unless they
    /// say another.
    ///
    /// # Errors
    /// One of them cannot be used. Texts that may hold a secret are not repeated.
    pub fn read(
        look: impl Fn(&str) -> Option<String>,
        service: &str,
    ) -> Result<Option<Self>, TraceSettingsError> {
        let look = |name: &str| look(name).filter(|value| !value.trim().is_empty());
        // What is said for traces alone weighs more.
        let either = |name: &str| {
            [
                format!("OTEL_EXPORTER_OTLP_TRACES_{name}"),
                format!("OTEL_EXPORTER_OTLP_{name}"),
            ]
            .into_iter()
            .find_map(|variable| Some((look(&variable)?, variable)))
        };
        let disabled =
            look("OTEL_SDK_DISABLED").is_some_and(|value| value.eq_ignore_ascii_case("true"));
        let exporter = look("OTEL_TRACES_EXPORTER");
        let wanted = match exporter.as_deref() {
            Some("none") => false,
            Some("otlp") => true,
            Some(other) => {
                let problem = format!("{other:?} is not known here; use otlp or none");
                return Err(wrong("OTEL_TRACES_EXPORTER", problem));
            }
            None => either("ENDPOINT").is_some(),
        };
        if disabled || !wanted {
            return Ok(None);
        }
        match either("PROTOCOL") {
            Some((protocol, variable))
                if protocol != "http/json" && protocol != "http/protobuf" =>
            {
                let problem = format!(
                    "{protocol:?} is not spoken here; use http/json, and the collector's port for HTTP (4318, as a rule)"
                );
                return Err(wrong(&variable, problem));
            }
            // A receiver of the one takes the other, by the content type.
            Some(_) | None => {}
        }
        Ok(Some(Self {
            endpoint: endpoint(either("ENDPOINT"))?,
            headers: match either("HEADERS") {
                Some((text, variable)) => headers(&text, &variable)?,
                None => HeaderMap::new(),
            },
            timeout: match either("TIMEOUT") {
                Some((text, variable)) => {
                    let millis = text.parse().map_err(|_| {
                        wrong(&variable, format!("{text:?} is no number of milliseconds"))
                    })?;
                    Duration::from_millis(millis)
                }
                None => TIMEOUT,
            },
            certificate: either("CERTIFICATE").map(|(path, _)| PathBuf::from(path)),
            resource: resource(
                look("OTEL_RESOURCE_ATTRIBUTES"),
                look("OTEL_SERVICE_NAME"),
                service,
            )?,
        }))
    }

    /// Where they go, without what may be secret in it.
    #[must_use]
    pub fn place(&self) -> String {
        let url = &self.endpoint;
        format!("{}{}", url.origin().ascii_serialization(), url.path())
    }
}

fn endpoint(said: Option<(String, String)>) -> Result<Url, TraceSettingsError> {
    let (text, variable) = said.unwrap_or_else(|| {
        (
            DEFAULT_ENDPOINT.to_owned(),
            "OTEL_TRACES_EXPORTER".to_owned(),
        )
    });
    let usable = |url: &Url| matches!(url.scheme(), "http" | "https") && url.has_host();
    let Some(mut url) = text.trim().parse::<Url>().ok().filter(usable) else {
        return Err(wrong(&variable, "is no http:// or https:// URL"));
    };
    // The one for traces alone is taken as it is; the other is the place of all signals.
    if !variable.contains("TRACES_ENDPOINT") {
        let path = format!("{}/{TRACES_PATH}", url.path().trim_end_matches('/'));
        url.set_path(&path);
    }
    Ok(url)
}

/// `key=value` pairs with percent-encoding, as W3C Baggage has them.
fn pairs(text: &str) -> impl Iterator<Item = Option<(String, String)>> {
    let parts = text.split(',').filter(|part| !part.trim().is_empty());
    parts.map(|part| {
        let (key, value) = part.split_once('=')?;
        let decode = |text: &str| {
            let decoded = percent_encoding::percent_decode_str(text.trim());
            decoded.decode_utf8().ok().map(|text| text.into_owned())
        };
        Some((decode(key)?, decode(value)?))
    })
}

fn headers(text: &str, variable: &str) -> Result<HeaderMap, TraceSettingsError> {
    let mut headers = HeaderMap::new();
    for (number, pair) in (1..).zip(pairs(text)) {
        let header = pair.and_then(|(key, value)| {
            let mut value = HeaderValue::try_from(value).ok()?;
            value.set_sensitive(true);
            Some((HeaderName::try_from(key).ok()?, value))
        });
        let Some((key, value)) = header else {
            return Err(wrong(variable, format!("part {number} is no key=value")));
        };
        headers.insert(key, value);
    }
    Ok(headers)
}

fn resource(
    attributes: Option<String>,
    name: Option<String>,
    service: &str,
) -> Result<Vec<(String, String)>, TraceSettingsError> {
    let mut resource = vec![(
        "service.version".to_owned(),
        env!("CARGO_PKG_VERSION").to_owned(),
    )];
    for pair in pairs(attributes.as_deref().unwrap_or_default()) {
        let Some((key, value)) = pair else {
            return Err(wrong("OTEL_RESOURCE_ATTRIBUTES", "is no list of key=value"));
        };
        resource.retain(|(known, _)| *known != key);
        resource.push((key, value));
    }
    let key = "service.name";
    match name {
        Some(name) => {
            resource.retain(|(known, _)| known != key);
            resource.push((key.to_owned(), name));
        }
        None if resource.iter().any(|(known, _)| known == key) => {}
        None => resource.push((key.to_owned(), service.to_owned())),
    }
    Ok(resource)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> Result<Option<TraceSettings>, TraceSettingsError> {
        let look = |name: &str| {
            let found = variables.iter().find(|(known, _)| *known == name);
            found.map(|(_, value)| (*value).to_owned())
        };
        TraceSettings::read(look, "prewarm-worker")
    }

    fn endpoint_of(variables: &[(&str, &str)]) -> Option<String> {
        read(variables)
            .unwrap()
            .map(|settings| settings.endpoint.to_string())
    }

    #[test]
    fn nothing_is_exported_unless_somebody_wants_it() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c:4318");
        assert_eq!(endpoint_of(&[]), None);
        assert_eq!(endpoint_of(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "")]), None);
        assert_eq!(
            endpoint_of(&[endpoint, ("OTEL_TRACES_EXPORTER", "none")]),
            None
        );
        assert_eq!(
            endpoint_of(&[endpoint, ("OTEL_SDK_DISABLED", "true")]),
            None
        );
        assert!(endpoint_of(&[endpoint]).is_some());
    }

    #[test]
    fn an_endpoint_for_everything_gets_the_path_of_traces() {
        for (variable, url, expected) in [
            ("ENDPOINT", "http://c:4318", "http://c:4318/v1/traces"),
            ("ENDPOINT", "https://c/otlp/", "https://c/otlp/v1/traces"),
            ("TRACES_ENDPOINT", "http://c:4318/x", "http://c:4318/x"),
        ] {
            let variable = format!("OTEL_EXPORTER_OTLP_{variable}");
            assert_eq!(endpoint_of(&[(&variable, url)]).as_deref(), Some(expected));
        }
        let default = endpoint_of(&[("OTEL_TRACES_EXPORTER", "otlp")]);
        assert_eq!(default.as_deref(), Some("http://localhost:4318/v1/traces"));
        let both = endpoint_of(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://t/"),
        ]);
        assert_eq!(both.as_deref(), Some("http://t/"));
    }

    #[test]
    fn headers_timeout_and_resource_are_read() {
        let settings = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            (
                "OTEL_EXPORTER_OTLP_HEADERS",
                "authorization=Basic%20abc, x-team = infra",
            ),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "250"),
            (
                "OTEL_RESOURCE_ATTRIBUTES",
                "k8s.node.name=n1,service.name=other",
            ),
        ]);
        let settings = settings.unwrap().unwrap();
        assert_eq!(settings.headers["authorization"], "Basic abc");
        assert!(settings.headers["authorization"].is_sensitive());
        assert_eq!(settings.headers["x-team"], "infra");
        assert_eq!(settings.timeout, Duration::from_millis(250));
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert!(settings.resource.contains(&pair("k8s.node.name", "n1")));
        assert!(settings.resource.contains(&pair("service.name", "other")));
        let named = read(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c"),
            ("OTEL_SERVICE_NAME", "mine"),
        ]);
        assert!(
            named
                .unwrap()
                .unwrap()
                .resource
                .contains(&pair("service.name", "mine"))
        );
        let default = read(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c")]);
        assert!(
            default
                .unwrap()
                .unwrap()
                .resource
                .contains(&pair("service.name", "prewarm-worker"))
        );
    }

    #[test]
    fn what_cannot_be_used_is_named_without_its_secrets() {
        let endpoint = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://c");
        for (variable, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "user:S3CRET@c:4318"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "S3CRET"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "a b=S3CRET"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "1s"),
            ("OTEL_TRACES_EXPORTER", "zipkin"),
            ("OTEL_RESOURCE_ATTRIBUTES", "S3CRET"),
        ] {
            let error = read(&[endpoint, (variable, value)])
                .unwrap_err()
                .to_string();
            assert!(error.starts_with(variable), "{error}");
            assert!(!error.contains("S3CRET"), "{error}");
        }
    }

    #[test]
    fn the_place_is_told_without_what_may_be_secret() {
        let settings = read(&[(
            "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            "https://u:p@c:1/x?key=k",
        )]);
        assert_eq!(settings.unwrap().unwrap().place(), "https://c:1/x");
    }
}
