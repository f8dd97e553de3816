//! The settings file: YAML, with the names of the settings as keys.

use std::path::{Path, PathBuf};

use clap::Command;
use serde_json::{Map, Value};

use super::BadSettings;

/// What every variable of a setting begins with.
const VARIABLE_PREFIX: &str = "PREWARM_";
/// Largest settings file in bytes.
const MAX_BYTES: u64 = 1024 * 1024;

/// A settings file as read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SettingsFile {
    /// Where it is.
    pub path: PathBuf,
    values: Vec<(String, String)>,
}

impl SettingsFile {
    /// Reads a settings file; `command` says which settings there are, of all roles, because one file
    /// may serve several.
    ///
    /// # Errors
    /// The file cannot be read, or everything that is wrong in it.
    pub fn read(path: &Path, command: &Command) -> Result<Self, BadSettings> {
        let text = read_bounded(path)
            .map_err(|error| BadSettings(vec![format!("{}: {error}", path.display())]))?;
        Self::parse(path, &text, &names(command)).map_err(BadSettings)
    }

    /// Reads the text of the file at `path`; `known` are the settings there are.
    ///
    /// # Errors
    /// Everything that is wrong in it.
    pub fn parse(path: &Path, text: &str, known: &[String]) -> Result<Self, Vec<String>> {
        let at = |message: String| format!("{}: {message}", path.display());
        // Without the lines around: the broker's URL may hold a password.
        let options = serde_saphyr::options! { with_snippet: false };
        let map: Option<Map<String, Value>> = serde_saphyr::from_str_with_options(text, options)
            .map_err(|error| {
                vec![at(format!(
                    "expected settings in YAML, `name: value`: {error}"
                ))]
            })?;
        let mut values = Vec::new();
        let mut problems = Vec::new();
        for (name, value) in map.unwrap_or_default() {
            if !known.contains(&name) {
                let known = known.join(", ");
                problems.push(at(format!("{name}: unknown setting; known: {known}")));
                continue;
            }
            match text_of(&value) {
                Ok(Some(text)) => values.push((name, text)),
                Ok(None) => {}
                Err(found) => {
                    problems.push(at(format!("{name}: expected one value, found {found}")))
                }
            }
        }
        if problems.is_empty() {
            Ok(Self {
                path: path.to_owned(),
                values,
            })
        } else {
            Err(problems)
        }
    }

    /// Whether the file has this setting.
    #[must_use]
    pub fn sets(&self, name: &str) -> bool {
        self.values.iter().any(|(set, _)| set == name)
    }

    /// Makes the file's values the defaults of the arguments of `command` and its subcommands, so that
    /// flags and variables outweigh them.
    #[must_use]
    pub fn weigh_in(&self, command: Command) -> Command {
        let command = command.mut_args(|argument| {
            let name = setting_of(&argument).unwrap_or_default();
            match self.values.iter().find(|(set, _)| set == name) {
                Some((_, value)) => argument.default_value(value.clone()),
                None => argument,
            }
        });
        command.mut_subcommands(|subcommand| self.weigh_in(subcommand))
    }
}

fn read_bounded(path: &Path) -> std::io::Result<String> {
    use std::io::Read as _;
    let mut text = String::new();
    std::fs::File::open(path)?
        .take(MAX_BYTES)
        .read_to_string(&mut text)?;
    Ok(text)
}

/// Every setting there is, sorted.
#[must_use]
pub fn names(command: &Command) -> Vec<String> {
    let own = command.get_arguments().filter_map(|argument| {
        let variable = argument.get_env()?.to_str()?;
        let name = argument.get_long()?;
        (variable.starts_with(VARIABLE_PREFIX) && name != "config").then(|| name.to_owned())
    });
    let mut names: Vec<String> = own
        .chain(command.get_subcommands().flat_map(names))
        .collect();
    names.sort_unstable();
    names.dedup();
    names
}

/// The name of the setting an argument is, if it is one: a job's `--node` is none, a worker's is.
fn setting_of(argument: &clap::Arg) -> Option<&str> {
    let variable = argument.get_env()?.to_str()?;
    let name = argument.get_long()?;
    (variable.starts_with(VARIABLE_PREFIX) && name != "config").then_some(name)
}

