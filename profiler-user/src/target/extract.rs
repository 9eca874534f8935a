//! The layouts, put together from named members of debug information.
//!
//! One place for both users: `cargo xtask codegen layouts`, which compiles this
//! very file and writes the tables, and the run-time reading of a mapped
//! `_greenlet.so`. Which member feeds which field stands here and nowhere else.

use object::ReadRef;
use profiler_common::layout::{ABSENT, GreenletLayout, PythonLayout};

use super::{
    dwarf::{DwarfError, Types},
    objects::{DebugTable, NONE, ObjectLayout},
};

/// The types that CPython's layouts are read from.
const PYTHON_ROOTS: &[&str] = &[
    "_ts",
    "_is",
    "_PyInterpreterFrame",
    "_frameowner",
    "_PyCFrame",
    "_PyStackChunk",
    "_PyRuntimeState",
    "_gil_runtime_state",
    "gc_generation",
    "PyGC_Head",
    "PyObject",
    "PyVarObject",
    "PyCodeObject",
    "PyASCIIObject",
    "PyCompactUnicodeObject",
    "PyUnicodeObject",
    "PyBytesObject",
    "PyTupleObject",
    "PyListObject",
    "PyLongObject",
    "PyDictObject",
    "_dictkeysobject",
    "_dictvalues",
    "DictKeysKind",
    "PyDictKeyEntry",
    "PyDictUnicodeEntry",
    "PyTypeObject",
    "PyHeapTypeObject",
    "PyModuleObject",
    "_longobject",
    "_typeobject",
    "_heaptypeobject",
    "_pycontextobject",
    "_pycontextvarobject",
    "PyHamtObject",
    "PyHamtNode_Bitmap",
    "PyHamtNode_Array",
    "PyHamtNode_Collision",
    // 3.12 alone: one tagged word for a dictionary or its values.
    "PyDictOrValues",
    // 3.13 on.
    "_Py_DebugOffsets",
];

/// The types that greenlet's layout is read from.
const GREENLET_ROOTS: &[&str] = &[
    "_greenlet",
    "greenlet::Greenlet",
    "greenlet::UserGreenlet",
    "greenlet::MainGreenlet",
    "greenlet::PythonState",
    "greenlet::StackState",
    "greenlet::ThreadState",
];

/// Bytes before an object at which its dictionary pointer lies when managed.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_object.h#L713>
const MANAGED_DICT: u32 = 24;
/// Bytes before an object at which 3.11 keeps the pointer to its values.
/// <https://github.com/python/cpython/blob/v3.11.7/Include/internal/pycore_object.h#L253>
const MANAGED_VALUES: u32 = 32;
/// <https://github.com/python/cpython/blob/v3.13.0/Include/object.h#L639>
const INLINE_VALUES: u32 = 1 << 2;

/// Why the debug information gives no layout.
#[derive(Debug, thiserror::Error)]
pub enum ExtractError {
    /// It could not be read.
    #[error(transparent)]
    Dwarf(#[from] DwarfError),
    /// It lacks a member that is needed.
    #[error("it has no {root}.{path}")]
    Missing {
        /// The structure.
        root: &'static str,
        /// The member in it.
        path: &'static str,
    },
    /// A member lies elsewhere than all known versions have it.
    #[error("{0}")]
    Unexpected(&'static str),
}

/// CPython's layouts of the file.
///
/// # Errors
///
/// [`ExtractError`].
pub fn python<'d, R: ReadRef<'d>>(
    file: &object::File<'d, R>,
) -> Result<(PythonLayout, ObjectLayout, Option<DebugTable>), ExtractError> {
    let types = Lookup(Types::find(file, PYTHON_ROOTS)?);
    Ok((types.python_layout()?, types.object_layout()?, types.debug_table()?))
}

/// greenlet's layout of the file.
///
/// # Errors
///
/// [`ExtractError`].
pub fn greenlet<'d, R: ReadRef<'d>>(file: &object::File<'d, R>) -> Result<GreenletLayout, ExtractError> {
    Lookup(Types::find(file, GREENLET_ROOTS)?).greenlet_layout()
}

struct Lookup<'d>(Types<'d>);

impl Lookup<'_> {
    fn wide(&self, root: &'static str, path: &'static str) -> Result<u32, ExtractError> {
        self.0.offset(root, path).ok_or(ExtractError::Missing { root, path })
    }

    fn near(&self, root: &'static str, path: &'static str) -> Result<u16, ExtractError> {
        narrow(self.wide(root, path)?, root, path)
    }

    fn size(&self, root: &'static str) -> Result<u32, ExtractError> {
        self.0.size(root).ok_or(ExtractError::Missing { root, path: "(size)" })
    }

