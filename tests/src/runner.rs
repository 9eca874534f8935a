//! Runs cases one after the other, and counts what was skipped, by name.

use std::any::Any;
use std::fmt;
use std::io::Write;
use std::panic::{self, AssertUnwindSafe};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Error, Result, anyhow};

use crate::place::{PYTHONS, Python};

/// Why a case did not run; made by [`skip`], told apart from a failure here.
#[derive(Debug)]
struct Skip(String);

impl fmt::Display for Skip {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        to.write_str(&self.0)
    }
}

impl std::error::Error for Skip {}

/// The error that ends a case as skipped, with the reason that is printed.
pub fn skip(reason: impl Into<String>) -> Error {
    Error::new(Skip(reason.into()))
}

/// So many of the slowest cases are named at the end.
const SLOWEST: usize = 10;

/// One named behaviour, to be tried once.
pub struct Case {
    name: String,
    run: Box<dyn FnOnce() -> Result<()>>,
}

/// A list of cases in the making.
#[derive(Default)]
pub struct Cases(Vec<Case>);

impl Cases {
    /// A case that needs no particular Python.
    pub fn once(&mut self, name: impl Into<String>, run: impl FnOnce() -> Result<()> + 'static) {
        self.0.push(Case { name: name.into(), run: Box::new(run) });
    }

    /// A case on each Python, `NAME/py3.12`.
    pub fn each(&mut self, name: impl Into<String>, run: impl Fn(&Python) -> Result<()> + Clone + 'static) {
        let name = name.into();
        for python in PYTHONS {
            let run = run.clone();
            self.once(format!("{name}/{python}"), move || run(&Python::find(python)?));
        }
    }

    /// Runs what the command line selects, and ends with the counts.
    ///
    /// Arguments as of libtest, where they make sense here: words select by a
    /// part of the name (`--exact`: the whole), `--skip WORD`, `--list`.
    pub fn run(self) -> ExitCode {
        let Some(wanted) = Wanted::parse(std::env::args().skip(1)) else {
            say("usage: [WORD..] [--exact] [--skip WORD] [--list]");
            return ExitCode::from(2);
        };
        let cases: Vec<Case> = self.0.into_iter().filter(|case| wanted.has(&case.name)).collect();
        if wanted.list {
            for case in &cases {
                say(&format!("{}: test", case.name));
            }
            return ExitCode::SUCCESS;
        }
        let mut passed = 0;
        let (mut failed, mut skipped, mut took) = (Vec::new(), Vec::new(), Vec::new());
        for Case { name, run } in cases {
            let began = Instant::now();
            let verdict = caught(run);
            let time = began.elapsed();
            let seconds = time.as_secs_f32();
            took.push((time, name.clone()));
            match verdict {
                Ok(()) => {
                    passed += 1;
                    say(&format!("ok    {name} ({seconds:.1} s)"));
                }
                Err(error) => match error.downcast::<Skip>() {
                    Ok(reason) => {
                        say(&format!("SKIP  {name}: {reason}"));
                        skipped.push(format!("{name}: {reason}"));
                    }
                    Err(error) => {
                        say(&format!("FAIL  {name} ({seconds:.1} s): {error:#}"));
                        failed.push(name);
                    }
                },
            }
        }
        for (time, name) in slowest(took) {
            say(&format!("slow: {name} ({:.1} s)", time.as_secs_f32()));
        }
        for name in &skipped {
            say(&format!("skipped: {name}"));
        }
        for name in &failed {
            say(&format!("failed: {name}"));
        }
        let (failures, skips) = (failed.len(), skipped.len());
        let verdict = if failures == 0 { "ok" } else { "FAILED" };
        // In libtest's words, which `cargo xtask test` counts.
        say(&format!("test result: {verdict}. {passed} passed; {failures} failed; {skips} ignored"));
        if failed.is_empty() { ExitCode::SUCCESS } else { ExitCode::FAILURE }
    }
}

