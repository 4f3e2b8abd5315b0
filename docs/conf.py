"""How Sphinx builds these pages: `make docs`."""

import sdax

project = "sdax"
author = "The sdax developers"
version = release = sdax.__version__

extensions = ["myst_parser", "sphinx.ext.autodoc"]
myst_heading_anchors = 3
default_role = "py:obj"  # what stands in backquotes in a docstring links to what it names
autodoc_default_options = {"members": True, "member-order": "bysource"}
maximum_signature_line_length = 80
exclude_patterns = ["_build"]

html_theme = "furo"
pygments_style = "friendly"
pygments_dark_style = "github-dark"
html_title = f"sdax {release}"
html_static_path = ["_static"]
html_css_files = ["sdax.css"]
html_copy_source = False
html_show_copyright = False
html_show_sphinx = False
