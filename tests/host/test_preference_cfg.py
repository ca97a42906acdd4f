"""Another model for the negative, or for a share of the positive; with the weights shared, or with its own."""

import json

import comfy.model_management
import comfy.ops
import pytest
import torch
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.host.models.lora_difference import shared_difference
from guidekit.nodes.host.models.model_for_prompt import SEPARATE, SHARED
from guidekit.nodes.host.run.loaded_beside import loaded_beside
from guidekit.nodes.pag import PAG
from guidekit.nodes.preference_cfg import MIXTURE, NEGATIVE, PreferenceCFG
from guidekit.nodes.preference_lora_loader import PreferenceLoraLoader
from guidekit.samplers.guidance.cfg import cfg
from guidekit.tests.host import adapters, probes, tiny
from guidekit.tests.host.adapters import lora
from guidekit.tests.host.test_autoguidance import alone, steps_of
from guidekit.tests.host.test_preference_lora import folder, key_of, other_unet  # noqa: F401


def on_weights_of_its_own(family, *changes):
    """The network with LoRAs, in another network of the same weights."""
    network = tiny.build(tiny.FAMILIES[family].network, family)
    tiny.HANDED_OUT.append(network)
    for change in changes:
        network = lora(network, **change)
    return network


def negative_alone(model, family, step):
    return alone(model, family, step, positive=tiny.conditioning(family, 22))


def check_negative(model, family, strong, weak, cfg_scale=4.0, tolerance=2e-5, **options):
    """Cond is what `strong` predicts, uncond what `weak` predicts, each alone."""
    for step in steps_of(model, family, cfg=cfg_scale, batch=2, **options):
        positive, negative = alone(strong, family, step), negative_alone(weak, family, step)
        assert probes.distance(step["cond_denoised"], positive) < tolerance
        assert probes.distance(step["uncond_denoised"], negative) < tolerance
        assert probes.distance(step["denoised"], cfg(positive, negative, cfg_scale)) < 5 * tolerance


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_negative_of_other_loras_in_the_same_call(family):
    """On every family, each layer with a LoRA: as two networks would predict it, for the price of one call."""
    model = tiny.model(family)
    guided = run_node(PreferenceCFG, model=model, other_model=lora(model, 0.8))
    calls = probes.count_evaluations(guided)
    strong, weak = on_weights_of_its_own(family), on_weights_of_its_own(family, {"strength": 0.8})
    check_negative(guided, family, strong, weak, steps=2)
    assert calls.chunks == [2] * 2
    apart = negative_alone(weak, family, steps_of(guided, family, steps=1)[0])
    same = negative_alone(strong, family, steps_of(guided, family, steps=1)[0])
    assert probes.distance(apart, same) > 1e-3


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("factor", [0.0, -1.0, 0.5])
def test_the_model_s_own_loras_at_another_strength(family, factor):
    model = lora(lora(tiny.model(family), 0.6), -0.4, seed=500)
    guided = run_node(PreferenceCFG, model=model, lora_strength=factor)
    calls = probes.count_evaluations(guided)
    strong = on_weights_of_its_own(family, {"strength": 0.6}, {"strength": -0.4, "seed": 500})
    weak = on_weights_of_its_own(family, {"strength": 0.6 * factor}, {"strength": -0.4 * factor, "seed": 500})
    check_negative(guided, family, strong, weak, steps=2)
    assert calls.chunks == [2] * 2


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_network_of_its_own_that_has_a_lora_for_negatives(family):
    """What it predicts is one; at its own guidance's positive it would not have the LoRA."""
    weak = tiny.worse(tiny.model(family))
    other = run_node(PreferenceCFG, model=weak, other_model=lora(weak, 0.8))
    guided = run_node(PreferenceCFG, model=tiny.model(family), other_model=other)
    wanted = lora(tiny.worse(tiny.model(family)), 0.8)
    check_negative(guided, family, on_weights_of_its_own(family), wanted, steps=2)
    apart, same = (negative_alone(m, family, steps_of(guided, family, steps=1)[0]) for m in (wanted, weak))
    assert probes.distance(apart, same) > 1e-3


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_network_of_its_own_that_has_a_worse_one_beside_it(family):
    """Both predict the negative prompt."""
    settings = {"weakness": "second model", "scale": 2.0, "weak_model": on_weights_of_its_own(family)}
    other = run_node(Autoguidance, model=tiny.worse(tiny.model(family)), **settings)
    guided = run_node(PreferenceCFG, model=tiny.model(family), other_model=other)
    plain = run_node(Autoguidance, model=tiny.worse(tiny.model(family)), **settings)
    check_negative(guided, family, on_weights_of_its_own(family), plain, steps=2)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_network_of_its_own(family):
    """One call of each."""
    weak = tiny.worse(tiny.model(family))
    calls_of_weak = probes.count_evaluations(weak)
    guided = run_node(PreferenceCFG, model=tiny.model(family), other_model=weak)
    calls = probes.count_evaluations(guided)
    check_negative(guided, family, on_weights_of_its_own(family), tiny.worse(tiny.model(family)), steps=3)
    assert calls.chunks == [1] * 3
    assert calls_of_weak.chunks == [1] * 3


