"""The entrance of the nodes: every input of every node is given what it must not be, and answers with a sentence."""

import signal
import traceback
import tracemalloc
from functools import cache
from pathlib import Path

import comfy.samplers
import folder_paths
import pytest
import torch
from comfy_api.latest import io

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.demo.models import load
from guidekit.nodes import NODES
from guidekit.nodes.candidate import Candidate
from guidekit.nodes.clip_classifier import CLIPClassifier
from guidekit.nodes.exact_invert import ExactInvert
from guidekit.nodes.exact_sample import ExactSample
from guidekit.nodes.host.inputs import CHECKS
from guidekit.nodes.image_classifier import ImageClassifier
from guidekit.nodes.linear_ag_fit import LinearAGFit
from guidekit.nodes.save_inversion import SaveInversion
from guidekit.nodes.trajectory_record import TrajectoryRecord
from guidekit.nodes.trajectory_replay import TrajectoryReplay
from guidekit.tests.host import tiny, wrong
from guidekit.tests.host.test_classifiers import clip_of_sdxl, vision

PACK = Path(__file__).parents[2]
LIMIT = 120  # seconds of one node with all its wrong inputs: it hangs, or it takes a few
MEMORY = 100e6  # bytes that Python may take to refuse a text


def encode(clip, text):
    return clip.encode_from_tokens_scheduled(clip.tokenize(text))


@cache
def demo():
    return load("unet")


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """What the nodes read and write is this test's."""
    for name in ("guidekit", "classifiers", "loras", "diffusion_models"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))


@pytest.fixture
def no_hang():
    """A node that hangs is stopped, so that the other tests run."""

    def stop(*_):
        raise TimeoutError(f"not done within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def guider(model, clip):
    found = comfy.samplers.CFGGuider(model)
    found.set_conds(encode(clip, "a large red circle"), encode(clip, "a small blue square"))
    found.set_cfg(2.0)
    return found


def good(node: type[io.ComfyNode]) -> dict:
    """Right inputs, of the host's own classes, for all sockets."""
    model, clip, vae = demo()
    by_type = {
        "MODEL": lambda: model.clone(),
        "CLIP": lambda: clip,
        "VAE": lambda: vae,
        "CONDITIONING": lambda: encode(clip, "a small blue square"),
        "GUIDER": lambda: guider(model.clone(), clip),
        "SAMPLER": lambda: comfy.samplers.sampler_object("euler"),
        "SIGMAS": lambda: torch.tensor([14.0, 3.0, 1.0, 0.0]),
        "LATENT": lambda: {"samples": torch.ones(1, 12, 8, 8)},
        "MASK": lambda: torch.ones(1, 8, 8),
        "CURVE": lambda: [[0.0, 1.0], [1.0, 0.0]],
        "CLIP_VISION": lambda: vision(24),
        "GUIDEKIT_CLASSIFIER": lambda: run_node(ImageClassifier, file="demo"),
        "GUIDEKIT_CANDIDATES": lambda: two_candidates(clip),
    }
    kinds = {wanted.id: wanted.get_io_type() for wanted in node.define_schema().inputs}
    found = {name: by_type[kind]() for name, kind in kinds.items() if kind in by_type}
    return found | {name: value() for name, value in SPECIAL.get(node.GET_SCHEMA().node_id, {}).items()}


def two_candidates(clip):
    one = run_node(Candidate, label="red", conditioning=encode(clip, "a red circle"))
    return run_node(Candidate, label="blue", conditioning=encode(clip, "a blue circle"), candidates=one)


def inverted(node):
    # Deep levels are far from what this model was trained on; a file holds what an inversion left.
    return run_node(node, **good(node), **({"keep_trajectory": True} if node is ExactInvert else {}))


def saved():
    return run_node(SaveInversion, inverted=inverted(ExactInvert), name="kept")


def fitted():
    return run_node(LinearAGFit, **good(LinearAGFit))


# What the type alone does not say.
SPECIAL = {
    "GuidekitEluCD": {"target": lambda: "red"},
    "GuidekitCLIPClassifier": {"clip": clip_of_sdxl},
    "GuidekitNegToMe": {"reference": lambda: "reference latent"},
    "GuidekitGFCG": {"weak_model": lambda: load("unet_early")[0]},
    "GuidekitAutoguidance": {"weak_model": lambda: load("unet_early")[0]},
    "GuidekitPreferenceCFG": {
        "mode": lambda: "mixture (SINE)",
        "other_model": lambda: load("unet_early")[0],
    },
    "GuidekitCandidate": {"label": lambda: "green"},
    "GuidekitCandidates": {"words": lambda: "red\nblue"},
    "GuidekitImageClassifier": {"file": lambda: "demo"},
    "GuidekitPreferenceLoraLoader": {"file": lambda: "demo: liked"},
    "GuidekitLinearAG": {"file": fitted},
    "GuidekitLinearAGFit": {"prompts": lambda: "a large red circle", "trajectories": lambda: 1},
    "GuidekitExactSample": {"inverted": lambda: inverted(ExactInvert)},
    "GuidekitSaveInversion": {"inverted": lambda: inverted(ExactInvert)},
    "GuidekitLoadInversion": {"file": saved},
    "GuidekitTrajectoryReplay": {"trajectory": lambda: inverted(TrajectoryRecord)},
}
# A list of prompts does not know the model that they are for; GFCG, which does, is tested below.
FOR_LATER = {("GuidekitCandidate", what) for what in ("no pooled output", "null for a pooled output")}


def answer(node, inputs) -> str | None:
    """None, or the sentence with which the node refused. Anything but a ValueError goes through."""
    try:
        run_node_all(node, **inputs)
    except ValueError as error:
        last = traceback.extract_tb(error.__traceback__)[-1].filename
        assert Path(last).resolve().is_relative_to(PACK), f"not a sentence of ours: {error}"
        return str(error)
    return None


def complaint(sentence: str) -> str | None:
    """What a user could not do with it."""
    if len(sentence) > 2000 or "\n" in sentence or not sentence.isprintable() or "<" in sentence or "[[" in sentence:
        return f"not one plain line: {sentence[:200]!r}"
    return None if sentence.endswith((".", ".)")) else f"no sentence: {sentence[:200]!r}"


@pytest.mark.usefixtures("folders", "no_hang")
@pytest.mark.parametrize("node", NODES, ids=lambda node: node.GET_SCHEMA().node_id)
def test_every_input(node):
    """All that `wrong` has for it is refused in a sentence; what `odd` has is taken or refused so, in little memory; and
    the node works afterwards."""
    right, failures = good(node), []
    assert answer(node, right) is None
    for wanted in node.define_schema().inputs:
        for what, value in wrong.wrong(wanted).items():
            sentence = answer(node, {**right, wanted.id: value})
            if sentence is None:
                if (node.GET_SCHEMA().node_id, what) not in FOR_LATER:
                    failures.append(f"{wanted.id} {what}: taken")
            elif problem := complaint(sentence):
                failures.append(f"{wanted.id} {what}: {problem}")
        for what, value in wrong.odd(wanted).items():
            tracemalloc.start()
            try:
                sentence = answer(node, {**right, wanted.id: value})
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            if sentence and (problem := complaint(sentence)):
                failures.append(f"{wanted.id} {what}: {problem}")
            if peak > MEMORY:
                failures.append(f"{wanted.id} {what}: {peak / 1e6:.0f} MB")
    assert failures == []
    assert answer(node, right) is None


def test_no_type_is_without_a_check():
    assert {wanted.get_io_type() for node in NODES for wanted in node.define_schema().inputs} == set(CHECKS)
