"""A check of the project's English, by the guide in CONTRIBUTING.md ("Writing").

    python -m tests.prose [FILE ...]

It reads the prose of Markdown files, and the docstrings, comments and messages of Python files. It
prints each phrase that the guide does not allow, with its place and what to write instead. It exits
with 1 if it finds any. It skips code: blocks, and everything between backticks.
"""

from __future__ import annotations

import ast
import io
import re
import sys
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
CHECKED = (
    "README.md",
    "CONTRIBUTING.md",
    "CHANGES.md",
    "SECURITY.md",
    "docs/*.md",
    "news/*.md",
    "_sdax_pytest.py",
    "sdax/**/*.py",
    "benchmarks/*.py",
    "examples/**/*.py",
)

DOCUMENT, DOCSTRING, COMMENT, MESSAGE = "document", "docstring", "comment", "message"
SENTENCES = (DOCUMENT, DOCSTRING, COMMENT)
EVERYWHERE = (*SENTENCES, MESSAGE)


@dataclass(frozen=True)
class Passage:
    """A piece of prose without its code, and where it begins."""

    kind: str
    line: int
    text: str


@dataclass(frozen=True)
class Rule:
    """A pattern that the guide does not allow, where it applies, and what to write instead."""

    pattern: re.Pattern[str]
    advice: str
    kinds: tuple[str, ...] = EVERYWHERE


def rule(pattern: str, advice: str, kinds: tuple[str, ...] = EVERYWHERE) -> Rule:
    """Return a rule. A space in its pattern is any white space, a line break too."""
    return Rule(re.compile(pattern.replace(" ", r"\s+")), advice, kinds)


RULES = (
    rule(r"(?<![Tt]here)(?<!THERE) (?:is|are|was|were) no (?!longer\b)", 'write "is not a"'),
    rule(r"\b[Ss]o (?:many|much)\b(?! that)", 'write "a number of", or give the number'),
    rule(r"\b[Aa]s (?:many|much|often|long) as (?:one|you) likes?\b", 'write "any number of"'),
    rule(r"\b(?:comes?|came|coming) to (?:its|their|an) end\b", 'write "ends" or "fails"'),
    rule(r"\b(?:is|are|was|were|be|been) over\b(?! (?:the|an?|\d))", 'write "has finished"'),
    rule(r"\b(?:is|are|was|were|be) gone\b", 'write "was removed", or say what happened'),
    rule(
        r"[,;:] for (?:it|they|he|she|we|there|nobody|nothing|what|whatever)\b(?! to\b)",
        'write "because"',
    ),
    rule(r"\b(?:is|are|was|were) to be\b", 'write "must be", "will be" or "should be"'),
    rule(r"\b[Oo]nes? (?:that|which|whose)\b", "name the thing"),
    rule(r"\b[Ww]hat (?:is|are|was|were|has|have|had) (?:no|not|never)\b", "name the thing"),
    rule(
        r"(?:\A|(?<=[.!?:]))[ ]*(?:What|Whatever|Whoever|How many|How much) [^.?!]{15,}?"
        r"\.(?= |\Z)",
        "start with the subject: a clause is not a subject",
        (DOCUMENT, DOCSTRING, COMMENT),
    ),
    rule(r";(?!\s*(?:\Z|\n\s*-\s))", "write two sentences", SENTENCES),
    rule(r"\b(?:[Tt]ell|[Tt]ells|told) whether\b", 'write "return True if"', SENTENCES),
    rule(r"\b(?:were one|had it been|had it taken|had they)\b", 'write "if"'),
    rule(r"\b(?:[Tt]he|[Tt]hat|[Tt]h[eo]se) very \w+\b", 'write "the same" or "the original"'),
    rule(r"\bearn(?:s|ed)?\b", 'write "is retried"'),
    rule(r"\b(?:is|are) paid\b", 'write "there is a cost", or "costs"'),
    rule(r"\b(?:anew|lest|whilst|in vain|hitherto|thereof|withal)\b", "use an everyday word"),
)


