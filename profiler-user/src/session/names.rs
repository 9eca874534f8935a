//! What greenlets are called: asked while they live, and kept for the end.
//!
//! The name is what somebody assigned to the greenlet's attribute `name`; gevent makes its
//! own ones when it is asked, so that such a name exists nowhere, and the type's stands for
//! it. A name lies in the greenlet's `__dict__` and goes with it. So user space asks for it
//! while the greenlet lives: where a tick or a block tells of it, and each turn in which
//! greenlets were born all that are new. The target does nothing for that, nor does the
//! kernel part. A greenlet that does not live to the next turn stays nameless; as does, now
//! and then, one of tens of thousands.
//!
//! The memory of a greenlet that is freed is the next one's at once. A name counts if it read
//! the same twice and the kernel part knows the greenlet after that by its number, which no
//! other ever has: then it lived, and was where it was, all the time.

use std::time::Duration;

use profiler_common::{
    address::Addr,
    greenlet::{self, Head, Life as Stage},
    limits::DEFAULT_GREENLETS,
    record::{ARMED, GREENLET_BORN, Greenlet, GreenletKey},
    walk::SCRATCH_WORDS,
};
use rustc_hash::FxHashMap;

use super::{Session, SessionError, monotonic_ns, ns, recorded::Recorded};
use crate::{
    kernel::{Engine, Part, Place},
    memory::{Cached, LiveProcess},
    target,
    timeline::lives::Life,
};

/// How long one turn asks.
const AT_MOST: Duration = Duration::from_millis(10);
/// How long the last one does, while the recording goes on: what has no name by then gets
/// none.
const AT_LAST: Duration = Duration::from_secs(1);
/// After asking for some time, so many times that time nothing is asked: it costs a
/// twentieth of a CPU at most.
const REST: u64 = 19;

/// Greenlets asked together.
const TOGETHER: usize = 256;

/// The names of a target's greenlets, by the kernel part's number.
#[derive(Debug)]
pub(super) struct Names {
    /// None for one that had none when it was asked for.
    known: FxHashMap<u64, Option<String>>,
    room: usize,
}

impl Names {
    /// Of a target whose dead greenlets are listed up to `listed`.
    pub(super) fn new(listed: usize) -> Self {
        Self { known: FxHashMap::default(), room: listed.saturating_add(DEFAULT_GREENLETS as usize) }
    }

    /// The name of a greenlet, if it had one that was seen.
    pub(super) fn of(&self, greenlet: u64) -> Option<&str> {
        self.known.get(&greenlet)?.as_deref()
    }

    /// A greenlet ended: its name is wanted if it is listed.
    pub(super) fn ended(&mut self, greenlet: u64, listed: bool) {
        if !listed || self.of(greenlet).is_none() {
            self.known.remove(&greenlet);
        }
    }
}

/// A greenlet of the kernel part's, to be asked for its name.
type Asked = (GreenletKey, Greenlet);

impl Recorded {
    /// Asks for the name of a greenlet that a tick or a block told of.
    pub(super) fn name(&mut self, greenlet: u64, object: Addr, engine: &Engine) {
        if greenlet == 0 || self.names.known.contains_key(&greenlet) {
            return;
        }
        let Ok(pimpl) = greenlet::pimpl(&self.layout(), &mut self.memory, object) else {
            return;
        };
        let key = GreenletKey { target: u64::from(self.cookie), pimpl };
        if let Some(known) = engine.greenlet(&key).ok().flatten()
            && known.id == greenlet
        {
            self.ask(&[(key, known)], engine);
        }
    }

    /// Asks some greenlets for their names.
    ///
    /// By a cache, for greenlets often lie side by side. It is emptied before each look: no
    /// block of it is older than the kernel part's word that they live, or the look before.
    fn ask(&mut self, asked: &[Asked], engine: &Engine) {
        if self.names.known.len().saturating_add(asked.len()) > self.names.room || self.gone_ns.is_some() {
            return;
        }
        let mut memory = Cached::new(self.memory.clone());
        let name = |memory: &mut Cached<LiveProcess>, greenlet: &Greenlet| {
            target::greenlet_name(memory, &self.target, greenlet.object)
        };
        let mut names: Vec<(&Asked, Option<String>)> =
            asked.iter().filter_map(|asked| Some((asked, name(&mut memory, &asked.1).ok()?))).collect();
        memory.clear();
        // A dictionary that grew meanwhile may have lent its memory to another one.
        names.retain(|((_, greenlet), known)| {
            known.is_none() || name(&mut memory, greenlet).as_ref() == Ok(known)
        });
        memory.clear();
        names.retain(|(asked, name)| name.is_none() || self.is_there(asked, &mut memory, engine));
        // Asked last: while it counts, what it knows is alive.
        if engine.config(self.cookie).is_ok_and(|config| ![0, ARMED].contains(&config.started_ns)) {
            self.names.known.extend(names.into_iter().map(|((_, greenlet), name)| (greenlet.id, name)));
        }
    }

