"""Where the image tokens are, when other nodes lengthen or shorten the sequence."""

from dataclasses import dataclass, field

import comfy.conds
import comfy.model_base
import comfy.supported_models as supported
import pytest
import torch
from comfy.ldm.lumina.model import NextDiT
from comfy_extras import nodes_flux

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.attention.calls import SelfAttention
from guidekit.nodes.host.attention.self_attention import replace_self_attention
from guidekit.nodes.host.network.families import REFERENCES, family_of, network_of, self_attention_blocks
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.seg import SEG
from guidekit.tests.host import probes, tiny

TEXT, GRID = 7, 16  # tokens; the grid is 4 x 4
FLUX2 = tiny.Tiny(
    supported.Flux2,
    {
        "image_model": "flux2",
        "in_channels": 128,
        "out_channels": 128,
        "hidden_size": 32,
        "num_heads": 2,
        "depth": 2,
        "depth_single_blocks": 2,
        "axes_dim": [4, 4, 4, 4],
        "theta": 2000,
        "mlp_ratio": 3.0,
        "context_in_dim": 12,
        "vec_in_dim": None,
        "guidance_embed": False,
        "global_modulation": True,
        "mlp_silu_act": True,
        "qkv_bias": False,
        "ops_bias": False,
        "default_ref_method": "index",
        "ref_index_scale": 10.0,
        "txt_ids_dims": [3],
        "patch_size": 1,
    },
    (128, 4, 4),
    12,
    8,  # which it does not use; hosts before 0.26 want it all the same
)
TEXT2 = 512  # the host fills Flux 2's text up to this


@pytest.fixture
def flux2(monkeypatch):
    """Flux 2, for which core's cache is."""
    monkeypatch.setitem(tiny.FAMILIES, "flux2", FLUX2)
    return tiny.model("flux2")


@dataclass(eq=False)
class Spy:
    """Attends as the host does and keeps what it saw."""

    seen: list[SelfAttention] = field(default_factory=list)
    label, idle_reason = "spy", "never"

    def __call__(self, a: SelfAttention):
        self.seen.append(a)
        return a.attend(a.q, a.k, a.v)


def spied(model):
    spy = Spy()
    replace_self_attention(model, self_attention_blocks(model), spy)
    return spy


def referring(family, reference):
    """A prompt with a reference image."""
    prompt = tiny.conditioning(family, 11)
    return [[tokens, {**options, "reference_latents": [reference]}] for tokens, options in prompt]


def sample(model, family, **options):
    reference = torch.randn((1, *tiny.FAMILIES[family].latent), generator=torch.Generator().manual_seed(5))
    prompt = referring(family, reference)
    return tiny.sample(model, family, positive=prompt, negative=prompt, cfg=1.0, steps=3, **options)


def cached(model):
    """With core's cache of the references' keys and values: from the second call on they are not in the sequence."""
    return nodes_flux.FluxKVCache.execute(model)[0]


@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_references_are_behind_the_image(family):
    spy = spied(model := tiny.model(family))
    sample(model, family)
    assert {a.q.shape[2] for a in spy.seen} == {TEXT + 2 * GRID}
    assert {(a.image.start, a.image.stop) for a in spy.seen} == {(TEXT, TEXT + GRID)}


@pytest.mark.parametrize("first", ["cache", "ours"])
def test_references_that_a_cache_has_taken_out(first, flux2):
    """The image tokens stay the image tokens."""
    model = flux2
    if first == "cache":
        spy = spied(model := cached(model))
    else:
        spy = spied(model)
        model = cached(model)
    sample(model, "flux2")
    calls = [(a.q.shape[2], a.k.shape[2], a.image.start, a.image.stop) for a in spy.seen]
    blocks = len(self_attention_blocks(model))
    whole, image = TEXT2 + 2 * GRID, (TEXT2, TEXT2 + GRID)
    assert calls[:blocks] == [(whole, whole, *image)] * blocks
    assert calls[blocks:] == [(TEXT2 + GRID, whole, *image)] * 2 * blocks


