//! Archives byte by byte, for what no ordinary packer writes.

/// A tar archive in the making.
#[derive(Debug, Default, Clone)]
pub struct Tarball(Vec<u8>);

/// The fields of one header.
#[derive(Debug, Clone)]
pub struct Head {
    /// The type flag.
    pub kind: u8,
    /// The name, cut to the field's 100 bytes.
    pub name: Vec<u8>,
    /// The link's target, cut to the field's 100 bytes.
    pub link: Vec<u8>,
    /// Permissions.
    pub mode: u64,
    /// User and group.
    pub owner: (u64, u64),
    /// Bytes of data that the header announces.
    pub size: u64,
    /// Seconds since 1970.
    pub modified: i64,
    /// Major and minor number.
    pub device: (u64, u64),
}

impl Head {
    /// A header of a type with plain values.
    pub fn new(kind: u8, name: impl AsRef<[u8]>) -> Self {
        Self {
            kind,
            name: name.as_ref().to_vec(),
            link: Vec::new(),
            mode: if kind == b'5' { 0o755 } else { 0o644 },
            owner: (0, 0),
            size: 0,
            modified: 1_600_000_000,
            device: (0, 0),
        }
    }

    /// The same, with a target.
    pub fn to(mut self, link: impl AsRef<[u8]>) -> Self {
        self.link = link.as_ref().to_vec();
        self
    }

    /// The same, with other permissions.
    pub fn mode(mut self, mode: u64) -> Self {
        self.mode = mode;
        self
    }

    /// The same, of another owner.
    pub fn owner(mut self, user: u64, group: u64) -> Self {
        self.owner = (user, group);
        self
    }

    /// The same, of another time.
    pub fn modified(mut self, seconds: i64) -> Self {
        self.modified = seconds;
        self
    }

    /// The same, with a device number.
    pub fn device(mut self, major: u64, minor: u64) -> Self {
        self.device = (major, minor);
        self
    }

    fn block(&self) -> [u8; 512] {
        let mut block = [0; 512];
        let text = |field: &mut [u8], text: &[u8]| {
            let length = text.len().min(field.len());
            field[..length].copy_from_slice(&text[..length]);
        };
        text(&mut block[0..100], &self.name);
        text(&mut block[157..257], &self.link);
        number(&mut block[100..108], self.mode);
        number(&mut block[108..116], self.owner.0);
        number(&mut block[116..124], self.owner.1);
        number(&mut block[124..136], self.size);
        if self.modified < 0 {
            block[136..148].fill(0xff);
            block[140..148].copy_from_slice(&self.modified.to_be_bytes());
        } else {
            number(&mut block[136..148], self.modified.cast_unsigned());
        }
        block[156] = self.kind;
        block[257..263].copy_from_slice(b"ustar\0");
        block[263..265].copy_from_slice(b"00");
        number(&mut block[329..337], self.device.0);
        number(&mut block[337..345], self.device.1);
        block[148..156].fill(b' ');
        let sum: u64 = block.iter().map(|byte| u64::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        block
    }
}

/// Octal if it fits, else GNU's base-256.
fn number(field: &mut [u8], value: u64) {
    let digits = field.len() - 1;
    let text = format!("{value:0digits$o}");
    if text.len() > digits {
        let bytes = value.to_be_bytes();
        let start = field.len().saturating_sub(8);
        field.fill(0);
        let tail = field.len() - start;
        field[start..].copy_from_slice(&bytes[8 - tail..]);
        field[0] |= 0x80;
    } else {
        field[..digits].copy_from_slice(text.as_bytes());
        field[digits] = 0;
    }
}

impl Tarball {
    /// Adds a header alone.
    #[must_use]
    pub fn head(mut self, head: &Head) -> Self {
        self.0.extend_from_slice(&head.block());
        self
    }

    /// Adds bytes, filled up to a block.
    #[must_use]
    pub fn data(mut self, data: &[u8]) -> Self {
        self.0.extend_from_slice(data);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    /// Adds a header and its data.
    #[must_use]
    pub fn entry(self, mut head: Head, data: &[u8]) -> Self {
        head.size = data.len() as u64;
        self.head(&head).data(data)
    }

    /// Adds a file.
    #[must_use]
    pub fn file(self, name: impl AsRef<[u8]>, data: impl AsRef<[u8]>) -> Self {
        self.entry(Head::new(b'0', name), data.as_ref())
    }

    /// Adds a directory.
    #[must_use]
    pub fn dir(self, name: impl AsRef<[u8]>) -> Self {
        self.head(&Head::new(b'5', name))
    }

    /// Adds a PAX header for the next entry.
    #[must_use]
    pub fn pax(self, records: &[(&[u8], &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        self.entry(Head::new(b'x', "PaxHeaders/x"), &body)
    }

    /// Adds a PAX header for all, which is read and not heeded.
    #[must_use]
    pub fn global(self, records: &[(&[u8], &[u8])]) -> Self {
        let body: Vec<u8> = records
            .iter()
            .flat_map(|(key, value)| record(key, value))
            .collect();
        self.entry(Head::new(b'g', "pax_global_header"), &body)
    }

    /// The archive with its end.
    #[must_use]
    pub fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }

    /// The archive without its end.
    #[must_use]
    pub fn without_end(self) -> Vec<u8> {
        self.0
    }
}

/// `LENGTH KEY=VALUE\n`, where the length counts itself.
fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let rest = key.len() + value.len() + 3;
    let mut length = rest + rest.to_string().len();
    if length.to_string().len() + rest != length {
        length += 1;
    }
    let mut record = format!("{length} ").into_bytes();
    record.extend_from_slice(key);
    record.push(b'=');
    record.extend_from_slice(value);
    record.push(b'\n');
    record
}
