//! What users ask for at random, and what they were told was accepted.

use std::collections::BTreeMap;

use rand::RngExt as _;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use prewarm::wire::subject::JobVerb;

/// Jobs that there may be at once.
const MOST_JOBS: usize = 14;
/// `Never` jobs among them.
const MOST_STANDING: usize = 4;

/// A request, and the job it is about.
#[derive(Clone, Debug)]
pub(crate) struct Ask {
    pub(crate) verb: JobVerb,
    pub(crate) job: String,
    pub(crate) body: Value,
}

/// What is known of a job by what was asked and stored.
#[derive(Clone, Debug, Default)]
pub(crate) struct Known {
    /// The sequence in `PREWARM_JOBS` of the last request.
    pub(crate) last: u64,
    /// Whether the last request deletes it.
    pub(crate) deleted: bool,
    pub(crate) paused: bool,
    pub(crate) standing: bool,
    /// The most that its parallelism may have been; `None` if it was no plain number.
    pub(crate) parallelism: Option<u32>,
    body: Value,
}

/// Every job that was ever asked for.
#[derive(Default)]
pub(crate) struct Jobs {
    pub(crate) known: BTreeMap<String, Known>,
    /// Images that are there, as `host/repository:tag`.
    images: Vec<String>,
    registry: String,
    number: u32,
    pub(crate) asked: BTreeMap<&'static str, u64>,
}

impl Jobs {
    pub(crate) fn new(registry: &str, images: Vec<String>) -> Self {
        Self {
            images,
            registry: registry.to_owned(),
            ..Self::default()
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.asked.entry(what).or_default() += 1;
    }

    fn living(&self) -> Vec<String> {
        let living = self.known.iter().filter(|(_, known)| !known.deleted);
        living.map(|(name, _)| name.clone()).collect()
    }

    /// The next thing that a user asks for.
    pub(crate) fn draw(&mut self, rng: &mut StdRng) -> Ask {
        let living = self.living();
        let some = |rng: &mut StdRng| living[rng.random_range(0..living.len())].clone();
        if living.len() >= MOST_JOBS {
            let job = some(rng);
            self.count("delete");
            return command(JobVerb::Delete, &job);
        }
        match rng.random_range(0..100) {
            draw if living.len() < 3 || draw < 55 => self.submit(rng),
            55..70 => {
                let job = some(rng);
                self.edit(rng, job)
            }
            70..78 => {
                self.count("cancel");
                command(JobVerb::Cancel, &some(rng))
            }
            78..86 => {
                self.count("delete");
                command(JobVerb::Delete, &some(rng))
            }
            86..94 => {
                self.count("pause");
                command(JobVerb::Pause, &some(rng))
            }
            _ => {
                self.count("resume");
                command(JobVerb::Resume, &some(rng))
            }
        }
    }

    fn some_images(&mut self, rng: &mut StdRng) -> Vec<String> {
        let mut images: Vec<String> = (0..rng.random_range(1..=4))
            .map(|_| self.images[rng.random_range(0..self.images.len())].clone())
            .collect();
        if rng.random_bool(0.1) {
            self.count("image that is not there");
            images.push(format!(
                "{}/team/absent:{}",
                self.registry,
                rng.random_range(0..3)
            ));
        }
        images.sort();
        images.dedup();
        images
    }

    fn submit(&mut self, rng: &mut StdRng) -> Ask {
        self.number += 1;
        let job = format!("job-{}", self.number);
        if rng.random_bool(0.2) {
            return self.submit_kruise(rng, job);
        }
        let mut spec = json!({
            "images": self.some_images(rng),
            "parallelism": rng.random_range(1..=6),
            "priority": rng.random_range(0..=10),
            "absentAfterSeconds": 20 * rng.random_range(1..=6),
            "pullPolicy": {
                "timeoutSeconds": rng.random_range(20..=40),
                "backoffLimit": rng.random_range(1..=5),
            },
        });
        if rng.random_bool(0.2) {
            spec["parallelism"] = "50%".into();
        }
        let mut extra = |what: &'static str, share: f64, change: &dyn Fn(&mut Value)| {
            let is = rng.random_bool(share);
            if is {
                change(&mut spec);
                *self.asked.entry(what).or_default() += 1;
            }
            is
        };
        extra("policy Always", 0.3, &|spec| {
            spec["imagePullPolicy"] = "Always".into()
        });
        extra("pin", 0.2, &|spec| spec["pin"] = true.into());
        extra("selector", 0.2, &|spec| {
            spec["selector"] = json!({"names": ["node-1", "node-3"]})
        });
        extra("failure policy", 0.1, &|spec| {
            spec["failurePolicy"] = json!({"maxFailed": 1})
        });
        let standing = self
            .known
            .values()
            .filter(|known| known.standing && !known.deleted);
        let standing = standing.count() < MOST_STANDING;
        let never = standing
            && extra("Never", 0.3, &|spec| {
                spec["completionPolicy"] = json!({"type": "Never", "repeatSeconds": 60});
            });
        if !never {
            extra("deadline", 0.3, &|spec| {
                spec["completionPolicy"] = json!({"type": "Always", "activeDeadlineSeconds": 60});
            });
        }
        self.count("submit");
        manifest(&job, spec)
    }

