"""A target with a profiler inside: `inside.py TOOL TARGETS PROGRAM [ARGUMENT..]`.

TOOL is a module beside this one with `prepare()`, called before anything of the target's
is imported, `start()`, called before it says that it is ready, `begin()` and `end()`
around what its books hold, and `stacks(functions)`: the profile as (names root first,
weight) pairs. TARGETS is the folder of PROGRAM. What the tool saw goes out as one line,
`profile`, before `done`.
"""

import collections
import importlib
import os
import runpy
import sys


def main(name, targets, program, *arguments):
    tool = importlib.import_module(f"tool_{name}")
    # As if PROGRAM had been started itself.
    sys.path.insert(0, targets)
    sys.argv[:] = [program, *arguments]
    tool.prepare()
    import books

    ready, done = books.ready, books.done

    def ready_with_tool(**facts):
        tool.start()
        ready(**facts)
        tool.begin()

    def done_with_tool(cpu):
        tool.end()
        functions = {line["function"] for line in cpu["functions"]}
        weights = collections.Counter()
        for names, weight in tool.stacks(functions):
            weights[tuple(names)] += weight
        books.say("profile", stacks=[
            {"functions": names, "weight": weight} for names, weight in weights.items()
        ])
        done(cpu=cpu)

    books.ready, books.done = ready_with_tool, done_with_tool
    runpy.run_path(os.path.join(targets, program), run_name="__main__")


if __name__ == "__main__":
    main(*sys.argv[1:])
