//! Blobs from the registry into the content store: each once, verified, and resumed where it stopped.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt as _;
use tokio::time::Instant;

use super::Shared;
use super::client::Client;
use super::content::{CommitError, Ingest, Opened};
use super::flights::Turn;
use super::labels::{self, Labels};
use super::meter::Meter;
use super::native::Tap;
use super::parts;
use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::{Digest, ImageRef};
use crate::image::disk::Room;
use crate::image::registry::Repository;
use crate::image::registry::manifest::{
    DOCKER_CONFIG, DOCKER_LIST, DOCKER_MANIFEST, Descriptor, OCI_CONFIG, OCI_INDEX, OCI_MANIFEST,
};

/// How much goes to containerd at a time, in bytes.
const WRITE_BYTES: usize = 1 << 20;
/// In at most so many pieces, since small ones may hold more memory than they have bytes.
const WRITE_PIECES: usize = 256;
/// How many bytes of a blob come before they are told of: on a slow line a piece to be written takes a while.
const TELL_BYTES: u64 = 32 << 10;
/// How often a blob is taken up again after broken connections that brought next to nothing, one after the other.
const MAX_FRUITLESS_RESUMES: u32 = 2;
/// Fewest bytes that make an attempt worth another.
const FRUITFUL_BYTES: u64 = 64 << 10;
/// How often another client's write is looked at.
const FOLLOW_INTERVAL: Duration = Duration::from_millis(200);
/// How long another client's write may stand still.
const FOLLOW_STALL: Duration = Duration::from_secs(60);

/// Bytes by where they came from.
#[derive(Clone, Copy, Default, Debug)]
pub(super) struct Traffic {
    pub(super) registry: u64,
    pub(super) mirror: u64,
    pub(super) present: u64,
}

/// Fetches the blobs of one image.
pub(super) struct Fetcher<'a> {
    pub(super) shared: &'a Shared,
    /// Makes requests under the pull's lease.
    pub(super) client: &'a Client,
    pub(super) image: &'a ImageRef,
    pub(super) repository: &'a Arc<Repository>,
    pub(super) meter: &'a Meter,
    pub(super) traffic: Mutex<Traffic>,
    /// The content store's directory, if bytes may be written there without a detour.
    pub(super) store: Option<PathBuf>,
    pub(super) room: &'a Room,
}

/// The bytes of a blob, or where else they come from and go to.
enum Way<'a> {
    /// They are at hand.
    AtHand(&'a [u8]),
    /// From the registry, and past a tap.
    Registry(Option<&'a mut Tap>),
}

/// Bytes as they came from the network, which are not copied together.
#[derive(Default)]
struct Batch {
    pieces: Vec<Bytes>,
    bytes: u64,
}

impl Batch {
    fn push(&mut self, piece: Bytes) {
        self.bytes += piece.len() as u64;
        self.pieces.push(piece);
    }

    fn is_full(&self) -> bool {
        self.bytes >= WRITE_BYTES as u64 || self.pieces.len() >= WRITE_PIECES
    }
}

/// One blob on its way from the registry.
struct Download<'a> {
    blob: &'a Descriptor,
    labels: Labels,
    turn: &'a Turn,
    tap: Option<&'a mut Tap>,
}

impl Download<'_> {
    /// The labels of the blob, with what it inflates to if that is known by now.
    async fn labels(&mut self) -> Labels {
        let mut labels = self.labels.clone();
        if let Some(tap) = &mut self.tap
            && let Some(Ok(unpacked)) = tap.finish(self.blob.size).await
        {
            let label = (
                labels::UNCOMPRESSED.to_owned(),
                unpacked.diff_id.to_string(),
            );
            labels.extend([label]);
        }
        labels
    }
}

/// Why a copy of a blob did not make it into the store.
enum CopyError {
    /// The bytes are not those of the digest.
    Mismatch(String),
    /// The connection broke; what came is kept.
    Broken(Failure),
    /// Nothing to be done here.
    Fatal(Failure),
}

