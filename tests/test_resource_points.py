"""Small workflows with resources, disturbed at every point, on both engines at once."""

from __future__ import annotations

from types import ModuleType

from resource_points import search


def test_two_tasks(both_engines: list[ModuleType]) -> None:
    tried, wrong = search(both_engines, most=2)
    assert wrong == []
    assert sum(tried.values()) > 2000
