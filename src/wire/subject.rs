//! Every subject, stream and bucket name, built and read in one place.

use std::fmt;
use std::str::FromStr;

use crate::domain::image::ImageRef;
use crate::domain::name::{JobName, NodeName};

/// Names the subject part of a job whose manifest had no readable name; no job is called that.
pub const UNNAMED: &str = "_";

/// The first tokens of every subject, such as `prewarm` or `acme.prewarm`: one per cell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SubjectPrefix(Box<str>);

/// A text that cannot begin a subject.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error(
    "{0:?} is not a subject prefix: use letters, digits, '-' and '_' in parts separated by '.', at most 64 characters"
)]
pub struct SubjectPrefixError(String);

impl FromStr for SubjectPrefix {
    type Err = SubjectPrefixError;

    fn from_str(text: &str) -> Result<Self, SubjectPrefixError> {
        let legal = |part: &str| {
            !part.is_empty()
                && part
                    .bytes()
                    .all(|b| b.is_ascii_alphanumeric() || b == b'-' || b == b'_')
        };
        if text.len() <= 64 && text.split('.').all(legal) {
            Ok(Self(text.into()))
        } else {
            Err(SubjectPrefixError(text.to_owned()))
        }
    }
}

impl fmt::Display for SubjectPrefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Default for SubjectPrefix {
    fn default() -> Self {
        Self("prewarm".into())
    }
}

/// What can be done with a job by publishing its name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord)]
pub enum JobVerb {
    /// A manifest: a new job, an edit, or another run of a finished one.
    Submit,
    /// End the job; what it has done stays.
    Cancel,
    /// End the job and forget it.
    Delete,
    /// Release nothing more until resumed.
    Pause,
    /// Go on after a pause.
    Resume,
}

impl JobVerb {
    /// Every verb.
    pub const ALL: [Self; 5] = [
        Self::Submit,
        Self::Cancel,
        Self::Delete,
        Self::Pause,
        Self::Resume,
    ];

    /// The verb's subject token.
    #[must_use]
    pub const fn token(self) -> &'static str {
        match self {
            Self::Submit => "submit",
            Self::Cancel => "cancel",
            Self::Delete => "delete",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }
}

/// The three parts that name one pull: which node, for which job, which image.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct PullKey {
    /// The node it happens on.
    pub node: NodeName,
    /// The job it is for.
    pub job: JobName,
    /// The image's token, see [`ImageRef::token`].
    pub image: String,
}

impl PullKey {
    /// Names the pull of this image.
    #[must_use]
    pub fn new(node: NodeName, job: JobName, image: &ImageRef) -> Self {
        Self {
            node,
            job,
            image: image.token(),
        }
    }
}

/// Builds and reads the names of one cell.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Subjects {
    prefix: SubjectPrefix,
}

impl Subjects {
    /// The names under this prefix.
    #[must_use]
    pub const fn new(prefix: SubjectPrefix) -> Self {
        Self { prefix }
    }

    /// The prefix itself.
    #[must_use]
    pub const fn prefix(&self) -> &SubjectPrefix {
        &self.prefix
    }

    fn upper(&self, suffix: &str) -> String {
        format!(
            "{}_{suffix}",
            self.prefix.0.replace('.', "_").to_uppercase()
        )
    }

    fn bucket(&self, suffix: &str) -> String {
        format!("{}_{suffix}", self.prefix.0.replace('.', "_"))
    }

    /// The work-queue stream of what users ask: `PREWARM_JOBS`.
    #[must_use]
    pub fn jobs_stream(&self) -> String {
        self.upper("JOBS")
    }

    /// The stream of released pulls, one message per subject: `PREWARM_TASKS`.
    #[must_use]
    pub fn tasks_stream(&self) -> String {
        self.upper("TASKS")
    }

    /// The stream of everything that happened: `PREWARM_EVENTS`.
    #[must_use]
    pub fn events_stream(&self) -> String {
        self.upper("EVENTS")
    }

    /// The bucket of job records: `prewarm_jobs`.
    #[must_use]
    pub fn jobs_bucket(&self) -> String {
        self.bucket("jobs")
    }

    /// The bucket of node records: `prewarm_nodes`.
    #[must_use]
    pub fn nodes_bucket(&self) -> String {
        self.bucket("nodes")
    }

    /// The bucket of the leader's lease: `prewarm_leases`.
    #[must_use]
    pub fn leases_bucket(&self) -> String {
        self.bucket("leases")
    }

