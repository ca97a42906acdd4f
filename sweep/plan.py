"""The jobs of a sweep: settings multiplied with each other, one concrete prompt for each combination.

Nothing here holds more than one job at a time: ten thousand jobs take only the memory of their values.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from . import values
from .errors import SweepError
from .nodes import Target, find
from .text import quoted
from .workflow import Prompt, is_link

# A setting as text, "NODE.input=VALUES", or its name and Python values.
Setting = str | tuple[str, Iterable[Any]]
# The outputs of loaders; jobs with the same loaders use the same models.
_LOADED = {"MODEL", "CLIP", "VAE", "CLIP_VISION", "CONTROL_NET", "STYLE_MODEL", "UPSCALE_MODEL"}


@dataclass(frozen=True)
class Axis:
    """A setting: an input, and the values it takes one after the other."""

    target: Target
    values: Sequence[Any]

    @property
    def name(self) -> str:
        return self.target.name


@dataclass(frozen=True)
class Job:
    """`settings` by name, in the order of the axes."""

    settings: dict[str, Any]
    digest: str  # of what the prompt computes: titles do not count
    model: str  # the same for jobs with the same loaders


@dataclass(frozen=True)
class Plan:
    """`groups`: axes of one group advance together, groups are multiplied; the first one changes slowest."""

    base: Prompt
    groups: tuple[tuple[Axis, ...], ...]
    grid: tuple[str, ...]  # names of the axes of the grid, columns first
    loaders: frozenset[str]  # node ids

    @property
    def axes(self) -> list[Axis]:
        return [axis for group in self.groups for axis in group]

    @property
    def names(self) -> list[str]:
        return [axis.name for axis in self.axes]

    @property
    def count(self) -> int:
        return math.prod(len(group[0].values) for group in self.groups)

    @property
    def digest(self) -> str:
        return _digest(self.base, self.base)

    def jobs(self) -> Iterator[Job]:
        for rows in itertools.product(*(range(len(group[0].values)) for group in self.groups)):
            settings = {axis.name: axis.values[row] for group, row in zip(self.groups, rows) for axis in group}
            prompt = self.prompt(settings)
            yield Job(settings, _digest(prompt, prompt), _digest(prompt, self.loaders))

    def prompt(self, settings: Mapping[str, Any]) -> Prompt:
        """The base with the settings in it; what they leave alone is shared with the base."""
        prompt = dict(self.base)
        for axis in self.axes:
            for node_id in axis.target.node_ids:
                node = prompt[node_id]
                changed = {**node["inputs"], axis.target.input: settings[axis.name]}
                prompt[node_id] = {**node, "inputs": changed}
        return prompt


def make_plan(
    base: Prompt,
    info: Mapping[str, Any],
    settings: Sequence[Setting],
    zipped: Sequence[Sequence[Setting]],
    grid: Sequence[Setting],
    limit: int,
) -> Plan:
    if len(grid) > 2:
        raise SweepError(f"A grid has two axes, and {len(grid)} settings were given as --grid.")
    groups = [(_axis(setting, base, info, limit),) for setting in settings]
    for together in zipped:
        group = tuple(_axis(setting, base, info, limit) for setting in together)
        if len({len(axis.values) for axis in group}) > 1:
            counts = ", ".join(f"{quoted(axis.name)} has {len(axis.values)}" for axis in group)
            raise SweepError(f"Settings that advance together have equally many values: {counts}.")
        groups.append(group)
    axes_of_grid = [_axis(setting, base, info, limit) for setting in grid]
    groups += [(axis,) for axis in reversed(axes_of_grid)]
    plan = Plan(base, tuple(groups), tuple(axis.name for axis in axes_of_grid), _loaders(base, info))
    set_already: dict[tuple[str, str], str] = {}
    for axis in plan.axes:
        for key in ((node_id, axis.target.input) for node_id in axis.target.node_ids):
            if key in set_already:
                names = " and ".join(map(quoted, dict.fromkeys((set_already[key], axis.name))))
                raise SweepError(f"{names} set {quoted(key[1])} of node {quoted(key[0])} twice.")
            set_already[key] = axis.name
    if len(set(plan.names)) < len(plan.names):
        raise SweepError("A setting was given twice.")
    if plan.count > limit:
        raise SweepError(f"That makes {plan.count} jobs; --limit allows {limit}.")
    return plan


def _axis(setting: Setting, base: Prompt, info: Mapping[str, Any], limit: int) -> Axis:
    if isinstance(setting, str):
        name, equals, text = setting.partition("=")
        if not equals:
            raise SweepError(f"{quoted(setting)} is not NODE.input=VALUES, for instance KSampler.seed=1..64.")
        name = name.strip()
    else:
        name, text = setting
    target = find(name, base, info)
    if isinstance(text, str):
        return Axis(target, values.parse(text, target.spec, quoted(name), limit))
    return Axis(target, values.checked(text, target.spec, quoted(name), limit))


def _loaders(base: Prompt, info: Mapping[str, Any]) -> frozenset[str]:
    def loads(node: Mapping[str, Any]) -> bool:
        given = set(map(str, info[node["class_type"]].get("output", ())))
        return bool(given & _LOADED) and not any(map(is_link, node["inputs"].values()))

    return frozenset(node_id for node_id, node in base.items() if loads(node))


def _digest(prompt: Prompt, node_ids: Iterable[str]) -> str:
    content = {node_id: [prompt[node_id]["class_type"], prompt[node_id]["inputs"]] for node_id in node_ids}
    text = json.dumps(_one_spelling(content), sort_keys=True, ensure_ascii=False, separators=(",", ":"))
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()


def _one_spelling(value: Any) -> Any:
    """`value` with whole numbers as int: 8.0 in the editor's file and 8 in its API twin are the same setting."""
    if isinstance(value, dict):
        return {key: _one_spelling(entry) for key, entry in value.items()}
    if isinstance(value, list):
        return [_one_spelling(entry) for entry in value]
    return int(value) if isinstance(value, float) and value.is_integer() else value
