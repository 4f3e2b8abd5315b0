"""The README and the pages in `docs/`: every example is run, and what it prints is compared.

A block of Python is a whole program. Words after `python` in its first line say otherwise:

- `continued`: it goes on where the block of Python before it ended;
- `typed`: type checkers accept it in their strict mode, with what it continues (`test_typing.py`);
- `mistake`: it shows a mistake that `sdax.testing.explore` finds (`test_explored_examples.py`);
- `threads`: it uses threads or files, and so real time; all others have a clock that jumps;
- `exits=143`: it runs in a process of its own, which ends with this status; so may a block of `sh`;
- `unix`: it runs on Linux and macOS, and not on Windows; so may a block of `sh`;
- `server FILE`: it is a part of a server, of this name, that `test_web_chapter.py` runs.

What it prints is in the next block, of `text`, after a paragraph that ends in "prints"; so is what
a block of `sh` prints. Without such a paragraph a block of Python prints nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token

import sdax
import sdax.asgi
import sdax.clients
import sdax.many
import sdax.observe
import sdax.testing
from sdax.testing import VirtualClockLoop

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]


@dataclass(frozen=True)
class Block:
    """A fenced block of a page, and what the page says that it prints."""

    page: Path
    line: int
    words: tuple[str, ...]
    text: str
    prints: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT).as_posix()}:{self.line}"

    @property
    def status(self) -> int | None:
        """The exit status of its process, if the page says one."""
        said = [word.removeprefix("exits=") for word in self.words if word.startswith("exits=")]
        return int(said[0]) if said else None

    def compiled(self) -> Any:
        # Empty lines before it, so that a traceback shows the line of the page.
        return compile("\n" * self.line + self.text, str(self.page), "exec")


def blocks_of(page: Path) -> list[Block]:
    tokens = MarkdownIt().parse(page.read_text(encoding="utf-8"))
    found = []
    for position, token in enumerate(tokens):
        if token.type == "fence":
            assert token.map is not None
            prints = _printed(tokens[position + 1 :])
            line, words = token.map[0] + 1, tuple(token.info.split())
            found.append(Block(page, line, words, token.content, prints))
    return found


def _printed(following: list[Token]) -> str | None:
    said = [token for token in following if token.type in ("inline", "fence")][:2]
    if [token.type for token in said] != ["inline", "fence"]:
        return None
    paragraph, output = said
    if not re.search(r"\bprints$", paragraph.content):
        return None
    assert output.info == "text"
    return output.content


BLOCKS = [block for page in PAGES for block in blocks_of(page)]
PROGRAMS = [
    block for block in BLOCKS if block.words[:1] == ("python",) and block.words[1:2] != ("server",)
]
PYTHON = [block for block in PROGRAMS if block.status is None]
SCRIPTS = [block for block in PROGRAMS if block.status is not None]
COMMANDS = [block for block in BLOCKS if block.words[:1] == ("sh",) and block.prints is not None]


def chain_of(block: Block) -> list[Block]:
    """The block, after all those which it continues."""
    before = PYTHON[: PYTHON.index(block)]
    chain = [block]
    while "continued" in chain[0].words:
        chain.insert(0, before.pop())
        assert chain[0].page == block.page, "nothing to continue"
    return chain


def chains() -> list[list[Block]]:
    """All blocks, each after those which it continues."""
    found: list[list[Block]] = []
    for block in PYTHON:
        if chain_of(block)[1:]:
            found[-1].append(block)
        else:
            found.append([block])
    return found


@pytest.mark.parametrize("chain", chains(), ids=lambda chain: str(chain[0]))
def test_examples_in_python(engine: Any, monkeypatch: Any, chain: list[Block]) -> None:
    monkeypatch.chdir(ROOT)
    names: dict[str, Any] = {"__name__": "__main__"}
    real_time = False
    for block in chain:
        assert set(block.words) <= {"python", "continued", "mistake", "threads", "typed"}
        real_time = real_time or "threads" in block.words
        printed = io.StringIO()
        with monkeypatch.context() as patched, contextlib.redirect_stdout(printed):
            if not real_time:
                patched.setattr(asyncio.events, "new_event_loop", VirtualClockLoop)
            exec(block.compiled(), names)
        assert printed.getvalue() == (block.prints or ""), f"{block} prints something else"


def in_processes(request: Any, block: Block, *commands: list[str]) -> None:
    """Run these with each engine, and compare what they print and how they end."""
    if "unix" in block.words and sys.platform == "win32":
        pytest.skip("not on Windows")
    chosen = request.config.getoption("engine")
    for switch in {"python": ["NO"], "compiled": ["REQUIRE"], "both": ["NO", "REQUIRE"]}[chosen]:
        environment = {**os.environ, f"SDAX_{switch}_EXTENSIONS": "1", "PYTHONPATH": str(ROOT)}
        printed, status = "", 0
        for arguments in commands:
            assert status == 0, "only the last one may fail"
            done = subprocess.run(
                [sys.executable, *arguments],
                cwd=ROOT,
                env=environment,
                capture_output=True,
                text=True,
                timeout=60,
                check=False,
            )
            printed, status = printed + done.stdout, done.returncode
        assert (printed, status) == (block.prints or "", block.status or 0), done.stderr


@pytest.mark.parametrize("block", COMMANDS, ids=str)
def test_examples_in_the_shell(request: Any, block: Block) -> None:
    commands = [shlex.split(line) for line in block.text.splitlines()]
    assert {Path(command).name for command, *_ in commands} == {"python"}, "only Python is run here"
    in_processes(request, block, *(arguments for _, *arguments in commands))


@pytest.mark.parametrize("block", SCRIPTS, ids=str)
def test_scripts(request: Any, tmp_path: Path, block: Block) -> None:
    script = tmp_path / "script.py"
    script.write_text(block.text, encoding="utf-8")
    in_processes(request, block, [str(script)])


@pytest.mark.parametrize("name", ["quickstart.py", "by_hand.py"])
def test_the_readme_shows_the_first_examples(name: str) -> None:
    example = (ROOT / "examples" / name).read_text(encoding="utf-8")
    example = re.sub(r"\n{3,}", "\n\n", example)  # README saves the lines
    shown = [block.text for block in PYTHON if block.page.name == "README.md"]
    assert [text for text in shown if example.endswith(f"\n{text}")] != []


INSTALLS_BY_NAME = re.compile(
    r"""\b(?:pip3?|pipx|poetry|uv)\s+(?:install|add|pip\s+install)\b[^`\n]*[\s"']sdax\b(?!\S*\.whl)"""
)


def test_nothing_tells_people_to_install_another_sdax() -> None:
    # The sdax on PyPI is a different package.
    assert INSTALLS_BY_NAME.search('pip install "sdax[rich]"')
    assert INSTALLS_BY_NAME.search("uv pip install --no-binary sdax --reinstall sdax")
    assert not INSTALLS_BY_NAME.search("pip install dist/sdax-1.0.0-py3-none-any.whl")
    sources = [*PAGES, *ROOT.glob("*.md"), *ROOT.glob("*/*.md")]
    sources += [*ROOT.glob("sdax/**/*.py"), *ROOT.glob("examples/**/*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {match[0]}"
        for path in sources
        for match in INSTALLS_BY_NAME.finditer(path.read_text(encoding="utf-8"))
    }
    assert found == set()


def test_there_are_examples() -> None:
    assert {block.page for block in PYTHON} >= {ROOT / "README.md"}
    assert len(PYTHON) > 30
    assert COMMANDS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_examples_name_the_type_of_their_context(page: Path) -> None:
    # A builder without it accepts every context, and so a wrong one.
    for block in PYTHON:
        if block.page == page:
            assert not re.search(r"Processor\.\w*builder\(", block.text), block


def test_the_tests_of_guarantees_exist() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(\w+\.py)`", page))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / "tests" / name).is_file()] == []
    assert set(re.findall(r"\[`(\w+\.py)`\]\(\.\./tests/\1\)", page)) == named
    functions: set[str] = set()
    for file in (ROOT / "tests").glob("test_*.py"):
        text = file.read_text(encoding="utf-8")
        functions.update(re.findall(r"^(?:async )?def (test_\w+)", text, re.MULTILINE))
    tests = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page))
    assert len(tests) > 100
    assert sorted(tests - functions) == []


@pytest.mark.parametrize(
    "module",
    [sdax, sdax.asgi, sdax.clients, sdax.many, sdax.observe, sdax.testing],
    ids=lambda module: module.__name__,
)
def test_every_public_name_is_in_the_reference(module: ModuleType) -> None:
    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
    directive = rf"^\.\. (?:auto|py:)\w+:: {re.escape(module.__name__)}\.(\w+)$"
    documented = re.findall(directive, page, re.MULTILINE)
    assert sorted(documented) == sorted(module.__all__), "docs/api.md and __all__ differ"


def test_each_test_of_guarantees_is_a_link_to_its_file() -> None:
    page = (ROOT / "docs" / "guarantees.md").read_text(encoding="utf-8")
    tests = re.findall(r"\[`(?:\w+\.py::)?(test_\w+)`\]\(\.\./tests/(\w+\.py)\)", page)
    assert len(tests) > 100
    for test, name in tests:
        source = (ROOT / "tests" / name).read_text(encoding="utf-8")
        assert re.search(rf"^(?:async )?def {test}\(", source, re.MULTILINE), test
    assert len(re.findall(r"test_\w+`", page)) == len(tests)
