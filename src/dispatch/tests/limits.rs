//! Who may release now: parallelism, priority, fairness, nodes, hosts, zones.

use super::cell::{Cell, image, job, node};
use crate::dispatch::state::Settings;
use crate::domain::image::ImageRef;
use crate::domain::job::{Amount, CompletionType};
use crate::domain::node::ZONE_LABEL;

const TEN: [&str; 10] = ["a", "b", "c", "d", "e", "f", "g", "h", "i", "j"];

#[test]
fn parallelism_bounds_what_is_released_and_unfinished() {
    for (parallelism, expected) in [
        (Amount::Count(1), 1),
        (Amount::Count(3), 3),
        (Amount::Count(99), 10),
        (Amount::Percent(25), 3),
        (Amount::Percent(1), 1),
        (Amount::Percent(100), 10),
        (Amount::Percent(0), 0),
        (Amount::Count(0), 0),
    ] {
        let mut cell = Cell::of_nodes(&TEN);
        cell.submit("base", |spec| spec.parallelism = parallelism);
        assert_eq!(cell.active("base").len(), expected, "{parallelism}");
    }
}

#[test]
fn a_pull_that_ends_makes_room_for_one_more() {
    let mut cell = Cell::of_nodes(&TEN);
    cell.submit("base", |spec| spec.parallelism = Amount::Count(2));
    let mut most = 0;
    for on in TEN {
        most = most.max(cell.active("base").len());
        cell.succeed("base", on, "app:1");
    }
    assert_eq!(most, 2);
    assert!(cell.record("base").status.phase.is_finished());
}

#[test]
fn a_percentage_grows_with_the_nodes() {
    let mut cell = Cell::of_nodes(&["a", "b"]);
    cell.submit("base", |spec| spec.parallelism = Amount::Percent(50));
    assert_eq!(cell.active("base").len(), 1);
    cell.join("c");
    assert_eq!(cell.active("base").len(), 2);
}

#[test]
fn a_node_gets_its_capacity_and_a_little_more() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    cell.submit("base", |spec| {
        spec.images = many("app", 9);
    });
    assert_eq!(cell.active("base").len(), 3, "capacity 1 and 2 ahead");
}

#[test]
fn a_full_node_does_not_hold_up_the_others() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    cell.submit("first", |spec| {
        spec.images = many("app", 9);
        spec.selector.names = vec![node("a")];
    });
    cell.join("b");
    cell.submit("second", |_| {});
    assert_eq!(cell.active("second"), ["b/library/app"]);
}

#[test]
fn a_freed_slot_of_a_node_goes_to_the_highest_priority() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    for (name, priority) in [("low", -1), ("mid", 0), ("high", 5)] {
        cell.submit(name, |spec| {
            spec.priority = priority;
            spec.images = many(name, 4);
        });
    }
    assert_eq!(cell.active("low").len(), 3);
    for n in 0..3 {
        cell.succeed("low", "a", &format!("low{n}:1"));
    }
    assert_eq!(cell.active("high").len(), 3);
    cell.succeed("high", "a", "high0:1");
    cell.succeed("high", "a", "high1:1");
    assert_eq!(
        (cell.active("high").len(), cell.active("mid").len()),
        (2, 1)
    );
    assert_eq!(cell.active("low").len(), 0);
}

#[test]
fn a_node_that_joins_serves_the_highest_priority_first() {
    for taken_over in [false, true] {
        let mut cell = Cell::of_nodes(&["a"]);
        cell.hold("a", Some("cordoned"));
        for (name, priority) in [("mid", 0), ("high", 5), ("low", -1)] {
            cell.submit(name, |spec| {
                spec.priority = priority;
                spec.images = many(name, 6);
            });
        }
        if taken_over {
            cell.take_over();
        }
        cell.hold("a", None);
        let active = ["high", "mid", "low"].map(|name| cell.active(name).len());
        assert_eq!(active, [5, 0, 0], "taken over: {taken_over}");
    }
}

