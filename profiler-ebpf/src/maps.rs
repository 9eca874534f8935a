//! The maps, their bounds, and the one way to each.

use core::{
    arch::asm,
    ffi::c_void,
    ptr::{self, NonNull},
};

use aya_ebpf::{
    bindings::{BPF_LOCAL_STORAGE_GET_F_CREATE, task_struct},
    btf_maps::{Array, HashMap, LruHashMap, PerCpuArray, ProgramArray, Queue, RingBuf},
    helpers::generated::bpf_get_current_task_btf,
    macros::btf_map,
    programs::ProbeContext,
};
use profiler_common::{
    code::Codes,
    fault::Fault,
    label::{Label, Lent, PairKey, PairTotals},
    limits::{
        DEFAULT_GREENLETS, MAX_LENT, MAX_PAIRS, MAX_PROBED, MAX_STACKS, MAX_TARGETS, MAX_THREADS,
        MAX_UNSTARTED, RING_BYTES,
    },
    queue::Queued,
    record::{
        Greenlet, GreenletKey, Kin, LentKey, Module, Probed, StackRecord, StackTotals, TargetConfig, Thread,
        Totals,
    },
    walk::StackKey,
};

use crate::{
    connection::Connection,
    slot::Slot,
    socket::Waiter,
    storage::{SocketStorage, TaskStorage},
};

#[btf_map]
static CONFIGS: Array<TargetConfig, { MAX_TARGETS as usize }> = Array::new();
/// The targets' numbers that are not in use.
#[btf_map]
static FREE: Queue<u32, { MAX_TARGETS as usize }> = Queue::new();
/// The targets by pid in the kernel's first pid namespace, for threads without a slot.
#[btf_map]
static PROCESSES: HashMap<u32, u32, { MAX_TARGETS as usize }> = HashMap::new();
#[btf_map]
static MODULES: Array<Module, { MAX_TARGETS as usize }> = Array::new();
#[btf_map]
static PROBED: Array<Probed, { MAX_PROBED as usize }> = Array::new();
#[btf_map]
static TOTALS: Array<Totals, { MAX_TARGETS as usize }> = Array::new();
#[btf_map]
static CODES: Array<Codes, { MAX_TARGETS as usize }> = Array::new();
#[btf_map]
static GREENLETS: HashMap<GreenletKey, Greenlet, { DEFAULT_GREENLETS as usize }> = HashMap::new();
#[btf_map]
static STACKS: HashMap<StackKey, StackTotals, { MAX_STACKS as usize }> = HashMap::new();
#[btf_map]
static THREADS: HashMap<u64, Thread, { MAX_THREADS as usize }> = HashMap::new();
/// Time by stack and label: the kernel part adds to one of them while user space reads the
/// other.
#[btf_map]
static PAIRS_0: HashMap<PairKey, PairTotals, { MAX_PAIRS as usize }> = HashMap::new();
#[btf_map]
static PAIRS_1: HashMap<PairKey, PairTotals, { MAX_PAIRS as usize }> = HashMap::new();
/// Which of them.
#[btf_map]
static PHASE: Array<u32, 1> = Array::new();
/// What greenlets that were not switched to yet have from their makers.
#[btf_map]
static UNSTARTED: HashMap<GreenletKey, Label, { MAX_UNSTARTED as usize }> = HashMap::new();
/// Requests that made greenlets. What is pushed out is over for those: their labels end early.
#[btf_map]
static LENT: LruHashMap<LentKey, Lent, { MAX_LENT as usize }> = LruHashMap::new();
/// How far the clock is ahead of the one by which the CPU's scheduler reckons, as it was when
/// a thread of a target last came or left there; 0 if none did.
#[btf_map]
static LEADS: PerCpuArray<u64, 1> = PerCpuArray::new();
/// How much the ring's reader had taken when it was woken last, and 1.
#[btf_map]
static WOKEN: Array<u64, 1> = Array::new();
#[btf_map]
pub static RING: RingBuf<u64, { RING_BYTES as usize }> = RingBuf::new();
#[btf_map]
static SLOTS: TaskStorage<Slot> = TaskStorage::new();
#[btf_map]
static STACK_RECORDS: TaskStorage<StackRecord> = TaskStorage::new();
#[btf_map]
static SAMPLE_RECORDS: PerCpuArray<StackRecord, 1> = PerCpuArray::new();

