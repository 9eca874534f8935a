//! Whose work is done: where a process has the trace of a request, and what it is called.
//!
//! Readers over a `Memory` and policy: which tracer of a process is believed, what the
//! kernel part needs to know of it, and what its labels mean. It is read once at the begin
//! and again while something is missing: a class has no shared keys before its first
//! instance, and a tracer may be imported late.

mod agent;
mod labels;
mod otel;
mod shape;
mod wire;

use profiler_common::{
    address::Addr,
    fault::Fault,
    label::{LabelConfig, LabelLayout},
};

pub use profiler_common::label::Source;

pub use labels::{Called, Labels, OnWire, Request};

use crate::{
    memory::Bytes,
    python::{dict, field, number, objects::ObjectLayout},
    target::{Natives, Target},
};

/// The tracer of a process.
#[derive(Clone, Debug, PartialEq)]
pub struct Tracer {
    /// Which one.
    pub source: Source,
    /// Who the process is to it.
    pub identity: Identity,
    /// What the kernel part needs.
    pub config: LabelConfig,
    /// Nothing is missing any more.
    pub whole: bool,
}

/// Who a process is to its tracer.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Identity {
    /// The service's name.
    pub service: Option<String>,
    /// The instance's.
    pub instance: Option<String>,
    /// Whether SkyWalking's agent has its own profiler on.
    pub profiler: Option<bool>,
}

/// What the readers share.
struct Look<'a, M> {
    memory: &'a mut M,
    target: &'a Target,
    natives: Natives,
    modules: Vec<dict::Entry>,
}

/// Looks for the tracer of a process: SkyWalking's agent, else OpenTelemetry's SDK.
///
/// `natives` is asked only if there is one.
///
/// # Errors
///
/// When its modules can't be read.
pub fn find<M: Bytes>(
    memory: &mut M,
    target: &Target,
    natives: impl FnOnce(&mut M) -> Option<Natives>,
) -> Result<Option<Tracer>, Fault> {
    let objects = &target.python.objects;
    let modules = memory.pointer(field(target.python.interp, objects.interp_modules))?;
    let modules = dict::entries(memory, objects, modules)?;
    let mut has = |name| dict::find(memory, objects, &modules, name).is_some();
    if !has(agent::MODULE) && !has(otel::MODULE) {
        return Ok(None);
    }
    let Some(natives) = natives(memory) else {
        return Ok(None);
    };
    let mut look = Look { memory, target, natives, modules };
    if let Some(found) = agent::find(&mut look)? {
        return Ok(Some(found));
    }
    otel::find(&mut look)
}

impl<M: Bytes> Look<'_, M> {
    fn objects(&self) -> &ObjectLayout {
        &self.target.python.objects
    }

    /// The globals of a module.
    fn globals(&mut self, module: &str) -> Result<Option<Vec<dict::Entry>>, Fault> {
        let objects = self.target.python.objects;
        let Some(module) = dict::find(self.memory, &objects, &self.modules, module) else {
            return Ok(None);
        };
        let globals = self.memory.pointer(field(module, objects.module_dict))?;
        Ok(Some(dict::entries(self.memory, &objects, globals)?))
    }

    /// A global of a module.
    fn global(&mut self, module: &str, name: &str) -> Result<Option<Addr>, Fault> {
        let globals = self.globals(module)?;
        Ok(globals.and_then(|globals| self.pick(&globals, name)))
    }

    fn pick(&mut self, globals: &[dict::Entry], name: &str) -> Option<Addr> {
        dict::find(self.memory, &self.target.python.objects, globals, name)
    }

    /// What every chain needs.
    fn config(&mut self, source: Source, variable: Addr) -> Result<Option<LabelConfig>, Fault> {
        let objects = self.target.python.objects;
        let hash = self.memory.word(field(variable, objects.contextvar_hash))?;
        // The operating system's module has the small ones by name.
        let Some(names) = self.globals("posix")? else {
            return Ok(None);
        };
        let (Some(zero), Some(one)) = (self.pick(&names, "F_OK"), self.pick(&names, "X_OK")) else {
            return Ok(None);
        };
        let value = |look: &mut Self, at| number::integer(look.memory, &objects, at);
        if (value(self, zero)?, value(self, one)?) != (Some(0), Some(1)) {
            return Ok(None);
        }
        let Some(layout) = layout(&objects) else {
            return Ok(None);
        };
        Ok(Some(LabelConfig {
            source: source as u32,
            hash: fold(hash),
            variable,
            none: self.natives.none,
            truth: self.natives.truth,
            zero,
            int_size: one.0.wrapping_sub(zero.0),
            context_class: self.natives.context,
            bitmap_class: self.natives.bitmap_node,
            array_class: self.natives.array_node,
            collision_class: self.natives.collision_node,
            list_class: self.natives.list,
            str_class: self.natives.string,
            layout,
            ..LabelConfig::default()
        }))
    }
}

/// A hash as a HAMT uses it.
/// <https://github.com/python/cpython/blob/v3.13.0/Python/hamt.c> (`hamt_hash`)
const fn fold(hash: u64) -> u32 {
    let folded = (hash as u32) ^ (hash >> 32) as u32;
    if folded == u32::MAX { u32::MAX - 1 } else { folded }
}

/// The offsets of a chain out of CPython's.
fn layout(objects: &ObjectLayout) -> Option<LabelLayout> {
    use crate::python::objects::NONE;
    use profiler_common::layout::ABSENT;

    let near = |offset: u32| u16::try_from(offset).ok();
    let or = |offset: u32, absent: u16| if offset == NONE { Some(absent) } else { near(offset) };
    // The digits are counted in the tag from its fourth bit on.
    // https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_long.h (NON_SIZE_BITS)
    let (int_tag, int_tag_shift) =
        if objects.int_tag == NONE { (objects.object_size, 0) } else { (objects.int_tag, 3) };
    Some(LabelLayout {
        context_vars: near(objects.context_vars)?,
        hamt_root: near(objects.hamt_root)?,
        bitmap_bits: near(objects.bitmap_bits)?,
        bitmap_items: near(objects.bitmap_items)?,
        array_items: near(objects.array_items)?,
        collision_items: near(objects.collision_items)?,
        object_type: near(objects.object_type)?,
        object_size: near(objects.object_size)?,
        list_items: near(objects.list_items)?,
        tuple_items: near(objects.tuple_items)?,
        int_tag: near(int_tag)?,
        int_tag_shift,
        int_digits: near(objects.int_digits)?,
        str_length: near(objects.str_length)?,
        str_state: near(objects.str_state)?,
        str_kind_bit: near(objects.str_kind_bit)?,
        str_compact_bit: near(objects.str_compact_bit)?,
        str_ascii_bit: near(objects.str_ascii_bit)?,
        str_ascii_data: near(objects.str_ascii_data)?,
        str_compact_data: near(objects.str_compact_data)?,
        dict_keys: near(objects.dict_keys)?,
        dict_values: near(objects.dict_values)?,
        keys_log2_index_bytes: near(objects.keys_log2_index_bytes)?,
        keys_kind: near(objects.keys_kind)?,
        keys_kind_general: near(objects.keys_kind_general)?,
        keys_nentries: near(objects.keys_nentries)?,
        keys_indices: near(objects.keys_indices)?,
        managed_dict: near(objects.managed_dict)?,
        managed_values: or(objects.managed_values, 0)?,
        values_items: near(objects.values_items)?,
        values_valid: or(objects.values_valid, ABSENT)?,
        tstate_context_ver: near(objects.tstate_context_ver)?,
    })
}
