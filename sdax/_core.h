/* What the compiled engine asks of CPython and its asyncio, and Cython has no words for. */

#include <Python.h>

/* asyncio.Task is asked after each function whether it left a trace: the C functions behind
   its methods and attributes are called without the way through the interpreter. */
static PyCFunction sdax_task_set_name;
static PyGetSetDef *sdax_task_callbacks;
static PyGetSetDef *sdax_task_must_cancel;
#if PY_VERSION_HEX >= 0x030E0000
static PyGetSetDef *sdax_task_awaited_by;
#endif

static PyGetSetDef *sdax_attribute(PyObject *type, const char *name) {
    PyGetSetDef *attribute = NULL;
    PyObject *descriptor = PyObject_GetAttrString(type, name);
    if (descriptor == NULL)
        return NULL;
    if (Py_IS_TYPE(descriptor, &PyGetSetDescr_Type))
        attribute = ((PyGetSetDescrObject *)descriptor)->d_getset;
    else
        PyErr_Format(PyExc_ImportError, "asyncio.Task.%s is not what it is in CPython", name);
    Py_DECREF(descriptor);
    return attribute;
}

static PyCFunction sdax_method_of_one(PyObject *type, const char *name) {
    PyCFunction function = NULL;
    PyObject *method = PyObject_GetAttrString(type, name);
    if (method == NULL)
        return NULL;
    if (Py_IS_TYPE(method, &PyMethodDescr_Type)
        && ((PyMethodDescrObject *)method)->d_method->ml_flags == METH_O)
        function = ((PyMethodDescrObject *)method)->d_method->ml_meth;
    else
        PyErr_Format(PyExc_ImportError, "asyncio.Task.%s is not what it is in CPython", name);
    Py_DECREF(method);
    return function;
}

static int sdax_know_task(PyObject *type) {
    if ((sdax_task_set_name = sdax_method_of_one(type, "set_name")) == NULL
        || (sdax_task_callbacks = sdax_attribute(type, "_callbacks")) == NULL
        || (sdax_task_must_cancel = sdax_attribute(type, "_must_cancel")) == NULL)
        return -1;
#if PY_VERSION_HEX >= 0x030E0000
    if ((sdax_task_awaited_by = sdax_attribute(type, "_asyncio_awaited_by")) == NULL)
        return -1;
#endif
    return 0;
}

/* Whether an attribute of a Task is anything but None or False. */
static inline int sdax_has(PyObject *task, PyGetSetDef *attribute) {
    PyObject *value = attribute->get(task, attribute->closure);
    int truth;
    if (value == NULL)
        return -1;
    truth = value == Py_None || value == Py_False ? 0 : PyObject_IsTrue(value);
    Py_DECREF(value);
    return truth;
}

/* A function that has not suspended leaves each request to cancel its Task in `_must_cancel`. */
static inline int sdax_is_marked(PyObject *task) {
    PyObject **attributes = _PyObject_GetDictPtr(task);
    int marked;
    /* Python 3.14 makes the dictionary for the question, so what counts is what is in it. */
    if (attributes != NULL && *attributes != NULL && PyDict_Size(*attributes) != 0)
        return 1;
    marked = sdax_has(task, sdax_task_callbacks);
    if (marked == 0)
        marked = sdax_has(task, sdax_task_must_cancel);
#if PY_VERSION_HEX >= 0x030E0000
    if (marked == 0)
        marked = sdax_has(task, sdax_task_awaited_by);
#endif
    return marked;
}

static inline int sdax_set_name(PyObject *task, PyObject *name) {
    PyObject *none = sdax_task_set_name(task, name);
    Py_XDECREF(none);
    return none == NULL ? -1 : 0;
}

/* The variables of a Context: an immutable map, which every change replaces. The struct is
   not public; sdax_know_context() makes sure that the map is where it is looked for. */
static inline void *sdax_variables(PyObject *context) {
    return ((void **)((char *)context + sizeof(PyObject)))[1];
}

static int sdax_know_context(void) {
    int known = 0;
    PyObject *variable = PyContextVar_New("sdax", NULL);
    PyObject *one = PyContext_CopyCurrent();
    PyObject *other = one == NULL ? NULL : PyContext_Copy(one);
    if (variable != NULL && other != NULL) {
        void *variables = sdax_variables(one);
        known = variables != NULL && variables == sdax_variables(other);
        if (PyContext_Enter(other) == 0) {
            PyObject *token = PyContextVar_Set(variable, variable);
            known = known && token != NULL && variables != sdax_variables(other)
                && variables == sdax_variables(one);
            Py_XDECREF(token);
            PyContext_Exit(other);
        }
    }
    Py_XDECREF(variable);
    Py_XDECREF(one);
    Py_XDECREF(other);
    if (!known && !PyErr_Occurred())
        PyErr_SetString(PyExc_ImportError, "contextvars.Context is not what it is in CPython");
    return known ? 0 : -1;
}

/* The head of the list of weak references changes with each that comes. */
static inline void *sdax_weakrefs(PyObject *task) {
    return *(void **)((char *)task + Py_TYPE(task)->tp_weaklistoffset);
}

static PyObject *sdax_take_error(void);

static PyObject *sdax_take_returned(void) {
    PyObject *value, *stop = sdax_take_error();
    if (stop == NULL)
        return NULL;
    value = ((PyStopIterationObject *)stop)->value;
    Py_XINCREF(value);
    Py_DECREF(stop);
    return value;
}

/* The error that is set. Without one, or without the memory for it, there is another one. */
static PyObject *sdax_take_error(void) {
#if PY_VERSION_HEX >= 0x030C0000
    PyObject *error = PyErr_GetRaisedException();
#else
    PyObject *type, *error, *traceback;
    PyErr_Fetch(&type, &error, &traceback);
    PyErr_NormalizeException(&type, &error, &traceback);
    if (traceback != NULL)
        PyException_SetTraceback(error, traceback);
    Py_XDECREF(type);
    Py_XDECREF(traceback);
#endif
    if (error == NULL && !PyErr_Occurred())
        PyErr_SetString(PyExc_SystemError, "a coroutine failed without an exception");
    return error;
}

/* How many pumps are under way on the stack of this thread: runs inside of runs. */
#ifdef _MSC_VER
static __declspec(thread) int sdax_pumps = 0;
#else
static _Thread_local int sdax_pumps = 0;
#endif

/* Whether an exception is being handled, which a function that is called would see. */
static inline int sdax_is_handling(void) {
    PyObject *handled = PyErr_GetHandledException();
    int handling = handled != NULL && handled != Py_None;
    Py_XDECREF(handled);
    return handling;
}