def naive_negtome(out, options):
    """[rows, tokens, channels]: the second image's image tokens away from the first one's."""
    out = out.clone()
    first, second = out[:, TEXT2 : TEXT2 + GRID]
    unit = torch.nn.functional.normalize(first, dim=-1)
    for i, token in enumerate(second):
        out[1, TEXT2 + i] = token + 3 * (token - first[(unit @ token).argmax()])
    return out


def test_negtome_pushes_image_tokens_beside_the_cache(flux2):
    settings = {"steps": "start to end", "threshold": -1.0, "alpha": 3.0}
    found = sample(run_node(NegToMe, model=cached(flux2), **settings), "flux2", batch=2)
    model = cached(flux2)
    model.set_model_attn1_output_patch(naive_negtome)
    wanted, plain = sample(model, "flux2", batch=2), sample(cached(flux2), "flux2", batch=2)
    change = probes.distance(wanted, plain)
    assert change > 1e-4
    # Rounding decides between tokens that are about equally like one.
    assert probes.distance(found, wanted) < 0.05 * change


def cut(args):
    """A patch that takes a token from the image, as no node of the host does."""
    return {**args, "img": args["img"][:, 1:], "img_ids": args["img_ids"][:, 1:]}


def longer(args):
    """A patch that puts a token behind the image without counting it as a reference."""
    return {
        **args,
        "img": torch.cat([args["img"], args["img"][:, :1]], 1),
        "img_ids": torch.cat([args["img_ids"], args["img_ids"][:, :1]], 1),
    }


@pytest.mark.parametrize("patch", [cut, longer])
@pytest.mark.parametrize("node", [PAG, SEG, NegToMe])
@pytest.mark.parametrize("family", ["flux", "qwen_image"])
def test_a_sequence_that_cannot_be_told_apart(family, node, patch):
    model = tiny.model(family)
    model.set_model_post_input_patch(patch)
    settings = {} if node is NegToMe else {"blocks": "0"}
    with pytest.raises(ValueError, match=rf"cannot tell which of the \d+ tokens .*4 x 4.*{patch.__name__}.*Take one"):
        sample(run_node(node, model=model, **settings), family, batch=2)


def test_a_text_that_another_node_makes_longer():
    """As core's USO style node does: what is before the image is not the image."""

    def style(args):
        more = args["txt"][:, :3]
        ids = args["txt_ids"][:, :3]
        return {**args, "txt": torch.cat([more, args["txt"]], 1), "txt_ids": torch.cat([ids, args["txt_ids"]], 1)}

    spy = spied(model := tiny.model("flux"))
    model.set_model_post_input_patch(style)
    sample(model, "flux")
    assert {(a.image.start, a.image.stop) for a in spy.seen} == {(TEXT + 3, TEXT + 3 + GRID)}


# Wan's references in front of the video


WAN = {
    "SCAIL": (supported.WAN21_SCAIL, {"model_type": "scail", "in_dim": 20}),
    "Fun Control": (supported.WAN21_T2V, {"in_dim_ref_conv": 16}),
    "T2V": (supported.WAN21_T2V, {}),
}


@pytest.mark.parametrize("references", [0, 1, 2])
@pytest.mark.parametrize("kind", WAN)
def test_wans_references_are_in_front(kind, references):
    """Of SCAIL every frame (older hosts: of the last one), of others the last one's image, where they can take it."""
    config, settings = WAN[kind]
    spy = spied(model := tiny.build({**tiny.FAMILIES["wan"].network, **settings}, "wan", config=config))
    given = {"reference_latents": [torch.ones(1, 16, 1, 8, 8)] * references} if references else {}
    prompt = [[tokens, given] for tokens, _ in tiny.conditioning("wan", 11)]
    tiny.sample(model, "wan", positive=prompt, cfg=1.0, steps=1)
    of_scail = references if hasattr(supported, "WAN21_SCAIL2") else min(references, 1)
    in_front = {"SCAIL": of_scail, "Fun Control": min(references, 1), "T2V": 0}[kind] * GRID
    assert {(a.image.start, a.image.stop, a.grid) for a in spy.seen} == {(in_front, in_front + 2 * GRID, (2, 4, 4))}