    /// Whether that greenlet lives, and is where it was.
    fn is_there(&self, asked: &Asked, memory: &mut Cached<LiveProcess>, engine: &Engine) -> bool {
        let (key, greenlet) = asked;
        let layout = self.layout();
        let head = Head::read(&layout, memory, key.pimpl, &mut [0; SCRATCH_WORDS]);
        head.is_ok_and(|head| head.object == greenlet.object && head.life(false) == Stage::Active)
            && greenlet::pimpl(&layout, memory, greenlet.object) == Ok(key.pimpl)
            && engine.greenlet(key).is_ok_and(|known| {
                known.is_some_and(|known| known.id == greenlet.id && known.object == greenlet.object)
            })
    }

    /// What a greenlet was called when it was enumerated.
    ///
    /// One that was not born in the recording and lived when the enumeration was over is
    /// the one that had its address then.
    pub(super) fn enumerated_name(&self, life: &Life) -> Option<&str> {
        if life.born || life.ended_ns.is_some_and(|ended_ns| ended_ns <= self.enumerated_ns) {
            return None;
        }
        let place = self.enumerated_places.get(&(life.pimpl, life.object))?;
        self.enumerated.get(*place)?.name.as_deref()
    }
}

/// How far the asking has come.
#[derive(Debug, Default)]
pub(super) struct Asking {
    /// Where the present pass over the greenlets goes on; none between two.
    place: Option<Place>,
    under_way: bool,
    /// How many there had been when it began.
    identities: u64,
    /// Not before then.
    next_ns: u64,
}

impl Session {
    /// Asks for the names of greenlets that are new, when `identities` have been given;
    /// the `last` time for those as well that had none before.
    pub(super) fn ask_names(
        &mut self,
        recorded: &mut [Recorded],
        identities: u64,
        last: bool,
    ) -> Result<(), SessionError> {
        let began_ns = monotonic_ns();
        let asking = &mut self.asking;
        if last {
            *asking = Asking::default();
        } else if began_ns < asking.next_ns || !asking.under_way && asking.identities == identities {
            return Ok(());
        }
        if !asking.under_way {
            asking.identities = identities;
        }
        let deadline_ns = began_ns + ns(if last { AT_LAST } else { AT_MOST });
        asking.under_way = true;
        while asking.under_way && monotonic_ns() < deadline_ns {
            let Part { entries: greenlets, next } = self.engine.some_greenlets(asking.place)?;
            let mut new: FxHashMap<u64, Vec<Asked>> = FxHashMap::default();
            for (key, greenlet) in greenlets {
                let Some(target) = self.places.get(&key.target).and_then(|place| recorded.get(*place)) else {
                    continue;
                };
                let known = target.names.known.get(&greenlet.id);
                let asked = known.is_some_and(|name| name.is_some() || !last);
                // The enumeration has asked those that were there.
                let enumerated = greenlet.flags & GREENLET_BORN == 0 && target.enumerated_whole;
                if !asked && !enumerated {
                    new.entry(key.target).or_default().push((key, greenlet));
                }
            }
            for (target, mut new) in new {
                // The map's order is none in memory.
                new.sort_unstable_by_key(|(_, greenlet)| greenlet.object);
                let place = self.places.get(&target);
                let Some(target) = place.and_then(|place| recorded.get_mut(*place)) else {
                    continue;
                };
                for some in new.chunks(TOGETHER) {
                    if monotonic_ns() < deadline_ns {
                        target.ask(some, &self.engine);
                    }
                }
            }
            if monotonic_ns() < deadline_ns {
                asking.place = next;
                asking.under_way = next.is_some();
            }
        }
        let now_ns = monotonic_ns();
        asking.next_ns = now_ns + REST * (now_ns - began_ns);
        Ok(())
    }
}
