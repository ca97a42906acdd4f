"""Grid images: the images of a sweep over two settings (an XY plot), with labelled axes.

One for every image that a job saves and every combination of the other settings. With one axis, the rows are what the
other settings say.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw, ImageFont, UnidentifiedImageError

from .journal import DONE, Row
from .names import label, safe, short_names, value_text
from .page import PICTURES
from .text import cut, plain

FOLDER = "grids"
_TILE = 512  # pixels, at most, of one image's longer side
_SMALL = 128  # smaller ones are enlarged
_LARGEST = 12_000  # pixels of a grid's longer side
_ROWS = 32  # in one grid; more go to the next
_FONT = 16
_GAP = 6

Keys = tuple[tuple[str, Any], ...]  # settings, in their order


@dataclass
class _Grid:
    """One grid before it is drawn: files by (column, row)."""

    columns: dict[str, None] = field(default_factory=dict)
    rows: dict[Keys, None] = field(default_factory=dict)
    files: dict[tuple[str, Keys], list[str]] = field(default_factory=dict)


def write(folder: Path, axes: tuple[str, ...], rows: Iterable[Row]) -> list[Path]:
    """The grids of the jobs that are done, in `folder`/grids. `axes`: names of settings, columns and then rows."""
    grids: dict[tuple[str, Keys], _Grid] = {}
    for row in rows:
        if row.state == DONE and all(name in row.settings for name in axes):
            _enter(grids, axes, row)
    written = []
    (folder / FOLDER).mkdir(exist_ok=True)
    for (of, rest), grid in grids.items():
        for page, part in enumerate(_pages(grid), 1):
            if image := _drawn(folder, part, axes, rest):
                many = f"_{page}" if len(grid.rows) > _ROWS else ""
                path = folder / FOLDER / f"{'_'.join(filter(None, (of, safe(label(dict(rest)), 120))))}{many}.png"
                image.save(path)
                written.append(path)
    return written


def _enter(grids: dict[tuple[str, Keys], _Grid], axes: tuple[str, ...], row: Row) -> None:
    others = tuple((name, value) for name, value in row.settings.items() if name not in axes)
    along = others if len(axes) == 1 else ((axes[1], row.settings[axes[1]]),)
    rest = () if len(axes) == 1 else others
    column = value_text(row.settings[axes[0]])
    for name, of in row.files:
        if name.rpartition(".")[2] in PICTURES:
            grid = grids.setdefault((of, rest), _Grid())
            grid.columns.setdefault(column)
            grid.rows.setdefault(along)
            grid.files.setdefault((column, along), []).append(name)


def _in_order(texts: Iterable[str]) -> list[str]:
    """Numbers by size: a later call may have added some in between."""
    texts = list(texts)
    try:
        return sorted(texts, key=float)
    except ValueError:
        return texts


def _pages(grid: _Grid) -> Iterator[_Grid]:
    rows = list(grid.rows)
    if all(len(row) == 1 for row in rows):
        place = _in_order(value_text(row[0][1]) for row in rows)
        rows.sort(key=lambda row: place.index(value_text(row[0][1])))
    for start in range(0, len(rows), _ROWS):
        yield _Grid(grid.columns, dict.fromkeys(rows[start : start + _ROWS]), grid.files)


def _drawn(folder: Path, grid: _Grid, axes: tuple[str, ...], rest: Keys) -> Image.Image | None:
    most = max(len(grid.files.get((c, r), ())) for c in grid.columns for r in grid.rows)  # images of one job
    first = next((f for r in grid.rows for c in grid.columns for f in grid.files.get((c, r), ())), None)
    size = _size(folder, first)
    if size is None:
        return None
    short = short_names(list(axes))
    columns = _in_order(grid.columns)
    font = ImageFont.load_default(_FONT)
    row_labels = {row: ", ".join(f"{_shown(n, short)} {plain(value_text(v))}" for n, v in row) for row in grid.rows}
    left = max((int(font.getlength(_fit(text, font, 240))) for text in row_labels.values()), default=0) + 2 * _GAP
    top = 2 * (_FONT + 2 * _GAP) if rest else _FONT + 2 * _GAP
    across, down = len(columns) * most, len(grid.rows)
    scale = min(
        max(1, _SMALL / max(size)),
        _TILE / max(size),
        (_LARGEST - left) / across / (size[0] + _GAP),
        _LARGEST / down / (size[1] + _GAP),
    )
    width, height = (max(1, int(side * scale)) for side in size)
    block = most * (width + _GAP)
    sheet = Image.new("RGB", (left + len(columns) * block, top + down * (height + _GAP)), "white")
    draw = ImageDraw.Draw(sheet)
    if rest:
        text = ", ".join(f"{name} {plain(value_text(value))}" for name, value in rest)
        draw.text((_GAP, _GAP), _fit(text, font, sheet.width), "black", font)
    for x, column in enumerate(columns):
        text = _fit(f"{short[axes[0]]} {plain(column)}", font, block)
        draw.text((left + x * block + block // 2, top - _GAP), text, "black", font, anchor="ms")
    for y, row in enumerate(grid.rows):
        middle = top + y * (height + _GAP) + height // 2
        draw.text((_GAP, middle), _fit(row_labels[row], font, 240), "black", font, anchor="lm")
        for x, column in enumerate(columns):
            for i, name in enumerate(grid.files.get((column, row), ())):
                _paste(
                    sheet,
                    folder / name,
                    (left + x * block + i * (width + _GAP), top + y * (height + _GAP)),
                    width,
                    height,
                )
    return sheet


def _shown(name: str, short: dict[str, str]) -> str:
    return plain(short.get(name, name.rpartition(".")[2]))


def _size(folder: Path, name: str | None) -> tuple[int, int] | None:
    try:
        with Image.open(folder / (name or "")) as image:
            return image.size
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return None


def _paste(sheet: Image.Image, path: Path, at: tuple[int, int], width: int, height: int) -> None:
    try:
        with Image.open(path) as image:
            tile = image.convert("RGB")
    except (OSError, UnidentifiedImageError, Image.DecompressionBombError):
        return  # the place stays white: somebody has taken the file away
    enlarged = tile.width < width
    sheet.paste(tile.resize((width, height), Image.Resampling.NEAREST if enlarged else Image.Resampling.LANCZOS), at)


def _fit(text: str, font: ImageFont.FreeTypeFont, width: float) -> str:
    text = cut(text, 400)
    while len(text) > 4 and font.getlength(text) > width:
        text = cut(text, len(text) - 1)
    return text
