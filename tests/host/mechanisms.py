"""What nodes hang into a model and its runs, by name. Nodes meet in mechanisms, so these are what is paired."""

from comfy.model_patcher import ModelPatcher

from guidekit.nodes.host.predictions.corrections import _Observe
from guidekit.nodes.host.predictions.per_sample_prompts import References
from guidekit.nodes.host.run import KEY, techniques_of
from guidekit.nodes.host.run.loaded_beside import loaded_beside


def attached(model: ModelPatcher) -> set[str]:
    """The mechanisms that nodes have put on a model, but for what only a run shows: its memory."""
    kinds = techniques_of(model.model_options)
    seconds = [around.__self__ for around in model.model_options.get(KEY, {}).get("around", ())]
    techniques = [*seconds, *(technique for each in kinds.values() for technique in each)]
    after_cfg = model.model_options.get("sampler_post_cfg_function", [])
    found = set(kinds)
    if any(getattr(branch, "resumes", False) for branch in kinds.get("branches", [])):
        found = found - {"branches"} | {"resumed branches"}
    seen = {
        "observer": any(isinstance(function, _Observe) for function in after_cfg),
        "models": bool(seconds),
        "references": any(
            isinstance(value, References) and value.conditionings for t in techniques for value in vars(t).values()
        ),
        "loaded beside": bool(loaded_beside(model)),
    }
    return found | {name for name, there in seen.items() if there}


# Who stands for each mechanism in the pairs: the plainest node that has it.
REPRESENTATIVES = {
    "set scale": "cfgpp",
    "limit scale": "interval",
    "observer": "adaptive",
    "memory": "apg",
    "corrections": "apg",
    "results": "zero_init",
    "resumed branches": "pag",
    "attention": "pag",
    "skips": "slg",
    "branches": "preference_mixture",
    "row LoRA": "preference_cfg",
    "references": "gfcg",
    "loaded beside": "gfcg",
    "negative": "gfcg_swap",
    "branch cache": "cache",
    "models": "autoguidance_model",
    "riders": "negtome",
    "attention output": "negtome",
    "second text": "nasa",
}
