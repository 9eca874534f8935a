//! What a request's own headers say of its trace.

use base64::{Engine as _, prelude::BASE64_STANDARD};

/// The trace's id in the value of `traceparent`: `00-TRACE-PARENT-FLAGS`.
///
/// <https://www.w3.org/TR/trace-context/#traceparent-header>
pub(super) fn traceparent(value: &str) -> Option<String> {
    let mut fields = value.trim().split('-');
    let version = fields.next()?;
    let (trace, parent, flags) = (fields.next()?, fields.next()?, fields.next()?);
    let is_hex = |text: &str, length: usize| {
        text.len() == length && text.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
    };
    let whole = is_hex(version, 2)
        && version != "ff"
        && is_hex(trace, 32)
        && is_hex(parent, 16)
        && is_hex(flags, 2)
        && (version != "00" || fields.next().is_none());
    let zero = |text: &str| text.bytes().all(|byte| byte == b'0');
    (whole && !zero(trace) && !zero(parent)).then(|| trace.to_owned())
}

/// The trace's id in the second field of `sw8`, which is base64.
///
/// <https://skywalking.apache.org/docs/main/latest/en/api/x-process-propagation-headers-v3/>
pub(super) fn sw8(field: &str) -> Option<String> {
    let text = String::from_utf8(BASE64_STANDARD.decode(field).ok()?).ok()?;
    let shown = !text.is_empty() && text.chars().all(|c| !c.is_control());
    shown.then_some(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_specifications_own_examples_are_read() {
        let value = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
        assert_eq!(traceparent(value).as_deref(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
        // TRACEID of the document: 1-TRACEID-SEGMENTID-3-...
        assert_eq!(sw8("VFJBQ0VJRA==").as_deref(), Some("TRACEID"));
        assert_eq!(sw8("YS5iLmM=").as_deref(), Some("a.b.c"));
    }

    #[test]
    fn what_is_no_trace_is_none() {
        for value in [
            "",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7",
            "00-00000000000000000000000000000000-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-0000000000000000-01",
            "00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
            "ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
            "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-more",
        ] {
            assert_eq!(traceparent(value), None, "{value}");
        }
        for field in ["", "VFJBQ0VJRA", "VFJB*0VJRA==", "AAAA", "===="] {
            assert_eq!(sw8(field), None, "{field}");
        }
    }
}
