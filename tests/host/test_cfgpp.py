"""CFG++ through the host: as a schedule of the scale, as samplers, as an inversion; against core's samplers."""

import comfy.model_management
import comfy.sample
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_custom_sampler import Guider_Basic, Guider_DualCFG

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.cfgpp import CFGPP
from guidekit.nodes.cfgpp_inversion import CFGPPInversion
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.sampler_cfgpp import SAMPLERS, SamplerCFGPP
from guidekit.tests.host import probes, tiny, toy
from guidekit.tests.host.products import PRODUCTS

EULER = comfy.samplers.sampler_object("euler")
FAMILIES = ["unet", "flux"]
STEPS = 4
# Ours, and the host's plain samplers that they become without guidance.
PLAIN = {
    "euler": "euler",
    "euler ancestral": "euler_ancestral",
    "dpmpp 2m": "dpmpp_2m",
    "dpmpp 2m sde": "dpmpp_2m_sde",
    "dpmpp 2s ancestral": "dpmpp_2s_ancestral",
}


def guider_of(model, family, cfg=4.0, negative=22, kind=comfy.samplers.CFGGuider):
    guider = kind(model)
    guider.set_conds(tiny.conditioning(family, 11), tiny.conditioning(family, negative))
    guider.set_cfg(cfg)
    return guider


