//! One run: storms and calms in turn until the time is over or something is broken.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use async_nats::jetstream::message::PublishMessage;
use prewarm::domain::status::Outcome;
use prewarm::wire::record::JobRecord;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};

use crate::cast::Role;
use crate::faults::{Fault, Faults, change_weather, empty_some};
use crate::jobs::{Ask, Jobs};
use crate::proof::{self, Looked};
use crate::stage::Stage;
use crate::truth::{Now, Truth, tasks, waiting_requests};

/// How long everything may take to come to rest.
const REST_LIMIT: Duration = Duration::from_secs(240);
/// The most of it that counts of one look: a machine that was put to sleep meanwhile had no time to rest.
const LONGEST_LOOK: Duration = Duration::from_secs(20);
/// What a dispatcher or a worker may have resident: the limit of the shipped deployments.
const MOST_RESIDENT_KIB: u64 = 300 * 1024;
/// How long a request may take to be stored before it is sent again.
const ASK_LIMIT: Duration = Duration::from_secs(2);
/// Between two looks at what has become due.
const TICK: Duration = Duration::from_millis(100);
/// A run of this length has to see every kind of fault.
const SEES_EVERYTHING: Duration = Duration::from_secs(5 * 60);

/// How long things take.
pub(crate) struct Plan {
    length: Duration,
    storm: std::ops::Range<u64>,
    /// Milliseconds between two faults.
    faults: std::ops::Range<u64>,
}

impl Plan {
    pub(crate) fn for_time(length: Duration) -> Self {
        Self {
            length,
            storm: 20_000..40_000,
            faults: 200..1_400,
        }
    }

    pub(crate) fn smoke() -> Self {
        Self {
            length: Duration::from_secs(1),
            storm: 8_000..8_001,
            faults: 300..900,
        }
    }
}

struct Run {
    stage: Stage,
    rng: StdRng,
    faults: Faults,
    jobs: Jobs,
    truth: Truth,
    looked: Looked,
    /// Requests that the broker has not said it stored.
    unsure: VecDeque<(String, Ask)>,
    asks: u64,
    samples: u64,
    /// Of any dispatcher or worker at rest, in KiB.
    most_resident: u64,
    broken: Vec<String>,
    began: Instant,
}

/// Runs, prints what it saw, and returns what is broken.
pub(crate) async fn run(seed: u64, plan: &Plan) -> Vec<String> {
    let began = Instant::now();
    let stage = Stage::build(seed).await;
    let mut run = Run {
        jobs: Jobs::new(&stage.registry, stage.images.clone()),
        stage,
        rng: StdRng::seed_from_u64(seed),
        faults: Faults::new(),
        truth: Truth::default(),
        looked: Looked::default(),
        unsure: VecDeque::new(),
        asks: 0,
        samples: 0,
        most_resident: 0,
        broken: Vec::new(),
        began,
    };
    run.settle().await;
    run.say("the cell works");
    let end = Instant::now() + plan.length;
    while run.broken.is_empty() && Instant::now() < end {
        run.storm(plan).await;
        run.calm().await;
    }
    run.report(plan);
    run.broken
}

impl Run {
    fn say(&self, what: &str) {
        println!("{:>6.1} {what}", self.began.elapsed().as_secs_f64());
    }

    async fn storm(&mut self, plan: &Plan) {
        let end = Instant::now() + Duration::from_millis(self.rng.random_range(plan.storm.clone()));
        let weather = change_weather(&self.stage, &mut self.rng);
        self.say(&weather);
        let (mut fault_at, mut ask_at) = (Instant::now(), Instant::now());
        let mut sample_at = Instant::now() + Duration::from_secs(3);
        while Instant::now() < end {
            let now = Instant::now();
            if now >= fault_at {
                let said = self.faults.strike(&mut self.stage, &mut self.rng).await;
                self.say(&said);
                fault_at = now + Duration::from_millis(self.rng.random_range(plan.faults.clone()));
            }
            if now >= ask_at {
                let ask = self.jobs.draw(&mut self.rng);
                self.ask(ask);
                ask_at = now + Duration::from_millis(self.rng.random_range(500..2_500));
            }
            self.press().await;
            if now >= sample_at {
                self.sample().await;
                sample_at = now + Duration::from_secs(3);
            }
            self.faults.tick(&mut self.stage);
            tokio::time::sleep(TICK).await;
        }
    }