# Reference frames behind the image, in the manner of NextDiT from host 0.38 on


class _FramedNetwork(NextDiT):
    """One that puts reference frames behind the image's tokens."""

    def _forward(self, *args, ref_frames=(), **kwargs):
        self.frames = ref_frames
        return super()._forward(*args, **kwargs)

    def embed_all(self, x, *args, **kwargs):
        embeds, places, end = super().embed_all(x, *args, **kwargs)
        for frame in self.frames:
            behind, its_places, _ = super().embed_all(frame, *args, **kwargs)
            embeds = (*embeds[:-1], torch.cat([embeds[-1], behind[-1].expand(len(x), -1, -1)], 1))
            places = (*places[:-1], torch.cat([places[-1], its_places[-1]], 1))
        return embeds, places, end


class _FramedModel(comfy.model_base.Lumina2):
    def __init__(self, config, device=None):
        flow = comfy.model_base.ModelType.FLOW
        comfy.model_base.BaseModel.__init__(self, config, flow, device=device, unet_model=_FramedNetwork)

    def extra_conds(self, **kwargs):
        frames = [torch.ones(1, 16, 4, 6), torch.ones(1, 16, 8, 8)]
        return super().extra_conds(**kwargs) | {"ref_frames": comfy.conds.CONDList(frames)}


class _FramedConfig(supported.Lumina2):
    def get_model(self, state_dict, prefix="", device=None):
        return _FramedModel(self, device=device)


FRAMED = 2 * 3 + GRID  # tokens of the two frames


def test_reference_frames_are_behind_the_image():
    model = tiny.build(tiny.FAMILIES["lumina2"].network, "lumina2", config=_FramedConfig)
    spy = spied(model)
    plain = tiny.sample(
        tiny.build(tiny.FAMILIES["lumina2"].network, "lumina2", config=_FramedConfig), "lumina2", steps=1
    )
    assert not probes.differ(tiny.sample(model, "lumina2", steps=1), plain)
    assert {a.q.shape[2] for a in spy.seen} == {TEXT + GRID + FRAMED}
    assert {(a.image.start, a.image.stop) for a in spy.seen} == {(TEXT, TEXT + GRID)}


@pytest.mark.parametrize(
    ("latent", "multiple", "frames", "start", "grid"),
    [
        ((1, 16, 8, 8), None, (), 10, (4, 4)),
        ((1, 16, 8, 8), 32, (), 10, (4, 4)),  # 16 tokens, and 16 of padding
        ((1, 16, 3, 8, 8), None, (), 10, (3, 4, 4)),
        ((1, 16, 3, 8, 8), 32, ((1, 16, 4, 6),), 10, (3, 4, 4)),  # 48 and 6 tokens, and 10 of padding
        ((1, 16, 1, 7, 7), None, ((1, 16, 8, 8), (1, 16, 3, 3)), 10, (1, 4, 4)),  # padded to whole patches, as all are
    ],
)
def test_where_they_are(latent, multiple, frames, start, grid):
    model = tiny.model("lumina2")
    network = network_of(model)
    counts = [torch.Size(grid).numel(), *(-(-h // 2) * -(-w // 2) for *_, h, w in frames)]
    behind = sum(counts) if multiple is None else -(-sum(counts) // multiple) * multiple

    class Padding:
        patch_size, pad_tokens_multiple = network.patch_size, multiple

    layout = family_of(model).layout(Padding, latent, start + behind, {REFERENCES: {"ref_frames": frames}})
    assert (layout.image, layout.grid) == (slice(start, start + counts[0]), grid)
