//! The stacks of one target: their frames' names, and how long they hold.
//!
//! A stack's key is made of code addresses, and addresses are reused. Where the kernel part is
//! told of each code object that is freed, what is met at such an address is known by its
//! text ([`profiler_common::code`]): then a key's frames are the same from first to last, and
//! their names come with the first of them.
//!
//! Where it is not told every frame comes with a check value of its code object, the codes are
//! checked again every turn, and time that a stack got while one of its codes became another is
//! shown with that frame unknown ([`Fault::CodeReused`]).

use std::{collections::HashMap, sync::Arc};

use profiler_common::{
    address::Addr,
    code::BY_TEXT,
    fault::Fault,
    layout::PythonLayout,
    memory::Memory,
    queue::Queued,
    record::StackTotals,
    walk::{self, SCRATCH_WORDS, StackKey, code_is},
};
use rustc_hash::{FxHashMap, FxHashSet};

use super::texts::Text;
use crate::{
    memory::{Bytes, LiveProcess},
    profile::Frame,
    python::{
        code::{self, Code},
        objects::ObjectLayout,
    },
};

/// A stack as it came from the kernel.
#[derive(Clone, Debug)]
pub(super) struct Taken {
    pub(super) key: StackKey,
    pub(super) type_object: Addr,
    /// Leaf first.
    pub(super) frames: Vec<walk::Frame>,
}

/// Some of a stack's time, with the frames that hold for it.
#[derive(Clone, Debug)]
pub(super) struct Part {
    pub(super) frames: Arc<[Frame]>,
    pub(super) type_object: Addr,
    pub(super) ns: u64,
    pub(super) count: u64,
    /// How much of it was queued, if polls tell of it.
    pub(super) queued: Queued,
}

#[derive(Debug)]
struct Known {
    taken: Taken,
    /// Root first, without those that Python does not show.
    frames: Arc<[Frame]>,
    /// What each of `frames` is of.
    shown: Vec<walk::Frame>,
    /// Up to here the totals are `past`'s or of these frames for sure.
    validated: StackTotals,
    /// What `past` has of the totals.
    past_ns: u64,
    past_count: u64,
    past_queued: Queued,
    past: Vec<Part>,
}

/// A code object and its names as frames share them.
#[derive(Debug)]
struct Named {
    function: Arc<str>,
    file: Arc<str>,
    code: Code,
}

/// A code by what stands for it in keys.
#[derive(Debug)]
struct Told {
    code: Arc<Named>,
    /// There is no more to be known of it.
    is_whole: bool,
}

/// The stacks of one target.
#[derive(Debug)]
pub(super) struct Stacks {
    python: PythonLayout,
    objects: ObjectLayout,
    known: FxHashMap<StackKey, Known>,
    /// Each thread's sleeps have keys of their own, and the same frames.
    frames: FxHashSet<Arc<[Frame]>>,
    codes: FxHashMap<(Addr, u32), Arc<Named>>,
    /// The check value by which each code in `codes` goes: it may have come to another
    /// one since, when its names' hashes were computed.
    checks: FxHashMap<Addr, u32>,
    faults: HashMap<Fault, u64>,
    /// By what stands for them in keys, the codes that were met: each stands for one code only.
    /// None where it is not told which are freed.
    texts: Option<FxHashMap<Addr, Told>>,
    /// The processes that it was forked from, the last one first: what is not there any
    /// more may be there.
    elders: Vec<LiveProcess>,
}

const NOTHING: StackTotals = StackTotals { ns: 0, count: 0, sent: 0, target: 0, queued: Queued::NONE };

impl Stacks {
    pub(super) fn new(python: PythonLayout, objects: ObjectLayout) -> Self {
        Self {
            python,
            objects,
            known: FxHashMap::default(),
            frames: FxHashSet::default(),
            codes: FxHashMap::default(),
            checks: FxHashMap::default(),
            faults: HashMap::new(),
            texts: None,
            elders: Vec::new(),
        }
    }

