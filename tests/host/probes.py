"""Probes that the tests attach to the real host to observe it."""

from dataclasses import dataclass, field

import torch
from comfy.patcher_extension import WrappersMP

# Above the error that the order of float32 sums makes in a few steps (3e-6 at most), and below the effect of any node.
ROUNDING = 1e-5


@dataclass
class Evaluations:
    """Every network call of the runs of one MODEL: `chunks[i]` are the rows of call i in units of the latent batch,
    `sigmas[i]` its noise level."""

    chunks: list[int] = field(default_factory=list)
    sigmas: list[float] = field(default_factory=list)

    @property
    def total(self) -> int:
        """Network evaluations: a batched call of two predictions counts as two."""
        return sum(self.chunks)


def count_evaluations(model) -> Evaluations:
    """Counts evaluations of `model` (a clone of the caller's), below everything that a node can add."""
    seen = Evaluations()

    def wrapper(executor, x, t, *args, **kwargs):
        options = kwargs["transformer_options"] if "transformer_options" in kwargs else args[3]
        seen.chunks.append(len(options["cond_or_uncond"]))
        seen.sigmas.append(float(t.flatten()[0]))
        return executor(x, t, *args, **kwargs)

    model.add_wrapper_with_key(WrappersMP.APPLY_MODEL, "count", wrapper)
    return seen


@dataclass
class Predictions:
    """Copies of what the post-CFG functions of one MODEL were given, in order."""

    steps: list[dict] = field(default_factory=list)


def record_predictions(model) -> Predictions:
    """Appends a recording post-CFG function: it sees the result of everything before it."""
    seen = Predictions()

    def post_cfg(args):
        kept = ("denoised", "cond_denoised", "uncond_denoised", "input", "sigma")
        seen.steps.append({k: args[k].clone() for k in kept} | {k: args[k] for k in ("cond_scale", "uncond")})
        return args["denoised"]

    model.set_model_sampler_post_cfg_function(post_cfg)
    return seen


class DenseIdentity:
    """Image tokens attend to themselves and to the text; the rest as before. Dense and slow."""

    label, idle_reason = "identity", "never"

    def __call__(self, a):
        logits = (a.q @ a.k.transpose(-1, -2)) * a.scale
        forbidden = torch.zeros(logits.shape[-1], logits.shape[-1], dtype=torch.bool)
        forbidden[a.image, a.image] = True
        forbidden.fill_diagonal_(False)
        return logits.masked_fill(forbidden, -torch.inf).softmax(-1) @ a.v


def at_or_below(step: dict, limit: float) -> bool:
    """Whether a recorded step began at a noise level not above `limit`, up to the rounding of schedules to float32."""
    return float(step["sigma"][0]) <= float(limit) * (1 + 1e-6)


def distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """Largest difference relative to the size of `b`."""
    return ((a - b).abs().max() / b.abs().max()).item()


def differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Whether they differ by more than rounding."""
    return distance(a, b) > ROUNDING
