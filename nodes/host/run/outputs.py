"""The output `report` of nodes that say something while they execute; others speak in the sampler's run, of which
GuidekitReport tells.

Relies on: `ui` of a node's output, which the host keeps in the run's history (execution.py:560).
"""

from comfy_api.latest import io


def report_output(tooltip: str = "What the node says as it executes: what it chose, and why.") -> io.String.Output:
    """Always the last output of a node."""
    return io.String.Output(display_name="report", tooltip=tooltip)


def with_report(*outputs: object, report: str) -> io.NodeOutput:
    """`report`: of `tell`; "" where there was nothing to say."""
    return io.NodeOutput(*outputs, report, ui={"text": [report]} if report else None)
