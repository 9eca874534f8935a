//! greenscope on live targets, compared with the targets' own books.
//!
//! `cargo xtask test` prepares the Pythons and runs this as root. By hand:
//! `cargo test -p tests --test live -- [WORD..]`.
#![forbid(unsafe_code)]

mod children;
mod clocks;
mod codes;
mod containers;
mod departures;
mod ends;
mod interpreters;
mod labels;
mod lives;
mod loops;
mod names;
mod namespaces;
mod oap;
mod oracle;
mod outputs;
mod prefork;
mod programs;
mod queued;
mod refusals;
mod service;
mod silent;
mod sleeps;
mod stacks;
mod starved;
mod states;
mod switches;
mod threads;
mod unticked;
mod waits;
mod whose;
mod wired;

use std::process::ExitCode;

use tests::runner::Cases;

fn main() -> ExitCode {
    let mut cases = Cases::default();
    switches::cases(&mut cases);
    waits::cases(&mut cases);
    queued::cases(&mut cases);
    clocks::cases(&mut cases);
    starved::cases(&mut cases);
    loops::cases(&mut cases);
    threads::cases(&mut cases);
    oracle::cases(&mut cases);
    sleeps::cases(&mut cases);
    stacks::cases(&mut cases);
    codes::cases(&mut cases);
    lives::cases(&mut cases);
    ends::cases(&mut cases);
    service::cases(&mut cases);
    departures::cases(&mut cases);
    children::cases(&mut cases);
    programs::cases(&mut cases);
    prefork::cases(&mut cases);
    states::cases(&mut cases);
    names::cases(&mut cases);
    labels::cases(&mut cases);
    wired::cases(&mut cases);
    whose::cases(&mut cases);
    interpreters::cases(&mut cases);
    silent::cases(&mut cases);
    namespaces::cases(&mut cases);
    containers::cases(&mut cases);
    oap::cases(&mut cases);
    outputs::cases(&mut cases);
    unticked::cases(&mut cases);
    refusals::cases(&mut cases);
    cases.run()
}
