"""APG in the host: the formula at every step, one momentum per step, and where core's own node differs."""

import comfy.model_management
import comfy.nested_tensor
import comfy.samplers
import pytest
import torch
from comfy_extras.nodes_apg import APG as CoreAPG

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.apg import APG
from guidekit.tests.host import probes, toy

RANKS, PARAMETERISATIONS = [3, 4, 5], ["eps", "v", "flow"]
OFF = {"eta": 1.0, "momentum": 0.0, "norm_threshold": 1e3}  # attached, yet without effect


def apg(model, **settings):
    return run_node(APG, model=model, **settings)


def algorithm_1(cond, uncond, w, eta, r, beta, previous):
    """The paper's algorithm for one sample, in double precision, written out."""
    cond, uncond = cond.double().flatten(), uncond.double().flatten()
    delta = cond - uncond + (beta * previous if previous is not None else 0)
    kept = delta.clone()
    if r > 0 and delta.norm() > r:
        delta = delta * (r / delta.norm())
    unit = cond / cond.norm()
    parallel = torch.dot(delta, unit) * unit
    return cond + (w - 1) * (delta - parallel + eta * parallel), kept


def expected(steps, evaluations, w, eta, r, beta):
    """The guided predictions of a run from its recorded raw ones; `evaluations` per outer step. Every evaluation of a
    step sees the buffer of the previous step, and the first one of a step makes the next."""
    out, left = [], {}
    for n in evaluations:
        before = dict(left)
        for i in range(n):
            step = steps[len(out)]
            rows = []
            for b, (c, u) in enumerate(zip(step["cond_denoised"], step["uncond_denoised"])):
                guided, kept = algorithm_1(c, u, w, eta, r, beta, before.get(b))
                if i == 0:
                    left[b] = kept
                rows.append(guided.reshape(c.shape))
            out.append(torch.stack(rows))
    return out


@pytest.mark.parametrize(
    "settings",
    [
        {"eta": 0.0, "momentum": -0.5, "norm_threshold": 0.0},
        {"eta": 0.3, "momentum": -0.75, "norm_threshold": 0.2},
        {"eta": -0.5, "momentum": 0.4, "norm_threshold": 2.0, "norm_unit": "l2"},
    ],
)
@pytest.mark.parametrize(
    ("sampler", "evaluations"),
    [
        ("euler", [1] * 4),
        ("heun", [2, 2, 2, 1]),
        ("dpmpp_2s_ancestral", [2, 2, 2, 1]),
    ],
)
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("rank", RANKS)
def test_every_prediction_is_algorithm_1(rank, parameterisation, sampler, evaluations, settings):
    model = apg(toy.model(rank, parameterisation), **settings)
    seen = probes.record_predictions(model)
    toy.sample(model, rank, cfg=5.0, sampler=sampler, batch=2)
    assert len(seen.steps) == sum(evaluations)
    numel = toy.noise(rank)[0].numel()
    r = settings["norm_threshold"] * (1 if settings.get("norm_unit") == "l2" else numel**0.5)
    wanted = expected(seen.steps, evaluations, 5.0, settings["eta"], r, settings["momentum"])
    for step, guided in zip(seen.steps, wanted):
        assert probes.distance(step["denoised"].double(), guided) < 1e-5


@pytest.mark.parametrize("cfg", [0.0, 1.0, 1.5, 8.0])
@pytest.mark.parametrize("parameterisation", PARAMETERISATIONS)
@pytest.mark.parametrize("rank", RANKS)
def test_without_effect_it_is_plain_cfg(rank, parameterisation, cfg):
    plain = toy.sample(toy.model(rank, parameterisation), rank, cfg=cfg, batch=2)
    for scope in ("cfg", "everything before"):
        ours = toy.sample(apg(toy.model(rank, parameterisation), **OFF, scope=scope), rank, cfg=cfg, batch=2)
        assert probes.distance(ours, plain) < 1e-5


def test_cfg_1_is_untouched_even_if_uncond_is_evaluated():
    model = toy.model()
    model.disable_model_cfg1_optimization()
    assert torch.equal(toy.sample(apg(model), cfg=1.0), toy.sample(model, cfg=1.0))


