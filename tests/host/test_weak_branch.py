"""The weak branches in the host: the right prediction on every family, once in the same call, once resumed."""

import logging
import math

import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy.model_patcher import ModelPatcher
from comfy_extras.nodes_pag import PerturbedAttentionGuidance
from torch.utils.flop_counter import FlopCounterMode

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.attention.self_attention import replace_self_attention
from guidekit.nodes.host.network import blocks
from guidekit.nodes.host.network.block_selection import choose_blocks, usually_perturbed, usually_skipped
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.host.network.families import self_attention_blocks
from guidekit.nodes.host.network.shared_prefix import Prefix, Sharing
from guidekit.nodes.host.predictions.weak_branch import WeakBranch
from guidekit.nodes.host.run import Run
from guidekit.nodes.host.run.clock import Clock
from guidekit.nodes.pag import PAG
from guidekit.nodes.seg import SEG
from guidekit.nodes.slg import SLG
from guidekit.tests.host import probes, tiny

BLOCKS = [
    pytest.param(family, i, id=f"{family}-{i}")
    for family in tiny.FAMILIES
    for i in range(len(self_attention_blocks(tiny.model(family))))
]
NOT_RESUMED = ["lumina2"] if reaches_unet_layers() else ["lumina2", "unet"]
REPLACEABLE = [case for case in BLOCKS if case.values[0] not in NOT_RESUMED]
unet_layers = pytest.mark.skipif(
    not reaches_unet_layers(), reason="this host does not let layers of a UNet be replaced"
)


def need(node, family):
    if node is SLG and family == "unet" and not reaches_unet_layers():
        pytest.skip("this host does not let layers of a UNet be replaced")


class DenseBlur:
    """Image queries replaced by their means over the last two dimensions of the grid."""

    label, idle_reason = "dense blur", "never"

    def __call__(self, a):
        q = a.q.clone()
        frames = q[:, :, a.image].unflatten(2, (-1, a.grid[-2] * a.grid[-1]))
        q[:, :, a.image] = frames.mean(3, keepdim=True).expand_as(frames).flatten(2, 3)
        return ((q @ a.k.transpose(-1, -2)) * a.scale).softmax(-1) @ a.v


def first_step(model, family, **options):
    """What the post-CFG functions saw in the first step."""
    seen = probes.record_predictions(model)
    tiny.sample(model, family, steps=1, **options)
    return seen.steps[0]


def difference(model, family, **options):
    """D_c - weak of a node at scale 1, in the first step, and the positive prediction itself."""
    step = first_step(model, family, cfg=1.0, **options)
    return step["denoised"] - step["cond_denoised"], step["cond_denoised"]


@pytest.mark.parametrize(("node", "technique"), [(PAG, probes.DenseIdentity()), (SEG, DenseBlur())], ids=["pag", "seg"])
@pytest.mark.parametrize(("family", "block"), BLOCKS)
def test_the_weak_prediction_is_that_of_dense_attention(family, block, node, technique):
    model = tiny.model(family)
    settings = {"blur": -1.0} if node is SEG else {}
    found, cond = difference(run_node(node, model=model, scale=1.0, blocks=str(block), **settings), family, batch=2)
    weakened = tiny.model(family)
    replace_self_attention(weakened, [self_attention_blocks(model)[block]], technique)
    weak = first_step(weakened, family, cfg=1.0, batch=2)["denoised"]
    assert probes.distance(cond - found, weak) < 1e-5
    assert (cond - weak).abs().max() > 1e-6 * cond.abs().max()


def spread(latent):
    return latent.std(dim=tuple(range(1, latent.ndim)), correction=0, keepdim=True)


