"""Guidance with two models: Diffusion-NPO (Wang et al., ICLR 2025, arXiv 2505.11245), where the negative is predicted
by a model tuned to what is disliked, and SINE (Zhang et al., CVPR 2023, arXiv 2212.04489), where two models share the
positive."""

from comfy_api.latest import io

from .host.inputs import check_prompt_for, checked
from .host.inputs.settings import tell_settings, unused
from .host.inputs.shared import RangedNode, range_inputs
from .host.models.model_for_prompt import mix_in, predict_negative_by
from .host.models.second_model import with_lora_strength
from .host.run.outputs import report_output, with_report
from .host.run.ranges import Range

LABEL = "Preference CFG"
NEGATIVE, MIXTURE = "negative (NPO)", "mixture (SINE)"


class PreferenceCFG(RangedNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitPreferenceCFG",
            display_name=LABEL,
            category="guidekit/alignment",
            description="CFG between two models: a worse or disliked one predicts the negative, so that guidance leads "
            "away from what it stands for; or two models share the positive. The other one may be the same model with "
            "other LoRAs.",
            search_aliases=[
                "NPO",
                "SINE",
                "two models",
                "negative lora",
                "preference",
                "CFG with two models",
                "like",
                "dislike",
            ],
            inputs=[
                io.Model.Input("model", tooltip="Predicts the positive."),
                io.Combo.Input(
                    "mode",
                    options=[NEGATIVE, MIXTURE],
                    default=NEGATIVE,
                    tooltip="What the other model does. negative: it predicts the negative prompt. mixture: it "
                    "predicts the source prompt, and the positive is a mean of both models' predictions.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=0.0,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="Without another model: the other one is the model with this factor on the strength of its "
                    "LoRAs. 0 is without them, 1 is no difference.",
                ),
                io.Float.Input(
                    "model_weight",
                    default=0.4,
                    min=0.0,
                    max=1.0,
                    step=0.05,
                    round=0.001,
                    tooltip="mixture: the share of the model's own prediction in the positive; the other model has the "
                    "rest.",
                ),
                *range_inputs(),
                io.Model.Input(
                    "other_model",
                    optional=True,
                    tooltip="Tuned to what is disliked, or to one image (SINE); of the same family. Where it is the "
                    "same model with other LoRAs, both share one network call.",
                ),
                io.Conditioning.Input(
                    "source",
                    optional=True,
                    tooltip="mixture: the prompt of the other model, such as the one it was tuned with. Without it the "
                    "positive.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model, guided by both."), report_output()],
            not_idempotent=True,
        )

    @classmethod
    @checked
    def execute(
        cls,
        model,
        mode,
        lora_strength,
        model_weight,
        start_percent,
        end_percent,
        other_model=None,
        source=None,
    ) -> io.NodeOutput:
        result, limits = model.clone(), Range(start_percent, end_percent)
        if mode == MIXTURE and model_weight == 1 or mode == NEGATIVE and other_model is None and lora_strength == 1:
            what = "mixture at model_weight 1" if mode == MIXTURE else "the model with its own LoRAs (lora_strength 1)"
            return with_report(result, report=tell_settings(cls, f"nothing is changed: this is {what}."))
        rest = {"model_weight": model_weight, "source": source} if mode == NEGATIVE else {}
        of_loras = {"lora_strength": lora_strength} if other_model is not None else {}
        ignored = unused(cls, f"with mode '{mode}'", **rest), unused(cls, "beside another model", **of_loras)
        other = with_lora_strength(model, lora_strength) if other_model is None else other_model
        if source is not None:
            check_prompt_for(other, source, "source")
        if mode == NEGATIVE:
            how = predict_negative_by(result, other, LABEL, limits)
        else:
            how = mix_in(result, other, LABEL, limits, model_weight, source)
        what = "where a negative is evaluated (not at cfg 1), the other model predicts it"
        how = f"{what if mode == NEGATIVE else 'the other model predicts'} {how}."
        return with_report(result, report=tell_settings(cls, how, *ignored))
