//! Archives that want out, or too much, or are broken: they fail clearly and touch nothing else.

use std::path::PathBuf;

use prewarm::domain::failure::FailureKind;
use prewarm::image::untar::{Implicit, Level, Limits, Untar, UntarError, inherit};
use proptest::prelude::*;

use super::nasty;
use super::node::{Node, request};
use super::rootfs::entries;
use super::support;
use support::containerd::ContainerdVersion;
use support::images::tarball::{Head, Tarball};
use support::images::{Layer, Recipe};
use support::parts;
use support::registry::Registry;

/// A directory to unpack into, beside one that has to stay as it is.
struct Jail {
    dir: tempfile::TempDir,
}

impl Jail {
    fn new() -> Self {
        let dir = parts::temp_dir();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("file"), "untouched").unwrap();
        std::fs::create_dir(outside.join("empty")).unwrap();
        Self { dir }
    }

    fn outside(&self) -> PathBuf {
        self.dir.path().join("outside")
    }

    fn unpack(&self, level: Level, pieces: &[&[u8]]) -> Result<Vec<Implicit>, UntarError> {
        let root = self.dir.path().join("root");
        let _ = std::fs::remove_dir_all(&root);
        std::fs::create_dir(&root).unwrap();
        let limits = Limits {
            entries: 10_000,
            bytes: 100 << 20,
        };
        let mut untar = Untar::new(&root, level, limits)?;
        for piece in pieces {
            untar.write(piece)?;
        }
        let implicit = untar.finish()?;
        inherit(&root, &[self.outside()], &implicit)?;
        Ok(implicit)
    }

    /// Unpacks, and says whether everything else is as before.
    fn holds(&self, level: Level, tar: &[u8]) -> bool {
        let look = || {
            let names = std::fs::read_dir(self.dir.path()).unwrap();
            let mut names: Vec<_> = names.map(|name| name.unwrap().file_name()).collect();
            names.retain(|name| name != "root");
            (names, entries(&self.outside(), &Default::default()))
        };
        let before = look();
        let _ = self.unpack(level, &[tar]);
        before == look()
    }
}

const LEVELS: [Level; 2] = [Level::Lowest, Level::Upper];

#[test]
fn no_path_leads_outside() {
    let jail = Jail::new();
    let outside = jail.outside();
    let outside = outside.to_str().unwrap();
    let link = |name: &str, to: &str| Tarball::default().head(&Head::new(b'2', name).to(to));
    let hard = |name: &str, to: &str| Head::new(b'1', name).to(to);
    let mut archives = Vec::new();
    for to in [
        outside,
        "../outside",
        "../../../../../../../../..",
        "/proc/self/cwd",
        "a/../../outside",
    ] {
        archives.extend([
            link("a", to).file("a/file", "written"),
            link("a", to).file("a/.wh.file", ""),
            link("a", to).file("a/.wh..wh..opq", ""),
            link("a", to).head(&Head::new(b'5', "a/empty").mode(0o777).owner(1, 1)),
            link("a", to)
                .head(&hard("b", "a/file").mode(0o777))
                .file("b", "written"),
            link("a", to)
                .head(&Head::new(b'2', "b").to("a/file"))
                .file("b", "written"),
            link("a", &format!("{to}/file"))
                .head(&hard("b", "a").mode(0o777))
                .file("b", "w"),
            link("a", &format!("{to}/file")).file("a", "written"),
            link("a", "b")
                .head(&Head::new(b'2', "b").to(to))
                .file("a/file", "written"),
            Tarball::default()
                .dir("d")
                .file("d/x", "cached")
                .file(".wh.d", "")
                .head(&Head::new(b'2', "d").to(to))
                .file("d/file", "written"),
            Tarball::default()
                .file("d/x", "cached")
                .head(&Head::new(b'2', "d").to(to))
                .file("d/file", "written")
                .file("d/empty/y", "written"),
            link("a", to)
                .pax(&[(b"SCHILY.xattr.user.x", b"y")])
                .head(&Head::new(b'2', "a/empty").to("x")),
        ]);
    }
    for name in [
        "../outside/file",
        "/../outside/file",
        "x/../../outside/file",
        outside,
    ] {
        archives.extend([
            Tarball::default().file(name, "written"),
            Tarball::default()
                .pax(&[(b"path", name.as_bytes())])
                .file("x", "written"),
            Tarball::default()
                .head(&hard("b", name).mode(0o777))
                .file("b", "written"),
        ]);
    }
    for (number, archive) in archives.into_iter().enumerate() {
        let tar = archive.end();
        for level in LEVELS {
            assert!(jail.holds(level, &tar), "archive {number} on {level:?}");
        }
    }
}

