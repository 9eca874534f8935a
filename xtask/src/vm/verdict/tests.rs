//! The comparison on good reports and on every kind of bad one: it must be able to fail.

use serde_json::{Value, json};

use super::*;

fn bounds(closed: u32, least_ns: i32, most_ns: i32) -> Value {
    json!({"closed": closed, "least_ns": least_ns, "most_ns": most_ns})
}

/// So many waits of about a microsecond.
fn time(closed: u32) -> Value {
    let exact = i32::try_from(closed).unwrap() * 1000;
    bounds(closed, exact - 10, exact + 10)
}

/// What a clock says: on a CPU, blocked and ready; the rest is none.
fn clock(on_cpu_ns: u64, blocked_ns: u64, preempted_ns: u64) -> Value {
    json!({"on_cpu_ns": on_cpu_ns, "blocked_ns": blocked_ns, "preempted_ns": preempted_ns,
           "gil_wait_ns": 0, "idle_ns": 0})
}

/// Process `p` of two: two workers and, when it is gevent's, a hub.
fn truth(p: u32, hub: bool) -> Value {
    let file = format!("/generated/p{p}.py");
    let line = 1000 * (p + 1);
    let frame = |name: &str, offset: u32| json!([format!("p{p}_{name}"), file, line + offset]);
    let mut stacks = vec![
        json!({"state": "wait", "count": 7, "frames": [frame("g0_d0", 1)], "time": time(6)}),
        json!({"state": "wait", "count": 5, "frames": [frame("g0_d0", 2), frame("g0_d1", 9)], "time": time(5)}),
        // Two sites that look the same add up.
        json!({"state": "wait", "count": 2, "frames": [frame("g1_d0", 3)], "time": time(2)}),
        json!({"state": "wait", "count": 1, "frames": [frame("g1_d0", 3)], "time": time(1)}),
    ];
    if hub {
        stacks
            .push(json!({"state": "idle", "count": 15, "frames": [["Hub.run", "/site/gevent/hub.py", 647]], "time": time(15)}));
    }
    json!({
        "pid": 100 + p, "variant": if hub { "gevent" } else { "raw" }, "process": p,
        "switches": if hub { 31 } else { 16 }, "births": 1, "greenlets": 2,
        "stacks": stacks,
        "clocks": [{"name": format!("p{p}_g0"), "running": bounds(10, 400, 500), "off_cpu": bounds(10, 5, 100)}],
        "running": [["<module>", "main", "pause"]],
    })
}

fn truths() -> Vec<Truth> {
    [truth(0, false), truth(1, true)]
        .into_iter()
        .map(|value| serde_json::from_value(value).unwrap())
        .collect()
}

/// What a faultless greenscope writes about them.
fn report() -> Value {
    let mut rows = Vec::new();
    let with_clock = |mut what: Value, clock: Value| {
        what.as_object_mut().unwrap().append(&mut clock.as_object().unwrap().clone());
        what
    };
    let thread = |pid: u32| with_clock(json!({"pid": pid, "tid": pid, "name": null}), clock(600, 300, 100));
    let greenlet = |id: u32, pid: u32, name: &str, switches_in: u32, [cpu, blocked, ready]: [u64; 3]| {
        let running_ns = cpu + blocked + ready;
        with_clock(
            json!({"id": id, "pid": pid, "name": name, "switches_in": switches_in, "running_ns": running_ns}),
            clock(cpu, blocked, ready),
        )
    };
    for p in [0_u32, 1] {
        let frame = |name: &str, offset: u32| json!({"function": format!("p{p}_{name}"), "file": format!("/generated/p{p}.py"), "line": 1000 * (p + 1) + offset});
        let row = |frames: Value, state: &str, count: u32, open: Value| {
            json!({"frames": frames, "state": state, "pid": 100 + p, "ns": 1000 * count, "count": count,
                   "greenlet": null, "trace_id": null, "segment_id": null, "endpoint": null, "open": open})
        };
        rows.push(row(json!([frame("g0_d0", 1)]), "wait", 6, Value::Null));
        rows.push(row(json!([frame("g0_d0", 1)]), "wait", 1, json!("end")));
        rows.push(row(json!([frame("g0_d0", 2), frame("g0_d1", 9)]), "wait", 5, Value::Null));
        rows.push(row(json!([frame("g1_d0", 3)]), "wait", 3, Value::Null));
        rows.push(row(json!([frame("g1_d0", 3)]), "wait", 1, json!("begin")));
        rows.push(row(json!([frame("g0_d0", 77)]), "cpu", 4, Value::Null));
        rows.push(row(json!([]), "switching", 9, Value::Null));
    }
    rows.push(json!({"frames": [{"function": "Hub.run", "file": "/site/gevent/hub.py", "line": 647}],
                     "state": "idle", "pid": 101, "ns": 15_000, "count": 15, "open": null}));
    rows.push(json!({"frames": [{"function": "<module>", "file": "/test/preemption.py", "line": 1},
                                {"function": "main", "file": "/test/preemption.py", "line": 2},
                                {"function": "pause", "file": "/test/preemption.py", "line": 3}],
                     "state": "blocked", "pid": 101, "ns": 5, "count": 1, "open": null}));
    json!({
        "version": 1,
        "targets": [{"pid": 100, "python": "3.13.0", "greenlet": "3.5.6", "command": "x"}, {"pid": 101}],
        "started_unix_ns": 1, "duration_ns": 1000,
        "totals": {"switches": 47, "greenlets_seen": 8, "cpu_samples": 9, "records_lost": 0,
                   "stacks_truncated": 0, "faults": {"chain_broken": 0}},
        "threads": [thread(100), thread(101)],
        "greenlets": [greenlet(1, 100, "p0_g0", 10, [370, 0, 80]), greenlet(2, 100, "main", 6, [230, 300, 20]),
                      greenlet(3, 101, "p1_g0", 31, [370, 0, 80]), greenlet(4, 101, "main", 0, [230, 300, 20])],
        "stacks": rows,
    })
}

