//! Whether we run in a pod that may ask the Kubernetes API, and on which node.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;

/// Where kubelet mounts a pod's token and the API's certificate authority.
pub(super) const SERVICE_ACCOUNT: &str = "/var/run/secrets/kubernetes.io/serviceaccount";
/// Where kubelet says that the API is.
const API_HOST: &str = "KUBERNETES_SERVICE_HOST";

/// A pod with a service account's token.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Pod {
    /// The node it runs on, as its token says; Kubernetes writes it there since 1.30.
    pub node: Option<String>,
}

impl Pod {
    /// Looks whether this process runs in one.
    #[must_use]
    pub fn look() -> Option<Self> {
        std::env::var_os(API_HOST)?;
        let token = std::fs::read_to_string(Path::new(SERVICE_ACCOUNT).join("token")).ok()?;
        Some(Self {
            node: node_of(&token),
        })
    }
}

/// The node in the claims of a bound token (KEP-4193). Nothing is verified: it is our own token, by
/// which we only learn our own name.
fn node_of(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Claims {
        #[serde(rename = "kubernetes.io")]
        kubernetes: Kubernetes,
    }
    #[derive(Deserialize)]
    struct Kubernetes {
        node: Named,
    }
    #[derive(Deserialize)]
    struct Named {
        name: String,
    }
    let claims = token.trim().split('.').nth(1)?;
    let claims = URL_SAFE_NO_PAD.decode(claims).ok()?;
    let claims: Claims = serde_json::from_slice(&claims).ok()?;
    Some(claims.kubernetes.node.name)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn token(claims: &serde_json::Value) -> String {
        format!("eyJ9.{}.c2ln\n", URL_SAFE_NO_PAD.encode(claims.to_string()))
    }

    #[test]
    fn a_bound_token_names_the_node() {
        let claims = json!({"sub": "system:serviceaccount:prewarm-system:prewarm-worker", "kubernetes.io": {
            "namespace": "prewarm-system", "node": {"name": "node-1", "uid": "u"}, "pod": {"name": "p", "uid": "v"}}});
        assert_eq!(node_of(&token(&claims)).as_deref(), Some("node-1"));
    }

    #[test]
    fn an_older_token_names_none() {
        let claims = json!({"kubernetes.io": {"namespace": "a", "pod": {"name": "p"}}});
        for text in [&token(&claims), "", "no token", "a.b.c", "a.e30.c"] {
            assert_eq!(node_of(text), None, "{text}");
        }
    }
}
