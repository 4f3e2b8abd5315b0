"""The check of the project's English itself: each rule finds what it should, and nothing else."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from prose import DOCUMENT, ROOT, Passage, checked_files, faults_of, main, prose_of

pytestmark = pytest.mark.one_python


@pytest.mark.parametrize(
    "text",
    [
        "The level is no integer.",
        "at most so many functions",
        "As many as one likes.",
        "The run comes to its end.",
        "The run is over.",
        "The connection is gone.",
        "It is refused, for it is a generator.",
        "The task which is to be called.",
        "A name, one that exists.",
        "unless what is not a task is given",
        "What runs the tasks is there twice.",
        "It failed. What it raised is in the report.",
        "It runs; it ends.",
        "Tell whether it runs.",
        "The time without it, were one left.",
        "The very objects that it raised.",
        "An exception that earns a retry.",
        "Nothing is paid.",
        "The backoff starts anew.",
    ],
)
def test_it_finds(text: str) -> None:
    assert len(list(faults_of(Passage(DOCUMENT, 1, text)))) == 1


@pytest.mark.parametrize(
    "text",
    [
        "There is no cost.",
        "The level is not an integer.",
        "The task is no longer there.",
        "A limit for it, for every run, and for what follows.",
        "The delay is over 3 seconds.",
        "- the operation has stages;",
        "So many that memory is short.",
        "What does it cost?",
        "A test that one can read.",
    ],
)
def test_it_leaves_alone(text: str) -> None:
    assert list(faults_of(Passage(DOCUMENT, 1, text))) == []


def lines_of(path: Path) -> list[int]:
    return sorted(line for each in prose_of(path) for line, _, _ in faults_of(each))


def test_markdown(tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text(
        "# It runs; it ends\n\nA `a; b` is\nno code.\n\n```python\na; b\n```\n\n"
        "| one | two; three |\n|---|---|\n| it is over | `is over` |\n",
        encoding="utf-8",
    )
    assert lines_of(page) == [1, 3, 10, 12]


def test_python(tmp_path: Path) -> None:
    module = tmp_path / "module.py"
    module.write_text(
        '"""It runs; it ends.\n\n    >>> a; b\n    c; d\n\nIt is\nover.\n"""\n\n'
        "# It is\n# over, says the comment.\nx = 1  # one; two\n"
        'message = f"{x!r} is no integer"\nother = "is no" + " a; b "\n',
        encoding="utf-8",
    )
    assert lines_of(module) == [1, 6, 10, 12, 13]


def test_it_says_what_to_write(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.md"
    page.write_text("The level is no integer.\n", encoding="utf-8")
    assert main([str(page)]) == 1
    assert capsys.readouterr().out == f"{page.as_posix()}:1: 'is no': write \"is not a\"\n"
    page.write_text("The level is not an integer.\n", encoding="utf-8")
    assert main([str(page)]) == 0
    assert capsys.readouterr().out == ""


def test_it_reads_every_page() -> None:
    checked = {path.relative_to(ROOT).as_posix() for path in checked_files()}
    assert {"README.md", "docs/index.md", "sdax/_core_py.py", "sdax/engine/run.py"} <= checked


def test_the_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.prose", "README.md"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert (done.stdout, done.stderr, done.returncode) == ("", "", 0)
