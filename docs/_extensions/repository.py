"""Links to the repository, and pictures for a dark ground."""

import re
import tomllib
from pathlib import Path
from typing import Any

import sdax

ROOT = Path(__file__).parents[2]
ADDRESS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["sdax"][
    "address"
].rstrip("/")
# In which commit of it everything is as these pages say.
COMMIT = "HEAD" if "dev" in sdax.__version__ else f"v{sdax.__version__}"

# As GitHub shows it: the first picture on a dark ground, the second on a light one.
PICTURE = re.compile(
    r'<picture>\s*<source media="\(prefers-color-scheme: dark\)" srcset="(?P<dark>[^"]+)">\s*'
    r'<img src="(?P<light>[^"]+)"\s+alt="(?P<alt>[^"]+)">\s*</picture>'
)


def change_source(app: Any, page: str, source: list[str]) -> None:
    """Let what GitHub shows be shown by Sphinx as well."""
    text = source[0]
    if ADDRESS:
        text = text.replace("](../", f"]({ADDRESS}/blob/{COMMIT}/")
        if page == "index":  # in the last of its lists, and so beside every page
            text = re.sub("\n```\\s*$", f"\nSource code <{ADDRESS}>\\g<0>", text)
    else:  # a page that is not one of these would be a link to nowhere
        text = re.sub(r"\[([^]]+)\]\(\.\./[^)]+\.md\)", r"\1", text)
    source[0] = PICTURE.sub(
        lambda found: "".join(
            f"```{{image}} {found[shade]}\n:alt: {' '.join(found['alt'].split())}\n"
            f":class: only-{shade}\n```\n\n"
            for shade in ("light", "dark")
        ),
        text,
    )


def setup(app: Any) -> dict[str, bool]:
    app.connect("source-read", change_source)
    return {"parallel_read_safe": True}
