"""Text for the user: in the log, under the node in the graph, in the node's output and in that of GuidekitReport.

What is told quotes files and workflows: a LoRA's title, a label, a file's name. Our page shows it as text, but others
may not: core's nodes that show text make Markdown or links of it. So text leaves through here, where it is made to be
nothing but text; what nodes raise leaves through `inputs.checked`.
"""

import logging
import re

from comfy_execution.utils import ExecutionContext, get_executing_context
from torch import Tensor

from .told import TOLD, Line, shown

log = logging.getLogger(__name__)

_LONGEST = 10_000  # characters of what a node tells of a run
_QUOTED = 80  # of a value that a sentence quotes
# Look-alikes, which are text in a page and in a terminal alike.
_MARKUP = str.maketrans({"<": "\u2039", ">": "\u203a"})
# Where frontends see a link, or their own placeholder of one, which they cannot draw without the link.
_LINK = re.compile(r"\[(?=\[)|_(?=_LNK)")
_JOINERS = "\u200c\u200d"  # inside emoji and Persian words


def tell(label: str, text: str, level: int = logging.INFO) -> str:
    """Of the node that executes, by its name `label`; `level`: in the log. Returns the text as it is shown."""
    context = get_executing_context()
    line = said(context and shown(context.node_id), label, text)
    keep(context, {line: level})
    return line.text


def show(text: str) -> str:
    """Under the node that executes: what nodes have told already. Returns it as it is shown."""
    context = get_executing_context()
    line = said(context and shown(context.node_id), "", text)
    if context is not None:
        TOLD.add(context, [line])
    return line.text


def said(node_id: str | None, label: str, text: str) -> Line:
    """A line of the node `node_id`, whatever the text quotes."""
    return Line(node_id or "", label, cut("\n".join(map(plain, text.splitlines())), _LONGEST))


def keep(context: ExecutionContext | None, lines: dict[Line, int]) -> None:
    """Logs `lines` at their levels. `context`: what executes, None outside a graph."""
    source = context and context.node_id
    for line, level in lines.items():
        log.log(level, " ".join(line.named(source).split("\n")))
    if context is not None:
        TOLD.add(context, [line for line in lines if line.node])


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
