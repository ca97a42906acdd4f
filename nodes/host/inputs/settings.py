"""The inputs of a node that a user has changed from the schema's defaults, and messages about them."""

from typing import Any

from comfy_api.latest import io

from ..run.messages import tell


def typed(node: type[io.ComfyNode], values: dict[str, Any]) -> set[str]:
    """The names of the `values` that differ from the schema's defaults; of sockets, those that are connected."""
    defaults = {wanted.id: getattr(wanted, "default", None) for wanted in node.define_schema().inputs}
    return {name for name, value in values.items() if value != defaults[name]}


def unused(node: type[io.ComfyNode], why: str, **values: Any) -> str:
    """A sentence saying which of `values`, none of which has an effect, a user has set; "" if none. `why`: the end of
    the sentence, such as "with method NASA"."""
    names = [name for name in values if name in typed(node, values)]
    if not names:
        return ""
    listed = ", ".join(names[:-1]) + (" and " if names[1:] else "") + names[-1]
    return f"{listed} {'are' if names[1:] else 'is'} not used {why}."


def tell_settings(node: type[io.ComfyNode], *sentences: str) -> str:
    """Shows the sentences under the node that is executing, unless all are empty. Returns the text that is shown."""
    text = " ".join(filter(None, sentences))
    return tell(node.define_schema().display_name, text) if text else ""
