//! Layers with everything that an archive may hold, and much that it had better not.

use super::support;
use support::images::tarball::{Head, Tarball};

/// A version 2 capability set with CAP_NET_BIND_SERVICE and CAP_NET_RAW (capabilities(7)).
const CAPABILITY: &[u8] = &[
    1, 0, 0, 2, 0, 0x24, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0,
];

/// Archives of one image, the lowest first.
pub struct Nasty {
    pub name: &'static str,
    pub layers: Vec<Vec<u8>>,
}

pub fn all() -> Vec<Nasty> {
    vec![
        kinds(),
        records(),
        names(),
        upper_layers(),
        replaced(),
        sparse(),
        many(),
    ]
}

/// Those that are unpacked in no time.
pub fn small() -> Vec<Nasty> {
    vec![kinds(), records(), names(), replaced(), sparse()]
}

fn kinds() -> Nasty {
    let lowest = Tarball::default()
        .entry(Head::new(b'5', "./").mode(0o700).owner(5, 5), b"")
        .entry(
            Head::new(b'5', "tmp/").mode(0o1777).owner(7, 7).modified(1),
            b"",
        )
        .file("/absolute", "absolute")
        .file("../../above", "above")
        .entry(
            Head::new(b'0', "suid").mode(0o4755).owner(1000, 1001),
            b"suid",
        )
        .entry(Head::new(b'0', "sgid").mode(0o2711).owner(0, 42), b"sgid")
        .entry(Head::new(b'5', "sgid-dir").mode(0o2775).owner(3, 50), b"")
        .file("sgid-dir/inherits-nothing", "x")
        .entry(Head::new(b'0', "unreadable").mode(0).owner(1, 2), b"secret")
        .entry(
            Head::new(b'0', "large-ids").owner(3_000_000_000, 2_097_152),
            b"",
        )
        .head(&Head::new(b'3', "null").mode(0o666).device(1, 3))
        .head(
            &Head::new(b'4', "block")
                .mode(0o660)
                .owner(0, 6)
                .device(259, 70_000),
        )
        .head(&Head::new(b'6', "pipe").mode(0o1600))
        .head(
            &Head::new(b'2', "absolute-link")
                .to("/absolute")
                .owner(9, 9)
                .modified(77),
        )
        .head(&Head::new(b'2', "dangling").to("nowhere/at all"))
        .head(&Head::new(b'2', "out").to("../../../../etc/passwd"))
        .head(
            &Head::new(b'1', "sgid-dir/linked")
                .to("suid")
                .mode(0o4750)
                .owner(1, 1),
        )
        .head(&Head::new(b'1', "linked-link").to("./dangling"))
        .entry(Head::new(0, "old-style"), b"v7")
        .head(&Head::new(0, "old-style-dir/"))
        .file("sgid-dir/late", "changes the directory's time")
        .entry(Head::new(b'0', "ancient").modified(-5), b"")
        .entry(Head::new(b'0', "far-future").modified(1 << 34), b"");
    Nasty {
        name: "kinds",
        layers: vec![lowest.without_end()],
    }
}

fn records() -> Nasty {
    let lowest = Tarball::default()
        .pax(&[
            (b"mtime", b"1234567890.123456789"),
            (b"atime", b"1234567999.5"),
        ])
        .file("nanoseconds", "n")
        .pax(&[(b"mtime", b"-1.5")])
        .file("before-1970", "")
        .pax(&[(b"uid", b"123456"), (b"gid", b"654321"), (b"size", b"3")])
        .head(&Head::new(b'0', "pax-numbers"))
        .data(b"abc")
        .pax(&[(b"SCHILY.xattr.security.capability", CAPABILITY)])
        .entry(Head::new(b'0', "capable").mode(0o755).owner(12, 13), b"#!")
        .pax(&[
            (b"SCHILY.xattr.user.one", b"1\0binary\xff"),
            (b"SCHILY.xattr.user.empty", b""),
            (b"SCHILY.xattr.trusted.overlay.opaque", b"y"),
        ])
        .file("attributed", "")
        .pax(&[(b"SCHILY.xattr.user.on-dir", b"dir")])
        .dir("attributed-dir")
        .pax(&[(b"SCHILY.xattr.user.on-link", b"ignored")])
        .head(&Head::new(b'2', "attributed-link").to("x"))
        .pax(&[(b"LIBARCHIVE.xattr.user.other", b"aWdub3JlZA==")])
        .file("other-attributes", "")
        .global(&[(b"comment", b"of all"), (b"uid", b"99")])
        .file("after-global", "");
    Nasty {
        name: "records",
        layers: vec![lowest.without_end()],
    }
}

