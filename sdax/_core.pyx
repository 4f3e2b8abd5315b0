# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled engine: what `_core_py.py` does, without the interpreter.

Read that one first. The same run and drivers are here, but a driver steps coroutines itself
(`PyIter_Send`) where the Python one lets a generator do it, and looks at an `asyncio.Task`
through asyncio's own C functions.
"""

import asyncio
import sys
from functools import partial

cimport cython
from cpython.object cimport PyObject, PyObject_Call
from cpython.ref cimport Py_XDECREF
from libc.math cimport INFINITY

from .common.order import PHASES
from .engine import stack
from .engine.attempts import (
    History,
    after_failure,
    after_timeout,
    deadline_of,
    limit_of,
    settled,
    time_left,
)
from .engine.calls import (
    as_coroutine,
    cancel,
    code_of,
    fallback_call,
    limited_call,
    refuse_coroutine,
)
from .engine.deadlines import Deadlines, clock_of
from .engine.driver import DriverBase, can_catch_first_steps
from .engine.exceptions import chain, hide_engine, is_cancellation
from .engine.plan import OUTCOME as OUTCOME_KIND
from .engine.plan import RESOURCE as RESOURCE_KIND
from .engine.record import Record, unasked_cancellation
from .engine.resources import Resource as HeldResource
from .engine.run import RunBase
from .engine.sharing import may_share
from .finish import Finish

__all__ = ["Run"]

cdef extern from "_core.h":
    int sdax_know_task(object type) except -1
    int sdax_know_context() except -1
    void *sdax_variables(object context) noexcept
    int sdax_is_marked(object task) except -1
    int sdax_set_name(object task, object name) noexcept
    void *sdax_weakrefs(object task) noexcept
    object sdax_take_error()
    int sdax_pumps
    bint sdax_is_handling() noexcept
    PyObject *sdax_take_returned() noexcept

cdef extern from "Python.h":
    Py_ssize_t Py_REFCNT(object) noexcept
    PyObject *PyObject_CallOneArg(object, object) noexcept
    PyObject *PyObject_CallMethodOneArg(object, object, object) noexcept
    PyObject *PyObject_CallFunctionObjArgs(
        object, PyObject *, PyObject *, PyObject *, void *) noexcept
    PyObject *PyTuple_GET_ITEM(tuple, Py_ssize_t) noexcept
    int PyErr_ExceptionMatches(object) noexcept
    bint PyCoro_CheckExact(object) noexcept
    # With an error, these two leave it to be taken by sdax_take_error().
    int PyIter_Send(object, object, PyObject **) noexcept
    object PyContext_Copy(object)
    object PyContext_CopyCurrent()
    int PyContext_Enter(object) except -1
    int PyContext_Exit(object) except -1

cdef enum:
    RETURNED = 0
    RAISED = -1
    YIELDED = 1

cdef enum How:
    CALL
    SEND
    THROW

cdef enum:
    PRE = 0
    EXECUTE = 1
    POST = 2

cdef double UNSET = 0  # a deadline, for which there was no clock
cdef int DEEPEST = stack.DEEPEST
cdef bint EAGER_START = sys.version_info >= (3, 12)
cdef bint AWAITED_BY = sys.version_info >= (3, 14)
cdef object EAGER_FACTORY = getattr(asyncio, "eager_task_factory", None)
cdef object time = sys.modules["time"]
cdef dict time_names = time.__dict__
cdef object THROW_METHOD = "throw"
cdef object RESOURCE = RESOURCE_KIND
cdef object OUTCOME = OUTCOME_KIND
cdef object Resource = HeldResource
# Names of the module are looked up each time, these are not.
cdef object Task = asyncio.Task
cdef object current_task = asyncio.current_task
cdef object get_running_loop = asyncio.get_running_loop
cdef object FINISH = Finish
cdef object AbstractEventLoop = asyncio.AbstractEventLoop
cdef object add_to_awaited_by = None
cdef object discard_from_awaited_by = None
cdef dict current_tasks = None  # by loop
# Of the last loop that could do without its `call_soon`, on 3.11.
cdef object loop_type = None
cdef object loop_method = None

if AWAITED_BY:
    add_to_awaited_by = asyncio.future_add_to_awaited_by  # pragma: no cover (3.14)
    discard_from_awaited_by = asyncio.future_discard_from_awaited_by  # pragma: no cover (3.14)
if not EAGER_START:
    current_tasks = asyncio.tasks._current_tasks

sdax_know_task(Task)
sdax_know_context()


def traces(task, context):
    """Return what a function may have left on an `asyncio.Task` and its context."""
    return (
        Py_REFCNT(task),
        <size_t>sdax_weakrefs(task),
        sdax_is_marked(task),
        <size_t>sdax_variables(context),
    )


cdef bint SHARING = may_share("compiled", traces)


@cython.final
@cython.freelist(32)
cdef class Run:
    """One run of a plan.

    `start` it. While it is not `over`, put a future into `waiter` and await that: it is done
    when the run is. `cancel` asks it to end early. Then `values` has what functions
    returned, by the plan's keys, and `record` everything else that is not a plain success.
    Both are None while empty. `fatal` is not an `Exception`, or it broke the engine
    itself: the run ends with it. A run with a `watch` tells it everything: its plan must have
    limits for every function (see `Plan.observed`).
    """

    # The parts that are not hot. See `RunBase`.
    cancel = RunBase.cancel
    take_record = RunBase.take_record
    skip_execute = RunBase.skip_execute
    cut_short = RunBase.cut_short
    runs_in = RunBase.runs_in
    failed = RunBase.failed
    note_failure = RunBase.note_failure
    go_on_without = RunBase.go_on_without
    ends_early = RunBase.ends_early
    cancel_retry = RunBase.cancel_retry
    never_called = RunBase.never_called
    is_stopping = RunBase.is_stopping
    is_loop_ending = RunBase.is_loop_ending
    has_cancelled = RunBase.has_cancelled
    abort = RunBase.abort
    leave_phase = RunBase.leave_phase
    find_skipped = RunBase.find_skipped
    find_causes = RunBase.find_causes
    find_due = RunBase.find_due
    write = RunBase.write
    tell = RunBase.tell
    break_down = RunBase.break_down
    take_fatal = RunBase.take_fatal
    defer = RunBase.defer
    call_later = RunBase.call_later
    go_on = RunBase.go_on
    recount_gates = RunBase.recount_gates
    cancel_suspended = RunBase.cancel_suspended
    bounded = RunBase.bounded
    cut_off = RunBase.cut_off
    may_try_again = RunBase.may_try_again
    holders = RunBase.holders
    is_cut_short = RunBase.is_cut_short
    has_held = RunBase.has_held
    not_held = RunBase.not_held
    to_throw = RunBase.to_throw
    postpone = RunBase.postpone
    call_postponed = RunBase.call_postponed
    set_up = RunBase.set_up
    hold_resource = RunBase.hold_resource
    clean_up = RunBase.clean_up
    give_up_resources = RunBase.give_up_resources
    leave_out = RunBase.leave_out
    passes_by = RunBase.passes_by
    broke = RunBase.broke
    outcome = RunBase.outcome
    is_alone = RunBase.is_alone

    cdef readonly object loop
    cdef public object record
    cdef readonly dict values
    cdef readonly bint over
    cdef public object waiter
    cdef public object fatal
    cdef readonly object plan
    cdef tuple arrays  # of the plan
    cdef readonly object ctx
    cdef object parent  # who waits for this run
    cdef readonly object context
    cdef public object cleanup_ends  # by the loop's clock, once it has begun
    cdef readonly object contexts  # once a resource has set a context variable
    cdef public dict resources  # of which a set-up was called
    cdef readonly int number  # of the phase
    cdef tuple work
    cdef tuple stages
    cdef public Py_ssize_t opened  # how many stages of the phase
    cdef tuple stage
    cdef Py_ssize_t position  # in the stage: what comes from there on is not yet called
    cdef tuple gates
    cdef tuple onward
    cdef tuple waits
    cdef public list waiting  # completions that each gate still waits for
    cdef list queue  # what gates have opened
    cdef Py_ssize_t queued  # where in the queue the next one is
    cdef Py_ssize_t places  # the number of functions that may be suspended
    cdef Py_ssize_t taken  # the number that are
    cdef int last_phase
    cdef public Py_ssize_t pending  # opened, not yet finished
    cdef Driver first  # of the suspended ones, in the order in which they were called
    cdef Driver last
    cdef public bint pumping
    cdef public bint closed  # nothing of this phase is opened any more
    cdef public bint aborted  # nothing of it is called any more either
    cdef public object losses
    cdef public object uncalled
    cdef public set due  # the tasks whose functions are due in this phase, or None for all
    cdef public list to_cancel  # drivers of the phase that was stopped, the next one last
    cdef readonly object deadlines
    cdef object clock  # the loop's, once a timeout asks for it
    cdef readonly object watch
    cdef public bint interrupted  # by its caller, who may not wait any more
    cdef public bint shaken  # its caller was cancelled once more, in this pass of the loop
    cdef public bint deferred  # nothing is opened or called until the loop calls `go_on`
    cdef bint is_lazy  # the task factory: what it starts begins in its turn of the loop
    cdef list held  # to be called first, when it is deferred no more. Usually None
    cdef public object setbacks

    def __init__(self, plan, ctx, watch=None):
        self.plan = plan
        if watch is not None:
            self.watch = watch
            self.record = Record(plan, watch)
        self.arrays = plan.arrays
        self.places = plan.places
        self.ctx = ctx
        self.loop = get_running_loop()
        self.context = PyContext_CopyCurrent()
        self.stage = ()
        self.uncalled = ()
        self.enter_phase(PRE)

    def start(self, int last=POST):
        """Run up to and with the phase `last` until all that is left is suspended, and return
        True if the run has ended. A run that begins in the middle goes on from there."""
        self.last_phase = last
        self.over = False
        try:
            if AWAITED_BY:
                self.parent = current_task(self.loop)  # pragma: no cover (3.14)
            if sdax_pumps >= DEEPEST:
                stack.refuse_endless(self.context)
                self.defer()
            elif self.fatal is not None or sdax_is_handling():
                self.defer()  # functions would see what is handled as their own
            self.advance()
            self.pump()
        except RecursionError as error:
            # There is hardly a frame left, and nothing that could be called with it.
            limit = sys.getrecursionlimit()
            sys.setrecursionlimit(limit + stack.ROOM)
            try:
                self.break_down(error)
            finally:
                sys.setrecursionlimit(limit)
        except BaseException as error:
            self.break_down(error)
        return self.over

    cpdef int enter_phase(self, int number) except -1:
        cdef tuple arrays = <tuple>self.arrays[number]
        self.number = number
        self.work = <tuple>arrays[0]
        self.stages = <tuple>arrays[1]
        self.gates = <tuple>arrays[2]
        self.onward = <tuple>arrays[3]
        self.waits = <tuple>arrays[4]
        self.opened = 0
        if self.waiting is not None:
            self.waiting = self.queue = None
        self.closed = self.aborted = False
        return 0

    cpdef int pump(self) except -1:
        """Call all that may be called now, each in an `asyncio.Task`."""
        global sdax_pumps
        self.pumping = True
        sdax_pumps += 1
        try:
            factory = self.loop.get_task_factory()
            if factory is not None and factory is not EAGER_FACTORY:
                start_ready_by_factory(self)
            elif EAGER_START:
                start_ready_eagerly(self)
            else:
                start_ready_early(self)
        finally:
            sdax_pumps -= 1
            self.pumping = False
        return 0

    cdef inline Py_ssize_t take(self) noexcept:
        """Return the index of the next task to call, or -1."""
        cdef Py_ssize_t index
        if self.held is not None:
            return self.take_held()
        if self.position < len(self.stage):
            index = self.stage[self.position]
            self.position += 1
            return index
        if self.queue is not None and self.queued < len(self.queue):
            index = self.queue[self.queued]
            self.queued += 1
            return index
        return -1

    cdef inline bint is_held(self, Py_ssize_t index) noexcept:
        """Return True if this is the cleanup of a resource."""
        return self.number == POST and (<tuple>self.work[index])[4] is RESOURCE

    cdef Py_ssize_t take_held(self) noexcept:
        if self.deferred or not self.held:
            return -1
        index = self.held.pop(0)
        if not self.held:
            self.held = None
        return index

    cpdef int hold(self, Py_ssize_t index) except -1:
        """Keep what was taken and not called, to be taken again."""
        if self.held is None:
            self.held = []
        self.held.insert(0, index)
        return 0

    cdef inline bint is_ready(self) noexcept:
        """Return True if there is a task to take, and a place for it."""
        if self.held is not None:
            return not self.deferred
        return self.taken < self.places and (
            self.position < len(self.stage)
            or (self.queue is not None and self.queued < len(self.queue))
        )

    cpdef list take_left(self):
        """Take everything that is opened and not yet called."""
        cdef list left = [*(self.held or ()), *self.stage[self.position:]]
        if self.queue is not None:
            left += self.queue[self.queued:]
            self.queued = len(self.queue)
        self.held = None
        self.position = len(self.stage)
        return left

    cpdef int advance(self) except -1:
        """Open the next stage, of the next phase if need be, or end the run.

        Called when nothing that was opened is unfinished.
        """
        cdef tuple stage
        cdef int number
        while not self.pending and not self.deferred:
            if self.opened < len(self.stages) and not self.closed:
                stage = self.stages[self.opened]
                if self.due is not None:
                    stage = tuple([index for index in stage if index in self.due])
                self.opened += 1
                self.pending = len(stage)
                self.stage = stage
                self.position = 0
            elif self.gates and self.waiting is None and not self.closed:
                self.waiting = list(self.waits)
                self.queue = []
                self.queued = 0
                self.open_gates([0])
            elif self.number >= self.last_phase:
                self.finish()
                return 0
            else:
                number = self.number
                if self.closed or self.record is not None:
                    number = self.leave_phase()
                self.enter_phase(number + 1)
        return 0

    cpdef int feed(self, tuple gates) except -1:
        """Count a completion for each of these gates, and open those that wait for no more."""
        cdef list opening = []
        self.count_down(gates, opening)
        if opening:
            self.open_gates(opening)
        return 0

    cdef int count_down(self, tuple gates, list opening) except -1:
        cdef Py_ssize_t gate, left
        for gate in gates:
            left = <Py_ssize_t>self.waiting[gate] - 1
            self.waiting[gate] = left
            if not left:
                opening.append(gate)
        return 0

    cdef int open_gates(self, list opening) except -1:
        cdef Py_ssize_t gate
        cdef list opened = []
        while opening:
            gate = opening.pop()
            self.count_down(self.onward[gate], opening)
            for index in <tuple>self.gates[gate]:
                if self.due is None or index in self.due:
                    opened.append(index)
                else:
                    self.count_down((<tuple>self.work[index])[3], opening)
        opened.sort()
        self.queue.extend(opened)
        self.pending += len(opened)
        return 0

    cpdef int finish(self) except -1:
        if self.watch is not None:
            self.tell("phase_finished")
        self.over = True
        self.parent = None  # its result may be an error, and by that lead to the run
        if self.deadlines is not None:
            try:
                self.deadlines.close()
            except BaseException as error:
                self.take_fatal(error)
                self.deadlines.close()
            self.deadlines = None
        waiter = self.waiter
        if waiter is not None:
            try:
                if not waiter.done():
                    waiter.set_result(None)
            except BaseException as error:
                self.take_fatal(error)
                if not waiter.done():
                    waiter.set_result(None)  # nobody else would wake the caller up
        return 0

    cpdef int keep(self, Py_ssize_t index, value) except -1:
        if self.values is None:
            self.values = {}
        self.values[self.plan.key(self.number, index)] = value
        return 0

    cpdef int finished_one(self) except -1:
        self.pending -= 1
        if not self.pending:
            self.advance()
        return 0

    # For `RunBase`.

    cpdef list drivers(self):
        cdef Driver driver = self.first
        cdef list found = []
        while driver is not None:
            found.append(driver)
            driver = driver.following
        return found

    def set_contexts(self, contexts):
        """Have functions called in different contexts, and share no `asyncio.Task` any more."""
        self.contexts = contexts

    cpdef int count_in(self, Driver driver) except -1:
        """Count the driver of a resource among the suspended ones: its cleanup begins."""
        driver.suspend()
        return 0

    cpdef int stop_calling(self) except -1:
        if self.held is None:
            self.held = []
        return 0

    cpdef int give_back(self, list indices) except -1:
        if indices:
            self.held = indices
        return 0

    cpdef set called_by_gates(self):
        return set(self.queue[:self.queued]).difference(self.held or ())

    cpdef int requeue(self, set called, set opened) except -1:
        self.queue = [*sorted(called), *sorted(opened - called)]
        self.queued = len(called)
        self.held = None
        return 0

    cdef int link(self, Driver driver) except -1:
        """Count a driver among the suspended ones."""
        driver.linked = True
        self.taken += 1
        if self.last is None:
            self.first = driver
        else:
            self.last.following = driver
            driver.preceding = self.last
        self.last = driver
        return 0

    cdef int unlink(self, Driver driver) except -1:
        driver.linked = False
        self.taken -= 1
        if driver.preceding is None:
            self.first = driver.following
        else:
            driver.preceding.following = driver.following
        if driver.following is None:
            self.last = driver.preceding
        else:
            driver.following.preceding = driver.preceding
        driver.preceding = driver.following = None
        return 0


@cython.final
@cython.freelist(128)
cdef class Driver:
    """Runs one function after another in an `asyncio.Task`. The last of them may suspend.

    It stands in for the coroutine of the function that it is at: `repr(task)`, stacks and
    debuggers show the user's code.
    """

    # The parts that are not hot. See `DriverBase`.
    shelter = DriverBase.shelter
    spare = DriverBase.spare
    is_stepped = DriverBase.is_stepped
    disturb = DriverBase.disturb
    refuse_running = DriverBase.refuse_running
    close = DriverBase.close
    task_ended = DriverBase.task_ended

    cdef readonly Run run  # None: it has ended
    cdef readonly Py_ssize_t index
    cdef readonly object task
    cdef readonly object context  # that of the asyncio.Task
    cdef readonly object coroutine
    cdef public object first_step  # on 3.11: kept from the loop
    cdef Driver preceding
    cdef Driver following
    cdef bint linked  # among the suspended ones of the run
    cdef readonly bint begun
    cdef bint taken  # its function, and not yet called
    cdef bint stepping
    cdef bint lone  # in an asyncio.Task of a task factory's
    cdef bint shared  # as long as no function has suspended
    cdef object resource  # that is held, or is cleaned up
    cdef bint holding  # until its turn comes
    cdef bint breaking  # cleaned up before its turn
    cdef void *weakrefs  # of the asyncio.Task that no function has taken hold of
    cdef Py_ssize_t references
    cdef Py_ssize_t own_references
    cdef Py_ssize_t context_references
    # The attempts at a function that has a timeout or retries.
    cdef Py_ssize_t attempts
    cdef object error  # what left the last one
    cdef object history  # from the first failure on
    cdef object call  # what is called in place of the function
    cdef bint falls_back  # what follows is the fallback
    cdef double began  # the first one
    cdef double started  # the last one
    cdef object pause
    cdef double delay  # of the pause
    cdef double deadline
    cdef bint wants_timer  # none is set yet for the deadline
    cdef bint pausing
    cdef bint leftover  # a cancellation that the attempt before the pause asked for is to come
    cdef bint expired
    cdef bint timed_out
    cdef bint in_shelter  # a cleanup that the end of the loop must not cut short
    cdef public object sheltered  # the future that it waits for
    cdef public bint spared
    cdef Py_ssize_t requests  # to cancel the asyncio.Task, when the timer fired
    cdef Py_ssize_t cancelling  # requests that earlier attempts have left open
    cdef public long long serial  # of the timer that is set
    cdef object __weakref__

    cdef object begin(self, task):
        """Call functions until one suspends, and return the future that it waits for."""
        self.begun = True
        self.task = task
        self.weakrefs = sdax_weakrefs(task)
        self.references = Py_REFCNT(self.task) if SHARING else -1
        self.own_references = Py_REFCNT(self)
        self.context_references = Py_REFCNT(self.context)
        self.in_shelter = self.run.interrupted and self.run.number == POST
        self.taken = False
        yielded = self.step(CALL, None)
        if self.run is not None and not self.holding:
            self.suspend()
        return yielded

    cdef int suspend(self) except -1:
        """Keep the `asyncio.Task` for this function, from its first suspension on."""
        cdef Run run = self.run
        self.shared = False
        if not self.linked:
            run.link(self)
        if AWAITED_BY and run.parent is not None:
            self.tell_parent(add_to_awaited_by)  # pragma: no cover (3.14)
        return 0

    cdef int count_out(self) except -1:
        """Count it among the suspended ones no more."""
        cdef Run run = self.run
        if self.linked:
            run.unlink(self)
        if AWAITED_BY and run.parent is not None:
            self.tell_parent(discard_from_awaited_by)  # pragma: no cover (3.14)
        return 0

    cdef int tell_parent(self, tell) except -1:
        cdef Run run = self.run
        try:
            tell(self.task, run.parent)
        except BaseException as error:
            run.break_down(error)
        return 0

    cdef int release(self) except -1:
        """Let go of everything: there is nothing more to call."""
        if not self.shared:
            self.count_out()
        self.run = None
        self.task = None
        self.context = None
        self.coroutine = None
        return 0

    cdef object step(self, How how, exception):
        """Call a function, or go on with it. Return what it waits for.

        In its first step a driver calls one function after another. A function leaves the
        `asyncio.Task` to the next only where nobody could tell that the two shared it. When
        nothing is left to call, the driver lets go of the run.
        """
        cdef Run run = self.run
        cdef PyObject *outcome
        cdef int status
        while True:
            outcome = NULL
            limits = (<tuple>run.work[self.index])[1]
            if how == CALL and limits is not None:
                self.begin_attempt()
            elif run.watch is not None:
                self.tell("attempt_resumed")
            if how == SEND:
                status = PyIter_Send(self.coroutine, None, &outcome)
            elif how == CALL:
                status = self.call_function(&outcome)
                if status == RAISED and self.call is not None:
                    run.break_down(sdax_take_error())  # a call of ours has failed: repeat it
                    status = self.call_function(&outcome)
                    self.call = None
            else:
                status = self.throw_into(exception, &outcome)
            error = sdax_take_error() if status == RAISED else None
            value = None
            if outcome is not NULL:
                value = <object>outcome
                Py_XDECREF(outcome)
            if status == YIELDED and run.resources is not None and type(value) is Resource:
                self.resource = value
                value = value.value
            elif status == YIELDED:
                if run.watch is not None:
                    self.tell("attempt_suspended")
                if self.wants_timer and (<GuardedStep>set_timeout)(self) < 0:
                    run.break_down(sdax_take_error())
                return self.shelter_surely(value) if self.in_shelter else value
            if error is not None and self.coroutine is not None and isinstance(
                error, RecursionError
            ):
                self.close_coroutine()  # it may not even have begun
            if status != YIELDED:
                self.coroutine = None
            if limits is not None:
                error = self.settle_attempt(limits, error)
                if run.watch is not None:
                    self.tell_outcome(value, error)
                if error is not None:
                    error = self.follow(limits, error)
                    if error is None:
                        if not self.falls_back or self.task._must_cancel:
                            return self.begin_pause()
                        how = CALL
                        continue
            if status == YIELDED:
                return self.hold(run, value)
            if not self.shared:
                return self.finish(value, error, False)
            self.end_function(run, value, error, False)
            while True:
                if (
                    Py_REFCNT(self.task) != self.references
                    or Py_REFCNT(self) != self.own_references
                    or Py_REFCNT(self.context) != self.context_references
                    or sdax_variables(self.context) != sdax_variables(run.context)
                    or sdax_weakrefs(self.task) != self.weakrefs
                    or sdax_is_marked(self.task)
                    or run.contexts is not None
                    or run.taken >= run.places
                ):
                    self.index = -1
                else:
                    self.index = run.take()
                if self.index < 0:
                    self.release()
                    return None
                if not run.is_held(self.index):
                    break
                clean_up(run, None, self.index, False)
            if sdax_set_name(self.task, (<tuple>run.work[self.index])[2]) < 0:
                self.taken = True
                raise sdax_take_error()
            how = CALL

    cdef int call_function(self, PyObject **outcome) noexcept:
        """Call the function and step its coroutine once."""
        cdef tuple work = <tuple>self.run.work[self.index]
        cdef PyObject *returned
        if self.call is not None:
            return self.call_instead(outcome)
        if work[4] is False or work[4] is True:
            returned = PyObject_CallOneArg(work[0], self.run.ctx)
        elif self.resource is not None:
            return PyIter_Send(self.coroutine, None, outcome)  # on from its `yield`
        else:
            returned = (<GuardedCall>call_otherwise)(self, work)
        if returned is NULL:
            return RAISED
        if work[4] is True and not PyCoro_CheckExact(<object>returned):
            outcome[0] = returned
            return RETURNED
        self.coroutine = <object>returned
        Py_XDECREF(returned)
        if work[4] is True:
            self.make_coroutine(refuse_coroutine)
            return RAISED
        if not PyCoro_CheckExact(self.coroutine) and self.make_coroutine(as_coroutine) < 0:
            return RAISED
        return PyIter_Send(self.coroutine, None, outcome)

    cdef int call_instead(self, PyObject **outcome) noexcept:
        """Call what makes a coroutine in place of the function."""
        cdef PyObject *returned = PyObject_CallOneArg(self.call, self.run.ctx)
        if returned is NULL:
            return RAISED
        self.call = None
        self.coroutine = <object>returned
        Py_XDECREF(returned)
        return PyIter_Send(self.coroutine, None, outcome)

    cdef int make_coroutine(self, make) noexcept:
        """Make a coroutine of what the function returned instead of one, or refuse it."""
        cdef PyObject *made = PyObject_CallFunctionObjArgs(
            make,
            <PyObject *>self.coroutine,
            PyTuple_GET_ITEM(self.run.plan.names, self.index),
            PyTuple_GET_ITEM(PHASES, self.run.number),
            NULL,
        )
        if made is NULL:
            return -1
        self.coroutine = <object>made
        Py_XDECREF(made)
        return 0

    cdef int throw_into(self, exception, PyObject **outcome) noexcept:
        """Throw into the coroutine. The outcomes are those of PyIter_Send."""
        outcome[0] = PyObject_CallMethodOneArg(self.coroutine, THROW_METHOD, exception)
        if outcome[0] is not NULL:
            return YIELDED
        if not PyErr_ExceptionMatches(StopIteration):
            return RAISED
        outcome[0] = sdax_take_returned()
        return RETURNED

    cdef int begin_attempt(self) except -1:
        cdef Run run = self.run
        cdef tuple work = <tuple>run.work[self.index]
        if self.attempts:
            self.go_on()
        self.attempts += 1
        if run.watch is not None:
            self.tell("attempt_started")
        if work[5] is not None or work[7] is True or self.history is not None:
            if (<GuardedStep>set_deadline)(self) < 0:
                run.break_down(sdax_take_error())
                self.deadline = UNSET
                self.wants_timer = True
            if work[7] is True:
                self.bound()
        return 0

    cdef int tell(self, what) except -1:
        """Tell the observers of the attempt."""
        cdef Run run = self.run
        try:
            run.tell(what, run.number, self.index, self.attempts)
        except BaseException as error:
            run.break_down(error)
        return 0

    cdef int go_on(self) except -1:
        """Go on after an attempt that has failed, with another one or with the fallback."""
        cdef Run run = self.run
        error, self.error = self.error, None
        falls_back, self.falls_back = self.falls_back, False
        try:
            self.cancelling = self.task.cancelling()
            if falls_back and run.watch is not None:
                run.tell("fell_back", run.number, self.index, self.attempts, error)
            self.history.goes_on(error, falls_back=falls_back)
        except BaseException as broken:
            run.break_down(broken)
            chain(broken, error)
        return 0

    def begin_timeout(self, broken=None):
        """Begin the timeout of an attempt, which its limiter has let in."""
        try:
            if broken is not None:
                self.run.break_down(broken)
            self.limit_attempt(now_of(self.run), False)
            self.bound()
        except BaseException as error:
            self.run.break_down(error)
            self.deadline = UNSET
            self.wants_timer = True

    cdef int bound(self) except -1:
        """Have `cleanup_timeout` bound an attempt at a cleanup."""
        cdef Run run = self.run
        if run.number == POST and run.plan.cleanup_timeout is not None:
            self.deadline = run.bounded(self.deadline if self.wants_timer else None, now_of(run))
            self.wants_timer = True
        return 0

    cdef int limit_attempt(self, double now, bint waits) except -1:
        """Set the deadline of an attempt that is not a plain first one."""
        deadline = deadline_of(self.limits(), self.began, now, waits, self.covers())
        if deadline is not None:
            self.deadline = deadline
            self.wants_timer = True
        return 0

    cdef object limits(self):
        return (<tuple>self.run.work[self.index])[1]

    cdef bint covers(self) except -1:
        """Return True while the fallback is called."""
        return self.history is not None and self.history.covered is not None

    cdef object limit(self):
        """Return the seconds that the attempt had, and what to say when they have passed."""
        cut_off = self.run.cut_off(self.deadline)
        if cut_off is not None:
            return cut_off
        return limit_of(self.limits(), self.began, self.started, self.deadline, self.covers())

    cdef object settle_attempt(self, limits, error):
        """Return what an attempt leaves."""
        cdef Run run = self.run
        cdef bint timed_out = False
        self.wants_timer = False
        self.serial = 0
        left = error
        try:
            if self.expired:
                self.expired = False
                earlier = None if self.history is None else self.history.last
                error, timed_out = after_timeout(
                    error, self.limit()[1], self.task, self.requests, run.is_stopping(), earlier
                )
            self.timed_out = timed_out
            if error is not None:
                hide_engine(error)
                error = self.unasked(limits, error)
            if self.history is not None or (<tuple>run.work[self.index])[7] is True:
                error = settled(
                    limits, self.attempts, self.history, error, run.has_cancelled(error)
                )
        except BaseException as broken:
            # It is what the run ends with, and nothing that the function raised is lost.
            run.break_down(broken)
            chain(broken, left)
        return error

    cdef object unasked(self, limits, error):
        """Return the failure that a cancellation is which nobody asked for: a library has
        cancelled the future that the function waited for. A cancellation of its `asyncio.Task`
        is left as it is, and nothing follows it."""
        cdef Run run = self.run
        if (
            (limits.retries or limits.fallback is not None)
            and is_cancellation(error)
            and not run.is_stopping()
            and self.task.cancelling() <= self.cancelling
        ):
            return unasked_cancellation(run.plan, run.number, self.index, error)
        return error

    cdef int tell_outcome(self, value, error) except -1:
        cdef Run run = self.run
        try:
            run.tell(
                "attempt_finished", run.number, self.index, self.attempts, value, error,
                timed_out=self.timed_out, cancelled=run.has_cancelled(error),
            )
        except BaseException as broken:
            run.break_down(broken)
        return 0

    cdef object follow(self, limits, error):
        """Return the error of a function that nothing is to follow, None if something is."""
        try:
            return self.what_follows(limits, error)
        except BaseException as broken:
            self.run.break_down(broken)
            chain(broken, error)
            return error

    cdef object what_follows(self, limits, error):
        cdef Run run = self.run
        history = self.history
        if history is None:
            history = self.history = History()
        elif history.covered is not None:
            return error
        left = None
        if limits.total_timeout is not None:
            cut_off_at = self.deadline if self.timed_out else None
            left = time_left(limits, self.began, now_of(run), cut_off_at)
        following = after_failure(
            limits, self.attempts, history.backoffs, left, error, run.aborted
        )
        if following.error is not error:
            self.timed_out = False
        history.backoffs = following.backoffs
        if following.delay is not None and not run.may_try_again(following.delay):
            following = following._replace(delay=None)
        history.is_due = following.delay is not None
        if following.suppressed is not None and run.watch is not None:
            run.tell(
                "retry_suppressed", run.number, self.index, self.attempts, following.suppressed,
                error,
            )
        if following.delay is not None:
            self.delay = following.delay
        elif following.falls_back:
            name = (<tuple>run.work[self.index])[6]
            self.call = partial(fallback_call, limits.fallback, error, name)
            self.falls_back = True
            self.delay = 0
        else:
            return following.error
        self.error = error
        return None

    cdef int close_coroutine(self) except -1:
        try:
            self.coroutine.close()
        except BaseException as error:
            self.run.break_down(error)
        return 0

    cdef object begin_pause(self):
        """Wait before the next attempt: return what to wait for."""
        cdef Run run = self.run
        error = self.error
        self.pausing = True
        try:
            if run.watch is not None and not self.falls_back:
                run.tell(
                    "retry_scheduled", run.number, self.index, self.attempts, self.delay, error
                )
            if self.task._must_cancel:
                # The attempt that is over asked for it, or a group inside of it.
                self.leftover = True
                return None
            return self.wait()
        except BaseException as exception:
            chain(exception, error)
            raise

    cdef object wait(self):
        """Return what to wait for in a pause."""
        cdef Run run = self.run
        if self.delay <= 0:
            return None
        self.pause = run.loop.create_future()
        self.deadline = <double>run.loop.time() + self.delay
        self.set_timer()
        self.pause._asyncio_future_blocking = True
        return self.shelter_surely(self.pause) if self.in_shelter else self.pause

    # The same, and if it breaks, once more. The run ends with the error that broke it.

    cdef object shelter_surely(self, yielded):
        try:
            return self.shelter(yielded)
        except BaseException as error:
            self.run.break_down(error)
        return self.shelter(yielded)

    cdef bint spare_surely(self, exception) except -1:
        try:
            return self.spare(exception)
        except BaseException as error:
            self.run.break_down(error)
        return self.spare(exception)

    cdef bint is_stepped_surely(self) except -1:
        try:
            return self.is_stepped()
        except BaseException as error:
            self.run.break_down(error)
        return self.is_stepped()

    cpdef int set_timeout(self) except -1:
        """Set the timer of a timeout that has none yet."""
        if self.wants_timer:
            set_timeout(self)
        return 0

    cdef int set_timer(self) except -1:
        cdef Run run = self.run
        if run.deadlines is None:
            run.deadlines = Deadlines(run.loop, run.context, run.break_down)
        self.serial = run.deadlines.add(self.deadline, self)
        return 0

    cpdef expire(self):
        """Hear of the timer that the deadline has come."""
        if self.pause is None:
            self.time_out()
        elif not self.pause.done():
            self.pause.set_result(None)

    cdef int time_out(self) except -1:
        """Cancel the attempt. Tell of it in a context like that of its function."""
        cdef Run run = self.run
        task = self.task
        self.expired = True
        self.requests = task.cancelling()
        if run.watch is not None:
            context = PyContext_Copy(run.context if self.context is None else self.context)
            context.run(self.tell_timeout)
        cancel(task, run.break_down)
        return 0

    def tell_timeout(self):
        cdef Run run = self.run
        run.tell("timeout_expired", run.number, self.index, self.attempts, self.limit()[0])

    cdef int end_function(self, Run run, value, error, bint pausing) except -1:
        """Take note of how the function has ended."""
        cdef tuple gates
        if value is not None and type(value) is FINISH:
            attempts = self.attempts or 1
            run.ends_early(self.index, value, attempts, self.take_history())
            return 0
        if error is not None or self.attempts > 1 or run.watch is not None:
            self.end_attempts(run, value, error, pausing)
            if error is not None:
                return 0
        self.attempts = 0
        if value is not None:
            run.keep(self.index, value)
        gates = <tuple>(<tuple>run.work[self.index])[3]
        if len(gates) and not run.aborted:
            run.feed(gates)
        run.finished_one()
        return 0

    def may_have_set_variables(self):
        """Return True unless its context is certainly as it was."""
        cdef Run run = self.run
        return (
            self.context is None
            or run.contexts is not None
            or sdax_variables(self.context) != sdax_variables(run.context)
        )

    cdef object hold(self, Run run, value):
        """Hold a resource that is set up: go on with what that opens, and wait for its turn."""
        resource = self.resource
        resource.driver = self  # without a call: from here on it is cleaned up, whatever breaks
        if not self.shared:
            self.count_out()
        self.shared = False
        self.holding = True
        try:
            run.hold_resource(self.index, resource, self)
            self.end_function(run, value, None, False)
            if not run.pumping and run.is_ready():
                run.pump()
        except BaseException as error:
            run.break_down(error)
        return resource

    cdef object hold_no_more(self, How how, exception):
        """Go on with a resource whose turn has come, or that is broken."""
        cdef Run run = self.run
        resource = self.resource
        if how == THROW:
            try:
                if run.passes_by(resource):
                    self.task.uncancel()
                    how = SEND
            except BaseException as error:
                run.break_down(error)
                how = SEND
            if how == SEND:
                resource._asyncio_future_blocking = True
                return resource
            resource.broken = True
            resource.thrown = exception
        self.holding = False
        if not self.linked:
            self.breaking = True
            resource.limit = run.plan.phases[POST].work[self.index][5]
            return self.break_on(SEND, None)
        self.spared = False
        self.in_shelter = run.interrupted
        return self.step(CALL, None)

    cdef object break_on(self, How how, exception):
        """Clean up a resource that has broken while it was held."""
        cdef Run run = self.run
        cdef Py_ssize_t index = self.index
        cdef PyObject *outcome = NULL
        cdef int status
        cdef bint is_due
        if how == SEND:
            status = PyIter_Send(self.coroutine, None, &outcome)
        else:
            status = self.throw_into(exception, &outcome)
        if status == YIELDED:
            value = <object>outcome
            Py_XDECREF(outcome)
            return value
        error = sdax_take_error()  # it never returns
        try:
            is_due = not run.has_held(self)
            self.release()
            if is_due:
                run.failed(index, error)
            else:
                run.broke(index, error)
            if not run.pumping and run.is_ready():
                run.pump()
        except BaseException as broken:
            self.resource.driver = None
            chain(broken, error)
            raise
        return None

    cdef object take_history(self):
        """Return what came before the last attempt, and forget the attempts."""
        history, self.history = self.history, None
        self.attempts = 0
        self.timed_out = False
        self.cancelling = 0
        return history

    cdef int end_attempts(self, Run run, value, error, bint pausing) except -1:
        """Take note of a function that is not a plain success."""
        cdef Py_ssize_t attempts = self.attempts
        cdef bint timed_out = self.timed_out
        history = self.take_history()
        if error is None:
            run.write("succeeded", run.number, self.index, attempts, value, history)
            return 0
        try:
            run.failed(self.index, error, attempts or 1, timed_out, pausing, history)
        except BaseException as broken:
            chain(broken, error)
            raise
        return 0

    cdef object resume(self, How how, exception):
        """Go on after a suspension."""
        if self.holding:
            return self.hold_no_more(how, exception)
        if self.breaking:
            return self.break_on(how, exception)
        if self.in_shelter:
            if how == THROW and self.spare_surely(exception):
                return self.shelter_surely(self.sheltered)
            self.sheltered = None
        if self.leftover:
            self.leftover = False
            if how == SEND or not self.run.is_stopping():
                return self.wait()
        if self.pausing:
            self.pausing = False
            self.pause = None
            self.serial = 0
            if how == SEND:
                how = CALL
            else:
                # The attempt that failed is the last one then, because a cancellation came.
                error, self.error = self.error, None
                self.call = None
                return self.finish(None, error, True)
        return self.step(how, exception)

    cdef object finish(self, value, error, bint pausing):
        """End a function that had suspended, and go on with what it opens."""
        cdef Run run = self.run
        self.release()
        self.end_function(run, value, error, pausing)
        if not run.pumping and run.is_ready():
            run.pump()
        return None

    cpdef int broken(self, Run run, error) except -1:
        """End, for the engine itself has failed, and have the run take stock."""
        self.stepping = False
        if self.error is not None:
            chain(error, self.error)
            self.error = None
        run.break_down(error)
        if self.taken:
            run.hold(self.index)
            self.taken = False
        if self.run is not None:
            self.release()
        return 0

    def catch_first_step(self, callback, *arguments, context=None):
        """Be the loop's `call_soon` while the `asyncio.Task` is made, on 3.11."""
        if context is self.context:
            self.first_step = callback
            return None
        return DriverBase.catch_first_step(self, callback, *arguments, context=context)

    cpdef bint is_open(self) noexcept:
        """Return True for a function that has begun, also while it waits for its next attempt."""
        return self.coroutine is not None or self.pausing

    cpdef bint is_running(self) except -1:
        return self.stepping or getattr(self.coroutine, "cr_running", False)

    cpdef bint has_expired(self) noexcept:
        return self.expired

    cpdef tuple attempts_made(self):
        return self.attempts or 1, self.history

    def discard(self):
        """Let go of everything before the first step, or of a function that was given up."""
        self.release()

    # What asyncio.Task asks of a coroutine.

    def __next__(self):
        cdef Run run = self.run
        cdef PyObject *yielded
        if self.stepping:
            raise ValueError("coroutine already executing")
        if run is not None:
            self.stepping = True
            yielded = (<Guarded>next_step)(self)
            self.stepping = False
            if yielded is NULL:
                self.broken(run, sdax_take_error())
            else:
                result = <object>yielded
                Py_XDECREF(yielded)
                if self.run is not None:
                    return result
        raise StopIteration

    def send(self, value):
        if self.is_running():
            self.refuse_running()
        return self.__next__()

    def throw(self, exception, value=None, traceback=None):
        cdef Run run = self.run
        if self.is_running():
            self.refuse_running()
        if run is not None and self.is_open() and not self.is_stepped_surely():
            return self.disturb(THROW_METHOD, exception)
        if run is not None:
            if not self.begun:
                self.never_called(exception)
                raise exception
            self.stepping = True
            try:
                yielded = self.resume(THROW, exception)
            except BaseException as error:
                yielded = None
                self.broken(run, error)
            self.stepping = False
            if self.run is not None:
                return yielded
        raise StopIteration

    def __await__(self):
        if self.is_running():
            self.refuse_running()
        return self

    def __iter__(self):
        if self.is_running():
            self.refuse_running()
        return self

    def __getattr__(self, name):
        # For tools that show a coroutine: cr_frame, __qualname__ and the like.
        # Before there is one, and of a plain function, the name and the code are the function's.
        if self.coroutine is not None or self.run is None:
            return getattr(self.coroutine, name)
        work = <tuple>self.run.work[self.index]
        if name == "__qualname__":
            return work[6]
        if name == "__name__":
            return work[6].rpartition(".")[2]
        if name == "cr_code":
            return code_of(work[0])
        if name == "cr_running":
            return self.stepping
        if name == "cr_suspended":
            return False
        if name in ("cr_frame", "cr_await", "cr_origin"):
            return None
        raise AttributeError(f"a driver has no attribute {name!r}")

    cpdef int never_called(self, error) except -1:
        """End before the first step."""
        cdef Run run = self.run
        self.release()
        try:
            run.never_called(self.index, error)
            self.taken = False
        except BaseException as broken:
            self.broken(run, broken)
        return 0

    cdef object begin_alone(self):
        """Take the first step in an `asyncio.Task` of a task factory's, shared with no other."""
        self.begun = True
        try:
            self.task = current_task(self.run.loop)
            if self.task is not None:
                self.task.set_name((<tuple>self.run.work[self.index])[2])
        except BaseException as error:
            self.run.break_down(error)
        self.in_shelter = self.run.interrupted and self.run.number == POST
        self.taken = False
        yielded = self.step(CALL, None)
        if self.run is not None and not self.holding:
            self.suspend()
        return yielded


