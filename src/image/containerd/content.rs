//! containerd's content store: look, read, write under a reference that others can go on from.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use containerd_client::services::v1::{
    AbortRequest, Info, InfoRequest, ReadContentRequest, ReadContentResponse, StatusRequest,
    UpdateRequest, WriteAction, WriteContentRequest, WriteContentResponse,
};
use containerd_client::tonic::{Code, Status, Streaming};
use prost_types::FieldMask;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;

use super::client::{Client, is_locked};
use super::ingest;
use super::labels::Labels;
use crate::domain::failure::Failure;
use crate::domain::image::Digest;

/// How long a reference with all bytes in it may be in the hands of another, who is to commit it.
const LOCKED_LIMIT: Duration = Duration::from_secs(60);
/// How often that is looked at.
const LOCKED_INTERVAL: Duration = Duration::from_millis(50);

/// What opening a reference for writing found.
pub(super) enum Opened {
    /// It is ours, with as many bytes as an earlier attempt wrote, of us or of anyone.
    Ours(Box<Ingest>),
    /// The content is there, and now held by the lease.
    Present,
    /// Another client of containerd is writing it.
    Locked,
}

/// Content that is being written. Dropping it leaves the bytes for the next attempt.
pub(super) struct Ingest {
    client: Client,
    requests: mpsc::Sender<WriteContentRequest>,
    responses: Streaming<WriteContentResponse>,
    reference: String,
    digest: Digest,
    size: u64,
    /// Bytes that are written.
    pub(super) offset: u64,
    /// Where they go without a detour through containerd, if they may.
    file: Option<Arc<File>>,
}

/// Why content was not committed.
pub(super) enum CommitError {
    /// The bytes do not hash to the digest, or are not as many.
    Mismatch(String),
    /// Anything else.
    Other(Failure),
}

impl Client {
    /// What the store knows of a digest.
    pub(super) async fn info(&self, digest: &Digest) -> Result<Option<Info>, Failure> {
        let request = self.request(InfoRequest {
            digest: digest.to_string(),
        });
        match Self::call(self.content().info(request)).await {
            Ok(answer) => Ok(answer.info),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failure(format_args!("looking for {digest}"), &status)),
        }
    }

    /// Reads content of at most `limit` bytes; `None` when it is not there, or longer.
    pub(super) async fn read(
        &self,
        digest: &Digest,
        limit: u64,
    ) -> Result<Option<Vec<u8>>, Failure> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        });
        let failed = |status: &Status| self.failure(format_args!("reading {digest}"), status);
        let mut stream = match Self::call(self.content().read(request)).await {
            Ok(stream) => stream,
            Err(status) if status.code() == Code::NotFound => return Ok(None),
            Err(status) => return Err(failed(&status)),
        };
        let mut bytes = Vec::new();
        loop {
            match stream.message().await {
                Ok(Some(chunk)) => bytes.extend_from_slice(&chunk.data),
                Ok(None) => return Ok(Some(bytes)),
                Err(status) if status.code() == Code::NotFound => return Ok(None),
                Err(status) => return Err(failed(&status)),
            }
            if bytes.len() as u64 > limit {
                return Ok(None);
            }
        }
    }

    /// Opens content for reading, piece by piece.
    pub(super) async fn stream(
        &self,
        digest: &Digest,
    ) -> Result<Streaming<ReadContentResponse>, Failure> {
        let request = self.request(ReadContentRequest {
            digest: digest.to_string(),
            offset: 0,
            size: 0,
        });
        Self::call(self.content().read(request))
            .await
            .map_err(|status| self.failure(format_args!("reading {digest}"), &status))
    }

    /// Puts labels on content, beside those it has.
    pub(super) async fn label(&self, digest: &Digest, labels: Labels) -> Result<(), Failure> {
        if labels.is_empty() {
            return Ok(());
        }
        let paths = labels.keys().map(|key| format!("labels.{key}")).collect();
        let request = self.request(UpdateRequest {
            info: Some(Info {
                digest: digest.to_string(),
                labels,
                ..Info::default()
            }),
            update_mask: Some(FieldMask { paths }),
        });
        Self::call(self.content().update(request))
            .await
            .map(drop)
            .map_err(|status| self.failure(format_args!("labelling {digest}"), &status))
    }

    /// How many bytes whoever writes under a reference has written; `None` when nobody does.
    pub(super) async fn written(&self, reference: &str) -> Result<Option<u64>, Failure> {
        let request = self.request(StatusRequest {
            r#ref: reference.to_owned(),
        });
        match Self::call(self.content().status(request)).await {
            Ok(answer) => Ok(answer.status.map(|status| unsigned(status.offset))),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(self.failure(format_args!("looking for {reference}"), &status)),
        }
    }

    /// Opens a reference for writing content of a known digest and size.
    pub(super) async fn open(
        &self,
        reference: &str,
        digest: &Digest,
        size: u64,
    ) -> Result<Opened, Failure> {
        // One request is under way at a time: the next is sent when the answer is there.
        let (requests, outgoing) = mpsc::channel(1);
        let stat = WriteContentRequest {
            action: WriteAction::Stat as i32,
            r#ref: reference.to_owned(),
            total: signed(size),
            expected: digest.to_string(),
            ..WriteContentRequest::default()
        };
        // There is room for one, and the receiver is still here.
        let _ = requests.try_send(stat);
        let request = self.request(ReceiverStream::new(outgoing));
        let mut content = self.content();
        let opened = async {
            let mut responses = content.write(request).await?.into_inner();
            let answer = responses.message().await?;
            Ok::<_, Status>((responses, answer))
        };
        let (responses, answer) = match opened.await {
            Ok((responses, Some(answer))) => (responses, answer),
            Ok((_, None)) => {
                let status = Status::unknown("the call ended without an answer");
                return Err(self.failure(format_args!("writing {reference}"), &status));
            }
            Err(status) if status.code() == Code::AlreadyExists => return Ok(Opened::Present),
            Err(status) if is_locked(&status) => return Ok(Opened::Locked),
            Err(status) => return Err(self.failure(format_args!("writing {reference}"), &status)),
        };
        Ok(Opened::Ours(Box::new(Ingest {
            client: self.clone(),
            requests,
            responses,
            reference: reference.to_owned(),
            digest: digest.clone(),
            size,
            offset: unsigned(answer.offset),
            file: None,
        })))
    }
}

