"""A workflow file, as the prompt that ComfyUI's API takes: {node id: {class_type, inputs, _meta}}."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from .convert import convert
from .errors import SweepError
from .text import cut, quoted

Prompt = dict[str, dict[str, Any]]


def read_json(path: Path) -> Any:
    """The content of a workflow file, of either form."""
    try:
        return json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise SweepError(f"The workflow {quoted(str(path))} cannot be read: {error.strerror}.") from None
    except UnicodeDecodeError as error:
        raise SweepError(f"The workflow {quoted(str(path))} is not UTF-8 text: byte {error.start}.") from None
    except ValueError as error:
        raise SweepError(f"The workflow {quoted(str(path))} is not JSON: {error}.") from None
    except RecursionError:
        raise SweepError(f"The workflow {quoted(str(path))} is nested too deeply.") from None


def classes(content: Any) -> set[str]:
    """The node classes that a workflow of either form names, those of its subgraphs included."""
    found = set()
    waiting = [content]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            found |= {part[key] for key in ("class_type", "type") if isinstance(part.get(key), str)}
            waiting += part.values()
        elif isinstance(part, list):
            waiting += part
    return found


def as_prompt(content: Any, info: Mapping[str, Any]) -> Prompt:
    """The prompt of a workflow of either form; `info` is what the server's /object_info says of its classes."""
    if isinstance(content, dict) and isinstance(content.get("nodes"), list):
        content = convert(content, info)
    elif isinstance(content, dict) and isinstance(content.get("prompt"), dict):
        content = content["prompt"]  # as scripts send it
    if not isinstance(content, dict) or not content:
        raise SweepError(
            "The workflow has no nodes: neither those of a file that the editor saves, nor those of Export (API)."
        )
    for node_id, node in content.items():
        if not isinstance(node, dict) or not isinstance(node.get("class_type"), str):
            raise SweepError(f"The workflow's node {quoted(node_id)} has no class_type; is this a workflow of ComfyUI?")
        if not isinstance(node.get("inputs"), dict):
            raise SweepError(f"The workflow's node {quoted(node_id)} ({quoted(node['class_type'])}) has no inputs.")
    return content


def check(prompt: Prompt, info: Mapping[str, Any], url: str) -> None:
    """Check that the server at `url` can run it, as far as classes and links are concerned."""
    missing = sorted({node["class_type"] for node in prompt.values()} - set(info))
    if missing:
        names = cut(", ".join(map(quoted, missing)), 500)
        raise SweepError(f"{url} has no node of class {names}: custom nodes that the workflow needs are missing there.")
    for node_id, name, (source, _) in links(prompt):
        if source not in prompt:
            raise SweepError(
                f"Node {quoted(node_id)} takes {quoted(name)} from node {quoted(source)}, which is not in the workflow."
            )
    if not any(info[node["class_type"]].get("output_node") for node in prompt.values()):
        raise SweepError("The workflow saves and shows nothing: none of its nodes is an output node.")


def links(prompt: Prompt) -> Iterator[tuple[str, str, tuple[str, int]]]:
    """(node id, input, (source id, output))."""
    for node_id, node in prompt.items():
        for name, value in node["inputs"].items():
            if is_link(value):
                yield node_id, name, (value[0], value[1])


def is_link(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and isinstance(value[0], str) and isinstance(value[1], int)


def title(prompt: Prompt, node_id: str) -> str:
    """The title that the editor shows above the node."""
    node = prompt.get(node_id, {})
    meta = node.get("_meta")
    given = meta.get("title") if isinstance(meta, dict) else None
    return given if isinstance(given, str) and given else node.get("class_type", node_id)