@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("rescale", ["partial", "full"])
def test_the_spread_is_that_of_the_positive_prediction(rescale, cfg):
    """Beside CFG too: "full" looks at the whole result, whatever CFG has made of it."""

    def first(rescale):
        model = run_node(PAG, model=tiny.model("unet"), scale=30.0, rescale=rescale)
        step = first_step(model, "unet", cfg=cfg, batch=2)
        return {name: step[name].double() for name in ("denoised", "cond_denoised", "uncond_denoised")}

    found, plain = first(rescale), first("off")
    cond, uncond = plain["cond_denoised"], plain["uncond_denoised"]
    guided = cond if cfg == 1 else uncond + cfg * (cond - uncond)
    change = plain["denoised"] - guided
    if rescale == "partial":
        wanted = guided + change * spread(cond) / spread(cond + change)
    else:
        wanted = (guided + change) * spread(cond) / spread(guided + change)
    assert probes.distance(found["denoised"], wanted) < 1e-5
    assert probes.distance(wanted, plain["denoised"]) > 1e-3


class Zero(torch.nn.Module):
    """A block that passes on what it is given."""

    def __init__(self, family):
        super().__init__()
        self.family = family

    def forward(self, *args, **kwargs):
        if self.family == "sd3":
            return args[0], args[1]
        if self.family == "qwen_image":
            return kwargs["encoder_hidden_states"], kwargs["hidden_states"]
        if "img" in kwargs:
            return kwargs["img"], kwargs["txt"]
        return args[0]


@pytest.mark.parametrize(("family", "block"), [c for c in BLOCKS if c.values != ("lumina2", 0)])
def test_a_skipped_block_is_not_in_the_network(family, block, monkeypatch):
    """Against the same network with that block taken out by hand."""
    need(SLG, family)
    model = tiny.model(family)
    found, cond = difference(run_node(SLG, model=model, scale=1.0, blocks=str(block)), family, batch=2)
    kind, number = self_attention_blocks(model)[block]
    network = model.model.diffusion_model
    if family == "unet":
        layers = {"input": network.input_blocks, "middle": [network.middle_block], "output": network.output_blocks}
        place, index = layers[kind][number], 1
    else:
        names = {"sd3": "joint_blocks", "wan": "blocks", "qwen_image": "transformer_blocks", "lumina2": "layers"}
        place, index = getattr(network, names.get(family, f"{kind}_blocks")), number
    kept = place[index]
    place[index] = Zero(family)
    try:
        weak = first_step(tiny.model(family), family, cfg=1.0, batch=2)["denoised"]
    finally:
        place[index] = kept
    assert probes.distance(cond - found, weak) < 1e-5
    assert (cond - weak).abs().max() > 1e-6 * cond.abs().max()


NODES = {
    "pag": (PAG, {"scale": 3.0}),
    "seg": (SEG, {"scale": 3.0, "blur": -1.0}),
    "slg": (SLG, {"scale": 3.0}),
}


def whole(monkeypatch):
    """From here on weak branches are computed whole, in the call of cond."""
    monkeypatch.setattr(WeakBranch, "first_block", lambda self, run: None)


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize(("family", "block"), REPLACEABLE)
def test_resuming_gives_what_the_whole_pass_gives(family, block, name, monkeypatch):
    node, settings = NODES[name]
    model = run_node(node, model=tiny.model(family), blocks=str(block), **settings)
    calls = probes.count_evaluations(model)
    resumed = first_step(model, family, batch=2)
    whole(monkeypatch)
    together = first_step(model, family, batch=2)
    resumes = family == "unet" or block > 0
    assert calls.chunks == ([2, 1] if resumes else [3]) + [3]
    assert (resumed["denoised"] - together["denoised"]).abs().max() < 1e-5 * resumed["cond_denoised"].abs().max()


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_several_branches_share_one_call(family):
    """Each from another block on where the network has enough of them: all resume at the first."""
    need(SLG, family)
    count = len(self_attention_blocks(tiny.model(family)))
    starts = {"pag": count - 1, "seg": max(1, count - 2), "slg": 1}

    def apply(name, model):
        node, settings = NODES[name]
        return run_node(node, model=model, blocks=str(starts[name]), **settings)

    model = tiny.model(family)
    for name in NODES:
        model = apply(name, model)
    calls = probes.count_evaluations(model)
    resumed = first_step(model, family)
    assert calls.chunks == ([5] if family in NOT_RESUMED else [2, 3])
    plain = first_step(tiny.model(family), family)["denoised"]
    apart = sum(first_step(apply(name, tiny.model(family)), family)["denoised"] - plain for name in NODES)
    assert probes.distance(resumed["denoised"], plain + apart) < 1e-4


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("family", ["unet", "flux", "wan"])
def test_areas_prompts_and_a_split_batch(family, name, monkeypatch):
    """Several entries, each resumed from its own state, also when memory splits the batch."""
    node, settings = NODES[name]
    need(node, family)
    left = tiny.conditioning(family, 1)
    left[0][1]["area"] = (8, 4, 0, 0) if family != "wan" else (2, 8, 4, 0, 0, 0)
    options = {"positive": left + tiny.conditioning(family, 2, tokens=9), "batch": 2}
    model = run_node(node, model=tiny.model(family), **settings)
    resumed = first_step(model, family, **options)["denoised"]
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    split = first_step(model, family, **options)["denoised"]
    whole(monkeypatch)
    assert probes.distance(resumed, first_step(model, family, **options)["denoised"]) < 1e-5
    assert probes.distance(resumed, split) < 1e-5


