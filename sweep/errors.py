"""Errors, each with a sentence for the user."""

from __future__ import annotations


class SweepError(Exception):
    """The call cannot be carried out: nothing has been queued. The text is one sentence for the user."""


class StoppedError(SweepError):
    """The sweep stopped before its end. What is done is kept, and the same call goes on from there."""


class PromptError(RuntimeError):
    """ComfyUI refused a prompt, failed in one of its nodes, or was interrupted. The text names the nodes."""


class ServerError(RuntimeError):
    """ComfyUI did not start, or does not answer any more. If it was started here, the text ends with the end of its
    log."""
