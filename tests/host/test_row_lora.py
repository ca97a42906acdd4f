"""LoRAs on some rows of a network call: beside weights of 8 bits, with each other, and where they cannot be."""

import comfy.model_management
import comfy.ops
import pytest
import torch
from comfy.patcher_extension import WrappersMP
from comfy.weight_adapter import LoRAAdapter
from comfy_api.torch_helpers import set_torch_compile_wrapper

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.host.beside import loaded_beside
from guidekit.nodes.host.lora_difference import own_patches, shared_difference
from guidekit.nodes.host.other import SHARED
from guidekit.nodes.host.row_lora import unmerged
from guidekit.nodes.nasa import NASA
from guidekit.nodes.preference_cfg import MIXTURE, PreferenceCFG
from guidekit.nodes.preference_lora_loader import PreferenceLoraLoader
from guidekit.samplers.guidance.cfg import cfg
from guidekit.tests.host import adapters, probes, tiny, toy
from guidekit.tests.host.adapters import lora
from guidekit.tests.host.test_autoguidance import alone, steps_of
from guidekit.tests.host.test_preference_cfg import check_negative, negative_alone, on_weights_of_its_own
from guidekit.tests.host.test_preference_lora import folder  # noqa: F401

FLOAT8 = [("unet", torch.float8_e4m3fn), ("unet", torch.float8_e5m2), ("flux", torch.float8_e5m2)]
float8 = pytest.mark.parametrize(("family", "dtype"), FLOAT8, ids=lambda value: str(value).removeprefix("torch."))


def coarse(family, dtype):
    """A network in 8 bits."""
    network = tiny.build(tiny.FAMILIES[family].network, family, dtype=dtype)
    tiny.HANDED_OUT.append(network)
    return network


def exact(family, dtype):
    """A network of the same weights in 32 bits, on which a LoRA is merged without rounding."""
    network = tiny.build(tiny.FAMILIES[family].network, family)
    for parameter in network.model.diffusion_model.parameters():
        parameter.data = parameter.data.to(dtype).float()
    tiny.HANDED_OUT.append(network)
    return network


# Beside weights of 8 bits -------------------------------------------------------------------------------------------


@float8
def test_the_negative_of_the_model_without_its_loras(family, dtype):
    """The weights stay as they are: what would be merged is rounded with them, and could not be taken out again."""
    guided = run_node(PreferenceCFG, model=lora(coarse(family, dtype)), lora_strength=0.0)
    check_negative(guided, family, lora(exact(family, dtype)), exact(family, dtype), steps=2)


@float8
@pytest.mark.parametrize("apply_to", ["negative only", "positive only"])
def test_a_file_on_one_side(folder, family, dtype, apply_to):  # noqa: F811
    targets = adapters.UNET if family == "unet" else adapters.FLUX
    layouts = adapters.UNET_LAYOUTS if family == "unet" else adapters.FLUX_LAYOUTS
    model, plain, tuned = coarse(family, dtype), exact(family, dtype), exact(family, dtype)
    changes = adapters.file_of(folder / "x.safetensors", plain, targets, layouts["PEFT"])
    weights = dict(tuned.model.named_parameters())
    for key, change in changes.items():
        weights[key].data += change.float()
    loaded, report = run_node_all(PreferenceLoraLoader, model=model, file="x.safetensors", apply_to=apply_to)
    assert SHARED in report
    strong, weak = (plain, tuned) if apply_to == "negative only" else (tuned, plain)
    check_negative(loaded, family, strong, weak, steps=2)


@float8
def test_a_mixture_with_the_model_without_its_loras(family, dtype):
    guided = run_node(PreferenceCFG, model=lora(coarse(family, dtype)), mode=MIXTURE, lora_strength=-0.5, own_share=0.4)
    own, other = lora(exact(family, dtype)), lora(exact(family, dtype), -0.5)
    for step in steps_of(guided, family, steps=2, batch=2):
        unconditional = negative_alone(own, family, step)
        positive = 0.4 * alone(own, family, step) + 0.6 * alone(other, family, step)
        assert probes.distance(step["denoised"], cfg(positive, unconditional, 4.0)) < 1e-4


