//! Keeps what was sent out of what is quoted: a registry may repeat a credential when it refuses it.

use super::credentials::{Credential, basic};

/// What stands in a secret's place.
const HIDDEN: &str = "…";
/// Shorter ones are no secrets, and would make holes in every text.
const LEAST_BYTES: usize = 4;

/// Texts that are not quoted.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    fn add_text(&mut self, text: &str) {
        if text.len() >= LEAST_BYTES && !self.0.iter().any(|known| known == text) {
            self.0.push(text.to_owned());
        }
    }

    /// A credential, in every form in which it is sent.
    pub(super) fn add(&mut self, credential: &Credential) {
        match credential {
            Credential::Password { user, password } => {
                self.add_header(&basic(user, password));
                self.add_text(password);
            }
            Credential::Identity(token) | Credential::Registry(token) => self.add_text(token),
        }
    }

    /// The value of a header, and what follows the scheme in it.
    pub(super) fn add_header(&mut self, value: &str) {
        if let Some((_, token)) = value.split_once(' ') {
            self.add_text(token);
        }
        self.add_text(value);
    }

    /// The text without them. Bytes that are no text are replaced.
    pub(super) fn hide(&self, text: &[u8]) -> Vec<u8> {
        let mut shown = String::from_utf8_lossy(text).into_owned();
        for secret in &self.0 {
            shown = shown.replace(secret, HIDDEN);
        }
        shown.into_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_was_sent_is_quoted() {
        let mut secrets = Secrets::default();
        secrets.add(&Credential::Password {
            user: "bob".to_owned(),
            password: "hunter2".to_owned(),
        });
        secrets.add(&Credential::Identity("refresh".to_owned()));
        secrets.add_header("Bearer access");
        let text = "bob's hunter2, Ym9iOmh1bnRlcjI=, refresh and Bearer access are wrong";
        let shown = secrets.hide(text.as_bytes());
        assert_eq!(
            String::from_utf8_lossy(&shown),
            "bob's …, …, … and Bearer … are wrong"
        );
    }

    #[test]
    fn short_texts_are_left_alone() {
        let mut secrets = Secrets::default();
        secrets.add(&Credential::Registry("a".to_owned()));
        assert_eq!(&*secrets.hide(b"a banana"), b"a banana");
    }
}
