"""ddtrace's stack profiler, as `ddtrace-run` starts it, its pprof kept in a file."""

import glob
import os
import tempfile

import pprof

_folder = tempfile.TemporaryDirectory()
_prefix = os.path.join(_folder.name, "profile")
_profiler = None


def prepare():
    """Tells ddtrace what it may not do without an agent, before it is imported."""
    os.environ.update({
        "DD_PROFILING_OUTPUT_PPROF": _prefix,
        # One file, at the end.
        "DD_PROFILING_UPLOAD_INTERVAL": "3600",
        "DD_TRACE_ENABLED": "false",
        "DD_INSTRUMENTATION_TELEMETRY_ENABLED": "false",
        "DD_REMOTE_CONFIGURATION_ENABLED": "false",
        # Only the stacks are compared; the other collectors would take time.
        "DD_PROFILING_MEMORY_ENABLED": "false",
        "DD_PROFILING_LOCK_ENABLED": "false",
    })


def start():
    global _profiler
    from ddtrace.profiling import Profiler

    _profiler = Profiler()
    _profiler.start()


def begin():
    """It samples since `start`: the time before costs no CPU."""


def end():
    _profiler.stop(flush=True)


def stacks(_functions):
    """CPU time by stack, in nanoseconds."""
    files = glob.glob(f"{_prefix}*.pprof")
    if len(files) != 1:
        raise SystemExit(f"ddtrace wrote {files} instead of one file")
    with open(files[0], "rb") as file:
        yield from pprof.stacks(file.read(), "cpu-time")
