//! Where the fields of CPython's objects lie: plain data, one value a version.
//!
//! The values come from the generated table (`cargo xtask codegen layouts`), never
//! from constants in code. Offsets are in bytes. `xtask` compiles this very file.

/// A field that this version does not have.
pub const NONE: u32 = u32::MAX;

/// The offsets that user space needs beside [`profiler_common::layout::PythonLayout`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ObjectLayout {
    /// `PyObject.ob_type`.
    pub object_type: u32,
    /// `PyVarObject.ob_size`.
    pub object_size: u32,
    /// `PyCodeObject.co_firstlineno` (i32).
    pub code_firstlineno: u32,
    /// `PyCodeObject.co_filename`.
    pub code_filename: u32,
    /// `PyCodeObject.co_name`.
    pub code_name: u32,
    /// `PyCodeObject.co_qualname`.
    pub code_qualname: u32,
    /// `PyCodeObject.co_linetable`.
    pub code_linetable: u32,
    /// `PyCodeObject.co_code_adaptive`: the first instruction.
    pub code_instrs: u32,
    /// `PyCodeObject._co_firsttraceable` (i32): the first instruction, counted in
    /// units of two bytes, at which a frame shows.
    pub code_firsttraceable: u32,
    /// `PyASCIIObject.length` (characters).
    pub str_length: u32,
    /// `PyASCIIObject.state` (u32 bit field).
    pub str_state: u32,
    /// The lowest bit of `state.kind`.
    pub str_kind_bit: u32,
    /// How many bits `state.kind` has.
    pub str_kind_bits: u32,
    /// The bit `state.compact`.
    pub str_compact_bit: u32,
    /// The bit `state.ascii`.
    pub str_ascii_bit: u32,
    /// `sizeof(PyASCIIObject)`: where the text of an ASCII string begins.
    pub str_ascii_data: u32,
    /// `sizeof(PyCompactUnicodeObject)`: where other compact text begins.
    pub str_compact_data: u32,
    /// `PyUnicodeObject.data`: the pointer to the text of a non-compact string.
    pub str_data_pointer: u32,
    /// `PyBytesObject.ob_sval`.
    pub bytes_data: u32,
    /// `PyTupleObject.ob_item`.
    pub tuple_items: u32,
    /// `PyListObject.ob_item` (a pointer to the items).
    pub list_items: u32,
    /// `PyLongObject.long_value.lv_tag` (3.12 on), else [`NONE`]: `ob_size` tells.
    pub int_tag: u32,
    /// The digits (u32, 30 bits used) of a `PyLongObject`.
    pub int_digits: u32,
    /// `PyDictObject.ma_used`.
    pub dict_used: u32,
    /// `PyDictObject.ma_keys`.
    pub dict_keys: u32,
    /// `PyDictObject.ma_values`.
    pub dict_values: u32,
    /// `PyDictKeysObject.dk_log2_index_bytes` (u8).
    pub keys_log2_index_bytes: u32,
    /// `PyDictKeysObject.dk_kind` (u8).
    pub keys_kind: u32,
    /// `PyDictKeysObject.dk_nentries`.
    pub keys_nentries: u32,
    /// `PyDictKeysObject.dk_indices`: the index, and behind it the entries.
    pub keys_indices: u32,
    /// The value of `dk_kind` for entries with a hash.
    pub keys_kind_general: u32,
    /// `sizeof(PyDictKeyEntry)`.
    pub entry_size: u32,
    /// `PyDictKeyEntry.me_key`.
    pub entry_key: u32,
    /// `PyDictKeyEntry.me_value`.
    pub entry_value: u32,
    /// `sizeof(PyDictUnicodeEntry)`.
    pub unicode_entry_size: u32,
    /// `PyDictUnicodeEntry.me_key`.
    pub unicode_entry_key: u32,
    /// `PyDictUnicodeEntry.me_value`.
    pub unicode_entry_value: u32,
    /// `PyDictValues.values`.
    pub values_items: u32,
    /// `PyDictValues.valid` (u8; 3.13 on), else [`NONE`].
    pub values_valid: u32,
    /// `PyTypeObject.tp_name` (a C string).
    pub type_name: u32,
    /// `PyTypeObject.tp_basicsize`.
    pub type_basicsize: u32,
    /// `PyTypeObject.tp_flags`.
    pub type_flags: u32,
    /// `PyTypeObject.tp_base`.
    pub type_base: u32,
    /// `PyTypeObject.tp_dict`.
    pub type_dict: u32,
    /// `PyTypeObject.tp_init`.
    pub type_init: u32,
    /// `PyTypeObject.tp_dictoffset`.
    pub type_dictoffset: u32,
    /// `PyHeapTypeObject.ht_qualname`.
    pub heap_qualname: u32,
    /// `PyHeapTypeObject.ht_cached_keys`.
    pub heap_cached_keys: u32,
    /// `PyModuleObject.md_dict`.
    pub module_dict: u32,
    /// `sizeof(PyGC_Head)`: a tracked object lies this far behind its list node.
    pub gc_head_size: u32,
    /// `PyGC_Head._gc_next`.
    pub gc_head_next: u32,
    /// `PyGC_Head._gc_prev`.
    pub gc_head_prev: u32,
    /// `_PyRuntimeState.interpreters.head`.
    pub runtime_interpreters: u32,
    /// `_PyRuntimeState.interpreters.main`.
    pub runtime_main: u32,
    /// `_PyRuntimeState.gilstate.tstate_current` (up to 3.11), else [`NONE`].
    pub runtime_tstate_current: u32,
    /// `PyInterpreterState.next`.
    pub interp_next: u32,
    /// `PyInterpreterState.threads.head`.
    pub interp_threads: u32,
    /// `PyInterpreterState.gc`.
    pub interp_gc: u32,
    /// `PyInterpreterState.gc.generations`.
    pub interp_generations: u32,
    /// `sizeof(struct gc_generation)`; its list head comes first.
    pub generation_size: u32,
    /// `PyInterpreterState.gc.permanent_generation`.
    pub interp_permanent: u32,
    /// `PyInterpreterState.gc.collecting` (i32).
    pub interp_collecting: u32,
    /// `PyInterpreterState.imports.modules`: the dictionary `sys.modules`.
    pub interp_modules: u32,
    /// `PyInterpreterState.ceval.gil`: a pointer (3.12 on), else [`NONE`].
    pub interp_gil: u32,
    /// `_PyRuntimeState.ceval.gil`: the structure itself (up to 3.11), else [`NONE`].
    pub runtime_gil: u32,
    /// `sizeof(struct _gil_runtime_state)`.
    pub gil_size: u32,
    /// `_gil_runtime_state.last_holder`.
    pub gil_last_holder: u32,
    /// `PyThreadState.next`.
    pub tstate_next: u32,
    /// `PyThreadState.datastack_top`.
    pub tstate_top: u32,
    /// `PyThreadState.current_exception` (3.12 on) or `curexc_type`.
    pub tstate_exception: u32,
    /// The bit of `cleared` in `PyThreadState._status` (3.12 on), else [`NONE`].
    pub tstate_cleared_bit: u32,
    /// `PyCodeObject.co_framesize` (i32, words; 3.12 on), else [`NONE`].
    pub code_framesize: u32,
    /// `PyCodeObject.co_nlocalsplus` (i32).
    pub code_nlocalsplus: u32,
    /// `PyCodeObject.co_stacksize` (i32).
    pub code_stacksize: u32,
    /// `PyContext.ctx_vars`.
    pub context_vars: u32,
    /// `PyThreadState.context_ver`.
    pub tstate_context_ver: u32,
    /// `PyContextVar.var_hash`.
    pub contextvar_hash: u32,
    /// `PyHamtObject.h_root`.
    pub hamt_root: u32,
    /// `PyHamtNode_Bitmap.b_bitmap` (u32).
    pub bitmap_bits: u32,
    /// `PyHamtNode_Bitmap.b_array`.
    pub bitmap_items: u32,
    /// `PyHamtNode_Array.a_array`.
    pub array_items: u32,
    /// `PyHamtNode_Collision.c_array`.
    pub collision_items: u32,
    /// Words that lie before an object with a managed dictionary: the dictionary's
    /// (3.11: and, [`Self::managed_values`], the values') offset counted backwards.
    pub managed_dict: u32,
    /// Where 3.11 keeps the pointer to the values, counted backwards, else [`NONE`].
    pub managed_values: u32,
    /// `Py_TPFLAGS_INLINE_VALUES` (3.13 on), else 0.
    pub inline_values_flag: u32,
}

