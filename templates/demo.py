"""Templates on the demo models that come with the pack: the same problems, to be tried at once on any machine.

Each shows rows of images of the same noise, without the technique and with it.
"""

from __future__ import annotations

from .graph import GREEN, RED, Graph, Node, Output
from .models import Loaded
from .template import Template, note, prompts

SIDE, ENLARGED, IMAGES, STEPS = 64, 4.0, 4, 25
# The words that the demo models know.
WORDS = (
    "Other words: ball, cube, cylinder, cone or ring; red, orange, yellow, green, cyan, blue, purple or white; matte, "
    "glossy or metal; small or large; one to three of them; on wood, tiles, grass or sand; by day, at sunset or at "
    "night."
)
OWN = "With your own checkpoint, put the node between the loader and the sampler."
SAME = "Both samplers get the same model, prompt, noise (seed) and CFG scale."


def demo_model(g: Graph, family: str, title: str | None = None) -> Loaded:
    loader = g.add("GuidekitDemoModel", title, family=family)
    return Loaded(*(loader[slot] for slot in range(3)))


def empty(g: Graph, images: int = IMAGES) -> Output:
    return g.add("EmptyLatentImage", width=SIDE, height=SIDE, batch_size=images)[0]


def shown(g: Graph, samples: Output, vae: Output, name: str) -> Node:
    image = g.add("VAEDecode", samples=samples, vae=vae)
    large = g.add("ImageScaleBy", image=image[0], upscale_method="lanczos", scale_by=ENLARGED)
    return g.add("SaveImage", images=large[0], filename_prefix=f"guidekit/{name}")


def ksampler(
    g: Graph, model: Output, positive: Output, negative: Output, latent: Output, seed: int, cfg: float
) -> Output:
    settings = {"steps": STEPS, "sampler_name": "euler", "scheduler": "normal", "denoise": 1.0}
    inputs = {"model": model, "positive": positive, "negative": negative, "latent_image": latent}
    return g.add("KSampler", seed=seed, cfg=cfg, **settings, **inputs)[0]


class Rows:
    """One prompt and one noise for all rows."""

    def __init__(
        self, g: Graph, family: str, positive: str, seed: int, cfg: float, first: tuple[str, str] | None
    ) -> None:
        """`first`: the title of the row without a technique, and how its images' names begin."""
        self.g, self.seed, self.cfg = g, seed, cfg
        self.loaded = demo_model(g, family)
        self.positive, self.negative = (prompt[0] for prompt in prompts(g, self.loaded.clip, positive))
        self.latent = empty(g)
        if first is not None:
            self.add(*first)

    def add(self, title: str, name: str, kind: str | None = None, report: bool = False, **inputs: object) -> None:
        """A row whose model goes through a node of class `kind`; with `report`, what the nodes say as text."""
        with self.g.row(title):
            model = self.g.add(kind, model=self.loaded.model, **inputs)[0] if kind else self.loaded.model
            self.sample(model, name, report)

    def sample(self, model: Output, name: str, report: bool = False) -> None:
        latent = ksampler(self.g, model, self.positive, self.negative, self.latent, self.seed, self.cfg)
        if report:
            reported = self.g.add("GuidekitReport", column=4, sampled=latent)  # above the images
            self.g.add("PreviewAny", column=4, source=reported[1])
        shown(self.g, latent, self.loaded.vae, name)


_CFG = ("Plain CFG", "cfg")


def apg(g: Graph) -> None:
    rows = Rows(g, "unet", "a large glossy red ball left of a small metal yellow cone on wood at sunset", 3, 12.0, _CFG)
    rows.add("APG", "apg", "GuidekitAPG")
    note(
        g,
        f"{SAME} In the lower row APG removes the part of the guidance that only amplifies the image.",
        "the colours. A high scale drives them beyond anything in the images that the model learned from: objects "
        "glow, greys take on a tint.",
        f"`cfg` 3, 8 and 15 in *both* samplers; `eta` 1 and `momentum` 0, which is plain CFG. {WORDS}",
        f"no extra evaluations. {OWN}",
    )


def pag(g: Graph) -> None:
    prompt = "a large glossy green ring left of a small matte red cube on tiles by day"
    rows = Rows(g, "unet", prompt, 11, 1.0, ("No guidance (cfg 1)", "cfg"))
    rows.add("PAG", "pag", "GuidekitPAG", scale=1.0, blocks="all")
    note(
        g,
        "Both samplers get the same model, prompt and noise, and cfg 1. In the lower row PAG makes a second "
        "prediction, with blocks in which no part of the image attends to another, and guides away from it.",
        "the shapes. It works without a negative prompt, and on top of CFG.",
        "`cfg` 3 in *both* samplers; `scale` 0 for no PAG; `blocks` middle. Here it is set to all, because one block "
        "hardly matters in such a small network; with your own checkpoint leave it empty.",
        f"here twice the time; in large models only the blocks from the first named one on are computed twice. {OWN}",
    )


