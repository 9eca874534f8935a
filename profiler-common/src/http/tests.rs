//! Requests and answers, whole and in pieces, and what is none.

extern crate std;

use std::{string::String, vec::Vec};

use proptest::prelude::*;

use super::*;

/// What a stream of requests has in it: endpoints, and where each head ends.
#[derive(Debug, Default, PartialEq)]
struct Found {
    heads: Vec<(String, usize)>,
    unread: usize,
    other: bool,
}

fn text(text: &Text) -> String {
    let bytes: Vec<u8> = text.words.iter().flat_map(|word| word.to_le_bytes()).collect();
    String::from_utf8_lossy(&bytes[..(text.length as usize).min(bytes.len())]).into_owned()
}

/// Reads bytes that come in pieces of such sizes, over and over.
fn read(bytes: &[u8], sizes: &[usize]) -> (Found, Heard) {
    let (mut reader, mut heard, mut found) = (Reader::requests(), Heard::default(), Found::default());
    let mut sizes = sizes.iter().cycle();
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + sizes.next().unwrap()).min(bytes.len());
        while at < end {
            let event = if reader.skip == 0 {
                at += 1;
                reader.step(bytes[at - 1], &mut heard)
            } else {
                let some = (end - at).min(usize::try_from(reader.skip).unwrap());
                at += some;
                reader.skipped(some as u64)
            };
            match event {
                Event::Head => {
                    found.heads.push((text(&heard.endpoint), at));
                    reader.body();
                }
                Event::Unread => found.unread += 1,
                Event::Other => {
                    found.other = true;
                    return (found, heard);
                }
                Event::None | Event::Over => {}
            }
        }
    }
    (found, heard)
}

fn heads(bytes: &[u8]) -> Vec<String> {
    read(bytes, &[bytes.len()]).0.heads.into_iter().map(|(endpoint, _)| endpoint).collect()
}

const PLAIN: &[u8] = b"GET /a?secret=1 HTTP/1.1\r\nHost: x\r\n\r\n";

#[test]
fn a_head_is_one_when_it_is_whole() {
    assert_eq!(heads(PLAIN), ["GET /a"]);
    for cut in 0..PLAIN.len() {
        assert_eq!(heads(&PLAIN[..cut]), [""; 0], "{cut}");
    }
}

