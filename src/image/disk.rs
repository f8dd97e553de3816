//! Is there room for what is missing, and is there still while it comes?

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::registry::manifest::Descriptor;
use super::size::{ByteSize, DiskReserve};
use crate::domain::failure::{Failure, FailureKind};

/// How many bytes a compressed layer unpacks to for each of its own. Nothing in a manifest says; the
/// images this project measures have 1.7 to 1.9, and for a check that only has to refuse what is
/// hopeless, too little is better than too much.
const UNPACKED_PER_COMPRESSED: u64 = 2;

/// How often the disk is looked at while somebody else writes, such as containerd. What unpacks here looks before every
/// piece that it writes.
const LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A file system's size and what is free of it, in bytes.
#[derive(Clone, Copy, Debug)]
pub(in crate::image) struct Space {
    pub(in crate::image) total: u64,
    pub(in crate::image) free: u64,
    /// Tells file systems apart.
    id: u64,
}

/// The space of the file system that holds a directory; `None` when it is not to be seen from here.
pub(in crate::image) fn space(path: &Path) -> Option<Space> {
    let stat = rustix::fs::statvfs(path).ok()?;
    Some(Space {
        total: stat.f_blocks.saturating_mul(stat.f_frsize),
        free: stat.f_bavail.saturating_mul(stat.f_frsize),
        id: stat.f_fsid,
    })
}

/// The file systems that a pull writes to. Where the runtime's directories are not to be seen from this process,
/// nothing is known of them, and there is always room.
#[derive(Clone)]
pub(in crate::image) struct Room {
    content: Option<Disk>,
    snapshots: Option<Disk>,
}

/// A file system by a directory on it.
#[derive(Clone)]
struct Disk {
    dir: PathBuf,
    /// How it was at the beginning.
    space: Space,
    /// What is to stay free of it, in bytes.
    reserve: u64,
}

impl Room {
    /// Looks at the file systems of these directories, of which a part is to stay free.
    pub(in crate::image) fn of(
        content: Option<PathBuf>,
        snapshots: Option<PathBuf>,
        reserve: DiskReserve,
    ) -> Self {
        let disk = |dir: Option<PathBuf>| {
            let dir = dir?;
            let space = space(&dir)?;
            let reserve = reserve.of(space.total);
            Some(Disk {
                dir,
                space,
                reserve,
            })
        };
        let room = Self {
            content: disk(content),
            snapshots: disk(snapshots),
        };
        if room.content.is_none() && room.snapshots.is_none() {
            tracing::debug!("the runtime's directories are not visible here: no disk check");
        }
        room
    }

    /// Refuses a pull that would leave less free than the settings say, unpacked for each of the snapshotters.
    ///
    /// # Errors
    /// `InsufficientDisk`.
    pub(in crate::image) fn fits(
        &self,
        missing: &[&Descriptor],
        snapshotters: &[&str],
    ) -> Result<(), Failure> {
        if missing.is_empty() {
            return Ok(());
        }
        let sum = |bytes: fn(&Descriptor) -> u64| {
            missing
                .iter()
                .fold(0_u64, |sum, blob| sum.saturating_add(bytes(blob)))
        };
        let compressed = sum(|blob| blob.size);
        // As a rule they are all on one disk.
        let count = u64::try_from(snapshotters.len()).unwrap_or(u64::MAX);
        let unpacked = sum(unpacked_bytes).saturating_mul(count);
        let needs = match (&self.content, &self.snapshots) {
            (Some(content), Some(snapshots)) if content.space.id != snapshots.space.id => {
                vec![(content, compressed), (snapshots, unpacked)]
            }
            (Some(disk), _) | (None, Some(disk)) => {
                vec![(disk, compressed.saturating_add(unpacked))]
            }
            (None, None) => Vec::new(),
        };
        for (Disk { space, reserve, .. }, need) in needs {
            if need.saturating_add(*reserve) > space.free {
                return Err(Failure::new(
                    FailureKind::InsufficientDisk,
                    format!(
                        "the image needs about {}, {} is to stay free (min-free-disk), and only {} of {} is free",
                        ByteSize(need),
                        ByteSize(*reserve),
                        ByteSize(space.free),
                        ByteSize(space.total)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// The least that is free beyond what is to stay so, in bytes; `None` where nothing is known.
    pub(in crate::image) fn spare(&self) -> Option<u64> {
        let disks = [&self.content, &self.snapshots].into_iter().flatten();
        disks
            .map(|disk| disk.space.free.saturating_sub(disk.reserve))
            .min()
    }

    /// Whether as much is free as is to stay so.
    ///
    /// # Errors
    /// `InsufficientDisk` when it is not: nothing in a manifest says how large a layer unpacks, and others write as well.
    pub(in crate::image) fn is_left(&self) -> Result<(), Failure> {
        let disks = [&self.content, &self.snapshots];
        for Disk { dir, reserve, .. } in disks.into_iter().flatten().filter(|disk| disk.reserve > 0)
        {
            if let Some(Space { total, free, .. }) = space(dir)
                && free < *reserve
            {
                return Err(Failure::new(
                    FailureKind::InsufficientDisk,
                    format!(
                        "only {} of {} is free any more, and {} is to stay so (min-free-disk): the image is larger than its compressed size let expect, or others fill the disk",
                        ByteSize(free),
                        ByteSize(total),
                        ByteSize(*reserve)
                    ),
                ));
            }
        }
        Ok(())
    }

    /// Does something that takes room for as long as there is any.
    ///
    /// # Errors
    /// Those of `work`, or `InsufficientDisk`.
    pub(in crate::image) async fn or<T>(
        &self,
        work: impl Future<Output = Result<T, Failure>>,
    ) -> Result<T, Failure> {
        let run_out = async {
            loop {
                tokio::time::sleep(LOOK_INTERVAL).await;
                if let Err(failure) = self.is_left() {
                    return failure;
                }
            }
        };
        tokio::select! {
            biased;
            done = work => done,
            failure = run_out => Err(failure),
        }
    }
}

fn unpacked_bytes(layer: &Descriptor) -> u64 {
    let is_compressed = layer.media_type.ends_with("gzip") || layer.media_type.ends_with("zstd");
    let factor = if is_compressed {
        UNPACKED_PER_COMPRESSED
    } else {
        1
    };
    layer.size.saturating_mul(factor)
}
