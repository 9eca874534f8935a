//! A thread's own state and its leaf, over memory as CPython 3.11 and 3.13 lay it out.

use std::collections::BTreeMap;

use profiler_common::{
    address::Addr,
    clock::Gil,
    code::TextLayout,
    fault::Fault,
    label::LabelConfig,
    layout::{ABSENT, GreenletLayout, Layout, PythonLayout},
    memory::Memory,
    record::TargetConfig,
    running::{CodeSize, Own, is_own, own_leaf},
    walk::{StackKey, Start, Step, Walk, Window},
};

const INTERPRETER: u64 = 0x7000_0000;
const HEAD: u64 = INTERPRETER + 72;
const STATE: u64 = 0x7100_0000;
/// In front of it in the list.
const NEWER: u64 = 0x7200_0000;
const DATA_STACK: u64 = 0x7300_0000;
const C_STACK: u64 = 0x7400_0ff0;
const CODE: u64 = 0x7500_0000;
const OTHER_CODE: u64 = 0x7600_0000;
const GENERATOR: u64 = 0x7700_0008;
const ID: u64 = 4321;
const EMPTY: StackKey = StackKey::empty(1, Addr(1));

/// Words by address; others are 0, and nothing is mapped below.
#[derive(Debug, Default)]
struct Words {
    words: BTreeMap<u64, u64>,
    reads: usize,
}

impl Memory for Words {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        self.reads += 1;
        if addr.0 < INTERPRETER {
            return Err(Fault::ReadState);
        }
        for (index, word) in (0..).zip(out) {
            *word = self.words.get(&(addr.0 + index * 8)).copied().unwrap_or(0);
        }
        Ok(())
    }
}

fn python_311() -> PythonLayout {
    PythonLayout {
        tstate_interp: 16,
        tstate_status: ABSENT,
        tstate_frame: 56,
        cframe_frame: 8,
        tstate_native_id: 160,
        frame_code: 32,
        frame_previous: 48,
        frame_instr: 56,
        frame_owner: 69,
        frame_size: 72,
        owner_shim: ABSENT,
        ..PythonLayout::default()
    }
}

fn python_313() -> PythonLayout {
    PythonLayout {
        tstate_interp: 16,
        tstate_status: 32,
        tstate_frame: 72,
        cframe_frame: ABSENT,
        tstate_native_id: 160,
        frame_code: 0,
        frame_previous: 8,
        frame_instr: 56,
        frame_owner: 70,
        frame_size: 72,
        owner_shim: 3,
        ..PythonLayout::default()
    }
}

fn config(python: PythonLayout) -> TargetConfig {
    let new = python.tstate_status != ABSENT;
    TargetConfig {
        started_ns: 1,
        holder: Addr(0),
        interpreter: Addr(INTERPRETER),
        gil: Gil::default(),
        threads: Addr(HEAD),
        namespace_device: 0,
        namespace_inode: 0,
        made_ns: 0,
        library: 0,
        texts: TextLayout::default(),
        interpreters: Addr::NULL,
        interp_next: 0,
        tstate_exception: 0,
        label: LabelConfig::default(),
        hub_types: [Addr(0); 4],
        idlers: [0; 8],
        flags: 0,
        epoch: 1,
        layout: Layout { python, greenlet: GreenletLayout::default() },
        block_ns: 0,
        off_from_ns: u64::MAX,
        sending: 1,
        tstate_next: 8,
        tstate_top: if new { 240 } else { 304 },
        tstate_cleared_bit: if new { 7 } else { u32::MAX },
        code_framesize: if new { 76 } else { u32::MAX },
        code_nlocalsplus: if new { 72 } else { 76 },
        code_stacksize: 68,
    }
}

/// A thread with that leaf, and a data stack that ends at `top`.
struct Thread {
    config: TargetConfig,
    memory: Words,
    window: Window,
    known: CodeSize,
}

