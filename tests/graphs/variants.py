"""A sampler of a host's template with one of our nodes before it, run by the host's own executor."""

import uuid
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace

import comfy.model_management

from .selection import Case, Prompt
from .smaller import node

PATCH, COUNTED, REPORT, SEEN = "our node", "counted", "said", "seen"


@dataclass(frozen=True)
class Result:
    """`total`: of the latent, a number that tells it from others; `calls` of the network, the `evaluations` in them,
    and the `steps` that asked for them; `said`: the lines of the report; `error`: (id of the node, type, message)."""

    total: str = ""
    finite: bool = False
    calls: int = 0
    evaluations: int = 0
    steps: int = 0
    said: tuple[str, ...] = ()
    error: tuple[str, str, str] | None = None


def with_node(prompt: Prompt, case: Case, sampler: str, patch: dict | None, beside: Prompt) -> Prompt:
    """`patch`: our node without its model, None for none; `beside`: nodes that it needs."""
    made = {**prompt, **beside}
    model = made[case.node]["inputs"]["model"]
    if patch is not None:
        made[PATCH] = {**patch, "inputs": {**patch["inputs"], "model": model}}
        model = [PATCH, 0]
    made[COUNTED] = node("TestCounted", model=model)
    taker = {**made.pop(case.node)}
    taker["inputs"] = {**taker["inputs"], "model": [COUNTED, 0]}
    made["taker"] = taker
    last = "taker"
    if sampler != case.node:
        last = "sampler"
        made[last] = {**made.pop(sampler)}
        made[last]["inputs"] = {**made[last]["inputs"], "guider": ["taker", 0]}
    made[REPORT] = node("GuidekitReport", sampled=[last, 0])
    made[SEEN] = node("TestSeen", samples=[REPORT, 0], count=[COUNTED, 1], report=[REPORT, 1])
    return made


@dataclass
class Executor:
    """Keeps what does not change from one prompt to the next, as the host does."""

    execution: ModuleType
    made: object = field(init=False)

    def __post_init__(self):
        server = SimpleNamespace(client_id=None, last_node_id=None, last_prompt_id=None, send_sync=lambda *_: None)
        self.made = self.execution.PromptExecutor(server, cache_args={"ram": 0.0, "ram_inactive": 0.0, "lru": 0})

    def run(self, prompt: Prompt) -> Result:
        self.made.execute(prompt, str(uuid.uuid4()), {}, [SEEN])
        # The host collects garbage, which takes a while here, whenever a model of its list is gone.
        comfy.model_management.unload_all_models()
        for event, data in self.made.status_messages:
            if event == "execution_error":
                self.traceback = "".join(data["traceback"])
                return Result(error=(data["node_id"], data["exception_type"], data["exception_message"].strip()))
        [seen] = self.made.history_result["outputs"][SEEN]["seen"]
        lines = tuple(seen["report"].splitlines())
        return Result(seen["sum"], seen["finite"], seen["calls"], seen["rows"] // seen["batch"], seen["steps"], lines)
