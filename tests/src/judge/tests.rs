//! The judge accepts the truth and refuses what is near it.

use anyhow::Result;
use serde_json::{Value, json};

use super::{Evidence, Verdict, judge};

const MS: u64 = 1_000_000;
const HUB: u64 = 0x100;
const HANDLER: u64 = 0x200;
const CHILD: u64 = 0x300;
/// When the recording began, by `CLOCK_MONOTONIC`.
const STARTED: u64 = 1000 * MS;

/// A recording and its books, as json to be spoilt.
struct Scene {
    profile: Value,
    works: Value,
    switches: Value,
    inherits: bool,
}

fn label(segment: Option<&str>, inherited: bool) -> Value {
    match segment {
        None => json!({"trace_id": null, "segment_id": null, "endpoint": null}),
        Some(segment) => json!({
            "trace_id": "t-of-s", "segment_id": segment, "endpoint": "/orphan", "span": "0",
            "operation": "/orphan", "label_source": "agent", "inherited": inherited,
        }),
    }
}

fn with(mut one: Value, other: &Value) -> Value {
    for (name, value) in other.as_object().expect("an object") {
        one[name] = value.clone();
    }
    one
}

fn run(greenlet: u64, begin: u64, end: u64, open: Option<&str>) -> Value {
    json!({"greenlet": greenlet, "begin_ns": begin * MS, "end_ns": end * MS, "state": "running",
           "frames": null, "open": open})
}

fn wait(greenlet: u64, begin: u64, end: u64, label: &Value, open: Option<&str>) -> Value {
    let wait = json!({"greenlet": greenlet, "begin_ns": begin * MS, "end_ns": end * MS, "state": "wait",
                      "frames": [], "open": open});
    with(wait, label)
}

fn stack(function: &str, ns: u64, label: &Value, open: Option<&str>) -> Value {
    let frames = json!([{"function": function, "file": "traced.py", "line": 1}]);
    let stack = json!({"frames": frames, "state": "wait", "pid": 7, "ns": ns, "count": 1,
                       "greenlet": null, "open": open});
    with(stack, label)
}

fn greenlet(id: u64) -> Value {
    json!({"id": id, "pid": 7, "tid": 7, "main": false, "alive": true, "switches_in": 1})
}

fn line(at: u64, leaver: u64, enterer: u64, segment: Option<&str>) -> Value {
    // A little after the switch.
    let line = json!({"ns": STARTED + at * MS + 3000, "leaver": leaver, "enterer": enterer});
    let seen = match segment {
        None => json!({"state": "none"}),
        Some(segment) => json!({"state": "span", "class": "EntrySpan", "ended": false, "depth": 1,
                                "segment_id": segment, "span_id": 0}),
    };
    with(line, &seen)
}

fn work(kind: &str, serial: u64, greenlet: u64, times: &Value) -> Value {
    let work = json!({
        "labels": "agent", "kind": kind, "serial": serial, "of": null, "endpoint": "/orphan",
        "trace_id": "t-of-s", "segment_id": "s", "span_id": 0, "operation": "/orphan",
        "waited_ns": null, "arrived_ns": null, "answered_ns": null, "end_ns": null,
        "greenlet": greenlet, "functions": [], "spans": [],
    });
    with(work, times)
}

