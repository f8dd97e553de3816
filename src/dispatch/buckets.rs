//! How keys of buckets are spoken of on the wire.

use async_nats::HeaderMap;

/// The subject of a bucket's key (NATS ADR-8).
pub(super) fn kv_subject(bucket: &str, key: &str) -> String {
    format!("$KV.{bucket}.{key}")
}

/// The marker of a deleted key (NATS ADR-8, "Delete").
pub(super) fn deletion() -> HeaderMap {
    let mut headers = HeaderMap::new();
    headers.insert("KV-Operation", "DEL");
    headers
}