/// The connections of targets.
#[btf_map]
static CONNECTIONS: SocketStorage<Connection> = SocketStorage::new();
/// Who waits for sockets of any kind.
#[btf_map]
static WAITERS: SocketStorage<Waiter> = SocketStorage::new();
/// What processes descend from that are no targets themselves.
#[btf_map]
static KIN: TaskStorage<Kin> = TaskStorage::new();

/// The inode behind the mapping that greenscope asked for last.
#[btf_map]
static MAPPED: Array<u64, 1> = Array::new();

/// Always empty: see [`keep_normal_stack`].
#[btf_map]
static NOTHING: ProgramArray<1> = ProgramArray::new();

/// Keeps the kernel from giving the calling program a private stack.
///
/// From 6.13 on the verifier gives a tracing program whose frame is 64 bytes or more a
/// stack of its own per CPU, trusting that it never runs twice on a CPU at a time. But
/// a uprobe program can be preempted, and another process then runs it on the same
/// stack: on Debian's 7.2 (preempt=lazy) four targets on one CPU brought the kernel down
/// in `__htab_map_lookup_elem`, with a greenlet's number where a key's address should
/// be. A program with a tail call never gets one; this call goes nowhere.
/// <https://github.com/torvalds/linux/blob/v6.18/kernel/bpf/verifier.c>
/// (`check_max_stack_depth`, `bpf_enable_priv_stack`)
#[inline(always)]
pub fn keep_normal_stack(ctx: &ProbeContext) {
    // SAFETY: the array is empty, so that the call fails and the program goes on.
    unsafe { NOTHING.tail_call(ctx, 0) };
}

/// The configuration of the target with this cookie, while it is recorded.
#[inline(always)]
pub fn config(cookie: u64) -> Option<&'static TargetConfig> {
    let config = CONFIGS.get_ptr(cookie as u32)?;
    // SAFETY: an array's element lives as long as the program. User space and `on_exec`
    // may write it meanwhile, word by word; every field is read on its own, and what
    // depends on two of them stands either order.
    let config = unsafe { &*config };
    (config.started_ns != 0).then_some(config)
}

/// Stops the recording of a target: its memory is not what the layout says any more.
#[inline(always)]
pub fn stop(cookie: u64) {
    if let Some(config) = CONFIGS.get_ptr_mut(cookie as u32) {
        // SAFETY: as in `config`; one aligned word.
        unsafe { (*config).started_ns = 0 };
    }
}

/// Where a target has mapped greenlet's extension.
#[inline(always)]
pub fn module(target: u64) -> Option<&'static mut Module> {
    let module = MODULES.get_ptr_mut(target as u32)?;
    // SAFETY: user space writes it before anything counts, and then the holder of the GIL.
    Some(unsafe { &mut *module })
}

/// Answers greenscope's question for the inode behind a mapping of its own.
#[inline(always)]
pub fn tell_mapped(inode: u64) {
    if let Some(answer) = MAPPED.get_ptr_mut(0) {
        // SAFETY: an array's element; greenscope asks one question at a time.
        unsafe { *answer = inode };
    }
}

/// What is known of a probed instruction.
#[inline(always)]
pub fn probed(number: u32) -> Option<&'static Probed> {
    let probed = PROBED.get_ptr(number)?;
    // SAFETY: written before its probe is set.
    Some(unsafe { &*probed })
}

/// Gives the target `child`, made at `made_ns`, what is known of `parent`, with another
/// begin.
#[inline(always)]
pub fn copy_config(parent: u64, config: &TargetConfig, child: u32, made_ns: u64, started_ns: u64) -> bool {
    if let Some(module) = module(parent)
        && let Some(copy) = self::module(child.into())
    {
        *copy = *module;
    }
    let parent = config;
    let Some(config) = CONFIGS.get_ptr_mut(child) else {
        return false;
    };
    // In place: there is no room for one on the program's stack.
    // SAFETY: the number was free, so that nobody else uses the element. User space may
    // write the parent's meanwhile, as in `config`.
    unsafe { ptr::copy_nonoverlapping(parent, config, 1) };
    // SAFETY: as above.
    let config = unsafe { &mut *config };
    config.started_ns = started_ns;
    config.made_ns = made_ns;
    true
}

/// Takes a target's number that is not in use.
#[inline(always)]
pub fn take_free() -> Option<u32> {
    FREE.pop().ok().flatten()
}

