//! The `prewarm` program: parse, build, run the role.

fn main() {}
