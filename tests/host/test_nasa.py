"""NASA and NAG in the host: what they are on every family, whom they leave alone, and what prompts they take."""

from importlib import import_module
from types import SimpleNamespace

import comfy.samplers
import comfy.supported_models as supported
import pytest
import torch
from comfy.ldm.modules.attention import optimized_attention

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.host.attention.second_prompt.context import SecondText, before, with_texts
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import GIVEN, NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.slg import SLG
from guidekit.samplers.attention.nasa import nag
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.lockstep import Lockstep

FAMILIES = ("unet", "sd3", "flux", "chroma", "hunyuan_video", "wan", "qwen_image", "lumina2")


def to_text(queries, keys):
    """Whether Wan's attention is to the text: neither to the video itself nor to the tokens of an image."""
    return keys not in (queries, IMAGE_TOKENS)


IMAGE_TOKENS = 5
ABOUT = {
    "lumina2": {"refines": True},
    "hunyuan_video": {"refines": True, "image": 32},
    "wan": {"cross": to_text},
}
# Networks of these families that place or pad their text in another way.
VARIANTS = {
    "sdxl-like": ("unet", {"transformer_depth": [2, 1], "transformer_depth_output": [2, 1, 1, 2]}, {}),
    "sd3.5": ("sd3", {"x_block_self_attn_layers": [0]}, {}),
    "flux2-like": ("flux", {"txt_ids_dims": [0]}, {}),
    "z-image": ("lumina2", {"pad_tokens_multiple": 8}, {"refines": True}),
    "z-image-padded": ("lumina2", {"pad_tokens_multiple": 32}, {"refines": True, "padding": 16}),
}


def lockstep(family, tokens=7, **about):
    """What `steered` should be, of two calls side by side."""
    prompt = tiny.conditioning(family, 33, tokens)
    return Lockstep(prompt, lambda p, n: p - 0.4 * n, text_share=True, **{**ABOUT.get(family, {}), **about})


def steered(model, family, tokens=7, **settings):
    return run_node(
        NASA,
        model=model,
        **{"negative": tiny.conditioning(family, 33, tokens), "method": "NASA", "nasa_alpha": 0.4, **settings},
    )


def one_step(model, family, **options):
    return tiny.sample(model, family, **{"cfg": 1.0, "steps": 1, **options})


@pytest.mark.parametrize("tokens", [4, 7, 12])
@pytest.mark.parametrize("family", FAMILIES)
def test_is_two_texts_under_one_image(family, tokens):
    """Whatever the length of the two prompts."""
    wanted = lockstep(family, tokens).on(tiny.model(family))
    found = one_step(steered(tiny.model(family), family, tokens), family, steps=2, batch=2)
    assert probes.distance(found, one_step(wanted, family, steps=2, batch=2)) < 2e-6
    assert probes.distance(found, one_step(tiny.model(family), family, steps=2, batch=2)) > 1e-4


@pytest.mark.parametrize("tokens", [4, 12])
@pytest.mark.parametrize("name", VARIANTS)
def test_is_two_texts_under_one_image_in_relatives(name, tokens):
    family, settings, about = VARIANTS[name]
    model = tiny.build({**tiny.FAMILIES[family].network, **settings}, family)
    wanted = lockstep(family, tokens, **about).on(model)
    found = one_step(steered(model, family, tokens), family)
    assert probes.distance(found, one_step(wanted, family)) < 2e-6
    assert probes.distance(found, one_step(model, family)) > 1e-4


def with_image(prompt, tokens=IMAGE_TOKENS):
    """As Wan's nodes for image to video make it of a CLIP vision output."""
    seen = SimpleNamespace(penultimate_hidden_states=torch.randn(1, tokens, 1280, generator=generator(71)))
    return [[text, {**options, "clip_vision_output": seen}] for text, options in prompt]


def generator(seed):
    return torch.Generator().manual_seed(seed)


def wan(config, **settings):
    return tiny.build({**tiny.FAMILIES["wan"].network, **settings}, "wan", config=config)


