"""What every node costs where the work happens, beside core's nodes on the same networks: `python dev.py bench device`.

On a GPU: networks of real size with random weights in bfloat16, through the host's own sampling; time and memory are
those of that card, in this process. The first rows are those with a target. What does not fit into `--seconds` is left
out and named. Without a GPU: networks of the same shape, small, in float32, to see that everything runs.

    python -m guidekit.benchmarks.device [--seconds 145] [--row-seconds 2.5] [--networks sdxl flux] [--nodes APG PAG]
    python -m guidekit.benchmarks.device --docs RESULTS.json ...     writes docs/benchmarks/device.md

Every row is printed when it is measured; results are kept as device.json and device.md in the folder $OUT, if given.
"""

import argparse
import gc
import logging
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import comfy.model_management
import comfy.samplers
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_apg import APG as CoreAPG
from comfy_extras.nodes_nag import NAGuidance as CoreNAG
from comfy_extras.nodes_pag import PerturbedAttentionGuidance as CorePAG
from comfy_extras.nodes_slg import SkipLayerGuidanceDiT as CoreSLG

from ..nodes.adaptive_guidance import AdaptiveGuidance
from ..nodes.apg import APG
from ..nodes.autoguidance import Autoguidance
from ..nodes.cfgpp import CFGPP
from ..nodes.guidance_interval import GuidanceInterval
from ..nodes.host.network.block_selection import usually_skipped
from ..nodes.host.run.noise_levels import is_flow
from ..nodes.nasa import NASA
from ..nodes.negtome import NegToMe
from ..nodes.pag import PAG
from ..nodes.preference_cfg import PreferenceCFG
from ..nodes.seg import SEG
from ..nodes.slg import SLG
from ._ceilings import matching_rows, measured_ceilings
from ._networks import FULL, SMALL, Network, build, with_blocks, with_lora
from ._nodes import run_node
from ._results import Results, about_machine, write_docs
from ._steps import Profile, profile, times

WAN_BLOCKS = 3  # of 40: a step of all of them takes many seconds
STEPS_OF_A_RUN = 20
# Whatever goes wrong in one row, the others are wanted.
FAILURES = (ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError, RuntimeError)
FAILURES += (TypeError, ValueError)

Make = Callable[[Network, ModelPatcher], ModelPatcher]


@dataclass(frozen=True)
class Row:
    """A node at `cfg`, beside the model without it at the same. `limit`: the largest ratio of their steps, or of whole
    runs with the node's own choice of steps, that is wanted. `rank`: rows of a lower one come first, of all
    networks."""

    node: str
    make: Make
    cfg: float
    batch: int = 1
    limit: float | None = None
    of_run: bool = False
    rank: int = 1


def _node(node: type, **settings) -> Make:
    def make(network: Network, model: ModelPatcher) -> ModelPatcher:
        return run_node(node, model=model, **settings)

    return make


def _with_negative(**settings) -> Make:
    def make(network: Network, model: ModelPatcher) -> ModelPatcher:
        return run_node(NASA, model=model, negative=network.prompt(33), **settings)

    return make


def _core_slg(network: Network, model: ModelPatcher) -> ModelPatcher:
    """The blocks that ours skips."""
    kinds = {
        f"{kind}_layers": ", ".join(str(b.number) for b in usually_skipped(model) if b.kind == kind)
        for kind in ("double", "single")
    }
    return run_node(CoreSLG, model=model, start_percent=0.0, end_percent=1.0, **kinds)


def lora_on_negative(network: Network, model: ModelPatcher) -> ModelPatcher:
    return run_node(PreferenceCFG, model=model, other_model=with_lora(model))


# With settings that act in every step, and guide in every step.
SCALES = {
    "APG": _node(APG),
    "CFG++": _node(CFGPP),
    "Guidance interval": _node(GuidanceInterval, limits="percent", end_percent=0.99),
    "Adaptive guidance": _node(AdaptiveGuidance, threshold=1.0, warm_up=1000),
}
NEGTOME = _node(NegToMe, steps="start to end")
PAIRS = {"NASA": _with_negative(method="NASA"), "NAG": _with_negative(method="NAG")}


def rows(key: str) -> Iterator[Row]:
    """The rows of a network's table."""
    cfg = {"sdxl": 7.0, "sd15": 7.0, "wan": 6.0}.get(key, 4.0)
    if key == "sdxl":
        yield from (Row(name, make, cfg, 1, 1.005, rank=0) for name, make in SCALES.items())
        for batch in (1, 4):
            if batch == 4:
                yield Row("APG", _node(APG), cfg, 4, 1.005, rank=0)
            yield from (Row(name, make, 1.0, batch, 1.15, rank=0) for name, make in PAIRS.items())
            yield Row("LoRA on the negative", lora_on_negative, cfg, batch, 1.05, rank=0)
            yield Row("PAG", _node(PAG), 1.0, batch, 1.70, rank=0)
        yield Row("PAG (core)", _node(CorePAG), 1.0)
        yield Row("NAG (core)", _node(CoreNAG), 1.0)
        yield Row("APG (core)", _node(CoreAPG), cfg)
        yield Row("NegToMe", NEGTOME, cfg, 4)
        yield from (Row(name, make, cfg, 4, rank=2) for name, make in SCALES.items() if name != "APG")
        yield Row("SEG", _node(SEG), cfg, rank=2)
        yield Row("Autoguidance", _node(Autoguidance), cfg, rank=2)
        yield Row("PAG", _node(PAG), cfg, rank=2)
        yield Row("PAG (core)", _node(CorePAG), cfg, rank=2)
    elif key == "flux":
        yield from (Row(name, make, 1.0, 1, 1.35, rank=0) for name, make in PAIRS.items())
        yield Row("NegToMe", NEGTOME, 1.0, 2, 1.01, of_run=True, rank=0)
        yield Row("PAG", _node(PAG), 1.0)
        yield Row("NAG (core)", _node(CoreNAG), 1.0)
        yield Row("SLG", _node(SLG), 1.0)
        yield Row("SLG (core)", _core_slg, 1.0)
    elif key == "sd15":
        yield Row("PAG", _node(PAG), 1.0, 1, 1.70, rank=0)
        yield Row("PAG (core)", _node(CorePAG), 1.0)
        yield from (Row(name, make, 1.0, rank=2) for name, make in PAIRS.items())
        yield Row("APG", _node(APG), cfg, rank=2)
    else:
        yield Row("PAG", _node(PAG), cfg)
        if key == "z_image":
            yield from (Row(name, make, 1.0) for name, make in PAIRS.items())
            yield Row("NegToMe", NEGTOME, 1.0, 2)
        else:
            yield Row("SLG (core)", _core_slg, cfg)
        if key == "qwen_image":
            yield Row("NAG", PAIRS["NAG"], 1.0)
        yield Row("SLG", _node(SLG), cfg)
        yield Row("APG", _node(APG), cfg, rank=2)