def schedule(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def run(model, family, sampler, batch=1, sigmas=None, latent=None, **options):
    guider_options = {k: options.pop(k) for k in ("cfg", "negative", "kind") if k in options}
    tiny.HANDED_OUT.append(model)
    x = tiny.noise(family, batch)
    sigmas = schedule(model) if sigmas is None else sigmas
    latent = torch.zeros_like(x) if latent is None else latent
    guider = guider_of(model, family, **guider_options)
    return guider.sample(x, latent, sampler, sigmas, disable_pbar=True, seed=3, **options)


def ours(name="euler", **settings):
    return run_node(SamplerCFGPP, sampler=name, **settings)


# The node on the model


@pytest.mark.parametrize("family", tiny.FAMILIES)
@pytest.mark.parametrize("guidance_lambda", [0.0, 0.6, 1.0])
def test_with_euler_it_is_the_hosts_euler_cfg_pp(family, guidance_lambda):
    """The one of core's CFG++ samplers that is right for every kind of model."""
    model = run_node(CFGPP, model=tiny.model(family), guidance_lambda=guidance_lambda)
    core = comfy.samplers.sampler_object("euler_cfg_pp")
    wanted = run(tiny.model(family), family, core, cfg=guidance_lambda)
    assert probes.distance(run(model, family, EULER), wanted) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_the_cfg_of_the_sampler_plays_no_part(family):
    model = run_node(CFGPP, model=tiny.model(family))
    assert torch.equal(run(model, family, EULER, cfg=1.0), run(model, family, EULER, cfg=12.0))


@pytest.mark.parametrize("family", FAMILIES)
def test_other_nodes_see_the_scale_that_is_used(family):
    """w = lambda / (1 - rho), which ends at lambda; the same for both evaluations of a Heun step."""
    model = run_node(CFGPP, model=tiny.model(family))
    seen = probes.record_predictions(model)
    run(model, family, comfy.samplers.sampler_object("heun"))
    sigmas = [float(s) for s in schedule(model)]
    ratios = [s if family == "unet" else s / (1 - s) if s < 1 else float("inf") for s in sigmas]
    wanted = [0.6 / (1 - (b / a if a < float("inf") else 0)) for a, b in zip(ratios, ratios[1:])]
    found = [step["cond_scale"] for step in seen.steps]
    assert found == pytest.approx([w for w in wanted[:-1] for _ in range(2)] + wanted[-1:], rel=1e-4)
    assert found[-1] == pytest.approx(0.6)


def test_the_hosts_own_cfg_pp_samplers_are_refused():
    model = run_node(CFGPP, model=tiny.model("flux"))
    with pytest.raises(ValueError, match="sample_euler_cfg_pp is a CFG\\+\\+ sampler already.*plain sampler"):
        tiny.sample(model, "flux", sampler="euler_cfg_pp")
    assert torch.isfinite(tiny.sample(model, "flux")).all()


@pytest.mark.parametrize("family", FAMILIES)
def test_limits_stay_away_from_core_samplers_that_take_cfg_for_lambda(family, caplog):
    """A scale of 1 is no guidance for a plain sampler and the strongest one there."""
    model = run_node(GuidanceInterval, model=tiny.model(family), limits="percent", start_percent=0.3)
    options = {"sampler": "euler_cfg_pp", "cfg": 0.6}
    assert torch.equal(tiny.sample(model, family, **options), tiny.sample(tiny.model(family), family, **options))
    assert "takes cfg as CFG++'s lambda" in caplog.text


# The samplers


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_euler_is_the_node_with_euler(family):
    model = run_node(CFGPP, model=tiny.model(family))
    assert probes.distance(run(tiny.model(family), family, ours()), run(model, family, EULER)) < 1e-5


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("product", [p for p in PRODUCTS if not p.sets_scale], ids=lambda p: p.name)
def test_together_with_other_nodes_too(product, family):
    """So PAG is not multiplied, APG sees a scale above 1, and an interval saves evaluations in the sampler as well."""
    if family not in product.families:
        pytest.skip(f"{product.name} is not for {family} on this host")
    as_sampler, as_node = product.apply(tiny.model(family)), product.apply(tiny.model(family))
    counts = [probes.count_evaluations(model) for model in (as_sampler, as_node)]
    found = run(as_sampler, family, ours())
    wanted = run(run_node(CFGPP, model=as_node), family, EULER)
    assert probes.distance(found, wanted) < 1e-4
    assert counts[0].total == counts[1].total
    assert probes.distance(found, run(tiny.model(family), family, ours())) > 1e-6


@pytest.mark.parametrize("family", FAMILIES)
def test_a_ramp_of_the_scale_is_a_ramp_of_lambda(family):
    """A limit between nothing and all: the sampler pushes by what is left of the scale."""

    def ramped():
        return run_node(GuidanceInterval, model=tiny.model(family), limits="percent", ramp=[(0, 0.2), (1, 0.9)])

    found = run(ramped(), family, ours())
    assert probes.distance(found, run(run_node(CFGPP, model=ramped()), family, EULER)) < 1e-5
    assert probes.distance(found, run(tiny.model(family), family, ours())) > 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_without_a_difference_it_is_the_hosts_plain_sampler(family, name):
    """The same prompt twice, the same noise. On flows core moves the start of its SDE sampler and has another rule for
    ancestral noise in 2s: there ours are compared without noise, with 2m, and from below t = 1."""
    model, plain, settings = tiny.model(family), PLAIN[name], {}
    sigmas = schedule(model)
    if family == "flux":
        sigmas = torch.tensor([0.95, 0.7, 0.4, 0.15, 0.0])
        if name == "dpmpp 2s ancestral":
            pytest.skip("core's sampler is another one for flows")
    found = run(model, family, ours(name, **settings), sigmas=sigmas, negative=11)
    if family == "flux" and name in ("euler ancestral", "dpmpp 2m"):  # core's plain ones differ for flows
        plain = {"euler ancestral": "euler_ancestral_cfg_pp", "dpmpp 2m": "dpmpp_2m_sde"}[name]
    options = {"eta": 0.0} if plain == "dpmpp_2m_sde" and name == "dpmpp 2m" else {}
    sampler = comfy.samplers.ksampler(plain, options)
    # Core works out ancestral noise levels in float32.
    assert probes.distance(found, run(model, family, sampler, sigmas=sigmas, cfg=1.0)) < 1e-3


def toy_run(parameterisation, sampler, batch=1, positive=2.0, model=None, **options):
    model = model or toy.model(4, parameterisation)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(positive), toy.conditioning(-1.5))
    guider.set_cfg(4.0)
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 6)
    x = toy.noise(4, batch)
    return guider.sample(x, torch.zeros_like(x), sampler, sigmas, disable_pbar=True, seed=3, **options)


