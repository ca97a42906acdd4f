"""What nodes take from the table of presets, and what they say of it."""

import comfy.model_base
import comfy.model_detection
import comfy.samplers
import comfy.supported_models
import pytest
import torch
from comfy.model_base import ModelType
from comfy.model_patcher import ModelPatcher

from guidekit.benchmarks._nodes import run_node
from guidekit.demo.world.models import DemoDiT, DemoUNet
from guidekit.nodes import NODES
from guidekit.nodes.apg import APG
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.exact_invert import ExactInvert
from guidekit.nodes.frequency_guidance import RESIZE, FrequencyGuidance
from guidekit.nodes.gfcg import AUTOGUIDANCE, GFCG
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.inputs import CHECKS
from guidekit.nodes.host.network.model_kind import kinds_of
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import GIVEN, NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.preference_cfg import MIXTURE, PreferenceCFG
from guidekit.nodes.presets import ANY, AUTO, TABLE, TYPED, resolve
from guidekit.nodes.sampler_cfgpp import SamplerCFGPP
from guidekit.nodes.seg import SEG
from guidekit.nodes.slg import SLG
from guidekit.nodes.style_aligned import StyleAligned
from guidekit.tests.host import guides, probes, tiny, toy

# As the host's detection describes a checkpoint: its settings beside those by which the class is found.
CHECKPOINTS = {
    "SD1.5": ("SD15", {}),
    "SD2": ("SD20", {}),
    "SDXL": ("SDXL", {}),
    "SD3": ("SD3", {"depth": 2, "x_block_self_attn_layers": []}),
    "SD3 medium": ("SD3", {"depth": 24, "x_block_self_attn_layers": []}),
    "SD3.5 medium": ("SD3", {"depth": 24, "x_block_self_attn_layers": [0, 1, 2]}),
    "SD3.5 large": ("SD3", {"depth": 38, "x_block_self_attn_layers": []}),
    "Flux dev": ("Flux", {}),
    "Flux schnell": ("FluxSchnell", {}),
    "Flux.2": ("Flux2", {"hidden_size": 32}),
    "Chroma": ("Chroma", {}),
    "HunyuanVideo": ("HunyuanVideo", {}),
    "Wan": ("WAN21_T2V", {"in_dim": 16}),
    "Wan I2V": ("WAN21_I2V", {}),
    "Qwen-Image": ("QwenImage", {}),
    "Z-Image": ("ZImage", {}),
    "Lumina2": ("Lumina2", {}),
    "ACE-Step": ("ACEStep", {}),
    "AuraFlow": ("AuraFlow", {}),
}
WIDER = {"Flux": "Flux dev", "Wan 2.2 I2V": "Wan"}


def of(config) -> ModelPatcher:
    """A MODEL of a host's class, without a network."""
    config.unet_config = {**config.unet_config, "disable_unet_model_creation": True}
    cpu = torch.device("cpu")
    return ModelPatcher(comfy.model_base.BaseModel(config, ModelType.FLOW), load_device=cpu, offload_device=cpu)


def checkpoint(kind: str) -> ModelPatcher:
    name, settings = CHECKPOINTS[WIDER.get(kind, kind)]
    found = getattr(comfy.supported_models, name).unet_config
    return of(comfy.model_detection.model_config_from_unet_config({**found, **settings}))


def node_of(row):
    return next(node for node in NODES if node.GET_SCHEMA().node_id == f"Guidekit{row.node}")


def inputs_of(node):
    return {wanted.id: wanted for wanted in node.define_schema().inputs}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_the_kind_is_that_of_the_class_the_host_finds(kind):
    assert kinds_of(checkpoint(kind))[0] == kind


def test_wan_2_2_image_to_video_is_told_by_its_channels():
    """It has the class of text to video, and sees no image tokens."""
    settings = {"image_model": "wan2.1", "model_type": "t2v", "in_dim": 36}
    assert "Wan I2V" in kinds_of(of(comfy.model_detection.model_config_from_unet_config(settings)))


@pytest.mark.parametrize("config", [DemoUNet, DemoDiT])
def test_the_demo_models_are_not_what_they_are_made_of(config):
    assert kinds_of(of(config(dict(config.network)))) == (config.__name__,)