# A function as it is called where what it raises is taken like any other outcome: a `try` would
# cost each step.
ctypedef PyObject *(*Guarded)(Driver) noexcept
ctypedef int (*GuardedStep)(Driver) noexcept
ctypedef int (*GuardedStart)(Run, Driver, dict) noexcept
ctypedef PyObject *(*GuardedCall)(Driver, tuple) noexcept


cdef object call_otherwise(Driver driver, tuple work):
    """Call a function that is neither one of the context alone, nor a plain one."""
    cdef Run run = driver.run
    if work[4] is OUTCOME:
        return work[0](run.ctx, run.outcome())
    return run.set_up(driver.index)


cdef int set_deadline(Driver driver) except -1:
    cdef Run run = driver.run
    cdef tuple work = <tuple>run.work[driver.index]
    cdef double now = now_of(run)
    cdef double seconds
    driver.started = now
    if driver.history is None:
        driver.began = now
        if work[5] is not None:
            seconds = work[5]
            driver.deadline = now + seconds if seconds > 0 else -INFINITY
            driver.wants_timer = True
        if work[7] is not True:
            return 0
    if work[1].limiter is None or driver.covers():
        if driver.history is not None:
            driver.limit_attempt(now, False)
        return 0
    if driver.history is not None:
        driver.limit_attempt(now, True)
    name, phase = run.plan.names[driver.index], PHASES[run.number]
    driver.call = partial(
        limited_call, work[1].limiter, work, name, phase, driver.begin_timeout
    )
    return 0