@pytest.mark.parametrize("parameterisation", ["eps", "v", "edm", "flow"])
@pytest.mark.parametrize("batch", [1, 3])
class TestIdentities:
    """The paper's identities, on a network with exact arithmetic."""

    def test_euler_is_the_scale_schedule(self, parameterisation, batch):
        model = run_node(CFGPP, model=toy.model(4, parameterisation))
        wanted = toy_run(parameterisation, EULER, batch, model=model)
        assert probes.distance(toy_run(parameterisation, ours(), batch), wanted) < 1e-5

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_without_a_difference_lambda_plays_no_part(self, name, parameterisation, batch):
        one, other = (
            toy_run(parameterisation, ours(name, guidance_lambda=value), batch, positive=-1.5) for value in (0.2, 1.0)
        )
        assert probes.distance(one, other) < 1e-5

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_lambda_0_does_not_look_at_the_positive(self, name, parameterisation, batch):
        """Up to the rounding of the host's cfg 0, which adds and takes away the positive."""
        one, other = (
            toy_run(parameterisation, ours(name, guidance_lambda=0.0), batch, positive=value) for value in (2.0, -9.0)
        )
        assert probes.distance(one, other) < 1e-5
        assert probes.distance(toy_run(parameterisation, ours(name), batch), one) > 1e-3

    @pytest.mark.parametrize("name", SAMPLERS)
    def test_the_last_step_gives_the_guided_prediction(self, name, parameterisation, batch):
        model = toy.model(4, parameterisation)
        seen = probes.record_predictions(model)
        result = toy_run(parameterisation, ours(name), batch, model=model)
        last = seen.steps[-1]
        wanted = last["uncond_denoised"] + 0.6 * (last["cond_denoised"] - last["uncond_denoised"])
        assert probes.distance(result, model.model.process_latent_out(wanted)) < 1e-6
        assert last["cond_scale"] == pytest.approx(0.6)


def test_beside_rescale_cfg_which_takes_the_place_of_cfg():
    """Rescaling sees the scale of the step, as it does with the node on the model."""
    from comfy_extras.nodes_model_advanced import RescaleCFG

    def rescaled():
        return RescaleCFG().patch(tiny.model("unet"), 0.7)[0]

    found = run(rescaled(), "unet", ours())
    assert probes.distance(found, run(run_node(CFGPP, model=rescaled()), "unet", EULER)) < 1e-5
    assert probes.distance(found, run(tiny.model("unet"), "unet", ours())) > 1e-4


def test_on_eps_models_2m_is_cores():
    found = run(tiny.model("unet"), "unet", ours("dpmpp 2m"))
    wanted = run(tiny.model("unet"), "unet", comfy.samplers.sampler_object("dpmpp_2m_cfg_pp"), cfg=0.6)
    assert probes.distance(found, wanted) < 1e-4


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family_and_again(family, name):
    model, sampler = tiny.model(family), ours(name)
    seen = probes.count_evaluations(model)
    first = run(model, family, sampler, batch=2)
    assert torch.isfinite(first).all()
    evaluations = 2 * STEPS - 1 if "2s" in name else STEPS
    assert seen.chunks == [2] * evaluations
    assert torch.equal(run(model, family, sampler, batch=2), first)
    assert probes.distance(first, run(model, family, ours(name, guidance_lambda=0.2), batch=2)) > 1e-7

    def stop(step, *_):
        if step == 1:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        run(model, family, sampler, batch=2, callback=stop)
    assert torch.equal(run(model, family, sampler, batch=2), first)


@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize("family", FAMILIES)
def test_from_an_image_with_a_mask(family, name):
    """img2img from the middle of the schedule; outside the mask the image comes back as it was."""
    model, latent = tiny.model(family), tiny.noise(family, seed=9)
    mask = torch.zeros(1, 1, 8, 8)
    mask[..., :5] = 1
    inner = model.model.process_latent_out(model.model.process_latent_in(latent))
    result = run(model, family, ours(name), sigmas=schedule(model, 6)[2:], latent=latent, denoise_mask=mask)
    assert torch.isfinite(result).all()
    assert torch.allclose(result[..., 5:], inner[..., 5:], atol=1e-4)
    assert probes.distance(result[..., :5], inner[..., :5]) > 1e-2