#[test]
fn a_job_that_its_parallelism_holds_back_loses_no_slot_to_a_lower_priority() {
    let mut cell = Cell::with(Settings {
        host_limit: Some(1),
        ..Settings::default()
    });
    cell.join("a");
    for (name, priority) in [("high", 5), ("low", 0)] {
        cell.submit(name, |spec| {
            spec.priority = priority;
            spec.parallelism = Amount::Count(1);
            spec.images = many(name, 4);
        });
    }
    for number in 0..4 {
        assert_eq!(
            (cell.active("high").len(), cell.active("low").len()),
            (1, 0)
        );
        cell.succeed("high", "a", &format!("high{number}:1"));
    }
    assert_eq!(cell.active("low").len(), 1);
}

fn many(name: &str, count: u32) -> Vec<ImageRef> {
    let images = (0..count).map(|n| image(&format!("{name}{n}:1")));
    images.collect()
}

/// Ends pulls of one node one by one, `count` of them; how many were of the job `one`.
fn serve(cell: &mut Cell, on: &str, count: usize) -> usize {
    let mut of_one = 0;
    for _ in 0..count {
        let next = cell.unfinished_on(on).expect("a released pull");
        cell.succeed(next.0.as_str(), on, &next.1);
        of_one += usize::from(next.0 == job("one"));
    }
    of_one
}

#[test]
fn jobs_of_one_priority_take_turns() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    for name in ["one", "two"] {
        cell.submit(name, |spec| spec.images = many(name, 20));
    }
    let of_one = serve(&mut cell, "a", 20);
    assert!((8..=12).contains(&of_one), "{of_one} of 20");
}

#[test]
fn a_job_that_was_idle_gets_no_more_than_its_turn() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    cell.submit("one", |spec| {
        spec.completion_policy.kind = CompletionType::Never;
        spec.images = many("one", 10);
    });
    serve(&mut cell, "a", 10);
    cell.submit("between", |spec| spec.images = many("between", 100));
    serve(&mut cell, "a", 100);
    cell.submit("two", |spec| {
        spec.completion_policy.kind = CompletionType::Never;
        spec.images = many("two", 10);
    });
    serve(&mut cell, "a", 10);
    cell.join_with("b", &[], 1);
    let of_one = serve(&mut cell, "b", 10);
    assert!((3..=7).contains(&of_one), "{of_one} of 10");
}

/// Ends pulls one by one, on the nodes in turn, until the job has ended; says how many those were.
fn serve_until_ended(cell: &mut Cell, name: &str) -> usize {
    let mut ended = 0;
    for on in TEN.into_iter().cycle().take(10_000) {
        if cell.record(name).status.phase.is_finished() {
            return ended;
        }
        if let Some(next) = cell.unfinished_on(on) {
            cell.succeed(next.0.as_str(), on, &next.1);
            ended += 1;
        }
    }
    panic!("{name} starves: {:?}", cell.record(name).status);
}

#[test]
fn a_small_job_takes_its_turn_on_every_node_beside_a_large_one() {
    for already in [0, 40, 200] {
        let mut cell = Cell::new();
        for on in TEN {
            cell.join_with(on, &[], 1);
        }
        cell.submit("one", |spec| {
            spec.parallelism = Amount::Count(1_000);
            spec.images = many("one", 50);
        });
        for number in 0..already {
            // As if these nodes were the fast ones.
            serve(&mut cell, TEN[5 + number % 5], 1);
        }
        cell.submit("small", |_| {});
        // Each node has three pulls of the large one, and its next turn may be that one's too.
        let ended = serve_until_ended(&mut cell, "small");
        assert!(ended <= 60, "after {already}, {ended} pulls ended first");
    }
}

