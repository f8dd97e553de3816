//! `watch`, and the waiting of `run` and `apply`: live bars on a terminal, plain lines anywhere else.

mod state;
mod view;

use std::collections::BTreeMap;
use std::io::IsTerminal as _;
use std::time::Duration;

use async_nats::Subscriber;
use futures::StreamExt as _;
use indicatif::{MultiProgress, ProgressBar, ProgressDrawTarget, ProgressStyle};
use tokio::time::{Instant, MissedTickBehavior};

use super::args::WatchArgs;
use super::exit::{Exit, Failure};
use super::journal::{self, Bucket, Change, From, Journal};
use super::output::{print, tell};
use super::summary::Ending;
use super::{now, text, verbs};
use crate::bus::Bus;
use crate::domain::name::JobName;
use crate::wire::event::{Event, JobEvent, JobEventKind, TaskEvent};
use crate::wire::record::JobRecord;
use crate::wire::subject::Subjects;
use crate::wire::worker::ProgressMessage;
use state::{Input, State};

/// Between two looks of a person at moving bars.
const BAR_TICK: Duration = Duration::from_millis(100);
/// Between two batches of lines.
const LINE_TICK: Duration = Duration::from_secs(1);
/// Batches between two lines that say where a job stands.
const STANDING_EVERY: u32 = 5;
/// Most pulls that get a bar.
const PULLS_SHOWN: usize = 12;

/// Which jobs are watched, and until when.
pub struct Watch {
    /// The jobs.
    pub jobs: Jobs,
    /// The sequence in the stream of events after which it begins.
    pub after: u64,
    /// When to stop waiting, and how long that was for the message.
    pub limit: Option<(Instant, Duration)>,
}

/// Which jobs are watched.
pub enum Jobs {
    /// Every job, for ever.
    All,
    /// One that exists, until it has ended.
    Existing(JobName),
    /// Jobs that were accepted just now, each with the sequence of the event that said so, until an event
    /// says that it has ended, or that the round has for a job that never ends.
    Accepted(BTreeMap<JobName, u64>),
}

impl Jobs {
    fn only(&self) -> Option<&JobName> {
        match self {
            Self::All => None,
            Self::Existing(name) => Some(name),
            Self::Accepted(jobs) if jobs.len() == 1 => jobs.keys().next(),
            Self::Accepted(_) => None,
        }
    }

    fn contain(&self, name: &JobName) -> bool {
        match self {
            Self::All => true,
            Self::Existing(only) => only == name,
            Self::Accepted(jobs) => jobs.contains_key(name),
        }
    }

    /// Whether an event of this sequence came too early to be about this run of the job.
    fn precedes(&self, name: &JobName, sequence: u64) -> bool {
        matches!(self, Self::Accepted(jobs) if jobs.get(name).is_some_and(|from| sequence <= *from))
    }

    /// The ends that are waited for, of those that are known.
    fn endings(&self, state: &State) -> Option<BTreeMap<JobName, Ending>> {
        let ending = |name: &JobName| state.jobs.get(name)?.ending.clone();
        match self {
            Self::All => None,
            Self::Existing(name) => ending(name)
                .filter(|ending| ending.word != JobEventKind::RoundCompleted.token())
                .map(|ending| BTreeMap::from([(name.clone(), ending)])),
            Self::Accepted(jobs) => jobs
                .keys()
                .map(|name| {
                    Some((
                        name.clone(),
                        ending(name).filter(|ending| ending.event.is_some())?,
                    ))
                })
                .collect(),
        }
    }
}

/// Where it is shown.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// It is what was asked for.
    Stdout,
    /// It goes beside what was asked for.
    Stderr,
}

/// `prewarm watch`.
///
/// # Errors
/// The job is not there, fails, or does not end in time; or the broker does not answer.
pub async fn run(bus: &Bus, args: &WatchArgs) -> Result<(), Failure> {
    let events = journal::stream(bus, &bus.subjects.events_stream()).await?;
    let after = events.cached_info().state.last_sequence;
    let limit = args
        .timeout
        .map(|timeout| (Instant::now() + timeout.0, timeout.0));
    let Some(job) = &args.job else {
        let watch = Watch {
            jobs: Jobs::All,
            after,
            limit,
        };
        return follow(bus, watch, Place::Stdout).await.map(drop);
    };
    let job = verbs::job_name(job)?;
    let bucket = bus.subjects.jobs_bucket();
    let records: Vec<JobRecord> = journal::records(bus, &bucket, Some(&job.token())).await?;
    if records.is_empty() {
        return Err(Failure::input(format!("there is no job {job}")));
    }
    let watch = Watch {
        jobs: Jobs::Existing(job),
        after,
        limit,
    };
    let endings = follow(bus, watch, Place::Stdout).await?;
    for ending in endings.values() {
        print(&ending.lines())?;
    }
    match worst(&endings) {
        Exit::Done => Ok(()),
        exit => Err(Failure::told(exit)),
    }
}

