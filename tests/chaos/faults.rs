//! What goes wrong, when, and how often it did.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use rand::RngExt as _;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;

use crate::cast::Role;
use crate::stage::Stage;
use crate::weather::Trouble;
use crate::world::REGISTRY;

/// A kind of fault, as it is counted.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(crate) enum Fault {
    Kill(Role),
    Stop(Role),
    Terminate(Role),
    /// A server of the cluster is away for long.
    BrokerLoss,
    /// Between two of these, as far as they talk.
    Partition(&'static str, &'static str),
    DiskFull,
    ClockForward,
    ClockBack,
    TagMoved,
    /// Images are taken away; only in calm, since what a node said before cannot be held against it then.
    ImagesRemoved,
    Registry(Trouble),
}

/// Who talks to whom.
const PAIRS: [(&str, &str); 5] = [
    ("broker", "broker"),
    ("broker", "dispatcher"),
    ("broker", "node"),
    ("dispatcher", REGISTRY),
    ("node", REGISTRY),
];

impl Fault {
    /// Every kind that a run of some minutes has to see.
    pub(crate) fn all() -> Vec<Self> {
        let mut all = vec![
            Self::BrokerLoss,
            Self::DiskFull,
            Self::ClockForward,
            Self::ClockBack,
            Self::TagMoved,
            Self::ImagesRemoved,
        ];
        for role in Role::ALL {
            all.extend([Self::Kill(role), Self::Stop(role)]);
        }
        all.extend([Role::Broker, Role::Dispatcher, Role::Worker].map(Self::Terminate));
        all.extend(PAIRS.map(|(one, other)| Self::Partition(one, other)));
        all.extend(Trouble::ALL.map(Self::Registry));
        all
    }
}

/// The faults of a run.
pub(crate) struct Faults {
    seen: BTreeMap<Fault, u64>,
    parted: Vec<(String, String, Instant)>,
    /// Files that fill a disk.
    fillers: Vec<(PathBuf, Instant)>,
}

impl Faults {
    pub(crate) fn new() -> Self {
        Self {
            seen: BTreeMap::new(),
            parted: Vec::new(),
            fillers: Vec::new(),
        }
    }

    pub(crate) fn count(&mut self, fault: Fault) {
        *self.seen.entry(fault).or_default() += 1;
    }

    /// How often each kind was seen.
    pub(crate) fn seen(&self, stage: &Stage) -> BTreeMap<Fault, u64> {
        let weather = stage.weather.seen().into_iter();
        let mut seen = self.seen.clone();
        seen.extend(weather.map(|(trouble, count)| (Fault::Registry(trouble), count)));
        seen
    }

    /// Processes that were killed without a word.
    pub(crate) fn kills(&self) -> u64 {
        let kill = |fault: &Fault| matches!(fault, Fault::Kill(_) | Fault::BrokerLoss);
        self.seen
            .iter()
            .filter(|(fault, _)| kill(fault))
            .map(|(_, count)| count)
            .sum()
    }

    /// Does one thing wrong, and says what.
    pub(crate) async fn strike(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        match rng.random_range(0..100) {
            ..38 => self.kill(stage, rng),
            38..53 => self.stop(stage, rng),
            53..59 => self.terminate(stage, rng),
            59..74 => self.part(stage, rng),
            74..79 => self.fill(stage, rng),
            79..86 => self.step_clock(stage, rng),
            86..89 => {
                if stage
                    .cast
                    .iter()
                    .any(|member| member.role == Role::Registry && !member.is_well())
                {
                    return "nothing".to_owned();
                }
                self.count(Fault::TagMoved);
                let pushed = stage.move_tag().await;
                format!("the tag that moves is {}", pushed.digest)
            }
            _ => change_weather(stage, rng),
        }
    }

    fn kill(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let Some(member) = pick(stage, rng, &Role::ALL) else {
            return "nothing".to_owned();
        };
        let role = stage.cast[member].role;
        let lost = role == Role::Broker && rng.random_bool(0.25);
        let down = Duration::from_millis(if lost {
            rng.random_range(10_000..25_000)
        } else {
            rng.random_range(0..4_000)
        });
        self.count(if lost {
            Fault::BrokerLoss
        } else {
            Fault::Kill(role)
        });
        stage.cast[member].kill(down);
        format!("killed {} for {down:?}", stage.cast[member].name)
    }

    fn stop(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let Some(member) = pick(stage, rng, &Role::ALL) else {
            return "nothing".to_owned();
        };
        // Beyond the lease time, and the time after which a node counts as gone.
        let time = Duration::from_millis(*[500, 3_000, 7_000, 18_000].choose(rng).expect("a time"));
        self.count(Fault::Stop(stage.cast[member].role));
        stage.cast[member].stop(time);
        format!("stopped {} for {time:?}", stage.cast[member].name)
    }

