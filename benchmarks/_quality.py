"""The columns that all tables of image quality have."""

from dataclasses import dataclass
from functools import cached_property

from comfy.model_patcher import ModelPatcher
from comfy.samplers import Sampler
from torch import Tensor

from ..demo import measures
from ..demo.world.judge import Found
from ..demo.world.scenes import Scenes
from . import ROWS
from ._demo import EACH, SOLIDS, Demo, count_evaluations, drawn_like, found_in, measure_scale
from ._table import print_row

COLUMNS = ("one solid", "all solids", "change", "all words", "mixed up", "Fréchet", "saturation", "contrast", "clipped",
           "diversity")  # fmt: skip
HEADER = ("model", "guidance", "omega_e", "evaluations", *COLUMNS)
MEANING = (
    f"Captions of {SOLIDS} solids that are never together in training, {EACH} images of each, the same noise in "
    "every row. omega_e: effective scale, sums over steps and images; a dash without a negative. Evaluations: of the "
    "network, "
    "for an image. One solid: of those named, the share that is there in its shape and colour; all solids: images in "
    "which all are, in their places, and nothing else; change: of that against the first row, in points, 95 % paired "
    "bootstrap interval over captions; all words: material and size right as well; mixed up: all shapes and colours "
    "are there, on the wrong solids or in the wrong places. Fréchet distance to 2000 drawn scenes and diversity (mean "
    "distance of two images of a caption) in the judge's features."
)


def asked(name: str) -> bool:
    """Whether a row is to be made: all are, but where the command line names some, each of which can then be made by
    itself. The first of a table is made in any case."""
    return not ROWS or any(part in name for part in ROWS)


def print_header(names: tuple[str, ...] = HEADER) -> None:
    print("| " + " | ".join(names) + " |\n" + "|---" * len(names) + "|", flush=True)


@dataclass(frozen=True)
class Look:
    """Images of captioned scenes, judged."""

    images: Tensor
    scenes: Scenes
    each: int = EACH

    @cached_property
    def found(self) -> Found:
        return found_in(self.images)

    @cached_property
    def right(self) -> Tensor:
        """Shape and colour of all solids, 0 or 1, [n]."""
        return self.found.right(self.scenes, "shape", "colour").float()

    def cells(self, real: Tensor, first: "Look | None" = None) -> str:
        """COLUMNS, beside the row `first`."""
        found, features = self.found, self.found.features
        words = found.right(self.scenes, "shape", "colour", "material", "extent")
        change = "" if first is None else interval(100 * (self.right - first.right), self.each)
        spread = f"{measures.spread(features, self.each):.2f}" if self.each > 1 else "-"
        shares = (found.named(self.scenes), self.right, words.float(), found.mixed_up(self.scenes).float())
        one, all_, words, mixed = (f"{100 * share.mean():.1f} %" for share in shares)
        saturation, contrast, clipped = (
            measure(self.images).mean() for measure in (measures.saturation, measures.contrast, measures.clipped)
        )
        return (
            f"{one} | {all_} | {change} | {words} | {mixed} | {measures.frechet(features, real):.2f} "
            f"| {saturation:.3f} | {contrast:.3f} | {100 * clipped:.1f} % | {spread}"
        )


def interval(values: Tensor, each: int = EACH) -> str:
    """95 % bootstrap interval of the mean over captions, of which `each` images follow each other."""
    low, high = measures.bootstrap(values.unflatten(0, (-1, each)).mean(1))
    return f"{low:+.1f} to {high:+.1f}"


class Table:
    """Rows of one demo model; the first is what the others are compared with."""

    def __init__(self, family: str, count: int, seed: int = 1000):
        self.family, self.demo = family, Demo(family, count, seed)
        self.real = found_in(drawn_like()).features
        self.first: Look | None = None

    def row(
        self,
        name: str,
        model: ModelPatcher,
        cfg: float,
        steps: int = 25,
        sampler: str | Sampler = "euler",
        batch: int | None = None,
    ) -> float:
        """Prints a row; returns omega_e."""
        model = model.clone()
        measured, counted = measure_scale(model), count_evaluations(model)
        look = Look(self.demo.sample(model, cfg, steps, sampler, batch), self.demo.scenes)
        scale = measured.mean
        omega = "-" if scale != scale else f"{scale:.2f}"  # NaN without a negative
        used = counted.count / len(look.images)
        print_row(f"| {self.family} | {name} | {omega} | {used:.1f} | {look.cells(self.real, self.first)} |")
        if self.first is None:
            self.first = look
        return scale
