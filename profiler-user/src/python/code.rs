//! Code objects: what a frame runs, and which line an instruction is on.

use profiler_common::{address::Addr, fault::Fault};

use super::{class, field, lines, objects::ObjectLayout, text};
use crate::memory::Bytes;

/// More instructions than any function has before the first that shows.
const MAX_FIRST_TRACEABLE: u32 = 1 << 16;

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
    /// The offset, in bytes, of the first instruction at which a frame shows.
    pub first_traceable: u32,
}

impl Code {
    /// The line of the instruction at `offset` bytes into the code.
    #[must_use]
    pub fn line(&self, offset: u32) -> Option<u32> {
        lines::line(self.firstlineno, &self.linetable, offset)
    }

    /// Whether CPython itself shows a frame at `offset`; -1 and less is before its code.
    ///
    /// It does not while the frame is being made, and never shows the one that it
    /// puts below a specialised `__init__`:
    /// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_frame.h#L170>
    #[must_use]
    pub fn shows(&self, offset: i32) -> bool {
        u32::try_from(offset).map_or(self.first_traceable == 0, |offset| offset >= self.first_traceable)
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

/// `co_firstlineno`, the pointers to filename, qualname and linetable, and
/// `_co_firsttraceable`.
type Fields = (u32, Addr, Addr, Addr, u32);

fn fields(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<Fields, Fault> {
    let mut first = [0_u8; 4];
    let mut traceable = [0_u8; 4];
    let mut read = || -> Result<Fields, Fault> {
        memory.read_bytes(field(at, layout.code_firstlineno), &mut first)?;
        memory.read_bytes(field(at, layout.code_firsttraceable), &mut traceable)?;
        Ok((
            u32::from_le_bytes(first),
            memory.pointer(field(at, layout.code_filename))?,
            memory.pointer(field(at, layout.code_qualname))?,
            memory.pointer(field(at, layout.code_linetable))?,
            u32::from_le_bytes(traceable),
        ))
    };
    read().map_err(|_| Fault::CodeUnreadable)
}

fn decode(
    memory: &mut impl Bytes,
    layout: &ObjectLayout,
    (firstlineno, filename, qualname, linetable, first_traceable): Fields,
) -> Result<Code, Fault> {
    Ok(Code {
        qualname: text::string(memory, layout, qualname)?,
        filename: text::string(memory, layout, filename)?,
        firstlineno: first_line(firstlineno),
        linetable: text::bytes(memory, layout, linetable)?,
        first_traceable: first_traceable_at(first_traceable),
    })
}

/// A line is never negative; CPython's own synthetic code has 0 or 1.
pub(crate) const fn first_line(firstlineno: u32) -> u32 {
    if firstlineno > i32::MAX as u32 { 0 } else { firstlineno }
}

/// The offset of an instruction, of two bytes each; what can't be hides nothing.
pub(crate) const fn first_traceable_at(first_traceable: u32) -> u32 {
    if first_traceable < MAX_FIRST_TRACEABLE { 2 * first_traceable } else { 0 }
}

fn is_code(memory: &mut impl Bytes, layout: &ObjectLayout, at: Addr) -> Result<(), Fault> {
    let kind =
        memory.pointer(field(at, layout.object_type)).and_then(|kind| class::c_name(memory, layout, kind));
    match kind {
        Ok(name) if name == "code" => Ok(()),
        Ok(_) | Err(_) => Err(Fault::CodeUnreadable),
    }
}