@pytest.mark.parametrize("tokens", [4, 12])
@pytest.mark.parametrize("image", [True, False])
def test_wan_from_an_image(image, tokens):
    """Image tokens have an attention of their own, which is left alone; where there are none, it is to the text."""
    model = wan(supported.WAN21_I2V, model_type="i2v", in_dim=36)
    positive = tiny.conditioning("wan", 11)
    positive = with_image(positive) if image else positive
    found = one_step(steered(model, "wan", tokens), "wan", positive=positive)
    assert probes.distance(found, one_step(lockstep("wan", tokens).on(model), "wan", positive=positive)) < 2e-6
    assert probes.distance(found, one_step(model, "wan", positive=positive)) > 1e-4


@pytest.mark.parametrize("tokens", [4, 12])
def test_wan_s_blocks_of_a_control_video_have_it_too(tokens):
    model = wan(supported.WAN21_Vace, model_type="vace", vace_layers=2, vace_in_dim=96)
    found = one_step(steered(model, "wan", tokens), "wan")
    assert probes.distance(found, one_step(lockstep("wan", tokens).on(model), "wan")) < 2e-6
    assert probes.distance(found, one_step(model, "wan")) > 1e-4


def test_wan_s_reference_image_keeps_its_own_attention():
    model = wan(supported.WAN21_T2V, in_dim_ref_conv=16)
    positive = tiny.conditioning("wan", 11)
    positive[0][1]["reference_latents"] = [tiny.noise("wan", seed=70)[:, :, :1]]
    outs = [one_step(m, "wan", positive=positive) for m in (steered(model, "wan", 6), model)]
    assert probes.distance(*outs) > 1e-4
    behind = lockstep("wan", 6, front=16)
    assert probes.distance(outs[0], one_step(behind.on(model), "wan", positive=positive)) < 2e-6


class Flux2(supported.Flux2):
    """With the latents of the first one."""

    latent_format = supported.Flux.latent_format
    network = {
        "image_model": "flux2",
        "patch_size": 1,
        "axes_dim": [4, 4, 4, 4],
        "theta": 2000,
        "global_modulation": True,
        "mlp_silu_act": True,
        "qkv_bias": False,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
        "vec_in_dim": None,
    }


@pytest.mark.parametrize("references", [0, 1])
@pytest.mark.parametrize("tokens", [4, 600])
def test_flux_2(tokens, references):
    """Texts are padded in front; reference images stand behind the image."""
    model = tiny.build({**tiny.FAMILIES["flux"].network, **Flux2.network}, "flux", config=Flux2)
    positive = tiny.conditioning("flux", 11)
    positive[0][1]["reference_latents"] = [tiny.noise("flux", seed=70)] * references
    found = one_step(steered(model, "flux", tokens), "flux", positive=positive)
    wanted = lockstep("flux", tokens, image=64, padding=64 * references).on(model)
    assert probes.distance(found, one_step(wanted, "flux", positive=positive)) < 2e-6
    assert probes.distance(found, one_step(model, "flux", positive=positive)) > 1e-4


class Hunyuan15(supported.HunyuanVideo15):
    """With the latents of the first one."""

    latent_format = supported.HunyuanVideo.latent_format
    network = {"in_channels": 33, "vision_in_dim": 9, "use_cond_type_embedding": True, "byt5": True}


def hunyuan(config=supported.HunyuanVideo, **settings):
    return tiny.build({**tiny.FAMILIES["hunyuan_video"].network, **settings}, "hunyuan_video", config=config)


@pytest.mark.parametrize("tokens", [4, 12])
@pytest.mark.parametrize("vision", [0, 5])
@pytest.mark.parametrize("quoted", [0, 3])
def test_hunyuan_video_1_5(tokens, vision, quoted):
    """Image tokens and those of quoted text before the prompt's own, which a kind marks."""
    model = hunyuan(Hunyuan15, **Hunyuan15.network)
    positive = tiny.conditioning("hunyuan_video", 11)
    if vision:
        seen = torch.randn(1, vision, 9, generator=generator(72))
        positive[0][1]["clip_vision_output"] = SimpleNamespace(last_hidden_state=seen)
    if quoted:
        positive[0][1]["conditioning_byt5small"] = torch.randn(1, quoted, 1472, generator=generator(73))
    found = one_step(steered(model, "hunyuan_video", tokens), "hunyuan_video", positive=positive)
    wanted = lockstep("hunyuan_video", tokens, front=vision).on(model)
    assert probes.distance(found, one_step(wanted, "hunyuan_video", positive=positive)) < 2e-6
    assert probes.distance(found, one_step(model, "hunyuan_video", positive=positive)) > 1e-4


