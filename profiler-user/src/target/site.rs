//! The instructions to probe in a greenlet library and in CPython, and what a probe there
//! costs.

use object::{Object as _, ObjectSection as _, ObjectSymbol as _, SectionKind};

use profiler_common::address::Addr;

use super::elf::{self, Elf, HowFound};

/// `endbr64`: the landing mark of builds with CET. The kernel steps it instead of
/// emulating it, and the instruction behind it serves as well.
const ENDBR64: [u8; 4] = [0xf3, 0x0f, 0x1e, 0xfa];

const SWITCHSTACK: &str = "_ZN8greenlet8Greenlet13g_switchstackEv";
const USER_SWITCH: &str = "_ZN8greenlet12UserGreenlet8g_switchEv";
const MAIN_SWITCH: &str = "_ZN8greenlet12MainGreenlet8g_switchEv";
const INITIALSTUB: &str = "_ZN8greenlet12UserGreenlet13g_initialstubEPv";
const USER_FREED: &str = "_ZN8greenlet12UserGreenletD0Ev";
const MAIN_FREED: &str = "_ZN8greenlet12MainGreenletD0Ev";
/// What an extension calls to make its module, greenlet as well: once for each extension.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/moduleobject.h>
const MODULE: &str = "PyModule_Create2";
/// What a program calls once its interpreter is up, the usual ones at least.
/// <https://github.com/python/cpython/blob/v3.13.0/Modules/main.c>
const RUN_MAIN: &str = "Py_RunMain";
/// What gcc and clang call the assembly that swaps stacks; in `.symtab` only.
const SWAP: [&str; 2] = ["slp_switch", "_ZL10slp_switchv"];

/// An instruction to probe.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Site {
    /// The function.
    pub symbol: &'static str,
    /// Where its name was found.
    pub how_found: HowFound,
    /// The instruction's address in the file.
    pub vaddr: u64,
    /// The instruction's offset in the file: what a uprobe is given.
    pub file_offset: u64,
    /// Whether the kernel emulates the instruction; stepping it costs seven times more.
    pub emulated: bool,
    /// The bytes at the probed address.
    pub first_bytes: [u8; 8],
    /// Whether an `endbr64` before it was skipped.
    pub skipped_endbr: bool,
}

/// The instructions to probe in one greenlet library.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Sites {
    /// The one function that every switch passes.
    pub switchstack: Option<Site>,
    /// `UserGreenlet::g_switch`, `MainGreenlet::g_switch`, `UserGreenlet::g_initialstub`:
    /// empty unless all three were found.
    pub pair: Vec<Site>,
    /// The deleting destructors: a greenlet's memory goes back.
    pub freed: Vec<Site>,
    /// How many functions call the assembly that swaps stacks, where it has a name.
    ///
    /// One is right. More means that `g_switchstack` was inlined somewhere, and that
    /// a probe on it misses those switches.
    pub swap_callers: Option<usize>,
}

/// The instructions to probe in CPython.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct PythonSites {
    /// An extension makes its module.
    pub module: Option<Site>,
    /// The interpreter is up.
    pub up: Option<Site>,
    /// A code object is freed.
    pub code_freed: Option<Site>,
    /// `PyCode_Type`.
    pub code_type: Addr,
}

impl PythonSites {
    pub(super) fn find(elf: &Elf<'_>) -> Self {
        let [module, up] = elf::symbols(elf, [MODULE, RUN_MAIN]);
        let site = |symbol, found: Option<(u64, HowFound)>| {
            found.and_then(|(address, how_found)| Site::at(elf, symbol, address, how_found))
        };
        Self { module: site(MODULE, module), up: site(RUN_MAIN, up), ..Self::default() }
    }
}

impl Sites {
    pub(super) fn find(elf: &Elf<'_>) -> Self {
        let names = [SWITCHSTACK, USER_SWITCH, MAIN_SWITCH, INITIALSTUB, USER_FREED, MAIN_FREED];
        let found = elf::symbols(elf, names);
        let site = |at: usize| {
            let (address, how_found) = (*found.get(at)?)?;
            Site::at(elf, names.get(at)?, address, how_found)
        };
        let pair: Vec<Site> = [1, 2, 3].into_iter().filter_map(site).collect();
        Self {
            switchstack: site(0),
            pair: if pair.len() == 3 { pair } else { Vec::new() },
            freed: [4, 5].into_iter().filter_map(site).collect(),
            swap_callers: swap_callers(elf),
        }
    }
}

