"""Shared attention in the host: against dense attention on every family, the first image that stays, references that
ride along or are read from a recording."""

import pytest
import torch

from guidekit.benchmarks._nodes import run_node, run_node_all
from guidekit.nodes.host.attention.calls import FIRST
from guidekit.nodes.host.attention.self_attention import replace_self_attention
from guidekit.nodes.host.inversion.trajectory import Trajectory
from guidekit.nodes.host.network.families import self_attention_blocks
from guidekit.nodes.host.network.reference_row import NOISY, RecordedRow
from guidekit.nodes.host.run.fingerprint import describe_model
from guidekit.nodes.negtome import GIVEN as PUSHED_FROM
from guidekit.nodes.negtome import NegToMe
from guidekit.nodes.style_aligned import GIVEN, StyleAligned
from guidekit.tests.host import probes, tiny

EVERY = pytest.mark.parametrize("family", tiny.FAMILIES)
HALF = torch.zeros(1, 8, 8)
HALF[:, :, :4] = 1


def aligned(model, **settings):
    return run_node(StyleAligned, model=model, **settings)


def latent(family, images=1):
    return {"samples": tiny.noise(family, images, seed=60)}


class Dense:
    """One image after the other, with whole matrices of logits."""

    label, idle_reason = "dense", "never"

    def __init__(self, share=0.0, adain=True, visible=None):
        self.share, self.adain, self.visible = share, adain, visible

    def active(self, run):
        return True

    def __call__(self, a):
        out = torch.empty_like(a.q)
        each = len(a.q) // len(a.chunks)
        for row in range(len(a.q)):
            first = row - row % each
            self._row(a, row, None if row == first else first, out)
        return out

    def _row(self, a, row, first, out):
        q, k, v = (t[row].double() for t in (a.q, a.k, a.v))
        mask = torch.zeros(q.shape[1], k.shape[1]).double()
        if a.mask is not None:
            of_row = a.mask[row if len(a.mask) > 1 else 0].expand(-1, *mask.shape)[0]
            mask = mask.masked_fill(~of_row, -torch.inf) if of_row.dtype == torch.bool else mask + of_row
        plain = (q @ k.transpose(-1, -2) * a.scale + mask).softmax(-1) @ v
        out[row] = plain.to(out.dtype)
        if first is None:
            return
        image = a.image
        their_k, their_v = (t[first, :, image].double() for t in (a.k, a.v))
        if self.adain:
            q, k = q.clone(), k.clone()
            for t, other in ((q, a.q[first, :, image].double()), (k, their_k)):
                own = t[:, image]
                spread = ((other.var(1, keepdim=True) + 1e-5) / (own.var(1, keepdim=True) + 1e-5)).sqrt()
                t[:, image] = (own - own.mean(1, keepdim=True)) * spread + other.mean(1, keepdim=True)
        logits = q[:, image] @ torch.cat([k, their_k], 1).transpose(-1, -2) * a.scale
        logits[..., : k.shape[1]] += mask[image]
        logits[..., k.shape[1] :] += self.share
        if self.visible is not None:
            logits[..., k.shape[1] :][..., ~self.visible] = -torch.inf
        out[row, :, image] = (logits.softmax(-1) @ torch.cat([v, their_v], 1)).to(out.dtype)


def densely(model, **settings):
    model = model.clone()
    replace_self_attention(model, self_attention_blocks(model), Dense(**settings), order=FIRST)
    return model


@EVERY
@pytest.mark.parametrize("settings", [{}, {"share": 0.7}, {"adain": False, "share": -1.0}], ids=str)
def test_against_dense_attention(family, settings):
    """Image tokens, whatever the network's layout, its masks and what else is in its sequence."""
    found = tiny.sample(aligned(tiny.model(family), **settings), family, batch=3, steps=2)
    dense = tiny.sample(densely(tiny.model(family), **settings), family, batch=3, steps=2)
    assert not probes.differ(found, dense)
    assert probes.differ(found[1:], tiny.sample(tiny.model(family), family, batch=3, steps=2)[1:])


