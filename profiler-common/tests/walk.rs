//! The unwinder against a plain reader of the same memory, over stacks made at random.

use std::collections::{BTreeMap, BTreeSet};

use profiler_common::{
    address::Addr,
    fault::Fault,
    layout::{ABSENT, PythonLayout},
    limits::{MAX_FRAMES, MAX_STEPS},
    memory::Memory,
    walk::{Frame, StackKey, Start, Step, Walk, Window},
};
use proptest::{
    collection::{SizeRange, vec},
    prelude::*,
    sample::Index,
};

const PAGE: u64 = 4_096;
/// The size of a chunk of the data stack, and here of the heap's and the C stack's parts.
/// <https://github.com/python/cpython/blob/v3.13.0/Python/pystate.c> (`DATA_STACK_CHUNK_SIZE`)
const CHUNK: u64 = 4 * PAGE;
/// `_PyStackChunk`'s own fields.
const CHUNK_HEAD: u64 = 24;
/// Words that a frame has behind its head at the least: locals, stack, or what follows in
/// its chunk. A frame outside the window is copied with these two.
const LEAST_BEHIND: u64 = 2;
const BY_THREAD: u8 = 0;
const BY_C_STACK: u8 = 3;
const KEY: StackKey = StackKey::empty(7, Addr(0x5555_0000_1000));

/// Memory as a process has it: what is not mapped cannot be read, and a read that
/// touches it fails as a whole.
#[derive(Debug, Default)]
struct Pages {
    pages: BTreeMap<u64, Vec<u64>>,
    reads: usize,
}

impl Pages {
    fn put(&mut self, at: u64, word: u64) {
        let page = self.pages.entry(at / PAGE).or_insert_with(|| {
            let first = at / PAGE * PAGE;
            (first..first + PAGE).step_by(8).map(noise).collect()
        });
        if let Some(place) = page.get_mut((at % PAGE / 8) as usize) {
            *place = word;
        }
    }

    fn get(&self, at: u64) -> Option<u64> {
        self.pages.get(&(at / PAGE))?.get((at % PAGE / 8) as usize).copied()
    }
}

impl Memory for Pages {
    fn read<const N: usize>(&mut self, addr: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        self.reads += 1;
        for (index, word) in (0..).zip(out) {
            *word = self.get(addr.0.wrapping_add(index * 8)).ok_or(Fault::ReadState)?;
        }
        Ok(())
    }
}

/// What lies where no frame does: odd, so that it is no frame's address.
fn noise(at: u64) -> u64 {
    at.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1
}

/// Mapped everywhere and true nowhere: what a window has to forget.
struct Stale;

impl Memory for Stale {
    fn read<const N: usize>(&mut self, _: Addr, out: &mut [u64; N]) -> Result<(), Fault> {
        out.fill(0x0bad_0bad_0bad_0bad);
        Ok(())
    }
}

/// CPython 3.11, and 3.13.
fn layouts() -> impl Strategy<Value = PythonLayout> {
    let python311 = PythonLayout {
        frame_code: 32,
        frame_previous: 48,
        frame_instr: 56,
        frame_owner: 69,
        frame_size: 72,
        owner_shim: ABSENT,
        code_instrs: 184,
        ..PythonLayout::default()
    };
    let python313 = PythonLayout {
        frame_code: 0,
        frame_previous: 8,
        frame_instr: 56,
        frame_owner: 70,
        frame_size: 72,
        owner_shim: u16::from(BY_C_STACK),
        code_instrs: 200,
        ..PythonLayout::default()
    };
    prop_oneof![Just(python311), Just(python313)]
}

/// A frame to be made.
#[derive(Clone, Copy, Debug)]
struct Recipe {
    owner: u8,
    code: u64,
    instr: i32,
    /// Words behind the head.
    behind: u64,
    /// Begins a chunk, though there may be room in the one before it.
    fresh: bool,
    /// Should it begin a chunk: below all others or above, and so many pages from them.
    below: bool,
    gap: u64,
}

