//! The native manifest, `prewarm.dev/v1 PrewarmJob`, and the parts Kruise's share with it.

use super::fields::{Fields, Repeats, note};
use crate::domain::image::ImageRef;
use crate::domain::job::{
    CompletionPolicy, CompletionType, FailurePolicy, ImagePullPolicy, JobSpec, MAX_IMAGES,
    PullPolicy, SandboxConfig,
};
use crate::domain::selector::{
    NodeSelector, Operator, Requirement, check_label_key, check_label_value,
};
use crate::wire::event::Problem;

/// Most nodes a selector may name one by one.
const MAX_NAMES: usize = 10_000;

pub(super) fn spec(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> Option<JobSpec> {
    let images = images(&mut fields, Repeats::Refused, problems);
    let mut spec = JobSpec::new(images.unwrap_or_default());
    if let Some(selector) = fields.optional("selector", problems) {
        spec.selector = selector_of(selector, problems);
    }
    if let Some(parallelism) = fields.amount("parallelism", problems) {
        spec.parallelism = parallelism;
    }
    let priority = fields.integer(
        "priority",
        (i64::from(i32::MIN), i64::from(i32::MAX)),
        problems,
    );
    spec.priority = priority
        .and_then(|number| i32::try_from(number).ok())
        .unwrap_or(0);
    spec.image_pull_policy = image_pull_policy(&mut fields, problems);
    spec.platform = fields.parsed("platform", problems);
    spec.pull_secrets = pull_secrets(&mut fields, Repeats::Refused, problems);
    spec.pin = fields.boolean("pin", problems).unwrap_or(spec.pin);
    spec.unpack = fields.boolean("unpack", problems).unwrap_or(spec.unpack);
    if let Some(seconds) = fields.seconds("absentAfterSeconds", 0, problems) {
        spec.absent_after_seconds = seconds;
    }
    if let Some(mut policy) = fields.optional("pullPolicy", problems) {
        let default = PullPolicy::default();
        spec.pull_policy = PullPolicy {
            timeout_seconds: policy
                .seconds("timeoutSeconds", 1, problems)
                .unwrap_or(default.timeout_seconds),
            backoff_limit: policy
                .seconds("backoffLimit", 0, problems)
                .unwrap_or(default.backoff_limit),
        };
        policy.close(problems);
    }
    let path = fields.path("completionPolicy");
    if let Some(policy) = fields.optional("completionPolicy", problems) {
        spec.completion_policy = completion_policy(policy, problems);
    }
    deadline_covers_timeout(&spec, &path, problems);
    if let Some(mut policy) = fields.optional("failurePolicy", problems) {
        let max_failed = policy.required("maxFailed", problems, Fields::amount);
        policy.close(problems);
        spec.failure_policy = max_failed.map(|max_failed| FailurePolicy { max_failed });
    }
    spec.sandbox_config = sandbox_config(&mut fields, problems);
    fields.close(problems);
    Some(spec)
}

/// Reads `images`: 1 to 255, each at most once.
pub(super) fn images(
    fields: &mut Fields<'_>,
    repeats: Repeats,
    problems: &mut Vec<Problem>,
) -> Option<Vec<ImageRef>> {
    let path = fields.path("images");
    let images = fields.required("images", problems, |fields, key, problems| {
        fields.parsed_list::<ImageRef>(key, repeats, problems)
    })?;
    if images.len() > MAX_IMAGES {
        let count = images.len();
        note(
            problems,
            &path,
            format!("has {count} images; a job has at most {MAX_IMAGES}"),
        );
    }
    if images.is_empty()
        && !problems
            .iter()
            .any(|problem| problem.path.starts_with(&path))
    {
        note(problems, &path, "is empty; a job has at least one image");
    }
    Some(images)
}

fn image_pull_policy(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> ImagePullPolicy {
    let path = fields.path("imagePullPolicy");
    match fields.text("imagePullPolicy", problems).as_deref() {
        None | Some("IfNotPresent") => ImagePullPolicy::IfNotPresent,
        Some("Always") => ImagePullPolicy::Always,
        Some(other) => {
            note(
                problems,
                &path,
                format!("{other:?} is neither IfNotPresent nor Always"),
            );
            ImagePullPolicy::IfNotPresent
        }
    }
}

/// Names of credentials become file names on the node, so they may not leave their directory.
pub(super) fn pull_secrets(
    fields: &mut Fields<'_>,
    repeats: Repeats,
    problems: &mut Vec<Problem>,
) -> Vec<String> {
    let path = fields.path("pullSecrets");
    let secrets = fields
        .parsed_list::<String>("pullSecrets", repeats, problems)
        .unwrap_or_default();
    for (index, secret) in secrets.iter().enumerate() {
        if let Err(error) = secret.parse::<crate::domain::name::NodeName>() {
            note(problems, &format!("{path}[{index}]"), error);
        }
    }
    secrets
}

pub(super) fn sandbox_config(
    fields: &mut Fields<'_>,
    problems: &mut Vec<Problem>,
) -> SandboxConfig {
    let Some(mut sandbox) = fields.optional("sandboxConfig", problems) else {
        return SandboxConfig::default();
    };
    let config = SandboxConfig {
        labels: sandbox.labels("labels", problems),
        annotations: sandbox.text_map("annotations", problems),
    };
    sandbox.close(problems);
    config
}

pub(super) fn selector_of(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> NodeSelector {
    let path = fields.path("names");
    let names = fields
        .parsed_list("names", Repeats::Refused, problems)
        .unwrap_or_default();
    if names.len() > MAX_NAMES {
        note(
            problems,
            &path,
            format!("has more than {MAX_NAMES} names; select by labels"),
        );
    }
    let match_labels = fields.labels("matchLabels", problems);
    let expressions = fields.objects("matchExpressions", problems);
    let match_expressions: Vec<Requirement> = expressions
        .into_iter()
        .filter_map(|fields| requirement(fields, problems))
        .collect();
    let by_labels = !match_labels.is_empty() || !match_expressions.is_empty();
    if !names.is_empty() && by_labels {
        note(
            problems,
            &path,
            "names exclude matchLabels and matchExpressions; keep one of them",
        );
    }
    fields.close(problems);
    NodeSelector {
        names,
        match_labels,
        match_expressions,
    }
}

fn requirement(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> Option<Requirement> {
    let key = fields.required("key", problems, Fields::text);
    if let Some(Err(error)) = key.as_deref().map(check_label_key) {
        note(problems, &fields.path("key"), error);
    }
    let operator = operator(&mut fields, problems);
    // To Kubernetes they are a set.
    let values = fields
        .parsed_list::<String>("values", Repeats::Dropped, problems)
        .unwrap_or_default();
    for (index, value) in values.iter().enumerate() {
        if let Err(error) = check_label_value(value) {
            note(
                problems,
                &format!("{}[{index}]", fields.path("values")),
                error,
            );
        }
    }
    let path = fields.path("values");
    match operator {
        Some(Operator::In | Operator::NotIn) if values.is_empty() => {
            note(problems, &path, "In and NotIn need at least one value");
        }
        Some(Operator::Exists | Operator::DoesNotExist) if !values.is_empty() => {
            note(problems, &path, "Exists and DoesNotExist take no values");
        }
        _ => {}
    }
    fields.close(problems);
    Some(Requirement {
        key: key?,
        operator: operator?,
        values,
    })
}

fn operator(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> Option<Operator> {
    let path = fields.path("operator");
    match fields
        .required("operator", problems, Fields::text)?
        .as_str()
    {
        "In" => Some(Operator::In),
        "NotIn" => Some(Operator::NotIn),
        "Exists" => Some(Operator::Exists),
        "DoesNotExist" => Some(Operator::DoesNotExist),
        other => {
            note(
                problems,
                &path,
                format!("{other:?} is not In, NotIn, Exists or DoesNotExist"),
            );
            None
        }
    }
}

fn completion_policy(mut fields: Fields<'_>, problems: &mut Vec<Problem>) -> CompletionPolicy {
    let kind = completion_type(&mut fields, problems);
    always_only(&fields, kind, problems);
    only(
        &fields,
        "repeatSeconds",
        (kind, CompletionType::Never),
        problems,
    );
    let policy = CompletionPolicy {
        kind,
        active_deadline_seconds: fields.seconds("activeDeadlineSeconds", 1, problems),
        ttl_seconds_after_finished: fields.seconds("ttlSecondsAfterFinished", 0, problems),
        repeat_seconds: fields.seconds("repeatSeconds", 1, problems),
    };
    fields.close(problems);
    policy
}

fn completion_type(fields: &mut Fields<'_>, problems: &mut Vec<Problem>) -> CompletionType {
    let path = fields.path("type");
    match fields.text("type", problems) {
        None => CompletionType::Always,
        Some(text) => completion_type_of(&text, &path, problems),
    }
}

pub(super) fn completion_type_of(
    text: &str,
    path: &str,
    problems: &mut Vec<Problem>,
) -> CompletionType {
    match text {
        "Always" => CompletionType::Always,
        "Never" => CompletionType::Never,
        other => {
            let message = format!("{other:?} is neither Always nor Never");
            note(problems, path, message);
            CompletionType::Always
        }
    }
}

/// Notes what a job that never ends has no use for.
pub(super) fn always_only(fields: &Fields<'_>, kind: CompletionType, problems: &mut Vec<Problem>) {
    for key in ["activeDeadlineSeconds", "ttlSecondsAfterFinished"] {
        only(fields, key, (kind, CompletionType::Always), problems);
    }
}

fn only(
    fields: &Fields<'_>,
    key: &str,
    (kind, wanted): (CompletionType, CompletionType),
    problems: &mut Vec<Problem>,
) {
    if fields.has(key) && kind != wanted {
        let message = format!("goes with type {wanted:?} only");
        note(problems, &fields.path(key), message);
    }
}

/// A deadline below one attempt's timeout would cut every slow pull off.
fn deadline_covers_timeout(spec: &JobSpec, path: &str, problems: &mut Vec<Problem>) {
    let timeout = spec.pull_policy.timeout_seconds;
    if let Some(deadline) = spec.completion_policy.active_deadline_seconds
        && deadline < timeout
    {
        below_timeout(deadline, timeout, path, problems);
    }
}

pub(super) fn below_timeout(deadline: u32, timeout: u32, path: &str, problems: &mut Vec<Problem>) {
    let message = format!("{deadline} is below pullPolicy.timeoutSeconds, {timeout}");
    note(problems, &format!("{path}.activeDeadlineSeconds"), message);
}
