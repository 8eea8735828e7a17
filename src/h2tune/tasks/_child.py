"""The child process that runs checked programs. It imports nothing of the package and trusts nobody.

Started as ``python -I -S _child.py MATH_NAMES CALLS SECONDS MEGABYTES``; reads a JSON list of programs from standard
input and writes one line per program: ``=`` and the value as UTF-8 in hexadecimal, or ``-``.
"""

import builtins
import dis
import gc
import json
import math
import os
import sys
from collections.abc import Callable
from types import CodeType
from typing import Any

try:
    import resource
except ImportError:  # another system
    resource = None  # type: ignore[assignment]

BITS = 100_000
TEXT = 1000


NOBODY = 65534


def leave_root() -> None:
    """Where the package runs as root, become a user who owns nothing, as far as the system lets it.

    From then on modules may be out of reach, too.
    """
    if not hasattr(os, "geteuid") or os.geteuid() != 0:
        return
    steps: list[tuple[Callable[[Any], None], Any]] = [(os.setgroups, []), (os.setgid, NOBODY), (os.setuid, NOBODY)]
    for step, argument in steps:
        try:
            step(argument)
        except OSError:
            pass


def limit(seconds: float, megabytes: int) -> Callable[[], None]:
    """Lowers what this process may use. Where the system knows a limit not, the parent's clock remains."""
    if resource is None:
        leave_root()
        return lambda: None
    size = megabytes * 2**20
    for name, value in (("AS", size), ("DATA", size), ("FSIZE", 0), ("NOFILE", 3), ("NPROC", 0), ("CORE", 0)):
        try:
            resource.setrlimit(getattr(resource, "RLIMIT_" + name), (value, value))
        except (AttributeError, OSError, ValueError):
            pass
    leave_root()

    def grant() -> None:
        # The processor time of each program begins with what those before it have used.
        used = resource.getrusage(resource.RUSAGE_SELF)
        allowed = int(used.ru_utime + used.ru_stime + seconds) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (allowed, resource.getrlimit(resource.RLIMIT_CPU)[1]))

    return grant


def power(base: Any, exponent: Any, modulus: Any = None) -> Any:
    """``base ** exponent`` for results of at most BITS bits."""
    whole = isinstance(base, int) and isinstance(exponent, int)
    if whole and modulus is None and abs(base) > 1 and abs(int(base)).bit_length() * abs(int(exponent)) > BITS:
        raise OverflowError
    return pow(base, exponent) if modulus is None else pow(base, exponent, modulus)


def small(function: Callable[..., Any], most: int) -> Callable[..., Any]:
    """``function`` for whole arguments up to ``most``."""

    def guarded(*values: Any) -> Any:
        if any(value > most for value in values):
            raise OverflowError
        return function(*values)

    return guarded


class Math:
    """The part of ``math`` that programs see."""


def values_of(name_list: list[str], calls: list[str], said: list[str]) -> dict[str, Any]:
    """A fresh set of names for one program."""
    mathematics = Math()
    for name in name_list:
        setattr(mathematics, name, getattr(math, name))
    for name, most in (("factorial", 2000), ("comb", 5000), ("perm", 2000)):
        setattr(mathematics, name, small(getattr(math, name), most))

    def show(*values: Any, sep: str = " ", end: str = "\n") -> None:
        said[:] = [sep.join([str(value)[:TEXT] for value in values[:20]])[:TEXT]]

    allowed = {name: getattr(builtins, name) for name in calls}
    allowed.update(print=show, pow=power)
    return {"__builtins__": allowed, "math": mathematics, "_power": power, "__name__": "program"}


def permitted(code: CodeType, attributes: list[str]) -> bool:
    """Whether compiled code has no attributes but ``attributes`` and imports nothing.

    A second wall behind the allow-list: that one looks at what was written, this one at what will run.
    """
    for step in dis.get_instructions(code):
        words = step.opname.split("_")  # SET_FUNCTION_ATTRIBUTE of Python 3.13 is about defaults and closures
        if "IMPORT" in words or step.opname in ("LOAD_BUILD_CLASS", "MATCH_CLASS"):
            return False
        if ("ATTR" in words or "METHOD" in words) and not (words[0] == "LOAD" and step.argval in attributes):
            return False
    return all(permitted(inner, attributes) for inner in code.co_consts if isinstance(inner, CodeType))


def run(source: str, name_list: list[str], calls: list[str]) -> str | None:
    """The text of ``answer``, or of what was printed last, or None."""
    said: list[str] = []
    space = values_of(name_list, calls, said)
    try:
        code = compile(source, "program", "exec")
        if not permitted(code, name_list):
            return None
        exec(code, space)  # noqa: S102 - the one place where a checked program runs
        answer = space.get("answer")
        if answer is None or callable(answer):
            return said[-1].strip() if said else None
        return str(answer)[:TEXT]
    except BaseException:  # noqa: BLE001 - whatever it raised, it has no value
        return None


def main() -> None:
    name_list, calls = sys.argv[1].split(","), sys.argv[2].split(",")
    out = sys.stdout.buffer
    sources = json.load(sys.stdin.buffer)
    grant = limit(float(sys.argv[3]), int(sys.argv[4]))
    sys.setrecursionlimit(500)
    gc.freeze()
    for source in sources:
        grant()
        value = run(source, name_list, calls)
        # What a program leaves behind goes before its value is told: the next one finds the memory free, and a structure
        # that cannot be taken apart ends the child at the program that made it.
        gc.collect()
        out.write(b"-\n" if value is None else b"=" + value.encode("utf-8", "replace").hex().encode() + b"\n")
        out.flush()


if __name__ == "__main__":
    main()
