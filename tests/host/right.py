"""Valid input for every node, made from its schema, with the demo model and the host's own classes."""

from collections.abc import Callable
from functools import cache
from typing import Any

import comfy.samplers
import torch
from comfy_api.latest import io

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.demo.world.models import load
from guidekit.nodes.candidates import Candidates
from guidekit.nodes.exact_invert import ExactInvert
from guidekit.nodes.export_votes import ExportVotes
from guidekit.nodes.frecas_plan import FreCaSPlan
from guidekit.nodes.host.votes.rule import ABOVE
from guidekit.nodes.image_classifier import ImageClassifier
from guidekit.nodes.linear_ag_fit import LinearAGFit
from guidekit.nodes.save_inversion import SaveInversion
from guidekit.nodes.trajectory_record import TrajectoryRecord
from guidekit.nodes.vote_by_rule import VoteByRule
from guidekit.nodes.votes import Votes
from guidekit.tests.host.test_classifiers import clip_of_sdxl, vision


@cache
def demo(name: str = "unet") -> tuple:
    return load(name)


def encode(text: str) -> list:
    _, clip, _ = demo()
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


def right(node: type[io.ComfyNode]) -> dict[str, Any]:
    """Values for all sockets, and for widgets whose defaults are not enough. Some nodes write a file for this."""
    kinds = {wanted.id: wanted.get_io_type() for wanted in node.define_schema().inputs}
    found = {name: _BY_TYPE[kind]() for name, kind in kinds.items() if kind in _BY_TYPE}
    return found | {name: make() for name, make in _OF_NODE.get(node.GET_SCHEMA().node_id, {}).items()}


def _model() -> Any:
    return demo()[0].clone()


def _worse() -> Any:
    return demo("unet_early")[0].clone()


def _guider() -> comfy.samplers.CFGGuider:
    found = comfy.samplers.CFGGuider(_model())
    found.set_conds(encode("a large red ball"), encode("a small blue cube"))
    found.set_cfg(2.0)
    return found


def _inverted() -> dict:
    return run_node(ExactInvert, **right(ExactInvert), keep_trajectory=True)


def _plan() -> Any:
    """A plan whose first stage has made the right latent."""
    return run_node_all(FreCaSPlan, model=_model(), sizes="32, 64")[2]


def _voted() -> str:
    """The tag of votes that are in the store then."""
    noise = torch.rand(8, 8, 8, 3, generator=torch.Generator().manual_seed(0))
    settings = {"threshold": [0.5], "likes": [ABOVE], "margin": [0.0], "tag": ["right"]}
    VoteByRule.execute(images=[noise], liked=[True, False] * 4, positive=[encode("a ball")], **settings)
    return "right"


def _exported() -> str:
    run_node(ExportVotes, name="given")
    return "given"


_BY_TYPE: dict[str, Callable[[], Any]] = {
    "MODEL": _model,
    "COMFY_MATCHTYPE_V3": _model,  # anything
    "*": _model,
    "CLIP": lambda: demo()[1],
    "VAE": lambda: demo()[2],
    "CONDITIONING": lambda: encode("a small blue cube"),
    "GUIDER": _guider,
    "SAMPLER": lambda: comfy.samplers.sampler_object("euler"),
    "SIGMAS": lambda: torch.tensor([14.0, 3.0, 1.0, 0.0]),
    "LATENT": lambda: {"samples": torch.ones(1, 8, 8, 8)},
    "IMAGE": lambda: torch.linspace(0, 1, 192).reshape(1, 8, 8, 3),
    "MASK": lambda: torch.ones(1, 8, 8),
    "CURVE": lambda: [[0.0, 1.0], [1.0, 0.0]],
    "CLIP_VISION": lambda: vision(24),
    "GUIDEKIT_FRECAS_PLAN": _plan,
    "GUIDEKIT_CLASSIFIER": lambda: run_node(ImageClassifier, file="demo"),
    "GUIDEKIT_VOTES": lambda: run_node(Votes, tag=_voted(), clip=demo()[1], vae=demo()[2], hold_out=0.0),
    "GUIDEKIT_CANDIDATES": lambda: run_node(Candidates, clip=demo()[1], words="red\nblue"),
}
_OF_NODE: dict[str, dict[str, Callable[[], Any]]] = {
    "GuidekitAutoguidance": {"weak_model": _worse},
    "GuidekitCandidate": {"label": lambda: "green"},
    "GuidekitCandidates": {"words": lambda: "red\nblue"},
    "GuidekitCLIPClassifier": {"clip": clip_of_sdxl},
    "GuidekitConceptEdit": {"edits": lambda: "a ball -> a blue ball"},
    "GuidekitEluCD": {"target": lambda: "red"},
    "GuidekitExactSample": {"inverted": _inverted},
    "GuidekitExportVotes": {"name": lambda: _voted() and "mine"},
    "GuidekitGFCG": {"weak_model": _worse},
    "GuidekitImageClassifier": {"file": lambda: "demo"},
    "GuidekitImportVotes": {"folder": lambda: _voted() and f"output/guidekit/{_exported()}"},
    "GuidekitLinearAG": {"file": lambda: run_node(LinearAGFit, **right(LinearAGFit))},
    "GuidekitLinearAGFit": {"prompts": lambda: "a large red ball", "trajectories": lambda: 1},
    "GuidekitLoadInversion": {"file": lambda: run_node(SaveInversion, inverted=_inverted())},
    "GuidekitNegToMe": {"reference": lambda: "reference latent"},
    "GuidekitPreferenceCFG": {"mode": lambda: "mixture (SINE)", "other_model": _worse},
    "GuidekitPreferenceLoraLoader": {"file": lambda: "demo: liked"},
    "GuidekitSaveInversion": {"inverted": _inverted},
    "GuidekitStyleAligned": {"reference": lambda: "reference latent"},
    "GuidekitVoteByRule": {"score": lambda: 0.7},
    "GuidekitVotes": {"tag": lambda: _voted()},
    "GuidekitPreferenceScore": {"votes": lambda: None},
    "GuidekitTrainPreference": {"steps": lambda: 1, "images_per_step": lambda: 2, "name": lambda: "right"},
    "GuidekitTrajectoryReplay": {"trajectory": lambda: run_node(TrajectoryRecord, **right(TrajectoryRecord))},
}