@pytest.mark.parametrize("tokens", [4, 12])
def test_hunyuan_video_with_a_reference_frame(tokens):
    """Between text and video: both texts see it, and it sees the positive's."""
    model, positive = hunyuan(), tiny.conditioning("hunyuan_video", 11)
    positive[0][1]["ref_latent"] = tiny.noise("hunyuan_video", seed=70)[:, :, :1]
    found = one_step(steered(model, "hunyuan_video", tokens), "hunyuan_video", positive=positive)
    wanted = lockstep("hunyuan_video", tokens, between=16).on(model)
    assert probes.distance(found, one_step(wanted, "hunyuan_video", positive=positive)) < 2e-6
    assert probes.distance(found, one_step(model, "hunyuan_video", positive=positive)) > 1e-4


def test_hunyuan_video_from_a_first_frame():
    """Whose tokens are modulated by another time, counted from the beginning of the sequence in single blocks."""
    model, positive = hunyuan(), tiny.conditioning("hunyuan_video", 11)
    positive[0][1]["guiding_frame_index"] = 0
    found = one_step(steered(model, "hunyuan_video"), "hunyuan_video", positive=positive)
    wanted = lockstep("hunyuan_video").on(model)
    assert probes.distance(found, one_step(wanted, "hunyuan_video", positive=positive)) < 2e-6
    assert probes.distance(found, one_step(steered(model, "hunyuan_video"), "hunyuan_video")) > 1e-4


@pytest.mark.parametrize("kind", [torch.long, torch.float])
@pytest.mark.parametrize(("positive", "negative"), [(True, False), (False, True), (True, True)])
def test_masks_of_hunyuan_video_s_prompts(positive, negative, kind):
    """The mask of a prompt is for its own tokens, in the refiner too. Padding makes the mean of the tokens another one
    all the same."""
    prompts = [tiny.conditioning("hunyuan_video", seed) for seed in (11, 33)]
    padded = [masked(p, 7) if wanted else p for p, wanted in zip(prompts, (positive, negative))]
    if kind == torch.float:
        for prompt in padded:
            if "attention_mask" in prompt[0][1]:
                prompt[0][1]["attention_mask"] = (prompt[0][1]["attention_mask"] - 1) * 1e4
    plain = [[[prompt[0][0], {**prompt[0][1], "attention_mask": None}]] for prompt in padded]
    steps = []
    for pos, neg in (padded, plain):
        wanted = Lockstep(neg, lambda p, n: p - 0.4 * n, text_share=True, **ABOUT["hunyuan_video"])
        model = steered(tiny.model("hunyuan_video"), "hunyuan_video", negative=neg)
        steps.append(one_step(model, "hunyuan_video", positive=pos))
        expected = one_step(wanted.on(tiny.model("hunyuan_video")), "hunyuan_video", positive=pos)
        assert probes.distance(steps[-1], expected) < 2e-6
    assert probes.distance(*steps) > 1e-5


def test_wan_with_a_text_that_another_node_makes_longer_inside():
    def longer(args, extra):
        return extra["original_block"]({**args, "txt": torch.cat([args["txt"], args["txt"][:, :2]], 1)})

    model = steered(tiny.model("wan"), "wan")
    model.set_model_patch_replace(longer, "dit", "double_block", 1)
    with pytest.raises(ValueError, match="finds 16 text tokens .*, instead of 14"):
        one_step(model, "wan")