def test_other_packs_models_have_the_name_of_their_class():
    model = toy.model()
    assert kinds_of(model) == ("Config",)
    del model.model.model_config
    assert kinds_of(model) == ("BaseModel",)


@pytest.mark.parametrize("row", TABLE, ids=lambda row: f"{row.node}-{row.model}-{row.input}")
def test_a_row(row):
    """At the default the table's value is taken, anything else stays, and the switch turns the table off."""
    node, model = node_of(row), checkpoint("AuraFlow" if row.model == ANY else row.model)
    wanted = inputs_of(node)[row.input]
    assert CHECKS[wanted.get_io_type()](row.input, row.value, wanted) == row.value
    taken, told = resolve(node, model, AUTO, **{row.input: wanted.default})
    assert taken == {row.input: row.value}
    assert row.source in told
    assert ("nothing is known for AuraFlow" in told) == (row.model == ANY)
    other = next(o for o in getattr(wanted, "options", ["all", 0.125]) if o not in (wanted.default, row.value))
    assert resolve(node, model, AUTO, **{row.input: other}) == ({row.input: other}, "")
    assert resolve(node, model, TYPED, **{row.input: wanted.default}) == ({row.input: wanted.default}, "")
    if row.model == ANY:
        assert row.value == wanted.default


@pytest.mark.parametrize(
    ("kind", "told"),
    [
        ("Flux schnell", "auto for Flux schnell: nag_alpha 0.25 (the paper)."),
        ("SD3.5 large", "auto for SD3.5 large: nag_alpha 0.125 (the paper, for SD3.5 large)."),
        ("Flux.2", "auto: nothing is known for Flux.2. The general values: nag_alpha 0.25 (the paper, for Flux)."),
    ],
)
def test_the_row_of_a_wider_kind_is_taken_before_the_general_one(kind, told):
    assert resolve(NASA, checkpoint(kind), AUTO, nag_alpha=0.25)[1] == told


def test_the_table_has_no_row_twice_and_a_general_value_for_each():
    keys = [(row.node, row.model, row.input) for row in TABLE]
    assert len(set(keys)) == len(keys)
    general = {(row.node, row.input) for row in TABLE if row.model == ANY}
    limits = {("SLG", "start_percent"), ("SLG", "end_percent")}  # the whole run needs no source
    assert {(row.node, row.input) for row in TABLE} - general == limits


def test_every_node_with_the_input_has_rows():
    with_input = {node.GET_SCHEMA().node_id for node in NODES if "preset" in inputs_of(node)}
    assert with_input == {f"Guidekit{row.node}" for row in TABLE}


def steered(family, **settings):
    return run_node(NASA, model=tiny.model(family), negative=tiny.conditioning(family, 33), **settings)


@pytest.mark.parametrize(
    ("family", "values"),
    [
        ("unet", {"nag_scale": 3.0, "nag_tau": 2.5, "nag_alpha": 0.375}),
        ("sd3", {"nag_scale": 5.0, "nag_tau": 2.5, "nag_alpha": 0.125}),
    ],
)
def test_nag_is_as_if_the_values_were_typed(family, values, caplog):
    caplog.set_level("INFO")
    auto, by_hand, untouched = (
        tiny.sample(steered(family, **settings), family, cfg=1.0, steps=2)
        for settings in ({}, {**values, "preset": TYPED}, {"preset": TYPED})
    )
    assert torch.equal(auto, by_hand)
    assert probes.differ(auto, untouched)
    assert caplog.text.count(f"nag_alpha {values['nag_alpha']:g}") == 1


def test_a_typed_value_wins_beside_those_of_the_table(caplog):
    caplog.set_level("INFO")
    auto = tiny.sample(steered("unet", nag_alpha=0.8), "unet", cfg=1.0, steps=2)
    by_hand = steered("unet", nag_scale=3.0, nag_alpha=0.8, preset=TYPED)
    assert torch.equal(auto, tiny.sample(by_hand, "unet", cfg=1.0, steps=2))
    assert "auto for SD1.5: nag_scale 3, nag_tau 2.5 (the paper). As typed: nag_alpha 0.8." in caplog.text


