//! Where a library with an event loop calls the kernel to poll.

use object::{
    Object as _, ObjectSection as _, ObjectSymbol as _, ObjectSymbolTable as _, RelocationTarget, SectionKind,
};

use super::{
    elf::{Elf, HowFound},
    maps::Mapping,
    site::Site,
};

/// What loops poll with.
const POLLS: [&str; 3] = ["epoll_wait", "epoll_pwait", "epoll_pwait2"];
/// The libraries whose loops run greenlets, by a part of their paths: gevent's, asyncio's and
/// eventlet's, uvloop's.
const LIBRARIES: [&str; 4] = ["/gevent/libev/", "/gevent/libuv/", "/select.cpython-", "/uvloop/loop."];
/// Calls probed of one library.
const MOST: usize = 4;
/// `jmp *…(%rip)`, as in an entry of the procedure linkage table.
const JUMP: [u8; 2] = [0xff, 0x25];
/// How long such an entry is.
/// <https://gitlab.com/x86-psABIs/x86-64-ABI> (5.2.3, procedure linkage table)
const ENTRY_BYTES: u64 = 16;

/// Whether a library with such a loop is mapped there.
pub(super) fn is_loop(mapping: &Mapping) -> bool {
    LIBRARIES.iter().any(|part| mapping.path.contains(part))
}

/// The instructions that call a poll: the kernel emulates a call, but not what the function itself
/// begins with.
pub(super) fn find(elf: &Elf<'_>) -> Vec<Site> {
    let slots = slots(elf);
    let mut entries: Vec<u64> = Vec::new();
    let code = || elf.sections().filter(|section| section.kind() == SectionKind::Text);
    if slots.is_empty() {
        return Vec::new();
    }
    for section in code() {
        let Ok(bytes) = section.data() else {
            continue;
        };
        for (at, window) in (section.address()..).zip(bytes.windows(6)) {
            let Some((opcode, distance)) = window.split_first_chunk::<2>() else {
                continue;
            };
            if *opcode == JUMP
                && relative(distance)
                    .is_some_and(|by| slots.contains(&at.wrapping_add(6).wrapping_add_signed(by)))
            {
                entries.push(at & !(ENTRY_BYTES - 1));
            }
        }
    }
    let mut sites = Vec::new();
    for section in code() {
        let Ok(bytes) = section.data() else {
            continue;
        };
        for (at, window) in (section.address()..).zip(bytes.windows(5)) {
            let Some((0xe8 | 0xe9, distance)) = window.split_first() else {
                continue;
            };
            if sites.len() < MOST
                && relative(distance)
                    .is_some_and(|by| entries.contains(&at.wrapping_add(5).wrapping_add_signed(by)))
            {
                sites.extend(Site::at(elf, "epoll_wait", at, HowFound::Call));
            }
        }
    }
    sites
}

/// Where the library keeps the addresses of the functions, which are another's.
fn slots(elf: &Elf<'_>) -> Vec<u64> {
    let (Some(relocations), Some(symbols)) = (elf.dynamic_relocations(), elf.dynamic_symbol_table()) else {
        return Vec::new();
    };
    let polls = |target| match target {
        RelocationTarget::Symbol(index) => {
            let symbol = symbols.symbol_by_index(index).ok();
            symbol.is_some_and(|symbol| symbol.name().is_ok_and(|name| POLLS.contains(&name)))
        }
        _ => false,
    };
    relocations.filter(|(_, relocation)| polls(relocation.target())).map(|(slot, _)| slot).collect()
}

/// The distance at the end of an instruction.
fn relative(bytes: &[u8]) -> Option<i64> {
    bytes.first_chunk::<4>().map(|bytes| i32::from_le_bytes(*bytes).into())
}
