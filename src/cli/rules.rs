//! Push rules: stored by `apply`, deleted, and tried out without making a job.

use async_nats::jetstream::kv::Store;
use axum::http::HeaderMap;
use serde_json::{Value, json};

use super::apply;
use super::args::{RulesArgs, RulesCommand, RulesTestArgs};
use super::exit::Failure;
use super::journal::{self, Bucket};
use super::output::{self, print, tell};
use super::text;
use super::verbs::job_name;
use crate::bus::Bus;
use crate::domain::image::Digest;
use crate::webhook::admit::DIGEST_ONLY_IS_OFF;
use crate::webhook::source;
use crate::wire::manifest::rule::PushRule;
use crate::wire::push::Push;

/// Stores rules where dispatchers see them at once.
///
/// # Errors
/// Nobody set the broker up, or it does not answer.
pub async fn store(bus: &Bus, rules: &[PushRule]) -> Result<(), Failure> {
    if rules.is_empty() {
        return Ok(());
    }
    let bucket = bucket(bus).await?;
    for rule in rules {
        let body = rule.document().to_string();
        bucket
            .put(rule.name.token(), body.into())
            .await
            .map_err(|error| journal::unanswered("a push rule that it should keep", &error))?;
        print(&format!("rule/{} applied\n", rule.name))?;
    }
    Ok(())
}

async fn bucket(bus: &Bus) -> Result<Store, Failure> {
    let name = bus.subjects.rules_bucket();
    journal::stream(bus, &format!("KV_{name}")).await?;
    let bucket = bus.jetstream.get_key_value(&name).await;
    bucket.map_err(|error| journal::unanswered("a look at the push rules", &error))
}

/// `prewarm rules delete`.
///
/// # Errors
/// The name is none, there is no such rule, or the broker does not answer.
pub async fn delete(bus: &Bus, name: &str) -> Result<(), Failure> {
    let name = job_name(name)?;
    let bucket = bucket(bus).await?;
    let there = bucket.get(name.token()).await;
    let there = there.map_err(|error| journal::unanswered("a look at a push rule", &error))?;
    if there.is_none() {
        return Err(Failure::input(format!("there is no rule {name}")));
    }
    bucket
        .delete(name.token())
        .await
        .map_err(|error| journal::unanswered("the deletion of a push rule", &error))?;
    print(&format!("rule/{name} deleted\n"))
}

/// `prewarm rules`.
///
/// # Errors
/// As [`delete`] and [`test()`].
pub async fn run(bus: Option<&Bus>, args: &RulesArgs) -> Result<(), Failure> {
    match (&args.command, bus) {
        (RulesCommand::Test(args), bus) => test(bus, args).await,
        (RulesCommand::Delete { name }, Some(bus)) => delete(bus, name).await,
        (RulesCommand::Delete { .. }, None) => Err(Failure::unreachable("no broker")),
    }
}

/// Whether a command on rules needs a broker.
#[must_use]
pub fn needs_broker(args: &RulesArgs) -> bool {
    match &args.command {
        RulesCommand::Delete { .. } => true,
        RulesCommand::Test(args) => args.filename.is_empty(),
    }
}

/// `prewarm rules test`: says what would come of a payload. Nothing is published.
///
/// # Errors
/// The payload is not what its source sends, a rule is wrong, or the broker, asked for its rules, does
/// not answer.
pub async fn test(bus: Option<&Bus>, args: &RulesTestArgs) -> Result<(), Failure> {
    let rules = match bus {
        Some(bus) => stored(bus).await?,
        None => apply::load(&args.filename)?.rules,
    };
    let (pushes, ignored) = read_payload(args)?;
    let outcomes: Vec<Outcome> = pushes
        .into_iter()
        .map(|push| Outcome::of(push, &rules))
        .collect();
    for why in &ignored {
        tell(&format!("no push of an image: {why}"));
    }
    if outcomes.iter().any(|outcome| outcome.is_resolved_later) {
        tell(
            "the payload has no digest: the dispatcher asks the registry for it; zeros stand for it here",
        );
    }
    if let Some(format) = args.output {
        let pushes: Vec<Value> = outcomes.iter().map(Outcome::data).collect();
        return print(&output::document(
            format,
            &json!({"pushes": pushes, "ignored": ignored}),
        )?);
    }
    let mut rows = vec![
        ["PUSH", "RULE", "JOB", "IMAGES"]
            .map(str::to_owned)
            .to_vec(),
    ];
    rows.extend(outcomes.iter().flat_map(Outcome::rows));
    print(&text::columns(&rows))
}

