//! `apply`: manifests of jobs and push rules from files, all of them checked before any is sent.

use std::collections::BTreeMap;
use std::io::Read as _;
use std::path::{Path, PathBuf};

use super::exit::Failure;
use super::submit::Checked;
use crate::domain::name::JobName;
use crate::wire::manifest::rule::{self, PushRule};
use crate::wire::manifest::{MAX_BYTES, MAX_DOCUMENTS, documents, read};

/// What a file is called that is standard input.
const STDIN: &str = "-";

/// Reads and checks files.
///
/// # Errors
/// A file cannot be read, or everything that is wrong in any of them.
pub fn load(files: &[PathBuf]) -> Result<Loaded, Failure> {
    let mut manifests = Manifests::default();
    for file in files {
        let (name, bytes) = contents(file)?;
        manifests.add(&name, &bytes);
    }
    manifests.done()
}

/// What files ask for.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Loaded {
    /// Jobs to submit.
    pub jobs: Vec<Checked>,
    /// Push rules to keep.
    pub rules: Vec<PushRule>,
}

/// What a file is called in messages, and its bytes; `-` is standard input.
///
/// # Errors
/// It cannot be read.
pub fn contents(file: &Path) -> Result<(String, Vec<u8>), Failure> {
    let (name, bytes) = if file.as_os_str() == STDIN {
        ("stdin".to_owned(), bounded(std::io::stdin().lock()))
    } else {
        (file.display().to_string(), open(file))
    };
    match bytes {
        Ok(bytes) => Ok((name, bytes)),
        Err(error) => Err(Failure::input(format!("cannot read {name}: {error}"))),
    }
}

fn open(path: &Path) -> std::io::Result<Vec<u8>> {
    bounded(std::fs::File::open(path)?)
}

/// One byte more than is allowed, so that the check sees that it is too much.
fn bounded(reader: impl std::io::Read) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    reader.take(MAX_BYTES as u64 + 1).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[derive(Default)]
struct Manifests {
    loaded: Loaded,
    /// Where each job (`false`) and rule (`true`) was read.
    places: BTreeMap<(bool, JobName), String>,
    problems: Vec<String>,
}

impl Manifests {
    fn add(&mut self, file: &str, bytes: &[u8]) {
        let documents = match documents(bytes) {
            Ok(documents) => documents,
            Err(rejection) => {
                self.problems.extend(
                    rejection
                        .problems
                        .iter()
                        .map(|problem| format!("{file}: {problem}")),
                );
                return;
            }
        };
        if documents.is_empty() {
            self.problems.push(format!("{file}: holds no manifest"));
        }
        let only = documents.len() == 1;
        for (index, document) in documents.into_iter().enumerate() {
            let place = if only {
                file.to_owned()
            } else {
                format!("{file}: doc {}", index + 1)
            };
            let kept = if rule::is_rule(&document) {
                rule::read(&document).map(|rule| self.keep_rule(place.clone(), rule))
            } else {
                read(&document).map(|submission| {
                    let name = submission.name;
                    self.keep(place.clone(), Checked { name, document });
                })
            };
            match kept {
                Ok(()) => {}
                Err(rejection) => {
                    self.problems.extend(
                        rejection
                            .problems
                            .iter()
                            .map(|problem| format!("{place}: {problem}")),
                    );
                }
            }
        }
    }

    fn keep(&mut self, place: String, checked: Checked) {
        if self.is_new(place, (false, checked.name.clone())) {
            self.loaded.jobs.push(checked);
        }
    }

    fn keep_rule(&mut self, place: String, rule: PushRule) {
        if self.is_new(place, (true, rule.name.clone())) {
            self.loaded.rules.push(rule);
        }
    }

    fn is_new(&mut self, place: String, key: (bool, JobName)) -> bool {
        if let Some(first) = self.places.get(&key) {
            let name = &key.1;
            self.problems.push(format!("{place}: metadata.name: {name} is in {first} too, and the later would replace the earlier"));
            return false;
        }
        self.places.insert(key, place);
        true
    }

    fn done(mut self) -> Result<Loaded, Failure> {
        let manifests = self.places.len();
        if manifests > MAX_DOCUMENTS {
            self.problems.push(format!(
                "there are {manifests} manifests; apply takes {MAX_DOCUMENTS} at a time"
            ));
        }
        if self.problems.is_empty() {
            Ok(self.loaded)
        } else {
            Err(Failure::input(self.problems.join("\n")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest(name: &str, spec: &str) -> String {
        format!(
            "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata: {{name: {name}}}\nspec: {spec}\n"
        )
    }

    fn loaded(files: &[(&str, &str)]) -> Result<Vec<Checked>, Vec<String>> {
        let mut manifests = Manifests::default();
        for (file, text) in files {
            manifests.add(file, text.as_bytes());
        }
        manifests
            .done()
            .map(|loaded| loaded.jobs)
            .map_err(|failure| failure.message.lines().map(str::to_owned).collect())
    }

    #[test]
    fn every_document_of_every_file_is_taken() {
        let two = format!(
            "{}---\n{}",
            manifest("a", "{images: [nginx]}"),
            manifest("b", "{images: [nginx]}")
        );
        let all = loaded(&[
            ("x.yaml", &two),
            ("y.yaml", &manifest("c", "{images: [nginx]}")),
        ])
        .unwrap();
        let names: Vec<&str> = all.iter().map(|checked| checked.name.as_str()).collect();
        assert_eq!(names, ["a", "b", "c"]);
    }

    #[test]
    fn problems_have_file_document_and_path() {
        let two = format!(
            "{}---\n{}",
            manifest("a", "{images: [nginx]}"),
            manifest("b", "{images: [], parallelism: ten}")
        );
        let problems = loaded(&[
            ("x.yaml", &two),
            ("y.yaml", &manifest("c", "{images: [a b]}")),
            ("z.yaml", "{"),
            ("empty.yaml", ""),
        ])
        .unwrap_err();
        let begins = [
            "x.yaml: doc 2: spec.images: is empty",
            "x.yaml: doc 2: spec.parallelism: \"ten\"",
            "y.yaml: spec.images[0]: ",
            "z.yaml: the manifest is not JSON",
            "empty.yaml: holds no manifest",
        ];
        assert_eq!(problems.len(), begins.len(), "{problems:#?}");
        for (problem, begin) in problems.iter().zip(begins) {
            assert!(
                problem.starts_with(begin),
                "{problem} should begin with {begin}"
            );
        }
    }

    #[test]
    fn one_name_twice_is_a_mistake() {
        let one = manifest("a", "{images: [nginx]}");
        let problems = loaded(&[("x.yaml", &one), ("y.yaml", &one)]).unwrap_err();
        assert_eq!(
            problems,
            ["y.yaml: metadata.name: a is in x.yaml too, and the later would replace the earlier"]
        );
    }
}
