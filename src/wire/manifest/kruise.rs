//! OpenKruise's `ImagePullJob` and `ImageListPullJob`, `v1alpha1` and `v1beta1`, as they are.
//!
//! Fields, defaults and rules: openkruise/kruise, `apis/apps/v1beta1/imagepulljob_types.go`,
//! `apis/apps/defaults/v1beta1.go` and `pkg/webhook/image{,list}pulljob/validating`. Where Kruise
//! accepts a value that its controllers then read as another (a negative backoff limit, an empty
//! completion type), so do we. Where it accepts one that can only fail, we say so or make it work:
//! README.md lists these.

use super::fields::{Fields, Repeats, note};
use super::native::{
    always_only, below_timeout, completion_type_of, images, pull_secrets, sandbox_config,
    selector_of,
};
use crate::domain::image::ImageRef;
use crate::domain::job::{
    Amount, CompletionPolicy, CompletionType, DEFAULT_BACKOFF_LIMIT, DEFAULT_TIMEOUT_SECONDS,
    ImagePullPolicy, JobSpec, PullPolicy,
};
use crate::wire::event::Problem;

pub(super) const V1ALPHA1: &str = "apps.kruise.io/v1alpha1";
pub(super) const V1BETA1: &str = "apps.kruise.io/v1beta1";

/// Kruise's default: one pull at a time.
const PARALLELISM: Amount = Amount::Count(1);
/// What Kruise's `int32` fields hold.
const INT32: (i64, i64) = (-(1 << 31), (1 << 31) - 1);

/// Which of the two kinds.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    One,
    List,
}

pub(super) fn image_pull_job(
    mut fields: Fields<'_>,
    problems: &mut Vec<Problem>,
) -> Option<JobSpec> {
    let image = fields.required("image", problems, Fields::parsed::<ImageRef>);
    let images = image.into_iter().collect();
    Some(template(fields, (Kind::One, images), problems))
}

pub(super) fn image_list_pull_job(
    mut fields: Fields<'_>,
    problems: &mut Vec<Problem>,
) -> Option<JobSpec> {
    let images = images(&mut fields, Repeats::RefusedAsText, problems).unwrap_or_default();
    Some(template(fields, (Kind::List, images), problems))
}

/// The part both kinds share (`ImagePullJobTemplate`).
fn template(
    mut fields: Fields<'_>,
    (kind, images): (Kind, Vec<ImageRef>),
    problems: &mut Vec<Problem>,
) -> JobSpec {
    let mut spec = JobSpec::new(images);
    spec.parallelism = parallelism(&mut fields, problems);
    spec.pull_secrets = pull_secrets(&mut fields, Repeats::Dropped, problems);
    if fields.has("podSelector") {
        let message = "selects nodes by their pods, which needs Kubernetes; use selector with node labels or names";
        note(problems, &fields.path("podSelector"), message);
        fields.ignore(&["podSelector"]);
    }
    if let Some(selector) = fields.optional("selector", problems) {
        spec.selector = selector_of(selector, problems);
    }
    let mut asked_timeout = i64::from(DEFAULT_TIMEOUT_SECONDS);
    if let Some(policy) = fields.optional("pullPolicy", problems) {
        (spec.pull_policy, asked_timeout) = pull_policy(policy, problems);
    }
    let path = fields.path("completionPolicy");
    if let Some(policy) = fields.optional("completionPolicy", problems) {
        spec.completion_policy = completion_policy(policy, problems);
    }
    if let Some(deadline) = spec.completion_policy.active_deadline_seconds {
        let timeout = &mut spec.pull_policy.timeout_seconds;
        // Kruise compares what was written, and for a list nothing; its daemon gives an attempt no more than is left.
        if kind == Kind::One && i64::from(deadline) < asked_timeout {
            below_timeout(deadline, *timeout, &path, problems);
        }
        *timeout = deadline.min(*timeout);
    }
    spec.sandbox_config = sandbox_config(&mut fields, problems);
    spec.image_pull_policy = image_pull_policy(&mut fields, problems);
    fields.close(problems);
    spec
}

/// A number, also as text, read as Go reads it; Kruise's webhook refuses percentages.
fn parallelism(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> Amount {
    let path = fields.path("parallelism");
    let Some(value) = fields.value("parallelism") else {
        return PARALLELISM;
    };
    let number = match value.as_str() {
        Some(text) if text.ends_with('%') => {
            note(
                problems,
                &path,
                "Kruise knows no percentages; use a PrewarmJob for one",
            );
            return PARALLELISM;
        }
        Some(text) => text.parse::<i32>().ok().map(i64::from),
        None => value.as_i64(),
    };
    match number.and_then(|number| u32::try_from(number).ok()) {
        Some(count) => Amount::Count(count),
        None => {
            let message = format!("expected a number of pulls, 0 or more, found {value}");
            note(problems, &path, message);
            PARALLELISM
        }
    }
}

/// With the timeout as it was written. Kruise takes any 32-bit number; its daemon reads a negative limit as the
/// default, and fails every attempt of a timeout of zero, which is of no use to anybody.
fn pull_policy(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> (PullPolicy, i64) {
    let timeout = fields.integer("timeoutSeconds", INT32, problems);
    let limit = fields.integer("backoffLimit", INT32, problems);
    fields.close(problems);
    let at_least = |number: Option<i64>, least: u32, default| {
        let number = number.and_then(|number| u32::try_from(number).ok());
        number.filter(|number| *number >= least).unwrap_or(default)
    };
    let policy = PullPolicy {
        timeout_seconds: at_least(timeout, 1, DEFAULT_TIMEOUT_SECONDS),
        backoff_limit: at_least(limit, 0, DEFAULT_BACKOFF_LIMIT),
    };
    (
        policy,
        timeout.unwrap_or_else(|| i64::from(DEFAULT_TIMEOUT_SECONDS)),
    )
}

fn completion_policy(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> CompletionPolicy {
    let path = fields.path("type");
    let kind = match fields.text("type", problems) {
        Some(text) if !text.is_empty() => completion_type_of(&text, &path, problems),
        _ => CompletionType::Always,
    };
    always_only(&fields, kind, problems);
    let path = fields.path("activeDeadlineSeconds");
    let deadline = fields.integer("activeDeadlineSeconds", (i64::MIN, i64::MAX), problems);
    if deadline.is_some_and(|deadline| deadline < 1) {
        let message = "is over before anything begins, which Kruise accepts; give it 1 or more, or leave it out";
        note(problems, &path, message);
    }
    // Negative to Kruise is past: the job goes as soon as it has ended.
    let ttl = fields.integer("ttlSecondsAfterFinished", INT32, problems);
    fields.close(problems);
    CompletionPolicy {
        kind,
        active_deadline_seconds: deadline
            .filter(|deadline| *deadline >= 1)
            .map(|deadline| u32::try_from(deadline).unwrap_or(u32::MAX)),
        ttl_seconds_after_finished: ttl.map(|ttl| u32::try_from(ttl).unwrap_or(0)),
        repeat_seconds: None,
    }
}

fn image_pull_policy(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> ImagePullPolicy {
    let path = fields.path("imagePullPolicy");
    match fields.text("imagePullPolicy", problems).as_deref() {
        None | Some("" | "IfNotPresent") => ImagePullPolicy::IfNotPresent,
        Some("Always") => ImagePullPolicy::Always,
        Some(other) => {
            let message = format!(
                "{other:?} is neither IfNotPresent nor Always; Kruise accepts it, and then does as for Always"
            );
            note(problems, &path, message);
            ImagePullPolicy::IfNotPresent
        }
    }
}
