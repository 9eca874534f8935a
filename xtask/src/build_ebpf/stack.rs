//! How much stack the kernel part's programs take, as the strictest verifier counts it.
//!
//! A program and all that it calls have 512 bytes together. Kernels up to 6.7 round each
//! function's part up to 32 bytes, and those since 6.13 may give it a stack of its own, so that
//! the machine that an object is built on takes what others refuse.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::{Context as _, Result, ensure};
use object::{Object as _, ObjectSection as _, ObjectSymbol as _, RelocationTarget, SymbolKind};

use super::object_file::INSTRUCTION;

/// `MAX_BPF_STACK`.
/// <https://github.com/torvalds/linux/blob/v6.1/include/linux/filter.h#L90>
const MOST: u32 = 512;
/// <https://github.com/torvalds/linux/blob/v6.1/kernel/bpf/verifier.c> (`check_max_stack_depth`)
const ROUNDED_TO: u32 = 32;
/// Calls into calls, more than the verifier's 8.
const MOST_CALLS: usize = 16;

/// The register that points to the end of a function's stack.
const FRAME_POINTER: u8 = 10;
const CLASS: u8 = 0x07;
const LOAD: u8 = 0x01;
const STORE: u8 = 0x02;
const STORE_REGISTER: u8 = 0x03;
const MOVE_REGISTER: u8 = 0xbf;
const ADD_CONSTANT: u8 = 0x07;
const CALL: u8 = 0x85;
/// [`CALL`]'s source register: a function of the object, not a helper.
const CALL_OWN: u8 = 1;
const LOAD_ADDRESS: u8 = 0x18;

/// A function: its section, and where in it.
type Place = (usize, u64);

struct Function {
    name: String,
    bytes: u32,
    calls: BTreeSet<Place>,
}

/// The longest stack of a program: how much, and the calls that lead there.
pub(super) struct Deepest {
    /// Bytes, each function's rounded up.
    pub(super) bytes: u32,
    /// The functions, the program first, each with its own part.
    pub(super) path: Vec<String>,
}

/// Refuses an object of which a program takes more stack than the kernel has.
///
/// # Errors
///
/// When one does, or when it is no ELF object.
pub(super) fn inspect(object: &[u8]) -> Result<Deepest> {
    let functions = functions(object)?;
    let mut deepest = Deepest { bytes: 0, path: Vec::new() };
    for place in functions.keys() {
        let (bytes, path) = depth(&functions, *place, MOST_CALLS);
        if bytes > deepest.bytes {
            deepest = Deepest { bytes, path };
        }
    }
    ensure!(
        deepest.bytes <= MOST,
        "a program's stack would have {} bytes, of at most {MOST}: {}; put what is rare into a function \
         of its own, or what is large into the slot",
        deepest.bytes,
        deepest.path.join(" > ")
    );
    Ok(deepest)
}

fn depth(functions: &BTreeMap<Place, Function>, place: Place, calls: usize) -> (u32, Vec<String>) {
    let Some(function) = functions.get(&place) else {
        return (0, Vec::new());
    };
    let below = function.calls.iter().filter(|_| calls > 0).map(|call| depth(functions, *call, calls - 1));
    let (below, path) = below.max_by_key(|(bytes, _)| *bytes).unwrap_or_default();
    let own = function.bytes.max(1).next_multiple_of(ROUNDED_TO);
    let path = std::iter::once(format!("{} {}", function.name, function.bytes)).chain(path).collect();
    (own + below, path)
}

fn functions(object: &[u8]) -> Result<BTreeMap<Place, Function>> {
    let file = object::File::parse(object).context("the kernel part's object is no ELF object")?;
    let mut functions = BTreeMap::new();
    for symbol in file.symbols().filter(|symbol| symbol.kind() == SymbolKind::Text) {
        let Some(index) = symbol.section_index() else {
            continue;
        };
        let section = file.section_by_index(index)?;
        let relocated: BTreeMap<u64, (usize, u64, bool)> = section
            .relocations()
            .filter_map(|(at, relocation)| {
                let RelocationTarget::Symbol(target) = relocation.target() else {
                    return None;
                };
                let target = file.symbol_by_index(target).ok()?;
                let whole = target.kind() == SymbolKind::Section;
                Some((at, (target.section_index()?.0, target.address(), whole)))
            })
            .collect();
        let data = section.data()?;
        let begin = usize::try_from(symbol.address())?;
        let end = begin + usize::try_from(symbol.size())?;
        let body = data.get(begin..end).context("a function outside of its section")?;
        let (bytes, calls) = read(index.0, symbol.address(), body, &relocated);
        let name = readable(symbol.name().unwrap_or_default());
        functions.insert((index.0, symbol.address()), Function { name, bytes, calls });
    }
    Ok(functions)
}

