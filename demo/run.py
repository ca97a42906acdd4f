"""Run the demo workflows on a real ComfyUI and save their pictures in output/demo: `python dev.py demo`.

A workflow of workflows/api/ takes part if ComfyUI knows all its nodes, one of them is GuidekitDemoModel, and none loads
something else (no node with "Load" in its name, but for files of this pack). apg.json runs at several guidance scales,
of which a sheet is made.
Of every workflow that compares two rows a picture NAME.jpg is made, which is its thumbnail in workflows/.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from ..sweep import PromptError, Row, ServerError, Sweep, SweepError
from ..sweep.command import Line
from ..sweep.workflow import Prompt
from . import measures
from .server import PACK, Server

OUTPUT = PACK / "output" / "demo"
SCALES = (3, 12, 20)  # ordinary, strong, and where plain CFG breaks down
THUMBNAIL_SCALE = 12  # of apg.json
METHODS = {"cfg": "CFG", "apg": "APG"}  # by what apg.json calls its pictures


# In the templates these load what the template has saved, and what comes with the pack.
_LOADS_OUR_OWN = {"GuidekitLoadInversion", "GuidekitPreferenceLoraLoader"}


def needs_only_demo_models(prompt: Prompt, known: set[str]) -> bool:
    """Whether the demo can run a workflow without files from the user; `known` are the server's node classes."""
    classes = {node["class_type"] for node in prompt.values()}
    foreign = any("Load" in name for name in classes - _LOADS_OUR_OWN)
    return classes <= known and "GuidekitDemoModel" in classes and not foreign


def run(server: Server, name: str, prompt: Prompt, **settings: Any) -> list[Row]:
    """Run a workflow, for every combination of `settings` as `Sweep` takes them, into OUTPUT/name."""
    started = time.monotonic()
    sweep = Sweep(prompt, OUTPUT / name, servers=[server.url], **settings)
    line = Line(sys.stderr)
    sweep.run(line)
    line.end()
    rows = list(sweep.rows())
    for row in rows:
        if row.error:
            raise PromptError(f"{name}: node {row.node}: {row.error}")
    pictures = sum(len(row.files) for row in rows)
    print(f"{name}: {pictures} pictures in {time.monotonic() - started:.1f} s", flush=True)
    for text in dict.fromkeys(text for row in rows for _, text in row.told):
        print(f"  {text}", flush=True)
    return rows


def pictures_of(name: str, row: Row) -> dict[str, list[Path]]:
    """The files of one job of workflow `name`, by what the workflow calls them."""
    found: dict[str, list[Path]] = {}
    for path, of in row.files:
        found.setdefault(of, []).append(OUTPUT / name / path)
    return found


def saturation(pictures: list[Image.Image]) -> float:
    """Of all pixels, 0 to 1."""
    stack = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return measures.saturation(stack.movedim(-1, 1).double() / 255).mean().item()


def comparison_sheet(rows: dict[float, dict[str, list[Path]]]) -> Image.Image:
    """CFG on the left, APG on the right, one row for each guidance scale, with the mean saturation under it."""
    tile, gap, left, top, caption = 128, 6, 90, 40, 30
    blocks = {
        (scale, method): [Image.open(path).convert("RGB") for path in pictures[method]]
        for scale, pictures in rows.items()
        for method in METHODS
    }
    columns = max(len(pictures) for pictures in blocks.values())
    block_width = columns * (tile + gap) + 3 * gap
    row_height = tile + caption + gap
    sheet = Image.new("RGB", (left + 2 * block_width, top + len(rows) * row_height), "white")
    draw = ImageDraw.Draw(sheet)
    large, small = ImageFont.load_default(22), ImageFont.load_default(16)
    for block, method in enumerate(METHODS):
        x0 = left + block * block_width
        draw.text((x0, 8), METHODS[method], "black", large)
        for row, scale in enumerate(rows):
            y = top + row * row_height
            if block == 0:
                draw.text((10, y + tile / 2), f"scale {scale:g}", "black", small, anchor="lm")
            for column, picture in enumerate(blocks[scale, method]):
                enlarged = picture.resize((tile, tile), Image.Resampling.LANCZOS)
                sheet.paste(enlarged, (x0 + column * (tile + gap), y))
            text = f"mean saturation {saturation(blocks[scale, method]):.3f}"
            draw.text((x0, y + tile + 4), text, "black", small)
    return sheet


def thumbnail(rows: dict[str, list[Path]]) -> Image.Image:
    """One row of pictures for each of the workflow's names, plain CFG above the others."""
    tile, gap = 123, 4  # four are 512 pixels wide
    width = max(map(len, rows.values())) * (tile + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (tile + gap) + gap), "white")
    for y, row in enumerate(rows[name] for name in sorted(rows, key=lambda name: (name != "cfg", name))):
        for x, path in enumerate(row):
            picture = Image.open(path).convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(picture, (gap + x * (tile + gap), gap + y * (tile + gap)))
    return sheet


def save_thumbnail(name: str, rows: dict[str, list[Path]]) -> Path:
    path = OUTPUT / f"{name}.jpg"
    thumbnail(rows).save(path, quality=92)
    return path


def main() -> None:
    workflows = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(PACK.glob("workflows/api/*.json"))}
    shutil.rmtree(OUTPUT, ignore_errors=True)  # so that everything in it is of this run
    results: list[Path] = []
    print("starting ComfyUI ...", flush=True)
    with Server() as server:
        known = set(server.get("/object_info"))
        for name, prompt in workflows.items():
            if not needs_only_demo_models(prompt, known):
                print(f"{name}: left out, it needs models of your own")
            elif name == "apg":
                jobs = run(server, name, prompt, grid={"KSampler.cfg": SCALES})
                scales = {row.settings["KSampler.cfg"]: pictures_of(name, row) for row in jobs}
                comparison_sheet(scales).save(OUTPUT / "apg_sheet.png")
                results += [OUTPUT / "apg_sheet.png", save_thumbnail(name, scales[THUMBNAIL_SCALE])]
            else:
                [row] = run(server, name, prompt)
                results.append(save_thumbnail(name, pictures_of(name, row)))
            if (OUTPUT / name).is_dir():
                results.append(OUTPUT / name / "index.html")
    if not results:
        sys.exit(f"demo: none of the {len(workflows)} workflows in {PACK / 'workflows' / 'api'} can run")
    print(*results, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except (PromptError, ServerError, SweepError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
