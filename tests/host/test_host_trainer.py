"""What the host's own trainer does wrong, and this one does not. Where the host has mended something, a test here says
so, and what is said of it (js/docs, docs/benchmarks) can go."""

import inspect
import math

import numpy as np
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy_extras import nodes_train

from guidekit.nodes.host.training.lora_file import tensors_of
from guidekit.nodes.host.training.step import Tuning
from guidekit.samplers.preference.objectives import SFT
from guidekit.samplers.preference.window import Draw
from guidekit.tests.host import tiny
from guidekit.tests.host.test_training import gradient, inside
from guidekit.tests.host.votes import perturb, trainer, vote_set


class Seen:
    """What a network is given: rows, their mean, noise levels."""

    def __init__(self, model):
        self.rows, self.means, self.sigmas = [], [], []
        model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "seen", self)

    def __call__(self, executor, x, t, *args, **kwargs):
        self.rows.append(len(x))
        self.means.append(x.detach().mean().item())
        self.sigmas.append(float(t.detach().flatten()[0]))
        return executor(x, t, *args, **kwargs)


def built(disable_dynamic=False):
    return tiny.build(tiny.of("unet").network)


def host_train(latents, positive, **changes):
    """(the LoRA, the losses, what was seen), by the node TrainLoraNode on the tiny UNet."""
    model = built()
    model.cached_patcher_init = (built, ())  # it makes its own copy as a loader would
    seen, schema = Seen(model), nodes_train.TrainLoraNode.define_schema()
    given = {i.id: i.default for i in schema.inputs if getattr(i, "default", None) is not None}
    given |= {
        "training_dtype": "fp32",
        "lora_dtype": "fp32",
        "gradient_checkpointing": False,
        "existing_lora": "[None]",
    }
    given |= {"optimizer": "AdamW", "loss_function": "MSE", "algorithm": "LoRA", **changes}
    wanted = inspect.signature(nodes_train.TrainLoraNode.execute).parameters
    given = {name: [value] for name, value in given.items() if name in wanted}
    lora, losses, _ = nodes_train.TrainLoraNode.execute(
        **given | {"model": [model], "latents": latents, "positive": positive}
    ).result
    return lora, losses["loss"], seen


def data(number: int = 2):
    rows = vote_set("unet", 2 * number).rows[:number]
    return [{"samples": row.latent} for row in rows], [row.positive for row in rows]


def test_the_host_evaluates_every_image_of_a_batch_with_every_prompt():
    """And takes the mean over them: what is learned of an image is what all prompts of its batch say."""
    _, _, seen = host_train(*data(2), steps=1, batch_size=2)
    assert seen.rows == [4]
    found = trainer("unet", steps=1, objective=SFT(), window=2, batch=2)
    ours = Seen(found.model)
    found.run()
    assert ours.rows == [2]


def test_the_host_trains_on_unscaled_latents_in_buckets():
    latents = [{"samples": torch.full((1, 4, 8, 8), 1e4)}]
    positive = [tiny.conditioning("unet", 11)]
    means = {mode: host_train(latents, positive, steps=1, bucket_mode=mode)[2].means[0] for mode in (False, True)}
    assert means[False] / 1e4 == pytest.approx(0.18215, rel=0.05)  # as the model was trained
    assert means[True] / 1e4 == pytest.approx(1.0, rel=0.05)
    found = trainer("unet", steps=1)
    for row in found.votes.rows:
        row.latent.fill_(1e4)
    ours = Seen(found.model)
    found.run()
    assert ours.means[0] / 1e4 == pytest.approx(0.18215, rel=0.05)


