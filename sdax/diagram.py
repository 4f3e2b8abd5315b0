"""Pictures of processors: outlines in plain text, and diagrams for Mermaid."""

from __future__ import annotations

import re
from collections.abc import Collection, Hashable, Mapping
from typing import Any, Final, TypeAlias

from .common.order import PHASES
from .common.text import counted, digits, in_columns, one_line
from .options import Options
from .tasks import AsyncTask, TaskFunction

Tasks: TypeAlias = Collection[AsyncTask[Any, Any]]
Levels: TypeAlias = Mapping[int, Tasks]
Dependencies: TypeAlias = Mapping[Any, Collection[Hashable]]

ORDERS: Final = {
    "at once": "execute all at once",
    "level": "execute level by level",
    "dependency": "execute in dependency order",
}

NOT_REQUIRED: Final = "not required"
KEEPS_GOING: Final = "keeps going after a failure"

# Even inside quotes, Mermaid interprets quotes, backticks, tags, entities, directives, styles and
# Markdown. So only characters that are harmless everywhere stay unchanged.
_HARMFUL = re.compile(r"[^\w ,()']|(?<![^\W_])_|_(?![^\W_])|^ |(?<= ) ")


def outline_of_levels(levels: Levels, options: Options) -> str:
    """Describe tasks in levels: a line for each level and each task."""
    all_tasks = _all_of(levels)
    counts = f"{counted(len(levels), 'level')}, {counted(len(all_tasks), 'task')}"
    lines = [_head(counts, all_tasks, options)]
    for level, tasks in levels.items():
        lines.append(f"level {digits(level)}")
        lines += in_columns((one_line(task.name), _phases(task)) for task in tasks)
    return "\n".join(lines)


def outline_of_graph(tasks: Tasks, dependencies: Dependencies, options: Options) -> str:
    """Describe tasks in a graph: a line for each task, with its dependencies."""
    edges = sum(len(set(names)) for names in dependencies.values())
    counts = f"{counted(len(tasks), 'task')}, {counted(edges, 'dependency', 'dependencies')}"
    rows: list[tuple[str, ...]] = []
    for task in tasks:
        row: tuple[str, ...] = (one_line(task.name), _phases(task))
        if required := dict.fromkeys(dependencies[task.name]):
            row += ("depends on " + ", ".join(map(one_line, required)),)
        rows.append(row)
    return "\n".join([_head(counts, tasks, options), *in_columns(rows)])


def levels_to_mermaid(levels: Levels, options: Options) -> str:
    """Draw tasks in levels: a subgraph for each level, and an arrow from each to the next."""
    lines = _flowchart(_all_of(levels), options)
    number = 0
    for position, (level, tasks) in enumerate(levels.items()):
        lines.append(f'    subgraph level{position}["level {digits(level)}"]')
        for task in tasks:
            lines.append(f"        {_node(number, task)}")
            number += 1
        lines.append("    end")
    for position in range(1, len(levels)):
        lines.append(f"    level{position - 1} --> level{position}")
    return "\n".join(lines) + "\n"


def graph_to_mermaid(tasks: Tasks, dependencies: Dependencies, options: Options) -> str:
    """Draw tasks in a graph: an arrow from each task to those that depend on it."""
    numbers = {task.name: number for number, task in enumerate(tasks)}
    lines = _flowchart(tasks, options)
    lines += (f"    {_node(number, task)}" for number, task in enumerate(tasks))
    for name, number in numbers.items():
        for required in dict.fromkeys(dependencies[name]):
            lines.append(f"    t{numbers[required]} --> t{number}")
    return "\n".join(lines) + "\n"


def order_of_execute(tasks: Tasks, order: str) -> str:
    """Say in which order `execute` runs, or nothing if fewer than two tasks have it.

    Levels and arrows show the order of `pre_execute` only.
    """
    if sum(task.execute is not None for task in tasks) < 2:
        return ""
    return ORDERS[order]


def _all_of(levels: Levels) -> Tasks:
    return [task for tasks in levels.values() for task in tasks]


def _flowchart(tasks: Tasks, options: Options) -> list[str]:
    title = ", ".join(_manners(tasks, options))
    return [*(["---", f"title: {title}", "---"] if title else []), "flowchart TD"]


def _node(number: int, task: AsyncTask[Any, Any]) -> str:
    label = f"{escaped(one_line(task.name))}<br>{escaped(_phases(task))}"
    return f't{number}["{label}"]'


def escaped(text: str) -> str:
    """Return a text so that Mermaid shows it unchanged."""
    return _HARMFUL.sub(lambda match: f"#{ord(match[0])};", text)


def _phases(task: AsyncTask[Any, Any]) -> str:
    functions = {phase: getattr(task, phase) for phase in PHASES}
    shown = (
        phase + described_limits(function) for phase, function in functions.items() if function
    )
    described = ", ".join(shown) or "(no phase)"
    return described if task.required else f"{described}, {NOT_REQUIRED}"


def described_limits(function: TaskFunction[Any]) -> str:
    """Return a function's limits, in parentheses, or nothing if it has none."""
    limits: list[str] = []
    if function.timeout is not None:
        limits.append(f"timeout {function.timeout:.15g} s")
    if function.retries:
        limits.append(counted(function.retries, "retry", "retries"))
    if function.retry_after is not None and function.retries:
        limits.append("retry after")
    if function.total_timeout is not None:
        limits.append(f"{function.total_timeout:.15g} s in all")
    if function.limiter is not None:
        limits.append("limiter")
    if function.retry_budget is not None and function.retries:
        limits.append("retry budget")
    if function.fallback is not None:
        limits.append("fallback")
    return f" ({', '.join(limits)})" if limits else ""


def _head(counts: str, tasks: Tasks, options: Options) -> str:
    limit, seconds = options.max_concurrency, options.cleanup_timeout
    concurrency = () if limit is None else (f"at most {digits(limit)} at a time",)
    cleanup = () if seconds is None else (f"cleanup within {seconds:.15g} s",)
    return ", ".join([counts, *_manners(tasks, options), *concurrency, *cleanup])


def _manners(tasks: Tasks, options: Options) -> list[str]:
    """Return a description of how tasks run, if their places do not show it."""
    order = order_of_execute(tasks, options.execute_order)
    return [*([order] if order else []), *([KEEPS_GOING] if options.keeps_going else [])]
