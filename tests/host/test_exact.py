"""Exact inversion in the host: the same image again, and errors for what cannot be inverted."""

import comfy.model_management
import comfy.samplers
import pytest
import torch
from comfy.model_base import ModelType
from comfy_extras import nodes_easycache

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.adaptive_guidance import AdaptiveGuidance
from guidekit.nodes.apg import APG
from guidekit.nodes.autoguidance import Autoguidance
from guidekit.nodes.cfgpp import CFGPP
from guidekit.nodes.exact_invert import ExactInvert
from guidekit.nodes.exact_sample import ExactSample
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.inversion.exact import precision
from guidekit.nodes.host.inversion.exact_state import METHODS
from guidekit.nodes.host.network.blocks import reaches_unet_layers
from guidekit.nodes.nasa import NASA
from guidekit.nodes.negtome import GIVEN, NegToMe
from guidekit.nodes.pag import PAG
from guidekit.nodes.slg import SLG
from guidekit.tests.host import probes, tiny

# The family of a test's network, and its type of model if it is not the usual one.
MODELS = {
    "eps": ("unet", None),
    "v": ("unet", ModelType.V_PREDICTION),
    "sd3": ("sd3", None),
    "flux": ("flux", None),
    "wan": ("wan", None),
}


def assert_same(found, wanted):
    assert probes.distance(found, wanted) <= 1e-9


def guider(model, family, prompt=11, cfg=3.0):
    found = comfy.samplers.CFGGuider(model)
    found.set_conds(tiny.conditioning(family, prompt), tiny.conditioning(family, 22))
    found.set_cfg(cfg)
    return found


def sigmas(model, steps, start=0):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)[start:]


def image(family, batch=1):
    return tiny.noise(family, batch, seed=40)


def inverted(model, family, steps=7, batch=1, start=0, **settings):
    given = {"guider": guider(model, family), "sigmas": sigmas(model, steps, start), **settings}
    return run_node(ExactInvert, **{"latent": {"samples": image(family, batch)}, **given})


def sampled(model, family, state, mask=None, **about):
    return run_node(ExactSample, guider=guider(model, family, **about), inverted=state, mask=mask)["samples"]


@pytest.mark.parametrize("name", MODELS)
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("steps", "batch", "cfg"), [(7, 1, 3.0), (8, 3, 3.0), (2, 1, 3.0), (7, 1, 1.0)])
def test_the_same_image_again(name, method, steps, batch, cfg):
    family, kind = MODELS[name]
    model = tiny.model(family, kind)
    settings = {"guider": guider(model, family, cfg=cfg), "method": method}
    state = inverted(model, family, steps, batch, **settings)
    assert_same(sampled(model, family, state, cfg=cfg), image(family, batch))
    assert probes.distance(state["samples"], image(family, batch)) > 1e-4
    assert probes.distance(sampled(model, family, state, cfg=cfg, prompt=12), image(family, batch)) > 1e-6


@pytest.mark.parametrize("name", ["eps", "flux"])
@pytest.mark.parametrize("method", METHODS)
def test_fifty_steps_in_half_precision(name, method):
    """The network works in bfloat16, latents in float64."""
    family, _ = MODELS[name]
    patcher = tiny.build(tiny.FAMILIES[family].network, family)
    patcher.model.diffusion_model.to(torch.bfloat16)
    patcher.model.diffusion_model.dtype = torch.bfloat16
    patcher.model.manual_cast_dtype = None
    state = inverted(patcher, family, 50, method=method)
    assert_same(sampled(patcher, family, state), image(family))


@pytest.mark.parametrize("name", ["eps", "flux"])
def test_naive_inversion_is_not_exact(name, capsys):
    """Euler backwards and forwards, as an unsampler has it."""
    family, _ = MODELS[name]
    model = tiny.model(family)

    class Naive(comfy.samplers.Sampler):
        def sample(self, guider, sigmas, extra_args, callback, noise, *args, **kwargs):
            levels, x = sigmas.tolist(), noise.double()
            pairs = list(zip(levels, levels[1:]))
            for target, sigma in reversed(pairs):
                f = (x - guider(x, x.new_full((len(x),), target), **extra_args)) / target
                x = x + (target - sigma) * f
            for sigma, target in pairs:
                f = (x - guider(x, x.new_full((len(x),), sigma), **extra_args)) / sigma
                x = x + (target - sigma) * f
            return x

    start = model.model.process_latent_in(image(family))
    zeros = torch.zeros_like(start)
    found = guider(model, family).sample(start, zeros, Naive(), sigmas(model, 50), disable_pbar=True, seed=0)
    naive = probes.distance(found, image(family))
    exact = probes.distance(sampled(model, family, inverted(model, family, 50)), image(family))
    with capsys.disabled():
        print(f"\n{name}: largest relative error of Euler {naive:.1e}, of EDICT {exact:.1e}")
    assert exact <= 1e-9
    assert naive > 1e-4