    /// Those of a process that was forked from this one: none yet, but with the names of
    /// its codes, which it has as well.
    pub(super) fn forked(&self, elder: LiveProcess) -> Self {
        Self {
            elders: std::iter::once(elder).chain(self.elders.iter().cloned()).collect(),
            codes: self.codes.clone(),
            checks: self.checks.clone(),
            texts: self.texts.as_ref().map(|_| FxHashMap::default()),
            ..Self::new(self.python, self.objects)
        }
    }

    /// It is told from now on which codes are freed.
    pub(super) fn expect_texts(&mut self) {
        self.texts.get_or_insert_default();
    }

    /// Whether a key's frames are the same from first to last.
    pub(super) const fn are_for_good(&self) -> bool {
        self.texts.is_some()
    }

    /// The text of a code came, of which there are stacks from now on.
    pub(super) fn tell(&mut self, text: Text) {
        let Text { stands, code, is_whole } = text;
        if let Some(texts) = &mut self.texts {
            texts.entry(stands).or_insert_with(|| Told { code: Named::new(code), is_whole });
        }
    }

    /// How many stacks are known.
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }

    /// Faults met in user space.
    pub(super) fn faults(&self) -> &HashMap<Fault, u64> {
        &self.faults
    }

    /// The frames that hold now.
    pub(super) fn frames(&self, key: &StackKey) -> Option<(Arc<[Frame]>, Addr)> {
        self.known.get(key).map(|known| (Arc::clone(&known.frames), known.taken.type_object))
    }

    /// A stack's frames came: for the first time, or anew. `totals` is what its time
    /// is by now.
    pub(super) fn take<M: Bytes>(
        &mut self,
        mut taken: Taken,
        memory: &mut M,
        totals: impl FnOnce() -> StackTotals,
    ) {
        if self.texts.is_some() {
            self.take_for_good(taken, memory);
            return;
        }
        for frame in &mut taken.frames {
            frame.check = self.check(frame, memory);
        }
        if self.known.get(&taken.key).is_some_and(|known| known.taken.frames == taken.frames) {
            return;
        }
        let (shown, frames) = self.shown(&taken.frames, memory);
        let frames = self.shared(frames);
        let key = taken.key;
        match self.known.get_mut(&key) {
            None => {
                let known = Known {
                    taken,
                    frames,
                    shown,
                    validated: NOTHING,
                    past_ns: 0,
                    past_count: 0,
                    past_queued: Queued::NONE,
                    past: Vec::new(),
                };
                self.known.insert(key, known);
            }
            Some(known) => {
                // The same addresses, but another code: what was counted since the
                // last look may belong to either.
                let now = totals();
                known.turn(now, |frame| taken.frames.contains(frame), &mut self.faults);
                known.taken = taken;
                known.frames = frames;
                known.shown = shown;
                known.validated = now;
            }
        }
    }

    /// The same where a key stands for the same codes from first to last.
    fn take_for_good<M: Bytes>(&mut self, taken: Taken, memory: &mut M) {
        let whole = |known: &Known| !known.frames.iter().any(Frame::is_unknown);
        if self.known.get(&taken.key).is_some_and(whole) {
            return;
        }
        let mut shown = Vec::with_capacity(taken.frames.len());
        for frame in taken.frames.iter().rev() {
            let code = self.for_good(frame, memory);
            shown.extend(self.named(code, frame.instr));
        }
        let frames = self.shared(shown.into());
        let known = Known {
            taken,
            frames,
            shown: Vec::new(),
            validated: NOTHING,
            past_ns: 0,
            past_count: 0,
            past_queued: Queued::NONE,
            past: Vec::new(),
        };
        self.known.insert(known.taken.key, known);
    }

    /// The code that a frame's address stands for.
    fn for_good<M: Bytes>(&mut self, frame: &walk::Frame, memory: &mut M) -> Result<Arc<Named>, Fault> {
        let told = self.texts.as_ref().and_then(|texts| texts.get(&frame.code));
        let told = told.map(|told| (Arc::clone(&told.code), told.is_whole));
        let is_gone = frame.code.0 & BY_TEXT != 0 || frame.check == 0;
        match told {
            Some((code, is_whole)) if is_whole || is_gone => return Ok(code),
            None if is_gone => return Err(Fault::CodeChanged),
            // Its text was not sent: another's was, whose address has the same bit; or it is too long.
            Some(_) | None => {}
        }
        let code = match (self.read(frame, memory), told) {
            (Ok(code), _) => Named::new(code),
            (Err(_), Some((code, _))) => code,
            (Err(fault), None) => return Err(fault),
        };
        if let Some(texts) = &mut self.texts {
            texts.insert(frame.code, Told { code: Arc::clone(&code), is_whole: true });
        }
        Ok(code)
    }

    /// The check value by which the frame's code goes, if it is the same code.
    fn check<M: Bytes>(&self, frame: &walk::Frame, memory: &mut M) -> u32 {
        let Some(&known) = self.checks.get(&frame.code) else {
            return frame.check;
        };
        if known == frame.check {
            return known;
        }
        let mut is = |check| code_is(&self.python, frame.code, memory, &mut [0; SCRATCH_WORDS], check);
        // Both are of what is there now.
        if is(known) == Ok(true) && is(frame.check) == Ok(true) { known } else { frame.check }
    }

    /// Frames outside any kernel stack, root first: of a greenlet found by reading.
    pub(super) fn resolve<M: Bytes>(&mut self, frames: &[walk::Frame], memory: &mut M) -> Arc<[Frame]> {
        self.shown(frames, memory).1
    }

    /// The same frames are there once.
    fn shared(&mut self, frames: Arc<[Frame]>) -> Arc<[Frame]> {
        if let Some(known) = self.frames.get(&frames) {
            return Arc::clone(known);
        }
        self.frames.insert(Arc::clone(&frames));
        frames
    }

    /// The frames that Python shows, root first, and what is known of each.
    fn shown<M: Bytes>(
        &mut self,
        frames: &[walk::Frame],
        memory: &mut M,
    ) -> (Vec<walk::Frame>, Arc<[Frame]>) {
        let of = |frame: &walk::Frame| Some((*frame, self.frame(frame, memory)?));
        let (shown, named): (Vec<_>, Vec<_>) = frames.iter().rev().filter_map(of).unzip();
        (shown, named.into())
    }

    /// `None` for a frame that Python does not show.
    fn frame<M: Bytes>(&mut self, frame: &walk::Frame, memory: &mut M) -> Option<Frame> {
        let code = self.code(frame, memory);
        self.named(code, frame.instr)
    }

    /// The frame of a code, at that instruction; `None` if Python does not show it.
    fn named(&mut self, code: Result<Arc<Named>, Fault>, instr: i32) -> Option<Frame> {
        match code {
            Ok(code) => code.code.shows(instr).then(|| Frame {
                function: Some(Arc::clone(&code.function)),
                file: Some(Arc::clone(&code.file)),
                // Before its first instruction a frame is at its first line.
                line: u32::try_from(instr).map_or(Some(code.code.firstlineno), |instr| code.code.line(instr)),
            }),
            Err(fault) => {
                *self.faults.entry(fault).or_default() += 1;
                Some(Frame::UNKNOWN)
            }
        }
    }

    fn code<M: Bytes>(&mut self, frame: &walk::Frame, memory: &mut M) -> Result<Arc<Named>, Fault> {
        if frame.check == 0 {
            return Err(Fault::CodeChanged);
        }
        if let Some(code) = self.codes.get(&(frame.code, frame.check)) {
            return Ok(Arc::clone(code));
        }
        let code = self.read(frame, memory).or_else(|fault| {
            let mut elders = self.elders.iter().cloned();
            elders.find_map(|mut elder| self.read(frame, &mut elder).ok()).ok_or(fault)
        })?;
        let code = Named::new(code);
        self.codes.insert((frame.code, frame.check), Arc::clone(&code));
        self.checks.insert(frame.code, frame.check);
        Ok(code)
    }

    fn read<M: Bytes>(&self, frame: &walk::Frame, memory: &mut M) -> Result<Code, Fault> {
        let code = code::read(memory, &self.objects, frame.code)?;
        // After the reading: what was read is of the code that the kernel saw.
        if !code_is(&self.python, frame.code, memory, &mut [0; SCRATCH_WORDS], frame.check)? {
            return Err(Fault::CodeChanged);
        }
        Ok(code)
    }

    /// The codes that are not what they were, where nothing tells of them.
    pub(super) fn gone<M: Memory>(&mut self, memory: &mut M) -> FxHashSet<(Addr, u32)> {
        if self.texts.is_some() {
            // These are of stacks that were read, each once. What is there the next time is
            // read anew.
            self.codes.clear();
            self.checks.clear();
            return FxHashSet::default();
        }
        let mut words = [0; SCRATCH_WORDS];
        self.codes
            .keys()
            .filter(|(code, check)| {
                !code_is(&self.python, *code, memory, &mut words, *check).unwrap_or(false)
            })
            .copied()
            .collect()
    }

    /// Closes the books of the stacks with a code of `gone`; those of the others are
    /// sure up to `totals`, which were read before.
    pub(super) fn apply(&mut self, gone: &FxHashSet<(Addr, u32)>, totals: &FxHashMap<StackKey, StackTotals>) {
        for (code, check) in gone {
            self.codes.remove(&(*code, *check));
            self.checks.remove(code);
        }
        for (key, known) in &mut self.known {
            let now = totals.get(key).copied().unwrap_or(NOTHING);
            let holds = |frame: &walk::Frame| !gone.contains(&(frame.code, frame.check));
            if known.taken.frames.iter().all(holds) {
                known.validated = now;
            } else {
                known.turn(now, holds, &mut self.faults);
                // Nothing more is added to these frames until they come anew, even if
                // they come with the same code.
                known.frames = known.unsure(holds);
                known.validated = now;
                for frame in known.taken.frames.iter_mut().filter(|frame| !holds(frame)) {
                    frame.check = 0;
                }
            }
        }
    }

    /// Each stack's time, split where its codes changed.
    pub(super) fn parts(&self, totals: &FxHashMap<StackKey, StackTotals>) -> Vec<(StackKey, Vec<Part>)> {
        self.known
            .iter()
            .map(|(key, known)| {
                let now = totals.get(key).copied().unwrap_or(NOTHING);
                let mut parts = known.past.clone();
                parts.push(Part {
                    frames: Arc::clone(&known.frames),
                    type_object: known.taken.type_object,
                    ns: now.ns.saturating_sub(known.past_ns),
                    count: now.count.saturating_sub(known.past_count),
                    queued: now.queued.since(&known.past_queued),
                });
                (*key, parts)
            })
            .collect()
    }
}

