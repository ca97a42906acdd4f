"""Wrong input is answered by a sentence, and the next run works."""

import signal
import traceback
import tracemalloc
from inspect import signature
from pathlib import Path

import comfy.sample
import comfy.samplers
import comfy.supported_models
import folder_paths
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_api.internal import first_real_override
from comfy_api.latest import io
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.demo.world import models
from guidekit.nodes import NODES
from guidekit.nodes.apg import APG
from guidekit.nodes.candidate import Candidate
from guidekit.nodes.candidates import Candidates
from guidekit.nodes.cfgpp_inversion import CFGPPInversion
from guidekit.nodes.elucd import EluCD
from guidekit.nodes.exact_invert import ExactInvert
from guidekit.nodes.exact_sample import ExactSample
from guidekit.nodes.gfcg import GFCG
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.inputs import CHECKS, check_prompt_for
from guidekit.nodes.host.inputs.shared import RangedNode
from guidekit.nodes.host.inversion.latent_state import KEY as INVERSION
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.image_classifier import ImageClassifier
from guidekit.nodes.linear_ag_fit import LinearAGFit
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.preference_cfg import PreferenceCFG
from guidekit.nodes.slg import SLG
from guidekit.nodes.trajectory_record import TrajectoryRecord
from guidekit.tests.host import tiny, wrong
from guidekit.tests.host.products import PRODUCTS
from guidekit.tests.host.right import encode, right

PACK = Path(__file__).parents[2]
LIMIT = 300  # seconds after which a node hangs; all of its wrong inputs take a few
MEMORY = 100e6  # bytes that Python may take for a text
# A list of prompts does not know the model that they are for. GFCG, which does, is tested below.
FOR_LATER = {("GuidekitCandidate", what) for what in ("no pooled output", "null for a pooled output")}
ONCE = [pytest.param(p, f, id=f"{p.name}-{f}") for p in PRODUCTS for f in p.families if f in ("unet", "flux")]


# Every node, every input


@pytest.fixture
def folders(monkeypatch, tmp_path):
    """What the nodes read and write is this test's."""
    for name in ("guidekit", "classifiers", "loras", "diffusion_models"):
        monkeypatch.setitem(folder_paths.folder_names_and_paths, name, ([str(tmp_path / name)], {".safetensors"}))
    monkeypatch.setattr(folder_paths, "get_output_directory", lambda: str(tmp_path / "output"))
    monkeypatch.setattr(folder_paths, "get_input_directory", lambda: str(tmp_path / "input"))
    monkeypatch.setattr(folder_paths, "get_user_directory", lambda: str(tmp_path / "user"))


@pytest.fixture
def no_hang():
    """A node that hangs is stopped, so that the other tests run."""
    if not hasattr(signal, "SIGALRM"):
        yield
        return

    def stop(*_):
        raise TimeoutError(f"not done within {LIMIT} s")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(LIMIT)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def answer(node: type[io.ComfyNode], inputs: dict) -> ValueError | None:
    """None where the node took it. Anything but a ValueError goes through."""
    try:
        run_node_all(node, **inputs)
    except ValueError as error:
        return error
    return None


def complaint(error: ValueError) -> str | None:
    """What is wrong with the answer."""
    sentence, raised_in = str(error), traceback.extract_tb(error.__traceback__)[-1].filename
    if not Path(raised_in).resolve().is_relative_to(PACK):
        return f"not ours but of {raised_in}: {sentence[:200]!r}"
    if len(sentence) > 2000 or not sentence.isprintable() or "<" in sentence or "[[" in sentence:
        return f"not one plain line: {sentence[:200]!r}"
    return None if sentence.endswith(".") else f"no sentence: {sentence[:200]!r}"


