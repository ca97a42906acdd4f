"""LinearAG (Castillo et al., AAAI 2025, arXiv 2312.12487): the negative's prediction from a few scalars."""

from dataclasses import dataclass

from comfy_api.latest import io
from torch import Tensor

from ..samplers.guidance.linear_ag import CONDITIONAL, ESTIMATED, Coefficients, estimate, policy
from .host.files import folders as files
from .host.inputs import checked
from .host.predictions.negative import Negative, watch_negative
from .host.predictions.scales import limit_scale, saved
from .host.run import Run
from .host.run.fingerprint import check_description, describe, difference
from .host.run.guiders import has_one_scale, why_not_one_scale
from .host.run.messages import cut, plain
from .host.run.raw_predictions import from_raw, to_raw

MISMATCH = ["error", "use CFG"]


@dataclass
class _Notes:
    """State of one run: why it falls back to plain CFG, if it does, and the evaluations saved."""

    refused: str | None = None
    estimated: int = 0


@dataclass(frozen=True, eq=False)
class _LinearAG(Negative):
    coefficients: Coefficients
    fitted: dict
    on_mismatch: str

    label = "LinearAG"
    idle_reason = "the sampler never asked for a guided prediction."

    def begin(self, run: Run, guider) -> None:
        notes = run.notes[self] = _Notes()
        notes.refused = difference(self.fitted, describe(run, guider))
        if notes.refused is None and not has_one_scale(guider):
            notes.refused = f"They were fitted for CFG, and {why_not_one_scale(guider)}"
        if notes.refused and self.on_mismatch == "error":
            reason = cut(plain(notes.refused), 500)  # the message quotes the file
            raise ValueError(
                f"LinearAG: the coefficients do not fit this run. {reason} Fit them again for it (LinearAG Fit), or "
                "set on_mismatch to 'use CFG'."
            )

    def __call__(self, run: Run, scale: float) -> float:
        return scale if run.notes[self].refused or self._policy(run) != CONDITIONAL else 1.0

    def _policy(self, run: Run) -> str:
        return policy(run.step, self.coefficients.steps)

    def _history(self, run: Run) -> tuple[list[Tensor], list[Tensor]]:
        """The network's outputs in the steps before this one, as far as they are known."""
        return run.memory(self).read() or ([], [])

    def _is_whole(self, run: Run, history: tuple[list[Tensor], list[Tensor]]) -> bool:
        return len(history[0]) == run.step

    def replaces(self, run: Run) -> bool:
        return self._policy(run) == ESTIMATED and self._is_whole(run, self._history(run))

    def stand_in(self, run: Run, args: dict, cond: Tensor) -> Tensor:
        conds, unconds = self._history(run)
        model_sampling, x, sigma = run.model_sampling, args["input"], args["sigma"]
        conds = [*conds, to_raw(model_sampling, x, cond, sigma)]
        output = estimate(self.coefficients, run.step, conds, unconds)
        run.notes[self].estimated += 1
        run.memory(self).write((conds, [*unconds, output]))
        return from_raw(model_sampling, x, output, sigma)

    def see(self, run: Run, args: dict, cond: Tensor, uncond: Tensor | None) -> None:
        history = self._history(run)
        whole = self._is_whole(run, history)
        if uncond is None or not whole or run.notes[self].refused or self._policy(run) == CONDITIONAL:
            return
        outputs = (to_raw(run.model_sampling, args["input"], d, args["sigma"]) for d in (cond, uncond))
        run.memory(self).write(tuple([*before, output] for before, output in zip(history, outputs)))

    def why_idle(self, run: Run) -> str | None:
        refused = run.notes[self].refused
        return f"plain CFG was used. {refused}" if refused else super().why_idle(run)

    def summary(self, run: Run) -> str:
        estimated, alone = run.notes[self].estimated, saved(run, self)
        return (
            f"{estimated} steps with an estimated negative, {alone} with the positive alone: {estimated + alone} "
            "evaluations saved."
        )


class LinearAG(io.ComfyNode):
    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="GuidekitLinearAG",
            display_name="LinearAG",
            category="guidekit/guidance",
            description="CFG for five eighths of its price: in the first half of the run every other negative "
            "prediction is estimated from what is known already, in the second half the positive is used alone. Needs "
            "a file of LinearAG Fit for this model, schedule, cfg and negative prompt.",
            search_aliases=[
                "LinearAG",
                "linear adaptive guidance",
                "faster cfg",
                "speed",
                "skip negative",
                "faster",
                "skip cfg",
            ],
            inputs=[
                io.Model.Input("model", tooltip="The model that the coefficients were fitted for."),
                io.Combo.Input(
                    "file",
                    options=files.MODELS.names(),
                    tooltip="A file in models/guidekit, made by LinearAG Fit; or connect that node's output.",
                ),
                io.Combo.Input(
                    "on_mismatch",
                    options=MISMATCH,
                    default="error",
                    tooltip="Where the run is not the one fitted for (steps, scheduler, sampler, cfg, negative, "
                    "model): stop with the reason, or sample with plain CFG and say so.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with LinearAG.")],
            not_idempotent=True,
        )

    @classmethod
    def fingerprint_inputs(cls, file=None, **_) -> float | None:
        """Changes when the file is fitted again."""
        return files.MODELS.fingerprint(file)

    @classmethod
    @checked
    def execute(cls, model, file, on_mismatch) -> io.NodeOutput:
        tensors, fitted = files.MODELS.load(file, ("cond", "uncond"))
        try:
            check_description(fitted)
            steps = len(fitted["sigmas"]) - 1
            for name, tensor in tensors.items():
                if steps < 1 or tensor.shape != (steps, steps):
                    raise ValueError(f"{name} has shape {tuple(tensor.shape)[:10]}, wanted is ({steps}, {steps})")
        except ValueError as error:
            raise ValueError(f"{file} is not a file of LinearAG Fit: {error}. Fit it again.") from error
        model = model.clone()
        technique = _LinearAG(Coefficients(**tensors), fitted, on_mismatch)
        limit_scale(model, technique)
        watch_negative(model, technique)
        return io.NodeOutput(model)
