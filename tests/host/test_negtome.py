"""NegToMe in the host: the right tokens on every family, the reference that rides along, and where it acts."""

from types import SimpleNamespace

import comfy.samplers
import pytest
import torch

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.host.attention.output import AttentionOutput
from guidekit.nodes.host.attention.self_attention import replace_self_attention
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.host.network.families import self_attention_blocks
from guidekit.nodes.host.predictions.weak_branch import WeakBranch
from guidekit.nodes.host.run.chunks import chunks
from guidekit.nodes.negtome import GIVEN, NegToMe, _Merged
from guidekit.nodes.pag import PAG
from guidekit.samplers.attention.negtome import REFERENCES
from guidekit.samplers.kernels import matching
from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import ONE_TOKEN

ALWAYS = {"steps": "start to end", "threshold": -1.0, "blocks": "all"}
# For tests that compare two ways of computing the same: a match that rounding decides would be another one in each.
DECIDED = {"mask": ONE_TOKEN}
MATCHES_NOTHING = {"mask": torch.zeros_like(ONE_TOKEN)}


def merged(model, **settings):
    return run_node(NegToMe, model=model, **{**ALWAYS, **settings})


def naive(tokens, alpha=0.9):
    """[images, tokens, channels] away from the first image, one token at a time."""
    out = tokens.clone()
    first = torch.nn.functional.normalize(tokens[0], dim=-1)
    for f in range(1, len(tokens)):
        for i, token in enumerate(tokens[f]):
            j = (first @ token).argmax()
            out[f, i] = token + alpha * (token - tokens[0, j])
    return out


class Naive:
    """Over the self-attention of a transformer."""

    label, idle_reason = "naive", "never"

    def __call__(self, a):
        out = a.attend(a.q, a.k, a.v).clone()
        images = out[:, :, a.image].transpose(1, 2).flatten(2).unflatten(0, (len(a.chunks), -1))
        changed = torch.stack([naive(chunk) for chunk in images]).flatten(0, 1)
        out[:, :, a.image] = changed.unflatten(2, (out.shape[1], -1)).transpose(1, 2)
        return out


def naively(model, family):
    model = model.clone()
    if family != "unet":
        replace_self_attention(model, self_attention_blocks(model), Naive())
        return model

    def patch(out, options):
        chunks = out.unflatten(0, (len(options["cond_or_uncond"]), -1))
        return torch.stack([naive(chunk) for chunk in chunks]).flatten(0, 1)

    model.set_model_attn1_output_patch(patch)
    model.set_model_attn2_output_patch(patch)
    return model


