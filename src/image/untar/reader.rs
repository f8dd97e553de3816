//! An archive as a series of entries: bytes are pushed in as they come, entries and their data come
//! out. What an archive may look like is what Go's `archive/tar` takes, which containerd unpacks with.

use super::error::UntarError;
use super::extended::{self, Fragment, Records, SparseMap};
use super::header::{BLOCK, Block, Header, Nanos, text};

/// Most bytes of a PAX header, a GNU long name or a sparse map, as in Go (`maxSpecialFileSize`).
const MAX_META_BYTES: usize = 1 << 20;

/// What an entry is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    File,
    HardLink,
    Symlink,
    CharDevice,
    BlockDevice,
    Dir,
    Fifo,
    /// A global PAX header, which containerd lets pass without heeding it.
    Global,
    /// Anything else, which containerd refuses: old GNU sparse files among them.
    Other(u8),
}

/// One entry, all that extended headers say included.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Entry {
    pub(super) kind: Kind,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    /// Permissions with setuid, setgid and sticky bits.
    pub(super) mode: u32,
    /// `None` leaves it as it is, which is what -1 means to chown(2).
    pub(super) uid: Option<u32>,
    /// As `uid`.
    pub(super) gid: Option<u32>,
    /// Of a file: its size, holes included.
    pub(super) size: u64,
    pub(super) modified: Nanos,
    pub(super) accessed: Option<Nanos>,
    pub(super) device: (i64, i64),
    pub(super) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

/// Who takes the entries.
pub(super) trait Sink {
    /// A new entry.
    fn entry(&mut self, entry: Entry) -> Result<(), UntarError>;
    /// The next bytes of the entry's data.
    fn data(&mut self, bytes: &[u8]) -> Result<(), UntarError>;
    /// So many zeros in place of data.
    fn hole(&mut self, length: u64) -> Result<(), UntarError>;
    /// The entry is complete.
    fn end_of_entry(&mut self) -> Result<(), UntarError>;
}

/// Where in the archive the next byte belongs.
enum State {
    /// To a header, or to the two zero blocks at the end.
    Header,
    /// To the body of an extended header.
    Meta {
        kind: u8,
        left: usize,
        body: Vec<u8>,
    },
    /// To the map at the beginning of a sparse file's data.
    Map { entry: Box<Entry>, map: Vec<u8> },
    /// To an entry's data.
    Data(Cursor),
    /// To nothing: data of what has none, and the rest of a block.
    Skip(u64),
    /// To nobody, as the archive has ended.
    End,
}

/// A position in an entry's data.
struct Cursor {
    /// Bytes of the archive that belong to the entry.
    left: u64,
    /// Bytes of the file that are written or skipped.
    position: u64,
    /// The file's size.
    size: u64,
    /// The parts still to come, in reverse; `None` for a file without holes.
    fragments: Option<Vec<Fragment>>,
}

/// Reads one archive.
pub(super) struct Reader {
    state: State,
    block: Block,
    filled: usize,
    /// Whether the last block was all zeros.
    zero: bool,
    /// Bytes from the current entry's data to the next block.
    padding: u64,
    /// Bytes of the archive's part of a sparse file, its map included.
    physical: u64,
    records: Records,
    long_name: Vec<u8>,
    long_link: Vec<u8>,
}

impl Reader {
    pub(super) fn new() -> Self {
        Self {
            state: State::Header,
            block: [0; BLOCK],
            filled: 0,
            zero: false,
            padding: 0,
            physical: 0,
            records: Records::new(),
            long_name: Vec::new(),
            long_link: Vec::new(),
        }
    }

    /// Takes the next bytes of the archive; what comes after its end is of no interest.
    pub(super) fn push(
        &mut self,
        mut input: &[u8],
        sink: &mut impl Sink,
    ) -> Result<(), UntarError> {
        while !input.is_empty() {
            input = match &mut self.state {
                State::End => return Ok(()),
                State::Header => self.header(input, sink)?,
                State::Meta { left, body, .. } => {
                    let (now, rest) = split(input, *left as u64);
                    body.extend_from_slice(now);
                    *left -= now.len();
                    rest
                }
                State::Map { .. } => self.map(input, sink)?,
                State::Data(cursor) => {
                    let (now, rest) = split(input, cursor.left);
                    cursor.data(now, sink)?;
                    rest
                }
                State::Skip(left) => {
                    let (now, rest) = split(input, *left);
                    *left -= now.len() as u64;
                    rest
                }
            };
            self.settle(sink)?;
        }
        Ok(())
    }

