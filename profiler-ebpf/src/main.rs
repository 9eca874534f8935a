//! greenscope's kernel part: what happens at a greenlet switch, seen by uprobes.
//!
//! Entry points only. Uprobe programs may be preempted and another process may run
//! the same program on the same CPU meanwhile, so nothing here lives per CPU but a word
//! of the scheduler's tracepoint: the scratch of a hit lies in the storage of its task
//! ([`slot`]), and what is shared is written by the holder of the target's GIL only, or by one
//! atomic operation a word.

#![feature(asm_experimental_arch)]
#![no_std]
#![no_main]

mod account;
mod block;
mod buffers;
mod clock;
mod code;
mod connection;
mod emit;
mod exec;
mod fork;
mod kernel;
mod label;
mod lent;
mod log;
mod maps;
mod memory;
mod module;
mod off;
mod own;
mod part;
mod poll;
mod slot;
mod socket;
mod stack;
mod storage;
mod switch;
mod thread;
mod tick;
mod wire;

use aya_ebpf::{
    macros::{btf_tracepoint, perf_event, raw_tracepoint, uprobe},
    programs::{BtfTracePointContext, PerfEventContext, ProbeContext, RawTracePointContext},
};
use profiler_common::address::Addr;

use crate::switch::Via;

/// `greenlet::Greenlet::g_switchstack()`: `this` is the real target of the switch.
#[uprobe]
fn g_switchstack(ctx: ProbeContext) -> u32 {
    // The methods return a class by value, whose address takes the first register:
    // `this` is the second argument (System V ABI, 3.2.3; AAPCS64 passes it in x8,
    // and `this` stays the first).
    switch::on_switch(&ctx, this(&ctx), Via::Switchstack);
    0
}

/// `UserGreenlet::g_switch()` and `MainGreenlet::g_switch()`: `this` is the
/// requested target.
#[uprobe]
fn g_switch(ctx: ProbeContext) -> u32 {
    switch::on_switch(&ctx, this(&ctx), Via::Switch);
    0
}

/// `UserGreenlet::g_initialstub(void *)`: `this` is about to start.
#[uprobe]
fn g_initialstub(ctx: ProbeContext) -> u32 {
    switch::on_switch(&ctx, this(&ctx), Via::Initialstub);
    0
}

/// The deleting destructors of `UserGreenlet` and `MainGreenlet`.
#[uprobe]
fn greenlet_freed(ctx: ProbeContext) -> u32 {
    let this: u64 = ctx.arg(0).unwrap_or_default();
    account::on_freed(&ctx, Addr(this));
    0
}

/// `green_init(PyGreenlet *, …)`: a greenlet is made.
#[uprobe]
fn greenlet_made(ctx: ProbeContext) -> u32 {
    let object: u64 = ctx.arg(0).unwrap_or_default();
    label::on_made(&ctx, Addr(object));
    0
}

/// A call of `epoll_wait` or its like in a library with an event loop.
#[uprobe]
fn loop_polls(ctx: ProbeContext) -> u32 {
    // Its third argument.
    poll::on_poll(ctx.arg::<u64>(2).unwrap_or_default() as u32);
    maps::keep_normal_stack(&ctx);
    0
}

/// CPython's `code_dealloc(PyCodeObject *)`: a code object is freed.
#[uprobe]
fn code_freed(ctx: ProbeContext) -> u32 {
    code::on_freed(&ctx, Addr(ctx.arg(0).unwrap_or_default()));
    maps::keep_normal_stack(&ctx);
    0
}

/// CPython's `PyModule_Create2`: an extension makes its module.
#[uprobe]
fn module_made(ctx: ProbeContext) -> u32 {
    module::on_made(Addr(ctx.arg(0).unwrap_or_default()));
    maps::keep_normal_stack(&ctx);
    0
}

/// CPython's `Py_RunMain`: the interpreter is up, and the program begins.
#[uprobe]
fn python_up(ctx: ProbeContext) -> u32 {
    exec::on_up();
    maps::keep_normal_stack(&ctx);
    0
}

/// A function of greenscope's own: it asks what lies behind a mapping of its own.
#[uprobe]
fn mapped(ctx: ProbeContext) -> u32 {
    module::on_mapped(ctx.arg(0).unwrap_or_default());
    0
}

/// An empty program, the yardstick of `cargo xtask bench`.
#[uprobe]
fn empty(_ctx: ProbeContext) -> u32 {
    0
}

/// The CPU clock ticks.
#[perf_event]
fn cpu_clock(_ctx: PerfEventContext) -> u32 {
    tick::on_tick();
    0
}

/// A CPU goes from one thread to another.
#[btf_tracepoint(function = "sched_switch")]
fn sched_switch(ctx: BtfTracePointContext) -> i32 {
    clock::on_sched_switch(&ctx);
    0
}

/// A thread or a process is made, by its parent.
#[btf_tracepoint(function = "task_newtask")]
fn task_newtask(ctx: BtfTracePointContext) -> i32 {
    fork::on_new_task(&ctx);
    0
}

/// Something came to a socket.
#[btf_tracepoint(function = "sk_data_ready")]
fn sk_data_ready(ctx: BtfTracePointContext) -> i32 {
    socket::on_ready(&ctx);
    0
}

/// Bytes were received from a socket.
#[btf_tracepoint(function = "sock_recv_length")]
fn sock_recv_length(ctx: BtfTracePointContext) -> i32 {
    wire::on_received(&ctx);
    0
}

/// Bytes went to a socket.
#[btf_tracepoint(function = "sock_send_length")]
fn sock_send_length(ctx: BtfTracePointContext) -> i32 {
    wire::on_sent(&ctx);
    0
}

/// A connection's state changes.
#[btf_tracepoint(function = "inet_sock_set_state")]
fn inet_sock_set_state(ctx: BtfTracePointContext) -> i32 {
    wire::on_state(&ctx);
    0
}

/// A thread ends.
#[raw_tracepoint(tracepoint = "sched_process_exit")]
fn sched_process_exit(_ctx: RawTracePointContext) -> i32 {
    thread::on_exit();
    0
}

/// A process replaces itself.
#[raw_tracepoint(tracepoint = "sched_process_exec")]
fn sched_process_exec(ctx: RawTracePointContext) -> i32 {
    exec::on_exec(&ctx);
    0
}

#[cfg(bpf_target_arch = "x86_64")]
fn this(ctx: &ProbeContext) -> Addr {
    Addr(ctx.arg(1).unwrap_or_default())
}

#[cfg(bpf_target_arch = "aarch64")]
fn this(ctx: &ProbeContext) -> Addr {
    Addr(ctx.arg(0).unwrap_or_default())
}

#[panic_handler]
fn panic(_info: &core::panic::PanicInfo<'_>) -> ! {
    // Never reached: `cargo xtask build-ebpf` fails if the object has a way here.
    loop {}
}

/// The licence by which the kernel admits the helpers that we call.
#[unsafe(link_section = "license")]
#[unsafe(no_mangle)]
static LICENSE: [u8; 4] = *b"GPL\0";
