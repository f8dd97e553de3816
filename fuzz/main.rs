//! One program for all targets: `TARGET` says which.
#![no_main]

use std::sync::LazyLock;

mod targets;

static TARGET: LazyLock<targets::Target> = LazyLock::new(|| {
    let name = std::env::var("TARGET").unwrap_or_default();
    let target = targets::ALL.iter().find(|(known, _)| *known == name);
    let known = targets::ALL.map(|(known, _)| known).join(" ");
    target
        .unwrap_or_else(|| panic!("TARGET={name:?} is not one of: {known}"))
        .1
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| TARGET(data));
