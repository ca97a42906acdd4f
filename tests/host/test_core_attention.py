"""What works in attention, beside core's nodes that record, replace, merge and cut it; and what rides along, which none
of them may see."""

from dataclasses import dataclass, field

import comfy.samplers
import pytest
import torch
from comfy.ldm.modules.attention import attention_pytorch
from comfy.patcher_extension import CallbacksMP, WrappersMP
from comfy_extras import nodes_easycache, nodes_hypertile, nodes_sag, nodes_tomesd

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import GIVEN, NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.seg import SEG
from guidekit.nodes.slg import SLG
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import ONE_TOKEN, SKIPPABLE

MERGED = "input 1, output 2-3"  # the tiny UNet's layers of 8 x 8 tokens, which ToMe merges and HyperTile cuts


def riding(model, **settings):
    latent = {"samples": tiny.noise(tiny.family_of(model), seed=60)}
    settings = {"steps": "start to end", "threshold": -1.0, "blocks": "all", "latent": latent, **settings}
    return run_node(NegToMe, model=model, reference=GIVEN, **settings)


def sag(model):
    return nodes_sag.SelfAttentionGuidance.execute(model, 0.5, 2.0)[0]


def tome(model):
    return nodes_tomesd.TomePatchModel.execute(model, 0.3)[0]


def hypertile(model):
    return nodes_hypertile.HyperTile.execute(model, 32, 2, 0, False)[0]


def sample(model, family="unet", **options):
    torch.manual_seed(0)  # ToMe draws from it
    return tiny.sample(model, family, **{"steps": 2, **options})


# Every node beside every one of core's

OURS = {
    "pag": lambda m: run_node(PAG, model=m, blocks="all"),
    "seg": lambda m: run_node(SEG, model=m, blur=1.0, blocks="all"),
    "slg": lambda m: run_node(SLG, model=m),
    "autoguidance": lambda m: run_node(Autoguidance, model=m, blocks="all"),
    "autoguidance_noise": lambda m: run_node(Autoguidance, model=m, weakness="token noise", blocks="all"),
    "negtome": riding,
    "negtome_masked": lambda m: riding(m, mask=torch.cat([torch.ones(1, 8, 4), torch.zeros(1, 8, 4)], 2)),
    "negtome_batch": lambda m: run_node(NegToMe, model=m, steps="start to end", threshold=-1.0, blocks="all"),
    "nasa": lambda m: run_node(NASA, model=m, negative=tiny.conditioning("unet", 33, 5), method="NASA"),
    "nag": lambda m: run_node(NASA, model=m, negative=tiny.conditioning("unet", 33, 5), method="NAG"),
}
CORE = {"SAG": sag, "ToMe": tome, "HyperTile": hypertile}
PAIRS = [pair for ours in OURS for core in CORE for pair in ((ours, core), (core, ours))]


@pytest.mark.parametrize("pair", PAIRS, ids="+".join)
def test_acts_in_both_orders(pair, caplog):
    if "slg" in pair and "unet" not in SKIPPABLE:
        pytest.skip("this host does not let layers of a UNet be replaced")
    model, core = tiny.model("unet"), next(name for name in pair if name in CORE)
    alone = sample(CORE[core](model), batch=2)
    for name in pair:
        model = {**OURS, **CORE}[name](model)
    found = sample(model, batch=2)
    assert torch.isfinite(found).all()
    assert probes.distance(found, alone) > 1e-5
    assert "had no effect" not in caplog.text


@pytest.mark.parametrize("core", CORE)
@pytest.mark.parametrize("ours", OURS)
def test_the_order_does_not_matter(ours, core):
    if ours == "slg" and "unet" not in SKIPPABLE:
        pytest.skip("this host does not let layers of a UNet be replaced")
    one, other = OURS[ours](CORE[core](tiny.model("unet"))), CORE[core](OURS[ours](tiny.model("unet")))
    assert probes.distance(sample(one, batch=2), sample(other, batch=2)) < 1e-5


# Beside a node that puts its attention on top before every evaluation


@dataclass(eq=False)
class Kernel:
    """Attention of its own where there is no mask, without a question to what is below."""

    below: object

    def __call__(self, backend, q, k, v, heads, mask=None, **kwargs):
        if mask is not None:
            below = backend if self.below is None else self.below
            arguments = (q, k, v, heads) if self.below is None else (backend, q, k, v, heads)
            return below(*arguments, mask=mask, **kwargs)
        kwargs.pop("transformer_options")
        return attention_pytorch(q, k, v, heads, **kwargs)


@dataclass(eq=False)
class OnTop:
    """As core's Model Sparse Attention, from 0.38 on."""

    installed: set = field(default_factory=set)

    def __call__(self, patcher, timestep, *model_options):  # older hosts give none
        for options in model_options:
            self.install(options["transformer_options"])

    def install(self, options):
        if options.get("optimized_attention_override") not in self.installed:
            kernel = Kernel(options.get("optimized_attention_override"))
            self.installed.add(kernel)
            options["optimized_attention_override"] = kernel


