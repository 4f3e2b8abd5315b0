# cython: language_level=3, boundscheck=False, wraparound=False, initializedcheck=False
"""The compiled engine: what `_core_py.py` does, without the interpreter.

Read that one first. The same run and drivers are here, but a driver steps coroutines itself
(`PyIter_Send`) where the Python one lets a generator do it, and looks at an `asyncio.Task`
through asyncio's own C functions.
"""

import asyncio
import sys

cimport cython
from cpython.object cimport PyObject, PyObject_Call
from cpython.ref cimport Py_XDECREF
from libc.math cimport INFINITY

from .common.order import PHASES
from .engine import stack
from .engine.calls import as_coroutine, refuse_coroutine
from .engine.deadlines import Deadlines, clock_of
from .engine.driver import STATES, DriverBase, can_catch_first_steps
from .engine.exceptions import chain
from .engine.limited import UNSET as UNSET_DEADLINE
from .engine.limited import AttemptsBase
from .engine.record import Record
from .engine.resources import Resource as HeldResource
from .engine.run import RunBase
from .engine.seen import seen
from .engine.sharing import may_share
from .engine.starting import start_by_factory
from .engine.work import FIELDS
from .engine.work import OUTCOME as OUTCOME_KIND
from .engine.work import RESOURCE as RESOURCE_KIND
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

cdef enum State:  # of a driver
    NEW
    STEPPING
    SUSPENDED
    PAUSING
    HOLDING
    BREAKING
    ENDED

assert STATES == ("new", "stepping", "suspended", "pausing", "holding", "breaking", "ended")

cdef enum:
    PRE = 0
    EXECUTE = 1
    POST = 2

cdef enum:  # the fields of a `Work`
    FUNCTION
    LIMITS
    TASK_NAME
    FEEDS
    KIND
    TIMEOUT
    USERS_NAME
    IS_SPECIAL

assert FIELDS == (FUNCTION, LIMITS, TASK_NAME, FEEDS, KIND, TIMEOUT, USERS_NAME, IS_SPECIAL)