def autoguidance(g: Graph) -> None:
    prompt = "a large glossy purple ring left of a small matte orange cube on sand by day"
    rows = Rows(g, "unet", prompt, 14, 1.0, ("No guidance (cfg 1)", "cfg"))
    weak = demo_model(g, "unet_early", "The same network after little training")
    rows.add(
        "Autoguidance",
        "autoguidance",
        "GuidekitAutoguidance",
        weakness="second model",
        weak_model=weak.model,
    )
    note(
        g,
        "Both samplers get the same model, prompt and noise, and cfg 1. In the lower row guidance leads away from "
        "the same network after little training: where both err, that one errs more.",
        "the shapes. Images of one prompt do not become as alike as with CFG.",
        "`cfg` 2 in *both* samplers and `scale` 0.5; `weakness` dropout or token noise, which need no second model; "
        "with your own checkpoint and a LoRA, LoRA strength and `amount` 0.5.",
        "one evaluation of the second model per step. With your own checkpoints: an earlier, smaller or less tuned "
        "one.",
    )


def adaptive_guidance(g: Graph) -> None:
    prompt = "a large glossy red cube left of a small matte blue ball on tiles by day"
    rows = Rows(g, "unet", prompt, 31, 5.0, ("CFG in every step", "cfg"))
    rows.add("Adaptive Guidance", "adaptive_guidance", "GuidekitAdaptiveGuidance", report=True)
    note(
        g,
        f"{SAME} In the lower row the negative prompt is no longer evaluated once its prediction and that of the "
        "positive point the same way.",
        "the differences, if you can find any; the node says in which step that was, and what it saved.",
        f"`threshold` 0.98 (faster) and 0.999 (closer to CFG); `space` raw with 0.991, for v and flow models. {WORDS}",
        f"none: about a third of the evaluations is saved here. {OWN}",
    )


def linear_ag(g: Graph) -> None:
    prompt = "a small matte cyan cube left of a large glossy orange ball on sand by day"
    rows = Rows(g, "unet", prompt, 51, 5.0, ("CFG in every step", "cfg"))
    loaded = rows.loaded
    with g.row("LinearAG: fitted once, then used"):
        sigmas = g.add("BasicScheduler", model=loaded.model, scheduler="normal", steps=STEPS, denoise=1.0)
        euler = g.add("KSamplerSelect", sampler_name="euler")
        texts = (
            "a large glossy red ball left of a small metal yellow cone on wood at sunset",
            "a small matte blue ring on sand by day",
            "a large metal green cylinder right of a small glossy white cube on tiles by day",
            "a small glossy yellow cube on grass at night",
            "a large matte purple cone left of a large glossy orange ball on wood by day",
            "a small metal cyan ring and a large matte red cube on grass at sunset",
        )
        inputs = {"model": loaded.model, "clip": loaded.clip, "negative": rows.negative, "latent": rows.latent}
        inputs |= {"sampler": euler[0], "sigmas": sigmas[0], "prompts": "\n".join(texts)}
        fit = g.add("GuidekitLinearAGFit", cfg=5.0, trajectories=24, name="demo_unet_euler_25", **inputs)
        used = g.add("GuidekitLinearAG", model=loaded.model, file=fit[0], column=1)
        rows.sample(used[0], "linear_ag")
    note(
        g,
        "LinearAG Fit samples 24 images with full CFG and learns from them to estimate the negative prediction from "
        "earlier ones. LinearAG estimates every other negative prediction in this way, and skips those of the second "
        "half.",
        "the differences, if you can find any; the node says what it saved.",
        "other positive prompts: the file works for all of them, but only for this model, sampler, schedule, cfg and "
        f"negative prompt. Once it is fitted, choose the file in LinearAG. {WORDS}",
        "25 evaluations instead of 40 in 20 steps, after the fit.",
    )


def cfg_cache(g: Graph) -> None:
    prompt = "a large metal blue cube left of a small glossy red ball on wood by day"
    rows = Rows(g, "unet", prompt, 31, 5.0, ("CFG in every step", "cfg"))
    rows.add("CFG-Cache", "cfg_cache", "GuidekitCFGCache")
    note(
        g,
        f"{SAME} In the lower row, after the first third of the run, the negative prompt is evaluated only in every "
        "fifth step; the others reuse its last difference from the positive.",
        "the differences, if you can find any; the node says what it saved, and what its estimates would have missed.",
        f"`every` 2 and 10; `warm_up` 0 and 0.6; `limit` 0.5, at which it stops earlier. {WORDS}",
        f"none: 12 of 50 evaluations are saved here. {OWN}",
    )


