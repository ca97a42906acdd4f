"""Values that depend on the model: what was published, or measured here, for each kind, in one table.

A node with an input `preset` takes, for every input that is still at its default, the value of the model's kind from
the table; what a user has set always wins. It tells what it has taken, and from where.
"""

from dataclasses import dataclass
from typing import Any

from comfy.model_patcher import ModelPatcher
from comfy_api.latest import io

from .host.inputs.settings import typed
from .host.network.model_kind import kinds_of

AUTO, TYPED = "auto", "as typed"
ANY = "any model"  # the general value, which is the input's default

PAPER = "the paper"
CODE = "the authors' code"
DIFFUSERS = "diffusers"
STABILITY = "Stability AI's code"
WORKFLOW = "the authors' ComfyUI workflow"


@dataclass(frozen=True)
class Row:
    """`node`: its id without "Guidekit"; `model`: a name of model_kind.py, or ANY."""

    node: str
    model: str
    input: str
    value: float | str
    source: str


TABLE = (
    # Perturbed-Attention Guidance (2403.17377). The authors' scale is for cfg 4; without CFG they take 5. Diffusers'
    # example for SD3 medium is for cfg 5.
    Row("PAG", "SD1.5", "scale", 3.0, CODE),
    Row("PAG", "SD1.5", "blocks", "middle", CODE),
    Row("PAG", "SDXL", "scale", 3.0, DIFFUSERS),
    Row("PAG", "SDXL", "blocks", "middle", DIFFUSERS),
    Row("PAG", "SD3 medium", "scale", 0.7, DIFFUSERS),
    Row("PAG", "SD3 medium", "blocks", "13", DIFFUSERS),
    Row("PAG", ANY, "scale", 3.0, f"{CODE}, for SD1.5"),
    Row("PAG", ANY, "blocks", "", f"{PAPER} for UNets, {DIFFUSERS} for transformers"),
    # Smoothed Energy Guidance (2408.00760): the example of the authors' page, and its fixed scale.
    Row("SEG", "SDXL", "scale", 3.0, CODE),
    Row("SEG", "SDXL", "blur", 100.0, CODE),
    Row("SEG", "SDXL", "blocks", "middle", CODE),
    Row("SEG", ANY, "scale", 3.0, f"{CODE}, for SDXL"),
    Row("SEG", ANY, "blur", 10.0, f"{PAPER}, for SDXL"),
    Row("SEG", ANY, "blocks", "", f"{PAPER} for UNets, as PAG for transformers"),
    # Skip-Layer Guidance, which Stability AI made for one model, with cfg 4.
    Row("SLG", "SD3.5 medium", "scale", 2.5, STABILITY),
    Row("SLG", "SD3.5 medium", "blocks", "7-9", STABILITY),
    Row("SLG", "SD3.5 medium", "start_percent", 0.01, STABILITY),
    Row("SLG", "SD3.5 medium", "end_percent", 0.2, STABILITY),
    Row("SLG", ANY, "scale", 2.5, f"{STABILITY}, for SD3.5 medium"),
    Row("SLG", ANY, "blocks", "", f"{STABILITY} for transformers, our choice for UNets"),
    # Adaptive Projected Guidance (2410.02416), table 10. Thresholds in rms: 15 in the norm of SDXL's 4 x 128 x 128.
    Row("APG", "SDXL", "eta", 0.0, PAPER),
    Row("APG", "SDXL", "momentum", -0.5, PAPER),
    Row("APG", "SDXL", "norm_threshold", 0.0586, PAPER),
    Row("APG", "ACE-Step", "eta", 0.0, "ACE-Step's code"),
    Row("APG", "ACE-Step", "momentum", -0.75, "ACE-Step's code"),
    Row("APG", ANY, "eta", 0.0, PAPER),
    Row("APG", ANY, "momentum", -0.5, f"{PAPER}, for SDXL"),
    Row("APG", ANY, "norm_threshold", 0.0, "no limit, for the right one is another for each model"),
    # Normalized Attention Guidance (2505.21179), whose scale is here, as in code, the paper's and 1. Wan's row is for
    # text to video in 4 steps at cfg 1; with image inputs the authors advise lower tau and alpha.
    Row("NASA", "SD1.5", "nag_scale", 3.0, PAPER),
    Row("NASA", "SD1.5", "nag_tau", 2.5, PAPER),
    Row("NASA", "SD1.5", "nag_alpha", 0.375, PAPER),
    Row("NASA", "SDXL", "nag_scale", 3.0, PAPER),
    Row("NASA", "SDXL", "nag_tau", 2.5, PAPER),
    Row("NASA", "SDXL", "nag_alpha", 0.5, PAPER),
    Row("NASA", "SD3", "nag_scale", 5.0, f"{PAPER}, for SD3.5 large"),
    Row("NASA", "SD3", "nag_tau", 2.5, f"{PAPER}, for SD3.5 large"),
    Row("NASA", "SD3", "nag_alpha", 0.125, f"{PAPER}, for SD3.5 large"),
    Row("NASA", "Flux", "nag_scale", 5.0, PAPER),
    Row("NASA", "Flux", "nag_tau", 2.5, PAPER),
    Row("NASA", "Flux", "nag_alpha", 0.25, PAPER),
    Row("NASA", "Chroma", "nag_scale", 5.0, WORKFLOW),
    Row("NASA", "Chroma", "nag_tau", 2.5, WORKFLOW),
    Row("NASA", "Chroma", "nag_alpha", 0.25, WORKFLOW),
    Row("NASA", "Wan", "nag_scale", 11.0, f"{WORKFLOW} for 4 steps"),
    Row("NASA", "Wan", "nag_tau", 3.5, f"{WORKFLOW} for 4 steps"),
    Row("NASA", "Wan", "nag_alpha", 0.5, f"{WORKFLOW} for 4 steps"),
    Row("NASA", "Wan I2V", "nag_scale", 5.0, PAPER),
    Row("NASA", "Wan I2V", "nag_tau", 2.5, PAPER),
    Row("NASA", "Wan I2V", "nag_alpha", 0.25, PAPER),
    Row("NASA", "HunyuanVideo", "nag_scale", 9.0, WORKFLOW),
    Row("NASA", "HunyuanVideo", "nag_tau", 2.5, WORKFLOW),
    Row("NASA", "HunyuanVideo", "nag_alpha", 0.12, WORKFLOW),
    Row("NASA", ANY, "nag_scale", 5.0, f"{PAPER}, for Flux"),
    Row("NASA", ANY, "nag_tau", 2.5, PAPER),
    Row("NASA", ANY, "nag_alpha", 0.25, f"{PAPER}, for Flux"),
    # Negative-Away Steer Attention (2412.02687).
    Row("NASA", "SD1.5", "nasa_alpha", 0.1, PAPER),
    Row("NASA", "SD2", "nasa_alpha", 0.2, PAPER),
    Row("NASA", ANY, "nasa_alpha", 0.5, f"{PAPER}, for PixArt"),
    # Negative Token Merging (2412.01339). Its steps follow from the kind of noise, its blocks from the network.
    Row("NegToMe", "SDXL", "alpha", 0.9, CODE),
    Row("NegToMe", "SDXL", "threshold", 0.7, CODE),
    Row("NegToMe", "Flux", "alpha", 0.9, CODE),
    Row("NegToMe", "Flux", "threshold", 0.65, CODE),
    Row("NegToMe", ANY, "alpha", 0.9, f"{CODE}, for SDXL and Flux"),
    Row("NegToMe", ANY, "threshold", 0.65, f"{CODE}, for Flux"),
    # StyleAligned (2312.02133): the notebooks for the images of a batch. For a given image they share log 2.
    Row("StyleAligned", "SD1.5", "share", 0.0, CODE),
    Row("StyleAligned", "SDXL", "share", 0.0, CODE),
    Row("StyleAligned", ANY, "share", 0.0, f"{CODE}, for SD1.5 and SDXL"),
    # Guidance in a limited interval (2404.07724), for SDXL with cfg 16.
    Row("GuidanceInterval", "SDXL", "limits", "SDXL", PAPER),
    Row("GuidanceInterval", ANY, "limits", "SDXL", f"{PAPER}, for SDXL, as ratios of noise to signal"),
    # CFG-Zero* (2503.18886): the paper's share of the steps; of Wan's 50 the authors' code has 2, from an image 1.
    Row("CFGZeroStar", "Wan I2V", "zero_init", 0.02, f"{CODE}: 1 of 50 steps"),
    Row("CFGZeroStar", ANY, "zero_init", 0.04, PAPER),
    # Frequency-Decoupled Guidance (2506.19713): 10 for the fine band and 5, the sampler's cfg, for the rest.
    Row("FrequencyGuidance", "SDXL", "high", 2.0, f"{PAPER} with cfg 5"),
    Row("FrequencyGuidance", ANY, "high", 2.0, f"{PAPER}, for SDXL with cfg 5"),
    # FreCaS (2410.18410), for two stages; the authors' numbers for more are on the node's page.
    Row("FreCaSPlan", "SDXL", "steps", "40, 10", f"{CODE}, 1024 to 2048"),
    Row("FreCaSPlan", "SDXL", "ends", "0.2", f"{CODE}, 1024 to 2048"),
    Row("FreCaSPlan", "SDXL", "gamma", 1.5, f"{CODE}, 1024 to 2048"),
    Row("FreCaSPlan", "SD2", "steps", "40, 10", f"{CODE}, 512 to 1024"),
    Row("FreCaSPlan", "SD2", "ends", "0.1", f"{CODE}, 512 to 1024"),
    Row("FreCaSPlan", "SD2", "gamma", 3.0, f"{CODE}, 512 to 1024"),
    Row("FreCaSPlan", "SD3", "steps", "20, 8", f"{CODE}, 1024 to 2048"),
    Row("FreCaSPlan", "SD3", "ends", "0.05", f"{CODE}, 1024 to 2048"),
    Row("FreCaSPlan", ANY, "steps", "40, 10", f"{CODE}, for SDXL"),
    Row("FreCaSPlan", ANY, "ends", "0.2", f"{CODE}, for SDXL"),
    Row("FreCaSPlan", ANY, "gamma", 1.5, f"{CODE}, for SDXL"),
    # CFG++ (2406.08070), in the place of CFG 7.5 at 50 steps.
    Row("CFGPP", "SD1.5", "guidance_lambda", 0.6, PAPER),
    Row("CFGPP", "SDXL", "guidance_lambda", 0.6, PAPER),
    Row("CFGPP", ANY, "guidance_lambda", 0.6, f"{PAPER}, for SD1.5 and SDXL"),
    # EDICT (2211.12446), for 40 to 50 steps, and BDIA as the authors of BELM use it for edits.
    Row("ExactInvert", "SD1.5", "p", 0.93, PAPER),
    Row("ExactInvert", "SD1.5", "gamma", 0.96, "BELM's code"),
    Row("ExactInvert", ANY, "p", 0.93, f"{PAPER}, for SD1.5"),
    Row("ExactInvert", ANY, "gamma", 0.96, "BELM's code, for SD1.5"),
)


