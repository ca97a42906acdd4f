"""Templates that edit a photo by its prompt, on real models."""

from __future__ import annotations

from . import models
from .graph import GREEN, RED, Graph, Node, Output
from .models import Loaded
from .template import Template, in_app, note, save

# Prompts for the image that comes with ComfyUI, so that the template runs before a photo is chosen.
AS_IT_IS = "a child's drawing of a girl in a pink dress on a green hill"
EDITED = "a child's drawing of a girl in a blue dress on a green hill"


def _photo(g: Graph, vae: Output, megapixels: float) -> tuple[Node, Output]:
    loaded = g.add("LoadImage", "Your photo", image="example.png")
    size = {"upscale_method": "lanczos", "megapixels": megapixels, "resolution_steps": 8}
    scaled = g.add("ImageScaleToTotalPixels", image=loaded[0], column=0, **size)
    return loaded, g.add("VAEEncode", pixels=scaled[0], vae=vae, column=0)[0]


def _three_prompts(g: Graph, clip: Output) -> tuple[Node, Node, Node]:
    texts = {"As it is": (AS_IT_IS, GREEN), "Edited": (EDITED, GREEN), "Negative prompt": ("", RED)}
    return tuple(g.add("CLIPTextEncode", title, color=color, clip=clip, text=t) for title, (t, color) in texts.items())


def _exact(g: Graph, m: Loaded, megapixels: float, name: str, cfg: float, masked: bool = False) -> tuple[Node, ...]:
    photo, latent = _photo(g, m.vae, megapixels)
    as_it_is, edited, negative = _three_prompts(g, m.clip)
    sigmas = g.add("BasicScheduler", model=m.model, scheduler="normal", steps=40, denoise=0.8, column=1)
    guiders = [
        g.add("CFGGuider", f"Guider: {prompt.title}", model=m.model, positive=prompt[0], negative=negative[0], cfg=cfg)
        for prompt in (as_it_is, edited)
    ]
    inputs = {"guider": guiders[0][0], "sigmas": sigmas[0], "latent": latent}
    inverted = g.add("GuidekitExactInvert", keep_trajectory=masked, **inputs)
    mask = {"mask": photo[1]} if masked else {}
    result = g.add("GuidekitExactSample", guider=guiders[1][0], inverted=inverted[0], **mask)
    save(g, result[0], m.vae, name)
    in_app(g, (photo, "image"), (as_it_is, "text"), (edited, "text"), (sigmas, "denoise"), (sigmas, "steps"))
    return photo, inverted


_HOW = (
    "Exact Inversion finds the noise that your photo comes from, without an error. Sampling from it with the prompt "
    "*As it is* gives the photo again; with *Edited*, which has one other word, an edited one."
)
_EXACT_LOOK = "what changed, and at what did not: place, light, background. Describe the photo in *As it is* first."
_EXACT_TRY = (
    "one other word in *Edited*; `denoise` 0.6 to keep more, 1 to change more; cfg 1 to 4 in both guiders; method bdia "
    "for half the time."
)
_EXACT_COST = "four evaluations in each of 40 steps, there and back."


def exact_inversion_sdxl(g: Graph) -> None:
    _exact(g, models.sdxl(g), 1.0, "exact_inversion_sdxl", 3.0)
    note(g, _HOW, _EXACT_LOOK, _EXACT_TRY, _EXACT_COST)


def exact_inversion_sd15(g: Graph) -> None:
    _exact(g, models.sd15(g), 0.25, "exact_inversion_sd15", 3.0)
    note(g, _HOW, _EXACT_LOOK, _EXACT_TRY, _EXACT_COST)


def exact_inversion_mask_sdxl(g: Graph) -> None:
    _exact(g, models.sdxl(g), 1.0, "exact_inversion_mask_sdxl", 3.0, masked=True)
    note(
        g,
        f"{_HOW} Where the mask is not, the latents of the inversion are put back in every step.",
        "the border of the mask: outside it the photo stays as it was. Right-click *Your photo*, Open in MaskEditor, "
        "and paint what may change; with nothing painted nothing changes.",
        "a mask somewhat larger than the thing; `denoise` 1 for a larger change, now that the rest is kept.",
        f"{_EXACT_COST[:-1]}, and memory for the latents of all steps.",
    )


def direct_inversion_sd15(g: Graph) -> None:
    m = models.sd15(g)
    photo, latent = _photo(g, m.vae, 0.25)
    as_it_is, edited, negative = _three_prompts(g, m.clip)
    sigmas = g.add("BasicScheduler", model=m.model, scheduler="normal", steps=50, denoise=1.0, column=1)
    towards = {"alpha": -0.3, "threshold": -1.0, "steps": "start to end", "end_percent": 0.5}
    taking = g.add("GuidekitNegToMe", "NegToMe, towards the photo", model=m.model, **towards)
    recording = g.add("BasicGuider", "Guider: As it is", model=m.model, conditioning=as_it_is[0])
    inputs = {"model": taking[0], "positive": edited[0], "negative": negative[0]}
    guider = g.add("CFGGuider", "Guider: Edited", cfg=5.0, **inputs)
    recorded = g.add("GuidekitTrajectoryRecord", guider=recording[0], sigmas=sigmas[0], latent=latent)
    inputs = {"guider": guider[0], "trajectory": recorded[0], "source_prompt": as_it_is[0]}
    replayed = g.add("GuidekitTrajectoryReplay", **inputs)
    save(g, replayed[0], m.vae, "direct_inversion_sd15")
    in_app(g, (photo, "image"), (as_it_is, "text"), (edited, "text"), (guider, "cfg"), (taking, "alpha"))
    note(
        g,
        "Direct Inversion records the way of your photo into noise. On the way back a batch of two is sampled: the "
        "photo, set onto its recorded way in every step, and the edited image beside it, which NegToMe draws towards "
        "the photo.",
        "what changed, and at what did not. Describe the photo in *As it is* first.",
        "one other word in *Edited*; cfg 3 to 7.5; `alpha` 0 for plain DDIM editing, -0.6 to keep more; `denoise` 0.8.",
        "one evaluation in each step there; on the way back two images with CFG.",
    )


_EXACT = "Edit a photo by one word (Exact Inversion)"

TEMPLATES = (
    Template("exact_inversion_sdxl", f"{_EXACT} - SDXL", exact_inversion_sdxl, "exact_inversion"),
    Template("exact_inversion_sd15", f"{_EXACT} - SD1.5", exact_inversion_sd15, "exact_inversion"),
    Template(
        "exact_inversion_mask_sdxl",
        "Edit a part of a photo (Exact Inversion with a mask) - SDXL",
        exact_inversion_mask_sdxl,
        "exact_inversion",
    ),
    Template(
        "direct_inversion_sd15",
        "Edit a photo by one word (Direct Inversion) - SD1.5",
        direct_inversion_sd15,
        "trajectory",
    ),
)
