//! Extended headers: PAX records (POSIX pax, "pax Extended Header") and GNU's sparse maps, as Go's
//! `archive/tar` reads them.

use std::collections::BTreeMap;

use super::error::UntarError;
use super::header::{Header, Nanos, seconds};

/// Records by key; a later one takes the place of an earlier one.
pub(super) type Records = BTreeMap<Vec<u8>, Vec<u8>>;

/// A part of a sparse file that the archive has bytes for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Fragment {
    pub(super) offset: u64,
    pub(super) length: u64,
}

/// How a file's sparse map is given.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SparseMap {
    /// In the records (GNU's PAX formats 0.0 and 0.1).
    Given(Vec<Fragment>),
    /// At the beginning of the file's data (format 1.0).
    InData,
}

const XATTR: &[u8] = b"SCHILY.xattr.";
const SPARSE_MAP: &[u8] = b"GNU.sparse.map";
const BAD_RECORD: UntarError = UntarError::Header("a PAX record cannot be read");
const BAD_MAP: UntarError = UntarError::Header("a sparse file's map cannot be read");

/// Reads the body of a PAX header.
pub(super) fn records(mut body: &[u8]) -> Result<Records, UntarError> {
    let mut records = Records::new();
    let mut map: Vec<&[u8]> = Vec::new();
    while !body.is_empty() {
        let (key, value, rest) = record(body).ok_or(BAD_RECORD)?;
        body = rest;
        match key {
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                let wanted: &[u8] = match map.len() % 2 {
                    0 => b"GNU.sparse.offset",
                    _ => b"GNU.sparse.numbytes",
                };
                if key != wanted || value.contains(&b',') {
                    return Err(BAD_MAP);
                }
                map.push(value);
            }
            _ => {
                records.insert(key.to_vec(), value.to_vec());
            }
        }
    }
    if !map.is_empty() {
        records.insert(SPARSE_MAP.to_vec(), map.join(&b','));
    }
    Ok(records)
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself and the newline.
fn record(body: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = body.iter().position(|byte| *byte == b' ')?;
    let length = usize::try_from(decimal(&body[..space])?).ok()?;
    if length < 5 || length > body.len() || length < space + 2 {
        return None;
    }
    let (record, rest) = body.split_at(length);
    let record = record[space + 1..].strip_suffix(b"\n")?;
    let equals = record.iter().position(|byte| *byte == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    let checked = match key {
        b"path" | b"linkpath" | b"uname" | b"gname" => value,
        _ => key,
    };
    (!checked.contains(&0)).then_some((key, value, rest))
}

/// Lets records take the place of what a header says.
pub(super) fn merge(header: &mut Header, records: &Records) -> Result<(), UntarError> {
    let bad = || BAD_RECORD;
    for (key, value) in records {
        // Nothing means: as the header says.
        if value.is_empty() {
            continue;
        }
        match key.as_slice() {
            b"path" => header.name.clone_from(value),
            b"linkpath" => header.link.clone_from(value),
            b"uid" => header.uid = decimal(value).ok_or_else(bad)?,
            b"gid" => header.gid = decimal(value).ok_or_else(bad)?,
            b"size" => header.size = decimal(value).ok_or_else(bad)?,
            b"mtime" => header.modified = time(value).ok_or_else(bad)?,
            b"atime" => header.accessed = Some(time(value).ok_or_else(bad)?),
            b"ctime" => drop(time(value).ok_or_else(bad)?),
            _ => {}
        }
    }
    Ok(())
}

/// The extended attributes among records.
pub(super) fn xattrs(records: Records) -> Vec<(Vec<u8>, Vec<u8>)> {
    let xattr = |(key, value): (Vec<u8>, Vec<u8>)| Some((key.strip_prefix(XATTR)?.to_vec(), value));
    records.into_iter().filter_map(xattr).collect()
}

/// Whether the records make the file a sparse one, and how; what they say of its name and size goes
/// into the header.
pub(super) fn sparse(
    header: &mut Header,
    records: &Records,
) -> Result<Option<SparseMap>, UntarError> {
    let get = |key: &str| {
        let value = records.get(key.as_bytes()).map(Vec::as_slice);
        value.filter(|value| !value.is_empty())
    };
    let in_data = match (get("GNU.sparse.major"), get("GNU.sparse.minor")) {
        (Some(b"0"), Some(b"0" | b"1")) => false,
        (Some(b"1"), Some(b"0")) => true,
        (None, None) if get("GNU.sparse.map").is_some() => false,
        // Of another version, or not sparse at all.
        _ => return Ok(None),
    };
    if let Some(name) = get("GNU.sparse.name") {
        name.clone_into(&mut header.name);
    }
    if let Some(size) = get("GNU.sparse.size").or_else(|| get("GNU.sparse.realsize")) {
        header.size = decimal(size).ok_or(BAD_MAP)?;
    }
    if in_data {
        return Ok(Some(SparseMap::InData));
    }
    let count = get("GNU.sparse.numblocks").and_then(decimal);
    let count = count.and_then(|count| usize::try_from(count).ok());
    let list = get("GNU.sparse.map").unwrap_or_default();
    let numbers: Vec<&[u8]> = match list {
        b"" => Vec::new(),
        list => list.split(|byte| *byte == b',').collect(),
    };
    if count.and_then(|count| count.checked_mul(2)) != Some(numbers.len()) {
        return Err(BAD_MAP);
    }
    fragments(&numbers, header.size).map(|map| Some(SparseMap::Given(map)))
}

/// Reads the map at the beginning of a file's data: as many lines as its first one says, twice, and
/// that one. `None` while there is more to come.
pub(super) fn map_in_data(data: &[u8], size: i64) -> Result<Option<Vec<Fragment>>, UntarError> {
    let mut lines = data.split(|byte| *byte == b'\n');
    let first = lines.next().unwrap_or_default();
    // A last line without its end is not whole.
    let whole = data.iter().filter(|byte| **byte == b'\n').count();
    if whole == 0 {
        return Ok(None);
    }
    let count = decimal(first).and_then(|count| usize::try_from(count).ok());
    let count = count
        .and_then(|count| count.checked_mul(2))
        .ok_or(BAD_MAP)?;
    if whole - 1 < count {
        return Ok(None);
    }
    let numbers: Vec<&[u8]> = lines.take(count).collect();
    fragments(&numbers, size).map(Some)
}

/// Pairs of offset and length, which have to be in order, apart, and within the file.
fn fragments(numbers: &[&[u8]], size: i64) -> Result<Vec<Fragment>, UntarError> {
    let size = u64::try_from(size).map_err(|_| BAD_MAP)?;
    let unsigned = |text: &[u8]| u64::try_from(decimal(text)?).ok();
    let mut end = 0;
    numbers
        .chunks_exact(2)
        .map(|pair| {
            let (offset, length) = unsigned(pair[0]).zip(unsigned(pair[1]))?;
            let fits = offset >= end && offset.checked_add(length)? <= size;
            end = offset + length;
            fits.then_some(Fragment { offset, length })
        })
        .collect::<Option<_>>()
        .ok_or(BAD_MAP)
}

/// As Go's `strconv.ParseInt` with base 10: a sign or none, digits, 64 bits.
fn decimal(text: &[u8]) -> Option<i64> {
    str::from_utf8(text).ok()?.parse().ok()
}

/// Seconds with a fraction or none, cut after nanoseconds.
fn time(text: &[u8]) -> Option<Nanos> {
    const DIGITS: usize = 9;
    let (whole, fraction) = match text.iter().position(|byte| *byte == b'.') {
        Some(dot) => (&text[..dot], &text[dot + 1..]),
        None => (text, &[][..]),
    };
    let whole_seconds = seconds(decimal(whole)?);
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().copied().chain(std::iter::repeat(b'0'));
    let nanos = digits
        .take(DIGITS)
        .fold(0, |nanos, digit| nanos * 10 + Nanos::from(digit - b'0'));
    Some(if whole.starts_with(b"-") {
        whole_seconds - nanos
    } else {
        whole_seconds + nanos
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_are_counted_by_their_own_length() {
        let read = records(b"12 path=a\nb\n13 uid=00001\n").unwrap();
        assert_eq!(read.get(&b"path"[..]).unwrap(), b"a\nb");
        for bad in [
            &b"5 a=\n"[..4],
            b"6 a=bc",
            b"x a=b\n",
            b"99 a=b\n",
            b"6 abc\n",
            b"3 a\n",
            b"11 path=\0x\n",
            b"-6 a=b\n",
        ] {
            assert_eq!(records(bad), Err(BAD_RECORD), "{bad:?}");
        }
    }

    #[test]
    fn times_have_fractions_and_signs() {
        for (text, nanos) in [
            ("1", Some(1_000_000_000)),
            ("1.5", Some(1_500_000_000)),
            ("-1.5", Some(-1_500_000_000)),
            ("0.0000000019", Some(1)),
            ("1.", Some(1_000_000_000)),
            ("1.x", None),
            ("", None),
            (".5", None),
        ] {
            assert_eq!(time(text.as_bytes()), nanos, "{text:?}");
        }
    }

    #[test]
    fn maps_are_in_order_and_within_the_file() {
        let map = |numbers: &[&str]| {
            let numbers: Vec<_> = numbers.iter().map(|number| number.as_bytes()).collect();
            fragments(&numbers, 100)
        };
        assert_eq!(map(&["0", "10", "50", "50"]).unwrap().len(), 2);
        for bad in [
            ["0", "10", "5", "1"],
            ["0", "101", "0", "0"],
            ["-1", "1", "5", "1"],
            ["50", "9223372036854775807", "99", "1"],
        ] {
            assert_eq!(map(&bad), Err(BAD_MAP), "{bad:?}");
        }
        assert_eq!(map_in_data(b"1\n0\n1", 100).unwrap(), None);
        assert_eq!(
            map_in_data(b"1\n0\n1\n\0\0", 100).unwrap().unwrap().len(),
            1
        );
        assert_eq!(map_in_data(b"0\n\0", 100).unwrap().unwrap(), []);
        assert_eq!(map_in_data(b"x\n", 100), Err(BAD_MAP));
    }
}