def test_no_negative_is_untouched_at_any_scale():
    """A guider with a positive alone: the host hands over zeros for the prediction that it did not make."""

    def run(model):
        guider = comfy.samplers.CFGGuider(model)
        guider.inner_set_conds({"positive": toy.conditioning(1.0)})
        guider.set_cfg(4.0)
        x = toy.noise(4)
        sigmas = torch.tensor([10.0, 1.0, 0.0])
        return guider.sample(x, x * 0, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    assert torch.equal(run(apg(toy.model())), run(toy.model()))


def test_everything_before_takes_in_earlier_nodes():
    """A constant added before APG is projected with scope "everything before", and passes with scope "cfg"."""

    def parallel(scope):
        model = toy.model()
        model.set_model_sampler_post_cfg_function(lambda args: args["denoised"] + args["cond_denoised"])
        model = apg(model, momentum=0.0, scope=scope)
        seen = probes.record_predictions(model)
        toy.sample(model, cfg=3.0, steps=1)
        step = seen.steps[0]
        update, cond = (step["denoised"] - step["cond_denoised"]).flatten(), step["cond_denoised"].flatten()
        return (update @ cond / (cond @ cond)).item()

    assert parallel("everything before") == pytest.approx(0.0, abs=1e-5)
    assert parallel("cfg") == pytest.approx(1.0, abs=1e-5)


def test_streams_of_a_packed_latent_are_guided_apart():
    """Video and audio in one latent: the video comes out as it does alone, whatever the audio."""
    video, audio = torch.randn(1, 4, 2, 4, 6), torch.randn(1, 4, 24)

    def run(latent):
        model = toy.model(5, "flow")
        model.model.diffusion_model = toy.Elementwise()
        model = apg(model, norm_threshold=0.1)
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(6.0)
        sigmas = torch.tensor([1.0, 0.7, 0.3, 0.0])
        zeros = latent * 0
        return guider.sample(latent, zeros, comfy.samplers.sampler_object("euler"), sigmas, disable_pbar=True)

    alone = run(video)
    together = [run(comfy.nested_tensor.NestedTensor([video, audio * loud])).unbind()[0] for loud in (1.0, 30.0)]
    assert probes.distance(together[0], alone) < 1e-5
    assert probes.distance(together[1], alone) < 1e-5


class TestCore:
    """Both nodes in one test, at settings where they should agree with a known answer. Core's errors are printed."""

    def compare(self, model, reference, core_settings, ours_settings, sample):
        core = probes.distance(sample(CoreAPG.execute(model, **core_settings)[0]), reference)
        ours = probes.distance(sample(apg(model, **ours_settings)), reference)
        print(f"  core {core:.3g}, ours {ours:.3g}")
        return core, ours

    def test_neutral_is_cfg(self):
        """Core's neutral setting is CFG at w + 1."""
        model = toy.model()
        neutral = {"eta": 1.0, "norm_threshold": 0.0, "momentum": 0.0}
        core, ours = self.compare(model, toy.sample(model, cfg=4.0), neutral, OFF, lambda m: toy.sample(m, cfg=4.0))
        assert ours < 1e-5 < 1e-2 < core
        core = toy.sample(CoreAPG.execute(model, 1.0, 0.0, 0.0)[0], cfg=4.0)
        assert probes.distance(core, toy.sample(model, cfg=5.0)) < 1e-5

    def test_no_uncond_is_cond(self):
        """At cfg 1 core guides by zeros."""
        model = toy.model()
        settings = {"eta": 1.0, "norm_threshold": 5.0, "momentum": 0.0}
        core, ours = self.compare(
            model, toy.sample(model, cfg=1.0), settings, settings, lambda m: toy.sample(m, cfg=1.0)
        )
        assert ours == 0 < 1e-2 < core

    def test_samples_of_a_3d_batch_are_independent(self):
        """Core's norm and projection run over the batch of audio latents."""
        model = toy.model(3)
        settings = {"eta": 0.0, "momentum": 0.0}
        alone = {
            name: toy.sample(node, 3, batch=1)
            for name, node in {
                "core": CoreAPG.execute(model, **settings, norm_threshold=3.0)[0],
                "ours": apg(model, **settings, norm_threshold=3.0, norm_unit="l2"),
            }.items()
        }
        core = probes.distance(
            toy.sample(CoreAPG.execute(model, **settings, norm_threshold=3.0)[0], 3, batch=3)[:1], alone["core"]
        )
        ours = probes.distance(
            toy.sample(apg(model, **settings, norm_threshold=3.0, norm_unit="l2"), 3, batch=3)[:1], alone["ours"]
        )
        print(f"  core {core:.3g}, ours {ours:.3g}")
        assert ours < 1e-5 < 1e-3 < core

    def test_a_second_order_sampler_moves_the_momentum_once_per_step(self):
        """Core moves it at each of Heun's evaluations; the reference is the algorithm over the recorded predictions."""
        errors = {}
        for name in ("core", "ours"):
            model = toy.model(parameterisation="flow")
            settings = {"eta": 0.0, "momentum": -0.75, "norm_threshold": 0.0}
            model = CoreAPG.execute(model, **settings)[0] if name == "core" else apg(model, **settings)
            seen = {"raw": []}

            def keep(args, seen=seen):
                seen["raw"].append((args["conds_out"][0].clone(), args["conds_out"][1].clone()))
                return args["conds_out"]

            model.model_options["sampler_pre_cfg_function"] = [
                keep,
                *model.model_options.get("sampler_pre_cfg_function", []),
            ]
            after = probes.record_predictions(model)
            toy.sample(model, cfg=4.0, sampler="heun")
            steps = [{"cond_denoised": c, "uncond_denoised": u} for c, u in seen["raw"]]
            scale = 5.0 if name == "core" else 4.0  # core's w is one too large
            wanted = expected(steps, [2, 2, 2, 1], scale, 0.0, 0.0, -0.75)
            errors[name] = max(probes.distance(s["denoised"].double(), w) for s, w in zip(after.steps, wanted))
        print(f"  core {errors['core']:.3g}, ours {errors['ours']:.3g}")
        assert errors["ours"] < 1e-5 < 1e-3 < errors["core"]

    def test_an_interrupted_run_leaves_no_momentum(self):
        """Core keeps the buffer of a stopped run if the next one starts below its last sigma."""

        def stop(step, *_):
            if step == 1:
                raise comfy.model_management.InterruptProcessingException()

        errors = {}
        for name in ("core", "ours"):
            make = {
                "core": lambda m: CoreAPG.execute(m, eta=0.0, norm_threshold=0.0, momentum=-0.75)[0],
                "ours": lambda m: apg(m, momentum=-0.75),
            }[name]
            model = make(toy.model())
            fresh = toy.sample(make(toy.model()), denoise=0.3)
            with pytest.raises(comfy.model_management.InterruptProcessingException):
                toy.sample(model, callback=stop)
            errors[name] = probes.distance(toy.sample(model, denoise=0.3), fresh)
        print(f"  core {errors['core']:.3g}, ours {errors['ours']:.3g}")
        assert errors["ours"] == 0 < 1e-4 < errors["core"]