def test_context_windows_are_computed_whole(caplog, monkeypatch):
    """A window evaluates the same entry again: what it left cannot be told apart, so nothing is resumed."""
    import comfy.context_windows as windows

    caplog.set_level(logging.INFO)
    handler = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("flat"),
        context_length=1,
        context_overlap=0,
        dim=2,
    )
    without = tiny.model("wan")
    without.model_options["context_handler"] = handler
    plain = first_step(without, "wan")["denoised"]
    model = run_node(PAG, model=without, scale=50.0)
    calls = probes.count_evaluations(model)
    resumed = first_step(model, "wan")["denoised"]
    assert calls.chunks == [2, 2, 1, 1]
    assert caplog.text.count("in parts") == 1
    assert probes.distance(resumed, plain) > 1e-6
    whole(monkeypatch)
    calls.chunks.clear()
    assert probes.distance(first_step(model, "wan")["denoised"], resumed) < 1e-5
    assert calls.chunks == [3, 3]


@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("family", ["unet", "flux", "sd3"])
def test_residuals_of_a_controlnet_keep_their_effect(family, name, monkeypatch):
    node, settings = NODES[name]
    need(node, family)
    model = run_node(node, model=tiny.model(family), **settings)
    positive = tiny.conditioning(family, 1)
    positive = tiny.controlled(positive, family)
    resumed = first_step(model, family, positive=positive)
    without = first_step(model, family, positive=tiny.conditioning(family, 1))
    assert probes.distance(resumed["cond_denoised"], without["cond_denoised"]) > 1e-4
    whole(monkeypatch)
    together = first_step(model, family, positive=positive)
    assert probes.distance(resumed["denoised"], together["denoised"]) < 1e-5


@pytest.mark.parametrize("name", NODES)
def test_patches_of_others_keep_their_effect(name, monkeypatch):
    """Patches of blocks, before and behind our node, in the blocks that are resumed and those that are not."""

    def doubled(args, extra):
        out = extra["original_block"](args)
        return {**out, "img": out["img"] * 1.5}

    node, settings = NODES[name]
    for block in (("double_block", 0), ("single_block", 0)):
        for first in (True, False):
            model = tiny.model("flux")
            if first:
                model.set_model_patch_replace(doubled, "dit", *block)
            model = run_node(node, model=model, blocks="single 1", **settings)
            if not first:
                model.set_model_patch_replace(doubled, "dit", *block)
            resumed = first_step(model, "flux")
            with monkeypatch.context() as patch:
                whole(patch)
                together = first_step(model, "flux")
            assert probes.distance(resumed["denoised"], together["denoised"]) < 1e-5
            plain = run_node(node, model=tiny.model("flux"), blocks="single 1", **settings)
            assert probes.distance(resumed["denoised"], first_step(plain, "flux")["denoised"]) > 1e-4