@float8
def test_autoguidance_by_the_strength_of_the_loras(family, dtype):
    model = lora(coarse(family, dtype))
    guided = run_node(Autoguidance, model=model, weakness="LoRA strength", amount=0.5, scale=2.0)
    strong, weak = lora(exact(family, dtype)), lora(exact(family, dtype), 0.5)
    for step in steps_of(guided, family, steps=2, batch=2):
        positive, negative = alone(strong, family, step), negative_alone(strong, family, step)
        wanted = cfg(positive, negative, 4.0) + 2.0 * (positive - alone(weak, family, step))
        assert probes.distance(step["denoised"], wanted) < 1e-4


# With each other ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("negative_first", [True, False])
def test_the_same_loras_at_two_strengths_for_two_predictions(family, negative_first):
    """The second node finds LoRAs that the first one has taken off the weights."""
    model = lora(lora(tiny.model(family), 0.6), -0.4, seed=500)
    nodes = [
        lambda m: run_node(PreferenceCFG, model=m, lora_strength=0.0),
        lambda m: run_node(Autoguidance, model=m, weakness="LoRA strength", amount=0.5, scale=2.0),
    ]
    guided = model
    for node in nodes if negative_first else nodes[::-1]:
        guided = node(guided)
    calls = probes.count_evaluations(guided)
    strong, half = (
        on_weights_of_its_own(family, {"strength": 0.6 * f}, {"strength": -0.4 * f, "seed": 500}) for f in (1, 0.5)
    )
    for step in steps_of(guided, family, steps=2, batch=2):
        positive, negative = alone(strong, family, step), negative_alone(on_weights_of_its_own(family), family, step)
        assert probes.distance(step["uncond_denoised"], negative) < 2e-5
        wanted = cfg(positive, negative, 4.0) + 2.0 * (positive - alone(half, family, step))
        assert probes.distance(step["denoised"], wanted) < 1e-4
    assert calls.chunks == [3] * 2


def test_what_is_taken_off_is_still_the_model_s():
    """A LoRA before all of it, the one taken off, and one after it."""
    base = tiny.model("unet")
    model = lora(base, 0.8, seed=500)
    guided = lora(run_node(PreferenceCFG, model=lora(model), other_model=model), 0.5, seed=900)
    assert {len(patches) for key, patches in guided.patches.items() if key.endswith("weight")} == {2}
    assert {id(p) for ps in own_patches(guided).values() for p in ps} >= {
        id(p) for ps in model.patches.values() for p in ps
    }
    every = {"strength": 0.8, "seed": 500}, {"strength": 0.5, "seed": 900}
    strong, weak = on_weights_of_its_own("unet", {}, *every), on_weights_of_its_own("unet", *every)
    check_negative(guided, "unet", strong, weak, steps=2)
    assert shared_difference(guided, model) is not None
    assert not shared_difference(guided, guided.clone())
    with pytest.raises(ValueError, match="is the model itself"):
        run_node(Autoguidance, model=guided, weakness="second model", weak_model=guided.clone())


def test_models_before_the_node_keep_their_loras():
    model = lora(tiny.model("unet"))
    before = {key: [*patches] for key, patches in model.patches.items()}
    first = run_node(PreferenceCFG, model=model, lora_strength=0.0)
    run_node(Autoguidance, model=first, weakness="LoRA strength", amount=0.5)
    assert model.patches == before
    assert not first.patches
    assert len(unmerged(first)) == sum(map(len, before.values()))
    assert {len(w) for w in first.wrappers[WrappersMP.APPLY_MODEL].values()} == {1}
    strong = on_weights_of_its_own("unet", {})
    assert probes.distance(tiny.sample(model, "unet"), tiny.sample(strong, "unet")) < 1e-4
    comfy.model_management.unload_all_models()
    check_negative(first, "unet", strong, on_weights_of_its_own("unet"), steps=1)


@pytest.mark.parametrize("cfg_scale", [1.0, 4.0])
def test_outside_the_range_all_rows_have_the_model_s_loras(cfg_scale):
    model = lora(tiny.model("unet"))
    guided = run_node(PreferenceCFG, model=model, lora_strength=0.0, start_percent=0.5)
    strong, weak = on_weights_of_its_own("unet", {}), on_weights_of_its_own("unet")
    halfway, late = model.get_model_object("model_sampling").percent_to_sigma(0.5), 0
    for step in steps_of(guided, "unet", steps=6, cfg=cfg_scale):
        active = probes.at_or_below(step, halfway)
        late += active
        assert probes.distance(step["cond_denoised"], alone(strong, "unet", step)) < 2e-5
        if cfg_scale != 1:
            negative = negative_alone(weak if active else strong, "unet", step)
            assert probes.distance(step["uncond_denoised"], negative) < 2e-5
    assert 0 < late < 6