/// The exit code for several jobs: that of one that did not succeed, if any.
#[must_use]
pub fn worst(endings: &BTreeMap<JobName, Ending>) -> Exit {
    let bad = endings
        .values()
        .map(Ending::exit)
        .find(|exit| *exit != Exit::Done);
    bad.unwrap_or(Exit::Done)
}

/// Shows jobs until they have ended, and says how they did.
///
/// # Errors
/// The limit passes, or the broker refuses to be read.
pub async fn follow(
    bus: &Bus,
    watch: Watch,
    place: Place,
) -> Result<BTreeMap<JobName, Ending>, Failure> {
    let mut session = Session::open(bus, watch, place).await?;
    let outcome = session.run().await;
    session.screen.clear();
    outcome
}

struct Session {
    watch: Watch,
    state: State,
    records: Bucket,
    events: Journal,
    progress: Subscriber,
    screen: Screen,
    subjects: Subjects,
}

impl Session {
    async fn open(bus: &Bus, watch: Watch, place: Place) -> Result<Self, Failure> {
        let one = watch.jobs.only();
        let progress = journal::subscribe(bus, bus.subjects.progress_of(one)).await?;
        let stream = journal::stream(bus, &bus.subjects.events_stream()).await?;
        let subjects = vec![bus.subjects.job_events(one), bus.subjects.task_events(one)];
        let events = Journal::open(&stream, subjects, From::After(watch.after)).await?;
        let key = one.map(JobName::token);
        let records = Bucket::open(bus, &bus.subjects.jobs_bucket(), key.as_deref()).await?;
        let screen = Screen::new(place);
        let subjects = bus.subjects.clone();
        Ok(Self {
            watch,
            state: State::default(),
            records,
            events,
            progress,
            screen,
            subjects,
        })
    }

    async fn run(&mut self) -> Result<BTreeMap<JobName, Ending>, Failure> {
        while let Some(change) = self.records.next_stored::<JobRecord>().await? {
            self.learn_record(change);
        }
        // What ended before we came is no news to somebody who watches everything.
        if matches!(self.watch.jobs, Jobs::All) {
            self.state.jobs.retain(|_, job| job.ending.is_none());
        }
        let mut ticks = tokio::time::interval(self.screen.tick());
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let limit = self.watch.limit;
        loop {
            if let Some(endings) = self.watch.jobs.endings(&self.state) {
                self.show()?;
                return Ok(endings);
            }
            tokio::select! {
                change = self.records.next() => self.learn_record(change?),
                entry = self.events.next() => self.learn_event(&entry?),
                Some(message) = self.progress.next() => self.learn_progress(&message.payload),
                _ = ticks.tick() => self.show()?,
                () = passes(limit) => return Err(self.out_of_time()),
            }
        }
    }

    fn learn(&mut self, job: &JobName, input: Input) {
        if self.watch.jobs.contain(job) {
            self.state.handle(now(), input);
        }
    }

    fn learn_record(&mut self, change: Change<JobRecord>) {
        match change.record {
            Some(record) => {
                let name = record.metadata.name.clone();
                self.learn(&name, Input::Record(Box::new(record)));
            }
            None => {
                if let Ok(name) = JobName::from_token(&change.key) {
                    self.learn(&name.clone(), Input::Forgotten(name));
                }
            }
        }
    }

    fn learn_event(&mut self, entry: &journal::Entry) {
        let fact = Fact::read(&self.subjects, entry);
        match fact {
            Some(Fact::Task(event)) => {
                let name = event.job.clone();
                self.learn(&name, Input::Task(event));
            }
            Some(Fact::Job(name, _)) if self.watch.jobs.precedes(&name, entry.sequence) => {}
            Some(Fact::Job(name, event)) => self.learn(&name.clone(), Input::Job(name, event)),
            None => tracing::debug!(subject = entry.subject, "not an event of ours"),
        }
    }

    fn learn_progress(&mut self, payload: &[u8]) {
        if let Ok(message) = serde_json::from_slice::<ProgressMessage>(payload) {
            let name = message.job.clone();
            self.learn(&name, Input::Progress(Box::new(message)));
        }
    }

    fn show(&mut self) -> Result<(), Failure> {
        let now = now();
        self.state.tick(now);
        self.screen.show(&mut self.state, now)
    }

