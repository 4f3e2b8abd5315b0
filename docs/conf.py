"""How Sphinx builds these pages: `make docs`."""

import sys
from pathlib import Path

import sdax

sys.path.insert(0, str(Path(__file__).parent / "_extensions"))
from repository import ADDRESS, COMMIT

project = "sdax"
author = "The sdax developers"
version = release = sdax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx_copybutton", "repository", "signatures"]
myst_heading_anchors = 3
default_role = "py:obj"  # what stands in backquotes in a docstring links to what it names
autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 80
python_use_unqualified_type_names = True
exclude_patterns = ["_build"]
copybutton_exclude = ".linenos, .gp, .go"  # the prompt of a doctest, and what it prints

html_theme = "furo"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_title = f"sdax {release}"
html_static_path = ["_static"]
html_css_files = ["sdax.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
if ADDRESS:
    html_theme_options = {
        "source_view_link": f"{ADDRESS}/blob/{COMMIT}/docs/{{filename}}",
        "top_of_page_buttons": ["view"],
    }
