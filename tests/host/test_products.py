"""Properties of every node, on every family that it supports. Properties that do not depend on the family: on a DiT,
and for one node of every mechanism on a UNet too."""

from functools import cache

import comfy.model_management
import comfy.samplers
import pytest
import torch

from guidekit.tests.host import probes, tiny
from guidekit.tests.host.mechanisms import REPRESENTATIVES
from guidekit.tests.host.products import PRODUCTS

EVERY = [pytest.param(p, f, id=f"{p.name}-{f}") for p in PRODUCTS for f in p.families]
RANGED = [case for case in EVERY if case.values[0].leaves_the_rest]
FEW = [
    case
    for case in EVERY
    for product, family in [case.values]
    if family == "flux" or family == "unet" and product.name in REPRESENTATIVES.values()
]
RANGED_FEW = [case for case in RANGED if case in FEW]
CORRECTIONS = [case for case in RANGED_FEW if case.values[0].corrects]
NEUTRAL = [case for case in EVERY if case.values[0].neutral is not None]


@cache
def plain(family, **options):
    return tiny.sample(tiny.model(family), family, **options)


@cache
def _plain_predictions(family):
    model = tiny.model(family)
    seen = probes.record_predictions(model)
    tiny.sample(model, family, steps=6)
    return seen.steps


@cache
def usual(product, family):
    """The result of a node in the usual run."""
    return tiny.sample(product.apply(tiny.model(family)), family)


@pytest.mark.parametrize(("product", "family"), NEUTRAL)
def test_neutral_settings_are_as_without_the_node(product, family):
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
    assert probes.differ(result, plain(family))
    assert seen.total == (product.evaluations or 4 * (2 + product.extra_evaluations))
    twice = product.guides_at_cfg_1 or product.asks_twice  # a call that resumes, or comes after the positive is known
    assert len(seen.chunks) <= 4 * (1 + twice)


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_again_and_after_an_interrupted_run_is_the_same(product, family):
    model = product.apply(tiny.model(family))

    def stop(step, *_):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        tiny.sample(model, family, callback=stop)
    for _again in range(2):
        assert torch.equal(tiny.sample(model, family), usual(product, family))


@pytest.mark.parametrize("sampler", ["heun", "dpmpp_2s_ancestral", "dpmpp_2m", "euler_ancestral", "uni_pc"])
@pytest.mark.parametrize(("product", "family"), FEW)
def test_samplers(product, family, sampler):
    model = product.apply(tiny.model(family))
    result = tiny.sample(model, family, sampler=sampler)
    assert torch.isfinite(result).all()
    assert probes.differ(result, plain(family, sampler=sampler))
    assert torch.equal(tiny.sample(model, family, sampler=sampler), result)


@pytest.mark.parametrize(("product", "family"), RANGED)
def test_the_range_is_kept_to_the_bit(product, family):
    """Before the start the predictions are those of no node, at and after it they are not."""
    limited = product.apply(tiny.model(family), start_percent=0.5)
    starts = limited.get_model_object("model_sampling").percent_to_sigma(0.5)
    seen = probes.record_predictions(limited)
    tiny.sample(limited, family, steps=6)
    active = [probes.at_or_below(step, starts) for step in seen.steps]
    assert {True, False} == set(active)
    first = active.index(True)
    both = [(a["denoised"], b["denoised"]) for a, b in zip(seen.steps, _plain_predictions(family))]
    assert [torch.equal(*pair) for pair in both[:first]] == [True] * first
    assert probes.differ(*both[first])


@pytest.mark.parametrize(("product", "family"), CORRECTIONS)
def test_the_end_is_kept(product, family):
    limited = product.apply(tiny.model(family), end_percent=0.5)
    seen = probes.record_predictions(limited)
    tiny.sample(limited, family, steps=6)
    ends = limited.get_model_object("model_sampling").percent_to_sigma(0.5)
    assert {True, False} == {probes.at_or_below(step, ends) for step in seen.steps}
    for step in seen.steps:
        plain_cfg = step["uncond_denoised"] + (step["cond_denoised"] - step["uncond_denoised"]) * 4.0
        if probes.at_or_below(step, ends):
            assert torch.equal(step["denoised"], plain_cfg)
        else:
            assert probes.differ(step["denoised"], plain_cfg)


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_without_uncond(product, family):
    model = product.apply(tiny.model(family))
    seen = probes.count_evaluations(model)
    result = tiny.sample(model, family, cfg=1.0)
    alone = 4 * (1 + product.extra_evaluations * product.guides_at_cfg_1)
    assert seen.total == (product.evaluations_at_cfg_1 or alone)
    if product.guides_at_cfg_1 or product.sets_scale:
        assert probes.differ(result, plain(family, cfg=1.0))
    else:
        assert torch.equal(result, plain(family, cfg=1.0))


@pytest.mark.parametrize(("product", "family"), FEW)
def test_basic_guider(product, family):
    def run(model):
        from comfy_extras.nodes_custom_sampler import Guider_Basic

        guider = Guider_Basic(model)
        guider.set_conds(tiny.conditioning(family, 1))
        x = tiny.noise(family)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", 3)
        return guider.sample(x, torch.zeros_like(x), comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    found, without = run(product.apply(tiny.model(family))), run(tiny.model(family))
    assert probes.differ(found, without) if product.guides_at_cfg_1 else torch.equal(found, without)


@pytest.mark.parametrize(("product", "family"), FEW)
def test_unusual_settings(product, family):
    model = product.apply(tiny.model(family))
    for options in ({"cfg": 0.0}, {"cfg": 0.5}, {"cfg": 30.0}, {"steps": 1}):
        assert torch.isfinite(tiny.sample(model, family, **options)).all(), options


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_samples_do_not_see_each_other(product, family):
    batch = tiny.sample(product.apply(tiny.model(family)), family, batch=3)
    assert not probes.differ(batch[:1], usual(product, family))
    assert probes.differ(batch[1:2], batch[:1])


@pytest.mark.parametrize(("product", "family"), EVERY)
def test_a_split_batch_gives_the_same(product, family, monkeypatch):
    together = usual(product, family)
    model = product.apply(tiny.model(family))
    monkeypatch.setattr(type(model), "get_free_memory", lambda self, device: 0)
    seen = probes.count_evaluations(model)
    split = tiny.sample(model, family)
    assert set(seen.chunks) == {1 + product.rides}
    assert not probes.differ(split, together)


@pytest.mark.parametrize(("product", "family"), FEW)
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
    assert probes.differ(result, tiny.sample(tiny.model(family), family, **options))


@pytest.mark.parametrize(("product", "family"), FEW)
def test_the_model_given_is_not_changed(product, family):
    model = tiny.model(family)
    product.apply(model)
    assert torch.equal(tiny.sample(model, family), plain(family))


@pytest.mark.parametrize(("product", "family"), FEW)
def test_branches_of_a_graph_do_not_meet(product, family):
    """A model with the node, and two more nodes behind it in different branches."""
    first = product.apply(tiny.model(family))
    product.apply(first)
    product.apply(first, start_percent=0.3)
    assert torch.equal(tiny.sample(first, family), usual(product, family))


@pytest.mark.parametrize(("product", "family"), RANGED_FEW)
def test_a_node_that_found_nothing_to_do_says_so(product, family, caplog):
    model = product.apply(tiny.model(family), start_percent=0.999, end_percent=1.0)
    tiny.sample(model, family)
    assert "had no effect in this run" in caplog.text
    caplog.clear()
    tiny.sample(product.apply(tiny.model(family)), family)
    assert "had no effect" not in caplog.text