/// What of the stack a function touches, and what it calls.
fn read(
    section: usize,
    begin: u64,
    body: &[u8],
    relocated: &BTreeMap<u64, (usize, u64, bool)>,
) -> (u32, BTreeSet<Place>) {
    let mut bytes = 0;
    let mut calls = BTreeSet::new();
    // The registers that hold the frame pointer, unchanged.
    let mut copies = BTreeSet::new();
    for (at, instruction) in (begin..).step_by(INSTRUCTION).zip(body.chunks_exact(INSTRUCTION)) {
        let [code, registers, low, high, first, second, third, fourth] = *instruction else {
            continue;
        };
        let (to, from) = (registers & 0x0f, registers >> 4);
        let offset = i32::from(i16::from_le_bytes([low, high]));
        let constant = i32::from_le_bytes([first, second, third, fourth]);
        let class = code & CLASS;
        let framed = if class == LOAD { from } else { to };
        if [LOAD, STORE, STORE_REGISTER].contains(&class) && framed == FRAME_POINTER && offset < 0 {
            bytes = bytes.max(offset.unsigned_abs());
        }
        if code == ADD_CONSTANT && copies.contains(&to) && constant < 0 {
            bytes = bytes.max(constant.unsigned_abs());
        }
        if code == MOVE_REGISTER && from == FRAME_POINTER {
            copies.insert(to);
        } else if ![STORE, STORE_REGISTER].contains(&class) {
            copies.remove(&to);
        }
        let target = relocated.get(&at).copied();
        if code == CALL && from == CALL_OWN {
            let distance = i64::from(constant + 1) * INSTRUCTION as i64;
            calls.insert(match target {
                Some((section, _, true)) => (section, distance.unsigned_abs()),
                Some((section, address, false)) => (section, address),
                None => (section, at.saturating_add_signed(distance)),
            });
        } else if code == LOAD_ADDRESS
            && let Some((section, address, whole)) = target
        {
            // A callback's, or a map's, which is no function.
            calls.insert((section, if whole { u64::from(constant.unsigned_abs()) } else { address }));
        }
    }
    (bytes, calls)
}

/// The last two names of a mangled path (v0): lengths stand before them.
fn readable(symbol: &str) -> String {
    if !symbol.starts_with("_R") {
        return symbol.to_owned();
    }
    let mut names: Vec<&str> = Vec::new();
    let mut rest = symbol;
    while let Some(start) = rest.find(|c: char| c.is_ascii_digit()) {
        rest = rest.get(start..).unwrap_or_default();
        let digits = rest.find(|c: char| !c.is_ascii_digit()).unwrap_or(rest.len());
        let length: usize = rest.get(..digits).unwrap_or_default().parse().unwrap_or_default();
        if let Some(name) = rest.get(digits..digits + length).filter(|name| !name.is_empty()) {
            names.push(name.trim_start_matches('_'));
            rest = rest.get(digits + length..).unwrap_or_default();
        } else {
            rest = rest.get(digits..).unwrap_or_default();
        }
    }
    names.get(names.len().saturating_sub(2)..).unwrap_or_default().join("::")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `*(u64 *)(r10 - bytes) = r1`, then calls.
    fn function(bytes: i16, calls: &[i32]) -> Vec<u8> {
        let store = [&[0x7b, 0x1a][..], &(-bytes).to_le_bytes(), &[0; 4]].concat();
        let call = |distance: &i32| [&[CALL, CALL_OWN << 4, 0, 0][..], &distance.to_le_bytes()].concat();
        [store].into_iter().chain(calls.iter().map(call)).flatten().collect()
    }

    #[test]
    fn stores_and_calls_are_seen() {
        let (bytes, calls) = read(1, 16, &function(72, &[3]), &BTreeMap::new());
        assert_eq!(bytes, 72);
        // From the instruction after the call on.
        assert_eq!(calls, BTreeSet::from([(1, 16 + 8 + 4 * 8)]));
    }

    #[test]
    fn parts_are_rounded_up_and_the_longest_way_counts() {
        let of = |name: &str, bytes, calls: &[u64]| Function {
            name: name.to_owned(),
            bytes,
            calls: calls.iter().map(|at| (1, *at)).collect(),
        };
        let functions = BTreeMap::from([
            ((1, 0), of("program", 33, &[8, 16])),
            ((1, 8), of("short", 0, &[])),
            ((1, 16), of("long", 32, &[8])),
        ]);
        let (bytes, path) = depth(&functions, (1, 0), MOST_CALLS);
        assert_eq!(
            (bytes, path),
            (64 + 32 + 32, ["program 33", "long 32", "short 0"].map(String::from).into())
        );
    }

    #[test]
    fn names_are_the_last_two() {
        assert_eq!(readable("_RNvNtCs54lYVMPETBl_15greenscope_ebpf3off4walk"), "off::walk");
        assert_eq!(readable("sched_switch"), "sched_switch");
    }
}
