//! greenscope's build, checks and measurements: `cargo xtask COMMAND`.
#![forbid(unsafe_code)]
fn main() {}