@EVERY
def test_the_first_image_stays_as_it_is(family):
    plain = tiny.sample(tiny.model(family), family, batch=3)
    for settings in ({}, {"share": 0.7}, {"strength": 0.5}, {"mask": HALF}):
        found = tiny.sample(aligned(tiny.model(family), **settings), family, batch=3)
        assert not probes.differ(found[:1], plain[:1])
        assert all(probes.differ(a, b) for a, b in zip(found[1:], plain[1:]))


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_the_others_do_not_see_each_other(family):
    """Whatever their order, and whether there are more."""
    start = tiny.noise(family, 4)
    model, order = aligned(tiny.model(family)), [0, 3, 1, 2]

    def sample(rows):
        zeros = torch.zeros_like(start[rows])
        return _from(model, family, start[rows], zeros)

    whole, other, fewer = sample([0, 1, 2, 3]), sample(order), sample([0, 2])
    assert not probes.differ(other, whole[order])
    assert not probes.differ(fewer, whole[[0, 2]])


def _from(model, family, noise, zeros):
    import comfy.sample

    prompts = tiny.conditioning(family, 11), tiny.conditioning(family, 22)
    settings = (3, 4.0, "euler", "simple", *prompts, zeros)
    return comfy.sample.sample(model, noise, *settings, seed=3, disable_pbar=True)


@pytest.mark.parametrize("family", ["unet", "wan"])
def test_equal_images_are_what_they_would_be(family):
    """In a UNet, and in Wan, images that are all the reference are it: softmax over everything twice is the same. Where
    a text is in the attention too, the image then counts for more beside it."""
    noise = tiny.noise(family).repeat(3, *[1] * (tiny.noise(family).ndim - 1))
    zeros = torch.zeros_like(noise)
    found = _from(aligned(tiny.model(family)), family, noise, zeros)
    plain = _from(tiny.model(family), family, noise, zeros)
    assert not probes.differ(found, plain)


@EVERY
def test_a_very_small_share_changes_next_to_nothing(family):
    found = tiny.sample(aligned(tiny.model(family), adain=False, share=-10.0), family, batch=2)
    plain = tiny.sample(tiny.model(family), family, batch=2)
    far = tiny.sample(aligned(tiny.model(family), adain=False), family, batch=2)
    assert probes.distance(found, plain) < 0.02 * probes.distance(far, plain) + probes.ROUNDING


@EVERY
def test_only_what_the_mask_shows_is_seen(family):
    grid = {"unet": None}.get(family, (4, 4))
    settings = {"adain": False}
    model = aligned(tiny.model(family), mask=HALF, **settings)
    found = tiny.sample(model, family, batch=2, steps=2)
    assert probes.differ(found, tiny.sample(aligned(tiny.model(family), **settings), family, batch=2, steps=2))
    if grid is None:
        return
    frames = tiny.of(family).latent[1] if len(tiny.of(family).latent) == 4 else 1
    visible = (torch.arange(4) < 2).expand(frames, 4, 4).flatten()
    dense = tiny.sample(densely(tiny.model(family), visible=visible, **settings), family, batch=2, steps=2)
    assert not probes.differ(found, dense)


def test_strength_is_a_share_of_the_result():
    """In one step of one block, where nothing else depends on it."""
    outputs = {}

    class Watch:
        label, idle_reason = "watch", "never"

        def __init__(self, name):
            self.name = name

        def __call__(self, a):
            out = a.attend(a.q, a.k, a.v)
            outputs.setdefault(self.name, out)
            return out

    for strength in (0.0, 0.25, 1.0):
        model = aligned(tiny.model("unet"), strength=strength, blocks="0")
        replace_self_attention(model, self_attention_blocks(model)[:1], Watch(strength))
        tiny.sample(model, "unet", batch=2, steps=1)
    wanted = outputs[0.0] + 0.25 * (outputs[1.0] - outputs[0.0])
    torch.testing.assert_close(outputs[0.25], wanted, rtol=0, atol=1e-6)
    assert probes.differ(outputs[1.0], outputs[0.0])


