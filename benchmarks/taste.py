"""Learning a taste from votes: `python dev.py bench taste`, or some of its rows:

    python dev.py python -m guidekit.benchmarks.taste unet --taste colour --row KTO --seed 0 --folder output/taste

A script votes on 64 images of prompts that do not say what it likes; a LoRA is trained; 200 images of other prompts
tell what it has learned, and what it has lost. Each row is kept as a file in the folder, so that rows can be made one
by one and a run can go on where it stopped; the table is printed of all that are there.
"""

import argparse
import dataclasses
import hashlib
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch
from comfy.model_patcher import ModelPatcher
from torch import Tensor

from ..demo import measures
from ..demo.world.captions import random_captions
from ..demo.world.judge import load_judge
from ..demo.world.scenes import COLOURS, MATERIALS, Scenes, generator_of, random_scenes
from ..nodes.host.files.whole_file import whole_file
from ..nodes.host.models.model_for_prompt import predict_negative_by
from ..nodes.host.run.ranges import Range
from ..nodes.host.votes.digest import policy_digest
from ..nodes.host.votes.vote_set import VoteRow, VoteSet
from ..nodes.preference_score import PreferenceScore
from ..nodes.train_preference import DISLIKED, GUIDED, TrainPreference
from . import KNOWN_FAMILIES
from ._demo import Demo, found_in
from ._nodes import run_node_all
from ._table import print_row

VOTES, PROMPTS, FRESH = 64, 8, 200
CFG, STEPS = 2.0, 10
BATCH = 12
UNSAID = {"colour": ("colour",), "material": ("material",), "place": ()}
# Judged by what the judge finds: one solid, and its class or place.
LIKED_COLOURS, LIKED_MATERIAL, LEFT_THIRD = ("blue", "cyan"), "metal", 1 / 3
NAMED = ("red", "yellow")  # colours that prompts ask for, whatever is liked
TRAINED = {"images_per_step": BATCH, "images_at_once": BATCH, "checkpointing": False}
ROWS: dict[str, dict] = {
    "base": {},
    "SFT on likes": {"objective": "SFT on likes"},
    "KTO": {"objective": "KTO"},
    "DiffusionNFT": {"objective": "DiffusionNFT"},
    "DPO": {"objective": "DPO"},
    "KTO, of guided images": {"objective": "KTO", "images_are_of": GUIDED},
    "DiffusionNFT, of guided images": {"objective": "DiffusionNFT", "images_are_of": GUIDED},
    "negative prompt": {"negative": True},
    "dislike LoRA on the negative": {"objective": "KTO", "learn": DISLIKED},
    "KTO, two rounds": {"objective": "KTO", "rounds": 2},
    "DiffusionNFT, two rounds": {"objective": "DiffusionNFT", "rounds": 2},
}


