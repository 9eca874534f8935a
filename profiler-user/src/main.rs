//! The `greenscope` command.
fn main() {}