    fn terminate(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let Some(member) = pick(stage, rng, &[Role::Broker, Role::Dispatcher, Role::Worker]) else {
            return "nothing".to_owned();
        };
        self.count(Fault::Terminate(stage.cast[member].role));
        stage.cast[member].terminate();
        format!("told {} to end", stage.cast[member].name)
    }

    fn part(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let pair = *PAIRS.choose(rng).expect("a pair");
        let member = |kind: &str, rng: &mut StdRng| match kind {
            REGISTRY => REGISTRY.to_owned(),
            kind => format!("{kind}-{}", rng.random_range(1..=3)),
        };
        let (one, other) = (member(pair.0, rng), member(pair.1, rng));
        let apart = |(a, b, _): &(String, String, Instant)| {
            (*a == one && *b == other) || (*a == other && *b == one)
        };
        if one == other || self.parted.iter().any(apart) {
            return "nothing".to_owned();
        }
        let time = Duration::from_millis(rng.random_range(1_000..20_000));
        stage.world.part(&one, &other);
        self.count(Fault::Partition(pair.0, pair.1));
        let said = format!("parted {one} and {other} for {time:?}");
        self.parted.push((one, other, Instant::now() + time));
        said
    }

    fn fill(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let daemons = stage.daemons();
        let (node, daemon) = daemons.choose(rng).expect("a node");
        let file = daemon.root().join("filler");
        if file.exists() {
            return "nothing".to_owned();
        }
        let free = rustix::fs::statvfs(daemon.root()).expect("a disk");
        let left = rng.random_range(0..200_000);
        let bytes = (free.f_bavail * free.f_frsize).saturating_sub(left);
        let fd = std::fs::File::create(&file).expect("a file that fills a disk");
        let filled =
            rustix::fs::fallocate(&fd, rustix::fs::FallocateFlags::empty(), 0, bytes.max(1));
        let time = Duration::from_millis(rng.random_range(2_000..12_000));
        self.fillers.push((file, Instant::now() + time));
        self.count(Fault::DiskFull);
        format!("filled the disk of {node} for {time:?}: {filled:?}")
    }

    fn step_clock(&mut self, stage: &mut Stage, rng: &mut StdRng) -> String {
        let number = rng.random_range(0..stage.clocks.len());
        let clock = &mut stage.clocks[number];
        let step = *[2, 20, 400, 3_000].choose(rng).expect("a step");
        // Never more than an hour from the truth.
        let forward = if clock.ahead.abs() > 1_000 {
            clock.ahead < 0
        } else {
            rng.random_bool(0.5)
        };
        let ahead = clock.ahead + if forward { step } else { -step };
        clock.set(ahead);
        self.count(if forward {
            Fault::ClockForward
        } else {
            Fault::ClockBack
        });
        format!("the clock of node-{} is {ahead} s ahead", number + 1)
    }

    /// Ends what has lasted long enough.
    pub(crate) fn tick(&mut self, stage: &mut Stage) {
        self.end(stage, Instant::now());
        stage.tick();
    }

    fn end(&mut self, stage: &mut Stage, now: Instant) {
        for (one, other, _) in self.parted.extract_if(.., |(_, _, until)| *until <= now) {
            stage.world.join_again(&one, &other);
        }
        for (file, _) in self.fillers.extract_if(.., |(_, until)| *until <= now) {
            std::fs::remove_file(&file).expect("a file that fills a disk");
        }
    }

    /// Ends everything that is wrong.
    pub(crate) fn heal(&mut self, stage: &mut Stage) {
        self.end(stage, Instant::now() + Duration::from_secs(3_600));
        stage.weather.set([]);
        for clock in &mut stage.clocks {
            clock.set(0);
        }
        for member in &mut stage.cast {
            member.heal();
        }
    }
}

/// Takes the images from some nodes.
pub(crate) async fn empty_some(faults: &mut Faults, stage: &mut Stage, rng: &mut StdRng) {
    for node in 0..stage.clocks.len() {
        if rng.random_bool(0.7) {
            faults.count(Fault::ImagesRemoved);
            stage.empty(node).await;
        }
    }
}

pub(crate) fn change_weather(stage: &Stage, rng: &mut StdRng) -> String {
    let troubles: Vec<Trouble> = Trouble::ALL
        .into_iter()
        .filter(|_| rng.random_bool(0.4))
        .collect();
    stage.weather.set(troubles.clone());
    format!("the registry has {troubles:?}")
}

/// Somebody of these whom no fault has hold of.
fn pick(stage: &Stage, rng: &mut StdRng, roles: &[Role]) -> Option<usize> {
    let role = *roles.choose(rng)?;
    let well: Vec<usize> = (0..stage.cast.len())
        .filter(|&n| stage.cast[n].role == role && stage.cast[n].is_well())
        .collect();
    well.choose(rng).copied()
}