impl Recipe {
    /// Small, in chunks that are full and apart.
    fn dense(self) -> Self {
        Self { behind: self.behind.min(24), fresh: false, below: false, gap: 2, ..self }
    }
}

fn recipe(owner: impl Strategy<Value = u8>) -> impl Strategy<Value = Recipe> {
    let behind = prop_oneof![8 => LEAST_BEHIND..24, 1 => LEAST_BEHIND..1_200];
    let fresh = proptest::bool::weighted(0.05);
    let parts = (owner, any::<u64>(), any::<i32>(), behind, fresh, any::<bool>(), 0..3_u64);
    parts.prop_map(|(owner, code, instr, behind, fresh, below, gap)| Recipe {
        owner,
        code,
        instr,
        behind,
        fresh,
        below,
        gap,
    })
}

/// A thread's frames with generators', frame objects' and shims between them.
fn mixed() -> impl Strategy<Value = Recipe> {
    recipe(prop_oneof![8 => Just(BY_THREAD), 1 => Just(1), 1 => Just(2), 2 => Just(BY_C_STACK)])
}

/// What is left of a chunk.
#[derive(Default)]
struct Room {
    low: u64,
    high: u64,
}

impl Room {
    /// Takes the bytes of a frame; `taken` are the bounds of all chunks so far.
    fn take(&mut self, recipe: &Recipe, bytes: u64, taken: &mut (u64, u64)) -> u64 {
        if recipe.fresh || self.high - self.low < bytes {
            let distance = CHUNK + recipe.gap * PAGE;
            let low = if recipe.below {
                taken.0 -= distance;
                taken.0
            } else {
                taken.1 += distance;
                taken.1 - CHUNK
            };
            *self = Self { low: low + CHUNK_HEAD, high: low + CHUNK };
        }
        if recipe.owner == BY_THREAD {
            self.low += bytes;
            self.low - bytes
        } else {
            // As the C stack grows.
            self.high -= bytes;
            self.high
        }
    }
}

/// A chain of frames in memory.
#[derive(Debug)]
struct Stack {
    python: PythonLayout,
    memory: Pages,
    recipes: Vec<Recipe>,
    /// Where they are; both root first.
    at: Vec<u64>,
}

impl Stack {
    fn new(python: PythonLayout, recipes: Vec<Recipe>) -> Self {
        let mut stack = Self { python, memory: Pages::default(), recipes, at: Vec::new() };
        let mut taken = (0x7f00_0000_0000, 0x7f00_0000_0000);
        let (mut data_stack, mut elsewhere) = (Room::default(), Room::default());
        for recipe in &stack.recipes {
            let room = if recipe.owner == BY_THREAD { &mut data_stack } else { &mut elsewhere };
            let size = u64::from(python.frame_size);
            let frame = room.take(recipe, size + recipe.behind * 8, &mut taken);
            let mut put = |offset: u16, word| stack.memory.put(frame + u64::from(offset), word);
            // Of the chunk only what its frames touch is mapped: the worst that can be.
            for offset in (0..python.frame_size + LEAST_BEHIND as u16 * 8).step_by(8) {
                put(offset, noise(frame + u64::from(offset)));
            }
            put(python.frame_code, recipe.code);
            put(python.frame_previous, stack.at.last().copied().unwrap_or_default());
            let first = recipe.code.wrapping_add(u64::from(python.code_instrs));
            put(python.frame_instr, first.wrapping_add_signed(i64::from(recipe.instr)));
            let shift = python.frame_owner % 8 * 8;
            let beside = noise(frame) & !(0xff << shift);
            put(python.frame_owner & !7, beside | u64::from(recipe.owner) << shift);
            stack.at.push(frame);
        }
        stack
    }

    fn start(&self) -> Start {
        Start { frame: Addr(self.at.last().copied().unwrap_or_default()), top_frame_only: false }
    }

    fn frame(&self, which: Index) -> u64 {
        self.at.get(which.index(self.at.len())).copied().unwrap_or_default()
    }