def preset_input() -> io.Combo.Input:
    """The widget of nodes with rows in the table; always the last one, so that older workflows keep theirs. A client
    that leaves it out gets the values it sends: `preset=TYPED` in `execute`."""
    return io.Combo.Input(
        "preset",
        options=[AUTO, TYPED],
        default=AUTO,
        optional=True,
        tooltip="auto: inputs that are at their defaults take what is published for the kind of model, which the text "
        "under the node tells; what you set stays. as typed: all inputs are taken as they are.",
    )


def resolve(node: type[io.ComfyNode], model: ModelPatcher, preset: str, **values: Any) -> tuple[dict[str, Any], str]:
    """`values` to be used, in their order, and a sentence that says what was taken from the table; "" if
    nothing was."""
    if preset != AUTO:
        return values, ""
    kinds, kept = kinds_of(model), typed(node, values)
    rows = {name: row for name in values if name not in kept and (row := _row(node, kinds, name))}
    used = values | {name: row.value for name, row in rows.items()}
    return used, _told(kinds, rows, {name: values[name] for name in values if name in kept})


def _row(node: type[io.ComfyNode], kinds: tuple[str, ...], name: str) -> Row | None:
    name_of_node = node.define_schema().node_id.removeprefix("Guidekit")
    own = {row.model: row for row in TABLE if row.node == name_of_node and row.input == name}
    return next((own[kind] for kind in (*kinds, ANY) if kind in own), None)


def _told(kinds: tuple[str, ...], rows: dict[str, Row], kept: dict[str, Any]) -> str:
    if not rows:
        return ""
    by_source: dict[str, list[str]] = {}
    for name, row in rows.items():
        by_source.setdefault(row.source, []).append(shown(name, row.value))
    taken = "; ".join(f"{', '.join(named)} ({source})" for source, named in by_source.items())
    if any(row.model != ANY for row in rows.values()):
        text = f"auto for {kinds[0]}: {taken}."
    else:
        text = f"auto: nothing is known for {kinds[0]}. The general values: {taken}."
    return text + (f" As typed: {', '.join(shown(*each) for each in kept.items())}." if kept else "")


def shown(name: str, value: Any) -> str:
    """An input and its value, as shown to the user."""
    if value == "":
        return f"{name} as usual"
    return f"{name} {value:g}" if isinstance(value, float) else f"{name} {value}"
