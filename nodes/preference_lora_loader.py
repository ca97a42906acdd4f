"""Weights that were tuned to preferences: Diffusion-KTO (Li et al., NeurIPS 2024, arXiv 2404.04465), Diffusion-DPO
(Wallace et al., CVPR 2024, arXiv 2311.12908), Diffusion-NPO (Wang et al., ICLR 2025, arXiv 2505.11245) and others."""

from pathlib import Path

from comfy_api.latest import io

from ..demo.world.adapters import TASTES, adapter_file
from ..demo.world.models import family_of_model
from .host.files import tuned as tuned_files
from .host.inputs import checked
from .host.models.model_for_prompt import predict_negative_by
from .host.run.messages import cut, plain, tell
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range
from .host.weights.read import read_tuned

LABEL = "Preference LoRA Loader"
_LONGEST = 500  # characters of a message, which may quote what the file says about itself
BOTH, POSITIVE, NEGATIVE = "both", "positive only", "negative only"
_DEMO = {f"demo: {say}": say for say in TASTES}


class PreferenceLoraLoader(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitPreferenceLoraLoader",
            display_name=LABEL,
            category="guidekit/alignment",
            description="Loads LoRAs whatever their key names, those of diffusers and PEFT included, which ComfyUI's "
            "own loader ignores, and whole tuned networks as a change of any strength. For the positive, the negative "
            "(Diffusion-NPO) or both; says what was applied.",
            search_aliases=[
                "lora",
                "KTO",
                "DPO",
                "NPO",
                "SPO",
                "DoRA",
                "PEFT",
                "diffusers lora",
                "load lora",
                "align",
                "like",
                "dislike",
                "aesthetic",
                "preference",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the file was tuned on, or a near relative."),
                io.Combo.Input(
                    "file",
                    options=[*_DEMO, *tuned_files.names()],
                    tooltip="A safetensors file in models/loras, or a whole network in models/diffusion_models. demo: "
                    "for the demo models.",
                ),
                io.Float.Input(
                    "strength",
                    default=1.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="1 is what was trained, 0 is the model without it and costs nothing.",
                ),
                io.Combo.Input(
                    "apply_to",
                    options=[BOTH, POSITIVE, NEGATIVE],
                    default=BOTH,
                    tooltip="Which prompt's prediction it changes. negative only: for weights that were tuned to what "
                    "is disliked (Diffusion-NPO), so that guidance leads away from them.",
                ),
                io.Int.Input(
                    "rank",
                    default=0,
                    min=0,
                    max=4096,
                    step=1,
                    tooltip="Of a whole network's change: 0 keeps all of it; else only the nearest products of this "
                    "rank, which take less memory. Adapters have their own.",
                    advanced=True,
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="The model with the file's weights."),
                report_output("What the file is and what of it was applied."),
            ],
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> float | None:
        """Changes when the file is written again."""
        return tuned_files.modified(file) if file is not None and file not in _DEMO else None

    @classmethod
    @checked
    def execute(cls, model, file, strength, apply_to, rank) -> io.NodeOutput:
        path = _demo_file(model, _DEMO[file]) if file in _DEMO else tuned_files.path_of(file)
        if strength == 0:
            return with_report(model.clone(), report=tell(LABEL, f"{path.name}: strength 0, nothing is applied."))
        found = read_tuned(model, path, rank)
        sentences = found.report
        if not -1 <= strength <= 2:
            sentences.append(f"A strength of {strength:g} is far from what was trained (1).")
        changed = model.clone()
        changed.add_patches(found.patches, strength)
        if apply_to != BOTH:
            result, other = (changed, model) if apply_to == POSITIVE else (model.clone(), changed)
            how = predict_negative_by(result, other, f"{LABEL} ({apply_to})", Range())
            sentences.append(
                f"For the {apply_to}: where a negative is evaluated (not at cfg 1), it is predicted {how}."
            )
            changed = result
        report = tell(LABEL, "\n".join(cut(plain(sentence), _LONGEST) for sentence in sentences))
        return with_report(changed, report=report)


def _demo_file(model, say: str) -> Path:
    family = family_of_model(model)
    if family is None:
        raise ValueError(
            f"demo: {say} is for Guidekit Demo Model, and {type(model.model).__name__} is connected. Choose a file of "
            "models/loras."
        )
    return adapter_file(family, say)
