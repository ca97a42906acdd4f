"""Text for the user: in the log, under the node in the graph, in the node's output and in that of GuidekitReport.

Messages quote files and workflows: a LoRA's title, a label, a file's name. Our page shows them as text, but core's
nodes that show text render Markdown and links. So every message passes through here and is made plain text; errors
pass through `inputs.checked`.
"""

import logging
import re

from comfy_execution.utils import ExecutionContext, get_executing_context
from torch import Tensor

from .told import TOLD, Line, shown

log = logging.getLogger(__name__)

NAN_OF_VAE = "Usual causes are one in float16 (start ComfyUI with --fp32-vae) and a damaged file."

_LONGEST = 10_000  # characters of a message
_QUOTED = 80  # characters of a value that a sentence quotes
# Look-alikes without a meaning in HTML.
_MARKUP = str.maketrans({"<": "\u2039", ">": "\u203a"})
# Text that frontends take for a link, or for their own placeholder of one, which they cannot draw without the link.
_LINK = re.compile(r"\[(?=\[)|_(?=_LNK)")
_JOINERS = "\u200c\u200d"  # inside emoji and Persian words


def tell(label: str, text: str, level: int = logging.INFO) -> str:
    """Shows `text` under the node that is executing, whose name is `label`, and logs it at `level`. Returns the text as
    it is shown."""
    context = get_executing_context()
    line = said(context and shown(context.node_id), label, text)
    keep(context, {line: level})
    return line.text


def show(text: str) -> str:
    """Shows `text`, which repeats messages of other nodes, under the node that is executing, without logging it.
    Returns the text as it is shown."""
    context = get_executing_context()
    line = said(context and shown(context.node_id), "", text)
    if context is not None:
        TOLD.add(context, [line])
    return line.text


def said(node_id: str | None, label: str, text: str) -> Line:
    """The message `text` of the node `node_id` as plain text of limited length."""
    return Line(node_id or "", label, cut("\n".join(map(plain, text.splitlines())), _LONGEST))


def keep(context: ExecutionContext | None, lines: dict[Line, int]) -> None:
    """Logs `lines` at their levels and stores those of nodes. `context`: the execution, None outside a graph."""
    source = context and context.node_id
    for line, level in lines.items():
        log.log(level, " ".join(line.named(source).split("\n")))
    if context is not None:
        TOLD.add(context, [line for line in lines if line.node])


def plain(text: str) -> str:
    """One line without markup, terminal control characters and characters that reverse the direction of text."""
    text = "".join(map(_visible, " ".join(text.splitlines())))
    return _LINK.sub(r"\g<0> ", text.translate(_MARKUP))


def cut(text: str, length: int) -> str:
    """`text`, shortened to `length` characters where it is longer."""
    return text if len(text) <= length else text[: length - 3] + "..."


def quoted(value: object) -> str:
    """A short form of an untrusted value of any type, for a sentence."""
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