cdef double UNSET = UNSET_DEADLINE
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
    coroutine = task.get_coro()
    return (
        Py_REFCNT(task),
        Py_REFCNT(coroutine),
        Py_REFCNT(context),
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
    wind_up = RunBase.wind_up
    cancel_suspended = RunBase.cancel_suspended
    bounded = RunBase.bounded
    cut_off = RunBase.cut_off
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
    limit_broken = RunBase.limit_broken
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
    cdef Py_ssize_t places_taken  # the number that are
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
    cdef public object deadlines
    cdef object clock  # the loop's, once a timeout asks for it
    cdef readonly object watch
    cdef public bint interrupted  # by its caller, who may not wait any more
    cdef public bint shaken  # its caller was cancelled once more, in this pass of the loop
    cdef public bint deferred  # nothing is opened or called until the loop calls `go_on`
    cdef public bint is_lazy  # the task factory: what it starts begins in its turn of the loop
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
                start_by_factory(self)
            else:
                start_ready(self)
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

    cdef inline bint is_of_resource(self, Py_ssize_t index) noexcept:
        """Return True if this is the cleanup of a resource."""
        return self.number == POST and (<tuple>self.work[index])[KIND] is RESOURCE

    cdef Py_ssize_t take_held(self) noexcept:
        if self.deferred or not self.held:
            return -1
        index = self.held.pop(0)
        if not self.held:
            self.held = None
        return index

    cpdef int put_back(self, Py_ssize_t index) except -1:
        """Keep what was taken and not called, to be taken again."""
        if self.held is None:
            self.held = []
        self.held.insert(0, index)
        return 0

    cdef inline bint is_ready(self) noexcept:
        """Return True if there is a task to take, and a place for it."""
        if self.held is not None:
            return not self.deferred
        return self.places_taken < self.places and (
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
                    self.count_down((<tuple>self.work[index])[FEEDS], opening)
        opened.sort()
        self.queue.extend(opened)
        self.pending += len(opened)
        return 0

    cpdef int finish(self) except -1:
        if self.watch is not None:
            self.tell("phase_finished")
        self.over = True
        self.parent = None  # its result may be an error, and by that lead to the run
        if self.deadlines is not None or self.waiter is not None:
            try:
                self.wind_up()
            except BaseException as error:
                self.take_fatal(error)
                self.wind_up()  # nobody else would wake the caller up
        return 0

    cpdef int keep(self, Py_ssize_t index, value) except -1:
        if self.values is None:
            self.values = {}
        self.values[self.plan.key(self.number, index)] = value
        return 0

    cpdef double now(self) except? -1:
        """Return the time of the loop's clock."""
        if self.clock is None:
            self.clock = clock_of(self.loop)
        return time_names["monotonic"]() if self.clock is time else self.clock()

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

    cpdef Py_ssize_t take_next(self) noexcept:
        return self.take() if self.places_taken < self.places and self.is_ready() else -1

    cpdef Driver lone_driver(self, Py_ssize_t index):
        cdef Driver driver = new_driver(self, index)
        driver.shared = False
        driver.lone = True
        return driver

    cpdef int link(self, Driver driver) except -1:
        """Count a driver among the suspended ones."""
        if driver.linked:
            return 0
        driver.linked = True
        self.places_taken += 1
        if self.last is None:
            self.first = driver
        else:
            self.last.following = driver
            driver.preceding = self.last
        self.last = driver
        return 0

    cdef int unlink(self, Driver driver) except -1:
        driver.linked = False
        self.places_taken -= 1
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

    # The parts that are not hot. See `DriverBase` and `AttemptsBase`.
    shelter = DriverBase.shelter
    spare = DriverBase.spare
    is_stepped = DriverBase.is_stepped
    disturb = DriverBase.disturb
    refuse_running = DriverBase.refuse_running
    close = DriverBase.close
    begun = DriverBase.begun
    has_broken = DriverBase.has_broken
    task_ended = DriverBase.task_ended
    place = AttemptsBase.place
    covers = AttemptsBase.covers
    begin_special = AttemptsBase.begin_special
    other_call = AttemptsBase.other_call
    let_in = AttemptsBase.let_in
    arguments = AttemptsBase.arguments
    owed = AttemptsBase.owed
    late_deadline = AttemptsBase.late_deadline
    expire = AttemptsBase.expire
    time_out = AttemptsBase.time_out
    limit = AttemptsBase.limit
    settle = AttemptsBase.settle
    unasked = AttemptsBase.unasked
    what_follows = AttemptsBase.what_follows
    goes_on = AttemptsBase.goes_on

    cdef readonly Run run  # None: it has ended
    cdef readonly Py_ssize_t index
    cdef public object task
    cdef readonly object context  # that of the asyncio.Task
    cdef readonly object coroutine
    cdef readonly tuple called  # the `Work` of the function that was called last
    cdef public object first_step  # on 3.11: kept from the loop
    cdef Driver preceding
    cdef Driver following
    cdef bint linked  # among the suspended ones of the run
    cdef State state_now
    cdef bint taken  # its function, and not yet called
    cdef bint lone  # in an asyncio.Task of a task factory's
    cdef bint shared  # as long as no function has suspended
    cdef readonly object resource  # that is held, or is cleaned up
    cdef void *weakrefs  # of the asyncio.Task that no function has taken hold of
    cdef Py_ssize_t references
    cdef Py_ssize_t own_references
    cdef Py_ssize_t context_references
    # The attempts at a function that has a timeout or retries.
    cdef readonly Py_ssize_t number  # of the attempt
    cdef public object error  # what left the last one
    cdef public object history  # from the first failure on
    cdef bint instead  # something may be called in place of the function
    cdef bint falls_back  # what follows is the fallback
    cdef public double began  # the first one
    cdef public double started  # the last one
    cdef readonly object pause
    cdef double delay  # of the pause
    cdef readonly double awaited  # the deadline
    cdef bint wants_timer  # none is set yet for the deadline
    cdef bint leftover  # a cancellation that the attempt before the pause asked for is to come
    cdef public bint expired
    cdef public bint timed_out
    cdef bint in_shelter  # a cleanup that the end of the loop must not cut short
    cdef public object sheltered  # the future that it waits for
    cdef public bint spared
    cdef public Py_ssize_t requests  # to cancel the asyncio.Task, when the timer fired
    cdef public Py_ssize_t cancelling  # requests that earlier attempts have left open
    cdef public long long serial  # of the timer that is set
    cdef object __weakref__

    @property
    def state(self):
        """One of `STATES`."""
        return STATES[self.state_now]

    @property
    def limits(self):
        return (<tuple>self.run.work[self.index])[LIMITS]

    @property
    def deadline(self):
        """The deadline of the attempt, until its timer is set."""
        return self.awaited if self.wants_timer else None

    @deadline.setter
    def deadline(self, moment):
        self.wants_timer = moment is not None
        if moment is not None:
            self.awaited = moment

    cdef object begin(self):
        """Call functions until one suspends, and return the future that it waits for."""
        cdef Run run = self.run
        if self.lone:
            try:
                self.task = current_task(run.loop)
                if self.task is not None:
                    self.task.set_name((<tuple>run.work[self.index])[TASK_NAME])
            except BaseException as error:
                run.break_down(error)
        else:
            self.task = current_task(run.loop)
            self.weakrefs = sdax_weakrefs(self.task)
            self.references = Py_REFCNT(self.task) if SHARING else -1
            self.own_references = Py_REFCNT(self)
            self.context_references = Py_REFCNT(self.context)
        self.in_shelter = run.interrupted and run.number == POST
        self.taken = False
        yielded = self.step(CALL, None)
        if self.run is not None and self.state_now != HOLDING:
            self.suspend()
        return yielded

    cdef int suspend(self) except -1:
        """Keep the `asyncio.Task` for this function, from its first suspension on."""
        cdef Run run = self.run
        self.shared = False
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
        self.state_now = ENDED
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
            limits = (<tuple>run.work[self.index])[LIMITS]
            if how == CALL and limits is not None:
                self.begin_attempt()
            elif run.watch is not None:
                self.tell("attempt_resumed")
            if how == SEND:
                status = PyIter_Send(self.coroutine, None, &outcome)
            elif how == CALL:
                status = self.call_function(&outcome)
                if status == RAISED and self.instead:
                    run.break_down(sdax_take_error())  # a call of ours has failed: repeat it
                    status = self.call_function(&outcome)
                    self.instead = False
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
                error = self.end_attempt(value, error)
                if error is not None and self.is_followed(error):
                    if not self.falls_back or self.task._must_cancel:
                        return self.begin_pause()
                    how = CALL
                    continue
                if error is not None:
                    error, self.error = self.error, None
            if status == YIELDED:
                return self.hold(run, value)
            if not self.shared:
                return self.finish(value, error, False)
            self.end_function(run, value, error, False)
            while True:
                self.index = -1
                if run.places_taken < run.places and not self.has_traces(run):
                    self.index = run.take()
                if self.index < 0:
                    self.release()
                    return None
                if not run.is_of_resource(self.index):
                    break
                clean_up(run, self.index)
            if sdax_set_name(self.task, (<tuple>run.work[self.index])[TASK_NAME]) < 0:
                self.taken = True
                raise sdax_take_error()
            how = CALL

    cdef inline bint has_traces(self, Run run) noexcept:
        """Return True if somebody could tell that the next function gets the `asyncio.Task` of the
        last one."""
        return (
            Py_REFCNT(self.task) != self.references
            or Py_REFCNT(self) != self.own_references
            or Py_REFCNT(self.context) != self.context_references
            or sdax_variables(self.context) != sdax_variables(run.context)
            or sdax_weakrefs(self.task) != self.weakrefs
            or sdax_is_marked(self.task)
            or run.contexts is not None
        )

    cdef int call_function(self, PyObject **outcome) noexcept:
        """Call the function and step its coroutine once."""
        cdef tuple work = <tuple>self.run.work[self.index]
        cdef PyObject *returned
        self.called = work
        if self.instead:
            returned = (<GuardedCall>call_instead)(self, work)
            if returned is NULL:
                return RAISED
            self.instead = False
            instead = <object>returned
            Py_XDECREF(returned)
            if instead is not None:
                self.coroutine = instead
                return PyIter_Send(self.coroutine, None, outcome)
        if work[KIND] is False or work[KIND] is True:
            returned = PyObject_CallOneArg(work[FUNCTION], self.run.ctx)
        elif self.resource is not None:
            return PyIter_Send(self.coroutine, None, outcome)  # on from its `yield`
        else:
            returned = (<GuardedCall>call_otherwise)(self, work)
        if returned is NULL:
            return RAISED
        if work[KIND] is True and not PyCoro_CheckExact(<object>returned):
            outcome[0] = returned
            return RETURNED
        self.coroutine = <object>returned
        Py_XDECREF(returned)
        if work[KIND] is True:
            self.make_coroutine(refuse_coroutine)
            return RAISED
        if not PyCoro_CheckExact(self.coroutine) and self.make_coroutine(as_coroutine) < 0:
            return RAISED
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
        if self.number:
            self.go_on()
        self.number += 1
        self.instead = work[IS_SPECIAL] is True or (
            self.history is not None and self.history.covered is not None
        )
        if run.watch is not None:
            self.tell("attempt_started")
        if work[TIMEOUT] is not None or self.instead or self.history is not None:
            if (<GuardedStep>set_deadline)(self) < 0:
                run.break_down(sdax_take_error())
                self.awaited = UNSET
                self.wants_timer = True
        return 0

    cdef int tell(self, what) except -1:
        """Tell the observers of the attempt."""
        cdef Run run = self.run
        try:
            run.tell(what, run.number, self.index, self.number)
        except BaseException as error:
            run.break_down(error)
        return 0

    cdef int go_on(self) except -1:
        """Go on after an attempt that has failed, with another one or with the fallback."""
        cdef Run run = self.run
        falls_back, self.falls_back = self.falls_back, False
        try:
            self.goes_on(falls_back)
        except BaseException as broken:
            run.break_down(broken)
            chain(broken, self.error)
            self.error = None
        return 0

    cdef object end_attempt(self, value, error):
        """Return what an attempt leaves."""
        cdef Run run = self.run
        cdef bint special = (<tuple>run.work[self.index])[IS_SPECIAL] is True
        self.wants_timer = False
        self.serial = 0
        if not (
            special
            or error is not None
            or self.expired
            or self.history is not None
            or run.watch is not None
        ):
            return None
        left = error
        try:
            error = self.settle(special, value, error)
        except BaseException as broken:
            # It is what the run ends with, and nothing that the function raised is lost.
            run.break_down(broken)
            chain(broken, left)
        return error

    cdef bint is_followed(self, error) except -1:
        """Return True if another attempt or the fallback follows. Else `error` is the failure."""
        self.error = error
        try:
            delay, self.falls_back = self.what_follows()
        except BaseException as broken:
            self.run.break_down(broken)
            chain(broken, error)
            return False
        self.delay = 0 if delay is None else delay
        return delay is not None or self.falls_back

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
        try:
            if run.watch is not None and not self.falls_back:
                run.tell("retry_scheduled", *self.place(), self.delay, error)
            if self.task._must_cancel:
                # The attempt that is over asked for it, or a group inside of it.
                self.leftover = True
                self.state_now = PAUSING
                return None
            return self.wait()
        except BaseException as exception:
            chain(exception, error)
            raise

    cdef object wait(self):
        """Return what to wait for in a pause."""
        cdef Run run = self.run
        self.state_now = PAUSING
        if self.delay <= 0:
            return None
        self.pause = run.loop.create_future()
        self.set_timer(<double>run.loop.time() + self.delay)
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

    cdef int set_timer(self, double when) except -1:
        cdef Run run = self.run
        if run.deadlines is None:
            run.deadlines = Deadlines(run.loop, run.context, run.break_down)
        self.serial = run.deadlines.add(when, self)
        return 0

    cdef int end_function(self, Run run, value, error, bint pausing) except -1:
        """Take note of how the function has ended."""
        cdef tuple gates
        if value is not None and type(value) is FINISH:
            number = self.number or 1
            run.ends_early(self.index, value, number, self.take_history())
            return 0
        if error is not None or self.number > 1 or run.watch is not None:
            self.end_attempts(run, value, error, pausing)
            if error is not None:
                return 0
        self.number = 0
        if value is not None:
            run.keep(self.index, value)
        gates = <tuple>(<tuple>run.work[self.index])[FEEDS]
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
        try:
            run.hold_resource(self.index, resource, self)
            self.end_function(run, value, None, False)
            if not run.pumping and run.is_ready():
                run.pump()
        except BaseException as error:
            run.break_down(error)
        self.state_now = HOLDING
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
                self.state_now = HOLDING
                return resource
            if not resource.broken:  # by other code, which has thrown into the coroutine
                resource.thrown = exception
            resource.broken = True
        self.spared = False
        self.in_shelter = run.interrupted
        if not self.linked:
            try:
                run.limit_broken(self.index, resource)
            except BaseException as error:
                run.break_down(error)
            return self.break_on(SEND, None)
        return self.step(CALL, None)

    cdef object break_on(self, How how, exception):
        """Clean up a resource that has broken while it was held."""
        cdef PyObject *outcome = NULL
        cdef int status
        if how == SEND:
            status = PyIter_Send(self.coroutine, None, &outcome)
        else:
            status = self.throw_into(exception, &outcome)
        if status == YIELDED:
            value = <object>outcome
            Py_XDECREF(outcome)
            self.state_now = BREAKING
            return self.shelter_surely(value) if self.in_shelter else value
        error = sdax_take_error()  # it never returns
        try:
            self.has_broken(error)
        except BaseException as broken:
            self.resource.driver = None
            chain(broken, error)
            raise
        return None

    cdef object take_history(self):
        """Return what came before the last attempt, and forget the attempts."""
        history, self.history = self.history, None
        self.number = 0
        self.timed_out = False
        self.cancelling = 0
        return history

    cdef int end_attempts(self, Run run, value, error, bint pausing) except -1:
        """Take note of a function that is not a plain success."""
        cdef Py_ssize_t attempts = self.number
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

    cdef object resume(self, State was, How how, exception):
        """Go on after a suspension, in this state."""
        if was == HOLDING:
            return self.hold_no_more(how, exception)
        if self.in_shelter:
            if how == THROW and self.spare_surely(exception):
                self.state_now = was
                return self.shelter_surely(self.sheltered)
            self.sheltered = None
        if was == BREAKING:
            return self.break_on(how, exception)
        if self.leftover:
            self.leftover = False
            if how == SEND or not self.run.is_stopping():
                return self.wait()
        if was == PAUSING:
            self.pause = None
            self.serial = 0
            if how == SEND:
                how = CALL
            else:
                # The attempt that failed is the last one then, because a cancellation came.
                error, self.error = self.error, None
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
        if self.error is not None:
            chain(error, self.error)
            self.error = None
        run.break_down(error)
        if self.taken:
            run.put_back(self.index)
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
        return self.coroutine is not None or self.state_now in (STEPPING, PAUSING)

    cpdef bint is_running(self) except -1:
        return self.state_now == STEPPING or getattr(self.coroutine, "cr_running", False)

    cpdef bint has_expired(self) noexcept:
        return self.expired

    cpdef tuple attempts_made(self):
        return self.number or 1, self.history

    def discard(self):
        """Let go of everything before the first step, or of a function that was given up."""
        self.release()

    # What asyncio.Task asks of a coroutine.

    def __next__(self):
        cdef Run run = self.run
        cdef PyObject *yielded
        if self.state_now == STEPPING:
            raise ValueError("coroutine already executing")
        if run is not None:
            yielded = (<Guarded>next_step)(self)
            if self.state_now == STEPPING:
                self.state_now = SUSPENDED
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
        cdef State was
        if self.is_running():
            self.refuse_running()
        if run is not None and self.is_open() and not self.is_stepped_surely():
            return self.disturb(THROW_METHOD, exception)
        if run is not None:
            was = self.state_now
            if was == NEW:
                self.never_called(exception)
                raise exception
            self.state_now = STEPPING
            try:
                yielded = self.resume(was, THROW, exception)
            except BaseException as error:
                yielded = None
                self.broken(run, error)
            if self.state_now == STEPPING:
                self.state_now = SUSPENDED
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
        return seen(self, name)

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


# A function as it is called where what it raises is taken like any other outcome: a `try` would
# cost each step.
ctypedef PyObject *(*Guarded)(Driver) noexcept
ctypedef int (*GuardedStep)(Driver) noexcept
ctypedef int (*GuardedStart)(Run, Driver, dict) noexcept
ctypedef PyObject *(*GuardedCall)(Driver, tuple) noexcept


cdef object call_otherwise(Driver driver, tuple work):
    """Call a function that is neither one of the context alone, nor a plain one."""
    cdef Run run = driver.run
    if work[KIND] is OUTCOME:
        return work[FUNCTION](run.ctx, run.outcome())
    return run.set_up(driver.index)


cdef object call_instead(Driver driver, tuple work):
    return driver.other_call(work)


cdef int set_deadline(Driver driver) except -1:
    cdef Run run = driver.run
    cdef tuple work = <tuple>run.work[driver.index]
    cdef double now, seconds
    if driver.instead or driver.history is not None:
        driver.begin_special(work)
        return 0
    now = run.now()
    driver.began = now
    seconds = work[TIMEOUT]
    driver.awaited = now + seconds if seconds > 0 else -INFINITY
    driver.wants_timer = True
    return 0


cdef int set_timeout(Driver driver) except -1:
    """Set the timer of a timeout: only what suspends can take long."""
    if driver.awaited == UNSET:
        driver.deadline = driver.late_deadline()
        if not driver.wants_timer:
            return 0
    if driver.awaited == -INFINITY:
        driver.time_out()
    else:
        driver.set_timer(driver.awaited)
    driver.wants_timer = False
    return 0


cdef object next_step(Driver driver):
    cdef State was = driver.state_now
    driver.state_now = STEPPING
    return driver.begin() if was == NEW else driver.resume(was, SEND, None)


cdef inline Driver new_driver(Run run, Py_ssize_t index):
    cdef Driver driver = Driver.__new__(Driver)
    driver.run = run
    driver.index = index
    driver.taken = True
    driver.shared = True
    return driver


cdef dict TASK_ARGUMENTS = {"loop": None, "name": None, "context": None}
if EAGER_START:
    TASK_ARGUMENTS["eager_start"] = True


cdef int start_ready(Run run) except -1:
    """Start a driver in a new `asyncio.Task` while there is something to call, and a place."""
    cdef Driver driver
    cdef dict arguments
    cdef Py_ssize_t index
    loop = run.loop
    current = None
    if not EAGER_START:
        if not can_catch(loop):
            start_by_factory(run)
            return 0
        current = current_tasks.pop(loop, None)
    arguments = TASK_ARGUMENTS.copy()  # which is less work than to make it again
    arguments["loop"] = loop
    try:
        while run.places_taken < run.places and run.is_ready():
            index = run.take()
            if run.is_of_resource(index):
                clean_up(run, index)
                continue
            driver = new_driver(run, index)
            if (<GuardedStart>start)(run, driver, arguments) < 0:
                start_failed(run, driver, sdax_take_error())
    finally:
        if current is not None:
            current_tasks[loop] = current
    return 0


cdef int clean_up(Run run, Py_ssize_t index) except -1:
    """Have a resource go on in its own `asyncio.Task`."""
    try:
        run.clean_up(index)
    except BaseException as error:  # it was not even called
        run.break_down(error)
        run.clean_up(index)
    return 0


cdef int start(Run run, Driver driver, dict arguments) except -1:
    driver.context = PyContext_Copy(
        run.context if run.contexts is None else run.contexts.of(run.number, driver.index)
    )
    arguments["name"] = (<tuple>run.work[driver.index])[TASK_NAME]
    arguments["context"] = driver.context
    if EAGER_START:
        PyObject_Call(Task, (driver,), arguments)
        return 0
    return start_early(run.loop, driver, arguments)


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


cdef int start_early(loop, Driver driver, dict arguments) except -1:
    """Do what `eager_start` does from Python 3.12 on, where asyncio's own hooks cost too much.

    An `asyncio.Task` gives its first step to the loop's `call_soon`, in whose place the driver
    catches it. A loop that somebody has given another `call_soon` makes and starts each
    `asyncio.Task` itself.
    """
    context = driver.context
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