/// Gives it back.
#[inline(always)]
pub fn give_free(target: u32) {
    stop(target.into());
    // There is room, for it was taken from there.
    let _pushed = FREE.push(target, 0);
}

/// The target that the process with that pid is.
#[inline(always)]
pub fn process(first_pid: u32) -> Option<u32> {
    let target = PROCESSES.get_ptr(first_pid)?;
    // SAFETY: a word, never changed while it is there.
    Some(unsafe { *target })
}

/// Makes a process known as a target.
#[inline(always)]
pub fn insert_process(first_pid: u32, target: u32) -> bool {
    PROCESSES.insert(first_pid, target, 0).is_ok()
}

/// Forgets a process.
#[inline(always)]
pub fn remove_process(first_pid: u32) {
    // Most are not there.
    let _removed = PROCESSES.remove(first_pid);
}

/// The totals of a target. Written under its GIL, but for what [`add`] adds to.
#[inline(always)]
pub fn totals(cookie: u64) -> Option<&'static mut Totals> {
    let totals = TOTALS.get_ptr_mut(cookie as u32)?;
    // SAFETY: the holder of the target's GIL writes it. A thread's exit and the programs that
    // interrupt it write no word but by `add`, and `exit_ns`, which is nobody else's.
    Some(unsafe { &mut *totals })
}

/// What is known of a target's code objects by their addresses.
///
/// The holder of the target's GIL says what is freed. What was told, and how many stacks have
/// texts, others write as well: what is lost is told again, or not counted.
#[inline(always)]
pub fn codes(target: u64) -> Option<&'static mut Codes> {
    let codes = CODES.get_ptr_mut(target as u32)?;
    // SAFETY: an array's element lives as long as the program; see above.
    Some(unsafe { &mut *codes })
}

/// Counts a fault.
#[inline(always)]
pub fn count(totals: &mut Totals, fault: Fault) {
    let number = fault as u32;
    // The compiler knows that a fault is in range and drops the check; the verifier
    // doesn't when the fault was kept in a map, and wants to see it.
    // SAFETY: a local.
    let number = unsafe { ptr::read_volatile(&raw const number) };
    if let Some(counter) = totals.faults.get_mut(number as usize) {
        add(counter, 1);
    }
}

/// Adds to a counter that more than the holder of the GIL adds to: a tick, the scheduler's
/// tracepoint, a thread's exit. All of them must do so by this.
#[inline(always)]
pub fn add(counter: &mut u64, more: u64) {
    // BPF's own: `core::sync::atomic` has no additions for want of the other operations.
    // SAFETY: an aligned word of a map, which stays there; nothing else is touched.
    unsafe {
        asm!("lock *(u64 *)({counter} + 0) += {more}",
            counter = in(reg) ptr::from_mut(counter), more = in(reg) more, options(nostack));
    }
}

/// A greenlet that is known.
#[inline(always)]
pub fn greenlet(key: &GreenletKey) -> Option<&'static mut Greenlet> {
    let greenlet = GREENLETS.get_ptr_mut(key)?;
    // SAFETY: written under the GIL, by its own thread and by its destructor, by its own
    // receipts and (a word, by exchanges) by whoever sends it something, and by its
    // own thread's exit. An element stays allocated for as long as the map.
    Some(unsafe { &mut *greenlet })
}

/// Makes a greenlet known.
#[inline(always)]
pub fn insert_greenlet(key: &GreenletKey, value: &Greenlet) -> bool {
    GREENLETS.insert(key, value, 0).is_ok()
}

/// Forgets a greenlet; false if it was not known.
#[inline(always)]
pub fn remove_greenlet(key: &GreenletKey) -> bool {
    GREENLETS.remove(key).is_ok()
}

/// The totals of a stack.
#[inline(always)]
pub fn stack(key: &StackKey) -> Option<&'static mut StackTotals> {
    let totals = STACKS.get_ptr_mut(key)?;
    // SAFETY: the target is part of the key, and its GIL's holder the only writer.
    Some(unsafe { &mut *totals })
}

/// Makes a stack known.
///
/// Out of line: the row lies on the stack, and its caller's is scarce.
#[inline(never)]
pub fn insert_stack(key: &StackKey, target: u64) -> bool {
    STACKS
        .insert(key, StackTotals { ns: 0, count: 0, sent: 0, target: target as u32, queued: Queued::NONE }, 0)
        .is_ok()
}

