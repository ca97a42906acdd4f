"""FreCaS in the host, around the stock SamplerCustomAdvanced: noise levels, enlarging, and the start of the next
stage."""

import comfy.samplers
import comfy.utils
import pytest
import torch
from comfy_extras.nodes_custom_sampler import DisableNoise, RandomNoise, SamplerCustomAdvanced

from guidekit.benchmarks._nodes import run_node_all
from guidekit.nodes.frecas_plan import FreCaSPlan
from guidekit.nodes.frecas_up import FreCaSUp
from guidekit.tests.host import probes, tiny, toy
from guidekit.tests.host.right import demo, encode

SIZES = "64, 128"


def plan(model, **settings):
    """(latent, sigmas, plan, report)"""
    return run_node_all(
        FreCaSPlan, **{"model": model, "sizes": SIZES, "steps": "4, 3", "preset": "as typed", **settings}
    )


def up(name="unet", **inputs):
    model, _, vae = demo(name)
    _, _, planned, _ = plan(model)
    given = {"model": model, "plan": planned, "vae": vae, "denoised": {"samples": latent()}, **inputs}
    return run_node_all(FreCaSUp, **given)


def latent(batch=1, side=16):
    generators = (torch.Generator().manual_seed(i) for i in range(batch))
    return torch.cat([torch.randn((1, 8, side, side), generator=g) for g in generators])


def sampled(model, noise, sigmas, start):
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(encode("a large red ball on sand by day"), encode(""))
    guider.set_cfg(2.0)
    return SamplerCustomAdvanced.execute(noise, guider, comfy.samplers.sampler_object("euler"), sigmas, start).result


def timesteps(model, sigmas):
    sampling = model.get_model_object("model_sampling")
    return torch.stack([sampling.timestep(s.reshape(1))[0].float() for s in sigmas])


def test_of_sd_levels_are_the_authors_timesteps():
    model, *_ = demo("unet")
    _, first, planned, report = plan(model, sizes="64, 128, 256", steps="5, 3, 4", ends="0.4, 0.2", gamma=2.0)
    sampling = model.get_model_object("model_sampling")
    ends = [sampling.sigma(torch.tensor(999 * share)).item() for share in (0.4, 0.2)]
    stages = [stage.sigmas for stage in planned.stages]
    assert torch.equal(first, stages[0])
    assert [len(sigmas) for sigmas in stages] == [6, 4, 5]
    for sigmas, end in zip(stages, ends):
        assert sigmas[-2].item() == pytest.approx(end, rel=1e-5)
        assert sigmas[-1] == 0  # what is sampled is then what is denoised
    for sigmas, end in zip(stages[1:], ends):
        assert sigmas[0].item() == pytest.approx(end * 2 ** (2.0 / 2), rel=1e-5)
    assert first[0].item() == pytest.approx(sampling.sigma_max.item(), rel=1e-5)
    apart = timesteps(model, first[:-1]).diff()
    assert apart == pytest.approx(apart.mean().expand(4), abs=1.01)  # the host rounds them to whole ones
    assert report.startswith("64 x 64: 5 steps, sigma ")


def test_of_flows_odds_grow_by_the_root():
    model, *_ = demo("dit")
    _, first, planned, report = plan(model, sizes="64x32, 96x64", steps="5, 3", gamma=2.0)
    second = planned.stages[1].sigmas
    assert first.tolist() == pytest.approx([1, 0.8, 0.6, 0.4, 0.2, 0], abs=2e-3)
    assert second.diff().tolist() == pytest.approx([-second[0].item() / 3] * 3, abs=2e-3)  # the last step ends at 0
    odds = second[0] / (1 - second[0])
    assert odds.item() == pytest.approx(2**0.5 * 0.25, rel=1e-4)  # by the larger ratio, that of the heights
    assert "gamma is not used with flow models." in report


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_plans_for_every_family(family):
    empty, _, planned, _ = plan(tiny.model(family))
    channels, *rest = tiny.FAMILIES[family].latent
    assert empty["samples"].shape == (1, channels, *[1] * (len(rest) - 2), 8, 8)
    assert all(torch.isfinite(stage.sigmas).all() for stage in planned.stages)


@pytest.mark.parametrize("name", ["unet", "dit"])
def test_the_next_stage_begins_with_the_larger_image_and_new_noise(name):
    """What the network is given first: x0 + sigma n, or (1 - t) x0 + t n, with n of variance 1."""
    model, _, vae = demo(name)
    larger, sigmas, factor, _ = up(name)
    assert factor == 2.0
    clean = vae.encode(torch.nn.functional.interpolate(
        vae.decode(latent()).movedim(-1, 1).clamp(0, 1), scale_factor=2, mode="nearest"
    ).movedim(1, -1))  # fmt: skip
    watched = model.clone()
    seen = probes.record_predictions(watched)
    output, denoised = sampled(watched, DisableNoise.execute()[0], sigmas, larger)
    x, level = seen.steps[0]["input"], sigmas[0]
    noise = (x - clean * (1 - level if name == "dit" else 1)) / level
    assert noise.std().item() == pytest.approx(1, abs=0.05)
    assert noise.mean().item() == pytest.approx(0, abs=0.05)
    assert abs((noise * clean).mean().item()) < 0.05
    # The last step ends at no noise, so that both outputs of the sampler are the image.
    assert probes.distance(output["samples"], denoised["samples"]) < 1e-5


