"""Text for the user: in the log, under the node in the graph, and over the websocket for headless clients.

What is told quotes files and workflows: a LoRA's title, a label, a file's name. Frontend 1.41 (of ComfyUI 0.18) puts
the text under a node into the page as HTML, and it and its successors make links of `[[label|url]]`. So text leaves
through here, where it is made to be nothing but text; what nodes raise leaves through `inputs.checked`.

Relies on: PromptServer.send_progress_text (server.py:1469), with which core's nodes show text under themselves.
"""

import logging
import re

from torch import Tensor

log = logging.getLogger(__name__)

_LONGEST = 10_000  # characters of what a node tells of a run
_QUOTED = 80  # of a value that a sentence quotes
# Look-alikes, which are text in a page and in a terminal alike.
_MARKUP = str.maketrans({"<": "\u2039", ">": "\u203a"})
# Where frontends see a link, or their own placeholder of one, which they cannot draw without the link.
_LINK = re.compile(r"\[(?=\[)|_(?=_LNK)")
_JOINERS = "\u200c\u200d"  # inside emoji and Persian words


def node_id_of(node: type) -> str | None:
    """Of a node class as it runs in a graph, with unique_id among its hidden inputs; None outside one."""
    return node.hidden.unique_id if node.hidden else None


def tell(node_id: str | None, text: str, level: int = logging.INFO) -> None:
    """`node_id` of `node_id_of`; `level`: in the log."""
    text = cut("\n".join(map(plain, text.splitlines())), _LONGEST)
    log.log(level, " ".join(text.split("\n")))
    if node_id is not None:
        from server import PromptServer  # not at the top: the tests load nodes without a server

        if (server := getattr(PromptServer, "instance", None)) is not None:
            server.send_progress_text(text, node_id)


def plain(text: str) -> str:
    """One line without markup and without characters that steer a terminal or turn text round."""
    text = "".join(map(_visible, " ".join(text.splitlines())))
    return _LINK.sub(r"\g<0> ", text.translate(_MARKUP))


def cut(text: str, length: int) -> str:
    """Its beginning, if it is longer."""
    return text if len(text) <= length else text[: length - 3] + "..."


def quoted(value: object) -> str:
    """A value from outside, for a sentence: short, whatever it is."""
    if isinstance(value, str):
        return repr(cut(value, _QUOTED))
    if isinstance(value, int) and value.bit_length() > 128:  # Python does not print thousands of digits
        return f"a number of about {value.bit_length() * 3 // 10} digits"
    if value is None or isinstance(value, bool | int | float):
        return repr(value)
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)}"
    if isinstance(value, dict | list | tuple):
        return f"a {type(value).__name__} of {len(value)} entries"
    return f"a {cut(type(value).__name__, _QUOTED)}"


def _visible(character: str) -> str:
    if character.isprintable() or character in _JOINERS:
        return character
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")