def on_top(model):
    model, node = model.clone(), OnTop()
    node.install(model.model_options["transformer_options"])
    model.add_callback_with_key(CallbacksMP.ON_PREPARE_STATE, "on top", node)
    return model


def texts(family):
    return {"negative": tiny.conditioning(family, 33, 5)}


ATTENTION = {
    "pag": lambda m, family: run_node(PAG, model=m),
    "seg": lambda m, family: run_node(SEG, model=m, blur=1.0),
    "autoguidance": lambda m, family: run_node(Autoguidance, model=m, weakness="token noise", scale=20.0),
    "negtome": lambda m, family: riding(m, mask=ONE_TOKEN),
    "nasa": lambda m, family: run_node(NASA, model=m, method="NASA", **texts(family)),
    "nag": lambda m, family: run_node(NASA, model=m, method="NAG", **texts(family)),
}


@pytest.mark.parametrize("order", ["ours first", "theirs first"])
@pytest.mark.parametrize("family", ["unet", "flux", "wan", "lumina2"])
@pytest.mark.parametrize("name", ATTENTION)
def test_acts_below_an_attention_that_is_put_on_top(name, family, order, caplog):
    """The kernel gives what the host's attention does, so that the result is that of our node alone."""
    model, ours = tiny.model(family), ATTENTION[name]
    model = on_top(ours(model, family)) if order == "ours first" else ours(on_top(model), family)
    found, alone = sample(model, family), sample(ours(tiny.model(family), family), family)
    effect = probes.distance(alone, sample(tiny.model(family), family))
    assert effect > 1e-4
    assert probes.distance(found, alone) < 0.05 * effect
    assert "had no effect" not in caplog.text


# What they do where another node merges tokens, cuts them or replaces their attention


def weak_prediction(model, scale=1.0):
    seen = probes.record_predictions(model)
    sample(model, steps=1, cfg=1.0, batch=2)
    step = seen.steps[0]
    return step["cond_denoised"] - (step["denoised"] - step["cond_denoised"]) / scale


@pytest.mark.parametrize("core", ["ToMe", "HyperTile"])
def test_pag_needs_no_queries(core):
    """Where all the layers that the other node changes are PAG's, its prediction is that without the other node."""
    found = weak_prediction(run_node(PAG, model=CORE[core](tiny.model("unet")), scale=1.0, blocks=MERGED))
    wanted = weak_prediction(run_node(PAG, model=tiny.model("unet"), scale=1.0, blocks=MERGED))
    assert probes.distance(found, wanted) < 1e-5
    merged = sample(CORE[core](tiny.model("unet")), steps=1, cfg=1.0, batch=2)
    assert probes.distance(sample(tiny.model("unet"), steps=1, cfg=1.0, batch=2), merged) > 1e-4


def test_seg_without_end_is_the_same_with_merged_queries():
    """All queries of an image are then one, whoever merges some of them."""
    found = weak_prediction(run_node(SEG, model=tome(tiny.model("unet")), scale=1.0, blur=-1.0, blocks=MERGED))
    wanted = weak_prediction(run_node(SEG, model=tiny.model("unet"), scale=1.0, blur=-1.0, blocks=MERGED))
    assert probes.distance(found, wanted) < 1e-5


def test_seg_vanishes_with_its_blur_beside_tiles():
    """It is the prediction beside the other node that is blurred. (ToMe merges others in every network call.)"""
    model = hypertile(tiny.model("unet"))
    found = sample(run_node(SEG, model=model, blur=0.01, blocks=MERGED), steps=1, cfg=1.0, batch=2)
    assert probes.distance(found, sample(model, steps=1, cfg=1.0, batch=2)) < 1e-5


@pytest.mark.parametrize("node", [PAG, SEG, Autoguidance])
def test_what_is_weakened_beside_sag_is_what_is_weakened_without_it(node):
    """SAG replaces the middle block's attention by one that gives the same, and records it."""
    changes = []
    for apply in (lambda m: m, sag):
        plain, guided = apply(tiny.model("unet")), run_node(node, model=apply(tiny.model("unet")))
        changes.append(sample(guided, steps=1, batch=2) - sample(plain, steps=1, batch=2))
    assert probes.distance(changes[1], changes[0]) < 1e-3
    assert changes[0].abs().max() > 1e-3


# What rides along


@dataclass
class Seen:
    """Rows that a hook of another pack was given, by their place in the host's list."""

    batch: int
    calls: list = field(default_factory=list)

    def add(self, rows: torch.Tensor, options: dict) -> None:
        places = options["cond_or_uncond"]
        assert len(rows) == self.batch * len(places) == self.batch * len(options["uuids"])
        chunks = rows.unflatten(0, (len(places), -1))
        assert len(set(options["uuids"])) == len(places)
        self.calls.append({place: chunk.clone() for place, chunk in zip(places, chunks) if place in (0, 1)})
        pair = ["positive", "negative"]
        assert all(pair[place] for place in places)  # whoever has something for the two of them