cdef double now_of(Run run) except? -1:
    if run.clock is None:
        run.clock = clock_of(run.loop)
    return time_names["monotonic"]() if run.clock is time else run.clock()


cdef int set_timeout(Driver driver) except -1:
    """Set the timer of a timeout: only what suspends can take long."""
    if driver.deadline == UNSET:
        now = now_of(driver.run)
        driver.wants_timer = False
        driver.started = now
        driver.began = driver.began or now
        driver.limit_attempt(now, False)
        if not driver.wants_timer:
            return 0
    if driver.deadline == -INFINITY:
        driver.time_out()
    else:
        driver.set_timer()
    driver.wants_timer = False
    return 0


cdef object next_step(Driver driver):
    if driver.begun:
        return driver.resume(SEND, None)
    if driver.lone:
        return driver.begin_alone()
    return driver.begin(current_task(driver.run.loop))


cdef inline Driver new_driver(Run run):
    cdef Driver driver = Driver.__new__(Driver)
    driver.run = run
    driver.index = -1
    driver.shared = True
    return driver


cdef dict EARLY_TASK = {"loop": None, "name": None, "context": None}
cdef dict EAGER_TASK = {**EARLY_TASK, "eager_start": True}


cdef int start_ready_eagerly(Run run) except -1:
    """Start a driver in a new `asyncio.Task` while there is something to call."""
    cdef Driver driver
    cdef dict arguments = EAGER_TASK.copy()  # which is less work than to make it again
    arguments["loop"] = run.loop
    while run.taken < run.places and run.is_ready():
        driver = new_driver(run)
        if (<GuardedStart>start_eagerly)(run, driver, arguments) < 0:
            start_failed(run, driver, sdax_take_error())
    return 0


