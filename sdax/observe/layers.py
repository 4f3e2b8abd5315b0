"""The level of each task, or its layer in a graph."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

from ..events import TaskInfo


def layers_of(tasks: Sequence[TaskInfo]) -> dict[Hashable, int]:
    """Return the level of each task by its name, or its layer in a graph.

    A layer is one more than the highest layer of the task's dependencies.
    """
    layers: dict[Hashable, int] = {}
    depends_on = {task.name: task.depends_on or () for task in tasks}
    for task in tasks:
        if task.level is not None:
            layers[task.name] = task.level
            continue
        stack = [task.name]
        while stack:
            missing = [name for name in depends_on[stack[-1]] if name not in layers]
            if missing:
                stack += missing
            else:
                name = stack.pop()
                layers[name] = 1 + max((layers[each] for each in depends_on[name]), default=0)
    return layers