impl Thread {
    fn new(python: PythonLayout) -> Self {
        let mut thread = Self {
            config: config(python),
            memory: Words::default(),
            window: Window::default(),
            known: CodeSize::default(),
        };
        for (at, word) in [(HEAD, NEWER), (NEWER + 8, STATE), (STATE, NEWER), (STATE + 16, INTERPRETER)] {
            thread.put(at, word);
        }
        thread.put(STATE + 160, ID);
        thread.put_half(STATE + 32, 0b1_0111);
        thread.code(CODE, 12);
        thread.code(OTHER_CODE, 20);
        thread
    }

    fn put(&mut self, at: u64, word: u64) {
        self.memory.words.insert(at, word);
    }

    fn put_half(&mut self, at: u64, half: u64) {
        let word = self.memory.words.entry(at & !7).or_default();
        let shift = (at & 4) * 8;
        *word = *word & !(0xffff_ffff << shift) | half << shift;
    }

    /// A code object whose frames take so many words.
    fn code(&mut self, code: u64, words: u64) {
        if self.config.code_framesize == u32::MAX {
            self.put_half(code + u64::from(self.config.code_nlocalsplus), 1);
            self.put_half(code + u64::from(self.config.code_stacksize), words - 9 - 1);
        } else {
            self.put_half(code + u64::from(self.config.code_framesize), words);
        }
    }

    fn frame(&mut self, at: u64, code: u64, previous: u64, owner: u64) {
        let python = self.config.layout.python;
        self.put(at + u64::from(python.frame_code), code);
        self.put(at + u64::from(python.frame_previous), previous);
        self.put(at + u64::from(python.frame_instr), code + 10);
        let word = self.memory.words.entry(at + u64::from(python.frame_owner & !7)).or_default();
        *word = owner << ((python.frame_owner & 7) * 8);
    }

    fn runs(&mut self, leaf: u64, top: u64) {
        let python = self.config.layout.python;
        if python.cframe_frame == ABSENT {
            self.put(STATE + u64::from(python.tstate_frame), leaf);
        } else {
            self.put(STATE + u64::from(python.tstate_frame), C_STACK);
            self.put(C_STACK + u64::from(python.cframe_frame), leaf);
        }
        self.put(STATE + u64::from(self.config.tstate_top), top);
    }

    fn is_own(&mut self) -> bool {
        self.is_of(Addr(STATE), 0)
    }

    fn is_of(&mut self, state: Addr, leader_base: u64) -> bool {
        is_own(&self.config, state, Own { id: ID, leader_base }, &mut self.window, &mut self.memory)
    }

    fn leaf(&mut self) -> Option<u64> {
        assert!(self.is_own());
        own_leaf(&self.config, &mut self.window, &mut self.known, &mut self.memory).ok()?.map(|leaf| leaf.0)
    }

    fn walk(&mut self, leaf: u64, here: bool) -> (StackKey, u32, usize) {
        let start = Start { frame: Addr(leaf), top_frame_only: false };
        let python = &self.config.layout.python;
        let mut walk = Walk::default();
        if here {
            walk.begin_in(&start, EMPTY, python, &self.window);
        } else {
            self.window.clear();
            walk.begin(&start, EMPTY);
        }
        self.memory.reads = 0;
        while walk.step(python, &mut self.window, &mut self.memory) != Step::End {}
        (walk.key, walk.depth, self.memory.reads)
    }
}

fn both() -> [Thread; 2] {
    [Thread::new(python_311()), Thread::new(python_313())]
}

#[test]
fn a_thread_state_is_proved() {
    for mut thread in both() {
        assert!(thread.is_own());
        thread.put(STATE + 160, ID + 1);
        assert!(!thread.is_own());
        thread.put(STATE + 160, ID);
        thread.put(STATE + 16, INTERPRETER + 8);
        assert!(!thread.is_own());
        let at = Addr(8);
        assert!(!thread.is_of(at, 0));
    }
}

#[test]
fn a_leader_that_c_forked_is_known_by_its_storage() {
    for mut thread in both() {
        thread.config.layout.python.tstate_thread_id = 152;
        let at = STATE + 152;
        thread.put(at, C_STACK);
        thread.put(STATE + 160, ID + 1);
        assert!(thread.is_of(Addr(STATE), C_STACK));
        assert!(!thread.is_of(Addr(STATE), C_STACK + 8));
        assert!(!thread.is_of(Addr(STATE), 0));
        thread.put(at, 0);
        assert!(!thread.is_of(Addr(STATE), 0));
    }
}

