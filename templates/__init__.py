"""What workflows/ and subgraphs/ are written from: python dev.py python -m guidekit.templates

A template is a function that puts nodes into a `Graph` by the names of their inputs; `place` lays it out, and `ui` and
`api` write both of ComfyUI's forms from the same nodes, so that neither form, nor two templates, drift apart. Values
that a template does not name are the defaults of the node's schema: after a change of a schema, run it again.

graph.py       nodes and links, and the two forms
layout.py      where the nodes lie
subgraph.py    a graph as one node: the blueprints' form
files.py       all of them as text
pages.py       what of the help pages is copied
models.py      the files of real models, and their loaders
real.py        templates for real models
edits.py       the same, for edits of an image
demo.py        "try it now": the same on the demo models
blueprints.py  subgraphs
"""

from . import demo, edits, real
from .blueprints import BLUEPRINTS
from .template import Template

TEMPLATES: tuple[Template, ...] = (*real.TEMPLATES, *edits.TEMPLATES, *demo.TEMPLATES)

__all__ = ["BLUEPRINTS", "TEMPLATES"]