fn wrong(report: Value) -> Vec<String> {
    let report: Report = serde_json::from_value(report).unwrap();
    compare(&report, &truths(), &[]).wrong
}

/// Breaks the good report at a json pointer and expects exactly these complaints.
#[track_caller]
fn check(pointer: &str, value: Value, expect: &[&str]) {
    let mut broken = report();
    *broken.pointer_mut(pointer).expect("the pointer fits the sample") = value;
    let found = wrong(broken);
    assert_eq!(found.len(), expect.len(), "{pointer}: {found:#?}");
    for (found, expect) in found.iter().zip(expect) {
        assert!(found.contains(expect), "{pointer}: `{found}` lacks `{expect}`");
    }
}

#[test]
fn a_faultless_report_is_right_and_counted() {
    let report: Report = serde_json::from_value(report()).unwrap();
    let verdict = compare(&report, &truths(), &[]);
    assert_eq!(verdict.wrong, Vec::<String>::new());
    assert_eq!(
        verdict.to_string(),
        "stacks checked: 7 distinct, 45 switch-outs, 0 wrong (3 stacks of running threads among them)"
    );
}

#[test]
fn a_frame_of_a_neighbour_is_wrong() {
    check(
        "/stacks/2/frames/1/function",
        json!("p1_g0_d1"),
        &["pid 100 (raw) never stops in p0_g0_d0 (p0.py:1002);p1_g0_d1", "stopped 5 times, the json says 0"],
    );
}

#[test]
fn a_frame_of_another_greenlet_or_depth_is_wrong() {
    check("/stacks/2/frames/1/function", json!("p0_g1_d1"), &["never stops", "says 0"]);
    check("/stacks/2/frames/1/function", json!("p0_g0_d2"), &["never stops", "says 0"]);
}

#[test]
fn a_whole_stack_of_a_neighbour_is_wrong_and_named() {
    check(
        "/stacks/2/pid",
        json!(101),
        &["(a stack of pid 100)", "pid 100 (raw) stopped 5 times, the json says 0"],
    );
}

#[test]
fn a_wrong_line_or_file_is_wrong() {
    check("/stacks/2/frames/0/line", json!(1003), &["never stops", "says 0"]);
    check("/stacks/2/frames/0/line", Value::Null, &["never stops", "says 0"]);
    check("/stacks/2/frames/0/file", json!("/generated/p1.py"), &["never stops", "says 0"]);
}

#[test]
fn missing_doubled_or_swapped_frames_are_wrong() {
    let frame = report().pointer("/stacks/2/frames/0").unwrap().clone();
    let leaf = report().pointer("/stacks/2/frames/1").unwrap().clone();
    check("/stacks/2/frames", json!([leaf]), &["never stops", "says 0"]);
    check("/stacks/2/frames", json!([frame, frame, leaf]), &["never stops", "says 0"]);
    check("/stacks/2/frames", json!([leaf, frame]), &["never stops", "says 0"]);
    check("/stacks/2/frames", json!([]), &["a stack without frames", "says 0"]);
}