#[test]
fn a_hundred_jobs_share_every_node() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 1);
    cell.join_with("b", &[], 1);
    for number in 0..100 {
        cell.submit(&format!("job-{number:03}"), |spec| {
            spec.images = many(&format!("job{number}"), if number < 50 { 20 } else { 2 });
        });
    }
    let mut served = std::collections::BTreeMap::new();
    for _ in 0..200 {
        let (name, image) = cell.unfinished_on("b").expect("a released pull");
        cell.succeed(name.as_str(), "b", &image);
        *served.entry(name).or_insert(0) += 1;
    }
    assert_eq!(served.len(), 100, "jobs that got something");
    // The first job had the node for itself when it came.
    let most = served.values().max();
    assert!(most <= Some(&6), "{served:?}");
}

#[test]
fn jobs_of_one_host_share_it_whatever_their_nodes_are() {
    let mut cell = Cell::with(Settings {
        host_limit: Some(2),
        ..Settings::default()
    });
    for on in TEN {
        cell.join(on);
    }
    cell.submit("one", |spec| spec.images = many("one", 30));
    cell.submit("small", |_| {});
    let ended = serve_until_ended(&mut cell, "small");
    assert!(ended <= 30, "{ended} ended first");
}

#[test]
fn a_registry_host_serves_so_many_pulls_of_all_jobs() {
    let mut cell = Cell::with(Settings {
        host_limit: Some(2),
        ..Settings::default()
    });
    for on in TEN {
        cell.join(on);
    }
    for name in ["one", "two"] {
        cell.submit(name, |spec| {
            spec.images = vec![image(&format!("r.example/{name}:1"))]
        });
    }
    cell.submit("other", |spec| spec.images = vec![image("s.example/x:1")]);
    let at_r = cell.active("one").len() + cell.active("two").len();
    assert_eq!((at_r, cell.active("other").len()), (2, 2));
    cell.succeed_all();
    for name in ["one", "two", "other"] {
        assert!(cell.record(name).status.phase.is_finished(), "{name} waits");
    }
}

fn zoned(limit: u32) -> Cell {
    Cell::with(Settings {
        zone_limit: Some(limit),
        ..Settings::default()
    })
}

#[test]
fn a_zone_takes_so_many_pulls_of_all_jobs() {
    let mut cell = zoned(1);
    for (on, zone) in [("a", "z1"), ("b", "z1"), ("c", "z2")] {
        cell.join_with(on, &[(ZONE_LABEL, zone)], 3);
    }
    cell.join("d");
    cell.join("e");
    cell.submit("base", |_| {});
    assert_eq!(
        cell.active("base").len(),
        4,
        "one in each zone, two outside"
    );
    cell.succeed_all();
    assert!(cell.record("base").status.phase.is_finished());
}

#[test]
fn a_node_that_moves_to_another_zone_makes_room_in_the_old_one() {
    let mut cell = zoned(1);
    cell.join_with("a", &[(ZONE_LABEL, "z1")], 3);
    cell.join_with("b", &[(ZONE_LABEL, "z1")], 3);
    cell.submit("base", |_| {});
    assert_eq!(cell.active("base"), ["a/library/app"]);
    cell.join_with("a", &[(ZONE_LABEL, "z2")], 3);
    assert_eq!(cell.active("base").len(), 2);
}

#[test]
fn a_pull_that_waits_for_its_zone_follows_its_node_to_another() {
    let mut cell = zoned(1);
    cell.join_with("a", &[(ZONE_LABEL, "z1")], 3);
    cell.join_with("b", &[(ZONE_LABEL, "z1")], 3);
    cell.submit("base", |_| {});
    cell.join_with("b", &[(ZONE_LABEL, "z2")], 3);
    assert_eq!(cell.active("base").len(), 2);
}

#[test]
fn a_node_that_has_less_capacity_now_gets_nothing_until_below() {
    let mut cell = Cell::new();
    cell.join_with("a", &[], 8);
    cell.submit("base", |spec| {
        spec.images = many("app", 12);
    });
    assert_eq!(cell.active("base").len(), 10);
    cell.join_with("a", &[], 1);
    for n in 0..7 {
        cell.succeed("base", "a", &format!("app{n}:1"));
        assert_eq!(cell.active("base").len(), 9 - n);
    }
    assert_eq!(cell.counts("base").pending, 2);
}