def test_without_the_input_all_is_as_typed(caplog):
    """As older workflows are, and clients that do not know of it."""
    caplog.set_level("INFO")
    settings = {"scale": 3.0, "blocks": "", "rescale": "off", "start_percent": 0.0, "end_percent": 1.0}
    PAG.execute(model=tiny.model("unet"), **settings)
    assert "auto" not in caplog.text
    PAG.execute(model=tiny.model("unet"), **settings, preset=AUTO)
    assert "auto for SD1.5: scale 3, blocks middle (the authors' code)." in caplog.text


def many_blocks(config):
    """A network with blocks enough, under the settings of a larger one."""
    model = tiny.build({**tiny.FAMILIES["flux"].network, "depth": 14}, "flux")
    model.model.model_config = config
    return model


def placed(model, kind):
    return model.model_options["guidekit"][kind][0]


def test_slg_of_sd35_medium():
    medium = checkpoint("SD3.5 medium").model.model_config
    model = run_node(SLG, model=many_blocks(medium))
    blocks = {block.number for block in placed(model, "skips").blocks(None)}
    limits = placed(model, "corrections").range
    assert (blocks, limits.start_percent, limits.end_percent) == ({7, 8, 9}, 0.01, 0.2)


@pytest.mark.parametrize("settings", [{"start_percent": 0.3}, {"end_percent": 0.9}])
def test_of_a_range_both_ends_are_typed(settings):
    """Or the other one, of the table, could lie before it."""
    medium = checkpoint("SD3.5 medium").model.model_config
    limits = placed(run_node(SLG, model=many_blocks(medium), **settings), "corrections").range
    wanted = {"start_percent": 0.0, "end_percent": 1.0, **settings}
    assert (limits.start_percent, limits.end_percent) == tuple(wanted.values())


def test_random_blocks_are_of_all_blocks_if_none_are_named():
    medium = checkpoint("SD3.5 medium").model.model_config
    model = run_node(SLG, model=many_blocks(medium), random_blocks=2)
    assert len(placed(model, "skips").blocks.blocks) == 16


def test_pag_of_sd3_medium():
    medium = checkpoint("SD3 medium").model.model_config
    model = run_node(PAG, model=many_blocks(medium))
    assert {block.number for block in placed(model, "attention").blocks} == {13}
    assert placed(model, "corrections").scale == 0.7


def test_seg_of_sdxl():
    model = tiny.model("unet")
    model.model = _with_config(model.model, checkpoint("SDXL").model.model_config)
    found = run_node(SEG, model=model)
    assert placed(found, "queries").technique.sigma == 100.0


def _with_config(base, config):
    """The same network, under the settings of another; the shared one stays."""
    other = comfy.model_base.BaseModel(config, ModelType.EPS)
    other.diffusion_model = base.diffusion_model
    return other


def test_apg_s_threshold_is_in_rms():
    """In the other unit the table has none."""
    sdxl = checkpoint("SDXL").model.model_config
    for unit, threshold in (("rms", 0.0586), ("l2", 0.0)):
        model = tiny.model("unet")
        model.model = _with_config(model.model, sdxl)
        assert placed(run_node(APG, model=model, norm_unit=unit), "corrections").norm_threshold == threshold


def plain():
    return {"model": tiny.model("flux")}


def with_negative():
    return {**plain(), "negative": tiny.conditioning("flux", 33)}


def with_latent():
    return {**plain(), "latent": {"samples": tiny.noise("flux")}}


def with_weak_model():
    return {**plain(), "weak_model": tiny.worse(tiny.model("flux"))}


def with_other_model():
    return {**plain(), "other_model": tiny.worse(tiny.model("flux"))}


def with_classifier():
    return {**with_weak_model(), "classifier": guides.classifier(), "candidates": guides.candidates("flux")}


def inversion():
    guider = comfy.samplers.CFGGuider(toy.model(parameterisation="flow"))
    guider.set_conds(toy.conditioning(1.0), toy.conditioning(-1.0))
    latent = {"samples": toy.noise(4)}
    return {"guider": guider, "sigmas": torch.tensor([0.8, 0.4, 0.0]), "latent": latent}