    fn ask(&mut self, ask: Ask) {
        self.asks += 1;
        self.jobs.may_be(&ask);
        self.unsure.push_back((format!("ask-{}", self.asks), ask));
    }

    /// Sends what the broker has not said it stored, in order, each until it is.
    async fn press(&mut self) {
        while let Some((id, ask)) = self.unsure.front() {
            let bus = &self.stage.bus;
            let message = PublishMessage::build()
                .message_id(id)
                .payload(ask.body.to_string().into());
            let subject = bus.subjects.job(ask.verb);
            let stored = async {
                let sent = bus.jetstream.send_publish(subject, message).await.ok()?;
                sent.await.ok()
            };
            match tokio::time::timeout(ASK_LIMIT, stored).await {
                Ok(Some(ack)) => {
                    self.jobs.stored(ask, ack.sequence);
                    self.unsure.pop_front();
                }
                _ => return,
            }
        }
    }

    /// Looks whether a job has more under way than it may, as far as the broker answers.
    async fn sample(&mut self) {
        let limit = Duration::from_secs(2);
        let bus = self.stage.bus.clone();
        let Ok(Ok(tasks)) = tokio::time::timeout(limit, tasks(&bus)).await else {
            return;
        };
        if let Ok(Ok(())) = tokio::time::timeout(limit, self.truth.read(&bus)).await {
            self.samples += 1;
            let beyond = self.truth.beyond_parallelism(&tasks, &self.jobs);
            self.broken.extend(beyond);
        }
    }

    async fn calm(&mut self) {
        self.say("calm");
        self.faults.heal(&mut self.stage);
        let began = Instant::now();
        let Some(now) = self.settle().await else {
            return;
        };
        self.say(&format!("everything rests after {:?}", began.elapsed()));
        self.check(&now).await;
        if self.broken.is_empty() {
            self.take_over(&now).await;
        }
        if self.broken.is_empty() {
            empty_some(&mut self.faults, &mut self.stage, &mut self.rng).await;
        }
        self.say(&format!("checked: {:?}", self.broken));
    }

    /// Waits until everything has come to rest.
    async fn settle(&mut self) -> Option<Now> {
        let mut waited = Duration::ZERO;
        loop {
            let began = Instant::now();
            self.faults.heal(&mut self.stage);
            // A pause may only now have reached the broker.
            if self.unsure.is_empty() {
                for ask in self.jobs.resume_all() {
                    self.ask(ask);
                }
            }
            self.press().await;
            let seen = self.look().await;
            match seen {
                Ok(now) => return Some(now),
                Err(reason) if waited > REST_LIMIT => {
                    self.broken
                        .push(format!("nothing came to rest in {REST_LIMIT:?}: {reason}"));
                    return None;
                }
                Err(_) => tokio::time::sleep(Duration::from_millis(500)).await,
            }
            waited += began.elapsed().min(LONGEST_LOOK);
        }
    }

    async fn look(&mut self) -> Result<Now, String> {
        if let Some((id, ask)) = self.unsure.front() {
            return Err(format!("the broker did not take {id}: {ask:?}"));
        }
        if let Some(down) = self.stage.cast.iter().find(|member| !member.is_well()) {
            return Err(format!("{} is down", down.name));
        }
        let bus = self.stage.bus.clone();
        let waiting = waiting_requests(&bus).await?;
        let now = Now::read(&bus).await?;
        self.truth.read(&bus).await?;
        self.truth.rests(&now, &self.jobs, waiting)?;
        Ok(now)
    }