#[test]
fn one_switch_too_few_or_too_many_is_wrong() {
    check("/stacks/2/count", json!(4), &["stopped 5 times, the json says 4"]);
    check("/stacks/2/count", json!(6), &["stopped 5 times, the json says 6"]);
    check("/stacks/2/count", Value::Null, &["no count", "says 0"]);
}

#[test]
fn a_stack_left_out_is_wrong() {
    let mut broken = report();
    broken["stacks"].as_array_mut().unwrap().remove(2);
    assert_eq!(wrong(broken).len(), 1);
}

#[test]
fn a_wait_from_before_the_recording_is_checked_but_not_counted() {
    check("/stacks/4/count", json!(1000), &[]);
    check("/stacks/4/frames/0/line", json!(1), &["never stops"]);
    check("/stacks/4/open", json!("end"), &["stopped 3 times, the json says 4"]);
    check("/stacks/4/open", json!("sometimes"), &["`open` is `sometimes`"]);
}

#[test]
fn totals_must_be_exact() {
    check("/totals/switches", json!(46), &["switched 47 times, totals.switches is 46"]);
    check("/greenlets/0/switches_in", json!(9), &["switches_in add up to 15"]);
    check("/totals/records_lost", json!(1), &["records_lost is 1"]);
    check("/totals/stacks_truncated", json!(2), &["stacks_truncated is 2"]);
    check("/totals/faults/chain_broken", json!(3), &["fault chain_broken happened 3 times"]);
    check("/version", json!(2), &["version is 2"]);
    check("/targets/1/pid", json!(5), &["pid 101 is not among the json's targets"]);
}

#[test]
fn greenlets_must_neither_merge_nor_split() {
    let mut merged = report();
    merged["greenlets"].as_array_mut().unwrap().remove(1);
    merged["greenlets"][0]["switches_in"] = json!(16);
    assert_eq!(wrong(merged), ["pid 100 (raw) had 2 greenlets, the json lists 1"]);
    let mut split = report();
    let twin = json!({"id": 9, "pid": 101, "switches_in": 0});
    split["greenlets"].as_array_mut().unwrap().push(twin);
    assert_eq!(wrong(split), ["pid 101 (gevent) had 2 greenlets, the json lists 3"]);
}

#[test]
fn a_fault_may_be_allowed_by_name() {
    let mut broken = report();
    broken["totals"]["faults"]["chain_broken"] = json!(3);
    let broken: Report = serde_json::from_value(broken).unwrap();
    assert!(compare(&broken, &truths(), &["chain_broken".to_owned()]).wrong.is_empty());
    assert_eq!(compare(&broken, &truths(), &["other".to_owned()]).wrong.len(), 1);
}

#[test]
fn the_hubs_waiting_is_idle() {
    let hub = 14;
    check(&format!("/stacks/{hub}/state"), json!("wait"), &["state wait instead of idle"]);
    check("/stacks/2/state", json!("idle"), &["state idle instead of wait"]);
}

#[test]
fn a_running_stack_of_a_neighbour_is_wrong() {
    check("/stacks/5/frames/0/function", json!("p1_g0_d0"), &["can't be in state cpu"]);
    check("/stacks/5/frames/0/file", json!("/generated/p1.py"), &["can't be in state cpu"]);
    check("/stacks/5/pid", json!(101), &["can't be in state cpu"]);
    check("/stacks/15/frames/2/function", json!("elsewhere"), &["can't be in state blocked"]);
}

#[test]
fn a_stack_of_no_target_is_wrong() {
    check("/stacks/5/pid", json!(7), &["pid 7, which is no target"]);
}

#[test]
fn a_target_that_did_nothing_proves_nothing() {
    let mut value = truth(0, false);
    for row in value["stacks"].as_array_mut().unwrap() {
        row["count"] = json!(0);
    }
    value["switches"] = json!(0);
    let silent: Truth = serde_json::from_value(value).unwrap();
    let mut empty = report();
    empty["stacks"] = json!([]);
    empty["greenlets"] = json!([]);
    empty["totals"]["switches"] = json!(0);
    let empty: Report = serde_json::from_value(empty).unwrap();
    let verdict = compare(&empty, &[silent], &[]);
    let never = "pid 100 (raw) never switched: nothing compared";
    assert!(verdict.wrong.iter().any(|line| line == never), "{:?}", verdict.wrong);
}

