//! What users of OpenKruise asked for and only time shows; the number is the issue of openkruise/kruise.

use super::cell::Cell;
use crate::domain::job::CompletionType;
use crate::domain::status::Outcome;
use crate::wire::manifest::parse;

/// There, a pull of more than 3 GB was given up when its daemon had said nothing for 60 s (#1273, #1406), later ten
/// minutes. Here, nobody is given up while its node lives.
#[test]
fn issues_1273_and_1406_a_large_image_may_take_long_and_nothing_is_said_meanwhile() {
    let mut cell = Cell::of_nodes(&["a"]);
    cell.submit("large", |spec| spec.pull_policy.timeout_seconds = 3_600);
    let released = cell.releases();
    cell.advance(3_500);
    assert_eq!(cell.active("large"), ["a/library/app"]);
    assert_eq!(cell.releases(), released, "nothing is released again");
    assert_eq!(cell.revoked, [], "nor stopped");
    cell.succeed("large", "a", "app:1");
    let outcome = cell.record("large").status.outcome;
    assert_eq!(outcome, Some(Outcome::Succeeded));
}

/// There, all attempts of a `Never` job share 1,800 s or one timeout, not one each (#2071), which images of 20 GB do
/// not fit into, let alone ten of them at once on a new node.
#[test]
fn issue_2071_a_never_job_has_no_deadline_that_its_attempts_would_share() {
    let mut cell = Cell::new();
    for job in 0..12 {
        cell.submit(&format!("warm-{job}"), |spec| {
            spec.completion_policy.kind = CompletionType::Never;
        });
    }
    cell.join("new");
    let mut hours = 0;
    // One after another on a node that takes an hour for each.
    while let Some((job, image)) = cell.unfinished_on("new") {
        cell.advance(3_600);
        hours += 1;
        assert!(
            cell.tasks
                .values()
                .all(|(_, task)| task.expires_at.is_none())
        );
        cell.succeed(job.as_str(), "new", &image);
    }
    assert_eq!(hours, 12);
    assert_eq!(cell.revoked, []);
    for job in 0..12 {
        let counts = cell.counts(&format!("warm-{job}"));
        assert_eq!((counts.succeeded, counts.failed), (1, 0), "warm-{job}");
    }
}

/// As the contract and Kruise have it: every 24 hours, ±5 %, when the manifest does not say.
#[test]
fn a_never_job_that_says_no_interval_is_checked_daily() {
    for manifest in [
        "apiVersion: prewarm.dev/v1\nkind: PrewarmJob\nmetadata: {name: warm}\nspec: {images: [app:1], completionPolicy: {type: Never}}",
        "apiVersion: apps.kruise.io/v1beta1\nkind: ImagePullJob\nmetadata: {name: warm}\nspec: {image: app:1, completionPolicy: {type: Never}}",
    ] {
        let spec = parse(manifest.as_bytes()).unwrap().spec;
        let mut cell = Cell::of_nodes(&["a"]);
        cell.submit("warm", |asked| *asked = spec);
        let began = cell.now;
        cell.succeed_all();
        while cell.record("warm").status.round == 1 {
            cell.advance(60);
        }
        let hours = cell.now.since(began).as_secs_f64() / 3_600.0;
        assert!((22.8..25.25).contains(&hours), "{hours} h");
    }
}
