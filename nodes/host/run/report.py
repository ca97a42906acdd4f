"""What techniques have to say of a run that is over, or why they did nothing in it."""

import logging
from typing import Any

from .messages import tell
from .run import Run


def all_techniques(run: Run) -> list:
    return list(dict.fromkeys(technique for some in run.techniques.values() for technique in some))


def report(run: Run) -> None:
    """Tells the node of each technique what it found, or its one reason for having had no effect."""
    techniques, said = [t for t in all_techniques(run) if getattr(t, "reports", True)], set()
    idle = {technique for technique in techniques if technique not in run.acted}
    # A graph may have several samplers.
    where = f" (sampler node {run.sampler_node})" if run.sampler_node else ""
    for technique in techniques:
        if technique not in idle:
            if text := getattr(technique, "summary", lambda run: None)(run):
                tell(technique.node_id, f"{technique.label}{where}: {text}")
        elif getattr(technique, "owner", None) not in idle:  # which says it for both
            message = f"{technique.label}{where} had no effect in this run: {why_idle(run, technique)}"
            if message not in said:
                said.add(message)
                tell(getattr(technique, "node_id", None), message, logging.WARNING)


def why_idle(run: Run, technique: Any) -> str:
    """The reason for which a technique has done nothing in a run, as a sentence."""
    limits = getattr(technique, "range", None)
    if limits is not None and not any(limits.contains(sigma, run) for sigma in run.began.values()):
        return f"none of its {len(run.began)} steps lies in the node's range (start_percent to end_percent)."
    if own := getattr(technique, "why_idle", lambda run: None)(run):
        return own
    if getattr(technique, "needs_negative", False) and not run.prompts.has_guided:
        return "no negative prompt was evaluated: cfg is 1, or the guider has none."
    return technique.idle_reason
