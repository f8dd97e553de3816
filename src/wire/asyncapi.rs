//! The AsyncAPI 3.0 document: every channel of a cell and what it carries, from the builder of
//! subjects that the program itself uses.

use serde_json::{Map, Value, json};

use super::event::CONTENT_TYPE;
use super::subject::{JobVerb, PullKey, Subjects};
use crate::domain::name::{JobName, NodeName};
use crate::domain::trace::TRACEPARENT;

/// The media type of everything that is not an event.
const JSON: &str = "application/json";
/// JSON Schema as AsyncAPI 3.0 names it ("Multi Format Schema Object").
const SCHEMA_FORMAT: &str = "application/schema+json;version=draft-2020-12";
/// Names that stand for a parameter while an address is built, and the parameter.
const PLACEHOLDERS: [(&str, &str); 4] = [
    ("x-node-x", "{node}"),
    ("x-job-x", "{job}"),
    ("x-image-x", "{image}"),
    ("x-type-x", "{type}"),
];

/// Which way a message goes, seen from prewarm.
#[derive(Clone, Copy)]
enum Way {
    /// Others publish it.
    In,
    /// Prewarm publishes it.
    Out,
}

struct Channel {
    id: &'static str,
    address: String,
    about: &'static str,
    way: Way,
    /// The schema of what it carries, and of the answer to a request.
    carries: &'static str,
    answer: Option<&'static str>,
}

impl Channel {
    fn new(
        id: &'static str,
        way: Way,
        address: &str,
        carries: &'static str,
        about: &'static str,
    ) -> Self {
        let address = PLACEHOLDERS
            .iter()
            .fold(address.to_owned(), |address, (name, parameter)| {
                address.replace(name, parameter)
            });
        Self {
            id,
            address,
            about,
            way,
            carries,
            answer: None,
        }
    }

    fn answered(mut self, answer: &'static str) -> Self {
        self.answer = Some(answer);
        self
    }
}

/// The document.
#[must_use]
pub fn document() -> Value {
    let channels = channels(&Subjects::default());
    let mut messages = Map::new();
    for channel in &channels {
        for schema in std::iter::once(channel.carries).chain(channel.answer) {
            messages.insert(schema.to_owned(), message(schema));
        }
    }
    let described: Map<String, Value> = channels
        .iter()
        .map(|channel| (channel.id.to_owned(), describe(channel)))
        .collect();
    let operations: Map<String, Value> = channels.iter().map(operation).collect();
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "prewarm",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "What prewarm and other programs say to each other over NATS. The first token of every \
    subject, and the first part of stream and bucket names, is the prefix of the cell: `prewarm` unless a setting says otherwise.",
            "license": { "name": "Apache-2.0", "url": "https://www.apache.org/licenses/LICENSE-2.0" },
        },
        "defaultContentType": JSON,
        "channels": described,
        "operations": operations,
        "components": { "messages": messages, "parameters": parameters() },
    })
}

fn channels(subjects: &Subjects) -> Vec<Channel> {
    let (Ok(node), Ok(job)) = (
        PLACEHOLDERS[0].0.parse::<NodeName>(),
        PLACEHOLDERS[1].0.parse::<JobName>(),
    ) else {
        return Vec::new();
    };
    let key = PullKey {
        node,
        job,
        image: PLACEHOLDERS[2].0.to_owned(),
    };
    requests(subjects)
        .chain(told(subjects, &key))
        .chain(between_dispatcher_and_worker(subjects, &key))
        .chain(api(subjects))
        .collect()
}

/// What users publish.
fn requests(subjects: &Subjects) -> impl Iterator<Item = Channel> + use<> {
    [
        ("jobSubmit", JobVerb::Submit, "job", "A manifest, JSON or YAML: this one, or OpenKruise's ImagePullJob and ImageListPullJob as they are. Kept in the stream PREWARM_JOBS until a dispatcher took it."),
        ("jobCancel", JobVerb::Cancel, "job-command", "Ends a job; what it has done stays. Kept in PREWARM_JOBS."),
        ("jobDelete", JobVerb::Delete, "job-command", "Ends a job and forgets it. Kept in PREWARM_JOBS."),
        ("jobPause", JobVerb::Pause, "job-command", "Releases no more pulls of a job. Kept in PREWARM_JOBS."),
        ("jobResume", JobVerb::Resume, "job-command", "Goes on with a paused job. Kept in PREWARM_JOBS."),
    ]
    .map(|(id, verb, schema, about)| Channel::new(id, Way::In, &subjects.job(verb), schema, about))
    .into_iter()
    .chain([Channel::new(
        "push",
        Way::In,
        &subjects.push(),
        "push",
        "A push of an image, from a webhook or straight from CI: what push rules are matched with. Kept in PREWARM_JOBS until \
a dispatcher took it.",
    )])
}

/// What anyone may read.
fn told(subjects: &Subjects, key: &PullKey) -> impl Iterator<Item = Channel> + use<> {
    let kind = PLACEHOLDERS[3].0;
    let bucket = |name: String, key: String| format!("$KV.{name}.{key}");
    [
        ("jobEvent", subjects.job_event(Some(&key.job), kind), "job-event", "Facts about jobs. Kept in the stream PREWARM_EVENTS for 7 days. The job is `_` when a rejected manifest had no readable name."),
        ("taskEvent", subjects.task_event(key), "task-event", "Facts about one pull. Kept in PREWARM_EVENTS for 7 days."),
        ("nodeEvent", subjects.node_event(&key.node, kind), "node-event", "Nodes that joined or left. Kept in PREWARM_EVENTS for 7 days."),
        ("progress", subjects.progress(key), "progress", "How far a pull is, at most twice a second. Not kept."),
        ("jobRecord", bucket(subjects.jobs_bucket(), key.job.token()), "job-record", "The key-value bucket prewarm_jobs: specification and status of every job."),
        ("nodeRecord", bucket(subjects.nodes_bucket(), key.node.token()), "node-record", "The key-value bucket prewarm_nodes: what is known of every node."),
    ]
    .map(|(id, address, schema, about)| Channel::new(id, Way::Out, &address, schema, about))
    .into_iter()
}

