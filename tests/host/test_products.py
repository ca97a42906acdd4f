"""What every node must keep to, on every family it claims."""

import comfy.model_management
import comfy.samplers
import pytest
import torch

from guidekit.tests.host import probes, tiny
from guidekit.tests.host.products import PRODUCTS

EVERY = [pytest.param(p, f, id=f"{p.name}-{f}") for p in PRODUCTS for f in p.families]
RANGED = [case for case in EVERY if case.values[0].leaves_the_rest]
ONCE = [case for case in EVERY if case.values[1] in ("unet", "flux")]
RANGED_ONCE = [case for case in RANGED if case in ONCE]
CORRECTIONS = [case for case in RANGED_ONCE if case.values[0].corrects]
NEUTRAL = [case for case in EVERY if case.values[0].neutral is not None]


def plain(family, **options):
    return tiny.sample(tiny.model(family), family, **options)


@pytest.mark.parametrize(("product", "family"), NEUTRAL)
def test_neutral_is_no_node(product, family):
    model = product.apply(tiny.model(family), **product.neutral)
    seen = probes.count_evaluations(model)
    assert torch.equal(tiny.sample(model, family), plain(family))
    assert seen.chunks == [2] * 4
    assert "guidekit" not in model.model_options


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_acting_changes_the_result_at_the_stated_cost(product, family):
    model = product.apply(tiny.model(family))
    seen = probes.count_evaluations(model)
    result = tiny.sample(model, family)
    assert torch.isfinite(result).all()
    assert probes.distance(result, plain(family)) > 1e-6
    assert seen.total == (product.evaluations or 4 * (2 + product.extra_evaluations))
    twice = product.guides_at_cfg_1 or product.asks_twice  # a call that resumes, or comes after the positive is known
    assert len(seen.chunks) <= 4 * (1 + twice)


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_again_is_the_same(product, family):
    model = product.apply(tiny.model(family))
    assert torch.equal(tiny.sample(model, family), tiny.sample(model, family))


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_after_an_interrupted_run_is_the_same(product, family):
    model = product.apply(tiny.model(family))
    fresh = tiny.sample(product.apply(tiny.model(family)), family)

    def stop(step, *_):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, family, callback=stop)
    assert torch.equal(tiny.sample(model, family), fresh)


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpmpp_2m", "euler_ancestral", "uni_pc"])
@pytest.mark.parametrize(("product", "family"), ONCE)
def test_samplers(product, family, sampler):
    model = product.apply(tiny.model(family))
    result = tiny.sample(model, family, sampler=sampler)
    assert torch.isfinite(result).all()
    assert probes.distance(result, plain(family, sampler=sampler)) > 1e-6
    assert torch.equal(tiny.sample(model, family, sampler=sampler), result)


@pytest.mark.parametrize(("product", "family"), RANGED)
def test_the_range_is_kept_to_the_bit(product, family):
    """Before the start the predictions are those of no node, at and after it they are not."""
    reference = tiny.model(family)
    without = probes.record_predictions(reference)
    tiny.sample(reference, family, steps=6)
    sampling = reference.get_model_object("model_sampling")
    limited = product.apply(tiny.model(family), start_percent=0.5)
    seen = probes.record_predictions(limited)
    tiny.sample(limited, family, steps=6)
    active = [probes.at_or_below(step, sampling.percent_to_sigma(0.5)) for step in seen.steps]
    assert {True, False} == set(active)
    first = active.index(True)
    same = [torch.equal(a["denoised"], b["denoised"]) for a, b in zip(seen.steps, without.steps)]
    assert same[: first + 1] == [True] * first + [False]


@pytest.mark.parametrize(("product", "family"), CORRECTIONS)
def test_the_end_is_kept(product, family):
    limited = product.apply(tiny.model(family), end_percent=0.5)
    seen = probes.record_predictions(limited)
    tiny.sample(limited, family, steps=6)
    ends = limited.get_model_object("model_sampling").percent_to_sigma(0.5)
    for step in seen.steps:
        plain_cfg = step["uncond_denoised"] + (step["cond_denoised"] - step["uncond_denoised"]) * 4.0
        assert torch.equal(step["denoised"], plain_cfg) == probes.at_or_below(step, ends)


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_without_uncond(product, family):
    model = product.apply(tiny.model(family))
    seen = probes.count_evaluations(model)
    result = tiny.sample(model, family, cfg=1.0)
    alone = 4 * (1 + product.extra_evaluations * product.guides_at_cfg_1)
    assert seen.total == (product.evaluations_at_cfg_1 or alone)
    assert torch.equal(result, plain(family, cfg=1.0)) != (product.guides_at_cfg_1 or product.sets_scale)


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_basic_guider(product, family):
    def run(model):
        from comfy_extras.nodes_custom_sampler import Guider_Basic

        guider = Guider_Basic(model)
        guider.set_conds(tiny.conditioning(family, 1))
        x = tiny.noise(family)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
        return guider.sample(x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    assert torch.equal(run(product.apply(tiny.model(family))), run(tiny.model(family))) != product.guides_at_cfg_1


@pytest.mark.parametrize("cfg", [0.0, 0.5, 30.0])
@pytest.mark.parametrize(("product", "family"), ONCE)
def test_unusual_scales(product, family, cfg):
    assert torch.isfinite(tiny.sample(product.apply(tiny.model(family)), family, cfg=cfg)).all()


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_one_step(product, family):
    assert torch.isfinite(tiny.sample(product.apply(tiny.model(family)), family, steps=1)).all()


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_samples_do_not_see_each_other(product, family):
    model = product.apply(tiny.model(family))
    batch = tiny.sample(model, family, batch=3)
    assert probes.distance(batch[:1], tiny.sample(model, family, batch=1)) < 1e-3


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_a_split_batch_gives_the_same(product, family, monkeypatch):
    model = product.apply(tiny.model(family))
    together = tiny.sample(model, family)
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    seen = probes.count_evaluations(model)
    split = tiny.sample(model, family)
    assert set(seen.chunks) == {1 + product.rides}
    assert probes.distance(split, together) < 1e-3


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_masks_and_areas(product, family):
    """Two positives, one on the left half, and an inpainting mask."""
    left = tiny.conditioning(family, 1)
    left[0][1]["area"] = (8, 4, 0, 0)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :5] = 1
    options = {
        "positive": left + tiny.conditioning(family, 2),
        "noise_mask": mask,
        "latent": tiny.noise(family, seed=9),
    }
    result = tiny.sample(product.apply(tiny.model(family)), family, **options)
    assert torch.isfinite(result).all()
    assert probes.distance(result, plain(family, **options)) > 1e-6


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_the_model_given_is_not_changed(product, family):
    model = tiny.model(family)
    product.apply(model)
    assert torch.equal(tiny.sample(model, family), plain(family))


@pytest.mark.parametrize(("product", "family"), ONCE)
def test_branches_of_a_graph_do_not_meet(product, family):
    """A model with the node, and two more nodes behind it in different branches."""
    first = product.apply(tiny.model(family))
    alone = tiny.sample(first, family)
    product.apply(first)
    product.apply(first, start_percent=0.3)
    assert torch.equal(tiny.sample(first, family), alone)


@pytest.mark.parametrize(("product", "family"), RANGED_ONCE)
def test_a_node_that_found_nothing_to_do_says_so(product, family, caplog):
    model = product.apply(tiny.model(family), start_percent=0.999, end_percent=1.0)
    tiny.sample(model, family)
    assert "had no effect in this run" in caplog.text
    caplog.clear()
    tiny.sample(product.apply(tiny.model(family)), family)
    assert "had no effect" not in caplog.text
