//! What a user publishes to change a job that exists.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::event::Problem;
use crate::domain::name::JobName;

/// The body of `job.cancel`, `job.delete`, `job.pause` and `job.resume`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct JobCommand {
    /// The job it is for.
    pub name: JobName,
}

impl JobCommand {
    /// Reads a command.
    ///
    /// # Errors
    /// The body is no `{"name": …}` with a job's name.
    pub fn parse(body: &[u8]) -> Result<Self, Problem> {
        serde_json::from_slice(body).map_err(|error| Problem {
            path: String::new(),
            message: format!("expected {{\"name\": \"<job>\"}}: {error}"),
        })
    }
}
