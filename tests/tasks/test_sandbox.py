"""Programs that people and models write, and programs that attackers write."""

from __future__ import annotations

import ast
import os
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from h2tune.tasks import _child, sandbox
from h2tune.tasks.allowlist import MAX_SOURCE, prepare
from h2tune.tasks.sandbox import check_program, run_program, run_programs


@pytest.mark.parametrize(
    ("source", "value"),
    [
        ("answer = 3 * 4", "12"), ("print(1)\nprint(2, 3)", "2 3"), ("print(1)\nanswer = 5", "5"),
        ("import math\nanswer = math.floor(math.sqrt(17))", "4"), ("from math import comb, pi\nprint(comb(5, 2))", "10"),
        ("t = 0\nfor i in range(5):\n    if i % 2:\n        t += i\nanswer = t", "4"),
        ("def f(n: int) -> int:\n    return 1 if n < 2 else n * f(n - 1)\nanswer = f(5)", "120"),
        ("x = 2\nx **= 10\nanswer = x ** 0.5", "32.0"), ("answer = sum(i * i for i in [1, 2, 3])", "14"),
        ("d = {'a': 1}\nd['b'] = 2\nanswer = max(d['a'], d['b'])", "2"), ("x = 7\nprint(f'{x / 2:.2f}')", "3.50"),
        ("a, b = divmod(17, 5)\nwhile a:\n    a -= 1\nanswer = (a, b)", "(0, 2)"), ("answer = pow(3, 4, 5)", "1"),
        ("def f(n, k=2):\n    return n * k\nanswer = f(3)", "6"), ("def f(n):\n    return sum(n * i for i in range(3))\nanswer = f(2)", "6"),
        ("def f(n):\n    def g(m):\n        return m + n\n    return g(1)\nanswer = f(2)", "3"),
        ("answer = pow(7, 123456, 13)", "1"), ("answer = (-1) ** 200001", "-1"), ("print(f'{{x}} {1:>{2 + 1}}')", "{x}   1"),
        ("answer = '\u00e9\u20ac'", "\u00e9\u20ac"), ("answer = round(2.567, ndigits=1)", "2.6"),
    ],
)  # fmt: skip
def test_ordinary_programs(source: str, value: str) -> None:
    assert check_program(source) is None
    assert run_program(source) == value


@pytest.mark.parametrize(
    "source", ["", "x = 1", "answer = 1 / 0", "answer = None", "answer = y", "not python", "answer = f"]
)
def test_without_a_value(source: str) -> None:
    assert run_program(source) is None