@pytest.mark.parametrize("family", FAMILIES)
def test_the_guiders_cfg_is_given_back(family):
    guider = guider_of(tiny.model(family), family, cfg=3.0)
    x = tiny.noise(family)
    guider.sample(x, torch.zeros_like(x), ours(), schedule(guider.model_patcher), disable_pbar=True)
    assert guider.cfg == 3.0


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_whose_scale_happens_to_be_1_still_has_its_negative(family):
    """lambda = 1 - rho makes CFG 1 of CFG++: the host would drop the negative, and 2m needs it one step later."""
    model = tiny.model(family)
    sigmas = torch.tensor([8.0, 4.0, 2.0, 1.0, 0.0]) if family == "unet" else torch.tensor([0.9, 9 / 11, 9 / 13, 0.0])
    seen = probes.count_evaluations(model)
    run(model, family, ours("dpmpp 2m", guidance_lambda=0.5), sigmas=sigmas)
    assert set(seen.chunks) == {2}


@pytest.mark.parametrize("family", FAMILIES)
def test_no_negative_is_a_sentence(family):
    def basic(model):
        guider = Guider_Basic(model)
        guider.set_conds(tiny.conditioning(family, 1))
        return guider

    def dual(model):
        guider = Guider_DualCFG(model)
        guider.set_conds(*(tiny.conditioning(family, i) for i in range(3)))
        guider.set_cfg(3.0, 2.0)
        return guider

    for make, name in ((basic, "Guider_Basic"), (dual, "Guider_DualCFG")):
        guider, x = make(tiny.model(family)), tiny.noise(family)
        with pytest.raises(ValueError, match=f"a positive and a negative prompt.*{name} has something else"):
            guider.sample(x, torch.zeros_like(x), ours(), schedule(guider.model_patcher), disable_pbar=True)
    assert torch.isfinite(run(tiny.model(family), family, ours())).all()


@pytest.mark.parametrize("name", SAMPLERS)
def test_eta_and_s_noise(name):
    noisy = name in ("euler ancestral", "dpmpp 2m sde", "dpmpp 2s ancestral")
    results = [run(tiny.model("flux"), "flux", ours(name, **s)) for s in ({}, {"eta": 0.0}, {"s_noise": 0.5})]
    assert torch.equal(results[0], results[1]) != noisy
    assert torch.equal(results[0], results[2]) != noisy


def test_flows_with_noise_of_another_size():
    """Some have a `noise_scale`; fresh noise then has to be of that size, as in core's samplers."""
    results = []
    for scale, s_noise in ((2.0, 0.5), (None, 1.0), (2.0, 1.0)):
        model = toy.model(4, "flow")
        if scale:
            model.get_model_object("model_sampling").noise_scale = scale
        # From an image, so that the first noise, which the host scales itself, plays no part.
        sigmas = torch.tensor([0.5, 0.3, 0.1, 0.0])
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        sampler = ours("euler ancestral", s_noise=s_noise)
        x = toy.noise(4)
        results.append(guider.sample(torch.zeros_like(x), x, sampler, sigmas, disable_pbar=True, seed=3))
    assert torch.allclose(results[0], results[1], atol=1e-5)
    assert not torch.allclose(results[0], results[2], atol=1e-2)


# Flow models: who is right


def second_latent(sampler, cfg, sigmas):
    """The latent with which the sampler comes back to the model after its first step."""
    model = toy.fixed(4, "flow")
    xs = []
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    guider.set_cfg(cfg)
    x = toy.noise(4)

    def keep(step, denoised, x, steps):
        xs.append(x.clone())

    guider.sample(x, torch.zeros_like(x), sampler, sigmas, callback=keep, disable_pbar=True, seed=3)
    return xs[1]