fn names() -> Nasty {
    let long = "long/".repeat(60) + "name";
    let very_long = format!("{}/{}", "d".repeat(255), "f".repeat(255));
    let mut ustar = Head::new(b'0', "name-after-prefix");
    ustar.mode = 0o600;
    let lowest = Tarball::default()
        .file("new\nline", "1")
        .file(b"not-utf-8-\xff\xfe", "2")
        .file(" spaces \t and \\ and \"", "3")
        .file("a//b/./c/../d", "4")
        .entry(
            Head::new(b'L', "././@LongLink"),
            format!("{long}\0").as_bytes(),
        )
        .file("cut", "5")
        .pax(&[(b"path", very_long.as_bytes())])
        .file("cut", "6")
        .entry(
            Head::new(b'K', "././@LongLink"),
            format!("{long}\0").as_bytes(),
        )
        .entry(Head::new(b'L', "././@LongLink"), b"gnu-hard-link")
        .head(&Head::new(b'1', "cut").to("cut"))
        .pax(&[(b"linkpath", "t".repeat(3000).as_bytes())])
        .head(&Head::new(b'2', "long-target").to("cut"))
        .pax(&[(b"path", b""), (b"comment", "c".repeat(100_000).as_bytes())])
        .file("empty-path-record", "7")
        .entry(Head::new(b'0', ".wh"), b"no whiteout")
        .file("...", "8")
        .entry(ustar, b"9");
    Nasty {
        name: "names",
        layers: vec![lowest.end()],
    }
}

fn upper_layers() -> Nasty {
    let lowest = Tarball::default()
        .entry(Head::new(b'5', "tmp").mode(0o1777).owner(7, 7), b"")
        .pax(&[(b"SCHILY.xattr.user.kept", b"yes")])
        .entry(Head::new(b'5', "etc").mode(0o751).owner(1, 2), b"")
        .entry(Head::new(b'5', "etc/deep").mode(0o711).owner(3, 4), b"")
        .entry(Head::new(b'5', "etc/deep/er").mode(0o700).owner(5, 6), b"")
        .file("etc/deep/er/kept", "kept")
        .file("etc/hidden", "hidden")
        .file("gone/a", "a")
        .file("gone/b", "b")
        .file("opaque/old", "old")
        .file("was-file", "file")
        .dir("usr/lib")
        .head(&Head::new(b'2', "lib").to("usr/lib"))
        .file("dir-to-link/x", "x")
        .entry(Head::new(b'5', "usr/lib/perl").mode(0o750).owner(8, 9), b"");
    let second = Tarball::default()
        .file("tmp/from-above", "1")
        .file("etc/deep/er/new", "2")
        .file("etc/.wh.hidden", "")
        .entry(Head::new(b'0', ".wh.gone").owner(11, 12), b"with content")
        .file("opaque/new", "new")
        .file("opaque/.wh..wh..opq", "")
        .file("opaque/implicit/below", "")
        .file(".wh.was-file", "")
        .file(".wh.never-was", "")
        .file("no-entry/for/this", "3")
        .entry(
            Head::new(b'5', "no-entry/for")
                .mode(0o710)
                .owner(2, 2)
                .modified(5),
            b"",
        )
        .head(&Head::new(b'2', "dir-to-link").to("tmp"))
        .head(&Head::new(b'2', "link-to-new").to("made/by/link"))
        .file("link-to-new/file", "4");
    let third = Tarball::default()
        .file("gone/back", "5")
        .file("implicit/and/replaced", "6")
        .file("implicit", "a file in the end")
        .file("tmp/again", "6")
        .file("lib/through-directory", "7")
        .file("usr/lib/perl/x", "8")
        .file("etc/deep/er/.wh.kept", "")
        .entry(Head::new(b'5', "was-file").mode(0o707), b"")
        .head(&Head::new(b'1', "etc/linked").to("tmp/again"));
    Nasty {
        name: "upper-layers",
        layers: vec![lowest.end(), second.end(), third.end()],
    }
}