def into_unet(model, seen):
    def before(n, context, value, options):
        seen.add(n, options)
        return n, context, value

    def after(out, options):
        seen.add(out, options)
        return out

    def instead(q, k, v, options):
        seen.add(q, options)
        return comfy.ldm.modules.attention.optimized_attention(q, k, v, options["n_heads"])

    model.set_model_attn1_patch(before)
    model.set_model_attn1_output_patch(after)
    model.set_model_attn1_replace(instead, "middle", 0)
    model.set_model_attn2_patch(before)
    model.set_model_attn2_output_patch(after)
    model.set_model_attn2_replace(instead, "middle", 0)


def into_flux(model, seen):
    def before(q, k, v, extra_options, **kwargs):
        seen.add(q, extra_options)
        return {}

    def after(out, options):
        seen.add(out, options)
        return out

    def block(args, extra):
        seen.add(args["img"], args["transformer_options"])
        return extra["original_block"](args)

    model.set_model_attn1_patch(before)
    model.set_model_attn1_output_patch(after)
    model.set_model_patch_replace(block, "dit", "double_block", 0)


def watched(model, seen, family):
    """With a hook of another pack in every place that a family has for them."""

    def override(backend, q, *args, **kwargs):
        seen.add(q, kwargs["transformer_options"])
        return backend(q, *args, **kwargs)

    def network(executor, x, *args, **kwargs):
        options = next(a for a in (*args, *kwargs.values()) if isinstance(a, dict) and "uuids" in a)
        seen.add(x, options)
        return executor(x, *args, **kwargs)

    def call(executor, x, *args, **kwargs):
        seen.add(x, args[-1])
        return executor(x, *args, **kwargs)

    model = model.clone()
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    model.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, "seen", network)
    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "seen", call)
    (into_unet if family == "unet" else into_flux)(model, seen)
    return model


@pytest.mark.parametrize("first", ["ours", "theirs"])
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_rider_is_no_row_of_anybody_s(family, first):
    """Every hook finds as many rows as the options say, and in the rows of the prompts what it finds without it."""
    records = []
    for rides in (False, True):
        seen, model = Seen(batch=2), tiny.model(family)
        # It is matched by nothing: what differs is its presence.
        ride = (lambda m: riding(m, threshold=0.9999999)) if rides else (lambda m: m)
        model = watched(ride(model), seen, family) if first == "ours" else ride(watched(model, seen, family))
        sample(model, family, batch=2, steps=1)
        records.append(seen.calls)
    assert len(records[0]) == len(records[1])
    for without, beside in zip(*records):
        assert without.keys() == beside.keys() == {0, 1}
        for place in (0, 1):
            assert probes.distance(beside[place], without[place]) < 1e-5


@pytest.mark.parametrize("batch", [1, 2, 3])
@pytest.mark.parametrize("order", [(sag, riding), (riding, sag)])
def test_sag_does_not_record_the_rider(batch, order):
    model = tiny.model("unet")
    for apply in order:
        model = apply(model) if apply is sag else riding(model, threshold=0.9999999)
    found, alone = sample(model, batch=batch), sample(sag(tiny.model("unet")), batch=batch)
    assert probes.distance(found, alone) < 1e-5
    assert probes.distance(alone, sample(tiny.model("unet"), batch=batch)) > 1e-3


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_cache_goes_on_when_it_gets_off(family):
    """EasyCache keeps what it knows of each chunk; the rider rides in the first steps only."""
    cached = nodes_easycache.EasyCacheNode.execute(tiny.model(family), 0.5, 0.1, 0.95, False)[0]
    seen = probes.count_evaluations(model := riding(cached, end_percent=0.3))
    result = tiny.sample(model, family, steps=10, batch=2)
    assert torch.isfinite(result).all()
    assert {2, 4} == set(seen.chunks)


@pytest.mark.parametrize("family", ["unet", "flux", "lumina2"])
def test_the_reference_has_the_prompt_of_the_image_that_looks_at_it(family):
    """A batch of prompts: the second image is what it is alone, whatever the first one's prompt."""
    prompts = [tiny.conditioning(family, seed)[0] for seed in (1, 2)]
    extra = {key: torch.cat([p[1][key] for p in prompts]) for key in prompts[0][1]}
    model = riding(tiny.model(family), alpha=0.3)
    together = tiny.sample(model, family, batch=2, steps=1, positive=[[torch.cat([p[0] for p in prompts]), extra]])
    alone = tiny.sample(model, family, batch=2, steps=1, positive=[prompts[1]])
    assert probes.distance(together[1:], alone[1:]) < 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_it_rides_for_those_that_look_at_it(family):
    """One further prediction for each prompt that it acts on, in its steps."""
    for settings, chunks in (({}, [4] * 4), ({"apply_to": "positive only"}, [3] * 4), ({"end_percent": 0.5}, None)):
        seen = probes.count_evaluations(model := riding(tiny.model(family), **settings))
        tiny.sample(model, family, batch=2)
        assert seen.chunks == chunks or chunks is None and sorted(seen.chunks) == [2, 2, 4, 4]
    seen = probes.count_evaluations(model := riding(tiny.model(family)))
    tiny.sample(model, family, cfg=1.0)
    assert seen.chunks == [2] * 4
