"""One sampling run: its state (Run), its steps, prompts, chunks and scales, and what is said of it.

Everything here may be imported from anywhere in nodes/; nothing here knows networks or techniques. What is attached to
a model, and the run that it gets, is at hand as `from .run import Run, attach, current_run`.
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