/// A request that waits from 20 to 50 ms, and a child of it that waits from 40 on.
fn scene() -> Scene {
    let (none, own, inherited) = (label(None, false), label(Some("s"), false), label(Some("s"), true));
    let at = |ms: u64| STARTED + ms * MS;
    let call = json!({"function": "orphan_wait", "state": "wait", "begin_ns": at(20) - 50_000,
                      "end_ns": at(50) + 50_000, "cpu_ns": null});
    Scene {
        profile: json!({
            "version": 1, "started_unix_ns": 1, "started_monotonic_ns": STARTED, "duration_ns": 100 * MS,
            "targets": [{"pid": 7, "python": "3.13.0", "greenlet": "3.5.6", "command": "traced.py",
                         "began_ns": 0, "unseen_ns": null}],
            "totals": {"switches": 6, "greenlets_seen": 3, "records_lost": 0, "stacks_truncated": 0,
                       "faults": {}, "labels": {"own": 2, "given": 1, "blank": {"NO_CONTEXT": 3}}},
            "greenlets": [greenlet(1), greenlet(2), greenlet(3)],
            "intervals": [
                run(1, 0, 10, Some("begin")), wait(1, 10, 20, &none, None), run(1, 20, 30, None),
                wait(1, 30, 40, &none, None), run(1, 40, 50, None), wait(1, 50, 60, &none, None),
                run(1, 60, 100, Some("end")),
                run(2, 10, 20, None), wait(2, 20, 50, &own, None), run(2, 50, 60, None),
                wait(2, 60, 100, &own, Some("end")),
                run(3, 30, 40, None), wait(3, 40, 100, &inherited, Some("end")),
            ],
            "stacks": [stack("orphan_wait", 30 * MS, &own, None),
                       stack("outlives", 60 * MS, &inherited, Some("end"))],
            "requests": [{"trace_id": "t-of-s", "segment_id": "s", "endpoint": "/orphan",
                          "begin_ns": 10 * MS, "wall_ns": 50 * MS, "waiting_ns": 30 * MS,
                          "inherited": {"waiting_ns": 60 * MS}}],
            "endpoints": [{"endpoint": "/orphan", "requests": 1, "whole": 1, "top_wait": null}],
        }),
        works: json!([
            work(
                "request",
                1,
                HANDLER,
                &json!({
                "waited_ns": at(9), "arrived_ns": at(11), "begin_ns": at(12), "end_ns": at(61),
                "answered_ns": at(62), "functions": [call]})
            ),
            work("child", 2, CHILD, &json!({"of": 1, "begin_ns": at(31)})),
            work(
                "request",
                3,
                0x400,
                &json!({
                "trace_id": "t-of-other", "segment_id": "other", "waited_ns": at(0) - 20 * MS,
                "begin_ns": at(0) - 10 * MS, "end_ns": at(0) - 5 * MS, "answered_ns": at(0) - 5 * MS})
            ),
        ]),
        switches: json!([
            line(10, HUB, HANDLER, None),
            line(20, HANDLER, HUB, Some("s")),
            line(30, HUB, CHILD, None),
            line(40, CHILD, HUB, None),
            line(50, HUB, HANDLER, None),
            line(60, HANDLER, HUB, Some("s")),
        ]),
        inherits: true,
    }
}

impl Scene {
    fn judged(&self) -> Result<Verdict> {
        let profile = serde_json::from_value(self.profile.clone())?;
        let works: Vec<_> = serde_json::from_value(self.works.clone())?;
        let switches: Vec<_> = serde_json::from_value(self.switches.clone())?;
        let Self { inherits, .. } = *self;
        judge(&Evidence { profile: &profile, works: &works, switches: &switches, inherits, pieces: false })
    }

    /// The interval at that place of the list.
    fn interval(&mut self, place: usize) -> &mut Value {
        &mut self.profile["intervals"][place]
    }
}

/// Judges the scene with one thing changed.
fn spoilt(spoil: impl FnOnce(&mut Scene)) -> Result<Verdict> {
    let mut scene = scene();
    spoil(&mut scene);
    scene.judged()
}

const OWN_WAIT: usize = 8;
const HUBS_WAIT: usize = 1;
const CHILDS_WAIT: usize = 12;

#[test]
fn the_truth_is_accepted() {
    let verdict = scene().judged().expect("a verdict");
    assert_eq!((verdict.switches.right, verdict.switches.rightly_blank), (3, 3), "{verdict}");
    verdict.accept().expect("it is true");
    verdict.named().expect("every name is known");
}

#[test]
fn a_label_of_another_is_wrong() {
    for (name, other) in [
        ("segment_id", json!("other")),
        ("span", json!("1")),
        ("inherited", json!(true)),
        ("trace_id", json!("t-of-other")),
        ("endpoint", json!("/slow")),
        ("operation", json!("/slow")),
        ("label_source", json!("otel")),
    ] {
        let verdict = spoilt(|scene| scene.interval(OWN_WAIT)[name] = other).expect("a verdict");
        assert_eq!((verdict.switches.wrong, verdict.switches.right), (1, 2), "{name}: {verdict}");
        assert!(verdict.accept().is_err());
    }
}