impl Named {
    fn new(code: Code) -> Arc<Self> {
        Arc::new(Self { function: code.qualname.as_str().into(), file: code.filename.as_str().into(), code })
    }
}

impl Known {
    /// Closes the books of the frames that held: sure up to the last validation,
    /// unsure from there to `now`.
    fn turn(
        &mut self,
        now: StackTotals,
        holds: impl Fn(&walk::Frame) -> bool,
        faults: &mut HashMap<Fault, u64>,
    ) {
        let sure = Part {
            frames: Arc::clone(&self.frames),
            type_object: self.taken.type_object,
            ns: self.validated.ns.saturating_sub(self.past_ns),
            count: self.validated.count.saturating_sub(self.past_count),
            queued: self.validated.queued.since(&self.past_queued),
        };
        let unsure = Part {
            frames: self.unsure(holds),
            type_object: self.taken.type_object,
            ns: now.ns.saturating_sub(self.validated.ns),
            count: now.count.saturating_sub(self.validated.count),
            queued: now.queued.since(&self.validated.queued),
        };
        if unsure.count > 0 {
            *faults.entry(Fault::CodeReused).or_default() += unsure.count;
        }
        self.past.extend([sure, unsure].into_iter().filter(|part| part.ns > 0 || part.count > 0));
        self.past_ns = now.ns;
        self.past_count = now.count;
        self.past_queued = now.queued;
    }

    fn unsure(&self, holds: impl Fn(&walk::Frame) -> bool) -> Arc<[Frame]> {
        self.frames
            .iter()
            .zip(&self.shown)
            .map(|(named, frame)| if holds(frame) { named.clone() } else { Frame::UNKNOWN })
            .collect()
    }
}
