//! Plans that failed once, kept as data in `regressions/`.

use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use crate::plan::Plan;

/// One of them.
#[derive(Serialize, Deserialize)]
pub struct Regression {
    /// What was wrong, in a sentence.
    pub found: String,
    /// Under which chance it showed.
    pub seed: u64,
    pub plan: Plan,
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/simulation/regressions")
}

/// Every one, with its file.
///
/// # Panics
/// When a file of the folder is none.
pub fn all() -> Vec<(PathBuf, Regression)> {
    let files = std::fs::read_dir(folder()).expect("the folder of regressions");
    let mut files: Vec<PathBuf> = files.map(|file| file.expect("a file").path()).collect();
    files.sort();
    let read = |file: PathBuf| {
        let text = std::fs::read(&file).expect("a regression's text");
        let kept = serde_json::from_slice(&text);
        let kept = kept.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        (file, kept)
    };
    files.into_iter().map(read).collect()
}

/// Writes a plan that fails, for somebody to keep; says what to do with it.
pub fn write(seed: u64, plan: Plan, failure: &str) -> String {
    let name = format!("{seed}.json");
    let regression = Regression {
        found: failure.lines().next().unwrap_or_default().to_owned(),
        seed,
        plan,
    };
    let text = serde_json::to_string_pretty(&regression).expect("a plan as JSON");
    let file = std::env::temp_dir().join(format!("prewarm-sim-{name}"));
    match std::fs::write(&file, text + "\n") {
        Ok(()) => format!(
            "The plan is in {}. Say in its `found` what was wrong, and keep it as tests/simulation/regressions/{name}.",
            file.display()
        ),
        Err(error) => format!("The plan could not be written: {error}."),
    }
}