def test_on_flow_models_core_over_guides_and_ours_do_not():
    """First step from pure noise, predictions D_c = 2, D_u = -1.5 everywhere: x' = (1 - t') D_lambda + t' n exactly.
    Core's multistep CFG++ samplers add lambda (D_c - D_u) without the 1 - t'."""
    guidance_lambda, noise = 0.6, toy.noise(4)
    guided = -1.5 + guidance_lambda * 3.5
    errors = {}
    for steps in (8, 20, 50):
        sigmas = torch.linspace(1, 0, steps + 1)
        after = float(sigmas[1])
        exact = (1 - after) * guided + after * noise
        core = {
            n: comfy.samplers.sampler_object(n) for n in ("dpmpp_2m_cfg_pp", "res_multistep_cfg_pp", "euler_cfg_pp")
        }
        mine = {f"Guidekit {n}": ours(n, guidance_lambda=guidance_lambda, eta=0.0) for n in SAMPLERS}
        for name, sampler in (core | mine).items():
            error = second_latent(sampler, guidance_lambda, sigmas) - exact
            # As a guidance scale: what is there instead of lambda.
            errors[name, steps] = guidance_lambda + error.mean().item() / ((1 - after) * 3.5)
    for name in dict.fromkeys(name for name, _ in errors):
        print(f"{name}: acts like lambda " + ", ".join(f"{errors[name, s]:.2f} at {s} steps" for s in (8, 20, 50)))
        for steps in (8, 20, 50):
            wrong = guidance_lambda * steps if name in ("dpmpp_2m_cfg_pp", "res_multistep_cfg_pp") else guidance_lambda
            assert errors[name, steps] == pytest.approx(wrong, rel=1e-3)


def test_on_flow_models_2m_agrees_with_the_exact_recursion_and_core_does_not():
    """Whole runs on a network that depends on x, against 2M as the authors write it (x0 + sigma n), in float64, with
    x and sigma mapped to the flow's for each evaluation."""
    sigmas = torch.tensor([0.98, 0.9, 0.75, 0.5, 0.25, 0.1, 0.0])
    model = toy.model(4, "flow")
    network = toy.Network()

    def denoised(ratio_x, ratio, prompt):
        t = ratio / (1 + ratio)
        x = ratio_x * (1 - t)
        return x - t * network(x, None, torch.full((1, 2, 3), prompt, dtype=torch.float64))

    ratios = sigmas.double() / (1 - sigmas.double())
    x = toy.noise(4).double() * ratios[0]
    old = h_old = None
    for sigma, target in zip(ratios, ratios[1:]):
        uncond = denoised(x, sigma, -1.5)
        guided = uncond + 0.6 * (denoised(x, sigma, 2.0) - uncond)
        if target == 0:
            x = guided
            break
        h = (sigma / target).log()
        second = 0 if old is None else (1 - (-h).exp()) * h / (2 * h_old) * (guided - old)
        x = guided - (-h).exp() * uncond + (-h).exp() * x + second
        old, h_old = uncond, h

    def error(sampler, cfg):
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(cfg)
        # The host scales noise by the first sigma.
        result = guider.sample(toy.noise(4), torch.zeros(1, 4, 6, 8), sampler, sigmas, disable_pbar=True, seed=3)
        return probes.distance(result.double(), x)

    mine, core = error(ours("dpmpp 2m"), 4.0), error(comfy.samplers.sampler_object("dpmpp_2m_cfg_pp"), 0.6)
    print(f"2M on a flow model, largest relative error of the result: Guidekit {mine:.1e}, core {core:.1e}")
    assert mine < 1e-5
    assert core > 0.05


# Inversion


def run_node_all(node, **given):
    return node.execute(**given).args


def there_and_back(model, steps, guidance_lambda=None, cfg=1.0):
    """Largest relative error of a latent after inversion and sampling; without lambda by DDIM with CFG."""
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", steps)
    given = {"model": model, "sigmas": sigmas, "guidance_lambda": guidance_lambda or 0.0}
    inversion, rising, falling = run_node_all(CFGPPInversion, **given)
    sampler = ours(guidance_lambda=guidance_lambda or 0.0)
    if guidance_lambda is None:
        inversion = sampler = EULER
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(0.5), toy.conditioning(-0.3))
    guider.set_cfg(cfg)
    latent = 0.3 * toy.noise(4, 2)
    silence = torch.zeros_like(latent)
    noise = guider.sample(silence, latent, inversion, rising, disable_pbar=True)
    assert probes.distance(noise, latent) > 0.5
    return probes.distance(guider.sample(silence, noise, sampler, falling, disable_pbar=True), latent)


