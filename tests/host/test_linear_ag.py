"""LinearAG through the host: fitting, the file, and other nodes beside an estimated negative."""

import json
import os

import comfy.model_management
import comfy.samplers
import folder_paths
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from guidekit.benchmarks._nodes import run_node
from guidekit.nodes.guidance_interval import GuidanceInterval
from guidekit.nodes.host.files import folders as files
from guidekit.nodes.linear_ag import LinearAG
from guidekit.nodes.linear_ag_fit import LinearAGFit
from guidekit.tests.host import probes, tiny, toy
from guidekit.tests.host.products import PRODUCTS

STEPS = 8
EULER = comfy.samplers.sampler_object("euler")


@pytest.fixture(autouse=True)
def folder(monkeypatch, tmp_path):
    """models/guidekit of this test."""
    monkeypatch.setitem(folder_paths.folder_names_and_paths, "guidekit", ([str(tmp_path / "guidekit")], set()))
    return tmp_path / "guidekit"


class Words:
    """A text encoder with as many prompts as there are numbers."""

    def __init__(self, conditioning):
        self.conditioning = conditioning

    def tokenize(self, text):
        return float(text)

    def encode_from_tokens_scheduled(self, tokens):
        return self.conditioning(tokens)


def schedule(model, steps=STEPS):
    return comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)


def fit(model, **given):
    """On the toy network."""
    settings = {
        "clip": Words(toy.conditioning),
        "negative": toy.conditioning(-1.5),
        "sampler": EULER,
        "sigmas": schedule(model),
        "latent": {"samples": torch.zeros(2, *toy.SHAPES[4])},
        "prompts": "2.0\n 0.5\n\n1.0",
        "cfg": 4.0,
        "trajectories": 6,
    }
    return run_node(LinearAGFit, model=model, **{**settings, **given})


def applied(model, file="linear_ag.safetensors", **settings):
    return run_node(LinearAG, model=model, file=file, **settings)


def sample(model, **options):
    return toy.sample(model, **{"steps": STEPS, **options})