def prose_of(path: Path) -> Iterator[Passage]:
    """Return the passages of a file."""
    text = path.read_text(encoding="utf-8")
    return _of_markdown(text) if path.suffix == ".md" else _of_python(text)


def _of_markdown(text: str) -> Iterator[Passage]:
    for token in MarkdownIt().enable("table").parse(_without(r"<!--.*?-->", text)):
        if token.type == "inline":
            assert token.map is not None
            yield Passage(DOCUMENT, token.map[0] + 1, _without_code(token.content))


def _of_python(text: str) -> Iterator[Passage]:
    yield from _comments(text)
    tree = ast.parse(text)
    inside: set[int] = set()  # docstrings, and the parts of f-strings
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            inside.add(id(node.value))
            yield Passage(DOCSTRING, node.lineno, _without_code(_cut(str(node.value.value))))
        elif isinstance(node, ast.JoinedStr):
            inside.update(map(id, node.values))
            parts = [part.value if isinstance(part, ast.Constant) else "x" for part in node.values]
            yield Passage(MESSAGE, node.lineno, _without_code("".join(map(str, parts))))
        elif (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and id(node) not in inside
        ):
            yield Passage(MESSAGE, node.lineno, _without_code(node.value))


def _comments(text: str) -> Iterator[Passage]:
    before, block = -1, Passage(COMMENT, 0, "")
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        if token.type == tokenize.COMMENT:
            line, alone = token.start[0], token.line.lstrip().startswith("#")
            comment = token.string.lstrip("#:! ")
            if alone and line == before + 1:
                block = Passage(COMMENT, block.line, f"{block.text}\n{comment}")
            else:
                yield Passage(COMMENT, block.line, _without_code(block.text))
                block = Passage(COMMENT, line, comment)
            before = line if alone else -1
    yield Passage(COMMENT, block.line, _without_code(block.text))


def _cut(docstring: str) -> str:
    """Return a docstring without its examples: prompts, and blocks that are indented further."""
    margin = min(
        (len(line) - len(line.lstrip()) for line in docstring.splitlines()[1:] if line.strip()),
        default=0,
    )
    lines, example = [], False
    for line in docstring.split("\n"):
        example = bool(line.strip()) and (example or line.lstrip().startswith(">>> "))
        lines.append("" if example or line.startswith(" " * (margin + 4)) else line)
    return "\n".join(lines)


def _without_code(text: str) -> str:
    return _without(r"(`+)[^`]+\1|https?://\S+|&\w+;", text)


def _without(pattern: str, text: str) -> str:
    """Replace what is not prose, and keep the lines."""

    def blank(match: re.Match[str]) -> str:
        return re.sub(r"[^\n]", "x", match[0])

    return re.sub(pattern, blank, text, flags=re.DOTALL)


def faults_of(passage: Passage) -> Iterator[tuple[int, str, str]]:
    """Return line, phrase and advice for each place where a passage breaks a rule."""
    for each in RULES:
        if passage.kind in each.kinds:
            for match in each.pattern.finditer(passage.text):
                line = passage.line + passage.text.count("\n", 0, match.start())
                yield line, " ".join(match[0].split()), each.advice


def checked_files() -> list[Path]:
    """Return the files of the project that are checked."""
    return [path for pattern in CHECKED for path in sorted(ROOT.glob(pattern))]


def main(arguments: Sequence[str]) -> int:
    """Check these files, or all, and return the exit status."""
    faults = 0
    for path in [Path(name) for name in arguments] or checked_files():
        shown = path.relative_to(ROOT) if path.is_relative_to(ROOT) else path
        found = {fault for passage in prose_of(path) for fault in faults_of(passage)}
        for line, phrase, advice in sorted(found):
            print(f"{shown.as_posix()}:{line}: {phrase[:60]!r}: {advice}")
        faults += len(found)
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
