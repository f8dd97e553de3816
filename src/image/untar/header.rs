//! One header block: its checksum, its dialect, its numbers, as Go's `archive/tar` reads them, which is
//! what containerd unpacks with (`src/archive/tar/reader.go`, `strconv.go`, `format.go`).

use super::error::UntarError;

/// Size of a header and unit of everything in an archive, in bytes.
pub(super) const BLOCK: usize = 512;

/// A header block as it is in the archive.
pub(super) type Block = [u8; BLOCK];

/// Nanoseconds since 1970; wide enough for every second a header can hold.
pub(super) type Nanos = i128;

const NANOS_PER_SECOND: Nanos = 1_000_000_000;

/// What a block says, before extended headers change it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Header {
    pub(super) kind: u8,
    pub(super) name: Vec<u8>,
    pub(super) link: Vec<u8>,
    pub(super) size: i64,
    pub(super) mode: i64,
    pub(super) uid: i64,
    pub(super) gid: i64,
    pub(super) modified: Nanos,
    pub(super) accessed: Option<Nanos>,
    pub(super) device: (i64, i64),
}

/// Which extension of the first format the block is in.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

impl Header {
    /// Reads a block that is not all zeros.
    pub(super) fn parse(block: &Block) -> Result<Self, UntarError> {
        let dialect = dialect(block).ok_or(UntarError::Header("its checksum is wrong"))?;
        let name = text(&block[0..100]);
        let mut header = Self {
            kind: block[156],
            name: name.to_vec(),
            link: text(&block[157..257]).to_vec(),
            size: number(&block[124..136])?,
            mode: number(&block[100..108])?,
            uid: number(&block[108..116])?,
            gid: number(&block[116..124])?,
            modified: seconds(number(&block[136..148])?),
            accessed: None,
            device: (0, 0),
        };
        if dialect == Dialect::V7 {
            return Ok(header);
        }
        header.device = (number(&block[329..337])?, number(&block[337..345])?);
        let prefix = match dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => text(&block[345..500]),
            Dialect::Star => {
                header.accessed = Some(seconds(number(&block[476..488])?));
                number(&block[488..500])?;
                text(&block[345..476])
            }
            Dialect::Gnu => gnu_prefix(block, &mut header.accessed),
        };
        if !prefix.is_empty() {
            header.name = [prefix, b"/", name].concat();
        }
        Ok(header)
    }
}

/// GNU has times where others have a prefix; Go once wrote a prefix there all the same.
fn gnu_prefix<'a>(block: &'a Block, accessed: &mut Option<Nanos>) -> &'a [u8] {
    let time = |field: &[u8]| match field[0] {
        0 => Ok(None),
        _ => number(field).map(|value| Some(seconds(value))),
    };
    if let (Ok(time), Ok(_)) = (time(&block[345..357]), time(&block[357..369])) {
        *accessed = time;
        return &[];
    }
    let prefix = text(&block[345..500]);
    if prefix.is_ascii() { prefix } else { &[] }
}

fn dialect(block: &Block) -> Option<Dialect> {
    let wanted = octal(&block[148..156]).ok()?;
    // The sum counts its own field as spaces; some writers add the bytes up as signed.
    let (unsigned, signed) = block.iter().enumerate().fold((0, 0), |(u, s), (at, byte)| {
        let byte = if (148..156).contains(&at) {
            b' '
        } else {
            *byte
        };
        (u + i64::from(byte), s + i64::from(byte.cast_signed()))
    });
    if wanted != unsigned && wanted != signed {
        return None;
    }
    Some(
        match (&block[257..263], &block[263..265], &block[508..512]) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", _, _) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        },
    )
}

pub(super) fn seconds(seconds: i64) -> Nanos {
    Nanos::from(seconds) * NANOS_PER_SECOND
}

/// A text field: up to its first NUL, or all of it.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|byte| *byte == 0);
    &field[..end.unwrap_or(field.len())]
}

/// A number: octal digits, or two's complement if the first bit is set (GNU's base-256).
pub(super) fn number(field: &[u8]) -> Result<i64, UntarError> {
    match field.first() {
        Some(first) if first & 0x80 != 0 => base_256(field),
        _ => octal(field),
    }
}

const BAD_NUMBER: UntarError = UntarError::Header("a number in it cannot be read");

fn base_256(field: &[u8]) -> Result<i64, UntarError> {
    // -a-1 == !a: a negative number is read inverted, as an unsigned one.
    let inverted = if field[0] & 0x40 != 0 { 0xff } else { 0 };
    let mut value: u64 = 0;
    for (at, byte) in field.iter().enumerate() {
        let mut byte = byte ^ inverted;
        if at == 0 {
            byte &= 0x7f;
        }
        if value >> 56 > 0 {
            return Err(BAD_NUMBER);
        }
        value = value << 8 | u64::from(byte);
    }
    let value = i64::try_from(value).map_err(|_| BAD_NUMBER)?;
    Ok(if inverted == 0 { value } else { !value })
}

fn octal(field: &[u8]) -> Result<i64, UntarError> {
    let is_padding = |byte: &u8| matches!(byte, b' ' | 0);
    let start = field.iter().position(|byte| !is_padding(byte));
    let digits = start.map_or(&[][..], |start| text(&field[start..]));
    let end = digits.iter().rposition(|byte| !is_padding(byte));
    let digits = &digits[..end.map_or(0, |end| end + 1)];
    let mut value: u64 = 0;
    for digit in digits {
        if !(b'0'..=b'7').contains(digit) || value >> 61 > 0 {
            return Err(BAD_NUMBER);
        }
        value = value << 3 | u64::from(digit - b'0');
    }
    Ok(value.cast_signed())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, value) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"0000009\0", None),
            (b"-000001\0", None),
            (b"12\x004567\0", Some(0o12)),
            (b"\x80\0\0\0\0\0\0\x05", Some(5)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (
                b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff",
                Some(i64::MAX),
            ),
            (b"\x80\0\0\0\xff\xff\xff\xff\xff\xff\xff\xff", None),
            (b"\x80\x01\0\0\0\0\0\0\0\0\0\0", None),
        ] {
            assert_eq!(number(field).ok(), value, "{field:?}");
        }
    }
}