@pytest.mark.usefixtures("folders", "no_hang")
@pytest.mark.parametrize("node", NODES, ids=lambda node: node.GET_SCHEMA().node_id)
def test_every_input(node):
    """All that `wrong` has for it is refused in a sentence of ours; what `odd` has is taken, or refused so, in little
    memory; and the node works afterwards."""
    if node is SLG and not reaches_unet_layers():
        pytest.skip("SLG needs a newer host for UNets, and says so")
    given, failures = right(node), []
    assert answer(node, given) is None
    for wanted in node.define_schema().inputs:
        for what, value in wrong.wrong(wanted).items():
            error = answer(node, {**given, wanted.id: value})
            if error is None and (node.GET_SCHEMA().node_id, what) not in FOR_LATER:
                failures.append(f"{wanted.id} {what}: taken")
            elif error is not None and (problem := complaint(error)):
                failures.append(f"{wanted.id} {what}: {problem}")
        for what, value in wrong.odd(wanted).items():
            tracemalloc.start() if isinstance(value, str) else None
            try:
                error = answer(node, {**given, wanted.id: value})
                _, peak = tracemalloc.get_traced_memory()
            finally:
                tracemalloc.stop()
            if error is not None and (problem := complaint(error)):
                failures.append(f"{wanted.id} {what}: {problem}")
            if peak > MEMORY:
                failures.append(f"{wanted.id} {what}: {peak / 1e6:.0f} MB")
    assert failures == []
    assert answer(node, given) is None


def test_no_type_is_without_a_check():
    """Nor is a type of our own that a node gives."""
    schemas = [node.define_schema() for node in NODES]
    taken = {each.get_io_type() for schema in schemas for each in schema.inputs}
    given = {each.get_io_type() for schema in schemas for each in schema.outputs}
    assert taken | {kind for kind in given if kind.startswith("GUIDEKIT_")} == set(CHECKS)


@pytest.mark.parametrize("combination", ["add to CFG", "in place of the negative", "autoguidance"])
def test_candidates_without_what_the_model_takes(combination):
    """The list does not know the model; GFCG does."""
    [[tokens, _]] = encode("a blue ball")
    one = run_node(Candidate, label="red", conditioning=encode("a red ball"))
    both = run_node(Candidate, label="blue", conditioning=[[tokens, {}]], candidates=one)
    with pytest.raises(ValueError, match="candidate 'blue' .*no pooled output"):
        run_node(GFCG, **{**right(GFCG), "candidates": both}, combination=combination)


def test_a_prompt_without_what_the_demo_model_takes():
    """In a graph without a node of ours."""
    model, [[tokens, _]] = right(APG)["model"], encode("a blue ball")
    latent = torch.zeros(1, 8, 8, 8)
    settings = (2, 3.0, "euler", "simple", [[tokens, {}]], encode(""), latent)
    with pytest.raises(ValueError, match="A prompt has no pooled output"):
        comfy.sample.sample(model, latent, *settings, seed=1, disable_pbar=True)


@pytest.mark.parametrize("node", [ExactInvert, TrajectoryRecord])
def test_an_inversion_by_a_model_that_breaks(node):
    """It does not go on to the end, and does not blame the nodes on the model."""
    given = right(node)

    def breaking(executor, *args, **kwargs):
        return executor(*args, **kwargs) * torch.nan

    given["guider"].model_patcher.add_wrapper("apply_model", breaking)
    with pytest.raises(ValueError, match="prediction at noise level .* holds NaN or infinity"):
        run_node(node, **given)


@pytest.mark.parametrize(
    ("words", "prompt", "sentence"),
    [
        ("\n".join(f"word{i}" for i in range(1001)), "a {slot}", "There are 1001 candidates. There may be up to 1000"),
        ("red\nblue", "{slot} " * 100_000, "would have [0-9]+ characters in all. They may have up to 200000"),
        ("\n".join(str(i) * 5000 for i in range(100)), "{slot}" * 10_000, "The prompts of 100 words would have"),
    ],
    ids=["words", "slots", "slots, words and characters"],
)
def test_candidates_have_bounds(words, prompt, sentence):
    """They are known before any prompt is made or encoded."""
    tracemalloc.start()
    try:
        with pytest.raises(ValueError, match=sentence):
            run_node(Candidates, clip=_EncodesNothing(), words=words, prompt=prompt)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < MEMORY


class _EncodesNothing:
    tokenize = encode_from_tokens_scheduled = None