cdef int start_eagerly(Run run, Driver driver, dict arguments) except -1:
    driver.index = run.take()
    if run.is_held(driver.index):
        return clean_up(run, driver, driver.index, False)
    driver.taken = True
    driver.context = PyContext_Copy(
        run.context if run.contexts is None else run.contexts.of(run.number, driver.index)
    )
    arguments["name"] = (<tuple>run.work[driver.index])[2]
    arguments["context"] = driver.context
    PyObject_Call(Task, (driver,), arguments)
    return 0


cdef int clean_up(Run run, Driver driver, Py_ssize_t index, bint soon) except -1:
    """Have a resource go on in its own `asyncio.Task`: not in that of this driver, if there is
    one."""
    if driver is not None:
        driver.index = -1
        driver.release()
    try:
        run.clean_up(index, soon)
    except BaseException as error:  # it was not even called
        run.break_down(error)
        run.clean_up(index, soon)
    return 0


cdef int start_ready_early(Run run) except -1:
    """Do the same on Python 3.11, where asyncio's own hooks for it cost too much.

    There an `asyncio.Task` gives its first step to the loop's `call_soon`, in whose place the
    driver catches it. A loop that somebody has given another `call_soon` makes and starts each
    `asyncio.Task` itself.
    """
    cdef Driver driver
    cdef dict arguments = EARLY_TASK.copy()
    loop = run.loop
    if not can_catch(loop):
        return start_ready_by_factory(run)
    current = current_tasks.pop(loop, None)
    arguments["loop"] = loop
    try:
        while run.taken < run.places and run.is_ready():
            driver = new_driver(run)
            if (<GuardedStart>start_early)(run, driver, arguments) < 0:
                start_failed(run, driver, sdax_take_error())
    finally:
        if current is not None:
            current_tasks[loop] = current
    return 0


