"""How Sphinx builds these pages: `make docs`."""

import re
from typing import Any

import sdax

project = "sdax"
author = "The sdax developers"
version = release = sdax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
default_role = "py:obj"  # what stands in backquotes in a docstring links to what it names
autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
exclude_patterns = ["_build"]

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

html_theme = "furo"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_title = f"sdax {release}"
html_static_path = ["_static"]
html_css_files = ["sdax.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False


def simplify(app: Any, what: str, name: str, *event: Any) -> tuple[str, str | None] | None:
    """Leave out how to make what sdax makes; show classes and functions in defaults by name."""
    *_, signature, returns = event
    if name in NOT_TO_BE_CALLED:
        return "", None
    if signature is None:
        return None
    return re.sub(
        r"<class '(?:\w+\.)*(\w+)'>|<built-in function (\w+)>", r"\1\2", signature
    ), returns


def mend_plurals(app: Any, *event: Any) -> None:
    """Let a letter follow a backquote, as in `AsyncTask`s."""
    lines: list[str] = event[-1]
    lines[:] = [re.sub(r"(?<=\w)`(?=\w)", "`\\\\ ", line) for line in lines]


def setup(app: Any) -> None:
    app.connect("autodoc-process-docstring", mend_plurals)
    app.connect("autodoc-process-signature", simplify)
