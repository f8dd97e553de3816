//! Layers inflated as they come: gzip with any number of members, zstd, or plain.
//!
//! What they are is told by their first bytes, as containerd does it
//! (`pkg/archive/compression/compression.go`): the media type is often wrong. Checksums inside are not
//! looked at, because the digest of what comes out is.

use zlib_rs::{Inflate, InflateFlush, Status};
use zstd_safe::{DCtx, DParameter, InBuffer, OutBuffer};

/// Bytes of a buffer that inflated bytes are handed on in.
pub const CHUNK_BYTES: usize = 256 << 10;
/// Most bytes of a gzip member's header; its texts have no limit of their own (RFC 1952, 2.3).
const MAX_GZIP_HEADER: usize = 64 << 10;
/// Bytes that tell the formats apart.
const MAGIC_BYTES: usize = 8;
/// The largest window of zstd that is allowed, as a power of two: what `zstd` itself allows, 128 MiB.
const ZSTD_WINDOW_LOG: u32 = 27;

const GZIP_MAGIC: &[u8] = &[0x1f, 0x8b, 8];
const ZSTD_MAGIC: u32 = 0xfd2f_b528;
const ZSTD_SKIPPABLE: u32 = 0x184d_2a50;

/// A stream that cannot be inflated.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum InflateError {
    /// It is not what it begins as.
    #[error("the {format} stream is broken: {problem}")]
    Broken {
        /// `gzip` or `zstd`.
        format: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// It ends too early.
    #[error("the {0} stream ends in the middle")]
    Truncated(&'static str),
    /// It inflates to more than it may.
    #[error("it inflates to more than {0} bytes, which is the limit")]
    TooLarge(u64),
    /// Whoever takes what is inflated wants no more.
    #[error("nobody takes what is inflated")]
    Unwanted,
}

/// Where inflated bytes go: a full buffer is given away and an empty one taken in its place.
pub trait Outlet {
    /// Takes the first `filled` bytes of a buffer.
    ///
    /// # Errors
    /// `Unwanted`, to end the inflating.
    fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError>;
    /// A buffer of [`CHUNK_BYTES`].
    fn buffer(&mut self) -> Vec<u8>;
}

/// Inflates one stream.
pub struct Inflater {
    codec: Codec,
    out: Out,
}

enum Codec {
    /// The first bytes, too few to tell.
    Unknown(Vec<u8>),
    Plain,
    Gzip(Box<Gzip>),
    Zstd {
        context: DCtx<'static>,
        /// Whether a frame is under way.
        in_frame: bool,
    },
}

struct Gzip {
    inflate: Inflate,
    state: Member,
}

enum Member {
    /// The header of a member, as far as it is there.
    Header(Vec<u8>),
    Body,
    /// Bytes of a checksum and size to pass over.
    Trailer(usize),
}

/// The buffer that is being filled.
struct Out {
    buffer: Vec<u8>,
    filled: usize,
    total: u64,
    limit: u64,
}

impl Inflater {
    /// `limit` is how many bytes may come out.
    #[must_use]
    pub fn new(limit: u64) -> Self {
        Self {
            codec: Codec::Unknown(Vec::with_capacity(MAGIC_BYTES)),
            out: Out {
                buffer: Vec::new(),
                filled: 0,
                total: 0,
                limit,
            },
        }
    }

    /// Inflates the next bytes.
    ///
    /// # Errors
    /// What is wrong with the stream; the rest of it is of no use then.
    pub fn push(&mut self, input: &[u8], outlet: &mut impl Outlet) -> Result<(), InflateError> {
        let Codec::Unknown(first) = &mut self.codec else {
            return self.codec.push(input, &mut self.out, outlet);
        };
        first.extend_from_slice(input);
        if first.len() < MAGIC_BYTES {
            return Ok(());
        }
        let first = std::mem::take(first);
        self.codec = Codec::of(&first)?;
        self.codec.push(&first, &mut self.out, outlet)
    }

    /// Ends the stream, which must not be in the middle of anything, and hands on what is left.
    ///
    /// # Errors
    /// It ends in the middle, or nobody takes what is left.
    pub fn finish(mut self, outlet: &mut impl Outlet) -> Result<(), InflateError> {
        if let Codec::Unknown(first) = &mut self.codec {
            let first = std::mem::take(first);
            self.codec = Codec::of(&first)?;
            self.codec.push(&first, &mut self.out, outlet)?;
        }
        match &self.codec {
            Codec::Gzip(gzip) if !matches!(&gzip.state, Member::Header(got) if got.is_empty()) => {
                return Err(InflateError::Truncated("gzip"));
            }
            Codec::Zstd { in_frame: true, .. } => return Err(InflateError::Truncated("zstd")),
            _ => {}
        }
        self.out.flush(outlet)
    }
}

impl Codec {
    fn of(first: &[u8]) -> Result<Self, InflateError> {
        let magic = first.first_chunk().map(|magic| u32::from_le_bytes(*magic));
        let is_skippable = first.len() >= MAGIC_BYTES
            && magic.is_some_and(|magic| magic & 0xffff_fff0 == ZSTD_SKIPPABLE);
        if first.starts_with(GZIP_MAGIC) {
            return Ok(Self::Gzip(Box::new(Gzip {
                inflate: Inflate::new(false, 15),
                state: Member::Header(Vec::new()),
            })));
        }
        if magic == Some(ZSTD_MAGIC) || is_skippable {
            let mut context = DCtx::create();
            context
                .set_parameter(DParameter::WindowLogMax(ZSTD_WINDOW_LOG))
                .map_err(zstd_broken)?;
            return Ok(Self::Zstd {
                context,
                in_frame: false,
            });
        }
        Ok(Self::Plain)
    }

    fn push(
        &mut self,
        mut input: &[u8],
        out: &mut Out,
        outlet: &mut impl Outlet,
    ) -> Result<(), InflateError> {
        match self {
            Self::Unknown(_) => {}
            Self::Plain => {
                while !input.is_empty() {
                    let room = out.room(outlet)?;
                    let now = room.len().min(input.len());
                    room[..now].copy_from_slice(&input[..now]);
                    out.advance(now)?;
                    input = &input[now..];
                }
            }
            Self::Gzip(gzip) => {
                while !input.is_empty() {
                    input = gzip.step(input, out, outlet)?;
                }
            }
            Self::Zstd { context, in_frame } => {
                let mut input = InBuffer::around(input);
                loop {
                    let room = out.room(outlet)?;
                    let mut output = OutBuffer::around(room);
                    let left = context
                        .decompress_stream(&mut output, &mut input)
                        .map_err(zstd_broken)?;
                    let (written, room) = (output.pos(), output.capacity());
                    *in_frame = left != 0;
                    out.advance(written)?;
                    // With room to spare, all that could come out of the input has.
                    if input.pos == input.src.len() && written < room {
                        break;
                    }
                }
            }
        }
        Ok(())
    }
}

impl Gzip {
    fn step<'a>(
        &mut self,
        input: &'a [u8],
        out: &mut Out,
        outlet: &mut impl Outlet,
    ) -> Result<&'a [u8], InflateError> {
        match &mut self.state {
            Member::Header(header) => {
                let before = header.len();
                let take = input.len().min(MAX_GZIP_HEADER + 1 - before);
                header.extend_from_slice(&input[..take]);
                match header_length(header)? {
                    None => Ok(&input[take..]),
                    Some(length) => {
                        self.state = Member::Body;
                        Ok(&input[length - before..])
                    }
                }
            }
            Member::Body => {
                let room = out.room(outlet)?;
                let before = (self.inflate.total_in(), self.inflate.total_out());
                let status = self
                    .inflate
                    .decompress(input, room, InflateFlush::NoFlush)
                    .map_err(|error| broken("gzip", error.as_str()))?;
                let used = self.inflate.total_in() - before.0;
                let written = self.inflate.total_out() - before.1;
                // Both are parts of slices.
                let used = usize::try_from(used).unwrap_or(input.len());
                out.advance(usize::try_from(written).unwrap_or(0))?;
                if status == Status::StreamEnd {
                    self.inflate.reset(false);
                    self.state = Member::Trailer(8);
                } else if used == 0 && written == 0 {
                    return Err(broken("gzip", "it makes no progress"));
                }
                Ok(&input[used..])
            }
            Member::Trailer(left) => {
                let now = input.len().min(*left);
                *left -= now;
                if *left == 0 {
                    self.state = Member::Header(Vec::new());
                }
                Ok(&input[now..])
            }
        }
    }
}