def cfg_zero_star(g: Graph) -> None:
    prompt = "a large glossy purple cone left of a small metal yellow ball on tiles at sunset"
    rows = Rows(g, "dit", prompt, 21, 5.0, _CFG)
    rows.add("CFG-Zero*", "cfg_zero_star", "GuidekitCFGZeroStar")
    note(
        g,
        f"{SAME} In the lower row the negative's output is scaled to fit the positive's, and the first of 25 steps "
        "leaves the noise unchanged.",
        "shapes and colours; the node says which scales it has found.",
        f"`zero_init` 0 and 0.2; `optimized_scale` off; `cfg` 3 and 10 in *both* samplers. {WORDS}",
        f"no extra evaluations. For flow models. {OWN}",
    )


def frequency_guidance(g: Graph) -> None:
    prompt = "a large metal green ring left of a small glossy orange cube on grass by day"
    rows = Rows(g, "unet", prompt, 24, 3.0, _CFG)
    rows.add("Frequency Guidance", "frequency_guidance", "GuidekitFrequencyGuidance", high=3.0)
    note(
        g,
        f"{SAME} In the lower row fine detail is guided three times as much as composition and colour.",
        "edges, highlights and the grass, and at the colours, which stay the same.",
        f"`high` 1.5 to 5; `low` 0.5; `between` 2, 1.5 for four bands. {WORDS}",
        f"no extra evaluations. {OWN}",
    )


def frecas(g: Graph) -> None:
    loaded = demo_model(g, "dit")
    prompt = "a large glossy red ball left of a small metal yellow cone on wood by day"
    positive, negative = (p[0] for p in prompts(g, loaded.clip, prompt))
    inputs = {"model": loaded.model, "sizes": "64, 128", "steps": "20, 5", "batch_size": IMAGES}
    plan = g.add("GuidekitFreCaSPlan", column=1, **inputs)
    euler = g.add("KSamplerSelect", column=1, sampler_name="euler")
    noise, no_noise = g.add("RandomNoise", column=1, noise_seed=2), g.add("DisableNoise", column=1)

    def stage(model: Output, noise: Output, sigmas: Output, latent: Output) -> Node:
        guider = g.add("CFGGuider", column=3, model=model, positive=positive, negative=negative, cfg=3.0)
        inputs = {"noise": noise, "guider": guider[0], "sampler": euler[0], "sigmas": sigmas, "latent_image": latent}
        return g.add("SamplerCustomAdvanced", column=4, **inputs)

    with g.row("At 64, the size that the model was trained for"):
        small = stage(loaded.model, noise[0], plan["sigmas"], plan["latent"])
        shown(g, small["denoised_output"], loaded.vae, "1_at_64")
    with g.row("Then at 128"):
        inputs = {"model": loaded.model, "plan": plan["plan"], "denoised": small["denoised_output"], "vae": loaded.vae}
        up = g.add("GuidekitFreCaSUp", column=2, **inputs)
        inputs = {"split": "resize (FreCaS)", "size_factor": up["size_factor"]}
        guided = g.add("GuidekitFrequencyGuidance", column=2, model=loaded.model, **inputs)
        large = stage(guided[0], no_noise[0], up["sigmas"], up["latent"])
        shown(g, large[0], loaded.vae, "2_at_128")
    note(
        g,
        "A model works best at the size that it was trained for. FreCaS stops at that size before all noise is gone, "
        "enlarges the predicted image, adds new noise, and takes a few steps at twice the size.",
        "the second row: the same images, with the edges and the grain of the larger size.",
        f"`ends` 0.4, to change more; `steps` 20, 10; `sizes` 64, 96, with `family` unet too. {WORDS}",
        "20 steps at 64 and 5 at 128; a step at 128 works on a latent four times as large.",
    )


def sampler_cfgpp(g: Graph) -> None:
    loaded = demo_model(g, "unet")
    prompt = "a large metal green cone left of a small glossy white ball on tiles at sunset"
    positive, negative = prompts(g, loaded.clip, prompt)
    latent = empty(g)
    sigmas = g.add("BasicScheduler", model=loaded.model, scheduler="normal", steps=STEPS, denoise=1.0)
    inputs = {"model": loaded.model, "positive": positive[0], "negative": negative[0], "sigmas": sigmas[0]}
    inputs |= {"latent_image": latent, "add_noise": True, "noise_seed": 41}
    with g.row("DPM++ 2M with CFG 7.5"):
        plain = g.add("KSamplerSelect", sampler_name="dpmpp_2m")
        samples = g.add("SamplerCustom", sampler=plain[0], cfg=7.5, **inputs)
        shown(g, samples[0], loaded.vae, "cfg")
    with g.row("DPM++ 2M in CFG++ form"):
        plus = g.add("GuidekitSamplerCFGPP", sampler="dpmpp 2m")
        samples = g.add("SamplerCustom", sampler=plus[0], cfg=1.0, **inputs)
        shown(g, samples[0], loaded.vae, "sampler_cfgpp")
    note(
        g,
        "CFG++ guides the denoised image and adds the noise back without guidance. `guidance_lambda` (0 to 1) replaces "
        "cfg; the `cfg` of the lower sampler is not used.",
        "colours and edges.",
        f"`guidance_lambda` 0.2 to 1; the other samplers; `family` dit, a flow model. {WORDS}",
        "none. With KSampler and euler the node CFG++ does the same, between the loader and the sampler.",
    )