/// What came of a case. One that panics has failed, and the next one runs.
fn caught(run: Box<dyn FnOnce() -> Result<()>>) -> Result<()> {
    // What it leaves is dropped; no case uses what another made.
    panic::catch_unwind(AssertUnwindSafe(run))
        .unwrap_or_else(|payload| Err(anyhow!("it panicked: {}", words(payload.as_ref()))))
}

/// What a panic says.
fn words(payload: &(dyn Any + Send)) -> &str {
    let text = payload.downcast_ref::<String>().map(String::as_str);
    text.or_else(|| payload.downcast_ref().copied()).unwrap_or("no words")
}

/// The cases that took longest, the longest first.
fn slowest(mut took: Vec<(Duration, String)>) -> Vec<(Duration, String)> {
    took.sort_by(|(one, _), (other, _)| other.cmp(one));
    took.truncate(SLOWEST);
    took
}

/// What the command line asks for.
#[derive(Debug, Default)]
struct Wanted {
    words: Vec<String>,
    without: Vec<String>,
    exact: bool,
    list: bool,
}

impl Wanted {
    fn parse(mut arguments: impl Iterator<Item = String>) -> Option<Self> {
        let mut wanted = Self::default();
        while let Some(argument) = arguments.next() {
            match argument.as_str() {
                "--exact" => wanted.exact = true,
                "--list" => wanted.list = true,
                "--skip" => wanted.without.push(arguments.next()?),
                // Cases always run one by one, and always show their output.
                "--nocapture" | "--show-output" | "--quiet" | "-q" => {}
                "--test-threads" | "--format" | "--color" => {
                    arguments.next()?;
                }
                option if option.starts_with("--test-threads=") => {}
                option if option.starts_with('-') => return None,
                word => wanted.words.push(word.to_owned()),
            }
        }
        Some(wanted)
    }

    fn has(&self, name: &str) -> bool {
        let hit = |word: &String| {
            if self.exact { name == word } else { name.contains(word) }
        };
        (self.words.is_empty() || self.words.iter().any(hit))
            && !self.without.iter().any(|word| name.contains(word))
    }
}

/// Prints a line past any capture; a broken pipe is nobody's failure.
fn say(line: &str) {
    let _written = writeln!(std::io::stdout().lock(), "{line}");
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{SLOWEST, Wanted, caught, skip, slowest};

    fn wanted(line: &str) -> Wanted {
        Wanted::parse(line.split_whitespace().map(str::to_owned)).expect("a command line")
    }

    #[test]
    fn words_select_by_a_part_of_the_name() {
        assert!(wanted("").has("switches/py3.11"));
        assert!(wanted("waits switches").has("switches/py3.11"));
        assert!(!wanted("waits").has("switches/py3.11"));
        assert!(!wanted("switches --skip 3.11").has("switches/py3.11"));
        assert!(!wanted("--exact switches").has("switches/py3.11"));
        assert!(wanted("--exact switches/py3.11").has("switches/py3.11"));
    }

    #[test]
    fn an_unknown_option_is_refused() {
        assert!(Wanted::parse(["--fast".to_owned()].into_iter()).is_none());
    }

    #[test]
    fn a_panic_fails_its_case_only() {
        let error = caught(Box::new(|| panic!("at {}", 7))).expect_err("a panic is no success");
        assert_eq!(error.to_string(), "it panicked: at 7");
        assert!(caught(Box::new(|| Ok(()))).is_ok());
    }

    #[test]
    fn the_slowest_come_first() {
        let took = (0..20).map(|seconds| (Duration::from_secs(seconds), seconds.to_string())).collect();
        let named: Vec<_> = slowest(took).into_iter().map(|(_, name)| name).collect();
        assert_eq!(named.len(), SLOWEST);
        assert_eq!(named[0], "19");
    }

    #[test]
    fn a_skip_is_not_a_failure_even_with_context() {
        let error = skip("no root").context("while starting");
        assert!(error.downcast::<super::Skip>().is_ok());
    }
}
