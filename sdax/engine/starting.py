"""The start of functions in an `asyncio.Task` that a task factory of the loop makes."""

from __future__ import annotations

from typing import Any

from ..common.order import POST
from .work import KIND, RESOURCE, TASK_NAME


def start_by_factory(run: Any) -> None:
    """Let the loop's task factory make an `asyncio.Task` for each function."""
    while (index := run.take_next()) >= 0:
        work = run.plan.phases[run.number].work[index]
        if work[KIND] is RESOURCE and run.number == POST:
            try:
                run.clean_up(index, run.is_lazy)
            except BaseException as error:  # it was not even called
                run.break_down(error)
                run.put_back(index)
            continue
        name = work[TASK_NAME]  # the phase may have ended when the task is made
        driver: Any = None
        task: Any = None
        failure = None
        try:
            driver = run.lone_driver(index)
            context = run.context if run.contexts is None else run.contexts.of(run.number, index)
            task = context.copy().run(run.loop.create_task, driver)
            if not driver.begun:
                run.is_lazy = True
                driver.task = task
                run.link(driver)
            task.add_done_callback(driver.task_ended)
            task.set_name(name)
        except BaseException as exception:
            failure = exception
        if failure is not None:
            if driver is None:
                run.break_down(failure)
                run.put_back(index)
            elif task is not None:
                run.break_down(failure)
                if not driver.begun:
                    driver.task = task
                    run.link(driver)  # it may be there already
                task.add_done_callback(driver.task_ended)  # which hears of one end alone
            elif driver.begun:
                run.break_down(failure)
            else:
                driver.never_called(failure)
