//! What fuzzing found stays found: every target runs on its corpus, and on what a few mutations make of it.
//!
//! `make fuzz TARGET=untar SECONDS=600` runs one for long, with a compiler that sees which way the input took.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    reason = "in a test a panic is the report"
)]

#[path = "../../fuzz/targets/mod.rs"]
#[allow(unreachable_pub, reason = "shared with the program for cargo-fuzz")]
mod targets;

use std::collections::BTreeSet;
use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};

/// Mutated inputs per target.
const MUTATIONS: u64 = 2_000;
/// The same for targets that work on the disk.
const SLOW_MUTATIONS: u64 = 150;
const SLOW: [&str; 2] = ["untar", "hosts"];
/// Mutations of one input, one upon the other.
const MOST_CHANGES: usize = 4;
/// Largest input that is mutated, in bytes.
const MOST_BYTES: usize = 64 * 1024;
/// Most bytes of all corpora together: they are part of every checkout.
const MOST_CORPUS_BYTES: u64 = 1 << 20;
/// Pieces that mean something somewhere.
const TOKENS: [&[u8]; 16] = [
    b"\0",
    b"\n\n",
    b"{}",
    b"[]",
    b"null",
    b"\"",
    b"-1",
    b"18446744073709551616",
    b"1e400",
    b"../",
    b"/",
    b"\xff\xfe",
    b"%",
    b"99999999999999999999",
    b": ",
    b",",
];

fn corpus() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("fuzz/corpus")
}

/// The inputs of a target, in an order that is the same everywhere.
fn inputs(name: &str) -> Vec<Vec<u8>> {
    let folder = corpus().join(name);
    let files =
        fs::read_dir(&folder).unwrap_or_else(|error| panic!("{}: {error}", folder.display()));
    let mut inputs: Vec<_> = files
        .map(|file| fs::read(file.unwrap().path()).unwrap())
        .collect();
    inputs.sort();
    inputs
}

fn run(name: &str, target: targets::Target, input: &[u8]) {
    if catch_unwind(AssertUnwindSafe(|| target(input))).is_err() {
        panic!(
            "target {name} fails on {:?}: {input:?}",
            String::from_utf8_lossy(input)
        );
    }
}

/// SplitMix64: the same numbers on every machine.
struct Random(u64);

impl Random {
    fn below(&mut self, end: usize) -> usize {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        usize::try_from((z ^ (z >> 31)) % (end.max(1) as u64)).unwrap()
    }

    fn change(&mut self, input: &mut Vec<u8>, others: &[Vec<u8>]) {
        let at = self.below(input.len() + 1);
        let end = (at + self.below(16)).min(input.len());
        match self.below(6) {
            0 if at < input.len() => input[at] ^= 1 << self.below(8),
            1 if at < input.len() => input[at] = u8::try_from(self.below(256)).unwrap(),
            2 => drop(input.drain(at..end)),
            3 => {
                let again = input[at..end].to_vec();
                input.splice(at..at, again);
            }
            4 => {
                let other = &others[self.below(others.len())];
                let from = self.below(other.len() + 1);
                input.truncate(at);
                input.extend_from_slice(&other[from..]);
            }
            _ => {
                let token = TOKENS[self.below(TOKENS.len())];
                input.splice(at..end, token.iter().copied());
            }
        }
        input.truncate(MOST_BYTES);
    }
}

fn holds(name: &str) {
    let (_, target) = targets::ALL
        .into_iter()
        .find(|(known, _)| *known == name)
        .unwrap();
    let inputs = inputs(name);
    assert!(!inputs.is_empty(), "target {name} has no corpus");
    for input in &inputs {
        run(name, target, input);
    }
    let mutations = if SLOW.contains(&name) {
        SLOW_MUTATIONS
    } else {
        MUTATIONS
    };
    for number in 0..mutations {
        let mut random = Random(number);
        let mut input = inputs[random.below(inputs.len())].clone();
        for _ in 0..=random.below(MOST_CHANGES) {
            random.change(&mut input, &inputs);
        }
        run(name, target, &input);
    }
}

macro_rules! every_target {
    ($($name:ident),+ $(,)?) => {
        $(#[test]
        fn $name() {
            holds(stringify!($name));
        })+

        #[test]
        fn every_target_is_run_and_has_a_corpus_and_all_of_them_are_small() {
            let run = BTreeSet::from([$(stringify!($name)),+]);
            assert_eq!(run, targets::ALL.map(|(name, _)| name).into());
            let mut bytes = 0;
            for folder in fs::read_dir(corpus()).unwrap() {
                let folder = folder.unwrap();
                assert!(run.contains(folder.file_name().to_str().unwrap()), "{folder:?} is of no target");
                bytes += fs::read_dir(folder.path()).unwrap().map(|file| file.unwrap().metadata().unwrap().len()).sum::<u64>();
            }
            assert!(bytes < MOST_CORPUS_BYTES, "{bytes} bytes");
        }
    };
}

every_target!(
    manifest,
    rule,
    message,
    webhook,
    oidc,
    document,
    headers,
    token,
    hosts,
    docker_config,
    provider,
    settings,
    text,
    inflate,
    untar,
);
