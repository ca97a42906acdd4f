"""Calling a node outside a graph; the host tests do it too."""

from comfy_api.latest import io


def run_node_all(node: type[io.ComfyNode], **given) -> tuple:
    """All outputs of a node, with the schema's defaults for the inputs that are not given."""
    defaults = {i.id: i.default for i in node.define_schema().inputs if getattr(i, "default", None) is not None}
    return node.execute(**{**defaults, **given}).result


def run_node(node: type[io.ComfyNode], **given):
    """The first output of a node."""
    return run_node_all(node, **given)[0]
