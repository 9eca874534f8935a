//! `tidy`: the rules of the house, checked over the text of the tree.
//!
//! A rule is a function from the tree to its breaches, so that each is tried by a
//! test on a tree that breaks it. `cargo test -p xtask` runs them on this tree too.

mod docs;
mod files;
mod licences;
mod paths;
mod rooms;
mod source;

use std::{fmt, fs, process::ExitCode};

use anyhow::{Context as _, Result};

use self::source::Source;
use crate::workspace;

/// Top-level entries that are not ours to check.
const LEFT_OUT: [&str; 1] = ["target"];

/// Hidden folders that are: the others belong to tools.
const HIDDEN: [&str; 2] = [".ci", ".cargo"];

/// The files of the tree that are text, and the names of all others.
pub(crate) struct Tree {
    /// Text, with its path in the tree.
    sources: Vec<Source>,
    /// Every path in the tree, text or not.
    paths: Vec<String>,
}

/// One place where a rule is broken.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Breach {
    path: String,
    /// From 1.
    line: usize,
    what: String,
}

impl fmt::Display for Breach {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { path, line, what } = self;
        write!(f, "{path}:{line}: {what}")
    }
}

/// A rule of the house.
type Rule = fn(&Tree) -> Vec<Breach>;

/// Every rule that the text of the tree decides.
const RULES: [Rule; 15] = [
    rooms::imports,
    rooms::every_room_is_described,
    rooms::unsafe_is_forbidden,
    files::first_line_says_the_job,
    files::length_is_bounded,
    files::names_mean_something,
    files::whitespace_ends_no_line,
    files::no_test_is_ignored,
    files::nothing_sleeps,
    files::no_lint_is_allowed,
    files::no_machine_is_named,
    docs::mentioned_files_exist,
    docs::dependencies_are_explained,
    docs::members_inherit_dependencies,
    licences::manifests_name_theirs,
];

impl Tree {
    /// The tree that `cargo xtask` was called in.
    ///
    /// # Errors
    ///
    /// When a file cannot be listed or read.
    fn read() -> Result<Self> {
        let root = workspace::root();
        let mut files = Vec::new();
        let entries = fs::read_dir(&root).with_context(|| format!("cannot list {}", root.display()))?;
        for entry in entries {
            let entry = entry?;
            let name = entry.file_name().to_string_lossy().into_owned();
            let hidden = name.starts_with('.') && !HIDDEN.contains(&name.as_str());
            if hidden || LEFT_OUT.contains(&name.as_str()) {
                continue;
            }
            if entry.file_type()?.is_dir() {
                files.extend(workspace::files_below(&entry.path())?);
            } else {
                files.push(entry.path());
            }
        }
        files.sort();
        let mut tree = Self { sources: Vec::new(), paths: Vec::new() };
        for file in files {
            let path = workspace::relative(&root, &file);
            tree.paths.push(path.clone());
            let bytes = fs::read(&file).with_context(|| format!("cannot read {path}"))?;
            // What is not UTF-8 is data: objects, recorded memory, pictures.
            if let Ok(text) = String::from_utf8(bytes) {
                tree.sources.push(Source::new(path, text));
            }
        }
        Ok(tree)
    }

    /// The Rust files.
    fn rust(&self) -> impl Iterator<Item = &Source> {
        self.sources.iter().filter(|source| source.path.ends_with(".rs"))
    }

    /// One file's text.
    fn text(&self, path: &str) -> Option<&Source> {
        self.sources.iter().find(|source| source.path == path)
    }

    /// Whether there is a file or a folder of that path.
    fn has(&self, path: &str) -> bool {
        let path = path.trim_end_matches('/');
        self.paths
            .iter()
            .any(|known| known == path || known.strip_prefix(path).is_some_and(|rest| rest.starts_with('/')))
    }
}

/// Check every rule and name each breach.
///
/// # Errors
///
/// When the tree cannot be read or cargo cannot tell the dependencies.
pub(crate) fn run() -> Result<ExitCode> {
    let mut breaches = breaches(&Tree::read()?);
    breaches.extend(licences::of_dependencies()?);
    for breach in &breaches {
        println!("{breach}");
    }
    if breaches.is_empty() {
        println!("tidy");
        return Ok(ExitCode::SUCCESS);
    }
    println!("{} breaches of the house's rules (ARCHITECTURE.md, CONTRIBUTING.md)", breaches.len());
    Ok(ExitCode::FAILURE)
}

fn breaches(tree: &Tree) -> Vec<Breach> {
    let mut breaches: Vec<Breach> = RULES.iter().flat_map(|rule| rule(tree)).collect();
    breaches.sort();
    breaches
}

/// A tree of these files, for the rules' tests.
#[cfg(test)]
fn tree(files: &[(&str, &str)]) -> Tree {
    Tree {
        sources: files
            .iter()
            .map(|(path, text)| Source::new((*path).to_owned(), (*text).to_owned()))
            .collect(),
        paths: files.iter().map(|(path, _)| (*path).to_owned()).collect(),
    }
}

/// The breaches of one rule in one file, as `line: what`, for the rules' tests.
#[cfg(test)]
fn found(rule: Rule, path: &str, text: &str) -> Vec<String> {
    rule(&tree(&[(path, text)])).iter().map(|breach| format!("{}: {}", breach.line, breach.what)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_tree_keeps_the_rules() {
        let breaches = breaches(&Tree::read().unwrap());
        let lines: Vec<String> = breaches.iter().map(ToString::to_string).collect();
        assert!(lines.is_empty(), "\n{}", lines.join("\n"));
    }

    #[test]
    fn a_folder_is_had_by_its_files() {
        let tree = tree(&[("docs/a.md", "")]);
        assert!(tree.has("docs") && tree.has("docs/") && tree.has("docs/a.md"));
        assert!(!tree.has("doc") && !tree.has("docs/b.md"));
    }
}
