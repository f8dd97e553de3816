//! Settings: flags, `PREWARM_*` variables and a file, in that order of weight, checked into values.
//!
//! Every setting is an argument of the command line that has a variable; the [`mod@file`] adds defaults to
//! those arguments. So a setting's name exists once, and clap does the weighing. Values stay text until
//! [`Check`] reads them, which names every problem at once and says where the value came from.

pub mod broker;
pub mod dispatcher;
pub mod file;
pub mod kubernetes;
pub mod labels;
mod nats_context;
pub mod registry;
pub mod simulated;
pub mod span;
pub mod telemetry;
pub mod webhook;
pub mod worker;

use std::collections::BTreeMap;
use std::fmt::Display;
use std::str::FromStr;

use clap::ArgMatches;
use clap::parser::ValueSource;

/// Where the value of every setting came from, in words for a message.
#[derive(Clone, Debug, Default)]
pub struct Sources {
    by_name: BTreeMap<String, String>,
}

impl Sources {
    /// Notes where each value of the innermost command came from; `file` is the settings file and the
    /// names it sets.
    #[must_use]
    pub fn of(
        command: &clap::Command,
        matches: &ArgMatches,
        file: Option<&file::SettingsFile>,
    ) -> Self {
        let mut by_name = BTreeMap::new();
        let (command, matches) = innermost(command, matches);
        for id in matches.ids() {
            let name = id.as_str().replace('_', "-");
            let variable = command
                .get_arguments()
                .find(|argument| argument.get_id() == id)
                .and_then(|argument| argument.get_env())
                .map(|variable| variable.to_string_lossy().into_owned());
            let source = match matches.value_source(id.as_str()) {
                Some(ValueSource::EnvVariable) => variable,
                Some(ValueSource::DefaultValue) => file
                    .filter(|file| file.sets(&name))
                    .map(|file| format!("{}: {name}", file.path.display())),
                _ => None,
            };
            by_name.insert(name.clone(), source.unwrap_or_else(|| format!("--{name}")));
        }
        Self { by_name }
    }

    fn of_setting(&self, name: &str) -> String {
        let source = self.by_name.get(name).cloned();
        source.unwrap_or_else(|| format!("--{name}"))
    }
}

fn innermost<'a>(
    command: &'a clap::Command,
    matches: &'a ArgMatches,
) -> (&'a clap::Command, &'a ArgMatches) {
    match matches.subcommand() {
        Some((name, inner)) => match command.find_subcommand(name) {
            Some(subcommand) => innermost(subcommand, inner),
            None => (command, matches),
        },
        None => (command, matches),
    }
}

/// Settings that cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.join("\n"))]
pub struct BadSettings(pub Vec<String>);

/// Reads settings from their text and collects what is wrong with them.
#[derive(Debug)]
pub struct Check<'s> {
    sources: &'s Sources,
    problems: Vec<String>,
}

impl<'s> Check<'s> {
    /// Begins with no problem.
    #[must_use]
    pub fn new(sources: &'s Sources) -> Self {
        Self {
            sources,
            problems: Vec::new(),
        }
    }

    /// Notes a problem of the setting called `name`.
    pub fn problem(&mut self, name: &str, message: impl Display) {
        let source = self.sources.of_setting(name);
        self.problems.push(format!("{source}: {message}"));
    }

    /// A setting that its type reads from text. An empty text counts as not set, because that is how
    /// deployment templates write it.
    pub fn parsed<T>(&mut self, name: &str, text: Option<&str>) -> Option<T>
    where
        T: FromStr<Err: Display>,
    {
        let text = given(text)?;
        match text.parse() {
            Ok(value) => Some(value),
            Err(error) => {
                self.problem(name, error);
                None
            }
        }
    }

    /// A whole number within `least..=most`.
    pub fn number(
        &mut self,
        name: &str,
        text: Option<&str>,
        (least, most): (u32, u32),
    ) -> Option<u32> {
        let text = given(text)?;
        match text.parse() {
            Ok(number) if (least..=most).contains(&number) => Some(number),
            _ => {
                self.problem(
                    name,
                    format!("{text:?} is not a whole number from {least} to {most}"),
                );
                None
            }
        }
    }

    /// The settings, if nothing is wrong with any of them.
    ///
    /// # Errors
    /// Everything that is wrong.
    pub fn done<T>(self, settings: Option<T>) -> Result<T, BadSettings> {
        match settings {
            Some(settings) if self.problems.is_empty() => Ok(settings),
            _ => Err(BadSettings(self.problems)),
        }
    }
}

/// The text, unless it is empty.
#[must_use]
pub fn given(text: Option<&str>) -> Option<&str> {
    text.map(str::trim).filter(|text| !text.is_empty())
}
