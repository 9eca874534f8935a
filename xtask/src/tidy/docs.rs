//! What the documents say of the tree: files that exist, dependencies with reasons.

use super::{Breach, Tree, source::Source};

/// Where each dependency has its line.
const DEPENDENCIES: &str = "docs/dependencies.md";

/// Folders and files at the top; a mention that begins so is of the tree.
const TOP: [&str; 10] = [
    ".ci/",
    ".cargo/",
    "deploy/",
    "docs/",
    "profiler-common/",
    "profiler-ebpf/",
    "profiler-user/",
    "proto/",
    "tests/",
    "xtask/",
];

/// Files of the tree that stand at its top.
const TOP_FILES: [&str; 8] = [
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "Cargo.lock",
    "Cargo.toml",
    "LICENSE-APACHE",
    "LICENSE-GPL-2.0",
    "README.md",
    "clippy.toml",
];

/// A document or a comment that sends the reader to a file that is not there.
pub(super) fn mentioned_files_exist(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &tree.sources {
        let is_document = source.path.ends_with(".md");
        if !is_document && !source.path.ends_with(".rs") && !source.path.ends_with(".toml") {
            continue;
        }
        for (number, line) in source.text.lines().enumerate() {
            let mut mentions = Vec::new();
            if is_document {
                mentions.extend(links(line).map(|link| resolve(&source.path, link)));
                mentions.extend(quoted(line).filter_map(of_the_tree));
            } else if let Some(comment) = comment(&source.path, line) {
                mentions.extend(comment.split([' ', '(', ')', ',', ';', '`', '"']).filter_map(document));
            }
            for mention in mentions.iter().filter(|mention| !tree.has(mention)) {
                breaches.push(source.breach(number, format!("`{mention}` is not in the tree")));
            }
        }
    }
    breaches
}

/// Targets of `[text](target)` that are files.
fn links(line: &str) -> impl Iterator<Item = &str> {
    line.split("](")
        .skip(1)
        .filter_map(|rest| rest.split([')', ' ']).next())
        .map(|target| target.split('#').next().unwrap_or_default())
        .filter(|target| !target.is_empty() && !target.contains("://") && !target.starts_with("mailto:"))
}

/// A link as a path of the tree: relative to the document, or to the top with `/`.
fn resolve(document: &str, link: &str) -> String {
    if let Some(path) = link.strip_prefix('/') {
        return path.to_owned();
    }
    let mut parts: Vec<&str> = document.split('/').collect();
    parts.pop();
    for part in link.split('/') {
        match part {
            "." | "" => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    parts.join("/")
}

/// What stands between backticks.
fn quoted(line: &str) -> impl Iterator<Item = &str> {
    line.split('`').skip(1).step_by(2)
}

/// A quoted word that is a path of the tree, without `:12` behind it.
fn of_the_tree(word: &str) -> Option<String> {
    let path = word.split(':').next().unwrap_or_default();
    let is_ours = TOP.iter().any(|top| path.starts_with(top)) || TOP_FILES.contains(&path);
    let is_plain = path.chars().all(|c| c.is_alphanumeric() || "/._-".contains(c));
    (is_ours && is_plain).then(|| path.to_owned())
}

/// The comment of a line of Rust or TOML.
fn comment<'line>(path: &str, line: &'line str) -> Option<&'line str> {
    let mark = if path.ends_with(".rs") { "//" } else { "#" };
    line.split_once(mark).map(|(_, comment)| comment)
}

/// A word of a comment that is a document of ours.
fn document(word: &str) -> Option<String> {
    let word = word.trim_end_matches(['.', ':']);
    let is_document = word.ends_with(".md") && (word.starts_with("docs/") || TOP_FILES.contains(&word));
    is_document.then(|| word.to_owned())
}

/// A dependency of the workspace without its line in docs/dependencies.md, or a
/// line without its dependency.
pub(super) fn dependencies_are_explained(tree: &Tree) -> Vec<Breach> {
    let Some(manifest) = tree.text("Cargo.toml") else { return Vec::new() };
    let dependencies: Vec<(usize, &str)> = section(manifest, "[workspace.dependencies]")
        .filter(|(_, line)| !line.contains("path ="))
        .filter_map(|(number, line)| Some((number, line.split_once('=')?.0.trim())))
        .collect();
    let rows: Vec<(usize, Vec<&str>)> = tree.text(DEPENDENCIES).map(rows).unwrap_or_default();
    let mut breaches = Vec::new();
    for (number, name) in &dependencies {
        let row = rows.iter().find(|(_, cells)| cells.first() == Some(name));
        if row.is_none_or(|(_, cells)| cells.len() < 4 || cells.iter().any(|cell| cell.is_empty())) {
            let what = format!("`{name}` needs a line in {DEPENDENCIES}: what for, why not std, licence");
            breaches.push(manifest.breach(*number, what));
        }
    }
    for (number, cells) in &rows {
        let name = cells.first().copied().unwrap_or_default();
        if !dependencies.iter().any(|(_, known)| *known == name)
            && let Some(source) = tree.text(DEPENDENCIES)
        {
            breaches.push(source.breach(*number, format!("`{name}` is no dependency of the workspace")));
        }
    }
    breaches
}