/// Where the entries of `_Py_DebugOffsets` lie in `_PyRuntime` (3.13 on).
///
/// CPython writes its own offsets there; each entry is a u64.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_runtime.h#L62>
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct DebugTable {
    /// Its size in bytes.
    pub size: u32,
    /// `version`, a `PY_VERSION_HEX`.
    pub version: u32,
    /// `free_threaded`.
    pub free_threaded: u32,
    /// `runtime_state.interpreters_head`.
    pub interpreters_head: u32,
    /// `interpreter_state.next`.
    pub interp_next: u32,
    /// `interpreter_state.threads_head`.
    pub interp_threads: u32,
    /// `interpreter_state.gc`.
    pub interp_gc: u32,
    /// `interpreter_state.imports_modules`.
    pub interp_modules: u32,
    /// `interpreter_state.ceval_gil`.
    pub interp_gil: u32,
    /// `thread_state.next`.
    pub tstate_next: u32,
    /// `thread_state.interp`.
    pub tstate_interp: u32,
    /// `thread_state.current_frame`.
    pub tstate_frame: u32,
    /// `thread_state.thread_id`.
    pub tstate_thread_id: u32,
    /// `thread_state.native_thread_id`.
    pub tstate_native_id: u32,
    /// `interpreter_frame.previous`.
    pub frame_previous: u32,
    /// `interpreter_frame.executable`.
    pub frame_code: u32,
    /// `interpreter_frame.instr_ptr`.
    pub frame_instr: u32,
    /// `interpreter_frame.localsplus`.
    pub frame_localsplus: u32,
    /// `interpreter_frame.owner`.
    pub frame_owner: u32,
    /// `code_object.filename`.
    pub code_filename: u32,
    /// `code_object.name`.
    pub code_name: u32,
    /// `code_object.qualname`.
    pub code_qualname: u32,
    /// `code_object.linetable`.
    pub code_linetable: u32,
    /// `code_object.firstlineno`.
    pub code_firstlineno: u32,
    /// `code_object.co_code_adaptive`.
    pub code_instrs: u32,
}