@pytest.mark.parametrize("name", NODES)
def test_unet_patches_of_others_keep_their_effect(name, monkeypatch):
    node, settings = NODES[name]
    need(node, "unet")

    def run(**changes):
        model = run_node(node, model=tiny.model("unet"), **{**settings, **changes})
        model.set_model_input_block_patch(lambda h, options: h * (1.5 if options["block"][1] == 2 else 1))
        model.set_model_output_block_patch(lambda h, hsp, options: (h * 1.1, hsp * 0.8))
        model.set_model_patch((torch.nn.Conv2d, lambda layer, x, *_: layer(x) * 1.2), "forward_timestep_embed_patch")
        return first_step(model, "unet")

    resumed = run()
    # Without our node, which leaves the positive prediction alone.
    assert probes.distance(resumed["cond_denoised"], run(scale=0.0)["cond_denoised"]) < 1e-5
    whole(monkeypatch)
    assert probes.distance(resumed["denoised"], run()["denoised"]) < 1e-5


def evaluation_flops(model: ModelPatcher, latent: torch.Tensor, prompt: list) -> int:
    """Floating-point operations of one step with CFG."""
    with FlopCounterMode(display=False) as counter:
        settings = (1, 4.0, "euler", "simple", prompt, prompt, torch.zeros_like(latent))
        comfy.sample.sample(model, torch.zeros_like(latent), *settings, seed=0, disable_pbar=True)
    return counter.get_total_flops()


def weak_share(node, model, latent, prompt, **settings) -> float:
    """FLOPs of the weak branch over those of one evaluation."""
    plain = evaluation_flops(model.clone(), latent, prompt)
    guided = evaluation_flops(run_node(node, model=model, **settings), latent, prompt)
    return (guided - plain) / (plain / 2)


# Channels and tokens of SD1.5 at 512 x 512 and SDXL at 1024 x 1024, both divided by five: the shares of convolutions
# (channels squared times tokens) and attention (channels times tokens squared) stay as they are.
UNETS = {
    "sd15": (
        {
            "num_res_blocks": [2, 2, 2, 2],
            "channel_mult": (1, 2, 4, 4),
            "transformer_depth": [1, 1, 1, 1, 1, 1, 0, 0],
            "transformer_depth_output": [1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 0],
            "transformer_depth_middle": 1,
        },
        32,
    ),
    "sdxl": (
        {
            "num_res_blocks": [2, 2, 2],
            "channel_mult": (1, 2, 4),
            "transformer_depth": [0, 0, 2, 2, 10, 10],
            "transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10],
            "transformer_depth_middle": 10,
        },
        56,
    ),
}


@unet_layers
@pytest.mark.parametrize("name", UNETS)
def test_the_encoder_of_a_unet_is_not_computed_again(name):
    settings, side = UNETS[name]
    model = tiny.build({**tiny.FAMILIES["unet"].network, "model_channels": 64, "context_dim": 152, **settings})
    prompt = [[torch.zeros(1, 77, 152), {}]]
    latent = torch.zeros(1, 4, side, side)
    for node in (PAG, SEG):
        share = weak_share(node, model, latent, prompt)
        print(f"  {name} {node.__name__}: {share:.3f} of an evaluation")
        assert share <= 0.70


@pytest.mark.parametrize("node", [PAG, SEG, SLG])
@pytest.mark.parametrize("family", ["sd3", "flux", "chroma", "hunyuan_video", "wan", "qwen_image"])
def test_blocks_before_the_first_are_not_computed_again(family, node):
    model = tiny.model(family)
    count = len(self_attention_blocks(model))
    prompt = tiny.conditioning(family, 1)
    every = weak_share(node, model, tiny.noise(family), prompt, blocks="0-1", **({"blur": -1.0} if node is SEG else {}))
    assert every <= 1.001
    last = weak_share(node, model, tiny.noise(family), prompt, blocks=str(count - 1))
    print(f"  {family} {node.__name__}: {last:.3f} of an evaluation from block {count - 1} of {count}")
    assert last < every - 0.2 / count


