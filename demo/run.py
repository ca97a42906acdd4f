"""Run the demo workflows on a real ComfyUI and save their images in output/demo: `python dev.py demo`.

They are the templates on the demo models (templates/demo.py). apg.json runs at several guidance scales, of which a
sheet is made. Of every one an image is made under the template's title, which is its thumbnail in workflows/.
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
from ..templates.demo import TEMPLATES
from . import measures
from .server import PACK, Server

OUTPUT = PACK / "output" / "demo"
SCALES = (3, 12, 20)  # ordinary, strong, and where plain CFG breaks down
THUMBNAIL_SCALE = 12  # of apg.json
METHODS = {"cfg": "CFG", "apg": "APG"}  # by what apg.json calls its images


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
    images = sum(path.endswith(".png") for row in rows for path, _ in row.files)
    print(f"{name}: {images} images in {time.monotonic() - started:.1f} s", flush=True)
    for text in dict.fromkeys(text for row in rows for _, text in row.told):
        print(f"  {text}", flush=True)
    return rows


def images_of(name: str, row: Row) -> dict[str, list[Path]]:
    """The images of one job of workflow `name`, by what the workflow calls them."""
    found: dict[str, list[Path]] = {}
    for path, of in row.files:
        if not path.endswith(".png"):  # a text that the workflow shows
            continue
        found.setdefault(of, []).append(OUTPUT / name / path)
    return found


def saturation(images: list[Image.Image]) -> float:
    """Mean saturation of all pixels, 0 to 1."""
    stack = torch.stack([torch.from_numpy(np.array(image)) for image in images])
    return measures.saturation(stack.movedim(-1, 1).double() / 255).mean().item()


def comparison_sheet(rows: dict[float, dict[str, list[Path]]]) -> Image.Image:
    """CFG on the left, APG on the right, one row for each guidance scale, with the mean saturation under it."""
    tile, gap, left, top, caption = 128, 6, 90, 40, 30
    blocks = {
        (scale, method): [Image.open(path).convert("RGB") for path in images[method]]
        for scale, images in rows.items()
        for method in METHODS
    }
    columns = max(len(images) for images in blocks.values())
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
            for column, image in enumerate(blocks[scale, method]):
                enlarged = image.resize((tile, tile), Image.Resampling.LANCZOS)
                sheet.paste(enlarged, (x0 + column * (tile + gap), y))
            text = f"mean saturation {saturation(blocks[scale, method]):.3f}"
            draw.text((x0, y + tile + 4), text, "black", small)
    return sheet


def thumbnail(rows: dict[str, list[Path]]) -> Image.Image:
    """One row of images for each of the workflow's names, plain CFG above the others."""
    tile, gap = 123, 4  # four are 512 pixels wide
    width = max(map(len, rows.values())) * (tile + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (tile + gap) + gap), "white")
    for y, row in enumerate(rows[name] for name in sorted(rows, key=lambda name: (name != "cfg", name))):
        for x, path in enumerate(row):
            image = Image.open(path).convert("RGB").resize((tile, tile), Image.Resampling.LANCZOS)
            sheet.paste(image, (gap + x * (tile + gap), gap + y * (tile + gap)))
    return sheet


def save_thumbnail(title: str, rows: dict[str, list[Path]]) -> Path:
    path = OUTPUT / f"{title}.jpg"
    thumbnail(rows).save(path, quality=92)
    return path


def main() -> None:
    shutil.rmtree(OUTPUT, ignore_errors=True)  # so that everything in it is of this run
    results: list[Path] = []
    print("starting ComfyUI ...", flush=True)
    with Server() as server:
        for made in TEMPLATES:
            name = made.name
            prompt = json.loads((PACK / "workflows" / "api" / f"{name}.json").read_text("utf-8"))
            if name == "apg":
                jobs = run(server, name, prompt, grid={"KSampler.cfg": SCALES})
                scales = {row.settings["KSampler.cfg"]: images_of(name, row) for row in jobs}
                comparison_sheet(scales).save(OUTPUT / "apg_sheet.png")
                results += [OUTPUT / "apg_sheet.png", save_thumbnail(made.title, scales[THUMBNAIL_SCALE])]
            else:
                [row] = run(server, name, prompt)
                results.append(save_thumbnail(made.title, images_of(name, row)))
            if (OUTPUT / name).is_dir():
                results.append(OUTPUT / name / "index.html")
    print(*results, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except (PromptError, ServerError, SweepError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
