"""Text for the user: in the log, under the node in the graph, and over the websocket for headless clients.

Relies on: PromptServer.send_progress_text (server.py:1469), with which core's nodes show text under themselves.
"""

import logging

log = logging.getLogger(__name__)


def tell(node_id: str | None, text: str) -> None:
    """`node_id` is the hidden input unique_id; None where a node runs outside a graph."""
    log.info(text)
    if node_id is not None:
        from server import PromptServer  # not at the top: the tests load nodes without a server

        if (server := getattr(PromptServer, "instance", None)) is not None:
            server.send_progress_text(text, node_id)