def test_the_host_trains_alpha_and_norms():
    lora, _, _ = host_train(*data(), steps=4, learning_rate=1e-2, rank=8)
    alphas = [value.item() for name, value in lora.items() if name.endswith(".alpha")]
    assert any(abs(alpha - 1) > 1e-3 for alpha in alphas)
    assert any(name.endswith((".diff", ".diff_b")) for name in lora)
    found = trainer("unet", steps=4, rate=1e-2, rank=8)
    found.run()
    assert {
        name
        for name, _ in found.adapters.products[
            "diffusion_model.middle_block.1.transformer_blocks.0.attn1.to_q"
        ].named_parameters()
        if "start" not in name
    } == {"up", "down"}
    ours = tensors_of(found.adapters.factors())
    assert {value.item() for name, value in ours.items() if name.endswith(".alpha")} == {8.0}
    assert {name.rpartition(".")[2] for name in ours} == {"weight", "alpha"}


def test_the_host_begins_with_an_eighth_of_the_product():
    """alpha 1 at rank 8."""
    lora, _, _ = host_train(*data(), steps=1, learning_rate=0.0, rank=8)
    shares = {
        value.item() / len(lora[name.replace("alpha", "lora_down.weight")])
        for name, value in lora.items()
        if name.endswith(".alpha")
    }
    assert shares == {0.125}


def test_the_host_forgets_alpha_when_it_goes_on():
    """It looks for it under the name of the weight."""
    layer = torch.nn.Linear(6, 5)
    kept = {"x.lora_up.weight": torch.ones(5, 2), "x.lora_down.weight": torch.ones(2, 6), "x.alpha": torch.tensor(3.0)}
    adapter, _ = nodes_train._create_weight_adapter(layer, "x", kept, "LoRA", torch.float32, 2)
    assert adapter.alpha.item() == 1.0  # 3 was saved; ours: test_training.py, test_a_start_has_its_share_in_it


def slope_by_noise(sigmas, losses) -> float:
    """Of log loss by log sigma."""
    return float(np.polyfit(np.log(sigmas), np.log(losses), 1)[0])


def test_the_hosts_loss_grows_with_the_square_of_the_noise():
    """It compares denoised images, so that for an eps model almost only the highest noise levels count."""
    torch.manual_seed(0)
    _, losses, seen = host_train(*data(1), steps=24, learning_rate=0.0)
    assert slope_by_noise(seen.sigmas, losses) == pytest.approx(2.0, abs=0.5)

    found = trainer("unet")

    def errors(session):
        tuning = Tuning(session, found.adapters)
        levels = [(i + 0.5) / 24 for i in range(24)]
        parts = [found.images.part(tuning, [Draw(0, level, 1, False)], [0]) for level in levels]
        with torch.no_grad():
            losses = [SFT().losses(tuning.tuned(p), None, p.target, p.liked).item() for p in parts]
        return [p.given.sigma.item() for p in parts], losses

    assert slope_by_noise(*inside(found, errors)) == pytest.approx(0.0, abs=0.3)


class Strong:
    """The tiny Flux with strong modulation, as trained networks have it: what its blocks add in place is no trifle."""

    def __init__(self):
        self.model = tiny.build(tiny.of("flux").network, "flux")
        for name, weight in self.model.model.diffusion_model.named_parameters():
            if "mod" in name and name.endswith("lin.weight"):
                weight.data.mul_(30)

    def trainer(self, **settings):
        found = trainer("flux", model=self.model, objective=SFT(), **settings)
        perturb(found)
        return found


def test_the_hosts_checkpointing_gives_other_gradients_where_blocks_work_in_place():
    """And no error: a block of the Flux family is run again on what it has itself added to. Ours:
    test_training.py, test_checkpointing_leaves_the_gradient_as_it_is."""
    strong = Strong()
    wanted, ours = (gradient(strong.trainer(checkpointing=c)) for c in (False, True))
    found = strong.trainer()
    blocks = nodes_train.find_modules_at_depth(found.model.model.diffusion_model, depth=1)
    for block in blocks:
        nodes_train.patch(block)
    try:
        hosts = gradient(found)
    finally:
        for module in found.model.model.modules():
            nodes_train.unpatch(module)
    assert (ours - wanted).norm() <= 1e-4 * wanted.norm()
    assert (hosts - wanted).norm() > 1e-2 * wanted.norm()
    assert math.isfinite(wanted.norm())
