"""What a user has set: the inputs of a node that are not what its schema proposes, and what is to be said of them."""

from typing import Any

from comfy_api.latest import io

from ..run.messages import tell


def typed(node: type[io.ComfyNode], values: dict[str, Any]) -> set[str]:
    """The names of those of `values` that differ from the schema's defaults; of sockets, those that are connected."""
    defaults = {wanted.id: getattr(wanted, "default", None) for wanted in node.define_schema().inputs}
    return {name for name, value in values.items() if value != defaults[name]}


def unused(node: type[io.ComfyNode], why: str, **values: Any) -> str:
    """A sentence about those of `values` that a user has set, and that have no effect, `why` being such as "with method
    NASA"; "" if there are none."""
    names = [name for name in values if name in typed(node, values)]
    if not names:
        return ""
    listed = ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
    return f"{listed} {'are' if names[1:] else 'is'} not used {why}."


def tell_settings(node: type[io.ComfyNode], *sentences: str) -> str:
    """Under the node, as it runs in a graph; nothing if all sentences are empty. Returns what is told."""
    text = " ".join(filter(None, sentences))
    return tell(node.define_schema().display_name, text) if text else ""