@pytest.mark.parametrize(
    "key", ["diffusion_model.out.0.weight", "diffusion_model.input_blocks.1.1.transformer_blocks.0.norm2.bias"]
)
def test_one_network_with_changes_that_are_no_products(key):
    """Changes of norms: the other model gets a copy of the weights, and neither changes the other."""
    model = tiny.model("unet")
    change = adapters.normal(*adapters.weights_of(model)[key].shape)
    other = model.clone()
    other.add_patches({key: ("diff", (change,))}, 1.0)
    assert shared_difference(model, other) is None
    guided = run_node(PreferenceCFG, model=model, other_model=other)
    weak = on_weights_of_its_own("unet")
    weak.add_patches({key: ("diff", (change,))}, 1.0)
    check_negative(guided, "unet", on_weights_of_its_own("unet"), weak, steps=2)


def test_one_network_with_other_nodes_on_it():
    """What a node does to the other model is not lost: it has a call of its own then."""
    model = tiny.model("flux")
    other = run_node(PAG, model=lora(model), scale=2.0)
    assert shared_difference(model, other) is None
    guided = run_node(PreferenceCFG, model=model, other_model=other)
    weak = run_node(PAG, model=on_weights_of_its_own("flux", {}), scale=2.0)
    check_negative(guided, "flux", on_weights_of_its_own("flux"), weak, steps=2)


def test_nodes_on_the_model_are_no_difference():
    """What is only on the first model does not keep the two apart, whichever side of the node it is on."""
    model = tiny.model("flux")
    first = run_node(PreferenceCFG, model=run_node(PAG, model=model, scale=2.0), other_model=lora(model))
    then = run_node(PAG, model=run_node(PreferenceCFG, model=model, other_model=lora(model)), scale=2.0)
    calls = probes.count_evaluations(first)
    one, two = tiny.sample(first, "flux"), tiny.sample(then, "flux")
    assert probes.distance(one, two) < 1e-5
    assert calls.sigmas  # all in the first model's calls
    assert not loaded_beside(first)


@pytest.mark.parametrize("shared", [True, False])
def test_cfg_1_and_ranges(shared):
    """Without a negative, and outside the range, there is nothing to predict."""
    model = tiny.model("unet")
    other = lora(model) if shared else tiny.worse(model)
    guided = run_node(PreferenceCFG, model=model, other_model=other, start_percent=0.5)
    assert torch.equal(tiny.sample(guided, "unet", cfg=1.0), tiny.sample(tiny.model("unet"), "unet", cfg=1.0))
    weak = on_weights_of_its_own("unet", {}) if shared else tiny.worse(tiny.model("unet"))
    strong = on_weights_of_its_own("unet")
    halfway = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    late = 0
    for step in steps_of(guided, "unet", steps=6):
        active = probes.at_or_below(step, halfway)
        late += active
        assert probes.distance(step["uncond_denoised"], negative_alone(weak if active else strong, "unet", step)) < 2e-5
    assert 0 < late < 6