    /// The bucket of push rules: `prewarm_rules`.
    #[must_use]
    pub fn rules_bucket(&self) -> String {
        self.bucket("rules")
    }

    /// Where a verb on a job is published: `prewarm.job.submit`.
    #[must_use]
    pub fn job(&self, verb: JobVerb) -> String {
        format!("{}.job.{}", self.prefix, verb.token())
    }

    /// Reads the verb back from [`Subjects::job`].
    #[must_use]
    pub fn parse_job(&self, subject: &str) -> Option<JobVerb> {
        JobVerb::ALL
            .into_iter()
            .find(|verb| self.job(*verb) == subject)
    }

    /// Where an image push is published: `prewarm.push`.
    #[must_use]
    pub fn push(&self) -> String {
        format!("{}.push", self.prefix)
    }

    /// Where one pull is released to its node: `prewarm.task.<node>.<job>.<image>`.
    #[must_use]
    pub fn task(&self, key: &PullKey) -> String {
        format!(
            "{}.task.{}.{}.{}",
            self.prefix,
            key.node.token(),
            key.job.token(),
            key.image
        )
    }

    /// Every pull of a node: `prewarm.task.<node>.>`.
    #[must_use]
    pub fn tasks_of_node(&self, node: &NodeName) -> String {
        format!("{}.task.{}.>", self.prefix, node.token())
    }

    /// Every pull of a job: `prewarm.task.*.<job>.>`.
    #[must_use]
    pub fn tasks_of_job(&self, job: &JobName) -> String {
        format!("{}.task.*.{}.>", self.prefix, job.token())
    }

    /// Every pull: `prewarm.task.>`.
    #[must_use]
    pub fn tasks(&self) -> String {
        format!("{}.task.>", self.prefix)
    }

    /// Reads the pull back from [`Subjects::task`].
    #[must_use]
    pub fn parse_task(&self, subject: &str) -> Option<PullKey> {
        let rest = subject
            .strip_prefix(&*self.prefix.0)?
            .strip_prefix(".task.")?;
        let [node, job, image] = tokens(rest)?;
        Some(PullKey {
            node: NodeName::from_token(node).ok()?,
            job: JobName::from_token(job).ok()?,
            image: image.to_owned(),
        })
    }

    /// Where a worker announces itself: `prewarm.worker.<node>`.
    #[must_use]
    pub fn worker(&self, node: &NodeName) -> String {
        format!("{}.worker.{}", self.prefix, node.token())
    }

    /// Every worker's announcement: `prewarm.worker.*`.
    #[must_use]
    pub fn workers(&self) -> String {
        format!("{}.worker.*", self.prefix)
    }

    /// Where a worker says that it lives: `prewarm.heartbeat.<node>`.
    #[must_use]
    pub fn heartbeat(&self, node: &NodeName) -> String {
        format!("{}.heartbeat.{}", self.prefix, node.token())
    }

    /// Every heartbeat: `prewarm.heartbeat.*`.
    #[must_use]
    pub fn heartbeats(&self) -> String {
        format!("{}.heartbeat.*", self.prefix)
    }

    /// Where the dispatcher tells a worker to stop pulls: `prewarm.revoke.<node>`.
    #[must_use]
    pub fn revoke(&self, node: &NodeName) -> String {
        format!("{}.revoke.{}", self.prefix, node.token())
    }

    /// Reads the node back from the one-token subjects: worker, heartbeat, revoke.
    #[must_use]
    pub fn parse_node(&self, subject: &str) -> Option<NodeName> {
        let rest = subject.strip_prefix(&*self.prefix.0)?.strip_prefix('.')?;
        let (_, token) = rest.split_once('.')?;
        NodeName::from_token(token).ok()
    }

    /// Where a fact about a pull is published: `prewarm.event.task.<job>.<node>.<image>`.
    #[must_use]
    pub fn task_event(&self, key: &PullKey) -> String {
        format!(
            "{}.event.task.{}.{}.{}",
            self.prefix,
            key.job.token(),
            key.node.token(),
            key.image
        )
    }

    /// Every fact about every pull, or those of one job.
    #[must_use]
    pub fn task_events(&self, job: Option<&JobName>) -> String {
        match job {
            Some(job) => format!("{}.event.task.{}.>", self.prefix, job.token()),
            None => format!("{}.event.task.>", self.prefix),
        }
    }

    /// Every fact about every pull of a node: `prewarm.event.task.*.<node>.*`.
    #[must_use]
    pub fn task_events_of_node(&self, node: &NodeName) -> String {
        format!("{}.event.task.*.{}.*", self.prefix, node.token())
    }

