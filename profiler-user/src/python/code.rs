//! Code objects: what a frame runs, and which line an instruction is on.

use profiler_common::{address::Addr, fault::Fault};

use super::{class, field, lines, objects::ObjectLayout, text};
use crate::memory::Bytes;

/// A code object's names and lines.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Code {
    /// `co_qualname`.
    pub qualname: String,
    /// `co_filename`.
    pub filename: String,
    /// `co_firstlineno`.
    pub firstlineno: u32,
    /// `co_linetable`.
    pub linetable: Vec<u8>,
}

impl Code {
    /// The line of the instruction at `offset` bytes into the code.
    #[must_use]
    pub fn line(&self, offset: u32) -> Option<u32> {
        lines::line(self.firstlineno, &self.linetable, offset)
    }
}

/// Reads a code object, and looks twice whether it is one.
///
/// # Errors
///
/// [`Fault::CodeUnreadable`] when it is none (its type's name says so, before and
/// after), or a field of it cannot be read.
pub fn read(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Code, Fault> {
    is_code(memory, layout, at)?;
    let before = fields(memory, layout, at)?;
    let code = decode(memory, layout, before).map_err(|_| Fault::CodeUnreadable)?;
    let after = fields(memory, layout, at)?;
    if before == after { Ok(code) } else { Err(Fault::CodeChanged) }
}

/// `co_firstlineno`, and the pointers to filename, qualname and linetable.
type Fields = (u32, Addr, Addr, Addr);

fn fields(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Fields, Fault> {
    let mut first = [0_u8; 4];
    let mut read = || -> Result<Fields, Fault> {
        memory.read_bytes(field(at, layout.code_firstlineno), &mut first)?;
        Ok((
            u32::from_le_bytes(first),
            memory.pointer(field(at, layout.code_filename))?,
            memory.pointer(field(at, layout.code_qualname))?,
            memory.pointer(field(at, layout.code_linetable))?,
        ))
    };
    read().map_err(|_| Fault::CodeUnreadable)
}

fn decode(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    (firstlineno, filename, qualname, linetable): Fields,
) -> Result<Code, Fault> {
    Ok(Code {
        qualname: text::string(memory, layout, qualname)?,
        filename: text::string(memory, layout, filename)?,
        // A line is never negative; CPython's own synthetic code has 0 or 1.
        firstlineno: if firstlineno > i32::MAX as u32 { 0 } else { firstlineno },
        linetable: text::bytes(memory, layout, linetable)?,
    })
}

fn is_code(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<(), Fault> {
    let kind =
        memory.pointer(field(at, layout.object_type)).and_then(|kind| class::c_name(memory, layout, kind));
    match kind {
        Ok(name) if name == "code" => Ok(()),
        Ok(_) | Err(_) => Err(Fault::CodeUnreadable),
    }
}