class Edit:
    """Images to start from, and two prompts: their own, and one with a word changed."""

    def __init__(self, g: Graph, family: str, as_it_is: str, edited: str, seed: int, images: int = IMAGES) -> None:
        self.g, self.loaded = g, demo_model(g, family)
        self.texts = {
            title: g.add("CLIPTextEncode", title, color=color, clip=self.loaded.clip, text=text)[0]
            for title, text, color in (
                ("As it is", as_it_is, GREEN),
                ("Edited", edited, GREEN),
                ("Negative prompt", "", RED),
            )
        }
        latent = empty(g, images)
        self.negative = self.texts["Negative prompt"]
        with g.row("An image to begin with"):
            inputs = (self.loaded.model, self.texts["As it is"], self.negative, latent)
            self.start = ksampler(g, *inputs, seed, 3.0)
            shown(g, self.start, self.loaded.vae, "1_source")

    def sigmas(self, steps: int = STEPS, denoise: float = 0.8) -> Output:
        settings = {"scheduler": "normal", "steps": steps, "denoise": denoise}
        return self.g.add("BasicScheduler", model=self.loaded.model, **settings)[0]

    def guider(self, which: str, model: Output | None = None) -> Output:
        inputs = {"positive": self.texts[which], "negative": self.negative, "cfg": 3.0}
        return self.g.add("CFGGuider", f"Guider: {which}", model=model or self.loaded.model, **inputs)[0]

    def show(self, samples: Output, name: str) -> None:
        shown(self.g, samples, self.loaded.vae, name)


_PHOTO = "an image of your own, with VAE Encode instead of the first sampler"


def exact_inversion(g: Graph) -> None:
    rest = "ball left of a small glossy cyan cylinder on sand by day"
    e = Edit(g, "dit", f"a large matte red {rest}", f"a large matte yellow {rest}", 11)
    with g.row("To noise and back"):
        inputs = {"guider": e.guider("As it is"), "sigmas": e.sigmas(), "latent": e.start}
        inverted = g.add("GuidekitExactInvert", **inputs)
        again = g.add("GuidekitExactSample", guider=inputs["guider"], inverted=inverted[0])
        e.show(again[0], "2_again")
    with g.row("With another word"):
        edited = g.add("GuidekitExactSample", guider=e.guider("Edited"), inverted=inverted[0])
        e.show(edited[0], "3_edited")
    note(
        g,
        "Exact Inversion finds the noise that the images come from, at four fifths of the schedule (`denoise`). "
        "Sampling from it with the same guider gives exactly the same images again; the guider *Edited* changes one "
        "word of the prompt.",
        "the second row, which equals the first, and at what stays the same in the third: place, size, floor and "
        "light.",
        f"another word in *Edited*: cube, small, on grass; `denoise` 0.6 or 1; the other methods; {_PHOTO}.",
        "two evaluations per step, twice that with a negative prompt. Leave the two Exact nodes connected directly.",
    )


def save_inversion(g: Graph) -> None:
    rest = "ring left of a small matte yellow cube on grass by day"
    e = Edit(g, "dit", f"a large glossy blue {rest}", f"a large glossy cyan {rest}", 15)
    with g.row("Inverted, saved and loaded"):
        inputs = {"guider": e.guider("As it is"), "sigmas": e.sigmas(), "latent": e.start}
        inverted = g.add("GuidekitExactInvert", **inputs)
        kept = g.add("GuidekitSaveInversion", inverted=inverted[0], name="demo_inversion", column=1)
        loaded = g.add("GuidekitLoadInversion", file=kept[0], column=2)
        again = g.add("GuidekitExactSample", guider=inputs["guider"], inverted=loaded[0], column=2)
        e.show(again[0], "2_again")
    with g.row("From the file, edited"):
        edited = g.add("GuidekitExactSample", guider=e.guider("Edited"), inverted=loaded[0])
        e.show(edited[0], "3_edited")
    note(
        g,
        "Save Inversion writes everything that sampling needs to output/guidekit/demo_inversion.safetensors; Load "
        "Inversion reads it back, bit for bit. ComfyUI's own Save Latent would save the latent without the data that "
        "exact sampling needs.",
        "the second row, sampled from the file: it equals the first.",
        "removing the link from *file* to Load Inversion and choosing the file there: no inversion is needed any more; "
        "other words in *Edited*; somebody else's file in input/guidekit.",
        "none when loaded. The file says which model it belongs to; another architecture is refused.",
    )