/// Rows of tables whose first cell is a name in backticks, as cells.
fn rows(source: &Source) -> Vec<(usize, Vec<&str>)> {
    let mut rows = Vec::new();
    for (number, line) in source.text.lines().enumerate() {
        let Some(line) = line.trim().strip_prefix('|').and_then(|line| line.strip_suffix('|')) else {
            continue;
        };
        let mut cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let name = cells.first().and_then(|cell| cell.strip_prefix('`')?.strip_suffix('`'));
        if let (Some(name), Some(first)) = (name, cells.first_mut()) {
            *first = name;
            rows.push((number, cells));
        }
    }
    rows
}

/// The lines of a manifest's section that say something.
fn section<'source>(
    manifest: &'source Source,
    title: &str,
) -> impl Iterator<Item = (usize, &'source str)> + use<'source> {
    let lines = manifest.text.lines().enumerate().map(|(number, line)| (number, line.trim()));
    let title = title.to_owned();
    let mut inside = false;
    lines.filter(move |(_, line)| {
        if line.starts_with('[') {
            inside = *line == title;
            return false;
        }
        inside && !line.is_empty() && !line.starts_with('#')
    })
}

/// A crate that names a version by itself: there is one of each, at the top.
pub(super) fn members_inherit_dependencies(tree: &Tree) -> Vec<Breach> {
    let mut breaches = Vec::new();
    for source in &tree.sources {
        if source.path == "Cargo.toml" || !source.path.ends_with("Cargo.toml") {
            continue;
        }
        for title in ["[dependencies]", "[dev-dependencies]", "[build-dependencies]"] {
            for (number, line) in section(source, title) {
                let name = line.split(['=', '.']).next().unwrap_or_default().trim();
                if !line.contains("workspace = true") {
                    let what = format!("`{name}` must say `workspace = true`: versions stand at the top");
                    breaches.push(source.breach(number, what));
                }
            }
        }
    }
    breaches
}

#[cfg(test)]
mod tests {
    use super::super::{found, tree};
    use super::*;

    fn mentions(path: &str, text: &str) -> Vec<String> {
        let tree = tree(&[(path, text), ("docs/json-format.md", ""), ("xtask/src/run.rs", "//! X.\n")]);
        mentioned_files_exist(&tree)
            .iter()
            .map(|breach| breach.what.split('`').nth(1).unwrap_or_default().to_owned())
            .collect()
    }

    #[test]
    fn links_must_lead_somewhere() {
        assert_eq!(mentions("docs/a.md", "[x](json-format.md#one) [y](gone.md)"), ["docs/gone.md"]);
        assert_eq!(mentions("README.md", "![x](docs/json-format.md) [y](docs/gone.md)"), ["docs/gone.md"]);
        assert_eq!(mentions("docs/a.md", "[x](../xtask/src/run.rs) [y](../gone)"), ["gone"]);
        assert_eq!(mentions("docs/a.md", "[x](https://a.b/c) [y](#part)"), [""; 0]);
    }

    #[test]
    fn quoted_paths_must_exist() {
        let line =
            "`xtask/src/run.rs:12`, `xtask/src/gone.rs`, `docs/`, `docs/*.md`, `target/x`, `ARCHITECTURE.md`";
        assert_eq!(mentions("docs/a.md", line), ["xtask/src/gone.rs", "ARCHITECTURE.md"]);
    }

    #[test]
    fn comments_name_documents_that_exist() {
        // Put together, so that this file itself mentions none.
        let gone = ["docs", "gone.md"].join("/");
        let text = format!("//! X ({gone}, \"A\").\nlet x = \"docs/other.md\"; // docs/json-format.md.\n");
        assert_eq!(mentions("proto/src/lib.rs", &text), [gone.as_str()]);
        assert_eq!(mentions("Cargo.toml", &format!("# why: {gone}\n")), [gone.as_str()]);
    }

    fn explained(table: &str) -> Vec<String> {
        let manifest =
            "[workspace.dependencies]\n# why\nclap = \"4\"\nown = { path = \"own\" }\n[other]\nx = 1\n";
        let tree = tree(&[("Cargo.toml", manifest), (DEPENDENCIES, table)]);
        dependencies_are_explained(&tree).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_dependency_has_its_line() {
        assert_eq!(explained("| `clap` | commands | std has none | MIT |\n"), [""; 0]);
        for table in ["", "| `clap` | commands | | MIT |\n", "| `clap` | commands | MIT |\n"] {
            let breaches = explained(table);
            assert!(
                breaches.len() == 1 && breaches.iter().all(|what| what.contains("`clap` needs")),
                "{breaches:?}"
            );
        }
    }

    #[test]
    fn a_line_has_its_dependency() {
        let table = "| `clap` | commands | std has none | MIT |\n| `gone` | a | b | c |\n";
        assert_eq!(explained(table), [format!("{DEPENDENCIES}:2: `gone` is no dependency of the workspace")]);
    }

    #[test]
    fn versions_stand_at_the_top() {
        let path = "xtask/Cargo.toml";
        let text = "[dependencies]\nclap = { workspace = true }\n\n[features]\nx = []\n";
        assert_eq!(found(members_inherit_dependencies, path, text), [""; 0]);
        for title in ["dependencies", "dev-dependencies", "build-dependencies"] {
            let text = format!("[{title}]\nclap = \"4\"\n");
            assert_eq!(found(members_inherit_dependencies, path, &text).len(), 1, "{text}");
        }
    }
}
