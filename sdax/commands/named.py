"""Loads the objects that command-line arguments name: `module:attribute`."""

from __future__ import annotations

import argparse
import difflib
import importlib
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final, NoReturn, TypeAlias

from ..common.text import one_line, shown
from ..processor import (
    AsyncDagTaskProcessor,
    AsyncDagTaskProcessorBuilder,
    AsyncTaskProcessor,
    AsyncTaskProcessorBuilder,
)

Processor: TypeAlias = AsyncTaskProcessor[Any, Any] | AsyncDagTaskProcessor[Any, Any]

PROCESSORS: Final = (AsyncTaskProcessor, AsyncDagTaskProcessor)
BUILDERS: Final = (AsyncTaskProcessorBuilder, AsyncDagTaskProcessorBuilder)


def complain(args: argparse.Namespace, message: str) -> None:
    """Print one line about a problem."""
    print(f"python -m sdax {args.command}: {one_line(message)}", file=sys.stderr)


def refuse(args: argparse.Namespace, message: str) -> NoReturn:
    """Print one line about wrong arguments, and exit with status 2."""
    complain(args, message)
    raise SystemExit(2)


def load_processor(args: argparse.Namespace, name: str) -> Processor:
    """Return the processor of this name, or refuse it."""
    thing = load(args, name)
    if isinstance(thing, PROCESSORS):
        return thing
    hint = ""
    if isinstance(thing, BUILDERS):
        hint = "; did you forget .build()?"
    elif callable(thing):
        hint = "; name a variable that has a processor, because nothing is called here"
    refuse(args, f"{name} is not a processor, but {_kind(thing)}{hint}")


def load_function(
    args: argparse.Namespace, name: str, purpose: str = "that makes a context"
) -> Callable[..., Any]:
    """Return the function of this name, or refuse it."""
    function: Callable[..., Any] = load(args, name)
    if callable(function):
        return function
    refuse(args, f"{name} is not a function {purpose}, but {_kind(function)}")


def load(args: argparse.Namespace, name: str) -> Any:
    """Return the named object. Modules of the current directory are found too."""
    module_name, colon, path = name.partition(":")
    if not (colon and module_name and path):
        refuse(args, f"expected module:name, as in package.module:processor, got {shown(name)}")
    found: Any = _imported(args, module_name)
    for number, attribute in enumerate(path.split(".")):
        owner = ".".join(path.split(".")[:number])
        where = f"{module_name}:{owner}" if owner else f"module {module_name}"
        try:
            found = getattr(found, attribute)
        except AttributeError:
            refuse(args, f"{where} has no {shown(attribute)}{_hint(found, attribute)}")
        except (Exception, SystemExit) as error:
            refuse(args, f"{where} cannot give {shown(attribute)}: {_described(error)}")
    return found


def _imported(args: argparse.Namespace, name: str) -> Any:
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.insert(0, here)
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            refuse(args, f"there is no module {error.name}, here or where Python looks for modules")
        refuse(args, f"module {name} cannot be imported: {_described(error)}")
    except (Exception, SystemExit) as error:
        refuse(args, f"module {name} cannot be imported: {_described(error)}")


def _described(error: BaseException) -> str:
    """Return an exception on one line, with the place that raised it."""
    *_, text = traceback.format_exception_only(error)
    if isinstance(error, SyntaxError):
        return f"{text.strip()} (line {error.lineno} of {error.filename})"
    *_, last = traceback.extract_tb(error.__traceback__)
    return f"{text.strip()} (line {last.lineno} of {last.filename})"


def _hint(owner: Any, attribute: str) -> str:
    known = getattr(owner, "__dict__", {})  # an object with slots has none
    names = [name for name, value in known.items() if isinstance(value, PROCESSORS)]
    if close := difflib.get_close_matches(attribute, dir(owner), 1):
        return f"; did you mean {close[0]}?"
    return f"; it has the processors {', '.join(names)}" if names else ""


def _kind(thing: object) -> str:
    kind = thing if isinstance(thing, type) else type(thing)
    return f"the class {kind.__name__}" if thing is kind else f"of type {kind.__name__}"