def cfgpp_inversion(g: Graph) -> None:
    rest = "ball left of a small metal yellow cone on wood at sunset"
    e = Edit(g, "unet", f"a large glossy red {rest}", f"a large glossy blue {rest}", 11)
    shared = {"add_noise": False, "noise_seed": 0, "cfg": 1.0, "model": e.loaded.model, "negative": e.negative}
    with g.row("To noise and back"):
        inverse = g.add("GuidekitCFGPPInversion", model=e.loaded.model, sigmas=e.sigmas(50, 1.0), guidance_lambda=0.2)
        plus = g.add("GuidekitSamplerCFGPP", sampler="euler", guidance_lambda=0.2)
        inputs = {"positive": e.texts["As it is"], "sampler": inverse[0], "sigmas": inverse[1], "latent_image": e.start}
        noise = g.add("SamplerCustom", "To noise", column=1, **shared, **inputs)
        back = {"sampler": plus[0], "sigmas": inverse[2], "latent_image": noise[0]}
        again = g.add("SamplerCustom", "And back", column=2, **shared, **back, positive=e.texts["As it is"])
        e.show(again[0], "2_again")
    with g.row("With another word"):
        edited = g.add("SamplerCustom", "And back, edited", **shared, **back, positive=e.texts["Edited"])
        e.show(edited[0], "3_edited")
    note(
        g,
        "CFG++ Inversion turns images into the noise from which CFG++ sampling would have made them, over rising "
        "sigmas and with `add_noise` off. From that noise they are sampled again, unchanged and with one word changed.",
        "how close the second row is to the first: not equal, as with Exact Inversion, but at half the cost.",
        f"`guidance_lambda` 0.6 in both nodes: stronger edits, but less close; `family` dit; {_PHOTO}.",
        "two evaluations per step. For the way back use the falling sigmas of the inversion node, not the scheduler's.",
    )


def trajectory(g: Graph) -> None:
    rest = "ball left of a small glossy white cube on grass by day"
    e = Edit(g, "unet", f"a large matte red {rest}", f"a large matte yellow {rest}", 11, images=1)
    with g.row("Edited by the prompt alone"):
        guider = g.add("BasicGuider", "Guider: As it is", model=e.loaded.model, conditioning=e.texts["As it is"])
        inputs = {"guider": guider[0], "sigmas": e.sigmas(), "latent": e.start}
        recorded = g.add("GuidekitTrajectoryRecord", **inputs)
        inputs = {"trajectory": recorded[0], "source_prompt": e.texts["As it is"]}
        alone = g.add("GuidekitTrajectoryReplay", guider=e.guider("Edited"), **inputs)
        e.show(alone[0], "2_alone")
    with g.row("With features of the image"):
        towards = {"alpha": -0.3, "threshold": -1.0, "blocks": "all", "steps": "start to end", "end_percent": 0.5}
        model = g.add("GuidekitNegToMe", "NegToMe, towards the image", model=e.loaded.model, **towards)[0]
        taking = g.add("GuidekitTrajectoryReplay", guider=e.guider("Edited", model), **inputs)
        e.show(taking[0], "3_taking")
    note(
        g,
        "Trajectory Record inverts an image and keeps the latent of every step. Trajectory Replay samples from its "
        "noise with another prompt, in a batch of two: the first is the recorded image, put back onto its recorded "
        "trajectory in every step.",
        "what the third row keeps of the image and the second does not: in the third, NegToMe pulls every part towards "
        "the image.",
        f"`alpha` -0.2 to -1, `end_percent` up to 1; another word in *Edited*; {_PHOTO}.",
        "two images per evaluation. This is the framework of Direct Inversion; to edit by the prompt alone use Exact "
        "Inversion.",
    )


def nasa(g: Graph) -> None:
    rows = Rows(g, "dit", "a red ball", 71, 1.0, ("No guidance (cfg 1)", "1_cfg_1"))
    unwanted = g.add("CLIPTextEncode", "Not in the image", color=RED, clip=rows.loaded.clip, text="on tiles")
    rows.add("NAG", "2_nag", "GuidekitNASA", negative=unwanted[0])
    rows.add("NASA", "3_nasa", "GuidekitNASA", negative=unwanted[0], method="NASA")
    note(
        g,
        "All samplers get the same model, prompt and noise, and cfg 1: the sampler's negative prompt is not used. *Not "
        "in the image* goes into the attention instead: NAG extrapolates away from what the image takes from it, NASA "
        "subtracts that.",
        "the floors, which the prompt does not mention: the tiles of the first row are gone in the others.",
        f"`nag_scale` 3 to 8, `nasa_alpha` 0.2 to 1; another word: on grass, at night, small; `family` unet. {WORDS}",
        "no extra evaluation, but each one takes somewhat longer. For turbo, lightning, schnell, LCM and DMD models at "
        "cfg 1.",
    )