REFUSED = {
    "file": "open('/etc/passwd')",
    "import": "import os\nos.system('true')",
    "import with math": "import math, os",
    "import as": "import math as m",
    "import from": "from os import system",
    "import from math": "from math import __loader__",
    "import star": "from math import *",
    "import relative": "from .math import pi",
    "dunder import": "__import__('os').system('true')",
    "builtins": "x = __builtins__",
    "classes": "answer = ().__class__.__bases__[0].__subclasses__()",
    "getattr": "getattr(1, '__class__')",
    "format attributes": "answer = '{0.__class__}'.format(1)",
    "f-string attributes": "answer = f'{(1).__class__}'",
    "module of math": "import math\nanswer = math.__loader__",
    "math unknown": "import math\nanswer = math.nope",
    "math as a value": "import math\nx = math\nanswer = x.sqrt(4)",
    "math replaced": "import math\nmath = 3",
    "math set": "import math\nmath.pi = 3",
    "eval": "eval('1')",
    "eval kept": "e = eval\nprint(e)",
    "exec": "exec('x = 1')",
    "fork bomb": "import os\nwhile True:\n    os.fork()",
    "fork by name": "fork()",
    "lambda": "f = lambda: 1\nf()",
    "variable called": "p = print\np(1)",
    "call of a call": "def f():\n    return print\nf()(1)",
    "call of a list": "[print][0](1)",
    "decorator": "@print\ndef f():\n    return 1",
    "class": "class A:\n    pass",
    "try": "try:\n    x = 1\nexcept Exception:\n    pass",
    "with": "with open('x') as f:\n    pass",
    "delete": "x = 1\ndel x",
    "global": "def f():\n    global x\n    x = 1",
    "async": "async def f():\n    pass",
    "yield": "def f():\n    yield 1",
    "starred": "print(*[1, 2])",
    "walrus": "print(x := 1)",
    "shift": "answer = 1 << 10 ** 9",
    "print to a file": "print(1, file=2)",
    "keyword dictionary": "def f(a):\n    return a\nf(**{'a': 1})",
    "key function": "answer = max([1], key=print)",
    "power of own name": "_power = 1",
    "full-width letters": "\uff45\uff56\uff41\uff4c('1')",
    "italic dunder": "answer = ()._\uff3fclass_\uff3f",
    "null byte": "answer = 1\0",
    "surrogate": "answer = '\ud800'",
    "encoding": "# -*- coding: utf-7 -*-\n+AG8-pen('x')",
    "nesting": "answer = " + "(" * 500 + "1" + ")" * 500,
    "signs": "answer = " + "-" * 5000 + "1",
    "sums": "answer = 1" + "+1" * 4500,
    "length": "#" * (MAX_SOURCE + 1),
    "long number": "answer = " + "9" * 6000,
    "brace in a format": 'x = 1\nanswer = f"{x:\\x7babs(1)\\x7d}"',
    "attribute in a format": 'x = 1\nanswer = f"{x:\\x7b().__class__\\x7d}"',
    "octal brace in a format": 'x = 1\nanswer = f"{x:\\173abs(1)\\175}"',
    "named brace in a format": 'x = 1\nanswer = f"{x:\\N{LEFT CURLY BRACKET}abs(1)\\N{RIGHT CURLY BRACKET}}"',
    "brace in a nested format": 'x = 1\nanswer = f"{x:{x:\\x7babs(1)\\x7d}}"',
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_before_anything_runs(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("subprocess.Popen", None)
    assert check_program(REFUSED[name])
    assert run_program(REFUSED[name]) is None


HOSTILE = {
    "loop": "while True:\n    pass",
    "power": "answer = 10 ** 10 ** 10",
    "power function": "answer = pow(10, 10 ** 9)",
    "power of bool": "answer = (True + 1) ** 10 ** 9",
    "power in place": "x = 10\nx **= 10 ** 10\nanswer = x",
    "squares": "x = 3\nwhile True:\n    x *= x",
    "factorial": "import math\nanswer = math.factorial(10 ** 8)",
    "combinations": "import math\nanswer = math.comb(10 ** 8, 5 * 10 ** 7)",
    "list": "x = [0] * 10 ** 10",
    "string": "answer = 'x' * 10 ** 10",
    "comprehension": "x = [i for i in range(10 ** 10)]\nanswer = 1",
    "format": "answer = f'{1:>4000000000}'",
    "percent": "answer = '%4000000000d' % 1",
    "recursion": "def f(n):\n    return f(n + 1)\nanswer = f(0)",
    "digits": "answer = 9 ** 30000",
    "printing": "while True:\n    print('x' * 10 ** 6)",
    "deep list": "x = []\nfor i in range(10 ** 6):\n    x = [x]\nprint(x)",
}


@pytest.mark.parametrize("name", HOSTILE)
def test_stopped_by_the_limits(name: str) -> None:
    began = time.monotonic()
    assert run_program(HOSTILE[name], timeout=0.5) is None
    assert time.monotonic() - began < 5


def test_output_is_bounded() -> None:
    value = run_program("answer = 'x' * 10 ** 7")
    assert value is not None and len(value) == 1000
    value = run_program("for i in range(1000):\n    print('y' * 100000)")
    assert value is not None and len(value) == 1000


UNCHECKED = {
    "classes": "answer = [c for c in ().__class__.__base__.__subclasses__()][0]",
    "in a function": "def f():\n    return [[(1).__class__ for i in [1]] for i in [1]]\nanswer = f()",
    "method": "answer = 'a'.upper()",
    "setting": "math.pi = 3\nanswer = 1",
    "import": "import math\nanswer = 1",
    "import of names": "from math import *\nanswer = 1",
    "class": "class A:\n    pass\nanswer = 1",
    "expression in a format": "x = 1\nanswer = f'{x:{[().__class__]}}'",
    "attribute of a pattern": "match 1:\n    case int(__class__=c):\n        answer = str(c)",
    "method of a pattern": "match 1.5:\n    case float(as_integer_ratio=c):\n        answer = str(c)",
}


@pytest.mark.parametrize("name", UNCHECKED)
def test_the_child_looks_at_what_was_compiled(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Behind the allow-list stands a second check: nothing has attributes but those of math, and nothing is imported."""
    monkeypatch.setattr("h2tune.tasks.sandbox.prepare", lambda source: source)
    assert run_programs([UNCHECKED[name], "answer = math.sqrt(4)"]) == [None, "2.0"]


def test_a_program_in_the_format_of_a_string_reads_no_file(tmp_path: Path) -> None:
    """An escaped brace was checked as text and run as an expression, which reached the file system."""
    secret, victim = tmp_path / "secret", tmp_path / "victim"
    secret.write_text("secret")
    victim.write_text("x")
    reach = (
        'n, g, m, x = "_ModuleLock", "sys", "posix", 1\n'
        'answer = f"{{x:\\x7b[{} for o in [[c for c in ().__class__.__base__.__subclasses__() if c.__name__ == n][0]'
        '.__init__.__globals__[g].modules[m]]]\\x7d}}"'
    )
    read = f"p = {str(secret)!r}\n" + reach.format("[o.close(0), o.read(o.open(p, 0), 100)]")
    remove = f"p = {str(victim)!r}\n" + reach.format("o.unlink(p)")
    assert run_programs([read, remove, "answer = 1"]) == [None, None, "1"]
    assert victim.exists()


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Programs that have got past both checks."""
    text = Path(sandbox.__file__).with_name("_child.py").read_text(encoding="utf-8")
    last = "return all(permitted("
    assert text.count(last) == 1 and text.count("return False") == 2
    (tmp_path / "child.py").write_text(
        text.replace("return False", "return True").replace(last, "return True or all(permitted(")
    )
    monkeypatch.setattr("h2tune.tasks.sandbox._CHILD", tmp_path / "child.py")
    monkeypatch.setattr("h2tune.tasks.sandbox.prepare", lambda source: source)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="only root can become somebody else")
@pytest.mark.usefixtures("unchecked")
def test_the_child_does_not_stay_root(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2tune.tasks.sandbox.CALLS", frozenset({"__import__", "str"}))
    assert run_program("o = __import__('os')\nanswer = str(o.getuid()) + ' ' + str(o.getgid())") == "65534 65534"
    assert run_program("answer = __import__('os').system('true')") != "0"


@pytest.mark.usefixtures("unchecked")
def test_the_child_knows_nothing_of_the_parent(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Even code that got past the checks finds no environment, no files to write, no place to stay."""
    monkeypatch.setenv("TOKEN", "secret")
    monkeypatch.setattr("h2tune.tasks.sandbox.CALLS", frozenset({"__import__", "open", "str", "len", "print"}))
    assert run_program("answer = __import__('os').environ.get('TOKEN', 'nothing')") == "nothing"
    assert "program-" in (run_program("answer = __import__('os').getcwd()") or "")
    assert run_program("answer = __import__('os').listdir('.')") is None
    assert run_program("answer = len(open('/etc/hostname').read())") is None
    target = tmp_path / "written"
    assert run_program(f"f = open({str(target)!r}, 'w')\nf.write('x')\nf.flush()\nanswer = 1") is None
    assert not target.exists() or not target.read_text()


@pytest.mark.usefixtures("unchecked")
def test_a_child_that_writes_too_much_is_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("h2tune.tasks.sandbox.CALLS", frozenset({"__import__"}))
    assert run_program("o = __import__('os')\nwhile True:\n    o.write(1, b'x' * 65536)") is None


def test_many_programs_keep_their_places() -> None:
    sources = [
        "answer = 1",
        "import os",
        "while True:\n    pass",
        "x = 2\nanswer = x",
        "answer = x",
        "answer = '-'",
        "print()",
    ]
    assert run_programs(sources, timeout=0.5) == ["1", None, None, "2", None, "-", ""]
    assert run_programs([]) == []


KEPT = "def f():\n    return 1\ny = [[i] for i in range(200000)]\n"
"""A function holds on to the names of its program, and these to all that the program made."""
GREEDY = KEPT + "x = []\nwhile True:\n    x += ['y' * 10000]"
DEEP = KEPT + "e = [1]\nfor i in range(10 ** 6):\n    e = enumerate(e)\nanswer = 1"


@pytest.mark.parametrize("source", [GREEDY, DEEP])
def test_a_program_takes_nothing_from_those_behind_it(source: str) -> None:
    honest = "a = [True] * 10 ** 6\nb = [[i] for i in range(60000)]\nanswer = len(b)"
    assert run_programs([honest, source, honest, honest], timeout=10) == ["60000", None, "60000", "60000"]


def test_after_ten_programs_without_an_end_the_others_have_less_time(monkeypatch: pytest.MonkeyPatch) -> None:
    allowed: list[float] = []

    def batch(sources: list[str], timeout: float, memory: int) -> tuple[list[str | None], bool]:
        allowed.append(timeout)
        return ["1"] * sources.index("x = 1"), False

    monkeypatch.setattr("h2tune.tasks.sandbox._run_batch", batch)
    assert run_programs(["answer = 1", *["x = 1"] * 12]) == ["1", *[None] * 12]
    assert allowed == [2.0] * 10 + [0.2] * 2


@pytest.mark.parametrize("refused", ["setgroups", "setgid"])
def test_one_refused_step_away_from_root_does_not_hold_up_the_others(
    refused: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    called = []

    def step(name: str) -> Callable[[object], None]:
        def made(value: object) -> None:
            called.append(name)
            if name == refused:
                raise PermissionError

        return made

    for name in ("setgroups", "setgid", "setuid"):
        monkeypatch.setattr(os, name, step(name), raising=False)
    monkeypatch.setattr(os, "geteuid", lambda: 0, raising=False)
    _child.leave_root()
    assert called == ["setgroups", "setgid", "setuid"]


@pytest.mark.skipif(not Path("/proc").is_dir(), reason="counts processes in /proc")
def test_no_process_is_left_behind() -> None:
    run_program("while True:\n    pass", timeout=0.2)
    mine = str(os.getpid())
    stats = [path.read_text().rsplit(")", 1)[1].split() for path in _own_children(mine)]
    assert all(fields[0] != "R" for fields in stats)


def _own_children(parent: str) -> list[Path]:
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            if path.read_text().rsplit(")", 1)[1].split()[1] == parent:
                found.append(path)
        except OSError:
            continue
    return found


@given(st.text(alphabet="ax01{}:\\\\'=f\n", max_size=30))
@example("\\x7babs(1)\\x7d").via("the form that was run unchecked")
def test_what_runs_is_what_was_checked(spec: str) -> None:
    """No text that follows a checked tree holds a name, a call or an attribute that the tree does not."""
    source = f'x = 1\nanswer = f"{{x:{spec}}}"'
    if check_program(source) is None:
        written, meant = (ast.dump(ast.parse(text)) for text in (prepare(source), source))
        assert written == meant


@given(st.text(alphabet="ab01+-*()=_.'\n \u00aa", max_size=60))
def test_the_check_never_fails(source: str) -> None:
    reason = check_program(source)
    assert reason is None or "\n" not in reason
