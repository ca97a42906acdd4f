"""Real servers with the stand-in nodes, and the workflow for them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from guidekit.demo.server import Server

NODES = Path(__file__).parent / "sweep_nodes"


def new_server(port: int | None = None) -> Server:
    return Server(extra_nodes=[NODES], port=port)


def counted(folder: Path, **inputs: Any) -> dict[str, Any]:
    """Makes one image; what is made is logged in `folder`, where the gate is as well."""
    given = {
        "value": 0,
        "free": 100_000,
        "fails_at": -1,
        "dies_at": -1,
        "strength": 1.0,
        "kind": "plain",
        "loud": False,
        "note": "",
    }
    given |= {"log": str(folder / "made"), "gate": str(folder / "gate")} | inputs
    return {
        "1": {"class_type": "TestCounted", "inputs": given, "_meta": {"title": "Count v1.5"}},
        "2": {
            "class_type": "SaveImage",
            "inputs": {"filename_prefix": "made", "images": ["1", 0]},
            "_meta": {"title": "Save Image"},
        },
    }


def made(folder: Path) -> list[int]:
    """The numbers that were made, in order."""
    log = folder / "made"
    return [int(line) for line in log.read_text().split()] if log.exists() else []


def wait_for(condition: Callable[[], bool], limit: float = 300) -> None:
    end = time.monotonic() + limit
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.02)


def finished(out: Path) -> int:
    """How many images have come in."""
    return len(list((out / "files").glob("*.png"))) if (out / "files").is_dir() else 0


def shown(out: Path) -> dict[str, int]:
    """The number in each image, by file name."""
    return {path.name: int(np.asarray(Image.open(path))[0, 0, 0]) for path in (out / "files").glob("*.png")}