# Where they cannot be -----------------------------------------------------------------------------------------------

CONV, LINEAR = "diffusion_model.input_blocks.1.0.in_layers.2.weight", adapters.UNET[0].key


def grouped(family="unet"):
    """A network with a grouped convolution."""
    network = on_weights_of_its_own(family)
    layer = network.model.get_submodule(CONV.removesuffix(".weight"))
    layer.groups, layer.weight.data = 4, layer.weight.data[:, :8].clone()
    return network


def patched(model, key, what, strength=1.0, strength_model=1.0):
    changed = model.clone()
    changed.add_patches({key: what}, strength, strength_model)
    tiny.HANDED_OUT.append(changed)
    return changed


def flipped(change):
    return change.flip(0)


def product_for(shape):
    return LoRAAdapter(set(), (*adapters.factors(torch.empty(shape), 3)[::-1], None, None, None, None))


CANNOT = {
    "a grouped convolution": (grouped, CONV, (32, 8, 3, 3)),
    "a function of the change": (lambda: on_weights_of_its_own("unet"), (LINEAR, None, flipped), (32, 16)),
    "columns of the weight": (lambda: on_weights_of_its_own("unet"), (LINEAR, (1, 4, 8)), (32, 8)),
}


@pytest.mark.parametrize("name", CANNOT)
@pytest.mark.parametrize("way", ["on the other", "on the model"])
def test_products_that_are_none_of_the_layer(name, way):
    """The other model gets weights of its own, on which the host merges them."""
    network, key, shape = CANNOT[name]
    what, model = product_for(shape), network()
    base, changed = (model, patched(model, key, what)) if way == "on the other" else (patched(model, key, what), model)
    assert shared_difference(base, changed) is None
    guided = run_node(PreferenceCFG, model=base, other_model=changed)
    plain, tuned = network(), patched(network(), key, what)
    strong, weak = (plain, tuned) if way == "on the other" else (tuned, plain)
    check_negative(guided, "unet", strong, weak, steps=1)
    step = steps_of(guided, "unet", steps=1)[0]
    assert probes.distance(alone(strong, "unet", step), alone(weak, "unet", step)) > 1e-4


