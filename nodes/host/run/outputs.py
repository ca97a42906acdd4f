"""The output `report` of nodes that have messages while they execute. Messages from the sampler's run are collected by
GuidekitReport.

Relies on: `ui` of a node's output, which the host keeps in the run's history (execution.py:560).
"""

from comfy_api.latest import io


def report_output(tooltip: str = "What the node says as it executes: what it chose, and why.") -> io.String.Output:
    """Always the last output of a node."""
    return io.String.Output(display_name="report", tooltip=tooltip)


def with_report(*outputs: object, report: str) -> io.NodeOutput:
    """The output of a node, with `report` as the last value and in the run's history. `report`: the text that `tell`
    returned, "" if there was none."""
    return io.NodeOutput(*outputs, report, ui={"text": [report]} if report else None)
