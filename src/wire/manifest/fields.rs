//! Walks an object field by field and notes everything that is wrong on the way.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use serde_json::{Map, Value};

use crate::domain::job::{Amount, AmountError};
use crate::domain::selector::{check_label_key, check_label_value};
use crate::wire::event::Problem;

/// What an item is that says the same as one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Repeats {
    /// A problem.
    Refused,
    /// A problem if it is the same text; the same by another text counts once.
    RefusedAsText,
    /// Nothing: it counts once.
    Dropped,
}

/// The fields of one object that nobody has read yet.
pub(super) struct Fields<'v> {
    path: String,
    left: BTreeMap<&'v str, &'v Value>,
    known: Vec<&'static str>,
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

pub(super) fn note(problems: &mut Vec<Problem>, path: &str, message: impl Display) {
    problems.push(Problem {
        path: path.to_owned(),
        message: message.to_string(),
    });
}

impl<'v> Fields<'v> {
    /// Opens an object; anything else is a problem. A field that is `null` counts as absent.
    pub(super) fn open(path: &str, value: &'v Value, problems: &mut Vec<Problem>) -> Option<Self> {
        match value {
            Value::Object(map) => Some(Self::of(path, map)),
            other => {
                note(
                    problems,
                    path,
                    format!("expected an object, found {}", kind_of(other)),
                );
                None
            }
        }
    }

    fn of(path: &str, map: &'v Map<String, Value>) -> Self {
        let left = map.iter().filter(|(_, value)| !value.is_null());
        Self {
            path: path.to_owned(),
            left: left.map(|(key, value)| (key.as_str(), value)).collect(),
            known: Vec::new(),
        }
    }

    /// The path of a field of this object.
    pub(super) fn path(&self, key: &str) -> String {
        if self.path.is_empty() {
            key.to_owned()
        } else {
            format!("{}.{key}", self.path)
        }
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.left.contains_key(key)
    }

    fn take(&mut self, key: &'static str) -> Option<(String, &'v Value)> {
        self.known.push(key);
        self.left.remove(key).map(|value| (self.path(key), value))
    }