/// Adds time of a label; false if there is no room for it.
///
/// Written by the holder of the target's GIL, or (a sleep's) by the one thread whose stack
/// it is.
#[inline(always)]
pub fn add_pair(key: &PairKey, more: &PairTotals) -> bool {
    let phase = PHASE.get_ptr(0).map_or(0, |phase| {
        // SAFETY: an aligned word, which user space turns.
        unsafe { ptr::read_volatile(phase) }
    });
    let pairs = if phase & 1 == 0 { &PAIRS_0 } else { &PAIRS_1 };
    let Some(known) = pairs.get_ptr_mut(key) else {
        return pairs.insert(key, more, 0).is_ok();
    };
    // SAFETY: see above. User space reads it only when nobody adds to it any more.
    let known = unsafe { &mut *known };
    known.ns = known.ns.wrapping_add(more.ns);
    known.count = known.count.wrapping_add(more.count);
    // Runs are added when a label changes: not in their order.
    known.first_ns = known.first_ns.min(more.first_ns);
    known.last_ns = known.last_ns.max(more.last_ns);
    for (sum, ns) in known.off_ns.iter_mut().zip(more.off_ns) {
        *sum = sum.wrapping_add(ns);
    }
    known.queued.add(&more.queued);
    true
}

/// Keeps what a greenlet has from its maker until it starts.
#[inline(always)]
pub fn insert_unstarted(key: &GreenletKey, label: &Label) -> bool {
    UNSTARTED.insert(key, label, 0).is_ok()
}

/// Takes it.
#[inline(always)]
pub fn take_unstarted(key: &GreenletKey, label: &mut Label) {
    if let Some(kept) = UNSTARTED.get_ptr(key) {
        // SAFETY: made whole before its greenlet could run or be freed, never changed.
        *label = unsafe { *kept };
        // It was there.
        let _removed = UNSTARTED.remove(key);
    }
}

/// Forgets it: the greenlet is freed and never ran.
#[inline(always)]
pub fn drop_unstarted(key: &GreenletKey) {
    // Most are not there.
    let _removed = UNSTARTED.remove(key);
}

/// What is known of a request that made greenlets.
#[inline(always)]
pub fn lent(key: &LentKey) -> Option<&'static mut Lent> {
    let lent = LENT.get_ptr_mut(key)?;
    // SAFETY: its words are written one by one, by the GIL's holder, or by who answers or exits.
    Some(unsafe { &mut *lent })
}

/// A request made its first greenlet.
#[inline(always)]
pub fn insert_lent(key: &LentKey) -> bool {
    LENT.insert(key, Lent { makers: 1, over_ns: 0, answered_ns: 0 }, 0).is_ok()
}

/// The current task.
#[inline(always)]
pub fn current_task() -> *mut task_struct {
    // SAFETY: takes no argument and cannot fail.
    unsafe { bpf_get_current_task_btf() }
}

/// The record of a thread.
#[inline(always)]
pub fn thread(key: u64) -> Option<&'static mut Thread> {
    let thread = THREADS.get_ptr_mut(key)?;
    // SAFETY: only the thread itself writes it, and the scheduler while it does not run.
    Some(unsafe { &mut *thread })
}

/// Makes a thread known.
#[inline(always)]
pub fn insert_thread(key: u64, value: &Thread) -> bool {
    THREADS.insert(key, value, 0).is_ok()
}

/// The lead of the clock on this CPU. Written by the scheduler's tracepoint only, which
/// nothing interrupts.
#[inline(always)]
pub fn lead() -> Option<*mut u64> {
    LEADS.get_ptr_mut(0)
}

/// Where it is kept how much the ring's reader had taken when it was woken last, and 1.
#[inline(always)]
pub fn woken() -> Option<*mut u64> {
    WOKEN.get_ptr_mut(0)
}

/// The current task's slot, made if it has none.
#[inline(always)]
pub fn slot_or_create() -> Option<&'static mut Slot> {
    let mut slot = SLOTS.get(BPF_LOCAL_STORAGE_GET_F_CREATE)?;
    // SAFETY: only programs on this task reach it, and of those that write only one
    // runs at a time: a uprobe does not fire inside another's program.
    Some(unsafe { slot.as_mut() })
}