    /// Where a fact about a job is published: `prewarm.event.job.<job>.<type>`.
    #[must_use]
    pub fn job_event(&self, job: Option<&JobName>, kind: &str) -> String {
        let token = job.map_or_else(|| UNNAMED.to_owned(), JobName::token);
        format!("{}.event.job.{token}.{kind}", self.prefix)
    }

    /// Every fact about every job, or about one.
    #[must_use]
    pub fn job_events(&self, job: Option<&JobName>) -> String {
        match job {
            Some(job) => format!("{}.event.job.{}.>", self.prefix, job.token()),
            None => format!("{}.event.job.>", self.prefix),
        }
    }

    /// Where a fact about a node is published: `prewarm.event.node.<node>.<type>`.
    #[must_use]
    pub fn node_event(&self, node: &NodeName, kind: &str) -> String {
        format!("{}.event.node.{}.{kind}", self.prefix, node.token())
    }

    /// Every event: `prewarm.event.>`.
    #[must_use]
    pub fn events(&self) -> String {
        format!("{}.event.>", self.prefix)
    }

    /// Where live progress of a pull is published: `prewarm.progress.<job>.<node>.<image>`.
    #[must_use]
    pub fn progress(&self, key: &PullKey) -> String {
        format!(
            "{}.progress.{}.{}.{}",
            self.prefix,
            key.job.token(),
            key.node.token(),
            key.image
        )
    }

    /// Live progress of every pull, or of one job.
    #[must_use]
    pub fn progress_of(&self, job: Option<&JobName>) -> String {
        match job {
            Some(job) => format!("{}.progress.{}.>", self.prefix, job.token()),
            None => format!("{}.progress.>", self.prefix),
        }
    }

    /// An endpoint of the request/reply service: `prewarm.api.<endpoint>`.
    #[must_use]
    pub fn api(&self, endpoint: &str) -> String {
        format!("{}.api.{endpoint}", self.prefix)
    }
}

fn tokens(text: &str) -> Option<[&str; 3]> {
    let mut parts = text.split('.');
    let three = [parts.next()?, parts.next()?, parts.next()?];
    parts.next().is_none().then_some(three)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key() -> PullKey {
        let image: ImageRef = "nginx:1".parse().unwrap();
        PullKey::new(
            "node-1.eu".parse().unwrap(),
            "base.images".parse().unwrap(),
            &image,
        )
    }

    #[test]
    fn subjects_are_those_of_the_contract() {
        let subjects = Subjects::default();
        let image = key().image;
        assert_eq!(
            subjects.task(&key()),
            format!("prewarm.task.node-1_eu.base_images.{image}")
        );
        assert_eq!(
            subjects.task_event(&key()),
            format!("prewarm.event.task.base_images.node-1_eu.{image}")
        );
        assert_eq!(subjects.job(JobVerb::Submit), "prewarm.job.submit");
        assert_eq!(
            subjects.tasks_of_job(&key().job),
            "prewarm.task.*.base_images.>"
        );
        assert_eq!(
            subjects.job_event(None, "rejected"),
            "prewarm.event.job._.rejected"
        );
        assert_eq!(subjects.jobs_stream(), "PREWARM_JOBS");
        assert_eq!(subjects.jobs_bucket(), "prewarm_jobs");
    }

    #[test]
    fn what_was_built_reads_back() {
        let subjects = Subjects::new("acme.prewarm".parse().unwrap());
        assert_eq!(subjects.parse_task(&subjects.task(&key())), Some(key()));
        assert_eq!(
            subjects.parse_node(&subjects.heartbeat(&key().node)),
            Some(key().node)
        );
        for verb in JobVerb::ALL {
            assert_eq!(subjects.parse_job(&subjects.job(verb)), Some(verb));
        }
        assert_eq!(subjects.tasks_stream(), "ACME_PREWARM_TASKS");
    }

    #[test]
    fn foreign_subjects_are_not_read() {
        let subjects = Subjects::default();
        for foreign in [
            "prewarm.task.a.b",
            "prewarm.task.a.b.c.d",
            "other.task.a.b.c",
            "prewarm.task.A.b.c",
        ] {
            assert_eq!(subjects.parse_task(foreign), None, "{foreign}");
        }
        for bad in ["", "a..b", "a b", "a.*", ">"] {
            assert!(
                bad.parse::<SubjectPrefix>().is_err(),
                "{bad:?} was accepted"
            );
        }
    }
}