def negtome(g: Graph) -> None:
    rows = Rows(g, "unet", "a purple cube and a ball", 61, 3.0, _CFG)
    settings = {"reference": "all other images", "threshold": 0.0, "steps": "start to end", "end_percent": 0.4}
    rows.add("NegToMe", "negtome", "GuidekitNegToMe", **settings)
    note(
        g,
        f"{SAME} In the lower row, early in the run, each part of an image is pushed away from the most similar part "
        "of the other images.",
        "how the images of a row differ: place, size, floor and light.",
        "`reference` first image, which then stays as it is; `alpha` 1.9 for more, -0.5 to bring them together; "
        "`reference` reference latent, with an image connected to `latent` through VAE Encode.",
        "a few percent more time. The batch needs at least two images, or a reference latent.",
    )


def preference_lora(g: Graph) -> None:
    rows = Rows(g, "unet", "a large ball left of a small cone on grass by day", 3, 3.0, ("The model alone", "1_plain"))
    kind = "GuidekitPreferenceLoraLoader"
    rows.add("Away from what is disliked", "2_away", kind, file="demo: disliked", apply_to="negative only")
    rows.add("Tuned to what is liked", "3_liked", kind, file="demo: liked")
    note(
        g,
        "One LoRA was tuned to blue metal (liked), one to matte red (disliked); the prompt names neither. In the "
        "second row *disliked* applies to the negative only (Diffusion-NPO): guidance leads away from matte red. In "
        "the third *liked* applies to both, as LoRAs usually do.",
        "the colours, and at what the loaders say: what the file is, and how much of it was applied.",
        "`strength` 0.2 to 1; `positive only`; a LoRA of your own with your own model, also in the formats of "
        f"diffusers and PEFT, which ComfyUI leaves out without an error. {WORDS}",
        "no extra evaluations.",
    )


def teach_taste(g: Graph) -> None:
    loaded = demo_model(g, "unet")
    negative = g.add("CLIPTextEncode", "Negative prompt", color=RED, clip=loaded.clip, text="")[0]
    latent = empty(g)
    for name, text in (("1_grass", "a large ball on grass by day"), ("2_wood", "a large cube on wood at sunset")):
        with g.row(f'Images of "{text}"'):
            prompt = g.add("CLIPTextEncode", "Positive prompt", color=GREEN, clip=loaded.clip, text=text)[0]
            made = ksampler(g, loaded.model, prompt, negative, latent, 3, 3.0)
            image = shown(g, made, loaded.vae, name).values["images"]
            inputs = {"samples": made, "model": loaded.model, "positive": prompt, "negative": negative}
            g.add("GuidekitVote", column=9, images=image, **inputs)
    note(
        g,
        "Two prompts that leave the colour and the material open. Run, then like or dislike each image, with the "
        "mouse, or with the arrows and the keys + and -. Every vote is kept at once, with all that training needs.",
        "the tab *Taste* on the left: all votes, to filter, to change and to export; *Train from these* puts Load "
        "Votes and the trainer into the workflow.",
        "another `seed` in *both* samplers, run and vote again, until there are 20 likes and 20 dislikes, of both "
        f"prompts; words that you have no taste for. {WORDS}",
        "no further evaluations. With your own checkpoint, connect the same six inputs.",
    )


