//! Labels as they are written in a setting.

use std::collections::BTreeMap;

use super::Check;
use crate::domain::selector::{check_label_key, check_label_value};

/// Reads `k=v,k=v`.
pub fn labels(name: &str, text: Option<&str>, check: &mut Check<'_>) -> BTreeMap<String, String> {
    let mut labels = BTreeMap::new();
    for pair in text
        .unwrap_or_default()
        .split(',')
        .map(str::trim)
        .filter(|pair| !pair.is_empty())
    {
        let Some((key, value)) = pair.split_once('=') else {
            check.problem(
                name,
                format!("{pair:?} is not a label: write key=value, separated by commas"),
            );
            continue;
        };
        let (key, value) = (key.trim(), value.trim());
        if let Err(error) = check_label_key(key).and_then(|()| check_label_value(value)) {
            check.problem(name, error);
        } else if labels.insert(key.to_owned(), value.to_owned()).is_some() {
            check.problem(name, format!("{key} is there twice"));
        }
    }
    labels
}
