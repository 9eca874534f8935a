//! Licences: every crate of ours names one, every dependency has one that we take.

use anyhow::Result;

use super::{Breach, Tree};
use crate::process;

/// Licences whose terms an Apache-2.0 program can meet.
///
/// CDDL-1.0 is inferno's: it binds changes to its own files, and we change none.
const TAKEN: [&str; 12] = [
    "0BSD",
    "Apache-2.0",
    "Apache-2.0 WITH LLVM-exception",
    "BSD-2-Clause",
    "BSD-3-Clause",
    "BSL-1.0",
    "CDDL-1.0",
    "ISC",
    "MIT",
    "Unicode-3.0",
    "Unlicense",
    "Zlib",
];

/// Crates in the tree of `greenscope` itself: building it is what everybody waits for.
const MOST_CRATES: usize = 140;

/// A crate of ours whose manifest names no licence.
pub(super) fn manifests_name_theirs(tree: &Tree) -> Vec<Breach> {
    tree.sources
        .iter()
        .filter(|source| source.path.ends_with("/Cargo.toml"))
        .filter(|source| !source.text.lines().any(|line| line.starts_with("license")))
        .map(|source| source.breach(0, "the manifest must name the crate's licence"))
        .collect()
}

/// Dependencies with a licence that we don't take, and too many of them.
///
/// # Errors
///
/// When cargo cannot tell the tree.
pub(super) fn of_dependencies() -> Result<Vec<Breach>> {
    let everything = crates(&["--workspace", "--edges", "normal,build,dev"])?;
    let mut breaches = untaken(&everything);
    let product = crates(&["--package", "profiler-user", "--edges", "normal"])?;
    breaches.extend(too_many(product.len()));
    Ok(breaches)
}

/// `name version|licence` of a tree, each once.
fn crates(which: &[&str]) -> Result<Vec<String>> {
    let mut cargo = process::cargo();
    cargo.args(["tree", "--locked", "--prefix", "none", "--format", "{p}|{l}"]).args(which);
    let text = process::output(&mut cargo)?;
    // `(*)` marks what was shown before.
    let mut lines: Vec<String> = text.lines().map(|line| line.replace(" (*)", "")).collect();
    lines.retain(|line| !line.is_empty());
    lines.sort();
    lines.dedup();
    Ok(lines)
}

fn untaken(crates: &[String]) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for line in crates {
        let (name, licence) = line.split_once('|').unwrap_or((line, ""));
        if !is_taken(licence) {
            let what = format!("{name} comes under `{licence}`, which is not among those that we take");
            breaches.push(Breach { path: "Cargo.lock".to_owned(), line: 1, what });
        }
    }
    breaches
}

fn too_many(count: usize) -> Option<Breach> {
    (count > MOST_CRATES).then(|| Breach {
        path: "Cargo.lock".to_owned(),
        line: 1,
        what: format!("greenscope is built of {count} crates; {MOST_CRATES} are the most"),
    })
}

/// Whether an SPDX expression leaves a choice that we take: `AND` of `OR`s, or
/// `OR` of `AND`s, with the old `/` for `OR`.
fn is_taken(expression: &str) -> bool {
    let expression = expression.trim().replace('/', " OR ");
    // `AND` binds closer, and in practice stands outside of parentheses.
    let (groups, outer_all) = if expression.contains('(') {
        (expression.split(" AND ").map(str::to_owned).collect::<Vec<_>>(), true)
    } else {
        (expression.split(" OR ").map(str::to_owned).collect(), false)
    };
    let group_is_taken = |group: &String| {
        let group = group.trim().trim_start_matches('(').trim_end_matches(')');
        let one = |name: &str| TAKEN.contains(&name.trim());
        if outer_all { group.split(" OR ").any(one) } else { group.split(" AND ").all(one) }
    };
    if outer_all { groups.iter().all(group_is_taken) } else { groups.iter().any(group_is_taken) }
}

#[cfg(test)]
mod tests {
    use super::super::found;
    use super::*;

    #[test]
    fn a_choice_that_we_take_is_enough() {
        for fine in [
            "MIT",
            "MIT/Apache-2.0",
            "MIT OR GPL-3.0-only",
            "(MIT OR GPL-3.0-only) AND Unicode-3.0",
            "Apache-2.0 WITH LLVM-exception OR MIT",
            "MIT AND ISC",
        ] {
            assert!(is_taken(fine), "{fine}");
        }
        for other in ["", "GPL-3.0-only", "MIT AND GPL-3.0-only", "(GPL-3.0-only OR AGPL-3.0-only) AND MIT"] {
            assert!(!is_taken(other), "{other}");
        }
    }

    #[test]
    fn a_dependency_is_named_with_its_licence() {
        let breaches =
            untaken(&["good v1|MIT".to_owned(), "bad v2|SSPL-1.0".to_owned(), "none v3|".to_owned()]);
        let names: Vec<&str> = breaches.iter().filter_map(|breach| breach.what.split(' ').next()).collect();
        assert_eq!(names, ["bad", "none"]);
    }

    #[test]
    fn the_number_of_crates_is_bounded() {
        assert!(too_many(MOST_CRATES).is_none());
        assert!(too_many(MOST_CRATES + 1).is_some());
    }

    #[test]
    fn a_manifest_names_a_licence() {
        let path = "proto/Cargo.toml";
        assert_eq!(found(manifests_name_theirs, path, "license.workspace = true\n"), [""; 0]);
        assert_eq!(found(manifests_name_theirs, path, "[package]\n").len(), 1);
    }

    #[test]
    fn this_trees_dependencies_are_taken() {
        let lines: Vec<String> = of_dependencies().unwrap().iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "{}", lines.join("\n"));
    }
}