@pytest.mark.parametrize("shared", [True, False])
def test_repeats_also_after_an_interruption(shared):
    model = tiny.model("unet")
    guided = run_node(PreferenceCFG, model=model, other_model=lora(model) if shared else tiny.worse(model))
    first = tiny.sample(guided, "unet")

    def stop(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(guided, "unet", callback=stop)
    assert torch.equal(tiny.sample(guided, "unet"), first)
    hooks = [len(module._forward_hooks) for module in model.model.modules()]
    assert not any(hooks)


def quantised(weight):
    """The host's layer with a weight in float8: no torch.nn.Linear."""
    layer = comfy.ops.mixed_precision_ops({}, torch.float32).Linear(weight.shape[1], weight.shape[0], bias=False)
    kind = torch.tensor(list(json.dumps({"format": "float8_e4m3fn"}).encode()), dtype=torch.uint8)
    stored = {"weight": weight.to(torch.float8_e4m3fn), "weight_scale": torch.tensor(1.0), "comfy_quant": kind}
    layer.load_state_dict(stored)
    return layer


def test_quantised_weights(folder):  # noqa: F811
    """The LoRA is added beside them; they are not made anew."""
    path = "diffusion_model.input_blocks.1.1.transformer_blocks.0.attn2"
    coarse, plain = on_weights_of_its_own("unet"), on_weights_of_its_own("unet")
    target = adapters.UNET[0]
    layer = quantised(dict(coarse.model.named_parameters())[f"{path}.to_k.weight"].data)
    assert not isinstance(layer, torch.nn.Linear)
    coarse.model.get_submodule(path).to_k = layer
    weight = layer(torch.eye(16)).T.detach()
    changes = adapters.file_of(folder / "x.safetensors", plain, [target], adapters.UNET_LAYOUTS["PEFT"])
    settings = {"file": "x.safetensors", "apply_to": "negative only", "strength": 10.0}
    loaded, report = run_node_all(PreferenceLoraLoader, model=coarse, **settings)
    assert SHARED in report
    merged = plain.model.get_submodule(path).to_k
    for step in steps_of(loaded, "unet", steps=2):
        merged.weight.data = weight + 10 * changes[target.key].float()
        assert probes.distance(step["uncond_denoised"], negative_alone(plain, "unet", step)) < 2e-5
        merged.weight.data = weight
        assert probes.distance(step["cond_denoised"], alone(plain, "unet", step)) < 2e-5
        assert probes.distance(negative_alone(plain, "unet", step), step["uncond_denoised"]) > 1e-4


# Mixture ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unet", "flux", "wan"])
@pytest.mark.parametrize("how", ["LoRAs", "network"])
@pytest.mark.parametrize("with_source", [True, False])
@pytest.mark.parametrize("cfg_scale", [1.0, 10.0])
def test_sine(family, how, with_source, cfg_scale):
    """e_u + s (b e_c(target) + (1 - b) e_ft(source) - e_u), in denoised predictions."""
    model = tiny.model(family)
    other = lora(model) if how == "LoRAs" else tiny.worse(model)
    source = tiny.conditioning(family, 55, 5) if with_source else None
    guided = run_node(PreferenceCFG, model=model, mode=MIXTURE, other_model=other, model_weight=0.4, source=source)
    calls = probes.count_evaluations(guided)
    own = on_weights_of_its_own(family)
    tuned = on_weights_of_its_own(family, {}) if how == "LoRAs" else tiny.worse(tiny.model(family))
    for step in steps_of(guided, family, cfg=cfg_scale, steps=2, batch=2):
        target, unconditional = alone(own, family, step), negative_alone(own, family, step)
        ours = alone(tuned, family, step, positive=source or tiny.conditioning(family, 11))
        wanted = unconditional + cfg_scale * (0.4 * target + 0.6 * ours - unconditional)
        assert probes.distance(step["denoised"], wanted) < 1e-4
    own_chunks = 1 + (cfg_scale != 1) + (how == "LoRAs")
    assert sum(calls.chunks) == 2 * own_chunks


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_two_others_at_once(family):
    """Each LoRA on the rows of its own prediction, wherever they are in the call."""
    model = tiny.model(family)
    first = run_node(PreferenceCFG, model=model, other_model=lora(model, 0.8))
    both = run_node(PreferenceCFG, model=first, mode=MIXTURE, other_model=lora(first, seed=500), model_weight=0.4)
    calls = probes.count_evaluations(both)
    own, weak = on_weights_of_its_own(family), on_weights_of_its_own(family, {"strength": 0.8})
    tuned = on_weights_of_its_own(family, {"seed": 500})
    for step in steps_of(both, family, steps=2, batch=2):
        target, unconditional = alone(own, family, step), negative_alone(weak, family, step)
        assert probes.distance(step["uncond_denoised"], unconditional) < 2e-5
        wanted = unconditional + 4 * (0.4 * target + 0.6 * alone(tuned, family, step) - unconditional)
        assert probes.distance(step["denoised"], wanted) < 1e-4
    assert calls.chunks == [3] * 2


def test_one_part_of_two():
    model = tiny.model("unet")
    settings = {"model": model, "mode": MIXTURE, "other_model": lora(model)}
    neutral = run_node(PreferenceCFG, **settings, model_weight=1.0)
    assert neutral.model_options == model.model_options
    assert (
        probes.distance(
            tiny.sample(run_node(PreferenceCFG, **settings, model_weight=0.0), "unet", cfg=1.0),
            tiny.sample(on_weights_of_its_own("unet", {}), "unet", cfg=1.0),
        )
        < 1e-4
    )


# The loader's own negative ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("apply_to", ["negative only", "positive only"])
def test_the_loader_on_one_side(folder, family, apply_to):  # noqa: F811
    """The other side's prediction is that of the model without the file, and all is one call."""
    targets = adapters.UNET if family == "unet" else adapters.FLUX
    layouts = adapters.UNET_LAYOUTS if family == "unet" else adapters.FLUX_LAYOUTS
    model = tiny.model(family)
    adapters.file_of(folder / "x.safetensors", model, targets, layouts["PEFT"])
    loaded, report = run_node_all(
        PreferenceLoraLoader, model=model, file="x.safetensors", strength=0.7, apply_to=apply_to
    )
    assert SHARED in report
    calls = probes.count_evaluations(loaded)
    tuned = run_node(PreferenceLoraLoader, model=on_weights_of_its_own(family), file="x.safetensors", strength=0.7)
    plain = on_weights_of_its_own(family)
    strong, weak = (plain, tuned) if apply_to == "negative only" else (tuned, plain)
    check_negative(loaded, family, strong, weak, steps=2)
    assert calls.chunks == [2] * 2
    step = steps_of(loaded, family, steps=1)[0]
    assert probes.distance(alone(tuned, family, step), alone(plain, family, step)) > 1e-3
    assert torch.equal(tiny.sample(tiny.model(family), family), tiny.sample(on_weights_of_its_own(family), family))


@pytest.mark.parametrize("apply_to", ["negative only", "positive only"])
def test_a_whole_network_on_one_side(folder, apply_to):  # noqa: F811
    """On a copy of the weights, in a call of its own."""
    model = tiny.model("unet")
    target = other_unet(model)
    save_file(target, folder / "x.safetensors")
    loaded, report = run_node_all(PreferenceLoraLoader, model=model, file="x.safetensors", apply_to=apply_to)
    assert SEPARATE in report
    tuned = on_weights_of_its_own("unet")
    weights = dict(tuned.model.named_parameters())
    for name, value in target.items():
        weights[key_of(tuned, name)].data = value.clone()
    plain = on_weights_of_its_own("unet")
    strong, weak = (plain, tuned) if apply_to == "negative only" else (tuned, plain)
    check_negative(loaded, "unet", strong, weak, steps=2, tolerance=5e-5)


# Autoguidance by the same ways --------------------------------------------------------------------------------------


@pytest.mark.parametrize("weakness", ["second model", "LoRA strength"])
def test_autoguidance_by_the_base_of_a_lora(weakness):
    """The base shares the weights of the model: what it predicts comes from the same call."""
    base = tiny.model("unet")
    model = lora(base)
    settings = {"weak_model": base} if weakness == "second model" else {"amount": 0.0}
    guided = run_node(Autoguidance, model=model, weakness=weakness, scale=2.0, **settings)
    calls = probes.count_evaluations(guided)
    strong, weak = on_weights_of_its_own("unet", {}), on_weights_of_its_own("unet")
    for step in steps_of(guided, "unet", cfg=1.0, steps=2):
        positive = alone(strong, "unet", step)
        wanted = positive + 2.0 * (positive - alone(weak, "unet", step))
        assert probes.distance(step["denoised"], wanted) < 1e-4
        assert probes.distance(wanted, positive) > 1e-3
    assert calls.chunks == [2] * 2


def test_a_model_is_not_worse_than_itself():
    model = tiny.model("unet")
    with pytest.raises(ValueError, match="is the model itself"):
        run_node(Autoguidance, model=model, weakness="second model", weak_model=model.clone(), scale=2.0)


# What cannot be -----------------------------------------------------------------------------------------------------


def test_no_other_model_and_no_lora():
    with pytest.raises(ValueError, match="no LoRA whose strength could be changed"):
        run_node(PreferenceCFG, model=tiny.model("unet"))


def test_the_model_itself():
    """For the negative that is no guidance; a mixture may differ in the prompt."""
    model = lora(tiny.model("unet"))
    with pytest.raises(ValueError, match="The other model is the model itself"):
        run_node(PreferenceCFG, model=model, other_model=model.clone())
    source = tiny.conditioning("unet", 55)
    mixed = run_node(PreferenceCFG, model=model, mode=MIXTURE, other_model=model.clone(), source=source)
    calls = probes.count_evaluations(mixed)
    assert probes.distance(tiny.sample(mixed, "unet"), tiny.sample(model, "unet")) > 1e-3
    assert calls.chunks == [3] * 4


def test_models_of_different_latents():
    with pytest.raises(ValueError, match="different latents"):
        run_node(PreferenceCFG, model=tiny.model("unet"), other_model=tiny.model("flux"))


def test_layers_whose_rows_are_not_the_predictions():
    """A layer that works on the whole batch at once cannot have a LoRA for one side: said, and nothing stays behind."""
    model = tiny.model("unet")
    guided = run_node(PreferenceCFG, model=model, other_model=lora(model))

    class OneRow:
        def __call__(self, executor, x, t, *args, **kwargs):
            executor.class_obj.diffusion_model.time_embed(torch.zeros(1, 32))
            return executor(x, t, *args, **kwargs)

    import comfy.patcher_extension

    guided.add_wrapper(comfy.patcher_extension.WrappersMP.APPLY_MODEL, OneRow())
    with pytest.raises(ValueError, match="works on 1 rows for 2 predictions"):
        tiny.sample(guided, "unet")
    assert not any(module._forward_hooks for module in model.model.modules())


def test_default_mode():
    """Diffusion-NPO's use: the model is the first, what is disliked the other."""
    assert PreferenceCFG.define_schema().inputs[1].default == NEGATIVE
