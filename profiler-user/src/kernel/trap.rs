//! Functions of our own that are probed: what a trap costs here and now, and a question.

use std::{
    arch::global_asm,
    fs,
    time::{Duration, Instant},
};

use bytemuck::Zeroable as _;
use profiler_common::record::Probed;

use super::site::{Probe, Site};

// The first instruction is one that the kernel emulates, as at the real sites.
#[cfg(target_arch = "x86_64")]
global_asm!(
    ".pushsection .text.greenscope_trap,\"ax\",@progbits",
    ".globl greenscope_trap",
    "greenscope_trap:",
    "push rbp",
    "pop rbp",
    "ret",
    ".globl greenscope_ask",
    "greenscope_ask:",
    "push rbp",
    "pop rbp",
    "ret",
    ".popsection",
);
#[cfg(target_arch = "aarch64")]
global_asm!(
    ".pushsection .text.greenscope_trap,\"ax\",@progbits",
    ".globl greenscope_trap",
    "greenscope_trap:",
    "ret",
    ".globl greenscope_ask",
    "greenscope_ask:",
    "ret",
    ".popsection",
);

unsafe extern "C" {
    safe fn greenscope_trap();
    safe fn greenscope_ask(address: usize);
}

const CALLS: u32 = 200;
const ROUNDS: u32 = 9;

/// Where that function lies in our own file.
pub(super) fn site() -> Option<Site> {
    site_of(greenscope_trap as *const () as u64, Probe::Empty)
}

/// Where the function lies that asks.
pub(super) fn asking_site() -> Option<Site> {
    site_of(greenscope_ask as *const () as u64, Probe::Mapped)
}

/// Asks about the mapping at that address.
pub(super) fn ask(address: usize) {
    greenscope_ask(address);
}

fn site_of(address: u64, probe: Probe) -> Option<Site> {
    let maps = fs::read_to_string("/proc/self/maps").ok()?;
    maps.lines().find_map(|line| {
        let mut fields = line.split_ascii_whitespace();
        let (start, end) = fields.next()?.split_once('-')?;
        let start = u64::from_str_radix(start, 16).ok()?;
        let end = u64::from_str_radix(end, 16).ok()?;
        let offset = u64::from_str_radix(fields.nth(1)?, 16).ok()?;
        (start..end).contains(&address).then(|| Site {
            probe,
            path: "/proc/self/exe".into(),
            offset: address - start + offset,
            probed: Probed::zeroed(),
        })
    })
}

/// What a call of it costs: the best of a few rounds.
pub(super) fn ns_per_call() -> u64 {
    let round = || {
        let start = Instant::now();
        for _ in 0..CALLS {
            greenscope_trap();
        }
        start.elapsed()
    };
    let best = (0..ROUNDS).map(|_| round()).min().unwrap_or(Duration::ZERO);
    u64::try_from(best.as_nanos()).unwrap_or(u64::MAX) / u64::from(CALLS)
}