/// The length of a gzip header (RFC 1952, 2.3); `None` while a part of it is missing.
fn header_length(header: &[u8]) -> Result<Option<usize>, InflateError> {
    let magic = header.len().min(GZIP_MAGIC.len());
    if header[..magic] != GZIP_MAGIC[..magic] {
        return Err(broken("gzip", "what follows a member is none"));
    }
    let length = || -> Option<usize> {
        let flags = *header.get(3)?;
        let mut at = 10;
        if flags & 4 != 0 {
            let extra = header.get(at..at + 2)?;
            at += 2 + usize::from(u16::from_le_bytes([extra[0], extra[1]]));
        }
        for flag in [8, 16] {
            if flags & flag != 0 {
                at += 1 + header.get(at..)?.iter().position(|byte| *byte == 0)?;
            }
        }
        if flags & 2 != 0 {
            at += 2;
        }
        (header.len() >= at).then_some(at)
    };
    match length() {
        None if header.len() > MAX_GZIP_HEADER => Err(broken("gzip", "its header has no end")),
        length => Ok(length),
    }
}

impl Out {
    /// Room for at least one byte.
    fn room(&mut self, outlet: &mut impl Outlet) -> Result<&mut [u8], InflateError> {
        if self.filled == self.buffer.len() {
            self.flush(outlet)?;
            self.buffer = outlet.buffer();
        }
        Ok(&mut self.buffer[self.filled..])
    }

