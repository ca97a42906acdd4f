"""Makes all demo models on one machine in one go, within a time limit:

    python -m guidekit.demo.training.everything FOLDER --out OUT --device cuda --seconds 280

FOLDER holds the trained autoencoder (pack.py fills it). Scenes are drawn, captioned and encoded first; then judge and
guiding classifier, UNet and transformer are trained side by side, each in a process of its own; the models are measured
where they were trained, and their LoRAs tuned while there is time. A part that fails is begun once more, without CUDA
graphs and at half the learning rates; the others do not wait for it. With --weights, the models and the judge that lie
there are measured, and LoRAs tuned that are missing; with --further the models are trained on from there.

OUT gets at most 6 files: the last weights of both models and those on the way that are the best demo (bars.py), an
early UNet, and small.tar.gz with everything else.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tarfile
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..world.classifier import METADATA, there
from ..world.judge import Judge
from ..world.scenes import generator_of, random_scenes
from ..world.vocabulary import VOCABULARY
from . import classifier as classifying
from . import diffusion
from . import judge as judging
from .bars import Bars, Extent
from .diffusion import ENDS, Diffusion
from .flat import Flat
from .gather import draw_on, gather, load_labelled, save_gathered
from .latents import load_autoencoder
from .state import Log
from .timed import Step, train
from .tune import TASTES, material_of, tune

PARTS = ("judge", "unet", "dit")  # processes beside the one that draws
MOST = 16 * 2**20  # bytes of a file that comes back
ALL = 62 * 2**20  # bytes of all
SHORT = ("both", "count", "shape", "colour", "mixed up", "saturation", "clipped", "fréchet", "diversity")
FALLBACK = "judge.safetensors"  # in FOLDER: a judge from an earlier training, should this one fail
KEEP = (0.04, 0.08, 0.16, 0.25, 0.5, 0.75)  # shares of the training at which weights are kept
FRESH = 2000  # the first chunk of scenes for trainings that go on
EARLY = 0.08  # the worse version for autoguidance
_VOCABULARY = {"vocabulary": " ".join(VOCABULARY)}


@dataclass(frozen=True)
class Ends:
    """When what ends, as a share of the time."""

    drawn: float = 0.17
    judged: float = 0.40
    classified: float = 0.52
    trained: float = 0.73
    measured: float = 0.92
    tuned: float = 0.97
    all: float = 0.98


GIVEN = Ends(0.0, 0.0, 0.0, 0.0, 0.55, 0.95)  # with weights


@dataclass(frozen=True)
class Recipe:
    """What is trained, and with which settings."""

    chunks: int = 400  # of scenes, at most
    chunk: int = 500
    labelled: int = 60000  # scenes whose images are kept
    batch: int = 192
    judge_batch: int = 192
    muon: float = 4e-3
    adam: float = 1.5e-3
    decay: float = 0.999
    steps: int | None = None  # of each training, at most
    unseen: int = 1000
    tune_steps: int = 500
    tune_scenes: int = 2000
    extent: Extent = field(default_factory=Extent)


# Enough to see that it works.
TINY = Recipe(
    4, 8, 24, 4, 4, steps=20, unseen=8, tune_steps=2, tune_scenes=4, extent=Extent((1.0, 4.0), 2, 2, 2, 1, 2, 8)
)


@dataclass(frozen=True)
class Place:
    """Where and when a part works."""

    folder: Path
    work: Path
    out: Path
    device: torch.device
    begun: float  # seconds since the epoch
    seconds: float
    recipe: Recipe
    weights: Path | None
    further: bool
    graph: bool
    ends: Ends

    def until(self, share: float) -> float:
        return self.begun + share * self.seconds

    def left(self, share: float) -> float:
        return max(self.until(share) - time.time(), 0.0)

    def await_file(self, name: str, share: float) -> Path:
        """Raises TimeoutError if it is not there in time."""
        path = self.work / name
        while not path.exists():
            if time.time() > self.until(share):
                raise TimeoutError(f"{name} was not there in time")
            time.sleep(0.1)
        return path


def save_weights(weights: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    """In float16; the file appears when it is complete."""
    halves = {k: (v.half() if v.is_floating_point() else v).contiguous().cpu() for k, v in weights.items()}
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    save_file(halves, part, metadata=dict(metadata))
    part.replace(path)


# Parts --------------------------------------------------------------------------------------------------------------


def run_timed(name: str, step: Step, place: Place, share: float, say: Callable[[str], None], keep: Mapping) -> int:
    if place.graph and place.device.type == "cuda":
        begun = time.time()
        step.capture()
        say(f"{name}: captured in {time.time() - begun:.1f} s")
    done = train(step, max(place.left(share), 0.5), say, keep, place.recipe.steps)
    say(f"{name}: {done} steps")
    return done


def make_judges(place: Place, say: Callable[[str], None]) -> None:
    """The judge, and then the classifier that guides."""
    recipe, device = place.recipe, place.device
    place.await_file("images.pt", place.ends.judged)
    scenes, images = load_labelled(place.work)
    images = images.to(device)
    unseen = random_scenes(recipe.unseen, generator_of("judge", 0))
    fresh = draw_on(device, unseen).cpu().float() / 255

    torch.manual_seed(judging.SEED)
    judge = Judge().to(device)
    loss = judging.Loss(judge, judging.targets(scenes).to(device), images, recipe.judge_batch)
    flat = Flat(judge, judging.ENDS, muon=3e-3, adam=2e-3)
    run_timed("judge", Step(loss, flat), place, place.ends.judged, say, {})
    last = Judge().eval()
    last.load_state_dict(flat.averaged())
    save_weights(last.state_dict(), place.work / "judge.safetensors", {"world": "2"})
    say(judging.report(last, unseen, fresh))
    del loss, flat

    torch.manual_seed(classifying.SEED)
    network = classifying.new_classifier().to(device).train()
    loss = classifying.Loss(network, there(scenes).to(device), images, recipe.judge_batch)
    flat = Flat(network, classifying.ENDS)
    run_timed("classifier", Step(loss, flat), place, place.ends.classified, say, {})
    network.load_state_dict(flat.averaged())
    save_weights(network.state_dict(), place.work / "classifier.safetensors", METADATA)
    say(classifying.report(network.eval().cpu(), fresh, there(unseen)))


def make_family(family: str, place: Place, say: Callable[[str], None]) -> None:
    """Train a model, or take what is there; measure it; tune its LoRAs."""
    import comfy.cli_args

    comfy.cli_args.args.cpu = place.device.type == "cpu"
    comfy.cli_args.args.use_pytorch_cross_attention = True
    import comfy.model_management

    comfy.model_management.in_training = True  # the host's fused kernels have no gradient
    recipe, autoencoder = place.recipe, load_autoencoder(place.folder).to(place.device)
    # Prepared while the scenes are drawn that all models are trained on.
    bars = Bars(family, autoencoder, place.device, recipe.extent)
    materials = {taste: material_of(taste, recipe.tune_scenes, autoencoder, place.device) for taste in TASTES}
    say("is prepared")
    if place.further or not (place.work / f"{family}.safetensors").exists():
        train_family(family, place, say)
    try:
        measure_family(family, bars, place, say)
    finally:  # tuned whether it could be measured or not
        tune_family(family, materials, place, say)


def tune_family(family: str, materials: Mapping, place: Place, say: Callable[[str], None]) -> None:
    weights, recipe = load_file(chosen_file(family, place)), place.recipe
    done = [taste for taste in TASTES if (place.work / f"{taste}_{family}.safetensors").exists()]
    missing = [taste for taste in TASTES if place.further or taste not in done]
    for i, taste in enumerate(missing):
        seconds = place.left(place.ends.tuned) / (len(missing) - i)
        if seconds < 3:
            say(f"no time is left to tune to what is {taste}")
            continue
        batch = min(64, recipe.tune_scenes)
        made = tune(family, taste, weights, materials[taste], seconds - 2, say, recipe.tune_steps, batch)
        title = {"modelspec.title": f"Guidekit demo, {taste}: {' '.join(TASTES[taste])}"}
        title |= {"modelspec.architecture": f"guidekit-demo-{family}/lora", "modelspec.license": "MIT"}
        save_weights(made, place.work / f"{taste}_{family}.safetensors", title)


def train_family(family: str, place: Place, say: Callable[[str], None]) -> None:
    recipe, device = place.recipe, place.device
    torch.manual_seed(diffusion.SEED)
    first = Diffusion(family)
    if place.further:
        given = load_file(place.weights / f"{family}.safetensors")
        first.load_checkpoint({k: v.float() for k, v in given.items()})
    model = first if device.type == "cpu" else Diffusion(family, torch.bfloat16).to(device)
    start = {name: p.detach().to(device) for name, p in first.named_parameters()}
    path = place.await_file("latents.pt", place.ends.judged)
    data = torch.load(path, weights_only=True, mmap=True)
    latents, tokens = (data[name].to(device) for name in ("latents", "tokens"))
    share = 1.0 if place.graph else 0.5  # with more care the second time
    flat = Flat(model, ENDS[family], share * recipe.muon, share * recipe.adam, recipe.decay, start)
    torch.manual_seed(diffusion.SEED)
    step = Step(diffusion.Loss(model, latents, tokens, recipe.batch), flat)

    def kept(name: str, done: int) -> None:
        say(f"{name} is step {done}")
        weights = first.checkpoint(flat.averaged())
        save_weights(weights, place.work / f"{name}.safetensors", _VOCABULARY | {"steps": str(done)})

    keep = {share: partial(kept, f"{family}-{share}") for share in KEEP}
    done = run_timed(family, step, place, place.ends.trained, say, keep)
    kept(family, done)
    place.out.mkdir(parents=True, exist_ok=True)
    shutil.copy(place.work / f"{family}.safetensors", place.out / f"{family}.safetensors")


def states_of(family: str, place: Place) -> list[str]:
    """The last one first."""
    names = [path.stem for path in place.work.glob(f"{family}[-_]*.safetensors")]
    return [family, *sorted(names, reverse=True)]


def load_judge(place: Place, say: Callable[[str], None]) -> Judge:
    try:
        path = place.await_file("judge.safetensors", place.ends.trained)
    except TimeoutError:
        path = place.folder / FALLBACK
        say("there is no new judge; an earlier one judges")
    judge = Judge()
    judge.load_state_dict({k: v.float() for k, v in load_file(path).items()})
    return judge


def measure_family(family: str, bars: Bars, place: Place, say: Callable[[str], None]) -> None:
    bars.begin(load_judge(place, say), place.work / "bars", place.until(place.ends.measured), say)
    states = states_of(family, place)
    bars.full(states[0], load_file(place.work / f"{states[0]}.safetensors"))
    for state in states[1:]:
        bars.brief(state, load_file(place.work / f"{state}.safetensors"))
    chosen = bars.choose(states)
    if chosen is not None:
        say(f"{family}: chosen is {chosen}")
        (place.work / f"{family}-chosen.txt").write_text(chosen, "utf-8")
        if chosen != family:
            bars.full(chosen, load_file(place.work / f"{chosen}.safetensors"))


def chosen_file(family: str, place: Place) -> Path:
    """The file of the state that makes the best demo, as far as is known."""
    choice = place.work / f"{family}-chosen.txt"
    names = [choice.read_text("utf-8")] if choice.exists() else []
    paths = [place.work / f"{name}.safetensors" for name in (*names, f"{family}_chosen", family)]
    return next(path for path in paths if path.exists() or path == paths[-1])


# All of them --------------------------------------------------------------------------------------------------------


@dataclass
class Child:
    """A part in a process of its own; begun anew once if it fails."""

    name: str
    command: list[str]
    process: subprocess.Popen | None = None
    tries: int = 0

    def begin(self, log: Path) -> None:
        self.tries += 1
        extra = ["--eager"] if self.tries > 1 else []
        with log.open("ab") as file:
            self.process = subprocess.Popen([*self.command, *extra], stdout=file, stderr=file)

    def state(self) -> str:
        status = self.process.poll()
        return "works" if status is None else "done" if status == 0 else "failed"


def supervise(children: list[Child], place: Place, say: Callable[[str], None]) -> None:
    """Wait for all; what fails in the first half is begun again."""
    going = list(children)
    while going and time.time() < place.until(place.ends.all):
        for child in list(going):
            state = child.state()
            if state == "failed" and child.tries < 2 and time.time() < place.until(0.5):
                say(f"{child.name} failed, and is begun again without graphs")
                child.begin(place.work / f"{child.name}.out")
            elif state != "works":
                say(f"{child.name}: {state} after {time.time() - place.begun:.0f} s")
                going.remove(child)
        time.sleep(0.1)
    for child in going:
        say(f"{child.name} was stopped")
        child.process.kill()
        child.process.wait()


def draw_everything(place: Place, workers: int, say: Callable[[str], None]) -> None:
    recipe = place.recipe
    gathered = gather(
        load_autoencoder(place.folder),
        place.device,
        say,
        workers,
        place.until(place.ends.drawn),
        recipe.chunks,
        recipe.labelled,
        recipe.chunk,
        place.device.type != "cpu",
        FRESH if place.further else 0,
    )
    save_gathered(gathered, place.work)
    say(f"{len(gathered.scenes)} scenes, {len(gathered.images)} with images")
    if place.device.type == "cuda":
        torch.cuda.empty_cache()  # the others need it


def collect(place: Place, say: Callable[[str], None]) -> None:
    """Fill OUT, within its limits: what matters most first."""
    place.out.mkdir(parents=True, exist_ok=True)
    small = place.out / "small.tar.gz"
    large = (".pt", ".part")
    with tarfile.open(small, "w:gz") as tar:
        for path in sorted(place.work.rglob("*")):
            state = path.suffix == ".safetensors" and path.stem.startswith(tuple(ENDS))
            if path.is_file() and path.suffix not in large and not state:
                tar.add(path, path.relative_to(place.work))
    used = sum(path.stat().st_size for path in place.out.iterdir())
    wanted = [(f"{family}.safetensors", place.work / f"{family}.safetensors") for family in ENDS]
    for family in ENDS:
        if (file := chosen_file(family, place)).stem not in (family, f"{family}_chosen"):
            wanted.append((f"{family}_chosen.safetensors", file))
    wanted.append(("unet_early.safetensors", place.work / f"unet-{EARLY}.safetensors"))
    for name, path in wanted:
        to = place.out / name
        size = path.stat().st_size if path.exists() else 0
        if to.exists() or not size:
            continue
        if size > MOST or used + size > ALL:
            say(f"{name} was left out: {size} bytes more than {used}")
            continue
        shutil.copy(path, to)
        used += size
    for path in sorted(place.out.iterdir()):
        say(f"{path.name}: {path.stat().st_size} bytes")


def tell_results(place: Place, say: Callable[[str], None]) -> None:
    """The bars of all states in short, should the files get lost."""
    for path in sorted((place.work / "bars").glob("*.json")):
        for name, row in json.loads(path.read_text("utf-8")).items():
            short = ", ".join(f"{k} {row[k]:.3f}" for k in SHORT if k in row)
            say(f"{path.stem.removesuffix('-bars')}: {name}: {short}")


def write_recipe(place: Place) -> None:
    cuda = place.device.type == "cuda"
    facts = {
        "recipe": repr(place.recipe),
        "seeds": {"diffusion": diffusion.SEED, "judge": judging.SEED, "classifier": classifying.SEED},
        "seconds": place.seconds,
        "torch": torch.__version__,
        "device": torch.cuda.get_device_name() if cuda else platform.processor(),
        "processors": os.cpu_count(),
    }
    (place.work / "recipe.json").write_text(json.dumps(facts, indent=1), "utf-8")


class Told(Log):
    """Also on the screen, with the seconds since everything began."""

    def __init__(self, path: Path, begun: float, name: str):
        super().__init__(path)
        self.begun, self.name = begun, name

    def __call__(self, line: str) -> None:
        line = f"{time.time() - self.begun:6.1f} {self.name}: {line}"
        super().__call__(line)
        sys.stdout.write(line + "\n")
        sys.stdout.flush()


def work_on(part: str, place: Place) -> None:
    say = Told(place.work / f"{part}.log", place.begun, part)
    say("begins")
    if part == "judge":
        make_judges(place, say)
    else:
        make_family(part, place, say)
    say("ends")


def take_given(place: Place) -> None:
    """Weights, and which were chosen."""
    for path in sorted(place.weights.iterdir()) if place.weights else ():
        if path.suffix in (".safetensors", ".txt"):
            shutil.copy(path, place.work / path.name)


def everything(place: Place, arguments: list[str], workers: int) -> int:
    say = Told(place.work / "everything.log", place.begun, "all")
    me = [sys.executable, "-m", __spec__.name, *arguments, "--work", str(place.work), "--begun", repr(place.begun)]
    take_given(place)
    parts = [part for part in PARTS if not place.weights or part in ENDS]
    children = [Child(part, [*me, "--part", part]) for part in parts]
    for child in children:
        child.begin(place.work / f"{child.name}.out")
    try:
        write_recipe(place)
        if not place.weights or place.further:
            draw_everything(place, workers, say)
    except BaseException:
        say(traceback.format_exc())
        for child in children:
            child.process.kill()
            child.process.wait()
        raise
    finally:
        supervise([c for c in children if c.state() == "works" or c.process.returncode >= 0], place, say)
        collect(place, say)
    tell_results(place, say)
    for child in children:
        if child.state() != "done":
            output = (place.work / f"{child.name}.out").read_text("utf-8", errors="replace")
            say(f"the end of what {child.name} said:\n{output[-2500:]}")
    return sum(child.state() != "done" for child in children)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--seconds", type=float, default=280)
    parser.add_argument("--workers", type=int, default=max(1, (os.cpu_count() or 2) - 3))
    parser.add_argument("--weights", type=Path, help="a folder with weights that are not trained again")
    parser.add_argument("--further", action="store_true", help="train those weights further, on other scenes")
    parser.add_argument("--tiny", action="store_true", help="a few steps of everything, to see that it works")
    parser.add_argument("--eager", action="store_true", help="without CUDA graphs, at half the learning rates")
    parser.add_argument("--work", type=Path, help="for what lies between; a new folder if it is not given")
    parser.add_argument("--begun", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--part", choices=PARTS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    place = Place(
        options.folder,
        options.work or Path(tempfile.mkdtemp(prefix="guidekit-world-")),
        options.out,
        torch.device(options.device),
        options.begun or time.time(),
        options.seconds,
        TINY if options.tiny else Recipe(),
        options.weights,
        options.further,
        not options.eager,
        GIVEN if options.weights and not options.further else Ends(),
    )
    place.work.mkdir(parents=True, exist_ok=True)
    if options.part:
        work_on(options.part, place)
        return 0
    return everything(place, sys.argv[1:], options.workers)


if __name__ == "__main__":
    sys.exit(main())