@dataclasses.dataclass
class Place:
    """A model and a taste, with the images that are voted on."""

    family: str
    taste: str
    seed: int

    def __post_init__(self):
        self.demo = Demo(self.family, 2, each=1, solids=1)
        self.empty = self.demo.encode([""])

    def scenes(self, chunk: int, number: int) -> Scenes:
        return random_scenes(number, generator_of("evaluation", 10_000 + 100 * self.seed + chunk), "known", 1)

    def captions(self, scenes: Scenes, chunk: int, unsaid: tuple[str, ...]) -> list[str]:
        return random_captions(scenes, generator_of("evaluation", 20_000 + 100 * self.seed + chunk), unsaid=unsaid)

    def sample(self, model: ModelPatcher, captions: list[str], seed: int, negative: str = "") -> tuple[Tensor, Tensor]:
        """(latents, images)"""
        demo = self.demo.asking(captions, seed)
        demo.negative, latents = negative, []
        decode = demo.decode
        demo.decode = lambda latent: latents.append(latent.cpu()) or decode(latent)
        images = demo.sample(model, CFG, STEPS)
        return torch.cat(latents), images

    def likes(self, images: Tensor) -> Tensor:
        """What the script votes, [n]."""
        found = found_in(images)
        if self.taste == "colour":
            return torch.isin(found.colour[:, 0], torch.tensor([COLOURS.index(c) for c in LIKED_COLOURS]))
        if self.taste == "material":
            return found.material[:, 0] == MATERIALS.index(LIKED_MATERIAL)
        return _column(images) < LEFT_THIRD

    def votes(self, model: ModelPatcher, number: int, chunk: int = 0, policy: str | None = None) -> VoteSet:
        """`number` images of PROMPTS prompts; a like and a dislike of one prompt are a pair."""
        scenes = self.scenes(chunk, PROMPTS)
        prompts = self.captions(scenes, chunk, UNSAID[self.taste])
        captions = [prompt for prompt in prompts for _ in range(number // PROMPTS)]
        latents, images = self.sample(model, captions, 5000 + 100 * self.seed + chunk)
        liked = self.likes(images)
        policy = policy_digest(model) if policy is None else policy
        encoded = {prompt: self.demo.encode([prompt]) for prompt in prompts}
        rows, waiting, pairs = [], {}, 0
        for i, caption in enumerate(captions):
            label = 1 if liked[i] else -1
            rows.append(
                VoteRow(
                    f"{chunk} {i}",
                    latents[i : i + 1],
                    encoded[caption],
                    self.empty,
                    caption,
                    label,
                    caption,
                    policy=policy,
                    cfg=CFG,
                )  # fmt: skip
            )
            if (other := waiting.get((caption, -label))) and other:
                j, pairs = other.pop(), pairs + 1
                rows[i], rows[j] = (dataclasses.replace(rows[k], pair=pairs) for k in (i, j))
            else:
                waiting.setdefault((caption, label), []).append(i)
        return VoteSet(tuple(rows), (), self.empty, f"{self.family} {self.taste} {self.seed} {chunk} {number}")

    def measure(self, model: ModelPatcher, number: int, negative: str = "") -> dict[str, list[float]]:
        scenes = self.scenes(50, number)
        _, images = self.sample(model, self.captions(scenes, 50, UNSAID[self.taste]), 9000, negative)
        found = found_in(images)
        said = [getattr(found, name)[:, 0] == getattr(scenes, name)[:, 0] for name in ("shape", "extent")]
        said += [getattr(found, name) == getattr(scenes, name) for name in ("floor", "time")]
        result = {
            "liked": self.likes(images).double(),
            "prompt": torch.stack([each.double() for each in said]).mean(0),
            "saturation": measures.saturation(images),
        }
        if self.taste == "colour":
            few = scenes.take(slice(number // 4))
            colour = torch.tensor([COLOURS.index(NAMED[i % len(NAMED)]) for i in range(len(few))])
            few = dataclasses.replace(few, colour=colour[:, None] * few.present)
            captions = [f"a {COLOURS[c]} {caption}" for c, caption in zip(colour, _bare(self, few))]
            _, images = self.sample(model, captions, 9500, negative)
            result["named colour"] = (found_in(images).colour[:, 0] == colour).double()
        return {name: [round(value, 6) for value in values.tolist()] for name, values in result.items()}


def _bare(place: Place, scenes: Scenes) -> list[str]:
    """Captions that begin with the solid's shape, so that a colour can stand before it."""
    unsaid = ("colour", "material", "extent")
    return [caption.partition(" ")[2] for caption in place.captions(scenes, 51, unsaid)]


def _column(images: Tensor) -> Tensor:
    """Where the surest solid is, 0..1 from left to right, [n]."""
    with torch.inference_mode():
        heat = torch.cat([load_judge()(part)["peak"] for part in images.split(250)])
    return (heat.flatten(1).argmax(1) % heat.shape[-1] + 0.5) / heat.shape[-1]


def train(
    place: Place, model: ModelPatcher, votes: VoteSet, name: str, settings: dict
) -> tuple[ModelPatcher, str, str]:
    """(the model with the LoRA, its file, what was said)"""
    given = {**TRAINED, "random_seed": place.seed, "name": name, "resume": False, **settings}
    tuned, file, _, report = run_node_all(TrainPreference, model=model, votes=votes, **given)
    return tuned, file, report


def told_apart(place: Place, tuned: ModelPatcher, number: int) -> float:
    """Of pairs of a like and a dislike, on prompts that nothing was learned of, how many the LoRA's implicit reward has
    in the right order: 0..1, NaN without a pair."""
    votes = place.votes(place.demo.model, number, chunk=40)
    if not 0 < votes.liked < len(votes.rows):
        return float("nan")
    return run_node_all(PreferenceScore, model=place.demo.model, tuned=tuned, votes=votes, images_at_once=BATCH)[2]


def make(place: Place, row: str, settings: dict, number: int) -> dict:
    model, tuned, negative, report, begun = place.demo.model, None, "", "", time.perf_counter()
    settings = dict(settings)
    rounds = settings.pop("rounds", 1)
    if settings.pop("negative", False):
        others = [c for c in COLOURS if c not in LIKED_COLOURS] if place.taste == "colour" else ["matte", "glossy"]
        negative = " ".join(others)
    elif settings:
        name = hashlib.sha256(f"{place} {row}".encode()).hexdigest()[:12]
        votes = place.votes(model, VOTES // rounds)
        begun = time.perf_counter()
        tuned, file, report = train(place, model, votes, name, settings)
        for i in range(1, rounds):
            more = place.votes(tuned, VOTES // rounds, chunk=i)
            votes = VoteSet((*votes.rows, *more.rows), (), place.empty, f"{votes.digest} {more.digest}")
            tuned, file, report = train(place, model, votes, f"{name} {i}", {**settings, "go_on_from": file})
        if settings.get("learn") == DISLIKED:
            model = model.clone()
            predict_negative_by(model, tuned, row, Range())
        else:
            model = tuned
    seconds = time.perf_counter() - begun
    agrees = {}
    if tuned is not None:
        right = told_apart(place, tuned, max(PROMPTS, number // 4))
        agrees = {"told apart": [1 - right if settings.get("learn") == DISLIKED else right]}
    return {"report": report, "seconds": seconds, **agrees, **place.measure(model, number, negative)}


def line(family: str, taste: str, row: str, found: list[dict], base: list[dict] | None) -> str:
    """Of all seeds."""
    values = {name: torch.tensor([v for each in found for v in each.get(name, ())]) for name in MEASURED}
    apart = values.pop("told apart")
    cells = [_share(values[name]) for name in values if name != "saturation"]
    saturation = values["saturation"].mean().item()
    change = ""
    if base:
        before = torch.tensor([v for each in base for v in each["saturation"]]).mean().item()
        change = f" ({100 * (saturation / before - 1):+.0f} %)"
    seconds = sum(each["seconds"] for each in found) / len(found)
    cells += [f"{saturation:.3f}{change}", f"{100 * apart.mean():.1f} %" if len(apart) else "-", f"{seconds:.0f} s"]
    return f"| {family} | {taste} | {row} | {len(found)} | {' | '.join(cells)} |"


MEASURED = ("liked", "prompt", "named colour", "saturation", "told apart")


def _share(values: Tensor) -> str:
    if not len(values):
        return "-"
    low, high = measures.bootstrap(100 * values)
    return f"{100 * values.mean():.1f} % ({low:.1f} to {high:.1f})"


def print_table(folder: Path) -> None:
    kept: dict[tuple, list[dict]] = {}
    for path in sorted(folder.glob("*.json")):
        found = json.loads(path.read_text("utf-8"))
        kept.setdefault((found["model"], found["taste"], found["row"]), []).append(found)
    fresh = " or ".join(map(str, sorted({len(each["liked"]) for some in kept.values() for each in some})))
    print(
        f"{VOTES} votes on images of {PROMPTS} prompts, and {fresh} fresh images of others, for each seed; euler, "
        f"{STEPS} steps, cfg {CFG:g}. Prompt: shape, size, floor and time as said. Told apart: pairs of a like and a "
        "dislike of other prompts that the LoRA's implicit reward has in the right order. With 95 % bootstrap "
        "intervals.\n\n"
        "| model | taste | row | seeds | liked | prompt | named colour | saturation | told apart | time |\n"
        + "|---" * 10
        + "|"
    )
    order = {row: i for i, row in enumerate(ROWS)}
    for key in sorted(kept, key=lambda key: (key[:2], order.get(key[2], len(order)), key[2])):
        print_row(line(*key, kept[key], kept.get((*key[:2], "base"))))


def _settings(row: str) -> dict:
    """Of ROWS, or typed: "objective=KTO beta=30 steps=60"."""
    if row in ROWS:
        return ROWS[row]
    pairs = (word.split("=") for word in row.split())
    defaults = {
        i.id: i.default for i in TrainPreference.define_schema().inputs if getattr(i, "default", None) is not None
    }
    types: dict[str, Callable] = {name: type(value) for name, value in defaults.items()}
    types["rounds"] = int
    names = {"SFT": "SFT on likes", "NFT": "DiffusionNFT", "guided": GUIDED, "disliked": DISLIKED}
    return {name: names.get(value, types[name](value)) for name, value in pairs}


def main() -> None:
    options = argparse.ArgumentParser(prog="taste")
    options.add_argument("models", nargs="*", default=KNOWN_FAMILIES)
    options.add_argument("--taste", action="append", choices=list(UNSAID))
    options.add_argument("--row", action="append")
    options.add_argument("--seed", action="append", type=int)
    options.add_argument("--fresh", type=int, default=FRESH)
    options.add_argument("--folder", type=Path, default=Path("output/taste"))
    given = options.parse_args()
    given.folder.mkdir(parents=True, exist_ok=True)
    for family in given.models:
        for taste in given.taste or UNSAID:
            for seed in given.seed or range(3):
                for row in given.row or ROWS:
                    name = f"{family} {taste} {row} {seed}".replace("/", " ")
                    path = given.folder / f"{name}.json"
                    if path.exists():
                        continue
                    place = Place(family, taste, seed)
                    found = make(place, row, _settings(row), given.fresh)
                    found = {"model": family, "taste": taste, "row": row, "seed": seed, **found}
                    with whole_file(path) as there:
                        there.write_text(json.dumps(found), "utf-8")
                    print(line(family, taste, row, [found], None), flush=True)
    print_table(given.folder)


if __name__ == "__main__":
    main()