fn replaced() -> Nasty {
    let lowest = Tarball::default()
        .file("twice", "first")
        .entry(Head::new(b'0', "twice").mode(0o600), b"second, and longer")
        .file("file-then-dir", "f")
        .entry(Head::new(b'5', "file-then-dir").mode(0o701), b"")
        .file("file-then-dir/in", "in")
        .head(&Head::new(b'2', "link-then-file").to("twice"))
        .file("link-then-file", "its own")
        .head(&Head::new(b'2', "link-then-dir").to("file-then-dir"))
        .file("link-then-dir/through", "t")
        .dir("link-then-dir")
        .file("link-then-dir/inside", "i")
        .entry(Head::new(b'5', "merged").mode(0o700), b"")
        .file("merged/kept", "k")
        .entry(
            Head::new(b'5', "merged")
                .mode(0o755)
                .owner(4, 4)
                .modified(9),
            b"",
        )
        .file("hard", "h")
        .head(&Head::new(b'1', "hard-2").to("hard"))
        .file("hard", "replaced, so that the other keeps what was")
        .file("removed", "r")
        .file(".wh.removed", "")
        .file("cleared/implicit/x", "x")
        .dir("cleared/entry")
        .file("cleared/entry/y", "y")
        .file("cleared/.wh..wh..opq", "")
        .file("cleared/after", "z")
        .head(&Head::new(b'6', "pipe-then-file"))
        .file("pipe-then-file", "f")
        .head(&Head::new(b'3', "dev-then-link").device(1, 5))
        .head(&Head::new(b'2', "dev-then-link").to("hard"));
    Nasty {
        name: "replaced",
        layers: vec![lowest.end()],
    }
}

fn sparse() -> Nasty {
    let in_data = |map: &str, data: &[u8]| {
        let mut body = map.as_bytes().to_vec();
        body.resize(512, 0);
        body.extend_from_slice(data);
        body
    };
    let lowest = Tarball::default()
        .pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"sparse-1.0"),
            (b"GNU.sparse.realsize", b"3000000"),
        ])
        .file(
            "GNUSparseFile.0/x",
            in_data("2\n4096\n5\n2000000\n3\n", b"helloabc"),
        )
        .pax(&[
            (b"GNU.sparse.major", b"0"),
            (b"GNU.sparse.minor", b"1"),
            (b"GNU.sparse.name", b"sparse-0.1"),
            (b"GNU.sparse.size", b"100"),
            (b"GNU.sparse.numblocks", b"2"),
            (b"GNU.sparse.map", b"0,3,90,10"),
        ])
        .file("GNUSparseFile.0/y", b"abc0123456789")
        .pax(&[
            (b"GNU.sparse.size", b"10"),
            (b"GNU.sparse.numblocks", b"1"),
            (b"GNU.sparse.offset", b"5"),
            (b"GNU.sparse.numbytes", b"5"),
        ])
        .file("sparse-0.0", b"01234")
        .pax(&[
            (b"GNU.sparse.major", b"1"),
            (b"GNU.sparse.minor", b"0"),
            (b"GNU.sparse.name", b"all-hole"),
            (b"GNU.sparse.realsize", b"70000"),
        ])
        .file("GNUSparseFile.0/z", in_data("0\n", b""))
        .file("after", "after");
    Nasty {
        name: "sparse",
        layers: vec![lowest.end()],
    }
}

fn many() -> Nasty {
    let mut lowest = Tarball::default().file("huge", vec![b'z'; 20_000_000]);
    for number in 0..3000 {
        let size = number % 3000;
        lowest = lowest.file(format!("many/{}/{number}", number % 40), vec![b'm'; size]);
    }
    let deep = "deep/".repeat(200);
    let mut upper = Tarball::default().pax(&[(b"path", format!("{deep}file").as_bytes())]);
    upper = upper.file("x", "at the bottom");
    for number in (0..3000).step_by(7) {
        upper = upper.file(format!("many/{}/.wh.{number}", number % 40), "");
    }
    Nasty {
        name: "many",
        layers: vec![lowest.end(), upper.end()],
    }
}
