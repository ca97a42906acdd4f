"""The conditional and unconditional predictions of a guider, for samplers that need both (CFG++).

Relies on: the sampler function being given KSamplerX0Inpaint, whose `inner_model` is the guider (comfy/samplers.py:630,
985); post-CFG functions in `extra_args["model_options"]`, run after those of the nodes (samplers.py:602); the guider's
`cfg` being read in every evaluation (samplers.py:1212).
"""

import math
from collections.abc import Callable

import comfy.model_patcher
from torch import Tensor

from ....samplers.guidance.cfgpp import Prediction, Report
from ..run.guiders import has_one_scale

_NOT_ONE = 1 + 1e-8  # the host drops the negative at a scale within 1e-9 of 1


class SeparatePredictions:
    """The `Evaluate` of `samplers.guidance.cfgpp` for the sampler's `model`: predictions (denoised, [B, ...]) at the
    CFG scale that is equivalent to CFG++ at `guidance_lambda`.

    A node that changes the scale of the evaluation (guidance interval, adaptive guidance) changes lambda in proportion;
    at scale 1 the step uses the positive alone.

    Raises:
        ValueError: the guider does not combine one positive and one negative by one scale.
    """

    def __init__(self, model, extra_args: dict, guidance_lambda: float):
        self._model = model
        self._guider = guider = model.inner_model
        if not has_one_scale(guider):
            raise ValueError(
                "CFG++ needs a positive and a negative prompt (it may be empty) with one cfg, and "
                f"{type(guider).__name__} has something else. Use KSampler, SamplerCustom or CFGGuider, or a sampler "
                "without CFG++."
            )
        self._lambda = guidance_lambda
        self._seen: dict | None = None
        options = comfy.model_patcher.set_model_options_post_cfg_function(
            dict(extra_args.get("model_options", {})), self._observe
        )
        self._extra_args = {**extra_args, "model_options": options}

    def _observe(self, args: dict) -> Tensor:
        self._seen = args
        return args["denoised"]

    def __call__(self, x: Tensor, sigma: float, factor: float) -> Prediction:
        scale = self._lambda * factor
        saved, self._seen = self._guider.cfg, None
        self._guider.cfg = _NOT_ONE if math.isclose(scale, 1) else scale
        try:
            denoised = self._model(x, x.new_full((len(x),), sigma), **self._extra_args)
        finally:
            self._guider.cfg = saved
        used, change = self._guidance(x)
        self._seen = None
        return Prediction(denoised, denoised - used * change, used / factor * change)

    def _guidance(self, x: Tensor) -> tuple[float, Tensor]:
        """The scale of the last evaluation, and its D_c - D_u."""
        seen = self._seen
        if seen is None or seen["uncond"] is None and seen["cond_scale"] != 1:
            raise ValueError(
                "CFG++ needs the predictions for the positive and the negative prompt, and "
                f"{type(self._guider).__name__} does not pass on both. Use KSampler, SamplerCustom or CFGGuider."
            )
        if seen["uncond"] is None:  # another node has set the scale to 1
            return seen["cond_scale"], x.new_zeros(())
        return seen["cond_scale"], seen["cond_denoised"] - seen["uncond_denoised"]


def reporter(callback: Callable[[dict], None] | None) -> Report:
    """The host's callback as a `Report` of `samplers.guidance.cfgpp`."""

    def report(step: int, x: Tensor, sigma: float, denoised: Tensor) -> None:
        if callback is not None:
            level = x.new_full((), sigma)
            callback({"x": x, "i": step, "sigma": level, "sigma_hat": level, "denoised": denoised})

    return report
