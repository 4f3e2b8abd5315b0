"""Workflows at random.

In a *settled* workflow no race is decided by how often the event loop passes at one moment: times
are unlike each other, and a function that has suspended sleeps before it fails. So the contract
says all there is to say about its outcome.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from random import Random
from typing import Protocol, TypeVar

from workflows import (
    IN_ANOTHER_TASK,
    PHASES,
    SHARED,
    WILLING,
    Arrangement,
    Behaviour,
    CancelCaller,
    CancelOther,
    CancelSelf,
    Disturbance,
    Ending,
    Error,
    Factory,
    Instant,
    Meddle,
    Node,
    Raise,
    RaiseAgain,
    Retryable,
    Return,
    Scope,
    Script,
    Set,
    SetVariable,
    Shape,
    Sleep,
    Step,
    Stubborn,
    Wait,
    Watcher,
    Within,
    Workflow,
    Yield,
    YieldAgain,
)

T = TypeVar("T")

_UNFIT_FOR_TASKS = (
    Error.KEYBOARD_INTERRUPT,
    Error.INTERRUPT_SUBCLASS,
    Error.SYSTEM_EXIT,
    Error.GENERATOR_EXIT,
)


class Chooser(Protocol):
    """Where choices come from: a `random.Random` is one."""

    def randint(self, a: int, b: int, /) -> int: ...

    def choice(self, seq: Sequence[T], /) -> T: ...


def random_workflow(choose: Chooser, *, settled: bool) -> Workflow:
    """Make a workflow out of choices."""
    return _Author(choose, settled).workflow()


class _Author:
    def __init__(self, choose: Chooser, settled: bool) -> None:
        self.choose = choose
        self.settled = settled
        self.times = 0
        # A timeout of 0 races with all that happens before the first sleep, so that there is
        # nothing of that kind in a settled workflow that has one.
        self.zero_timeouts = self.one_in(6)
        arrangements = (Arrangement.LEVELS, *Arrangement)
        self.arrangement = self.choose.choice(arrangements)
        self.is_graph = self.arrangement in (Arrangement.GRAPH, Arrangement.GRAPH_IN_ORDER)
        self.passes = not (settled and self.zero_timeouts)
        if settled and self.is_graph:
            # What ends calls what waits for it at once, so that whatever is decided by passes,
            # wherever it happens, is a race with what is called at the same moment.
            self.passes = self.zero_timeouts = False
        # The one attempt in so many that fails.
        self.temper = self.choose.choice((2, 4, 12))
        self.names: tuple[str, ...] = ()

    def one_in(self, number: int) -> bool:
        return self.choose.randint(1, number) == number

    def seconds(self) -> float:
        """A time that no other time, nor a sum of others, is likely to equal.

        It has few enough bits for sums of some dozens of them to be exact.
        """
        whole = self.choose.choice((1, 1, 2, 3, 4, 6))
        if not self.settled:
            return float(whole)
        self.times += 1
        return whole + Random(self.times).getrandbits(29) / 2**30

    def workflow(self) -> Workflow:
        if not self.is_graph:
            levels = (0,) if self.one_in(4) else (-3, 0, 7)
            self.names = tuple(f"T{number}" for number in range(self.choose.randint(1, 5)))
            nodes = tuple(self.node(name, self.choose.choice(levels)) for name in self.names)
        else:
            nodes = self.graph()
        # The model makes no tasks, so that none is refused in a settled workflow.
        factories = (Factory.NONE, *(WILLING if self.settled else Factory))
        factory = self.choose.choice(factories) if self.one_in(3) else Factory.NONE
        disturbance, debug = self.disturbance(), self.one_in(30)
        places = self.choose.randint(1, 3) if not self.settled and self.one_in(4) else None
        watcher = self.choose.choice(tuple(Watcher)) if self.one_in(3) else Watcher.NONE
        budget = self.choose.randint(0, 2)
        return Workflow(
            nodes,
            disturbance,
            factory,
            debug,
            self.arrangement,
            watcher,
            places,
            keeps_going=self.one_in(3),
            budget=budget,
        )

    def graph(self) -> tuple[Node, ...]:
        self.names = tuple(f"T{number}" for number in range(self.choose.randint(1, 7)))
        # Each may depend on whatever comes before it here, added earlier or later.
        order: list[str] = []
        for name in self.names:
            order.insert(self.choose.randint(0, len(order)) if self.one_in(3) else len(order), name)
        density = self.choose.choice((2, 3))
        nodes = []
        for name in self.names:
            earlier = order[: order.index(name)]
            depends_on = tuple(other for other in earlier if self.one_in(density))
            # Some do nothing in most phases, or in all of them.
            node = Node(name, 0) if self.one_in(6) else self.node(name, 0)
            nodes.append(replace(node, depends_on=depends_on))
        return tuple(nodes)

    def node(self, name: str, level: int) -> Node:
        # What a resource hears of failures would be such a race as well.
        if self.one_in(4) and not (self.settled and self.zero_timeouts):
            return self.resource(name, level)
        phases = {phase: self.behaviour(phase) for phase in PHASES if not self.one_in(3)}
        if not phases:
            phases["execute"] = self.behaviour("execute")
        return Node(name, level, **phases, required=not self.one_in(5))

    def resource(self, name: str, level: int) -> Node:
        set_up = self.behaviour("pre_execute")
        if self.settled:
            set_up = replace(set_up, scripts=tuple(map(self.felt, set_up.scripts)))
        set_up = replace(set_up, shape=Shape.ASYNC_DEF, limiter=None, fallback=None, covers=None)
        script = self.script(Shape.ASYNC_DEF)
        if isinstance(script.ending, Return):
            endings = (Return(), RaiseAgain(), *(YieldAgain() for _ in range(self.one_in(4))))
            script = replace(script, ending=self.choose.choice(endings))
            if self.settled:
                steps = self.settle(script.steps, script.ending, at_once=True)
                script = replace(script, steps=steps)
        script = self.without_value(script)
        clean_up = Behaviour((script,), timeout=self.timeout())
        execute = None if self.one_in(2) else self.behaviour("execute")
        required = not self.one_in(5)
        return Node(name, level, set_up, execute, clean_up, required=required, is_resource=True)

    def felt(self, script: Script) -> Script:
        """Have a function suspend after it has cancelled itself, as a TaskGroup that fails does
        with a cancellation that it has met: held, it would break at once."""
        steps = script.steps
        if CancelSelf() in steps[-1:] or "FAILED_GROUP" in repr(steps):
            steps = (*steps, Sleep(self.seconds()))
        on_cancel = script.on_cancel and self.felt(script.on_cancel)
        return replace(script, steps=steps, on_cancel=on_cancel)

    def without_value(self, script: Script) -> Script:
        """Have a function return nothing, as the second half of a resource does."""
        ending = Return() if isinstance(script.ending, Return) else script.ending
        on_cancel = script.on_cancel and self.without_value(script.on_cancel)
        return replace(script, ending=ending, on_cancel=on_cancel)

    def disturbance(self) -> Disturbance:
        kind = self.choose.randint(0, 9)
        if kind == 6:
            return Disturbance(move_on=self.seconds())
        if kind == 7:
            return Disturbance(timeout=self.seconds())
        if kind == 8:
            return Disturbance(cancel_at=(self.seconds(),))
        if kind == 9 and (self.settled or self.one_in(3)):
            first = self.seconds()
            return Disturbance(cancel_at=(first, first + self.seconds()))
        if kind == 9:
            first = self.choose.randint(0, 20)
            if self.one_in(2):
                return Disturbance(cancel_at_pass=(first,))
            return Disturbance(cancel_at_pass=(first, first + self.choose.randint(0, 5)))
        return Disturbance()

    def behaviour(self, phase: str) -> Behaviour:
        if self.one_in(3):
            # Most functions of most programs: nothing special.
            steps = self.steps(self.choose.randint(0, 1))
            if self.settled:
                steps = self.settle(steps, Return(), at_once=True)
            return Behaviour((Script(steps),))
        shapes = [Shape.ASYNC_DEF, Shape.AWAITABLE]
        if self.passes:
            shapes += Shape.TASK, Shape.GROUP
        shape = self.choose.choice(shapes) if self.one_in(2) else Shape.ASYNC_DEF
        if self.fails() and self.one_in(4):
            shape = Shape.PLAIN
        retries = self.choose.choice((0, 0, 0, 1, 2))
        behaviour = Behaviour(
            tuple(self.script(shape) for _ in range(self.choose.randint(1, retries + 1))),
            shape,
            timeout=self.timeout(),
            retries=retries,
        )
        if retries:
            behaviour = replace(
                behaviour,
                initial_delay=self.seconds() if self.settled or self.one_in(2) else 0,
                backoff_factor=self.choose.choice((2.0, 1, 0.5)),
                max_delay=self.seconds() if self.one_in(4) else None,
                retryable=self.choose.choice(tuple(Retryable)),
            )
        return self.limited(behaviour, phase) if self.one_in(2) else behaviour

    def limited(self, behaviour: Behaviour, phase: str) -> Behaviour:
        """Add limits over all attempts."""
        retries = behaviour.retries
        if retries and self.one_in(3):
            asks = tuple(self.asked() for _ in range(self.choose.randint(1, retries)))
            behaviour = replace(behaviour, asks=asks)
        total = None
        if self.one_in(3):
            zero = self.zero_timeouts and not retries and self.one_in(4)
            total = 0 if zero else self.seconds() * self.choose.choice((1, 2, 4))
        limiter = None
        if self.one_in(3) and behaviour.timeout != 0 and total != 0:
            limiter = self.seconds()
            if not self.settled:
                limiter = self.choose.choice((SHARED, SHARED, 0.0, limiter))
        if limiter is not None and phase == "post_execute" and behaviour.shape in IN_ANOTHER_TASK:
            total = None  # cut off at its first wait, its asyncio.Task may have begun or not
        behaviour = replace(
            behaviour, total_timeout=total, limiter=limiter, budgeted=self.one_in(4)
        )
        if phase == "post_execute" or not self.one_in(2):
            return behaviour
        plain = self.one_in(3)
        fallback = self.script(Shape.PLAIN if plain else Shape.ASYNC_DEF)
        covers = self.choose.choice((None, *Retryable))
        return replace(behaviour, fallback=fallback, plain_fallback=plain, covers=covers)

    def asked(self) -> float | None:
        """What a service asks for after an attempt."""
        if self.one_in(8):
            return -1.0
        return self.choose.choice((None, self.seconds()))

    def timeout(self) -> float | None:
        if self.zero_timeouts and self.one_in(4):
            return 0
        return self.seconds() if self.one_in(self.temper) else None

    def script(self, shape: Shape) -> Script:
        if shape is Shape.PLAIN:
            instants = tuple(self.instant() for _ in range(self.choose.randint(0, 1)))
            return Script(instants, self.ending(shape))
        ending = self.ending(shape)
        steps = self.steps(self.choose.randint(0, 3))
        # A group of asyncio's does not survive such a future.
        if not self.settled and shape in (Shape.ASYNC_DEF, Shape.AWAITABLE) and self.one_in(40):
            steps += (Stubborn(self.seconds()),)
        if self.settled:
            at_once = shape not in (Shape.GROUP, Shape.TASK)
            steps = self.settle(steps, ending, at_once=at_once)
        return Script(steps, ending, self.on_cancel(shape, depth=1))

    def on_cancel(self, shape: Shape, depth: int) -> Script | None:
        if not self.one_in(3):
            return None
        ending = self.ending(shape)
        steps = self.steps(self.choose.randint(0, 2))
        if self.settled:
            steps = self.settle(steps, ending, at_once=True)
        return Script(steps, ending, self.on_cancel(shape, depth + 1) if depth < 3 else None)

    def steps(self, number: int) -> tuple[Step, ...]:
        return tuple(self.step() for _ in range(number))

    def step(self) -> Step:
        if self.one_in(8) and self.passes:
            return Within(self.choose.choice(tuple(Scope)), self.seconds())
        kind = self.choose.randint(0, 7)
        if kind < 3 and self.passes:
            return Yield(self.choose.randint(1, 3))
        if kind == 3 and self.passes:
            return Wait(self.choose.randint(0, 1))
        if kind in (4, 5):
            return self.instant()
        if kind == 6 and self.one_in(2) and self.fails():
            cancels: tuple[Instant, ...] = (
                CancelSelf(),
                CancelOther(self.choose.choice(self.names)),
                CancelCaller(),
            )
            return self.choose.choice(cancels)
        return Sleep(self.seconds())

    def instant(self) -> Instant:
        if self.passes and self.one_in(2):
            return Set(self.choose.randint(0, 1))
        if self.one_in(8):
            return Meddle(by_await=self.one_in(2))
        return SetVariable(self.choose.randint(0, 9))

    def fails(self) -> bool:
        return self.one_in(self.temper)

    def ending(self, shape: Shape) -> Ending:
        if not self.fails():
            return Return(self.choose.choice((None, 1, 2)), finish=self.one_in(20))
        if not self.one_in(3):
            return Raise(self.choose.choice((Error.VALUE, Error.CONNECTION, Error.RETRYABLE)))
        errors = [
            error
            for error in Error
            # asyncio lets some through the event loop when they leave an asyncio.Task of its
            # own.
            if not (shape in (Shape.GROUP, Shape.TASK) and error in _UNFIT_FOR_TASKS)
        ]
        return Raise(self.choose.choice(errors))

    def settle(self, steps: tuple[Step, ...], ending: Ending, *, at_once: bool) -> tuple[Step, ...]:
        """Insert a sleep wherever a failure could come at the same moment as something else.

        `at_once`: it can fail before anything else can happen, if it does so before it
        suspends.
        """
        if CancelSelf() in steps and isinstance(ending, Return) and self.one_in(4):
            instant = (step for step in steps if isinstance(step, (Set, SetVariable, Meddle)))
            return (*instant, CancelSelf())  # never felt
        settled: list[Step] = []
        alone = at_once  # nothing else can happen before the function's next suspension
        slept = False
        for step in steps:
            if isinstance(step, (CancelSelf, CancelOther, CancelCaller)):
                if not (alone and slept):
                    settled.append(Sleep(self.seconds()))
                settled += [step, Sleep(self.seconds())]
                alone = slept = True
                continue
            settled.append(step)
            if isinstance(step, Sleep):
                alone = slept = True
            elif not isinstance(step, (SetVariable, Meddle)):
                alone = False
        stops = not isinstance(ending, Return) or ending.finish
        if stops and not alone:
            settled.append(Sleep(self.seconds()))
        elif steps and isinstance(steps[-1], CancelSelf) and self.one_in(2):
            settled.pop()  # never felt
        return tuple(settled)