impl Ingest {
    /// Writes at the end.
    pub(super) async fn write(&mut self, pieces: Vec<Bytes>) -> Result<(), Failure> {
        let length = pieces.iter().map(|piece| piece.len() as u64).sum::<u64>();
        if let Some(file) = &self.file {
            ingest::append(file, pieces, self.offset)
                .await
                .map_err(|status| self.failed(&status))?;
            self.offset += length;
            return Ok(());
        }
        let request = WriteContentRequest {
            action: WriteAction::Write as i32,
            r#ref: self.reference.clone(),
            offset: signed(self.offset),
            data: pieces.concat(),
            ..WriteContentRequest::default()
        };
        self.exchange(request)
            .await
            .map_err(|status| self.failed(&status))?;
        self.offset += length;
        Ok(())
    }

    /// Where the bytes go without a detour, once they are written.
    pub(super) fn file(&self) -> Option<&Arc<File>> {
        self.file.as_ref()
    }

    /// Has containerd look at bytes that did not go through it: it hashes them when the reference is opened again, which
    /// this waits for. `None` when somebody else has committed them meanwhile.
    pub(super) async fn shown(mut self) -> Result<Option<Self>, Failure> {
        if self.file.take().is_none() {
            return Ok(Some(self));
        }
        let Self {
            client,
            requests,
            mut responses,
            reference,
            digest,
            size,
            ..
        } = self;
        drop(requests);
        // containerd lets go of the reference when the stream has ended.
        while let Ok(Some(_)) = responses.message().await {}
        let started = Instant::now();
        loop {
            match client.open(&reference, &digest, size).await? {
                Opened::Ours(ingest) => return Ok(Some(*ingest)),
                Opened::Present => return Ok(None),
                // Somebody else took the reference up, and has all bytes there.
                Opened::Locked if started.elapsed() < LOCKED_LIMIT => {
                    tokio::time::sleep(LOCKED_INTERVAL).await;
                }
                Opened::Locked => {
                    let status = Status::unavailable("another client does not let go of it");
                    return Err(client.failure(format_args!("writing {reference}"), &status));
                }
            }
        }
    }

    /// Has containerd verify what was written and take it into the store.
    pub(super) async fn commit(mut self, labels: Labels) -> Result<(), CommitError> {
        let request = WriteContentRequest {
            action: WriteAction::Commit as i32,
            r#ref: self.reference.clone(),
            offset: signed(self.offset),
            total: signed(self.size),
            expected: self.digest.to_string(),
            labels: labels.clone(),
            ..WriteContentRequest::default()
        };
        match self.exchange(request).await {
            Ok(_) => Ok(()),
            Err(status) if status.code() == Code::AlreadyExists => {
                let labelled = self.client.label(&self.digest, labels).await;
                labelled.map_err(CommitError::Other)
            }
            // "unexpected commit digest", "unexpected commit size" (plugins/content/local/writer.go)
            Err(status) if status.code() == Code::FailedPrecondition => {
                Err(CommitError::Mismatch(status.message().to_owned()))
            }
            Err(status) => Err(CommitError::Other(self.failed(&status))),
        }
    }

    /// Throws away what was written.
    pub(super) async fn abort(self) -> Result<(), Failure> {
        let Self {
            client,
            requests,
            mut responses,
            reference,
            ..
        } = self;
        // containerd lets go of the reference when the stream has ended.
        drop(requests);
        while let Ok(Some(_)) = responses.message().await {}
        client.discard(&reference).await
    }

    /// Has the bytes written to the ingest's own file from now on, if it is to be found there.
    pub(super) async fn write_into(&mut self, store: &Path) {
        let name = (self.client.namespace().to_owned(), self.reference.clone());
        self.file = ingest::find(store.to_owned(), name, self.offset)
            .await
            .map(Arc::new);
    }

    async fn exchange(
        &mut self,
        request: WriteContentRequest,
    ) -> Result<WriteContentResponse, Status> {
        // A send that fails means that the stream has ended, and the answer says why.
        let _ = self.requests.send(request).await;
        self.responses
            .message()
            .await?
            .ok_or_else(|| Status::unknown("the call ended without an answer"))
    }

    fn failed(&self, status: &Status) -> Failure {
        self.client
            .failure(format_args!("writing {}", self.reference), status)
    }
}

impl Client {
    /// Throws away what was written under a reference that nobody has open.
    pub(super) async fn discard(&self, reference: &str) -> Result<(), Failure> {
        let request = self.request(AbortRequest {
            r#ref: reference.to_owned(),
        });
        match Self::call(self.content().abort(request)).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(self.failure(format_args!("discarding {reference}"), &status))
            }
            _ => Ok(()),
        }
    }
}

/// containerd counts in signed numbers; no blob is as large as the difference.
fn signed(bytes: u64) -> i64 {
    i64::try_from(bytes).unwrap_or(i64::MAX)
}

fn unsigned(bytes: i64) -> u64 {
    u64::try_from(bytes).unwrap_or(0)
}
