"""Votes as a folder that other trainers can read: liked/ and disliked/ with a caption beside each image, pairs.csv
(prompt, chosen, rejected) and votes.jsonl with everything that is known of each image.

Relies on: get_output_directory (folder_paths.py); `--disable-metadata` (comfy/cli_args.py); the texts "prompt" and
"workflow" of core's images (nodes.py:1668).
"""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import folder_paths
from comfy.cli_args import args
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from ..files.folders import check_stem
from ..files.whole_file import temporary_folder
from .as_json import for_trainers
from .errors import StoreError
from .filters import Filter
from .pairs import Voted, pairs_in
from .vote import LIKED, Vote, prompt_of

if TYPE_CHECKING:
    from .store import Store

FOLDERS = {1: "liked", -1: "disliked"}
PAIRS, LINES = "pairs.csv", "votes.jsonl"
COLUMNS = ("prompt", "chosen", "rejected")
SHOWN = "output/guidekit"


def export(store: Store, wanted: Filter, name: str) -> str:
    """Writes the likes and dislikes among `wanted` into a new folder `name`, completely or not at all. Returns a
    sentence about it.

    Raises:
        ValueError: there are no such votes, the name is not accepted, or the disk has failed.
    """
    check_stem(name)
    if wanted.votes not in ("liked", "disliked"):
        wanted = replace(wanted, votes="decided")
    votes = sorted(store.find(wanted), key=lambda vote: (vote.voted, vote.id))
    if not votes:
        raise ValueError("There is no vote to export.")
    place = Path(folder_paths.get_output_directory()) / "guidekit"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with temporary_folder(place) as part:
            _fill(store, votes, part)
            folder = _renamed(part, place, name)
    except OSError as error:
        raise StoreError(f"The votes cannot be exported to {SHOWN}: {error.strerror or error}.") from error
    likes = sum(vote.label == LIKED for vote in votes)
    pairs = len(_pairs(votes))
    return f"{likes} likes, {len(votes) - likes} dislikes and {pairs} pairs are in {SHOWN}/{folder.name}."


def _fill(store: Store, votes: Sequence[Vote], folder: Path) -> None:
    files = {vote.id: f"{FOLDERS[vote.label]}/{vote.id}.png" for vote in votes}
    for name in FOLDERS.values():
        (folder / name).mkdir()
    for vote in votes:
        path = folder / files[vote.id]
        with Image.open(store.image_path(vote.id)) as image:
            image.save(path, pnginfo=_metadata(store.workflow(vote)), compress_level=1)
        path.with_suffix(".txt").write_text(vote.recipe.text or "", "utf-8")
    lines = (json.dumps(for_trainers(vote, files[vote.id])) for vote in votes)
    (folder / LINES).write_text("".join(f"{line}\n" for line in lines), "utf-8")
    with (folder / PAIRS).open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(COLUMNS)
        rows.writerows((liked.recipe.text or "", files[liked.id], files[other.id]) for liked, other in _pairs(votes))


def _pairs(votes: Sequence[Vote]) -> list[tuple[Vote, Vote]]:
    voted = [Voted(vote, vote.label, vote.pair, prompt_of(vote)) for vote in votes]
    return [(liked.item, disliked.item) for liked, disliked in pairs_in(voted)]


def _metadata(workflow: dict) -> PngInfo | None:
    if args.disable_metadata or not workflow:
        return None
    found = PngInfo()
    for name, part in workflow.items():
        found.add_text(name, json.dumps(part))
    return found


def _renamed(part: Path, place: Path, name: str) -> Path:
    """Renames a folder to `name` in `place`; with a number if there is one already. Returns its new path."""
    for number in range(1, 10_000):
        folder = place / (name if number == 1 else f"{name} {number}")
        if folder.exists():
            continue
        try:
            return part.rename(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has just made it
                raise
    raise OSError(f"there are 10000 folders {name} already")