def train_preference(g: Graph) -> None:
    loaded = demo_model(g, "unet")
    text = "a large ball on grass by day"

    def prompt(title: str, words: str, color: tuple[str, str] = GREEN) -> Output:
        return g.add("CLIPTextEncode", title, color=color, column=1, clip=loaded.clip, text=words)[0]

    said, likely = prompt("What is learned of", text), prompt("Likely ones", f"a metal blue {text[2:]}")
    fresh, negative = prompt("Another prompt", "a large cube on wood"), prompt("Negative prompt", "", RED)
    liking = {"model": loaded.model, "file": "demo: liked"}
    judge = g.add("GuidekitPreferenceLoraLoader", "Whose taste", column=0, **liking)[0]
    many, few = empty(g, 16), empty(g)
    with g.row("Images, a rule that likes some, a LoRA of what is liked"):
        made = [ksampler(g, loaded.model, each, negative, many, 3 + i, 3.0) for i, each in enumerate((said, likely))]
        for each in made:
            each.node.column = 1
        both = g.add("LatentBatch", column=2, samples1=made[0], samples2=made[1])[0]
        scored = {"latent": both, "positive": said, "levels": 4, "images_at_once": 16}
        score = g.add("GuidekitPreferenceScore", column=2, model=loaded.model, tuned=judge, **scored)
        images = g.add("VAEDecode", column=2, samples=both, vae=loaded.vae)[0]
        inputs = {"samples": both, "model": loaded.model, "positive": said, "negative": negative}
        rule = {"score": score["scores"], "threshold": 0.0, "tag": "blue metal"}
        voted = g.add("GuidekitVoteByRule", column=2, images=images, **inputs, **rule)
        votes = g.add("GuidekitVotes", column=2, tag=rule["tag"], clip=loaded.clip, after=voted["report"])
        given = {"objective": "KTO", "steps": 60, "images_at_once": 8, "checkpointing": False}
        given |= {"votes_on_others": 0.0, "preview_every": 20}
        trained = g.add("GuidekitTrainPreference", column=3, model=loaded.model, votes=votes["votes"], **given)
        g.add("PreviewAny", "What was learned", column=4, source=trained["report"])
        for name, title, model, column in (
            ("1_plain", "The model", loaded.model, 1),
            ("2_taught", "With the LoRA", trained[0], 4),
        ):
            sampled = ksampler(g, model, fresh, negative, few, 11, 3.0)
            sampled.node.column = column
            shown(g, sampled, loaded.vae, name).title = title
            for node in g.nodes[-3:]:
                node.column = 4
    note(
        g,
        "A rule votes on 32 images: it likes blue metal, which the prompt that is learned of does not name. A LoRA is "
        "trained on these votes, and used at once on another prompt. The rule is there so that all runs by itself: for "
        "your own taste put *Vote on Images* in its place, with the same inputs.",
        "the saved images, without the LoRA and with it, of the same noise and prompt; and at the curve in the trainer "
        "while it runs.",
        "other `objective`s; fewer `steps`; `learn` what is disliked; the file in models/loras/guidekit with any "
        f"loader, at half its strength. {WORDS}",
        "about a minute of training here; none when sampling.",
    )


def preference_cfg(g: Graph) -> None:
    rows = Rows(g, "unet", "a large cube left of a small ball on wood by day", 3, 3.0, None)
    kind, liked = "GuidekitPreferenceLoraLoader", {"file": "demo: liked", "strength": 0.15}
    rows.add("A little of what is liked", "1_liked", kind, **liked)
    with g.row("From the disliked to the liked"):
        positive = g.add(kind, model=rows.loaded.model, **liked)
        negative = g.add(kind, model=rows.loaded.model, file="demo: disliked")
        guided = g.add("GuidekitPreferenceCFG", model=positive[0], other_model=negative[0])
        rows.sample(guided[0], "2_guided")
    note(
        g,
        "The upper row uses a LoRA that was tuned to blue metal, at a low strength. In the lower row that model "
        "predicts the positive, and the model with another LoRA, tuned to matte red, the negative: guidance leads "
        "from the disliked to the liked.",
        "how much is red in each row, and how much of blue metal; the prompt names neither.",
        "another `strength` of either LoRA; `mode` mixture (SINE); no link to `other_model`: the negative is then "
        f"the model without its LoRA; another checkpoint as `other_model`. {WORDS}",
        "none if both are one model with different LoRAs; otherwise one evaluation of the second model per step.",
    )


def _classified(g: Graph) -> tuple[Loaded, Node, Output, Output, Node]:
    loaded = demo_model(g, "unet")
    prompt = "a large {slot} purple ball left of a small matte yellow cone on wood by day"
    words = "metal\nglossy\nmatte"
    candidates = g.add("GuidekitCandidates", clip=loaded.clip, column=1, prompt=prompt, words=words)
    negative = g.add("CLIPTextEncode", "Negative prompt", color=RED, clip=loaded.clip, text="")
    latent = empty(g)
    classifier = g.add("GuidekitImageClassifier", file="demo", column=0)
    return loaded, candidates, negative[0], latent, classifier


def _two_rows(g: Graph, title: str, name: str, kind: str, **inputs: object) -> None:
    loaded, candidates, negative, latent, classifier = _classified(g)
    if kind == "GuidekitGFCG":
        inputs["candidates"] = candidates[0]
    with g.row("The positive prompt alone"):
        plain = ksampler(g, loaded.model, candidates[1], negative, latent, 4, 1.0)
        shown(g, plain, loaded.vae, "1_plain")
    with g.row(title):
        guided = g.add(kind, model=loaded.model, classifier=classifier[0], vae=loaded.vae, **inputs)
        samples = ksampler(g, guided[0], candidates[1], negative, latent, 4, 1.0)
        shown(g, samples, loaded.vae, name)


