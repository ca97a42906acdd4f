"""Text for the user: in the log, under the node in the graph, and over the websocket for headless clients.

Relies on: PromptServer.send_progress_text (server.py:1469), with which core's nodes show text under themselves.
"""

import logging

log = logging.getLogger(__name__)


def node_id_of(node: type) -> str | None:
    """Of a node class as it runs in a graph, with unique_id among its hidden inputs; None outside one."""
    return node.hidden.unique_id if node.hidden else None


def tell(node_id: str | None, text: str, level: int = logging.INFO) -> None:
    """`node_id` of `node_id_of`; `level`: in the log."""
    log.log(level, text)
    if node_id is not None:
        from server import PromptServer  # not at the top: the tests load nodes without a server

        if (server := getattr(PromptServer, "instance", None)) is not None:
            server.send_progress_text(text, node_id)
