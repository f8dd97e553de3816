//! A layer on its way into a directory: inflated, hashed and unpacked on threads of its own while it
//! still arrives.

use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};

use bytes::Bytes;
use sha2::{Digest as _, Sha256};
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_util::task::TaskTracker;

use crate::domain::failure::{Failure, FailureKind};
use crate::domain::image::Digest;
use crate::image::containerd::meter::LayerMeter;
use crate::image::disk::Room;
use crate::image::inflate::{CHUNK_BYTES, InflateError, Inflater, Outlet};
use crate::image::untar::{Implicit, Level, Limits, Untar, UntarError};

/// Batches that wait to be inflated.
const INPUT_QUEUE: usize = 4;
/// Inflated chunks that wait to be hashed, and to be unpacked.
const CHUNK_QUEUE: usize = 8;
/// How much of a file is read at a time, in bytes.
const READ_BYTES: usize = 1 << 20;
/// Most memory that one layer's threads use, in bytes: the chunks in both queues, those in hand, and
/// batches of a MiB before they are inflated, read from a file or not. The window of zstd comes on top.
pub(in crate::image::containerd) const MEMORY_BYTES: u64 =
    ((CHUNK_QUEUE + 4) * CHUNK_BYTES) as u64 + ((INPUT_QUEUE as u64 + 3) << 20);

/// What a layer turned out to be.
pub(in crate::image::containerd) struct Unpacked {
    /// The digest of the archive.
    pub(in crate::image::containerd) diff_id: Digest,
    /// Directories that are to look as in the layers below; none any more once somebody has got them.
    implicit: Vec<Implicit>,
}

