//! Which module a hit is of, and whether this probe tells of it; greenlet that is loaded late.

use aya_ebpf::{
    EbpfContext as _,
    helpers::generated::{bpf_get_attach_cookie, bpf_ktime_get_ns},
    programs::ProbeContext,
};
use profiler_common::{
    address::Addr,
    fault::Fault,
    memory::Memory as _,
    record::{ANY_TARGET, COOKIE_LIBRARY, Kind, LoadedRecord, Module, RecordHead, TargetConfig, VERSION},
};

use crate::{emit, fork, kernel, maps, memory::UserMemory};

/// Whether this probe is the one whose hits in `target` count.
///
/// To the kernel one instruction can have several: files that look like two may be one to a
/// uprobe, and then each has its own. The first that is hit in the target's module owns the
/// target from then on, and the children that it forks; nothing is taken from the others.
#[inline(always)]
pub fn owns(ctx: &ProbeContext, config: &TargetConfig, target: u64) -> bool {
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie & ANY_TARGET == 0 {
        return cookie == target;
    }
    let Some(module) = maps::module(target) else {
        return false;
    };
    let library = cookie >> COOKIE_LIBRARY;
    module.owner == library || module.owner == 0 && claim(ctx, config, target, module, library)
}

/// Takes a target that is nobody's yet.
#[inline(always)]
fn claim(ctx: &ProbeContext, config: &TargetConfig, target: u64, module: &mut Module, library: u64) -> bool {
    if module.end.is_null() {
        let _found = find(ctx, config, target);
        return module.owner == library;
    }
    let at = instruction(ctx);
    // Else it is another library of the same process.
    let within = at >= module.start.0 && at < module.end.0;
    if within {
        module.owner = library;
    }
    within
}

/// Tells greenscope which inode lies behind a mapping of its own.
#[inline(always)]
pub fn on_mapped(address: u64) {
    maps::tell_mapped(kernel::inode_behind(maps::current_task(), address));
}

/// Finds the module of the library that is hit, which is the first hit of `target`: its
/// probe is set in every process that maps the file, and where it is tells where the module
/// begins. Only a library whose layout the target has is good; user space is told in any
/// case.
#[inline(never)]
fn find(ctx: &ProbeContext, config: &TargetConfig, target: u64) -> u32 {
    // SAFETY: the context is this program's.
    let cookie = unsafe { bpf_get_attach_cookie(ctx.as_ptr()) };
    if cookie & ANY_TARGET == 0 {
        return 0;
    }
    let Some(probed) = maps::probed(cookie as u32) else {
        return 0;
    };
    let Some(module) = maps::module(target) else {
        return 0;
    };
    let start = instruction(ctx).wrapping_sub(probed.from_start);
    let end = start.wrapping_add(probed.module_bytes);
    if probed.library != 0 && probed.library == u64::from(config.library) {
        module.start = Addr(start);
        module.end = Addr(end);
        module.owner = probed.library;
    } else if module.told != 0 {
        return 0;
    }
    module.told = 1;
    // SAFETY: takes no argument.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let record = LoadedRecord {
        head: RecordHead { kind: Kind::Loaded as u32, version: VERSION, target, time_ns },
        start: Addr(start),
        end: Addr(end),
        library: probed.library,
    };
    // Without room user space finds it in the mappings.
    u32::from(emit::send(&raw const record, size_of::<LoadedRecord>() as u64, true))
}

/// `PyModuleDef.m_name`: the struct is part of CPython's stable ABI.
/// <https://github.com/python/cpython/blob/v3.13.0/Include/moduleobject.h>
const DEFINITION_NAME: u16 = 40;
/// The first letters of `greenlet._greenlet`.
/// <https://github.com/python-greenlet/greenlet/blob/3.5.3/src/greenlet/greenlet.cpp>
const NAME: [u64; 2] = [u64::from_ne_bytes(*b"greenlet"), u64::from_ne_bytes(*b"._greenl")];

/// An extension makes the module of that definition: tells user space if it may be
/// greenlet's, in a target that had not loaded one.
#[inline(always)]
pub fn on_made(definition: Addr) {
    let target = match maps::slot() {
        Some(slot) => slot.target,
        None => fork::process(),
    };
    if maps::config(target).is_none() || maps::module(target).is_none_or(|module| !module.end.is_null()) {
        return;
    }
    let Ok(at) = UserMemory.pointer(definition.at(DEFINITION_NAME)) else {
        return;
    };
    let mut name = [0; 2];
    // Nobody may have read it yet, and then it is not in memory.
    if UserMemory.read(at, &mut name).is_ok() && name != NAME {
        return;
    }
    // SAFETY: takes no argument.
    let time_ns = unsafe { bpf_ktime_get_ns() };
    let record = RecordHead { kind: Kind::Loads as u32, version: VERSION, target, time_ns };
    if !emit::send(&raw const record, size_of::<RecordHead>() as u64, true)
        && let Some(totals) = maps::totals(target)
    {
        maps::count(totals, Fault::GreenletLate);
    }
}

/// The address of the probed instruction.
#[cfg(bpf_target_arch = "x86_64")]
#[inline(always)]
fn instruction(ctx: &ProbeContext) -> u64 {
    // SAFETY: the context is this program's registers.
    unsafe { (*ctx.regs).rip }
}

#[cfg(bpf_target_arch = "aarch64")]
#[inline(always)]
fn instruction(ctx: &ProbeContext) -> u64 {
    // SAFETY: as above; `user_pt_regs` has 31 registers and the stack pointer before it.
    // https://github.com/torvalds/linux/blob/v6.12/arch/arm64/include/uapi/asm/ptrace.h
    unsafe { *ctx.regs.cast::<u64>().wrapping_add(32) }
}
