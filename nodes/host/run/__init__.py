"""One sampling run: its state (Run), steps, prompts, chunks and scales, and the messages to the user.

Everything here may be imported from anywhere in nodes/; nothing here knows networks or techniques. The functions that
attach techniques to a model and find its run are exported here: `from .run import Run, attach, current_run`.
"""

from .attach import (
    KEY,
    Part,
    attach,
    attach_around,
    attach_hook,
    current_run,
    find_run,
    techniques_of,
    wrap_run,
)
from .run import Run

__all__ = [
    "KEY",
    "Part",
    "Run",
    "attach",
    "attach_around",
    "attach_hook",
    "current_run",
    "find_run",
    "techniques_of",
    "wrap_run",
]