    fn out_of_time(&self) -> Failure {
        let waited = self.watch.limit.map(|(_, limit)| limit).unwrap_or_default();
        let ended = |name: &JobName| {
            self.state
                .jobs
                .get(name)
                .is_some_and(|job| job.ending.is_some())
        };
        let names: Vec<&JobName> = match &self.watch.jobs {
            Jobs::All => Vec::new(),
            Jobs::Existing(name) => vec![name],
            Jobs::Accepted(jobs) => jobs.keys().filter(|name| !ended(name)).collect(),
        };
        let waited = text::duration(waited);
        if names.is_empty() {
            return Failure::timed_out(format!("watched for {waited}"));
        }
        Failure::timed_out(format!(
            "job/{} has not ended within {waited}",
            text::some_of(&names, 3)
        ))
        .advise(
            "it goes on; look at it with `prewarm describe job`, or end it with `prewarm cancel`",
        )
    }
}

async fn passes(limit: Option<(Instant, Duration)>) {
    match limit {
        Some((deadline, _)) => tokio::time::sleep_until(deadline).await,
        None => std::future::pending().await,
    }
}

/// An event as far as a watcher cares.
enum Fact {
    Task(Box<TaskEvent>),
    Job(JobName, Box<Event<JobEvent>>),
}

impl Fact {
    fn read(subjects: &Subjects, entry: &journal::Entry) -> Option<Self> {
        let about = |pattern: String| entry.subject.starts_with(pattern.trim_end_matches('>'));
        if about(subjects.task_events(None)) {
            let event: Event<TaskEvent> = serde_json::from_slice(&entry.payload).ok()?;
            return Some(Self::Task(Box::new(event.data)));
        }
        let event: Event<JobEvent> = serde_json::from_slice(&entry.payload).ok()?;
        Some(Self::Job(event.data.job.clone()?, Box::new(event)))
    }
}

enum Screen {
    Bars {
        all: MultiProgress,
        lines: Vec<ProgressBar>,
    },
    Lines {
        place: Place,
        ticks: u32,
        said: BTreeMap<JobName, String>,
    },
}

impl Screen {
    fn new(place: Place) -> Self {
        let terminal = match place {
            Place::Stdout => std::io::stdout().is_terminal(),
            Place::Stderr => std::io::stderr().is_terminal(),
        };
        if !terminal {
            return Self::Lines {
                place,
                ticks: 0,
                said: BTreeMap::new(),
            };
        }
        let target = match place {
            Place::Stdout => ProgressDrawTarget::stdout(),
            Place::Stderr => ProgressDrawTarget::stderr(),
        };
        Self::Bars {
            all: MultiProgress::with_draw_target(target),
            lines: Vec::new(),
        }
    }

    fn tick(&self) -> Duration {
        match self {
            Self::Bars { .. } => BAR_TICK,
            Self::Lines { .. } => LINE_TICK,
        }
    }

    fn show(
        &mut self,
        state: &mut State,
        now: crate::domain::time::Timestamp,
    ) -> Result<(), Failure> {
        match self {
            Self::Bars { all, lines } => {
                for job in state.jobs.values_mut() {
                    job.ended.clear();
                    job.news.clear();
                }
                draw(all, lines, &view::bars(state, now, PULLS_SHOWN));
                Ok(())
            }
            Self::Lines { place, ticks, said } => {
                let mut new = Vec::new();
                for (name, job) in &mut state.jobs {
                    new.extend(view::news(name, job));
                }
                if *ticks % STANDING_EVERY == STANDING_EVERY - 1 {
                    for name in state.jobs.keys() {
                        let standing = view::standing(state, name, now);
                        if let Some(line) = standing.filter(|line| said.get(name) != Some(line)) {
                            new.push(line.clone());
                            said.insert(name.clone(), line);
                        }
                    }
                }
                *ticks += 1;
                for line in new {
                    match place {
                        Place::Stdout => print(&format!("{line}\n"))?,
                        Place::Stderr => tell(&line),
                    }
                }
                Ok(())
            }
        }
    }

    /// Leaves the terminal to what comes next.
    fn clear(&mut self) {
        if let Self::Bars { all, lines } = self {
            for line in lines.drain(..) {
                line.finish_and_clear();
            }
            // A terminal that cannot be cleared keeps the last picture.
            let _ = all.clear();
        }
    }
}

/// One indicatif line for each of ours: the library keeps them in place and cuts them to the width.
fn draw(all: &MultiProgress, lines: &mut Vec<ProgressBar>, texts: &[String]) {
    while lines.len() > texts.len() {
        if let Some(line) = lines.pop() {
            line.finish_and_clear();
            all.remove(&line);
        }
    }
    while lines.len() < texts.len() {
        let line = all.add(ProgressBar::no_length());
        if let Ok(style) = ProgressStyle::with_template("{wide_msg}") {
            line.set_style(style);
        }
        lines.push(line);
    }
    for (line, text) in lines.iter().zip(texts) {
        if line.message() != *text {
            line.set_message(text.clone());
        }
    }
}

#[cfg(test)]
mod tests;