#[test]
fn a_freed_one_is_not() {
    let [mut old, mut new] = both();
    // What is behind it is linked to what was in front.
    old.put(NEWER + 8, 0);
    assert!(!old.is_own());
    // It was the first.
    old.put(STATE, 0);
    assert!(!old.is_own());
    old.put(HEAD, STATE);
    assert!(old.is_own());
    new.put_half(STATE + 32, 0b1001_0111);
    assert!(!new.is_own());
}

#[test]
fn the_leaf_ends_where_the_data_stack_does() {
    for mut thread in both() {
        thread.frame(DATA_STACK, CODE, 0, 0);
        thread.frame(DATA_STACK + 96, OTHER_CODE, DATA_STACK, 0);
        thread.runs(DATA_STACK + 96, DATA_STACK + 96 + 160);
        assert_eq!(thread.leaf(), Some(DATA_STACK + 96));
        thread.memory.reads = 0;
        assert_eq!(thread.leaf(), Some(DATA_STACK + 96));
        // The state and what leads to it, the C frame; and what lies around the leaf.
        let old = thread.config.tstate_cleared_bit == u32::MAX;
        assert_eq!(thread.memory.reads, if old { 4 } else { 2 });
        // Its callee is being made.
        thread.frame(DATA_STACK + 256, CODE, 0, 0);
        thread.runs(DATA_STACK + 96, DATA_STACK + 256 + 96);
        assert_eq!(thread.leaf(), Some(DATA_STACK + 96));
        // What an earlier call left.
        thread.frame(C_STACK + 64, CODE, DATA_STACK, 0);
        thread.runs(C_STACK + 64, DATA_STACK + 256);
        assert_eq!(thread.leaf(), None);
        thread.runs(3, DATA_STACK + 256);
        assert_eq!(thread.leaf(), None);
        // No Python runs.
        thread.runs(0, DATA_STACK);
        assert_eq!(thread.leaf(), Some(0));
    }
}

#[test]
fn a_reused_code_address_has_another_size() {
    for mut thread in both() {
        thread.frame(DATA_STACK, CODE, 0, 0);
        thread.runs(DATA_STACK, DATA_STACK + 96);
        assert_eq!(thread.leaf(), Some(DATA_STACK));
        thread.code(CODE, 30);
        thread.runs(DATA_STACK, DATA_STACK + 240);
        assert_eq!(thread.leaf(), Some(DATA_STACK));
        assert_eq!((thread.known.code, thread.known.bytes), (Addr(CODE), 240));
    }
}

#[test]
fn a_generator_leads_to_the_data_stack() {
    for mut thread in both() {
        thread.frame(DATA_STACK, CODE, 0, 0);
        thread.frame(GENERATOR, OTHER_CODE, DATA_STACK, 1);
        thread.runs(GENERATOR, DATA_STACK + 96);
        assert_eq!(thread.leaf(), Some(GENERATOR));
        thread.runs(GENERATOR, DATA_STACK + 88);
        assert_eq!(thread.leaf(), None);
    }
}

#[test]
fn a_walk_goes_on_in_the_window() {
    for mut thread in both() {
        thread.frame(DATA_STACK, CODE, 0, 0);
        let shim = if thread.config.layout.python.owner_shim == ABSENT { 0 } else { 3 };
        thread.frame(C_STACK + 64, OTHER_CODE, DATA_STACK, shim);
        thread.frame(DATA_STACK + 96, OTHER_CODE, C_STACK + 64, 0);
        thread.frame(GENERATOR, CODE, DATA_STACK + 96, 1);
        for (leaf, top) in [(DATA_STACK + 96, DATA_STACK + 256), (GENERATOR, DATA_STACK + 256)] {
            thread.runs(leaf, top);
            assert_eq!(thread.leaf(), Some(leaf));
            let (key, depth, reads) = thread.walk(leaf, true);
            let (plain_key, plain_depth, plain_reads) = thread.walk(leaf, false);
            assert_eq!((key, depth), (plain_key, plain_depth));
            assert_eq!(reads + 1, plain_reads);
        }
    }
}