    /// The Python frames as they were ordered, from the leaf down to that of this index.
    fn ordered(&self, down_to: usize) -> Vec<Frame> {
        let recipes = self.recipes.iter().skip(down_to).rev();
        recipes
            .filter(|recipe| u16::from(recipe.owner) < self.python.owner_shim)
            .map(|recipe| Frame { code: Addr(recipe.code), instr: recipe.instr, check: 0 })
            .collect()
    }

    /// Makes a frame's `previous` something else, and returns the Python frames down to it.
    fn lead(&mut self, which: Index, previous: u64) -> Vec<Frame> {
        self.memory.put(self.frame(which) + u64::from(self.python.frame_previous), previous);
        self.ordered(which.index(self.at.len()))
    }
}

fn stacks(
    recipe: impl Strategy<Value = Recipe>,
    count: impl Into<SizeRange>,
) -> impl Strategy<Value = Stack> {
    (layouts(), vec(recipe, count)).prop_map(|(python, recipes)| Stack::new(python, recipes))
}

fn key(frames: &[Frame]) -> StackKey {
    let mut key = KEY;
    frames.iter().for_each(|frame| key.add(frame.code, frame.instr));
    key
}

/// What a walk gave.
#[derive(Debug, PartialEq)]
struct Outcome {
    frames: Vec<Frame>,
    key: StackKey,
    fault: Option<Fault>,
    rooted: bool,
}

fn walk(stack: &mut Stack, start: Start) -> Outcome {
    let Stack { python, memory, .. } = stack;
    let (mut walk, mut window) = (Walk::default(), Window::default());
    window.clear();
    walk.begin(&start, KEY);
    walk.step(python, &mut window, &mut Stale);
    window.clear();
    walk.begin(&start, KEY);
    let mut frames = Vec::new();
    for _ in 0..MAX_STEPS {
        match walk.step(python, &mut window, memory) {
            Step::Frame(frame) => frames.push(frame),
            Step::Shim => {}
            Step::End => break,
        }
    }
    walk.close();
    assert_eq!(walk.depth as usize, frames.len());
    Outcome { frames, key: walk.key, fault: walk.fault, rooted: walk.rooted }
}

/// The same without a window: a frame is readable with the words `behind` it or not at
/// all, and each of its fields is read by itself.
fn plainly(stack: &Stack, start: Start, behind: u64) -> Outcome {
    let Stack { python, memory, .. } = stack;
    let mut frames = Vec::new();
    let mut rooted = false;
    let mut fault = None;
    let mut at = start.frame.0;
    for _ in 0..MAX_STEPS {
        if at == 0 {
            break;
        }
        if frames.len() == MAX_FRAMES as usize {
            fault = Some(Fault::StackTruncated);
            break;
        }
        let word = |index: u64| memory.get(at.wrapping_add(index * 8));
        let words = u64::from(python.frame_size) / 8 + behind;
        let readable = at.is_multiple_of(8) && (0..words).all(|index| word(index).is_some());
        let fields = [python.frame_code, python.frame_previous, python.frame_instr, python.frame_owner]
            .map(|offset| word(u64::from(offset) / 8));
        let (true, [Some(code), Some(previous), Some(instr), Some(owner)]) = (readable, fields) else {
            fault = Some(Fault::ReadFrame);
            break;
        };
        rooted = owner >> (python.frame_owner % 8 * 8) & 0xff >= u64::from(python.owner_shim);
        if !rooted {
            let instr = instr.wrapping_sub(code).wrapping_sub(u64::from(python.code_instrs)) as i32;
            frames.push(Frame { code: Addr(code), instr, check: 0 });
        }
        at = if start.top_frame_only { 0 } else { previous };
    }
    if at != 0 && fault.is_none() {
        fault = Some(Fault::StackTruncated);
    }
    Outcome { key: key(&frames), frames, fault, rooted }
}

