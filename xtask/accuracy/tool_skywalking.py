"""The trace profiler of SkyWalking's agent, driven without a backend.

A backend's part is played here: there is one task; each greenlet or thread of the books
that does more than sleep is a segment that it fits; and snapshots are kept in a list
instead of a queue of 50 that is sent away (a full queue ends the agent's greenlet
profiler). What a stack is worth is told as the backend tells it: by the time between
two snapshots of a segment that follow one another and both have it.
"""

import collections
import itertools
import sys

PERIOD_MS = 10
"""The shortest that the agent takes."""

_snapshots = []
_context = None


def prepare():
    """Patched before the agent is imported, the order in which its greenlet profiler works."""
    if sys.argv[1] != "threads":
        from gevent import monkey

        # wall.py blocks its thread by the time.sleep that it finds.
        monkey.patch_all(time=False)


def start():
    global _context
    import ledger
    from skywalking.agent import agent
    from skywalking.profile import profile_context
    from skywalking.profile.profile_task import ProfileTask
    from skywalking.trace.context import SpanContext

    agent.add_profiling_snapshot = _snapshots.append
    task = ProfileTask(task_id="1", first_span_op_name="/", duration=1,
                       min_duration_threshold=0, thread_dump_period=PERIOD_MS,
                       max_sampling_count=9)
    _context = profile_context.ProfileTaskExecutionContext(task)
    enter = ledger.Life.enter

    def enter_with_segment(life):
        if life.tid is None and life.role != "sleeps":
            # What SpanContext.new_entry_span() does when it has no status.
            span = SpanContext()
            span.profile_status = _context.attempt_profiling(span, life.name, "/")
        enter(life)

    ledger.Life.enter = enter_with_segment


def begin():
    _context.start_profiling()


def end():
    """The agent itself leaves its hooks in place when a segment ends."""


def stacks(_functions):
    """Time between snapshots by the stack that both have, in nanoseconds."""
    segments = collections.defaultdict(list)
    for snapshot in tuple(_snapshots):
        segments[snapshot.trace_segment_id].append(snapshot)
    for line in segments.values():
        line.sort(key=lambda snapshot: snapshot.sequence)
        for one, next_one in itertools.pairwise(line):
            if next_one.sequence != one.sequence + 1:
                continue
            both = itertools.takewhile(
                lambda pair: pair[0] == pair[1], zip(one.stack_list, next_one.stack_list)
            )
            frames = [_function(signature) for signature, _ in both]
            yield frames, (next_one.time - one.time) * 1_000_000


def _function(signature):
    """`wall.py.burn_one: 70` is the agent's way to write a frame."""
    return signature.rpartition(": ")[0].rpartition(".")[2]