/// What only they say to each other.
fn between_dispatcher_and_worker(
    subjects: &Subjects,
    key: &PullKey,
) -> impl Iterator<Item = Channel> + use<> {
    let node = &key.node;
    [
        Channel::new("task", Way::Out, &subjects.task(key), "task", "One released pull, from the dispatcher to its node's worker. Kept in the stream PREWARM_TASKS until the job ends."),
        Channel::new("registration", Way::In, &subjects.worker(node), "registration", "A worker announces itself and asks for its consumer. Request and reply, not kept.").answered("registration-reply"),
        Channel::new("heartbeat", Way::In, &subjects.heartbeat(node), "heartbeat", "A worker lives, and holds these pulls. Every 5 seconds, not kept."),
        Channel::new("revocation", Way::Out, &subjects.revoke(node), "revocation", "Pulls that a worker should stop. Not kept; said again while the worker names the pull in a heartbeat."),
    ]
    .into_iter()
}

/// The request/reply service.
fn api(subjects: &Subjects) -> impl Iterator<Item = Channel> + use<> {
    [
        (
            "apiSubmit",
            "submit",
            "job",
            "api-stored",
            "Submits a manifest.",
        ),
        (
            "apiCancel",
            "cancel",
            "job-command",
            "api-stored",
            "Cancels a job.",
        ),
        (
            "apiDelete",
            "delete",
            "job-command",
            "api-stored",
            "Deletes a job.",
        ),
        (
            "apiPause",
            "pause",
            "job-command",
            "api-stored",
            "Pauses a job.",
        ),
        (
            "apiResume",
            "resume",
            "job-command",
            "api-stored",
            "Resumes a job.",
        ),
        (
            "apiGet",
            "get",
            "api-named",
            "job-record",
            "A job's record.",
        ),
        (
            "apiDescribe",
            "describe",
            "api-named",
            "api-description",
            "A job with its failed pulls.",
        ),
        ("apiList", "list", "api-page", "api-jobs", "A page of jobs."),
        (
            "apiNodes",
            "nodes",
            "api-page",
            "api-nodes",
            "A page of nodes.",
        ),
    ]
    .map(|(id, endpoint, asked, answered, about)| {
        Channel::new(id, Way::In, &subjects.api(endpoint), asked, about).answered(answered)
    })
    .into_iter()
}

fn message(schema: &str) -> Value {
    let content_type = if schema.ends_with("-event") {
        CONTENT_TYPE
    } else {
        JSON
    };
    let mut message = json!({
        "name": schema,
        "contentType": content_type,
        "payload": { "schemaFormat": SCHEMA_FORMAT, "schema": { "$ref": format!("./{schema}.json") } },
    });
    let about = match schema {
        "job" | "push" => {
            Some("The trace that what comes of the message belongs to (W3C Trace Context).")
        }
        "job-event" | "task-event" => Some(
            "The span that the fact belongs to, if its job belongs to a trace (W3C Trace Context): that of the run, or of the \
release of the pull; of who has no part in the trace, the one above.",
        ),
        _ => None,
    };
    if let Some(about) = about {
        let traceparent = json!({ "type": "string", "description": about });
        message["headers"] =
            json!({ "type": "object", "properties": { TRACEPARENT: traceparent } });
    }
    message
}

fn describe(channel: &Channel) -> Value {
    let refer = |schema: &str| {
        (
            schema.to_owned(),
            json!({ "$ref": format!("#/components/messages/{schema}") }),
        )
    };
    let messages: Map<String, Value> = std::iter::once(channel.carries)
        .chain(channel.answer)
        .map(refer)
        .collect();
    let mut described =
        json!({ "address": channel.address, "description": channel.about, "messages": messages });
    let used: Map<String, Value> = PLACEHOLDERS
        .iter()
        .filter(|(_, parameter)| channel.address.contains(parameter))
        .map(|(_, parameter)| {
            let name = parameter.trim_matches(['{', '}']);
            (
                name.to_owned(),
                json!({ "$ref": format!("#/components/parameters/{name}") }),
            )
        })
        .collect();
    if !used.is_empty() {
        described["parameters"] = Value::Object(used);
    }
    described
}

fn operation(channel: &Channel) -> (String, Value) {
    let refer =
        |schema: &str| json!({ "$ref": format!("#/channels/{}/messages/{schema}", channel.id) });
    let to = json!({ "$ref": format!("#/channels/{}", channel.id) });
    let (action, verb) = match channel.way {
        Way::In => ("receive", "receive"),
        Way::Out => ("send", "send"),
    };
    let mut operation =
        json!({ "action": action, "channel": to, "messages": [refer(channel.carries)] });
    if let Some(answer) = channel.answer {
        operation["reply"] = json!({
            "address": { "location": "$message.header#/reply-to", "description": "The reply subject of the NATS request." },
            "channel": to,
            "messages": [refer(answer)],
        });
    }
    let id = channel.id;
    let (first, rest) = id.split_at(1);
    (format!("{verb}{}{rest}", first.to_uppercase()), operation)
}

fn parameters() -> Value {
    json!({
        "node": { "description": "The node's name, with `_` for `.`." },
        "job": { "description": "The job's name, with `_` for `.`." },
        "image": { "description": "The first 12 hex digits of the SHA-256 of the image's normalised reference." },
        "type": { "description": "What happened: the last word of the event's type." },
    })
}
