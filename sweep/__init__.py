"""Headless at scale: a workflow, run for every combination of settings, on one ComfyUI or on many.

    python -m guidekit.sweep WORKFLOW.json --set "KSampler.seed=1..64" --servers URL,URL -o out/

How it is made: a job is a concrete prompt in the API's form with its settings. `plan` makes the jobs of a workflow one
by one, after `nodes`, `schema` and `values` have found the inputs and checked the values against /object_info.
`journal` knows what became of each, by the digest of its prompt. `station` keeps one server busy through its `link`,
`run` has all of them. `collect` brings results in under safe `names`; `table`, `page` and `grid` show them. `study`
puts it together, `command` is the command line. Needs what ComfyUI brings: aiohttp, Pillow; nothing of ComfyUI itself.
"""

from .errors import PromptError, ServerError, StoppedError, SweepError
from .journal import Row
from .study import Summary, Sweep

__all__ = ["PromptError", "Row", "ServerError", "StoppedError", "Summary", "Sweep", "SweepError"]
