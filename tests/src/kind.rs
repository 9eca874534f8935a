//! What a live case found of its kind, for the table in docs/accuracy.md.

use std::fmt::Display;

/// Prints a row of that table, which `cargo xtask accuracy` reads (xtask/src/accuracy/kinds.rs).
///
/// A case does so before it judges, so that what is wrong has its figures too.
pub fn row(what: &str, truth: impl Display, found: impl Display) {
    println!("kind\t{what}\t{truth}\t{found}");
}

/// A time as it stands there.
pub fn ms(ns: u64) -> String {
    format!("{} ms", ns / 1_000_000)
}

/// The same of what may not have been told.
pub fn ms_if_told(ns: Option<u64>) -> String {
    ns.map_or_else(|| "not told".to_owned(), ms)
}
