//! Every greenlet of a target, with its state and its stack, without stopping it.

use std::sync::Arc;

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{GreenletLayout, Layout},
    memory::Memory as _,
    walk::{Frame, Window},
};
use rustc_hash::FxHashMap;

use super::{
    Faults, PythonThread, Target, TypeInfo, gc_lists,
    kinds::Kinds,
    python_threads::python_threads,
    suspended::{self, Piece, Stack, State},
};
use crate::{
    memory::{Bytes, Cached, Read},
    python::{class, field, instance, text},
};

/// Greenlets looked at together: few system calls, and a short time between the
/// first and the second look.
const BATCH: usize = 128;
/// Looks at one greenlet until two agree.
const MAX_LOOKS: u32 = 4;
/// A C stack is no larger than this.
const MAX_C_STACK: u64 = 1 << 30;

/// What a greenlet is doing.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum GreenletState {
    /// It was made, and has not run yet.
    Unstarted,
    /// It waits to be switched to.
    Suspended,
    /// It is current on its thread.
    Running,
    /// It has run to its end, or its thread has.
    Finished,
}

/// The thread that a greenlet belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GreenletThread {
    /// Its `PyThreadState`.
    pub tstate: Addr,
    /// Its thread id in the target's own pid namespace.
    pub native_id: u64,
    /// Its thread id in ours.
    pub tid: Option<u32>,
}

impl GreenletThread {
    const fn of(thread: &PythonThread) -> Self {
        let PythonThread { tstate, thread_id: _, native_id, tid, name: _ } = thread;
        Self { tstate: *tstate, native_id: *native_id, tid: *tid }
    }
}

/// A greenlet of the target.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FoundGreenlet {
    /// The Python object.
    pub object: Addr,
    /// greenlet's C++ object: what the kernel part knows it by.
    pub pimpl: Addr,
    /// Its type's address.
    pub type_addr: Addr,
    /// Its type.
    pub kind: Arc<TypeInfo>,
    /// The name that was given to it (`g.name = ...`); a default name is none.
    pub name: Option<String>,
    /// Whether it is its thread's main greenlet.
    pub main: bool,
    /// The main greenlet of its thread; null before it first ran.
    pub main_object: Addr,
    /// What it is doing.
    pub state: GreenletState,
    /// Its thread, when that could be told.
    pub thread: Option<GreenletThread>,
    /// For a suspended one, leaf first; their check values are not taken.
    pub frames: Vec<Frame>,
    /// Why the frames are missing ([`Fault::GreenletUnreadable`]) or cut.
    pub doubt: Option<Fault>,
}

/// Finds every greenlet of a target.
///
/// Greenlets that are born or die meanwhile may be missing or listed; one that moved
/// at every look is listed without frames ([`FoundGreenlet::doubt`]).
pub fn enumerate<M: Bytes>(memory: &mut Cached<M>, target: &Target) -> (Vec<FoundGreenlet>, Faults) {
    let mut faults = Faults::default();
    let Some(greenlet) = target.greenlet.as_ref() else {
        return (Vec::new(), faults);
    };
    let mut kinds = Kinds::default();
    let walked = gc_lists::greenlets(
        memory,
        &target.python.objects,
        target.python.interp,
        greenlet.greenlet_type,
        &mut kinds,
    );
    if !walked.complete {
        faults.count(Fault::EnumerationIncomplete);
    }
    let mut objects: Vec<Addr> = walked.greenlets.into_iter().map(Addr).collect();
    objects.sort_unstable();
    let layout = target.layout();
    let thread_states = FxHashMap::default();
    let window = Window::default();
    let mut look = Look { memory, target, layout, kinds, thread_states, faults, window };
    let mut found = Vec::with_capacity(objects.len());
    for batch in objects.chunks(BATCH) {
        look.settle(batch, &mut found);
    }
    let Look { memory, mut faults, .. } = look;
    let (threads, more) = python_threads(memory.below(), target);
    faults.add(&more);
    assign_threads(&mut found, target, &threads);
    (found.into_iter().map(|seen| seen.greenlet).collect(), faults)
}

/// A greenlet, and a place on its thread's C stack.
struct Seen {
    greenlet: FoundGreenlet,
    stack_stop: u64,
}

struct Look<'t, M> {
    memory: &'t mut Cached<M>,
    target: &'t Target,
    layout: Layout,
    kinds: Kinds,
    /// Main greenlet → its `ThreadState`, null when the thread has ended.
    thread_states: FxHashMap<Addr, Addr>,
    faults: Faults,
    window: Window,
}

