//! Large blobs over several connections: a registry, or the store it redirects to, often limits each.

use std::collections::VecDeque;
use std::sync::Arc;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{FutureExt as _, StreamExt as _, stream};
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tokio_util::task::AbortOnDropHandle;

use super::memory::{Held, Memory};
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::image::registry::{Blob, Part, Repository};

/// Bytes of one part.
pub(super) const PART_BYTES: u64 = 8 << 20;
/// Smaller blobs come in one piece.
const MIN_BYTES: u64 = 2 * PART_BYTES;
/// Connections for one blob in the beginning, and at most. There is one more each time that its bytes are waited for: where
/// a few bring more than can be unpacked, others would only fill the memory.
const FIRST_CONNECTIONS: usize = 2;
const MAX_CONNECTIONS: usize = 8;

/// What is asked for in parts.
#[derive(Clone)]
struct Source {
    repository: Arc<Repository>,
    digest: Digest,
    size: u64,
    endpoint: usize,
    memory: Memory,
}

/// A part that is on its way.
struct Coming {
    pieces: BoxStream<'static, Result<Bytes, Failure>>,
    _task: AbortOnDropHandle<()>,
    _memory: Option<Held>,
}

/// Parts in the order of the blob; the first comes first.
struct Parts {
    source: Source,
    first: Option<BoxStream<'static, Result<Bytes, Failure>>>,
    coming: VecDeque<Coming>,
    next: u64,
    /// How many connections there are to be.
    connections: usize,
}

/// Opens a blob at an offset: in parts if it is large and the endpoint serves them, else in one piece.
pub(super) async fn open(
    repository: &Arc<Repository>,
    (digest, size): (&Digest, u64),
    offset: u64,
    first_endpoint: usize,
    memory: &Memory,
) -> Result<Blob, Failure> {
    let left = size.saturating_sub(offset);
    if left < MIN_BYTES {
        let part = Part::from(offset);
        return repository.blob(digest, size, part, first_endpoint).await;
    }
    let part = Part {
        start: offset,
        end: Some(offset + PART_BYTES),
    };
    let opened = repository.blob(digest, size, part, first_endpoint).await?;
    if opened.end == size {
        return Ok(opened);
    }
    let parts = Parts {
        source: Source {
            repository: repository.clone(),
            digest: digest.clone(),
            size,
            endpoint: opened.endpoint,
            memory: memory.clone(),
        },
        first: Some(exactly(opened.stream, PART_BYTES)),
        coming: VecDeque::new(),
        next: opened.end,
        connections: FIRST_CONNECTIONS,
    };
    let stream = stream::unfold(parts, |mut parts| async {
        let piece = parts.piece().await?;
        Some((piece, parts))
    });
    Ok(Blob {
        stream: stream.boxed(),
        end: size,
        ..opened
    })
}

impl Parts {
    async fn piece(&mut self) -> Option<Result<Bytes, Failure>> {
        loop {
            self.ask();
            let mut next = match &mut self.first {
                Some(first) => first.next(),
                None => self.coming.front_mut()?.pieces.next(),
            };
            let piece = match (&mut next).now_or_never() {
                Some(piece) => piece,
                None => {
                    self.connections = (self.connections + 1).min(MAX_CONNECTIONS);
                    next.await
                }
            };
            if piece.is_some() {
                return piece;
            }
            if self.first.take().is_none() {
                self.coming.pop_front();
            }
        }
    }

    /// Asks for the next parts, as many as there are to be and memory allows, and one in any case.
    fn ask(&mut self) {
        let under_way = |parts: &Self| parts.coming.len() + usize::from(parts.first.is_some());
        while self.next < self.source.size && under_way(self) < self.connections {
            let memory = self.source.memory.try_hold(PART_BYTES);
            if memory.is_none() && under_way(self) > 0 {
                return;
            }
            let end = (self.next + PART_BYTES).min(self.source.size);
            let (sender, pieces) = mpsc::unbounded_channel();
            let pieces = UnboundedReceiverStream::new(pieces).boxed();
            let fetch = self.source.clone().fetch(self.next, end, sender);
            self.coming.push_back(Coming {
                pieces,
                _task: AbortOnDropHandle::new(tokio::spawn(fetch)),
                _memory: memory,
            });
            self.next = end;
        }
    }
}

impl Source {
    /// Brings one part. What it sends is bounded by the part's length.
    async fn fetch(
        self,
        start: u64,
        end: u64,
        pieces: mpsc::UnboundedSender<Result<Bytes, Failure>>,
    ) {
        let part = Part {
            start,
            end: Some(end),
        };
        let opened = self
            .repository
            .blob(&self.digest, self.size, part, self.endpoint)
            .await;
        let mut stream = match opened {
            // Another endpoint, or no parts any more: to be sorted out by whoever asks again.
            Ok(blob) if blob.endpoint != self.endpoint || blob.end != end => {
                let words = "the registry served parts of a blob and then did not";
                let failure = Failure::new(FailureKind::RegistryUnavailable, words);
                let _ = pieces.send(Err(failure));
                return;
            }
            Ok(blob) => exactly(blob.stream, end - start),
            Err(failure) => {
                let _ = pieces.send(Err(failure));
                return;
            }
        };
        while let Some(piece) = stream.next().await {
            if pieces.send(piece).is_err() {
                return;
            }
        }
    }
}

/// The stream, which fails unless it has so many bytes.
fn exactly(
    stream: BoxStream<'static, Result<Bytes, Failure>>,
    length: u64,
) -> BoxStream<'static, Result<Bytes, Failure>> {
    let wrong = || {
        let words = "the registry sent another number of bytes than a part has";
        Some(Err(Failure::new(FailureKind::RegistryUnavailable, words)))
    };
    let ended = stream.map(Some).chain(stream::iter([None]));
    ended
        .scan(Some(length), move |left, piece| {
            let Some(expected) = *left else {
                return futures::future::ready(None);
            };
            let kept = match piece {
                None if expected == 0 => None,
                Some(Ok(piece)) if piece.len() as u64 <= expected => {
                    *left = Some(expected - piece.len() as u64);
                    return futures::future::ready(Some(Ok(piece)));
                }
                Some(Err(failure)) => Some(Err(failure)),
                None | Some(Ok(_)) => wrong(),
            };
            *left = None;
            futures::future::ready(kept)
        })
        .boxed()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_part_has_its_length_or_fails() {
        let run = async |pieces: &[&'static [u8]]| {
            let pieces: Vec<_> = pieces
                .iter()
                .map(|piece| Ok(Bytes::from_static(piece)))
                .collect();
            let got: Vec<_> = exactly(stream::iter(pieces).boxed(), 4).collect().await;
            got.into_iter()
                .collect::<Result<Vec<_>, _>>()
                .map(|got| got.concat())
        };
        assert_eq!(run(&[b"ab", b"cd"]).await.unwrap(), b"abcd");
        assert!(run(&[b"ab", b"c"]).await.is_err());
        assert!(run(&[b"ab", b"cde"]).await.is_err());
        assert!(run(&[]).await.is_err());
    }
}
