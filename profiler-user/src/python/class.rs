//! Types: their name, module and bases.

use profiler_common::{address::Addr, fault::Fault};

use super::{dict, field, objects::ObjectLayout, text};
use crate::memory::Bytes;

/// Bases followed upwards.
const MAX_BASES: usize = 64;
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h#L667>
const HEAP_TYPE: u64 = 1 << 9;

/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h#L719>
const UNICODE_SUBCLASS: u64 = 1 << 28;

/// A type's names.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Class {
    /// The qualified name, without the module.
    pub qualname: String,
    /// The module; empty when the type does not say.
    pub module: String,
}

/// `tp_name`: `module.name` of a static type, the bare name of a heap type.
///
/// # Errors
///
/// [`Fault::ReadState`].
pub fn c_name(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<String, Fault> {
    let name = memory.pointer(field(at, layout.type_name))?;
    text::c_string(memory, name)
}

/// The names of a type.
///
/// # Errors
///
/// [`Fault::ReadState`].
pub fn read(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Class, Fault> {
    let flags = memory.word(field(at, layout.type_flags))?;
    if flags & HEAP_TYPE == 0 {
        let name = c_name(memory, layout, at)?;
        let (module, qualname) = name.rsplit_once('.').unwrap_or(("", name.as_str()));
        return Ok(Class { qualname: qualname.to_owned(), module: module.to_owned() });
    }
    let qualname = memory.pointer(field(at, layout.heap_qualname))?;
    let qualname = text::string(memory, layout, qualname)?;
    let own = memory.pointer(field(at, layout.type_dict))?;
    let module = match dict::get(memory, layout, own, "__module__")? {
        Some(module) => text::string(memory, layout, module).unwrap_or_default(),
        None => String::new(),
    };
    Ok(Class { qualname, module })
}

/// A type and its bases by `tp_base`, itself first.
///
/// # Errors
///
/// [`Fault::ReadState`] when one cannot be read, or there is no end to them.
pub fn bases(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Vec<Addr>, Fault> {
    let mut bases = Vec::new();
    let mut here = at;
    while !here.is_null() {
        if bases.len() == MAX_BASES {
            return Err(Fault::ReadState);
        }
        bases.push(here);
        here = memory.pointer(field(here, layout.type_base))?;
    }
    Ok(bases)
}

/// Whether an object is a `str`.
///
/// # Errors
///
/// [`Fault::ReadState`].
pub fn is_string(memory: &mut impl Bytes, layout: &ObjectLayout, object: Addr) -> Result<bool, Fault> {
    let class = memory.pointer(field(object, layout.object_type))?;
    Ok(memory.word(field(class, layout.type_flags))? & UNICODE_SUBCLASS != 0)
}