#[test]
fn a_label_where_none_is_due_is_wrong() {
    let verdict = spoilt(|scene| {
        let labelled = with(scene.interval(HUBS_WAIT).clone(), &label(Some("s"), true));
        *scene.interval(HUBS_WAIT) = labelled;
    });
    assert_eq!(verdict.expect("a verdict").switches.wrong, 1);
}

#[test]
fn a_child_has_its_makers_label_and_no_other() {
    let own = spoilt(|scene| scene.interval(CHILDS_WAIT)["inherited"] = json!(false)).expect("a verdict");
    assert_eq!(own.switches.wrong, 1, "{own}");
    // With --no-inherit it should have none.
    let unwanted = spoilt(|scene| scene.inherits = false).expect("a verdict");
    assert_eq!(unwanted.switches.wrong, 1, "{unwanted}");
}

#[test]
fn a_missing_label_is_counted_and_wants_a_reason() {
    let blank = |scene: &mut Scene| {
        let bare = scene.interval(OWN_WAIT).as_object_mut().expect("an interval");
        bare.retain(|name, _| {
            !["trace_id", "segment_id", "endpoint", "span", "operation", "label_source", "inherited"]
                .contains(&name.as_str())
        });
    };
    let verdict = spoilt(blank).expect("a verdict");
    assert_eq!((verdict.switches.blank, verdict.switches.wrong), (1, 0), "{verdict}");
    assert!(verdict.explained().is_err(), "a context that has a span is no reason");
    let counted = spoilt(|scene| {
        blank(scene);
        scene.profile["totals"]["labels"]["blank"]["UNREADY"] = json!(1);
    });
    counted.expect("a verdict").explained().expect("it was counted");
}

#[test]
fn a_name_that_is_not_known_is_counted() {
    let verdict = spoilt(|scene| scene.interval(OWN_WAIT)["endpoint"] = Value::Null).expect("a verdict");
    assert_eq!((verdict.nameless, verdict.switches.right), (1, 3), "{verdict}");
    assert!(verdict.named().is_err());
}

#[test]
fn switches_that_only_one_of_both_has_are_an_error() {
    for spoil in [
        // A line too few, one too many, one too early, one too late.
        (|lines: &mut Vec<Value>| drop(lines.remove(2))) as fn(&mut Vec<Value>),
        |lines| lines.insert(2, line(25, HUB, CHILD, None)),
        |lines| lines[2]["ns"] = json!(STARTED + 29 * MS),
        |lines| lines[2]["ns"] = json!(STARTED + 40 * MS),
        // Who is who is not the same any more.
        |lines| lines[2]["leaver"] = json!(CHILD),
        |lines| lines[4]["enterer"] = json!(CHILD),
    ] {
        let verdict = spoilt(|scene| spoil(scene.switches.as_array_mut().expect("lines")));
        assert!(verdict.is_err(), "{verdict:?}");
    }
}

#[test]
fn a_gap_between_runs_is_an_error() {
    assert!(spoilt(|scene| scene.interval(2)["end_ns"] = json!(29 * MS)).is_err());
    assert!(spoilt(|scene| scene.profile["totals"]["faults"]["INTERVALS_FULL"] = json!(1)).is_err());
}

#[test]
fn a_dead_greenlet_has_no_wait() {
    assert!(spoilt(|scene| scene.switches[3]["state"] = json!("dead")).is_err());
}

#[test]
fn a_stack_of_who_never_called_it_is_wrong() {
    let other = |scene: &mut Scene| scene.profile["stacks"][0]["segment_id"] = json!("other");
    let verdict = spoilt(other).expect("a verdict");
    assert_eq!(verdict.looks.wrong, 1, "{verdict}");
    let childs = |scene: &mut Scene| scene.profile["stacks"][0]["inherited"] = json!(true);
    assert_eq!(spoilt(childs).expect("a verdict").looks.wrong, 1);
    let view = |scene: &mut Scene| scene.profile["stacks"][1]["segment_id"] = json!("unknown");
    assert_eq!(spoilt(view).expect("a verdict").looks.wrong, 1);
}