async fn stored(bus: &Bus) -> Result<Vec<PushRule>, Failure> {
    let mut bucket = Bucket::open(bus, &bus.subjects.rules_bucket(), None).await?;
    let mut rules = Vec::new();
    while let Some(change) = bucket.next_stored::<PushRule>().await? {
        rules.extend(change.record);
    }
    Ok(rules)
}

fn read_payload(args: &RulesTestArgs) -> Result<(Vec<Push>, Vec<String>), Failure> {
    let (name, body) = apply::contents(&args.payload)?;
    let wrong = |message: String| Failure::input(format!("{name}: {message}"));
    if let Some(source) = &args.source {
        let source = source.parse::<source::Source>();
        let source = source.map_err(|error| Failure::input(format!("--source: {error}")))?;
        let reading = source::read(source, &HeaderMap::new(), &body);
        let reading = reading.map_err(|rejection| wrong(rejection.to_string()))?;
        let (mut pushes, mut ignored) = (reading.pushes, reading.ignored);
        if args.digest_only {
            pushes.extend(reading.by_digest);
        } else {
            let by_digest = reading.by_digest.iter();
            ignored.extend(by_digest.map(|_| DIGEST_ONLY_IS_OFF.to_owned()));
        }
        return Ok((pushes, ignored));
    }
    let list = |problems: Vec<crate::wire::event::Problem>| {
        let problems: Vec<String> = problems.iter().map(ToString::to_string).collect();
        wrong(format!(
            "{}; a registry's own payload needs --source",
            problems.join("; ")
        ))
    };
    Ok((vec![Push::parse(&body).map_err(list)?], Vec::new()))
}

/// What would come of a push.
struct Outcome {
    push: Push,
    /// Whether the registry would be asked what its tag means.
    is_resolved_later: bool,
    /// Each rule that matches, and the job, or why there is none.
    jobs: Vec<(String, Result<Value, String>)>,
}

impl Outcome {
    fn of(push: Push, rules: &[PushRule]) -> Self {
        let is_resolved_later = push.digest.is_none();
        let known = Push {
            digest: push
                .digest
                .clone()
                .or_else(|| Some(Digest::from_sha256([0; 32]))),
            ..push.clone()
        };
        let jobs = rules.iter().filter(|rule| rule.matches(&push)).map(|rule| {
            let job = rule
                .manifest(&known)
                .map_err(|rejection| rejection.to_string());
            (rule.name.to_string(), job)
        });
        Self {
            jobs: jobs.collect(),
            push,
            is_resolved_later,
        }
    }

    fn data(&self) -> Value {
        let jobs: Vec<Value> = self
            .jobs
            .iter()
            .map(|(rule, job)| match job {
                Ok(manifest) => json!({"rule": rule, "manifest": manifest}),
                Err(problem) => json!({"rule": rule, "problem": problem}),
            })
            .collect();
        json!({"push": self.push, "jobs": jobs})
    }

    fn rows(&self) -> Vec<Vec<String>> {
        let push = self
            .push
            .image()
            .map_or_else(|problem| problem, |image| image.to_string());
        if self.jobs.is_empty() {
            return vec![vec![
                push,
                "no rule".to_owned(),
                "-".to_owned(),
                "-".to_owned(),
            ]];
        }
        let row = |(rule, job): &(String, Result<Value, String>)| {
            let (name, images) = match job {
                Ok(manifest) => {
                    let texts = |value: &Value| value.as_str().map(str::to_owned);
                    let images = manifest["spec"]["images"].as_array();
                    let images: Vec<String> =
                        images.into_iter().flatten().filter_map(texts).collect();
                    (
                        texts(&manifest["metadata"]["name"]).unwrap_or_default(),
                        images.join(" "),
                    )
                }
                Err(problem) => ("-".to_owned(), problem.replace('\n', "; ")),
            };
            vec![push.clone(), rule.clone(), name, images]
        };
        self.jobs.iter().map(row).collect()
    }
}

/// What a rule says, for `describe`.
///
/// # Errors
/// There is no such rule, or the broker does not answer.
pub async fn described(bus: &Bus, name: &str) -> Result<String, Failure> {
    let name = job_name(name)?;
    let rules = stored(bus).await?;
    match rules.iter().find(|rule| rule.name == name) {
        Some(rule) => output::document(output::DataFormat::Yaml, rule.document()),
        None => Err(Failure::input(format!("there is no rule {name}"))),
    }
}
