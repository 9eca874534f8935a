//! What comes through the ring buffer, and whose it is.

use profiler_common::{
    fault::Fault,
    record::{
        BlockRecord, EndRecord, ExecRecord, ForkRecord, GREENLET_BORN, Kind, LabelRecord, LoadedRecord,
        OffRecord, RecordHead, RequestRecord, StackHead, SwitchRecord, TickRecord, UpRecord, VERSION,
    },
    walk,
};
use rustc_hash::FxHashMap;

use super::{recorded::Recorded, texts};
use crate::{kernel::Engine, timeline::intervals::Switch};

/// What a record was.
pub(super) enum Was {
    /// A stack.
    Stack,
    /// A new process, which is not among the recorded ones yet.
    Fork(ForkRecord),
    /// A new program, perhaps of a process that is not among them.
    Exec(ExecRecord),
    /// A greenlet library that a target loaded.
    Loaded(LoadedRecord),
    /// The interpreter of a process is up that is not among the recorded ones.
    Up(UpRecord),
    /// Anything else.
    Other,
}

/// Takes a record of any of the targets, whose places are found by their numbers.
///
/// A record that is not ours in length or version is counted and left.
pub(super) fn take(
    record: &[u8],
    recorded: &mut [Recorded],
    places: &FxHashMap<u64, usize>,
    engine: &Engine,
) -> Was {
    let Some(head) = part::<RecordHead>(record) else {
        if let Some(first) = recorded.first_mut() {
            first.fault(Fault::BadRecord);
        }
        return Was::Other;
    };
    let known = if head.version == VERSION { head.kind } else { 0 };
    if known == Kind::Fork as u32
        && let Some(fork) = part::<ForkRecord>(record)
    {
        return Was::Fork(fork);
    }
    if known == Kind::Exec as u32
        && let Some(exec) = part::<ExecRecord>(record)
    {
        return Was::Exec(exec);
    }
    if known == Kind::Loaded as u32
        && let Some(loaded) = part::<LoadedRecord>(record)
    {
        return Was::Loaded(loaded);
    }
    if known == Kind::Up as u32
        && let Some(up) = part::<UpRecord>(record)
    {
        return Was::Up(up);
    }
    let Some(target) = places.get(&head.target).and_then(|place| recorded.get_mut(*place)) else {
        return Was::Other;
    };
    if known == Kind::Stack as u32
        && let Some(stack) = part::<StackHead>(record)
        && let Some(frames) = frames(record, stack.depth)
    {
        target.stack(&stack, frames, engine);
        return Was::Stack;
    }
    if known == Kind::End as u32
        && let Some(end) = part::<EndRecord>(record)
    {
        if let Some(intervals) = &mut target.intervals {
            intervals.ended(end.greenlet.id, end.greenlet.since_ns);
        }
        target.meet(end.greenlet.type_object);
        target.work.ended(&end.greenlet);
        target.feed_end_of(end.greenlet.id);
        let listed = target.ended.len() < target.max_ended;
        target.names.ended(end.greenlet.id, listed);
        if listed {
            target.ended.push(end);
        } else {
            target.unlisted.add(&end.greenlet);
            if end.greenlet.flags & GREENLET_BORN == 0 {
                target.unlisted_from_before.insert((end.pimpl, end.greenlet.object));
            }
        }
    } else if known == Kind::Switch as u32
        && let Some(switch) = part::<SwitchRecord>(record)
    {
        if let Some(intervals) = &mut target.intervals {
            let SwitchRecord { head, from, to, stack, label } = switch;
            intervals.switched(&Switch { time_ns: head.time_ns, from, to, stack, label });
        }
    } else if known == Kind::Undone as u32
        && let Some(switch) = part::<SwitchRecord>(record)
    {
        if let Some(intervals) = &mut target.intervals {
            intervals.undone(switch.from, switch.to);
        }
    } else if known == Kind::Loads as u32 {
        target.reload |= target.target.greenlet.is_none();
    } else if known == Kind::Tick as u32
        && let Some(tick) = part::<TickRecord>(record)
    {
        target.tick(&tick, engine);
    } else if known == Kind::Block as u32
        && let Some(block) = part::<BlockRecord>(record)
    {
        target.block(&block, engine);
    } else if known == Kind::Label as u32
        && let Some(label) = part::<LabelRecord>(record)
    {
        target.work.labels.take(&label);
    } else if known == Kind::Request as u32
        && let Some(request) = part::<RequestRecord>(record)
    {
        target.request_ended(&request);
    } else if known == Kind::Off as u32
        && let Some(off) = part::<OffRecord>(record)
    {
        target.feed_off(&off);
    } else if known == Kind::Code as u32
        && let Some(text) = texts::parse(record)
    {
        target.stacks.tell(text);
    } else if known == Kind::Slept as u32
        && let Some(sleep) = part::<OffRecord>(record)
    {
        target.slept(&sleep);
    } else {
        target.fault(Fault::BadRecord);
    }
    Was::Other
}

fn part<T: bytemuck::AnyBitPattern>(record: &[u8]) -> Option<T> {
    record.get(..size_of::<T>()).map(bytemuck::pod_read_unaligned)
}

fn frames(record: &[u8], depth: u32) -> Option<Vec<walk::Frame>> {
    let bytes = record.get(size_of::<StackHead>()..)?;
    let depth = usize::try_from(depth).ok()?;
    if bytes.len() < depth * size_of::<walk::Frame>() {
        return None;
    }
    Some(bytes.chunks_exact(size_of::<walk::Frame>()).take(depth).map(bytemuck::pod_read_unaligned).collect())
}
