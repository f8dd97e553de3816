//! One push of an image, as a registry's webhook or CI tells it: the body of `prewarm.push`.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::domain::image::{Digest, ImageRef};
use crate::domain::trace::TraceOrigin;

use super::event::Problem;

/// A push of an image to a registry. It has a tag, a digest, or both.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Push {
    /// The registry's host as image references name it, with its port if it has one.
    pub registry: String,
    /// The repository's path, without the host.
    pub repository: String,
    /// The tag that was pushed; absent for a push by digest.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tag: Option<String>,
    /// What was pushed: the digest of the index, or of the manifest if there is none. Absent if the
    /// registry does not tell; the registry is asked then.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub digest: Option<Digest>,
    /// Names the event at its source, so that one that is sent again is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub event_id: Option<String>,
    /// Who told: the name of a webhook source, such as `harbor`, or of a CI.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub source: Option<String>,
    /// Whether the registry has to be asked what the tag means before a job is made, though there is a
    /// digest: whoever told could not be authenticated strongly.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub unverified: bool,
    /// The trace it belongs to: no part of the body, but a header of the message.
    #[serde(skip)]
    pub trace: Option<TraceOrigin>,
}

impl Push {
    /// Reads and checks the body of a message.
    ///
    /// # Errors
    /// Everything that is wrong with it.
    pub fn parse(body: &[u8]) -> Result<Self, Vec<Problem>> {
        let problem = |path: &str, message: String| {
            vec![Problem {
                path: path.to_owned(),
                message,
            }]
        };
        let push: Self = serde_json::from_slice(body)
            .map_err(|error| problem("", format!("not a push: {error}")))?;
        push.image().map_err(|message| problem("", message))?;
        Ok(push)
    }

    /// The image that was pushed, by every name that the push gives it.
    ///
    /// # Errors
    /// The parts do not make a reference; the text says which and why.
    pub fn image(&self) -> Result<ImageRef, String> {
        if self.tag.is_none() && self.digest.is_none() {
            return Err("a push has a tag, a digest, or both; this one has neither".to_owned());
        }
        let mut text = format!("{}/{}", self.registry, self.repository);
        if let Some(tag) = &self.tag {
            text.push(':');
            text.push_str(tag);
        }
        if let Some(digest) = &self.digest {
            text.push('@');
            text.push_str(digest.as_str());
        }
        let image: ImageRef = text.parse().map_err(|error| format!("{error}"))?;
        if image.tag() != self.tag.as_deref() {
            return Err(format!("repository: {:?} has a tag in it", self.repository));
        }
        if image.registry() != self.registry {
            return Err(format!(
                "registry: {:?} is not a registry's host as image references name it",
                self.registry
            ));
        }
        Ok(image)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn push(text: &str) -> Result<Push, Vec<Problem>> {
        Push::parse(text.as_bytes())
    }

    #[test]
    fn a_push_names_an_image() {
        let image = push(r#"{"registry":"r.example.com:5000","repository":"a/b","tag":"1"}"#)
            .unwrap()
            .image()
            .unwrap();
        assert_eq!(image.to_string(), "r.example.com:5000/a/b:1");
    }

    #[test]
    fn what_names_no_image_is_refused() {
        for text in [
            r#"{"registry":"r.example.com","repository":"a"}"#,
            r#"{"registry":"r.example.com","repository":"A","tag":"1"}"#,
            // Rules would see another repository than nodes pull from.
            r#"{"registry":"r.example.com","repository":"a:1","digest":"sha256:0000000000000000000000000000000000000000000000000000000000000000"}"#,
            r#"{"registry":"nowhere","repository":"a","tag":"1"}"#,
            r#"{"registry":"r.example.com","repository":"a","tag":"1","extra":1}"#,
            r#"{"registry":"r.example.com","repository":"a","digest":"sha256:1"}"#,
            "[]",
        ] {
            assert!(push(text).is_err(), "{text}");
        }
    }
}