    /// The archive's bytes have come to their end, which must not be in the middle of an entry.
    pub(super) fn finish(&self) -> Result<(), UntarError> {
        match &self.state {
            State::End => Ok(()),
            State::Header if self.filled == 0 => Ok(()),
            // Go forgives an archive that lacks the end of its last block.
            State::Skip(left) if *left < BLOCK as u64 => Ok(()),
            _ => Err(UntarError::Truncated),
        }
    }

    /// Leaves a state that wants no more bytes.
    fn settle(&mut self, sink: &mut impl Sink) -> Result<(), UntarError> {
        match &mut self.state {
            State::Meta {
                kind,
                left: 0,
                body,
            } => {
                let (kind, body) = (*kind, std::mem::take(body));
                match kind {
                    b'x' => self.records = extended::records(&body)?,
                    b'L' => self.long_name = text(&body).to_vec(),
                    b'K' => self.long_link = text(&body).to_vec(),
                    // A global header: it has to be readable, and is not heeded.
                    _ => drop(extended::records(&body)?),
                }
                self.state = State::Skip(self.padding);
            }
            State::Data(cursor) if cursor.left == 0 => {
                cursor.end(sink)?;
                sink.end_of_entry()?;
                self.state = State::Skip(self.padding);
            }
            _ => {}
        }
        if let State::Skip(0) = self.state {
            self.state = State::Header;
        }
        Ok(())
    }

    fn header<'a>(
        &mut self,
        input: &'a [u8],
        sink: &mut impl Sink,
    ) -> Result<&'a [u8], UntarError> {
        let (now, rest) = split(input, (BLOCK - self.filled) as u64);
        self.block[self.filled..self.filled + now.len()].copy_from_slice(now);
        self.filled += now.len();
        if self.filled < BLOCK {
            return Ok(rest);
        }
        self.filled = 0;
        let is_zero = self.block.iter().all(|byte| *byte == 0);
        match (self.zero, is_zero) {
            (true, true) => self.state = State::End,
            (true, false) => {
                return Err(UntarError::Header("it comes after the archive's end"));
            }
            (false, true) => self.zero = true,
            (false, false) => {
                let header = Header::parse(&self.block)?;
                self.begin(header, sink)?;
            }
        }
        Ok(rest)
    }

    fn begin(&mut self, header: Header, sink: &mut impl Sink) -> Result<(), UntarError> {
        match header.kind {
            b'x' | b'L' | b'K' => self.begin_meta(&header),
            b'g' => {
                self.begin_meta(&header)?;
                // containerd sees the header as an entry.
                sink.entry(entry(Kind::Global, header, 0, Vec::new()))?;
                sink.end_of_entry()
            }
            _ => self.begin_entry(header, sink),
        }
    }

    fn begin_meta(&mut self, header: &Header) -> Result<(), UntarError> {
        let left = usize::try_from(header.size).ok();
        let left = left.filter(|left| *left <= MAX_META_BYTES);
        let left = left.ok_or(UntarError::Limit {
            what: "has an extended header or long name",
            limit: MAX_META_BYTES as u64,
        })?;
        self.padding = padding(left as u64);
        self.state = State::Meta {
            kind: header.kind,
            left,
            body: Vec::with_capacity(left),
        };
        Ok(())
    }

    fn begin_entry(&mut self, mut header: Header, sink: &mut impl Sink) -> Result<(), UntarError> {
        let records = std::mem::take(&mut self.records);
        extended::merge(&mut header, &records)?;
        for (long, field) in [
            (&mut self.long_name, &mut header.name),
            (&mut self.long_link, &mut header.link),
        ] {
            if !long.is_empty() {
                *field = std::mem::take(long);
            }
        }
        let kind = kind(&header);
        let has_data = matches!(kind, Kind::File | Kind::Other(_));
        // Also the size of what has no data is to be a size, for Go as well.
        let size = unsigned(header.size)?;
        self.physical = if has_data { size } else { 0 };
        self.padding = padding(self.physical);
        let sparse = extended::sparse(&mut header, &records)?;
        if sparse.is_some() && !has_data {
            return Err(UntarError::Header("a sparse file that is no file"));
        }
        let logical = unsigned(header.size)?;
        let entry = entry(kind, header, logical, extended::xattrs(records));
        match sparse {
            None => self.begin_data(entry, None, sink),
            Some(SparseMap::Given(map)) => self.begin_data(entry, Some(map), sink),
            Some(SparseMap::InData) => {
                self.state = State::Map {
                    entry: Box::new(entry),
                    map: Vec::new(),
                };
                Ok(())
            }
        }
    }

    fn begin_data(
        &mut self,
        entry: Entry,
        map: Option<Vec<Fragment>>,
        sink: &mut impl Sink,
    ) -> Result<(), UntarError> {
        let in_archive = |map: &Vec<Fragment>| map.iter().map(|part| part.length).sum::<u64>();
        if map
            .as_ref()
            .is_some_and(|map| in_archive(map) != self.physical)
        {
            return Err(UntarError::Header("a sparse file's map and size differ"));
        }
        let has_data = self.physical > 0 || map.is_some();
        let size = entry.size;
        sink.entry(entry)?;
        self.state = State::Data(Cursor {
            left: self.physical,
            position: 0,
            size: if has_data { size } else { 0 },
            fragments: map.map(|mut map| {
                map.reverse();
                map
            }),
        });
        Ok(())
    }

    /// Collects a sparse file's map, which fills whole blocks.
    fn map<'a>(&mut self, input: &'a [u8], sink: &mut impl Sink) -> Result<&'a [u8], UntarError> {
        let State::Map { entry, map } = &mut self.state else {
            return Ok(input);
        };
        if self.physical < BLOCK as u64 {
            return Err(UntarError::Header("a sparse file ends within its map"));
        }
        let missing = (BLOCK - map.len() % BLOCK) as u64;
        let (now, rest) = split(input, missing);
        map.extend_from_slice(now);
        if !map.len().is_multiple_of(BLOCK) {
            return Ok(rest);
        }
        self.physical -= BLOCK as u64;
        let found = extended::map_in_data(map, i64::try_from(entry.size).unwrap_or(i64::MAX))?;
        let Some(fragments) = found else {
            return match map.len() < MAX_META_BYTES {
                true => Ok(rest),
                false => Err(UntarError::Limit {
                    what: "has a sparse map",
                    limit: MAX_META_BYTES as u64,
                }),
            };
        };
        let entry = Entry::clone(entry);
        self.begin_data(entry, Some(fragments), sink)?;
        Ok(rest)
    }
}