@pytest.mark.parametrize("k", [1, 4, 8])
def test_share_of_a_deep_transformer(k):
    """At most 1 - k/L and 3 % of an evaluation."""
    network = {**tiny.FAMILIES["flux"].network, "depth": 0, "depth_single_blocks": 12}
    model = tiny.build(network, "flux")
    latent = torch.zeros(1, 16, 32, 32)
    share = weak_share(PAG, model, latent, tiny.conditioning("flux", 1), blocks=str(k))
    print(f"  block {k} of 12: {share:.3f} of an evaluation")
    assert share <= 1 - k / 12 + 0.03


@pytest.mark.parametrize("node", [PAG, SEG, SLG])
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_outside_its_range_there_is_not_one_more_evaluation(family, node):
    need(node, family)
    model = run_node(node, model=tiny.model(family), scale=9.0, start_percent=0.5)
    calls, seen = probes.count_evaluations(model), probes.record_predictions(model)
    tiny.sample(model, family, steps=4)
    halfway = model.get_model_object("model_sampling").percent_to_sigma(0.5)
    late = sum(probes.at_or_below(step, halfway) for step in seen.steps)
    assert 0 < late < 4
    assert calls.total == 4 * 2 + late


def test_random_blocks_change_from_step_to_step_and_repeat():
    model = run_node(SLG, model=tiny.model("flux"), random_blocks=1, random_seed=1)
    (branch,) = set(model.model_options["guidekit"]["branches"])

    class At(Run):
        def __init__(self, step):
            self.clock = Clock([10.0 - 0.1 * step, 0.0], lambda step, sigmas: 1)

    chosen = [branch.blocks(At(step)) for step in range(40)]
    assert chosen == [branch.blocks(At(step)) for step in range(40)]
    assert all(len(blocks) == 1 for blocks in chosen)
    assert set().union(*chosen) == set(self_attention_blocks(tiny.model("flux")))
    other = run_node(SLG, model=tiny.model("flux"), random_blocks=1, random_seed=2)
    assert not torch.equal(tiny.sample(model, "flux"), tiny.sample(other, "flux"))
    two = run_node(SLG, model=tiny.model("flux"), blocks="double 0-1, single 1", random_blocks=2, random_seed=1)
    (branch,) = two.model_options["guidekit"]["branches"]
    drawn = [branch.blocks(At(step)) for step in range(40)]
    assert {len(blocks) for blocks in drawn} == {2}
    assert len(set().union(*drawn)) == 3


@pytest.mark.parametrize(
    ("family", "text", "found"),
    [
        ("flux", "0, 2", ["double 0", "single 0"]),
        ("flux", "1-2", ["double 1", "single 0"]),
        ("flux", "single", ["single 0", "single 1"]),
        ("flux", "Single 1,double0", ["double 0", "single 1"]),
        ("flux", "middle", ["single 0"]),
        ("flux", "all", ["double 0", "double 1", "single 0", "single 1"]),
        ("unet", "middle", ["middle 0"]),
        ("unet", "output 1-2, input 3", ["input 3", "output 1", "output 2"]),
        ("unet", "0", ["input 1"]),
        ("wan", " double 0 - 1 ", ["double 0", "double 1"]),
    ],
)
def test_blocks_by_name(family, text, found):
    chosen = choose_blocks(tiny.model(family), text, [])
    assert [f"{b.kind} {b.number}" for b in chosen] == found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("9", "name 9, which this model does not have. It has double 0, 1; single 0, 1; or"),
        ("single 1-3", "name single 2"),
        ("middle 0", "name middle 0"),
        ("1;2", "cannot be read at '1;2'"),
        ("1,,2", "cannot be read at ''"),
        ("3-1", "name '3-1'"),
        ("output", "name 'output'"),
        ("0-99999999999", "name 4, which this model does not have. It has double 0, 1"),
        ("double 1-99999999999", "name double 2"),
        ("99999999999", "name 99999999999, which"),
        ("0-" + "9" * 5000, "name 4, which this model does not have"),
        ("00001, " + "9" * 5000, r"name 9{17}\.\.\., which this model does not have"),
        ("x" * 5000, r"The blocks 'x{77}\.\.\.' name"),
    ],
    ids=lambda value: value[:20],
)
@pytest.mark.parametrize("node", [PAG, SEG, SLG])
def test_blocks_that_are_not_there(node, text, message):
    with pytest.raises(ValueError, match=message):
        run_node(node, model=tiny.model("flux"), blocks=text)


