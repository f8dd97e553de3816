//! OpenKruise's `ImagePullJob` and `ImageListPullJob`, `v1alpha1` and `v1beta1`, as they are.
//!
//! Fields, defaults and rules: openkruise/kruise, `apis/apps/v1beta1/imagepulljob_types.go`,
//! `apis/apps/defaults/v1beta1.go` and `pkg/webhook/image{,list}pulljob/validating`. Where Kruise
//! accepts a value that its daemon then reads as another (a negative backoff limit, a timeout of
//! zero), so do we.

use super::fields::{Fields, note};
use super::native::{
    KRUISE_PARALLELISM, completion_policy, deadline_covers_timeout, image_pull_policy, images,
    pull_secrets, sandbox_config, selector_of,
};
use crate::domain::image::ImageRef;
use crate::domain::job::{
    Amount, DEFAULT_BACKOFF_LIMIT, DEFAULT_TIMEOUT_SECONDS, JobSpec, PullPolicy,
};
use crate::wire::event::Problem;

pub(super) const V1ALPHA1: &str = "apps.kruise.io/v1alpha1";
pub(super) const V1BETA1: &str = "apps.kruise.io/v1beta1";

pub(super) fn image_pull_job(
    mut fields: Fields<'_>,
    problems: &mut Vec<Problem>,
) -> Option<JobSpec> {
    let image = fields.required("image", problems, Fields::parsed::<ImageRef>);
    let path = fields.path("completionPolicy");
    let spec = template(fields, image.into_iter().collect(), problems);
    deadline_covers_timeout(&spec, &path, problems);
    Some(spec)
}

pub(super) fn image_list_pull_job(
    mut fields: Fields<'_>,
    problems: &mut Vec<Problem>,
) -> Option<JobSpec> {
    let images = images(&mut fields, problems).unwrap_or_default();
    Some(template(fields, images, problems))
}

/// The part both kinds share (`ImagePullJobTemplate`).
fn template(mut fields: Fields<'_>, images: Vec<ImageRef>, problems: &mut Vec<Problem>) -> JobSpec {
    let mut spec = JobSpec::new(images);
    spec.parallelism = parallelism(&mut fields, problems);
    spec.pull_secrets = pull_secrets(&mut fields, problems);
    if fields.has("podSelector") {
        let message = "selects nodes by their pods, which needs Kubernetes; use selector with node labels or names";
        note(problems, &fields.path("podSelector"), message);
        fields.ignore(&["podSelector"]);
    }
    if let Some(selector) = fields.optional("selector", problems) {
        spec.selector = selector_of(selector, problems);
    }
    if let Some(policy) = fields.optional("pullPolicy", problems) {
        spec.pull_policy = pull_policy(policy, problems);
    }
    if let Some(policy) = fields.optional("completionPolicy", problems) {
        spec.completion_policy = completion_policy(policy, false, problems);
    }
    spec.sandbox_config = sandbox_config(&mut fields, problems);
    spec.image_pull_policy = image_pull_policy(&mut fields, problems);
    fields.close(problems);
    spec
}

/// A number, also as text; Kruise's webhook refuses percentages.
fn parallelism(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> Amount {
    let path = fields.path("parallelism");
    match fields.amount("parallelism", problems) {
        None => KRUISE_PARALLELISM,
        Some(Amount::Percent(_)) => {
            note(
                problems,
                &path,
                "Kruise knows no percentages; use a PrewarmJob for one",
            );
            KRUISE_PARALLELISM
        }
        Some(amount) => amount,
    }
}

/// Kruise takes any 32-bit number; its daemon reads a negative limit as the default.
fn pull_policy(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> PullPolicy {
    let any = (i64::from(i32::MIN), i64::from(i32::MAX));
    let mut positive = |key, least: i64, default| {
        let number = fields
            .integer(key, any, problems)
            .filter(|number| *number >= least);
        number
            .and_then(|number| u32::try_from(number).ok())
            .unwrap_or(default)
    };
    let policy = PullPolicy {
        timeout_seconds: positive("timeoutSeconds", 1, DEFAULT_TIMEOUT_SECONDS),
        backoff_limit: positive("backoffLimit", 0, DEFAULT_BACKOFF_LIMIT),
    };
    fields.close(problems);
    policy
}