@pytest.fixture
def leads(monkeypatch):
    """By how much the best cosine is ahead of the second, at the least, in each matching of the test."""
    found, match = [], matching.match_dense

    def watched(tokens, reference, mask=None):
        best = torch.nn.functional.cosine_similarity(tokens[:, :, None], reference[:, None], dim=-1).topk(2).values
        found.append((best[..., 0] - best[..., 1]).min().item())
        return match(tokens, reference, mask)

    monkeypatch.setattr(matching, "match_dense", watched)
    return found


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_is_the_rule_on_every_family(family, leads):
    """Image tokens only, chunk by chunk, the first image of the batch as the reference."""
    model = tiny.precise(family)
    found = tiny.sample(merged(model), family, batch=3, steps=2)
    wanted = tiny.sample(naively(model, family), family, batch=3, steps=2)
    assert not probes.differ(found, wanted)
    assert probes.differ(found, tiny.sample(model, family, batch=3, steps=2))
    assert min(leads) > 10 * torch.finfo(model.model_dtype()).eps  # or rounding would decide


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("reference", REFERENCES)
def test_which_images_move(family, reference):
    """The first one stays, unless all others are its reference; every chunk has its own."""
    model = merged(tiny.model(family), reference=reference)
    seen, plain = probes.record_predictions(model), tiny.model(family)
    without = probes.record_predictions(plain)
    for m in (model, plain):
        tiny.sample(m, family, batch=3, steps=1)
    for which in ("cond_denoised", "uncond_denoised"):
        moved = [probes.differ(a, b) for a, b in zip(seen.steps[0][which], without.steps[0][which])]
        assert moved == [reference == "all other images", True, True]


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_positive_does_not_see_the_negative(family):
    model = merged(tiny.model(family), **DECIDED)
    seen = probes.record_predictions(model)
    for options in ({}, {"cfg": 1.0}, {"negative": tiny.conditioning(family, 5)}):
        tiny.sample(model, family, batch=2, steps=1, **options)
    conds = [step["cond_denoised"] for step in seen.steps]
    assert not probes.differ(conds[1], conds[0])
    assert not probes.differ(conds[2], conds[0])


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_positive_only(family):
    both, positive, plain = merged(tiny.model(family)), merged(tiny.model(family), apply_to="positive only"), None
    plain = tiny.model(family)
    steps = []
    for model in (both, positive, plain):
        seen = probes.record_predictions(model)
        tiny.sample(model, family, batch=2, steps=1)
        steps.append(seen.steps[0])
    assert torch.equal(steps[1]["cond_denoised"], steps[0]["cond_denoised"])
    assert torch.equal(steps[1]["uncond_denoised"], steps[2]["uncond_denoised"])
    assert probes.differ(steps[0]["uncond_denoised"], steps[2]["uncond_denoised"])


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_weak_branch_is_treated_as_the_positive_is(family):
    """Or the difference that PAG adds would hold NegToMe's push."""
    model = run_node(PAG, model=merged(tiny.model(family), apply_to="positive only"), scale=1.0, blocks="1")
    other = run_node(PAG, model=tiny.model(family), scale=1.0, blocks="1")
    changes = []
    for m in (model, other):
        seen = probes.record_predictions(m)
        tiny.sample(m, family, batch=2, steps=1, cfg=1.0)
        changes.append(seen.steps[0]["denoised"] - seen.steps[0]["cond_denoised"])
    assert probes.distance(changes[0], changes[1]) < 2  # of the size of PAG's own change
    assert probes.differ(changes[0], changes[1])


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_two_weak_branches_that_are_resumed_are_no_negatives(family, monkeypatch):
    """In a call of their own the second one stands where the negative stands else."""
    if not reaches_unet_layers() and family == "unet":
        pytest.skip("this host does not let layers of a UNet be replaced")
    model = merged(tiny.model(family), apply_to="positive only", **DECIDED)
    for block in ("1", "2"):
        model = run_node(PAG, model=model, scale=2.0, blocks=block)
    calls = probes.count_evaluations(model)
    resumed = tiny.sample(model, family, batch=2, steps=1)
    assert calls.chunks == [2, 2]
    monkeypatch.setattr(WeakBranch, "first_block", lambda self, run: None)
    assert not probes.differ(tiny.sample(model, family, batch=2, steps=1), resumed)
    assert calls.chunks[2:] == [4]


# The reference that rides


class Once(comfy.samplers.Sampler):
    """One evaluation of latents as they are given."""

    def __init__(self, x, sigma):
        self.x, self.sigma = x, sigma

    def sample(self, model, sigmas, extra_args, callback, noise, *args, **kwargs):
        return model(self.x, self.x.new_full((len(self.x),), self.sigma), **extra_args)


def once(model, family, x, sigma, cfg=4.0):
    seen = probes.record_predictions(model)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(tiny.conditioning(family, 11), tiny.conditioning(family, 22))
    guider.set_cfg(cfg)
    tiny.HANDED_OUT.append(model)
    zeros = torch.zeros_like(x)
    guider.sample(zeros, zeros, Once(x, sigma), torch.tensor([sigma, 0.0]), disable_pbar=True, seed=3)
    return seen.steps[-1]


@pytest.mark.parametrize("noise", ["clean", "clean, scaled down"])
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_riding_reference_is_a_first_image_that_is_not_kept(family, noise):
    model, latent, x = tiny.model(family), tiny.noise(family, seed=60), tiny.noise(family, 2)
    riding = merged(model, reference=GIVEN, latent={"samples": latent}, reference_noise=noise, **DECIDED)
    found = once(riding, family, x, 0.7)
    # UNets divide their input by sqrt(1 + sigma^2): clean is what the network sees, scaled what is put in.
    scaled = family == "unet" and noise == "clean"
    reference = model.model.process_latent_in(latent) * (1.49**0.5 if scaled else 1)
    wanted = once(merged(model, **DECIDED), family, torch.cat([reference, x]), 0.7)
    for which in ("cond_denoised", "uncond_denoised"):
        assert found[which].shape == x.shape
        assert not probes.differ(found[which], wanted[which][1:])


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_noisy_reference_has_the_noise_of_the_step_and_one_noise_per_run(family):
    model, latent, x = tiny.model(family), tiny.noise(family, seed=60), tiny.noise(family, 2)
    settings = {"reference_noise": "noised to the step", **DECIDED}
    riding = merged(model, reference=GIVEN, latent={"samples": latent}, **settings)
    sampling, clean = model.get_model_object("model_sampling"), model.model.process_latent_in(latent)
    noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
    for sigma in (0.7, 0.3):
        found = once(riding, family, x, sigma)
        noisy = sampling.noise_scaling(torch.tensor([sigma]), noise.clone(), clean)
        wanted = once(merged(model, **DECIDED), family, torch.cat([noisy, x]), sigma)
        assert not probes.differ(found["cond_denoised"], wanted["cond_denoised"][1:])
    first = tiny.sample(riding, family, batch=2)
    assert torch.equal(tiny.sample(riding, family, batch=2), first)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_a_reference_of_another_size(family):
    """Fitted to the latent: what is matched is what tokens hold, not where they are."""
    latent = torch.randn((1, tiny.FAMILIES[family].latent[0], *[1] * (len(tiny.FAMILIES[family].latent) - 3), 12, 20))
    model = merged(tiny.model(family), reference=GIVEN, latent={"samples": latent})
    result = tiny.sample(model, family)
    assert torch.isfinite(result).all()
    assert probes.differ(result, tiny.sample(tiny.model(family), family))