def acting_share(model: ModelPatcher) -> float:
    """The share of a run's steps in which NegToMe acts by default, according to its schema."""
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "simple", STEPS_OF_A_RUN)[:-1]
    low = 0.9 if is_flow(sampling) else sampling.percent_to_sigma(0.2)
    return (sigmas >= low - 1e-6).float().mean().item()


@dataclass
class Bench:
    network: Network
    model: ModelPatcher
    row_seconds: float

    def __post_init__(self):
        self._plain: dict[tuple[float, int], Profile] = {}

    def plain(self, sampled: Callable, row: Row) -> Profile:
        """Profile of the model without the node, measured once."""
        where = row.cfg, row.batch
        if where not in self._plain:
            self._plain[where] = profile(sampled, self.model)
        return self._plain[where]

    def measure(self, row: Row) -> dict:
        def sampled(model: ModelPatcher, steps: int, callback) -> None:
            self.network.sample(model, row.cfg, steps, row.batch, callback)

        model = row.make(self.network, self.model)
        took = times((sampled, self.model), (sampled, model), self.row_seconds)
        found = {
            "network": self.network.name,
            "latent": self.network.size,
            "node": row.node,
            "cfg": row.cfg,
            "batch": row.batch,
            "plain_seconds": took.plain,
            "seconds": took.node,
            "ratio": took.ratio,
            "ratios": took.ratios,
            "plain": asdict(self.plain(sampled, row)),
            "with_node": asdict(profile(sampled, model)),
            "limit": row.limit,
        }
        if row.of_run:
            found["share"] = acting_share(self.model)
            found["of_run"] = 1 + found["share"] * (took.ratio - 1)
        return found


def put_away() -> None:
    comfy.model_management.unload_all_models()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def measure_network(network: Network, chosen: list[Row], device: torch.device, results: Results, seconds: float):
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    bench = Bench(network, build(network, device, dtype), seconds)
    for row in chosen:
        name = f"{network.name}, cfg {row.cfg:g}, batch {row.batch}, {row.node}"
        if results.spent():
            results.left_out(name)
            continue
        try:
            results.add_row(bench.measure(row))
        except FAILURES as error:
            results.failed(name, error)


def parsed() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="guidekit.benchmarks.device", description=__doc__.split("\n")[0])
    parser.add_argument("--seconds", type=float, default=145.0, help="start no row later than this")
    parser.add_argument("--row-seconds", type=float, default=2.5, help="for the pairs of a row")
    parser.add_argument("--networks", nargs="+", choices=list(SMALL), default=list(SMALL), help="in this order")
    parser.add_argument("--nodes", nargs="+", metavar="NODE", help="these rows alone, by their names in the table")
    parser.add_argument("--docs", nargs="*", type=Path, metavar="JSON", help="write docs/benchmarks/device.md of these")
    return parser.parse_args()


@torch.inference_mode()
def main() -> None:
    options = parsed()
    if options.docs is not None:
        write_docs(options.docs)
        return
    logging.getLogger("guidekit").setLevel(logging.ERROR)  # nodes tell of every run what they did in it
    device = comfy.model_management.get_torch_device()
    real = device.type == "cuda"
    with Results(about_machine(device), options.seconds) as results:
        try:
            ceilings = measured_ceilings(device)
            results.add_ceilings(asdict(ceilings))
            for row in matching_rows(device, ceilings):
                results.add_kernel(row)
        except FAILURES as error:
            results.failed("kernels", error)
        for rank in (0, 1, 2):
            for key in options.networks:
                network = FULL[key] if real else SMALL[key]
                if real and key == "wan":
                    network = with_blocks(network, WAN_BLOCKS)
                chosen = [r for r in rows(key) if r.rank == rank and (not options.nodes or r.node in options.nodes)]
                if not real:
                    chosen = [replace(row, limit=None) for row in chosen]
                if not chosen or results.spent():
                    results.left_out(*(f"{network.name}: {row.node}" for row in chosen))
                    continue
                try:
                    measure_network(network, chosen, device, results, options.row_seconds)
                except FAILURES as error:
                    results.failed(network.name, error)
                put_away()


if __name__ == "__main__":
    main()
