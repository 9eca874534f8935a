"""Functions that are made, wait once and are freed: their addresses are reused.

`reuse.py COUNT`. Function number n is `made_n` in file `made/n.py`, and waits in
line n + 2, so that any mix of two of them shows. Every hundredth is kept.
"""

import sys

import greenlet

import books


def main(count):
    here = greenlet.getcurrent()
    book = books.Book()
    book.watch()
    kept = []
    addresses = set()
    reused = 0
    books.ready()
    book.begin()
    for number in range(count):
        name = f"made_{number:06}"
        # Different depths and sizes, so that what follows at an address differs.
        extra = "".join(f"    x{n} = {n}\n" for n in range(number % 3))
        source = "\n" * number + f"def {name}():\n    wait()\n{extra}"
        space = {"wait": here.switch}
        exec(compile(source, f"made/{number:06}.py", "exec"), space)
        function = space.pop(name)
        reused += id(function.__code__) in addresses
        addresses.add(id(function.__code__))
        one = greenlet.greenlet(function)
        one.switch()
        if number % 100 == 99:
            kept.append(function)
        one.switch()
        del one, function, space, source
    books.done(book=book.end(), addresses_reused=reused)


if __name__ == "__main__":
    main(int(sys.argv[1]))
