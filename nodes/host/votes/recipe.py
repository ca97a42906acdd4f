"""Reads how an image was made from the graph that made it.

A graph may hold nodes of any pack, so this is a search: the sampler is the nearest node upstream of the latent that has
steps or sigmas, and a seed or noise. Values are looked for in its inputs, then in the nodes upstream of it, nearest
first. What is not found stays unknown.

Relies on: a prompt in API form, {id: {"class_type", "inputs"}}, in which a link is [id, slot]; names of inputs of
core's samplers, schedulers, guiders, text encoders and loaders; folders of folder_paths.
"""

import functools
import hashlib
from collections import deque
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import folder_paths
from comfy.model_patcher import ModelPatcher
from comfy_execution.graph_utils import is_link

from ....samplers.strict_json import is_number
from ..run.told import Nodes, lineage
from .digest import model_digest, policy_digest
from .vote import Lora, Recipe

_TEXTS = ("text", "t5xxl", "text_g", "clip_l", "text_l", "prompt", "value", "string")
_MODELS = ("checkpoints", "diffusion_models")
_LONGEST = 10_000  # characters of a prompt
_LONGEST_NAME = 300


def read_recipe(
    nodes: Nodes, latent: Any = None, model: Any = None, positive: Any = None, negative: Any = None
) -> Recipe:
    """`latent`, `model`, `positive`, `negative`: the links of the node that shows the images. Those that are None are
    taken from the sampler."""
    sampler = next(_behind(nodes, latent, _is_sampler), None) if latent else None
    given = nodes[sampler]["inputs"] if sampler else {}
    guider = given.get("guider")
    behind = functools.partial(_value, nodes)
    positive = positive or given.get("positive") or behind_link(nodes, guider, ("positive", "conditioning"))
    negative = negative or given.get("negative") or behind_link(nodes, guider, ("negative",))
    model = model or given.get("model") or guider
    name, loras = _files(nodes, model)
    return Recipe(
        text=_text(nodes, positive),
        negative_text=_text(nodes, negative),
        seed=behind(given, ("seed", "noise_seed"), ("noise",), int),
        sampler=_short(behind(given, ("sampler_name",), ("sampler",), str)),
        scheduler=_short(behind(given, ("scheduler",), ("sigmas",), str)),
        steps=behind(given, ("steps",), ("sigmas",), int),
        cfg=_scale(behind(given, ("cfg",), ("guider",), (int, float))),
        model_name=name,
        loras=loras,
    )


def is_direct(nodes: Nodes, latent: Any) -> bool:
    """Whether the link comes from a sampler itself, which added noise of its seed."""
    if not is_link(latent) or latent[0] not in nodes:
        return False
    given = nodes[latent[0]]["inputs"]
    return _is_sampler(given) and given.get("add_noise") not in ("disable", False)


def with_model(recipe: Recipe, model: ModelPatcher) -> Recipe:
    return replace(recipe, model=model_digest(model), policy=policy_digest(model))


def last_link(nodes: Nodes, name: str) -> Any:
    """The input `name` of the last node that has it as a link."""
    found = [node["inputs"][name] for node in nodes.values() if is_link(node["inputs"].get(name))]
    return found[-1] if found else None


def behind_link(nodes: Nodes, link: Any, names: tuple[str, ...]) -> Any:
    """The nearest input upstream of `link` that has one of these names and is a link."""
    for node_id in _behind(nodes, link):
        for name in names:
            if is_link(found := nodes[node_id]["inputs"].get(name)):
                return found
    return None


def _behind(nodes: Nodes, link: Any, wanted: Any = None) -> Iterator[str]:
    """Ids of the nodes upstream of a link, nearest first; only those whose inputs are `wanted`."""
    waiting, seen = deque([link] if is_link(link) else []), set[str]()
    while waiting:
        node_id = waiting.popleft()[0]
        if node_id in seen or node_id not in nodes:
            continue
        seen.add(node_id)
        inputs = nodes[node_id]["inputs"]
        waiting += [value for value in inputs.values() if is_link(value)]
        if wanted is None or wanted(inputs):
            yield node_id


def _is_sampler(inputs: dict) -> bool:
    return bool(inputs.keys() & {"steps", "sigmas"}) and bool(inputs.keys() & {"seed", "noise_seed", "noise"})


def _value(nodes: Nodes, inputs: dict, names: tuple[str, ...], links: tuple[str, ...], kind: Any) -> Any:
    """The value of one of the inputs `names`; or else of a node upstream of one of the inputs `links`."""
    for name in names:
        found = inputs.get(name)
        if is_link(found):
            return _plain(nodes, found, kind)
        if _is(found, kind):
            return found
    for name in links:
        for node_id in _behind(nodes, inputs.get(name)):
            if (found := _value(nodes, nodes[node_id]["inputs"], names, (), kind)) is not None:
                return found
    return None


def _plain(nodes: Nodes, link: Any, kind: Any) -> Any:
    """The value of a primitive node: its only input of that kind."""
    inputs = nodes.get(link[0], {}).get("inputs", {})
    found = [value for value in inputs.values() if _is(value, kind)]
    return found[0] if len(found) == 1 else None


def _is(value: Any, kind: Any) -> bool:
    return isinstance(value, kind) and (isinstance(value, str) or is_number(value))


def _text(nodes: Nodes, link: Any) -> str | None:
    """The text of the nearest text encoder upstream of a prompt."""
    for node_id in _behind(nodes, link):
        inputs = nodes[node_id]["inputs"]
        for name in _TEXTS:
            value = inputs.get(name)
            if is_link(value):
                value = _plain(nodes, value, str)
            if isinstance(value, str):
                return whole_text(value[:_LONGEST])
    return None


def _files(nodes: Nodes, link: Any) -> tuple[str, tuple[Lora, ...]]:
    """The file name of the model, and the LoRAs on it."""
    models, loras, root = _known(*_MODELS), _known("loras"), ""
    name = ""
    found: list[Lora] = []
    for kind, inputs in lineage(nodes, link[0]).values() if is_link(link) else ():
        texts = [value for value in inputs.values() if isinstance(value, str)]
        if not any(map(is_link, inputs.values())):
            root = root or " ".join([kind, *texts[:1]])
        name = name or next((text for text in texts if text in models), "")
        given = (inputs.get(key) for key in ("strength_model", "strength"))
        strength = next((value for value in given if _is(value, (int, float))), 1)
        found += [Lora(_short(text), float(strength), loras[text]()) for text in texts if text in loras]
    return _short(name or root), tuple(found)


def _known(*folders: str) -> dict[str, Any]:
    """Functions that return the digest of a file, by the file's name."""
    return {
        name: functools.partial(_digest_of, folder, name)
        for folder in folders
        for name in folder_paths.get_filename_list(folder)
    }


def _digest_of(folder: str, name: str) -> str:
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        return ""
    state = Path(path).stat()
    return _file_digest(path, state.st_size, state.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _file_digest(path: str, _size: int, _changed: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while part := file.read(2**20):
            digest.update(part)
    return digest.hexdigest()[:32]


def whole_text(text: str) -> str:
    """Without lone surrogates, which JSON and file names may hold, but SQLite and text files cannot."""
    return text.encode("utf-8", "replace").decode("utf-8")


def _short(text: str | None) -> str:
    return whole_text((text or "")[:_LONGEST_NAME])


def _scale(value: float | None) -> float | None:
    return None if value is None else float(value)
