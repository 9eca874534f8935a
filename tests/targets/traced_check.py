"""Whether the books of traced.py agree with themselves, with the load, with the switches.

    traced_check.py BOOKS [--sent FILE] [--switches FILE]

Prints one line of json with what was counted, and fails with the first lines that are
wrong. It looks at the books only; no profiler is asked.
"""

import argparse
import bisect
import collections
import json
import sys

CALLS = {
    # What a request that came to its end has called, in this order.
    "/slow": ["slow_first_wait", "slow_second_wait"],
    "/chatty": ["chatty_wait"] * 25,
    "/busy": ["busy_burn", "busy_wait"],
    "/mixed": ["mixed_burn", "mixed_wait", "mixed_inner_wait", "mixed_inner_burn",
               "mixed_block"],
    "/spawn": ["spawn_join"],
    "/orphan": ["orphan_wait"],
    "/timeout": ["timeout_wait", "timeout_after_wait"],
    "/fail": ["fail_wait"],
    "/killed": ["killed_wait"],
    "/static-ignored": ["ignored_wait"],
    "spawned_early": ["early_wait", "early_burn"],
    "spawned_late": ["late_wait", "late_own_wait", "late_own_burn"],
    "outlives": ["outlive_wait", "outlive_burn"],
}
ENDS = {"/fail": "RuntimeError", "/killed": "GreenletExit"}
CHILDREN = {"/spawn": ["spawned_early", "spawned_late"], "/orphan": ["outlives"]}
BURNS = {"busy_burn": 5, "mixed_burn": 2, "mixed_inner_burn": 1, "early_burn": 2,
         "late_own_burn": 1, "outlive_burn": 1}
"""Milliseconds on the CPU, as the service wants them."""

IDS = ("trace_id", "segment_id", "span_id")


class Wrong(Exception):
    """The books contradict themselves."""


def want(condition, *what):
    if not condition:
        raise Wrong(" ".join(map(str, what)))


def ids(line):
    return tuple(line[name] for name in IDS)


def key(line):
    """What tells a label from another's: the segment, or trace and span."""
    return line["segment_id"] or (line["trace_id"], line["span_id"])


def lines_of(path):
    with open(path) as file:
        return [json.loads(line) for line in file]


def check_line(line):
    """One work by itself; whether it came to its end."""
    if line["end_ns"] is None:
        return False
    begin_ns, end_ns = line["begin_ns"], line["end_ns"]
    want(begin_ns <= end_ns, "ends before it begins", line)
    at = begin_ns
    for call in line["functions"]:
        want(at <= call["begin_ns"] <= call["end_ns"] <= end_ns, "a call outside", line)
        wall_ns = call["end_ns"] - call["begin_ns"]
        if call["state"] != "wait":
            # The two clocks are read one after the other.
            want(call["cpu_ns"] <= wall_ns + 50_000, "more CPU than wall", call)
        if call["function"] in BURNS:
            wanted_ns = BURNS[call["function"]] * 1_000_000
            want(wanted_ns <= call["cpu_ns"], "burnt too little", call)
        at = call["end_ns"]
    for span in line["spans"]:
        want(begin_ns <= span["begin_ns"] <= span["end_ns"] <= end_ns, "a span outside", line)
    what = line["endpoint"] if line["kind"] == "request" else line["function"]
    want([call["function"] for call in line["functions"]] == CALLS[what], "calls", line)
    want(line["ended"] == ENDS.get(what, "returned"), "ended otherwise", line)
    if line["kind"] == "request" and line["answered_ns"] is not None:
        want(line["waited_ns"] <= line["arrived_ns"] <= begin_ns, "began too early", line)
        want(end_ns <= line["answered_ns"], "answered too early", line)
    return True


def check_labels(works, labels):
    """Whether every request has a label of its own, and only the ignored none."""
    seen = {}
    for work in works:
        if work["kind"] != "request":
            continue
        if work["trace_id"] is None:
            ignored = work["endpoint"] == "/static-ignored"
            want(ignored or labels == "wire" and work["header"] is None, "no label", work)
            continue
        other = seen.setdefault(key(work), work)
        want(other is work, "two requests with one label", work, other)
    return seen


def check_children(works, by_serial):
    """Whether children belong to their spawners, and how many there are."""
    children = collections.defaultdict(list)
    for work in works:
        if work["kind"] == "child":
            children[work["of"]].append(work)
    for serial, born in children.items():
        spawner = by_serial[serial]
        labels = [ids(line) for line in [spawner, *spawner["spans"]]]
        for work in born:
            want(ids(work) in labels, "no label of its spawner's", work, spawner)
            want(spawner["begin_ns"] <= work["made_ns"], "made too early", work)
            if spawner["end_ns"] is None:
                continue
            want(work["made_ns"] <= spawner["end_ns"], "made too late", work)
            if work["end_ns"] is None:
                continue
            if work["function"] == "outlives":
                want(work["end_ns"] - spawner["end_ns"] >= 99_000_000, "too short", work)
            else:
                want(work["end_ns"] <= spawner["end_ns"], "not joined", work)
    for work in works:
        if work["kind"] == "request" and work["end_ns"] is not None:
            born = [child["function"] for child in children[work["serial"]]]
            want(born == CHILDREN.get(work["endpoint"], []), "other children", work, born)
    return sum(map(len, children.values()))


