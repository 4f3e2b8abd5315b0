"""`sdax.testing.explore` on limits that call the user's code: limiters, fallbacks and questions."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest

from exploring import anything, found
from helpers import build, failure_of, nothing, task
from sdax import AsyncTask, resource, task_func, task_sync_func
from sdax.testing import disturbed, explore, run

pytestmark = pytest.mark.usefixtures("engine")

CANCEL = {"faults": ("cancel",)}
FAIL = {"faults": ("fail",)}


class Service:
    """A service that lets few requests in, and a cache of what it has said."""

    def __init__(self) -> None:
        self.waiting = 0
        self.inside = 0
        self.readers = 0
        self.paused = False

    async def pass_by(self) -> None:
        await asyncio.sleep(0.01)


@dataclass
class Request:
    service: Service = field(default_factory=Service)


def idle(run: Any) -> bool:
    """Return True if the service has forgotten the request."""
    run.error  # noqa: B018 (looked at: the run may fail)
    service = run.context.service
    return not (service.waiting or service.inside or service.readers or service.paused)


async def offers(ctx: Request) -> str:
    await asyncio.sleep(0.01)
    return "offers"


def limited(function: Any = offers, phase: str = "execute", **limits: Any) -> Any:
    limits = {"timeout": 1.0, "total_timeout": 5.0, **limits}
    return build([AsyncTask("Offers", **{phase: task_func(function, **limits)})])


def found_in(processor: Any, check: Any = idle, **options: Any) -> list[str]:
    findings = found(processor, check, context=Request, **options)
    return [finding.schedule for finding in findings]


def schedules_of(processor: Any, context: Any = Request, **options: Any) -> list[str]:
    """Return all schedules after which the check was called, those that follow others too."""
    tried: dict[str, None] = {}

    def check(run: Any) -> bool:
        run.error  # noqa: B018 (looked at: the run may fail)
        tried[run.schedule] = None
        return True

    found(processor, check, context=context, **options)
    return list(tried)


# ------------------------------------------------------------------------------------ limiters


@asynccontextmanager
async def careless_limiter(ctx: Request) -> AsyncIterator[None]:
    service = ctx.service
    service.waiting += 1
    await service.pass_by()
    service.waiting -= 1
    service.inside += 1
    try:
        yield
    finally:
        service.inside -= 1
        await service.pass_by()


@asynccontextmanager
async def careful_limiter(ctx: Request) -> AsyncIterator[None]:
    service = ctx.service
    service.waiting += 1
    try:
        await service.pass_by()
    finally:
        service.waiting -= 1
    service.inside += 1
    try:
        yield
    finally:
        service.inside -= 1
        await service.pass_by()


def test_what_is_lost_in_the_wait_for_a_limiter_is_found() -> None:
    assert found_in(limited(limiter=careless_limiter)) == [
        "Offers.execute.limiter.enter#1@1:cancel",
        "Offers.execute.limiter.enter#1@1:fail",
        "Offers.execute.limiter.enter#1@1:fail unexpectedly",
        "Offers.execute.limiter.enter#1@1+:cancel",
        "Offers.execute.limiter.enter#1@1:hang",
    ]
    assert found_in(limited(limiter=careful_limiter)) == []


def test_what_is_lost_in_the_exit_of_a_limiter_is_found() -> None:
    @asynccontextmanager
    async def leaves_late(ctx: Request) -> AsyncIterator[None]:
        ctx.service.inside += 1
        try:
            yield
        finally:
            await ctx.service.pass_by()
            ctx.service.inside -= 1

    exit = "Offers.execute.limiter.exit#1@1"
    assert f"{exit}:cancel" in found_in(limited(limiter=leaves_late), **CANCEL)
    assert found_in(limited(limiter=careful_limiter), **CANCEL) == []
    # An exit that never ends loses its place, and no author can prevent that.
    hanging = explore(limited(limiter=leaves_late), context=Request, check=idle, faults=("hang",))
    assert (hanging.schedules, hanging.findings) == (3, 0)
    failing = schedules_of(limited(limiter=leaves_late, retries=1), **FAIL)
    assert not any("limiter.exit" in each for each in failing)


def test_a_limiter_that_lets_nobody_in_must_be_bounded() -> None:
    processor = limited(limiter=careful_limiter, total_timeout=None)
    (finding,) = found(processor, idle, context=Request, faults=("hang",))
    assert finding.schedule == "Offers.execute.limiter.enter#1@1:hang"
    assert finding.problems[0] == (
        "nothing bounds Offers.execute.limiter.enter: give Offers.execute a total_timeout, or "
        "leave out the fault hang if its callers bound the run"
    )
    assert "limits.py" in finding.problems[1]
    assert "The 1st await of Offers.execute.limiter.enter never ended." in str(finding)


def test_each_attempt_enters_it() -> None:
    tried = schedules_of(limited(limiter=careful_limiter, retries=1), disturbances=2, **FAIL)
    assert "Offers.execute.limiter.enter#1@1:fail, Offers.execute.limiter.enter#2@1:fail" in tried


def test_a_limiter_of_asyncio_cannot_fail() -> None:
    @dataclass
    class Sharing:
        limit: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(1))

    one, other = (
        task(name, task_func(offers, timeout=1.0, limiter=lambda ctx: ctx.limit, total_timeout=9.0))
        for name in "AB"
    )
    tried = schedules_of(build([one, other]), context=Sharing)
    assert [each for each in tried if "limiter" in each] == [
        "B.pre_execute.limiter.enter#1@1:cancel",
        "B.pre_execute.limiter.enter#1@1+:cancel",
        "B.pre_execute.limiter.enter#1@1:hang",
        # The caller is cancelled again.
        "A.pre_execute#1@1:cancel, B.pre_execute.limiter.enter#1@1:cancel",
    ]


def test_the_limiter_of_a_cleanup() -> None:
    processor = limited(phase="post_execute", limiter=careless_limiter)
    # A cancellation does not reach a cleanup, and it has no retry.
    assert found_in(processor, faults=("cancel", "fail")) == []
    assert found_in(limited(phase="post_execute", limiter=careless_limiter, retries=1), **FAIL) == [
        "Offers.post_execute.limiter.enter#1@1:fail"
    ]
    mended = limited(phase="post_execute", limiter=careful_limiter, retries=1)
    assert found_in(mended, faults=("cancel", "fail", "hang", "cancel again")) == []


# ----------------------------------------------------------------------------------- fallbacks


async def careless_fallback(ctx: Request, exc: Exception) -> str:
    ctx.service.readers += 1
    await ctx.service.pass_by()
    ctx.service.readers -= 1
    return "cached"


async def careful_fallback(ctx: Request, exc: Exception) -> str:
    with reading(ctx.service):
        await ctx.service.pass_by()
    return "cached"


@contextmanager
def reading(service: Service) -> Iterator[None]:
    service.readers += 1
    try:
        yield
    finally:
        service.readers -= 1


def test_what_is_lost_in_a_fallback_is_found() -> None:
    first = "Offers.execute#1@call:fail, Offers.execute.fallback#1"
    assert found_in(limited(fallback=careless_fallback)) == [
        f"{first}@1:cancel",
        f"{first}@1:fail",
        f"{first}@1:hang",
        f"{first}@1+:cancel",
    ]
    assert found_in(limited(fallback=careful_fallback)) == []


def test_a_fallback_is_disturbed_after_the_first_failure_that_leads_to_it() -> None:
    fallbacks = [
        each for each in schedules_of(limited(fallback=careful_fallback)) if "fallb" in each
    ]
    first = "Offers.execute#1@call:fail, Offers.execute.fallback#1"
    assert fallbacks == [
        f"{first}@call:fail",
        f"{first}@1:cancel",
        f"{first}@1:fail",
        f"{first}@1:hang",
        f"{first}@1+:cancel",
        f"{first}@return:cancel",
        f"{first}@return:fail",
    ]


def test_a_fallback_that_never_ends_must_be_bounded() -> None:
    processor = limited(fallback=careful_fallback, timeout=None)
    (finding,) = found(processor, idle, context=Request, faults=("fail", "hang"))
    assert finding.schedule == "Offers.execute#1@call:fail, Offers.execute.fallback#1@1:hang"
    assert finding.problems[0].startswith(
        "nothing bounds Offers.execute.fallback: give Offers.execute a timeout"
    )


def test_a_fallback_that_the_undisturbed_run_comes_to() -> None:
    async def is_down(ctx: Request) -> None:
        raise ConnectionError("down")

    tried = schedules_of(limited(is_down, fallback=careful_fallback), **CANCEL)
    assert "Offers.execute.fallback#1@1:cancel" in tried


def test_plain_fallbacks() -> None:
    def from_memory(ctx: Request, exc: Exception) -> str:
        return "cached"

    def stops(ctx: Request, exc: Exception) -> str:
        raise StopIteration

    first = "Offers.execute#1@call:fail, Offers.execute.fallback#1"
    tried = schedules_of(limited(fallback=from_memory), **FAIL)
    assert [each for each in tried if "fallback" in each] == [
        f"{first}@call:fail",
        f"{first}@return:fail",
    ]
    report = run(
        disturbed(limited(fallback=from_memory), "Offers.execute#1@call:fail").process_tasks(
            Request()
        )
    )
    assert report["Offers"].execute.value == "cached"
    failing = disturbed(limited(fallback=stops), "Offers.execute#1@call:fail")
    (failure,) = run(failure_of(failing, Request())).exceptions
    assert type(failure) is StopIteration


def test_an_exception_out_of_a_fallback_is_not_lost() -> None:
    processor = limited(fallback=careful_fallback, retries=1)
    failing = disturbed(
        processor, "Offers.execute#1@1:fail always, Offers.execute.fallback#1@1:fail"
    )
    (failure,) = run(failure_of(failing, Request())).exceptions
    assert str(failure) == "injected at Offers.execute.fallback#1@1"
    assert str(failure.__context__) == "injected at Offers.execute#2@1"


# ----------------------------------------------------------------------------------- questions


def pausing(service: Service) -> Any:
    def paused(exc: Exception) -> float:
        service.paused = True
        return 0.5

    return paused


def of_one_service(post: Any) -> Any:
    """A workflow whose service is told to pause by each `retry_after`."""
    service = Service()

    async def work(ctx: Request) -> None:
        service.paused = False
        await asyncio.sleep(0.01)

    async def go_on(ctx: Request) -> None:
        service.paused = False

    limits = {"timeout": 1.0, "retries": 1, "retry_after": pausing(service)}
    after = go_on if post else nothing

    def new_request() -> Request:
        service.paused = False
        return Request(service)

    return build([task("Offers", None, task_func(work, **limits), after)]), new_request


def test_a_cancellation_after_retry_after_was_asked_is_tried() -> None:
    schedule = "Offers.execute#1@call:fail, Offers.execute.retry_after#1@return:cancel"
    processor, context = of_one_service(post=False)
    assert schedule in [each.schedule for each in found(processor, idle, context=context)]
    processor, context = of_one_service(post=True)
    assert found(processor, idle, context=context) == []


def test_each_question_is_disturbed() -> None:
    limits = {
        "retries": 1,
        "retryable_exceptions": lambda exc: isinstance(exc, ConnectionError),
        "retry_after": lambda exc: None,
        "fallback": careful_fallback,
        "fallback_exceptions": lambda exc: isinstance(exc, ConnectionError),
    }
    tried = schedules_of(limited(**limits), **FAIL)
    once = "Offers.execute#1@call:fail, Offers.execute"
    always = "Offers.execute#1@call:fail always, Offers.execute"
    for schedule in (
        f"{once}.retryable_exceptions#1@call:fail",
        f"{once}.retry_after#1@call:fail",
        f"{always}.fallback_exceptions#1@call:fail",
        f"{always}.fallback#1@1:fail",
    ):
        assert schedule in tried
    assert found_in(limited(**limits)) == []


@pytest.mark.parametrize("limit", ["retryable_exceptions", "retry_after"])
def test_what_a_question_raises_is_the_failure(limit: str) -> None:
    questions: Any = {
        "retryable_exceptions": lambda exc: isinstance(exc, ConnectionError),
        "retry_after": lambda exc: 1.0,
    }
    processor = limited(retries=1, **questions)
    text = f"Offers.execute#1@1:fail, Offers.execute.{limit}#1@call:fail"
    (failure,) = run(failure_of(disturbed(processor, text), Request())).exceptions
    assert isinstance(failure, RuntimeError)
    assert str(failure) == f"injected at Offers.execute.{limit}#1@call"


def test_the_questions_of_a_plain_function_and_of_a_resource() -> None:
    async def held(ctx: Request) -> AsyncIterator[None]:
        await ctx.service.pass_by()
        yield

    limits: Any = {"retries": 1, "retry_after": lambda exc: None}
    plain = task("Plain", None, task_sync_func(lambda ctx: None, **limits))
    holding = resource("Held", held, timeout=1.0, cleanup_timeout=1.0, **limits)
    tried = schedules_of(build([holding], [plain]), **FAIL)
    for label in "Held.pre_execute", "Plain.execute":
        assert f"{label}#1@call:fail, {label}.retry_after#1@call:fail" in tried


# ------------------------------------------------------------------------------- their names


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("Offers.execute.limiter.exit#1@1:fail", "there is no function 'Offers.execute.limiter"),
        ("Offers.execute.fallback#2@1:fail", "Offers.execute.fallback has no retries"),
        ("Offers.execute.fallbacks#1@1:fail", "does not name a disturbance"),
    ],
)
def test_limits_that_are_not_there(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        disturbed(limited(fallback=careful_fallback), text)


def test_a_task_may_be_called_like_a_limit() -> None:
    name = "Offers.execute.fallback"
    processor = build([task(name, None, task_func(offers, timeout=1.0))])
    assert f"{name}.execute#1@1:cancel" in schedules_of(processor, **CANCEL)
    assert explore(processor, context=Request, check=anything).findings == 0
