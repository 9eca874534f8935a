//! Objects and types that CPython's library itself holds.

use object::{Object as _, ObjectSection as _, ReadCache};
use profiler_common::address::Addr;

use super::{
    Target,
    elf::{self, Elf},
};
use crate::{memory::Bytes, python::objects::ObjectLayout};

/// Bytes of the library's data that are looked through at most.
const MAX_DATA: u64 = 16 << 20;
/// The types of a HAMT's nodes: static, and exported up to 3.10 only. Their names are.
/// <https://github.com/python/cpython/blob/v3.13.0/Python/hamt.c> (`_PyHamt_BitmapNode_Type`)
const NODES: [&str; 3] = ["hamt_bitmap_node", "hamt_array_node", "hamt_collision_node"];
const SYMBOLS: [&str; 6] =
    ["_Py_NoneStruct", "_Py_TrueStruct", "PyContext_Type", "PyList_Type", "PyTuple_Type", "PyUnicode_Type"];

/// Objects and types of CPython's library.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Natives {
    /// `None`.
    pub none: Addr,
    /// `True`.
    pub truth: Addr,
    /// `contextvars.Context`.
    pub context: Addr,
    /// `list`.
    pub list: Addr,
    /// `tuple`.
    pub tuple: Addr,
    /// `str`.
    pub string: Addr,
    /// The node of a HAMT with few children.
    pub bitmap_node: Addr,
    /// The node of a HAMT with many.
    pub array_node: Addr,
    /// The node of a HAMT for keys of one hash.
    pub collision_node: Addr,
}

/// Finds them; `None` when one is missing.
pub fn natives(memory: &mut impl Bytes, target: &Target) -> Option<Natives> {
    let file = &target.python.file;
    let cache = ReadCache::new(elf::open_file(&file.open).ok()?);
    let elf = Elf::parse(&cache).ok()?;
    let mut found = elf::symbols(&elf, SYMBOLS).into_iter();
    let mut next = || Some(file.address(found.next()??.0));
    let (none, truth, context, list, tuple, string) = (next()?, next()?, next()?, next()?, next()?, next()?);
    let [bitmap_node, array_node, collision_node] = nodes(memory, target, &elf)?;
    Some(Natives { none, truth, context, list, tuple, string, bitmap_node, array_node, collision_node })
}

/// A static type is told by its `tp_name`, which points to the one place where that text is.
fn nodes(memory: &mut impl Bytes, target: &Target, elf: &Elf<'_>) -> Option<[Addr; 3]> {
    let file = &target.python.file;
    let text = elf.section_by_name(".rodata")?;
    let bytes = text.data().ok()?;
    let mut names = [0_u64; 3];
    for (name, wanted) in names.iter_mut().zip(NODES) {
        let wanted = format!("\0{wanted}\0");
        let at = memchr_find(bytes, wanted.as_bytes())?;
        *name = file.address(text.address().wrapping_add(at as u64 + 1)).0;
    }
    let mut found = [Addr::NULL; 3];
    for section in elf
        .sections()
        .filter(|section| section.name().is_ok_and(|name| name == ".data" || name == ".data.rel.ro"))
    {
        let size = section.size().min(MAX_DATA) & !7;
        let start = file.address(section.address());
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        if memory.read_bytes(start, &mut bytes).is_err() {
            continue;
        }
        for (at, word) in (start.0..).step_by(8).zip(bytes.as_chunks::<8>().0) {
            let word = u64::from_le_bytes(*word);
            if let Some(place) = names.iter().position(|name| *name == word)
                && let Some(found) = found.get_mut(place)
            {
                *found = type_at(at, &target.python.objects);
            }
        }
    }
    found.iter().all(|found| !found.is_null()).then_some(found)
}

fn type_at(name: u64, objects: &ObjectLayout) -> Addr {
    Addr(name.wrapping_sub(objects.type_name.into()))
}

fn memchr_find(bytes: &[u8], wanted: &[u8]) -> Option<usize> {
    let first = *wanted.first()?;
    let mut from = 0;
    while let Some(at) = bytes.get(from..)?.iter().position(|byte| *byte == first) {
        let here = from + at;
        if bytes.get(here..)?.starts_with(wanted) {
            return Some(here);
        }
        from = here + 1;
    }
    None
}
