//! Who brings an image, and why: decided for each image from what the node offers and what the manifest says.

use std::fmt;

use crate::domain::failure::{Failure, FailureKind};
use crate::image::Engine;
use crate::image::untar::Lack;

/// Snapshotters whose snapshots containerd's differ fills by unpacking into a mount (`plugins/snapshots` of containerd
/// 1.6 to 2.1, without `erofs`, which has a differ of its own). Another one, as a rule a proxy to a program that fetches
/// lazily, wants the labels that only containerd's own pull gives to its snapshots.
const UNPACKED_INTO: [&str; 7] = [
    "aufs",
    "blockfile",
    "btrfs",
    "devmapper",
    "native",
    "overlayfs",
    "zfs",
];
/// The snapshotter whose layers are plain directories.
pub(super) const OVERLAYFS: &str = "overlayfs";

/// Why this process cannot unpack.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Obstacle {
    /// Layers of this snapshotter are no directories.
    Snapshotter(String),
    /// It is not the snapshotter of this worker, which unpacks for its own while an image comes.
    NotOwn(String),
    /// The directories are not to be seen.
    Directories,
    /// They are, and may not be written with all that a layer can hold.
    Right(Lack),
}

impl fmt::Display for Obstacle {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Snapshotter(name) => {
                write!(f, "layers of snapshotter {name:?} are no plain directories")
            }
            Self::NotOwn(name) => write!(f, "snapshotter {name:?} is not the worker's own"),
            Self::Directories => {
                f.write_str("containerd's snapshot directory is not at the same path here")
            }
            Self::Right(lack) => write!(f, "in containerd's snapshot directory {lack}"),
        }
    }
}

/// What the node offers.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Offers<'a> {
    /// The snapshotter to unpack for.
    pub(super) snapshotter: &'a str,
    /// Why this process cannot unpack for it, if so.
    pub(super) obstacle: Option<Obstacle>,
    /// Whether a `PullImage` would unpack for it.
    pub(super) cri: bool,
}

/// What the image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) struct Wants {
    /// Whether layers are unpacked at all.
    pub(super) unpack: bool,
    /// Whether a layer is encrypted.
    pub(super) encrypted: bool,
}

/// An engine and what speaks for it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Choice {
    pub(super) engine: Engine,
    /// Why it is not the native one; empty if it is.
    pub(super) reason: String,
}

impl Choice {
    fn of(engine: Engine, reason: impl Into<String>) -> Self {
        Self {
            engine,
            reason: reason.into(),
        }
    }
}

/// Chooses where containerd's own services are there.
///
/// # Errors
/// `InvalidReference` for encrypted layers that nobody here can decrypt.
pub(super) fn choose(offers: &Offers<'_>, wants: Wants) -> Result<Choice, Failure> {
    if !wants.unpack {
        return Ok(Choice::of(Engine::Containerd, "nothing is unpacked"));
    }
    if wants.encrypted {
        let snapshotter = offers.snapshotter;
        return if offers.cri {
            Ok(Choice::of(
                Engine::Cri,
                "layers are encrypted, and only containerd's own pull decrypts",
            ))
        } else {
            Err(Failure::new(
                FailureKind::InvalidReference,
                format!(
                    "layers are encrypted, which only a pull through CRI decrypts, and containerd's CRI plugin is not there or does not use the namespace and snapshotter of this worker ({snapshotter})"
                ),
            ))
        };
    }
    let Some(obstacle) = &offers.obstacle else {
        return Ok(Choice::of(Engine::Native, ""));
    };
    let unpacked_into = UNPACKED_INTO.contains(&offers.snapshotter);
    Ok(if offers.cri && !unpacked_into {
        let reason = format!(
            "snapshotter {:?} has to be filled by containerd's own pull",
            offers.snapshotter
        );
        Choice::of(Engine::Cri, reason)
    } else {
        Choice::of(Engine::Containerd, obstacle.to_string())
    })
}