/// The walk's outcome, held against the plain one. They differ only where memory ends
/// just behind a frame: there the walk may end as well, and says so.
fn agreed(stack: &mut Stack, start: Start) -> Result<Outcome, TestCaseError> {
    let seen = walk(stack, start);
    let (most, least) = (plainly(stack, start, 0), plainly(stack, start, LEAST_BEHIND));
    if most == least || seen.fault != Some(Fault::ReadFrame) {
        prop_assert_eq!(&seen, &most);
    }
    prop_assert!(most.frames.starts_with(&seen.frames), "{seen:?} is no part of {most:?}");
    prop_assert!(seen.frames.starts_with(&least.frames), "{seen:?} is less than {least:?}");
    prop_assert_eq!(seen.key, key(&seen.frames));
    Ok(seen)
}

proptest! {
    #[test]
    fn a_stack_is_walked_to_its_root(mut stack in stacks(mixed(), 0..60)) {
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(&seen.frames, &stack.ordered(0));
        prop_assert_eq!(seen.fault, None);
        let root = stack.recipes.first().map_or(BY_THREAD, |root| root.owner);
        prop_assert_eq!(seen.rooted, u16::from(root) >= stack.python.owner_shim);
    }

    #[test]
    fn the_top_frame_alone_is_taken(mut stack in stacks(mixed(), 1..20)) {
        let start = Start { top_frame_only: true, ..stack.start() };
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(seen.frames, stack.ordered(stack.at.len() - 1));
        prop_assert_eq!(seen.fault, None);
    }

    #[test]
    fn a_missing_page_ends_the_stack(mut stack in stacks(mixed(), 1..60), which: Index, its_end: bool) {
        let start = stack.start();
        let last_word = u64::from(stack.python.frame_size) - 8;
        let missing = stack.frame(which) + if its_end { last_word } else { 0 };
        stack.memory.pages.remove(&(missing / PAGE));
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(seen.fault, Some(Fault::ReadFrame));
        let above = stack.ordered(which.index(stack.at.len()) + 1);
        prop_assert!(above.starts_with(&seen.frames), "{seen:?} is no part of {above:?}");
    }

    #[test]
    fn what_is_not_aligned_is_no_frame(
        mut stack in stacks(mixed(), 1..60), which: Index, to: Index, off in 1_u64..8
    ) {
        let unaligned = stack.frame(to) + off;
        let above = stack.lead(which, unaligned);
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(seen.frames, above);
        prop_assert_eq!(seen.fault, Some(Fault::ReadFrame));
        let seen = agreed(&mut stack, Start { frame: Addr(unaligned), top_frame_only: false })?;
        prop_assert_eq!(seen.frames, []);
        prop_assert_eq!(seen.fault, Some(Fault::ReadFrame));
    }

    #[test]
    fn a_leaf_below_all_memory_is_not_read_from_an_old_window(
        mut stack in stacks(mixed(), 1..20), word in 1_u64..512
    ) {
        let seen = walk(&mut stack, Start { frame: Addr(word * 8), top_frame_only: false });
        prop_assert_eq!(seen.frames, []);
        prop_assert_eq!(seen.fault, Some(Fault::ReadFrame));
    }

    #[test]
    fn a_ring_of_frames_is_cut(
        mut stack in stacks(mixed(), 1..60), which: Index, to: Index
    ) {
        // Back towards the leaf, or to itself.
        let back = if to.index(stack.at.len()) > which.index(stack.at.len()) { to } else { which };
        stack.lead(which, stack.frame(back));
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(seen.fault, Some(Fault::StackTruncated));
    }

    /// A `previous` near the frames, mapped or not, or anywhere at all.
    #[test]
    fn what_is_no_frame_is_read_as_it_lies(
        mut stack in stacks(mixed(), 1..60), which: Index, near: Index, words in -1_024_i64..1_024,
        anywhere in proptest::option::weighted(0.2, any::<u64>()),
    ) {
        let near = stack.frame(near).wrapping_add_signed(words * 8);
        let above = stack.lead(which, anywhere.unwrap_or(near));
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        prop_assert!(seen.frames.starts_with(&above), "{above:?} is no part of {seen:?}");
    }

    /// What the window is for: one copy for a page of frames, or two if the last of them
    /// ends in the next page; one to come into another chunk; one for each frame elsewhere.
    #[test]
    fn copies_are_few(mut stack in stacks(mixed().prop_map(Recipe::dense), 0..200)) {
        let start = stack.start();
        walk(&mut stack, start);
        let frames = stack.at.iter().copied().zip(&stack.recipes);
        let (inside, elsewhere): (Vec<_>, Vec<_>) = frames.partition(|(_, recipe)| recipe.owner == BY_THREAD);
        let inside: Vec<u64> = inside.into_iter().map(|(at, _)| at).collect();
        let pages: BTreeSet<u64> = inside.iter().map(|at| at / PAGE).collect();
        let last_word = u64::from(stack.python.frame_size) - 8;
        let crossing = inside.iter().filter(|at| *at / PAGE != (*at + last_word) / PAGE).count();
        let chunks = inside.iter().zip(inside.iter().skip(1)).filter(|(below, at)| *at - *below > PAGE).count();
        let most = pages.len() + crossing + chunks + elsewhere.len();
        prop_assert!(stack.memory.reads <= most, "{} copies, not {most}", stack.memory.reads);
    }

    /// Surely, not just likely: each step of either half is one to one.
    #[test]
    fn another_frame_is_another_key(
        stack in stacks(recipe(Just(BY_THREAD)), 1..20), which: Index, code: bool, bit in 0..32
    ) {
        let mut frames = stack.ordered(0);
        let before = key(&frames);
        let frame = which.get_mut(&mut frames);
        if code { frame.code.0 ^= 1_u64 << bit } else { frame.instr ^= 1_i32 << bit }
        let after = key(&frames);
        prop_assert!(before.id != after.id && before.check != after.check);
    }

    #[test]
    fn another_owner_is_another_key(target in 0_u64..1 << 16, type_object in 0_u64..1 << 47, bit in 0..47) {
        let before = StackKey::empty(target, Addr(type_object));
        for after in [
            StackKey::empty(target ^ 1, Addr(type_object)),
            StackKey::empty(target, Addr(type_object ^ 1_u64 << bit)),
        ] {
            prop_assert!(before.id != after.id && before.check != after.check);
        }
    }
}

