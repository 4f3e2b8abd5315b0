"""HTML pages that need nothing else: no network, no other file."""

from __future__ import annotations

from html import escape
from importlib.resources import files

PAGE = """\
<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
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
<script>
{script}</script>
</body>
</html>
"""


def page(title: str, body: str) -> str:
    """Return a whole page, in the style of all of them, light or dark as the reader has it.

    `body` is HTML. What has an attribute `data-tip` shows that text while one points at it.
    """
    return PAGE.format(
        title=text(title), style=_asset("page.css"), body=body, script=_asset("page.js")
    )


def text(plain: str) -> str:
    """Return a text as HTML that shows it, inside of tags and of quoted attributes."""
    # A lone surrogate cannot be written to a file.
    return escape(plain.encode("utf-8", "backslashreplace").decode())


def _asset(name: str) -> str:
    return files("sdax.observe").joinpath(name).read_text(encoding="utf-8")