cdef bint can_catch(loop) except -1:
    """Do what `can_catch_first_steps` does, with less work for the class of the last loop."""
    global loop_type, loop_method
    method = getattr(type(loop), "call_soon", None)
    if type(loop) is loop_type and method is loop_method:
        return loop.call_soon == method.__get__(loop)
    if not can_catch_first_steps(loop):
        return False
    loop_type, loop_method = type(loop), method
    return True


cdef int start_early(Run run, Driver driver, dict arguments) except -1:
    driver.index = run.take()
    if run.is_held(driver.index):
        return clean_up(run, driver, driver.index, False)
    driver.taken = True
    loop, context = run.loop, PyContext_Copy(
        run.context if run.contexts is None else run.contexts.of(run.number, driver.index)
    )
    driver.context = context
    arguments["name"] = (<tuple>run.work[driver.index])[2]
    arguments["context"] = context
    loop.call_soon = driver.catch_first_step
    try:
        PyObject_Call(Task, (driver,), arguments)
    finally:
        del loop.call_soon
    PyContext_Enter(context)
    try:
        driver.first_step()
    finally:
        PyContext_Exit(context)
    driver.first_step = None
    return 0


cdef int start_failed(Run run, Driver driver, error) except -1:
    """See to a function whose `asyncio.Task` could not be made, or not be looked after."""
    if driver.linked and not driver.task.done():
        run.break_down(error)  # it waits, and goes on
        return 0
    step, driver.first_step = driver.first_step, None
    driver.broken(run, error)
    if step is not None:
        step()  # which ends its asyncio.Task: there is nothing left to do
    return 0


cdef int start_ready_by_factory(Run run) except -1:
    """Let the loop's task factory make an `asyncio.Task` for each function."""
    cdef Py_ssize_t index
    cdef Driver driver
    while run.taken < run.places and run.is_ready():
        driver = new_driver(run)
        driver.index = index = run.take()
        if run.is_held(index):
            clean_up(run, driver, index, run.is_lazy)
            continue
        driver.taken = True
        driver.shared = False
        driver.lone = True
        error = task = None
        name = (<tuple>run.work[index])[2]  # the phase may have ended when the task is made
        try:
            context = run.context if run.contexts is None else run.contexts.of(run.number, index)
            task = PyContext_Copy(context).run(run.loop.create_task, driver)
            if not driver.begun:
                run.is_lazy = True
                driver.task = task
                run.link(driver)
            task.add_done_callback(driver.task_ended)
            task.set_name(name)
        except BaseException as exception:
            error = exception
        if error is not None:
            if task is not None:
                run.break_down(error)
                task.add_done_callback(driver.task_ended)  # which hears of one end alone
            elif driver.begun:
                run.break_down(error)
            else:
                driver.never_called(error)
    return 0
