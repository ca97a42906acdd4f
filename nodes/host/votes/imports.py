"""Reads votes from folders: images in liked/ and disliked/, with captions beside them (.txt) or in their own metadata;
pairs.csv (prompt, chosen, rejected); and the exports of this pack, which also have votes.jsonl.

Relies on: get_input_directory and get_output_directory (folder_paths.py); the texts "prompt" and "workflow" of core's
images (nodes.py:1668).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import folder_paths
import numpy as np
from PIL import Image

from ....samplers.strict_json import is_number, read_json
from ..run.messages import cut, plain
from .export import COLUMNS, FOLDERS, LINES, PAIRS
from .filters import Filter
from .recipe import last_link, read_recipe, whole_text
from .vote import Offer, Recipe

if TYPE_CHECKING:
    from .store import Store

_ENDINGS = (".png", ".jpg", ".jpeg", ".webp", ".bmp")
_MOST = 100_000  # images
_LARGEST = 2**26  # pixels of an image
_LONGEST = 2**26  # bytes of a table
_CAPTION = 10_000  # characters
_TEXTS = ("text", "negative_text", "sampler", "scheduler", "model_name", "model", "policy")  # of votes.jsonl
_TOGETHER = 32  # images in memory at a time


@dataclass
class Found:
    """What a folder says about an image. `known`: its line of votes.jsonl."""

    label: int
    text: str | None = None
    pair: str | None = None
    tag: str = ""
    known: dict[str, Any] = field(default_factory=dict)


def folders() -> dict[str, Path]:
    """The folders with votes in input/ and in output/guidekit/, by name."""
    outputs = Path(folder_paths.get_output_directory()) / "guidekit"
    places = {"": Path(folder_paths.get_input_directory()), "output/guidekit/": outputs}
    return {
        prefix + path.name: path
        for prefix, place in places.items()
        if place.is_dir()
        for path in sorted(place.iterdir())
        if path.is_dir()
        and not path.name.startswith(".")
        and any((path / name).exists() for name in (*FOLDERS.values(), PAIRS, LINES))
    }


def import_votes(store: Store, name: str, tag: str) -> list[str]:
    """Stores the votes of the folder `name`. Returns sentences about what was taken.

    Raises:
        ValueError: there is no such folder with votes, one of its tables cannot be read, or the disk has failed.
    """
    known = folders()
    if name not in known:
        raise ValueError(
            f"There is no folder {name[:200]!r} with {', '.join(FOLDERS.values())}, {PAIRS} or {LINES} in input or "
            f"output/guidekit. There are: {', '.join(known)[:500] or 'none'}."
        )
    folder = known[name].resolve()
    refused: list[str] = []
    found = _images(folder, refused)
    counts, before = {1: 0, -1: 0}, _decided(store)
    offers: list[Offer] = []
    for path, about in found.items():
        try:
            offers.append(_offer(path, about, tag))
        except ValueError as error:
            refused.append(f"{path.name}: {error}")
            continue
        counts[about.label] += 1
        if len(offers) == _TOGETHER:
            store.offer(offers)
            offers.clear()
    store.offer(offers)
    lines = [
        f"{counts[1]} likes and {counts[-1]} dislikes were taken from {name}; {_decided(store) - before} of the images "
        "are new."
    ]
    if refused:
        lines.append(f"{len(refused)} were not taken. {plain(cut(refused[0], 300))}")
    return lines


def _decided(store: Store) -> int:
    counts = store.counts(Filter())
    return counts["liked"] + counts["disliked"]


def _images(folder: Path, refused: list[str]) -> dict[Path, Found]:
    """The images of a folder, by path. votes.jsonl and pairs.csv add to what liked/ and disliked/ say; sentences about
    what is not accepted are added to `refused`."""
    found: dict[Path, Found] = {}
    for label, name in FOLDERS.items():
        for path in sorted((folder / name).rglob("*")):
            if path.suffix.lower() in _ENDINGS and path.is_file() and path.resolve().is_relative_to(folder):
                found[path.resolve()] = Found(label, _caption(path))
                if len(found) > _MOST:
                    raise ValueError(f"{folder.name} has more than {_MOST} images. Import them in parts.")
    for line in _lines(folder / LINES, refused):
        named = _inside(folder, line.get("file"))
        if named is None or type(said := line.get("label")) is not int or said not in (1, -1):
            refused.append(f"a line of {LINES} names no image of the folder, or no label 1 or -1")
            continue
        about = found.setdefault(named, Found(said))
        about.known = line
        about.tag = plain(line["tag"][:100]) if isinstance(line.get("tag"), str) else ""
        about.pair = whole_text(line["pair"][:200]) if isinstance(line.get("pair"), str) else None
    for number, row in enumerate(_pairs(folder / PAIRS)):
        chosen, rejected = (_inside(folder, row.get(column)) for column in ("chosen", "rejected"))
        if chosen is None or rejected is None or chosen == rejected:
            refused.append(f"line {number + 2} of {PAIRS} does not name two images of the folder")
            continue
        for path, side in ((chosen, 1), (rejected, -1)):
            about = found.setdefault(path, Found(side))
            about.text = about.text if about.text is not None else (row.get("prompt") or "")[:_CAPTION]
            about.pair = about.pair or f"{folder.name} {number + 1}"
    return found


def _offer(path: Path, about: Found, tag: str) -> Offer:
    """The image of a file, with its vote. Raises ValueError for a file that is not an image."""
    try:
        with Image.open(path) as image:
            if image.width * image.height > _LARGEST:
                raise ValueError(f"it has {image.width} x {image.height} pixels; up to {_LARGEST} are taken")
            graph = {name: _json(image.info.get(name)) for name in ("prompt", "workflow")}
            pixels = np.asarray(image.convert("RGB"))
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"it cannot be read: {str(error)[:200]}") from error
    nodes = graph["prompt"] if _is_prompt(graph["prompt"]) else {}
    recipe = read_recipe(nodes, last_link(nodes, "images")) if nodes else Recipe()
    recipe = replace(recipe, **_known(about.known))
    if about.text is not None:
        recipe = replace(recipe, text=about.text)
    known_parts = {name: part for name, part in graph.items() if part}
    return Offer(
        pixels=pixels,
        recipe=replace(recipe, text=recipe.text or ""),
        label=about.label,
        tag=tag or about.tag,
        pair=about.pair,
        workflow=json.dumps(known_parts) if known_parts else None,
    )


def _known(line: dict) -> dict[str, Any]:
    """The fields of a recipe in a line of votes.jsonl, as far as they have the right type."""
    found = {name: whole_text(line[name])[:_CAPTION] for name in _TEXTS if isinstance(line.get(name), str)}
    numbers = {name: line[name] for name in ("seed", "steps") if type(line.get(name)) is int}
    cfg = {"cfg": float(line["cfg"])} if is_number(line.get("cfg")) else {}
    return {**found, **numbers, **cfg}


def _caption(path: Path) -> str | None:
    beside = path.with_suffix(".txt")
    try:
        return beside.read_text("utf-8")[:_CAPTION].strip() if beside.is_file() else None
    except (OSError, UnicodeDecodeError):
        return None


def _lines(path: Path, refused: list[str]) -> Iterator[dict]:
    for line in _text(path).splitlines():
        try:
            given = read_json(line)
        except ValueError as error:
            refused.append(f"a line of {LINES} is not JSON: {str(error)[:100]}")
            continue
        if isinstance(given, dict):
            yield given


def _pairs(path: Path) -> Iterator[dict[str, str]]:
    rows = csv.DictReader(_text(path).splitlines(keepends=True))
    try:
        if path.is_file() and not set(COLUMNS) - {"prompt"} <= set(rows.fieldnames or ()):
            names = ", ".join(rows.fieldnames or ())[:200]
            raise ValueError(f"{PAIRS} has the columns {names}. They are {', '.join(COLUMNS)}.")
        yield from rows
    except csv.Error as error:  # an open quote that takes in all the rest, for one
        raise ValueError(f"{PAIRS} cannot be read behind line {rows.line_num}: {str(error)[:200]}.") from error


def _text(path: Path) -> str:
    if not path.is_file():
        return ""
    if (size := path.stat().st_size) > _LONGEST:
        raise ValueError(f"{path.name} has {size} bytes. Up to {_LONGEST} are read.")
    try:
        return path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise ValueError(f"{path.name} cannot be read: {str(error)[:200]}.") from error


def _inside(folder: Path, name: Any) -> Path | None:
    """The path of an image in the folder; None for a name that leads anywhere else."""
    if not isinstance(name, str) or not name or "\0" in name:
        return None
    path = (folder / name).resolve()
    return path if path.is_relative_to(folder) and path.suffix.lower() in _ENDINGS and path.is_file() else None


def _json(text: Any) -> Any:
    try:
        return read_json(text) if isinstance(text, str) else None
    except ValueError:
        return None


def _is_prompt(value: Any) -> bool:
    return isinstance(value, dict) and all(
        isinstance(node, dict) and isinstance(node.get("inputs"), dict) and isinstance(node.get("class_type"), str)
        for node in value.values()
    )