impl Site {
    pub(super) fn at(elf: &Elf<'_>, symbol: &'static str, address: u64, how_found: HowFound) -> Option<Self> {
        let skipped_endbr = elf::bytes_at::<4>(elf, address) == Some(&ENDBR64);
        let vaddr = if skipped_endbr { address.checked_add(4)? } else { address };
        let first_bytes = *elf::bytes_at::<8>(elf, vaddr)?;
        Some(Self {
            symbol,
            how_found,
            vaddr,
            file_offset: elf::file_offset(elf, vaddr)?,
            emulated: is_emulated(&first_bytes),
            first_bytes,
            skipped_endbr,
        })
    }
}

/// Whether the kernel emulates an instruction instead of stepping it out of line.
///
/// # Kernel
///
/// `push` of one register (with at most the prefix 41), `nop`, and relative branches.
/// <https://github.com/torvalds/linux/blob/v6.18/arch/x86/kernel/uprobes.c>
/// (`push_setup_xol_ops`, `branch_setup_xol_ops`)
fn is_emulated(bytes: &[u8; 8]) -> bool {
    matches!(
        *bytes,
        [0x50..=0x57 | 0x90 | 0xe8 | 0xe9 | 0xeb | 0x70..=0x7f, ..]
            | [0x41, 0x50..=0x57, ..]
            | [0x0f, 0x80..=0x8f, ..]
    )
}

/// The functions that call or jump to the swap; `None` when it has no name here.
fn swap_callers(elf: &Elf<'_>) -> Option<usize> {
    let swap = elf.symbols().find(|symbol| symbol.name().is_ok_and(|name| SWAP.contains(&name)))?.address();
    let mut functions: Vec<u64> = elf
        .symbols()
        .filter(|symbol| symbol.kind() == object::SymbolKind::Text && symbol.is_definition())
        .map(|symbol| symbol.address())
        .collect();
    functions.sort_unstable();
    let mut callers: Vec<Option<u64>> = Vec::new();
    for section in elf.sections().filter(|section| section.kind() == SectionKind::Text) {
        let bytes = section.data().ok()?;
        for (at, window) in (section.address()..).zip(bytes.windows(5)) {
            let &[0xe8 | 0xe9, a, b, c, d] = window else {
                continue;
            };
            let distance = i64::from(i32::from_le_bytes([a, b, c, d]));
            if at.wrapping_add(5).wrapping_add_signed(distance) == swap {
                let before = functions.partition_point(|function| *function <= at);
                callers.push(before.checked_sub(1).and_then(|i| functions.get(i).copied()));
            }
        }
    }
    callers.sort_unstable();
    callers.dedup();
    Some(callers.len())
}

#[cfg(test)]
mod tests {
    use super::is_emulated;

    #[test]
    fn the_kernels_rules_for_first_instructions() {
        for (bytes, expect) in [
            ([0x41, 0x57, 0x41, 0x56, 0, 0, 0, 0], true),     // push %r15
            ([0x55, 0x48, 0x89, 0xe5, 0, 0, 0, 0], true),     // push %rbp
            ([0x90, 0, 0, 0, 0, 0, 0, 0], true),              // nop
            ([0xe9, 1, 0, 0, 0, 0, 0, 0], true),              // jmp
            ([0xf3, 0x0f, 0x1e, 0xfa, 0x55, 0, 0, 0], false), // endbr64
            ([0x48, 0x83, 0xec, 0x18, 0, 0, 0, 0], false),    // sub $24,%rsp
            ([0x48, 0x8b, 0x05, 0, 0, 0, 0, 0], false),       // mov x(%rip),%rax
            ([0x41, 0x89, 0xc0, 0, 0, 0, 0, 0], false),       // mov %eax,%r8d
        ] {
            assert_eq!(is_emulated(&bytes), expect, "{bytes:x?}");
        }
    }
}