@pytest.mark.parametrize("parameterisation", ["eps", "v", "flow"])
def test_inversion_and_sampling_give_the_image_back(parameterisation):
    """At lambda 0, plain DDIM, up to the discretisation. Above, CFG++ pushes by lambda in every step however short, so
    that more steps do not help; but it comes back nearer than DDIM with the CFG scale of the paper's pair does."""
    model = toy.model(4, parameterisation)
    coarse, fine = (there_and_back(model, steps, 0.0) for steps in (20, 100))
    pushed, cfg = there_and_back(model, 50, 0.6), there_and_back(model, 50, cfg=7.5)
    print(f"{parameterisation}: lambda 0 {coarse:.3f} -> {fine:.3f}; lambda 0.6 {pushed:.3f}, CFG 7.5 {cfg:.3f}")
    assert fine < 0.4 * coarse
    assert pushed < cfg


@pytest.mark.parametrize("parameterisation", ["eps", "flow"])
def test_inversion_is_exact_where_predictions_do_not_depend_on_x(parameterisation):
    """Through the host's scaling of noise and latents, from the highest noise level."""
    model = toy.fixed(4, parameterisation)
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 10)
    inversion, rising, falling = run_node_all(CFGPPInversion, model=model, sigmas=sigmas, guidance_lambda=0.6)
    latent = toy.noise(4)
    silence = torch.zeros_like(latent)
    noise = guider.sample(silence, latent, inversion, rising, disable_pbar=True)
    # To the smallest level only: the last step replaces all by the prediction.
    again = guider.sample(silence, noise, ours(), torch.cat([falling[:-1], rising[:1]]), disable_pbar=True)
    assert probes.distance(again, latent) < 5e-3


def test_inversion_schedules():
    _, rising, falling = run_node_all(
        CFGPPInversion, model=tiny.model("flux"), sigmas=torch.tensor([1.0, 0.6, 0.2, 0.0]), guidance_lambda=0.6
    )
    smallest = float(tiny.model("flux").get_model_object("model_sampling").sigma_min)
    assert rising.tolist() == pytest.approx([smallest, 0.2, 0.6, 0.9999])
    assert falling.tolist() == pytest.approx([0.9999, 0.6, 0.2, 0.0])
    model = tiny.model("unet")
    normal = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "normal", 5)
    _, rising, falling = run_node_all(CFGPPInversion, model=model, sigmas=normal, guidance_lambda=0.6)
    assert torch.equal(rising, normal[:-1].flip(0))  # ends at the smallest level already
    assert torch.equal(falling, normal)
    assert float(normal[0]) > 1


@pytest.mark.parametrize("sigmas", [[0.0, 0.5, 1.0], [1.0], [], [1.0, 1.0, 0.0]])
def test_inversion_wants_a_falling_schedule(sigmas):
    with pytest.raises(ValueError, match="Give those with which the image is to be sampled"):
        run_node_all(CFGPPInversion, model=tiny.model("flux"), sigmas=torch.tensor(sigmas), guidance_lambda=0.6)


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_the_node_on_the_model_inverts_as_the_sampler_does(family):
    """Plain euler on rising sigmas, with the CFG++ node on the model."""
    model = tiny.model(family)
    inversion, rising, _ = run_node_all(CFGPPInversion, model=model, sigmas=schedule(model, 8), guidance_lambda=0.6)
    latent = 0.3 * tiny.noise(family, seed=70)
    results = []
    for m, sampler in ((model, inversion), (run_node(CFGPP, model=model), EULER)):
        guider = guider_of(m, family)
        results.append(guider.sample(torch.zeros_like(latent), latent, sampler, rising, disable_pbar=True))
    assert probes.distance(*results) < 1e-4


def test_at_cfg_1_it_says_what_it_costs(caplog):
    caplog.set_level("INFO")
    model = run_node(CFGPP, model=tiny.model("flux"))
    seen = probes.count_evaluations(model)
    tiny.sample(model, "flux", cfg=1.0, steps=4)
    assert seen.total == 8
    assert "CFG++: the negative prompt was evaluated in 4 more evaluations, which cfg 1 would have left" in caplog.text
    caplog.clear()
    tiny.sample(model, "flux", cfg=4.0, steps=4)
    assert "more evaluations" not in caplog.text
