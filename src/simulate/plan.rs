//! When nodes come and go: a function of the seed.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{RngExt as _, SeedableRng as _};

/// How far a stay or an absence may differ from its mean, as a share of it.
const SPREAD: f64 = 0.5;

/// When nodes come and go.
#[derive(Clone, PartialEq, Debug)]
pub struct Plan {
    /// Nodes that join a second; `None`: all at once.
    pub join_rate: Option<f64>,
    /// Nodes that leave for good a second, once all have joined; 0: none.
    pub leave_rate: f64,
    /// The share of nodes that come and go, 0 to 1.
    pub flapping: f64,
    /// How long such a node stays, on average.
    pub flap_up: Duration,
    /// How long it is away, on average.
    pub flap_away: Duration,
}

impl Default for Plan {
    fn default() -> Self {
        Self {
            join_rate: None,
            leave_rate: 0.0,
            flapping: 0.0,
            flap_up: Duration::from_secs(60),
            flap_away: Duration::from_secs(30),
        }
    }
}

/// The end of one worker process.
#[derive(Clone, PartialEq, Debug)]
pub struct Leaving {
    /// How long after its start.
    pub after: Duration,
    /// Whether it is told to stop, or just ends.
    pub says_so: bool,
    /// How long the node is away then; `None`: for good.
    pub away: Option<Duration>,
}

/// One node's presence.
#[derive(Clone, Debug)]
pub struct Stay {
    /// When it joins, from the start of the simulation.
    pub joins_after: Duration,
    /// When it leaves for good, from its first start.
    leaves_after: Option<Duration>,
    /// It comes and goes: mean times of staying and being away, and where its draws start.
    flapping: Option<(Duration, Duration, u64)>,
}

impl Plan {
    /// Every node's presence. The same seed makes the same plan.
    #[must_use]
    pub fn stays(&self, nodes: u32, seed: u64) -> Vec<Stay> {
        let mut rng = StdRng::seed_from_u64(seed);
        let mut order: Vec<u32> = (0..nodes).collect();
        order.shuffle(&mut rng);
        let mut places = vec![0_u32; order.len()];
        for (place, node) in (0_u32..).zip(order) {
            if let Some(entry) = usize::try_from(node).ok().and_then(|n| places.get_mut(n)) {
                *entry = place;
            }
        }
        let joins = |node: u32| spaced(node, self.join_rate);
        let all_joined = joins(nodes.saturating_sub(1));
        (0..nodes)
            .zip(places)
            .map(|(node, place)| {
                let joins_after = joins(node);
                let leaves = (self.leave_rate > 0.0)
                    .then(|| all_joined + spaced(place + 1, Some(self.leave_rate)) - joins_after);
                let flaps = rng.random_bool(self.flapping.clamp(0.0, 1.0));
                Stay {
                    joins_after,
                    leaves_after: leaves,
                    flapping: flaps.then(|| (self.flap_up, self.flap_away, rng.random())),
                }
            })
            .collect()
    }
}

fn spaced(place: u32, rate: Option<f64>) -> Duration {
    let seconds = rate.map_or(0.0, |rate| f64::from(place) / rate);
    Duration::try_from_secs_f64(seconds).unwrap_or(Duration::MAX / 4)
}

impl Stay {
    /// How each worker process of the node ends, in turn; `None` for one that stays until the end.
    pub fn leavings(&self) -> impl Iterator<Item = Option<Leaving>> + use<> {
        let mut left = self.leaves_after;
        let mut flapping = self
            .flapping
            .map(|(up, away, seed)| (up, away, StdRng::seed_from_u64(seed)));
        std::iter::repeat_with(move || {
            let Some((up, away, rng)) = &mut flapping else {
                return left.map(|after| Leaving {
                    after,
                    says_so: true,
                    away: None,
                });
            };
            let says_so = rng.random_bool(0.5);
            let (after, pause) = (around(*up, rng), around(*away, rng));
            if let Some(for_good) = left.filter(|left| *left <= after) {
                return Some(Leaving {
                    after: for_good,
                    says_so,
                    away: None,
                });
            }
            left = left.map(|left| left.saturating_sub(after + pause));
            Some(Leaving {
                after,
                says_so,
                away: Some(pause),
            })
        })
    }
}

fn around(mean: Duration, rng: &mut StdRng) -> Duration {
    mean.mul_f64(rng.random_range(1.0 - SPREAD..=1.0 + SPREAD))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nodes_join_and_leave_at_their_rates() {
        let plan = Plan {
            join_rate: Some(100.0),
            leave_rate: 10.0,
            ..Plan::default()
        };
        let stays = plan.stays(200, 1);
        assert_eq!(stays[199].joins_after, Duration::from_millis(1_990));
        let mut ends: Vec<Duration> = stays
            .iter()
            .map(|stay| {
                let leaving = stay.leavings().next().unwrap().unwrap();
                assert_eq!(leaving.away, None);
                stay.joins_after + leaving.after
            })
            .collect();
        ends.sort_unstable();
        assert_eq!(ends[0], Duration::from_millis(1_990 + 100));
        assert_eq!(ends[199], Duration::from_millis(1_990 + 20_000));
    }

    #[test]
    fn the_same_seed_makes_the_same_plan() {
        let plan = Plan {
            flapping: 0.5,
            ..Plan::default()
        };
        let ends = |seed| -> Vec<Vec<Option<Leaving>>> {
            let stays = plan.stays(50, seed);
            stays
                .iter()
                .map(|s| s.leavings().take(5).collect())
                .collect()
        };
        assert_eq!(ends(7), ends(7));
        assert_ne!(ends(7), ends(8));
        let flapping = plan.stays(1_000, 7);
        let count = flapping.iter().filter(|s| s.flapping.is_some()).count();
        assert!((400..600).contains(&count), "{count}");
    }

    #[test]
    fn a_node_that_comes_and_goes_leaves_for_good_in_its_turn() {
        let plan = Plan {
            flapping: 1.0,
            leave_rate: 1.0,
            flap_up: Duration::from_secs(2),
            flap_away: Duration::from_secs(1),
            ..Plan::default()
        };
        for (stay, nth) in plan.stays(1, 3).iter().zip(1_u64..) {
            let stays: Vec<Leaving> = stay
                .leavings()
                .map_while(|leaving| leaving)
                .take(100)
                .collect();
            let last = stays.iter().position(|leaving| leaving.away.is_none());
            assert!(last.is_some_and(|last| last <= 2), "{nth}: {stays:?}");
        }
    }

    #[test]
    fn without_rates_everybody_is_there_at_once_and_stays() {
        for stay in Plan::default().stays(10, 1) {
            assert_eq!(stay.joins_after, Duration::ZERO);
            assert_eq!(stay.leavings().next(), Some(None));
        }
    }
}