/// A value as a flag would have it: lists joined with commas, maps as `k=v`.
fn text_of(value: &Value) -> Result<Option<String>, &'static str> {
    let scalar = |value: &Value| match value {
        Value::String(text) => Ok(text.clone()),
        Value::Number(number) => Ok(number.to_string()),
        Value::Bool(value) => Ok(value.to_string()),
        Value::Null => Ok(String::new()),
        Value::Array(_) | Value::Object(_) => Err("a list or map inside another"),
    };
    match value {
        Value::Null => Ok(None),
        Value::Array(items) => {
            let items: Result<Vec<String>, _> = items.iter().map(scalar).collect();
            Ok(Some(items?.join(",")))
        }
        Value::Object(map) => {
            let pair = |(key, value): (&String, &Value)| Ok(format!("{key}={}", scalar(value)?));
            let pairs: Result<Vec<String>, &'static str> = map.iter().map(pair).collect();
            Ok(Some(pairs?.join(",")))
        }
        value => scalar(value).map(Some),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command() -> Command {
        let setting = |name: &'static str, variable: &'static str| {
            clap::Arg::new(name).long(name).env(variable)
        };
        let worker = Command::new("worker")
            .arg(setting("labels", "PREWARM_TEST_LABELS"))
            .arg(setting("capacity", "PREWARM_TEST_CAPACITY").default_value("3"));
        Command::new("prewarm")
            .arg(setting("config", "PREWARM_TEST_CONFIG"))
            .arg(setting("nats-url", "PREWARM_TEST_NATS_URL").global(true))
            .subcommand(worker)
            .subcommand(Command::new("run").arg(clap::Arg::new("labels").long("labels")))
    }

    fn parse(text: &str) -> Result<SettingsFile, Vec<String>> {
        SettingsFile::parse(Path::new("prewarm.yaml"), text, &names(&command()))
    }

    fn value(file: &SettingsFile, args: &[&str], name: &str) -> String {
        let args = ["prewarm", "worker"].iter().chain(args);
        let matches = file.weigh_in(command()).get_matches_from(args);
        let (_, worker) = matches.subcommand().unwrap();
        worker.get_one::<String>(name).unwrap().clone()
    }

    #[test]
    fn every_argument_with_a_variable_is_a_setting() {
        assert_eq!(names(&command()), ["capacity", "labels", "nats-url"]);
    }

    #[test]
    fn a_flag_outweighs_the_file_and_the_file_the_default() {
        let file = parse("capacity: 5\nnats-url: [nats://a, nats://b]\n").unwrap();
        assert_eq!(value(&file, &[], "capacity"), "5");
        assert_eq!(value(&file, &["--capacity", "7"], "capacity"), "7");
        assert_eq!(value(&file, &[], "nats-url"), "nats://a,nats://b");
        assert_eq!(value(&parse("").unwrap(), &[], "capacity"), "3");
    }

    #[test]
    fn an_argument_that_is_no_setting_is_left_alone() {
        let file = parse("labels: a=b").unwrap();
        let matches = file
            .weigh_in(command())
            .get_matches_from(["prewarm", "run"]);
        let (_, run) = matches.subcommand().unwrap();
        assert_eq!(run.get_one::<String>("labels"), None);
    }

    #[test]
    fn labels_may_be_a_map() {
        let file = parse("labels: {pool: gpu, rack: 7}").unwrap();
        assert_eq!(value(&file, &[], "labels"), "pool=gpu,rack=7");
    }

    #[test]
    fn every_problem_names_the_file_and_the_key() {
        let problems = parse("capasity: 3\nlabels: {a: {b: c}}\n").unwrap_err();
        assert_eq!(
            problems,
            [
                "prewarm.yaml: capasity: unknown setting; known: capacity, labels, nats-url",
                "prewarm.yaml: labels: expected one value, found a list or map inside another",
            ]
        );
        assert!(parse("- 1").unwrap_err()[0].contains("expected settings in YAML"));
    }
}
