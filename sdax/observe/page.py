"""HTML pages that need no network and no other file."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Final

# The page loads nothing, and only its own script can run, even if a text contains HTML. Styles can
# be in attributes, because the positions of bars are.
POLICY: Final = (
    "default-src 'none'; script-src 'sha256-{digest}'; style-src 'unsafe-inline'; "
    "base-uri 'none'; form-action 'none'"
)

PAGE: Final = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>
{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
<script>{script}</script>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """Return a whole page in the common style, light or dark as the reader prefers.

    `body` is HTML. An element with an attribute `data-tip` shows that text under the pointer.
    """
    script = _asset("page.js")
    digest = b64encode(sha256(script.encode()).digest()).decode()
    return PAGE.format(
        policy=POLICY.format(digest=digest),
        title=text(title),
        style=_asset("page.css"),
        body=body,
        script=script,
    )


def text(plain: str) -> str:
    """Return a text as HTML, for use inside tags and quoted attributes."""
    # A lone surrogate cannot be written to a file.
    return escape(plain.encode("utf-8", "backslashreplace").decode())


def _asset(name: str) -> str:
    return files("sdax.observe").joinpath(name).read_text(encoding="utf-8")