/// The slot of a task that the scheduler's tracepoint names, if it has one.
///
/// It is never made there: that may allocate, under the run queue's lock.
#[inline(always)]
pub fn slot_of(task: *mut task_struct) -> Option<&'static mut Slot> {
    let mut slot = SLOTS.get_of(task, 0)?;
    // SAFETY: as in `slot_or_create`; the task itself does not run while it is switched.
    Some(unsafe { slot.as_mut() })
}

/// The slot of a task that is being made.
#[inline(always)]
pub fn slot_for(task: *mut task_struct) -> Option<&'static mut Slot> {
    let mut slot = SLOTS.get_of(task, BPF_LOCAL_STORAGE_GET_F_CREATE)?;
    // SAFETY: it does not run yet.
    Some(unsafe { slot.as_mut() })
}

/// The current task's slot.
#[inline(always)]
pub fn slot() -> Option<&'static mut Slot> {
    let mut slot = SLOTS.get(0)?;
    // SAFETY: as in `slot_or_create`.
    Some(unsafe { slot.as_mut() })
}

/// What is known of a socket that a tracepoint gave.
#[inline(always)]
pub fn connection(socket: *mut c_void) -> Option<&'static mut Connection> {
    let mut connection = CONNECTIONS.get(socket, 0)?;
    // SAFETY: written by whoever reads or writes there. Two threads that do at once spoil each
    // other's: numbers only, each within its bounds.
    Some(unsafe { connection.as_mut() })
}

/// The same, made if there is none.
#[inline(always)]
pub fn connection_or_create(socket: *mut c_void) -> Option<&'static mut Connection> {
    let mut connection = CONNECTIONS.get(socket, BPF_LOCAL_STORAGE_GET_F_CREATE)?;
    // SAFETY: as above.
    Some(unsafe { connection.as_mut() })
}

/// Who waits for a socket that a tracepoint gave.
#[inline(always)]
pub fn waiter(socket: *mut c_void) -> Option<&'static mut Waiter> {
    let mut waiter = WAITERS.get(socket, 0)?;
    // SAFETY: two that wait for one socket may mix up what they write: then what is written does
    // not fit any greenlet's row.
    Some(unsafe { waiter.as_mut() })
}

/// The same, made if there is none.
#[inline(always)]
pub fn waiter_or_create(socket: *mut c_void) -> Option<&'static mut Waiter> {
    let mut waiter = WAITERS.get(socket, BPF_LOCAL_STORAGE_GET_F_CREATE)?;
    // SAFETY: as above.
    Some(unsafe { waiter.as_mut() })
}

/// This CPU's room for a stack record: of a tick, or of the scheduler's tracepoint. Both run
/// with interrupts off, so that neither comes inside of the other; a tick may come inside of a
/// uprobe's program, and the next program on this CPU be another task's, so these have room of
/// their own ([`stack_record`]).
#[inline(always)]
pub fn sample_record() -> Option<NonNull<StackRecord>> {
    SAMPLE_RECORDS.get_ptr_mut(0).and_then(NonNull::new)
}

/// The current task's room for a stack record, in a uprobe's program. Made when it is needed
/// first: there, and nowhere under a lock of the scheduler's.
#[inline(always)]
pub fn stack_record() -> Option<NonNull<StackRecord>> {
    STACK_RECORDS.get(BPF_LOCAL_STORAGE_GET_F_CREATE)
}

/// What the current process descends from, if it is known for kin of a target.
#[inline(always)]
pub fn kin() -> Option<Kin> {
    let kin = KIN.get(0)?;
    // SAFETY: written when its task is made and by its own exec, by user space before.
    Some(unsafe { *kin.as_ptr() })
}

/// Keeps what the current process descends from.
#[inline(always)]
pub fn keep_kin(kin: Kin) {
    if let Some(kept) = KIN.get(BPF_LOCAL_STORAGE_GET_F_CREATE) {
        // SAFETY: as above.
        unsafe { *kept.as_ptr() = kin };
    }
}

/// Keeps what a task that is being made descends from.
#[inline(always)]
pub fn keep_kin_of(task: *mut task_struct, kin: Kin) {
    if let Some(kept) = KIN.get_of(task, BPF_LOCAL_STORAGE_GET_F_CREATE) {
        // SAFETY: it does not run yet.
        unsafe { *kept.as_ptr() = kin };
    }
}