/// Why a layer was not unpacked.
#[derive(Debug, thiserror::Error)]
pub(in crate::image::containerd) enum UnpackError {
    #[error(transparent)]
    Inflate(#[from] InflateError),
    #[error(transparent)]
    Untar(#[from] UntarError),
    #[error("{}", .0.message)]
    Room(Failure),
    #[error("reading what was downloaded: {0}")]
    Reading(std::io::Error),
    #[error("its thread ended")]
    Thread,
}

impl UnpackError {
    /// Whether more bytes cannot change that.
    fn is_machine(&self) -> bool {
        match self {
            Self::Inflate(_) => false,
            Self::Untar(error) => error.is_machine(),
            Self::Room(_) | Self::Reading(_) | Self::Thread => true,
        }
    }

    /// The failure it means; `layer` is what was unpacked.
    pub(super) fn failure(&self, layer: &Digest) -> Failure {
        let kind = match self {
            Self::Inflate(_) => FailureKind::InvalidReference,
            Self::Room(failure) => failure.kind,
            Self::Untar(error) if error.is_disk_full() => FailureKind::InsufficientDisk,
            Self::Untar(error) if error.is_machine() => FailureKind::RuntimeUnavailable,
            Self::Untar(_) => FailureKind::InvalidReference,
            Self::Reading(_) => FailureKind::RuntimeUnavailable,
            Self::Thread => FailureKind::Internal,
        };
        Failure::new(kind, format!("unpacking layer {layer}: {self}"))
    }
}

/// Bytes of a layer on their way to be inflated.
enum Batch {
    Pieces(Vec<Bytes>),
    /// They are in a file already.
    Written(Arc<File>, Range<u64>),
}

/// Takes a layer's bytes from its first to its last.
pub(in crate::image::containerd) struct Tap {
    layer: Digest,
    /// What the archive hashes to if it is the right one, and who waits for it to be unpacked.
    diff_id: Digest,
    waiting: Option<oneshot::Sender<Vec<Implicit>>>,
    /// `None` once bytes were missed, or no more are to come.
    input: Option<mpsc::Sender<Batch>>,
    /// Bytes that were taken.
    fed: u64,
    /// From where on the threads had no room for them yet, and are to read them from the file that they are in.
    behind: Option<(Arc<File>, u64)>,
    /// Whether bytes were missed.
    missed: bool,
    /// Whether the threads wanted no more.
    refused: bool,
    state: Running,
}

enum Running {
    Threads(JoinHandle<Result<Unpacked, UnpackError>>),
    Done(Result<Unpacked, UnpackError>),
}

impl Tap {
    /// Starts to unpack into an empty directory. The threads are told of to `workers`, and end soon
    /// after the tap is dropped. Once all of the layer is there and hashes to `diff_id`, its directories without an
    /// entry can be received; otherwise the sender is dropped with the tap.
    pub(super) fn start(
        workers: &TaskTracker,
        (layer, diff_id): (&Digest, &Digest),
        to: (PathBuf, Level),
        room: Room,
        meter: LayerMeter,
    ) -> (Self, oneshot::Receiver<Vec<Implicit>>) {
        let (input, batches) = mpsc::channel(INPUT_QUEUE);
        let threads = workers.spawn_blocking(move || unpack(batches, to, &room, &meter));
        let (waiting, unpacked) = oneshot::channel();
        let tap = Self {
            layer: layer.clone(),
            diff_id: diff_id.clone(),
            waiting: Some(waiting),
            input: Some(input),
            fed: 0,
            behind: None,
            missed: false,
            refused: false,
            state: Running::Threads(threads),
        };
        (tap, unpacked)
    }

    /// Takes the bytes at an offset. Those that do not continue the others spoil the whole, unless they only leave out what is
    /// in the file. If that has them as well, nobody waits for the threads: a download that is done before all is unpacked
    /// lets containerd verify it meanwhile.
    ///
    /// # Errors
    /// What makes it futile to go on, such as a full disk. What is wrong with the bytes is told by
    /// [`finish`](Self::finish): their digest may be wrong as well, which says more.
    pub(in crate::image::containerd) async fn feed(
        &mut self,
        offset: u64,
        pieces: Vec<Bytes>,
        file: Option<&Arc<File>>,
    ) -> Result<(), Failure> {
        let skipped = offset > self.fed && file.is_none();
        if offset < self.fed || (skipped && !self.refused) {
            // Where bytes come again, those before were wrong, and what the threads thought of them counts no more.
            self.missed = true;
            self.refused = false;
            self.input = None;
        }
        let Some(input) = &self.input else {
            return Ok(());
        };
        let end = offset + pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        let sent = match file {
            None => input.send(Batch::Pieces(pieces)).await.is_ok(),
            Some(file) => {
                let start = self.behind.take().map_or(self.fed, |(_, start)| start);
                match input.try_reserve() {
                    Ok(permit) if start == offset => permit.send(Batch::Pieces(pieces)),
                    Ok(permit) => permit.send(Batch::Written(file.clone(), start..end)),
                    Err(_) => self.behind = Some((file.clone(), start)),
                }
                !input.is_closed()
            }
        };
        if sent {
            self.fed = end;
            return Ok(());
        }
        self.refuse().await
    }

    /// The threads want no more. That is an error if it is not for the bytes.
    async fn refuse(&mut self) -> Result<(), Failure> {
        self.input = None;
        self.refused = true;
        let layer = self.layer.clone();
        match self.outcome().await {
            Err(error) if error.is_machine() => Err(error.failure(&layer)),
            _ => Ok(()),
        }
    }

    /// What came out of `size` bytes; `None` if the tap did not see them all.
    pub(in crate::image::containerd) async fn finish(
        &mut self,
        size: u64,
    ) -> Option<&Result<Unpacked, UnpackError>> {
        if let (Some(input), Some((file, start))) = (self.input.take(), self.behind.take()) {
            let rest = Batch::Written(file, start..self.fed);
            self.refused = input.send(rest).await.is_err();
        }
        let seen = self.refused || (!self.missed && self.fed == size);
        self.outcome().await;
        if seen
            && let Running::Done(Ok(unpacked)) = &mut self.state
            && unpacked.diff_id == self.diff_id
            && let Some(waiting) = self.waiting.take()
        {
            // Whoever does not wait any more has failed, and needs nothing.
            let _ = waiting.send(std::mem::take(&mut unpacked.implicit));
        }
        let outcome = self.outcome().await;
        seen.then_some(outcome)
    }

    /// Says whether it saw all `size` bytes, and fails if what came out of them is not what it should be.
    pub(super) async fn verify(&mut self, size: u64) -> Result<bool, Failure> {
        let (layer, expected) = (self.layer.clone(), self.diff_id.clone());
        match self.finish(size).await {
            None => Ok(false),
            Some(Ok(unpacked)) if unpacked.diff_id == expected => Ok(true),
            Some(Ok(Unpacked { diff_id, .. })) => Err(Failure::new(
                FailureKind::DigestMismatch,
                format!(
                    "layer {layer} unpacks to {diff_id}, while the image's configuration says {expected}"
                ),
            )),
            Some(Err(error)) => Err(error.failure(&layer)),
        }
    }

    async fn outcome(&mut self) -> &Result<Unpacked, UnpackError> {
        if let Running::Threads(threads) = &mut self.state {
            let outcome = threads.await.unwrap_or(Err(UnpackError::Thread));
            self.state = Running::Done(outcome);
        }
        match &self.state {
            Running::Done(outcome) => outcome,
            Running::Threads(_) => &Err(UnpackError::Thread),
        }
    }
}

/// Inflates on this thread, hashes and unpacks on two others.
fn unpack(
    mut batches: mpsc::Receiver<Batch>,
    (dir, level): (PathBuf, Level),
    room: &Room,
    meter: &LayerMeter,
) -> Result<Unpacked, UnpackError> {
    let limits = Limits::default();
    let (to_hash, hashing) = sync_channel(CHUNK_QUEUE);
    let (to_unpack, unpacking) = sync_channel::<Arc<Chunk>>(CHUNK_QUEUE);
    let (give_back, spare) = sync_channel(2 * CHUNK_QUEUE + 2);
    let give_back_too = give_back.clone();
    std::thread::scope(|scope| {
        let hasher = scope.spawn(move || hash(&hashing, &give_back_too));
        let extractor = scope.spawn(move || -> Result<_, UnpackError> {
            let mut untar = Untar::new(&dir, level, limits)?;
            for chunk in unpacking {
                room.is_left().map_err(UnpackError::Room)?;
                untar.write(chunk.bytes())?;
                recycle(chunk, &give_back);
            }
            Ok(untar.finish()?)
        });
        let mut chunks = Chunks {
            takers: [to_hash, to_unpack],
            spare,
        };
        // What tar adds to the files it holds is less than they are, or than a GiB.
        let most = limits.bytes.saturating_mul(2);
        let mut inflater = Inflater::new(most);
        let inflated = || -> Result<(), UnpackError> {
            let mut inflated = 0;
            meter.set(inflated);
            let mut buffer = Vec::new();
            let mut push = |pieces: &[&[u8]]| -> Result<(), UnpackError> {
                for piece in pieces {
                    inflater.push(piece, &mut chunks)?;
                    inflated += piece.len() as u64;
                }
                meter.set(inflated);
                Ok(())
            };
            while let Some(batch) = batches.blocking_recv() {
                match batch {
                    Batch::Pieces(pieces) => {
                        push(&pieces.iter().map(AsRef::as_ref).collect::<Vec<_>>())?;
                    }
                    Batch::Written(file, range) => {
                        read(&file, range, &mut buffer, |piece| push(&[piece]))?;
                    }
                }
            }
            inflater.finish(&mut chunks)?;
            drop(chunks);
            Ok(())
        }();
        let diff_id = hasher.join().map_err(|_| UnpackError::Thread)?;
        let implicit = extractor.join().map_err(|_| UnpackError::Thread)?;
        // If the extractor gave up, the rest was not wanted; else an archive that ended too early did
        // so because its stream did.
        match (inflated, implicit) {
            (Err(UnpackError::Inflate(InflateError::Unwanted)) | Ok(()), Err(error)) => Err(error),
            (Err(error), _) => Err(error),
            (Ok(()), Ok(implicit)) => Ok(Unpacked { diff_id, implicit }),
        }
    })
}

/// Reads a part of a file, piece by piece.
fn read(
    file: &File,
    range: Range<u64>,
    buffer: &mut Vec<u8>,
    mut take: impl FnMut(&[u8]) -> Result<(), UnpackError>,
) -> Result<(), UnpackError> {
    buffer.resize(READ_BYTES, 0);
    let mut start = range.start;
    while start < range.end {
        let left = usize::try_from(range.end - start).unwrap_or(READ_BYTES);
        let piece = &mut buffer[..left.min(READ_BYTES)];
        let read = file.read_exact_at(piece, start);
        read.map_err(UnpackError::Reading)?;
        take(piece)?;
        start += piece.len() as u64;
    }
    Ok(())
}

/// A buffer and how much of it counts.
struct Chunk {
    buffer: Vec<u8>,
    filled: usize,
}

impl Chunk {
    fn bytes(&self) -> &[u8] {
        &self.buffer[..self.filled]
    }
}

/// Hands chunks to all who take them, and buffers that they are done with back to the inflater.
struct Chunks {
    takers: [SyncSender<Arc<Chunk>>; 2],
    spare: Receiver<Vec<u8>>,
}

impl Outlet for Chunks {
    fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError> {
        let chunk = Arc::new(Chunk { buffer, filled });
        for taker in &self.takers {
            let sent = taker.send(chunk.clone());
            sent.map_err(|_| InflateError::Unwanted)?;
        }
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        let spare = self.spare.try_recv();
        spare.unwrap_or_else(|_| vec![0; CHUNK_BYTES])
    }
}

/// Whoever is done with a chunk last gives its buffer back.
fn recycle(chunk: Arc<Chunk>, give_back: &SyncSender<Vec<u8>>) {
    if let Some(chunk) = Arc::into_inner(chunk) {
        // If there is no room, or nobody to take it, it is freed.
        let _ = give_back.try_send(chunk.buffer);
    }
}

fn hash(chunks: &Receiver<Arc<Chunk>>, give_back: &SyncSender<Vec<u8>>) -> Digest {
    let mut hasher = Sha256::new();
    for chunk in chunks {
        hasher.update(chunk.bytes());
        recycle(chunk, give_back);
    }
    Digest::from_sha256(hasher.finalize().into())
}
