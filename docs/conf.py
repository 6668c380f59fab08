"""Settings of the site: `make docs` builds it from the repository, without a network.

Sphinx with MyST-NB and not Jupyter Book: version 1 of that is these two with fewer settings, and
version 2 builds with Node.js and cannot read docstrings.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parent.parent)]

from finemem_lib import __version__  # noqa: E402

project = "Fine-Mem workbench"
author = "The Fine-Mem workbench authors"
copyright = "Apache-2.0"
release = __version__

# The sources are the repository itself, so that the links of README, CONTRIBUTING and notebooks
# lead to the same files on the site as they do in a checkout.
root_doc = "README"
include_patterns = [
    "*.md",
    "docs/**",
    "notebooks/*.ipynb",
    "notebooks/*.md",
    "schedulers/README.md",
    "data/*/README.md",
]
exclude_patterns = [".*", "site", "data/runs", "data/models", "docs/static", "docs/templates"]
extensions = [
    "myst_nb",
    "sphinx.ext.autodoc",
    "sphinx.ext.napoleon",
    "site_parts",
]

nb_execution_mode = "off"  # the notebooks are committed with their outputs
nb_mime_priority_overrides = [("html", "image/png", None)]
myst_enable_extensions = ["dollarmath", "amsmath"]
myst_heading_anchors = 4
html_math_renderer = "mathml"

autodoc_member_order = "bysource"
autodoc_typehints = "description"
autodoc_typehints_description_target = "documented"
autodoc_preserve_defaults = False
default_role = "py:obj"
napoleon_numpy_docstring = False
napoleon_use_ivar = True

html_theme = "furo"
html_title = project
html_static_path = ["static"]
html_css_files = ["site.css"]
templates_path = ["templates"]
html_additional_pages = {"index": "to_the_first_page.html"}
html_copy_source = False
html_show_sphinx = False
html_show_search_summary = False  # a page that is read from its file may fetch no other page
html_theme_options = {"navigation_with_keys": True}
