//! What a record of the ring is, and how a greenlet ended.

/// How a greenlet's life ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum End {
    /// Its function returned or raised.
    Finished = 1,
    /// Its object was freed.
    Freed = 2,
    /// Its thread ended while it was current.
    ThreadExit = 3,
    /// Its address was taken by another greenlet: its end was not seen.
    Replaced = 4,
}

/// What a record is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u32)]
pub enum Kind {
    /// [`crate::record::StackHead`] and frames.
    Stack = 1,
    /// [`crate::record::EndRecord`].
    End = 2,
    /// [`crate::record::SwitchRecord`].
    Switch = 3,
    /// [`crate::record::SwitchRecord`] that takes the last one of its thread back.
    Undone = 4,
    /// [`crate::record::TickRecord`].
    Tick = 5,
    /// [`crate::record::BlockRecord`].
    Block = 6,
    /// [`crate::record::ForkRecord`].
    Fork = 7,
    /// [`crate::record::LabelRecord`].
    Label = 8,
    /// [`crate::record::ExecRecord`].
    Exec = 9,
    /// [`crate::record::LoadedRecord`].
    Loaded = 10,
    /// [`crate::record::RecordHead`] alone: a target that had not loaded greenlet may do so.
    Loads = 11,
    /// [`crate::record::UpRecord`].
    Up = 12,
    /// [`crate::record::OffRecord`].
    Off = 13,
    /// A code's text: [`crate::code`].
    Code = 14,
    /// [`crate::record::RequestRecord`].
    Request = 15,
    /// [`crate::record::OffRecord`]: a thread with greenlets slept for as long as a block, or for the first time
    /// in that stack.
    Slept = 16,
}
