"""Calling a node outside a graph; the host tests do it too."""

from comfy_api.latest import io


def run_node_all(node: type[io.ComfyNode], **given) -> tuple:
    """All outputs of a node, with the defaults of widgets that are not given. Each input of a node that takes
    lists becomes a list of one entry, as the host makes it."""
    schema = node.define_schema()
    widgets = [i for i in schema.inputs if not getattr(i, "force_input", False)]
    values = {i.id: i.default for i in widgets if getattr(i, "default", None) is not None} | given
    if schema.is_input_list:
        values = {name: [value] for name, value in values.items()}
    return node.execute(**values).result


def run_node(node: type[io.ComfyNode], **given):
    """The first one."""
    return run_node_all(node, **given)[0]