# References that are given


@EVERY
def test_a_reference_latent_is_seen_at_the_noise_level_of_the_step(family):
    """As the first image of a batch that starts from it would be, which the sampler moves on only afterwards."""
    model = aligned(tiny.model(family), reference=GIVEN, latent=latent(family))
    seen = probes.count_evaluations(model)
    found = tiny.sample(model, family, batch=2)
    assert set(seen.chunks) == {4}
    plain = tiny.sample(tiny.model(family), family, batch=2)
    assert all(probes.differ(a, b) for a, b in zip(found, plain))
    alone = tiny.sample(model, family)
    assert not probes.differ(alone, found[:1])
    other = aligned(tiny.model(family), reference=GIVEN, latent={"samples": -latent(family)["samples"]})
    assert probes.differ(tiny.sample(other, family), alone)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_recorded_reference_is_the_first_image_of_a_batch(family):
    """A trajectory that is that image's own: the others see of it what they would see in one batch."""
    model, states = tiny.model(family), []
    together = tiny.sample(aligned(model), family, batch=3, steps=4)

    def keep(step, denoised, x, total):
        states.append(x[:1].clone())

    tiny.sample(tiny.model(family), family, steps=4, callback=keep)
    import comfy.samplers

    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 4)
    latents = torch.stack([*states, states[-1]])
    shown = model.model.process_latent_out(latents[0])
    state = Trajectory(sigmas, describe_model(model), shown, shown, latents)
    found = aligned(tiny.model(family), reference=GIVEN, latent=state.latent())
    apart = _from_batch(found, family, 4)
    assert not probes.differ(apart, together[1:])


def _from_batch(model, family, steps):
    """The second and third image of the usual batch."""
    import comfy.sample

    noise = tiny.noise(family, 3)[1:]
    prompts = tiny.conditioning(family, 11), tiny.conditioning(family, 22)
    settings = (steps, 4.0, "euler", "simple", *prompts, torch.zeros_like(noise))
    return comfy.sample.sample(model, noise, *settings, seed=3, disable_pbar=True)


def test_a_recording_between_its_levels():
    sigmas, latents = torch.tensor([4.0, 2.0, 1.0]), torch.tensor([40.0, 20.0, 14.0]).reshape(3, 1, 1, 1, 1)
    row = RecordedRow("recorded", latents[:1, 0], NOISY, None, True, sigmas, latents)
    run = type("Run", (), {"notes": {}})()
    x = torch.zeros(2, 1, 1, 1)
    for sigma, wanted in ((4.0, 40.0), (3.0, 30.0), (2.0, 20.0), (1.5, 17.0), (1.0, 14.0), (9.0, 40.0), (0.0, 14.0)):
        assert row._at(run, None, x, torch.tensor([sigma, sigma])).item() == pytest.approx(wanted)


@pytest.mark.parametrize("family", ["unet", "qwen_image"])
def test_several_references(family):
    """Each rides; equal ones are as one, other ones are not."""
    one, two = latent(family)["samples"], tiny.noise(family, seed=70)

    def sample(*samples):
        model = aligned(tiny.model(family), reference=GIVEN, latent={"samples": torch.cat(samples)})
        seen = probes.count_evaluations(model)
        found = tiny.sample(model, family)
        assert set(seen.chunks) == {2 * (1 + len(samples))}
        return found

    assert not probes.differ(sample(one, one), sample(one))
    both = sample(one, two)
    assert probes.differ(both, sample(one))
    assert probes.differ(both, sample(two))
    assert not probes.differ(both, sample(two, one))