impl<M: Bytes> Look<'_, M> {
    /// Looks at some greenlets, and again at those that moved meanwhile.
    fn settle(&mut self, objects: &[Addr], found: &mut Vec<Seen>) {
        let mut left = objects.to_vec();
        for turn in 1..=MAX_LOOKS {
            let last = turn == MAX_LOOKS;
            left = self.look(&left, last, found);
            if left.is_empty() {
                break;
            }
        }
    }

    /// Looks twice at some greenlets; gives back those that moved in between, unless
    /// this is the last turn: then they are listed without frames.
    fn look(&mut self, objects: &[Addr], last: bool, found: &mut Vec<Seen>) -> Vec<Addr> {
        let at = self.layout.greenlet.object_pimpl;
        let pimpls = words(self.memory.below(), objects.iter().map(|object| object.at(at)));
        let known: Vec<(Addr, Addr)> = objects
            .iter()
            .zip(pimpls)
            // In the making: the C++ object comes after the Python object.
            .filter_map(|(object, pimpl)| Some((*object, Addr(pimpl?))))
            .filter(|(_, pimpl)| !pimpl.is_null())
            .collect();
        let before = self.states(&known);
        let current_before = self.currents(&known, &before);
        let windows = self.windows(&before);
        let stacks: Vec<Result<Stack, Fault>> = before
            .iter()
            .zip(&windows)
            .map(|(state, window)| {
                let first = state.filter(|state| state.stack_start != 0);
                let first = Addr(first.map_or(0, |state| state.current_frame));
                suspended::walk(self.memory.below(), &self.layout, first, window, &mut self.window)
            })
            .collect();
        let after = self.states(&known);
        let again = self.windows(&before);
        let current = self.currents(&known, &after);
        let mut moved = Vec::new();
        let seconds = after.into_iter().zip(windows.iter().zip(&again));
        for ((&(object, pimpl), stack), (before, (after, (window, second)))) in
            known.iter().zip(stacks).zip(before.into_iter().zip(seconds))
        {
            let (Some(before), Some(after)) = (before, after) else {
                continue;
            };
            if before.user_self != object.0 && before.main_self != object.0 {
                continue;
            }
            let running = current.contains(&object);
            let still = running
                || before.same_switch(&after) && window == second && !current_before.contains(&object);
            if !still && !last {
                moved.push(object);
                continue;
            }
            let state = self.state(object, &after, running);
            let mut greenlet = self.describe(object, pimpl, &after, state);
            if state == GreenletState::Suspended {
                match stack {
                    Ok(stack) if still => {
                        greenlet.frames = stack.frames;
                        greenlet.doubt = stack.cut.then_some(Fault::StackTruncated);
                    }
                    Ok(_) | Err(_) => greenlet.doubt = Some(Fault::GreenletUnreadable),
                }
            }
            found.push(Seen { greenlet, stack_stop: after.stack_stop });
        }
        moved
    }

    fn states(&mut self, known: &[(Addr, Addr)]) -> Vec<Option<State>> {
        let len = suspended::state_bytes(&self.layout.greenlet);
        let mut pieces: Vec<Piece> =
            known.iter().map(|(_, pimpl)| Piece { start: pimpl.0, bytes: vec![0; len] }).collect();
        let done = fill(self.memory.below(), &mut pieces);
        pieces
            .iter()
            .zip(done)
            .map(|(piece, done)| done.then(|| State::of(piece, &self.layout.greenlet)).flatten())
            .collect()
    }

    fn windows(&mut self, states: &[Option<State>]) -> Vec<Piece> {
        let mut pieces: Vec<Piece> = states
            .iter()
            .map(|state| {
                let place = state.filter(|state| state.stack_start != 0);
                place.map(|state| Piece::of_frames(&state, &self.layout.python)).unwrap_or_default()
            })
            .collect();
        let done = fill(self.memory.below(), &mut pieces);
        for (piece, _) in pieces.iter_mut().zip(done).filter(|(_, done)| !done) {
            // The walk then reads frame by frame.
            *piece = Piece::default();
        }
        pieces
    }

    /// The current greenlet of each thread that these greenlets belong to.
    fn currents(&mut self, known: &[(Addr, Addr)], states: &[Option<State>]) -> Vec<Addr> {
        for ((object, _), state) in known.iter().zip(states) {
            let Some(state) = state else { continue };
            let main = main_object(*object, state);
            if !main.is_null() && !self.thread_states.contains_key(&main) {
                let state = self.thread_state(main).unwrap_or(Addr::NULL);
                self.thread_states.insert(main, state);
            }
        }
        let at = self.layout.greenlet.current_greenlet;
        let places = self.thread_states.values().filter(|state| !state.is_null());
        let places: Vec<Addr> = places.map(|state| state.at(at)).collect();
        words(self.memory.below(), places.into_iter()).into_iter().flatten().map(Addr).collect()
    }

    fn thread_state(&mut self, main: Addr) -> Result<Addr, Fault> {
        let GreenletLayout { object_pimpl, thread_state, .. } = self.layout.greenlet;
        let pimpl = self.memory.below().pointer(main.at(object_pimpl))?;
        self.memory.below().pointer(pimpl.at(thread_state))
    }

    fn state(&self, object: Addr, state: &State, running: bool) -> GreenletState {
        let main = main_object(object, state);
        let thread_ended = self.thread_states.get(&main).is_some_and(|state| state.is_null());
        match (state.stack_start, state.stack_stop) {
            (0, 0) => GreenletState::Unstarted,
            (0, _) => GreenletState::Finished,
            _ if running => GreenletState::Running,
            _ if state.is_main() && thread_ended => GreenletState::Finished,
            _ => GreenletState::Suspended,
        }
    }

    fn describe(&mut self, object: Addr, pimpl: Addr, state: &State, doing: GreenletState) -> FoundGreenlet {
        let objects = &self.target.python.objects;
        let type_addr = self.memory.pointer(field(object, objects.object_type));
        let type_addr = type_addr.unwrap_or(Addr::NULL);
        let kind = self.kinds.get(self.memory, self.target, type_addr).unwrap_or_else(|fault| {
            self.faults.count(fault);
            Arc::new(TypeInfo { is_greenlet: true, ..TypeInfo::default() })
        });
        FoundGreenlet {
            object,
            pimpl,
            type_addr,
            kind,
            name: greenlet_name(self.memory, self.target, object).ok().flatten(),
            main: state.is_main(),
            main_object: main_object(object, state),
            state: doing,
            thread: None,
            frames: Vec::new(),
            doubt: None,
        }
    }
}

