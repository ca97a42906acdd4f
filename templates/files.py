"""The files of all templates and blueprints, as text."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from . import BLUEPRINTS, TEMPLATES
from .graph import Info

PACK = Path(__file__).resolve().parent.parent
WORKFLOWS, SUBGRAPHS = PACK / "workflows", PACK / "subgraphs"


def contents(info: Info) -> dict[Path, str]:
    """The texts by path."""
    found = {WORKFLOWS / path: content for made in TEMPLATES for path, content in made.files(info).items()}
    found |= {SUBGRAPHS / path: content for made in BLUEPRINTS for path, content in made.files(info).items()}
    return {path: as_text(content) + "\n" for path, content in found.items()}


def as_text(value: Any, indent: str = "") -> str:
    """JSON with one line per node and per link, so that differences can be read."""
    inside = indent + " "
    if isinstance(value, dict) and value and "class_type" not in value:
        lines = [f"{inside}{json.dumps(key)}: {as_text(part, inside)}" for key, part in value.items()]
    elif isinstance(value, list) and any(isinstance(part, (dict, list)) for part in value):
        lines = [inside + (as_text(part, inside) if "nodes" in part else _line(part)) for part in value]
    else:
        return _line(value)
    opened, closed = "{}" if isinstance(value, dict) else "[]"
    return "\n".join([opened, ",\n".join(lines), indent + closed])


def _line(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)
