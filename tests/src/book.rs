//! The books that a target keeps of itself (tests/targets/books.py).

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::profile::{Frame, Open, State};

/// All that a target says when it is done.
#[derive(Clone, Debug, Deserialize)]
pub struct Books {
    /// Its switches, greenlets and waits.
    pub book: Book,
    /// The time spent in each function, calls included.
    #[serde(default)]
    pub times: BTreeMap<String, Time>,
    /// lives.py: how many greenlets died after so many switches.
    #[serde(default)]
    pub dead: Vec<Dead>,
    /// How many objects had an address that another one had had before.
    #[serde(default)]
    pub addresses_reused: u64,
}

/// What greenlet's own trace hook told: one call per real switch.
#[derive(Clone, Debug, Deserialize)]
pub struct Book {
    /// When the target began its work.
    pub begin_unix_ns: u64,
    /// When it closed the books.
    pub end_unix_ns: u64,
    /// How long its threads were ready and had no CPU, summed.
    #[serde(default)]
    pub delayed_ns: u64,
    /// Switches by thread id.
    pub switches: BTreeMap<u32, u64>,
    /// Every greenlet that switched, and those that waited already.
    pub greenlets: Vec<Life>,
    /// Waits, by stack, state and which end cut them.
    pub waits: Vec<Wait>,
}

/// One greenlet.
#[derive(Clone, Debug, Deserialize)]
pub struct Life {
    /// Its thread.
    pub tid: u32,
    /// Whether it is its thread's main greenlet.
    pub main: bool,
    /// The name that it was given, if any.
    pub name: Option<String>,
    /// How often it was switched to.
    pub switches_in: u64,
    /// Whether it lives; null where no switch could tell that it does not.
    pub alive: Option<bool>,
}

/// The waits at one stack.
#[derive(Clone, Debug, Deserialize)]
pub struct Wait {
    /// Root first.
    pub frames: Vec<Frame>,
    /// `wait`, or `idle` for a hub.
    pub state: State,
    /// Which end of the books cut them.
    pub open: Option<Open>,
    /// How many.
    pub count: u64,
    /// Their time, summed.
    pub ns: u64,
}

/// The calls of a function.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Time {
    /// How many.
    pub calls: u64,
    /// Their time, summed.
    pub ns: u64,
}

/// Greenlets that lived the same life.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Dead {
    /// How often each was switched to.
    pub switches_in: u64,
    /// How many there were.
    pub greenlets: u64,
}

impl Book {
    /// The switches of all threads.
    pub fn total(&self) -> u64 {
        self.switches.values().sum()
    }
}