#[test]
fn what_is_missing_must_have_been_said_to_be() {
    let mut short = report();
    let count = short.pointer_mut("/stacks/2/count").expect("the sample has it");
    *count = json!(count.as_u64().unwrap() - 1);
    assert_eq!(wrong(short.clone()).len(), 1, "a stop is missing, and no fault says so");
    short["totals"]["faults"] = json!({"READ_FRAME": 1});
    // One blank of 47 switches is said, but is not rare.
    let found = wrong(short.clone());
    assert!(found.len() == 1 && found[0].contains("READ_FRAME"), "{found:#?}");
    let report: Report = serde_json::from_value(short).unwrap();
    let verdict = compare(&report, &truths(), &["READ_FRAME".to_owned()]);
    assert_eq!((verdict.blank, verdict.wrong.len()), (1, 0));
}

fn wrong_clocks(report: Value) -> Vec<String> {
    let report: Report = serde_json::from_value(report).unwrap();
    let scheduled = [100, 101].map(|pid| (pid, [600, 100])).into();
    clocks::compare(&report, &truths(), &scheduled).wrong
}

/// Breaks a clock and expects exactly these complaints.
#[track_caller]
fn check_clock(pointer: &str, value: Value, expect: &[&str]) {
    let mut broken = report();
    *broken.pointer_mut(pointer).expect("the pointer fits the sample") = value;
    let found = wrong_clocks(broken);
    assert_eq!(found.len(), expect.len(), "{pointer}: {found:#?}");
    for (found, expect) in found.iter().zip(expect) {
        assert!(found.contains(expect), "{pointer}: `{found}` lacks `{expect}`");
    }
}

#[test]
fn faultless_clocks_are_right() {
    assert_eq!(wrong_clocks(report()), Vec::<String>::new());
}

#[test]
fn a_wait_outside_of_its_bounds_is_wrong() {
    check_clock("/stacks/2/ns", json!(5010), &[]);
    check_clock("/stacks/2/ns", json!(5011), &["p0_g0_d1 (p0.py:1009): 5011 ns, in truth 4990 to 5010 ns"]);
    check_clock("/stacks/2/ns", json!(4989), &["4989 ns, in truth 4990"]);
    // Cut by an end of the recording it has no bounds.
    check_clock("/stacks/1/ns", json!(99_999), &[]);
    check_clock("/stacks/14/ns", json!(99_999), &["Hub.run"]);
}

#[test]
fn time_that_is_another_greenlets_is_wrong() {
    let mut broken = report();
    for (greenlet, on_cpu_ns, preempted_ns) in [(0, 330, 120), (1, 270, -20)] {
        broken["greenlets"][greenlet]["on_cpu_ns"] = json!(on_cpu_ns);
        broken["greenlets"][greenlet]["preempted_ns"] = json!(preempted_ns.max(0));
    }
    let found = wrong_clocks(broken);
    assert!(found[0].contains("p0_g0 ran, off the CPU: 120 ns, in truth 5 to 100 ns"), "{found:#?}");
    check_clock(
        "/greenlets/0/running_ns",
        json!(501),
        &["p0_g0 ran: 501 ns", "off the CPU: 131 ns", "the parts of a greenlet: 450 ns, in truth 501"],
    );
    check_clock("/greenlets/0/name", json!("other"), &["no greenlet p0_g0"]);
}

#[test]
fn greenlets_that_are_not_their_thread_together_are_wrong() {
    check_clock(
        "/greenlets/1/blocked_ns",
        json!(299),
        &["its greenlets blocked: 299 ns, in truth 300", "the parts of a greenlet"],
    );
    check_clock("/greenlets/1/idle_ns", Value::Null, &["its greenlets idle: not measured", "not measured"]);
}

#[test]
fn a_thread_that_is_not_what_the_scheduler_says_is_wrong() {
    let mut scheduled: clocks::Scheduled = [100, 101].map(|pid| (pid, [600, 100])).into();
    scheduled.insert(101, [7_000_000, 100]);
    let report: Report = serde_json::from_value(report()).unwrap();
    let found = clocks::compare(&report, &truths(), &scheduled).wrong;
    assert_eq!(found, ["pid 101, on a CPU: 600 ns, in truth 7000000"]);
    check_clock("/duration_ns", json!(1002), &["pid 100, all of it", "pid 101, all of it"]);
    check_clock("/threads/1/tid", json!(7), &["pid 101: no thread"]);
}