    fn first(&self, ways: &[(&'static str, &'static str)]) -> Result<u32, ExtractError> {
        let mut missing = ExtractError::Unexpected("no member was asked for");
        for &(root, path) in ways {
            match self.wide(root, path) {
                Ok(offset) => return Ok(offset),
                Err(error) => missing = error,
            }
        }
        Err(missing)
    }

    fn or_none(&self, root: &'static str, path: &'static str) -> u32 {
        self.0.offset(root, path).unwrap_or(NONE)
    }

    fn python_layout(&self) -> Result<PythonLayout, ExtractError> {
        let active = self.0.member("_ts", "_status.active");
        let status = active.map(|member| narrow(member.offset, "_ts", "_status")).transpose()?;
        let bit = active.and_then(|member| member.bit).and_then(|bit| u16::try_from(bit).ok());
        // Up to 3.12 the frame hangs in a structure on the C stack.
        let in_cframe = self.0.offset("_ts", "cframe").is_some();
        let code =
            self.first(&[("_PyInterpreterFrame", "f_executable"), ("_PyInterpreterFrame", "f_code")])?;
        let instr =
            self.first(&[("_PyInterpreterFrame", "instr_ptr"), ("_PyInterpreterFrame", "prev_instr")])?;
        let shim = self.0.enumerator("_frameowner", "FRAME_OWNED_BY_CSTACK");
        let filename = self.near("PyCodeObject", "co_filename")?;
        for (path, after) in [("co_name", 8), ("co_qualname", 16), ("co_linetable", 24)] {
            if self.near("PyCodeObject", path)? != filename + after {
                return Err(ExtractError::Unexpected("the names of a code object are not in a row"));
            }
        }
        Ok(PythonLayout {
            tstate_interp: self.near("_ts", "interp")?,
            tstate_status: status.unwrap_or(ABSENT),
            tstate_active_bit: bit.unwrap_or(ABSENT),
            tstate_frame: self.near("_ts", if in_cframe { "cframe" } else { "current_frame" })?,
            cframe_frame: if in_cframe { self.near("_PyCFrame", "current_frame")? } else { ABSENT },
            tstate_thread_id: self.near("_ts", "thread_id")?,
            tstate_native_id: self.near("_ts", "native_thread_id")?,
            tstate_context: self.near("_ts", "context")?,
            frame_code: narrow(code, "_PyInterpreterFrame", "f_executable")?,
            frame_previous: self.near("_PyInterpreterFrame", "previous")?,
            frame_instr: narrow(instr, "_PyInterpreterFrame", "instr_ptr")?,
            frame_owner: self.near("_PyInterpreterFrame", "owner")?,
            frame_size: self.near("_PyInterpreterFrame", "localsplus")?,
            owner_shim: shim.and_then(|owner| u16::try_from(owner).ok()).unwrap_or(ABSENT),
            code_instrs: self.near("PyCodeObject", "co_code_adaptive")?,
            code_firstlineno: self.near("PyCodeObject", "co_firstlineno")?,
            code_filename: filename,
            str_hash: self.near("PyASCIIObject", "hash")?,
        })
    }