/// Names and targets that cross each other's ways.
fn path() -> impl Strategy<Value = String> {
    let part = prop_oneof![
        4 => prop::sample::select(vec!["a", "b", "c"]),
        1 => prop::sample::select(vec!["..", ".", "", ".wh.a", ".wh.b", ".wh..wh..opq", "outside", "file"]),
    ];
    (any::<bool>(), prop::collection::vec(part, 1..5)).prop_map(|(absolute, parts)| {
        let path = parts.join("/");
        if absolute { format!("/{path}") } else { path }
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 100, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_series_of_entries_leads_outside(
        entries in prop::collection::vec((prop::sample::select(b"01235x".to_vec()), path(), path()), 1..20),
        level in prop::sample::select(LEVELS.to_vec()),
    ) {
        let jail = Jail::new();
        let archive = entries.iter().fold(Tarball::default(), |archive, (kind, name, link)| {
            match kind {
                b'x' => archive.pax(&[(b"SCHILY.xattr.user.x", b"1")]),
                b'0' => archive.file(name, "written"),
                b'3' => archive.head(&Head::new(b'3', name).device(1, 3)),
                kind => archive.head(&Head::new(*kind, name).to(link).mode(0o777)),
            }
        });
        prop_assert!(jail.holds(level, &archive.end()));
    }

    #[test]
    fn no_change_to_an_archive_makes_it_panic_or_lead_outside(
        image in 0_usize..5,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
        level in prop::sample::select(LEVELS.to_vec()),
    ) {
        let jail = Jail::new();
        let images = nasty::small();
        let mut tar = images[image % images.len()].layers[0].clone();
        for (at, byte) in changes {
            let at = at.index(tar.len());
            tar[at] = byte;
            // With its checksum put right the header is read, and not only refused.
            let block = at / 512 * 512;
            let sum: u64 = tar[block..block + 512]
                .iter()
                .enumerate()
                .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u64::from(*byte) })
                .sum();
            if tar[block + 257..block + 262] == *b"ustar" {
                tar[block + 148..block + 156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            }
        }
        if let Some(cut) = cut {
            tar.truncate(cut.index(tar.len()));
        }
        prop_assert!(jail.holds(level, &tar));
    }

    #[test]
    fn it_does_not_matter_how_the_bytes_come(image in 0_usize..5, size in 1_usize..3000) {
        let jail = Jail::new();
        let images = nasty::small();
        let tar = &images[image % images.len()].layers[0];
        let whole = jail.unpack(Level::Lowest, &[tar]).unwrap();
        let root = jail.dir.path().join("root");
        // Times of directories that no entry describes are those of the unpacking.
        let unsaid = whole.iter().map(|implicit| implicit.path.clone()).collect();
        let expected = entries(&root, &unsaid);
        let pieces: Vec<&[u8]> = tar.chunks(size).collect();
        prop_assert_eq!(jail.unpack(Level::Lowest, &pieces).unwrap(), whole);
        prop_assert_eq!(entries(&root, &unsaid), expected);
    }
}

/// Archives that neither we nor containerd unpack.
fn broken() -> Vec<(&'static str, Vec<u8>)> {
    let file = || Tarball::default().file("file", "x");
    let mut checksum = file().end();
    checksum[0] = b'g';
    let mut truncated = Tarball::default().file("file", vec![1; 3000]).without_end();
    truncated.truncate(2000);
    let mut after_zeros = file().data(&[0; 512]).file("late", "y").end();
    after_zeros.truncate(after_zeros.len() - 1024);
    vec![
        (
            "old GNU sparse",
            Tarball::default().head(&Head::new(b'S', "sparse")).end(),
        ),
        (
            "contiguous",
            Tarball::default()
                .head(&Head::new(b'7', "contiguous"))
                .end(),
        ),
        ("checksum", checksum),
        ("truncated", truncated),
        ("after one zero block", after_zeros),
        ("file below a file", file().file("file/below", "").end()),
        (
            "hard link to nothing",
            Tarball::default()
                .head(&Head::new(b'1', "link").to("none"))
                .end(),
        ),
        (
            "hard link to a directory",
            Tarball::default()
                .dir("d")
                .head(&Head::new(b'1', "link").to("d"))
                .end(),
        ),
        (
            "name too long",
            Tarball::default()
                .pax(&[(b"path", "n".repeat(256).as_bytes())])
                .file("x", "")
                .end(),
        ),
    ]
}

/// More of them: what extended headers can do wrong.
fn broken_extensions() -> Vec<(&'static str, Vec<u8>)> {
    vec![
        (
            "links in a circle",
            Tarball::default()
                .head(&Head::new(b'2', "a").to("b"))
                .head(&Head::new(b'2', "b").to("a"))
                .file("a/x", "")
                .end(),
        ),
        (
            "a PAX record without length",
            Tarball::default()
                .entry(Head::new(b'x', "x"), b"path=y\n")
                .file("z", "")
                .end(),
        ),
        (
            "a PAX header of 2 MB",
            Tarball::default()
                .pax(&[(b"comment", &[b'c'; 2_000_000])])
                .file("z", "")
                .end(),
        ),
        (
            "a map that does not fit",
            Tarball::default()
                .pax(&[
                    (b"GNU.sparse.major", b"0"),
                    (b"GNU.sparse.minor", b"1"),
                    (b"GNU.sparse.size", b"10"),
                    (b"GNU.sparse.numblocks", b"1"),
                    (b"GNU.sparse.map", b"5,10"),
                ])
                .file("z", "0123456789")
                .end(),
        ),
        (
            "an attribute nobody knows",
            Tarball::default()
                .pax(&[(b"SCHILY.xattr.security.capability", b"rubbish")])
                .file("z", "")
                .end(),
        ),
    ]
}

#[tokio::test]
async fn what_containerd_refuses_is_refused_and_leaves_nothing() {
    let registry = Registry::start().await;
    let (ours, theirs) = tokio::join!(
        Node::start(ContainerdVersion::V2_1),
        Node::start(ContainerdVersion::V2_1)
    );
    for node in [&ours, &theirs] {
        node.daemon.allow_registry(&registry.addr());
    }
    for (number, (what, tar)) in broken().into_iter().chain(broken_extensions()).enumerate() {
        let image = Recipe::new(vec![Layer::archive(tar)]).build();
        let pushed = registry.push("broken", &number.to_string(), &image).await;
        let cri = theirs.daemon.cri().await;
        cri.pull_image(&pushed.by_tag).await.expect_err(what);
        let failure = ours.pull(&request(&pushed.by_tag)).await.expect_err(what);
        assert_eq!(
            failure.kind,
            FailureKind::InvalidReference,
            "{what}: {failure}"
        );
        assert_eq!(ours.is_clean().await, Ok(()), "{what}");
        assert_eq!(ours.images().await, [], "{what}");
    }
    assert!(
        snapshot_dirs(&ours).is_empty(),
        "{:?}",
        snapshot_dirs(&ours)
    );
}

/// Directories of snapshots, known to containerd or not.
fn snapshot_dirs(node: &Node) -> Vec<PathBuf> {
    let dir = node
        .daemon
        .root()
        .join("io.containerd.snapshotter.v1.overlayfs/snapshots");
    let dirs = std::fs::read_dir(dir).unwrap();
    dirs.map(|dir| dir.unwrap().path()).collect()
}

#[test]
fn more_than_the_limits_allow_is_refused() {
    let jail = Jail::new();
    let huge = Tarball::default()
        .pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.realsize", b"10000000000"),
        ])
        .file("ten-gigabytes", {
            let mut map = b"0\n".to_vec();
            map.resize(512, 0);
            map
        })
        .end();
    let mut many = Tarball::default();
    for number in 0..10_001 {
        many = many.dir(number.to_string());
    }
    for tar in [huge, many.end()] {
        let refused = jail.unpack(Level::Lowest, &[&tar]).unwrap_err();
        assert!(matches!(refused, UntarError::Limit { .. }), "{refused}");
    }
}