def test_each_half_of_cfg_follows_its_own():
    model = aligned(tiny.model("unet"), apply_to="positive only")
    seen, plain = probes.record_predictions(model), tiny.model("unet")
    without = probes.record_predictions(plain)
    tiny.sample(model, "unet", batch=2, steps=1)
    tiny.sample(plain, "unet", batch=2, steps=1)
    [one], [other] = seen.steps, without.steps
    assert not probes.differ(one["uncond_denoised"], other["uncond_denoised"])
    assert probes.differ(one["cond_denoised"], other["cond_denoised"])


# Beside others


def test_the_reference_row_of_another_node_is_not_used():
    settings = {"reference": PUSHED_FROM, "steps": "start to end", "threshold": -1.0, "alpha": 0.0001}
    model = run_node(NegToMe, model=tiny.model("unet"), latent=latent("unet"), **settings)
    found = tiny.sample(aligned(model), "unet", batch=2)
    alone = tiny.sample(aligned(tiny.model("unet")), "unet", batch=2)
    assert probes.distance(found, alone) < 1e-3


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_two_of_them(family):
    """The second one's references are behind the first one's; each by itself does something else."""
    one, two = {"share": 0.5}, {"reference": GIVEN, "latent": latent(family)}
    both = tiny.sample(aligned(aligned(tiny.model(family), **one), **two), family, batch=2)
    for settings in (one, two):
        assert probes.differ(both, tiny.sample(aligned(tiny.model(family), **settings), family, batch=2))
    assert torch.isfinite(both).all()


# Sentences


def test_a_batch_of_one_has_no_other_image(caplog):
    model = aligned(tiny.model("unet"))
    assert torch.equal(tiny.sample(model, "unet"), tiny.sample(tiny.model("unet"), "unet"))
    assert "a batch of one image has no other to follow. Raise batch_size, or" in caplog.text


def test_what_it_says_of_a_model():
    _, report = run_node_all(StyleAligned, model=tiny.model("flux"))
    assert "Experimental on this model" in report
    _, report = run_node_all(StyleAligned, model=tiny.model("unet"))
    assert "xperimental" not in report
    _, report = run_node_all(StyleAligned, model=tiny.model("unet"), latent=latent("unet"))
    assert "latent is not used with reference 'first image'" in report
    for count in (1, 2):
        _, report = run_node_all(StyleAligned, model=tiny.model("unet"), mask=torch.ones(count, 8, 8))
        assert ("mask holds 2 masks, of which the first is used." in report) == (count == 2)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"reference": GIVEN}, "The reference is a latent, and none is connected. Connect one, or choose first image"),
        ({"mask": torch.zeros(1, 8, 8)}, "The mask shows nothing of the reference"),
        ({"reference": GIVEN, "latent": {"samples": torch.zeros(9, 4, 8, 8)}}, "holds 9 references.* Give up to 8"),
        ({"reference": GIVEN, "latent": {"samples": torch.ones(1, 7, 8, 8)}}, "latent has shape .*takes .*4 channels"),
        ({"reference": GIVEN, "latent": {"samples": torch.ones(1, 4, 3, 8, 8)}}, "latent has shape"),
        ({"blocks": "99"}, "this model does not have"),
    ],
)
def test_wrong_input_is_answered_by_a_sentence(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        aligned(tiny.model("unet"), **settings)


def test_a_mask_and_tokens_that_another_node_has_merged():
    from comfy_extras.nodes_hypertile import HyperTile
    from comfy_extras.nodes_tomesd import TomePatchModel

    merging = TomePatchModel.execute(aligned(tiny.model("unet"), mask=HALF), 0.5)[0]
    with pytest.raises(ValueError, match="has a mask, and another node has merged the tokens of block"):
        tiny.sample(merging, "unet", batch=2)
    for other in (
        TomePatchModel.execute(aligned(tiny.model("unet")), 0.5)[0],
        HyperTile.execute(aligned(tiny.model("unet")), 32, 2, 0, False)[0],
    ):
        assert torch.isfinite(tiny.sample(other, "unet", batch=2)).all()