    fn object_layout(&self) -> Result<ObjectLayout, ExtractError> {
        let state = |path: &'static str| {
            let missing = ExtractError::Missing { root: "PyASCIIObject", path };
            self.0.member("PyASCIIObject", path).ok_or(missing)
        };
        let (kind, compact, ascii) = (state("state.kind")?, state("state.compact")?, state("state.ascii")?);
        let valid = self.or_none("_dictvalues", "valid");
        let tagged = self.0.size("PyDictOrValues").is_some();
        let generations = self.wide("_is", "gc.generations")?;
        let cleared = self.0.member("_ts", "_status.cleared");
        Ok(ObjectLayout {
            object_type: self.wide("PyObject", "ob_type")?,
            object_size: self.wide("PyVarObject", "ob_size")?,
            code_firstlineno: self.wide("PyCodeObject", "co_firstlineno")?,
            code_filename: self.wide("PyCodeObject", "co_filename")?,
            code_name: self.wide("PyCodeObject", "co_name")?,
            code_qualname: self.wide("PyCodeObject", "co_qualname")?,
            code_linetable: self.wide("PyCodeObject", "co_linetable")?,
            code_instrs: self.wide("PyCodeObject", "co_code_adaptive")?,
            code_firsttraceable: self.wide("PyCodeObject", "_co_firsttraceable")?,
            str_length: self.wide("PyASCIIObject", "length")?,
            str_state: self.wide("PyASCIIObject", "state")?,
            str_kind_bit: kind.bit.unwrap_or(NONE),
            str_kind_bits: kind.bits.unwrap_or(NONE),
            str_compact_bit: compact.bit.unwrap_or(NONE),
            str_ascii_bit: ascii.bit.unwrap_or(NONE),
            str_ascii_data: self.size("PyASCIIObject")?,
            str_compact_data: self.size("PyCompactUnicodeObject")?,
            str_data_pointer: self.wide("PyUnicodeObject", "data")?,
            bytes_data: self.wide("PyBytesObject", "ob_sval")?,
            tuple_items: self.wide("PyTupleObject", "ob_item")?,
            list_items: self.wide("PyListObject", "ob_item")?,
            int_tag: self.or_none("_longobject", "long_value.lv_tag"),
            int_digits: self.first(&[("_longobject", "long_value.ob_digit"), ("_longobject", "ob_digit")])?,
            dict_used: self.wide("PyDictObject", "ma_used")?,
            dict_keys: self.wide("PyDictObject", "ma_keys")?,
            dict_values: self.wide("PyDictObject", "ma_values")?,
            keys_log2_index_bytes: self.wide("_dictkeysobject", "dk_log2_index_bytes")?,
            keys_kind: self.wide("_dictkeysobject", "dk_kind")?,
            keys_nentries: self.wide("_dictkeysobject", "dk_nentries")?,
            keys_indices: self.wide("_dictkeysobject", "dk_indices")?,
            keys_kind_general: self
                .0
                .enumerator("DictKeysKind", "DICT_KEYS_GENERAL")
                .and_then(|kind| u32::try_from(kind).ok())
                .unwrap_or(NONE),
            entry_size: self.size("PyDictKeyEntry")?,
            entry_key: self.wide("PyDictKeyEntry", "me_key")?,
            entry_value: self.wide("PyDictKeyEntry", "me_value")?,
            unicode_entry_size: self.size("PyDictUnicodeEntry")?,
            unicode_entry_key: self.wide("PyDictUnicodeEntry", "me_key")?,
            unicode_entry_value: self.wide("PyDictUnicodeEntry", "me_value")?,
            values_items: self.wide("_dictvalues", "values")?,
            values_valid: valid,
            type_name: self.wide("_typeobject", "tp_name")?,
            type_basicsize: self.wide("_typeobject", "tp_basicsize")?,
            type_flags: self.wide("_typeobject", "tp_flags")?,
            type_base: self.wide("_typeobject", "tp_base")?,
            type_dict: self.wide("_typeobject", "tp_dict")?,
            type_init: self.wide("_typeobject", "tp_init")?,
            type_dictoffset: self.wide("_typeobject", "tp_dictoffset")?,
            heap_qualname: self.wide("_heaptypeobject", "ht_qualname")?,
            heap_cached_keys: self.wide("_heaptypeobject", "ht_cached_keys")?,
            module_dict: self.wide("PyModuleObject", "md_dict")?,
            gc_head_size: self.size("PyGC_Head")?,
            gc_head_next: self.wide("PyGC_Head", "_gc_next")?,
            gc_head_prev: self.wide("PyGC_Head", "_gc_prev")?,
            runtime_interpreters: self.wide("_PyRuntimeState", "interpreters.head")?,
            runtime_main: self.wide("_PyRuntimeState", "interpreters.main")?,
            runtime_tstate_current: self.or_none("_PyRuntimeState", "gilstate.tstate_current"),
            interp_next: self.wide("_is", "next")?,
            interp_threads: self.wide("_is", "threads.head")?,
            interp_gc: self.wide("_is", "gc")?,
            interp_generations: generations,
            generation_size: self.size("gc_generation")?,
            interp_permanent: self.wide("_is", "gc.permanent_generation")?,
            interp_collecting: self.wide("_is", "gc.collecting")?,
            interp_modules: self.first(&[("_is", "imports.modules"), ("_is", "modules")])?,
            interp_gil: self.or_none("_is", "ceval.gil"),
            runtime_gil: if self.0.offset("_is", "ceval.gil").is_some() {
                NONE
            } else {
                self.wide("_PyRuntimeState", "ceval.gil")?
            },
            gil_size: self.size("_gil_runtime_state")?,
            gil_last_holder: self.first(&[
                ("_gil_runtime_state", "last_holder._value"),
                ("_gil_runtime_state", "last_holder"),
            ])?,
            tstate_next: self.wide("_ts", "next")?,
            tstate_top: self.wide("_ts", "datastack_top")?,
            tstate_exception: self.first(&[("_ts", "current_exception"), ("_ts", "curexc_type")])?,
            tstate_cleared_bit: cleared.and_then(|member| member.bit).unwrap_or(NONE),
            code_framesize: self.or_none("PyCodeObject", "co_framesize"),
            code_nlocalsplus: self.wide("PyCodeObject", "co_nlocalsplus")?,
            code_stacksize: self.wide("PyCodeObject", "co_stacksize")?,
            context_vars: self.wide("_pycontextobject", "ctx_vars")?,
            tstate_context_ver: self.wide("_ts", "context_ver")?,
            contextvar_hash: self.wide("_pycontextvarobject", "var_hash")?,
            hamt_root: self.wide("PyHamtObject", "h_root")?,
            bitmap_bits: self.wide("PyHamtNode_Bitmap", "b_bitmap")?,
            bitmap_items: self.wide("PyHamtNode_Bitmap", "b_array")?,
            array_items: self.wide("PyHamtNode_Array", "a_array")?,
            collision_items: self.wide("PyHamtNode_Collision", "c_array")?,
            managed_dict: MANAGED_DICT,
            managed_values: if tagged || valid != NONE { NONE } else { MANAGED_VALUES },
            inline_values_flag: if valid == NONE { 0 } else { INLINE_VALUES },
        })
    }

    fn debug_table(&self) -> Result<Option<DebugTable>, ExtractError> {
        let Some(size) = self.0.size("_Py_DebugOffsets") else {
            return Ok(None);
        };
        let at = |path: &'static str| self.wide("_Py_DebugOffsets", path);
        Ok(Some(DebugTable {
            size,
            version: at("version")?,
            free_threaded: at("free_threaded")?,
            interpreters_head: at("runtime_state.interpreters_head")?,
            interp_next: at("interpreter_state.next")?,
            interp_threads: at("interpreter_state.threads_head")?,
            interp_gc: at("interpreter_state.gc")?,
            interp_modules: at("interpreter_state.imports_modules")?,
            interp_gil: at("interpreter_state.ceval_gil")?,
            tstate_next: at("thread_state.next")?,
            tstate_interp: at("thread_state.interp")?,
            tstate_frame: at("thread_state.current_frame")?,
            tstate_thread_id: at("thread_state.thread_id")?,
            tstate_native_id: at("thread_state.native_thread_id")?,
            frame_previous: at("interpreter_frame.previous")?,
            frame_code: at("interpreter_frame.executable")?,
            frame_instr: at("interpreter_frame.instr_ptr")?,
            frame_localsplus: at("interpreter_frame.localsplus")?,
            frame_owner: at("interpreter_frame.owner")?,
            code_filename: at("code_object.filename")?,
            code_name: at("code_object.name")?,
            code_qualname: at("code_object.qualname")?,
            code_linetable: at("code_object.linetable")?,
            code_firstlineno: at("code_object.firstlineno")?,
            code_instrs: at("code_object.co_code_adaptive")?,
        }))
    }

    /// greenlet's classes: one base, the rest in members of it.
    /// <https://github.com/python-greenlet/greenlet/blob/3.5.3/src/greenlet/TGreenlet.hpp>
    fn greenlet_layout(&self) -> Result<GreenletLayout, ExtractError> {
        let stack = self.wide("greenlet::Greenlet", "stack_state")?;
        let python = self.wide("greenlet::Greenlet", "python_state")?;
        let within = |base: u32, root: &'static str, path: &'static str| {
            let offset = self.wide(root, path)?;
            narrow(base.saturating_add(offset), root, path)
        };
        // Up to 3.1.0 each class has its own `_self`.
        let own_self = |class: &'static str| {
            let offset = self.first(&[(class, "_self"), ("greenlet::Greenlet", "_self")])?;
            narrow(offset, class, "_self")
        };
        // greenlet 3.0.0 to 3.0.2 on CPython 3.12 cut the chain below the top frame
        // of a suspended greenlet, and keep the rest here.
        let cut = self.0.offset("greenlet::PythonState", "_prev_frame").is_some();
        Ok(GreenletLayout {
            object_pimpl: self.near("_greenlet", "pimpl")?,
            self_object: own_self("greenlet::UserGreenlet")?,
            main_self_object: own_self("greenlet::MainGreenlet")?,
            stack_start: within(stack, "greenlet::StackState", "_stack_start")?,
            stack_stop: within(stack, "greenlet::StackState", "stack_stop")?,
            context: within(python, "greenlet::PythonState", "_context")?,
            current_frame: within(python, "greenlet::PythonState", "current_frame")?,
            chunk: within(python, "greenlet::PythonState", "datastack_chunk")?,
            top: within(python, "greenlet::PythonState", "datastack_top")?,
            main_greenlet: self.near("greenlet::UserGreenlet", "_main_greenlet")?,
            parent: self.near("greenlet::UserGreenlet", "_parent")?,
            thread_state: self.near("greenlet::MainGreenlet", "_thread_state")?,
            current_greenlet: self.near("greenlet::ThreadState", "current_greenlet")?,
            top_frame_only: u16::from(cut),
        })
    }
}

fn narrow(offset: u32, root: &'static str, path: &'static str) -> Result<u16, ExtractError> {
    match u16::try_from(offset) {
        Ok(offset) if offset != ABSENT => Ok(offset),
        _ => Err(ExtractError::Missing { root, path }),
    }
}