def test_an_image_as_reference_of_a_video():
    model = merged(tiny.model("wan"), reference=GIVEN, latent={"samples": torch.randn(1, 16, 8, 8)})
    assert torch.isfinite(tiny.sample(model, "wan")).all()


def test_another_number_of_channels():
    with pytest.raises(ValueError, match=r"latent has shape \(1, 7, 8, 8\), but Flux .*16 channels.*this model's VAE"):
        merged(tiny.model("flux"), reference=GIVEN, latent={"samples": torch.ones(1, 7, 8, 8)})


def test_no_latent():
    with pytest.raises(ValueError, match="The reference is a latent, and none is connected"):
        merged(tiny.model("flux"), reference=GIVEN)
    with pytest.raises(ValueError, match="pairs tokens one to one.*Choose the first or the previous image"):
        merged(tiny.model("unet"), reference="all other images", matching="official")


@pytest.mark.parametrize("family", ["unet", "flux", "lumina2"])
def test_every_image_keeps_its_own_prompt_beside_the_rider(family):
    """A batch of prompts: the rider takes a copy of the first, and nobody else's place."""
    prompts = [tiny.conditioning(family, seed)[0] for seed in (1, 2)]
    extra = {key: torch.cat([p[1][key] for p in prompts]) for key in prompts[0][1]}
    model = merged(tiny.model(family), reference=GIVEN, latent={"samples": tiny.noise(family, seed=60)}, **DECIDED)
    together = tiny.sample(model, family, batch=2, positive=[[torch.cat([p[0] for p in prompts]), extra]])
    alone = tiny.sample(model, family, batch=1, positive=[prompts[0]])
    assert not probes.differ(together[:1], alone)
    first_prompt_only = tiny.sample(model, family, batch=2, positive=[prompts[0]])
    assert probes.distance(together[1:], first_prompt_only[1:]) > 1e-4


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_two_references_ride_side_by_side(family):
    """Each node knows its own row; the images of the batch are those behind them."""
    model = tiny.model(family)
    for seed in (60, 61):
        latent = {"samples": tiny.noise(family, seed=seed)}
        model = merged(model, reference=GIVEN, latent=latent, alpha=0.3, **DECIDED)
    model = merged(model, alpha=0.3, **DECIDED)
    result = tiny.sample(model, family, batch=2)
    assert torch.isfinite(result).all()
    # Samples see the riders and the first image only.
    assert not probes.differ(tiny.sample(model, family, batch=3)[:2], result)


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_rider_of_another_node_is_not_taken_for_ones_own(family):
    """Beside a node that matches nothing, before it and behind it."""
    latents = [{"samples": tiny.noise(family, seed=seed)} for seed in (60, 61)]
    settings = [{"latent": latents[0], **DECIDED}, {"latent": latents[1], **MATCHES_NOTHING}]
    alone = tiny.sample(merged(tiny.model(family), reference=GIVEN, **settings[0]), family, batch=2)
    for order in (settings, settings[::-1]):
        model = tiny.model(family)
        for each in order:
            model = merged(model, reference=GIVEN, **each)
        assert not probes.differ(tiny.sample(model, family, batch=2), alone)


@pytest.mark.parametrize("family", ["unet", "flux", "sd3"])
def test_a_controlnet_and_the_rider(family):
    """What a ControlNet adds has a row for every image; the rider gets that of the first."""
    positive = tiny.controlled(tiny.conditioning(family, 11), family)

    def sample(**settings):
        model = merged(tiny.model(family), reference=GIVEN, latent={"samples": tiny.noise(family, seed=60)}, **settings)
        return tiny.sample(model, family, batch=2, positive=positive)

    found = sample()
    assert torch.isfinite(found).all()
    assert probes.differ(found, sample(alpha=0.0))
    # The rider's presence alone changes nothing.
    assert not probes.differ(sample(**MATCHES_NOTHING), sample(alpha=0.0))


