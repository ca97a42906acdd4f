"""Exact inversion: EDICT (Wallace et al., CVPR 2023, arXiv 2211.12446), BDIA (Zhang et al., ECCV 2024, arXiv
2307.10829), O-BELM (Wang et al., NeurIPS 2024, arXiv 2410.07273), Rex (Blasingame and Liu, ICML 2026, arXiv
2502.08834)."""

import torch
from comfy_api.latest import io

from ..samplers.inversion.reversible import Method, Pair, check_falling, unchanged
from .host.inputs import checked, fit_latent
from .host.inputs.settings import tell_settings, unused
from .host.inversion.exact import ToNoise
from .host.inversion.exact_state import METHODS, Inverted, method_of
from .host.inversion.sampler import check_unmasked, sample_schedule
from .host.run.fingerprint import describe_model
from .host.run.outputs import report_output, with_report
from .presets import TYPED, preset_input, resolve

_NUMBERS = {"edict": "p", "edict own level": "p", "bdia": "gamma"}  # by method
_GROWTH = 1e-3  # rounding error of an inversion that is worth a warning
# Noise that is so much too large is of a method that has diverged. Rex had 3.6 on the demo UNet, and edited well.
_UNSTABLE = 4.0


class ExactInvert(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitExactInvert",
            display_name="Exact Inversion",
            category="guidekit/inversion",
            description="Turns an image into the noise that it comes from, without error: from it, Exact Inversion "
            "Sampling makes the same image again or, with another prompt, an edited one.",
            search_aliases=[
                "EDICT",
                "BDIA",
                "BELM",
                "O-BELM",
                "Rex",
                "exact inversion",
                "invert",
                "unsampler",
                "edit an image",
                "noise inversion",
                "edit photo",
                "unsample",
                "undo",
            ],
            inputs=[
                io.Guider.Input(
                    "guider",
                    tooltip="A guider with the prompt that describes the image, such as CFGGuider. A cfg of 1 to 3.",
                ),
                io.Sigmas.Input(
                    "sigmas",
                    tooltip="The schedule of the later sampling, falling, as from BasicScheduler. Its denoise sets how "
                    "far to invert: below 1 keeps more of the image.",
                ),
                io.Latent.Input("latent", tooltip="The image, from VAE Encode."),
                io.Combo.Input(
                    "method",
                    options=METHODS,
                    default="edict",
                    tooltip="edict and rex: two evaluations per step; bdia and o-belm: one. All are exact; they differ "
                    "in what you get from the noise with another prompt.",
                ),
                io.Float.Input(
                    "p",
                    default=0.93,
                    min=0.0,
                    max=1.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="edict only: how little its two latents are mixed. The paper's 0.93 is for 40 to 50 steps; "
                    "0 chooses a value that suits the number of steps.",
                    advanced=True,
                ),
                io.Float.Input(
                    "gamma",
                    default=0.96,
                    min=0.5,
                    max=1.0,
                    step=0.005,
                    round=0.0001,
                    tooltip="bdia only: how much of the previous latent goes into a step.",
                    advanced=True,
                ),
                io.Boolean.Input(
                    "keep_trajectory",
                    default=False,
                    tooltip="Keep the latents of every step, which sampling with a mask needs: two per step, in "
                    "float64.",
                ),
                preset_input(),
            ],
            outputs=[
                io.Latent.Output(
                    display_name="inverted",
                    tooltip="The noise, with what Exact Inversion Sampling needs. Connect it directly, without another "
                    "node in between.",
                ),
                report_output("How the image was inverted, and what to change if that went wrong."),
            ],
        )

    @classmethod
    @checked
    def execute(cls, guider, sigmas, latent, method, p, gamma, keep_trajectory, preset=TYPED) -> io.NodeOutput:
        model = guider.model_patcher
        numbers = {"p": p, "gamma": gamma}
        used = {name: value for name, value in numbers.items() if name == _NUMBERS.get(method)}
        taken, told = resolve(cls, model, preset, **used)
        p, gamma = (numbers | taken).values()
        rest = {name: value for name, value in numbers.items() if name not in used}
        check_unmasked(latent)
        samples = fit_latent(model, latent["samples"], "latent")
        inverter, sigmas = _plan(sigmas, method, p, gamma, model.get_model_object("model_sampling"))
        kept = _Trajectory() if keep_trajectory else None
        raw = model.model.process_latent_in(samples.double())
        pair = sample_schedule(guider, ToNoise(inverter, (raw,), kept or unchanged), sigmas, samples)
        shown = model.model.process_latent_out(pair.x).float()
        trajectory = kept.stacked() if kept else None
        state = Inverted(sigmas, describe_model(model), samples, shown, pair, method, p, gamma, trajectory)
        report = tell_settings(cls, _report(inverter, state), told, unused(cls, f"with method {method}", **rest))
        return with_report(state.latent(), report=report)


class _Trajectory:
    """The states of an inversion, in the order in which it reaches them."""

    def __init__(self):
        self._pairs: list[torch.Tensor] = []

    def __call__(self, i: int, pair: Pair) -> Pair:
        self._pairs.append(torch.stack(list(pair)).cpu())
        return pair

    def stacked(self) -> torch.Tensor:
        """All states [levels, 2, B, ...], the noisiest first."""
        return torch.stack(self._pairs[::-1])


def _plan(sigmas: torch.Tensor, method: str, p: float, gamma: float, model_sampling) -> tuple[Method, torch.Tensor]:
    """The method, and the schedule it integrates over.

    Raises:
        ValueError: it does not fall, or has too few levels.
    """
    sigmas = sigmas.float().cpu()
    check_falling(sigmas.tolist())
    inverter = method_of(method, p, gamma, len(sigmas) - 1)
    if len(sigmas) - 1 <= inverter.first:
        raise ValueError(f"{method} steps over two levels and needs at least two steps; the sigmas have one.")
    if not inverter.to_zero and sigmas[-1] == 0:
        smallest = min(float(model_sampling.sigma_min), sigmas[-2].item() / 2)
        sigmas = torch.cat([sigmas[:-1], sigmas.new_tensor([smallest])])
    return inverter, sigmas


def _report(inverter: Method, state: Inverted) -> str:
    steps = len(state.sigmas) - 1
    spread = (state.pair.x.std() / state.sigmas[0]).item()
    text = (
        f"{state.method}: {steps} steps, {steps * inverter.evaluations} evaluations for each prediction. The noise has "
        f"a standard deviation of {spread:.2f} (1 is usual at full depth)."
    )
    if not spread < _UNSTABLE:
        text += (
            f" That is too much: {state.method} is not stable with this model and these settings, and another prompt "
            "changes little. Use edict, more steps, or a lower cfg."
        )
    p = getattr(inverter, "p", 1.0)
    if p ** (-2 * steps) * torch.finfo(state.pair.x.dtype).eps > _GROWTH:
        return f"With p {p:g} and so many steps rounding grows too much; use p 0. {text}"
    return text
