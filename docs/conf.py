"""The pages as a site: `make docs`. Its source is the whole repository, so that links are the same on both."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent / ".venv/src"))  # headstart, wherever the clone lies

project = "headstart"
author = copyright = "headstart maintainers"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "docs/index"
source_suffix = {".md": "markdown"}
include_patterns = ["*.md", "docs/*.md", "cache/*.md", "bench/*.md", "demo/*.md", "tests/*.md"]
html_theme = "furo"
html_title = "headstart"
myst_heading_anchors = 3
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True
autodoc_member_order = "bysource"
napoleon_use_ivar = True
suppress_warnings = ["myst.header"]  # tests/BAD_INPUTS.md has no title
