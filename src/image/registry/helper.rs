//! Docker credential helpers: `docker-credential-<name> get`.
//!
//! The protocol is that of docker-credential-helpers: the server's address on standard input, a JSON
//! object on standard output.

use std::process::Stdio;
use std::time::Duration;

use serde::Deserialize;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::process::Command;

use super::credentials::Credential;

/// Longest time a helper may take; those of cloud providers ask a metadata server.
const HELPER_TIMEOUT: Duration = Duration::from_secs(30);
/// Most that is read of what a helper says, in bytes.
const MAX_ANSWER_BYTES: u64 = 64 << 10;
/// The user name that says the secret is an identity token.
const TOKEN_USER: &str = "<token>";
/// What a helper says, with a failing exit status, when it has nothing for the server.
const NOT_FOUND: &str = "credentials not found in native keychain";

/// Why a helper gave no credential. What it printed is left out: it may be the secret.
#[derive(Debug, thiserror::Error)]
pub(super) enum HelperError {
    #[error("{0:?} is not the name of a credential helper")]
    Name(String),
    #[error("docker-credential-{helper} cannot be run (is it on PATH?)")]
    Run {
        helper: String,
        #[source]
        source: std::io::Error,
    },
    #[error("docker-credential-{0} did not answer within {HELPER_TIMEOUT:?}")]
    Timeout(String),
    #[error("docker-credential-{0} get failed: {1}")]
    Status(String, std::process::ExitStatus),
    #[error("docker-credential-{0} get answered something else than a credential")]
    Answer(String),
}

#[derive(Deserialize)]
struct Answer {
    #[serde(rename = "Username")]
    user: String,
    #[serde(rename = "Secret")]
    secret: String,
}

/// Asks a helper for the credential of a server; `None` if it has none.
pub(super) async fn get(helper: &str, server: &str) -> Result<Option<Credential>, HelperError> {
    let is_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '_' | '.');
    if helper.is_empty() || !helper.chars().all(is_name) {
        return Err(HelperError::Name(helper.to_owned()));
    }
    let program = Command::new(format!("docker-credential-{helper}"));
    ask(program, helper, server).await
}

async fn ask(
    mut program: Command,
    helper: &str,
    server: &str,
) -> Result<Option<Credential>, HelperError> {
    let failed = |source| HelperError::Run {
        helper: helper.to_owned(),
        source,
    };
    let run = async {
        let mut child = program
            .arg("get")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .kill_on_drop(true)
            .spawn()
            .map_err(failed)?;
        if let Some(mut input) = child.stdin.take() {
            // A helper that does not read is not wrong by that alone.
            let _ = input.write_all(server.as_bytes()).await;
        }
        let mut answer = Vec::new();
        if let Some(output) = child.stdout.take() {
            output
                .take(MAX_ANSWER_BYTES)
                .read_to_end(&mut answer)
                .await
                .map_err(failed)?;
        }
        let status = child.wait().await.map_err(failed)?;
        Ok((status, answer))
    };
    let (status, answer) = tokio::time::timeout(HELPER_TIMEOUT, run)
        .await
        .map_err(|_| HelperError::Timeout(helper.to_owned()))??;
    if !status.success() {
        let says_not_found = String::from_utf8_lossy(&answer).contains(NOT_FOUND);
        return if says_not_found {
            Ok(None)
        } else {
            Err(HelperError::Status(helper.to_owned(), status))
        };
    }
    let answer: Answer =
        serde_json::from_slice(&answer).map_err(|_| HelperError::Answer(helper.to_owned()))?;
    Ok(match answer {
        Answer { secret, .. } if secret.is_empty() => None,
        Answer { user, secret } if user == TOKEN_USER => Some(Credential::Identity(secret)),
        Answer { user, secret } => Some(Credential::Password {
            user,
            password: secret,
        }),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What comes of a helper that runs this script, with `get` as its name.
    async fn answer(script: &str) -> Result<Option<Credential>, HelperError> {
        let mut program = Command::new("sh");
        program.args(["-c", script]);
        ask(program, "test", "https://a.io").await
    }

    #[tokio::test]
    async fn a_helper_is_told_the_server_and_gives_a_credential() {
        let script = r#"read server || true; printf '{"ServerURL":"x","Username":"%s-%s","Secret":"s"}' "$0" "$server""#;
        let credential = Credential::Password {
            user: "get-https://a.io".to_owned(),
            password: "s".to_owned(),
        };
        assert_eq!(answer(script).await.unwrap(), Some(credential));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        let credential = Credential::Identity("t".to_owned());
        assert_eq!(answer(token).await.unwrap(), Some(credential));
    }

    #[tokio::test]
    async fn a_helper_without_a_credential_has_none_and_one_that_fails_tells_no_secret() {
        let none = "echo 'credentials not found in native keychain'; exit 1";
        assert_eq!(answer(none).await.unwrap(), None);
        for script in ["echo sEcReT; exit 1", "echo sEcReT", "exec cat /dev/zero"] {
            let error = answer(script).await.unwrap_err().to_string();
            assert!(error.contains("docker-credential-test"), "{error}");
            assert!(!error.contains("sEcReT"), "{error}");
        }
        assert!(matches!(
            get("../x", "a.io").await,
            Err(HelperError::Name(_))
        ));
        let absent = get("prewarm-absent", "a.io").await;
        assert!(matches!(absent, Err(HelperError::Run { .. })));
    }
}
