"""traced.py with ddtrace's own tracing and its profiler: `traced_ddtrace.py TRACED ARGUMENT..`.

TRACED is the service (tests/targets/traced.py), which runs as by `ddtrace-run`. The file
named by SAMPLES gets a line of json for each sample of the profiler: `functions`, root
first; `request`, the id of the root span that the profiler gave it, null for none; `ns`,
when it was taken, by CLOCK_MONOTONIC; `cpu_ns`, its CPU time.
"""

import glob
import json
import os
import runpy
import sys
import tempfile
import time

_folder = tempfile.TemporaryDirectory()
_prefix = os.path.join(_folder.name, "profile")
os.environ.update({
    "DD_SERVICE": "traced",
    "DD_PROFILING_ENABLED": "true",
    # When each sample was taken, which is ddtrace's default.
    "DD_PROFILING_TIMELINE_ENABLED": "true",
    "DD_PROFILING_OUTPUT_PPROF": _prefix,
    # One file, at the end.
    "DD_PROFILING_UPLOAD_INTERVAL": "3600",
    # Only the stacks are compared; the other collectors would take time.
    "DD_PROFILING_MEMORY_ENABLED": "false",
    "DD_PROFILING_LOCK_ENABLED": "false",
    "DD_PROFILING_EXCEPTION_ENABLED": "false",
    # There is no backend: a port that refuses.
    "DD_TRACE_AGENT_URL": "http://127.0.0.1:9",
    "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
    "DD_REMOTE_CONFIGURATION_ENABLED": "false",
})

# What ddtrace-run does, before gevent patches anything.
import ddtrace.auto  # noqa: E402, F401
from ddtrace.profiling.bootstrap import profiler  # noqa: E402
from ddtrace.trace import tracer as ddtracer  # noqa: E402

import pprof  # noqa: E402

sys.path.insert(0, os.path.dirname(sys.argv[1]))

import books  # noqa: E402
import tracers  # noqa: E402


class Ddtrace(tracers.Wire):
    """Books a request's root span in the place of OpenTelemetry's trace."""

    name = "otel"

    def start(self):
        """It runs already."""
        self.version = ddtrace.__version__
        self.facts = {"service": tracers.SERVICE, "instance": None}

    def current(self):
        """The label of the current span."""
        span = ddtracer.current_span()
        if span is None:
            return None
        root = ddtracer.current_root_span()
        return tracers._label(str(root.span_id), None, str(span.span_id), span.name, None)

    def child(self, name):
        """A span below the current one, or a root."""
        return ddtracer.trace(name)


def write_samples(path):
    """The profile, once it is flushed."""
    (file,) = glob.glob(f"{_prefix}*.pprof")
    with open(file, "rb") as profile:
        data = profile.read()
    ahead_ns = time.time_ns() - time.monotonic_ns()
    with open(path, "w") as to:
        for names, values, labels in pprof.samples(data):
            root = labels.get("local root span id")
            # Of 64 bits, without a sign.
            request = None if root is None else str(root % (1 << 64))
            line = {"functions": names, "request": request,
                    "ns": labels["end_timestamp_ns"] - ahead_ns, "cpu_ns": values["cpu-time"]}
            to.write(json.dumps(line) + "\n")


_say = books.say


def say(event, **facts):
    if event == "done":
        profiler.stop(flush=True)
        write_samples(os.environ["SAMPLES"])
    _say(event, **facts)


books.say = say
made = Ddtrace()
tracers.named = lambda _name: made
sys.argv.pop(0)
runpy.run_path(sys.argv[0], run_name="__main__")