    fn submit_kruise(&mut self, rng: &mut StdRng, job: String) -> Ask {
        let mut images = self.some_images(rng);
        let mut spec = json!({
            "parallelism": rng.random_range(1..=6),
            "pullPolicy": {"timeoutSeconds": 30, "backoffLimit": 3},
            "completionPolicy": {"type": "Always", "activeDeadlineSeconds": 90},
        });
        let kind = if rng.random_bool(0.5) {
            spec["image"] = images.swap_remove(0).into();
            "ImagePullJob"
        } else {
            spec["images"] = images.into();
            "ImageListPullJob"
        };
        self.count(kind);
        ask(&job, "apps.kruise.io/v1beta1", kind, spec)
    }

    fn edit(&mut self, rng: &mut StdRng, job: String) -> Ask {
        let mut body = self.known[&job].body.clone();
        let is_native = body["kind"] == "PrewarmJob";
        let spec = &mut body["spec"];
        match rng.random_range(0..3) {
            1 if is_native => spec["priority"] = rng.random_range(0..=10).into(),
            2 if is_native => spec["images"] = self.some_images(rng).into(),
            _ => spec["parallelism"] = rng.random_range(1..=6).into(),
        }
        self.count("edit");
        Ask {
            verb: JobVerb::Submit,
            job,
            body,
        }
    }

    /// What makes every job go on to its end.
    pub(crate) fn resume_all(&self) -> Vec<Ask> {
        let paused = self
            .known
            .iter()
            .filter(|(_, known)| known.paused && !known.deleted);
        paused
            .map(|(job, _)| command(JobVerb::Resume, job))
            .collect()
    }

    /// A job that is for no node, to see that somebody answers.
    pub(crate) fn nothing(&mut self, number: u64) -> Ask {
        let spec = json!({"images": [self.images[0]], "selector": {"names": ["nobody"]}});
        manifest(&format!("nothing-{number}"), spec)
    }

    /// A request is about to be sent, and counts from now on as far as it allows more.
    pub(crate) fn may_be(&mut self, ask: &Ask) {
        let Some(known) = self.known.get_mut(&ask.job) else {
            return;
        };
        if ask.verb == JobVerb::Submit {
            let plain = ask.body["spec"]["parallelism"].as_u64();
            let plain = plain.and_then(|number| u32::try_from(number).ok());
            known.parallelism = known
                .parallelism
                .zip(plain)
                .map(|(before, plain)| before.max(plain));
        }
    }

    /// The broker has stored a request.
    pub(crate) fn stored(&mut self, ask: &Ask, sequence: u64) {
        let known = self.known.entry(ask.job.clone()).or_default();
        if sequence < known.last {
            return;
        }
        let is_new = known.last == 0 || known.deleted;
        known.last = sequence;
        match ask.verb {
            JobVerb::Submit => {
                let spec = &ask.body["spec"];
                let plain = spec["parallelism"]
                    .as_u64()
                    .and_then(|n| u32::try_from(n).ok());
                // What was released under a greater number may still be there.
                known.parallelism = match (is_new, known.parallelism, plain) {
                    (true, _, plain) => plain,
                    (false, Some(before), Some(plain)) => Some(before.max(plain)),
                    _ => None,
                };
                known.deleted = false;
                known.paused &= !is_new;
                known.standing = spec["completionPolicy"]["type"] == "Never";
                known.body = ask.body.clone();
            }
            JobVerb::Delete => known.deleted = true,
            JobVerb::Pause => known.paused = true,
            JobVerb::Resume => known.paused = false,
            JobVerb::Cancel => {}
        }
    }
}

fn manifest(job: &str, spec: Value) -> Ask {
    ask(job, "prewarm.dev/v1", "PrewarmJob", spec)
}

fn ask(job: &str, version: &str, kind: &str, spec: Value) -> Ask {
    let body = json!({
        "apiVersion": version, "kind": kind, "metadata": {"name": job}, "spec": spec,
    });
    Ask {
        verb: JobVerb::Submit,
        job: job.to_owned(),
        body,
    }
}

fn command(verb: JobVerb, job: &str) -> Ask {
    Ask {
        verb,
        job: job.to_owned(),
        body: json!({"name": job}),
    }
}
