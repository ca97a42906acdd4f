"""Workflows as the editor saves them, in the form that the API takes.

What the editor does for Export (API) is done by the public converter of comfy-cli, from what the server says of its
nodes: reroutes, subgraphs, muted and bypassed nodes, primitives, widgets by position.
"""

from __future__ import annotations

import json
import random
from collections.abc import Mapping
from typing import Any

from .errors import SweepError
from .text import plain


def convert(workflow: dict[str, Any], info: Mapping[str, Any]) -> dict[str, Any]:
    try:
        from comfy_cli.workflow_to_api import WorkflowConversionError, convert_ui_to_api
    except ImportError:
        raise SweepError(
            "This is a workflow as the editor saves it, and its converter is missing: pip install comfy-cli "
            "(it is in the extra guidekit[sweep]), or save the workflow with Export (API)."
        ) from None
    # It draws the words of {dynamic|prompts}: the same ones in every call for the same file.
    state = random.getstate()
    random.seed(json.dumps(workflow, sort_keys=True))
    try:
        return convert_ui_to_api(workflow, dict(info))
    except (WorkflowConversionError, LookupError, TypeError, ValueError, AttributeError) as error:
        raise SweepError(
            f"The workflow cannot be converted ({plain(str(error))}): save it with Export (API) in the editor."
        ) from None
    finally:
        random.setstate(state)
