//! `_Py_DebugOffsets`: what a running CPython says of its own layout (3.13 on).
//!
//! <https://github.com/python/cpython/blob/v3.13.0/Include/internal/pycore_runtime.h#L62>

use profiler_common::{address::Addr, fault::Fault, layout::PythonLayout};

use crate::{
    memory::Bytes,
    python::objects::{DebugTable, ObjectLayout},
};

const COOKIE: &[u8; 8] = b"xdebugpy";
/// More than any table has: 584 bytes in 3.13, 760 in 3.14.
const MAX_BYTES: u32 = 8_192;

/// The table, read from a process.
pub(super) struct DebugOffsets {
    bytes: Vec<u8>,
    table: DebugTable,
}

impl DebugOffsets {
    /// Reads the table at the beginning of `_PyRuntime`; `None` without its cookie.
    pub(super) fn read(
        memory: &mut impl Bytes,
        runtime: Addr,
        table: DebugTable,
    ) -> Result<Option<Self>, Fault> {
        let mut bytes = vec![0; table.size.min(MAX_BYTES) as usize];
        memory.read_bytes(runtime, &mut bytes)?;
        Ok(bytes.starts_with(COOKIE).then_some(Self { bytes, table }))
    }

    fn entry(&self, at: u32) -> Option<u32> {
        let bytes = self.bytes.get(at as usize..)?.first_chunk::<8>()?;
        u32::try_from(u64::from_le_bytes(*bytes)).ok()
    }

    /// `PY_VERSION_HEX` as the process has it.
    pub(super) fn version_hex(&self) -> Option<u32> {
        self.entry(self.table.version)
    }

    /// Whether the process runs without the GIL.
    pub(super) fn free_threaded(&self) -> bool {
        self.entry(self.table.free_threaded).is_some_and(|flag| flag != 0)
    }

    /// Puts the process's own offsets in the place of those of the tables, and names
    /// each that differed.
    pub(super) fn correct(&self, python: &mut PythonLayout, objects: &mut ObjectLayout) -> Vec<&'static str> {
        let table = &self.table;
        let mut differing = Vec::new();
        let mut near = |name: &'static str, at: u32, field: &mut u16| {
            if let Some(own) = self.entry(at).and_then(|own| u16::try_from(own).ok())
                && own != *field
            {
                *field = own;
                differing.push(name);
            }
        };
        near("PyThreadState.interp", table.tstate_interp, &mut python.tstate_interp);
        near("PyThreadState.current_frame", table.tstate_frame, &mut python.tstate_frame);
        near("PyThreadState.thread_id", table.tstate_thread_id, &mut python.tstate_thread_id);
        near("PyThreadState.native_thread_id", table.tstate_native_id, &mut python.tstate_native_id);
        near("_PyInterpreterFrame.previous", table.frame_previous, &mut python.frame_previous);
        near("_PyInterpreterFrame.f_executable", table.frame_code, &mut python.frame_code);
        near("_PyInterpreterFrame.instr_ptr", table.frame_instr, &mut python.frame_instr);
        near("_PyInterpreterFrame.localsplus", table.frame_localsplus, &mut python.frame_size);
        near("_PyInterpreterFrame.owner", table.frame_owner, &mut python.frame_owner);
        near("PyCodeObject.co_filename", table.code_filename, &mut python.code_filename);
        near("PyCodeObject.co_firstlineno", table.code_firstlineno, &mut python.code_firstlineno);
        near("PyCodeObject.co_code_adaptive", table.code_instrs, &mut python.code_instrs);
        let gc = objects.interp_gc;
        let mut wide = |name: &'static str, at: u32, field: &mut u32| {
            if let Some(own) = self.entry(at)
                && own != *field
            {
                *field = own;
                differing.push(name);
            }
        };
        let runtime = &mut objects.runtime_interpreters;
        wide("_PyRuntime.interpreters.head", table.interpreters_head, runtime);
        wide("PyInterpreterState.next", table.interp_next, &mut objects.interp_next);
        wide("PyInterpreterState.threads.head", table.interp_threads, &mut objects.interp_threads);
        wide("PyInterpreterState.gc", table.interp_gc, &mut objects.interp_gc);
        let modules = &mut objects.interp_modules;
        wide("PyInterpreterState.imports.modules", table.interp_modules, modules);
        wide("PyInterpreterState.ceval.gil", table.interp_gil, &mut objects.interp_gil);
        wide("PyThreadState.next", table.tstate_next, &mut objects.tstate_next);
        wide("PyCodeObject.co_filename", table.code_filename, &mut objects.code_filename);
        wide("PyCodeObject.co_name", table.code_name, &mut objects.code_name);
        wide("PyCodeObject.co_qualname", table.code_qualname, &mut objects.code_qualname);
        wide("PyCodeObject.co_linetable", table.code_linetable, &mut objects.code_linetable);
        wide("PyCodeObject.co_firstlineno", table.code_firstlineno, &mut objects.code_firstlineno);
        wide("PyCodeObject.co_code_adaptive", table.code_instrs, &mut objects.code_instrs);
        // The collector's lists move with their structure.
        let moved = objects.interp_gc.wrapping_sub(gc);
        for field in
            [&mut objects.interp_generations, &mut objects.interp_permanent, &mut objects.interp_collecting]
        {
            *field = field.wrapping_add(moved);
        }
        differing.dedup();
        differing
    }
}