    fn advance(&mut self, written: usize) -> Result<(), InflateError> {
        self.filled += written;
        self.total += written as u64;
        if self.total > self.limit {
            return Err(InflateError::TooLarge(self.limit));
        }
        Ok(())
    }

    fn flush(&mut self, outlet: &mut impl Outlet) -> Result<(), InflateError> {
        let filled = std::mem::take(&mut self.filled);
        let buffer = std::mem::take(&mut self.buffer);
        if filled == 0 {
            return Ok(());
        }
        outlet.take(buffer, filled)
    }
}

fn broken(format: &'static str, problem: &str) -> InflateError {
    InflateError::Broken {
        format,
        problem: problem.to_owned(),
    }
}

fn zstd_broken(code: zstd_safe::ErrorCode) -> InflateError {
    broken("zstd", zstd_safe::get_error_name(code))
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use proptest::prelude::*;

    use super::*;

    #[derive(Default)]
    struct Collect(Vec<u8>);

    impl Outlet for Collect {
        fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError> {
            self.0.extend_from_slice(&buffer[..filled]);
            Ok(())
        }

        fn buffer(&mut self) -> Vec<u8> {
            vec![0; CHUNK_BYTES]
        }
    }

    fn inflate(pieces: &[&[u8]], limit: u64) -> Result<Vec<u8>, InflateError> {
        let mut collect = Collect::default();
        let mut inflater = Inflater::new(limit);
        for piece in pieces {
            inflater.push(piece, &mut collect)?;
        }
        inflater.finish(&mut collect)?;
        Ok(collect.0)
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut packer = flate2::GzBuilder::new()
            .filename("name")
            .comment("a comment")
            .extra(vec![1, 2, 3])
            .write(Vec::new(), flate2::Compression::fast());
        packer.write_all(bytes).unwrap();
        packer.finish().unwrap()
    }

    fn zstd(bytes: &[u8]) -> Vec<u8> {
        let mut packed = Vec::with_capacity(zstd_safe::compress_bound(bytes.len()));
        zstd_safe::compress(&mut packed, bytes, 3).unwrap();
        packed
    }

    proptest! {
        #[test]
        fn what_was_packed_comes_out_however_it_is_cut(
            bytes in prop::collection::vec(any::<u8>(), 0..2000),
            repeat in 1_usize..400,
            cut in 1_usize..300,
        ) {
            let content = bytes.repeat(repeat);
            let half = content.len() / 2;
            let members = [gzip(&content[..half]), gzip(&content[half..])].concat();
            let frames = [zstd(&content[..half]), zstd(&content[half..])].concat();
            for packed in [members, frames] {
                let pieces: Vec<&[u8]> = packed.chunks(cut).collect();
                prop_assert_eq!(&inflate(&pieces, u64::MAX).unwrap(), &content);
            }
        }

        #[test]
        fn no_bytes_make_it_panic(bytes in prop::collection::vec(any::<u8>(), 0..300), kind in 0..3) {
            let magic: &[u8] = match kind {
                0 => &[0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 0],
                1 => &[0x28, 0xb5, 0x2f, 0xfd],
                _ => &[],
            };
            let _ = inflate(&[magic, &bytes], 1 << 20);
        }
    }

    #[test]
    fn what_is_cut_or_followed_by_rubbish_is_refused() {
        for packed in [gzip(&[7; 5000]), zstd(&[7; 5000])] {
            for cut in [12, packed.len() - 1] {
                let cut = inflate(&[&packed[..cut]], u64::MAX);
                assert!(matches!(cut, Err(InflateError::Truncated(_))), "{cut:?}");
            }
            let followed = inflate(&[&packed, b"rubbish"], u64::MAX);
            assert!(
                matches!(followed, Err(InflateError::Broken { .. })),
                "{followed:?}"
            );
        }
        assert_eq!(inflate(&[], 0), Ok(Vec::new()));
        assert_eq!(inflate(&[b"pl", b"ain"], 5), Ok(b"plain".to_vec()));
    }

    #[test]
    fn a_bomb_is_stopped_at_the_limit() {
        for packed in [gzip(&[0; 10_000_000]), zstd(&[0; 10_000_000])] {
            assert_eq!(
                inflate(&[&packed], 1_000_000),
                Err(InflateError::TooLarge(1_000_000))
            );
        }
    }
}