proptest! {
    /// A type that gives half of another target's key does not give the other half.
    #[test]
    fn no_type_makes_a_key_of_another_targets(
        target in 0_u64..1 << 16,
        other in 0_u64..1 << 16,
        type_object in any::<u64>(),
    ) {
        prop_assume!(target != other);
        let truth = StackKey::empty(target, Addr(type_object));
        let id = type_object ^ (target ^ other) << 48;
        let forged = StackKey::empty(other, Addr(id));
        prop_assert_eq!(forged.id, truth.id);
        prop_assert_ne!(forged.check, truth.check);
    }
}

proptest! {
    // Deep stacks are slow to make.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn the_root_beyond_max_frames_is_cut(mut stack in stacks(mixed(), 440..620)) {
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        let mut ordered = stack.ordered(0);
        let all = ordered.len();
        ordered.truncate(MAX_FRAMES as usize);
        prop_assert_eq!(seen.frames, ordered);
        prop_assert!(all <= MAX_FRAMES as usize || seen.fault == Some(Fault::StackTruncated));
        prop_assert!(all >= MAX_FRAMES as usize || seen.fault.is_none());
    }

    #[test]
    fn a_stack_of_max_frames_is_whole(mut stack in stacks(recipe(Just(BY_THREAD)), MAX_FRAMES as usize)) {
        let start = stack.start();
        let seen = agreed(&mut stack, start)?;
        prop_assert_eq!(seen.frames, stack.ordered(0));
        prop_assert_eq!(seen.fault, None);
    }
}
