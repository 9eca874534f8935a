//! What is sent to OAP at once, and as bytes on a disk.

use prost::Message;
use proto::skywalking::{EbpfProfilingData, ProfileTaskFinishReport, SpanAttachedEvent, ThreadSnapshot};

use super::queue::Weighed;

/// Messages of one kind: a call of its own.
#[derive(Clone, Debug, PartialEq)]
pub enum Batch {
    /// Of a trace task, for segments.
    Snapshots(Vec<ThreadSnapshot>),
    /// A trace task is over.
    Finished(ProfileTaskFinishReport),
    /// Of one eBPF task.
    Ebpf(Vec<EbpfProfilingData>),
    /// On spans.
    Events(Vec<SpanAttachedEvent>),
}

/// What goes with one call at most: proxies limit what they take (nginx: `client_max_body_size`, 1 MB).
const MOST_BYTES: usize = 512 << 10;

impl Batch {
    /// In parts that are small enough for a call each.
    #[must_use]
    pub fn cut(self) -> Vec<Self> {
        match self {
            Self::Snapshots(messages) => parts(messages).map(Self::Snapshots).collect(),
            Self::Ebpf(messages) => {
                // The first message of a call says what all of them are of.
                let task = messages.first().and_then(|first| first.task.clone());
                let whole = |mut part: Vec<EbpfProfilingData>| {
                    if let Some(first) = part.first_mut() {
                        first.task.clone_from(&task);
                    }
                    Self::Ebpf(part)
                };
                parts(messages).map(whole).collect()
            }
            Self::Events(messages) => parts(messages).map(Self::Events).collect(),
            Self::Finished(message) => vec![Self::Finished(message)],
        }
    }

    /// As bytes: the kind's letter, then its messages, each behind its length.
    #[must_use]
    pub fn encode(&self) -> Vec<u8> {
        let mut bytes = vec![self.letter()];
        match self {
            Self::Snapshots(messages) => encode(messages, &mut bytes),
            Self::Finished(message) => encode(std::slice::from_ref(message), &mut bytes),
            Self::Ebpf(messages) => encode(messages, &mut bytes),
            Self::Events(messages) => encode(messages, &mut bytes),
        }
        bytes
    }

    /// From bytes; none if they are no batch.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let (letter, bytes) = bytes.split_first()?;
        match letter {
            b's' => decode(bytes).map(Self::Snapshots),
            b'f' => decode(bytes)?.pop().map(Self::Finished),
            b'e' => decode(bytes).map(Self::Ebpf),
            b'v' => decode(bytes).map(Self::Events),
            _ => None,
        }
    }

    const fn letter(&self) -> u8 {
        match self {
            Self::Snapshots(_) => b's',
            Self::Finished(_) => b'f',
            Self::Ebpf(_) => b'e',
            Self::Events(_) => b'v',
        }
    }

    /// How many messages it has.
    #[must_use]
    pub fn messages(&self) -> usize {
        match self {
            Self::Snapshots(messages) => messages.len(),
            Self::Finished(_) => 1,
            Self::Ebpf(messages) => messages.len(),
            Self::Events(messages) => messages.len(),
        }
    }
}

impl Weighed for Batch {
    fn bytes(&self) -> usize {
        match self {
            Self::Snapshots(messages) => messages.iter().map(Message::encoded_len).sum(),
            Self::Finished(message) => message.encoded_len(),
            Self::Ebpf(messages) => messages.iter().map(Message::encoded_len).sum(),
            Self::Events(messages) => messages.iter().map(Message::encoded_len).sum(),
        }
    }
}

/// In their order; a message is never cut.
fn parts<M: Message>(messages: Vec<M>) -> impl Iterator<Item = Vec<M>> {
    let mut messages = messages.into_iter().peekable();
    std::iter::from_fn(move || {
        let mut part = vec![messages.next()?];
        let mut bytes = part.iter().map(Message::encoded_len).sum::<usize>();
        while let Some(next) = messages.next_if(|next| bytes + next.encoded_len() <= MOST_BYTES) {
            bytes += next.encoded_len();
            part.push(next);
        }
        Some(part)
    })
}

fn encode<M: Message>(messages: &[M], bytes: &mut Vec<u8>) {
    for message in messages {
        bytes.extend(message.encode_length_delimited_to_vec());
    }
}

fn decode<M: Message + Default>(mut bytes: &[u8]) -> Option<Vec<M>> {
    let mut messages = Vec::new();
    while !bytes.is_empty() {
        messages.push(M::decode_length_delimited(&mut bytes).ok()?);
    }
    Some(messages)
}

#[cfg(test)]
mod tests {
    use proto::skywalking::{
        EbpfOnCpuProfiling, EbpfProfilingStackMetadata, EbpfProfilingTaskMetadata, ThreadStack,
        ebpf_profiling_data::Profiling,
    };

    use super::*;

    fn snapshot(sequence: i32) -> ThreadSnapshot {
        ThreadSnapshot {
            task_id: "task".to_owned(),
            trace_segment_id: "segment".to_owned(),
            time: 1,
            sequence,
            stack: Some(ThreadStack { code_signatures: vec!["a.py.f: 1".to_owned()] }),
        }
    }

    #[test]
    fn a_batch_survives_its_bytes() {
        let finished = ProfileTaskFinishReport { task_id: "task".to_owned(), ..Default::default() };
        for batch in [
            Batch::Snapshots(vec![snapshot(0), snapshot(1)]),
            Batch::Finished(finished),
            Batch::Ebpf(vec![EbpfProfilingData::default()]),
            Batch::Events(vec![SpanAttachedEvent { event: "waited".to_owned(), ..Default::default() }]),
        ] {
            assert_eq!(Batch::decode(&batch.encode()), Some(batch));
        }
    }

    #[test]
    fn what_is_too_large_for_a_call_goes_with_several() {
        let task = Some(EbpfProfilingTaskMetadata { task_id: "task".to_owned(), ..Default::default() });
        let stack = EbpfProfilingStackMetadata {
            stack_symbols: vec!["x".repeat(MOST_BYTES / 3)],
            ..Default::default()
        };
        let on = EbpfOnCpuProfiling { stacks: vec![stack], dump_count: 1 };
        let message = EbpfProfilingData { task: None, profiling: Some(Profiling::OnCpu(on)) };
        let mut messages = vec![message; 5];
        messages[0].task.clone_from(&task);
        let parts = Batch::Ebpf(messages).cut();
        let lengths: Vec<usize> = parts.iter().map(Batch::messages).collect();
        assert_eq!(lengths, [2, 2, 1]);
        for part in parts {
            assert!(part.bytes() <= MOST_BYTES);
            let Batch::Ebpf(messages) = part else { panic!("{part:?}") };
            assert!(messages[0].task == task && messages[1..].iter().all(|message| message.task.is_none()));
        }
        assert_eq!(Batch::Events(vec![SpanAttachedEvent::default(); 3]).cut().len(), 1);
    }

    #[test]
    fn what_is_cut_or_strange_is_no_batch() {
        let bytes = Batch::Snapshots(vec![snapshot(0)]).encode();
        assert_eq!(Batch::decode(bytes.get(..bytes.len() - 1).unwrap_or_default()), None);
        assert_eq!(Batch::decode(b"x"), None);
        assert_eq!(Batch::decode(b""), None);
        assert_eq!(Batch::decode(b"f"), None);
    }
}