def test_the_mask_is_of_the_reference():
    """The left half of the reference only; a mask of nothing changes nothing."""
    latent = {"samples": tiny.noise("flux", seed=60)}
    plain = tiny.sample(tiny.model("flux"), "flux")
    results = []
    for mask in (None, torch.zeros(1, 64, 64), torch.cat([torch.ones(1, 64, 32), torch.zeros(1, 64, 32)], 2)):
        results.append(tiny.sample(merged(tiny.model("flux"), reference=GIVEN, latent=latent, mask=mask), "flux"))
    assert not probes.differ(results[1], plain)
    assert probes.differ(results[2], plain)
    assert probes.differ(results[2], results[0])


# Where it acts


@pytest.mark.parametrize(("family", "low"), [("unet", 5.1), ("flux", 0.9), ("qwen_image", 0.9), ("lumina2", 0.9)])
def test_the_usual_steps(family, low):
    """t >= 800 of SDXL is sigma >= 5.11; flows from 0.9 up."""
    model = merged(tiny.model(family), steps="usual")
    seen = probes.record_predictions(model)
    tiny.sample(model, family, batch=2, steps=12)
    first = next(i for i, step in enumerate(seen.steps) if float(step["sigma"][0]) < low)
    assert 0 < first < 12
    changed = []
    for ours in seen.steps:
        # From the same latent: run the plain model on it.
        alone = once(tiny.model(family), family, ours["input"], float(ours["sigma"][0]))
        changed.append(probes.differ(ours["cond_denoised"], alone["cond_denoised"]))
    assert changed == [i < first for i in range(12)]


def test_the_usual_blocks_of_a_unet_are_the_fine_output_blocks():
    """In small images of at least half the latent's size: here both levels of the tiny network."""
    usual = run_node(NegToMe, model=tiny.model("unet"), steps="start to end", threshold=-1.0)
    fine = merged(tiny.model("unet"), blocks="output 2-3")
    coarse = merged(tiny.model("unet"), blocks="output 0-1")
    results = [tiny.sample(m, "unet", batch=2) for m in (usual, fine, coarse)]
    assert not torch.equal(results[1], results[2])
    assert torch.equal(results[0], tiny.sample(merged(tiny.model("unet"), blocks="output"), "unet", batch=2))


@pytest.mark.parametrize(
    ("side", "grid", "counts"),
    [
        (128, 64, True),  # SDXL at 1024
        (128, 32, True),
        (96, 48, True),  # at 768: the published code leaves the coarse blocks out
        (96, 24, False),
        (64, 32, True),  # SD1.5 at 512
        (64, 16, False),
        (16, 8, True),
        (16, 4, False),
    ],
)
def test_blocks_of_at_least_32_by_32_tokens(side, grid, counts):
    technique = _Merged("first image", 0.9, 0.7, "source", None, False, True, lambda run: True, None)
    run = SimpleNamespace(latent_shapes=[(2, 4, side, side)], notes={})
    tokens = torch.randn(2, 2, 4, 8, generator=torch.Generator().manual_seed(0))
    out = technique(AttentionOutput(tokens, (grid, grid), None, run, chunks((False, True), {})))
    assert (out is tokens) != counts


@pytest.mark.parametrize("family", ["unet", "flux"])
def test_a_batch_of_one_is_told_once_and_left_alone(family, caplog):
    caplog.set_level("INFO")
    assert torch.equal(tiny.sample(merged(tiny.model(family)), family), tiny.sample(tiny.model(family), family))
    assert caplog.text.count("a batch of one image has no other to keep away from") == 1
    caplog.clear()
    tiny.sample(merged(tiny.model(family)), family, batch=2)
    assert "a batch of one" not in caplog.text


def test_a_rider_is_no_second_image(caplog):
    caplog.set_level("INFO")
    model = merged(tiny.model("flux"), reference=GIVEN, latent={"samples": tiny.noise("flux", seed=60)})
    tiny.sample(merged(model), "flux")
    assert "a batch of one image has no other to keep away from" in caplog.text


def test_a_model_that_it_cannot_reach():
    from guidekit.tests.host import toy

    with pytest.raises(ValueError, match="not one it can reach. Families that work: UNet"):
        merged(toy.model())