def test_whole_noise_levels_are_levels():
    """The smallest level that the model knows, where an image begins, is no integer."""
    model, levels = tiny.model("unet"), torch.tensor([14, 3, 1, 0])
    whole, floats = (run_node_all(CFGPPInversion, model=model, sigmas=s) for s in (levels, levels.float()))
    assert all(torch.equal(a, b) for a, b in zip(whole[1:], floats[1:]))


@pytest.mark.parametrize("shape", [(8, 8), (1, 8, 8), (1, 1, 8, 8)])
def test_masks_of_other_ranks(shape):
    """The left half may change; in the right one the image is as it was."""
    given = right(ExactSample) | {"guider": right(ExactInvert)["guider"], "mask": torch.ones(shape).bool()}
    given["guider"].set_conds(encode("a small green ball"), encode(""))
    given["mask"][..., 4:] = False
    found, before = run_node(ExactSample, **given)["samples"], given["inverted"][INVERSION].image
    assert torch.allclose(found[..., 4:], before[..., 4:], atol=1e-5)
    assert not torch.allclose(found[..., :4], before[..., :4], atol=1e-3)
    model = tiny.model("unet")
    reference = {"latent": {"samples": tiny.noise("unet")}, "reference": "reference latent", "steps": "start to end"}
    masked = run_node(NegToMe, model=model, mask=given["mask"], threshold=-1.0, **reference)
    assert torch.isfinite(tiny.sample(masked, "unet")).all()


@pytest.mark.parametrize(
    ("node", "settings"),
    [(Candidate, {}), (EluCD, {}), (GuidanceInterval, {}), (NegToMe, {"reference": "first image"}), (APG, {})],
)
def test_open_sockets_may_be_null(node, settings):
    unconnected = {wanted.id: None for wanted in node.define_schema().inputs if wanted.optional}
    assert answer(node, {**right(node), **settings, **unconnected}) is None


@pytest.mark.usefixtures("folders")
def test_a_file_name_with_half_a_character():
    with pytest.raises(ValueError, match=r"file has half a character \(a lone surrogate\) at place 1"):
        run_node(ImageClassifier, file="a" + wrong.HALF)


def test_null_for_what_sdxl_takes():
    """As text encoders without a pooled output give it."""
    network = {**tiny.FAMILIES["unet"].network, "num_classes": "sequential", "adm_in_channels": 2816}
    config = comfy.supported_models.SDXL(network)
    config.set_inference_dtype(torch.float32, None)
    cpu = torch.device("cpu")
    model = ModelPatcher(config.get_model({}, ""), load_device=cpu, offload_device=cpu)
    check_prompt_for(model, [[torch.ones(1, 7, 16), {"pooled_output": torch.ones(1, 1280)}]], "negative")
    with pytest.raises(ValueError, match="negative has no pooled output, and SDXL takes one"):
        check_prompt_for(model, [[torch.ones(1, 7, 16), {"pooled_output": None}]], "negative")


@pytest.mark.parametrize("node", [NASA, PreferenceCFG, LinearAGFit])
def test_a_prompt_without_what_sd3_takes(node):
    """Before anything is sampled: by then it is the host's KeyError."""
    model, tokens = tiny.model("sd3"), torch.ones(1, 7, 12)
    kinds = {wanted.get_io_type(): wanted.id for wanted in node.define_schema().inputs}
    given = {**right(node), "model": model, "latent": {"samples": tiny.noise("sd3")}, "other_model": tiny.worse(model)}
    given = {wanted.id: given[wanted.id] for wanted in node.define_schema().inputs if wanted.id in given}
    with pytest.raises(ValueError, match=f"{kinds['CONDITIONING']} has no pooled output, and SD3 takes one"):
        run_node(node, **given | {kinds["CONDITIONING"]: [[tokens, {}]]})


@pytest.mark.usefixtures("folders")
def test_what_nodes_raise_is_one_plain_line():
    """Whatever it quotes."""
    for file in (wrong.MARKUP, wrong.CONTROLS, wrong.DIGITS):
        assert complaint(answer(ImageClassifier, {"file": file})) is None


# Runs