def test_the_first_block_of_lumina2_cannot_be_skipped():
    with pytest.raises(ValueError, match="double 0 of this model cannot be skipped.*from 1 on"):
        run_node(SLG, model=tiny.model("lumina2"), blocks="all")


def test_core_pag_on_a_transformer_pays_and_does_nothing():
    """Core patches the attention of UNets only; elsewhere its second evaluation is the first again."""
    family = "flux"
    plain = tiny.sample(tiny.model(family), family)
    core = PerturbedAttentionGuidance.execute(tiny.model(family), 50.0)[0]
    ours = run_node(PAG, model=tiny.model(family), scale=50.0)
    counts = {name: probes.count_evaluations(model) for name, model in (("core", core), ("ours", ours))}
    change = {
        name: probes.distance(tiny.sample(model, family), plain) for name, model in (("core", core), ("ours", ours))
    }
    print(f"  change by core {change['core']:.2g} at {counts['core'].total} evaluations, ours {change['ours']:.2g}")
    assert change["core"] < 1e-5  # rounding, times the scale
    assert counts["core"].total == 12
    assert change["ours"] > 1e-3


@pytest.mark.parametrize("name", ["attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch"])
@pytest.mark.parametrize("family", ["unet", "flux", "lumina2"])
def test_every_backend_gives_the_same(family, name, monkeypatch):
    """Also with fewer queries than keys, as the text of a joint block has."""
    import comfy.ldm.modules.attention as attention

    backend = getattr(attention, name)

    def override(_, *args, **kwargs):
        return backend(*args, **kwargs)

    found = []
    for forced in (False, True):
        model = tiny.model(family)
        if forced:
            model.model_options["transformer_options"]["optimized_attention_override"] = override
        found.append(first_step(run_node(PAG, model=model, scale=50.0), family)["denoised"])
    assert probes.distance(*found) < 1e-4


def test_infinite_blur_is_minus_one():
    found = [
        tiny.sample(run_node(SEG, model=tiny.model("unet"), scale=100.0, blur=blur), "unet") for blur in (-1.0, 10000.0)
    ]
    assert torch.equal(*found)
    assert math.isfinite(found[0].abs().max())


def test_easycache_keeps_the_weak_prediction_apart():
    """In a step that it skips, each prediction is the input and its own last change: so the difference between the
    positive and the weak network output stays as it was. (Not on Flux in float32: there EasyCache changes the input in
    place, which the host then takes for x.)"""
    from comfy_extras.nodes_easycache import EasyCacheNode

    family = "unet"
    model = run_node(PAG, model=tiny.model(family), scale=1.0)
    model = EasyCacheNode.execute(model, 1000.0, 0.0, 1.0, False)[0]
    computed = []
    calls = probes.count_evaluations(model)
    handle = model.model.diffusion_model.out.register_forward_hook(lambda *_: computed.append(1))
    seen, counts = probes.record_predictions(model), []
    try:
        tiny.sample(model, family, steps=8, cfg=1.0, callback=lambda *_: counts.append(len(computed)))
    finally:
        handle.remove()
    skipped = [i for i in range(1, 8) if counts[i] == counts[i - 1]]
    assert skipped
    # Resumed until the cache answers for the first time, and from then on all in one call.
    assert calls.chunks == ([1, 1, 1, 1, 1, *[2] * 6] if reaches_unet_layers() else [2] * 8)
    differences = [(s["denoised"] - s["cond_denoised"]) / s["sigma"].flatten()[0] for s in seen.steps]
    assert all(d.abs().max() > 0 for d in differences)
    for i in skipped:
        assert probes.distance(differences[i], differences[i - 1]) < 1e-3