@pytest.mark.parametrize("method", METHODS)
def test_evaluations(method):
    model = tiny.model("flux")
    calls = probes.count_evaluations(model)
    state = inverted(model, "flux", 6, method=method)
    there = calls.total
    sampled(model, "flux", state)
    per_step = 1 if method in ("bdia", "o-belm") else 2
    assert there == 2 * (6 * per_step + 1)  # cond and uncond, and one more to check that the model is deterministic
    assert calls.total - there == 2 * (6 * per_step - (per_step == 1))


@pytest.mark.parametrize("method", METHODS)
def test_part_of_the_way(method):
    """From a lower noise level another prompt changes less."""
    model = tiny.model("flux")
    changes = []
    for start in (0, 5):
        state = inverted(model, "flux", 8, start=start, method=method)
        assert_same(sampled(model, "flux", state), image("flux"))
        changes.append(probes.distance(sampled(model, "flux", state, prompt=12), image("flux")))
    assert changes[1] < changes[0]


PURE = {
    "apg": lambda m: run_node(APG, model=m, momentum=0.0),
    "pag": lambda m: run_node(PAG, model=m, blocks="1", end_percent=0.6),
    "slg random": lambda m: run_node(SLG, model=m, random_blocks=1, random_seed=3, start_percent=0.0, end_percent=1.0),
    "autoguidance noise": lambda m: run_node(Autoguidance, model=m, weakness="token noise"),
    "interval": lambda m: run_node(GuidanceInterval, model=m, limits="percent", start_percent=0.3, end_percent=0.7),
    "cfg++": lambda m: run_node(CFGPP, model=m),
    "nasa": lambda m: run_node(NASA, model=m, negative=tiny.conditioning("unet", 33), method="NASA", end_percent=0.5),
    "negtome": lambda m: run_node(
        NegToMe,
        model=m,
        reference=GIVEN,
        latent={"samples": tiny.noise("unet", seed=60)},
        threshold=-1.0,
        reference_noise="noised to the step",
    ),
}


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", PURE)
def test_guidance_is_the_same_there_and_back(name, method):
    """Ranges, scales and random blocks belong to steps; a step is the same in both directions."""
    if name == "slg random" and not reaches_unet_layers():
        pytest.skip("this host cannot skip blocks of a UNet")
    model = PURE[name](tiny.model("unet"))
    state = inverted(model, "unet", 9, method=method)
    assert_same(sampled(model, "unet", state), image("unet"))
    plain = inverted(tiny.model("unet"), "unet", 9, method=method)
    pairs = (torch.cat(each["guidekit_inversion"].pair) for each in (state, plain))
    assert probes.distance(*pairs) > 1e-6


def sample_euler(model, levels):
    start, zeros = tiny.noise("unet"), torch.zeros_like(image("unet"))
    euler = comfy.samplers.sampler_object("euler")
    guider(model, "unet").sample(start, zeros, euler, levels, disable_pbar=True, seed=0)


def test_steps_are_those_of_the_schedule():
    """An interval guides the same steps as in any sampler of that schedule."""
    model = PURE["interval"](tiny.model("unet"))
    calls, levels = probes.count_evaluations(model), sigmas(model, 9)
    sample_euler(model, levels)
    wanted = calls.total
    state = inverted(model, "unet", 9)
    before = calls.total
    sampled(model, "unet", state)
    assert 9 < wanted < 18
    assert calls.total - before == 2 * wanted  # EDICT evaluates every prediction twice
    assert before - wanted in (2 * wanted + 1, 2 * wanted + 2)  # and repeats one evaluation


