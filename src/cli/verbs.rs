//! `cancel`, `pause`, `resume`, `delete`.

use super::args::JobArgs;
use super::exit::Failure;
use super::output::{print, tell};
use super::request::{self, JobEvents};
use super::text;
use crate::bus::Bus;
use crate::domain::name::JobName;
use crate::wire::command::JobCommand;
use crate::wire::event::JobEventKind;
use crate::wire::subject::JobVerb;

/// Sends the command and waits for the dispatcher's word, for a bounded time.
///
/// # Errors
/// The job's name is none, the dispatcher rejects the command, or nobody answers in time.
pub async fn run(bus: &Bus, verb: JobVerb, args: &JobArgs) -> Result<(), Failure> {
    let job = job_name(&args.job)?;
    let body = serde_json::to_vec(&JobCommand { name: job.clone() })
        .map_err(|error| Failure::input(error.to_string()))?;
    let mut events = JobEvents::of(bus, std::slice::from_ref(&job)).await?;
    let sequence = request::send(bus, verb, body).await?;
    match tokio::time::timeout(args.timeout.0, events.answer(sequence)).await {
        Ok(told) => {
            let event = told?.event.data;
            if event.event == JobEventKind::Rejected {
                return Err(request::rejected(&format!("{} of job/{job}", verb.token()), &event));
            }
            if !event.message.is_empty() {
                tell(&event.message);
            }
            print(&format!("job/{job} {}\n", event.event.token()))
        }
        Err(_) => Err(Failure::timed_out(format!(
            "the request is kept as number {sequence}, but no dispatcher has answered within {}; it is carried out as soon as one runs",
            text::duration(args.timeout.0)
        ))
        .advise("`prewarm check` says whether a dispatcher is there")),
    }
}

/// Reads a job's name.
///
/// # Errors
/// It is not a DNS-1123 subdomain.
pub fn job_name(text: &str) -> Result<JobName, Failure> {
    text.parse()
        .map_err(|error| Failure::input(format!("job name: {error}")))
}
