//! The floor: what no way of pulling can do without, and nothing else. Every layer is read from a file, hashed, and written
//! to another one; inflated, hashed again, and unpacked into a directory, with the code of this engine: no registry, no
//! containerd, no connection.

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};

use prewarm::image::inflate::{CHUNK_BYTES, InflateError, Inflater, Outlet};
use prewarm::image::untar::{Level, Limits, Untar};
use sha2::{Digest as _, Sha256};

use super::support::images::Image;

/// What is read of a packed layer at a time.
const PIECE: usize = 256 << 10;
/// Chunks between the thread that inflates and the one that unpacks.
const QUEUE: usize = 4;

/// Puts the layers where [`unpack_here`] finds them.
pub(super) fn lay_out(image: &Image, dir: &Path) {
    std::fs::create_dir_all(dir).unwrap();
    let layers = image.blobs.iter();
    let layers = layers.filter(|blob| blob.media_type.contains("layer"));
    for (number, layer) in layers.enumerate() {
        std::fs::write(dir.join(number.to_string()), &layer.bytes).unwrap();
    }
}

/// Where the layers of a directory are unpacked.
pub(super) fn unpacked(dir: &Path) -> PathBuf {
    dir.with_extension("unpacked")
}

/// Unpacks all layers of a directory, on as many threads as there are processors.
pub(super) fn unpack_here(args: &[String]) {
    let [dir] = args else { panic!("DIR") };
    let dir = Path::new(dir);
    let count = std::fs::read_dir(dir).unwrap().count();
    let to = unpacked(dir);
    std::fs::create_dir(&to).unwrap();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().unwrap().get();
    let work = || {
        loop {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if number >= count {
                return;
            }
            let packed = dir.join(number.to_string());
            let root = to.join(number.to_string());
            std::fs::create_dir(&root).unwrap();
            // One layer alone is shared between two.
            match count {
                1 => shared(&packed, root),
                _ => drop(inflate(&packed, Here::new(&root))),
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 0..threads.min(count) {
            scope.spawn(work);
        }
    });
}

/// Inflates on this thread, hashes and unpacks on another.
fn shared(packed: &Path, root: PathBuf) {
    let (to_unpack, chunks) = sync_channel::<(Vec<u8>, usize)>(QUEUE);
    let (give_back, spare) = sync_channel(QUEUE + 2);
    std::thread::scope(|scope| {
        scope.spawn(move || {
            let mut here = Here::new(&root);
            for (buffer, filled) in chunks {
                here.unpack(&buffer[..filled]);
                let _ = give_back.try_send(buffer);
            }
        });
        inflate(packed, There { to_unpack, spare });
    });
}

/// Reads, hashes, writes and inflates a layer.
fn inflate<O: Outlet>(packed: &Path, mut outlet: O) -> O {
    let mut from = File::open(packed).unwrap();
    let name = packed.file_name().unwrap().to_str().unwrap();
    let dir = unpacked(packed.parent().unwrap());
    let mut to = File::create(dir.join(format!("{name}.content"))).unwrap();
    let mut hasher = Sha256::new();
    let mut inflater = Inflater::new(u64::MAX);
    let mut piece = vec![0; PIECE];
    loop {
        let read = from.read(&mut piece).unwrap();
        if read == 0 {
            break;
        }
        let piece = &piece[..read];
        hasher.update(piece);
        to.write_all(piece).unwrap();
        inflater.push(piece, &mut outlet).unwrap();
    }
    inflater.finish(&mut outlet).unwrap();
    std::hint::black_box(hasher.finalize());
    outlet
}

/// Hashes and unpacks on the thread that inflates.
struct Here {
    hasher: Sha256,
    untar: Untar,
    spare: Vec<u8>,
}

impl Here {
    fn new(root: &Path) -> Self {
        Self {
            hasher: Sha256::new(),
            untar: Untar::new(root, Level::Lowest, Limits::default()).unwrap(),
            spare: vec![0; CHUNK_BYTES],
        }
    }

    fn unpack(&mut self, bytes: &[u8]) {
        self.hasher.update(bytes);
        self.untar.write(bytes).unwrap();
    }
}

impl Outlet for Here {
    fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError> {
        self.unpack(&buffer[..filled]);
        self.spare = buffer;
        Ok(())
    }

    fn buffer(&mut self) -> Vec<u8> {
        std::mem::take(&mut self.spare)
    }
}

/// Has another thread do it.
struct There {
    to_unpack: SyncSender<(Vec<u8>, usize)>,
    spare: std::sync::mpsc::Receiver<Vec<u8>>,
}

impl Outlet for There {
    fn take(&mut self, buffer: Vec<u8>, filled: usize) -> Result<(), InflateError> {
        let sent = self.to_unpack.send((buffer, filled));
        sent.map_err(|_| InflateError::Unwanted)
    }

    fn buffer(&mut self) -> Vec<u8> {
        let spare = self.spare.try_recv();
        spare.unwrap_or_else(|_| vec![0; CHUNK_BYTES])
    }
}