def test_the_step_before_an_image_is_the_last_one():
    """Where a method of two levels makes the image's neighbour. An interval of the first half does not guide it."""
    model = run_node(GuidanceInterval, model=tiny.model("unet"), limits="percent", start_percent=0.0, end_percent=0.5)
    calls, levels = probes.count_evaluations(model), sigmas(model, 9)
    sample_euler(model, levels)
    guided = calls.total - 9
    inverted(model, "unet", 9, method="o-belm")
    # Nine evaluations, those of steps 1 to 8 as guided as Euler's, and the one of step 1 again.
    assert calls.total - (9 + guided) == 9 + (guided - 1) + 2


IMPURE = {
    "APG": lambda m: run_node(APG, model=m, momentum=-0.5),
    "Adaptive guidance": lambda m: run_node(AdaptiveGuidance, model=m),
    "EasyCache": lambda m: nodes_easycache.EasyCacheNode.execute(m, 0.2, 0.1, 0.95, False)[0],
}


@pytest.mark.parametrize("name", IMPURE)
def test_guidance_that_remembers_is_refused(name):
    model = IMPURE[name](tiny.model("unet"))
    with pytest.raises(ValueError, match=name):
        inverted(model, "unet")
    state = inverted(tiny.model("unet"), "unet")
    with pytest.raises(ValueError, match=name):
        sampled(model, "unet", state)
    assert torch.isfinite(tiny.sample(model, "unet")).all()  # elsewhere it works on


def test_a_model_that_is_not_deterministic_is_refused():
    model = tiny.model("unet").clone()
    model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + torch.randn_like(args["denoised"]))
    with pytest.raises(ValueError, match="not deterministic: one input gave two predictions"):
        inverted(model, "unet")