def test_lazycache_caches_the_guided_prediction():
    from comfy_extras.nodes_easycache import LazyCacheNode

    model = run_node(PAG, model=tiny.model("flux"), scale=3.0)
    never = LazyCacheNode.execute(model, 0.0, 0.0, 1.0, False)[0]
    assert probes.distance(tiny.sample(never, "flux"), tiny.sample(model, "flux")) < 1e-6
    often = LazyCacheNode.execute(model, 1000.0, 0.0, 1.0, False)[0]
    calls = probes.count_evaluations(often)
    assert torch.isfinite(tiny.sample(often, "flux", steps=8)).all()
    assert calls.total < 8 * 3


@pytest.mark.parametrize(("node", "settings"), NODES.values(), ids=NODES)
@pytest.mark.parametrize("family", ["qwen_image", "flux"])
def test_masked_text_is_not_there(family, node, settings):
    """A prompt of seven tokens of which two are masked gives what the five give: in one call for both, and alone."""
    five = tiny.conditioning(family, 1, tokens=5)
    text = torch.cat([five[0][0], tiny.conditioning(family, 2, tokens=2)[0][0]], 1)
    if family == "flux":  # over the whole map
        mask = torch.zeros(1, 7 + 16, 7 + 16)
        mask[:, :, 5:7] = -1e9
        extra = {"attention_mask": mask, "attention_mask_img_shape": (4, 4)}
    else:
        extra = {"attention_mask": torch.tensor([[1, 1, 1, 1, 1, 0, 0]])}
    masked = [[text, {**five[0][1], **extra}]]
    model = run_node(node, model=tiny.model(family), blocks="all", **settings)
    if node is SLG:
        model = run_node(node, model=tiny.model(family), blocks="0", **settings)
    for cfg in (1.0, 3.0):
        options = {"cfg": cfg, "batch": 2, "negative": masked}
        found = first_step(model, family, positive=masked, **options)["denoised"]
        options["negative"] = five
        wanted = first_step(model, family, positive=five, **options)["denoised"]
        assert probes.distance(found, wanted) < 1e-4
        whole_prompt = [[text, five[0][1]]]
        options["negative"] = whole_prompt
        assert probes.distance(first_step(model, family, positive=whole_prompt, **options)["denoised"], wanted) > 3e-4


def test_what_cond_left_is_dropped_with_the_evaluation():
    from guidekit.nodes.host.run import current_run

    model, prefixes = run_node(PAG, model=tiny.model("flux")), []

    def post_cfg(args):
        prefixes.append(current_run(args["model_options"]).of(Sharing).prefix)
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(post_cfg)
    tiny.sample(model, "flux", steps=2)
    assert prefixes == [None, None]


@pytest.mark.parametrize("rescale", ["off", "partial", "full"])
@pytest.mark.parametrize("negative", [True, False])
def test_rescaling_is_the_formula_also_without_a_negative(negative, rescale):
    """Where there is none, the host hands over zeros for the prediction that it did not make."""
    model = run_node(PAG, model=tiny.model("flux"), scale=2.0, rescale=rescale)
    weakened = tiny.model("flux")
    replace_self_attention(weakened, choose_blocks(weakened, "double 1", []), probes.DenseIdentity())
    seen = {}
    for name, patcher in (("guided", model), ("weak", weakened)):
        guider = comfy.samplers.CFGGuider(patcher)
        conds = {"positive": tiny.conditioning("flux", 11)}
        guider.inner_set_conds({**conds, "negative": tiny.conditioning("flux", 22)} if negative else conds)
        guider.set_cfg(4.0 if negative else 1.0)
        seen[name] = probes.record_predictions(patcher)
        x, euler = tiny.noise("flux", 2), comfy.samplers.sampler_object("euler")
        guider.sample(x, torch.zeros_like(x), euler, torch.tensor([1.0, 0.0]), disable_pbar=True)
    (step,), (weak_step,) = seen["guided"].steps, seen["weak"].steps
    rows = []
    for i in range(2):
        cond, uncond = step["cond_denoised"][i].double(), step["uncond_denoised"][i].double()
        plain = uncond + 4.0 * (cond - uncond) if negative else cond
        change = 2.0 * (cond - weak_step["cond_denoised"][i].double())
        if rescale == "partial":
            change = change * cond.std() / (cond + change).std()
        result = plain + change
        rows.append(result * cond.std() / result.std() if rescale == "full" else result)
    assert probes.distance(step["denoised"].double(), torch.stack(rows)) < 1e-4


