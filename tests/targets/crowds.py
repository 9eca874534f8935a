"""Contexts of every shape: many variables, and variables whose hashes meet.

A context is a hash tree of 32 branches a level, by five bits of a variable's hash. The
hash of a ContextVar is that of its address and that of its name, and the name may be of a
class whose hash is anything: so a variable can be made to meet another one, in as many
bits as one likes.
https://github.com/python/cpython/blob/v3.13.0/Python/context.c#L797
"""

import contextvars

_MASK = (1 << 64) - 1
_kept = []


class Name(str):
    """A name with a hash of one's own."""

    wanted = 0

    def __hash__(self):
        return self.wanted


def _signed(number):
    number &= _MASK
    return number - (1 << 64) if number >> 63 else number


def _of_address(address):
    return _signed((address >> 4) | (address << 60))


def named(name):
    """A new variable of that name."""
    variable = contextvars.ContextVar(name)
    _kept.append(variable)
    return variable


def with_hash(wanted):
    """A new variable with that hash; its address must be guessed, so it is tried."""
    for _ in range(10_000):
        guess = contextvars.ContextVar("guess")
        name = Name(f"meets-{len(_kept)}")
        name.wanted = _signed(_of_address(id(guess)) ^ wanted)
        del guess  # its memory is the next one's
        variable = contextvars.ContextVar(name)
        _kept.append(variable)
        if hash(variable) == wanted:
            return variable
    raise MemoryError("no address was as guessed")


def fill(count):
    """Set that many variables in this context, their hashes as they come."""
    for number in range(count):
        named(f"filler-{number}").set(number)


def meet(variable, count):
    """Set variables whose hash is the variable's own: a collision node."""
    for number in range(count):
        with_hash(hash(variable)).set([number])


def meet_below(variable, bits):
    """Set one whose hash is the variable's in that many low bits, and not in the next."""
    with_hash(_signed(hash(variable) ^ (1 << bits))).set([bits])


def crowd_below(variable, bits, count):
    """Set up to 31 that meet it in that many low bits and differ in the next five."""
    for number in range(1, count + 1):
        with_hash(_signed(hash(variable) ^ (number << bits))).set([number])