#[test]
fn a_tick_of_a_child_lacks_its_label_only_where_its_request_may_be_over() {
    let tick = |function: &'static str| {
        spoilt(|scene| {
            let mut tick = stack(function, 10 * MS, &label(None, false), None);
            tick["state"] = json!("cpu");
            scene.profile["stacks"].as_array_mut().expect("stacks").push(tick);
        })
        .expect("a verdict")
    };
    let outlives = tick("outlives");
    outlives.explained().expect("nobody's");
    assert_eq!((outlives.looks.blank, outlives.looks.rightly_blank), (0, 1), "{outlives}");
    let early = tick("spawned_early");
    assert_eq!(early.looks.blank, 1, "{early}");
    assert!(early.explained().is_err(), "no reason was counted");
}

#[test]
fn more_time_than_the_call_took_is_wrong() {
    for ns in [30 * MS + 100_001, 29 * MS] {
        let verdict = spoilt(|scene| scene.profile["stacks"][0]["ns"] = json!(ns)).expect("a verdict");
        assert!(verdict.wrong_sums > 0, "{ns}: {verdict}");
    }
}

#[test]
fn a_request_that_nobody_made_is_wrong() {
    for (name, value) in [
        ("segment_id", json!("unknown")),
        ("endpoint", json!("/slow")),
        ("wall_ns", json!(200 * MS)),
        ("waiting_ns", json!(54 * MS)),
    ] {
        let verdict = spoilt(|scene| scene.profile["requests"][0][name] = value).expect("a verdict");
        assert!(verdict.wrong_sums > 0, "{name}: {verdict}");
    }
    for count in [2, 0] {
        let verdict = spoilt(|scene| scene.profile["endpoints"][0]["requests"] = json!(count));
        assert!(verdict.expect("a verdict").wrong_sums > 0, "{count}");
    }
}

/// The same from the wire: the request is over when its greenlet waits for the next one.
#[test]
fn a_connection_that_waits_for_its_next_request_belongs_to_nobody() {
    let wire = |answered: u64| {
        let mut scene = scene();
        let wire = json!({"trace_id": "t-of-s", "segment_id": null, "endpoint": "GET /orphan", "span": null,
                          "operation": null, "label_source": "wire"});
        for place in [OWN_WAIT, OWN_WAIT + 2, CHILDS_WAIT] {
            let changed = with(scene.interval(place).clone(), &wire);
            *scene.interval(place) = changed;
        }
        for stack in scene.profile["stacks"].as_array_mut().expect("stacks") {
            *stack = with(stack.clone(), &wire);
        }
        scene.profile["requests"][0]["segment_id"] = Value::Null;
        scene.profile["requests"][0]["endpoint"] = json!("GET /orphan");
        scene.profile["endpoints"][0]["endpoint"] = json!("GET /orphan");
        for work in scene.works.as_array_mut().expect("works") {
            work["labels"] = json!("wire");
        }
        for line in scene.switches.as_array_mut().expect("lines") {
            line["state"] = json!("none");
        }
        scene.works[0]["answered_ns"] = json!(STARTED + answered * MS);
        // It waits for another one, which comes when the recording is over.
        let next = json!({"trace_id": "next", "waited_ns": STARTED + (answered + 1) * MS,
                          "arrived_ns": STARTED + 200 * MS, "begin_ns": STARTED + 201 * MS});
        let next = with(work("request", 4, HANDLER, &json!({"labels": "wire"})), &next);
        scene.works.as_array_mut().expect("works").push(next);
        scene.judged().expect("a verdict")
    };
    let answered_after = wire(62);
    assert_eq!((answered_after.switches.right, answered_after.switches.wrong), (3, 0), "{answered_after}");
    let answered_before = wire(57);
    assert_eq!((answered_before.switches.right, answered_before.switches.wrong), (2, 1), "{answered_before}");
}