def half_guided(model):
    """CFG in the first half of the run, the positive alone in the second: LinearAG with perfect estimates."""
    original = comfy.samplers.CFGGuider.predict_noise

    class Guider(comfy.samplers.CFGGuider):
        calls = 0

        def predict_noise(self, *args, **kwargs):
            self.set_cfg(4.0 if self.calls < STEPS // 2 else 1.0)
            self.calls += 1
            return original(self, *args, **kwargs)

    guider = Guider(model)
    guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
    x = toy.noise(4)
    return guider.sample(x, torch.zeros_like(x), EULER, schedule(model), disable_pbar=True, seed=3)


class Proportional(torch.nn.Module):
    """The output is the prompt's number times a function of x and t: the negative's is a multiple of the positive's."""

    dtype = torch.float32

    def forward(self, x, timestep, context=None, control=None, transformer_options=None, **kwargs):
        prompt = context.mean((1, 2)).reshape(-1, *[1] * (x.ndim - 1))
        return prompt * torch.tanh(x + x.roll(1, -1))


# Right


@pytest.mark.parametrize("parameterisation", ["eps", "v", "edm", "flow"])
def test_a_linear_negative_is_estimated_exactly(parameterisation):
    """In the space of the output, whatever the model predicts; there x0 space would not be linear."""
    model = toy.model(4, parameterisation)
    model.model.diffusion_model = Proportional()
    fit(model, prompts="2.0", ridge=0.0)
    found = sample(applied(model))
    assert probes.distance(found, half_guided(model)) < 1e-4
    assert probes.distance(found, sample(model)) > 1e-3


@pytest.mark.parametrize("batch", [1, 3])
def test_evaluations(batch):
    """The paper's 25 of 40 in 20 steps."""
    model = toy.model()
    fit(model, sigmas=schedule(model, 20))
    model = applied(model)
    counted = probes.count_evaluations(model)
    toy.sample(model, steps=20, batch=batch)
    assert counted.chunks == [2, 1] * 5 + [1] * 10
    assert counted.total == 25


def test_an_estimate_is_what_the_file_says():
    """Row 3 of the file over the outputs seen so far, an earlier estimate among them."""
    model = toy.model(4, "flow")
    fit(model)
    with safe_open(files.MODELS.path_of("linear_ag.safetensors"), "pt") as file:
        a, b = file.get_tensor("cond"), file.get_tensor("uncond")
    model = applied(model)
    seen = probes.record_predictions(model)
    sample(model)
    velocity = [
        [(s["input"] - s[which]).double() / s["sigma"].double() for s in seen.steps]
        for which in ("cond_denoised", "uncond_denoised")
    ]
    cond, uncond = velocity
    for step in (1, 3):
        wanted = sum(a[step, i] * cond[i] for i in range(step + 1)) + sum(b[step, i] * uncond[i] for i in range(step))
        assert torch.allclose(uncond[step], wanted, rtol=1e-3, atol=1e-4)
        assert seen.steps[step]["cond_scale"] == 4.0
        assert seen.steps[step]["uncond"] is not None
    assert [s["cond_scale"] for s in seen.steps] == [4.0] * 4 + [1.0] * 4


def test_cond_alone_makes_an_estimated_step_conditional(folder):
    model = toy.model()
    fit(model)
    path = files.MODELS.path_of("linear_ag.safetensors")
    with safe_open(path, "pt") as file:
        metadata = {"guidekit": file.metadata()["guidekit"]}  # without the checksum of other coefficients
    eye = {"cond": torch.eye(STEPS, dtype=torch.float64), "uncond": torch.zeros(STEPS, STEPS, dtype=torch.float64)}
    save_file(eye, path, metadata)
    model = applied(model)
    seen = probes.record_predictions(model)
    sample(model)
    for i, step in enumerate(seen.steps):
        conditional = torch.allclose(step["denoised"], step["cond_denoised"], rtol=1e-4, atol=1e-5)
        assert conditional == (i % 2 == 1 or i >= STEPS // 2)


def test_the_fit_explains_what_it_was_fitted_on():
    """The toy's two outputs are not linear in each other, but nearly."""
    model = toy.model(4, "flow")
    report = LinearAGFit.execute(
        model,
        Words(toy.conditioning),
        toy.conditioning(-1.5),
        EULER,
        schedule(model),
        {"samples": torch.zeros(2, *toy.SHAPES[4])},
        "2.0\n1.5",
        4.0,
        8,
        "mine",
        0,
        1e-6,
    )[1]
    assert report.startswith("mine.safetensors: 8 trajectories of 8 steps.")
    left = [float(part.split(": ")[1].rstrip(".")) for part in report.split("by step: ")[1].split(", ")]
    assert len(left) == STEPS
    assert max(left[1:]) < 0.05


# Every family, and beside every node


def fit_tiny(model, family, steps=4, **given):
    settings = {
        "clip": Words(lambda seed: tiny.conditioning(family, int(seed))),
        "negative": tiny.conditioning(family, 22),
        "sampler": EULER,
        "sigmas": schedule(model, steps),
        "latent": {"samples": torch.zeros(1, *tiny.FAMILIES[family].latent)},
        "prompts": "1\n2",
        "cfg": 4.0,
        "trajectories": 2,
    }
    tiny.HANDED_OUT.append(model)
    return run_node(LinearAGFit, model=model, **{**settings, **given})


@pytest.mark.parametrize("family", tiny.FAMILIES)
def test_every_family(family):
    model = tiny.model(family)
    fit_tiny(model, family)
    model = applied(model)
    counted = probes.count_evaluations(model)
    first = tiny.sample(model, family, batch=2)
    assert counted.chunks == [2, 1, 1, 1]
    assert torch.isfinite(first).all()
    assert torch.equal(tiny.sample(model, family, batch=2), first)
    assert probes.distance(first, tiny.sample(tiny.model(family), family, batch=2)) > 1e-7


@pytest.mark.parametrize("family", ["unet", "flux"])
@pytest.mark.parametrize("product", PRODUCTS, ids=lambda p: p.name)
def test_beside_every_node_in_both_orders(product, family):
    """Fitted on the plain model: beside what the other node adds, the estimate is merely worse."""
    if family not in product.families:
        pytest.skip(f"{product.name} is not for {family} on this host")
    fit_tiny(tiny.model(family), family, steps=6)
    one = product.apply(applied(tiny.model(family)))
    other = applied(product.apply(tiny.model(family)))
    counts = [probes.count_evaluations(model) for model in (one, other)]
    results = [tiny.sample(model, family, steps=6) for model in (one, other)]
    assert counts[0].chunks == counts[1].chunks
    plain = product.apply(tiny.model(family))
    without = probes.count_evaluations(plain)
    alone = tiny.sample(plain, family, steps=6)
    # One estimated step, and three at the end; of another model's network where that predicts the negative. What rides
    # along with the negative is saved too.
    saved = {"interval": 3, "adaptive": 0, "preference_cfg_model": 0, "negtome": 8, "style_aligned": 8, "cache": 2}.get(
        product.name, 4
    )
    assert without.total - counts[0].total == saved
    assert torch.isfinite(results[0]).all()
    if product.name != "apg_everything":  # which means "before"
        assert probes.distance(*results) < 1e-4
    if product.name != "adaptive":  # which stops after the first step here, and leaves nothing to estimate
        assert probes.distance(results[0], alone) > 1e-7


def test_a_limit_on_guidance_leaves_no_gap_in_what_is_known():
    """An interval that begins in the third step: nothing was seen before, so nothing can be estimated."""
    model = toy.model()
    fit(model)
    sigma = float(schedule(model)[2])
    limited = run_node(GuidanceInterval, model=applied(model), limits="sigma", sigma_high=sigma, sigma_low=0.0)
    counted = probes.count_evaluations(limited)
    sample(limited)
    assert counted.chunks == [1, 1, 2, 2, 1, 1, 1, 1]


# A run it is not for


MISMATCHES = {
    "steps": ({"steps": 10}, "fitted for 8 steps, this run has 10"),
    "scheduler": ({"scheduler": "karras"}, "fitted for the sigmas"),
    "img2img": ({"denoise": 0.5}, "fitted for the sigmas"),
    "sampler": ({"sampler": "dpmpp_2m"}, "fitted for sampler sample_euler, this run has sample_dpmpp_2m"),
    "cfg": ({"cfg": 5.0}, "fitted for cfg 4.0, this run has 5.0"),
    "negative": ({"negative": -1.0}, "another negative prompt"),
}


def toy_sample(model, scheduler="simple", **options):
    if scheduler != "simple":
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(toy.conditioning(2.0), toy.conditioning(-1.5))
        guider.set_cfg(4.0)
        x = toy.noise(4)
        sigmas = comfy.samplers.calculate_sigmas(model.get_model_object("model_sampling"), scheduler, STEPS)
        return guider.sample(x, torch.zeros_like(x), EULER, sigmas, disable_pbar=True, seed=3)
    return sample(model, **options)


@pytest.mark.parametrize("case", MISMATCHES)
def test_another_run_is_refused_or_plain(case, caplog):
    options, sentence = MISMATCHES[case]
    caplog.set_level("INFO")
    fit(toy.model())
    with pytest.raises(ValueError, match=f"do not fit this run.*{sentence}.*Fit them again"):
        toy_sample(applied(toy.model()), **options)
    plain = applied(toy.model(), on_mismatch="use CFG")
    assert torch.equal(toy_sample(plain, **options), toy_sample(toy.model(), **options))
    assert "LinearAG: had no effect in this run: plain CFG was used. They were fitted for" in caplog.text
    assert sentence in caplog.text


def test_another_parameterisation_or_network_is_another_run():
    fit(toy.model(4, "eps"))
    with pytest.raises(ValueError, match="fitted for parameterisation EPS, this run has V_PREDICTION"):
        sample(applied(toy.model(4, "v")))
    fit_tiny(tiny.model("flux"), "flux")
    with pytest.raises(ValueError, match=r"fitted for model Flux, this run has"):
        tiny.sample(applied(tiny.model("sd3")), "sd3")


def test_a_negative_that_differs_by_rounding_is_the_same():
    """Text encoders on other devices, or in half precision."""
    fit_tiny(tiny.model("flux"), "flux")
    negative = tiny.conditioning("flux", 22)
    negative[0][0] = negative[0][0].bfloat16().float()
    counted = probes.count_evaluations(model := applied(tiny.model("flux")))
    tiny.sample(model, "flux", negative=negative)
    assert counted.total == 5


def test_a_second_sampler_with_another_schedule_is_plain_and_the_first_unharmed():
    """Hires fix in one graph: the position in the coefficients belongs to the run."""
    fit(toy.model())
    model = applied(toy.model(), on_mismatch="use CFG")
    first = sample(model)
    assert torch.equal(sample(model, steps=4, denoise=0.5), sample(toy.model(), steps=4, denoise=0.5))
    assert torch.equal(sample(model), first)


def test_after_an_interrupt_it_begins_anew():
    fit(toy.model())
    model = applied(toy.model())
    first = sample(model)

    def stop(step, *_):
        if step == 2:
            raise comfy.model_management.InterruptProcessingException()

    with pytest.raises(comfy.model_management.InterruptProcessingException):
        sample(model, callback=stop)
    assert torch.equal(sample(model), first)


def test_at_cfg_1_there_is_nothing_to_do():
    fit(toy.model())
    model = applied(toy.model(), on_mismatch="use CFG")
    assert torch.equal(sample(model, cfg=1.0), sample(toy.model(), cfg=1.0))


def test_it_reports_what_it_saved(caplog):
    caplog.set_level("INFO")
    fit(toy.model())
    sample(applied(toy.model()))
    assert (
        "LinearAG: 2 steps with an estimated negative, 4 with the positive alone: 6 evaluations saved." in caplog.text
    )


def test_it_counts_only_what_it_saved_itself(caplog):
    caplog.set_level("INFO")
    fit(toy.model())
    sigma = float(schedule(toy.model())[3])
    limited = run_node(GuidanceInterval, model=toy.model(), limits="sigma", sigma_high=1000.0, sigma_low=sigma)
    sample(applied(limited))
    assert "1 steps with an estimated negative, 0 with the positive alone: 1 evaluations saved." in caplog.text


# The fit


def test_the_file_says_what_it_is_for(folder):
    assert fit(toy.model(), name="my run.1") == "my run.1.safetensors"
    assert [path.name for path in folder.iterdir()] == ["my run.1.safetensors"]
    with safe_open(folder / "my run.1.safetensors", "pt") as file:
        description = json.loads(file.metadata()["guidekit"])
        assert file.get_tensor("cond").shape == (STEPS, STEPS)
        assert file.get_tensor("cond").dtype == torch.float64
    assert description["sampler"] == "sample_euler"
    assert description["cfg"] == 4.0
    assert description["parameterisation"] == "EPS"
    assert len(description["sigmas"]) == STEPS + 1
    assert files.MODELS.names() == ["my run.1.safetensors"]
    [listed] = [i for i in LinearAG.define_schema().inputs if i.id == "file"]
    assert listed.options == ["my run.1.safetensors"]


def test_prompts_and_noise_change_from_run_to_run():
    asked, starts = [], []

    class Listening(Words):
        def tokenize(self, text):
            asked.append(text)
            return super().tokenize(text)

    def first(executor, x, t, *args, **kwargs):
        if float(t.flatten()[0]) > 14:
            starts.append(x.clone())
        return executor(x, t, *args, **kwargs)

    model = toy.model()
    model.add_wrapper("apply_model", first)
    fit(model, clip=Listening(toy.conditioning), prompts="2.0\n 0.5\n", trajectories=5)
    assert asked == ["2.0", "0.5", "2.0"]
    assert len(starts) == 3
    assert not torch.equal(starts[0], starts[1])
    assert not torch.equal(starts[0], starts[2])
    again = fit(toy.model(), random_seed=7, name="again", trajectories=5)
    assert not torch.equal(
        *(files.MODELS.load(f, ("cond", "uncond"))[0]["cond"] for f in ("linear_ag.safetensors", again))
    )


def test_an_old_file_is_replaced_and_the_node_notices(folder):
    fit(toy.model())
    before = LinearAG.fingerprint_inputs(file="linear_ag.safetensors")
    os.utime(folder / "linear_ag.safetensors", (1, 1))
    fit(toy.model(), prompts="0.5")
    assert LinearAG.fingerprint_inputs(file="linear_ag.safetensors") != 1
    assert before is not None
    assert LinearAG.fingerprint_inputs(file="none.safetensors") is None
    assert LinearAG.fingerprint_inputs() is None


def test_an_interrupted_fit_leaves_no_file(folder, monkeypatch):
    def stop(self, value, *_, **__):
        if value == STEPS + 3:
            raise comfy.model_management.InterruptProcessingException()

    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", stop)
    with pytest.raises(comfy.model_management.InterruptProcessingException):
        fit(toy.model())
    assert not folder.exists() or not [*folder.iterdir()]


def test_progress_goes_from_the_first_to_the_last_step(monkeypatch):
    seen = []
    monkeypatch.setattr("comfy.utils.ProgressBar.update_absolute", lambda self, value, *_, **__: seen.append(value))
    fit(toy.model())
    assert seen == [*range(1, 3 * STEPS + 1)]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        ({"prompts": " \n"}, "There are no prompts"),
        ({"cfg": 1.0}, "cfg is 1: no negative"),
        ({"name": "../outside"}, "may have up to 100 letters"),
        ({"name": ""}, "may have up to 100 letters"),
        ({"name": ".hidden"}, "may have up to 100 letters"),
        ({"name": "fit. "}, "does not end with a space or dot"),
        ({"name": "NUL"}, "a device on Windows"),
        ({"name": "蚂" * 90}, "has 282 bytes"),
        ({"sampler": comfy.samplers.sampler_object("heun")}, "evaluates the model 15 times in 8 steps"),
        ({"sigmas": torch.tensor([1.0])}, "has 0 steps"),
        ({"sigmas": torch.tensor([])}, "has 0 steps"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_bad_input_of_the_fit(given, sentence, folder):
    with pytest.raises(ValueError, match=sentence):
        fit(toy.model(), **given)
    assert not folder.exists()


def test_a_fit_that_could_not_be_saved_does_not_begin(folder):
    (folder / "linear_ag.safetensors").mkdir(parents=True)
    model = toy.model()
    counted = probes.count_evaluations(model)
    with pytest.raises(ValueError, match="linear_ag.safetensors cannot be saved in .*: a folder has this name"):
        fit(model)
    assert counted.total == 0


def test_a_model_without_its_negative_cannot_be_fitted():
    model = run_node(GuidanceInterval, model=toy.model(), limits="percent", start_percent=0.5)
    with pytest.raises(ValueError, match="In step 1 the negative was not evaluated"):
        fit(model)


# Bad files


def test_files_that_cannot_be_loaded(folder):
    with pytest.raises(ValueError, match=r"There is no file 'gone.safetensors' in models/guidekit. It has: nothing"):
        applied(toy.model(), "gone.safetensors")
    fit(toy.model())
    good = (folder / "linear_ag.safetensors").read_bytes()
    with safe_open(folder / "linear_ag.safetensors", "pt") as file:
        metadata = {"guidekit": file.metadata()["guidekit"]}  # without the checksum of other coefficients
        tensors = {key: file.get_tensor(key) for key in ("cond", "uncond")}
    (folder / "short.safetensors").write_bytes(good[: len(good) // 2])
    (folder / "text.safetensors").write_text("hello")
    save_file(tensors, folder / "anonymous.safetensors")
    save_file({"lora": torch.ones(2)}, folder / "lora.safetensors", metadata)
    save_file(tensors | {"cond": tensors["cond"] * torch.nan}, folder / "nan.safetensors", metadata)
    save_file(tensors | {"cond": tensors["cond"][:3]}, folder / "shape.safetensors", metadata)
    save_file(tensors, folder / "json.safetensors", {"guidekit": "{"})
    sentences = {
        "short": "is not a whole safetensors file",
        "text": "is not a whole safetensors file",
        "anonymous": "wanted is a file of this pack",
        "lora": "holds lora; wanted",
        "nan": "holds NaN",
        "shape": r"cond has shape \(3, 8\), wanted is \(8, 8\)",
        "json": "cannot be read",
    }
    for name, sentence in sentences.items():
        with pytest.raises(ValueError, match=sentence):
            applied(toy.model(), f"{name}.safetensors")
    assert torch.isfinite(sample(applied(toy.model()))).all()


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        *(({"sigmas": value}, "its sigmas are") for value in (5, None, "abcdefghi", ["a"] * 9, [None] * 9)),
        ({"sigmas": [10**400] * 9}, "its sigmas are"),
        ({"sigmas": [1.0]}, "cond has shape"),
        ({"sigmas": []}, "cond has shape"),
        *(({"negative": value}, "its negative are") for value in (5, None, {}, [[1.0]])),
        *(({"cfg": value}, "its cfg is") for value in ("4", None, [4], True)),
        *(({"model": value}, "its model is") for value in (5, None, ["Flux"], "m" * 10_000)),
        ({"more": 1}, r"it describes its run by \["),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_descriptions(folder, change, sentence):
    fit(toy.model())
    path = folder / "linear_ag.safetensors"
    with safe_open(path, "pt") as file:
        text, tensors = file.metadata()["guidekit"], {key: file.get_tensor(key) for key in ("cond", "uncond")}
    save_file(tensors, path, {"guidekit": json.dumps(json.loads(text) | change)})
    with pytest.raises(ValueError, match=f"^linear_ag.safetensors is not a file of LinearAG Fit: {sentence}") as error:
        applied(toy.model())
    assert len(str(error.value)) < 500


def test_a_file_of_no_steps(folder):
    fit(toy.model())
    path = folder / "linear_ag.safetensors"
    with safe_open(path, "pt") as file:
        text = json.dumps(json.loads(file.metadata()["guidekit"]) | {"sigmas": [1.0]})
    save_file({"cond": torch.zeros(0, 0), "uncond": torch.zeros(0, 0)}, path, {"guidekit": text})
    with pytest.raises(ValueError, match="is not a file of LinearAG Fit: .* has shape"):
        applied(toy.model())


def test_a_file_that_was_changed(folder):
    fit(toy.model())
    path = folder / "linear_ag.safetensors"
    content = path.read_bytes()
    path.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(ValueError, match="linear_ag.safetensors is damaged: its checksum"):
        applied(toy.model())


@pytest.mark.parametrize("name", ["../secret.safetensors", "/etc/passwd", "a/../../b.safetensors"])
def test_names_stay_in_the_folder(name, folder):
    (folder.parent / "secret.safetensors").write_bytes(b"")
    with pytest.raises(ValueError, match="There is no file"):
        applied(toy.model(), name)
