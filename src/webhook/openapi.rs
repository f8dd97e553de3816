//! The OpenAPI 3.1 document of the receiver.

use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};

use super::source::Source;
use crate::wire::push::Push;

/// The document.
#[must_use]
pub fn document() -> Value {
    let mut paths = Map::new();
    for source in Source::ALL {
        let name = source.as_str();
        paths.insert(format!("/webhooks/{name}"), path(source, false));
        paths.insert(format!("/webhooks/{name}/{{secret}}"), path(source, true));
    }
    json!({
        "openapi": "3.1.0",
        "info": {
            "title": "prewarm webhook",
            "version": env!("CARGO_PKG_VERSION"),
            "description": "Takes what registries tell of pushes and publishes it on `prewarm.push`. A request is answered with \
    2xx only after the broker has every push of it.",
            "license": { "name": "Apache-2.0", "identifier": "Apache-2.0" },
        },
        "paths": paths,
        "components": { "schemas": schemas(), "responses": responses() },
    })
}

fn path(source: Source, with_secret: bool) -> Value {
    let name = source.as_str();
    let body = match source {
        Source::Generic => json!({ "oneOf": [
            { "$ref": "#/components/schemas/Push" },
            { "type": "array", "items": { "$ref": "#/components/schemas/Push" } },
        ] }),
        _ => json!({ "type": "object", "description": "The payload as the source documents it." }),
    };
    let refer = |response: &str| json!({ "$ref": format!("#/components/responses/{response}") });
    let mut responses = Map::new();
    for (status, response) in ANSWERS {
        responses.insert(status.to_owned(), refer(response));
    }
    let id = if with_secret { "WithSecret" } else { "" };
    let mut post = json!({
        "operationId": format!("{name}{id}"),
        "summary": format!("A webhook of the source {name}"),
        "requestBody": { "required": true, "content": { "application/json": { "schema": body } } },
        "responses": responses,
    });
    if with_secret {
        post["parameters"] = json!([{
            "name": "secret", "in": "path", "required": true, "schema": { "type": "string" },
            "description": "The source's secret, where its proof is `path`.",
        }]);
    }
    json!({ "post": post })
}

/// Every status a request can get, and the name of its description.
const ANSWERS: [(&str, &str); 9] = [
    ("200", "Nothing"),
    ("202", "Published"),
    ("400", "Malformed"),
    ("401", "Unproven"),
    ("404", "Unknown"),
    ("405", "NotPost"),
    ("408", "TooSlow"),
    ("413", "TooLarge"),
    ("503", "Unavailable"),
];

fn responses() -> Value {
    let said = |about: &str| json!({ "description": about, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Outcome" } } } });
    let failed = |about: &str| json!({ "description": about, "content": { "application/json": { "schema": { "$ref": "#/components/schemas/Failure" } } } });
    let mut unavailable =
        failed("The broker does not have the pushes, or too many requests wait; try again.");
    unavailable["headers"] =
        json!({ "Retry-After": { "schema": { "type": "integer" }, "description": "Seconds." } });
    json!({
        "Nothing": said("The payload is no push of an image that counts; nothing was published."),
        "Published": said("The broker has every push of the payload."),
        "Malformed": failed("The payload is not what the source sends; the error says where."),
        "Unproven": failed("The proof of the source is missing or wrong."),
        "Unknown": failed("There is no such source, or it is not switched on."),
        "NotPost": failed("Webhooks are posted."),
        "TooSlow": failed("The body did not come in time."),
        "TooLarge": failed("The body is larger than the limit, which the error names."),
        "Unavailable": unavailable,
    })
}

fn schemas() -> Value {
    let settings = SchemaSettings::draft2020_12();
    let mut generator = settings
        .with(|settings| settings.definitions_path = "/components/schemas".into())
        .into_generator();
    // Its own schema is among the definitions then, and so is what it refers to.
    let _ = generator.subschema_for::<Push>();
    let mut schemas = generator.take_definitions(true);
    schemas.insert(
        "Outcome".to_owned(),
        json!({
            "type": "object",
            "required": ["published", "ignored", "refused"],
            "properties": {
                "published": { "type": "integer", "minimum": 0, "description": "Pushes the broker has." },
                "ignored": { "type": "array", "items": { "type": "string" }, "description": "What is no push that counts, and why." },
                "refused": { "type": "array", "items": { "type": "string" }, "description": "Pushes this source may not speak of, and why." },
            },
        }),
    );
    schemas.insert(
        "Failure".to_owned(),
        json!({ "type": "object", "required": ["error"], "properties": { "error": { "type": "string" } } }),
    );
    Value::Object(schemas)
}
