//! Bodies of requests, within bounds of size, time and memory.

use std::time::Duration;

use axum::body::Body;
use bytes::{Bytes, BytesMut};
use futures::StreamExt as _;
use hyper::body::Incoming;
use tokio::sync::{Semaphore, SemaphorePermit};

/// Most bytes of a body that are read when they are not kept.
const MAX_DISCARDED: usize = 64 << 20;
/// Bytes of a body that are always taken. Nearly all have less.
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
    #[error("too many large bodies at once; try again")]
    Busy,
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

    /// What cannot be taken is read to its end, within bounds and without being kept: a sender that is cut off while it
    /// sends does not see the answer.
    async fn whole(&self, body: Incoming) -> Result<Held<'_>, BodyError> {
        let mut chunks = Body::new(body).into_data_stream();
        let (mut kept, mut length) = (BytesMut::new(), 0_usize);
        let mut memory: Option<SemaphorePermit<'_>> = None;
        let mut refused = None;
        while let Some(chunk) = chunks.next().await {
            let chunk = chunk?;
            length = length.saturating_add(chunk.len());
            if length > MAX_DISCARDED {
                break;
            }
            if refused.is_none() {
                refused = self.make_room(&mut memory, length).err();
            }
            if refused.is_some() {
                (kept, memory) = (BytesMut::new(), None);
            } else {
                kept.extend_from_slice(&chunk);
            }
        }
        match refused {
            Some(refused) => Err(refused),
            None => Ok(Held {
                bytes: kept.freeze(),
                _memory: memory,
            }),
        }
    }

    /// Takes memory for a body of this length so far.
    fn make_room<'a>(
        &'a self,
        memory: &mut Option<SemaphorePermit<'a>>,
        length: usize,
    ) -> Result<(), BodyError> {
        if length > self.most {
            return Err(BodyError::TooLarge(self.most));
        }
        let held = memory.as_ref().map_or(0, SemaphorePermit::num_permits);
        if length <= FREE.max(held) {
            return Ok(());
        }
        // Twice what is there, so that nobody holds much who has not sent it. Nobody waits for it: two that have a part
        // each would wait for one another.
        let more = self.hold((length * 2).min(self.most) - held)?;
        match memory {
            Some(memory) => memory.merge(more),
            None => *memory = Some(more),
        }
        Ok(())
    }

    fn hold(&self, bytes: usize) -> Result<SemaphorePermit<'_>, BodyError> {
        let bytes = u32::try_from(bytes).unwrap_or(u32::MAX);
        self.memory
            .try_acquire_many(bytes)
            .map_err(|_| BodyError::Busy)
    }
}