#[test]
fn what_only_begins_like_a_head_is_none() {
    for bytes in [
        &b"GET /logged/page HTTP/1.1 200 5120 0.004\n"[..],
        b"GET /a HTTP/1.1\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost : x\r\n\r\n",
        b"GET /a HTTP/1.1\nHost: x\n\n",
        b"GET /a HTTP/1.1\r\nHost: x\r\n folded\r\n\r\n",
        b"GET /a\x01 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET /a HTTP/1.1\r\nHost: \0\r\n\r\n",
        b"GET /a HTTP/2.0\r\nHost: x\r\n\r\n",
        b"GET  /a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"GET a HTTP/1.1\r\nHost: x\r\n\r\n",
        b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nHost: x\r\n\r\n",
        b"<34>Oct 11 22:14:15 x su: GET / HTTP/1.1\r\nHost: x\r\n\r\n",
    ] {
        let (found, _) = read(bytes, &[bytes.len()]);
        assert_eq!((found.heads.len(), found.other), (0, true), "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn any_token_is_a_method() {
    for (bytes, endpoint) in [
        (&b"PROPFIND /a HTTP/1.1\r\nhost: x\r\n\r\n"[..], "PROPFIND /a"),
        (b"OPTIONS * HTTP/1.1\r\nHOST:x\r\n\r\n", "OPTIONS *"),
        (b"GET /a HTTP/1.0\r\n\r\n", "GET /a"),
        (b"GET http://user:pass@x:8/a/b?c HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a/b"),
        (b"GET http://user:pass@x HTTP/1.1\r\nHost: x\r\n\r\n", "GET /"),
        (b"\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a"),
        (b"PROXY TCP4 1.2.3.4 5.6.7.8 9 10\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a"),
        (b"PROXY UNKNOWN\r\n\r\nGET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a"),
        (b"\r\n\r\n\0\r\nQUIT\n\x21\x11\0\x0c123456789012GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a"),
        (b"\r\n\r\n\0\r\nQUIT\n\x20\0\0\0GET /a HTTP/1.1\r\nHost: x\r\n\r\n", "GET /a"),
    ] {
        assert_eq!(heads(bytes), [endpoint], "{}", String::from_utf8_lossy(bytes));
    }
}

#[test]
fn a_head_may_be_long_and_not_too_long() {
    let long = |bytes: usize| {
        let mut head = Vec::from(&b"GET /a HTTP/1.1\r\nHost: x\r\nCookie: "[..]);
        head.resize(bytes - 4, b'c');
        head.extend(b"\r\n\r\n");
        head
    };
    assert_eq!(heads(&long(MAX_HEAD as usize)).len(), 1);
    assert_eq!(heads(&long(MAX_HEAD as usize + 1)).len(), 0);
}

#[test]
fn a_trace_is_read_from_its_header() {
    let with = |lines: &str| {
        let head = std::format!("GET /a HTTP/1.1\r\nHost: x\r\n{lines}\r\n");
        let (_, heard) = read(head.as_bytes(), &[3]);
        (text(&heard.trace), heard.flags)
    };
    let (sw8, traceparent) = ("SW8: 1-YS5iLmM=-c2Vn-3-cw==\r\n", "traceparent: 00-0a-0b-01\r\n");
    assert_eq!(with(sw8), ("YS5iLmM=".into(), crate::label::ABOUT_SW8));
    assert_eq!(with(traceparent), ("00-0a-0b-01".into(), crate::label::ABOUT_TRACEPARENT));
    for both in [[sw8, traceparent].concat(), [traceparent, sw8].concat()] {
        assert_eq!(with(&both), ("YS5iLmM=".into(), crate::label::ABOUT_SW8));
    }
    assert_eq!(with("x-sw8: 1-YQ==-b\r\n").1, 0);
}

#[test]
fn bodies_are_no_heads() {
    let with = |lines: &str, body: &[u8]| {
        let mut all = std::format!("POST /a HTTP/1.1\r\nHost: x\r\n{lines}\r\n").into_bytes();
        all.extend(body);
        all.extend(PLAIN);
        all
    };
    let length = std::format!("Content-Length: {}\r\n", PLAIN.len());
    assert_eq!(heads(&with(&length, PLAIN)), ["POST /a", "GET /a"]);
    let mut chunks = std::format!("{:x};x=\"y\"\r\n", PLAIN.len()).into_bytes();
    chunks.extend(PLAIN);
    chunks.extend(b"\r\n0\r\nTrailer: x\r\n\r\n");
    assert_eq!(heads(&with("Transfer-Encoding: chunked\r\n", &chunks)), ["POST /a", "GET /a"]);
    assert_eq!(heads(&with("Content-Length: 0\r\n", b"")), ["POST /a", "GET /a"]);
}

#[test]
fn requests_over_tls_and_http_2_are_counted() {
    let record = |kind: u8, bytes: usize| {
        let mut record = std::vec![kind, 3, 3, 0, u8::try_from(bytes).unwrap()];
        record.resize(5 + bytes, 0x17);
        record
    };
    // TLS 1.2: hello, key, cipher, finished, one request of two records.
    let of = |kinds: &[u8]| kinds.iter().flat_map(|kind| record(*kind, 40)).collect::<Vec<_>>();
    assert_eq!(read(&of(&[22, 22, 20, 22, 23, 23]), &[5]).0.unread, 1);
    // TLS 1.3: hello, cipher, finished, the request.
    assert_eq!(read(&of(&[22, 20, 23, 23]), &[7]).0.unread, 1);
    assert_eq!(read(&of(&[22, 20, 23]), &[7]).0.unread, 0);
    let mut frames = Vec::from(&b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"[..]);
    frames.extend([0, 0, 0, 4, 0, 0, 0, 0, 0]);
    for stream in [1, 3] {
        frames.extend([0, 0, 2, 1, 5, 0, 0, 0, stream, b'x', b'y']);
    }
    assert_eq!(read(&frames, &[4]).0.unread, 2);
}

/// Where the answers end in what is sent, and their statuses.
fn answers(bytes: &[u8], size: usize, to_head: bool) -> Vec<(u32, usize)> {
    let (mut reader, mut heard, mut found) = (Reader::answers(), Heard::default(), Vec::new());
    let mut at = 0;
    while at < bytes.len() {
        let end = (at + size).min(bytes.len());
        let mut event = if reader.skip == 0 {
            at += 1;
            reader.step(bytes[at - 1], &mut heard)
        } else {
            let some = (end - at).min(usize::try_from(reader.skip).unwrap());
            at += some;
            reader.skipped(some as u64)
        };
        if event == Event::Head {
            event = if (100..200).contains(&reader.status) {
                reader.restart();
                Event::None
            } else if reader.has_no_body(to_head) {
                reader.no_body()
            } else {
                reader.body()
            };
        }
        if event == Event::Over {
            found.push((reader.status, at));
        }
    }
    found
}

#[test]
fn answers_end_where_they_say() {
    for (bytes, to_head, status) in [
        (&b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"[..], false, Some(200)),
        (b"HTTP/1.1 200 \r\ncontent-length:2\r\n\r\n", true, Some(200)),
        (b"HTTP/1.1 404\r\nContent-Length: 0\r\n\r\n", false, Some(404)),
        (b"HTTP/1.1 204 No\r\n\r\n", false, Some(204)),
        (b"HTTP/1.1 304 No\r\nContent-Length: 5\r\n\r\n", false, Some(304)),
        (b"HTTP/1.1 102 P\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx", false, Some(200)),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\n\r\n", false, Some(200)),
        (b"HTTP/1.0 200 OK\r\n\r\nuntil the end", false, None),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nok", false, None),
    ] {
        for size in [1, 2, bytes.len()] {
            let wanted: Vec<_> = status.map(|status| (status, bytes.len())).into_iter().collect();
            assert_eq!(answers(bytes, size, to_head), wanted, "{}", String::from_utf8_lossy(bytes));
        }
    }
}

proptest! {
    #[test]
    fn pieces_of_any_size_are_read_alike(
        paths in prop::collection::vec("[a-z]{1,200}", 1..4),
        bodies in prop::collection::vec(0_usize..300, 4),
        sizes in prop::collection::vec(1_usize..40, 1..8),
    ) {
        let mut bytes = Vec::new();
        for (path, body) in paths.iter().zip(bodies) {
            let head = std::format!("PUT /{path} HTTP/1.1\r\nHost: x\r\nContent-Length: {body}\r\n\r\n");
            bytes.extend(head.into_bytes());
            bytes.extend(PLAIN.iter().cycle().take(body));
        }
        let (whole, _) = read(&bytes, &[bytes.len()]);
        prop_assert_eq!(whole.heads.len(), paths.len());
        prop_assert_eq!(read(&bytes, &sizes).0, whole);
    }

    #[test]
    fn nothing_breaks_it(bytes in prop::collection::vec(any::<u8>(), 0..400), size in 1_usize..50) {
        let _found = read(&bytes, &[size]);
        let _found = answers(&bytes, size, false);
    }
}

#[test]
fn plain_words_are_taken_at_once() {
    let in_value = || {
        let (mut reader, mut heard) = (Reader::requests(), Heard::default());
        for byte in b"GET /a HTTP/1.1\r\nHost: " {
            assert_eq!(reader.step(*byte, &mut heard), Event::None);
        }
        reader
    };
    for byte in 0..=u8::MAX {
        for at in 0..8 {
            let mut bytes = *b"abcdefgh";
            bytes[at] = byte;
            let plain = byte >= b' ' && byte != 0x7f;
            let taken = in_value().plain(u64::from_le_bytes(bytes));
            // A borrow from the byte below may hide one, never make one of none.
            assert!(plain || !taken, "{byte} at {at}");
            assert!(taken || !plain || byte >= 0x80, "{byte} at {at}");
        }
    }
    assert!(!Reader::requests().plain(u64::from_le_bytes(*b"abcdefgh")));
}
