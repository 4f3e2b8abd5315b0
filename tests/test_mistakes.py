"""`docs/mistakes.md`: each mistake is found where the page says, and its mended twin has none."""

from __future__ import annotations

import re
from typing import Any, NamedTuple

from conftest import Implementation
from sdax.testing.explore import Explorer
from test_documentation import PYTHON, ROOT

PAGE = ROOT / "docs" / "mistakes.md"


class Found(NamedTuple):
    """What an exploration found: at which schedule, and how many it needed."""

    schedule: str
    number: int


def explored_programs() -> list[Found | None]:
    """Run the programs of the page, and explore what they explore."""
    found: list[Found | None] = []

    def tell(processor: Any, check: Any = None, context: Any = None) -> None:
        check, context = check or names["all_back"], context or names["Request"]
        explorer = Explorer(processor, context, check, {})
        findings = explorer.findings()
        first = next(findings, None)
        findings.close()
        found.append(first and Found(first.schedule or "undisturbed", explorer.schedules))

    names: dict[str, Any] = {"__name__": "__main__"}
    first, *blocks = (block for block in PYTHON if block.page == PAGE)
    exec(first.compiled(), names)
    names["tell"] = tell
    for block in blocks:
        exec(block.compiled(), names)
    return found


def test_each_mistake_is_found_and_its_mended_twin_has_none(engine: Implementation) -> None:
    text = PAGE.read_text(encoding="utf-8")
    titles = re.findall(r"^## (.*)", text, re.MULTILINE)
    found = explored_programs()
    assert len(found) == 2 * len(titles[:-1]) >= 20
    assert [each for each in found[1::2] if each is not None] == []
    rows = [
        f"| {title} | `{wrong.schedule}` | {wrong.number} |"
        for title, wrong in zip(titles, found[::2], strict=False)
        if wrong is not None
    ]
    assert rows == re.findall(r"^\| .* \| `.*` \| \d+ \|$", text, re.MULTILINE), "\n".join(rows)