@pytest.mark.parametrize("merge", [0.5, 1.0])
def test_a_merge_after_a_lora(merge):
    """It makes the LoRA smaller as well, where it leaves less than all of the weight."""
    change = ("diff", (adapters.normal(32, 16, seed=4),))
    base = tiny.model("unet")
    both = patched(base, LINEAR, product_for((32, 16))), base
    tuned, plain = (patched(model, LINEAR, change, 0.5, merge) for model in both)
    # As with a node that changes the strength of LoRAs: what comes after them is shared.
    plain.patches[LINEAR][-1] = tuned.patches[LINEAR][-1]
    assert (shared_difference(tuned, plain) is None) == (merge != 1)
    guided = run_node(PreferenceCFG, model=tuned, other_model=plain)
    own = on_weights_of_its_own("unet")
    strong = patched(patched(own, LINEAR, product_for((32, 16))), LINEAR, change, 0.5, merge)
    weak = patched(on_weights_of_its_own("unet"), LINEAR, change, 0.5, merge)
    check_negative(guided, "unet", strong, weak, steps=1)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_loras_beside_what_is_no_product(family):
    """The strength of both is changed, of LoRAs that were taken off the weights as well."""
    model = lora(tiny.model(family))
    first = run_node(PreferenceCFG, model=model, lora_strength=0.0)
    key = next(k for k in adapters.weights_of(model) if k.endswith(("norm2.bias", "query_norm.weight")))
    change = ("diff", (adapters.normal(*adapters.weights_of(model)[key].shape),))
    second = patched(first, key, change)
    guided = run_node(Autoguidance, model=second, weakness="LoRA strength", amount=0.5, scale=2.0)
    strong = patched(on_weights_of_its_own(family, {}), key, change)
    half = patched(on_weights_of_its_own(family, {"strength": 0.5}), key, change, 0.5)
    for step in steps_of(guided, family, steps=1):
        positive = alone(strong, family, step)
        negative = negative_alone(patched(on_weights_of_its_own(family), key, change), family, step)
        wanted = cfg(positive, negative, 4.0) + 2.0 * (positive - alone(half, family, step))
        assert probes.distance(step["denoised"], wanted) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_nodes_of_a_second_model_with_its_loras_at_another_strength(family):
    """What a weak branch lacks is known there, whatever the strength."""
    model = lora(tiny.model(family))
    key = next(k for k in adapters.weights_of(model) if k.endswith(("norm2.bias", "query_norm.weight")))
    change = ("diff", (adapters.normal(*adapters.weights_of(model)[key].shape),))
    weak = run_node(Autoguidance, model=model, weakness="LoRA strength", amount=0.0, scale=2.0)
    guided = run_node(PreferenceCFG, model=patched(weak, key, change), lora_strength=0.5)
    half, none = (
        patched(on_weights_of_its_own(family, *loras), key, change, 0.5) for loras in ([{"strength": 0.5}], [])
    )
    for step in steps_of(guided, family, steps=1):
        negative, without = negative_alone(half, family, step), negative_alone(none, family, step)
        assert probes.distance(step["uncond_denoised"], negative + 2.0 * (negative - without)) < 1e-4


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("way", ["on the other", "on the model"])
def test_layers_that_are_called_for_one_prediction_alone(batch, way):
    """By a second text in Lumina2, for the rows of the positive."""

    def steered(model, other):
        guided = run_node(PreferenceCFG, model=model, other_model=other)
        return run_node(NASA, model=guided, negative=tiny.conditioning("lumina2", 33, 5), alpha=0.4)

    def pair(one, two):
        return (one, lora(two)) if way == "on the other" else (lora(one), two)

    model = tiny.model("lumina2")
    shared = steered(*pair(model, model))
    apart = steered(*pair(model, on_weights_of_its_own("lumina2")))
    assert not loaded_beside(shared)
    assert loaded_beside(apart)
    found, wanted = (tiny.sample(m, "lumina2", batch=batch) for m in (shared, apart))
    assert probes.distance(found, wanted) < 1e-4


class Layered(torch.nn.Module):
    """A block with one layer, for `toy.model`."""

    dtype = torch.float32

    def __init__(self):
        super().__init__()
        layer = comfy.ops.disable_weight_init.Linear(8, 8)
        layer.weight.data, layer.bias.data = adapters.normal(8, 8), torch.zeros(8)
        self.block = torch.nn.Sequential(layer)

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        return torch.tanh(self.block(x)) + context.mean((1, 2)).reshape(-1, 1, 1, 1)


@pytest.mark.parametrize("way", ["TorchCompileModel", "a block of it"])
def test_networks_that_were_compiled_before(way):
    """torch.compile goes on with what it has made of a module without its hooks: it is left out, and that is said."""
    model = toy.model()
    model.model.diffusion_model = Layered()
    tiny.HANDED_OUT.append(model)
    wanted = toy.sample(run_node(PreferenceCFG, model=model, other_model=lora(model)))
    compiled = model.clone()
    if way == "TorchCompileModel":
        set_torch_compile_wrapper(model=compiled, backend="eager")
    else:
        block = torch.compile(model.model.diffusion_model.block, backend="eager")
        compiled.add_object_patch("diffusion_model.block", block)
    plain = toy.sample(compiled)
    tuned = compiled.clone()
    tuned.patches = lora(model).patches
    found = toy.sample(run_node(PreferenceCFG, model=compiled, other_model=tuned))
    assert torch.equal(plain, toy.sample(model))
    assert probes.distance(found, wanted) < 1e-6
    assert probes.distance(wanted, plain) > 1e-2
    assert torch.equal(plain, toy.sample(compiled))


def test_a_network_that_is_compiled_before_the_range_begins():
    model = toy.model()
    model.model.diffusion_model = Layered()
    tiny.HANDED_OUT.append(model)
    guided = run_node(PreferenceCFG, model=model, other_model=lora(model), start_percent=0.5)
    compiled = guided.clone()
    set_torch_compile_wrapper(model=compiled, backend="eager")
    wanted = toy.sample(guided)
    assert probes.distance(wanted, toy.sample(model)) > 1e-2
    assert probes.distance(toy.sample(compiled), wanted) < 1e-6
