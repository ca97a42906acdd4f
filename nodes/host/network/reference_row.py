"""A reference latent that goes through the network in additional chunks, so that techniques can use its features.

Each additional chunk is a copy of one of the call's, with the latent in place of every image: the same prompt, the same
ControlNet, the same branch. So the number of rows still agrees with the options, and the reference of an image depends
on that image's own row alone.

Relies on: APPLY_MODEL wrappers, which are given all rows of a network call and all that belongs to them
(comfy/model_base.py:191), called in the order of a dict; `process_latent_in` of the model, `noise_scaling` and
`calculate_input` of its sampling object (comfy/model_sampling.py), where the latter multiplies by a factor.
"""

from dataclasses import dataclass
from typing import Any

import torch
from comfy.model_patcher import ModelPatcher
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from ..run import Run, attach, attach_hook, current_run
from ..run.branch_chunks import branch_uuid
from ..run.chunks import Copy, copies, prompts, with_copies
from ..run.further_rows import check_further_rows
from ..run.partial_calls import know_rows, put_rows_right
from .shared_prefix import Sharing

_KIND = "riders"
CLEAN, SCALED, NOISY = "clean", "clean, scaled down", "noised to the step"
NOISE = (CLEAN, SCALED, NOISY)


@dataclass(frozen=True, eq=False)
class ReferenceRow:
    """A reference latent on a model.

    `label`: of the technique that it is for. `latent`: [1, C, ...] in the scale of a VAE. `noise`: the form in which
    the network gets it. CLEAN: as it is; SCALED: in place of the noisy latent, so that models of x0 + sigma n divide it
    by sqrt(1 + sigma^2); NOISY: at the noise level of the step, with the same noise in the whole run. `active(run)`:
    whether it is used in this step. `for_negatives`: whether the guider's negatives get copies too.
    """

    label: str
    latent: Tensor
    noise: str
    active: Any
    for_negatives: bool

    reports = False  # the technique that uses it does

    def __call__(self, executor, x: Tensor, t: Tensor, c_concat, c_crossattn, control, transformer_options, **kwargs):
        run, base = current_run(transformer_options), executor.class_obj
        chosen = self._chunks(run, transformer_options) if self.active(run) else []
        if not chosen:
            options = with_copies(transformer_options, [], [])
            return executor(x, t, c_concat, c_crossattn, control, options, **kwargs)
        rows, chunks = len(x), len(transformer_options["cond_or_uncond"])
        riding = self._at(run, base, x, t).expand(rows // chunks * len(chosen), *x.shape[1:])
        uuids = [self._uuid(run, prompt) for _, prompt in (prompts(transformer_options)[i] for i in chosen)]
        options = with_copies(transformer_options, [Copy(self, i) for i in chosen], uuids)

        def longer(value: Any) -> Any:
            return _longer(value, rows, chunks, chosen)

        rest = (longer(value) for value in (t, c_concat, c_crossattn, control))
        rest_by_name = {name: longer(value) for name, value in kwargs.items()}
        return executor(torch.cat([x, riding]), *rest, options, **rest_by_name)[:rows]

    def _chunks(self, run: Run, options: dict) -> list[int]:
        """The numbers of the chunks that get a copy."""
        ridden = copies(options)
        negative = run.prompts.negative_chunks(options)
        return [i for i in range(len(negative)) if i not in ridden and (self.for_negatives or not negative[i])]

    def _uuid(self, run: Run, prompt: Any) -> Any:
        """The uuid of the copy of the chunk with this prompt. Where the chunk's blocks are kept for a branch, or
        resumed from cond, the copy's are too."""
        own = branch_uuid(run, self, prompt)
        prefix = run.of(Sharing).prefix
        if prefix is not None:
            if prompt in prefix.wanted:
                prefix.wanted.add(own)
            if prompt in prefix.resumed:
                prefix.resumed[own] = branch_uuid(run, self, prefix.resumed[prompt])
        return own

    def _at(self, run: Run, base, x: Tensor, sigma: Tensor) -> Tensor:
        """The latent at noise level `sigma` [rows], in the form `noise`: [1, ...], shaped like a row of x."""
        known, key = run.notes.setdefault(self, {}), (x.shape[1:], x.device)
        if key not in known:
            latent = _fitted(base.process_latent_in(self.latent.to(x.device, torch.float32)), x)
            noise = torch.randn(latent.shape, generator=torch.Generator().manual_seed(0))
            known[key] = latent, noise.to(x.device)
        latent, noise = known[key]
        sampling = base.model_sampling
        if self.noise == NOISY:
            latent = sampling.noise_scaling(sigma[:1], noise, latent)
        elif self.noise == CLEAN:
            latent = latent / sampling.calculate_input(sigma[:1], torch.ones_like(latent))
        return latent.to(x.dtype)


@dataclass(frozen=True, eq=False)
class RecordedRow(ReferenceRow):
    """`latents` [levels, 1, C, ...], raw (as the sampler sees them), at the falling `sigmas` [levels]: the network sees
    the one of the step, or what lies between two of them. Where the run goes beyond their levels, the nearest."""

    sigmas: Tensor
    latents: Tensor

    def _at(self, run: Run, base, x: Tensor, sigma: Tensor) -> Tensor:
        known = run.notes.setdefault(self, {})
        if x.device not in known:
            known[x.device] = self.sigmas.to(x.device).neg(), self.latents.to(x.device, torch.float32)
        levels, latents = known[x.device]
        after = torch.searchsorted(levels, -sigma[:1].to(levels)).clamp(1, len(levels) - 1)
        share = ((-sigma[:1] - levels[after - 1]) / (levels[after] - levels[after - 1])).clamp(0, 1)
        between = torch.lerp(latents[after - 1][0], latents[after][0], share.to(latents))
        return _fitted(between, x).to(x.dtype)


def add_reference_row(model: ModelPatcher, rider: ReferenceRow) -> None:
    """Adds copies with the latent `rider` to the network calls of a (cloned) model, for a technique that is attached
    too. The latent has to fit the model."""
    attach(model, _KIND, rider)
    know_rows(model)
    attach_hook(model, _hook)


def _hook(run: Run, guider) -> None:
    """Adds the reference rows before any other wrapper of a network call, so that all of them, also of other packs, get
    rows and options that agree; only the correction of the options (partial_calls.py) comes first."""
    check_further_rows(run, run.techniques[_KIND][0])
    wrappers = guider.model_options["transformer_options"].setdefault("wrappers", {})
    others = wrappers.get(WrappersMP.APPLY_MODEL, {})
    wrappers[WrappersMP.APPLY_MODEL] = {"guidekit riders": list(run.techniques[_KIND]), **others}
    put_rows_right(run, guider)


def _longer(value: Any, rows: int, chunks: int, chosen: list[int]) -> Any:
    """`value` with the rows of the chosen chunks repeated at the end, in every tensor that has rows."""
    if isinstance(value, Tensor):
        if value.ndim == 0 or value.shape[0] != rows:
            return value
        by_chunk = value.unflatten(0, (chunks, -1))
        return torch.cat([value, *(by_chunk[i] for i in chosen)])
    if isinstance(value, dict):
        return {key: _longer(each, rows, chunks, chosen) for key, each in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_longer(each, rows, chunks, chosen) for each in value)
    return value


def _fitted(latent: Tensor, x: Tensor) -> Tensor:
    """The latent in the shape of a row of x: resized to its height and width, an image repeated in every frame of a
    video."""
    while latent.ndim < x.ndim:
        latent = latent.unsqueeze(2)
    if latent.shape[-2:] != x.shape[-2:]:
        frames = latent.movedim(1, 2).flatten(0, 1) if latent.ndim == 5 else latent
        frames = torch.nn.functional.interpolate(frames, x.shape[-2:], mode="bilinear", antialias=True)
        latent = frames.unflatten(0, (1, -1)).movedim(2, 1) if latent.ndim == 5 else frames
    if latent.ndim == 5 and latent.shape[2] != x.shape[2]:
        latent = latent[:, :, :1].expand(-1, -1, x.shape[2], -1, -1)
    return latent