/// The name that someone gave a greenlet: gevent's default one is made on request.
///
/// # Errors
///
/// When its attributes can't be read.
pub fn greenlet_name(
    memory: &mut impl Bytes,
    target: &Target,
    object: Addr,
) -> Result<Option<String>, Fault> {
    let objects = &target.python.objects;
    let Some(name) = instance::attribute(memory, objects, object, "name")? else {
        return Ok(None);
    };
    if !class::is_string(memory, objects, name)? {
        return Ok(None);
    }
    let name = text::string(memory, objects, name)?;
    Ok(Some(name).filter(|name| !name.is_empty()))
}

const fn main_object(object: Addr, state: &State) -> Addr {
    if state.is_main() { object } else { Addr(state.main_greenlet) }
}

fn words(memory: &mut impl Bytes, places: impl Iterator<Item = Addr>) -> Vec<Option<u64>> {
    let mut pieces: Vec<Piece> = places.map(|place| Piece { start: place.0, bytes: vec![0; 8] }).collect();
    let done = fill(memory, &mut pieces);
    let word = |piece: &Piece| piece.bytes.first_chunk::<8>().copied().map(u64::from_le_bytes);
    pieces.iter().zip(done).map(|(piece, done)| word(piece).filter(|_| done)).collect()
}

fn fill(memory: &mut impl Bytes, pieces: &mut [Piece]) -> Vec<bool> {
    let mut reads: Vec<Read<'_>> =
        pieces.iter_mut().map(|piece| Read::new(Addr(piece.start), &mut piece.bytes)).collect();
    memory.read_many(&mut reads);
    reads.iter().map(|read| read.done).collect()
}

/// Tells the thread of each greenlet from where its C stack lies.
///
/// A started greenlet's `stack_stop` is an address on the stack of its thread. glibc
/// and musl put the thread's descriptor, whose address is the thread id, at the upper
/// end of that stack; the main thread's stack is the process's own.
fn assign_threads(found: &mut [Seen], target: &Target, threads: &[PythonThread]) {
    let own_pid = target.namespaces.pids.last().copied().unwrap_or(target.pid);
    let ends: Vec<(u64, &PythonThread)> = threads
        .iter()
        .map(|thread| {
            let main = thread.native_id == u64::from(own_pid);
            (if main { target.incarnation.start_stack } else { thread.thread_id }, thread)
        })
        .collect();
    let of_stack = |stop: u64| {
        let above = ends.iter().filter(|(end, _)| (stop..stop.saturating_add(MAX_C_STACK)).contains(end));
        above.min_by_key(|(end, _)| *end).map(|(_, thread)| *thread)
    };
    let mut of_main: FxHashMap<Addr, GreenletThread> = FxHashMap::default();
    for Seen { greenlet, stack_stop } in found.iter() {
        let place = *stack_stop;
        if greenlet.main || place == 0 || of_main.contains_key(&greenlet.main_object) {
            continue;
        }
        if let Some(thread) = of_stack(place) {
            of_main.insert(greenlet.main_object, GreenletThread::of(thread));
        }
    }
    for Seen { greenlet, .. } in found {
        greenlet.thread = of_main.get(&greenlet.main_object).copied();
        if let ([only], false) = (threads, greenlet.main_object.is_null()) {
            greenlet.thread = Some(GreenletThread::of(only));
        }
    }
}
