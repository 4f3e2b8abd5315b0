"""HTML pages that need nothing else: no network, no other file."""

from __future__ import annotations

from base64 import b64encode
from hashlib import sha256
from html import escape
from importlib.resources import files
from typing import Final

# Nothing is loaded, and no script runs but the page's own, whatever got into the page. Styles may
# stand in attributes, as the places of bars do.
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
    """Return a whole page, in the style of all of them, light or dark as the reader has it.

    `body` is HTML. What has an attribute `data-tip` shows that text while one points at it.
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
    """Return a text as HTML that shows it, inside of tags and of quoted attributes."""
    # A lone surrogate cannot be written to a file.
    return escape(plain.encode("utf-8", "backslashreplace").decode())


def _asset(name: str) -> str:
    return files("sdax.observe").joinpath(name).read_text(encoding="utf-8")