@pytest.mark.parametrize("family", FAMILIES)
def test_method_nag(family):
    settings = {"method": "NAG", "nag_scale": 4.0, "nag_tau": 1.5, "nag_alpha": 0.5}
    found = one_step(steered(tiny.model(family), family, **settings), family)
    lockstep = Lockstep(tiny.conditioning(family, 33), lambda p, n: nag(p, n, 4.0, 1.5, 0.5), **ABOUT.get(family, {}))
    assert probes.distance(found, one_step(lockstep.on(tiny.model(family)), family)) < 1e-5
    # The same text on both sides pushes nowhere.
    same = steered(tiny.model(family), family, negative=tiny.conditioning(family, 11), **settings)
    assert probes.distance(one_step(same, family), one_step(tiny.model(family), family)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_in_some_blocks_only(family):
    """In the others the texts stay apart."""
    model = tiny.model(family)
    blocks = {"unet": ("middle", ("middle", 0)), "flux": ("single 1", ("single", 1)), "chroma": ("2", ("single", 0))}
    text, block = blocks.get(family, ("1", ("double", 1)))
    calls = iter(range(1000))

    def there(where):  # SD3's blocks do not say their number; each has a call on either side
        return next(calls) // 2 % 2 == 1 if family == "sd3" else where == block

    found = one_step(steered(model, family, blocks=text), family)
    assert probes.distance(found, one_step(lockstep(family, where=there).on(model), family)) < 2e-6
    assert probes.distance(found, one_step(steered(model, family), family)) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("batch", [1, 3])
def test_the_negative_of_cfg_is_left_alone(family, batch):
    """The positive is what it is at cfg 1, and costs no evaluation more."""
    model, plain, alone = (steered(tiny.model(family), family), tiny.model(family), steered(tiny.model(family), family))
    steps = []
    for m, cfg in ((model, 4.0), (plain, 4.0), (alone, 1.0)):
        calls, seen = probes.count_evaluations(m), probes.record_predictions(m)
        one_step(m, family, cfg=cfg, batch=batch)
        steps.append(seen.steps[0])
        assert calls.total == (1 if cfg == 1 else 2)
    with_cfg, without, at_cfg_1 = steps
    assert probes.distance(with_cfg["uncond_denoised"], without["uncond_denoised"]) < 1e-6
    assert probes.distance(with_cfg["cond_denoised"], at_cfg_1["cond_denoised"]) < 1e-6
    assert probes.distance(with_cfg["cond_denoised"], without["cond_denoised"]) > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_every_positive_with_its_area(family):
    """Several prompts, each for its part of the image and of another length."""
    left, right = ({"area": (8, 4, 0, x), "strength": 1.0} for x in (0, 4))
    prompts = [(tiny.conditioning(family, 11, 5)[0], left), (tiny.conditioning(family, 12, 9)[0], right)]
    model, plain = steered(tiny.model(family), family), tiny.model(family)
    whole = [[tokens, {**options, **area}] for (tokens, options), area in prompts]
    both, without = (one_step(m, family, positive=whole) for m in (model, plain))
    for i in range(2):
        half = slice(4 * i, 4 * i + 4)
        single = one_step(model, family, positive=[whole[i]])
        assert probes.distance(both[..., half], single[..., half]) < 1e-5
        assert probes.distance(both[..., half], without[..., half]) > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_prompts(family):
    """A negative for each image, with another reference riding along."""
    (one, extra), (two, _) = (tiny.conditioning(family, seed, 5)[0] for seed in (41, 42))
    latent = {"samples": tiny.noise(family, seed=60)}

    def model(negative):
        rider = run_node(NegToMe, model=tiny.model(family), reference=GIVEN, latent=latent, threshold=-1.0, alpha=0.01)
        return steered(rider, family, negative=negative)

    both = one_step(model([[torch.cat([one, two]), extra]]), family, batch=2)
    first, second = (one_step(model([[tokens, extra]]), family, batch=2) for tokens in (one, two))
    assert probes.distance(both[0], first[0]) < 1e-5
    # What rides along has the first one's.
    assert probes.distance(both[1], second[1]) < 0.2 * probes.distance(both[1], first[1])


@pytest.mark.parametrize("family", FAMILIES)
def test_several_entries_are_one_text(family):
    """As Conditioning (Concat) makes of them."""
    one, two = (tiny.conditioning(family, seed, 5) for seed in (41, 42))
    joined = [[torch.cat([one[0][0], two[0][0]], 1), one[0][1]]]
    found = one_step(steered(tiny.model(family), family, negative=one + two), family)
    assert probes.distance(found, one_step(steered(tiny.model(family), family, negative=joined), family)) < 1e-6


def masked(prompt, keep, kind=torch.long):
    tokens, options = prompt[0]
    tokens = torch.cat([tokens, 5 * torch.ones_like(tokens)], 1)
    mask = torch.zeros(tokens.shape[:2])
    mask[:, :keep] = 1
    return [[tokens, {**options, "attention_mask": mask.to(kind)}]]


@pytest.mark.parametrize("positive", [False, True])
@pytest.mark.parametrize("negative", [False, True])
def test_masked_tokens_do_not_count(positive, negative):
    """Padding of a prompt is out of the attention that the prompt is in."""
    prompts = [tiny.conditioning("qwen_image", seed) for seed in (11, 33)]
    padded = [masked(p, 7) if wanted else p for p, wanted in zip(prompts, (positive, negative))]
    found, wanted = (
        one_step(steered(tiny.model("qwen_image"), "qwen_image", negative=n), "qwen_image", positive=p)
        for p, n in (padded, prompts)
    )
    assert probes.distance(found, wanted) < 1e-6


@pytest.mark.parametrize("batch", [1, 2])
def test_a_mask_for_the_attention_of_the_positive(batch):
    """As a style model makes one, over text and image: it says nothing of the second text."""
    positive, bias = tiny.conditioning("flux", 11), torch.zeros(7 + 16, 7 + 16)
    bias[7:, 3:7] = -2.0
    positive[0][1] |= {"attention_mask": bias[None], "attention_mask_img_shape": (4, 4)}
    found = one_step(steered(tiny.model("flux"), "flux", 5), "flux", positive=positive, batch=batch)
    wanted = one_step(lockstep("flux", 5).on(tiny.model("flux")), "flux", positive=positive, batch=batch)
    assert probes.distance(found, wanted) < 2e-6
    assert probes.distance(found, one_step(steered(tiny.model("flux"), "flux", 5), "flux", batch=batch)) > 1e-6


def test_two_of_them_add_up():
    for family in FAMILIES:
        first, second = (
            {"negative": tiny.conditioning(family, seed, n), "nasa_alpha": a}
            for seed, n, a in ((41, 5, 0.3), (42, 9, 0.5))
        )
        one = steered(steered(tiny.model(family), family, **first), family, **second)
        other = steered(steered(tiny.model(family), family, **second), family, **first)
        outs = [one_step(m, family) for m in (one, other, steered(tiny.model(family), family, **first))]
        assert probes.distance(outs[0], outs[1]) < 1e-5
        assert probes.distance(outs[0], outs[2]) > 1e-5
        twice = steered(steered(tiny.model(family), family, nasa_alpha=0.3), family, nasa_alpha=0.1)
        assert probes.distance(one_step(twice, family), one_step(steered(tiny.model(family), family), family)) < 1e-6


@pytest.mark.parametrize("family", ["unet", "flux", "hunyuan_video", "wan", "lumina2"])
@pytest.mark.parametrize("node", [PAG, Autoguidance])
def test_weak_branches_have_it_too(family, node):
    """Or their guidance would push along it. The order of the nodes does not matter."""
    settings = {"scale": 2.0, "blocks": "1"} if node is PAG else {"scale": 2.0, "weakness": "token noise"}
    one = run_node(node, model=steered(tiny.model(family), family), **settings)
    other = steered(run_node(node, model=tiny.model(family), **settings), family)
    outs = [one_step(m, family, batch=2) for m in (one, other)]
    assert probes.distance(outs[0], outs[1]) < 1e-5
    seen = probes.record_predictions(one)
    one_step(one, family)
    guidance = seen.steps[0]["denoised"] - seen.steps[0]["cond_denoised"]
    plain = run_node(node, model=tiny.model(family), **settings)
    seen = probes.record_predictions(plain)
    one_step(plain, family)
    alone = seen.steps[0]["denoised"] - seen.steps[0]["cond_denoised"]
    assert 0.2 < guidance.norm() / alone.norm() < 5


def test_a_branch_that_skips_a_layer_skips_it_for_the_text_too():
    """In Lumina2 the text goes beside the layers that the host runs."""
    long, short = (tiny.build({**tiny.FAMILIES["lumina2"].network, "n_layers": n}, "lumina2") for n in (3, 2))
    weights = long.model.diffusion_model.state_dict()
    weights |= {name.replace("layers.2.", "layers.1."): w for name, w in weights.items() if "layers.2." in name}
    short.model.diffusion_model.load_state_dict(weights, strict=False)

    whole_run = {"scale": 1.0, "blocks": "1", "start_percent": 0.0, "end_percent": 1.0}
    model = steered(run_node(SLG, model=long, **whole_run), "lumina2")
    seen = probes.record_predictions(model)
    one_step(model, "lumina2")
    weak = 2 * seen.steps[0]["cond_denoised"] - seen.steps[0]["denoised"]
    short = steered(short, "lumina2")
    whole = probes.record_predictions(short)
    one_step(short, "lumina2")
    assert probes.distance(weak, whole.steps[0]["denoised"]) < 1e-5
    assert probes.distance(weak, seen.steps[0]["cond_denoised"]) > 1e-4


def test_around_what_replaced_the_layer_before_and_after():
    """Another pack's attention (IP-Adapter) is kept, for the positive, in either order; it does not see the text."""
    seen = []

    def doubled(q, k, v, options):
        seen.append(k.shape[1])
        return 2 * optimized_attention(q, k, v, options["n_heads"])

    def replaced(model):
        model = model.clone()
        model.set_model_patch_replace(doubled, "attn2", "middle", 0)
        model.set_model_patch_replace(doubled, "attn2", "input", 1, 0)
        return model

    outs = [
        one_step(m, "unet")
        for m in (replaced(steered(tiny.model("unet"), "unet")), steered(replaced(tiny.model("unet")), "unet"))
    ]
    assert torch.equal(*outs)
    assert seen == [7] * 4  # two runs, two layers
    assert probes.distance(outs[0], one_step(steered(tiny.model("unet"), "unet"), "unet")) > 1e-5
    assert probes.distance(outs[0], one_step(replaced(tiny.model("unet")), "unet")) > 1e-5


def test_behind_a_context_that_another_node_made_longer():
    def longer(n, context, value, options):
        more = torch.ones_like(context[:, :3])
        return n, torch.cat([context, more], 1), torch.cat([value, more], 1)

    outs = []
    for first in (True, False):
        model = tiny.model("unet").clone()
        if first:
            model.set_model_attn2_patch(longer)
        model = steered(model, "unet")
        if not first:
            model.set_model_attn2_patch(longer)
        outs.append(one_step(model, "unet"))
    assert torch.equal(*outs)
    assert probes.distance(outs[0], one_step(steered(tiny.model("unet"), "unet"), "unet")) > 1e-5


@pytest.mark.parametrize("family", FAMILIES)
def test_steps_outside_its_range_are_untouched(family):
    model, plain = steered(tiny.model(family), family, end_percent=0.5), tiny.model(family)
    steps = []
    for m in (model, plain):
        seen = probes.record_predictions(m)
        one_step(m, family, steps=4)
        steps.append(seen.steps)
    sampling = plain.get_model_object("model_sampling")
    for ours, theirs in zip(*steps):
        inside = not probes.at_or_below(ours, sampling.percent_to_sigma(0.5))
        # From the first steered step on, x is another one.
        if inside:
            assert probes.distance(ours["denoised"], theirs["denoised"]) > 1e-5
    late = steered(tiny.model(family), family, start_percent=0.5)
    seen = probes.record_predictions(late)
    one_step(late, family, steps=4)
    before = [i for i, s in enumerate(seen.steps) if not probes.at_or_below(s, sampling.percent_to_sigma(0.5))]
    assert before
    assert all(torch.equal(seen.steps[i]["denoised"], steps[1][i]["denoised"]) for i in before)


class _ThreePrompts(comfy.samplers.CFGGuider):
    """A guider that evaluates its prompts in an order of its own, as DualCFGGuider does."""

    def set_conds(self, positive, middle, negative):
        self.inner_set_conds({"positive": positive, "middle": middle, "negative": negative})

    def predict_noise(self, x, timestep, model_options=None, seed=None):
        order = [self.conds[name] for name in ("negative", "middle", "positive")]
        self.seen = comfy.samplers.calc_cond_batch(self.inner_model, order, x, timestep, model_options)
        return self.seen[2]


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_guider_with_three_prompts(family):
    """The negative is known by its name, not by its place."""
    seen = []
    for model in (steered(tiny.model(family), family), tiny.model(family)):
        guider = _ThreePrompts(model)
        guider.set_conds(*(tiny.conditioning(family, seed) for seed in (11, 44, 22)))
        noise = tiny.noise(family)
        sigmas = torch.tensor([1.0, 0.0])
        guider.sample(noise, torch.zeros_like(noise), comfy.samplers.sampler_object("euler"), sigmas)
        seen.append(guider.seen)
    distances = [probes.distance(a, b) for a, b in zip(*seen)]
    assert distances[0] < 1e-6
    assert min(distances[1:]) > 1e-5


def test_apg_sees_the_steered_positive():
    model = run_node(APG, model=steered(tiny.model("unet"), "unet"))
    plain = run_node(APG, model=tiny.model("unet"))
    outs = [tiny.sample(m, "unet", steps=2) for m in (model, plain)]
    assert probes.distance(*outs) > 1e-5


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_core_s_node_evaluates_the_negative_for_it(family):
    core = import_module("comfy_extras.nodes_nag").NAGuidance.execute(tiny.model(family), 5.0, 0.25, 2.5)[0]
    for model, per_step in ((core, 2), (steered(tiny.model(family), family, method="NAG"), 1)):
        calls = probes.count_evaluations(model)
        one_step(model, family, steps=4)
        assert calls.total == 4 * per_step


BAD = [
    ([], "holds no prompt"),
    ([[None, {}]], "no text"),
    ([[torch.zeros(1, 4, 12), {"area": (8, 8, 0, 0)}]], "an area"),
    ([[torch.zeros(1, 4, 12), {"mask": torch.ones(1, 8, 8)}]], "a mask"),
    ([[torch.zeros(1, 4, 12), {"start_percent": 0.2, "end_percent": 1.0}]], "a time range"),
    ([[torch.zeros(1, 4, 12), {"hooks": SimpleNamespace()}]], "hooks"),
]


@pytest.mark.parametrize(("prompt", "words"), BAD, ids=[words for _, words in BAD])
def test_prompts_that_are_not_text(prompt, words):
    pooled = tiny.conditioning("flux", 33)[0][1]
    with pytest.raises(ValueError, match=words):
        steered(tiny.model("flux"), "flux", negative=[[tokens, {**pooled, **extra}] for tokens, extra in prompt])


@pytest.mark.parametrize("family", FAMILIES)
def test_a_prompt_of_another_text_encoder(family):
    other = [[torch.zeros(1, 4, 5), tiny.conditioning(family, 33)[0][1]]]
    model = steered(tiny.model(family), family, negative=other)
    with pytest.raises(ValueError, match="5 channels per token, and the positive prompt"):
        one_step(model, family)


def test_the_families_are_all_that_there_are():
    assert set(FAMILIES) == set(tiny.FAMILIES)


def test_models_that_it_cannot_work_on():
    model = tiny.build(
        {**tiny.FAMILIES["flux"].network, "guidance_embed": False, "vec_in_dim": None, "txt_ids_dims": [1, 2]},
        "flux",
        config=supported.LongCatImage,
    )
    known = "UNet, SD3, Chroma, Flux, HunyuanVideo, Wan, Qwen-Image, Lumina2 and Z-Image"
    with pytest.raises(ValueError, match=f"cannot put a second text into LongCatImage. It works on {known}"):
        steered(model, "flux")


@pytest.mark.skipif(not hasattr(supported, "WAN21_CausalAR_T2V"), reason="newer hosts have it")
def test_wan_that_keeps_the_text_for_other_steps():
    model = wan(supported.WAN21_CausalAR_T2V, causal_ar=True)
    with pytest.raises(ValueError, match="cannot put a second text into WAN21_CausalAR"):
        steered(model, "wan")


def test_reference_images_of_z_image():
    positive = tiny.conditioning("lumina2", 11)
    positive[0][1]["reference_latents"] = [tiny.noise("lumina2")]
    with pytest.raises(ValueError, match="together with reference images"):
        one_step(steered(tiny.model("lumina2"), "lumina2"), "lumina2", positive=positive)


@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_reference_images_keep_their_own_attention(family):
    """Behind the image, in Flux and Qwen-Image: only the image is steered."""
    positive = tiny.conditioning(family, 11)
    positive[0][1]["reference_latents"] = [tiny.noise(family, seed=70)]
    found = one_step(steered(tiny.model(family), family, 5), family, positive=positive)
    assert (
        probes.distance(
            found, one_step(lockstep(family, 5, padding=16).on(tiny.model(family)), family, positive=positive)
        )
        < 2e-6
    )
    assert probes.distance(found, one_step(tiny.model(family), family, positive=positive)) > 1e-5


def test_texts_are_joined_with_a_context_once_in_a_call():
    text = SecondText("technique", torch.ones(1, 2, 3), None)
    options = with_texts({"cond_or_uncond": [0]}, (text,))
    context, other = torch.zeros(1, 4, 3), torch.full((1, 4, 3), 2.0)
    joined = before([text], context, options)
    assert torch.equal(joined, torch.cat([text.tokens, context], 1))
    assert before([text], context, options) is joined
    assert torch.equal(before([text], other, options), torch.cat([text.tokens, other], 1))
