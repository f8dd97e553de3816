//! Bodies of requests, within bounds of size, time and memory.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::{Body as _, Incoming};
use tokio::sync::{Semaphore, SemaphorePermit};

/// Most bytes of a body that are read when they are not kept.
const MAX_DISCARDED: usize = 64 << 20;
/// Bytes of a body that waits for nobody. Nearly all have less.
const FREE: usize = 64 << 10;
/// Bytes of all larger bodies together.
const SHARED: usize = 64 << 20;

/// What all bodies share.
pub(super) struct Bodies {
    most: usize,
    limit: Duration,
    memory: Semaphore,
}

/// A body that is all there, with the memory it takes.
pub(super) struct Held<'a> {
    pub(super) bytes: Bytes,
    _memory: Option<SemaphorePermit<'a>>,
}

/// Why there is no body.
#[derive(Debug, thiserror::Error)]
pub(super) enum BodyError {
    #[error("the body is larger than {0} bytes (--max-body)")]
    TooLarge(usize),
    #[error("the body did not come within {0:?} (--request-timeout)")]
    TooSlow(Duration),
    #[error("the body was cut off: {0}")]
    CutOff(#[from] axum::Error),
}

impl Bodies {
    /// Bodies of at most so many bytes, each of which may take so long to come.
    pub(super) fn new(most: usize, limit: Duration) -> Self {
        Self {
            most,
            limit,
            memory: Semaphore::new(SHARED.max(most)),
        }
    }

    /// Reads one.
    pub(super) async fn read(&self, body: Incoming) -> Result<Held<'_>, BodyError> {
        tokio::time::timeout(self.limit, self.whole(body))
            .await
            .unwrap_or(Err(BodyError::TooSlow(self.limit)))
    }

    /// What is too large is read to its end, within bounds and without being kept: a sender that is cut off while it
    /// sends does not see the answer.
    async fn whole(&self, body: Incoming) -> Result<Held<'_>, BodyError> {
        let told = body.size_hint().exact();
        let told = told.and_then(|told| usize::try_from(told).ok());
        let mut chunks = Body::new(body).into_data_stream();
        let (mut kept, mut length) = (BytesMut::new(), 0_usize);
        let mut memory: Option<SemaphorePermit<'_>> = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            length = length.saturating_add(chunk.len());
            if length > self.most {
                (kept, memory) = (BytesMut::new(), None);
                if length > MAX_DISCARDED {
                    break;
                }
                continue;
            }
            if length > FREE && memory.is_none() {
                // All of it at once: two that have a part each would wait for one another.
                memory = self.hold(told.unwrap_or(self.most).min(self.most)).await;
            }
            kept.extend_from_slice(&chunk);
        }
        if length > self.most {
            return Err(BodyError::TooLarge(self.most));
        }
        Ok(Held {
            bytes: kept.freeze(),
            _memory: memory,
        })
    }

    async fn hold(&self, bytes: usize) -> Option<SemaphorePermit<'_>> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        // Never closed.
        self.memory.acquire_many(bytes).await.ok()
    }
}