/// Chooses again after an engine failed; `None` when the failure is not the engine's: what a registry, the image or a
/// full disk is to blame for would be the same by another.
pub(super) fn choose_after(
    failed: Engine,
    failure: &Failure,
    offers: &Offers<'_>,
) -> Option<Choice> {
    let engines_own = match failure.kind {
        FailureKind::RuntimeUnavailable | FailureKind::Internal => true,
        FailureKind::ImageNotFound
        | FailureKind::Unauthorized
        | FailureKind::NoMatchingPlatform
        | FailureKind::InvalidReference
        | FailureKind::InsufficientDisk
        | FailureKind::DigestMismatch
        | FailureKind::RegistryUnavailable
        | FailureKind::RateLimited
        | FailureKind::Timeout
        | FailureKind::DeadlineExceeded
        | FailureKind::NodeAbsent => false,
    };
    let next = match failed {
        Engine::Native | Engine::Containerd if offers.cri => Engine::Cri,
        Engine::Native => Engine::Containerd,
        Engine::Containerd | Engine::Cri | Engine::Simulated => return None,
    };
    engines_own.then(|| {
        let reason = format!("the {failed} engine failed: {}", failure.message);
        Choice::of(next, reason)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const PLAIN: Wants = Wants {
        unpack: true,
        encrypted: false,
    };
    const ENCRYPTED: Wants = Wants {
        unpack: true,
        encrypted: true,
    };
    const CONTENT: Wants = Wants {
        unpack: false,
        encrypted: true,
    };

    fn offers(snapshotter: &str, cri: bool) -> Offers<'_> {
        let obstacle = match snapshotter {
            OVERLAYFS => None,
            other => Some(Obstacle::Snapshotter(other.to_owned())),
        };
        Offers {
            snapshotter,
            obstacle,
            cri,
        }
    }

    fn chosen(offers: &Offers<'_>, wants: Wants) -> Result<Engine, FailureKind> {
        match choose(offers, wants) {
            Ok(choice) => {
                assert_eq!(choice.reason.is_empty(), choice.engine == Engine::Native);
                Ok(choice.engine)
            }
            Err(failure) => Err(failure.kind),
        }
    }

    #[test]
    fn the_engine_is_the_fastest_that_can() {
        for (snapshotter, cri, wants, engine) in [
            ("overlayfs", true, PLAIN, Ok(Engine::Native)),
            ("overlayfs", false, PLAIN, Ok(Engine::Native)),
            ("native", true, PLAIN, Ok(Engine::Containerd)),
            ("native", false, PLAIN, Ok(Engine::Containerd)),
            ("stargz", true, PLAIN, Ok(Engine::Cri)),
            ("stargz", false, PLAIN, Ok(Engine::Containerd)),
            ("erofs", true, PLAIN, Ok(Engine::Cri)),
            ("overlayfs", true, ENCRYPTED, Ok(Engine::Cri)),
            (
                "overlayfs",
                false,
                ENCRYPTED,
                Err(FailureKind::InvalidReference),
            ),
            ("stargz", true, CONTENT, Ok(Engine::Containerd)),
        ] {
            let got = chosen(&offers(snapshotter, cri), wants);
            assert_eq!(got, engine, "{snapshotter}, cri {cri}, {wants:?}");
        }
        let hidden = Offers {
            obstacle: Some(Obstacle::Directories),
            ..offers("overlayfs", true)
        };
        assert_eq!(chosen(&hidden, PLAIN), Ok(Engine::Containerd));
    }

    #[test]
    fn another_engine_is_tried_only_after_a_failure_of_the_engine() {
        for kind in FailureKind::ALL {
            let failure = Failure::new(kind, "x");
            let next = |engine, cri| {
                let offers = offers("overlayfs", cri);
                choose_after(engine, &failure, &offers).map(|choice| choice.engine)
            };
            let own = matches!(
                kind,
                FailureKind::RuntimeUnavailable | FailureKind::Internal
            );
            assert_eq!(
                next(Engine::Native, true),
                own.then_some(Engine::Cri),
                "{kind}"
            );
            assert_eq!(
                next(Engine::Native, false),
                own.then_some(Engine::Containerd),
                "{kind}"
            );
            assert_eq!(
                next(Engine::Containerd, true),
                own.then_some(Engine::Cri),
                "{kind}"
            );
            assert_eq!(next(Engine::Containerd, false), None, "{kind}");
            assert_eq!(next(Engine::Cri, true), None, "{kind}");
        }
    }
}