impl Fetcher<'_> {
    /// Brings a blob into the content store, or finds it there.
    pub(super) async fn blob(&self, blob: &Descriptor, extra: Labels) -> Result<(), Failure> {
        self.bring(blob, extra, Way::Registry(None)).await
    }

    /// As [`blob`](Self::blob); what is downloaded from its first byte on goes into the tap as well.
    pub(super) async fn tapped(&self, blob: &Descriptor, tap: &mut Tap) -> Result<(), Failure> {
        self.bring(blob, Labels::new(), Way::Registry(Some(tap)))
            .await
    }

    /// Puts bytes that are at hand, and known to hash to the digest, into the content store.
    pub(super) async fn put(
        &self,
        blob: &Descriptor,
        bytes: &[u8],
        extra: Labels,
    ) -> Result<(), Failure> {
        self.bring(blob, extra, Way::AtHand(bytes)).await
    }

    async fn bring(
        &self,
        blob: &Descriptor,
        extra: Labels,
        mut way: Way<'_>,
    ) -> Result<(), Failure> {
        let digest = &blob.digest;
        let follow = |done| self.meter.set(digest, done);
        let turn = self.shared.blobs.turn(digest, follow).await;
        let reference = reference(blob);
        loop {
            match self.client.open(&reference, digest, blob.size).await? {
                Opened::Present => break,
                Opened::Locked => self.follow(&reference, blob, &turn).await?,
                Opened::Ours(mut ingest) => {
                    let mut labels = extra;
                    labels.extend([labels::distribution_source(self.image)]);
                    match &mut way {
                        Way::AtHand(bytes) => self.write(*ingest, bytes, labels).await?,
                        Way::Registry(tap) => {
                            self.count(|traffic| traffic.present += ingest.offset);
                            if let Some(store) = &self.store {
                                ingest.write_into(store).await;
                            }
                            let download = Download {
                                blob,
                                labels,
                                turn: &turn,
                                tap: tap.as_deref_mut(),
                            };
                            self.download(*ingest, download).await?;
                        }
                    }
                    self.progress(&turn, digest, blob.size);
                    return Ok(());
                }
            }
        }
        if matches!(way, Way::Registry(_)) {
            self.count(|traffic| traffic.present += blob.size);
        }
        self.progress(&turn, digest, blob.size);
        self.label_present(digest, extra).await
    }

    /// Adds what is missing to the labels of content that was there.
    async fn label_present(&self, digest: &Digest, mut wanted: Labels) -> Result<(), Failure> {
        let present = self
            .client
            .info(digest)
            .await?
            .map(|info| info.labels)
            .unwrap_or_default();
        let (key, repository) = labels::distribution_source(self.image);
        let known = present.get(&key).map(String::as_str);
        let merged = labels::merged_source(&key, known, &repository);
        wanted.retain(|key, value| present.get(key) != Some(value));
        wanted.extend(merged.map(|value| (key, value)));
        self.client.label(digest, wanted).await
    }

    async fn write(&self, mut ingest: Ingest, bytes: &[u8], labels: Labels) -> Result<(), Failure> {
        let start = usize::try_from(ingest.offset).unwrap_or(usize::MAX);
        for chunk in bytes.get(start..).unwrap_or_default().chunks(WRITE_BYTES) {
            ingest.write(vec![Bytes::copy_from_slice(chunk)]).await?;
        }
        ingest.commit(labels).await.map_err(|error| match error {
            CommitError::Other(failure) => failure,
            CommitError::Mismatch(words) => Failure::new(FailureKind::DigestMismatch, words),
        })
    }

    /// Downloads until the blob is committed, going on after broken connections, and to the next
    /// endpoint when one has other bytes than it should.
    async fn download(
        &self,
        mut ingest: Ingest,
        mut download: Download<'_>,
    ) -> Result<(), Failure> {
        let (blob, turn) = (download.blob, download.turn);
        let mut endpoint = 0;
        let mut fruitless = 0;
        loop {
            let start = ingest.offset;
            let copied = self.copy(&mut ingest, &mut download, &mut endpoint).await;
            let reached = ingest.offset;
            let outcome = match copied {
                Ok(()) => match self.commit(ingest, &mut download).await {
                    Ok(()) => return Ok(()),
                    Err(CommitError::Mismatch(words)) => Err(words),
                    Err(CommitError::Other(failure)) => return Err(failure),
                },
                Err(CopyError::Mismatch(words)) => {
                    ingest.abort().await?;
                    Err(words)
                }
                Err(CopyError::Fatal(failure)) => return Err(failure),
                Err(CopyError::Broken(failure)) => {
                    fruitless = match reached - start {
                        FRUITFUL_BYTES.. => 0,
                        _ => fruitless + 1,
                    };
                    if fruitless > MAX_FRUITLESS_RESUMES {
                        return Err(failure);
                    }
                    tracing::debug!(%failure, blob = %blob.digest, reached, "taking up a blob again");
                    Ok(ingest)
                }
            };
            ingest = match outcome {
                Ok(ingest) => ingest,
                Err(words) => {
                    // What an earlier attempt left may be what is wrong, so that the same endpoint
                    // deserves to be asked for all of it once.
                    endpoint += usize::from(start == 0);
                    self.start_over(blob, words, endpoint, turn).await?
                }
            };
        }
    }

    /// Commits a blob of which all bytes are there. containerd verifies them while the rest of them is unpacked.
    async fn commit(&self, ingest: Ingest, download: &mut Download<'_>) -> Result<(), CommitError> {
        let digest = &download.blob.digest;
        let (shown, labels) = tokio::join!(ingest.shown(), download.labels());
        match shown.map_err(CommitError::Other)? {
            Some(ingest) => ingest.commit(labels).await,
            None => {
                let labelled = self.client.label(digest, labels).await;
                labelled.map_err(CommitError::Other)
            }
        }
    }

    async fn start_over(
        &self,
        blob: &Descriptor,
        words: String,
        endpoint: usize,
        turn: &Turn,
    ) -> Result<Ingest, Failure> {
        let failure = Failure::new(
            FailureKind::DigestMismatch,
            format!("blob {} of {}: {words}", blob.digest, self.image),
        );
        self.progress(turn, &blob.digest, 0);
        let reference = reference(blob);
        // A commit that failed leaves the bytes; they are of no use to anyone.
        self.client.discard(&reference).await?;
        if endpoint >= self.repository.endpoints() {
            return Err(failure);
        }
        tracing::warn!(%failure, "asking for the blob again");
        match self
            .client
            .open(&reference, &blob.digest, blob.size)
            .await?
        {
            Opened::Ours(ingest) if ingest.offset == 0 => Ok(*ingest),
            _ => Err(failure),
        }
    }

    /// Copies from the registry until all bytes are written.
    async fn copy(
        &self,
        ingest: &mut Ingest,
        download: &mut Download<'_>,
        endpoint: &mut usize,
    ) -> Result<(), CopyError> {
        let (blob, turn) = (download.blob, download.turn);
        let (digest, size) = (&blob.digest, blob.size);
        self.progress(turn, digest, ingest.offset);
        if ingest.offset >= size {
            return Ok(());
        }
        let memory = &self.shared.memory;
        let opened = parts::open(
            self.repository,
            (digest, size),
            ingest.offset,
            *endpoint,
            memory,
        )
        .await
        .map_err(|failure| match failure.kind {
            FailureKind::DigestMismatch => CopyError::Mismatch(failure.message),
            _ => CopyError::Fatal(failure),
        })?;
        *endpoint = opened.endpoint;
        let mut stream = opened.stream;
        let mut batch = Batch::default();
        let mut told = ingest.offset;
        loop {
            let next = stream.next().await;
            if let Some(Ok(chunk)) = &next {
                if let Some(throttle) = &self.shared.throttle {
                    throttle.pass(chunk.len()).await;
                }
                batch.push(chunk.clone());
            }
            let received = ingest.offset + batch.bytes;
            if received > size {
                return Err(CopyError::Mismatch(format!("more than {size} bytes came")));
            }
            if received - told >= TELL_BYTES {
                told = received;
                self.progress(turn, digest, received);
            }
            let ended = !matches!(next, Some(Ok(_)));
            if batch.is_full() || (ended && batch.bytes > 0) {
                let Batch { pieces, bytes } = std::mem::take(&mut batch);
                let start = ingest.offset;
                let written = ingest.write(pieces.clone()).await;
                written.map_err(CopyError::Fatal)?;
                if let Some(tap) = &mut download.tap {
                    let fed = tap.feed(start, pieces, ingest.file()).await;
                    fed.map_err(CopyError::Fatal)?;
                }
                self.count(|traffic| match opened.from_mirror {
                    true => traffic.mirror += bytes,
                    false => traffic.registry += bytes,
                });
                self.progress(turn, digest, ingest.offset);
            }
            match next {
                Some(Ok(_)) => {}
                None if ingest.offset == size => return Ok(()),
                Some(Err(failure)) => return Err(CopyError::Broken(failure)),
                None => return Err(self.ended_early(blob, ingest.offset)),
            }
        }
    }

    fn ended_early(&self, blob: &Descriptor, reached: u64) -> CopyError {
        let (digest, size) = (&blob.digest, blob.size);
        CopyError::Broken(Failure::new(
            FailureKind::RegistryUnavailable,
            format!(
                "blob {digest} of {}: ended after {reached} of {size} bytes",
                self.image
            ),
        ))
    }

    /// Waits while another client, kubelet's pull as a rule, writes the blob.
    async fn follow(&self, reference: &str, blob: &Descriptor, turn: &Turn) -> Result<(), Failure> {
        let mut reached = 0;
        let mut since = Instant::now();
        loop {
            let Some(written) = self.client.written(reference).await? else {
                return Ok(());
            };
            if written != reached {
                reached = written;
                since = Instant::now();
                self.progress(turn, &blob.digest, written.min(blob.size));
            } else if since.elapsed() > FOLLOW_STALL {
                return Err(Failure::new(
                    FailureKind::RuntimeUnavailable,
                    format!(
                        "another client of containerd holds {reference} and has written nothing for {FOLLOW_STALL:?}"
                    ),
                ));
            }
            tokio::time::sleep(FOLLOW_INTERVAL).await;
            // Whoever held it may be gone without a trace in the numbers: trying to take over shows.
            if let Opened::Ours(_) | Opened::Present =
                self.client.open(reference, &blob.digest, blob.size).await?
            {
                return Ok(());
            }
        }
    }

    fn progress(&self, turn: &Turn, digest: &Digest, done: u64) {
        turn.tell(done);
        self.meter.set(digest, done);
    }

    fn count(&self, add: impl FnOnce(&mut Traffic)) {
        add(&mut self.traffic.lock().unwrap_or_else(PoisonError::into_inner));
    }
}

/// The reference that containerd's own pulls use (`core/remotes/handlers.go`, `MakeRefKey`), so that
/// a blob is never fetched twice at once and anyone can go on from where another stopped.
fn reference(blob: &Descriptor) -> String {
    let kind = match blob.media_type.as_str() {
        OCI_MANIFEST | DOCKER_MANIFEST => "manifest",
        OCI_INDEX | DOCKER_LIST => "index",
        OCI_CONFIG | DOCKER_CONFIG => "config",
        other if labels::is_layer(other) => "layer",
        _ => "unknown",
    };
    match blob.annotations.get("org.opencontainers.image.ref.name") {
        Some(name) => format!("{kind}-{name}@{}", blob.digest),
        None => format!("{kind}-{}", blob.digest),
    }
}
