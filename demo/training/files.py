"""Files that are complete or absent: whatever stops a training, the next call goes on from the last complete one."""

import dataclasses
import os
from pathlib import Path
from typing import Any

import torch

from ..world.scenes import Scenes


def save(content: Any, path: Path) -> None:
    """Write what `torch.load(weights_only=True)` reads, under a name that appears when it is complete."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    torch.save(content, part)
    part.replace(path)


def load(path: Path) -> Any:
    return torch.load(path, weights_only=True)


def save_scenes(scenes: Scenes, path: Path, **more: torch.Tensor) -> None:
    save({"scenes": [getattr(scenes, f.name) for f in dataclasses.fields(scenes)], **more}, path)


def load_scenes(path: Path) -> tuple[Scenes, dict[str, torch.Tensor]]:
    content = load(path)
    return Scenes(*content.pop("scenes")), content