NAG = {"nag_scale": 7.0, "nag_tau": 2.0, "nag_alpha": 0.3}
SECOND = {"weakness": "second model"}
FREQUENCY = {"split": RESIZE}
UNUSED = [
    (FrequencyGuidance, plain, {"size_factor": 3.0}, "size_factor is not used with split 'pyramid (FDG)'."),
    (
        FrequencyGuidance,
        plain,
        {**FREQUENCY, "between": "1.5", "parallel": 0.5},
        "between and parallel are not used with split 'resize (FreCaS)'.",
    ),
    (NASA, with_negative, {"method": "NASA", "nag_scale": 7.0}, "nag_scale is not used with method NASA."),
    (NASA, with_negative, {"nasa_alpha": 0.7}, "nasa_alpha is not used with method NAG."),
    (NASA, with_negative, {"method": "NASA", **NAG}, "nag_scale, nag_tau and nag_alpha are not used with method NASA."),
    (GuidanceInterval, plain, {"sigma_high": 3.0}, "sigma_high is not used with limits SDXL."),
    (NegToMe, with_latent, {}, "latent is not used with reference 'first image'."),
    (StyleAligned, with_latent, {}, "latent is not used with reference 'first image'."),
    (SLG, plain, {"random_seed": 3}, "random_seed is not used without random_blocks."),
    (APG, plain, {"norm_unit": "l2"}, "norm_unit is not used without a norm_threshold."),
    (ExactInvert, inversion, {"gamma": 0.9}, "gamma is not used with method edict."),
    (ExactInvert, inversion, {"method": "bdia", "p": 0.9}, "p is not used with method bdia."),
    (Autoguidance, with_weak_model, {}, "weak_model is not used with weakness dropout."),
    (
        Autoguidance,
        with_weak_model,
        {**SECOND, "amount": 0.2, "blocks": "1", "random_seed": 4},
        "blocks, random_seed and amount are not used with weakness second model.",
    ),
    (GFCG, with_classifier, {}, "weak_model is not used with combination 'add to CFG'."),
    (PreferenceCFG, with_other_model, {"model_weight": 0.5}, "model_weight is not used with mode 'negative (NPO)'."),
    (PreferenceCFG, with_other_model, {"lora_strength": 0.5}, "lora_strength is not used beside another model."),
    (SamplerCFGPP, dict, {"eta": 0.5}, "eta is not used by euler, which adds no noise."),
]


@pytest.mark.parametrize(("node", "given", "settings", "sentence"), UNUSED, ids=[each[3] for each in UNUSED])
def test_inputs_without_effect_are_told(node, given, settings, sentence, caplog):
    caplog.set_level("INFO")
    run_node(node, **{**given(), **settings})
    assert sentence in caplog.text


USED = [
    (FrequencyGuidance, plain, {**FREQUENCY, "size_factor": 3.0}),
    (FrequencyGuidance, plain, {"between": "1.5", "parallel": 0.5}),
    (NASA, with_negative, NAG),
    (NASA, with_negative, {"method": "NASA", "nasa_alpha": 0.7}),
    (GuidanceInterval, plain, {"limits": "sigma", "sigma_high": 0.9, "sigma_low": 0.2}),
    (NegToMe, with_latent, {"reference": GIVEN}),
    (StyleAligned, with_latent, {"reference": GIVEN}),
    (SLG, plain, {"random_blocks": 1, "random_seed": 3}),
    (APG, plain, {"norm_threshold": 0.1, "norm_unit": "l2"}),
    (ExactInvert, inversion, {"p": 0.9}),
    (ExactInvert, inversion, {"method": "bdia", "gamma": 0.9}),
    (Autoguidance, with_weak_model, SECOND),
    (Autoguidance, plain, {"amount": 0.2, "blocks": "1", "random_seed": 4}),
    (GFCG, with_classifier, {"combination": AUTOGUIDANCE}),
    (PreferenceCFG, with_other_model, {"mode": MIXTURE, "model_weight": 0.5}),
    (SamplerCFGPP, dict, {"sampler": "euler ancestral", "eta": 0.5}),
]


@pytest.mark.parametrize(("node", "given", "settings"), USED)
def test_inputs_with_an_effect_are_not(node, given, settings, caplog):
    caplog.set_level("INFO")
    run_node(node, **{**given(), **settings})
    assert "not used" not in caplog.text
