//! What greenscope wrote, read by programs that are not ours.

use std::collections::BTreeMap;
use std::process::Command;

use anyhow::{Context, Result, ensure};

use crate::place::{Python, reader_program, workspace};
use crate::recording::run;

/// Checks json against docs/json-format.schema.json.
///
/// # Errors
///
/// Where it departs from the schema, by path.
pub fn validate(python: &Python, json: &str) -> Result<()> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording.json");
    std::fs::write(&file, json)?;
    let output = run(Command::new(&python.exe)
        .arg(reader_program("validate.py"))
        .arg(workspace().join("docs/json-format.schema.json"))
        .arg(file))?;
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    ensure!(output.status.success(), "{said}{}", String::from_utf8_lossy(&output.stderr));
    Ok(())
}

/// The titles of a flame graph's boxes, read by an XML parser.
///
/// # Errors
///
/// When it is no SVG.
pub fn titles(python: &Python, svg: &str) -> Result<Vec<String>> {
    let directory = tempfile::tempdir()?;
    let file = directory.path().join("recording.svg");
    std::fs::write(&file, svg)?;
    let output = run(Command::new(&python.exe).arg(reader_program("titles.py")).arg(file))?;
    ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).context("the titles")
}

/// Folded stacks: the names, root first, and the number behind them.
///
/// # Errors
///
/// At a line of another form.
pub fn folded(text: &str) -> Result<BTreeMap<Vec<String>, u64>> {
    let mut stacks = BTreeMap::new();
    for line in text.lines() {
        let (names, number) = line.rsplit_once(' ').with_context(|| format!("no number: {line}"))?;
        let number: u64 = number.parse().with_context(|| format!("no number: {line}"))?;
        let names = names.split(';').map(str::to_owned).collect();
        ensure!(stacks.insert(names, number).is_none(), "twice: {line}");
    }
    Ok(stacks)
}

#[cfg(test)]
mod tests {
    use super::folded;

    #[test]
    fn folded_lines_are_names_and_a_number() {
        let stacks = folded("a;b c.py:3 17\nd 4\n").expect("folded");
        assert_eq!(stacks[&vec!["a".to_owned(), "b c.py:3".to_owned()]], 17);
        assert!(folded("a;b").is_err());
        assert!(folded("a 1\na 2\n").is_err());
    }
}
