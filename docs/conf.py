"""How the documentation is built: sphinx-build -W -b html docs build/docs (CONTRIBUTING.md)."""

import os
import re
import sys
from pathlib import Path

os.environ.setdefault("MPLBACKEND", "Agg")
here = Path(__file__).resolve().parent
if any((here.parent / "pylandscape").glob("_C*.so")):  # a checkout whose core is built in place
    sys.path.insert(0, str(here.parent))

import pylandscape  # noqa: E402

project = "pylandscape"
author = "The pylandscape developers"
copyright = author
version = release = pylandscape.__version__

extensions = [
    "myst_parser",
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "sphinx.ext.viewcode",
    "sphinx_gallery.gen_gallery",
]
exclude_patterns = ["_build", "gallery/*.ipynb", "gallery/*.py*", "examples"]
html_theme = "furo"
html_title = f"pylandscape {version}"

myst_enable_extensions = ["colon_fence", "deflist"]
myst_heading_anchors = 3

default_role = "autolink"  # `Surface` is a link where there is one, else italics
add_module_names = False
autodoc_member_order = "bysource"
autodoc_typehints = "none"  # docstrings say types, shapes and units
autodoc_inherit_docstrings = False
autosummary_generate = False
napoleon_google_docstring = True
napoleon_numpy_docstring = False
napoleon_use_ivar = True
napoleon_attr_annotations = False
napoleon_custom_sections = [
    ("Options", "params_style"),
    ("Memory", "notes_style"),
    ("Warns", "Warns"),
]

sphinx_gallery_conf = {
    "examples_dirs": "examples",
    "gallery_dirs": "gallery",
    "filename_pattern": r"/plot_",
    "image_scrapers": ("matplotlib",),
    "abort_on_example_error": True,
    "download_all_examples": False,
    "show_memory": False,
    "remove_config_comments": True,
    "min_reported_time": 5,
}


# What napoleon puts before a text: ":param x:", "* **name** -- ".
FIELD = r"\s*(:[^:]*:)?\s*(\* \*\*[^*]+\*\* -- )?"


def escaped(app, what, name, obj, options, lines):
    """Docstrings are plain English with formulas, not reStructuredText: |x| is no substitution,
    v* no emphasis, x_ no link."""
    literal = inside = False  # an indented block after "::"; ``code`` that goes on in the next line
    for i, line in enumerate(lines):
        if literal and line.strip() and not line.startswith(" "):
            literal = False
        if literal or line.lstrip().startswith(".. "):
            continue
        start = re.match(FIELD, line).end()
        parts = re.split(r"(``|`[^`]+`)", line[start:])
        for k, part in enumerate(parts):
            if part == "``":
                inside = not inside
            elif k % 2 == 0 and not inside:
                part = re.sub(r"(?<!\\)([|*])", r"\\\1", part)
                parts[k] = re.sub(r"(?<=\w)_(?=\W|$)", r"\\_", part)
        lines[i] = line[:start] + "".join(parts)
        literal = line.rstrip().endswith("::")


# The reference: a page for each area, its public names by the package where they live.
AREAS = {
    "landscape": (
        "The landscape",
        "landscape theta interop errors ranks _native trajectories.loading",
    ),
    "surfaces": (
        "Lines, planes, grids",
        "surfaces results.curve results.surface results.grid_values results.vti results.vtp "
        "plots.side_by_side",
    ),
    "curvature": (
        "Curvature",
        "curvature engines.points results.spectra results.eigen_pairs plots.spectra",
    ),
    "critical": (
        "Critical points",
        "critical results.critical_points results.critical_set results.curvature_classes",
    ),
    "clouds": ("Walks and clouds", "clouds results.walks results.cloud results.stagnations plots"),
    "training": ("Training", "training"),
    "trajectories": (
        "Trajectories",
        "trajectories results.paths results.similarity results.tracks",
    ),
    "connectivity": ("Connectivity and flatness", "connectivity results"),
    "topology": ("Topology", "topology results.merge_trees"),
    "experiments": ("Known results and studies", "experiments reports"),
}


def area(home):
    """The page of a public name: that of the longest prefix of the module where it lives."""
    found = [
        (len(prefix), page)
        for page, (_, prefixes) in AREAS.items()
        for prefix in prefixes.split()
        if home == prefix or home.startswith(prefix + ".")
    ]
    return max(found)[1]


def write_reference(app):
    pages = {page: [] for page in AREAS}
    for home, names in pylandscape._HOMES.items():
        pages[area(home)] += names.split()
    folder = here / "reference"
    folder.mkdir(exist_ok=True)
    contents = "".join(f"{page}\n" for page in pages)
    written = {"index": f"# Reference\n\n```{{toctree}}\n:maxdepth: 1\n\n{contents}```\n"}
    for page, names in pages.items():
        listed = "".join(f"   {name}\n" for name in sorted(names))
        text = ".. currentmodule:: pylandscape\n\n.. autosummary::\n   :nosignatures:\n\n"
        text += f"{listed}\n"
        for name in sorted(names):
            public = getattr(pylandscape, name)
            kind = "class" if isinstance(public, type) else "function"
            if not callable(public):
                kind = "data"
            text += f".. auto{kind}:: {name}\n"
            text += "   :members:\n\n" if kind == "class" else "\n"
        title = AREAS[page][0]
        written[page] = f"# {title}\n\n```{{eval-rst}}\n{text}```\n"
    for page, text in written.items():
        file = folder / f"{page}.md"
        if not file.exists() or file.read_text() != text:  # a page that stays is not built again
            file.write_text(text)


def setup(app):
    app.connect("builder-inited", write_reference)
    app.connect("autodoc-process-docstring", escaped, priority=900)  # after napoleon
