"""The mutation test itself: what it changes, and what it leaves."""

from __future__ import annotations

from pathlib import Path
from textwrap import dedent

import pytest

from mutants import EQUIVALENT, sample
from mutations import equivalents_in, mutations_of


def changes_of(source: str) -> list[tuple[str, str]]:
    """Return the changed line of a function's body, before and after."""
    found = mutations_of("m.py", f"def f(a, b):\n{dedent(source)}".replace("\n", "\n    ") + "\n")
    assert all(each.is_python for each in found)
    return [(each.before, each.after) for each in found]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("return a", ["return None"]),
        ("return", ["pass"]),
        ("raise a", ["pass"]),
        ("a.b()", ["pass"]),
        ("a = b", ["pass"]),
        ("new = b", []),
        ("a.new = b", ["pass"]),
        ("a += b", ["pass", "a -= b"]),
        ("new = a < b", ["new = a <= b", "new = a >= b"]),
        ("new = a is b", ["new = a is not b"]),
        ("new = a and (b)", ["new = (b)", "new = a"]),
        ("new = not a", ["new = a"]),
        ("new = 1", ["new = 0", "new = 2"]),
        ("new = True", ["new = False"]),
        ("new = a - b", ["new = a + b"]),
        ("new = a(b, c=b)", ["new = a(b)"]),
        ("new = a(c=b, d=b)", ["new = a( d=b)", "new = a(c=b)"]),
        ("new = a if b else a", ["new = a if False else a", "new = a if True else a"]),
        ("if a: a", ["if False: a", "if True: a", "if a: pass"]),
        ("if a < b: b", ["if False: b", "if True: b", "if a <= b: b", "if a < b: pass"]),
        ("while a: b", ["while False: b", "while True: b", "while a: pass"]),
        ("new: int = a", []),
        ("new = a + 'text'", []),
        ("new = f'{a + 1}'", []),
        ("if sys.version_info < (3, 12): pass", []),
    ],
)
def test_what_is_changed(line: str, expected: list[str]) -> None:
    assert [after for _, after in changes_of(line)] == expected


def test_clauses_of_try() -> None:
    source = """
    try:
        a()
    except ValueError:
        new = a
    finally:
        b.new = a
    """
    assert changes_of(source) == [
        ("a()", "pass"),
        ("new = a", "raise"),
        ("b.new = a", "pass"),
    ]


def test_what_is_left() -> None:
    source = '''
    """Of the module."""
    @overload
    def f(a: int | str = 1) -> int: ...
    class C:
        """Of the class."""
        limit: int = field(default=None)
    '''
    assert [each.after for each in mutations_of("m.py", dedent(source))] == ["limit: int = field()"]


def test_places() -> None:
    source = "class C:\n    def f(self):\n        self.a()\n        self.a()\n"
    first, second = mutations_of("m.py", source)
    assert (first.name, first.line, first.run_lines) == ("C.f", 3, {3})
    assert (second.name, second.line, second.run_lines) == ("C.f #2", 4, {4})
    assert second.changed.decode() == source[: source.rindex("self")] + "pass\n"


def test_a_change_of_several_lines() -> None:
    (mutation,) = mutations_of("m.py", "def f(a):\n    a(\n        a,\n    )\n")
    assert (mutation.before, mutation.after) == ("a( a, )", "pass")
    assert mutation.run_lines == {2, 3, 4}


def test_the_sample() -> None:
    source = "def f(a):\n" + "".join(f"    a.f{number}()\n" for number in range(20))
    found = mutations_of("m.py", source)
    left_out = {each.key for each in found[:10]}
    chosen = sample([*found], 5, 0, left_out)
    assert chosen == sample([*found], 5, 0, left_out)
    assert len(chosen) == 5
    assert left_out.isdisjoint(each.key for each in chosen)
    assert len(sample([*found], None, 1, left_out)) == 10


def test_the_list_of_equivalents(tmp_path: Path) -> None:
    listed = list(equivalents_in(EQUIVALENT))
    assert len({each.key for each in listed}) == len(listed)
    path = tmp_path / "list"
    path.write_text("# comment\n\nm.py C.f #2\n- a\n+ b\nThe reason\nin two lines.\n\n")
    (entry,) = equivalents_in(path)
    assert entry.key == ("m.py", "C.f #2", "a", "b")
    assert entry.reason == "The reason in two lines."
    path.write_text("m.py C.f\n- a\n+ b\n")
    with pytest.raises(ValueError, match="entry 1 needs a place, -, \\+ and a reason"):
        list(equivalents_in(path))
