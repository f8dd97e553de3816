//! Globs: some that are wanted, some that are not.

use globset::{GlobBuilder, GlobSet, GlobSetBuilder};

/// Most patterns of one field.
const MAX_PATTERNS: usize = 100;

/// A text matches if it matches one pattern, or there are only exclusions, and no exclusion (`!…`).
#[derive(Clone, Debug, Default)]
pub(super) struct Patterns {
    wanted: GlobSet,
    unwanted: GlobSet,
}

impl Patterns {
    /// Reads patterns. `*` and `?` match no `/`, `**` does.
    pub(super) fn new(texts: &[String]) -> Result<Self, String> {
        if texts.is_empty() || texts.len() > MAX_PATTERNS {
            return Err(format!("expected 1 to {MAX_PATTERNS} patterns"));
        }
        let (unwanted, wanted): (Vec<&String>, Vec<&String>) =
            texts.iter().partition(|text| text.starts_with('!'));
        let set = |texts: Vec<&str>| {
            let mut set = GlobSetBuilder::new();
            for text in texts {
                if text.is_empty() {
                    return Err("a pattern is empty".to_owned());
                }
                let glob = GlobBuilder::new(text).literal_separator(true).build();
                set.add(glob.map_err(|error| error.to_string())?);
            }
            set.build().map_err(|error| error.to_string())
        };
        Ok(Self {
            wanted: set(wanted.into_iter().map(String::as_str).collect())?,
            unwanted: set(unwanted.into_iter().map(|text| &text[1..]).collect())?,
        })
    }

    pub(super) fn matches(&self, text: &str) -> bool {
        (self.wanted.is_empty() || self.wanted.is_match(text)) && !self.unwanted.is_match(text)
    }

    /// Whether it matches, or there are no patterns.
    pub(super) fn match_or_empty(&self, text: &str) -> bool {
        self.is_empty() || self.matches(text)
    }

    pub(super) fn is_empty(&self) -> bool {
        self.wanted.is_empty() && self.unwanted.is_empty()
    }
}
