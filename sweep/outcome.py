"""What a server's history says of a prompt that has ended. The only place that knows how the history is laid out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from .link import File


@dataclass(frozen=True)
class Outcome:
    """`texts`: (node id, text); `error`: the sentence of a prompt that failed, in node `node_id` of class
    `node_class`."""

    outputs: dict[str, Any] = field(default_factory=dict)
    files: list[File] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    seconds: float | None = None
    error: str | None = None
    node_id: str | None = None
    node_class: str | None = None


def outcome(entry: Mapping[str, Any]) -> Outcome:
    outputs = entry.get("outputs") or {}
    messages = dict((entry.get("status") or {}).get("messages", ()))
    status = (entry.get("status") or {}).get("status_str")
    if status == "success" or (status is None and "execution_error" not in messages):
        return Outcome(outputs, _files(outputs), _texts(outputs), _seconds(messages))
    data = messages.get("execution_error") or messages.get("execution_interrupted") or {}
    if "execution_interrupted" in messages:
        sentence = "interrupted"
    else:
        name, text = (str(data.get(key, "")).strip() for key in ("exception_type", "exception_message"))
        sentence = f"{name}: {text}".strip(": ") or "it failed, and the server does not say why"
    return Outcome(outputs, error=sentence, node_id=data.get("node_id"), node_class=data.get("node_type"))


Told = dict[str, list[str]]  # what nodes reported, by node id


def hear(told: Told, node_id: str, text: str) -> None:
    """Adds a report that came over the websocket. A node that has more to report repeats the beginning; one that
    reports both when it executes and when it is sampled does so in two texts."""
    texts = told.setdefault(node_id, [])
    if texts and text.startswith(texts[-1]):
        texts[-1] = text
    elif text not in texts:
        texts.append(text)


def reports(told: Told) -> list[tuple[str, str]]:
    """What nodes reported of a run, (node id, text)."""
    return [(node_id, text) for node_id, texts in told.items() for text in texts]


def _seconds(messages: Mapping[str, Any]) -> float | None:
    try:
        return (messages["execution_success"]["timestamp"] - messages["execution_start"]["timestamp"]) / 1000
    except (LookupError, TypeError):
        return None


def _files(outputs: Mapping[str, Any]) -> list[File]:
    """Images, latents, videos, sounds and whatever else is a file; not what came from the input folder."""
    found = []
    for node_id, output in outputs.items():
        for entries in output.values() if isinstance(output, dict) else ():
            for entry in entries if isinstance(entries, list) else ():
                if isinstance(entry, dict) and isinstance(entry.get("filename"), str) and entry.get("type") != "input":
                    parts = (str(entry.get(key) or "") for key in ("filename", "subfolder"))
                    found.append(File(str(node_id), *parts, str(entry.get("type") or "output")))
    return list(dict.fromkeys(found))


def _texts(outputs: Mapping[str, Any]) -> list[tuple[str, str]]:
    found = []
    for node_id, output in outputs.items():
        texts = output.get("text", ()) if isinstance(output, dict) else ()
        for text in [texts] if isinstance(texts, str) else texts:
            if isinstance(text, str):
                found.append((str(node_id), text))
    return found
