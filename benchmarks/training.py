"""Time and memory of Train Preference LoRA: `python dev.py bench training`.

On a GPU: networks of real size with random weights in bfloat16, for images of 1024 x 1024 (SD1.5: 512 x 512). Without
one: small networks of the same shape in float32, to see that everything runs.

    python -m guidekit.benchmarks.training [--networks sdxl flux] [--ways DiffusionNFT KTO]
"""

import argparse
from dataclasses import dataclass, field

import comfy.model_management
import torch
from comfy.model_patcher import ModelPatcher

from ..nodes.host.training.session import Session
from ..nodes.host.training.trainer import Point, Settings, Trainer
from ..nodes.host.votes.vote_set import VoteRow, VoteSet
from ..nodes.train_preference import BETAS
from ..samplers.preference.objectives import KTO, NFT, Objective
from . import FAMILIES as _  # noqa: F401  reads the command line before the host does
from ._networks import FULL, SMALL, Network, build
from ._results import about_machine, machine_sentence
from ._steps import StepTimes
from ._table import print_row
from .device import put_away

NETWORKS = ("sdxl", "sd15", "flux", "z_image", "qwen_image")
STEPS = 2  # of the optimizer, the first of which is left out
WINDOW = 8  # images_per_step
VOTES_OF_A_TRAINING = 800  # 100 steps of them


@dataclass(frozen=True)
class Way:
    name: str
    objective: Objective
    at_once: int = 1
    checkpointing: bool = True
    layers: str = "attention"


NFT_, KTO_ = NFT(BETAS["DiffusionNFT"]), KTO(BETAS["KTO"])
WAYS = (
    Way("DiffusionNFT", NFT_),
    Way("KTO", KTO_),
    Way("DiffusionNFT, all linear", NFT_, layers="all linear"),
    Way("DiffusionNFT, 4 at once", NFT_, at_once=4),
    Way("DiffusionNFT, no checkpointing", NFT_, checkpointing=False),
)


@dataclass
class Clock:
    """Looks at a training and notes when its steps end."""

    times: StepTimes
    losses: list[float] = field(default_factory=list)

    def __call__(self, trainer: Trainer, session: Session, point: Point) -> None:
        self.times()
        self.losses.append(point.loss)


def votes_of(network: Network, number: int) -> VoteSet:
    prompt, latents = network.prompt(11), network.noise(number).split(1)
    rows = [VoteRow(str(i), latent, prompt, None, "", 1 if i % 2 else -1, "") for i, latent in enumerate(latents)]
    return VoteSet(tuple(rows), (), network.prompt(33), network.name)


def measure(network: Network, model: ModelPatcher, way: Way, cuda: bool) -> str:
    settings = Settings(
        way.objective, way.layers, steps=STEPS, window=WINDOW, batch=way.at_once, checkpointing=way.checkpointing
    )
    if cuda:
        torch.cuda.reset_peak_memory_stats()
    trainer, clock = Trainer(model, votes_of(network, WINDOW), settings), Clock(StepTimes(cuda))
    trainer.run(clock)
    assert all(torch.tensor(clock.losses).isfinite())
    seconds = clock.times.median() / WINDOW
    peak = f"{torch.cuda.max_memory_allocated() / 2**30:.1f} GiB" if cuda else "-"
    weights = sum(p.nbytes for p in model.model.diffusion_model.parameters()) / 2**30
    return f"{seconds:.3f} s | {seconds * VOTES_OF_A_TRAINING / 60:.1f} min | {peak} | {weights:.1f} GiB"


def main() -> None:
    parser = argparse.ArgumentParser(prog="guidekit.benchmarks.training", description=__doc__.split("\n")[0])
    parser.add_argument("--networks", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--ways", nargs="+", choices=[way.name for way in WAYS], default=[way.name for way in WAYS])
    chosen = parser.parse_args()
    device = comfy.model_management.get_torch_device()
    cuda = device.type == "cuda"
    print(machine_sentence(about_machine(device)))
    print(
        f"\nRank 8, images_per_step 8. A vote: of a step after the first; {VOTES_OF_A_TRAINING} votes: 100 steps. Peak "
        "memory: of the card, in a training, with the weights; of them.\n"
    )
    print("| network | latent | training | a vote | 800 votes | peak memory | weights |\n" + "|---" * 7 + "|")
    for key in chosen.networks:
        network = (FULL if cuda else SMALL)[key]
        model = build(network, device, torch.bfloat16 if cuda else torch.float32)
        for way in [way for way in WAYS if way.name in chosen.ways]:
            try:
                found = measure(network, model, way, cuda)
            except torch.OutOfMemoryError:
                found = "more than the card has | | |"
            print_row(f"| {network.name} | {network.size} | {way.name} | {found} |")
            put_away()
        del model
        put_away()


if __name__ == "__main__":
    main()
