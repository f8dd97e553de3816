//! The plain source: the body is a push, or a list of pushes, as `prewarm.push` takes them.

use serde_json::Value;

use super::payload::{json, rejection};
use super::{Reading, Rejection};
use crate::wire::push::Push;

/// Whoever writes this format means what it says, so a push by digest is a push.
pub(super) fn read(body: &[u8]) -> Result<Reading, Rejection> {
    let (items, listed) = match json(body)? {
        Value::Array(items) => (items, true),
        item => (vec![item], false),
    };
    let mut reading = Reading::default();
    for (number, item) in items.into_iter().enumerate() {
        let place = if listed {
            format!("[{number}]")
        } else {
            "push".to_owned()
        };
        let push: Push = serde_json::from_value(item)
            .map_err(|error| rejection(&place, format!("not a push: {error}")))?;
        push.image().map_err(|message| rejection(&place, message))?;
        reading.pushes.push(push);
    }
    Ok(reading)
}
