//! The commands: arguments in, exit code out.

/// A line on stderr. Who reads it may be gone, by the same Ctrl-C or hang-up that ends a recording:
/// the work goes on all the same.
macro_rules! say {
    ($($text:tt)*) => {{
        use std::io::Write as _;
        let _heard = writeln!(std::io::stderr(), $($text)*);
    }};
}

mod around;
mod backend;
mod doctor;
mod exit;
mod oap;
mod output;
mod record;
mod serving;
mod signals;

use std::{process::ExitCode, time::Instant};

use clap::{Parser, Subcommand, error::ErrorKind};

pub use exit::Failure;

/// See inside Python services that run on greenlets, from the kernel, without
/// touching them.
#[derive(Debug, Parser)]
#[command(name = "greenscope", version, max_term_width = 100)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Record where greenlets wait, and write a flame graph, folded stacks or json
    Record(Box<record::Arguments>),
    /// Say what this kernel and a process allow, and how to mend what is missing
    Doctor(doctor::Arguments),
    /// Look at the connection to SkyWalking's OAP
    Oap(Box<oap::Arguments>),
}

/// Runs the command line; `started` is when the program was.
#[must_use]
pub fn run(started: Instant) -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => return usage(&error),
    };
    let result = match arguments.command {
        Command::Record(arguments) => record::run(&arguments, started),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::Oap(arguments) => oap::run(&arguments),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            say!("greenscope: {failure}");
            failure.code()
        }
    }
}

/// Help goes out as it is; a mistake is one line.
fn usage(error: &clap::Error) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp | ErrorKind::DisplayVersion => {
            // Nowhere to print help to: nothing was lost.
            let _printed = error.print();
            ExitCode::SUCCESS
        }
        _ => {
            let text = error.to_string();
            let words: Vec<&str> = text
                .lines()
                .map(str::trim)
                .take_while(|line| !line.starts_with("Usage:"))
                // One hint is enough, and it comes last.
                .filter(|line| !line.is_empty() && !line.starts_with("For more information"))
                .collect();
            let text = words.join(" ");
            let text = text.strip_prefix("error: ").unwrap_or(&text);
            let text = if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
                "no command was given"
            } else {
                text
            };
            say!("greenscope: {text}; see greenscope --help");
            ExitCode::from(exit::USAGE)
        }
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    #[test]
    fn the_command_line_is_sound() {
        Arguments::command().debug_assert();
    }
}