    /// Passes over fields that mean nothing to us.
    pub(super) fn ignore(&mut self, keys: &[&'static str]) {
        for key in keys {
            self.left.remove(key);
        }
    }

    /// Notes every field that nobody read.
    pub(super) fn close(self, problems: &mut Vec<Problem>) {
        for key in self.left.keys() {
            let known = self.known.join(", ");
            note(
                problems,
                &self.path(key),
                format!("unknown field; known here: {known}"),
            );
        }
    }

    /// Reads a field that has to be there with `read`.
    pub(super) fn required<T>(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
        read: impl FnOnce(&mut Self, &'static str, &mut Vec<Problem>) -> Option<T>,
    ) -> Option<T> {
        if !self.has(key) {
            note(problems, &self.path(key), "is missing");
        }
        read(self, key, problems)
    }

    pub(super) fn nested(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Fields<'v>> {
        match self.take(key) {
            Some((path, value)) => Fields::open(&path, value, problems),
            None => {
                note(problems, &self.path(key), "is missing");
                None
            }
        }
    }

    pub(super) fn optional(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Fields<'v>> {
        let (path, value) = self.take(key)?;
        Fields::open(&path, value, problems)
    }

    pub(super) fn text(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<String> {
        let (path, value) = self.take(key)?;
        text(&path, value, problems)
    }

    /// A field as it stands there.
    pub(super) fn value(&mut self, key: &'static str) -> Option<&'v Value> {
        self.take(key).map(|(_, value)| value)
    }

    /// A text, or a list of texts.
    pub(super) fn texts(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<String>> {
        let (path, value) = self.take(key)?;
        let Value::Array(items) = value else {
            return Some(vec![text(&path, value, problems)?]);
        };
        let read = |(index, item)| text(&format!("{path}[{index}]"), item, problems);
        Some(items.iter().enumerate().filter_map(read).collect())
    }

    pub(super) fn parsed<T>(&mut self, key: &'static str, problems: &mut Vec<Problem>) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        let (path, value) = self.take(key)?;
        parsed(&path, value, problems)
    }

    /// A list of texts of a kind, each at most once.
    pub(super) fn parsed_list<T>(
        &mut self,
        key: &'static str,
        repeats: Repeats,
        problems: &mut Vec<Problem>,
    ) -> Option<Vec<T>>
    where
        T: FromStr<Err: Display> + PartialEq + Display,
    {
        let (path, value) = self.take(key)?;
        let Value::Array(items) = value else {
            note(
                problems,
                &path,
                format!("expected a list, found {}", kind_of(value)),
            );
            return None;
        };
        let mut seen = std::collections::HashMap::new();
        let mut list = Vec::with_capacity(items.len());
        for (index, item) in items.iter().enumerate() {
            let path = format!("{path}[{index}]");
            let Some(parsed) = parsed::<T>(&path, item, problems) else {
                continue;
            };
            let Some(&(first, text)) = seen.get(&parsed.to_string()) else {
                seen.insert(parsed.to_string(), (index, item));
                list.push(parsed);
                continue;
            };
            let refused = match repeats {
                Repeats::Refused => true,
                Repeats::RefusedAsText => text == item,
                Repeats::Dropped => false,
            };
            if refused {
                note(
                    problems,
                    &path,
                    format!("is the same as [{first}]: {parsed}"),
                );
            }
        }
        Some(list)
    }

    pub(super) fn boolean(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<bool> {
        let (path, value) = self.take(key)?;
        let Value::Bool(value) = value else {
            note(
                problems,
                &path,
                format!("expected true or false, found {}", kind_of(value)),
            );
            return None;
        };
        Some(*value)
    }

    /// A whole number within `least..=most`.
    pub(super) fn integer(
        &mut self,
        key: &'static str,
        (least, most): (i64, i64),
        problems: &mut Vec<Problem>,
    ) -> Option<i64> {
        let (path, value) = self.take(key)?;
        match value.as_i64() {
            Some(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                let message =
                    format!("expected a whole number from {least} to {most}, found {value}");
                note(problems, &path, message);
                None
            }
        }
    }

    /// A whole number of seconds from `least` up to what fits 32 bits.
    pub(super) fn seconds(
        &mut self,
        key: &'static str,
        least: u32,
        problems: &mut Vec<Problem>,
    ) -> Option<u32> {
        self.integer(key, (i64::from(least), i64::from(u32::MAX)), problems)
            .and_then(|number| u32::try_from(number).ok())
    }

    /// A number or a percentage.
    pub(super) fn amount(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Option<Amount> {
        let (path, value) = self.take(key)?;
        let amount = match value {
            Value::String(text) => text.parse(),
            other => match other.as_u64().and_then(|number| u32::try_from(number).ok()) {
                Some(number) => Ok(Amount::Count(number)),
                None => Err(AmountError(other.to_string())),
            },
        };
        amount.map_err(|error| note(problems, &path, error)).ok()
    }

    pub(super) fn text_map(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<String, String> {
        let Some((path, value)) = self.take(key) else {
            return BTreeMap::new();
        };
        let Value::Object(map) = value else {
            note(
                problems,
                &path,
                format!("expected an object, found {}", kind_of(value)),
            );
            return BTreeMap::new();
        };
        let entries = map.iter().filter_map(|(key, value)| {
            Some((
                key.clone(),
                text(&format!("{path}.{key}"), value, problems)?,
            ))
        });
        entries.collect()
    }

    /// A map of labels, keys and values as Kubernetes wants them.
    pub(super) fn labels(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> BTreeMap<String, String> {
        let path = self.path(key);
        let labels = self.text_map(key, problems);
        for (key, value) in &labels {
            let path = format!("{path}.{key}");
            let checked = check_label_key(key).and_then(|()| check_label_value(value));
            if let Err(error) = checked {
                note(problems, &path, error);
            }
        }
        labels
    }

    /// The objects of a list.
    pub(super) fn objects(
        &mut self,
        key: &'static str,
        problems: &mut Vec<Problem>,
    ) -> Vec<Fields<'v>> {
        let Some((path, value)) = self.take(key) else {
            return Vec::new();
        };
        let Value::Array(items) = value else {
            note(
                problems,
                &path,
                format!("expected a list, found {}", kind_of(value)),
            );
            return Vec::new();
        };
        let open = |(index, item)| Fields::open(&format!("{path}[{index}]"), item, problems);
        items.iter().enumerate().filter_map(open).collect()
    }
}

fn text(path: &str, value: &Value, problems: &mut Vec<Problem>) -> Option<String> {
    let Value::String(text) = value else {
        let hint = if matches!(value, Value::Number(_) | Value::Bool(_)) {
            "; quote it"
        } else {
            ""
        };
        note(
            problems,
            path,
            format!("expected a text, found {}{hint}", kind_of(value)),
        );
        return None;
    };
    Some(text.clone())
}

fn parsed<T>(path: &str, value: &Value, problems: &mut Vec<Problem>) -> Option<T>
where
    T: FromStr<Err: Display>,
{
    let text = text(path, value, problems)?;
    text.parse()
        .map_err(|error| note(problems, path, error))
        .ok()
}