impl Cursor {
    /// Puts bytes where they belong.
    fn data(&mut self, mut bytes: &[u8], sink: &mut impl Sink) -> Result<(), UntarError> {
        self.left -= bytes.len() as u64;
        let Some(fragments) = &mut self.fragments else {
            self.position += bytes.len() as u64;
            return sink.data(bytes);
        };
        while let Some(fragment) = fragments.last_mut() {
            if fragment.length == 0 {
                fragments.pop();
                continue;
            }
            if bytes.is_empty() {
                break;
            }
            if fragment.offset > self.position {
                sink.hole(fragment.offset - self.position)?;
                self.position = fragment.offset;
            }
            let (now, rest) = split(bytes, fragment.length);
            sink.data(now)?;
            let length = now.len() as u64;
            self.position += length;
            fragment.offset += length;
            fragment.length -= length;
            bytes = rest;
        }
        Ok(())
    }

    /// What is left of the file is a hole.
    fn end(&mut self, sink: &mut impl Sink) -> Result<(), UntarError> {
        match self.size.checked_sub(self.position) {
            Some(rest @ 1..) => sink.hole(rest),
            _ => Ok(()),
        }
    }
}

fn kind(header: &Header) -> Kind {
    match header.kind {
        // Before POSIX, a slash at the end was what made a directory.
        0 if header.name.ends_with(b"/") => Kind::Dir,
        0 | b'0' => Kind::File,
        b'1' => Kind::HardLink,
        b'2' => Kind::Symlink,
        b'3' => Kind::CharDevice,
        b'4' => Kind::BlockDevice,
        b'5' => Kind::Dir,
        b'6' => Kind::Fifo,
        other => Kind::Other(other),
    }
}

fn entry(kind: Kind, header: Header, size: u64, xattrs: Vec<(Vec<u8>, Vec<u8>)>) -> Entry {
    // What Go hands to the kernel, which takes the lower bits.
    let id = |id: i64| Some(id as u32).filter(|id| *id != u32::MAX);
    Entry {
        kind,
        name: header.name,
        link: header.link,
        mode: (header.mode & 0o7777) as u32,
        uid: id(header.uid),
        gid: id(header.gid),
        size,
        modified: header.modified,
        accessed: header.accessed,
        device: header.device,
        xattrs,
    }
}

fn unsigned(size: i64) -> Result<u64, UntarError> {
    u64::try_from(size).map_err(|_| UntarError::Header("a negative size"))
}

/// From so many bytes to the end of their last block.
fn padding(bytes: u64) -> u64 {
    bytes.wrapping_neg() % BLOCK as u64
}

/// The first `most` bytes, or all, and the rest.
fn split(bytes: &[u8], most: u64) -> (&[u8], &[u8]) {
    let at = usize::try_from(most).map_or(bytes.len(), |most| most.min(bytes.len()));
    bytes.split_at(at)
}
