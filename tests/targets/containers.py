"""Processes that see one greenlet through overlay mounts of their own: `containers.py MOUNTS EACH COPIED ROUNDS [late]`.

To be run in a mount namespace of its own. EACH processes on each of MOUNTS overlays of one lower
directory, as containers of one image have them; in the last COPIED of these the library was
copied up (`touch`), which makes it another file with the same device and inode number. With `late`
the last process of each mount loads greenlet only after the go. Each switches ROUNDS times, and so
does a child that it forks before the go and one that it forks then. The books are of each process:
how often it switched, and how many greenlets it freed.
"""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import tempfile


def work(rounds):
    """Switches; the books of it."""
    import greenlet

    assert "/merged" in greenlet.__file__, greenlet.__file__
    switches = 0

    def trace(_event, _greenlets):
        nonlocal switches
        switches += 1

    parent = greenlet.getcurrent()
    greenlet.settrace(trace)
    for _ in range(rounds):
        other = greenlet.greenlet(lambda: parent.switch())
        other.switch()
        other.switch()
        del other
    greenlet.settrace(None)
    return {"switches": switches, "freed": rounds}


def forked(go, rounds):
    """A child that does the same once `go` is closed, and where its books come from."""
    books, mine = os.pipe()
    pid = os.fork()
    if pid == 0:
        if go is not None:
            os.close(go[1])
            os.read(go[0], 1)
        os.write(mine, json.dumps({os.getpid(): work(rounds)}).encode())
        # Its end may not come before it was looked at.
        sys.stdin.buffer.read(1)
        os._exit(0)
    os.close(mine)
    return books


def member(rounds, late):
    if not late:
        import greenlet  # noqa: F401
    go = os.pipe()
    there = forked(go, rounds)
    print("there", flush=True)
    sys.stdin.buffer.read(1)
    books = {os.getpid(): work(rounds)}
    os.close(go[1])
    for child in (there, forked(None, rounds)):
        books.update(json.loads(os.read(child, 4096)))
    print(json.dumps(books), flush=True)
    sys.stdin.buffer.read(1)


def main(mounts, each, copied, rounds, late):
    import greenlet

    import books

    directory = tempfile.mkdtemp()
    package = pathlib.Path(greenlet.__file__).parent
    shutil.copytree(package, f"{directory}/lower/greenlet")
    for made in package.parent.glob("greenlet-*.dist-info"):
        shutil.copytree(made, f"{directory}/lower/{made.name}")
    members = []
    for at in range(mounts):
        upper, scratch, merged = (f"{directory}/{name}{at}" for name in ("upper", "work", "merged"))
        for path in (upper, scratch, merged):
            os.mkdir(path)
        options = f"lowerdir={directory}/lower,upperdir={upper},workdir={scratch}"
        subprocess.check_call(["mount", "-t", "overlay", "overlay", "-o", options, merged])
        for library in pathlib.Path(merged).glob("greenlet/_greenlet*.so"):
            if at >= mounts - copied:
                library.touch()
        for nth in range(each):
            last = ["late"] if late and nth == each - 1 else ["early"]
            command = [sys.executable, "-u", __file__, "member", str(rounds), *last]
            environment = {**os.environ, "PYTHONPATH": merged}
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
            members.append(subprocess.Popen(command, env=environment, **pipes))
    for process in members:
        assert process.stdout.readline() == b"there\n"
    books.ready(members=[process.pid for process in members])

    for process in members:
        process.stdin.write(b"x")
        process.stdin.flush()
    kept = {}
    for process in members:
        kept.update(json.loads(process.stdout.readline()))
    books.done(**kept)
    for process in members:
        process.stdin.close()
    for process in members:
        assert process.wait() == 0
    for at in range(mounts):
        subprocess.check_call(["umount", f"{directory}/merged{at}"])
    shutil.rmtree(directory)


if __name__ == "__main__":
    if sys.argv[1] == "member":
        member(int(sys.argv[2]), sys.argv[3] == "late")
    else:
        main(*map(int, sys.argv[1:5]), sys.argv[5:] == ["late"])