def gfcg(g: Graph) -> None:
    _two_rows(g, "GFCG", "2_gfcg", "GuidekitGFCG")
    note(
        g,
        "Candidates makes one prompt for each word; the first is what the image should show. In every step a small "
        "classifier looks at the predicted image, and GFCG guides away from the word that it could be mistaken for, "
        "the more the classifier is in doubt.",
        "the left solid: whether it is metal.",
        "`scale` 1 to 10; another order of the words, or another slot with other words: shapes, colours or "
        "floors, one kind at a time; `combination` in place of the negative, with cfg 3.",
        "one extra evaluation in each step in which the classifier is in doubt. With your own model: CLIP Classifier, "
        "and a TAESD as `vae`.",
    )


def concept_edit(g: Graph) -> None:
    rows = Rows(g, "dit", "a ball on grass by day", 3, 3.0, ("The model alone", "1_plain"))
    lines = {"edits": "a ball -> + blue", "keep": "a cube\na cylinder\na cone\na ring"}
    rows.add("A ball is blue", "2_edited", "GuidekitConceptEdit", clip=rows.loaded.clip, **lines)
    note(
        g,
        f"{SAME} In the lower row the model's weights are edited, in closed form: where the prompt says *ball*, it now "
        "reads *blue* too. Other shapes are kept.",
        "the balls, and at what the node says: how much of the way the edit went, and how much it changed what is "
        "kept.",
        "a red ball, or a cube, as the positive prompt: a named colour still counts, other shapes are as before; no "
        "`keep`; `strength` 0.5; `save_as` with a name, and then ComfyUI's Load LoRA with that file. With a CLIP "
        "write a rose -> a blue rose.",
        f"a moment, once; none when sampling. {OWN}",
    )


def style_aligned(g: Graph) -> None:
    rows = Rows(g, "unet", "a red cube", 7, 3.0, ("Plain", "1_plain"))
    rows.add("StyleAligned: as the first image", "2_aligned", "GuidekitStyleAligned")
    note(
        g,
        f"{SAME} In the lower row the images also attend to the first one of the batch, in self-attention; that one "
        "stays as it is.",
        "floor, light and material, which the prompt does not mention.",
        "`share` 0.7 for more of the first image, -1 for less; `adain` off; `strength` 0.5; `reference` reference "
        "latent, with the latent of another sampler, for other prompts in the style of an image.",
        f"attention over twice as many tokens, no extra evaluations. {OWN}",
    )


def elucd(g: Graph) -> None:
    _two_rows(g, "EluCD", "2_elucd", "GuidekitEluCD", target="metal", scale=0.1)
    note(
        g,
        "In every step a small classifier looks at the predicted image, and EluCD moves the image in the direction "
        "that makes the classifier surer of `target`. The gradient goes through classifier and VAE, not through the "
        "model.",
        "the left solid, and at what else changes.",
        "`scale` 0.02 to 0.3; `tau_2` 1 and 0; another `target`, with another first word in Candidates.",
        "no extra evaluation of the network. For your own model: a ResNet of torchvision, as safetensors, in "
        "models/classifiers.",
    )


_EDIT = "Edit an image by one word"
_DEMO = "demo model"

TEMPLATES = tuple(
    Template(build.__name__, f"{title} - {_DEMO}", build, build.__name__)
    for build, title in {
        apg: "Less burnt colours at high CFG (APG)",
        pag: "Better structure and hands (PAG)",
        autoguidance: "Better structure without a loss of variety (Autoguidance)",
        adaptive_guidance: "Same quality in less time (Adaptive Guidance)",
        linear_ag: "Same quality in less time (LinearAG)",
        cfg_cache: "Same quality in less time (CFG-Cache)",
        cfg_zero_star: "Better images of flow models (CFG-Zero)",
        frequency_guidance: "More detail, not more colour (Frequency Guidance)",
        frecas: "Large images without repetition (FreCaS)",
        sampler_cfgpp: "Natural colours and clean edges (CFG++)",
        nasa: "A negative prompt at CFG 1 (NAG, NASA)",
        negtome: "More variety between seeds (NegToMe)",
        exact_inversion: f"{_EDIT} (Exact Inversion)",
        trajectory: f"{_EDIT} (Direct Inversion)",
        cfgpp_inversion: f"{_EDIT} (CFG++ Inversion)",
        save_inversion: "Edit an image later (Save and Load Inversion)",
        preference_lora: "Images that people prefer (Preference LoRA)",
        teach_taste: "Teach it your taste (votes)",
        train_preference: "Teach it your taste (Train Preference LoRA)",
        preference_cfg: "Away from what people dislike (Preference CFG)",
        concept_edit: "Another meaning for a word (Concept Edit)",
        style_aligned: "Images in one style (StyleAligned)",
        gfcg: "Not mistaken for something else (GFCG)",
        elucd: "Not mistaken for something else (EluCD)",
    }.items()
)