def test_an_interrupt_leaves_nothing():
    model = run_node(PAG, model=tiny.model("unet"))

    def stop(args):
        raise comfy.model_management.InterruptProcessingException

    stopped = model.clone()
    stopped.set_model_sampler_post_cfg_function(stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        inverted(stopped, "unet")
    assert_same(sampled(model, "unet", inverted(model, "unet")), image("unet"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("family", ["unet", "flux"])
def test_outside_a_mask_nothing_changes(family, method):
    model = tiny.model(family)
    state = inverted(model, family, batch=2, method=method, keep_trajectory=True)
    mask = torch.zeros(1, 64, 64)
    mask[:, :, :24] = 1
    found = sampled(model, family, state, mask, prompt=12)
    whole = sampled(model, family, state, prompt=12)
    inside = slice(0, 2)  # of 8 columns, away from where the mask is soft
    assert_same(found[..., 4:], image(family, 2)[..., 4:])
    assert probes.distance(found[..., inside], image(family, 2)[..., inside]) > 1e-5
    assert torch.equal(sampled(model, family, state, torch.ones(1, 64, 64), prompt=12), whole)
    assert_same(sampled(model, family, state, torch.zeros(1, 64, 64), prompt=12), image(family, 2))


def test_a_mask_needs_the_trajectory():
    model = tiny.model("unet")
    with pytest.raises(ValueError, match="keep_trajectory"):
        sampled(model, "unet", inverted(model, "unet"), torch.ones(1, 64, 64))


def test_samples_are_the_noise_in_the_host_s_units():
    """In the host's units; another sampler can use it."""
    model = tiny.model("flux")
    state = inverted(model, "flux")
    raw = model.model.process_latent_in(state["samples"])
    assert state["samples"].dtype == torch.float32
    assert probes.distance(raw, state["guidekit_inversion"].pair.x) < 1e-5
    assert state["guidekit_inversion"].pair.x.dtype == torch.float64


def test_latents_that_carry_no_inversion():
    model = tiny.model("unet")
    state = inverted(model, "unet")
    with pytest.raises(ValueError, match="carries no inversion"):
        sampled(model, "unet", {"samples": state["samples"]})
    with pytest.raises(ValueError, match="was changed after its inversion"):
        sampled(model, "unet", {**state, "samples": state["samples"] * 2})
    with pytest.raises(ValueError, match="was changed after its inversion"):
        sampled(model, "unet", {**state, "samples": state["samples"][..., :4]})


def test_another_model():
    state = inverted(tiny.model("unet"), "unet")
    with pytest.raises(ValueError, match="parameterisation"):
        sampled(tiny.model("unet", ModelType.V_PREDICTION), "unet", state)
    with pytest.raises(ValueError, match="was inverted with model"):
        sampled(tiny.model("flux"), "flux", state)


@pytest.mark.parametrize("values", [[1.0], [0.0, 0.5, 1.0], [1.0, 1.0, 0.0]])
def test_sigmas_that_do_not_fall(values):
    with pytest.raises(ValueError, match="at least two, falling"):
        inverted(tiny.model("flux"), "flux", sigmas=torch.tensor(values))


@pytest.mark.parametrize("method", ["bdia", "o-belm"])
def test_one_step_is_not_enough_for_two(method):
    with pytest.raises(ValueError, match="needs at least two steps"):
        inverted(tiny.model("flux"), "flux", 1, method=method)


def test_a_latent_with_a_mask():
    latent = {"samples": image("unet"), "noise_mask": torch.ones(1, 8, 8)}
    with pytest.raises(ValueError, match="has a mask"):
        inverted(tiny.model("unet"), "unet", latent=latent)


@pytest.mark.parametrize("method", METHODS)
def test_the_last_sigma_of_the_schedule(method):
    """0, except for a method that evaluates the model there: half the previous level, or the model's smallest."""
    model = tiny.model("flux")
    found = inverted(model, "flux", 5, method=method)["guidekit_inversion"].sigmas
    given = sigmas(model, 5)
    smallest = min(float(model.get_model_object("model_sampling").sigma_min), given[-2].item() / 2)
    assert torch.equal(found[:-1], given[:-1])
    assert found[-1].item() == pytest.approx(smallest if method == "rex" else 0.0)


def test_automatic_p():
    """The paper's p would let rounding grow without bound in many steps."""
    model = tiny.model("flux")
    state = inverted(model, "flux", 40, p=0.0)["guidekit_inversion"]
    assert state.make_method().p == pytest.approx(1000 ** (-1 / 80))
    assert inverted(model, "flux", 4, p=0.9)["guidekit_inversion"].make_method().p == 0.9


def test_the_report(caplog):
    """The size of the noise, and a warning where rounding grows too much."""
    caplog.set_level("INFO")
    model = tiny.model("flux")
    inverted(model, "flux", 8)
    assert "edict: 8 steps, 16 evaluations for each prediction. The noise has a standard deviation of" in caplog.text
    assert "rounding" not in caplog.text
    inverted(model, "flux", 40, p=0.6)
    assert "With p 0.6 and so many steps rounding grows too much; use p 0." in caplog.text


def test_a_method_that_is_not_stable_is_named(caplog):
    """Each step back of BDIA multiplies what differs from it by 1 / gamma."""
    caplog.set_level("INFO")
    model = tiny.model("unet")
    inverted(model, "unet", steps=12, method="bdia", gamma=0.5)
    assert "bdia is not stable with this model and these settings" in caplog.text
    caplog.clear()
    inverted(model, "unet", steps=12, method="edict", p=0.93)
    assert "not stable" not in caplog.text


@pytest.mark.parametrize("method", METHODS)
def test_on_devices_without_double_precision(method, monkeypatch):
    monkeypatch.setattr("guidekit.nodes.host.inversion.exact.precision", lambda device: torch.float32)
    model = tiny.model("flux")
    state = inverted(model, "flux", 8, method=method)
    assert state["guidekit_inversion"].pair.x.dtype == torch.float32
    error = probes.distance(sampled(model, "flux", state), image("flux"))
    assert error < (1e-1 if method == "rex" else 1e-3)  # Rex's second latent is a thousand times as large


def test_precision_of_devices_without_float64(caplog, monkeypatch):
    cpu = torch.device("cpu")
    assert precision(cpu) == torch.float64
    assert not caplog.text

    def refuse(*shape, dtype, device):
        raise TypeError("Cannot convert a MPS Tensor to float64 dtype")

    monkeypatch.setattr(torch, "zeros", refuse)
    assert precision(cpu) == torch.float32
    assert "cpu has no float64: exact inversion works in float32 there" in caplog.text


def test_progress_and_previews(monkeypatch):
    """One callback per step, with the denoised prediction."""
    seen = []

    def callback(*args):
        return lambda step, x0, x, total: seen.append((step, total, x0.dtype, bool(torch.isfinite(x0).all())))

    monkeypatch.setattr("latent_preview.prepare_callback", callback)
    model = tiny.model("flux")
    for method in METHODS:
        seen.clear()
        state = inverted(model, "flux", 5, method=method)
        assert seen == [(i, 5, torch.float32, True) for i in range(5)]
        seen.clear()
        sampled(model, "flux", state)
        steps = 4 if method in ("bdia", "o-belm") else 5
        assert seen == [(i, steps, torch.float32, True) for i in range(steps)]
