"""How Sphinx makes the site from the pages of this folder: `make docs`.

The site works when its files are opened: no page takes fonts, styles or scripts from elsewhere.
"""

from __future__ import annotations

import importlib
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from docutils import nodes
from sphinx.addnodes import toctree
from sphinx.application import Sphinx
from sphinx.util.nodes import make_refnode

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

project = "procbus"
author = "procbus authors"
copyright = author
language = "en"

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
source_suffix = {".md": "markdown"}
nitpicky = True
suppress_warnings = ["epub.unknown_project_files"]

# GitHub's anchors of headings: the pages are read there too.
myst_heading_anchors = 4
highlight_language = "none"

autodoc_member_order = "bysource"
autodoc_typehints = "signature"
autodoc_typehints_format = "short"
autodoc_class_signature = "mixed"
maximum_signature_line_length = 88
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_use_rtype = False
default_role = "code"
add_module_names = False

html_theme = "furo"
html_title = "procbus"
html_static_path = ["_static"]
html_css_files = ["procbus.css"]
html_copy_source = False
html_show_search_summary = False  # a page that is opened as a file may not read others
html_show_sphinx = False
html_show_copyright = False
html_theme_options = {"navigation_with_keys": True}
pygments_style = "friendly"
pygments_dark_style = "monokai"

#: The modules of the reference, each with its names; None for its `__all__`.
PUBLIC = {
    "procbus": None,
    "procbus.testing": None,
    "procbus.prometheus": ("Collector",),
    "procbus.otel": ("instrument",),
}


def public_names() -> dict[str, str]:
    """The module of each public name."""
    return {
        name: module
        for module, names in PUBLIC.items()
        for name in names or importlib.import_module(module).__all__
    }


# Docstrings are Markdown with Google's sections. Sphinx reads reStructuredText.


def as_restructured(
    app: Sphinx, what: str, name: str, thing: object, options: Any, lines: list[str]
) -> None:
    """Turn the Markdown of a docstring, its fences and links, into reStructuredText."""
    made: list[str] = []
    inside = ""  # the indentation of the fence that is open, with a mark
    returning = False  # after "Returns:", of which napoleon takes words before a colon for a type
    for line in lines:
        if line == "Returns:":
            returning = True
            continue
        if returning and line.startswith("    "):
            line = f":returns: {line.strip()}"
        returning = False
        fence = re.fullmatch(r"( *)```(\w*).*", line)
        if fence and not inside:
            made += ["", f"{fence[1]}.. code-block:: {fence[2] or 'none'}", ""]
            inside = fence[1] + "|"
        elif fence:
            made.append("")
            inside = ""
        elif inside:
            made.append(f"    {line}" if line.strip() else "")
        else:
            line = re.sub(r"(?<![`/])docs/([\w/-]+)\.md(?!`)", r":doc:`/\1`", line)
            made.append(re.sub(r"(?<![`:])(`[^`\n]+`)(?=\w)", r"\1\\ ", line))  # `name`s
    lines[:] = made


def as_downloads(app: Sphinx, docname: str, source: list[str]) -> None:
    """Have a link to a file of another folder of the project download it."""
    source[0] = re.sub(r"\]\(((?:\.\./)+(?:bench|tests)/)", r"](path:\1", source[0])


def put_side_by_side(app: Sphinx, doctree: nodes.document) -> None:
    """Have the scripts below "With joblib:" and "With procbus:" stand side by side.

    The last one is on the right, and all others on the left. Where there is no room, they stand one
    below the other, as they do in the file.
    """
    if not app.env.docname.startswith("coming-from/"):
        return
    for section in list(doctree.findall(nodes.section)):
        sides: list[list[nodes.Node]] = []
        for node in section.children:
            text = node.astext() if isinstance(node, nodes.paragraph) else ""
            if text.startswith("With ") and text.endswith(":"):
                sides.append([node])
            elif sides and isinstance(node, nodes.literal_block):
                sides[-1].append(node)
            elif sides:
                break
        if not sides:
            continue
        place = section.index(sides[0][0])
        both = nodes.container(classes=["side-by-side"])
        for part in sides[:-1], sides[-1:]:
            nodes_of_side = [node for side in part for node in side]
            for node in nodes_of_side:
                section.remove(node)
            both += nodes.container("", *nodes_of_side)
        section.insert(place, both)


def find_public(app: Sphinx, env: Any, node: Any, contnode: nodes.Element) -> nodes.Element | None:
    """Resolve a type of a signature: to a public name wherever its module, or to plain text."""
    if node.get("refdomain") != "py":
        return None
    last = node["reftarget"].rpartition(".")[2]
    module = public_names().get(last)
    if module is not None:
        domain = env.domains["py"]
        entry = domain.objects.get(f"{module}.{last}")
        if entry is not None and entry.docname:
            return make_refnode(
                app.builder, node["refdoc"], entry.docname, entry.node_id, contnode, last
            )
    return contnode


def write_llms(app: Sphinx, error: Exception | None) -> None:
    """Write llms.txt: a line for each page, with its title and its first sentence."""
    if error is not None or app.builder.format != "html":
        return
    lines = ["# procbus", "", f"> {inspect.getdoc(importlib.import_module('procbus'))}"]
    for caption, pages in sections_of(app.env.get_doctree(str(app.config.root_doc))):
        lines += ["", f"## {caption}", ""]
        for page in pages:
            doctree = app.env.get_doctree(page)
            title = app.env.titles[page].astext()
            lines.append(f"- [{title}]({page}.html): {first_sentence(doctree)}")
    (Path(app.outdir) / "llms.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def sections_of(index: nodes.document) -> Iterator[tuple[str, list[str]]]:
    """The lists of pages on the first page, each with its caption."""
    for tree in index.findall(toctree):
        yield tree["caption"], [page for _, page in tree["entries"]]


def first_sentence(page: nodes.document) -> str:
    """The first sentence of the first paragraph of a page."""
    for paragraph in page.findall(nodes.paragraph):
        text = " ".join(paragraph.astext().split())
        return re.split(r"(?<=[.:?!]) ", text)[0].rstrip(":") if text else ""
    return ""


def setup(app: Sphinx) -> None:
    """Connect the functions of this page."""
    app.connect("source-read", as_downloads)
    app.connect("doctree-read", put_side_by_side)
    app.connect("autodoc-process-docstring", as_restructured, priority=400)
    app.connect("missing-reference", find_public, priority=900)
    app.connect("build-finished", write_llms)