    async fn check(&mut self, now: &Now) {
        self.broken.extend(self.truth.broken(now, &self.jobs));
        let warm = self.truth.warm(now);
        let found = proof::broken(&self.stage, &warm, &mut self.looked).await;
        self.broken.extend(found);
        for member in &mut self.stage.cast {
            let resident = match member.role {
                Role::Dispatcher | Role::Worker => member.resident().unwrap_or_default(),
                Role::Broker | Role::Containerd | Role::Registry => continue,
            };
            self.most_resident = self.most_resident.max(resident);
            if resident > MOST_RESIDENT_KIB {
                self.broken
                    .push(format!("{} has {resident} KiB resident", member.name));
            }
        }
        for entry in std::fs::read_dir(&self.stage.dir)
            .expect("the logs")
            .flatten()
        {
            if entry
                .path()
                .extension()
                .is_none_or(|extension| extension != "log")
            {
                continue;
            }
            let log = std::fs::read_to_string(entry.path()).unwrap_or_default();
            if let Some(line) = log.lines().find(|line| line.contains("panicked at")) {
                self.broken
                    .push(format!("{}: {line}", entry.path().display()));
            }
        }
    }

    /// Every dispatcher is killed; the one that leads then must know what the one before knew.
    async fn take_over(&mut self, before: &Now) {
        for member in &mut self.stage.cast {
            if member.role == Role::Dispatcher {
                member.kill(Duration::ZERO);
                self.faults.count(Fault::Kill(Role::Dispatcher));
            }
        }
        self.say("every dispatcher was killed");
        self.faults.heal(&mut self.stage);
        let ask = self.jobs.nothing(self.asks);
        let name = ask.job.clone();
        self.ask(ask);
        let Some(after) = self.settle().await else {
            return;
        };
        let at_rest = |record: &&JobRecord| record.status.outcome.is_some();
        for record in before.records.values().filter(at_rest) {
            let job = record.metadata.name.as_str();
            if after.records.get(job) != Some(record) {
                self.broken.push(format!(
                    "{job} changed by a take-over: {record:?}, {:?}",
                    after.records.get(job)
                ));
            }
        }
        let answered = after
            .records
            .get(&name)
            .and_then(|record| record.status.outcome);
        if answered != Some(Outcome::Succeeded) {
            self.broken.push(format!("{name} ended as {answered:?}"));
        }
    }

    fn report(&mut self, plan: &Plan) {
        let seen = self.faults.seen(&self.stage);
        println!("\nfaults:");
        for (fault, count) in &seen {
            println!("  {count:>6} {fault:?}");
        }
        println!("asked for:");
        for (what, count) in &self.jobs.asked {
            println!("  {count:>6} {what}");
        }
        let Looked {
            images,
            blobs,
            containers,
            leases_left,
        } = &self.looked;
        println!(
            "in {:.0} s: {} kills; {} jobs, {} events, {} ends of pulls ({} again, another way); {} looks at parallelism; looked at {images} images, {blobs} blobs, ran {containers} containers; {leases_left} leases left to end; at most {} MiB resident",
            self.began.elapsed().as_secs_f64(),
            self.faults.kills(),
            self.jobs.known.len(),
            self.truth.events,
            self.truth.ends.len(),
            self.truth.other_ends,
            self.samples,
            self.most_resident / 1024,
        );
        for member in &self.stage.cast {
            if !member.own_endings.is_empty() {
                println!(
                    "{} ended by itself {} times; the first:\n{}",
                    member.name,
                    member.own_endings.len(),
                    member.own_endings[0]
                );
            }
        }
        if plan.length >= SEES_EVERYTHING {
            let missing = Fault::all()
                .into_iter()
                .filter(|fault| !seen.contains_key(fault));
            self.broken
                .extend(missing.map(|fault| format!("{fault:?} never happened")));
        }
    }
}
