"""The nodes and the input that "KSampler.seed" means in a workflow: by title, class or id."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from . import schema
from .errors import SweepError
from .text import near, quoted
from .workflow import Prompt, is_link, title


@dataclass(frozen=True)
class Target:
    """An input of all nodes that go by one name."""

    name: str  # as the user spelled it
    node_ids: tuple[str, ...]
    input: str
    spec: schema.Spec


def find(name: str, prompt: Prompt, info: Mapping[str, Any]) -> Target:
    """The input(s) that `name` stands for. Several nodes may have the title or class: all whose input is set. Both may
    hold dots: the longest node name counts."""
    parts = name.split(".")
    if len(parts) < 2 or not all(parts[i] for i in (0, -1)):
        raise SweepError(f"{quoted(name)} is not NODE.input, for instance KSampler.seed.")
    known = _names(prompt, info)
    cuts = [(".".join(parts[:i]), ".".join(parts[i:])) for i in range(len(parts) - 1, 0, -1)]
    cuts = [(node, wanted) for node, wanted in cuts if node in known]
    if not cuts:
        raise SweepError(
            f"The workflow has no node {quoted('.'.join(parts[:-1]))}; {near('.'.join(parts[:-1]), known)}."
        )
    for node, wanted in cuts:
        if target := _target(name, known[node], wanted, prompt, info):
            return target
    node, wanted = cuts[0]
    raise _no_such_input(node, known[node], wanted, prompt, info)


def _names(prompt: Prompt, info: Mapping[str, Any]) -> dict[str, list[str]]:
    """Node ids by name. An id means this node, whatever others are called; then a title; then a class."""
    display = {key: entry.get("display_name") for key, entry in info.items()}
    names: dict[str, list[str]] = {node_id: [node_id] for node_id in prompt}
    for name_of in (
        lambda node_id: title(prompt, node_id),
        lambda node_id: prompt[node_id]["class_type"],
        lambda node_id: display[prompt[node_id]["class_type"]],
    ):
        named: dict[str, list[str]] = {}
        for node_id in prompt:
            if name := name_of(node_id):
                named.setdefault(name, []).append(node_id)
        names |= {name: ids for name, ids in named.items() if name not in names}
    return names


def _target(name: str, node_ids: list[str], wanted: str, prompt: Prompt, info: Mapping[str, Any]) -> Target | None:
    free: dict[str, schema.Spec] = {}
    for node_id in node_ids:
        given = prompt[node_id]["inputs"]
        entries = schema.inputs(info[prompt[node_id]["class_type"]], given)
        if (wanted in entries or wanted in given) and not is_link(given.get(wanted)):
            found = schema.spec(entries.get(wanted), given.get(wanted))
            if found is not None:
                free[node_id] = found
    if not free:
        return None
    specs = set(free.values())
    if len(specs) > 1:
        raise SweepError(
            f"{quoted(name)} means nodes {', '.join(map(quoted, free))}, whose input takes different values; "
            "name one by its id."
        )
    return Target(name, tuple(free), wanted, specs.pop())


def _no_such_input(node: str, node_ids: list[str], wanted: str, prompt: Prompt, info: Mapping[str, Any]) -> SweepError:
    given = prompt[node_ids[0]]["inputs"]
    if is_link(given.get(wanted)):
        source = given[wanted][0]
        return SweepError(
            f"{quoted(wanted)} of {quoted(node)} comes by a link from node {quoted(source)} "
            f"({quoted(title(prompt, source))}); set it there."
        )
    entries = schema.inputs(info[prompt[node_ids[0]]["class_type"]], given)
    if wanted in entries:
        return SweepError(f"{quoted(wanted)} of {quoted(node)} takes a link, not a value.")
    usable = [
        key for key, entry in entries.items() if not is_link(given.get(key)) and schema.spec(entry, given.get(key))
    ]
    return SweepError(f"{quoted(node)} has no input {quoted(wanted)}; {near(wanted, usable)}.")
