"""Signatures in the reference as a caller reads them."""

import inspect
import re
import sys
from typing import Any, get_type_hints

from docutils import nodes
from sphinx import addnodes
from sphinx.util.typing import stringify_annotation

from sdax import TaskFunction, events
from sdax.options import GraphOptions, LevelOptions, Options
from sdax.tasks import Limits
from sdax.testing import settings

# What sdax makes and its users do not.
NOT_TO_BE_CALLED = {
    "sdax.AsyncDagTaskProcessor",
    "sdax.AsyncPhaseRunner",
    "sdax.AsyncTaskProcessor",
    "sdax.PhaseId",
    "sdax.RunReport",
    "sdax.State",
    "sdax.observe.ObservedRun",
    "sdax.observe.Observer",
}

# Which class has the defaults of keyword arguments that functions share.
DEFAULTS: dict[Any, Any] = {
    Limits: TaskFunction,
    LevelOptions: Options,
    GraphOptions: Options,
    settings.Options: settings.Settings,
}

TYPE_VARIABLES = {"T": "Context", "T_contra": "Context", "K": "Name", "K_co": "Name"}
TYPE_VARIABLES |= {"V": "Value", "V_co": "Value", "R": "Result"}


def simplify(
    app: Any, what: str, name: str, subject: Any, options: Any, signature: Any, returns: Any
) -> tuple[str, str | None] | None:
    """Leave out how to make what sdax makes, show classes and functions in defaults by name, and
    name the keyword arguments that functions share."""
    if name in NOT_TO_BE_CALLED:
        return "", None
    if signature is None:
        return None
    signature = re.sub(r"<class '(?:\w+\.)*(\w+)'>|<built-in function (\w+)>", r"\1\2", signature)
    signature = re.sub(
        r"(?P<before>\*, .*)?\*\*\w+: ~?(?:typing\.)?"
        r"Unpack\[~?(?:\w+\.)*(?P<kind>\w+)(?:\[[^]]*\])?\]",
        lambda found: (found["before"] or "*, ") + _keywords(subject, found["kind"]),
        signature,
    )
    if "Unpack[" in signature:
        raise ValueError(f"{name}: not all keyword arguments are named: {signature}")
    return signature, returns


def _keywords(subject: Any, name: str) -> str:
    """Return the keyword arguments of a TypedDict, each with its type and its default.

    For the sake of its import, sdax knows the types of observers only where types are checked.
    """
    kind = getattr(sys.modules[subject.__module__], name)
    parameters = inspect.signature(DEFAULTS[kind]).parameters
    return ", ".join(
        f"{key}: {stringify_annotation(hint, 'smart')} = {_shown(parameters[key].default)}"
        for key, hint in get_type_hints(kind, localns=vars(events)).items()
    )


def _shown(default: Any) -> str:
    if isinstance(default, tuple):
        return f"({', '.join(map(_shown, default))})"
    return default.__name__ if isinstance(default, type) else repr(default)


def name_type_variables(app: Any, doctree: nodes.document) -> None:
    """Call the type variables what they stand for, in signatures."""
    for signature in doctree.findall(addnodes.desc_signature):
        for text in list(signature.findall(nodes.Text)):
            if text in TYPE_VARIABLES:
                text.parent.replace(text, nodes.Text(TYPE_VARIABLES[text]))


def mend_plurals(app: Any, *event: Any) -> None:
    """Let a letter follow a backquote, as in `AsyncTask`s."""
    lines: list[str] = event[-1]
    lines[:] = [re.sub(r"(?<=\w)`(?=\w)", "`\\\\ ", line) for line in lines]


def setup(app: Any) -> dict[str, bool]:
    app.connect("autodoc-process-docstring", mend_plurals)
    app.connect("autodoc-process-signature", simplify)
    app.connect("doctree-read", name_type_variables)
    return {"parallel_read_safe": True}
