"""The messages of techniques after a run: what they did, or why they did nothing."""

import logging
from typing import Any

from .messages import keep, said
from .run import Run
from .told import Line


def all_techniques(run: Run) -> list:
    """The techniques of all kinds in a run, each once."""
    return list(dict.fromkeys(technique for some in run.techniques.values() for technique in some))


def report(run: Run) -> None:
    """Shows for each technique, under its node, its summary of the run or the one reason why it had no effect."""
    techniques = [t for t in all_techniques(run) if getattr(t, "reports", True)]
    idle = {technique for technique in techniques if technique not in run.acted}
    lines: dict[Line, int] = {}
    for technique in techniques:
        if technique not in idle:
            summary = getattr(technique, "summary", lambda run: None)(run)
            text, level = " ".join(filter(None, (*run.remarks.get(technique, ()), summary))), logging.INFO
        elif getattr(technique, "owner", None) not in idle:  # an idle owner reports for both
            text, level = f"had no effect in this run: {why_idle(run, technique)}", logging.WARNING
        else:
            text = ""
        if text:
            lines.setdefault(said(run.node_of(technique), technique.label, text), level)
    keep(run.context, lines)


def why_idle(run: Run, technique: Any) -> str:
    """Why a technique did nothing in a run, as a sentence."""
    limits = getattr(technique, "range", None)
    if limits is not None and not any(limits.contains(sigma, run) for sigma in run.began.values()):
        return f"none of its {len(run.began)} steps lies in the node's range (start_percent to end_percent)."
    if own := getattr(technique, "why_idle", lambda run: None)(run):
        return own
    if getattr(technique, "needs_negative", False) and not run.prompts.has_guided:
        return "no negative prompt was evaluated: cfg is 1, or the guider has none."
    return technique.idle_reason