def works(model, family):
    return torch.isfinite(tiny.sample(model, family)).all()


def run(model, family, latent):
    prompt = tiny.conditioning(family, 1)
    settings = (2, 3.0, "euler", "simple", prompt, prompt, latent)
    return comfy.sample.sample(model, latent, *settings, seed=1, disable_pbar=True)


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_wrong_latent_channels(product, family):
    model = product.apply(tiny.model(family))
    with pytest.raises(ValueError, match=r"latent has 7 channels .* takes (4|16)\..*VAE"):
        run(model, family, torch.ones(1, 7, 8, 8))
    assert works(model, family)


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_an_empty_batch(product, family):
    model = product.apply(tiny.model(family))
    with pytest.raises(ValueError, match="batch of 0"):
        run(model, family, torch.zeros(0, *tiny.FAMILIES[family].latent))
    assert works(model, family)


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_nan_in_a_prediction(product, family):
    model = product.apply(tiny.model(family))
    broken = model.clone()

    def wrapper(executor, x, t, *args, **kwargs):
        return executor(x, t, *args, **kwargs) * torch.nan

    broken.add_wrapper("apply_model", wrapper)
    with pytest.raises(ValueError, match="NaN or infinity.*float16"):
        tiny.sample(broken, family)
    assert works(model, family)


@pytest.mark.parametrize(
    ("start", "end", "message"),
    [
        (0.2, 0.8, None),
        (0.0, 1.0, None),
        (0.8, 0.2, "start_percent is 0.8 and end_percent 0.2"),
        (0.5, 0.5, "Set start_percent below end_percent"),
        (-0.1, 1.0, "Both lie between 0 and 1"),
        (0.0, 1.5, "Both lie between 0 and 1"),
        (float("nan"), 1.0, "Both lie between 0 and 1"),
        (None, 0.5, None),  # linked: not known yet
        (0.5, None, None),
    ],
)
def test_a_range_that_holds_nothing(start, end, message):
    answer = APG.validate_inputs(start_percent=start, end_percent=end)
    assert answer is True if message is None else message in answer


@pytest.mark.parametrize("node", NODES, ids=lambda node: node.__name__)
def test_every_range_is_looked_at_before_the_prompt_runs(node):
    if "start_percent" not in {given.id for given in node.define_schema().inputs}:
        assert not issubclass(node, RangedNode)
        return
    validate = first_real_override(node, "validate_inputs")  # as the host asks for it (execution.py:885)
    limits = {"start_percent": 0.8, "end_percent": 0.2}
    assert "nothing lies between them" in validate(**{**dict.fromkeys(signature(validate).parameters), **limits})


def test_a_linked_range_that_holds_nothing():
    """The host cannot check linked values before the node runs."""
    with pytest.raises(ValueError, match="nothing lies between them"):
        run_node(APG, model=tiny.model("flux"), start_percent=0.8, end_percent=0.2)


def test_a_truncated_demo_file(tmp_path):
    path = tmp_path / "unet.safetensors"
    save_file({"a": torch.zeros(1000)}, path)
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError, match=r"unet.safetensors cannot be read .* reinstall the pack"):
        models.read_checkpoint(path)


@pytest.mark.parametrize("content", [b"", b"not safetensors at all", b"PK\x03\x04" + bytes(100), b"\xff" * 64])
def test_a_demo_file_of_another_kind(tmp_path, content):
    path = tmp_path / "dit.safetensors"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="dit.safetensors cannot be read"):
        models.read_checkpoint(path)


def test_a_missing_demo_file(tmp_path):
    with pytest.raises(ValueError, match="unet.safetensors cannot be read"):
        models.read_checkpoint(tmp_path / "unet.safetensors")


@pytest.mark.parametrize("metadata", [None, {"vocabulary": "a b c"}])
def test_a_demo_file_without_the_vocabulary(tmp_path, metadata):
    path = tmp_path / "unet.safetensors"
    save_file({"a": torch.zeros(3)}, path, metadata=metadata)
    with pytest.raises(ValueError, match="made for a vocabulary of"):
        models.read_checkpoint(path)