def test_noise_is_the_seed_s_own_and_no_sampler_s():
    first, other = up()[0]["samples"], up(random_seed=1)[0]["samples"]
    assert torch.equal(first, up()[0]["samples"])
    assert probes.differ(first, other)
    sigma = up()[1][0]
    ours = (first - other) / sigma  # of two noises
    stock = RandomNoise.execute(0)[0].generate_noise({"samples": first})
    assert abs((ours * stock).mean().item()) < 0.1


def test_images_of_a_batch_do_not_see_each_other():
    """Except for the noise, which is one draw for all."""
    model, _, vae = demo()
    both = up(denoised={"samples": latent(2)})[0]["samples"]
    swapped = up(denoised={"samples": latent(2).flip(0)})[0]["samples"]
    assert probes.distance(both.sum(0), swapped.sum(0)) < 1e-5
    assert both.shape == (2, 8, 32, 32)


@torch.inference_mode()  # in which the host encodes in tiles
def test_tiles_are_the_same_but_at_their_seams():
    model, _, vae = demo()
    _, _, planned, _ = plan(model, sizes="512, 1024")
    inputs = {"plan": planned, "denoised": {"samples": latent(side=128)}}
    whole, tiled = (up(**inputs, tile=tile)[0]["samples"] for tile in (0, 256))
    assert (whole - tiled).abs().median() < 0.05 * whole.std()


def test_two_stages_make_an_image():
    model, _, vae = demo()
    start, first, planned, _ = plan(model)
    _, denoised = sampled(model, RandomNoise.execute(5)[0], first, start)
    larger, second, _, _ = up(plan=planned, denoised=denoised)
    output, _ = sampled(model, DisableNoise.execute()[0], second, larger)
    assert vae.decode(output["samples"]).shape == (1, 128, 128, 3)


WRONG_PLANS = [
    ({"sizes": "64"}, "sizes has 1 sizes. Give two to 4, such as 1024, 2048."),
    ({"sizes": "64, 128x"}, "sizes has '128x'. A size is a number of pixels, or width x height."),
    ({"sizes": "64, 130"}, "sizes has '130'. Sides are multiples of 4 for this model, from 4 to 16384."),
    ({"sizes": "64, 999996"}, "sizes has '999996'. Sides are multiples of 4"),
    ({"sizes": "128, 64"}, "A stage is not larger than the one before it."),
    ({"sizes": "64x128, 128x128"}, "A stage is not larger than the one before it."),
    ({"steps": "4, 3, 2"}, "There are 2 sizes, 3 numbers of steps and 1 ends."),
    ({"ends": "0.4, 0.2"}, "There are 2 sizes, 2 numbers of steps and 2 ends."),
    ({"steps": "4, 3.5"}, "steps has '3.5'. Give whole numbers from 2 to 10000"),
    ({"steps": "1, 3"}, "steps has '1'. Give whole numbers from 2"),
    ({"ends": "1.5"}, "ends has '1.5'. Give numbers from 0.001 to 0.999"),
    (
        {"sizes": "64, 128, 256", "steps": "4, 3, 2", "ends": "0.1, 0.9"},
        "Stage 2 would begin at noise level .* and end above it, at .*. Give it a smaller end.",
    ),
]


@pytest.mark.parametrize(("settings", "sentence"), WRONG_PLANS)
def test_wrong_plans(settings, sentence):
    with pytest.raises(ValueError, match=sentence):
        plan(demo()[0], **settings)


@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras"])
@pytest.mark.parametrize("family", ["wan", "flux"])
def test_noise_never_rises_within_a_stage(family, scheduler):
    settings = {"sizes": "512, 1024", "steps": "4, 4", "scheduler": scheduler}
    for end in (0.1, 0.2, 0.9):
        _, _, planned, _ = plan(tiny.model(family), ends=str(end), **settings)
        for stage in planned.stages:
            assert (stage.sigmas.diff() < 0).all()
        assert planned.stages[0].sigmas[-2].item() == pytest.approx(end)


@pytest.mark.parametrize("scheduler", ["normal", "simple", "karras"])
def test_an_end_that_the_scheduler_does_not_reach(scheduler):
    """The next stage would begin below it, and its noise would rise."""
    with pytest.raises(ValueError, match=f"Stage 1 would end at noise level 0.001, and the last one of {scheduler} is"):
        plan(tiny.model("wan"), sizes="512, 1024", steps="4, 4", ends="0.001", scheduler=scheduler)


def test_sound_has_no_size():
    with pytest.raises(ValueError, match="makes sound, which has no width and height. FreCaS is for image models."):
        plan(toy.model(3))


def test_wrong_latents(monkeypatch):
    size = "denoised is of 128 x 128 pixels. The stages of the plan that have a next one: 64 x 64."
    with pytest.raises(ValueError, match=size):
        up(denoised={"samples": latent(side=32)})
    with pytest.raises(ValueError, match="denoised has a mask, and FreCaS makes a whole image."):
        up(denoised={"samples": latent(), "noise_mask": torch.ones(1, 64, 64)})
    with pytest.raises(ValueError, match="tile is 64. It is 0, or a number of pixels from 256 on."):
        up(tile=64)
    with monkeypatch.context() as patched:
        patched.setattr(type(demo()[2]), "encode", lambda vae, image: torch.full((1, 8, 32, 32), torch.nan))
        with pytest.raises(ValueError, match="The VAE makes NaN of the image of 128 x 128 pixels"):
            up()
    video = tiny.model("wan")
    _, _, planned, _ = plan(video)
    with pytest.raises(ValueError, match="denoised is a video of 2 frames in latents. FreCaS is for images."):
        up(model=video, plan=planned, denoised={"samples": tiny.noise("wan")})
