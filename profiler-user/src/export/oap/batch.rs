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

impl Batch {
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
    use proto::skywalking::ThreadStack;

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
    fn what_is_cut_or_strange_is_no_batch() {
        let bytes = Batch::Snapshots(vec![snapshot(0)]).encode();
        assert_eq!(Batch::decode(bytes.get(..bytes.len() - 1).unwrap_or_default()), None);
        assert_eq!(Batch::decode(b"x"), None);
        assert_eq!(Batch::decode(b""), None);
        assert_eq!(Batch::decode(b"f"), None);
    }
}
