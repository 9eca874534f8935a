//! Each comparison accepts the truth and refuses what is near it.

use serde_json::{Value, json};

use super::{complete, function_times, greenlets, switches, waits};
use crate::book::Books;
use crate::profile::Profile;

const MS: u64 = 1_000_000;

fn frames(line: u32) -> Value {
    json!([{"function": "root", "file": "a.py", "line": 1},
           {"function": "leaf", "file": "a.py", "line": line}])
}

fn stack(line: u32, ns: u64, count: u64, open: Option<&str>, greenlet: Option<u32>) -> Value {
    json!({
        "frames": frames(line), "state": "wait", "pid": 7, "ns": ns, "count": count,
        "open": open, "greenlet": greenlet,
    })
}

fn greenlet(id: u32, main: bool, switches_in: u64, alive: bool) -> Value {
    json!({
        "id": id, "pid": 7, "tid": 7, "main": main, "alive": alive,
        "switches_in": switches_in, "running_ns": 0, "waiting_ns": 500 * MS,
    })
}

fn profile_json() -> Value {
    json!({
        "version": 1,
        "targets": [{"pid": 7, "python": "3.12.1", "greenlet": "3.5.6", "command": "x", "began_ns": 0, "unseen_ns": null}],
        "started_unix_ns": 1000 * MS, "duration_ns": 1000 * MS,
        "totals": {"switches": 9, "greenlets_seen": 4, "records_lost": 0,
                   "stacks_truncated": 0, "faults": {}},
        "threads": [],
        "greenlets": [greenlet(1, true, 4, true), greenlet(2, false, 2, false),
                      greenlet(3, false, 2, false), greenlet(4, false, 1, true)],
        "stacks": [stack(2, 1000 * MS, 5, None, None),
                   stack(3, 300 * MS, 1, Some("end"), Some(4))],
    })
}

fn life(main: bool, switches_in: u64, alive: Option<bool>) -> Value {
    json!({"tid": 7, "main": main, "name": null, "switches_in": switches_in, "alive": alive})
}

fn wait(line: u32, ns: u64, count: u64, open: Option<&str>) -> Value {
    json!({"frames": frames(line), "state": "wait", "open": open, "count": count, "ns": ns})
}

fn books_json() -> Value {
    json!({
        "book": {
            "begin_unix_ns": 1100 * MS, "end_unix_ns": 1900 * MS,
            "switches": {"7": 9},
            "greenlets": [life(true, 4, Some(true)), life(false, 2, Some(false)),
                          life(false, 2, None), life(false, 1, Some(true))],
            "waits": [wait(2, 1003 * MS, 5, None),
                      wait(3, 200 * MS, 1, Some("end"))],
        },
        "times": {"leaf": {"calls": 5, "ns": 1005 * MS}},
    })
}

/// The profile with one value replaced.
fn profile(at: &str, value: Value) -> Profile {
    let mut json = profile_json();
    if !at.is_empty() {
        *json.pointer_mut(at).expect(at) = value;
    }
    serde_json::from_value(json).expect("a profile")
}

fn books() -> Books {
    serde_json::from_value(books_json()).expect("books")
}

/// The truth passes, and the profile with that value replaced does not.
fn refuses(check: impl Fn(&Profile) -> anyhow::Result<()>, at: &str, value: Value) {
    check(&profile("", Value::Null)).expect("the truth");
    assert!(check(&profile(at, value)).is_err(), "{at} was overlooked");
}

#[test]
fn complete_refuses_losses_and_impossible_times() {
    for at in ["/totals/records_lost", "/totals/stacks_truncated", "/totals/switches"] {
        refuses(complete, at, json!(1));
    }
    refuses(complete, "/totals/faults", json!({"FrameUnreadable": 1}));
    refuses(complete, "/greenlets/1/id", json!(1));
    refuses(complete, "/greenlets/1/waiting_ns", json!(1100 * MS));
    refuses(complete, "/stacks/1/greenlet", json!(9));
    refuses(complete, "/stacks/1/ns", json!(1100 * MS));
    refuses(complete, "/stacks/0/greenlet", json!(4));
}

#[test]
fn switches_refuses_one_too_many_and_the_wrong_thread() {
    let check = |profile: &Profile| switches(profile, &books().book);
    refuses(check, "/totals/switches", json!(8));
    refuses(check, "/greenlets/3/switches_in", json!(2));
    refuses(check, "/greenlets/3/tid", json!(8));
}

#[test]
fn greenlets_refuses_merged_split_missing_and_undead() {
    let check = |profile: &Profile| greenlets(profile, &books());
    // Two greenlets of two switches each, merged into one of four, and one of none.
    refuses(check, "/greenlets/1/switches_in", json!(4));
    refuses(check, "/greenlets/1/main", json!(true));
    refuses(check, "/greenlets/0/alive", json!(false));
    refuses(check, "/greenlets/3", profile_json()["greenlets"][1].clone());
    refuses(check, "/totals/greenlets_seen", json!(3));
    // Of the two, one is known to be dead.
    let mut both = profile("", Value::Null);
    both.greenlets[1].alive = true;
    greenlets(&both, &books()).expect("one may live");
    both.greenlets[2].alive = true;
    assert!(greenlets(&both, &books()).is_err(), "one must be dead");
    both.greenlets.pop();
    assert!(greenlets(&both, &books()).is_err(), "one is missing");
}

#[test]
fn waits_refuses_a_line_a_name_a_count_a_state_and_two_percent() {
    let check = |profile: &Profile| waits(profile, &books().book);
    refuses(check, "/stacks/0/frames/1/line", json!(4));
    refuses(check, "/stacks/0/frames/1/function", json!("leaf2"));
    refuses(check, "/stacks/0/frames/1/function", Value::Null);
    refuses(check, "/stacks/0/frames/0/file", json!("b.py"));
    refuses(check, "/stacks/0/frames", json!([frames(2)[1].clone()]));
    refuses(check, "/stacks/0/count", json!(4));
    refuses(check, "/stacks/0/state", json!("idle"));
    refuses(check, "/stacks/0/ns", json!(980 * MS));
    refuses(check, "/stacks/0/ns", json!(1020 * MS));
    refuses(check, "/stacks/1/open", Value::Null);
    refuses(check, "/stacks/1/open", json!("both"));
    // 200 ms in the books, and 100 ms between them and the recording's end.
    refuses(check, "/stacks/1/ns", json!(200 * MS));
}

#[test]
fn waits_refuses_an_invented_stack() {
    let mut more = profile("", Value::Null);
    more.stacks.push(more.stacks[0].clone());
    more.stacks[2].frames[1].line = Some(99);
    assert!(waits(&more, &books().book).is_err());
}

#[test]
fn function_times_refuses_two_percent_and_small_books() {
    let mut times = books().times;
    let seen = |profile: &Profile| profile.waiting_ns("leaf");
    // 1000 and 300 ms contain the leaf; the books say 1005.
    let whole = profile("", Value::Null);
    assert_eq!(seen(&whole), 1300 * MS);
    function_times(|_| 1000 * MS, &times).expect("within one hundredth");
    assert!(function_times(|_| 990 * MS, &times).is_err());
    assert!(function_times(|_| 1020 * MS, &times).is_err());
    assert!(function_times(|_| 0, &Default::default()).is_err());
    times.get_mut("leaf").expect("leaf").ns = 900 * MS;
    assert!(function_times(|_| 900 * MS, &times).is_err());
}
