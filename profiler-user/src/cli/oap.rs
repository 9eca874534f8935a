//! `greenscope oap`: the connection to SkyWalking's OAP.

use clap::{Args, Subcommand};

use super::{Failure, backend::Backend};
use crate::export::oap::{
    check::{self, Checked},
    rest::Rest,
    spool,
};

#[derive(Debug, Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Connect, register nothing, and say what works: TLS, token, services, version and clock
    Check(Check),
}

#[derive(Debug, Args)]
struct Check {
    #[command(flatten)]
    backend: Backend,
    /// OAP's REST port, for its version and its clock
    #[arg(long, value_name = "http://HOST:12800")]
    oap_rest: Option<String>,
}

pub(super) fn run(arguments: &Arguments) -> Result<(), Failure> {
    let Command::Check(arguments) = &arguments.command;
    let rest = arguments.oap_rest.as_deref().map(Rest::of).transpose()?;
    let config = arguments.backend.config()?.ok_or_else(|| {
        Failure::usage("no backend is named; give --oap HOST:11800, or set GREENSCOPE_OAP_ADDR")
    })?;
    if let Some(tls) = &config.tls {
        // What is wrong with a file is the command line's fault, not the backend's.
        let _usable = crate::export::oap::tls::client(tls)?;
    }
    if let Some(directory) = &config.spool {
        spool::can_be(directory).map_err(|error| Failure::usage(error.to_string()))?;
    }
    let checked = check::run(&config, rest.as_ref()).map_err(|error| {
        Failure::failed(format!("no event loop: {error}; look at the limits of open files"))
    })?;
    for checked in &checked {
        println!("{}", checked.title);
        for line in &checked.lines {
            match &line.found {
                Ok(text) => println!("  {:<12} {text}", line.what),
                Err(text) => println!("  {:<12} NO: {text}", line.what),
            }
        }
    }
    let not =
        checked.iter().filter(|checked| !checked.works()).map(|checked: &Checked| checked.title.as_str());
    let not: Vec<&str> = not.collect();
    if not.is_empty() {
        return Ok(());
    }
    Err(Failure::failed(format!("not everything works at {}; see above", not.join(", "))))
}
