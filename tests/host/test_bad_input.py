"""Wrong input is answered by a sentence, and the next run works."""

import comfy.sample
import pytest
import torch
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node
from guidekit.demo import models
from guidekit.nodes.apg import APG
from guidekit.tests.host import tiny
from guidekit.tests.host.products import PRODUCTS

ONCE = [pytest.param(p, f, id=f"{p.name}-{f}") for p in PRODUCTS for f in p.families if f in ("unet", "flux")]


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
