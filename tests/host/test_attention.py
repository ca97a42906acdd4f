"""Self-attention by role: the right blocks, the right tokens, on every family."""

from dataclasses import dataclass, field

import comfy.sample
import pytest
import torch

from guidekit.nodes.host.attention.calls import Further, SelfAttention
from guidekit.nodes.host.attention.self_attention import replace_self_attention
from guidekit.nodes.host.network.families import Block, family_of, self_attention_blocks
from guidekit.nodes.host.predictions.branches import Branch, add_branch, prediction
from guidekit.nodes.host.predictions.corrections import add_correction
from guidekit.tests.host import probes, tiny

JOINT = [f for f in tiny.FAMILIES if f not in ("unet", "wan")]  # joint attention over text and image
MODULATED_BY_POOLED_TEXT = ["sd3", "flux", "hunyuan_video"]  # there it reaches the image in the very first block
BLOCKS = {
    "unet": [("input", 1), ("input", 3), ("middle", 0), ("output", 0), ("output", 1), ("output", 2), ("output", 3)],
    "sd3": [("double", 0), ("double", 1)],
    "flux": [("double", 0), ("double", 1), ("single", 0), ("single", 1)],
    "chroma": [("double", 0), ("double", 1), ("single", 0), ("single", 1)],
    "hunyuan_video": [("double", 0), ("double", 1), ("single", 0), ("single", 1)],
    "wan": [("double", 0), ("double", 1)],
    "qwen_image": [("double", 0), ("double", 1)],
    "lumina2": [("double", 0), ("double", 1)],
}


@dataclass(eq=False)
class Spy:
    """Attends as the host does and keeps its inputs."""

    seen: list[SelfAttention] = field(default_factory=list)
    label, idle_reason = "spy", "never"

    def __call__(self, a: SelfAttention):
        self.seen.append(a)
        return a.attend(a.q, a.k, a.v)


