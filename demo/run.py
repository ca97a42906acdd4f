"""Run the demo workflows on a real ComfyUI and save their pictures in output/demo: `python dev.py demo`.

A workflow of workflows/api/ takes part if ComfyUI knows all its nodes, one of them is GuidekitDemoModel, and none loads
something else (no node with "Load" in its name, but for files of this pack). apg.json runs at several guidance scales,
of which a sheet is made.
Of every workflow that compares two rows a picture NAME.jpg is made, which is its thumbnail in workflows/.
"""

from __future__ import annotations

import copy
import json
import shutil
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from . import measures
from .server import PACK, Progress, Prompt, PromptError, Server, ServerError

OUTPUT = PACK / "output" / "demo"
SCALES = (3, 8, 15)  # ordinary, strong, and where plain CFG breaks down
THUMBNAIL_SCALE = 8  # of apg.json
METHODS = {"cfg": "CFG", "apg": "APG"}  # the file names apg.json gives its pictures begin with these


# In the templates these load what the template has saved, and what comes with the pack.
_LOADS_OUR_OWN = {"GuidekitLoadInversion", "GuidekitPreferenceLoraLoader"}


def needs_only_demo_models(prompt: Prompt, known: set[str]) -> bool:
    """Whether the demo can run a workflow without files from the user; `known` are the server's node classes."""
    classes = {node["class_type"] for node in prompt.values()}
    foreign = any("Load" in name for name in classes - _LOADS_OUR_OWN)
    return classes <= known and "GuidekitDemoModel" in classes and not foreign


def at_scale(prompt: Prompt, scale: float) -> Prompt:
    """The workflow with the guidance scale of its KSamplers changed."""
    changed = copy.deepcopy(prompt)
    for node in changed.values():
        if node["class_type"] == "KSampler":
            node["inputs"]["cfg"] = scale
    return changed


def run(server: Server, label: str, prompt: Prompt, folder: Path) -> list[Path]:
    """Run one prompt, showing its progress, and save its pictures in `folder`."""
    started = time.monotonic()
    outputs = server.run(prompt, progress_bar(label))
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for image in saved_images(outputs):
        path = folder / image["filename"]
        path.write_bytes(server.view(image))
        paths.append(path)
    clear = "\033[K" if sys.stdout.isatty() else ""
    print(f"{label}: {len(paths)} pictures in {time.monotonic() - started:.1f} s{clear}", flush=True)
    for text in server.told.values():
        print(f"  {text}", flush=True)
    return paths


def saved_images(outputs: dict[str, Any]) -> list[dict[str, str]]:
    """The pictures among the outputs of a run, without mere previews."""
    return [image for output in outputs.values() for image in output.get("images", ()) if image["type"] == "output"]


def progress_bar(label: str) -> Progress | None:
    """A bar that redraws itself, on a terminal; elsewhere none."""
    if not sys.stdout.isatty():
        return None

    def draw(done: int, total: int, node_id: str) -> None:
        bar = "#" * (30 * done // total)
        print(f"{label} [{bar:30}] {done}/{total} (node {node_id})", end="\033[K\r", flush=True)

    return draw


def saturation(pictures: list[Image.Image]) -> float:
    """Of all pixels, 0 to 1."""
    stack = torch.stack([torch.from_numpy(np.array(picture)) for picture in pictures])
    return measures.saturation(stack.movedim(-1, 1).double() / 255).mean().item()


def comparison_sheet(rows: dict[float, list[Path]]) -> Image.Image:
    """CFG on the left, APG on the right, one row for each guidance scale, with the mean saturation under it."""
    tile, gap, left, top, caption = 128, 6, 90, 40, 30
    blocks = {
        (scale, method): [Image.open(path).convert("RGB") for path in sorted(paths) if path.name.startswith(method)]
        for scale, paths in rows.items()
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
                enlarged = picture.resize((tile, tile), Image.Resampling.NEAREST)
                sheet.paste(enlarged, (x0 + column * (tile + gap), y))
            text = f"mean saturation {saturation(blocks[scale, method]):.3f}"
            draw.text((x0, y + tile + 4), text, "black", small)
    return sheet


def thumbnail(paths: list[Path]) -> Image.Image:
    """One row of pictures for each name that files begin with, plain CFG above the others."""
    tile, gap = 120, 4
    rows: dict[str, list[Path]] = {}
    for path in paths:
        rows.setdefault(path.name.rsplit("_", 2)[0], []).append(path)
    width = max(map(len, rows.values())) * (tile + gap) + gap
    sheet = Image.new("RGB", (width, len(rows) * (tile + gap) + gap), "white")
    for y, row in enumerate(rows[name] for name in sorted(rows, key=lambda name: (name != "cfg", name))):
        for x, path in enumerate(sorted(row)):
            picture = Image.open(path).convert("RGB").resize((tile, tile), Image.Resampling.NEAREST)
            sheet.paste(picture, (gap + x * (tile + gap), gap + y * (tile + gap)))
    return sheet


def save_thumbnail(name: str, paths: list[Path]) -> Path:
    path = OUTPUT / f"{name}.jpg"
    thumbnail(paths).save(path, quality=92)
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
                rows = {
                    scale: run(server, f"apg, scale {scale}", at_scale(prompt, scale), OUTPUT / f"apg/scale-{scale}")
                    for scale in SCALES
                }
                comparison_sheet(rows).save(OUTPUT / "apg_sheet.png")
                results += [path for paths in rows.values() for path in paths] + [OUTPUT / "apg_sheet.png"]
                results.append(save_thumbnail(name, rows[THUMBNAIL_SCALE]))
            else:
                paths = run(server, name, prompt, OUTPUT / name)
                results += [*paths, save_thumbnail(name, paths)]
    if not results:
        sys.exit(f"demo: none of the {len(workflows)} workflows in {PACK / 'workflows' / 'api'} can run")
    print(*results, sep="\n")


if __name__ == "__main__":
    try:
        main()
    except (PromptError, ServerError) as error:
        sys.exit(f"demo: {error}")
    except KeyboardInterrupt:
        sys.exit(130)