def by_greenlet(works):
    """The works of each address, in order; they must not overlap."""
    found = collections.defaultdict(list)
    for work in works:
        if work["begin_ns"] is not None:
            found[work["greenlet"]].append(work)
    for own in found.values():
        own.sort(key=lambda work: work["begin_ns"])
        for one, following in zip(own, own[1:]):
            want(one["end_ns"] is not None and one["end_ns"] <= following["begin_ns"],
                 "two works in one greenlet", one, following)
    return found


def check_switches(switches, works, labels, found):
    """Whether each switch inside of a work says its label, and none another's."""
    begins = {greenlet: [work["begin_ns"] for work in own] for greenlet, own in found.items()}
    count = collections.Counter()
    known = {}
    for work in works:
        own = [work] if work["kind"] == "request" else []  # a child's is its spawner's
        for line in own + work["spans"]:
            if line["trace_id"] is not None:
                known[key(line)] = work
    last_ns = 0
    for switch in switches:
        want(last_ns <= switch["ns"], "not in order", switch)
        last_ns = switch["ns"]
        place = bisect.bisect_right(begins.get(switch["leaver"], []), switch["ns"]) - 1
        work = found[switch["leaver"]][place] if place >= 0 else None
        inside = work and (work["end_ns"] is None or switch["ns"] <= work["end_ns"])
        live = switch["state"] == "span" and not switch["ended"] and (
            switch["recording"] if labels == "otel" else
            switch["class"] in ("Span", "EntrySpan", "ExitSpan") and switch["depth"] > 0)
        if labels == "wire":
            count["inside" if inside else "outside"] += 1
            continue
        if live:
            owner = known.get((switch["trace_id"], switch["span_id"])
                              if labels == "otel" else switch["segment_id"])
            want(owner is not None, "a span that no work knows", switch)
            want(owner["greenlet"] == switch["leaver"], "another's span", switch, owner)
        if not inside:
            count["outside, live" if live else "outside, none"] += 1
            if live and work is not None and work["kind"] == "request":
                # Between two requests: reading the head, sending the answer.
                count["outside, live, kept-alive"] += 1
            continue
        spans = [span for span in work["spans"]
                 if span["begin_ns"] <= switch["ns"] <= (span["end_ns"] or switch["ns"])]
        line = spans[-1] if spans else work
        expected = line["trace_id"] is not None and (work["kind"] == "request" or spans)
        want(bool(expected) == live, "a label too many or too few", switch, work)
        if live:
            want(switch["span_id"] == line["span_id"], "another span", switch, line)
        kind = "span of a child" if work["kind"] == "child" else "request"
        count[kind if live else f"{work['kind']} without"] += 1
    return dict(count)


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("books")
    parser.add_argument("--sent")
    parser.add_argument("--switches")
    asked = parser.parse_args()
    works = lines_of(asked.books)
    by_serial = {work["serial"]: work for work in works}
    requests = [work for work in works if work["kind"] == "request"]
    labels = works[0]["labels"] if works else None
    try:
        unfinished = sum(not check_line(work) for work in works)
        seen = check_labels(works, labels)
        children = check_children(works, by_serial)
        found = by_greenlet(works)
        result = {"labels": labels, "requests": len(requests), "children": children,
                  "unfinished": unfinished, "labelled": len(seen)}
        if asked.sent:
            sent = {line["n"]: line for line in lines_of(asked.sent)}
            for work in requests:
                line = sent.pop(work["sent"], None)
                if line is None:
                    continue  # the load was stopped before its answer
                want(line["endpoint"] == work["endpoint"], "another endpoint", line, work)
                want(line["header"] == work["header"], "another header", line, work)
                if labels == "wire":
                    want(ids(line) == ids(work), "other ids", line, work)
                taken = {"agent": "sw8", "otel": "traceparent"}.get(labels)
                if line["header"] == taken and work["trace_id"] is not None:
                    want(line["trace_id"] == work["trace_id"], "another trace", line, work)
            want(not sent, len(sent), "were answered and are not booked")
        if asked.switches:
            switches = lines_of(asked.switches)
            result["switches"] = len(switches)
            result["by_state"] = check_switches(switches, works, labels, found)
    except Wrong as wrong:
        sys.exit(f"wrong: {wrong}")
    print(json.dumps(result))


if __name__ == "__main__":
    main()