def patched(family, technique, blocks=None, branch=None):
    model = tiny.model(family)
    replace_self_attention(model, blocks or self_attention_blocks(model), technique, branch)
    return model


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_blocks_are_found(family):
    assert self_attention_blocks(tiny.model(family)) == BLOCKS[family]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_each_block_is_called_once_per_network_call(family):
    spy = Spy()
    tiny.sample(patched(family, spy), family, steps=2)
    assert [a.block for a in spy.seen] == BLOCKS[family] * 2


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_attending_as_before_changes_nothing(family):
    plain = tiny.sample(tiny.model(family), family)
    spied = tiny.sample(patched(family, Spy()), family)
    assert probes.distance(spied, plain) < 1e-5


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_only_the_chosen_block(family):
    for block in BLOCKS[family]:
        spy = Spy()
        tiny.sample(patched(family, spy, [Block(*block)]), family, steps=1)
        assert [a.block for a in spy.seen] == [block]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_grid_covers_the_image_tokens(family):
    spy = Spy()
    tiny.sample(patched(family, spy), family, steps=1)
    for a in spy.seen:
        count = torch.tensor(a.grid).prod().item()
        assert a.image.stop - a.image.start == count
        assert a.image.stop <= a.q.shape[2]
        assert a.q.shape == a.k.shape == a.v.shape


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_image_tokens_are_image_tokens(family):
    """In the first block, keys and values of image tokens depend on the latent only, the others on the text only."""

    def first_block(prompt, latent_seed):
        spy = Spy()
        model = patched(family, spy, [Block(*BLOCKS[family][0])])
        start = tiny.noise(family, seed=latent_seed)
        prompt = tiny.conditioning(family, prompt)
        zeros = torch.zeros_like(start)
        settings = (1, 1.0, "euler", "simple", prompt, prompt, zeros)
        comfy.sample.sample(model, start, *settings, seed=0, disable_pbar=True)
        (a,) = spy.seen
        outside = torch.ones(a.k.shape[2], dtype=torch.bool)
        outside[a.image] = False
        return a.v[:, :, a.image], a.v[:, :, outside]

    def far(a, b):
        return (a - b).abs().amax((0, 1, 3)) > 1e-6

    image, text = first_block(1, 1)
    image_of_other_text, other_text = first_block(2, 1)
    other_image, text_of_other_image = first_block(1, 2)
    if text.shape[2]:
        assert far(text, other_text).all()
        assert (text - text_of_other_image).abs().max() <= 1e-6
    if family not in MODULATED_BY_POOLED_TEXT:
        assert (image - image_of_other_text).abs().max() <= 1e-6
    assert far(image, other_image).all()


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("shape", [(8, 8), (6, 8), (5, 7)])
def test_grids_that_are_not_square(family, shape):
    """Height and width in this order, odd sizes padded up."""
    if family == "hunyuan_video" and shape == (5, 7):
        pytest.skip("the host itself cannot run HunyuanVideo on odd sizes")
    spy = Spy()
    model = patched(family, spy, [Block(*BLOCKS[family][0])])
    start = torch.randn((1, *tiny.FAMILIES[family].latent[:-2], *shape))
    prompt = tiny.conditioning(family, 1)
    settings = (1, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(start))
    comfy.sample.sample(model, start, *settings, seed=0, disable_pbar=True)
    patch = 1 if family == "unet" else 2
    assert spy.seen[0].grid[-2:] == (-(-shape[0] // patch), -(-shape[1] // patch))


@pytest.mark.parametrize("family", JOINT)
def test_text_is_outside_the_image(family):
    spy = Spy()
    tiny.sample(patched(family, spy), family, steps=1)
    assert all(a.q.shape[2] - (a.image.stop - a.image.start) >= 7 for a in spy.seen)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_identity_changes_the_prediction(family):
    plain = tiny.sample(tiny.model(family), family, steps=2)
    weak = tiny.sample(patched(family, probes.DenseIdentity()), family, steps=2)
    assert probes.distance(weak, plain) > 1e-6
    assert torch.isfinite(weak).all()


@dataclass(frozen=True, eq=False)
class Weak(Branch):
    """cond again, and the correction scale * (cond - weak)."""

    label, idle_reason = "weak", "never"

    def conds(self, run, conds):
        return conds[0]

    def __call__(self, run, args):
        return 2.0 * (args["cond_denoised"] - prediction(run, args, self))


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("cfg", [1.0, 4.0])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_branch_has_its_own_attention(family, cfg, batch):
    """cond and uncond are untouched, and the branch is what the whole network with that attention predicts."""
    branch = Weak()
    model = patched(family, probes.DenseIdentity(), branch=branch)
    add_branch(model, branch)
    add_correction(model, branch)
    seen = probes.record_predictions(model)
    tiny.sample(model, family, cfg=cfg, batch=batch, steps=1)
    (step,) = seen.steps

    plain = tiny.model(family)
    undisturbed = probes.record_predictions(plain)
    tiny.sample(plain, family, cfg=cfg, batch=batch, steps=1)
    assert probes.distance(step["cond_denoised"], undisturbed.steps[0]["cond_denoised"]) < 1e-4

    weak = patched(family, probes.DenseIdentity())
    weakened = probes.record_predictions(weak)
    tiny.sample(weak, family, cfg=1.0, batch=batch, steps=1)
    expected = undisturbed.steps[0]["denoised"] + 2 * (step["cond_denoised"] - weakened.steps[0]["cond_denoised"])
    assert probes.distance(step["denoised"], expected) < 1e-4


def test_techniques_nest():
    """Twice on one block: the later one's attention is the earlier one."""

    @dataclass(eq=False)
    class Add:
        amount: float
        label, idle_reason = "add", "never"

        def __call__(self, a):
            return a.attend(a.q, a.k, a.v) * self.amount

    two = tiny.model("flux")
    block = [Block("single", 0)]
    replace_self_attention(two, block, Add(0.5))
    replace_self_attention(two, block, Add(3.0))
    one = patched("flux", Add(1.5), block)
    assert probes.distance(tiny.sample(two, "flux"), tiny.sample(one, "flux")) < 1e-5


def test_an_override_that_was_there_is_kept():
    calls = []

    def override(backend, *args, **kwargs):
        calls.append(1)
        return backend(*args, **kwargs)

    model = tiny.model("flux")
    model.model_options["transformer_options"]["optimized_attention_override"] = override
    replace_self_attention(model, self_attention_blocks(model), Spy())
    tiny.sample(model, "flux", steps=1, cfg=1.0)
    assert len(calls) == 4


def test_cross_attention_is_not_taken_for_self_attention():
    """Where another node has replaced self-attention, as core's SAG does."""

    def own(q, k, v, options):
        return v

    spy = Spy()
    model = patched("unet", spy)
    model.set_model_attn1_replace(own, "middle", 0)
    tiny.sample(model, "unet", steps=1)
    assert [a.block for a in spy.seen] == [block for block in BLOCKS["unet"] if block[0] != "middle"]


def test_a_replaced_sd3_block_stays_replaced():
    calls = []

    def block(args, extra):
        calls.append(1)
        return extra["original_block"](args)

    model = tiny.model("sd3")
    model.set_model_patch_replace(block, "dit", "double_block", 1)
    spy = Spy()
    replace_self_attention(model, self_attention_blocks(model), spy)
    tiny.sample(model, "sd3", steps=1)
    assert len(calls) == 1
    assert len(spy.seen) == 2


@pytest.mark.parametrize("name", ["attention_basic", "attention_split", "attention_sub_quad", "attention_pytorch"])
@pytest.mark.parametrize("family", ["unet", "flux", "wan", "lumina2"])
def test_every_backend(family, name, monkeypatch):
    """Whatever attention the host has chosen, and whichever layout it was called with."""
    import comfy.ldm.modules.attention as attention

    backend, plain = getattr(attention, name), tiny.sample(tiny.model(family), family)

    class Backend:
        label, idle_reason = "backend", "never"

        def __call__(self, a):
            rows = backend(a.q, a.k, a.v, a.q.shape[1], skip_reshape=True, skip_output_reshape=True)
            assert rows.shape == a.q.shape
            return rows

    assert probes.distance(tiny.sample(patched(family, Backend()), family), plain) < 1e-4


def test_a_model_that_cannot_be_reached_is_refused():
    class Unknown(torch.nn.Module):
        pass

    model = tiny.model("flux")
    model.add_object_patch("diffusion_model", Unknown())
    with pytest.raises(ValueError, match="Unknown.*UNet, SD3, Chroma, Flux"):
        family_of(model)


def test_a_block_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="no self-attention block double 9.*double 0, double 1, single 0"):
        patched("flux", Spy(), [Block("double", 9)])


# Further keys


@dataclass(eq=False)
class SeesMore:
    """Sees its own first tokens once more, as further keys; `got`: per call, its inputs, its bias and the output."""

    count: int
    got: list[tuple] = field(default_factory=list)
    label, idle_reason = "sees more", "never"

    def __call__(self, a: SelfAttention):
        keys = a.k.shape[2] + self.count
        bias = torch.linspace(-1.5, 1.0, keys).roll(self.count).expand(len(a.q), 1, 1, keys)
        k, v = (torch.cat((t, t[:, :, : self.count].flip(1)), 2) for t in (a.k, a.v))
        out = a.attend(a.q, k, v, more=Further(self.count, bias))
        self.got.append((a, k, v, bias, out))
        return out


def dense(a: SelfAttention, k, v, *biases):
    """The call's own mask on its own keys, each bias on the keys that its technique knew of."""
    logits = a.q @ k.mT * a.scale
    if a.mask is not None:
        mask = a.mask.expand(*a.mask.shape[:2], *logits.shape[2:3], a.mask.shape[3])
        known = logits[..., : mask.shape[3]]
        known.masked_fill_(~mask, -torch.inf) if mask.dtype == torch.bool else known.add_(mask)
    for bias in biases:
        logits[..., : bias.shape[3]] += bias
    return logits.softmax(-1) @ v


def sees_with_a_mask(family, *techniques):
    model = tiny.model(family)
    for technique in techniques:
        replace_self_attention(model, self_attention_blocks(model), technique)
    prompt = tiny.conditioning(family, 1)
    if family != "unet":
        kept = torch.ones(1, prompt[0][0].shape[1], dtype=torch.long)
        kept[:, -2:] = 0
        prompt = [[prompt[0][0], {**prompt[0][1], "attention_mask": kept}]]
    start = tiny.noise(family)
    comfy.sample.sample(
        model, start, 1, 1.0, "euler", "simple", prompt, prompt, torch.zeros_like(start), seed=0, disable_pbar=True
    )


@pytest.mark.parametrize("family", ["unet", "qwen_image"])
def test_further_keys_are_behind_those_that_the_mask_covers(family):
    sees = SeesMore(3)
    sees_with_a_mask(family, sees)
    assert sees.got
    assert all((a.mask is None) == (family == "unet") for a, *_ in sees.got)
    for a, k, v, bias, out in sees.got:
        assert probes.distance(out, dense(a, k, v, bias)) < 1e-5


@pytest.mark.parametrize("family", ["unet", "qwen_image"])
def test_further_keys_of_two_are_behind_one_another(family):
    one, two = SeesMore(3), SeesMore(2)
    sees_with_a_mask(family, one, two)  # the last one is the outermost
    for (a, k, v, inner, out), (_, _, _, outer, whole) in zip(one.got, two.got, strict=True):
        wanted = dense(a, k, v, inner, outer)
        assert probes.distance(out, wanted) < 1e-5
        assert probes.distance(whole, wanted) < 1e-5