def test_a_host_whose_unets_cannot_be_reached(monkeypatch, caplog):
    """ComfyUI 0.18 runs the layers of a UNet without asking: weak branches are computed whole, and say so; blocks
    cannot be skipped."""
    caplog.set_level(logging.INFO)
    model = tiny.model("unet")
    resumed = first_step(run_node(PAG, model=model), "unet")["denoised"]
    monkeypatch.setattr(blocks, "reaches_unet_layers", lambda: False)
    caplog.clear()
    guided = run_node(PAG, model=model)
    calls = probes.count_evaluations(guided)
    assert probes.distance(first_step(guided, "unet")["denoised"], resumed) < 1e-5
    assert calls.chunks == [3]
    assert caplog.text.count("computed whole") == 1
    with pytest.raises(ValueError, match="cannot skip blocks of a UNet. Use ComfyUI 0.26"):
        run_node(SLG, model=model)


@pytest.mark.parametrize(("family", "kept"), [("flux", 1), ("unet", 4)])
def test_no_more_is_kept_than_is_needed(family, kept, monkeypatch):
    """What one block left in a transformer; in a UNet all skip connections, here those of four input blocks."""
    if family == "unet" and not reaches_unet_layers():
        pytest.skip("this host does not let layers of a UNet be replaced")
    seen, keep = [], Prefix.keep
    monkeypatch.setattr(Prefix, "keep", lambda self, block, *args: (seen.append(block), keep(self, block, *args)))
    first_step(run_node(PAG, model=tiny.model(family), blocks="single 1" if family == "flux" else "middle"), family)
    assert len(seen) == kept


@pytest.mark.parametrize(
    ("depth", "perturbed", "skipped"),
    [(1, [0], [0]), (4, [1], [1, 2]), (9, [1], [3]), (10, [1], [7, 8, 9]), (12, [1], [7, 8, 9])],
)
def test_usual_blocks_of_a_transformer(depth, perturbed, skipped):
    network = {**tiny.FAMILIES["flux"].network, "depth": 0, "depth_single_blocks": depth}
    model = tiny.build(network, "flux")
    assert [block.number for block in usually_perturbed(model)] == perturbed
    assert [block.number for block in usually_skipped(model)] == skipped


def test_usual_block_of_a_unet():
    assert usually_perturbed(tiny.model("unet")) == usually_skipped(tiny.model("unet")) == [("middle", 0)]
    without = {**tiny.FAMILIES["unet"].network, "transformer_depth_middle": -1}
    with pytest.raises(ValueError, match="no attention in its middle block. Name other blocks"):
        usually_perturbed(tiny.build(without))


@pytest.mark.skipif(not hasattr(ModelPatcher, "deepclone_multigpu"), reason="this host has no multi-GPU sampling")
@pytest.mark.parametrize("name", NODES)
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_the_same_on_several_devices(family, name):
    """The host deals the predictions out to two copies of the network, here both on the processor."""
    node, settings = NODES[name]
    model = tiny.model(family)
    model.cached_patcher_init = (tiny.build, (tiny.FAMILIES[family].network, family))
    alone = first_step(run_node(node, model=model, **settings), family)["denoised"]
    second = torch.device("cpu", 0)
    copy = model.deepclone_multigpu(new_load_device=second)
    copy.is_multigpu_base_clone = True
    model.set_additional_models("multigpu", [copy])
    guided = run_node(node, model=model, **settings)
    used = []
    handles = [
        patcher.model.diffusion_model.register_forward_pre_hook(lambda *_, i=i: used.append(i))
        for i, patcher in enumerate((guided, guided.get_additional_models_with_key("multigpu")[0]))
    ]
    try:
        shared = first_step(guided, family)["denoised"]
    finally:
        for handle in handles:
            handle.remove()
    assert set(used) == {0, 1}
    assert probes.distance(shared, alone) < 1e-5
